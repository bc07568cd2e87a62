//! A forwarded agent: a socket for one session's programs, each of whose connections is a channel
//! to the client. The keys stay there; what passes are questions and signatures.
//!
//! The socket lies in a directory that the session's user alone can enter, and is gone when the
//! session's program has ended.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, unlinkat};
use russh::server::Handle;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::channels::Channels;
use crate::config::Config;
use crate::forward;
use crate::intake::Intake;
use crate::users::Account;

/// The socket of a session. Dropping it removes it.
pub(crate) struct Socket {
    listener: UnixListener,
    directory: Directory,
}

impl Socket {
    /// Makes a socket that this account's programs can use, and nobody else's but the superuser's.
    pub(crate) fn open(account: &Account) -> io::Result<Socket> {
        Socket::open_in(&std::env::temp_dir(), account)
    }

    fn open_in(base: &Path, account: &Account) -> io::Result<Socket> {
        let directory = Directory::make(base)?;
        // Nobody else can enter yet: what is bound here is what is given away.
        let listener = UnixListener::bind(directory.socket())?;
        if let Some(switch) = &account.switch {
            let (uid, gid) = (Some(switch.uid), Some(switch.gid));
            let not_followed = AtFlags::AT_SYMLINK_NOFOLLOW;
            fchownat(&directory.held, NAME, uid, gid, not_followed)?;
            directory.give_to(uid, gid)?;
        }
        Ok(Socket {
            listener,
            directory,
        })
    }

    /// Where it is, for `SSH_AUTH_SOCK`.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.socket()
    }

    /// Takes connections until the session's program has ended. Every channel is closed then: a
    /// client stays for as long as one is open.
    pub(crate) async fn forward(self, to: Client, ended: CancellationToken) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                biased;
                () = ended.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    debug!(%error, "the agent's socket takes no connection");
                    sleep(RETRY).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                to.config.counters.refuse("agent_connections");
                continue;
            };
            let (to, ended) = (to.clone(), ended.clone());
            tokio::spawn(async move {
                to.connect(stream, ended).await;
                drop(permit);
            });
        }
    }
}

/// The client that has the agent.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) handle: Handle,
    pub(crate) config: Arc<Config>,
    pub(crate) channels: Channels,
    pub(crate) intake: Arc<Intake>,
}

impl Client {
    async fn connect(&self, stream: UnixStream, ended: CancellationToken) {
        let opened = timeout(OPEN, self.handle.channel_open_agent()).await;
        let Ok(Ok(channel)) = opened else {
            self.config.counters.refuse("agent_channel");
            debug!("the client opens no channel to its agent");
            return;
        };
        let Some((id, parts)) =
            self.channels
                .insert_open(channel, &self.intake, self.handle.clone())
        else {
            return;
        };
        let outbox = parts.outbox.clone();
        tokio::select! {
            () = forward::run(stream.into_split(), parts.inbox, parts.outbox) => {}
            () = ended.cancelled() => {
                // A client that is gone needs no closing.
                let _ = outbox.unless_closed(outbox.write.close()).await;
            }
        }
        self.channels.remove(id);
        self.intake.forget(id);
    }
}

/// A directory of our own, held open: what its owner puts in its place later is not touched.
struct Directory {
    path: PathBuf,
    held: OwnedFd,
}

impl Directory {
    fn make(base: &Path) -> io::Result<Directory> {
        let number = getrandom::u64().map_err(io::Error::other)?;
        let path = base.join(format!("underpass-{number:016x}"));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match nix::fcntl::open(&path, flags, Mode::empty()) {
            Ok(held) => Ok(Directory { path, held }),
            Err(error) => {
                let _ = std::fs::remove_dir(&path);
                Err(error.into())
            }
        }
    }

    fn give_to(&self, uid: Option<Uid>, gid: Option<Gid>) -> io::Result<()> {
        Ok(fchown(&self.held, uid, gid)?)
    }

    fn socket(&self) -> PathBuf {
        self.path.join(NAME)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What its owner put there keeps the directory; nothing but the socket is ours to remove.
        let _ = unlinkat(&self.held, NAME, UnlinkatFlags::NoRemoveDir);
        let _ = std::fs::remove_dir(&self.path);
    }
}

const NAME: &str = "agent";
/// Connections of one session at a time.
const CONNECTIONS: usize = 8;
/// How long a client may take to open a channel.
const OPEN: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::users::Switch;

    fn account(switch: Option<Switch>) -> Account {
        Account {
            name: "app".to_owned(),
            home: "/".into(),
            shell: None,
            switch,
        }
    }

    #[tokio::test]
    async fn the_socket_is_private_and_goes() {
        use std::os::unix::fs::MetadataExt;
        let base = tempfile::tempdir().unwrap();
        let root = nix::unistd::geteuid().is_root();
        let other = root.then(|| Switch {
            uid: Uid::from_raw(4711),
            gid: Gid::from_raw(4712),
            groups: Vec::new(),
        });
        let owner = other.as_ref().map(|switch| switch.uid.as_raw());
        let socket = Socket::open_in(base.path(), &account(other)).unwrap();
        let path = socket.path();
        let directory = path.parent().unwrap().to_owned();
        let meta = std::fs::metadata(&directory).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o700);
        for made in [&path, &directory] {
            let uid = std::fs::symlink_metadata(made).unwrap().uid();
            assert_eq!(
                uid,
                owner.unwrap_or_else(|| nix::unistd::geteuid().as_raw())
            );
        }
        UnixStream::connect(&path).await.unwrap();
        drop(socket);
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
    }

    /// The session's user owns the directory and may move it: nothing else is removed for it.
    #[tokio::test]
    async fn nothing_of_others_is_removed() {
        let base = tempfile::tempdir().unwrap();
        let victim = base.path().join("victim");
        std::fs::create_dir(&victim).unwrap();
        std::fs::write(victim.join(NAME), "precious").unwrap();
        let socket = Socket::open_in(base.path(), &account(None)).unwrap();
        let directory = socket.path().parent().unwrap().to_owned();
        std::fs::rename(&directory, base.path().join("away")).unwrap();
        std::os::unix::fs::symlink(&victim, &directory).unwrap();
        drop(socket);
        assert!(victim.join(NAME).exists());
    }
}
