//! Relay tokens: `<base64url of the claims as JSON>.<base64url of an Ed25519 signature>`.
//!
//! This module holds the text form alone. A token is signed where the private key is and verified
//! at the relay; both sign and verify the bytes of [`signed_bytes`].

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

/// The longest token that is looked at.
pub const MAX_TOKEN: usize = 2_048;

/// Keeps a signature over a relay token from being one over anything else.
const CONTEXT: &[u8] = b"underpass relay token v1\0";

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The gateway it opens.
    pub gateway: String,
    /// The second, since 1970, at which it stops being valid.
    pub expires_unix: u64,
    /// Who it was issued to, for limits and logs. It opens nothing.
    pub id: String,
}

impl Claims {
    /// The first part of a token.
    pub fn encode(&self) -> String {
        // Strings and numbers always serialize; an empty part would be refused by any reader.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads the first part of a token, whose signature is to be verified before.
    ///
    /// # Errors
    /// When the part is not base64url, or not JSON with these claims.
    pub fn decode(part: &str) -> Result<Claims, TokenError> {
        if part.len() > MAX_TOKEN {
            return Err(TokenError);
        }
        let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError)?;
        serde_json::from_slice(&json).map_err(|_| TokenError)
    }
}

/// The bytes under the signature of a token whose first part is `part`.
pub fn signed_bytes(part: &str) -> Vec<u8> {
    [CONTEXT, part.as_bytes()].concat()
}

/// The token of `part`, from [`Claims::encode`], and the signature over its [`signed_bytes`].
pub fn join(part: &str, signature: &[u8; 64]) -> String {
    format!("{part}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A token's two parts. Nothing is verified.
///
/// # Errors
/// When the text is longer than [`MAX_TOKEN`] or not of two parts, the second being a signature.
pub fn split(token: &str) -> Result<(&str, [u8; 64]), TokenError> {
    if token.len() > MAX_TOKEN {
        return Err(TokenError);
    }
    let (part, signature) = token.split_once('.').ok_or(TokenError)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError)?;
    Ok((part, signature.try_into().map_err(|_| TokenError)?))
}

/// The text is not a relay token. The text itself is a secret and is not repeated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenError;

impl fmt::Debug for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenError")
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a relay token; hint: copy it whole, or log in again")
    }
}

impl std::error::Error for TokenError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_token() {
        let claims = Claims {
            gateway: "gw1".into(),
            expires_unix: 1_800_000_000,
            id: "7".into(),
        };
        let part = claims.encode();
        insta::assert_snapshot!(part, @"eyJnYXRld2F5IjoiZ3cxIiwiZXhwaXJlc191bml4IjoxODAwMDAwMDAwLCJpZCI6IjcifQ");
        insta::assert_snapshot!(String::from_utf8_lossy(&signed_bytes("part")), @"underpass relay token v1\0part");
        assert_eq!(split(&join(&part, &[9; 64])), Ok((part.as_str(), [9; 64])));
    }

    #[test]
    fn other_text_is_refused() {
        let long = "A".repeat(MAX_TOKEN + 1);
        let short_signature = format!("e30.{}", URL_SAFE_NO_PAD.encode([0; 63]));
        for text in [
            "",
            ".",
            "e30",
            "e30.",
            "e30.AA",
            "a.b.c",
            &long,
            &short_signature,
        ] {
            assert_eq!(split(text), Err(TokenError), "{text}");
        }
        for part in ["", "e30", "bnVsbA", "!", &long] {
            assert_eq!(Claims::decode(part), Err(TokenError), "{part}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(gateway in ".{0,40}", expires_unix: u64, id in ".{0,40}") {
            let claims = Claims { gateway, expires_unix, id };
            prop_assert_eq!(Claims::decode(&claims.encode()), Ok(claims));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "[A-Za-z0-9_.-]{0,200}|.{0,50}") {
            if let Ok((part, _)) = split(&text) {
                let _ = Claims::decode(part);
            }
        }
    }
}
