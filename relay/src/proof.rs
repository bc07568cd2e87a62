//! What a session may send: the state machine of proven sessions.
//!
//! A session is proven by a handshake initiation whose mac1 is valid for the gateway's public
//! key, or by any message of kind 2 or 4 that the gateway sends back: WireGuard never answers
//! strangers. Until then a session with a token passes a few well-formed datagrams, one without a
//! token none but that initiation. This module has no socket and no clock: `now` is the time
//! since the session began.

use std::time::Duration;

use wire::{
    CloseCode,
    wireguard::{Kind, Mac1Key},
};

/// Well-formed datagrams that a session with a token passes before it is proven.
pub const UNPROVEN_DATAGRAMS: u32 = 64;
/// Handshake initiations that a session passes at once.
pub const INITIATION_BURST: u32 = 10;
/// A session passes one more initiation per this time: five in a second.
pub const INITIATION_EVERY: Duration = Duration::from_millis(200);
/// A client that sends this much garbage with nothing else between is closed.
pub const GARBAGE_IN_A_ROW: u32 = 64;

/// What one session has shown so far.
pub struct Proof {
    mac1: Mac1Key,
    token: bool,
    proven: bool,
    deadline: Duration,
    passed: u32,
    garbage: u32,
    bucket: Bucket,
}

/// What becomes of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Pass(Kind),
    /// It is dropped.
    Drop(Dropped),
    /// It is dropped and the session is to be closed.
    Close(Dropped, CloseCode),
}

/// Why a datagram is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// Not WireGuard in kind and length.
    NotWireguard,
    /// The session is not proven, and this would not prove it.
    Unproven,
    /// Too many handshake initiations.
    Initiations,
}

impl Proof {
    /// A session to the gateway of `mac1`; unproven at `deadline` it is to be closed.
    pub fn new(mac1: Mac1Key, token: bool, deadline: Duration) -> Proof {
        Proof {
            mac1,
            token,
            proven: false,
            deadline,
            passed: 0,
            garbage: 0,
            bucket: Bucket {
                level: INITIATION_BURST,
                since: Duration::ZERO,
            },
        }
    }

    /// Judges a datagram of the client.
    pub fn handle_client(&mut self, now: Duration, datagram: &[u8]) -> Verdict {
        let Some(kind) = Kind::of(datagram) else {
            self.garbage += 1;
            return if self.garbage >= GARBAGE_IN_A_ROW {
                Verdict::Close(Dropped::NotWireguard, CloseCode::NotWireguard)
            } else {
                Verdict::Drop(Dropped::NotWireguard)
            };
        };
        self.garbage = 0;
        if kind == Kind::Initiation {
            // The rate comes before mac1: a hash is not to be had for free.
            if !self.bucket.take(now) {
                return Verdict::Drop(Dropped::Initiations);
            }
            self.proven = self.proven || self.mac1.admits(datagram);
        }
        if !self.proven {
            if !self.token || self.passed >= UNPROVEN_DATAGRAMS {
                return Verdict::Drop(Dropped::Unproven);
            }
            self.passed += 1;
        }
        Verdict::Pass(kind)
    }

    /// Judges a datagram of the gateway.
    pub fn handle_gateway(&mut self, datagram: &[u8]) -> Verdict {
        let Some(kind) = Kind::of(datagram) else {
            return Verdict::Drop(Dropped::NotWireguard);
        };
        self.proven = self.proven || matches!(kind, Kind::Response | Kind::Data);
        Verdict::Pass(kind)
    }

    /// Whether the session is proven.
    pub fn is_proven(&self) -> bool {
        self.proven
    }

    /// When [`Proof::handle_timeout`] is due; never for a proven session.
    pub fn poll_timeout(&self) -> Option<Duration> {
        (!self.proven).then_some(self.deadline)
    }

    /// The code to close with, when the time for a proof is over.
    pub fn handle_timeout(&self, now: Duration) -> Option<CloseCode> {
        (!self.proven && now >= self.deadline).then_some(CloseCode::Unproven)
    }
}

/// A token bucket for initiations.
struct Bucket {
    level: u32,
    since: Duration,
}

impl Bucket {
    fn take(&mut self, now: Duration) -> bool {
        let gained = now.saturating_sub(self.since).as_nanos() / INITIATION_EVERY.as_nanos();
        let gained = u32::try_from(gained).unwrap_or(u32::MAX);
        self.level = self.level.saturating_add(gained);
        if self.level >= INITIATION_BURST {
            self.level = INITIATION_BURST;
            self.since = now;
        } else {
            self.since += INITIATION_EVERY * gained;
        }
        let granted = self.level > 0;
        self.level -= u32::from(granted);
        granted
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use wire::PublicKey;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn proof(token: bool) -> Proof {
        Proof::new(Mac1Key::new(&gateway().1), token, DEADLINE)
    }

    fn gateway() -> (boringtun::x25519::StaticSecret, PublicKey) {
        let secret = boringtun::x25519::StaticSecret::from([3; 32]);
        let public = PublicKey(boringtun::x25519::PublicKey::from(&secret).to_bytes());
        (secret, public)
    }

    /// An initiation as boringtun makes it.
    fn initiation(to: PublicKey) -> Vec<u8> {
        let mut tunnel = boringtun::noise::Tunn::new(
            boringtun::x25519::StaticSecret::from([4; 32]),
            boringtun::x25519::PublicKey::from(to.0),
            None,
            None,
            1,
            None,
        );
        let mut buffer = [0; 148];
        match tunnel.format_handshake_initiation(&mut buffer, true) {
            boringtun::noise::TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn datagram(kind: u8, length: usize) -> Vec<u8> {
        let mut datagram = vec![0; length];
        datagram[0] = kind;
        datagram
    }

    #[test]
    fn an_initiation_for_this_gateway_proves() {
        for token in [false, true] {
            let mut proof = proof(token);
            let verdict = proof.handle_client(Duration::ZERO, &initiation(gateway().1));
            assert_eq!(verdict, Verdict::Pass(Kind::Initiation));
            assert!(proof.is_proven());
            assert_eq!(proof.poll_timeout(), None);
            assert_eq!(proof.handle_timeout(DEADLINE * 2), None);
            for _ in 0..1000 {
                let verdict = proof.handle_client(Duration::ZERO, &datagram(4, 96));
                assert_eq!(verdict, Verdict::Pass(Kind::Data));
            }
        }
    }

    #[test]
    fn without_a_token_nothing_else_passes() {
        let mut proof = proof(false);
        let stranger = initiation(PublicKey([9; 32]));
        for datagram in [
            &stranger,
            &datagram(2, 92),
            &datagram(3, 64),
            &datagram(4, 32),
        ] {
            let verdict = proof.handle_client(Duration::ZERO, datagram);
            assert_eq!(verdict, Verdict::Drop(Dropped::Unproven));
        }
        assert!(!proof.is_proven());
    }

    #[test]
    fn with_a_token_a_few_pass() {
        let mut proof = proof(true);
        assert_eq!(
            proof.handle_client(Duration::ZERO, &initiation(PublicKey([9; 32]))),
            Verdict::Pass(Kind::Initiation)
        );
        for _ in 1..UNPROVEN_DATAGRAMS {
            let verdict = proof.handle_client(Duration::ZERO, &datagram(4, 32));
            assert_eq!(verdict, Verdict::Pass(Kind::Data));
        }
        let verdict = proof.handle_client(Duration::ZERO, &datagram(4, 32));
        assert_eq!(verdict, Verdict::Drop(Dropped::Unproven));
        assert!(!proof.is_proven());
        // What the gateway answers to strangers, nothing or a cookie, proves nothing.
        assert_eq!(
            proof.handle_gateway(&datagram(3, 64)),
            Verdict::Pass(Kind::Cookie)
        );
        assert!(!proof.is_proven());
        assert_eq!(
            proof.handle_gateway(&datagram(4, 32)),
            Verdict::Pass(Kind::Data)
        );
        assert!(proof.is_proven());
        let verdict = proof.handle_client(Duration::ZERO, &datagram(4, 32));
        assert_eq!(verdict, Verdict::Pass(Kind::Data));
    }

    #[test]
    fn unproven_it_ends() {
        let proof = proof(true);
        assert_eq!(proof.poll_timeout(), Some(DEADLINE));
        let before = DEADLINE - Duration::from_nanos(1);
        assert_eq!(proof.handle_timeout(before), None);
        assert_eq!(proof.handle_timeout(DEADLINE), Some(CloseCode::Unproven));
    }

    #[test]
    fn initiations_are_limited() {
        let mut proof = proof(true);
        let good = initiation(gateway().1);
        let mut passed = |now| {
            (0..1000)
                .take_while(|_| proof.handle_client(now, &good) == Verdict::Pass(Kind::Initiation))
                .count()
        };
        assert_eq!(passed(Duration::ZERO), 10);
        assert_eq!(passed(Duration::from_millis(199)), 0);
        assert_eq!(passed(Duration::from_millis(200)), 1);
        assert_eq!(passed(Duration::from_millis(1200)), 5);
        assert_eq!(passed(Duration::from_secs(3600)), 10);
        // A clock that goes back gains nothing.
        assert_eq!(passed(Duration::ZERO), 0);
        let verdict = proof.handle_client(Duration::from_secs(3600), &good);
        assert_eq!(verdict, Verdict::Drop(Dropped::Initiations));
    }

    #[test]
    fn only_garbage_ends_it() {
        let mut proof = proof(true);
        for round in 0..3 {
            for _ in 1..GARBAGE_IN_A_ROW {
                let verdict = proof.handle_client(Duration::ZERO, b"garbage");
                assert_eq!(verdict, Verdict::Drop(Dropped::NotWireguard), "{round}");
            }
            proof.handle_client(Duration::ZERO, &datagram(4, 32));
        }
        for _ in 1..GARBAGE_IN_A_ROW {
            proof.handle_client(Duration::ZERO, b"garbage");
        }
        assert_eq!(
            proof.handle_client(Duration::ZERO, b"garbage"),
            Verdict::Close(Dropped::NotWireguard, CloseCode::NotWireguard)
        );
    }

    proptest! {
        #[test]
        fn random_datagrams_without_a_token_never_pass(
            datagrams in vec((0u8..6, 0usize..200, any::<u8>()), 1..200)
        ) {
            let mut proof = proof(false);
            for (kind, length, fill) in datagrams {
                let mut bytes = vec![fill; length];
                if length >= 4 {
                    bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
                }
                let verdict = proof.handle_client(Duration::ZERO, &bytes);
                prop_assert!(!matches!(verdict, Verdict::Pass(_)));
            }
        }
    }
}
