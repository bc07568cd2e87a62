//! Random secrets: made here, shown once, kept as a hash.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::digest;
use zeroize::Zeroizing;

use crate::Error;

/// A text that no log shows. Its memory is cleared when it is dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text, for the one who is to have it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// 32 random bytes as base64url after a prefix that scanners of leaked secrets recognise.
    pub(crate) fn random(prefix: &str) -> Result<Secret, Error> {
        let bytes = random::<32>()?;
        let mut text = Zeroizing::new(String::with_capacity(prefix.len() + ENCODED));
        text.push_str(prefix);
        URL_SAFE_NO_PAD.encode_string(*bytes, &mut text);
        Ok(Secret(text))
    }

    pub(crate) fn new(text: String) -> Secret {
        Secret(Zeroizing::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The length of 32 bytes as base64url.
const ENCODED: usize = 43;

/// What the store knows of a secret: enough to recognise it. None for texts that were never made
/// by [`Secret::random`] with this prefix, so that nothing longer is ever hashed.
pub(crate) fn hash(prefix: &str, text: &str) -> Option<[u8; 32]> {
    let random = text.strip_prefix(prefix)?;
    if random.len() != ENCODED {
        return None;
    }
    digest::digest(&digest::SHA256, text.as_bytes())
        .as_ref()
        .try_into()
        .ok()
}

/// Random bytes of the system.
pub(crate) fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, Error> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(&mut *bytes).map_err(|error| Error::Internal(format!("random: {error}")))?;
    Ok(bytes)
}
