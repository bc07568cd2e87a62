//! What the process that owns a data directory does with it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::{
    data_dir::{DataDir, DataDirArg, Running},
    platform,
};

impl DataDirArg {
    /// The directory, made if need be, for the process that will own it.
    pub(crate) fn own(&self) -> anyhow::Result<DataDir> {
        let path = self.path()?;
        let made = platform::make_private_dir(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        DataDir::checked(&path)
    }
}

impl DataDir {
    /// The store of control.
    pub(crate) fn store(&self) -> PathBuf {
        self.path().join("underpass.db")
    }

    /// Holds the directory for one process at a time, for as long as the answer lives.
    pub(crate) fn lock(&self) -> anyhow::Result<Flock<fs::File>> {
        let file = open_private(&self.path().join("lock"))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
            anyhow::anyhow!(
                "another `underpass up` works in {}\nhint: stop it, or give this one its own --data-dir",
                self.path().display()
            )
        })
    }

    /// Says where the system listens, for [`DataDir::running`].
    pub(crate) fn announce(&self, running: &Running) -> anyhow::Result<()> {
        self.write_private("up.json", serde_json::to_string(running)?.as_bytes())
    }

    /// Takes the announcement back.
    pub(crate) fn retract(&self) {
        let _gone = fs::remove_file(self.path().join("up.json"));
    }

    /// Lets the next command log in anew.
    pub(crate) fn forget_session(&self) {
        let _gone = fs::remove_file(self.path().join("session"));
    }

    /// Reads a file of secrets, or makes it (mode 0600) from `fresh`.
    pub(crate) fn secret<const N: usize>(
        &self,
        name: &str,
        fresh: impl FnOnce() -> anyhow::Result<[u8; N]>,
    ) -> anyhow::Result<zeroize::Zeroizing<[u8; N]>> {
        let path = self.path().join(name);
        if path.exists() {
            let bytes = zeroize::Zeroizing::new(fs::read(&path)?);
            let Ok(secret) = <[u8; N]>::try_from(bytes.as_slice()) else {
                bail!(
                    "{} is damaged\nhint: restore it, or remove it to make a new one",
                    path.display()
                );
            };
            return Ok(zeroize::Zeroizing::new(secret));
        }
        let secret = zeroize::Zeroizing::new(fresh()?);
        self.write_private(name, secret.as_slice())?;
        Ok(secret)
    }
}

fn open_private(path: &Path) -> anyhow::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    platform::private(&mut options)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn arg(path: &Path) -> DataDirArg {
        DataDirArg {
            data_dir: Some(path.to_owned()),
        }
    }

    #[test]
    fn a_directory_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o755, 0o750, 0o701] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = arg(dir.path()).own().unwrap_err().to_string();
            assert!(error.contains("hint: chmod 700"), "{error}");
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        arg(dir.path()).own().unwrap();
    }

    #[test]
    fn a_new_directory_is_private_and_holds_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let data = arg(&dir.path().join("a/b")).own().unwrap();
        assert_eq!(
            fs::metadata(data.path()).unwrap().permissions().mode() & 0o777,
            0o700
        );
        let held = data.lock().unwrap();
        assert!(
            data.lock()
                .unwrap_err()
                .to_string()
                .contains("another `underpass up`")
        );
        drop(held);
        data.lock().unwrap();
    }

    #[test]
    fn a_secret_is_made_once_and_a_damaged_one_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let data = arg(&dir.path().join("d")).own().unwrap();
        assert_eq!(*data.secret("key", || Ok([7; 32])).unwrap(), [7; 32]);
        assert_eq!(*data.secret("key", || Ok([8; 32])).unwrap(), [7; 32]);
        let mode = fs::metadata(data.path().join("key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(data.path().join("key"), [1; 5]).unwrap();
        assert!(data.secret("key", || Ok([8; 32])).is_err());
    }
}
