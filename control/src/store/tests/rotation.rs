//! A CA is replaced while what the one before it signed is still trusted.

use ssh_key::{Certificate, HashAlg};

use super::*;
use crate::{Forwarding, UserCertificate};

const SSH_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

fn user_certificate(store: &Store, org: &Org, now: SystemTime) -> Certificate {
    let asked = UserCertificate {
        public_key: SSH_KEY,
        user: "ann",
        principals: None,
        source: None,
        ttl: Duration::from_secs(72 * 3600),
        forwarding: Forwarding {
            ports: false,
            agent: false,
        },
    };
    store.sign_user_certificate(org.id, &asked, now).unwrap()
}

/// Whether a certificate holds at a time for who trusts these lines, and these alone.
fn holds(certificate: &Certificate, lines: &[String], now: SystemTime) -> bool {
    let trusted: Vec<_> = lines
        .iter()
        .map(|line| {
            let key = ssh_key::PublicKey::from_openssh(line).unwrap();
            key.fingerprint(HashAlg::Sha256)
        })
        .collect();
    certificate
        .validate_at(unix(now).cast_unsigned(), &trusted)
        .is_ok()
}

const USERS: &[AuthorityKind] = &[AuthorityKind::User];
const HOSTS: &[AuthorityKind] = &[AuthorityKind::Host];
const DAY: u64 = 24 * 3600;

#[test]
fn the_newest_user_ca_signs_and_the_one_before_is_trusted_until_its_signatures_end() {
    let (store, acme, rival) = two();
    let before = store.user_cas(acme.id).unwrap();
    let others = (
        store.host_cas(acme.id).unwrap(),
        store.user_cas(rival.id).unwrap(),
    );
    let old = user_certificate(&store, &acme, at(1));
    let view = || store.network_view(acme.network, at(1)).unwrap().unwrap();
    assert_eq!(view().user_cas, before);

    let records = store.rotate_authorities(acme.id, USERS, at(1)).unwrap();
    let both = store.user_cas(acme.id).unwrap();
    let said: Vec<_> = records[..2].iter().map(|ca| &ca.public_key).collect();
    assert_eq!(said, both.iter().collect::<Vec<_>>());
    assert_eq!((&both[1], both.len()), (&before[0], 2));
    assert_eq!(
        records.iter().map(|ca| ca.signs).collect::<Vec<_>>(),
        [true, false, true]
    );
    assert_eq!(records[0].retires, None);
    assert_eq!(records[1].retires, Some(at(1 + 3 * DAY)));
    assert_eq!(view().user_cas, both, "names are told of both");
    let new = user_certificate(&store, &acme, at(1));
    assert!(holds(&new, &both[..1], at(2)) && !holds(&new, &before, at(2)));
    assert!(holds(&old, &both, at(2)) && !holds(&old, &both[..1], at(2)));
    for kinds in [USERS, &AuthorityKind::ALL] {
        refused(
            store.rotate_authorities(acme.id, kinds, at(1)),
            "rotation_under_way",
        );
    }

    store.sweep(at(3 * DAY)).unwrap();
    assert_eq!(store.user_cas(acme.id).unwrap(), both, "it is not time yet");
    assert!(holds(&old, &both, at(3 * DAY)));
    store.sweep(at(1 + 3 * DAY)).unwrap();
    assert_eq!(store.user_cas(acme.id).unwrap(), both[..1]);
    assert!(!holds(&old, &both, at(1 + 3 * DAY)), "nothing is cut off");
    assert_eq!(view().user_cas, both[..1]);

    // Neither the other kind nor the neighbour knows of it.
    assert_eq!(store.host_cas(acme.id).unwrap(), others.0);
    assert_eq!(store.user_cas(rival.id).unwrap(), others.1);
}

#[test]
fn a_rotation_is_ended_before_its_time() {
    let (store, acme, _) = two();
    for kinds in [USERS, HOSTS, &AuthorityKind::ALL] {
        refused(
            store.retire_authorities(acme.id, kinds, at(0)),
            "no_rotation",
        );
    }
    let old = user_certificate(&store, &acme, at(1));
    let hosts = store.host_cas(acme.id).unwrap();
    store
        .rotate_authorities(acme.id, &AuthorityKind::ALL, at(1))
        .unwrap();
    let records = store.retire_authorities(acme.id, USERS, at(2)).unwrap();
    assert_eq!(records.len(), 3, "the hosts' older one stays");
    let users = store.user_cas(acme.id).unwrap();
    assert!(!holds(&old, &users, at(2)));
    assert!(holds(
        &user_certificate(&store, &acme, at(2)),
        &users,
        at(2)
    ));
    refused(
        store.retire_authorities(acme.id, USERS, at(2)),
        "no_rotation",
    );
    store
        .retire_authorities(acme.id, &AuthorityKind::ALL, at(2))
        .unwrap();
    let left = store.host_cas(acme.id).unwrap();
    assert!(left.len() == 1 && left != hosts);
    store.rotate_authorities(acme.id, USERS, at(2)).unwrap();
}

/// A person's known hosts are as old as the certificate beside them: a new host CA signs when they
/// all name it, and the older one is told until the last certificate of it has ended.
#[test]
fn a_new_host_ca_is_told_before_it_signs() {
    let (store, acme, _) = two();
    store.create_app(acme.id, "web", at(0)).unwrap();
    let added = store.add_instance(acme.id, "web", "ams", key(1), true, at(0));
    let id = added.unwrap().id;
    let before = store.host_cas(acme.id).unwrap();
    let first = store.sign_host_certificate(&id, SSH_KEY, at(0)).unwrap();
    let renewed = |held: &Certificate, now| store.renew_host_certificate(&id, held, now).unwrap();
    assert_eq!(renewed(&first, at(1)), None);

    let records = store.rotate_authorities(acme.id, HOSTS, at(1)).unwrap();
    let both = store.host_cas(acme.id).unwrap();
    assert_eq!((&both[1], both.len()), (&before[0], 2));
    assert_eq!(
        (records[1].signs, records[1].signs_from),
        (false, at(1 + 3 * DAY))
    );
    assert_eq!(
        (records[2].signs, records[2].retires),
        (true, Some(at(1 + 33 * DAY)))
    );
    let meanwhile = store
        .sign_host_certificate(&id, SSH_KEY, at(3 * DAY))
        .unwrap();
    assert!(holds(&meanwhile, &before, at(3 * DAY)));
    assert_eq!(renewed(&first, at(3 * DAY)), None);

    let new = renewed(&meanwhile, at(1 + 3 * DAY)).expect("another CA signs");
    assert!(holds(&new, &both[..1], at(4 * DAY)) && !holds(&new, &before, at(4 * DAY)));
    store.sweep(at(33 * DAY)).unwrap();
    assert_eq!(store.host_cas(acme.id).unwrap(), both);
    store.sweep(at(1 + 33 * DAY)).unwrap();
    assert_eq!(store.host_cas(acme.id).unwrap(), both[..1]);
}

#[test]
fn a_host_certificate_is_renewed_long_before_its_end() {
    let (store, acme, _) = two();
    store.create_app(acme.id, "web", at(0)).unwrap();
    let added = store.add_instance(acme.id, "web", "ams", key(1), true, at(0));
    let id = added.unwrap().id;
    let held = store.sign_host_certificate(&id, SSH_KEY, at(0)).unwrap();
    for (day, due) in [(1, false), (9, false), (11, true), (29, true), (31, true)] {
        let next = store
            .renew_host_certificate(&id, &held, at(day * DAY))
            .unwrap();
        assert_eq!(next.is_some(), due, "after {day} days");
        if let Some(next) = next {
            assert_eq!(next.public_key(), held.public_key());
            assert!(next.valid_before() > held.valid_before());
        }
    }
}

#[test]
fn there_is_no_ca_without_an_organisation() {
    let (store, _, rival) = two();
    let nobody = OrgId(rival.id.0 + 1);
    for kinds in [USERS, HOSTS, &[]] {
        refused(
            store.rotate_authorities(nobody, kinds, at(0)),
            "org_unknown",
        );
        refused(
            store.retire_authorities(nobody, kinds, at(0)),
            "org_unknown",
        );
    }
}
