use ssh_key::certificate::CertType::{Host, User};

use super::*;
use crate::fixture::{NOW, address, at, certificate, certificate_over, public};

fn decide(certificate: &Certificate) -> Result<Authorized, Denied> {
    let trust = Trust::new([public(3), public(2)]);
    authorize(
        certificate,
        "root",
        address("fdaa:0:18::2"),
        at(NOW),
        &trust,
    )
}

#[track_caller]
fn denied(certificate: &Certificate, code: &str) {
    let denied = decide(certificate).expect_err(code);
    assert_eq!(denied.code(), code);
    assert!(!denied.hint().is_empty());
}

#[test]
fn a_good_certificate() {
    let certificate = certificate(User, &["fly", "root"], |builder| {
        builder.extension("permit-pty", "").unwrap();
        builder.extension("permit-port-forwarding", "").unwrap();
    });
    let authorized = decide(&certificate).unwrap();
    assert_eq!(authorized.user(), "root");
    assert_eq!(authorized.key_id(), "org=acme;user=mia");
    assert_eq!(authorized.serial(), 9);
    assert_eq!(authorized.expires(), Some(at(NOW + 3600)));
    assert_eq!(authorized.forced_command(), None);
    assert!(authorized.permit_pty());
    assert!(authorized.permit_port_forwarding());
    assert!(!authorized.permit_agent_forwarding());
    assert!(authorized.fingerprint().starts_with("SHA256:"));
}

#[test]
fn a_host_certificate() {
    denied(
        &certificate(Host, &["root"], |_| {}),
        "certificate_wrong_type",
    );
}

#[test]
fn principals() {
    denied(&certificate(User, &[], |_| {}), "certificate_no_principals");
    denied(
        &certificate(User, &["fly"], |_| {}),
        "certificate_wrong_principal",
    );
    denied(
        &certificate(User, &["Root"], |_| {}),
        "certificate_wrong_principal",
    );
    denied(
        &certificate(User, &["root "], |_| {}),
        "certificate_wrong_principal",
    );
    denied(
        &certificate(User, &["*"], |_| {}),
        "certificate_wrong_principal",
    );
    let certificate = certificate(User, &[""], |_| {});
    let trust = Trust::new([public(2)]);
    let denied = authorize(&certificate, "", address("::1"), at(NOW), &trust).unwrap_err();
    assert_eq!(denied.code(), "certificate_wrong_principal");
}

#[test]
fn time() {
    let over = |valid: std::ops::Range<u64>| certificate_over(User, &["root"], valid, |_| {});
    assert!(
        decide(&over(NOW..NOW + 1)).is_ok(),
        "the first second counts"
    );
    denied(&over(NOW - 60..NOW), "certificate_expired");
    denied(&over(NOW + 1..NOW + 60), "certificate_not_yet_valid");

    let forever = over(0..u64::MAX);
    assert!(decide(&forever).is_ok());
    let trust = Trust::new([public(2)]);
    let early = std::time::UNIX_EPOCH - Duration::from_secs(5);
    let denied = authorize(&over(NOW..NOW + 1), "root", address("::1"), early, &trust);
    assert_eq!(denied.unwrap_err().code(), "certificate_not_yet_valid");
}

#[test]
fn authority() {
    let certificate = certificate(User, &["root"], |_| {});
    let source = address("fdaa:0:18::2");
    for trust in [
        Trust::default(),
        Trust::new([public(3)]),
        Trust::new([public(1)]),
    ] {
        let denied = authorize(&certificate, "root", source, at(NOW), &trust).unwrap_err();
        assert_eq!(denied.code(), "certificate_ca_unknown");
    }
}

#[test]
fn signature() {
    let bytes = certificate(User, &["root"], |_| {}).to_bytes().unwrap();
    // Grant the name toor instead: the last byte but one of the name, found where it stands.
    let at = bytes
        .windows(4)
        .position(|window| window == b"root")
        .unwrap();
    let mut forged = bytes.clone();
    forged[at..at + 4].copy_from_slice(b"toor");
    let forged = Certificate::from_bytes(&forged).unwrap();
    denied(&forged, "certificate_bad_signature");

    // Any one bit of it counts: it does not parse, or it is refused.
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(certificate) = Certificate::from_bytes(&bytes) {
            assert!(decide(&certificate).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn critical_options() {
    let with = |name: &str, value: &str| {
        certificate(User, &["root"], |builder| {
            builder.critical_option(name, value).unwrap();
        })
    };
    denied(&with("verify-required", ""), "certificate_unknown_option");
    denied(
        &with("app@underpass.example", "web"),
        "certificate_unknown_option",
    );
    denied(&with("Force-Command", "true"), "certificate_unknown_option");
    denied(&with("force-command", ""), "certificate_malformed_option");
    denied(
        &with("force-command", "a\0b"),
        "certificate_malformed_option",
    );
    denied(&with("source-address", ""), "certificate_malformed_option");
    denied(
        &with("source-address", "fdaa:0:18::2,"),
        "certificate_malformed_option",
    );
    denied(
        &with("source-address", "fdaa:0:18::2/48"),
        "certificate_malformed_option",
    );
    denied(
        &with("source-address", "fdaa:0:18::3"),
        "certificate_foreign_source",
    );
    denied(
        &with("source-address", "10.0.0.0/8"),
        "certificate_foreign_source",
    );
    assert!(decide(&with("source-address", "fdaa:0:18::2")).is_ok());
    assert!(decide(&with("source-address", "10.0.0.0/8,fdaa:0:18::/48")).is_ok());
    let forced = decide(&with("force-command", "uptime; true")).unwrap();
    assert_eq!(forced.forced_command(), Some("uptime; true"));
}

/// Options that appear twice, or out of order, do not parse.
#[test]
fn duplicate_options() {
    for name in ["force-command", "source-address"] {
        let value = if name == "force-command" {
            "true"
        } else {
            "::/0"
        };
        let certificate = certificate(User, &["root"], |builder| {
            builder.critical_option(name, value).unwrap();
        });
        let bytes = certificate.to_bytes().unwrap();
        let option = [string(name.as_bytes()), string(&string(value.as_bytes()))].concat();
        let at = bytes
            .windows(option.len())
            .position(|window| window == option)
            .unwrap();
        let mut twice = bytes[..at - 4].to_vec();
        twice.extend(string(&[option.clone(), option.clone()].concat()));
        twice.extend(&bytes[at + option.len()..]);
        assert!(Certificate::from_bytes(&twice).is_err(), "{name}");
    }
}

#[test]
fn unknown_extensions_are_ignored() {
    let certificate = certificate(User, &["root"], |builder| {
        builder
            .extension("permit-teleport@example.com", "yes")
            .unwrap();
        builder.extension("permit-ptyx", "").unwrap();
    });
    assert!(!decide(&certificate).unwrap().permit_pty());
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}
