//! Verifies relay tokens.

use std::time::{Duration, SystemTime};

use ring::signature::{ED25519, UnparsedPublicKey};
use wire::{
    CloseCode,
    token::{Claims, signed_bytes, split},
};

/// Verifies tokens under any of its keys. A verifier without keys admits none.
#[derive(Debug, Clone)]
pub struct Verifier {
    keys: Vec<[u8; 32]>,
}

/// A token that was refused: why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Not a token, or not signed by a known key.
    Invalid,
    /// Signed, and for another gateway.
    WrongGateway,
    /// Signed, and its time is over.
    Expired,
}

impl Refused {
    /// The close code that tells the client.
    pub fn close_code(self) -> CloseCode {
        match self {
            Refused::Invalid => CloseCode::TokenInvalid,
            Refused::WrongGateway => CloseCode::TokenWrongGateway,
            Refused::Expired => CloseCode::TokenExpired,
        }
    }
}

impl Verifier {
    /// A verifier under these Ed25519 public keys.
    pub fn new(keys: Vec<[u8; 32]>) -> Verifier {
        Verifier { keys }
    }

    /// The claims of `token`, when it opens `gateway` at `now`.
    ///
    /// # Errors
    /// Claims are looked at only under a valid signature, so a stranger learns nothing but
    /// [`Refused::Invalid`].
    pub fn verify(&self, token: &str, gateway: &str, now: SystemTime) -> Result<Claims, Refused> {
        let (part, signature) = split(token).map_err(|_| Refused::Invalid)?;
        let message = signed_bytes(part);
        let signed = |key: &[u8; 32]| {
            UnparsedPublicKey::new(&ED25519, key)
                .verify(&message, &signature)
                .is_ok()
        };
        if !self.keys.iter().any(signed) {
            return Err(Refused::Invalid);
        }
        let claims = Claims::decode(part).map_err(|_| Refused::Invalid)?;
        if claims.gateway != gateway {
            return Err(Refused::WrongGateway);
        }
        let since_epoch = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        if since_epoch >= Duration::from_secs(claims.expires_unix) {
            return Err(Refused::Expired);
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::{Ed25519KeyPair, KeyPair};
    use wire::token::join;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn pair(seed: u8) -> (Ed25519KeyPair, [u8; 32]) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let public = pair.public_key().as_ref().try_into().unwrap();
        (pair, public)
    }

    fn token(pair: &Ed25519KeyPair, gateway: &str, expires_unix: u64) -> String {
        let part = Claims {
            gateway: gateway.into(),
            expires_unix,
            id: "1".into(),
        }
        .encode();
        let signature = pair.sign(&signed_bytes(&part));
        join(&part, signature.as_ref().try_into().unwrap())
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let (signer, public) = pair(1);
        let (stranger, _) = pair(2);
        let (_, other) = pair(3);
        let verifier = Verifier::new(vec![other, public]);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        let check = |token: &str, expect: Result<(), Refused>| {
            assert_eq!(
                verifier.verify(token, "gw1", now).map(drop),
                expect,
                "{token}"
            );
        };
        let good = token(&signer, "gw1", NOW + 1);
        check(&good, Ok(()));
        check(&token(&signer, "gw1", NOW), Err(Refused::Expired));
        check(&token(&signer, "gw2", NOW + 1), Err(Refused::WrongGateway));
        check(&token(&stranger, "gw1", NOW + 1), Err(Refused::Invalid));
        check("", Err(Refused::Invalid));
        check(&good[..good.len() - 2], Err(Refused::Invalid));
        // A signature over the bare part, without the context, is no token.
        let part = good.split_once('.').unwrap().0;
        let bare = join(
            part,
            signer.sign(part.as_bytes()).as_ref().try_into().unwrap(),
        );
        check(&bare, Err(Refused::Invalid));
        // Claims of one token under the signature of another.
        let other = token(&signer, "gw1", NOW + 2);
        let mixed = format!("{part}.{}", other.split_once('.').unwrap().1);
        check(&mixed, Err(Refused::Invalid));
        assert_eq!(
            Verifier::new(vec![]).verify(&good, "gw1", now),
            Err(Refused::Invalid)
        );
    }
}
