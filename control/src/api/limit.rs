//! How often one address may fail to log in. No clock: `now` is an argument.

use std::{
    net::{IpAddr, Ipv6Addr},
    num::NonZeroUsize,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lru::LruCache;

/// Failures at once.
const BURST: u32 = 20;

/// One more for each of these.
const REFILL: Duration = Duration::from_secs(3);

/// Addresses remembered; the one that was silent longest is forgotten first.
const SOURCES: NonZeroUsize = const { NonZeroUsize::new(4096).unwrap() };

/// Attempts by source. Tokens cannot be guessed; this keeps guessers from being work.
#[derive(Debug)]
pub(super) struct Attempts(LruCache<Option<IpAddr>, Bucket>);

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: u32,
    filled: Duration,
}

impl Default for Attempts {
    fn default() -> Self {
        Attempts(LruCache::new(SOURCES))
    }
}

impl Attempts {
    /// Takes one attempt, or says how many seconds to wait.
    pub(super) fn take(&mut self, source: Option<IpAddr>, now: SystemTime) -> Result<(), u64> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let bucket = self.0.get_or_insert_mut(network(source), || Bucket {
            left: BURST,
            filled: now,
        });
        let refills = now.saturating_sub(bucket.filled).as_secs() / REFILL.as_secs();
        let gained = u32::try_from(refills).unwrap_or(u32::MAX);
        bucket.left = bucket.left.saturating_add(gained).min(BURST);
        if bucket.left == BURST {
            bucket.filled = now;
        } else {
            bucket.filled += REFILL * gained;
        }
        if bucket.left == 0 {
            return Err(REFILL.as_secs());
        }
        bucket.left -= 1;
        Ok(())
    }

    /// Gives an attempt back: it was a right one.
    pub(super) fn succeeded(&mut self, source: Option<IpAddr>) {
        if let Some(bucket) = self.0.get_mut(&network(source)) {
            bucket.left = (bucket.left + 1).min(BURST);
        }
    }
}

/// One subscriber is one source: a whole /64 of IPv6.
fn network(source: Option<IpAddr>) -> Option<IpAddr> {
    source.map(|address| match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn failures_are_bounded_and_come_back() {
        let mut attempts = Attempts::default();
        let source = Some("192.0.2.1".parse().unwrap());
        for _ in 0..BURST {
            assert_eq!(attempts.take(source, at(100)), Ok(()));
        }
        assert_eq!(attempts.take(source, at(100)), Err(3));
        assert_eq!(attempts.take(source, at(102)), Err(3));
        assert_eq!(attempts.take(source, at(103)), Ok(()));
        assert_eq!(attempts.take(source, at(105)), Err(3), "no refill twice");
        assert_eq!(attempts.take(source, at(50)), Err(3), "time runs backwards");
        attempts.succeeded(source);
        assert_eq!(attempts.take(source, at(105)), Ok(()));
        assert_eq!(
            attempts.take(Some("192.0.2.2".parse().unwrap()), at(105)),
            Ok(())
        );
    }

    #[test]
    fn a_subscriber_is_one_source_and_memory_is_bounded() {
        let mut attempts = Attempts::default();
        for n in 0..BURST {
            let source = Some(format!("2001:db8::{n:x}").parse().unwrap());
            assert_eq!(attempts.take(source, at(0)), Ok(()));
        }
        let other = Some("2001:db8::ffff".parse().unwrap());
        assert_eq!(attempts.take(other, at(0)), Err(3));
        for n in 0..10_000_u32 {
            let source = IpAddr::V4((n | 0x0a00_0000).into());
            let _ = attempts.take(Some(source), at(0));
        }
        assert_eq!(attempts.0.len(), SOURCES.get());
    }
}
