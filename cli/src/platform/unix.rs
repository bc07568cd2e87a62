//! Linux, macOS, the BSDs.

use std::{
    env, fs, io,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use rustix::termios::{self, OptionalActions, Termios};
use tokio::signal::unix::{Signal, SignalKind, signal};

// Files

/// Makes a directory, and those above it that are missing, that its owner alone can enter.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Files made with these options are readable by their owner alone.
pub(crate) fn private(options: &mut fs::OpenOptions) -> &mut fs::OpenOptions {
    options.mode(0o600)
}

/// Refuses what is another user's, or open to others by one of `bits`.
pub(crate) fn check_private(path: &Path, access: Access) -> anyhow::Result<()> {
    let meta = fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?;
    let shown = path.display();
    let uid = rustix::process::geteuid().as_raw();
    ensure!(
        meta.uid() == uid,
        "{shown} belongs to user {}\nhint: choose one of your own",
        meta.uid()
    );
    let mode = meta.permissions().mode() & 0o777;
    let (bits, wanted, why) = match access {
        Access::Enter => (0o077, 0o700, "it holds every key"),
    };
    ensure!(
        mode & bits == 0,
        "{shown} is open to others (mode {mode:03o}), and {why}\nhint: chmod {wanted:o} {shown}"
    );
    Ok(())
}

/// What others may not do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// A directory of keys.
    Enter,
}

/// Where a user's data is: `~/.local/share`.
pub(crate) fn data_home() -> Option<PathBuf> {
    home("XDG_DATA_HOME", ".local/share")
}

fn home(variable: &str, below: &str) -> Option<PathBuf> {
    let named = env::var_os(variable).map(PathBuf::from);
    let home = || env::var_os("HOME").filter(|home| !home.is_empty());
    named
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(home()?).join(below)))
}

// Terminal

/// Columns and rows of the terminal, where there is one that says.
pub(crate) fn terminal_size() -> Option<(u32, u32)> {
    let of = |fd: &dyn AsFd| {
        let size = termios::tcgetwinsize(fd.as_fd()).ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col.into(), size.ws_row.into()))
    };
    of(&io::stdout()).or_else(|| of(&io::stdin()))
}

/// Tells of each change of the terminal's size.
pub(crate) struct Resizes(Signal);

impl Resizes {
    pub(crate) fn begin() -> io::Result<Resizes> {
        signal(SignalKind::window_change()).map(Resizes)
    }

    /// `None` when there will be no more.
    pub(crate) async fn recv(&mut self) -> Option<()> {
        self.0.recv().await
    }
}

/// The terminal behaves as it did once this is dropped.
pub(crate) struct Restore(Termios);

impl Drop for Restore {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// The terminal on standard input passes every key on as it is.
pub(crate) fn raw_mode() -> io::Result<Restore> {
    change_terminal(Termios::make_raw)
}

fn change_terminal(change: impl FnOnce(&mut Termios)) -> io::Result<Restore> {
    let stdin = io::stdin();
    let before = termios::tcgetattr(&stdin)?;
    let mut after = before.clone();
    change(&mut after);
    termios::tcsetattr(&stdin, OptionalActions::Drain, &after)?;
    Ok(Restore(before))
}

// Process

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
