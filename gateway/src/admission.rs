//! The door: which initiations are looked at, and which unknown keys are asked about.
//!
//! An initiation that parses proves nothing about who sent it. Nothing here changes a peer: it
//! decides what work is done for strangers, and bounds it by source.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    sync::Arc,
    time::Duration,
};

use lru::LruCache;
use tunnel::{
    Instant, PrivateKey,
    peer::{Admission, Limiter, PeerError, initiator},
};
use wire::PublicKey;

use crate::{
    DropReason,
    budget::{Buckets, Rate, Source},
};

/// What one source may ask for under load, its cookie shown.
const HANDSHAKES: Rate = Rate {
    per_second: 20,
    burst: 40,
};
/// How many unknown keys one source may name.
const LOOKUPS: Rate = Rate {
    per_second: 8,
    burst: 32,
};
const SOURCES: NonZeroUsize = NonZeroUsize::new(8192).expect("not zero");
/// How long a key that nobody knows is not asked about again: less than a client's last retry
/// waits, so that a lease which comes late still counts.
const UNKNOWN_FOR: Duration = Duration::from_secs(4);
/// The same where nobody could be asked.
const UNAVAILABLE_FOR: Duration = Duration::from_secs(1);
const UNKNOWN_KEYS: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// Lookups under way for strangers.
const FLIGHTS: usize = 256;
/// Lookups under way, those that renew known peers included.
const FLIGHTS_WITH_RENEWALS: usize = 1024;
/// Initiations kept until their key's lookup lands: the first ones of an impatient client.
const WAITING: usize = 4;
/// A lookup that nobody answered is given up.
const FLIGHT_TIME: Duration = Duration::from_secs(15);

pub(crate) struct Door {
    key: PrivateKey,
    relays: Vec<IpAddr>,
    limiter: Arc<Limiter>,
    handshakes: Buckets<Source>,
    lookups: Buckets<(Source, bool)>,
    unknown: LruCache<PublicKey, Instant>,
    flights: HashMap<PublicKey, Flight>,
    departures: VecDeque<PublicKey>,
}

struct Flight {
    since: Instant,
    /// Somebody has been asked.
    departed: bool,
    /// The record may have changed since somebody was asked.
    stale: bool,
    waiting: Vec<Initiation>,
}

/// An initiation and where it came from.
type Initiation = (SocketAddr, Vec<u8>);

impl Flight {
    fn new(now: Instant, waiting: Vec<Initiation>) -> Flight {
        Flight {
            since: now,
            departed: false,
            stale: false,
            waiting,
        }
    }
}

/// What becomes of a handshake message.
pub(crate) enum Verdict<T> {
    Accept(T),
    /// Send this back; the message is forgotten.
    Cookie(Vec<u8>),
    Drop(DropReason),
}

impl Door {
    pub(crate) fn new(key: PrivateKey, relays: Vec<IpAddr>, per_second: u32) -> Door {
        let limiter = Arc::new(Limiter::new(&key.public(), per_second));
        Door {
            key,
            relays,
            limiter,
            handshakes: Buckets::new(HANDSHAKES, SOURCES),
            lookups: Buckets::new(LOOKUPS, SOURCES),
            unknown: LruCache::new(UNKNOWN_KEYS),
            flights: HashMap::new(),
            departures: VecDeque::new(),
        }
    }

    pub(crate) fn limiter(&self) -> Arc<Limiter> {
        self.limiter.clone()
    }

    /// Looks at mac1 and, under load or in a crowd, at the cookie and the source's budget.
    pub(crate) fn admit(
        &mut self,
        now: Instant,
        from: SocketAddr,
        message: &[u8],
        crowded: bool,
    ) -> Verdict<()> {
        let mut admission = self.limiter.admit(now, from, message);
        if crowded && admission == (Admission::Admitted { proven: false }) {
            admission = self.limiter.demand(from, message);
        }
        match admission {
            Admission::Admitted { proven: false } => Verdict::Accept(()),
            Admission::Admitted { proven: true } => {
                if self.handshakes.take(now, Source::of(from, &self.relays)) {
                    Verdict::Accept(())
                } else {
                    Verdict::Drop(DropReason::SourceBudget)
                }
            }
            Admission::Cookie(cookie) => Verdict::Cookie(cookie),
            Admission::Refused(PeerError::InvalidMac) => Verdict::Drop(DropReason::InvalidMac),
            Admission::Refused(_) => Verdict::Drop(DropReason::Malformed),
        }
    }

    /// The key that an admitted initiation names.
    pub(crate) fn initiator(&self, initiation: &[u8]) -> Option<PublicKey> {
        initiator(&self.key, initiation)
    }

    /// An initiation names a key that has no peer here: its lookup begins, or it waits for the one
    /// that is under way.
    pub(crate) fn stranger(
        &mut self,
        now: Instant,
        from: SocketAddr,
        key: PublicKey,
        initiation: &[u8],
    ) -> Verdict<()> {
        if self.unknown.get(&key).is_some_and(|until| now < *until) {
            return Verdict::Drop(DropReason::UnknownPeer);
        }
        if let Some(flight) = self.flights.get_mut(&key) {
            if flight.waiting.len() >= WAITING {
                return Verdict::Drop(DropReason::FlightFull);
            }
            flight.waiting.push((from, initiation.to_vec()));
            return Verdict::Accept(());
        }
        if self.flights.len() >= FLIGHTS {
            return Verdict::Drop(DropReason::LookupsFull);
        }
        let source = Source::of(from, &self.relays);
        if !self.lookups.take(now, (source, false)) {
            // Somebody else may be spending this source's budget: a cookie tells them apart.
            match self.limiter.demand(from, initiation) {
                Admission::Cookie(cookie) => return Verdict::Cookie(cookie),
                Admission::Admitted { .. } if self.lookups.take(now, (source, true)) => {}
                _ => return Verdict::Drop(DropReason::LookupBudget),
            }
        }
        let waiting = vec![(from, initiation.to_vec())];
        self.flights.insert(key, Flight::new(now, waiting));
        self.departures.push_back(key);
        Verdict::Accept(())
    }

    /// Asks about a key that has a peer. False when too many lookups are under way.
    pub(crate) fn renew(&mut self, now: Instant, key: PublicKey) -> bool {
        if self.flights.contains_key(&key) {
            return true;
        }
        if self.flights.len() >= FLIGHTS_WITH_RENEWALS {
            return false;
        }
        self.flights.insert(key, Flight::new(now, Vec::new()));
        self.departures.push_back(key);
        true
    }

    pub(crate) fn poll_lookup(&mut self) -> Option<PublicKey> {
        loop {
            let key = self.departures.pop_front()?;
            // It may have been given up meanwhile, and begun anew.
            if let Some(flight) = self.flights.get_mut(&key)
                && !flight.departed
            {
                flight.departed = true;
                return Some(key);
            }
        }
    }

    /// The record of a key is new: an answer that is on its way may be that of the old one.
    pub(crate) fn overtake(&mut self, key: PublicKey) {
        if let Some(flight) = self.flights.get_mut(&key) {
            flight.stale = flight.departed;
        }
    }

    /// A lookup landed: the initiations that waited for it. None when its answer counts for
    /// nothing; where somebody waits for one, it is asked for again.
    pub(crate) fn landed(&mut self, now: Instant, key: PublicKey) -> Option<Vec<Initiation>> {
        let flight = self
            .flights
            .get_mut(&key)
            .filter(|flight| flight.departed)?;
        if flight.stale {
            flight.since = now;
            flight.departed = false;
            flight.stale = false;
            self.departures.push_back(key);
            return None;
        }
        self.flights.remove(&key).map(|flight| flight.waiting)
    }

    pub(crate) fn remember_unknown(&mut self, now: Instant, key: PublicKey) {
        self.unknown.put(key, now + UNKNOWN_FOR);
    }

    pub(crate) fn remember_unavailable(&mut self, now: Instant, key: PublicKey) {
        self.unknown.put(key, now + UNAVAILABLE_FOR);
    }

    pub(crate) fn forget_unknown(&mut self, key: PublicKey) {
        self.unknown.pop(&key);
    }

    /// Gives up lookups without an answer and returns how many initiations waited for them.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> u64 {
        let mut lost = 0;
        self.flights.retain(|_, flight| {
            let keep = now.since(flight.since) < FLIGHT_TIME;
            if !keep {
                lost += flight.waiting.len() as u64;
            }
            keep
        });
        lost
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.flights
            .values()
            .map(|flight| flight.since + FLIGHT_TIME)
            .min()
    }
}
