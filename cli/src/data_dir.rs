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

    pub(crate) fn path(&self) -> anyhow::Result<PathBuf> {
        if let Some(dir) = &self.data_dir {
            return Ok(dir.clone());
        }
        Ok(platform::data_home()
            .context("no place for data\nhint: give --data-dir DIR")?
            .join("underpass"))
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
    pub(crate) fn checked(path: &Path) -> anyhow::Result<DataDir> {
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

    /// Keeps a session for the next command.
    pub(crate) fn keep_session(&self, session: &str) -> anyhow::Result<()> {
        self.write_private("session", session.as_bytes())
    }

    /// Writes a file that its owner alone can read, whole or not at all.
    pub(crate) fn write_private(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        platform::replace_private(&self.0.join(name), bytes)
    }
}
