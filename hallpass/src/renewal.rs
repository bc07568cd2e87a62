//! Follows the files of the host key and its certificate: whoever signs the next certificate puts it
//! there, and connections that begin from then on see it. Nothing is restarted.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use ssh_key::{Certificate, PrivateKey};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};
use underpass_hallpass::{Host, HostIdentity};

/// Where the host's key and certificate lie.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) key: PathBuf,
    pub(crate) certificate: PathBuf,
}

impl Files {
    /// Reads them as they are now.
    pub(crate) fn read(&self) -> anyhow::Result<HostIdentity> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let key = PrivateKey::from_openssh(read(&self.key)?)
            .with_context(|| format!("{} is no private key", self.key.display()))?;
        let certificate = Certificate::from_openssh(&read(&self.certificate)?)
            .with_context(|| format!("{} is no certificate", self.certificate.display()))?;
        Ok(HostIdentity::new(key, certificate)?)
    }

    /// Looks at them now and then, and at once on SIGHUP. What cannot be read changes nothing and is
    /// said once.
    pub(crate) async fn follow(self, host: Host) -> anyhow::Result<()> {
        let mut hangup: Signal = signal(SignalKind::hangup())?;
        let mut complaint = String::new();
        let mut warned = None;
        loop {
            let read = tokio::task::block_in_place(|| self.read());
            let said = match read {
                Ok(identity) => {
                    if identity.certificate() != host.identity().certificate() {
                        let key_id = identity.certificate().key_id();
                        info!(
                            key_id,
                            serial = identity.certificate().serial(),
                            "a new host certificate"
                        );
                        host.replace(identity);
                    }
                    String::new()
                }
                Err(error) => format!("{error:#}"),
            };
            if !said.is_empty() && said != complaint {
                warn!("the host certificate stays as it was: {said}");
            }
            complaint = said;
            let identity = host.identity();
            let until = UNIX_EPOCH + Duration::from_secs(identity.certificate().valid_before());
            let left = until.duration_since(now()).unwrap_or_default();
            if left < SOON && warned != Some(until) {
                warned = Some(until);
                warn!(
                    hours = left.as_secs() / 3600,
                    "the host certificate ends soon; hint: put the next one in {}",
                    self.certificate.display()
                );
            }
            tokio::select! {
                _ = hangup.recv() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this file drives: a certificate is judged by now"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

/// How often the files are read.
const LOOK: Duration = Duration::from_secs(5);
/// Who is to renew a certificate hears of it this long before.
const SOON: Duration = Duration::from_secs(7 * 24 * 3600);
