//! What user and host certificates have in common: an authority that is trusted, a signature that
//! holds, and a time that is now.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ssh_key::public::KeyData;
use ssh_key::{Certificate, HashAlg, PublicKey};

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    UnknownAuthority { fingerprint: String },
    BadSignature,
    NotYetValid { until: Duration },
    Expired { since: Duration },
}

/// Checks the authority, the signature and the time, in this order.
pub(crate) fn check(
    certificate: &Certificate,
    now: SystemTime,
    authorities: &[PublicKey],
) -> Result<(), Fault> {
    let authority = certificate.signature_key();
    if !authorities
        .iter()
        .any(|trusted| trusted.key_data() == authority)
    {
        return Err(Fault::UnknownAuthority {
            fingerprint: fingerprint(authority),
        });
    }
    certificate
        .verify_signature()
        .map_err(|_| Fault::BadSignature)?;

    // A clock before 1970 makes every certificate one of the future.
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if now < certificate.valid_after() {
        let until = Duration::from_secs(certificate.valid_after() - now);
        return Err(Fault::NotYetValid { until });
    }
    if now >= certificate.valid_before() {
        let since = Duration::from_secs(now - certificate.valid_before());
        return Err(Fault::Expired { since });
    }
    Ok(())
}

/// The end of the certificate's validity, or `None` where it has none that a clock can hold.
pub(crate) fn expires(certificate: &Certificate) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(certificate.valid_before()))
}

pub(crate) fn fingerprint(key: &KeyData) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// `90 s`, `5 min`, `3 h`, `2 days`: how long ago, for a sentence.
pub(crate) fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
