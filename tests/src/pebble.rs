//! Pebble, the ACME server of those who run Let's Encrypt, made for tests: it verifies by TLS-ALPN-01
//! at a port of our choice, refuses one nonce in twenty, and forgets everything when it ends.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;

use crate::{
    clock::wait_for,
    command::{Background, Log, run},
    free_port,
};

/// How a Pebble is started.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Where it is, and where it is asked for its root.
    pub ports: (u16, u16),
    /// Where it looks for the proof, at whatever address a name has.
    pub verifies_at: u16,
    /// How long its certificates are valid.
    pub validity: Duration,
    /// Whether it opens accounts for [`EXTERNAL_ACCOUNT`] alone.
    pub external_account: bool,
}

/// An account of Pebble's customer, and its key in base64url.
pub const EXTERNAL_ACCOUNT: (&str, &str) = (
    "kid-1",
    "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W",
);

/// A running Pebble, and the name server that it asks: every name is 127.0.0.1.
#[derive(Debug)]
pub struct Pebble {
    setup: Setup,
    certificate: PathBuf,
    log: Log,
    _pebble: Background,
    _names: Background,
    _directory: TempDir,
}

/// The certificate of Pebble's own port, and its key: made once, so that a relay that trusts it
/// trusts the next Pebble too.
#[derive(Debug)]
pub struct Authority {
    /// In PEM.
    pub certificate: PathBuf,
    key: PathBuf,
    _directory: TempDir,
}

impl Authority {
    /// Makes one.
    ///
    /// # Panics
    /// When it cannot.
    pub fn new() -> Authority {
        let directory = tempfile::tempdir().expect("a directory");
        let key = rcgen::KeyPair::generate().expect("a key");
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = rcgen::CertificateParams::new(names).expect("names");
        let certificate = params.self_signed(&key).expect("a certificate");
        let write = |name: &str, text: String| {
            let file = directory.path().join(name);
            fs::write(&file, text).expect("a file");
            file
        };
        Authority {
            certificate: write("cert.pem", certificate.pem()),
            key: write("key.pem", key.serialize_pem()),
            _directory: directory,
        }
    }
}

impl Default for Authority {
    fn default() -> Authority {
        Authority::new()
    }
}

impl Setup {
    /// On free ports, for a relay at this one, with certificates of an hour.
    pub fn for_relay_at(port: u16) -> Setup {
        Setup {
            ports: (free_port(), free_port()),
            verifies_at: port,
            validity: Duration::from_secs(3600),
            external_account: false,
        }
    }

    /// Where it is, or will be.
    pub fn directory_url(&self) -> String {
        format!("https://localhost:{}/dir", self.ports.0)
    }

    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn start(self, authority: &Authority) -> Pebble {
        let directory = tempfile::tempdir().expect("a directory");
        let (names, unused) = (
            format!("127.0.0.1:{}", free_port()),
            format!("127.0.0.1:{}", free_port()),
        );
        let mut command = Command::new("pebble-challtestsrv");
        command
            .args(["-dns01", &names, "-management", &unused])
            .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", ""])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let names_server = Background::start(command);

        let (kid, mac) = EXTERNAL_ACCOUNT;
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.ports.0),
            "managementListenAddress": format!("127.0.0.1:{}", self.ports.1),
            "certificate": authority.certificate,
            "privateKey": authority.key,
            "httpPort": 1,
            "tlsPort": self.verifies_at,
            "externalAccountBindingRequired": self.external_account,
            "externalAccountMACKeys": { kid: mac },
            "certificateValidityPeriod": self.validity.as_secs(),
        }});
        let file = directory.path().join("pebble.json");
        fs::write(&file, config.to_string()).expect("a configuration");
        let mut command = Command::new("pebble");
        command
            .arg("-config")
            .arg(file)
            .args(["-dnsserver", &names])
            .env("PEBBLE_VA_NOSLEEP", "1")
            // Each order is proven anew.
            .env("PEBBLE_AUTHZREUSE", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut pebble = Background::start(command);
        // It logs to its standard output.
        let log = Log::follow(pebble.0.stdout.take().expect("piped"));
        let pebble = Pebble {
            setup: self,
            certificate: authority.certificate.clone(),
            log,
            _pebble: pebble,
            _names: names_server,
            _directory: directory,
        };
        wait_for("Pebble", Duration::from_secs(20), || pebble.try_root());
        pebble
    }
}

impl Pebble {
    /// The root of what it issues, in PEM. It is another for each Pebble.
    ///
    /// # Panics
    /// When it does not say.
    pub fn root(&self) -> String {
        self.try_root().expect("a root")
    }

    fn try_root(&self) -> Option<String> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--max-time", "5", "--cacert"]);
        curl.arg(&self.certificate);
        curl.arg(format!("https://localhost:{}/roots/0", self.setup.ports.1));
        let output = run(curl, b"", Duration::from_secs(10));
        (output.status.success() && output.text().contains("BEGIN")).then(|| output.text())
    }

    /// How many orders it was given.
    pub fn orders(&self) -> usize {
        self.log.text().matches("Added order").count()
    }

    /// The certificate of its own port.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }
}
