//! One direction of a simulated path.

use std::{collections::BTreeMap, time::Duration};

use tunnel::Instant;

/// What a link does to datagrams.
#[derive(Debug, Clone, Copy)]
pub struct LinkConfig {
    /// Bits per second, IP and UDP headers included.
    pub rate: u64,
    /// From one end to the other.
    pub delay: Duration,
    /// Bytes that wait for their turn; what finds no room is dropped.
    pub queue: u64,
    /// Datagrams lost, of a thousand.
    pub loss: u32,
    /// Datagrams held back, of a thousand ...
    pub reordered: u32,
    /// ... by so much.
    pub held: Duration,
    /// Datagrams that arrive twice, of a thousand.
    pub duplicated: u32,
}

impl LinkConfig {
    /// 100 Mbit/s, 25 ms each way, a queue of one bandwidth-delay product, nothing lost.
    pub const GOOD: LinkConfig = LinkConfig {
        rate: 100_000_000,
        delay: Duration::from_millis(25),
        queue: 625_000,
        loss: 0,
        reordered: 0,
        held: Duration::from_millis(5),
        duplicated: 0,
    };
}

/// What became of the datagrams of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Offered.
    pub sent: u64,
    /// Lost at random.
    pub lost: u64,
    /// Dropped at the full queue.
    pub overflowed: u64,
    /// The largest datagram.
    pub largest: usize,
    /// Handshake initiations offered.
    pub initiations: u64,
}

/// One direction of a path.
pub struct Link {
    /// What it does; may be changed at any time.
    pub config: LinkConfig,
    /// Nothing gets through while this is set.
    pub down: bool,
    /// What it did.
    pub stats: LinkStats,
    /// When the last bit of what was accepted leaves the queue, in nanoseconds.
    free_at: u64,
    flying: BTreeMap<(Instant, u64), Vec<u8>>,
    next: u64,
    state: u64,
}

/// IPv4 and UDP.
const OVERHEAD: u64 = 28;

impl Link {
    /// A link with its own seed.
    pub fn new(config: LinkConfig, seed: u64) -> Link {
        Link {
            config,
            down: false,
            stats: LinkStats::default(),
            free_at: 0,
            flying: BTreeMap::new(),
            next: 0,
            state: seed,
        }
    }

    /// Puts a datagram on the link.
    pub fn send(&mut self, now: Instant, datagram: &[u8]) {
        self.stats.sent += 1;
        self.stats.largest = self.stats.largest.max(datagram.len());
        self.stats.initiations += u64::from(datagram.first() == Some(&1));
        let now_ns = now.as_micros() * 1000;
        let wait = self.free_at.saturating_sub(now_ns);
        let waiting = wait * self.config.rate / 8_000_000_000;
        let size = datagram.len() as u64 + OVERHEAD;
        if waiting + size > self.config.queue {
            self.stats.overflowed += 1;
            return;
        }
        self.free_at = now_ns + wait + size * 8_000_000_000 / self.config.rate;
        if self.down || self.chance(self.config.loss) {
            self.stats.lost += 1;
            return;
        }
        let copies = 1 + u32::from(self.chance(self.config.duplicated));
        for _ in 0..copies {
            let mut at = Instant::from_micros(self.free_at.div_ceil(1000)) + self.config.delay;
            if self.chance(self.config.reordered) {
                at += self.config.held;
            }
            self.next += 1;
            self.flying.insert((at, self.next), datagram.to_vec());
        }
    }

    /// When the next datagram arrives.
    pub fn next(&self) -> Option<Instant> {
        self.flying.first_key_value().map(|((at, _), _)| *at)
    }

    /// A datagram that has arrived.
    pub fn receive(&mut self, now: Instant) -> Option<Vec<u8>> {
        let first = self
            .flying
            .first_entry()
            .filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }

    /// SplitMix64, so many of a thousand.
    fn chance(&mut self, of_a_thousand: u32) -> bool {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % 1000 < u64::from(of_a_thousand)
    }
}
