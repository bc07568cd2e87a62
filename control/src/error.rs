//! What can go wrong, and what to do about it.

use std::fmt;

/// Why the store or the API refuses. Each has a stable code, a sentence and a hint.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The login token was never issued, or was mistyped.
    TokenUnknown,
    /// The login token was exchanged for a session before.
    TokenUsed,
    /// The login token is older than ten minutes.
    TokenExpired,
    /// Too many login tokens of one user wait to be used.
    TooManyTokens,
    /// No `Authorization: Bearer` came with the request.
    SessionMissing,
    /// The session was never issued, or was ended.
    SessionUnknown,
    /// The session is older than twelve hours.
    SessionExpired,
    /// No such organisation, or the user is no member: the two are the same to those who ask.
    OrgUnknown,
    /// No such app in the organisation's network.
    AppUnknown,
    /// No such instance.
    InstanceUnknown,
    /// No live peer of that name or address.
    PeerUnknown,
    /// A name that is no DNS label, or is reserved: what it was to name.
    NameInvalid(&'static str),
    /// The name is held by something else: what it was to name.
    NameTaken(&'static str),
    /// The WireGuard key belongs to another peer, instance or network.
    KeyTaken,
    /// The text is no WireGuard public key, or one that no private key has.
    PeerKeyInvalid,
    /// The organisation's network holds as many peers as it may.
    TooManyPeers,
    /// The text is no SSH public key.
    KeyUnreadable,
    /// The SSH public key is of a type that is not signed: which.
    KeyRefused(String),
    /// A certificate was asked for a time outside what is allowed: the most hours.
    HoursOutOfRange {
        /// The most hours that may be asked for.
        max: u64,
    },
    /// The principals are none, too many, or not login names.
    PrincipalsInvalid,
    /// The organisation has two CAs of the kind already.
    RotationUnderWay,
    /// The organisation has one CA of the kind, which is not to be taken away.
    NoRotation,
    /// The store was made by a newer version of this program.
    StoreTooNew,
    /// The store failed.
    Store(rusqlite::Error),
    /// The system, the file system or a library failed: what was being done.
    Internal(String),
}

impl Error {
    /// The stable name, as the API gives it.
    pub fn code(&self) -> &'static str {
        match self {
            Error::TokenUnknown => "token_unknown",
            Error::TokenUsed => "token_used",
            Error::TokenExpired => "token_expired",
            Error::TooManyTokens => "too_many_tokens",
            Error::SessionMissing => "session_missing",
            Error::SessionUnknown => "session_unknown",
            Error::SessionExpired => "session_expired",
            Error::OrgUnknown => "org_unknown",
            Error::AppUnknown => "app_unknown",
            Error::InstanceUnknown => "instance_unknown",
            Error::PeerUnknown => "peer_unknown",
            Error::NameInvalid(_) => "name_invalid",
            Error::NameTaken(_) => "name_taken",
            Error::KeyTaken => "key_taken",
            Error::PeerKeyInvalid => "public_key_invalid",
            Error::TooManyPeers => "too_many_peers",
            Error::KeyUnreadable => "key_unreadable",
            Error::KeyRefused(_) => "key_refused",
            Error::HoursOutOfRange { .. } => "hours_out_of_range",
            Error::PrincipalsInvalid => "principals_invalid",
            Error::RotationUnderWay => "rotation_under_way",
            Error::NoRotation => "no_rotation",
            Error::StoreTooNew => "store_too_new",
            Error::Store(_) | Error::Internal(_) => "internal",
        }
    }

    /// What happened, in a sentence without what the system said.
    pub fn message(&self) -> String {
        match self {
            Error::TokenUnknown => "this login token is not known here".into(),
            Error::TokenUsed => "this login token was used before".into(),
            Error::TokenExpired => "this login token has expired".into(),
            Error::TooManyTokens => "too many login tokens wait to be used".into(),
            Error::SessionMissing => "this needs a session".into(),
            Error::SessionUnknown => "this session is not known here".into(),
            Error::SessionExpired => "this session has expired".into(),
            Error::OrgUnknown => "no such organisation".into(),
            Error::AppUnknown => "no such app".into(),
            Error::InstanceUnknown => "no such instance".into(),
            Error::PeerUnknown => "no such peer, or its lease has ended".into(),
            Error::NameInvalid(what) => format!("this cannot be the name of {what}"),
            Error::NameTaken(what) => format!("the name of {what} is taken"),
            Error::KeyTaken => "this WireGuard key belongs to somebody else".into(),
            Error::PeerKeyInvalid => "this is no WireGuard public key".into(),
            Error::TooManyPeers => "the network holds as many peers as it may".into(),
            Error::KeyUnreadable => "this is no SSH public key".into(),
            Error::KeyRefused(kind) => format!("SSH keys of type {kind} are not signed"),
            Error::HoursOutOfRange { max: 1 } => "a console's certificate lasts one hour".into(),
            Error::HoursOutOfRange { max } => format!("a certificate lasts 1 to {max} hours"),
            Error::PrincipalsInvalid => "these are no login names to sign for".into(),
            Error::RotationUnderWay => "two CAs of this kind are trusted already".into(),
            Error::NoRotation => "there is one CA of this kind, and it signs".into(),
            Error::StoreTooNew => "the store was made by a newer version".into(),
            Error::Store(_) | Error::Internal(_) => "the control plane failed".into(),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Error::TokenUnknown => {
                "copy the whole address, or run `underpass console` for a new one"
            }
            Error::TokenUsed | Error::TokenExpired => {
                "a login address works once, for ten minutes: run `underpass console` for a new one"
            }
            Error::TooManyTokens => "use one of them, or wait ten minutes",
            Error::SessionMissing => "log in, and send `Authorization: Bearer` with the session",
            Error::SessionUnknown | Error::SessionExpired => {
                "log in again: `underpass console` prints an address"
            }
            Error::OrgUnknown => "look at the names that `underpass orgs` lists",
            Error::AppUnknown => "look at the names that `underpass apps` lists",
            Error::InstanceUnknown => "look at the instances that `underpass apps` lists",
            Error::PeerUnknown => "lease a peer first; a lease lasts ten minutes unless renewed",
            Error::NameInvalid(_) => {
                "use 1 to 63 lower case letters, digits and inner hyphens, and no reserved word"
            }
            Error::NameTaken(_) => "choose another name, or remove the one that holds it",
            Error::KeyTaken => "make a key of its own for each peer",
            Error::PeerKeyInvalid => "send 44 characters of base64, as `wg pubkey` prints them",
            Error::TooManyPeers => "remove peers that are not used, or wait for leases to end",
            Error::KeyUnreadable => "send the one line of a .pub file: ssh-ed25519 AAAA...",
            Error::KeyRefused(_) => "make one that is: ssh-keygen -t ed25519",
            Error::HoursOutOfRange { .. } => "ask for a shorter time, or leave `hours` out",
            Error::PrincipalsInvalid => {
                "give 1 to 16 names such as root, or leave `principals` out"
            }
            Error::RotationUnderWay => {
                "wait until the older one is retired, or end that with `underpass ssh establish --retire`"
            }
            Error::NoRotation => "make another with `underpass ssh establish` first",
            Error::StoreTooNew => "run that version, or choose another data directory",
            Error::Store(_) | Error::Internal(_) => "try again; the server's log says what failed",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message())?;
        match self {
            Error::Store(error) => write!(f, ": {error}")?,
            Error::Internal(what) => write!(f, ": {what}")?,
            _ => {}
        }
        write!(f, "; hint: {}", self.hint())
    }
}

impl std::error::Error for Error {}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Error::Store(error)
    }
}

impl From<rusqlite_migration::Error> for Error {
    fn from(error: rusqlite_migration::Error) -> Self {
        use rusqlite_migration::{Error as Migration, MigrationDefinitionError as Definition};
        match error {
            Migration::MigrationDefinition(Definition::DatabaseTooFarAhead) => Error::StoreTooNew,
            other => Error::Internal(format!("migration: {other}")),
        }
    }
}

impl From<ssh_key::Error> for Error {
    fn from(error: ssh_key::Error) -> Self {
        Error::Internal(format!("SSH certificate: {error}"))
    }
}
