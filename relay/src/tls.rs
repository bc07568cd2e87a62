//! The certificate and the TLS configuration of the port.
//!
//! A certificate is loaded from files, or made: self-signed, kept in the data directory, used
//! again at the next start, and made anew when it is about to expire or when the names differ.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use ring::digest::{SHA256, digest};
use rustls::{
    CipherSuite, ServerConfig,
    crypto::{CryptoProvider, ring as provider},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use serde::{Deserialize, Serialize};

/// Browsers refuse certificates that are valid for longer than 398 days.
const LIFETIME: Duration = Duration::from_secs(397 * DAY);
/// A certificate is made anew when it is this close to its end.
const RENEWED_BEFORE: Duration = Duration::from_secs(30 * DAY);
const DAY: u64 = 24 * 3600;

/// Names that a certificate made here always has.
const ALWAYS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// A certificate chain and its private key.
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Certificate {
    /// Loads PEM files: the chain, leaf first, and its private key.
    ///
    /// # Errors
    /// When a file cannot be read or holds no PEM of its kind.
    pub fn load(chain_file: &Path, key_file: &Path) -> Result<Certificate, TlsError> {
        let unfit = |file: &Path, error| TlsError::Pem {
            file: file.to_owned(),
            error,
        };
        let read = |file: &Path| {
            fs::read(file).map_err(|error| TlsError::Read {
                file: file.to_owned(),
                error,
            })
        };
        let chain = chain(&read(chain_file)?).map_err(|error| unfit(chain_file, error))?;
        let key = PrivateKeyDer::from_pem_slice(&read(key_file)?)
            .map_err(|error| unfit(key_file, error))?;
        Ok(Certificate { chain, key })
    }

    /// The same from one PEM text that holds both.
    pub(crate) fn from_pem(text: &[u8]) -> Result<Certificate, pem::Error> {
        Ok(Certificate {
            chain: chain(text)?,
            key: PrivateKeyDer::from_pem_slice(text)?,
        })
    }

    /// The self-signed certificate in `directory`, which is made when it is not there. It names
    /// `localhost`, both loopback addresses, and `names`: host names and IP addresses.
    ///
    /// # Errors
    /// When the directory cannot be used, or a name is no name.
    pub fn load_or_make(
        directory: &Path,
        names: &[String],
        now: SystemTime,
    ) -> Result<Certificate, TlsError> {
        let files = Files::of(directory);
        let names: BTreeSet<String> = ALWAYS
            .into_iter()
            .map(str::to_owned)
            .chain(names.iter().cloned())
            .collect();
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        if let Some(kept) = files.load(&names, now) {
            return Ok(kept);
        }
        files.make(names, now)
    }

    /// SHA-256 over the leaf's DER.
    pub fn fingerprint(&self) -> Fingerprint {
        let leaf = self.chain.first().map_or(&[][..], |leaf| leaf.as_ref());
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest(&SHA256, leaf).as_ref());
        Fingerprint(fingerprint)
    }

    /// The leaf: a client that trusts this very certificate takes it as a root.
    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.chain.first()
    }

    /// The configuration of a port that presents this certificate and no other.
    ///
    /// # Errors
    /// When the key does not fit the certificate.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        Identity::new(self)?.server_config()
    }

    pub(crate) fn certified(&self) -> Result<Arc<CertifiedKey>, TlsError> {
        let (chain, key) = (self.chain.clone(), self.key.clone_key());
        let certified = CertifiedKey::from_der(chain, key, &preferred_provider())?;
        Ok(Arc::new(certified))
    }
}

fn chain(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    let chain = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>()?;
    match chain.is_empty() {
        true => Err(pem::Error::NoItemsFound),
        false => Ok(chain),
    }
}

/// The certificate that a port presents, which can be replaced under way: handshakes from then on
/// see the new one, connections that stand notice nothing.
pub struct Identity {
    /// None until the first is there; handshakes are refused then.
    certified: RwLock<Option<Arc<CertifiedKey>>>,
    /// What an ACME server is shown when it asks for one of these names. None where no ACME server
    /// has anything to ask.
    challenges: Option<RwLock<HashMap<String, Arc<CertifiedKey>>>>,
}

/// The protocol of an ACME server's handshake (RFC 8737), in which nothing is spoken.
pub(crate) const ACME_TLS: &[u8] = b"acme-tls/1";
const HTTP_1_1: &[u8] = b"http/1.1";

impl Identity {
    /// Presents this certificate.
    ///
    /// # Errors
    /// When the key does not fit the certificate.
    pub fn new(certificate: &Certificate) -> Result<Arc<Identity>, TlsError> {
        Ok(Arc::new(Identity {
            certified: RwLock::new(Some(certificate.certified()?)),
            challenges: None,
        }))
    }

    /// Presents nothing until a certificate is there, and answers the challenges of an ACME server.
    pub fn awaited() -> Arc<Identity> {
        Arc::new(Identity {
            certified: RwLock::new(None),
            challenges: Some(RwLock::default()),
        })
    }

    /// Whether there is a certificate.
    pub fn is_ready(&self) -> bool {
        let certified = self.certified.read();
        certified.unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Presents another from now on.
    ///
    /// # Errors
    /// When its key does not fit; the one before is presented still.
    pub fn replace(&self, certificate: &Certificate) -> Result<(), TlsError> {
        let certified = Some(certificate.certified()?);
        let presented = self.certified.write();
        *presented.unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }

    /// Shows an ACME server that asks for `name` that whoever holds the account is here: a
    /// certificate with the SHA-256 of the key authorization (RFC 8737, section 3).
    ///
    /// # Errors
    /// When `name` is no name.
    pub fn answer_challenge(&self, name: &str, digest: &[u8; 32]) -> Result<(), TlsError> {
        let Some(challenges) = &self.challenges else {
            return Ok(());
        };
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = rcgen::CertificateParams::new([name.to_owned()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(digest)];
        let made = params.self_signed(&key)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let key = preferred_provider().key_provider.load_private_key(key)?;
        // Not compared with its key: what reads certificates refuses one with this extension.
        let shown = Arc::new(CertifiedKey::new(vec![made.der().clone()], key));
        let mut challenges = challenges.write().unwrap_or_else(PoisonError::into_inner);
        challenges.insert(name.to_owned(), shown);
        Ok(())
    }

    /// No ACME server has anything to ask any more.
    pub fn forget_challenges(&self) {
        if let Some(challenges) = &self.challenges {
            let mut challenges = challenges.write().unwrap_or_else(PoisonError::into_inner);
            challenges.clear();
        }
    }

    /// The configuration of the port: TLS 1.2 and 1.3, HTTP/1.1 alone.
    ///
    /// # Errors
    /// Without randomness for tickets.
    pub fn server_config(self: &Arc<Identity>) -> Result<Arc<ServerConfig>, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(preferred_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![HTTP_1_1.to_vec()];
        if self.challenges.is_some() {
            config.alpn_protocols.push(ACME_TLS.to_vec());
        }
        config.ignore_client_order = has_aes();
        // Tickets keep resumption without memory per client.
        config.ticketer = provider::Ticketer::new()?;
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let Some(challenges) = &self.challenges {
            let offered: Vec<&[u8]> = hello.alpn().into_iter().flatten().collect();
            if offered == [ACME_TLS] {
                let challenges = challenges.read().unwrap_or_else(PoisonError::into_inner);
                return challenges.get(hello.server_name()?).cloned();
            }
            // Offered beside something else, it is no challenge, and is not chosen.
            if offered.contains(&ACME_TLS) && !offered.contains(&HTTP_1_1) {
                return None;
            }
        }
        let certified = self.certified.read();
        certified.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The key is not shown.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

/// The key is not shown.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("fingerprint", &self.fingerprint())
            .finish()
    }
}

/// SHA-256 of a certificate, written as browsers show it: `AB:CD:...`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02X}", if n == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The port has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}; hint: check the path and its permissions", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {error}; hint: the data directory is to be writable", file.display())]
    Write {
        /// Which.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file holds no PEM of its kind.
    #[error("{} holds no certificate or key that can be used: {error}; hint: give PEM files, the chain with the leaf first and an unencrypted key", file.display())]
    Pem {
        /// Which.
        file: PathBuf,
        /// Why.
        error: pem::Error,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {0}; hint: check the names it is to have")]
    Make(#[from] rcgen::Error),
    /// TLS refuses the certificate and its key.
    #[error(
        "the certificate and its key cannot be used: {0}; hint: check that they belong together"
    )]
    Unusable(#[from] rustls::Error),
}

/// ring's provider with AES-128-GCM first where the CPU has AES: rustls prefers AES-256.
pub fn preferred_provider() -> CryptoProvider {
    let mut provider = provider::default_provider();
    if has_aes() {
        let aes_128 = [
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ];
        // Stable: TLS 1.3 suites stay before those of TLS 1.2.
        provider
            .cipher_suites
            .sort_by_key(|suite| (suite.tls13().is_none(), !aes_128.contains(&suite.suite())));
    }
    provider
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Where a certificate made here is kept.
struct Files {
    directory: PathBuf,
    chain: PathBuf,
    key: PathBuf,
    about: PathBuf,
}

/// What the certificate says, so that it need not be parsed.
#[derive(Serialize, Deserialize)]
struct About {
    names: BTreeSet<String>,
    not_after_unix: u64,
    sha256: String,
}

impl Files {
    fn of(directory: &Path) -> Files {
        Files {
            directory: directory.to_owned(),
            chain: directory.join("cert.pem"),
            key: directory.join("key.pem"),
            about: directory.join("cert.json"),
        }
    }

    /// The certificate that is kept, when it is whole, of these names, and not about to expire.
    fn load(&self, names: &BTreeSet<String>, now: Duration) -> Option<Certificate> {
        let about: About = serde_json::from_slice(&fs::read(&self.about).ok()?).ok()?;
        let kept = Certificate::load(&self.chain, &self.key).ok()?;
        let fresh = now + RENEWED_BEFORE < Duration::from_secs(about.not_after_unix);
        let whole = about.sha256 == kept.fingerprint().to_string() && kept.server_config().is_ok();
        // A key that others could read is not used again.
        let private = fs::metadata(&self.key).ok()?.permissions().mode() & 0o077 == 0;
        (about.names == *names && fresh && whole && private).then_some(kept)
    }

    fn make(&self, names: BTreeSet<String>, now: Duration) -> Result<Certificate, TlsError> {
        let not_after = now + LIFETIME;
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params =
            rcgen::CertificateParams::new(names.iter().cloned().collect::<Vec<String>>())?;
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        // A client whose clock is a little behind is served too.
        params.not_before = epoch + now.saturating_sub(Duration::from_secs(DAY));
        params.not_after = epoch + not_after;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "underpass");
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let made = params.self_signed(&key)?;

        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(&self.directory)
            .map_err(|error| TlsError::Write {
                file: self.directory.clone(),
                error,
            })?;
        write(&self.key, key.serialize_pem().as_bytes(), 0o600)?;
        write(&self.chain, made.pem().as_bytes(), 0o644)?;
        let certificate = Certificate::load(&self.chain, &self.key)?;
        // Written last: without it nothing above is used at the next start.
        let about = About {
            names,
            not_after_unix: not_after.as_secs(),
            sha256: certificate.fingerprint().to_string(),
        };
        write(
            &self.about,
            &serde_json::to_vec(&about).unwrap_or_default(),
            0o644,
        )?;
        Ok(certificate)
    }
}

/// Writes a whole file or none: into a new file of the mode, then into place.
pub(crate) fn write(file: &Path, content: &[u8], mode: u32) -> Result<(), TlsError> {
    let new = file.with_extension("new");
    let written = (|| {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut to = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&new)?;
        io::Write::write_all(&mut to, content)?;
        to.sync_all()?;
        fs::rename(&new, file)
    })();
    written.map_err(|error| TlsError::Write {
        file: file.to_owned(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(days: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs((20_000 + days) * DAY)
    }

    #[test]
    fn a_certificate_is_kept_until_it_no_longer_fits() {
        let data = tempfile::tempdir().unwrap();
        let directory = data.path().join("tls");
        let make = |names: &[&str], days| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            Certificate::load_or_make(&directory, &names, at(days))
                .unwrap()
                .fingerprint()
        };
        let first = make(&["relay.example", "192.0.2.1"], 0);
        assert_eq!(make(&["192.0.2.1", "relay.example"], 366), first);
        let renewed = make(&["192.0.2.1", "relay.example"], 367);
        assert_ne!(renewed, first);
        let renamed = make(&["192.0.2.2", "relay.example"], 367);
        assert_ne!(renamed, renewed);
        let mode = |name: &str| {
            fs::metadata(directory.join(name))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!((mode("key.pem"), mode("")), (0o600, 0o700));

        fs::set_permissions(directory.join("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
        let private_again = make(&["192.0.2.2", "relay.example"], 367);
        assert_ne!(private_again, renamed);
        assert_eq!(mode("key.pem"), 0o600);

        // A file that was cut.
        let chain = fs::read(directory.join("cert.pem")).unwrap();
        fs::write(directory.join("cert.pem"), &chain[..chain.len() / 2]).unwrap();
        assert_ne!(make(&["192.0.2.2", "relay.example"], 367), private_again);
        let text = private_again.to_string();
        assert_eq!((text.len(), text.matches(':').count()), (95, 31));
    }

    #[test]
    fn files_are_loaded_or_the_error_says_which() {
        let data = tempfile::tempdir().unwrap();
        let directory = data.path().join("tls");
        let made = Certificate::load_or_make(&directory, &[], at(0)).unwrap();
        let (chain, key) = (directory.join("cert.pem"), directory.join("key.pem"));
        let loaded = Certificate::load(&chain, &key).unwrap();
        assert_eq!(loaded.fingerprint(), made.fingerprint());
        assert!(loaded.server_config().is_ok());

        let missing = data.path().join("missing.pem");
        let error = Certificate::load(&missing, &key).unwrap_err().to_string();
        assert!(
            error.contains("missing.pem") && error.contains("hint:"),
            "{error}"
        );
        assert!(matches!(
            Certificate::load(&key, &key),
            Err(TlsError::Pem { .. })
        ));
        assert!(matches!(
            Certificate::load(&chain, &chain),
            Err(TlsError::Pem { .. })
        ));
        let other = data.path().join("other");
        Certificate::load_or_make(&other, &[], at(0)).unwrap();
        let mixed = Certificate::load(&chain, &other.join("key.pem")).unwrap();
        assert!(matches!(mixed.server_config(), Err(TlsError::Unusable(_))));
        let identity = Identity::new(&loaded).unwrap();
        assert!(matches!(
            identity.replace(&mixed),
            Err(TlsError::Unusable(_))
        ));
        assert!(!format!("{mixed:?}").contains("key"));
        let bad = Certificate::load_or_make(&other, &["é".into()], at(0));
        assert!(matches!(bad, Err(TlsError::Make(_))));
    }

    #[test]
    fn aes_128_comes_first_where_the_cpu_has_it() {
        let first = preferred_provider().cipher_suites[0].suite();
        let expect = if has_aes() {
            CipherSuite::TLS13_AES_128_GCM_SHA256
        } else {
            provider::default_provider().cipher_suites[0].suite()
        };
        assert_eq!(first, expect);
    }
}
