//! The private half of a WireGuard key pair.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use wire::PublicKey;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A Curve25519 private key. It is wiped from memory when dropped and never shown by `Debug`.
///
/// Its bytes come from the driver: this crate has no source of randomness.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// Takes 32 random bytes as a key, clamped as Curve25519 asks (RFC 7748 section 5), so that
    /// its text is the one that `wg` would show.
    pub fn from_bytes(mut bytes: [u8; 32]) -> PrivateKey {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        PrivateKey(bytes)
    }

    /// Reads the base64 text of a WireGuard configuration file.
    pub fn from_base64(text: &str) -> Option<PrivateKey> {
        if text.len() != 44 {
            return None;
        }
        let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
        Some(PrivateKey::from_bytes(bytes.as_slice().try_into().ok()?))
    }

    /// The text for a WireGuard configuration file. Whoever calls this answers for where it goes.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    /// The 32 bytes of the key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The public key that belongs to this private key.
    pub fn public(&self) -> PublicKey {
        PublicKey(crate::peer::public_key(&self.0))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}
