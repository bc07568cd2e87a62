//! What one direction of a session may carry in a second.

use std::time::Duration;

use crate::config::Limits;

/// Two token buckets, of bytes and of datagrams, that hold half a second's worth. `now` is the
/// time since the session began.
pub(crate) struct Rate {
    bytes: Option<Bucket>,
    datagrams: Option<Bucket>,
}

struct Bucket {
    /// Units in a second.
    rate: u64,
    /// In millionths of a unit.
    level: u64,
    since: Duration,
}

const MILLION: u64 = 1_000_000;
/// A bucket holds what comes in this part of a second.
const BURST: u64 = 2;

impl Rate {
    pub(crate) fn new(limits: &Limits, now: Duration) -> Rate {
        let bucket = |rate: u32, least: u64| Bucket {
            rate: u64::from(rate),
            level: (u64::from(rate) / BURST).max(least) * MILLION,
            since: now,
        };
        Rate {
            bytes: limits.bytes_per_second.map(|rate| bucket(rate, LARGEST)),
            datagrams: limits.datagrams_per_second.map(|rate| bucket(rate, 1)),
        }
    }

    /// Whether a datagram of `length` bytes may pass; if so it has.
    pub(crate) fn take(&mut self, now: Duration, length: usize) -> bool {
        if self.bytes.is_none() && self.datagrams.is_none() {
            return true;
        }
        let length = length as u64;
        let (bytes, datagrams) = (&mut self.bytes, &mut self.datagrams);
        let room = |bucket: &mut Option<Bucket>, cost, least| {
            let bucket = bucket.as_mut()?;
            bucket.fill(now, least);
            Some(bucket.level >= cost * MILLION)
        };
        let passes =
            room(bytes, length, LARGEST) != Some(false) && room(datagrams, 1, 1) != Some(false);
        if passes {
            for (bucket, cost) in [(bytes, length), (datagrams, 1)] {
                if let Some(bucket) = bucket {
                    bucket.level -= cost * MILLION;
                }
            }
        }
        passes
    }
}

/// However small the rate, one datagram passes in the end.
const LARGEST: u64 = wire::record::MAX_RECORD as u64;

impl Bucket {
    fn fill(&mut self, now: Duration, least: u64) {
        let micros = now.saturating_sub(self.since).as_micros();
        let micros = u64::try_from(micros).unwrap_or(u64::MAX);
        // A unit in a second is a millionth of one in a microsecond.
        let gained = micros.saturating_mul(self.rate);
        let most = (self.rate / BURST).max(least) * MILLION;
        self.level = self.level.saturating_add(gained).min(most);
        self.since = self.since.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(bytes: Option<u32>, datagrams: Option<u32>) -> Rate {
        let limits = Limits {
            bytes_per_second: bytes,
            datagrams_per_second: datagrams,
            ..Limits::default()
        };
        Rate::new(&limits, Duration::ZERO)
    }

    /// How many of `length` pass, asked every millisecond for so long.
    fn passed(rate: &mut Rate, from: u64, millis: u64, length: usize) -> u64 {
        (from..from + millis)
            .map(|at| {
                let now = Duration::from_millis(at);
                (0..100).filter(|_| rate.take(now, length)).count() as u64
            })
            .sum()
    }

    #[test]
    fn a_second_is_a_second() {
        let mut datagrams = rate(None, Some(1000));
        // Half a second's worth at once, and then as it comes.
        assert_eq!(passed(&mut datagrams, 0, 1, 1400), 100);
        assert_eq!(passed(&mut datagrams, 1, 999, 1400), 500 + 999 - 100);
        assert_eq!(passed(&mut datagrams, 1000, 1000, 1400), 1000);
        let mut bytes = rate(Some(1_000_000), None);
        passed(&mut bytes, 0, 1000, 1000);
        assert_eq!(passed(&mut bytes, 1000, 1000, 1000), 1000);
        assert_eq!(passed(&mut bytes, 2000, 1000, 500), 2000);
        let mut both = rate(Some(1_000_000), Some(100));
        passed(&mut both, 0, 1000, 1000);
        assert_eq!(passed(&mut both, 1000, 1000, 1000), 100);
    }

    #[test]
    fn however_small_something_passes() {
        let mut slow = rate(Some(100), Some(1));
        assert_eq!(passed(&mut slow, 0, 60_000, 2048), 1 + 60 * 100 / 2048);
        // A clock that goes back gains nothing.
        assert!(!slow.take(Duration::ZERO, 2048));
        let mut none = rate(None, None);
        assert!(none.take(Duration::ZERO, usize::MAX));
    }
}
