//! What outlives a restart: the account with its key, and the last certificate with its own.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use instant_acme::AccountCredentials;
use serde::{Deserialize, Serialize};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use super::schedule::Validity;
use crate::tls::{Certificate, TlsError, write};

/// A private directory of its own.
pub(super) struct Cache(PathBuf);

/// The files in it. All are private: each holds a key.
const ACCOUNT: &str = "account.json";
const CERTIFICATE: &str = "certificate.pem";

/// An account of an ACME server.
#[derive(Serialize, Deserialize)]
pub(super) struct Account {
    /// Whose it is.
    pub(super) directory: String,
    pub(super) contact: Vec<String>,
    /// None when the ACME server does not know it any more.
    pub(super) credentials: Option<AccountCredentials>,
}

/// A certificate that was issued, and what it says.
#[derive(Debug)]
pub(super) struct Issued {
    pub(super) certificate: Certificate,
    pub(super) names: BTreeSet<String>,
    pub(super) validity: Validity,
}

impl Cache {
    pub(super) fn new(directory: &Path) -> Cache {
        Cache(directory.to_owned())
    }

    /// The account at this ACME server.
    pub(super) fn account(&self, directory: &str) -> Result<Option<Account>, TlsError> {
        let Some(text) = self.read(ACCOUNT)? else {
            return Ok(None);
        };
        // One that is damaged or of another server is made anew.
        let account: Option<Account> = serde_json::from_slice(&text).ok();
        Ok(account.filter(|account| account.directory == directory))
    }

    /// The last certificate, when it is whole and of this ACME server.
    pub(super) fn issued(&self, directory: &str) -> Result<Option<Issued>, TlsError> {
        if self.account(directory)?.is_none() {
            return Ok(None);
        }
        let text = self.read(CERTIFICATE)?;
        Ok(text.and_then(|text| Issued::parse(&text).ok()))
    }

    pub(super) fn keep_account(&self, account: &Account) -> Result<(), TlsError> {
        let before = self.account(&account.directory)?;
        if before.is_none() {
            // No certificate of one server beside the account of another.
            self.remove(CERTIFICATE)?;
        }
        let text = serde_json::to_vec(account).unwrap_or_default();
        write(&self.0.join(ACCOUNT), &text, 0o600)
    }

    pub(super) fn keep_issued(&self, text: &[u8]) -> Result<(), TlsError> {
        write(&self.0.join(CERTIFICATE), text, 0o600)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, TlsError> {
        let file = self.0.join(name);
        match fs::read(&file) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(TlsError::Read { file, error }),
        }
    }

    fn remove(&self, name: &str) -> Result<(), TlsError> {
        let file = self.0.join(name);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(TlsError::Write { file, error })
            }
            _ => Ok(()),
        }
    }
}

impl Issued {
    /// Reads a PEM text of a key and a chain that belong together.
    pub(super) fn parse(text: &[u8]) -> Result<Issued, String> {
        let certificate = Certificate::from_pem(text).map_err(|error| error.to_string())?;
        certificate.certified().map_err(|error| error.to_string())?;
        let leaf = certificate.leaf().ok_or("it is empty")?;
        let (_, x509) = parse_x509_certificate(leaf).map_err(|error| error.to_string())?;
        let at = |seconds: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
        };
        let validity = Validity {
            from: at(x509.validity().not_before.timestamp()),
            until: at(x509.validity().not_after.timestamp()),
        };
        let names = x509.subject_alternative_name();
        let names = names.map_err(|error| error.to_string())?;
        let names = names
            .into_iter()
            .flat_map(|names| &names.value.general_names);
        let names = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        Ok(Issued {
            names: names.collect(),
            validity,
            certificate,
        })
    }

    pub(super) fn names_all(&self, domains: &[String]) -> bool {
        domains.iter().all(|domain| self.names.contains(domain))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const HERE: &str = "https://acme.example/directory";
    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// A key and a chain in one text.
    fn pem(names: &[&str]) -> String {
        let data = tempfile::tempdir().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        Certificate::load_or_make(data.path(), &names, SystemTime::UNIX_EPOCH + 20_000 * DAY)
            .unwrap();
        let read = |name: &str| fs::read_to_string(data.path().join(name)).unwrap();
        read("key.pem") + &read("cert.pem")
    }

    fn account(directory: &str) -> Account {
        let (_, key) = instant_acme::Key::generate_pkcs8().unwrap();
        let key = base64::Engine::encode(
            &base64::engine::general_purpose::URL_SAFE_NO_PAD,
            key.secret_pkcs8_der(),
        );
        let credentials = serde_json::json!({
            "id": "https://acme.example/account/1", "key_pkcs8": key, "directory": directory,
        });
        Account {
            directory: directory.to_owned(),
            contact: Vec::new(),
            credentials: Some(serde_json::from_value(credentials).unwrap()),
        }
    }

    #[test]
    fn what_is_kept_comes_back_and_is_private() {
        let data = tempfile::tempdir().unwrap();
        let cache = Cache::new(data.path());
        assert!(cache.account(HERE).unwrap().is_none());
        assert!(cache.issued(HERE).unwrap().is_none());
        cache.keep_account(&account(HERE)).unwrap();
        cache
            .keep_issued(pem(&["relay.example"]).as_bytes())
            .unwrap();
        assert!(cache.account(HERE).unwrap().is_some());
        let issued = cache.issued(HERE).unwrap().unwrap();
        assert!(issued.names_all(&["relay.example".into(), "localhost".into()]));
        assert!(!issued.names_all(&["relay.example".into(), "other.example".into()]));
        let life = issued
            .validity
            .until
            .duration_since(issued.validity.from)
            .unwrap();
        assert_eq!(life, 398 * DAY);
        for name in [ACCOUNT, CERTIFICATE] {
            let mode = fs::metadata(data.path().join(name))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        // Kept again, the certificate stays.
        cache.keep_account(&account(HERE)).unwrap();
        assert!(cache.issued(HERE).unwrap().is_some());
    }

    #[test]
    fn nothing_of_one_server_is_used_with_another() {
        let data = tempfile::tempdir().unwrap();
        let cache = Cache::new(data.path());
        let elsewhere = "https://staging.example/directory";
        cache.keep_account(&account(elsewhere)).unwrap();
        cache.keep_issued(pem(&[]).as_bytes()).unwrap();
        assert!(cache.account(HERE).unwrap().is_none());
        assert!(cache.issued(HERE).unwrap().is_none());
        cache.keep_account(&account(HERE)).unwrap();
        assert!(cache.issued(HERE).unwrap().is_none(), "it is removed");
    }

    #[test]
    fn what_is_damaged_is_as_if_it_were_not_there() {
        let data = tempfile::tempdir().unwrap();
        let cache = Cache::new(data.path());
        cache.keep_account(&account(HERE)).unwrap();
        let (one, other) = (pem(&[]), pem(&[]));
        let parts = |text: &str| {
            let (key, chain) = text.split_once("-----BEGIN CERTIFICATE").unwrap();
            (key.to_owned(), format!("-----BEGIN CERTIFICATE{chain}"))
        };
        let mixed = parts(&one).0 + &parts(&other).1;
        for text in [&one[..one.len() / 2], &one[..one.len() - 200], "", &mixed] {
            cache.keep_issued(text.as_bytes()).unwrap();
            assert!(cache.issued(HERE).unwrap().is_none(), "{text}");
        }
        cache.keep_issued(one.as_bytes()).unwrap();
        assert!(cache.issued(HERE).unwrap().is_some());
        let text = fs::read(data.path().join(ACCOUNT)).unwrap();
        fs::write(data.path().join(ACCOUNT), &text[..text.len() / 2]).unwrap();
        assert!(cache.account(HERE).unwrap().is_none());
    }
}
