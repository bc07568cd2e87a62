//! Logging in with a certificate.

use std::future::Future;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use russh::client::AuthResult;
use russh::keys::agent::AgentIdentity;
use ssh_key::{Algorithm, Certificate, EcdsaCurve, HashAlg, Mpint};

use super::{Handler, Identity, Signer, SshError};
use crate::authorize::{Denied, Trust, authorize};

/// The future of a signature.
pub type SignFuture = Pin<Box<dyn Future<Output = Result<Vec<u8>, SignFailed>> + Send>>;

/// Something that signs and keeps the key to itself.
///
/// The future is `Send`. A signer whose own future is not, such as WebCrypto's, runs that one on
/// the page's task queue and sends the answer back through a oneshot channel.
pub trait Sign: Send {
    /// Signs these bytes with the certified key.
    ///
    /// The signature is raw, as WebCrypto gives it: 64 bytes for Ed25519; for ECDSA on P-256, with
    /// SHA-256 over the bytes, the two numbers of 32 bytes each.
    fn sign(&mut self, data: Vec<u8>) -> SignFuture;
}

/// The signer did not sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signer did not sign: {0}")]
pub struct SignFailed(pub String);

pub(super) async fn authenticate(
    handle: &mut russh::client::Handle<Handler>,
    user: &str,
    identity: Identity,
) -> Result<bool, SshError> {
    let Identity {
        certificate,
        signer,
    } = identity;
    let result = match signer {
        Signer::Local(key) => {
            if key.public_key().key_data() != certificate.public_key() {
                return Err(SshError::KeyMismatch);
            }
            handle
                .authenticate_openssh_cert(user, Arc::from(key), certificate)
                .await?
        }
        Signer::External(signer) => {
            let algorithm = certificate.algorithm();
            let mut bridge = Bridge { signer, algorithm };
            handle
                .authenticate_certificate_with(user, certificate, None, &mut bridge)
                .await?
        }
    };
    Ok(matches!(result, AuthResult::Success))
}

/// Says why the server may have refused, as far as the certificate tells: the server itself says
/// nothing but no.
pub(super) fn denied(certificate: &Certificate, user: &str, now: SystemTime) -> SshError {
    let trust = Trust::new([certificate.signature_key().clone().into()]);
    let nowhere = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match authorize(certificate, user, nowhere, now, &trust) {
        Ok(_) | Err(Denied::ForeignSource { .. }) => {
            SshError::AuthenticationRefused { likely: None }
        }
        Err(denied) => SshError::AuthenticationRefused {
            likely: Some(denied),
        },
    }
}

struct Bridge {
    signer: Box<dyn Sign>,
    algorithm: Algorithm,
}

impl russh::Signer for Bridge {
    type Error = SshError;

    /// Answers with what was to be signed and, after it, the signature as SSH writes it.
    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        _: Option<HashAlg>,
        mut to_sign: Vec<u8>,
    ) -> Result<Vec<u8>, SshError> {
        let raw = self
            .signer
            .sign(to_sign.clone())
            .await
            .map_err(SshError::Signer)?;
        let signature = encode(&self.algorithm, &raw).ok_or_else(|| {
            SshError::Signer(SignFailed(format!(
                "{} bytes are no signature of the certificate's kind",
                raw.len()
            )))
        })?;
        push(&mut to_sign, &signature);
        Ok(to_sign)
    }
}

fn encode(algorithm: &Algorithm, raw: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = raw.split_at_checked(32).filter(|(_, s)| s.len() == 32)?;
    let body = match algorithm {
        Algorithm::Ed25519 => raw.to_vec(),
        Algorithm::Ecdsa {
            curve: EcdsaCurve::NistP256,
        } => {
            let mut body = Vec::new();
            push(&mut body, Mpint::from_positive_bytes(r).as_bytes());
            push(&mut body, Mpint::from_positive_bytes(s).as_bytes());
            body
        }
        _ => return None,
    };
    let mut signature = Vec::new();
    push(&mut signature, algorithm.as_str().as_bytes());
    push(&mut signature, &body);
    Some(signature)
}

/// Appends a string as SSH writes it. Nothing here is near 4 GiB.
fn push(into: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    into.extend_from_slice(&length.to_be_bytes());
    into.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use ssh_key::Signature;
    use ssh_key::encoding::Decode;

    use super::*;

    #[test]
    fn raw_signatures_as_ssh_writes_them() {
        let curve = EcdsaCurve::NistP256;
        for algorithm in [Algorithm::Ed25519, Algorithm::Ecdsa { curve }] {
            // Numbers that begin with a high bit, and with a zero.
            let mut raw = [0; 64];
            raw[..32].fill(0xf0);
            raw[63] = 1;
            let encoded = encode(&algorithm, &raw).unwrap();
            let signature = Signature::decode(&mut encoded.as_slice()).unwrap();
            assert_eq!(signature.algorithm(), algorithm);
            for length in [0, 32, 63, 65, 72] {
                assert_eq!(encode(&algorithm, &vec![1; length]), None, "{length}");
            }
        }
        assert_eq!(encode(&Algorithm::SkEd25519, &[1; 64]), None);
    }
}
