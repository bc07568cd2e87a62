//! The whole decision on a host certificate at the client.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ssh_key::certificate::CertType;
use ssh_key::{Certificate, PublicKey};

use crate::certificate::{self, Fault, fingerprint, rough};

/// What the person asked to be connected to.
///
/// A name is matched by name alone, whatever address it resolved to: who can forge the answer of a
/// resolver cannot choose which certificate is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dialled {
    /// A host name.
    Name(String),
    /// An address, typed as such.
    Address(IpAddr),
}

impl Dialled {
    /// An address where the text is one, in brackets or not; a name otherwise.
    pub fn parse(text: &str) -> Dialled {
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'))
            .unwrap_or(text);
        match bare.parse::<IpAddr>() {
            Ok(address) => Dialled::Address(address.to_canonical()),
            Err(_) => Dialled::Name(text.to_owned()),
        }
    }

    fn is(&self, principal: &str) -> bool {
        match self {
            Dialled::Name(name) => {
                let name = name.strip_suffix('.').unwrap_or(name);
                !name.is_empty() && name.eq_ignore_ascii_case(principal)
            }
            Dialled::Address(address) => principal
                .parse::<IpAddr>()
                .is_ok_and(|principal| principal.to_canonical() == address.to_canonical()),
        }
    }
}

impl fmt::Display for Dialled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dialled::Name(name) => f.write_str(name),
            Dialled::Address(address) => address.fmt(f),
        }
    }
}

/// Proof that a host certificate passed [`verify_host`].
#[derive(Clone, Debug)]
pub struct VerifiedHost {
    principal: String,
    key_id: String,
    fingerprint: String,
    expires: Option<SystemTime>,
}

impl VerifiedHost {
    /// The principal that matched what was dialled.
    pub fn principal(&self) -> &str {
        &self.principal
    }
    /// The key id that the authority wrote.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }
    /// SHA-256 fingerprint of the host key.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
    /// When the certificate ends, where that is a time a clock can hold.
    pub fn expires(&self) -> Option<SystemTime> {
        self.expires
    }
}

/// Why a host is not believed to be what was dialled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostDenied {
    /// The host has a key and no certificate.
    #[error("{dialled} has a plain host key ({fingerprint}) and no certificate for it")]
    CertificateMissing {
        /// What was dialled.
        dialled: String,
        /// SHA-256 fingerprint of the key.
        fingerprint: String,
    },
    /// The host's key is another than the one expected.
    #[error("the host key is {fingerprint}, which is not the one expected")]
    KeyMismatch {
        /// SHA-256 fingerprint of the key.
        fingerprint: String,
    },
    /// The certificate is a user certificate.
    #[error("the host's certificate is not a host certificate")]
    WrongType,
    /// No trusted authority signed it.
    #[error("the host's certificate is signed by an authority that is not trusted ({fingerprint})")]
    UnknownAuthority {
        /// SHA-256 fingerprint of the authority's key.
        fingerprint: String,
    },
    /// The authority's signature does not fit the certificate.
    #[error("the signature of the host's certificate does not hold")]
    BadSignature,
    /// The certificate is of the future.
    #[error("the host's certificate is not valid for another {}", rough(*until))]
    NotYetValid {
        /// How long until it is valid.
        until: Duration,
    },
    /// The certificate is of the past.
    #[error("the host's certificate expired {} ago", rough(*since))]
    Expired {
        /// How long ago it ended.
        since: Duration,
    },
    /// The certificate names no principal, which would mean every host.
    #[error("the host's certificate names no host")]
    NoPrincipals,
    /// The certificate is for other hosts.
    #[error("the host's certificate is for {}, not for {dialled}", names.join(", "))]
    PrincipalMismatch {
        /// What was dialled.
        dialled: String,
        /// What the certificate is for.
        names: Vec<String>,
    },
    /// A critical option; none is defined for hosts.
    #[error("the host's certificate has the critical option {name:?}, which is not known")]
    UnknownCriticalOption {
        /// The option's name.
        name: String,
    },
}

impl HostDenied {
    /// The stable name of the reason.
    pub fn code(&self) -> &'static str {
        match self {
            HostDenied::CertificateMissing { .. } => "host_certificate_missing",
            HostDenied::KeyMismatch { .. } => "host_key_mismatch",
            HostDenied::WrongType => "host_certificate_wrong_type",
            HostDenied::UnknownAuthority { .. } => "host_ca_unknown",
            HostDenied::BadSignature => "host_certificate_bad_signature",
            HostDenied::NotYetValid { .. } => "host_certificate_not_yet_valid",
            HostDenied::Expired { .. } => "host_certificate_expired",
            HostDenied::NoPrincipals => "host_principals_missing",
            HostDenied::PrincipalMismatch { .. } => "host_principal_mismatch",
            HostDenied::UnknownCriticalOption { .. } => "host_certificate_unknown_option",
        }
    }

    /// What the person who dialled can do.
    pub fn hint(&self) -> &'static str {
        match self {
            HostDenied::CertificateMissing { .. } => {
                "something else than the instance's own SSH server answers there: check the port"
            }
            HostDenied::KeyMismatch { .. } => {
                "do not log in unless you know why the host's key changed"
            }
            HostDenied::UnknownAuthority { .. } => {
                "the host is not one of this organisation: check the name, and do not log in"
            }
            HostDenied::PrincipalMismatch { .. } => {
                "another host answers for this name: dial one of the names in its certificate, or reload if instances just changed"
            }
            HostDenied::NotYetValid { .. } => "compare the clocks of this machine and the instance",
            HostDenied::Expired { .. } => {
                "compare the clocks of this machine and the instance; a server renews its certificate by itself"
            }
            HostDenied::WrongType
            | HostDenied::BadSignature
            | HostDenied::NoPrincipals
            | HostDenied::UnknownCriticalOption { .. } => {
                "the instance needs a new host certificate: restart its SSH server"
            }
        }
    }
}

impl From<Fault> for HostDenied {
    fn from(fault: Fault) -> HostDenied {
        match fault {
            Fault::UnknownAuthority { fingerprint } => HostDenied::UnknownAuthority { fingerprint },
            Fault::BadSignature => HostDenied::BadSignature,
            Fault::NotYetValid { until } => HostDenied::NotYetValid { until },
            Fault::Expired { since } => HostDenied::Expired { since },
        }
    }
}

/// Decides whether this certificate proves that the host is the one that was dialled.
///
/// A principal is compared whole: there are no wildcards, and letter case does not count in names.
/// Addresses are compared as addresses, however they are written. What this function does not
/// prove is that the host holds the private key; that is the key exchange's part.
pub fn verify_host(
    certificate: &Certificate,
    dialled: &Dialled,
    now: SystemTime,
    host_cas: &[PublicKey],
) -> Result<VerifiedHost, HostDenied> {
    if certificate.cert_type() != CertType::Host {
        return Err(HostDenied::WrongType);
    }
    certificate::check(certificate, now, host_cas)?;
    if let Some(name) = certificate.critical_options().keys().next() {
        return Err(HostDenied::UnknownCriticalOption { name: name.clone() });
    }

    let principals = certificate.valid_principals();
    if principals.is_empty() {
        return Err(HostDenied::NoPrincipals);
    }
    let Some(principal) = principals.iter().find(|principal| dialled.is(principal)) else {
        return Err(HostDenied::PrincipalMismatch {
            dialled: dialled.to_string(),
            names: principals.to_vec(),
        });
    };
    Ok(VerifiedHost {
        principal: principal.clone(),
        key_id: certificate.key_id().to_owned(),
        fingerprint: fingerprint(certificate.public_key()),
        expires: certificate::expires(certificate),
    })
}

#[cfg(test)]
mod tests;
