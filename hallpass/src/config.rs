//! What the server is told before it starts.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ssh_key::certificate::CertType;
use ssh_key::{Certificate, PrivateKey};

use crate::counters::Counters;
use crate::users::Users;

/// The configuration of a server. There is no default: a host identity has to be given.
#[derive(Debug)]
pub struct Config {
    /// What the host proves itself with.
    pub host: Host,
    /// As whom sessions run.
    pub users: Users,
    /// The variables of a session, those of the image's entry point as a rule. Names that are not
    /// plain, values with NUL and `LD_*` are left out.
    pub environment: Vec<(String, String)>,
    /// How much of everything.
    pub limits: Limits,
    /// The program, with its arguments, that serves SFTP on standard input and output for a user
    /// other than this process's own. Without one, SFTP is refused to such a user.
    pub sftp_program: Option<Vec<PathBuf>>,
    /// What is counted.
    pub counters: Arc<Counters>,
}

impl Config {
    /// A configuration with the default limits and an empty environment.
    pub fn new(host: impl Into<Host>, users: Users) -> Config {
        Config {
            host: host.into(),
            users,
            environment: Vec::new(),
            limits: Limits::default(),
            sftp_program: None,
            counters: Arc::default(),
        }
    }
}

/// What a host proves itself with, as of now. A certificate ends before the server does: whoever
/// holds a clone of this replaces it, and connections that begin from then on see the new one.
#[derive(Clone, Debug)]
pub struct Host(Arc<RwLock<Arc<HostIdentity>>>);

impl Host {
    /// What connections that begin now see.
    pub fn identity(&self) -> Arc<HostIdentity> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces it.
    pub fn replace(&self, identity: HostIdentity) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(identity);
    }

    /// Replaces the certificate, for the same key.
    pub fn renew(&self, certificate: Certificate) -> Result<(), ConfigError> {
        let key = self.identity().key.clone();
        self.replace(HostIdentity::new(key, certificate)?);
        Ok(())
    }
}

impl From<HostIdentity> for Host {
    fn from(identity: HostIdentity) -> Host {
        Host(Arc::new(RwLock::new(Arc::new(identity))))
    }
}

/// A host key and the certificate for it.
pub struct HostIdentity {
    pub(crate) key: PrivateKey,
    pub(crate) certificate: Certificate,
}

/// The key is a secret and is not shown.
impl std::fmt::Debug for HostIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostIdentity")
            .field("key_id", &self.certificate.key_id())
            .finish_non_exhaustive()
    }
}

impl HostIdentity {
    /// Pairs a host key with its certificate. They have to belong together, and the certificate
    /// has to be one that a client can accept.
    pub fn new(key: PrivateKey, certificate: Certificate) -> Result<HostIdentity, ConfigError> {
        if key.is_encrypted() {
            return Err(ConfigError::EncryptedKey);
        }
        if certificate.cert_type() != CertType::Host {
            return Err(ConfigError::NoHostCertificate);
        }
        if certificate.public_key() != key.public_key().key_data() {
            return Err(ConfigError::KeyMismatch);
        }
        if certificate.valid_principals().is_empty() {
            return Err(ConfigError::NoPrincipals);
        }
        Ok(HostIdentity { key, certificate })
    }

    /// The certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }
}

/// Why a host key and certificate cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The key needs a passphrase.
    #[error("the host key is encrypted; hint: a server needs one without a passphrase")]
    EncryptedKey,
    /// The certificate is a user certificate.
    #[error(
        "the host certificate is a user certificate; hint: have one signed by the host authority"
    )]
    NoHostCertificate,
    /// The certificate is for another key.
    #[error("the host certificate is for another key; hint: have this host key signed")]
    KeyMismatch,
    /// The certificate names no host, and every client would refuse it.
    #[error("the host certificate names no host; hint: sign it with the instance's names")]
    NoPrincipals,
}

/// How much of everything.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Connections at a time that have not logged in.
    pub startups: usize,
    /// How long a login may take.
    pub login_grace: Duration,
    /// How many keys and certificates a client may offer: an agent offers all it has.
    pub login_attempts: usize,
    /// Channels at a time in one connection.
    pub channels: usize,
    /// After this much silence the client is asked whether it is there.
    pub keepalive: Duration,
    /// After this many questions without an answer the client is gone.
    pub keepalive_count: usize,
    /// How long the client may take none of what is sent to it.
    pub write_stall: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 256,
            startups: 32,
            login_grace: Duration::from_secs(30),
            login_attempts: 64,
            channels: 16,
            keepalive: Duration::from_secs(60),
            keepalive_count: 5,
            write_stall: Duration::from_secs(300),
        }
    }
}
