//! Token buckets, one per somebody, for a bounded number of somebodies.

use std::{hash::Hash, net::IpAddr, num::NonZeroUsize, time::Duration};

use lru::LruCache;
use tunnel::Instant;

/// So many per second, so many at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
}

/// One bucket. Its level is counted in microseconds of waiting, so that nothing is rounded away.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bucket {
    /// When the bucket is full again.
    full_at: Instant,
}

impl Bucket {
    pub(crate) fn take(&mut self, now: Instant, rate: Rate) -> bool {
        let one = Duration::from_secs(1) / rate.per_second.max(1);
        let full_at = self.full_at.max(now) + one;
        if full_at.since(now) > one * rate.burst {
            return false;
        }
        self.full_at = full_at;
        true
    }
}

/// Buckets of those seen last; whoever was silent longest is forgotten first.
pub(crate) struct Buckets<K: Hash + Eq> {
    rate: Rate,
    buckets: LruCache<K, Bucket>,
}

impl<K: Hash + Eq> Buckets<K> {
    pub(crate) fn new(rate: Rate, capacity: NonZeroUsize) -> Buckets<K> {
        Buckets {
            rate,
            buckets: LruCache::new(capacity),
        }
    }

    pub(crate) fn take(&mut self, now: Instant, who: K) -> bool {
        self.buckets
            .get_or_insert_mut(who, Bucket::default)
            .take(now, self.rate)
    }
}

/// Who sends from an address: a host, a /64 in IPv6, or, at a relay, one of its sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    ip: IpAddr,
    port: Option<u16>,
}

impl Source {
    pub(crate) fn of(address: std::net::SocketAddr, relays: &[IpAddr]) -> Source {
        let ip = address.ip().to_canonical();
        if relays.contains(&ip) {
            return Source {
                ip,
                port: Some(address.port()),
            };
        }
        let ip = match ip {
            IpAddr::V4(ip) => IpAddr::V4(ip),
            IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() >> 64 << 64).into()),
        };
        Source { ip, port: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_second: 10,
        burst: 3,
    };

    #[test]
    fn a_burst_then_the_rate() {
        let mut bucket = Bucket::default();
        let mut take = |millis: u64| bucket.take(Instant::from_micros(millis * 1000), RATE);
        assert_eq!(
            [take(50), take(50), take(50), take(50)],
            [true, true, true, false]
        );
        assert!(!take(149));
        assert!(take(150));
        assert!(!take(150));
        assert_eq!(
            [take(9000), take(9000), take(9000), take(9000)],
            [true, true, true, false]
        );
    }

    #[test]
    fn a_relay_counts_by_session_and_others_by_host() {
        let relays = ["192.0.2.9".parse().unwrap()];
        let of = |text: &str| Source::of(text.parse().unwrap(), &relays);
        assert_ne!(of("192.0.2.9:1"), of("192.0.2.9:2"));
        assert_eq!(of("192.0.2.8:1"), of("192.0.2.8:2"));
        assert_ne!(of("192.0.2.8:1"), of("192.0.2.7:1"));
        assert_eq!(of("[::ffff:192.0.2.8]:1"), of("192.0.2.8:2"));
        assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::ffff:0:0:2]:2"));
        assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
    }

    #[test]
    fn memory_is_bounded() {
        let mut buckets = Buckets::new(RATE, NonZeroUsize::MIN);
        for who in 0..1000 {
            assert!(buckets.take(Instant::ZERO, who));
        }
        assert_eq!(buckets.buckets.len(), 1);
    }
}
