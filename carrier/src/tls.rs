//! Which relay certificates are trusted, and what is said of one that is not.

use std::{fmt, io, path::PathBuf, sync::Arc};

use ring::digest;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring as provider, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};

use crate::{CarrierError, error::clean};

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
    let config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier(trust, provider)?))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn verifier(trust: &Trust, provider: Arc<CryptoProvider>) -> Result<Named, CarrierError> {
    let roots = match trust {
        Trust::Fingerprint(expected) => {
            return Ok(Named(Arc::new(Pinned {
                expected: *expected,
                provider,
            })));
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
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    Ok(Named(
        verifier.map_err(|error| settings(error.to_string()))?,
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

/// Asks another verifier, and says which certificate it was that did not pass.
#[derive(Debug)]
struct Named(Arc<dyn ServerCertVerifier>);

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self
            .0
            .verify_server_cert(certificate, intermediates, name, ocsp, now);
        verified.map_err(|error| match error {
            rustls::Error::InvalidCertificate(reason) => {
                let fingerprint = digest::digest(&digest::SHA256, certificate);
                let fingerprint = fingerprint.as_ref().try_into().unwrap_or([0; 32]);
                let untrusted = Untrusted {
                    fingerprint,
                    reason,
                };
                CertificateError::Other(OtherError(Arc::new(untrusted))).into()
            }
            other => other,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// A certificate that did not pass.
#[derive(Debug)]
struct Untrusted {
    fingerprint: [u8; 32],
    reason: CertificateError,
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            CertificateError::ApplicationVerificationFailure => {
                f.write_str("it is not the pinned one")
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                f.write_str("nobody whom this machine knows signed it")
            }
            CertificateError::ExpiredContext { time, not_after } => write!(
                f,
                "it ended on {}, and this machine's clock says {}",
                date(*not_after),
                date(*time)
            ),
            CertificateError::NotValidYetContext { time, not_before } => write!(
                f,
                "it begins on {}, and this machine's clock says {}",
                date(*not_before),
                date(*time)
            ),
            CertificateError::NotValidForNameContext { presented, .. } => {
                // As rustls shows them: DnsName("example.com").
                let bare = |name: &String| {
                    let name = name.strip_prefix("DnsName(").unwrap_or(name);
                    name.trim_end_matches(')').replace('"', "")
                };
                let names: Vec<_> = presented.iter().take(4).map(bare).collect();
                write!(f, "it is for {}", clean(&names.join(", ")))
            }
            other => f.write_str(&clean(&other.to_string())),
        }
    }
}

impl std::error::Error for Untrusted {}

impl Untrusted {
    fn hint(&self) -> &'static str {
        match &self.reason {
            CertificateError::ApplicationVerificationFailure => {
                "something in between presents its own certificate, or the server has a new one: \
                 compare the fingerprint with the one that the server prints when it starts"
            }
            CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYetContext { .. } => {
                "set this machine's clock if it is wrong; otherwise the server's certificate has to \
                 be renewed"
            }
            CertificateError::NotValidForNameContext { .. } => {
                "use a name that the certificate is for, or pin its fingerprint"
            }
            _ => {
                "compare the fingerprint with the one that the server prints when it starts: pin it \
                 where they are equal; where not, something in between presents its own certificate"
            }
        }
    }
}

impl CarrierError {
    /// What went wrong with TLS to a host, from what a connector of [`tls_config`] says.
    pub fn of_tls(host: &str, error: &io::Error) -> CarrierError {
        let host = host.to_owned();
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other)))) => {
                let untrusted = other.downcast_ref::<Untrusted>();
                let reason =
                    untrusted.map_or_else(|| clean(&other.to_string()), ToString::to_string);
                CarrierError::TlsUntrusted {
                    host,
                    reason,
                    fingerprint: untrusted
                        .map_or_else(String::new, |untrusted| shown(&untrusted.fingerprint)),
                    hint: untrusted.map_or("", Untrusted::hint),
                }
            }
            _ => CarrierError::TlsFailed {
                host,
                reason: clean(&error.to_string()),
            },
        }
    }
}

/// As browsers show it: `AB:CD:...`.
fn shown(fingerprint: &[u8; 32]) -> String {
    let bytes: Vec<String> = fingerprint
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    format!("SHA256:{}", bytes.join(":"))
}

/// A day and a minute of UTC.
fn date(time: UnixTime) -> String {
    let (days, seconds) = (time.as_secs() / 86_400, time.as_secs() % 86_400);
    // Counted from a 1st of March, in eras of 400 years (Hinnant, days_from_civil).
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, (month + 2) % 12 + 1);
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (seconds / 3_600, seconds % 3_600 / 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
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
            Err(CertificateError::ApplicationVerificationFailure.into())
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

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59 UTC"),
            (1_735_689_599, "2024-12-31 23:59 UTC"),
            (1_763_665_200, "2025-11-20 19:00 UTC"),
        ] {
            let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
            assert_eq!(date(time), text);
        }
    }

    /// What is said of a certificate at a time, by one who trusts as `trust` says.
    fn said(trust: &Trust, certificate: &CertificateDer<'_>, name: &str, at: u64) -> String {
        let verifier = verifier(trust, Arc::new(provider())).unwrap();
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let verified = verifier.verify_server_cert(certificate, &[], &name, &[], at);
        let error = io::Error::other(verified.unwrap_err());
        let error = CarrierError::of_tls("up.example", &error);
        assert_eq!(error.code(), "tls_untrusted");
        let fingerprint = digest::digest(&digest::SHA256, certificate);
        let fingerprint = shown(&fingerprint.as_ref().try_into().unwrap());
        let text = error.to_string();
        assert!(text.contains(&fingerprint), "{text}");
        format!(
            "{}\nhint: {}",
            text.replace(&fingerprint, "SHA256:.."),
            error.hint()
        )
    }

    #[test]
    fn a_certificate_that_does_not_pass_is_told_with_its_fingerprint() {
        let make = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(2030, 1, 1);
            params.not_after = rcgen::date_time_ymd(2030, 2, 1);
            params.self_signed(&key).unwrap()
        };
        let (ours, other) = (make("up.example"), make("portal.example"));
        let known = Trust::Pem(ours.pem().into_bytes());
        let within = 1_893_456_000 + 10 * 86_400;
        let all = [
            said(
                &Trust::Pem(other.pem().into_bytes()),
                ours.der(),
                "up.example",
                within,
            ),
            said(
                &Trust::Fingerprint([7; 32]),
                ours.der(),
                "up.example",
                within,
            ),
            said(&known, ours.der(), "portal.example", within),
            said(&known, ours.der(), "up.example", within - 11 * 86_400),
            said(&known, ours.der(), "up.example", within + 31 * 86_400),
        ];
        insta::assert_snapshot!(all.join("\n\n"));
    }
}
