//! How fast one source may ask. No clock: `now` is an argument.

use std::{net::Ipv6Addr, num::NonZeroUsize, time::Duration};

use lru::LruCache;
use sixpn::Prefix;

/// A token bucket per source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Queries per second, sustained.
    pub per_second: u32,
    /// Queries at once.
    pub burst: u32,
    /// How many sources are remembered; the one that was silent longest is forgotten first.
    pub sources: NonZeroUsize,
}

impl Default for Rate {
    /// 100 queries a second, 300 at once, 4,096 sources.
    fn default() -> Self {
        Rate {
            per_second: 100,
            burst: 300,
            sources: const { NonZeroUsize::new(4096).unwrap() },
        }
    }
}

/// Buckets of the sources seen last.
///
/// A source is a /112, the widest range that one machine can own: a machine that asks from all of
/// its addresses gets no more than one that asks from one of them.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: Rate,
    buckets: LruCache<Prefix, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// In millionths of a query, so that no time is lost to rounding.
    level: u64,
    filled: Duration,
}

const ONE: u64 = 1_000_000;

impl Limiter {
    pub(crate) fn new(rate: Rate) -> Limiter {
        Limiter {
            rate,
            buckets: LruCache::new(rate.sources),
        }
    }

    /// Whether the source may ask once more at `now`. A clock that runs backwards fills nothing.
    pub(crate) fn allow(&mut self, source: Ipv6Addr, now: Duration) -> bool {
        let full = u64::from(self.rate.burst) * ONE;
        let bucket = self
            .buckets
            .get_or_insert_mut(Prefix::new(source, 112), || Bucket {
                level: full,
                filled: now,
            });
        let elapsed = now.saturating_sub(bucket.filled).as_micros();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        let gained = elapsed.saturating_mul(u64::from(self.rate.per_second));
        bucket.level = bucket.level.saturating_add(gained).min(full);
        bucket.filled = bucket.filled.max(now);
        let allowed = bucket.level >= ONE;
        if allowed {
            bucket.level -= ONE;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(sources: usize) -> Limiter {
        Limiter::new(Rate {
            per_second: 10,
            burst: 3,
            sources: NonZeroUsize::new(sources).unwrap(),
        })
    }

    fn allowed(limiter: &mut Limiter, source: &str, millis: u64) -> bool {
        limiter.allow(source.parse().unwrap(), Duration::from_millis(millis))
    }

    #[test]
    fn a_burst_then_the_rate() {
        let mut limiter = limiter(8);
        let burst: Vec<_> = (0..5)
            .map(|_| allowed(&mut limiter, "fdaa:0:1::2", 0))
            .collect();
        assert_eq!(burst, [true, true, true, false, false]);
        assert!(!allowed(&mut limiter, "fdaa:0:1::2", 99));
        assert!(allowed(&mut limiter, "fdaa:0:1::2", 100));
        assert!(!allowed(&mut limiter, "fdaa:0:1::2", 150));
        let later: Vec<_> = (0..4)
            .map(|_| allowed(&mut limiter, "fdaa:0:1::2", 60_000))
            .collect();
        assert_eq!(
            later,
            [true, true, true, false],
            "a bucket never holds more than the burst"
        );
        assert!(
            !allowed(&mut limiter, "fdaa:0:1::2", 0),
            "time runs backwards"
        );
    }

    #[test]
    fn one_machine_is_one_source_and_another_is_another() {
        let mut limiter = limiter(8);
        for host in ["a:2", "a:3", "a:ff"] {
            assert!(allowed(&mut limiter, &format!("fdaa:0:1:0:0:1:{host}"), 0));
        }
        assert!(!allowed(&mut limiter, "fdaa:0:1:0:0:1:a:77", 0));
        assert!(allowed(&mut limiter, "fdaa:0:1:0:0:1:b:2", 0));
    }

    #[test]
    fn memory_is_bounded() {
        let mut limiter = limiter(2);
        for n in 0..1000 {
            assert!(allowed(&mut limiter, &format!("fdaa:0:1::{n:x}:2"), 0));
        }
        assert_eq!(limiter.buckets.len(), 2);
    }
}
