//! The whole decision on a user certificate at login.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ssh_key::certificate::CertType;
use ssh_key::{Certificate, PublicKey};

use crate::certificate::{self, Fault, fingerprint, rough};
use crate::source::SourceAddresses;

/// The authorities whose user certificates open a session.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    user_cas: Vec<PublicKey>,
}

impl Trust {
    /// Trusts these authorities for user certificates, and nobody else.
    pub fn new(user_cas: impl IntoIterator<Item = PublicKey>) -> Trust {
        Trust {
            user_cas: user_cas.into_iter().collect(),
        }
    }

    /// Whether nobody at all is trusted.
    pub fn is_empty(&self) -> bool {
        self.user_cas.is_empty()
    }
}

/// Proof that a certificate passed [`authorize`]. There is no other way to make one, and only one
/// of these opens a channel.
#[derive(Clone, Debug)]
pub struct Authorized {
    user: String,
    key_id: String,
    serial: u64,
    fingerprint: String,
    expires: Option<SystemTime>,
    forced_command: Option<String>,
    permit_pty: bool,
    permit_port_forwarding: bool,
    permit_agent_forwarding: bool,
}

impl Authorized {
    /// The login name, which is one of the certificate's principals.
    pub fn user(&self) -> &str {
        &self.user
    }
    /// The key id that the authority wrote: who this is, for the log.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }
    /// The certificate's serial number.
    pub fn serial(&self) -> u64 {
        self.serial
    }
    /// SHA-256 fingerprint of the certified key.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
    /// When the certificate ends, where that is a time a clock can hold.
    pub fn expires(&self) -> Option<SystemTime> {
        self.expires
    }
    /// The only command that may run, whatever is asked for.
    pub fn forced_command(&self) -> Option<&str> {
        self.forced_command.as_deref()
    }
    /// Whether a terminal may be allocated.
    pub fn permit_pty(&self) -> bool {
        self.permit_pty
    }
    /// Whether TCP connections may be forwarded.
    pub fn permit_port_forwarding(&self) -> bool {
        self.permit_port_forwarding
    }
    /// Whether the agent may be forwarded.
    pub fn permit_agent_forwarding(&self) -> bool {
        self.permit_agent_forwarding
    }
}

/// Why a user certificate does not open a session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The certificate is a host certificate.
    #[error("the certificate is not a user certificate")]
    WrongType,
    /// No trusted authority signed it.
    #[error("the certificate is signed by an authority that is not trusted here ({fingerprint})")]
    UnknownAuthority {
        /// SHA-256 fingerprint of the authority's key.
        fingerprint: String,
    },
    /// The authority's signature does not fit the certificate.
    #[error("the certificate's signature does not hold")]
    BadSignature,
    /// The certificate is of the future.
    #[error("the certificate is not valid for another {}", rough(*until))]
    NotYetValid {
        /// How long until it is valid.
        until: Duration,
    },
    /// The certificate is of the past.
    #[error("the certificate expired {} ago", rough(*since))]
    Expired {
        /// How long ago it ended.
        since: Duration,
    },
    /// The certificate names no principal, which would mean everybody.
    #[error("the certificate names no principal")]
    NoPrincipals,
    /// The login name is not among the principals.
    #[error("the certificate is not for the login name {user:?}")]
    WrongPrincipal {
        /// The login name.
        user: String,
    },
    /// A critical option that is not known here.
    #[error("the certificate has the critical option {name:?}, which is not known here")]
    UnknownCriticalOption {
        /// The option's name.
        name: String,
    },
    /// A critical option whose value makes no sense.
    #[error("the certificate's option {name} is malformed")]
    MalformedOption {
        /// The option's name.
        name: &'static str,
    },
    /// The login comes from an address that the certificate does not allow.
    #[error("the certificate may not be used from {source_address}")]
    ForeignSource {
        /// Where the login comes from.
        source_address: IpAddr,
    },
}

impl Denied {
    /// The stable name of the reason, for counters and programs.
    pub fn code(&self) -> &'static str {
        match self {
            Denied::WrongType => "certificate_wrong_type",
            Denied::UnknownAuthority { .. } => "certificate_ca_unknown",
            Denied::BadSignature => "certificate_bad_signature",
            Denied::NotYetValid { .. } => "certificate_not_yet_valid",
            Denied::Expired { .. } => "certificate_expired",
            Denied::NoPrincipals => "certificate_no_principals",
            Denied::WrongPrincipal { .. } => "certificate_wrong_principal",
            Denied::UnknownCriticalOption { .. } => "certificate_unknown_option",
            Denied::MalformedOption { .. } => "certificate_malformed_option",
            Denied::ForeignSource { .. } => "certificate_foreign_source",
        }
    }

    /// What the person who was denied can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Denied::WrongType => "log in with a user certificate from `underpass ssh issue`",
            Denied::UnknownAuthority { .. } => {
                "issue one for this instance's organisation: it is another's, or of an authority that was retired"
            }
            Denied::BadSignature => "the certificate file is damaged: issue a new one",
            Denied::NotYetValid { .. } => "compare the clocks of this machine and the instance",
            Denied::Expired { .. } => "issue a new one with `underpass ssh issue`",
            Denied::NoPrincipals => "issue one that names its principals",
            Denied::WrongPrincipal { .. } => {
                "log in as one of the certificate's principals (see `ssh-keygen -L -f FILE`)"
            }
            Denied::UnknownCriticalOption { .. } | Denied::MalformedOption { .. } => {
                "issue a certificate without that option"
            }
            Denied::ForeignSource { .. } => {
                "connect through the WireGuard peer that the certificate was issued for"
            }
        }
    }
}

impl From<Fault> for Denied {
    fn from(fault: Fault) -> Denied {
        match fault {
            Fault::UnknownAuthority { fingerprint } => Denied::UnknownAuthority { fingerprint },
            Fault::BadSignature => Denied::BadSignature,
            Fault::NotYetValid { until } => Denied::NotYetValid { until },
            Fault::Expired { since } => Denied::Expired { since },
        }
    }
}

const FORCE_COMMAND: &str = "force-command";
const SOURCE_ADDRESS: &str = "source-address";

/// Decides whether this certificate opens a session for this login name from this address now.
///
/// The rules are OpenSSH's, with one addition: a certificate without principals is refused, where
/// OpenSSH lets it stand for every user unless told otherwise. An extension that is not known is
/// ignored; a critical option that is not known refuses the certificate. An option cannot appear
/// twice: such a certificate does not parse. What this function does not prove is that the client
/// holds the private key; that is the protocol's part.
pub fn authorize(
    certificate: &Certificate,
    user: &str,
    source: IpAddr,
    now: SystemTime,
    trust: &Trust,
) -> Result<Authorized, Denied> {
    if certificate.cert_type() != CertType::User {
        return Err(Denied::WrongType);
    }
    certificate::check(certificate, now, &trust.user_cas)?;

    let principals = certificate.valid_principals();
    if principals.is_empty() {
        return Err(Denied::NoPrincipals);
    }
    if user.is_empty() || !principals.iter().any(|principal| principal == user) {
        return Err(Denied::WrongPrincipal {
            user: user.to_owned(),
        });
    }

    let mut forced_command = None;
    for (name, value) in certificate.critical_options().iter() {
        match name.as_str() {
            FORCE_COMMAND => {
                if value.is_empty() || value.contains('\0') {
                    return Err(Denied::MalformedOption {
                        name: FORCE_COMMAND,
                    });
                }
                forced_command = Some(value.clone());
            }
            SOURCE_ADDRESS => {
                let allowed =
                    SourceAddresses::parse(value).map_err(|_| Denied::MalformedOption {
                        name: SOURCE_ADDRESS,
                    })?;
                if !allowed.contains(source) {
                    let source_address = source.to_canonical();
                    return Err(Denied::ForeignSource { source_address });
                }
            }
            _ => return Err(Denied::UnknownCriticalOption { name: name.clone() }),
        }
    }

    let permits = |extension: &str| certificate.extensions().contains_key(extension);
    Ok(Authorized {
        user: user.to_owned(),
        key_id: certificate.key_id().to_owned(),
        serial: certificate.serial(),
        fingerprint: fingerprint(certificate.public_key()),
        expires: certificate::expires(certificate),
        forced_command,
        permit_pty: permits("permit-pty"),
        permit_port_forwarding: permits("permit-port-forwarding"),
        permit_agent_forwarding: permits("permit-agent-forwarding"),
    })
}

#[cfg(test)]
mod tests;
