//! The terminal this program runs on, its standard streams, and the signals it is sent.

use std::io::{self, IsTerminal, Read};

use tokio::sync::mpsc;

use crate::platform::{self, Resizes, Restore};

pub(crate) use crate::platform::ended_by_signal;

/// Standard input and output are both a terminal: a person can be asked.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Columns and rows of the terminal, 80 by 24 where there is none that says.
pub(crate) fn size() -> (u32, u32) {
    platform::terminal_size().unwrap_or((80, 24))
}

/// Tells of each change of the terminal's size.
pub(crate) fn resizes() -> io::Result<Resizes> {
    Resizes::begin()
}

/// The terminal passes every key on as it is. Dropping this restores what was.
pub(crate) struct RawMode {
    _restore: Restore,
}

impl RawMode {
    /// Begins, where standard input is a terminal.
    pub(crate) fn begin() -> io::Result<Option<RawMode>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let _restore = platform::raw_mode()?;
        Ok(Some(RawMode { _restore }))
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

/// What a shell shows of a program that a signal ended.
pub(crate) fn exit_code_of_signal(number: i32) -> u8 {
    u8::try_from(128 + (number & 0x7f)).unwrap_or(u8::MAX)
}

/// The number of a signal as SSH names it (RFC 4254), without `SIG`.
pub(crate) fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 13] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("ABRT", 6),
        ("FPE", 8),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", SIGPIPE),
        ("ALRM", 14),
        ("TERM", 15),
    ];
    let mut found = NAMES.iter().filter(|(known, _)| *known == name);
    found.next().map(|(_, number)| *number)
}

/// Nobody reads what a program writes.
pub(crate) const SIGPIPE: i32 = 13;
