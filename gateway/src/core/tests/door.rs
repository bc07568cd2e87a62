//! Strangers, replays and crowds at the door.

use std::{net::SocketAddr, time::Duration};

use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{FixedOutput, KeyInit, Update, consts::U16},
};
use tunnel::peer::{HandshakeFailure, Peer, PeerConfig, PeerEvent};

use super::bench::*;
use crate::{DropReason, Limits, Lookup};

/// A fresh initiation of somebody.
fn initiation(bench: &mut Bench, id: Id) -> Vec<u8> {
    let now = bench.now;
    bench.get(id).peer.initiate(now);
    bench.datagrams(id).remove(0)
}

/// Gives a changed initiation a valid mac1.
fn seal(initiation: &mut [u8]) {
    let digest = Blake2s256::new().chain_update(b"mac1----");
    let key = digest
        .chain_update(key(GATEWAY_KEY).public().as_bytes())
        .finalize();
    let mac = Blake2sMac::<U16>::new_from_slice(&key).expect("a key");
    let mac = mac.chain(&initiation[..116]).finalize_fixed();
    initiation[116..132].copy_from_slice(&mac);
}

#[test]
fn a_peer_is_installed_on_demand_by_its_first_initiation() {
    let mut bench = Bench::new();
    let a = bench.connected(1, 1);
    assert_eq!(bench.lookups, [bench.clients[0].key]);
    assert_eq!(
        bench
            .get(a)
            .events
            .iter()
            .filter(|e| **e == PeerEvent::HandshakeStarted)
            .count(),
        1
    );
    let status = bench.gateway.peers(bench.now);
    assert_eq!(status.len(), 1);
    assert!(status[0].connected);
    assert_eq!(status[0].endpoint, Some(bench.clients[0].at));
    assert_eq!(status[0].name, "client-1");
    bench.connect(a);
    assert_eq!(bench.lookups.len(), 1, "it is known from then on");
    assert_eq!(bench.drops(), []);
}

#[test]
fn an_unknown_key_gets_no_answer_and_is_not_asked_about_again_soon() {
    let mut bench = Bench::new();
    let a = bench.stranger(1, 1);
    let now = bench.now;
    bench.get(a).peer.initiate(now);
    bench.pass(Duration::from_millis(4900));
    assert_eq!(bench.lookups.len(), 1);
    assert_eq!(
        bench.dropped(DropReason::UnknownPeer),
        5,
        "every initiation is counted"
    );
    assert!(bench.strays.is_empty());
    bench.pass(Duration::from_millis(600));
    let reason = HandshakeFailure::NoAnswer;
    assert!(
        bench
            .get(a)
            .events
            .contains(&PeerEvent::HandshakeFailed { reason })
    );
    assert_eq!(
        bench.lookups.len(),
        2,
        "asked again after five seconds: {:?}",
        bench.drops()
    );

    let grant = bench.grant(1, 1);
    bench.directory.insert(grant.key, grant.clone());
    bench.connect_fails(a);
    let now = bench.now;
    bench.gateway.changed(now, grant.key);
    bench.connect(a);
}

#[test]
fn a_directory_that_is_away_is_asked_again_soon() {
    let mut bench = Bench::new();
    let a = bench.client(1, 1);
    bench.available = false;
    bench.connect_fails(a);
    assert_eq!(bench.dropped(DropReason::LookupUnavailable), 1);
    bench.available = true;
    bench.pass(Duration::from_millis(1100));
    bench.connect(a);
}

#[test]
fn a_record_that_cannot_be_right_is_refused() {
    let mut bench = Bench::new();
    let a = bench.client(1, 1);
    let grant = bench.grant(1, 1);
    for range in [
        "fdaa:0:1::/112",
        "fdaa:0:1:1::/64",
        "fdaa::/120",
        "fd00:0:1:0:1:0:1:0/120",
    ] {
        let range = range.parse().expect("a range");
        bench.directory.insert(
            grant.key,
            crate::Grant {
                range,
                ..grant.clone()
            },
        );
        bench.connect_fails(a);
        bench.pass(Duration::from_secs(6));
    }
    let expired = crate::Grant {
        expires: Some(bench.now),
        ..grant.clone()
    };
    bench.directory.insert(grant.key, expired);
    bench.connect_fails(a);
    assert_eq!(bench.gateway.peers(bench.now), []);
    assert!(bench.dropped(DropReason::InvalidRecord) >= 5);
    assert_eq!(bench.lookups.first(), bench.lookups.last());
}

#[test]
fn a_replayed_initiation_changes_nothing() {
    let mut bench = Bench::new();
    let (a, b) = (bench.client(1, 1), bench.connected(1, 2));
    let first = initiation(&mut bench, a);
    let (now, home) = (bench.now, bench.get(a).at);
    bench.gateway.handle_datagram(now, home, &first);
    bench.settle();
    let attacker: SocketAddr = "203.0.113.66:6".parse().expect("an address");
    bench.gateway.handle_datagram(now, attacker, &first);
    bench.settle();
    assert!(bench.strays.is_empty(), "no answer to a replay");
    assert_eq!(bench.dropped(DropReason::HandshakeRefused), 1);

    // To a gateway that was restarted it looks fresh. It is answered; it proves nothing.
    let peer = bench.get(a).key;
    bench.gateway.revoke(now, peer);
    bench.gateway.changed(now, peer);
    bench.gateway.handle_datagram(now, attacker, &first);
    bench.settle();
    assert_eq!(bench.strays.len(), 1);
    assert_eq!(bench.gateway.peers(now).len(), 1, "the other client alone");
    let (from, to) = (bench.get(b).address, bench.get(a).address);
    bench.send(b, &packet(from, to, 60));
    assert_eq!(icmp(&bench.received(b).remove(0)), (network(1).dns(), 1, 3));
    bench.connect(a);
    assert_eq!(bench.gateway.peers(now).len(), 2);
}

#[test]
fn an_initiation_that_only_names_a_peer_evicts_and_installs_nobody() {
    let mut bench = Bench::new();
    let a = bench.client(1, 1);
    let attacker: SocketAddr = "203.0.113.66:6".parse().expect("an address");
    let mut forged = initiation(&mut bench, a);
    // The timestamp, which is what the peer's private key vouches for.
    forged[100] ^= 1;
    seal(&mut forged);
    let now = bench.now;
    bench.gateway.handle_datagram(now, attacker, &forged);
    bench.settle();
    assert_eq!(bench.lookups.len(), 1);
    assert_eq!(bench.dropped(DropReason::HandshakeRefused), 1);
    assert_eq!(bench.gateway.table.len(), 0);
    bench.connect(a);
    bench.gateway.handle_datagram(now, attacker, &forged);
    bench.settle();
    assert!(bench.strays.is_empty());
    let (address, dns) = (bench.get(a).address, network(1).dns());
    bench.send(a, &packet(address, dns, 60));
    assert_eq!(
        bench.received(a).len(),
        1,
        "its session stands (unknown next header)"
    );
}

#[test]
fn a_peer_that_proves_nothing_is_forgotten() {
    let mut bench = Bench::new();
    let a = bench.client(1, 1);
    let first = initiation(&mut bench, a);
    let (now, attacker) = (bench.now, "203.0.113.66:6".parse().expect("an address"));
    bench.gateway.handle_datagram(now, attacker, &first);
    bench.settle();
    assert_eq!(bench.gateway.table.len(), 1);
    let home = bench.get(a).at;
    bench.dead.insert(home);
    bench.pass(Duration::from_secs(11));
    assert_eq!(bench.gateway.table.len(), 0);
    assert_eq!(
        bench.events,
        [],
        "nothing is audited before a handshake is complete"
    );
}

#[test]
fn a_preshared_key_has_to_match() {
    let mut bench = Bench::new();
    let a = bench.client(1, 1);
    let peer = bench.get(a).key;
    bench.directory.get_mut(&peer).expect("known").preshared = Some([5; 32]);
    bench.connect_fails(a);
    assert_eq!(bench.gateway.peers(bench.now), []);
    let config = PeerConfig {
        preshared: Some([5; 32]),
        ..PeerConfig::client(key(1), key(GATEWAY_KEY).public())
    };
    let now = bench.now;
    bench.get(a).peer = Peer::new(config, now);
    bench.connect(a);
}

#[test]
fn under_load_a_cookie_is_asked_for_and_taken() {
    let limits = Limits {
        handshakes_per_second: 1,
        ..Limits::default()
    };
    let mut bench = Bench::with(limits, &[]);
    bench.connected(1, 1);
    let b = bench.client(1, 2);
    bench.connect_fails(b);
    assert_eq!(bench.dropped(DropReason::CookieSent), 1);
    assert_eq!(bench.lookups.len(), 1, "no work before the cookie");
    bench.connect(b);

    let c = bench.client(1, 3);
    bench.connect_fails(c);
    let now = bench.now;
    for _ in 0..100 {
        let shown = initiation(&mut bench, c);
        let at = bench.get(c).at;
        bench.gateway.handle_datagram(now, at, &shown);
        while bench.gateway.poll_transmit().is_some() {}
    }
    assert!(
        bench.dropped(DropReason::SourceBudget) > 50,
        "a cookie is no licence to flood"
    );
}

#[test]
fn a_source_names_a_bounded_number_of_unknown_keys() {
    let limits = Limits {
        handshakes_per_second: 10_000,
        ..Limits::default()
    };
    let mut bench = Bench::with(limits, &["192.0.2.200"]);
    let flood: SocketAddr = "203.0.113.66:6".parse().expect("an address");
    let now = bench.now;
    let name_keys = |bench: &mut Bench, from: &dyn Fn(u8) -> SocketAddr| {
        let before = bench.lookups.len();
        for seed in 0..100 {
            let config = PeerConfig::client(key(seed), key(GATEWAY_KEY).public());
            let mut stranger = Peer::new(config, now);
            stranger.initiate(now);
            let initiation = stranger.poll_transmit().expect("an initiation");
            bench.gateway.handle_datagram(now, from(seed), &initiation);
            bench.settle();
        }
        bench.lookups.len() - before
    };
    assert_eq!(name_keys(&mut bench, &|_| flood), 32);
    assert_eq!(bench.dropped(DropReason::CookieSent), 68);
    bench.pass(Duration::from_secs(6));
    let now = bench.now;
    let _ = now;
    let a = bench.client(1, 1);
    bench.connect(a);

    // The sessions of a relay share its address, not its budget.
    let mut bench = Bench::with(limits, &["192.0.2.200"]);
    let session = |seed: u8| SocketAddr::new([192, 0, 2, 200].into(), 1000 + u16::from(seed));
    assert_eq!(name_keys(&mut bench, &session), 100);
}

#[test]
fn one_flight_per_key_and_its_waiting_room_is_small() {
    let mut bench = Bench::new();
    let a = bench.client(1, 1);
    let (now, at) = (bench.now, bench.get(a).at);
    let peer = bench.get(a).key;
    for _ in 0..6 {
        let copy = initiation(&mut bench, a);
        bench.gateway.handle_datagram(now, at, &copy);
    }
    assert_eq!(bench.gateway.poll_lookup(), Some(peer));
    assert_eq!(bench.gateway.poll_lookup(), None);
    assert_eq!(bench.dropped(DropReason::FlightFull), 2);
    // The lookup never lands; another one is possible later.
    bench.gateway.handle_timeout(now + Duration::from_secs(16));
    assert_eq!(bench.dropped(DropReason::LookupUnavailable), 4);
    bench.now = now + Duration::from_secs(16);
    bench.connect(a);
}

/// A client's initiation is at the door and its key's record has been read, not yet told.
fn asked_about(bench: &mut Bench, id: Id) -> Lookup {
    let first = initiation(bench, id);
    let (now, at, key) = (bench.now, bench.get(id).at, bench.get(id).key);
    bench.gateway.handle_datagram(now, at, &first);
    assert_eq!(bench.gateway.poll_lookup(), Some(key));
    let grant = bench.directory.get(&key).cloned();
    grant.map_or(Lookup::Unknown, Lookup::Known)
}

#[test]
fn an_answer_read_before_a_revocation_installs_nobody() {
    let mut bench = Bench::new();
    let a = bench.client(1, 1);
    let (now, key) = (bench.now, bench.get(a).key);
    let read = asked_about(&mut bench, a);
    bench.directory.remove(&key);
    bench.gateway.revoke(now, key);
    bench.gateway.handle_lookup(now, key, read);
    assert_eq!(bench.gateway.table.len(), 0);
    assert_eq!(bench.dropped(DropReason::LookupStale), 1);
    bench.settle();
    assert_eq!(bench.lookups, [key], "asked again");
    assert_eq!(bench.gateway.table.len(), 0);
    assert_eq!(bench.dropped(DropReason::UnknownPeer), 1);

    // The same where a peer that is known is looked up.
    let b = bench.connected(1, 2);
    let key = bench.get(b).key;
    let read = Lookup::Known(bench.grant(1, 2));
    bench.gateway.changed(now, key);
    assert_eq!(bench.gateway.poll_lookup(), Some(key));
    bench.directory.remove(&key);
    bench.gateway.revoke(now, key);
    bench.gateway.handle_lookup(now, key, read);
    bench.settle();
    assert_eq!(bench.gateway.table.len(), 0);
}

#[test]
fn an_answer_read_before_a_change_is_not_believed() {
    let mut bench = Bench::new();
    let a = bench.stranger(1, 1);
    let now = bench.now;
    let read = asked_about(&mut bench, a);
    let grant = bench.grant(1, 1);
    bench.directory.insert(grant.key, grant.clone());
    bench.gateway.changed(now, grant.key);
    bench.gateway.handle_lookup(now, grant.key, read);
    bench.settle();
    assert!(bench.get(a).peer.has_session(), "its initiation waited");

    // Nothing was read yet: nothing is asked twice.
    let b = bench.client(1, 2);
    let first = initiation(&mut bench, b);
    let (at, key) = (bench.get(b).at, bench.get(b).key);
    bench.gateway.handle_datagram(now, at, &first);
    bench.gateway.changed(now, key);
    bench.lookups.clear();
    bench.settle();
    assert_eq!(bench.lookups, [key]);
    assert!(bench.get(b).peer.has_session());
}

#[test]
fn an_answer_that_nobody_waits_for_installs_nobody() {
    let mut bench = Bench::new();
    let a = bench.client(1, 1);
    let key = bench.get(a).key;
    let read = asked_about(&mut bench, a);
    let now = bench.now + Duration::from_secs(16);
    bench.gateway.handle_timeout(now);
    bench.gateway.handle_lookup(now, key, read);
    assert_eq!(bench.gateway.table.len(), 0);
    assert_eq!(bench.dropped(DropReason::LookupStale), 1);
}

#[test]
fn peers_are_bounded_and_those_that_proved_themselves_stay() {
    let limits = Limits {
        peers: 2,
        ..Limits::default()
    };
    let mut bench = Bench::with(limits, &[]);
    bench.connected(1, 1);
    bench.connected(1, 2);
    let c = bench.client(1, 3);
    bench.connect_fails(c);
    assert_eq!(bench.dropped(DropReason::PeersFull), 1);
    assert_eq!(bench.gateway.peers(bench.now).len(), 2);
}

#[test]
fn in_a_crowd_of_unproven_peers_a_cookie_is_asked_for() {
    let limits = Limits {
        unproven: 2,
        ..Limits::default()
    };
    let mut bench = Bench::with(limits, &[]);
    let a = bench.client(1, 1);
    let stray: SocketAddr = "203.0.113.66:6".parse().expect("an address");
    let (now, first) = (bench.now, initiation(&mut bench, a));
    bench.gateway.handle_datagram(now, stray, &first);
    bench.settle();
    let b = bench.client(1, 2);
    bench.connect_fails(b);
    assert_eq!(bench.dropped(DropReason::CookieSent), 1);
    bench.connect(b);
}

impl Bench {
    /// One initiation that comes to nothing.
    fn connect_fails(&mut self, id: Id) {
        let now = self.now;
        self.get(id).peer.initiate(now);
        self.settle();
        assert!(
            !self.get(id).peer.has_session(),
            "client {id:?} has a session"
        );
    }
}
