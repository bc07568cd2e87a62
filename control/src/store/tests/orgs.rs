//! Organisations, networks, apps and instances.

use super::*;

#[test]
fn everything_an_organisation_needs_is_there_from_the_start() {
    let (store, acme, rival) = two();
    assert_ne!(acme.network, rival.network);
    let mut cas = BTreeSet::new();
    for org in [&acme, &rival] {
        for lines in [
            store.user_cas(org.id).unwrap(),
            store.host_cas(org.id).unwrap(),
        ] {
            assert_eq!(lines.len(), 1);
            let key = ssh_key::PublicKey::from_openssh(&lines[0]).unwrap();
            cas.insert(key.fingerprint(ssh_key::HashAlg::Sha256).to_string());
        }
    }
    assert_eq!(cas.len(), 4, "each CA is its own");
    refused(store.create_org("acme", at(1)), "name_taken");
    refused(store.org("nobody"), "org_unknown");
    assert_eq!(store.orgs().unwrap(), [acme, rival]);
}

#[test]
fn names_are_labels() {
    let (store, acme, _) = two();
    let long = "a".repeat(64);
    for name in [
        "",
        "-a",
        "a-",
        "A",
        "a.b",
        "a b",
        "ä",
        "a_b",
        "_apps",
        "a;b",
        long.as_str(),
    ] {
        refused(store.create_org(name, at(0)), "name_invalid");
        refused(store.create_app(acme.id, name, at(0)), "name_invalid");
        refused(store.create_network(acme.id, name, at(0)), "name_invalid");
        let lease = store.lease_peer(acme.id, Some(name), key(1), at(0), None);
        refused(lease, "name_invalid");
    }
    store.create_app(acme.id, &long[1..], at(0)).unwrap();
    refused(store.create_app(acme.id, &long[1..], at(0)), "name_taken");
    store.create_app(acme.id, "web", at(0)).unwrap();
    for region in ["global", "regions", "vms", "vm", "process", "of", "Ams", ""] {
        let added = store.add_instance(acme.id, "web", region, key(1), true, at(0));
        refused(added, "name_invalid");
    }
}

#[test]
fn instances_belong_to_one_app_and_have_a_key_and_a_range_of_their_own() {
    let (store, acme, rival) = two();
    store.create_app(acme.id, "web", at(0)).unwrap();
    let a = store
        .add_instance(acme.id, "web", "ams", key(1), true, at(0))
        .unwrap();
    let b = store
        .add_instance(acme.id, "web", "lhr", key(2), false, at(0))
        .unwrap();
    assert_ne!(a.id, b.id);
    assert_eq!((a.address.prefix().len(), a.id.len()), (112, 14));
    assert!(!a.address.prefix().contains(b.address.address()));
    assert!(acme.network.prefix().contains(a.address.address()));

    refused(
        store.add_instance(rival.id, "web", "ams", key(3), true, at(0)),
        "app_unknown",
    );
    refused(
        store.add_instance(acme.id, "nope", "ams", key(3), true, at(0)),
        "app_unknown",
    );
    refused(
        store.add_instance(acme.id, "web", "ams", key(1), true, at(0)),
        "key_taken",
    );

    store.set_instance_started(&b.id, true).unwrap();
    assert!(store.instance(&b.id).unwrap().started);
    assert_eq!(store.apps(acme.id).unwrap()[0].instances.len(), 2);
    assert!(store.apps(rival.id).unwrap().is_empty());

    assert_eq!(
        store.set_instance_key(&a.id, key(7), at(0)).unwrap(),
        key(1)
    );
    refused(store.set_instance_key(&a.id, key(2), at(0)), "key_taken");
    assert_eq!(store.remove_instance(&a.id).unwrap(), key(7));
    for gone in [
        store.instance(&a.id).map(drop),
        store.set_instance_started(&a.id, true),
        store.remove_instance(&a.id).map(drop),
    ] {
        refused(gone, "instance_unknown");
    }
}

#[test]
fn two_networks_of_one_organisation_see_nothing_of_each_other() {
    let (store, acme, _) = two();
    let second = store.create_network(acme.id, "staging", at(0)).unwrap();
    refused(
        store.create_network(acme.id, "staging", at(0)),
        "name_taken",
    );
    store.create_app(acme.id, "web", at(0)).unwrap();
    store.create_app_in(second, "web", at(0)).unwrap();
    let here = store
        .add_instance(acme.id, "web", "ams", key(1), true, at(0))
        .unwrap();
    let there = store
        .add_instance_in(second, "web", "ams", "app", key(2), true, at(0))
        .unwrap();
    assert_eq!((here.network, there.network), (acme.network, second));
    store
        .lease_peer_in(second, Some("laptop"), key(3), at(0), None)
        .unwrap();

    let view = |network| store.network_view(network, at(0)).unwrap().unwrap();
    assert_eq!(view(acme.network).apps[0].instances[0].id, here.id);
    assert_eq!(view(acme.network).peers, []);
    assert_eq!(view(second).apps[0].instances[0].id, there.id);
    assert_eq!(view(second).peers[0].name, "laptop");
    // One organisation: its CAs are trusted in both.
    assert_eq!(view(acme.network).user_cas, view(second).user_cas);
}
