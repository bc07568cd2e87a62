//! The directory where a running system keeps its store and keys, and how commands find it.
//!
//! Whoever may read it holds every key of the system, so it is 0700 or it is refused. That same
//! fact is the login of the commands on this machine: they need no other.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::platform::{self, Access};

/// `--data-dir DIR`, for every command that speaks to a running system.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct DataDirArg {
    /// Where `underpass up` keeps its store and keys [default: ~/.local/share/underpass]
    #[arg(
        long,
        value_name = "DIR",
        env = "UNDERPASS_DATA_DIR",
        hide_env_values = true,
        global = true
    )]
    pub(crate) data_dir: Option<PathBuf>,
}

impl DataDirArg {
    /// Somebody chose it.
    pub(crate) fn is_given(&self) -> bool {
        self.data_dir.is_some()
    }

    fn path(&self) -> anyhow::Result<PathBuf> {
        if let Some(dir) = &self.data_dir {
            return Ok(dir.clone());
        }
        Ok(platform::data_home()
            .context("no place for data\nhint: give --data-dir DIR")?
            .join("underpass"))
    }

    /// The directory, made if need be, for the process that will own it.
    pub(crate) fn own(&self) -> anyhow::Result<DataDir> {
        let path = self.path()?;
        let made = platform::make_private_dir(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        DataDir::checked(&path)
    }

    /// The directory of a system that runs, or ran.
    pub(crate) fn find(&self) -> anyhow::Result<DataDir> {
        let path = self.path()?;
        if !path.exists() {
            bail!(
                "no Underpass keeps its data in {}\nhint: start one with `underpass up --demo`, name its --data-dir, or log in to one elsewhere: underpass login URL",
                path.display()
            );
        }
        DataDir::checked(&path)
    }
}

/// A process of this machine accepts a connection at once, or not at all.
const PATIENCE: Duration = Duration::from_millis(500);

/// A data directory that nobody but its owner can enter.
#[derive(Clone, Debug)]
pub(crate) struct DataDir(PathBuf);

/// What a running system leaves for the commands of this machine: `up.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Running {
    /// Its process.
    pub(crate) pid: u32,
    /// `https://127.0.0.1:8443`, as people reach it.
    pub(crate) url: String,
    /// Where this machine reaches it.
    pub(crate) address: SocketAddr,
    /// SHA-256 of the certificate it presents, the only one that is trusted.
    pub(crate) fingerprint: String,
}

impl DataDir {
    fn checked(path: &Path) -> anyhow::Result<DataDir> {
        let path =
            fs::canonicalize(path).with_context(|| format!("cannot open {}", path.display()))?;
        let meta = fs::metadata(&path)?;
        ensure!(meta.is_dir(), "{} is not a directory", path.display());
        platform::check_private(&path, Access::Enter)?;
        Ok(DataDir(path))
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The store of control.
    pub(crate) fn store(&self) -> PathBuf {
        self.0.join("underpass.db")
    }

    /// Holds the directory for one process at a time, for as long as the answer lives.
    pub(crate) fn lock(&self) -> anyhow::Result<nix::fcntl::Flock<fs::File>> {
        let file = open_private(&self.0.join("lock"))?;
        nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|_| {
            anyhow::anyhow!(
                "another `underpass up` works in {}\nhint: stop it, or give this one its own --data-dir",
                self.0.display()
            )
        })
    }

    /// Says where the system listens, for [`DataDir::running`].
    pub(crate) fn announce(&self, running: &Running) -> anyhow::Result<()> {
        self.write_private("up.json", serde_json::to_string(running)?.as_bytes())
    }

    /// Takes the announcement back.
    pub(crate) fn retract(&self) {
        let _gone = fs::remove_file(self.0.join("up.json"));
    }

    /// The system that runs on this directory.
    pub(crate) fn running(&self) -> anyhow::Result<Running> {
        let text = fs::read(self.0.join("up.json")).with_context(|| {
            format!(
                "no Underpass runs on {}\nhint: start it with `underpass up`",
                self.0.display()
            )
        })?;
        serde_json::from_slice(&text)
            .context("up.json cannot be read\nhint: restart `underpass up`")
    }

    /// Whether anything listens where the last system that ran here said it did.
    pub(crate) fn answers(&self) -> bool {
        let connect = |running: Running| TcpStream::connect_timeout(&running.address, PATIENCE);
        self.running().is_ok_and(|running| connect(running).is_ok())
    }

    /// The session that the commands of this machine share, if there is one.
    pub(crate) fn session(&self) -> Option<String> {
        fs::read_to_string(self.0.join("session")).ok()
    }

    /// Lets the next command log in anew.
    pub(crate) fn forget_session(&self) {
        let _gone = fs::remove_file(self.0.join("session"));
    }

    /// Keeps a session for the next command.
    pub(crate) fn keep_session(&self, session: &str) -> anyhow::Result<()> {
        self.write_private("session", session.as_bytes())
    }

    /// Reads a file of secrets, or makes it (mode 0600) from `fresh`.
    pub(crate) fn secret<const N: usize>(
        &self,
        name: &str,
        fresh: impl FnOnce() -> anyhow::Result<[u8; N]>,
    ) -> anyhow::Result<zeroize::Zeroizing<[u8; N]>> {
        let path = self.0.join(name);
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

    /// Writes a file that its owner alone can read, whole or not at all.
    fn write_private(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        platform::replace_private(&self.0.join(name), bytes)
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
