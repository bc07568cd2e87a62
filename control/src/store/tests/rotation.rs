//! A CA is replaced while what the one before it signed is still trusted.

use ssh_key::{Certificate, HashAlg};

use super::*;
use crate::{Forwarding, UserCertificate};

const SSH_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

fn user_certificate(store: &Store, org: &Org) -> Certificate {
    let asked = UserCertificate {
        public_key: SSH_KEY,
        user: "ann",
        principals: None,
        source: None,
        ttl: Duration::from_secs(3600),
        forwarding: Forwarding {
            ports: false,
            agent: false,
        },
    };
    store.sign_user_certificate(org.id, &asked, at(1)).unwrap()
}

/// Whether a certificate holds for who trusts these lines, and these alone.
fn holds(certificate: &Certificate, lines: &[String]) -> bool {
    let trusted: Vec<_> = lines
        .iter()
        .map(|line| {
            let key = ssh_key::PublicKey::from_openssh(line).unwrap();
            key.fingerprint(HashAlg::Sha256)
        })
        .collect();
    certificate
        .validate_at(unix(at(2)).cast_unsigned(), &trusted)
        .is_ok()
}

#[test]
fn the_newest_ca_signs_and_the_one_before_is_trusted_until_it_is_retired() {
    let (store, acme, rival) = two();
    let before = store.user_cas(acme.id).unwrap();
    let others = (
        store.host_cas(acme.id).unwrap(),
        store.user_cas(rival.id).unwrap(),
    );
    let old = user_certificate(&store, &acme);
    let view = || store.network_view(acme.network, at(1)).unwrap().unwrap();
    assert_eq!(view().user_cas, before);

    let line = store
        .rotate_authority(acme.id, AuthorityKind::User, at(1))
        .unwrap();
    let both = store.user_cas(acme.id).unwrap();
    assert_eq!(both, [line.clone(), before[0].clone()]);
    assert_ne!(both[0], both[1]);
    assert_eq!(view().user_cas, both, "names are told of both");
    let new = user_certificate(&store, &acme);
    assert!(holds(&new, &both[..1]) && !holds(&new, &before));
    assert!(holds(&old, &both) && !holds(&old, &both[..1]));
    refused(
        store.rotate_authority(acme.id, AuthorityKind::User, at(1)),
        "rotation_under_way",
    );

    let retired = store.retire_authority(acme.id, AuthorityKind::User);
    assert_eq!(retired.unwrap(), before[0]);
    assert_eq!(store.user_cas(acme.id).unwrap(), [line]);
    assert_eq!(view().user_cas, both[..1]);
    assert!(holds(&user_certificate(&store, &acme), &both[..1]));
    refused(
        store.retire_authority(acme.id, AuthorityKind::User),
        "no_rotation",
    );
    store
        .rotate_authority(acme.id, AuthorityKind::User, at(2))
        .unwrap();

    // Neither the other kind nor the neighbour knows of it.
    assert_eq!(store.host_cas(acme.id).unwrap(), others.0);
    assert_eq!(store.user_cas(rival.id).unwrap(), others.1);
}

#[test]
fn a_host_ca_is_rotated_as_a_users_is() {
    let (store, acme, _) = two();
    store.create_app(acme.id, "web", at(0)).unwrap();
    let added = store.add_instance(acme.id, "web", "ams", key(1), true, at(0));
    let id = added.unwrap().id;
    let before = store.host_cas(acme.id).unwrap();
    let line = store
        .rotate_authority(acme.id, AuthorityKind::Host, at(1))
        .unwrap();
    let both = store.host_cas(acme.id).unwrap();
    assert_eq!(both, [line.clone(), before[0].clone()]);
    let certificate = store.sign_host_certificate(&id, SSH_KEY, at(1)).unwrap();
    assert!(holds(&certificate, &both[..1]) && !holds(&certificate, &before));
    store
        .retire_authority(acme.id, AuthorityKind::Host)
        .unwrap();
    assert_eq!(store.host_cas(acme.id).unwrap(), [line]);
}

#[test]
fn there_is_no_ca_without_an_organisation() {
    let (store, _, rival) = two();
    let nobody = OrgId(rival.id.0 + 1);
    for kind in [AuthorityKind::User, AuthorityKind::Host] {
        refused(store.rotate_authority(nobody, kind, at(0)), "org_unknown");
        refused(store.retire_authority(nobody, kind), "org_unknown");
    }
}
