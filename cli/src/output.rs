//! `println!` and its kin for a program whose reader may have gone.
//!
//! The standard ones panic when the other end of a pipe is closed. These end the program quietly,
//! with the status that a shell shows of one that SIGPIPE ended. The signal itself stays ignored:
//! it would end the program for any socket that the other side closed.

use std::{
    fmt,
    io::{self, Write},
};

/// 128 and SIGPIPE.
const BROKEN_PIPE: i32 = 128 + 13;

macro_rules! print {
    ($($words:tt)*) => { $crate::output::to_stdout(format_args!($($words)*)) };
}

macro_rules! println {
    () => { $crate::output::to_stdout(format_args!("\n")) };
    ($($words:tt)*) => {
        $crate::output::to_stdout(format_args!("{}\n", format_args!($($words)*)))
    };
}

macro_rules! eprintln {
    ($($words:tt)*) => {
        $crate::output::to_stderr(format_args!("{}\n", format_args!($($words)*)))
    };
}

pub(crate) fn to_stdout(words: fmt::Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_fmt(words).and_then(|()| stdout.flush()) {
        if error.kind() != io::ErrorKind::BrokenPipe {
            eprintln!("underpass: the output cannot be written: {error}\nhint: is the disk full?");
            std::process::exit(1);
        }
        std::process::exit(BROKEN_PIPE);
    }
}

/// Where even complaints cannot be heard, work goes on.
pub(crate) fn to_stderr(words: fmt::Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(words);
}
