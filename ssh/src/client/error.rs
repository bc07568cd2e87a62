//! What can go wrong, with a stable code and a hint each.

use russh::AlgorithmKind;

use super::auth::SignFailed;
use crate::authorize::Denied;
use crate::host::HostDenied;

/// Why there is no session, or none any more.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SshError {
    /// The host is not believed to be what was dialled.
    #[error(transparent)]
    Host(HostDenied),
    /// The server refused the certificate.
    #[error("the server refused the certificate{}", likely.as_ref().map_or(String::new(), |denied| format!(": {denied}")))]
    AuthenticationRefused {
        /// What the certificate itself tells of the reason.
        likely: Option<Denied>,
    },
    /// The private key is not the one that the certificate certifies.
    #[error("the private key is not the one in the certificate")]
    KeyMismatch,
    /// The signer did not sign.
    #[error(transparent)]
    Signer(SignFailed),
    /// The server does not open the channel.
    #[error("the server does not open the channel ({reason})")]
    ChannelRefused {
        /// The server's reason.
        reason: String,
    },
    /// The server does not allocate a terminal.
    #[error("the server does not allocate a terminal")]
    PtyRefused,
    /// The server does not forward the agent.
    #[error("the server does not forward the agent")]
    AgentRefused,
    /// The server does not run what was asked for.
    #[error("the server does not run {what}")]
    RequestRefused {
        /// What was asked for: `a shell`, `the command`, `the subsystem ...`.
        what: String,
    },
    /// The server said goodbye.
    #[error("the server ended the connection: {reason}")]
    Disconnected {
        /// The server's words.
        reason: String,
    },
    /// The stream ended without a goodbye.
    #[error("the connection was lost")]
    ConnectionLost,
    /// The server does not answer any more.
    #[error("the server does not answer any more")]
    Silent,
    /// There is no algorithm that both sides know.
    #[error("no common algorithm for {what}")]
    NoCommonAlgorithm {
        /// What the algorithm is for.
        what: &'static str,
    },
    /// What answers is no SSH server, or a broken one.
    #[error("this is not the SSH protocol: {reason}")]
    Protocol {
        /// What is wrong.
        reason: String,
    },
}

impl SshError {
    /// The stable name of the error.
    pub fn code(&self) -> &'static str {
        match self {
            SshError::Host(denied) => denied.code(),
            SshError::AuthenticationRefused {
                likely: Some(denied),
            } => denied.code(),
            SshError::AuthenticationRefused { likely: None } => "authentication_refused",
            SshError::KeyMismatch => "key_mismatch",
            SshError::Signer(_) => "signer_failed",
            SshError::ChannelRefused { .. } => "channel_refused",
            SshError::PtyRefused => "pty_refused",
            SshError::AgentRefused => "agent_refused",
            SshError::RequestRefused { .. } => "request_refused",
            SshError::Disconnected { .. } => "disconnected",
            SshError::ConnectionLost => "connection_lost",
            SshError::Silent => "no_answer",
            SshError::NoCommonAlgorithm { .. } => "no_common_algorithm",
            SshError::Protocol { .. } => "protocol_error",
        }
    }

    /// What a person can do.
    pub fn hint(&self) -> &'static str {
        match self {
            SshError::Host(denied) => denied.hint(),
            SshError::AuthenticationRefused {
                likely: Some(denied),
            } => denied.hint(),
            SshError::AuthenticationRefused { likely: None } => {
                "the instance's log has the reason: most often another organisation's authority, or a certificate of another peer"
            }
            SshError::KeyMismatch => "give the private key that was certified",
            SshError::Signer(_) => "issue a new certificate for a new key",
            SshError::ChannelRefused { .. } => {
                "close other sessions on this connection, or ask for a certificate that permits it"
            }
            SshError::PtyRefused => {
                "run a command without a terminal; the instance's log has the reason"
            }
            SshError::AgentRefused => {
                "the certificate has to permit it, and the instance's log has the reason"
            }
            SshError::RequestRefused { .. } => "the instance's log has the reason",
            SshError::Disconnected { .. } | SshError::ConnectionLost | SshError::Silent => {
                "connect again"
            }
            SshError::NoCommonAlgorithm { .. } | SshError::Protocol { .. } => {
                "check that the port is the one of the instance's SSH server"
            }
        }
    }

    /// The error that this one of the protocol library is to a person.
    pub(super) fn of(error: &russh::Error) -> SshError {
        match error {
            russh::Error::NoCommonAlgo { kind, .. } => SshError::NoCommonAlgorithm {
                what: match kind {
                    AlgorithmKind::Kex => "the key exchange",
                    AlgorithmKind::Key => "the host key",
                    AlgorithmKind::Cipher => "encryption",
                    AlgorithmKind::Compression => "compression",
                    AlgorithmKind::Mac => "integrity",
                },
            },
            russh::Error::ChannelOpenFailure(reason) => SshError::ChannelRefused {
                reason: format!("{reason:?}"),
            },
            russh::Error::IO(_)
            | russh::Error::HUP
            | russh::Error::Disconnect
            | russh::Error::SendError
            | russh::Error::RecvError => SshError::ConnectionLost,
            russh::Error::KeepaliveTimeout
            | russh::Error::InactivityTimeout
            | russh::Error::ConnectionTimeout => SshError::Silent,
            other => SshError::Protocol {
                reason: other.to_string(),
            },
        }
    }
}

impl From<russh::Error> for SshError {
    fn from(error: russh::Error) -> SshError {
        SshError::of(&error)
    }
}

impl From<russh::SendError> for SshError {
    fn from(_: russh::SendError) -> SshError {
        SshError::ConnectionLost
    }
}

/// Words from the other side, without what a terminal would obey, and not too many.
pub(super) fn printable(words: &str) -> String {
    words
        .chars()
        .filter(|letter| !letter.is_control())
        .take(200)
        .collect()
}
