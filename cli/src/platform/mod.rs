//! What operating systems do differently. No other file of the client names one.
//!
//! ```text
//! files      what is private to one user, and where programs keep their settings
//! terminal   raw mode, size, resizes, a line without echo
//! process    signals, the host's name, the browser
//! ```

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::{
    fs,
    io::Write,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use anyhow::Context;

#[cfg(unix)]
pub(crate) use unix::*;
#[cfg(windows)]
pub(crate) use windows::*;

/// What others may not do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// A directory of keys.
    Enter,
    /// A file of secrets.
    Read,
    /// A file of settings.
    Write,
}

/// Names drafts apart.
static DRAFTS: AtomicU64 = AtomicU64::new(0);

/// Writes a file that its owner alone can read, whole or not at all; an old one gives way.
pub(crate) fn replace_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    // Commands may write at the same time, and tasks of one process too.
    let number = DRAFTS.fetch_add(1, Relaxed);
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}-{number}", std::process::id()));
    let draft = Path::new(&draft);
    let written = || -> std::io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        let mut file = private(&mut options).open(draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(draft, path)
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}
