//! A certificate that is replaced under way when its files change.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    counters::{Counter, Counters},
    tls::{Certificate, Identity, TlsError},
};

/// Where a certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, leaf first, in PEM.
    pub chain: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

/// How often the files are looked at. Looking is two calls that read no file.
const LOOK: Duration = Duration::from_secs(2);

impl CertificateFiles {
    /// Reads them.
    ///
    /// # Errors
    /// When one cannot be read or holds no PEM of its kind.
    pub fn load(&self) -> Result<Certificate, TlsError> {
        Certificate::load(&self.chain, &self.key)
    }

    /// What tells one state of the files from another.
    fn state(&self) -> [Option<(u64, u64, i64, i64)>; 2] {
        let state = |file: &Path| -> io::Result<(u64, u64, i64, i64)> {
            let about = fs::metadata(file)?;
            Ok((about.ino(), about.len(), about.mtime(), about.mtime_nsec()))
        };
        [state(&self.chain).ok(), state(&self.key).ok()]
    }
}

/// Until `stop`: presents what the files hold whenever they have changed, and when `now` says so.
/// Files that do not fit, one half written for example, change nothing: the certificate before is
/// presented until they do.
pub async fn keep_certificate(
    identity: Arc<Identity>,
    files: CertificateFiles,
    now: Arc<Notify>,
    counters: Arc<Counters>,
    stop: CancellationToken,
) {
    let mut seen = files.state();
    loop {
        let asked = tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => false,
            () = now.notified() => true,
        };
        // Before the files are read: what changes while they are is a change again.
        let state = files.state();
        if state == seen && !asked {
            continue;
        }
        seen = state;
        let loaded = files
            .load()
            .and_then(|certificate| identity.replace(&certificate).map(|()| certificate));
        match loaded {
            Ok(certificate) => {
                counters.count(Counter::CertificateLoaded);
                tracing::info!(fingerprint = %certificate.fingerprint(), "a new certificate");
            }
            Err(error) => {
                counters.count(Counter::CertificateRefused);
                tracing::warn!(%error, "the certificate before is kept");
            }
        }
    }
}
