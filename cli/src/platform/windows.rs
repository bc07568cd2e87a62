//! Windows. What lies below a user's profile is closed to other users by its inherited access
//! control list, so that no mode is set or looked at.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use crossterm::{
    event::{Event, KeyCode, KeyEventKind, KeyModifiers},
    terminal,
};
use tokio::net::windows::named_pipe::{ClientOptions, NamedPipeClient};

use super::Access;

// Files

/// Makes a directory and those above it that are missing.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// Files made with these options have the list of their directory.
pub(crate) fn private(options: &mut fs::OpenOptions) -> &mut fs::OpenOptions {
    options
}

/// What a file or directory has to be, it is by its place.
pub(crate) fn check_private(path: &Path, _access: Access) -> anyhow::Result<()> {
    fs::metadata(path)?;
    Ok(())
}

/// Where a user's settings are.
pub(crate) fn settings_home() -> Option<PathBuf> {
    env::var_os("APPDATA").map(PathBuf::from)
}

/// Where a user's data is.
pub(crate) fn data_home() -> Option<PathBuf> {
    env::var_os("LOCALAPPDATA").map(PathBuf::from)
}

// Terminal

/// Columns and rows of the terminal, where there is one that says.
pub(crate) fn terminal_size() -> Option<(u32, u32)> {
    let (columns, rows) = terminal::size().ok()?;
    Some((columns.into(), rows.into()))
}

/// How often the size is looked at: the console tells nobody of a change who does not read its
/// events, and those are keys, too.
const LOOK: Duration = Duration::from_millis(300);

/// Tells of each change of the terminal's size.
pub(crate) struct Resizes(Option<(u32, u32)>);

impl Resizes {
    pub(crate) fn begin() -> io::Result<Resizes> {
        Ok(Resizes(terminal_size()))
    }

    /// `None` when there will be no more.
    pub(crate) async fn recv(&mut self) -> Option<()> {
        loop {
            tokio::time::sleep(LOOK).await;
            let now = terminal_size();
            if std::mem::replace(&mut self.0, now) != now {
                return Some(());
            }
        }
    }
}

/// The terminal behaves as it did once this is dropped.
pub(crate) struct Restore(());

impl Drop for Restore {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = terminal::disable_raw_mode();
    }
}

/// The terminal on standard input passes every key on as it is.
pub(crate) fn raw_mode() -> io::Result<Restore> {
    // The remote side draws with escape sequences; an old console that knows none shows them.
    let _ = crossterm::ansi_support::supports_ansi();
    terminal::enable_raw_mode()?;
    Ok(Restore(()))
}

/// Reads a line from the terminal on standard input, unseen.
pub(crate) async fn hidden_line() -> io::Result<String> {
    let mut line = String::new();
    let _restore = raw_mode()?;
    loop {
        let Event::Key(key) = crossterm::event::read()? else {
            continue;
        };
        match key.code {
            _ if key.kind == KeyEventKind::Release => {}
            KeyCode::Enter => return Ok(line),
            KeyCode::Backspace => {
                line.pop();
            }
            KeyCode::Esc => return Err(io::ErrorKind::Interrupted.into()),
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return Err(io::ErrorKind::Interrupted.into());
            }
            KeyCode::Char(c) => line.push(c),
            _ => {}
        }
    }
}

// Process

/// Ctrl-C, as unix numbers it.
const INTERRUPT: i32 = 2;

/// The window was closed, as unix numbers it.
const HANGUP: i32 = 1;

/// Waits for what ends programs, and says its number.
pub(crate) async fn ended_by_signal() -> i32 {
    use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close};
    let (Ok(mut c), Ok(mut pause), Ok(mut close)) = (ctrl_c(), ctrl_break(), ctrl_close()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = c.recv() => INTERRUPT,
        _ = pause.recv() => INTERRUPT,
        _ = close.recv() => HANGUP,
    }
}

/// What this machine calls itself.
pub(crate) fn host_name() -> String {
    env::var("COMPUTERNAME").unwrap_or_else(|_| "windows".to_owned())
}

/// Shows a page to the person who sits here; false where that cannot be begun.
pub(crate) fn open_in_browser(url: &str) -> bool {
    // Without a shell, which would read & and ^ of the URL as its own.
    let mut open = Command::new("rundll32.exe");
    let quiet = open.args(["url.dll,FileProtocolHandler", url]);
    let quiet = quiet.stdin(Stdio::null()).stdout(Stdio::null());
    quiet.stderr(Stdio::null()).spawn().is_ok()
}

// The person's ssh-agent

/// Connects to the agent that `SSH_AUTH_SOCK` names, or to that of Windows; none where neither runs.
pub(crate) async fn ssh_agent() -> Option<io::Result<NamedPipeClient>> {
    let named = env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty());
    let path = named.unwrap_or_else(|| r"\\.\pipe\openssh-ssh-agent".into());
    match ClientOptions::new().open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        opened => Some(opened),
    }
}
