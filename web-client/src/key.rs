//! Keys: WireGuard's, made and kept here; and the text form of SSH's public keys, whose private
//! halves WebCrypto keeps.

use std::rc::Rc;

use base64::{Engine, engine::general_purpose::STANDARD};
use tunnel::PrivateKey;
use wasm_bindgen::prelude::*;
use zeroize::Zeroizing;

use crate::failure::Failure;

/// A WireGuard key pair. The private half stays in this module's memory.
#[wasm_bindgen]
pub struct WireGuardKey {
    private: Rc<PrivateKey>,
    public: String,
}

#[wasm_bindgen]
impl WireGuardKey {
    /// The public key, base64.
    #[wasm_bindgen(getter, js_name = publicKey)]
    pub fn public_key(&self) -> String {
        self.public.clone()
    }

    /// Another handle to the same key: what is taken from an options object is taken for good.
    #[wasm_bindgen(skip_typescript, js_name = share)]
    pub fn share(&self) -> WireGuardKey {
        WireGuardKey {
            private: Rc::clone(&self.private),
            public: self.public.clone(),
        }
    }
}

impl WireGuardKey {
    pub(crate) fn private(&self) -> PrivateKey {
        PrivateKey::from_bytes(*self.private.as_bytes())
    }
}

/// Makes a WireGuard key pair.
#[wasm_bindgen(js_name = generateKey)]
pub fn generate_key() -> Result<WireGuardKey, JsValue> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes).map_err(|_| no_randomness())?;
    let private = PrivateKey::from_bytes(*bytes);
    let public = private.public().to_string();
    Ok(WireGuardKey {
        private: Rc::new(private),
        public,
    })
}

pub(crate) fn no_randomness() -> Failure {
    Failure::new(
        "no_randomness",
        "This browser gives no randomness.",
        "Use a browser that has crypto.getRandomValues.",
    )
}

#[wasm_bindgen]
extern "C" {
    /// A `WireGuardKey` inside an options object.
    pub(crate) type KeyHandle;
    #[wasm_bindgen(method, structural, catch)]
    pub(crate) fn share(this: &KeyHandle) -> Result<WireGuardKey, JsValue>;
}

/// The `ssh-ed25519 AAAA...` line of a public key as `crypto.subtle.exportKey("raw")` gives it.
#[wasm_bindgen(js_name = sshPublicKeyLine)]
pub fn ssh_public_key_line(
    #[wasm_bindgen(unchecked_param_type = "\"ed25519\" | \"p256\"")] algorithm: &str,
    raw: &[u8],
) -> Result<String, JsValue> {
    let (fields, length): (&[&str], usize) = match algorithm {
        "ed25519" => (&["ssh-ed25519"], 32),
        "p256" => (&["ecdsa-sha2-nistp256", "nistp256"], 65),
        _ => return Err(Failure::bad_argument("algorithm", "\"ed25519\" or \"p256\"").into()),
    };
    if raw.len() != length {
        return Err(Failure::bad_argument(
            "raw",
            "the public key that WebCrypto exports as \"raw\"",
        )
        .into());
    }
    let mut blob = Vec::new();
    for field in fields.iter().map(|name| name.as_bytes()).chain([raw]) {
        // The longest is 65 bytes.
        blob.extend_from_slice(&(field.len() as u32).to_be_bytes());
        blob.extend_from_slice(field);
    }
    Ok(format!("{} {}", fields[0], STANDARD.encode(blob)))
}
