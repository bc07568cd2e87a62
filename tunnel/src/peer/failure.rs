//! Why a handshake fails, and why a datagram is refused.

use boringtun::noise::errors::WireGuardError;

/// Why a handshake does not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeFailure {
    /// Nothing came back.
    #[error("the gateway does not answer; hint: {}", self.hint())]
    NoAnswer,
    /// Only cookies came back.
    #[error("the gateway is under load; hint: {}", self.hint())]
    Busy,
}

impl HandshakeFailure {
    /// A name that stays.
    pub fn code(self) -> &'static str {
        match self {
            HandshakeFailure::NoAnswer => "no_answer",
            HandshakeFailure::Busy => "busy",
        }
    }

    /// What to do about it.
    pub fn hint(self) -> &'static str {
        match self {
            HandshakeFailure::NoAnswer => {
                "the path may be blocked, or the gateway does not know this peer's key (an \
                 expired lease looks the same): renew the lease and try again"
            }
            HandshakeFailure::Busy => "attempts go on by themselves; try again in a minute",
        }
    }
}

/// Why a datagram is refused. Nothing of the peer changes by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Not a WireGuard message, or one of the wrong length.
    #[error("not a WireGuard message")]
    Malformed,
    /// The first MAC is not for our key.
    #[error("the message is for another key")]
    InvalidMac,
    /// Too many handshakes: without a valid cookie none is taken.
    #[error("too many handshakes, a cookie is asked for")]
    UnderLoad,
    /// The initiation is another peer's.
    #[error("the initiation is of another peer")]
    WrongPeer,
    /// A counter or a timestamp that was seen before, or is out of bounds.
    #[error("the message is a replay")]
    Replay,
    /// No session or handshake has this index.
    #[error("no session for the message")]
    NoSession,
    /// It does not decrypt: forged, or a preshared key that differs.
    #[error("the message does not decrypt")]
    Forged,
    /// It decrypts to something that is no IP packet.
    #[error("the message holds no IP packet")]
    NotIp,
}

impl PeerError {
    /// The engine's error, for a message of the kind that `transport` tells.
    pub(super) fn of(error: &WireGuardError, transport: bool) -> PeerError {
        match error {
            WireGuardError::InvalidMac => PeerError::InvalidMac,
            WireGuardError::UnderLoad => PeerError::UnderLoad,
            WireGuardError::WrongKey => PeerError::WrongPeer,
            WireGuardError::WrongTai64nTimestamp
            | WireGuardError::InvalidTai64nTimestamp
            | WireGuardError::InvalidCounter
            | WireGuardError::DuplicateCounter => PeerError::Replay,
            WireGuardError::NoCurrentSession
            | WireGuardError::WrongIndex
            | WireGuardError::UnexpectedPacket
            | WireGuardError::ConnectionExpired => PeerError::NoSession,
            WireGuardError::InvalidAeadTag => PeerError::Forged,
            WireGuardError::InvalidPacket if transport => PeerError::NotIp,
            WireGuardError::InvalidPacket
            | WireGuardError::WrongPacketType
            | WireGuardError::IncorrectPacketLength
            | WireGuardError::DestinationBufferTooSmall
            | WireGuardError::LockFailed => PeerError::Malformed,
        }
    }
}
