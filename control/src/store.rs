//! What there is, in one SQLite file. Every rule about it is enforced here, in transactions that
//! begin by taking the write lock, so that several processes may open the same file. A write may
//! wait for the lock, and other writes of this process with it; no question waits for a write: what
//! only reads has connections of its own, and what a gateway asks one that nothing else uses.
//!
//! No clock is read: `now` is an argument, and every question about a lease, a token or a session
//! asks whether it still holds at that time.

mod keys;
mod logins;
mod orgs;
mod peers;
mod view;

#[cfg(test)]
mod tests;

use std::{
    fmt, fs,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use rusqlite_migration::{M, Migrations};

use crate::Error;

pub use keys::{AuthorityKind, AuthorityRecord};
pub use logins::{Identity, LoginToken, Session};
pub use orgs::{AppRecord, Instance, Org, OrgId};
pub(crate) use peers::read_address;
pub use peers::{KeyHolder, Kind, LEASE_TTL, Lease, MAX_PEERS, PeerRecord};

/// Every change of the file's shape, in order. A file that was ever written is never changed by
/// editing one of these, only by adding the next.
const MIGRATIONS: [&str; 1] = [include_str!("../migrations/0001_first.sql")];

/// How long a write waits for the lock that another process holds.
const WRITE_WAIT: Duration = Duration::from_secs(5);

/// How long a question waits. In WAL it does so only while the journal of a crash is read.
const READ_WAIT: Duration = Duration::from_millis(100);

/// The store of a control plane.
pub struct Store {
    // First, for fields are dropped in order: the last connection to close must be one that can
    // write, or the journal stays beside the file.
    readers: Option<Readers>,
    writer: Mutex<Connection>,
    views: Mutex<view::Cache>,
}

/// Connections that cannot write. A store in memory has none: its one connection does everything,
/// and there is no other process to wait for.
struct Readers {
    /// For views and keys: asked by a task that carries packets.
    gateway: Mutex<Connection>,
    /// For the rest.
    others: Mutex<Connection>,
}

impl Readers {
    fn open(path: &Path) -> Result<Readers, Error> {
        let open = || -> Result<_, Error> {
            let writes = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
            let flags = OpenFlags::default().difference(writes) | OpenFlags::SQLITE_OPEN_READ_ONLY;
            let connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(READ_WAIT)?;
            connection.pragma_update(None, "trusted_schema", "OFF")?;
            Ok(Mutex::new(connection))
        };
        Ok(Readers {
            gateway: open()?,
            others: open()?,
        })
    }
}

impl Store {
    /// Opens a file, making it (readable by its owner alone) when there is none, and brings it to
    /// this version's shape. The directory it lies in must be its owner's alone too: the store
    /// holds CA private keys.
    ///
    /// # Errors
    /// When the file cannot be opened, is no store, or was made by a newer version.
    pub fn open(path: impl AsRef<Path>) -> Result<Store, Error> {
        let path = path.as_ref();
        // SQLite would make it readable by others; its journal takes the mode of the file.
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|error| Error::Internal(format!("{}: {error}", path.display())))?;
        let store = Store::with(Connection::open(path)?)?;
        Ok(Store {
            readers: Some(Readers::open(path)?),
            ..store
        })
    }

    /// A store that is gone when it is dropped.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn open_in_memory() -> Result<Store, Error> {
        Store::with(Connection::open_in_memory()?)
    }

    fn with(mut connection: Connection) -> Result<Store, Error> {
        connection.busy_timeout(WRITE_WAIT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "secure_delete", "ON")?;
        connection.pragma_update(None, "foreign_keys", "ON")?;
        connection.pragma_update(None, "trusted_schema", "OFF")?;
        Migrations::new(MIGRATIONS.map(M::up).to_vec()).to_latest(&mut connection)?;
        Ok(Store {
            readers: None,
            writer: Mutex::new(connection),
            views: Mutex::default(),
        })
    }

    fn writer(&self) -> MutexGuard<'_, Connection> {
        lock(&self.writer)
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        let readers = self.readers.as_ref();
        lock(readers.map_or(&self.writer, |readers| &readers.others))
    }

    fn gateway(&self) -> MutexGuard<'_, Connection> {
        let readers = self.readers.as_ref();
        lock(readers.map_or(&self.writer, |readers| &readers.gateway))
    }

    /// Runs one transaction, which ends whole or not at all.
    fn write<T>(&self, run: impl FnOnce(&Transaction<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let mut connection = self.writer();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = run(&transaction)?;
        transaction.commit()?;
        Ok(value)
    }

    /// Runs queries that see one state of the file.
    fn read<T>(&self, run: impl FnOnce(&Transaction<'_>) -> Result<T, Error>) -> Result<T, Error> {
        run(&self.reader().transaction()?)
    }

    /// The same for a gateway: nothing is in front of them but what it asked itself.
    fn look_up<T>(
        &self,
        run: impl FnOnce(&Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        run(&self.gateway().transaction()?)
    }
}

fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    // A panic inside a transaction rolled it back: the connection is as good as before.
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store(..)")
    }
}

/// Seconds since 1970, as the store keeps time; 0 for times before.
pub(crate) fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn time(unix: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(unix.max(0).cast_unsigned())
}

/// Whether a text can be a label of a name in lower case.
fn is_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn label<'a>(name: &'a str, what: &'static str) -> Result<&'a str, Error> {
    if is_label(name) {
        Ok(name)
    } else {
        Err(Error::NameInvalid(what))
    }
}

/// Whether a text can name a user: it stands in a certificate's key id, between other fields.
pub(crate) fn is_user_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._@+-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}
