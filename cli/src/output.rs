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

macro_rules! eprint {
    ($($words:tt)*) => { $crate::output::to_stderr(format_args!($($words)*)) };
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
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_fmt(words).and_then(|()| stderr.flush());
}

/// An error in one sentence with what caused it, and what to do about it on lines of their own: a
/// cause may hang below a sentence that has a hint already.
pub(crate) fn explained(error: &anyhow::Error) -> String {
    let mut sentences: Vec<String> = Vec::new();
    let mut hints: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let (sentence, hint) = text.split_once(HINT).unwrap_or((&text, ""));
        // Some libraries say their cause themselves.
        if !sentences.iter().any(|said| said.ends_with(sentence)) {
            sentences.push(sentence.to_owned());
        }
        if !hint.is_empty() {
            hints.push(format!("{HINT}{hint}"));
        }
    }
    // The innermost knows best what happened, the outermost what was wanted: that one comes first.
    hints.dedup();
    sentences.join(": ") + &hints.concat()
}

const HINT: &str = "\nhint: ";

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn hints_come_last() {
        let error = anyhow!("in use (98)").context("cannot listen\nhint: take another");
        assert_eq!(
            explained(&error),
            "cannot listen: in use (98)\nhint: take another"
        );
        let error = anyhow!("refused\nhint: start it").context("cannot log in\nhint: ask");
        assert_eq!(
            explained(&error),
            "cannot log in: refused\nhint: ask\nhint: start it"
        );
        let error = anyhow!("it broke").context("lost: it broke");
        assert_eq!(explained(&error), "lost: it broke");
    }
}
