//! SSH certificates, by one profile. Pure: keys, names and times in, a certificate out.

use std::{
    net::Ipv6Addr,
    time::{Duration, SystemTime},
};

use ssh_key::{
    Certificate, EcdsaCurve, HashAlg, PrivateKey, PublicKey,
    certificate::{Builder, CertType},
    private::{Ed25519Keypair, KeypairData},
    public::KeyData,
};
use zeroize::Zeroizing;

use crate::{
    Error,
    secret::random,
    store::{is_user_name, unix},
};

/// A console's certificate, bound to one address, lasts no longer.
const MAX_BOUND: Duration = Duration::from_secs(3600);

/// A certificate for use from anywhere in the network lasts no longer.
pub(crate) const MAX_FREE: Duration = Duration::from_secs(72 * 3600);

const MIN: Duration = Duration::from_secs(60);

/// A host's certificate; hosts ask for the next one in time.
pub(crate) const HOST: Duration = Duration::from_secs(30 * 24 * 3600);

/// Clocks differ: certificates begin a little before they are made.
const SKEW: Duration = Duration::from_secs(60);

/// Who a user logs in as unless told otherwise.
const DEFAULT_PRINCIPALS: [&str; 2] = ["root", "fly"];

const MAX_PRINCIPALS: usize = 16;

/// The longest line read as an SSH public key; those that are signed take 200 bytes and a comment.
const MAX_KEY_LINE: usize = 1024;

/// What a user asks to have signed.
#[derive(Debug, Clone)]
pub struct UserCertificate<'a> {
    /// The line of a `.pub` file.
    pub public_key: &'a str,
    /// Who asks, for the key id.
    pub user: &'a str,
    /// Login names; none given means `root` and `fly`.
    pub principals: Option<&'a [String]>,
    /// The own address of a live peer of the organisation, the only one it may then be used from.
    pub source: Option<Ipv6Addr>,
    /// How long; at most an hour with a source, 72 hours without.
    pub ttl: Duration,
    /// What may pass through the session beside the terminal.
    pub forwarding: Forwarding,
}

/// What may pass through a session beside its terminal: nothing, by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forwarding {
    /// TCP ports.
    pub ports: bool,
    /// The agent.
    pub agent: bool,
}

/// An SSH CA. Debug shows its public half.
#[derive(Debug)]
pub(crate) struct Authority(PrivateKey);

impl Authority {
    pub(crate) fn from_seed(seed: &[u8; 32], comment: &str) -> Result<Authority, Error> {
        let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(seed));
        Ok(Authority(PrivateKey::new(pair, comment)?))
    }

    /// The line that trusts it.
    pub(crate) fn public_line(&self) -> Result<String, Error> {
        Ok(self.0.public_key().to_openssh()?)
    }

    pub(crate) fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Whether this certificate is one of its own.
    pub(crate) fn signed(&self, certificate: &Certificate) -> bool {
        certificate.signature_key() == self.0.public_key().key_data()
    }

    pub(crate) fn sign_user(
        &self,
        org: &str,
        asked: &UserCertificate<'_>,
        now: SystemTime,
    ) -> Result<Certificate, Error> {
        let key = read_key(asked.public_key)?;
        let max = if asked.source.is_some() {
            MAX_BOUND
        } else {
            MAX_FREE
        };
        if asked.ttl < MIN || asked.ttl > max {
            return Err(Error::HoursOutOfRange {
                max: max.as_secs() / 3600,
            });
        }
        let default = || DEFAULT_PRINCIPALS.map(String::from).to_vec();
        let principals = asked.principals.map_or_else(default, <[_]>::to_vec);
        let in_bounds = (1..=MAX_PRINCIPALS).contains(&principals.len());
        if !in_bounds || !principals.iter().all(|name| is_login_name(name)) {
            return Err(Error::PrincipalsInvalid);
        }
        if !is_user_name(asked.user) {
            return Err(Error::NameInvalid("a user"));
        }
        let key_id = format!("org={org};user={}", asked.user);
        let mut builder = self.builder(CertType::User, &key, &key_id, now, asked.ttl)?;
        for principal in principals {
            builder.valid_principal(principal)?;
        }
        if let Some(source) = asked.source {
            builder.critical_option("source-address", format!("{source}/128"))?;
        }
        builder.extension("permit-pty", "")?;
        if asked.forwarding.ports {
            builder.extension("permit-port-forwarding", "")?;
        }
        if asked.forwarding.agent {
            builder.extension("permit-agent-forwarding", "")?;
        }
        self.finished(builder)
    }

    /// `names` are all the names that the host may be dialled by.
    pub(crate) fn sign_host(
        &self,
        org: &str,
        instance: &str,
        names: &[String],
        public_key: &str,
        now: SystemTime,
    ) -> Result<Certificate, Error> {
        let key = read_key(public_key)?;
        let key_id = format!("org={org};instance={instance}");
        let mut builder = self.builder(CertType::Host, &key, &key_id, now, HOST)?;
        for name in names {
            builder.valid_principal(name)?;
        }
        self.finished(builder)
    }

    fn builder(
        &self,
        kind: CertType,
        key: &PublicKey,
        key_id: &str,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<Builder, Error> {
        let nonce = random::<32>()?;
        let after = unix(now.checked_sub(SKEW).unwrap_or(now)).cast_unsigned();
        let before = unix(now).cast_unsigned().saturating_add(ttl.as_secs());
        let mut builder = Builder::new(nonce.to_vec(), key.clone(), after, before)?;
        builder.cert_type(kind)?;
        builder.serial(u64::from_be_bytes(*random::<8>()?))?;
        builder.key_id(key_id)?;
        builder.comment(key_id)?;
        Ok(builder)
    }

    /// Nothing leaves that is valid for everybody: a certificate without principals is no
    /// certificate here.
    fn finished(&self, builder: Builder) -> Result<Certificate, Error> {
        let certificate = builder.sign(&self.0)?;
        if certificate.valid_principals().is_empty() {
            return Err(Error::PrincipalsInvalid);
        }
        Ok(certificate)
    }
}

/// Whether a host's certificate is to be followed by the next: a third of its time has passed. What
/// is left outlasts a control plane that cannot be asked for a while.
pub(crate) fn is_old(certificate: &Certificate, now: SystemTime) -> bool {
    let (from, until) = (certificate.valid_after(), certificate.valid_before());
    let now = unix(now).cast_unsigned();
    now < from || until.saturating_sub(now) < until.saturating_sub(from) / 3 * 2
}

/// Reads a public key of a type that is signed here: ed25519, or ECDSA on P-256 as browsers make.
fn read_key(line: &str) -> Result<PublicKey, Error> {
    let line = line.trim();
    if line.len() > MAX_KEY_LINE || line.contains(['\n', '\r', '\0']) {
        return Err(Error::KeyUnreadable);
    }
    // The type is named before the rest is read: types that are not compiled in are known by name.
    let kind = line.split(' ').next().unwrap_or_default();
    let known = ["ssh-ed25519", "ecdsa-sha2-nistp256"].contains(&kind);
    let named = kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-");
    if !known && named && kind.len() <= 64 && kind.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::KeyRefused(kind.to_owned()));
    }
    let key = PublicKey::from_openssh(line).map_err(|_| Error::KeyUnreadable)?;
    match key.key_data() {
        KeyData::Ed25519(_) => Ok(key),
        KeyData::Ecdsa(ecdsa) if ecdsa.curve() == EcdsaCurve::NistP256 => Ok(key),
        _ => Err(Error::KeyRefused(key.algorithm().to_string())),
    }
}

/// A name of a user on a machine: what certificates of OpenSSH hold without ambiguity.
fn is_login_name(name: &str) -> bool {
    let first = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let rest = |byte: u8| first(byte) || matches!(byte, b'.' | b'-');
    (1..=32).contains(&name.len())
        && name.bytes().next().is_some_and(first)
        && name.bytes().all(rest)
}

/// A fresh seed of a CA.
pub(crate) fn new_seed() -> Result<Zeroizing<[u8; 32]>, Error> {
    random::<32>()
}

#[cfg(test)]
mod tests;
