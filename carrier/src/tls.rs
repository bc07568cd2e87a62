//! Which relay certificates are trusted.

use std::{path::PathBuf, sync::Arc};

use ring::digest;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring as provider, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};

use crate::CarrierError;

/// What makes a relay's certificate good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The roots of the operating system.
    System,
    /// The certificates of a PEM file, as roots; the operating system's do not count.
    PemFile(PathBuf),
    /// The certificates of a PEM text, as roots; the operating system's do not count.
    Pem(Vec<u8>),
    /// The SHA-256 of the relay's own certificate in DER. Names and dates in it do not count.
    Fingerprint([u8; 32]),
}

impl Trust {
    /// Reads a SHA-256 fingerprint: 64 hex digits, colons allowed between bytes, after an optional
    /// `sha256:`.
    pub fn fingerprint(text: &str) -> Result<Trust, CarrierError> {
        let bad = || settings("a fingerprint is 64 hex digits");
        let text = text.trim();
        let digits = match text.split_at_checked(7) {
            Some((prefix, rest)) if prefix.eq_ignore_ascii_case("sha256:") => rest,
            _ => text,
        };
        let digits: Vec<u8> = digits.bytes().filter(|b| *b != b':').collect();
        if digits.len() != 64 {
            return Err(bad());
        }
        let mut fingerprint = [0; 32];
        for (byte, pair) in fingerprint.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = str::from_utf8(pair).map_err(|_| bad())?;
            if pair.starts_with('+') {
                return Err(bad());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Trust::Fingerprint(fingerprint))
    }
}

/// A TLS client configuration on ring that trusts what `trust` says, AES-128-GCM first where the
/// processor has AES.
pub fn tls_config(trust: &Trust) -> Result<Arc<ClientConfig>, CarrierError> {
    let provider = Arc::new(provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| settings(error.to_string()))?;
    let roots = match trust {
        Trust::Fingerprint(expected) => {
            let pinned = Pinned {
                expected: *expected,
                provider,
            };
            return Ok(Arc::new(
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(pinned))
                    .with_no_client_auth(),
            ));
        }
        Trust::Pem(text) => pem_roots(text, "the PEM text")?,
        Trust::PemFile(path) => {
            let text = std::fs::read(path)
                .map_err(|error| settings(format!("{}: {error}", path.display())))?;
            pem_roots(&text, &path.display().to_string())?
        }
        Trust::System => {
            let loaded = rustls_native_certs::load_native_certs();
            let mut roots = RootCertStore::empty();
            let (added, _) = roots.add_parsable_certificates(loaded.certs);
            if added == 0 {
                let why = loaded.errors.first().map(|error| format!(": {error}"));
                return Err(settings(format!(
                    "the operating system has no trusted roots{}",
                    why.unwrap_or_default()
                )));
            }
            roots
        }
    };
    Ok(Arc::new(
        builder.with_root_certificates(roots).with_no_client_auth(),
    ))
}

fn pem_roots(text: &[u8], from: &str) -> Result<RootCertStore, CarrierError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text) {
        let certificate = certificate.map_err(|error| settings(format!("{from}: {error}")))?;
        roots
            .add(certificate)
            .map_err(|error| settings(format!("{from}: {error}")))?;
    }
    if roots.is_empty() {
        return Err(settings(format!("{from} holds no certificate")));
    }
    Ok(roots)
}

fn provider() -> CryptoProvider {
    let mut provider = provider::default_provider();
    if has_aes() {
        let last = provider.cipher_suites.len();
        provider.cipher_suites.sort_by_key(|suite| {
            if *suite == provider::cipher_suite::TLS13_AES_128_GCM_SHA256 {
                0
            } else {
                last
            }
        });
    }
    provider
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

fn settings(reason: impl Into<String>) -> CarrierError {
    CarrierError::TlsSettings {
        reason: reason.into(),
    }
}

/// Accepts one certificate, known by its hash, and still checks that the server holds its key.
#[derive(Debug)]
struct Pinned {
    expected: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let actual = digest::digest(&digest::SHA256, certificate);
        if actual.as_ref() == self.expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_in_the_forms_tools_print() {
        let plain = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";
        let colons = plain
            .as_bytes()
            .chunks(2)
            .map(|pair| str::from_utf8(pair).unwrap())
            .collect::<Vec<_>>()
            .join(":");
        let want = Trust::fingerprint(plain).unwrap();
        assert_eq!(Trust::fingerprint(&colons), Ok(want.clone()));
        assert_eq!(Trust::fingerprint(&format!(" SHA256:{colons}\n")), Ok(want));
        for bad in [
            "",
            "sha256:",
            &plain[1..],
            &plain.replace('0', "+"),
            &plain.replace('0', "g"),
        ] {
            let error = Trust::fingerprint(bad).unwrap_err();
            assert_eq!(error.code(), "tls_settings_invalid", "{bad:?}");
        }
    }

    #[test]
    fn roots_that_hold_nothing_are_refused() {
        let error = tls_config(&Trust::Pem(b"no certificate".to_vec())).unwrap_err();
        assert_eq!(error.code(), "tls_settings_invalid");
        let error = tls_config(&Trust::PemFile("/nonexistent/roots.pem".into())).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/roots.pem"),
            "{error}"
        );
    }
}
