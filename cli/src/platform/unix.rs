//! Linux, macOS, the BSDs.

use std::{
    env, fs,
    io::{self, BufRead},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Access;

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
        Access::Read => (0o077, 0o600, "it holds secrets"),
        Access::Write => (0o022, 0o600, "it says where secrets are sent"),
    };
    ensure!(
        mode & bits == 0,
        "{shown} is open to others (mode {mode:03o}), and {why}\nhint: chmod {wanted:o} {shown}"
    );
    Ok(())
}

/// Where a user's settings are: `~/.config`.
pub(crate) fn settings_home() -> Option<PathBuf> {
    home("XDG_CONFIG_HOME", ".config")
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

/// Reads a line from the terminal on standard input, unseen. A signal that ends the program restores
/// the terminal first.
pub(crate) async fn hidden_line() -> io::Result<String> {
    let restore = change_terminal(|terminal| {
        terminal.local_modes.remove(LocalModes::ECHO);
        terminal.local_modes.insert(LocalModes::ECHONL);
    })?;
    let line = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    tokio::select! {
        line = line => line?,
        signal = ended_by_signal() => {
            drop(restore);
            // Nobody takes the thread that reads away from its terminal.
            std::process::exit(128 + signal);
        }
    }
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

// The person's ssh-agent

/// Connects to it; none where `SSH_AUTH_SOCK` names none.
pub(crate) async fn ssh_agent() -> Option<io::Result<tokio::net::UnixStream>> {
    let path = env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty())?;
    Some(tokio::net::UnixStream::connect(path).await)
}

/// What this machine calls itself.
pub(crate) fn host_name() -> String {
    let system = rustix::system::uname();
    system.nodename().to_string_lossy().into_owned()
}

/// Shows a page to the person who sits here; false where there is no browser to be seen.
pub(crate) fn open_in_browser(url: &str) -> bool {
    let mac = cfg!(target_os = "macos");
    let seen = ["DISPLAY", "WAYLAND_DISPLAY"];
    if !mac && seen.iter().all(|name| env::var_os(name).is_none()) {
        return false;
    }
    let mut open = Command::new(if mac { "open" } else { "xdg-open" });
    let quiet = open.arg(url).stdin(Stdio::null()).stdout(Stdio::null());
    quiet.stderr(Stdio::null()).spawn().is_ok()
}
