use ssh_key::certificate::CertType::{Host, User};

use super::*;
use crate::fixture::{NOW, at, certificate, certificate_over, public};

const NAMES: &[&str] = &[
    "0a1b2c.vm.web.internal",
    "web.internal",
    "fdaa:0:18:a7b:d6b::2",
];

fn decide(certificate: &Certificate, dialled: &str) -> Result<VerifiedHost, HostDenied> {
    verify_host(
        certificate,
        &Dialled::parse(dialled),
        at(NOW),
        &[public(3), public(2)],
    )
}

#[track_caller]
fn denied(certificate: &Certificate, dialled: &str, code: &str) {
    let denied = decide(certificate, dialled).expect_err(code);
    assert_eq!(denied.code(), code);
    assert!(!denied.hint().is_empty());
}

#[test]
fn what_was_dialled() {
    let certificate = certificate(Host, NAMES, |_| {});
    assert_eq!(
        decide(&certificate, "web.internal").unwrap().principal(),
        "web.internal"
    );
    assert!(decide(&certificate, "WEB.Internal").is_ok());
    assert!(decide(&certificate, "web.internal.").is_ok());
    assert!(decide(&certificate, "fdaa:0:18:a7b:d6b::2").is_ok());
    assert!(decide(&certificate, "[fdaa:0:18:0a7b:0d6b:0:0:2]").is_ok());
    for other in [
        "db.internal",
        "internal",
        "web",
        "b.internal",
        "xweb.internal",
        "",
        ".",
        "*",
    ] {
        denied(&certificate, other, "host_principal_mismatch");
    }
    denied(
        &certificate,
        "fdaa:0:18:a7b:d6b::3",
        "host_principal_mismatch",
    );
}

#[test]
fn no_wildcards() {
    let certificate = certificate(Host, &["*", "*.internal", "web.*"], |_| {});
    denied(&certificate, "web.internal", "host_principal_mismatch");
}

#[test]
fn a_name_that_looks_like_an_address_is_one() {
    let certificate = certificate(Host, &["::ffff:192.0.2.1"], |_| {});
    assert!(decide(&certificate, "192.0.2.1").is_ok());
}

#[test]
fn the_rest() {
    denied(
        &certificate(User, NAMES, |_| {}),
        "web.internal",
        "host_certificate_wrong_type",
    );
    denied(
        &certificate(Host, &[], |_| {}),
        "web.internal",
        "host_principals_missing",
    );
    let expired = certificate_over(Host, NAMES, NOW - 60..NOW, |_| {});
    denied(&expired, "web.internal", "host_certificate_expired");
    let future = certificate_over(Host, NAMES, NOW + 1..NOW + 60, |_| {});
    denied(&future, "web.internal", "host_certificate_not_yet_valid");
    let critical = certificate(Host, NAMES, |builder| {
        builder.critical_option("source-address", "::/0").unwrap();
    });
    denied(&critical, "web.internal", "host_certificate_unknown_option");
    let ok = certificate(Host, NAMES, |_| {});
    let unknown = verify_host(&ok, &Dialled::parse("web.internal"), at(NOW), &[public(3)]);
    assert_eq!(unknown.unwrap_err().code(), "host_ca_unknown");
}
