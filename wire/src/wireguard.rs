//! WireGuard messages as far as anyone on the way can read them: kind, length and mac1.

use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{FixedOutput, KeyInit, Update, consts::U16},
};
use subtle::ConstantTimeEq;

use crate::PublicKey;

/// The length of a handshake initiation.
pub const INITIATION: usize = 148;
/// The length of a handshake response.
pub const RESPONSE: usize = 92;
/// The length of a cookie reply.
pub const COOKIE: usize = 64;
/// The least length of a transport message: a keepalive.
pub const KEEPALIVE: usize = 32;

/// What a datagram is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A handshake initiation, 148 bytes.
    Initiation,
    /// A handshake response, 92 bytes.
    Response,
    /// A cookie reply, 64 bytes.
    Cookie,
    /// A transport message: at least 32 bytes. Padding to 16 ends at the tunnel's MTU, and some
    /// implementations have none, so that every length beyond is WireGuard's.
    Data,
}

impl Kind {
    /// The kind of a datagram whose type, reserved bytes and length are WireGuard's.
    pub fn of(datagram: &[u8]) -> Option<Kind> {
        let (kind, _) = datagram.split_first_chunk::<4>()?;
        match (u32::from_le_bytes(*kind), datagram.len()) {
            (1, INITIATION) => Some(Kind::Initiation),
            (2, RESPONSE) => Some(Kind::Response),
            (3, COOKIE) => Some(Kind::Cookie),
            (4, KEEPALIVE..) => Some(Kind::Data),
            _ => None,
        }
    }

    /// Whether the message belongs to a handshake: these are the last that a queue drops.
    pub fn is_handshake(self) -> bool {
        self != Kind::Data
    }
}

/// What mac1 of every message to one endpoint is keyed with: a hash of its public key, so it
/// proves knowledge of that key alone.
#[derive(Clone)]
pub struct Mac1Key([u8; 32]);

impl Mac1Key {
    /// The key for messages to `endpoint`.
    pub fn new(endpoint: &PublicKey) -> Mac1Key {
        let digest = Blake2s256::new()
            .chain_update(b"mac1----")
            .chain_update(endpoint.as_bytes())
            .finalize();
        Mac1Key(digest.into())
    }

    /// Whether `datagram` is a handshake initiation whose mac1 is valid. Constant in time over
    /// the content.
    pub fn admits(&self, datagram: &[u8]) -> bool {
        if Kind::of(datagram) != Some(Kind::Initiation) {
            return false;
        }
        let (covered, macs) = datagram.split_at(INITIATION - 32);
        let Ok(mac) = Blake2sMac::<U16>::new_from_slice(&self.0) else {
            return false;
        };
        let expected = mac.chain(covered).finalize_fixed();
        expected.as_slice().ct_eq(&macs[..16]).into()
    }
}

/// Whether `initiation` is a handshake initiation whose mac1 is valid for `gateway`.
pub fn mac1_valid(initiation: &[u8], gateway: &PublicKey) -> bool {
    Mac1Key::new(gateway).admits(initiation)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn datagram(kind: u8, length: usize) -> Vec<u8> {
        let mut datagram = vec![0; length];
        datagram[0] = kind;
        datagram
    }

    #[test]
    fn kinds_by_type_and_length() {
        let cases = [
            (1, 148, Some(Kind::Initiation)),
            (1, 147, None),
            (1, 149, None),
            (2, 92, Some(Kind::Response)),
            (2, 96, None),
            (3, 64, Some(Kind::Cookie)),
            (3, 80, None),
            (4, 32, Some(Kind::Data)),
            (4, 16, None),
            (4, 31, None),
            (4, 33, Some(Kind::Data)),
            (4, 1452, Some(Kind::Data)),
            (4, 1456, Some(Kind::Data)),
            (0, 32, None),
            (5, 32, None),
            (255, 148, None),
        ];
        for (kind, length, expect) in cases {
            assert_eq!(Kind::of(&datagram(kind, length)), expect, "{kind} {length}");
        }
        for reserved in 1..4 {
            let mut bytes = datagram(4, 32);
            bytes[reserved] = 1;
            assert_eq!(Kind::of(&bytes), None);
        }
        for length in 0..4 {
            assert_eq!(Kind::of(&[1, 0, 0][..length.min(3)]), None);
        }
    }

    /// Computed by Python's hashlib: `blake2s(b"mac1----" + key)`, then
    /// `blake2s(message[:116], key=..., digest_size=16)`.
    fn initiation_for_key_of_sevens() -> Vec<u8> {
        let mut message = datagram(1, INITIATION);
        for (index, byte) in message.iter_mut().enumerate().take(116).skip(4) {
            *byte = index as u8;
        }
        message[116..132]
            .copy_from_slice(&0x64b1a5c6_fce758a7_79b3fc48_1c04c799_u128.to_be_bytes());
        message
    }

    #[test]
    fn mac1_by_the_whitepaper() {
        let gateway = PublicKey([7; 32]);
        let message = initiation_for_key_of_sevens();
        assert!(mac1_valid(&message, &gateway));
        assert!(!mac1_valid(&message, &PublicKey([8; 32])));
        assert!(!mac1_valid(&message[..147], &gateway));
        for bit in 0..132 * 8 {
            let mut changed = message.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!mac1_valid(&changed, &gateway), "bit {bit}");
        }
        // mac2 is under a key that only the gateway has: it is not looked at.
        let mut other_mac2 = message;
        other_mac2[140] ^= 1;
        assert!(mac1_valid(&other_mac2, &gateway));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(datagram in vec(any::<u8>(), 0..200)) {
            let _ = Kind::of(&datagram);
            prop_assert!(!mac1_valid(&datagram, &PublicKey([7; 32])));
        }
    }
}
