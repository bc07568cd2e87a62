//! Where the agent of a user is: a directory that nobody else can enter.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

/// `$XDG_RUNTIME_DIR/underpass`, or `~/.underpass`.
#[derive(Clone, Debug)]
pub(crate) struct Place(PathBuf);

impl Place {
    /// Makes the directory where it is missing, and refuses one that others can enter.
    pub(crate) fn find() -> anyhow::Result<Place> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let runtime = runtime.filter(|dir| dir.is_absolute() && dir.is_dir());
        let home = || {
            let home = std::env::var_os("HOME").map(PathBuf::from);
            home.filter(|home| home.is_absolute())
        };
        let path = match (runtime, home()) {
            (Some(runtime), _) => runtime.join("underpass"),
            (None, Some(home)) => home.join(".underpass"),
            (None, None) => {
                bail!("no place for its socket\nhint: set XDG_RUNTIME_DIR or HOME")
            }
        };
        Place::at(path)
    }

    pub(super) fn at(path: PathBuf) -> anyhow::Result<Place> {
        let shown = path.display();
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("cannot make {shown}"));
            }
            _ => {}
        }
        let meta = fs::symlink_metadata(&path).with_context(|| format!("cannot open {shown}"))?;
        let uid = nix::unistd::geteuid().as_raw();
        ensure!(meta.is_dir(), "{shown} is not a directory\nhint: remove it");
        ensure!(
            meta.uid() == uid,
            "{shown} belongs to user {}\nhint: set XDG_RUNTIME_DIR to a directory of your own",
            meta.uid()
        );
        let mode = meta.permissions().mode() & 0o777;
        ensure!(
            mode & 0o077 == 0,
            "{shown} is open to others (mode {mode:03o})\nhint: chmod 700 {shown}"
        );
        Ok(Place(path))
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("agent.sock")
    }

    /// What it writes down.
    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("agent.log")
    }

    /// The log before that.
    pub(crate) fn older_log(&self) -> PathBuf {
        self.0.join("agent.log.1")
    }

    /// The right to be the agent, held by one process at a time. None while another has it.
    pub(crate) fn lock(&self) -> anyhow::Result<Option<Flock<fs::File>>> {
        let path = self.0.join("agent.pid");
        let file =
            open_private(&path).with_context(|| format!("cannot write {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0)?;
                writeln!(lock, "{}", std::process::id())?;
                Ok(Some(lock))
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }
}

/// A file that its owner alone can read, to write at its end.
pub(crate) fn open_private(path: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("underpass");
        Place::at(path.clone()).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700);
        for mode in [0o755, 0o710, 0o701] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Place::at(path.clone()).unwrap_err().to_string();
            assert!(error.contains("\nhint: chmod 700"), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        // Somebody else's choice of where it leads.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let error = Place::at(link).unwrap_err().to_string();
        assert!(error.contains("not a directory"), "{error}");
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::at(dir.path().join("underpass")).unwrap();
        let held = place.lock().unwrap();
        assert!(held.is_some());
        assert!(place.lock().unwrap().is_none());
        drop(held);
        assert!(place.lock().unwrap().is_some());
    }
}
