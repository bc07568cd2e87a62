//! How many connections are let in within a second: in all, and of one source.
//!
//! A connection that is let in costs a TLS handshake, one that is not costs next to nothing. No
//! clock: `now` is the time since the listener began.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use crate::slots::{NoSlot, Source};

/// Token buckets: one for all, and one for each source that came of late.
pub(crate) struct AcceptRate {
    in_all: Pace,
    of_source: Pace,
    /// When the bucket of all is full again.
    all_full_at: Duration,
    /// The same of each source. Who is in neither table has a full bucket.
    recent: HashMap<Source, Duration>,
    /// Those that have not come since `recent` was begun.
    earlier: HashMap<Source, Duration>,
    /// When `recent` was begun.
    turned: Duration,
}

/// The size of a bucket and how fast it fills, both in time, so that nothing is rounded away.
#[derive(Clone, Copy)]
struct Pace {
    /// One more is in it after this time.
    one: Duration,
    /// An empty bucket is full after this time.
    whole: Duration,
}

/// What comes in this many seconds may come at once.
const BURST_IN_ALL: u32 = 1;
const BURST_OF_SOURCE: u32 = 2;

/// Sources in one table. By default fewer come before a table is begun anew; when there are more,
/// those that came longest ago are forgotten before their time.
const SOURCES: usize = 8192;

impl AcceptRate {
    /// So many in a second in all, and of one source; never none.
    pub(crate) fn new(in_all: u32, of_source: u32) -> AcceptRate {
        AcceptRate {
            in_all: Pace::new(in_all, BURST_IN_ALL),
            of_source: Pace::new(of_source, BURST_OF_SOURCE),
            all_full_at: Duration::ZERO,
            recent: HashMap::new(),
            earlier: HashMap::new(),
            turned: Duration::ZERO,
        }
    }

    /// Lets a client at `address` in, or says which bucket is empty. Who is refused takes nothing
    /// from either: a source that floods leaves the others theirs, and is not remembered for more.
    pub(crate) fn take(&mut self, now: Duration, address: IpAddr) -> Result<(), NoSlot> {
        let source = Source::of(address);
        let known = self.recent.get(&source);
        let full_at = known.or_else(|| self.earlier.get(&source)).copied();
        let of_source = self.of_source.take(now, full_at.unwrap_or_default());
        let full_at = of_source.ok_or(NoSlot::PerSource)?;
        let in_all = self.in_all.take(now, self.all_full_at);
        self.all_full_at = in_all.ok_or(NoSlot::InAll)?;
        // After this time the buckets of `earlier` are full, whatever was taken from them.
        let over = now.saturating_sub(self.turned) >= self.of_source.whole;
        if over || self.recent.len() >= SOURCES {
            std::mem::swap(&mut self.recent, &mut self.earlier);
            self.recent.clear();
            self.turned = now;
        }
        self.recent.insert(source, full_at);
        Ok(())
    }
}

impl Pace {
    fn new(per_second: u32, burst_seconds: u32) -> Pace {
        let per_second = per_second.max(1);
        let one = Duration::from_secs(1) / per_second;
        Pace {
            one,
            whole: one * per_second.saturating_mul(burst_seconds),
        }
    }

    /// When a bucket is full again that was to be full at `full_at`, and of which one is taken;
    /// none when it is empty.
    fn take(self, now: Duration, full_at: Duration) -> Option<Duration> {
        let full_at = full_at.max(now) + self.one;
        (full_at - now <= self.whole).then_some(full_at)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use proptest::{collection::vec, prelude::*};

    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// The nth IPv4 address.
    fn nth(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    /// How many of `asked` are let in.
    fn passed(rate: &mut AcceptRate, now: Duration, address: &str, asked: usize) -> usize {
        let address = address.parse().unwrap();
        (0..asked)
            .filter(|_| rate.take(now, address).is_ok())
            .count()
    }

    #[test]
    fn a_source_has_its_burst_and_then_its_rate() {
        let mut rate = AcceptRate::new(1000, 100);
        assert_eq!(passed(&mut rate, ms(5), "192.0.2.1", 500), 200);
        assert_eq!(passed(&mut rate, ms(14), "192.0.2.1", 500), 0);
        assert_eq!(passed(&mut rate, ms(105), "192.0.2.1", 500), 10);
        // The same source by other names, and others.
        assert_eq!(passed(&mut rate, ms(105), "::ffff:192.0.2.1", 500), 0);
        assert_eq!(passed(&mut rate, ms(105), "192.0.2.2", 500), 200);
        assert_eq!(passed(&mut rate, ms(105), "2001:db8::1", 500), 200);
        assert_eq!(passed(&mut rate, ms(105), "2001:db8::ffff:0:1", 500), 0);
        assert_eq!(passed(&mut rate, ms(60_000), "192.0.2.1", 500), 200);
        // A clock that goes back gains nothing.
        assert_eq!(passed(&mut rate, ms(0), "192.0.2.1", 500), 0);
    }

    #[test]
    fn who_is_refused_takes_nothing_from_the_others() {
        let mut rate = AcceptRate::new(1000, 100);
        let refused = |rate: &mut AcceptRate, address: &str| {
            let address = address.parse().unwrap();
            (0..100_000)
                .find_map(|_| rate.take(Duration::ZERO, address).err())
                .unwrap()
        };
        assert_eq!(refused(&mut rate, "192.0.2.1"), NoSlot::PerSource);
        for n in 2..=5 {
            let other = format!("192.0.2.{n}");
            assert_eq!(passed(&mut rate, Duration::ZERO, &other, 500), 200);
        }
        assert_eq!(refused(&mut rate, "192.0.2.9"), NoSlot::InAll);
        assert_eq!(rate.recent.len(), 5, "who was refused is not remembered");
    }

    #[test]
    fn who_has_a_full_bucket_is_forgotten() {
        let mut rate = AcceptRate::new(1000, 100);
        for n in 0..10_000 {
            let now = ms(u64::from(n) * 10);
            assert_eq!(rate.take(now, nth(n)), Ok(()));
            assert!(rate.recent.len() <= 201 && rate.earlier.len() <= 201);
        }
        rate.take(ms(200_000), nth(0)).unwrap();
        rate.take(ms(300_000), nth(0)).unwrap();
        assert_eq!((rate.recent.len(), rate.earlier.len()), (1, 1));
    }

    #[test]
    fn memory_is_bounded_whatever_the_rate() {
        let mut rate = AcceptRate::new(u32::MAX, 1);
        for n in 0..5 * SOURCES as u32 {
            assert_eq!(rate.take(Duration::ZERO, nth(n)), Ok(()));
            assert!(rate.recent.len() <= SOURCES && rate.earlier.len() <= SOURCES);
        }
        // Those of late are remembered, those of long ago are not.
        let last = nth(5 * SOURCES as u32 - 1);
        assert_eq!(rate.take(Duration::ZERO, last), Ok(()));
        assert_eq!(rate.take(Duration::ZERO, last), Err(NoSlot::PerSource));
        assert_eq!(rate.take(Duration::ZERO, nth(0)), Ok(()));
    }

    /// Clients that lost their relay in one instant ask again as `carrier` does. How long it takes
    /// until the last is in.
    fn all_are_back(clients: u32, rate: &mut AcceptRate, address: fn(u32) -> IpAddr) -> Duration {
        const RETRY_MS: [u64; 8] = [100, 250, 500, 1_000, 2_000, 4_000, 8_000, 15_000];
        let mut state = 1_u64;
        let mut wait = |failures: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let spread = 192 + ((state >> 56) as u32) / 2;
            ms(RETRY_MS[failures.min(RETRY_MS.len() - 1)]) * spread / 256
        };
        let mut asking: BTreeMap<(Duration, u32), usize> =
            (0..clients).map(|client| ((wait(0), client), 0)).collect();
        let mut last = Duration::ZERO;
        while let Some(((now, client), failures)) = asking.pop_first() {
            last = now;
            if rate.take(now, address(client)).is_err() {
                asking.insert((now + wait(failures + 1), client), failures + 1);
            }
        }
        last
    }

    /// The defaults let a full relay's clients, and a full source's, come back without a pause
    /// that a person would take for the end.
    #[test]
    fn who_lost_a_relay_is_back_within_seconds() {
        let limits = crate::AcceptLimits::default();
        let rate = || {
            AcceptRate::new(
                limits.connections_per_second,
                limits.connections_per_second_per_source,
            )
        };
        let all = all_are_back(10_000, &mut rate(), nth);
        let of_one = all_are_back(1_000, &mut rate(), |_| nth(1));
        println!("10,000 of as many addresses: {all:?}; 1,000 of one: {of_one:?}");
        assert!(all < Duration::from_secs(6), "{all:?}");
        assert!(of_one < Duration::from_secs(6), "{of_one:?}");
    }

    proptest! {
        /// It decides as buckets do that count whole connections and forget nothing.
        #[test]
        fn nothing_is_forgotten_that_counts(
            rates in (1u32..50, 1u32..20),
            steps in vec((0u64..400, 0u32..6), 1..400),
        ) {
            let (in_all, of_source) = rates;
            let mut rate = AcceptRate::new(in_all, of_source);
            // What is in each, in time, and since when.
            let mut buckets: HashMap<Option<u32>, (Duration, Duration)> = HashMap::new();
            let mut now = Duration::ZERO;
            for (pause, source) in steps {
                now += ms(pause);
                let mut level = |who: Option<u32>, rate: u32, burst: u32| {
                    let one = Duration::from_secs(1) / rate;
                    let full = one * rate * burst;
                    let (level, since) = buckets.entry(who).or_insert((full, now));
                    *level = (*level + (now - *since)).min(full);
                    *since = now;
                    *level >= one
                };
                let expected = match (
                    level(Some(source), of_source, BURST_OF_SOURCE),
                    level(None, in_all, BURST_IN_ALL),
                ) {
                    (false, _) => Err(NoSlot::PerSource),
                    (true, false) => Err(NoSlot::InAll),
                    (true, true) => Ok(()),
                };
                if expected.is_ok() {
                    for (who, rate) in [(Some(source), of_source), (None, in_all)] {
                        if let Some((level, _)) = buckets.get_mut(&who) {
                            *level -= Duration::from_secs(1) / rate;
                        }
                    }
                }
                prop_assert_eq!(rate.take(now, nth(source)), expected);
            }
        }
    }
}
