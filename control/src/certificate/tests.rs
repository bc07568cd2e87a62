//! Certificates, read back by this program's library and by OpenSSH's own.

use std::{
    fs,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ssh_key::{Certificate, PublicKey};
use wire::PublicKey as PeerKey;

use super::{Forwarding, UserCertificate};
use crate::{Error, Instance, LEASE_TTL, Org, Store};

const ED25519: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2mFVc5RKtEJyHHKvcy1WeK53i3TXi35HZ5eQhrf2ue ann@home";
const P256: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBOLa3Ks9DhlIkt2rjmEk2/7AOhulu1gWiUiMvqRwQyvILBvViys/pDCiwgnt5YSdu7VPdAkE/WW0fVfkvLEHG7Q=";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn acme() -> (Store, Org, Instance) {
    let store = Store::open_in_memory().unwrap();
    let org = store.create_org("acme", now()).unwrap();
    store.create_app(org.id, "web", now()).unwrap();
    let key = PeerKey([1; 32]);
    let instance = store
        .add_instance(org.id, "web", "ams", key, true, now())
        .unwrap();
    (store, org, instance)
}

fn asked() -> UserCertificate<'static> {
    UserCertificate {
        public_key: ED25519,
        user: "ann",
        principals: None,
        source: None,
        ttl: Duration::from_secs(24 * 3600),
        forwarding: Forwarding::default(),
    }
}

/// What `ssh-keygen -L` says, without the lines that are random.
fn as_openssh_sees_it(certificate: &Certificate) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("id-cert.pub");
    fs::write(&path, certificate.to_openssh().unwrap()).unwrap();
    let output = Command::new("ssh-keygen")
        .args(["-L", "-f"])
        .arg(&path)
        .env("TZ", "UTC")
        .output()
        .expect("ssh-keygen of openssh-client");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().skip(1).map(|line| {
        let random = ["Serial:", "Signing CA:"]
            .iter()
            .find(|word| line.contains(*word));
        random.map_or_else(|| line.to_owned(), |word| format!("        {word} ..."))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether stock OpenSSH takes the certificate as signed by one of these CAs.
fn signed_by(certificate: &Certificate, cas: &[String]) -> bool {
    cas.iter().any(|line| {
        let ca = PublicKey::from_openssh(line).unwrap();
        let fingerprint = ca.fingerprint(ssh_key::HashAlg::Sha256);
        certificate
            .validate_at(1_800_000_000, [&fingerprint])
            .is_ok()
    })
}

#[test]
fn a_free_certificate() {
    let (store, org, _) = acme();
    let certificate = store
        .sign_user_certificate(org.id, &asked(), now())
        .unwrap();
    assert!(signed_by(&certificate, &store.user_cas(org.id).unwrap()));
    assert!(!signed_by(&certificate, &store.host_cas(org.id).unwrap()));
    insta::assert_snapshot!(as_openssh_sees_it(&certificate));
}

#[test]
fn a_certificate_with_all_that_can_be_asked_for() {
    let (store, org, _) = acme();
    let principals = ["deploy".to_owned(), "root".to_owned()];
    let asked = UserCertificate {
        public_key: P256,
        principals: Some(&principals),
        ttl: Duration::from_secs(72 * 3600),
        forwarding: Forwarding {
            ports: true,
            agent: true,
        },
        ..asked()
    };
    let certificate = store.sign_user_certificate(org.id, &asked, now()).unwrap();
    insta::assert_snapshot!(as_openssh_sees_it(&certificate));
}

#[test]
fn a_console_certificate_is_bound_to_its_peer() {
    let (store, org, _) = acme();
    let key = PeerKey([2; 32]);
    let lease = store
        .lease_peer(org.id, None, key, now(), Some(LEASE_TTL))
        .unwrap();
    let address = lease.address.address();
    let console = UserCertificate {
        source: Some(address),
        ttl: Duration::from_secs(3600),
        ..asked()
    };
    let certificate = store
        .sign_user_certificate(org.id, &console, now())
        .unwrap();
    let options = certificate.critical_options();
    assert_eq!(
        options.get("source-address"),
        Some(&format!("{address}/128"))
    );
    assert_eq!(options.len(), 1);
    assert!(as_openssh_sees_it(&certificate).contains(&format!("source-address {address}/128")));
    assert_eq!(certificate.valid_before(), 1_800_000_000 + 3600);

    let rival = store.create_org("rival", now()).unwrap();
    let later = now() + LEASE_TTL;
    let mut neighbour = address.octets();
    neighbour[15] += 1;
    for (org, source, now) in [
        (rival.id, address, now()),
        (org.id, neighbour.into(), now()),
        (org.id, address, later),
        (org.id, org.network.dns(), now()),
    ] {
        let asked = UserCertificate {
            source: Some(source),
            ..console.clone()
        };
        let refused = store.sign_user_certificate(org, &asked, now).unwrap_err();
        assert_eq!(refused.code(), "peer_unknown");
    }
}

#[test]
fn a_host_certificate_has_every_name_that_is_dialled() {
    let (store, org, instance) = acme();
    let certificate = store
        .sign_host_certificate(&instance.id, ED25519, now())
        .unwrap();
    assert!(signed_by(&certificate, &store.host_cas(org.id).unwrap()));
    assert!(!signed_by(&certificate, &store.user_cas(org.id).unwrap()));
    let shown = as_openssh_sees_it(&certificate)
        .replace(&instance.id, "INSTANCE")
        .replace(&instance.address.address().to_string(), "ADDRESS");
    insta::assert_snapshot!(shown);
    let unknown = store
        .sign_host_certificate("nope", ED25519, now())
        .unwrap_err();
    assert_eq!(unknown.code(), "instance_unknown");
}

#[test]
fn serials_are_drawn() {
    let (store, org, _) = acme();
    let serial = || {
        store
            .sign_user_certificate(org.id, &asked(), now())
            .unwrap()
            .serial()
    };
    assert_ne!(serial(), serial());
}

#[test]
fn what_is_not_signed() {
    let (store, org, instance) = acme();
    let code = |asked: &UserCertificate<'_>| {
        store
            .sign_user_certificate(org.id, asked, now())
            .unwrap_err()
            .code()
    };
    let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC5 ann";
    for (line, expected) in [
        ("", "key_unreadable"),
        ("hello", "key_unreadable"),
        ("ssh-ed25519", "key_unreadable"),
        ("ssh-ed25519 AAAA", "key_unreadable"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA==", "key_unreadable"),
        (&format!("{ED25519}\n{ED25519}"), "key_unreadable"),
        (&format!("{ED25519} {}", "x".repeat(2000)), "key_unreadable"),
        // A P-256 key under another name.
        (
            &P256.replace("ecdsa-sha2-nistp256 ", "ssh-ed25519 "),
            "key_unreadable",
        ),
        (rsa, "key_refused"),
        ("ssh-dss AAAA", "key_refused"),
        ("ecdsa-sha2-nistp384 AAAA", "key_refused"),
        ("sk-ssh-ed25519@openssh.com AAAA", "key_refused"),
        ("ssh-ed25519-cert-v01@openssh.com AAAA", "key_refused"),
    ] {
        let asked = UserCertificate {
            public_key: line,
            ..asked()
        };
        assert_eq!(code(&asked), expected, "{line}");
        let host = store
            .sign_host_certificate(&instance.id, line, now())
            .unwrap_err();
        assert_eq!(host.code(), expected, "{line}");
    }
    let refused = store
        .sign_user_certificate(
            org.id,
            &UserCertificate {
                public_key: rsa,
                ..asked()
            },
            now(),
        )
        .unwrap_err();
    assert!(matches!(&refused, Error::KeyRefused(kind) if kind == "ssh-rsa"));
    assert!(
        refused
            .to_string()
            .ends_with("hint: make one that is: ssh-keygen -t ed25519")
    );

    for hours in [0, 73, 1000] {
        let ttl = Duration::from_secs(hours * 3600);
        assert_eq!(
            code(&UserCertificate { ttl, ..asked() }),
            "hours_out_of_range"
        );
    }
    let many: Vec<String> = (0..17).map(|n| format!("user{n}")).collect();
    let list = |names: &[&str]| {
        names
            .iter()
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>()
    };
    for principals in [
        vec![],
        many,
        list(&[""]),
        list(&["root", ""]),
        list(&["*"]),
        list(&["root,admin"]),
        list(&["ro ot"]),
        list(&["root\n"]),
        list(&["-root"]),
        list(&["\u{e9}"]),
        list(&[&"x".repeat(33)]),
    ] {
        let asked = UserCertificate {
            principals: Some(&principals),
            ..asked()
        };
        assert_eq!(code(&asked), "principals_invalid", "{principals:?}");
    }
    assert_eq!(
        code(&UserCertificate {
            user: "a;org=x",
            ..asked()
        }),
        "name_invalid"
    );
}
