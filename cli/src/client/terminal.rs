//! The terminal this program runs on, its standard streams, and the signals it is sent.

use std::{
    io::{self, IsTerminal, Read},
    os::fd::AsFd,
};

use rustix::termios::{self, OptionalActions, Termios};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

/// Standard input and output are both a terminal: a person can be asked.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Columns and rows of the terminal, 80 by 24 where there is none that says.
pub(crate) fn size() -> (u32, u32) {
    let of = |fd: &dyn AsFd| {
        let size = termios::tcgetwinsize(fd.as_fd()).ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col.into(), size.ws_row.into()))
    };
    of(&io::stdout())
        .or_else(|| of(&io::stdin()))
        .unwrap_or((80, 24))
}

/// Tells of each change of the terminal's size.
pub(crate) fn resizes() -> io::Result<Signal> {
    signal(SignalKind::window_change())
}

/// The terminal passes every key on as it is. Dropping this restores what was.
pub(crate) struct RawMode(Termios);

impl RawMode {
    /// Begins, where standard input is a terminal.
    pub(crate) fn begin() -> io::Result<Option<RawMode>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(Some(RawMode(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// A piece of standard input is at most this long.
const PIECE: usize = 32 * 1024;

/// Pieces of standard input that wait to be taken.
const PIECES: usize = 4;

/// Standard input, piece by piece; the channel ends where it does. It is read by a thread that
/// nobody waits for: a program that is done does not hang until the next key.
pub(crate) fn input() -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (pieces, taken) = mpsc::channel(PIECES);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; PIECE];
        loop {
            let piece = match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => Ok(buffer[..n].to_vec()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = piece.is_err();
            if pieces.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    });
    taken
}

/// Waits for a signal that ends programs, and says its number.
pub(crate) async fn ended_by_signal() -> i32 {
    let wait = async |kind: SignalKind| match signal(kind) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => SignalKind::interrupt().as_raw_value(),
        () = wait(SignalKind::terminate()) => SignalKind::terminate().as_raw_value(),
        () = wait(SignalKind::hangup()) => SignalKind::hangup().as_raw_value(),
    }
}

/// What a shell shows of a program that a signal ended.
pub(crate) fn exit_code_of_signal(number: i32) -> u8 {
    u8::try_from(128 + (number & 0x7f)).unwrap_or(u8::MAX)
}
