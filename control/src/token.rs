//! Relay tokens: who may open a tunnel to which gateway, and until when.

use std::{fmt, time::SystemTime};

use ring::signature::{Ed25519KeyPair, KeyPair};
use wire::token::{self, Claims};

use crate::{Error, Secret, store::unix};

/// Signs relay tokens. The relay has the public half alone.
pub struct Signer(Ed25519KeyPair);

impl Signer {
    pub(crate) fn from_seed(seed: &[u8; 32]) -> Result<Signer, Error> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed);
        pair.map(Signer)
            .map_err(|error| Error::Internal(format!("token key: {error}")))
    }

    /// What relays verify with.
    pub fn public_key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        key.copy_from_slice(self.0.public_key().as_ref());
        key
    }

    /// A token for one gateway. `id` says who it was issued to.
    pub fn sign(&self, gateway: &str, id: &str, expires: SystemTime) -> Secret {
        let claims = Claims {
            gateway: gateway.to_owned(),
            expires_unix: unix(expires).cast_unsigned(),
            id: id.to_owned(),
        };
        let part = claims.encode();
        let mut signature = [0; 64];
        signature.copy_from_slice(self.0.sign(&token::signed_bytes(&part)).as_ref());
        Secret::new(token::join(&part, &signature))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Signer({:02x?}, private key not shown)",
            self.public_key()
        )
    }
}
