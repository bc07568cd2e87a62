//! Two peers back to back. The engine's clock stands still beside `now`: what is tested of time
//! here is this module's own schedule.

use std::{net::SocketAddr, sync::Arc};

use proptest::prelude::*;

use super::*;

const GATEWAY_INDEX: u32 = 0x00ab_cdef;

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

fn at(millis: u64) -> Instant {
    Instant::from_micros(millis * 1000)
}

/// An IPv6 packet of `len` bytes with a recognisable payload.
fn packet(len: usize, fill: u8) -> Vec<u8> {
    let mut packet = vec![fill; len.max(40)];
    packet[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    let payload = u16::try_from(packet.len() - 40).expect("a packet fits");
    packet[4..6].copy_from_slice(&payload.to_be_bytes());
    packet
}

fn client() -> Peer {
    Peer::new(PeerConfig::client(key(1), key(2).public()), at(0))
}

fn server(preshared: Option<[u8; 32]>, limiter: Option<Arc<Limiter>>) -> Peer {
    let config = PeerConfig {
        local: key(2),
        remote: key(1).public(),
        preshared,
        keepalive: None,
        index: GATEWAY_INDEX,
        limiter,
        fast_retry: false,
    };
    Peer::new(config, at(0))
}

/// Carries datagrams both ways until none is left.
fn settle(now: Instant, a: &mut Peer, b: &mut Peer) {
    loop {
        let mut moved = false;
        while let Some(datagram) = a.poll_transmit() {
            let _ = b.handle_datagram(now, None, &datagram);
            moved = true;
        }
        while let Some(datagram) = b.poll_transmit() {
            let _ = a.handle_datagram(now, None, &datagram);
            moved = true;
        }
        if !moved {
            return;
        }
    }
}

fn joined() -> (Peer, Peer) {
    let (mut a, mut b) = (client(), server(None, None));
    a.initiate(at(0));
    settle(at(30), &mut a, &mut b);
    (a, b)
}

fn events(peer: &mut Peer) -> Vec<PeerEvent> {
    std::iter::from_fn(|| peer.poll_event()).collect()
}

#[test]
fn a_handshake_and_data_both_ways() {
    let (mut a, mut b) = (client(), server(None, None));
    a.send_packet(at(0), &packet(100, 7));
    settle(at(30), &mut a, &mut b);
    let rtt = Some(Duration::from_millis(30));
    assert_eq!(
        events(&mut a),
        [
            PeerEvent::HandshakeStarted,
            PeerEvent::SessionEstablished { rtt }
        ]
    );
    assert_eq!(
        events(&mut b),
        [PeerEvent::SessionEstablished { rtt: None }]
    );
    assert_eq!(b.poll_packet(), Some(packet(100, 7)));
    b.send_packet(at(40), &packet(1420, 8));
    settle(at(40), &mut a, &mut b);
    assert_eq!(a.poll_packet(), Some(packet(1420, 8)));
    assert_eq!(a.stats().rtt, rtt);
    assert_eq!((a.stats().tx_bytes, a.stats().rx_bytes), (100, 1420));
    assert_eq!(a.stats().last_handshake, Some(at(30)));
}

#[test]
fn padding_hides_lengths_but_keeps_to_the_mtu() {
    let (mut a, _) = joined();
    for (len, datagram) in [
        (40, 80),
        (41, 80),
        (1400, 1440),
        (1419, 1452),
        (1420, 1452),
        (1421, 1453),
    ] {
        a.send_packet(at(50), &packet(len, 1));
        assert_eq!(a.poll_transmit().map(|d| d.len()), Some(datagram), "{len}");
    }
}

#[test]
fn a_replay_is_refused() {
    let (mut a, mut b) = joined();
    a.send_packet(at(50), &packet(60, 1));
    let datagram = a.poll_transmit().expect("a transport message");
    assert!(b.handle_datagram(at(50), None, &datagram).is_ok());
    assert_eq!(
        b.handle_datagram(at(50), None, &datagram),
        Err(PeerError::Replay)
    );
    assert_eq!(std::iter::from_fn(|| b.poll_packet()).count(), 1);
    assert_eq!(b.stats().refused, 1);
}

#[test]
fn a_replayed_initiation_gets_no_answer() {
    let (mut a, mut b) = (client(), server(None, None));
    a.initiate(at(0));
    let initiation = a.poll_transmit().expect("an initiation");
    let received = b
        .handle_datagram(at(1), None, &initiation)
        .expect("a fresh one is taken");
    assert_eq!(
        received,
        Received {
            authenticated: false,
            highest: false,
            kind: ReceivedKind::Initiation
        }
    );
    assert!(b.poll_transmit().is_some());
    assert_eq!(
        b.handle_datagram(at(2), None, &initiation),
        Err(PeerError::Replay)
    );
    assert_eq!(b.poll_transmit(), None);
    assert_eq!(events(&mut b), [], "an initiation establishes nothing");
}

#[test]
fn only_the_highest_counter_of_the_newest_session_moves_an_endpoint() {
    let (mut a, mut b) = joined();
    let send = |a: &mut Peer| {
        a.send_packet(at(50), &packet(60, 1));
        a.poll_transmit().expect("a transport message")
    };
    let (first, second, third) = (send(&mut a), send(&mut a), send(&mut a));
    let old = send(&mut a);
    let highest = |b: &mut Peer, d: &[u8]| b.handle_datagram(at(51), None, d).map(|r| r.highest);
    assert_eq!(highest(&mut b, &second), Ok(true));
    assert_eq!(highest(&mut b, &first), Ok(false), "late, but authentic");
    assert_eq!(highest(&mut b, &third), Ok(true));
    a.initiate(at(60));
    settle(at(60), &mut a, &mut b);
    assert_eq!(
        highest(&mut b, &old),
        Ok(false),
        "the highest of a session that is over"
    );
    assert_eq!(highest(&mut b, &send(&mut a)), Ok(true));
}

#[test]
fn a_keepalive_is_authentic_and_holds_no_packet() {
    let (mut a, mut b) = (client(), server(None, None));
    a.initiate(at(0));
    let initiation = a.poll_transmit().expect("an initiation");
    b.handle_datagram(at(0), None, &initiation).expect("taken");
    let response = b.poll_transmit().expect("a response");
    let received = a.handle_datagram(at(0), None, &response).expect("taken");
    assert_eq!(
        received,
        Received {
            authenticated: true,
            highest: false,
            kind: ReceivedKind::Response
        }
    );
    let keepalive = a.poll_transmit().expect("the keepalive that confirms");
    assert_eq!(keepalive.len(), DATA_OVERHEAD);
    let received = b.handle_datagram(at(0), None, &keepalive).expect("taken");
    assert_eq!(
        received,
        Received {
            authenticated: true,
            highest: true,
            kind: ReceivedKind::Keepalive
        }
    );
    assert_eq!(b.poll_packet(), None);
}

#[test]
fn another_key_or_preshared_key_makes_no_session() {
    let mut a = client();
    a.initiate(at(0));
    let initiation = a.poll_transmit().expect("an initiation");
    let config = PeerConfig::client(key(3), key(1).public());
    let mut stranger = Peer::new(config, at(0));
    assert_eq!(
        stranger.handle_datagram(at(0), None, &initiation),
        Err(PeerError::InvalidMac)
    );
    let config = PeerConfig::client(key(2), key(3).public());
    let mut other = Peer::new(config, at(0));
    assert_eq!(
        other.handle_datagram(at(0), None, &initiation),
        Err(PeerError::WrongPeer)
    );

    let mut b = server(Some([9; 32]), None);
    b.handle_datagram(at(0), None, &initiation)
        .expect("the first message has no preshared key");
    let response = b.poll_transmit().expect("a response");
    assert_eq!(
        a.handle_datagram(at(0), None, &response),
        Err(PeerError::Forged)
    );
    assert!(!a.has_session());
}

#[test]
fn a_client_resends_fast_and_reports_after_five_seconds() {
    let mut a = client();
    a.send_packet(at(0), &packet(60, 1));
    let mut sent = Vec::new();
    let mut reported = Vec::new();
    for millis in (0..7_000).step_by(10) {
        let now = at(millis);
        if a.poll_timeout().is_some_and(|due| due <= now) {
            a.handle_timeout(now);
        }
        while let Some(datagram) = a.poll_transmit() {
            assert_eq!(datagram.len(), 148);
            sent.push(millis);
        }
        reported.extend(events(&mut a).into_iter().map(|event| (millis, event)));
    }
    assert_eq!(sent, [0, 250, 500, 1000, 2000, 5000]);
    let reason = HandshakeFailure::NoAnswer;
    assert_eq!(
        reported,
        [
            (0, PeerEvent::HandshakeStarted),
            (5000, PeerEvent::HandshakeFailed { reason })
        ]
    );
    assert_eq!(
        a.stats().dropped_waiting,
        1,
        "the packet is too old by then"
    );

    let mut b = server(None, None);
    a.initiate(at(8_000));
    settle(at(8_020), &mut a, &mut b);
    assert!(a.has_session() && b.has_session());
    assert_eq!(b.poll_packet(), None);
}

#[test]
fn the_answer_to_the_first_of_two_initiations_counts() {
    let (mut a, mut b) = (client(), server(None, None));
    a.initiate(at(0));
    let first = a.poll_transmit().expect("an initiation");
    a.handle_timeout(at(250));
    let second = a.poll_transmit().expect("a second one");
    assert_ne!(first, second, "the same bytes would be a replay");
    b.handle_datagram(at(300), None, &first).expect("taken");
    let response = b.poll_transmit().expect("a response");
    a.handle_datagram(at(400), None, &response).expect("taken");
    let rtt = Some(Duration::from_millis(400));
    assert!(events(&mut a).contains(&PeerEvent::SessionEstablished { rtt }));
    b.handle_datagram(at(410), None, &second).expect("taken");
    settle(at(420), &mut a, &mut b);
    a.send_packet(at(430), &packet(60, 1));
    b.send_packet(at(430), &packet(60, 2));
    settle(at(430), &mut a, &mut b);
    assert_eq!(
        (a.poll_packet(), b.poll_packet()),
        (Some(packet(60, 2)), Some(packet(60, 1)))
    );
}

#[test]
fn waiting_packets_are_bounded_and_the_oldest_go() {
    let (mut a, mut b) = (client(), server(None, None));
    for fill in 0..=u8::MAX {
        a.send_packet(at(0), &packet(60, fill));
    }
    a.send_packet(at(0), &packet(61, 0));
    assert_eq!(a.stats().dropped_waiting, 1);
    settle(at(1), &mut a, &mut b);
    let arrived: Vec<_> = std::iter::from_fn(|| b.poll_packet()).collect();
    assert_eq!(arrived.len(), 256);
    assert_eq!(arrived.first(), Some(&packet(60, 1)));
    assert_eq!(arrived.last(), Some(&packet(61, 0)));
    for _ in 0..3 * MAX_OUT {
        a.send_packet(at(2), &packet(60, 0));
    }
    assert_eq!(a.transmits.len(), MAX_OUT);
    assert_eq!(a.stats().dropped_unread, 2 * MAX_OUT as u64);
    a.send_packet(at(2), &vec![0x60; MAX_PACKET + 1]);
    assert_eq!(a.stats().dropped_oversize, 1);
}

#[test]
fn a_limiter_asks_for_cookies_per_address_and_port() {
    let limiter = Arc::new(Limiter::new(&key(2).public(), 2));
    let mut b = server(None, Some(limiter.clone()));
    let mut a = client();
    let here: SocketAddr = "192.0.2.1:1000".parse().expect("an address");
    let there: SocketAddr = "192.0.2.1:1001".parse().expect("an address");
    let initiation = |a: &mut Peer| {
        a.initiate(at(1));
        a.poll_transmit().expect("an initiation")
    };
    let free = Admission::Admitted { proven: false };
    assert_eq!(limiter.admit(at(1), here, &initiation(&mut a)), free);
    assert_eq!(limiter.admit(at(1), here, &initiation(&mut a)), free);
    let Admission::Cookie(cookie) = limiter.admit(at(1), here, &initiation(&mut a)) else {
        panic!("the third within a second needs a cookie");
    };
    let received = a.handle_datagram(at(1), None, &cookie).expect("taken");
    assert_eq!(received.kind, ReceivedKind::Cookie);
    assert!(!received.authenticated);
    let proven = initiation(&mut a);
    assert!(matches!(
        limiter.admit(at(1), there, &proven),
        Admission::Cookie(_)
    ));
    assert_eq!(
        limiter.admit(at(1), here, &proven),
        Admission::Admitted { proven: true }
    );
    b.handle_datagram(at(1), None, &proven)
        .expect("the peer itself limits nothing");
    settle(at(1), &mut a, &mut b);
    assert!(b.has_session());
    assert_eq!(
        limiter.admit(at(1500), here, &initiation(&mut client())),
        free,
        "a second later"
    );

    let mut forged = initiation(&mut a);
    forged[20] ^= 1;
    let refused = Admission::Refused(PeerError::InvalidMac);
    assert_eq!(limiter.admit(at(1500), here, &forged), refused);
}

#[test]
fn cookies_of_neighbours_differ() {
    let limiter = Limiter::new(&key(2).public(), 0);
    for (here, there) in [
        ("192.0.2.1:1000", "192.0.2.2:1000"),
        ("192.0.2.1:1000", "192.0.2.1:1001"),
        ("[2001:db8::1]:1000", "[2001:db8::1]:1001"),
        ("[2001:db8::1]:1000", "[2001:db9::1]:1000"),
    ] {
        let [here, there]: [SocketAddr; 2] = [here, there].map(|s| s.parse().expect("an address"));
        let mut a = client();
        a.initiate(at(0));
        let initiation = a.poll_transmit().expect("an initiation");
        let Admission::Cookie(cookie) = limiter.demand(here, &initiation) else {
            panic!("no cookie");
        };
        a.handle_datagram(at(0), None, &cookie).expect("taken");
        a.initiate(at(0));
        let initiation = a.poll_transmit().expect("an initiation");
        assert!(
            matches!(limiter.demand(there, &initiation), Admission::Cookie(_)),
            "{there}"
        );
        assert_eq!(
            limiter.demand(here, &initiation),
            Admission::Admitted { proven: true }
        );
    }
}

#[test]
fn a_busy_gateway_is_told_from_a_silent_one() {
    let limiter = Limiter::new(&key(2).public(), 0);
    let mut a = client();
    a.initiate(at(0));
    let initiation = a.poll_transmit().expect("an initiation");
    let from = "192.0.2.1:1000".parse().expect("an address");
    let Admission::Cookie(cookie) = limiter.admit(at(0), from, &initiation) else {
        panic!("no cookie");
    };
    a.handle_datagram(at(0), None, &cookie).expect("taken");
    a.handle_timeout(at(5000));
    let reason = HandshakeFailure::Busy;
    assert!(events(&mut a).contains(&PeerEvent::HandshakeFailed { reason }));
}

#[test]
fn an_initiation_names_its_sender_and_others_their_receiver() {
    let (mut a, mut b) = (client(), server(None, None));
    a.initiate(at(0));
    let initiation = a.poll_transmit().expect("an initiation");
    assert_eq!(initiator(&key(2), &initiation), Some(key(1).public()));
    assert_eq!(initiator(&key(3), &initiation), None);
    assert_eq!(receiver_index(&initiation), None);
    b.handle_datagram(at(0), None, &initiation).expect("taken");
    let response = b.poll_transmit().expect("a response");
    assert_eq!(receiver_index(&response), Some(1));
    a.handle_datagram(at(0), None, &response).expect("taken");
    let keepalive = a.poll_transmit().expect("a keepalive");
    assert_eq!(receiver_index(&keepalive), Some(GATEWAY_INDEX));
    assert_eq!(initiator(&key(2), &keepalive), None);
}

#[test]
fn a_counter_at_the_end_of_its_range_is_refused() {
    let (_, mut b) = joined();
    let mut datagram = vec![0; 48];
    datagram[0] = 4;
    datagram[8..16].fill(0xff);
    assert_eq!(
        b.handle_datagram(at(50), None, &datagram),
        Err(PeerError::Replay)
    );
    let huge = vec![4; MAX_DATAGRAM + 1];
    assert_eq!(
        b.handle_datagram(at(50), None, &huge),
        Err(PeerError::Malformed)
    );
}

#[test]
fn an_idle_peer_without_a_session_has_no_timer() {
    assert_eq!(client().poll_timeout(), None);
    let keepalive = PeerConfig {
        keepalive: Some(15),
        ..PeerConfig::client(key(1), key(2).public())
    };
    assert!(Peer::new(keepalive, at(0)).poll_timeout().is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_datagram_panics_nor_disturbs_a_session(
        kind in 0u8..6,
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        length in prop_oneof![Just(148usize), Just(92), Just(64), Just(32), 0usize..200],
    ) {
        let (mut a, mut b) = joined();
        let mut datagram = noise;
        datagram.resize(length, 0x5a);
        if datagram.len() >= 4 {
            datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
        }
        prop_assert!(b.handle_datagram(at(50), None, &datagram).is_err());
        let _ = initiator(&key(2), &datagram);
        let _ = receiver_index(&datagram);
        a.send_packet(at(60), &packet(60, 3));
        settle(at(60), &mut a, &mut b);
        prop_assert_eq!(b.poll_packet(), Some(packet(60, 3)));
    }

    #[test]
    fn a_cut_or_changed_message_is_refused(
        which in 0usize..4,
        cut in 0usize..148,
        flip in any::<prop::sample::Index>(),
    ) {
        let (mut a, mut b) = (client(), server(None, None));
        a.initiate(at(0));
        let initiation = a.poll_transmit().expect("an initiation");
        let mut datagram = initiation.clone();
        if which > 0 {
            b.handle_datagram(at(0), None, &initiation).expect("taken");
            datagram = b.poll_transmit().expect("a response");
        }
        if which > 1 {
            a.handle_datagram(at(0), None, &datagram).expect("taken");
            datagram = a.poll_transmit().expect("a keepalive");
        }
        if which > 2 {
            b.handle_datagram(at(0), None, &datagram).expect("taken");
            a.send_packet(at(0), &packet(70, 1));
            datagram = a.poll_transmit().expect("data");
        }
        let receiver = if which == 1 { &mut a } else { &mut b };
        let cut = cut.min(datagram.len() - 1);
        prop_assert!(receiver.handle_datagram(at(1), None, &datagram[..cut]).is_err());
        // The second MAC is looked at under load only.
        let checked = if which < 2 { datagram.len() - 16 } else { datagram.len() };
        let mut changed = datagram.clone();
        changed[flip.index(checked)] ^= 0x80;
        prop_assert!(receiver.handle_datagram(at(1), None, &changed).is_err());
        prop_assert!(receiver.handle_datagram(at(1), None, &datagram).is_ok());
    }

    #[test]
    fn what_decrypts_to_no_ip_packet_is_refused(
        inner in proptest::collection::vec(any::<u8>(), 1..120),
    ) {
        let (mut a, mut b) = joined();
        a.send_packet(at(50), &inner);
        let datagram = a.poll_transmit().expect("data");
        if b.handle_datagram(at(50), None, &datagram).is_ok() {
            let received = b.poll_packet().expect("a packet");
            prop_assert!(inner.len().next_multiple_of(16) >= received.len());
        }
    }
}
