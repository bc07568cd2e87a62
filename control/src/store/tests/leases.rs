//! Peers: leases, names, keys, bounds, views.

use ring::agreement;

use super::*;

const TTL: Option<Duration> = Some(LEASE_TTL);

#[test]
fn a_lease_is_renewed_by_its_key_and_ends() {
    let (store, acme, _) = two();
    let lease = store.lease_peer(acme.id, None, key(1), at(0), TTL).unwrap();
    assert_eq!(lease.expires, Some(at(600)));
    assert_eq!(lease.address.prefix().len(), 120);
    assert_eq!(lease.network, acme.network);

    let renewed = store
        .lease_peer(acme.id, None, key(1), at(300), TTL)
        .unwrap();
    assert_eq!(
        (&renewed.name, renewed.address),
        (&lease.name, lease.address)
    );
    assert_eq!(renewed.expires, Some(at(900)));
    let shorter = Some(Duration::from_secs(1));
    let kept = store
        .lease_peer(acme.id, None, key(1), at(300), shorter)
        .unwrap();
    assert_eq!(kept.expires, Some(at(900)), "renewing never shortens");

    assert!(store.peer_by_key(key(1), at(899)).unwrap().is_some());
    assert!(
        store.peer_by_key(key(1), at(900)).unwrap().is_none(),
        "before any sweep"
    );
    assert!(store.list_peers(acme.id, at(900)).unwrap().is_empty());
    refused(
        store.remove_peer(acme.id, &lease.name, at(900)),
        "peer_unknown",
    );

    let again = store
        .lease_peer(acme.id, None, key(1), at(901), TTL)
        .unwrap();
    assert_ne!(again.address, lease.address, "an address is nobody's again");
}

#[test]
fn permanent_peers_have_names_and_no_end() {
    let (store, acme, _) = two();
    let laptop = store
        .lease_peer(acme.id, Some("laptop"), key(1), at(0), None)
        .unwrap();
    assert_eq!((laptop.name.as_str(), laptop.expires), ("laptop", None));
    let renewed = store.lease_peer(acme.id, None, key(1), at(5), TTL).unwrap();
    assert_eq!(renewed.expires, None, "permanent stays permanent");
    assert_eq!(store.sweep(at(10_000_000)).unwrap(), 0);
    assert_eq!(
        store
            .remove_peer(acme.id, "laptop", at(10_000_000))
            .unwrap(),
        key(1)
    );
    assert!(store.peer_by_key(key(1), at(6)).unwrap().is_none());
}

#[test]
fn names_and_keys_are_not_stolen() {
    let (store, acme, rival) = two();
    store.create_app(acme.id, "web", at(0)).unwrap();
    store
        .add_instance(acme.id, "web", "ams", key(9), true, at(0))
        .unwrap();
    store
        .lease_peer(acme.id, Some("laptop"), key(1), at(0), TTL)
        .unwrap();

    let stolen_name = store.lease_peer(acme.id, Some("laptop"), key(2), at(0), TTL);
    refused(stolen_name, "name_taken");
    let other_name = store.lease_peer(acme.id, Some("phone"), key(1), at(0), TTL);
    refused(other_name, "key_taken");
    refused(
        store.lease_peer(rival.id, None, key(1), at(0), TTL),
        "key_taken",
    );
    refused(
        store.lease_peer(acme.id, None, key(9), at(0), TTL),
        "key_taken",
    );
    let second = store.create_network(acme.id, "staging", at(0)).unwrap();
    refused(
        store.lease_peer_in(second, None, key(1), at(0), TTL),
        "key_taken",
    );
    let stolen = store.add_instance(acme.id, "web", "ams", key(1), true, at(0));
    refused(stolen, "key_taken");
    refused(
        store.lease_peer(acme.id, None, key(0), at(0), TTL),
        "public_key_invalid",
    );

    // The same name is free in another organisation, and here when the lease has ended.
    store
        .lease_peer(rival.id, Some("laptop"), key(3), at(0), TTL)
        .unwrap();
    store
        .lease_peer(acme.id, Some("laptop"), key(2), at(600), TTL)
        .unwrap();
    store
        .lease_peer(rival.id, None, key(1), at(600), TTL)
        .unwrap();
    refused(store.remove_peer(acme.id, "phone", at(600)), "peer_unknown");
}

#[test]
fn one_organisation_cannot_fill_the_table() {
    let (store, acme, rival) = two();
    let second = store.create_network(acme.id, "staging", at(0)).unwrap();
    for n in 0..MAX_PEERS {
        let network = if n % 2 == 0 { acme.network } else { second };
        store
            .lease_peer_in(network, None, numbered_key(n), at(0), TTL)
            .unwrap();
    }
    refused(
        store.lease_peer(acme.id, None, key(1), at(0), TTL),
        "too_many_peers",
    );
    store
        .lease_peer(acme.id, None, numbered_key(0), at(1), TTL)
        .unwrap();
    store
        .lease_peer(rival.id, None, key(1), at(0), TTL)
        .unwrap();
    assert_eq!(store.sweep(at(600)).unwrap() as u32, MAX_PEERS);
    let addresses = store.list_peers(acme.id, at(600)).unwrap();
    assert_eq!(addresses.len(), 1, "the renewed one");
    store
        .lease_peer(acme.id, None, key(2), at(600), TTL)
        .unwrap();
}

#[test]
fn a_gateway_learns_who_a_key_is() {
    let (store, acme, _) = two();
    store.create_app(acme.id, "web", at(0)).unwrap();
    let instance = store
        .add_instance(acme.id, "web", "ams", key(1), false, at(0))
        .unwrap();
    let lease = store
        .lease_peer(acme.id, Some("laptop"), key(2), at(0), TTL)
        .unwrap();
    let holder = |key| store.peer_by_key(key, at(1)).unwrap();
    assert_eq!(
        holder(key(1)),
        Some(KeyHolder {
            name: instance.id,
            kind: Kind::Instance,
            network: acme.network,
            range: instance.address.prefix(),
            expires: None,
        })
    );
    assert_eq!(
        holder(key(2)),
        Some(KeyHolder {
            name: "laptop".into(),
            kind: Kind::Peer,
            network: acme.network,
            range: lease.address.prefix(),
            expires: Some(at(600)),
        })
    );
    assert_eq!(holder(key(3)), None);
}

#[test]
fn views_hold_live_peers_and_are_kept() {
    let (store, acme, _) = two();
    store
        .lease_peer(acme.id, Some("laptop"), key(1), at(0), TTL)
        .unwrap();
    let view = |seconds| -> Arc<NetworkView> {
        store
            .network_view(acme.network, at(seconds))
            .unwrap()
            .unwrap()
    };
    let first = view(0);
    assert!(Arc::ptr_eq(&first, &view(599)), "kept");
    assert_eq!(first.peers[0].name, "laptop");
    assert_eq!(
        view(600).peers,
        [],
        "no write was needed for a lease to end"
    );
    assert_eq!(view(0).peers.len(), 1, "time ran backwards");
    assert_eq!(first.user_cas, store.user_cas(acme.id).unwrap());
    assert_eq!(first.host_cas, store.host_cas(acme.id).unwrap());
    let nobodys = NetworkId::new(acme.network.get() ^ 1).unwrap();
    assert_eq!(store.network_view(nobodys, at(0)).unwrap(), None);
}

/// Whether X25519 with a key gives a secret. It does not when every private key gives the same.
fn shares_a_secret(key: PublicKey) -> bool {
    let random = ring::rand::SystemRandom::new();
    let ours = agreement::EphemeralPrivateKey::generate(&agreement::X25519, &random).unwrap();
    let theirs = agreement::UnparsedPublicKey::new(&agreement::X25519, key.as_bytes());
    agreement::agree_ephemeral(ours, &theirs, |_| ()).is_ok()
}

#[test]
fn keys_that_share_no_secret_are_refused_whoever_is_to_have_them() {
    let (store, acme, _) = two();
    store.create_app(acme.id, "web", at(0)).unwrap();
    let add = |key| store.add_instance(acme.id, "web", "ams", key, true, at(0));
    let instance = add(key(1)).unwrap().id;

    for text in [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ] {
        let mut bytes = [0; 32];
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap();
        }
        for top in [0, 0x80] {
            bytes[31] |= top;
            let weak = PublicKey(bytes);
            assert!(!shares_a_secret(weak), "{text}");
            let lease = store.lease_peer(acme.id, None, weak, at(0), TTL);
            refused(lease, "public_key_invalid");
            refused(add(weak), "public_key_invalid");
            let changed = store.set_instance_key(&instance, weak, at(0));
            refused(changed, "public_key_invalid");
        }
    }

    // Their neighbours are keys like any other.
    for (first, between, last) in [(2, 0, 0), (9, 0, 0), (0xeb, 0xff, 0x7f), (0xef, 0xff, 0x7f)] {
        let mut bytes = [between; 32];
        (bytes[0], bytes[31]) = (first, last);
        assert!(shares_a_secret(PublicKey(bytes)));
        store
            .lease_peer(acme.id, None, PublicKey(bytes), at(0), TTL)
            .unwrap();
    }
}
