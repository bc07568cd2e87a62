//! Pseudo-terminals, and the step between fork and exec.
//!
//! The only module here with unsafe code: what runs after a fork, two ioctls, and a descriptor that
//! is given to the runtime.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{SigHandler, Signal, killpg};
use nix::unistd::{Pid, setgid, setgroups, setsid, setuid, tcgetpgrp};
use tokio::io::AsyncWrite;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;

use crate::users::Switch;

/// A terminal's size in characters and, where the client says it, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(Winsize);

impl Size {
    pub(crate) fn new(cols: u32, rows: u32, width: u32, height: u32) -> Size {
        let fit = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        Size(Winsize {
            ws_col: fit(cols),
            ws_row: fit(rows),
            ws_xpixel: fit(width),
            ws_ypixel: fit(height),
        })
    }
}

/// The server's end of a terminal.
#[derive(Debug)]
pub(crate) struct Master(AsyncFd<OwnedFd>);

/// The program's end of a terminal, until a program has it.
#[derive(Debug)]
pub(crate) struct Slave {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
}

/// There is no terminal to be had, most often because the image has no `/dev/ptmx`.
#[derive(Debug, thiserror::Error)]
#[error("no terminal can be opened ({step}: {error})")]
pub(crate) struct NoTerminal {
    step: &'static str,
    error: io::Error,
}

/// Opens a terminal. Neither end is inherited by a program that is not given it.
pub(crate) fn open(size: Size) -> Result<(Master, Slave), NoTerminal> {
    let at = |step| {
        move |errno: Errno| NoTerminal {
            step,
            error: errno.into(),
        }
    };
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let master = posix_openpt(flags).map_err(at("/dev/ptmx"))?;
    grantpt(&master).map_err(at("grantpt"))?;
    unlockpt(&master).map_err(at("unlockpt"))?;
    let path = PathBuf::from(ptsname_r(&master).map_err(at("ptsname"))?);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(&path)
        .map_err(|error| NoTerminal {
            step: "/dev/pts",
            error,
        })?;
    let master = register(master.into()).map_err(|error| NoTerminal {
        step: "epoll",
        error,
    })?;
    let master = Master(master);
    master.resize(size).map_err(|error| NoTerminal {
        step: "TIOCSWINSZ",
        error,
    })?;
    Ok((master, Slave { file, path }))
}

impl Master {
    /// Reads what the program wrote; 0 once no program has the terminal any more.
    pub(crate) async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|fd| Ok(nix::unistd::read(fd, into)?));
            match read {
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::EIO as i32) => return Ok(0),
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    pub(crate) fn resize(&self, size: Size) -> io::Result<()> {
        set_size(&self.0, size)
    }

    /// Signals the job in the foreground of the terminal, as a key would.
    pub(crate) fn signal(&self, signal: Signal) -> nix::Result<()> {
        let foreground = tcgetpgrp(self.0.get_ref())?;
        // A terminal that nobody has names no group.
        if foreground.as_raw() > 1 {
            killpg(foreground, signal)
        } else {
            Err(Errno::ESRCH)
        }
    }
}

/// The terminal as something to write to. It has no end: the line discipline has its own key.
pub(crate) struct Keyboard(pub(crate) Arc<Master>);

impl AsyncWrite for Keyboard {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.0.poll_write_ready(cx))?;
            match ready.try_io(|fd| Ok(nix::unistd::write(fd, data)?)) {
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Signals a program and its children.
pub(crate) fn signal_group(group: Pid, signal: Signal) {
    // It may have ended already, which is as well.
    let _ = killpg(group, signal);
}

#[expect(
    unsafe_code,
    reason = "the runtime wants a promise about the descriptor"
)]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open for as long as it lives, and is the same descriptor throughout.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

#[expect(unsafe_code, reason = "the safe bindings have no window size")]
fn set_size(fd: &AsyncFd<OwnedFd>, size: Size) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    nix::ioctl_write_ptr_bad!(tiocswinsz, nix::libc::TIOCSWINSZ, Winsize);
    // SAFETY: the descriptor is open for as long as `fd` lives, and TIOCSWINSZ reads one winsize.
    unsafe { tiocswinsz(fd.as_raw_fd(), &raw const size.0) }?;
    Ok(())
}

/// Makes the command lead a session of its own, on the terminal at its standard input if there is
/// one, as another user if asked for. Signals mean to it what they mean at birth: what ignored one
/// before us, as `nohup` does, did not mean it for a program that is to hear that its client left.
#[expect(
    unsafe_code,
    reason = "what runs between fork and exec is for the program to vouch for"
)]
pub(crate) fn lead_session(command: &mut Command, terminal: bool, switch: Option<Switch>) {
    nix::ioctl_write_int_bad!(tiocsctty, nix::libc::TIOCSCTTY);
    let step = move || -> io::Result<()> {
        for signal in Signal::iterator() {
            if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
                // SAFETY: no handler is installed.
                unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
            }
        }
        setsid()?;
        if terminal {
            // SAFETY: descriptor 0 is the terminal, in place before this runs; the argument is a
            // number.
            unsafe { tiocsctty(0, 0) }?;
        }
        if let Some(switch) = &switch {
            setgroups(&switch.groups)?;
            setgid(switch.gid)?;
            setuid(switch.uid)?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls alone; it allocates nothing, takes no lock, and
    // touches no memory but its own.
    unsafe { command.pre_exec(step) };
}
