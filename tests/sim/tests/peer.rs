//! The timers of one WireGuard peer, in virtual time: those that the engine keeps too.

use std::time::Duration;

use mock_instant::MockClock;
use tunnel::{
    Instant, PrivateKey,
    peer::{HandshakeFailure, Peer, PeerConfig, PeerEvent},
};

struct Pair {
    now: Instant,
    client: Peer,
    server: Peer,
    /// Datagrams are lost, both ways.
    cut: bool,
    /// What the client told, with the second.
    told: Vec<(u64, PeerEvent)>,
    /// Milliseconds at which the client sent an initiation.
    initiations: Vec<u64>,
}

impl Pair {
    fn new(keepalive: Option<u16>) -> Pair {
        MockClock::set_time(Duration::ZERO);
        let [a, b] = [1, 2].map(|seed| PrivateKey::from_bytes([seed; 32]));
        let server = PeerConfig {
            fast_retry: false,
            index: 7,
            ..PeerConfig::client(b.clone(), a.public())
        };
        let client = PeerConfig {
            keepalive,
            ..PeerConfig::client(a, b.public())
        };
        let now = Instant::ZERO;
        Pair {
            now,
            client: Peer::new(client, now),
            server: Peer::new(server, now),
            cut: false,
            told: Vec::new(),
            initiations: Vec::new(),
        }
    }

    /// Time passes; each side is woken when it asked to be.
    fn pass(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end {
            self.now += Duration::from_millis(10);
            MockClock::set_time(Duration::from_micros(self.now.as_micros()));
            for peer in [&mut self.client, &mut self.server] {
                if peer.poll_timeout().is_some_and(|at| at <= self.now) {
                    peer.handle_timeout(self.now);
                    assert!(
                        peer.poll_timeout().is_none_or(|at| at > self.now),
                        "it wakes again"
                    );
                }
            }
            self.settle();
        }
    }

    fn settle(&mut self) {
        loop {
            let mut moved = false;
            while let Some(datagram) = self.client.poll_transmit() {
                moved = true;
                if datagram.len() == 148 {
                    self.initiations.push(self.now.as_micros() / 1000);
                }
                if !self.cut {
                    let _ = self.server.handle_datagram(self.now, None, &datagram);
                }
            }
            while let Some(datagram) = self.server.poll_transmit() {
                moved = true;
                if !self.cut {
                    let _ = self.client.handle_datagram(self.now, None, &datagram);
                }
            }
            while let Some(event) = self.client.poll_event() {
                self.told.push((self.now.as_micros() / 1_000_000, event));
            }
            if !moved {
                return;
            }
        }
    }

    fn send(&mut self) {
        self.client.send_packet(self.now, &packet());
        self.settle();
    }

    fn arrived(&mut self) -> usize {
        std::iter::from_fn(|| self.server.poll_packet()).count()
    }
}

fn packet() -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60;
    packet
}

const NO_ANSWER: PeerEvent = PeerEvent::HandshakeFailed {
    reason: HandshakeFailure::NoAnswer,
};

#[test]
fn an_attempt_is_given_up_after_ninety_seconds_and_a_packet_begins_another() {
    let mut pair = Pair::new(None);
    pair.cut = true;
    pair.send();
    pair.pass(300);
    assert_eq!(
        pair.told,
        [
            (0, PeerEvent::HandshakeStarted),
            (5, NO_ANSWER),
            (90, PeerEvent::Expired)
        ]
    );
    assert_eq!(pair.initiations[..6], [0, 250, 500, 1000, 2000, 5000]);
    assert_eq!(
        pair.initiations.len(),
        22,
        "every five seconds from then on: {:?}",
        pair.initiations
    );
    assert_eq!(pair.client.poll_timeout(), None, "it rests");
    pair.cut = false;
    pair.send();
    assert!(pair.client.has_session());
    assert_eq!(pair.arrived(), 1);
}

#[test]
fn with_a_keepalive_it_tries_for_ever() {
    let mut pair = Pair::new(Some(15));
    pair.pass(16);
    assert!(pair.client.has_session(), "a keepalive asks for a session");
    pair.cut = true;
    pair.pass(1000);
    assert!(!pair.client.has_session());
    let attempts = pair
        .told
        .iter()
        .filter(|(_, e)| *e == PeerEvent::HandshakeStarted)
        .count();
    assert!(attempts > 5, "{:?}", pair.told);
    pair.cut = false;
    pair.pass(16);
    assert!(pair.client.has_session());
}

#[test]
fn a_young_attempt_outlives_the_age_of_the_last_session() {
    for start in [520, 530, 535, 539] {
        let mut pair = Pair::new(None);
        pair.send();
        pair.pass(start);
        assert!(
            !pair.client.has_session(),
            "the session is over after 180 s"
        );
        assert_eq!(pair.arrived(), 1);
        pair.cut = true;
        pair.send();
        pair.pass(4);
        pair.cut = false;
        pair.pass(2);
        assert!(pair.client.has_session(), "begun at {start} s");
        assert_eq!(pair.arrived(), 1, "what waited has arrived");
        assert!(
            !pair.told.iter().any(|(_, e)| *e == PeerEvent::Expired),
            "{:?}",
            pair.told
        );
    }
}

#[test]
fn a_busy_session_is_rekeyed_and_loses_nothing() {
    let mut pair = Pair::new(None);
    for _ in 0..400 {
        pair.send();
        pair.pass(1);
    }
    assert_eq!(pair.arrived(), 400);
    let sessions = |(_, e): &&(u64, PeerEvent)| matches!(e, PeerEvent::SessionEstablished { .. });
    assert_eq!(
        pair.told.iter().filter(sessions).count(),
        4,
        "every 120 s: {:?}",
        pair.told
    );
}
