//! A rest between two looks at the sockets, while there is much to carry.
//!
//! To wake a thread costs ten times what a datagram does. A network card says what has arrived once
//! in 20 to 250 us, less often the more there is (Linux's `net_dim` goes to 256 us); a virtual one,
//! or loopback, wakes its reader for every datagram, and 40,000 evenly spaced ones cost half a
//! core. A thread that carries many rests after each look, and takes what came meanwhile together.
//! Nothing that it has read is held back, and while it carries little it never rests: what finds
//! it waiting is taken at once.

use std::{
    cell::RefCell,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::Duration,
};

use tokio::time::Instant;

/// The longest rest of any thread, in microseconds: tokio's hooks know no more than that there is
/// a thread.
static LONGEST: AtomicU32 = AtomicU32::new(0);

/// Where nobody asks for another.
pub const USUAL_REST: Duration = Duration::from_micros(200);
/// More is felt.
pub const LONGEST_REST: Duration = Duration::from_millis(1);

/// Over so long it is judged how much there is to carry.
const WINDOW: Duration = Duration::from_millis(1);
/// With less than a datagram in so long, a thread is woken for each.
const BUSY: Duration = Duration::from_micros(50);
/// So many are enough to share a wake.
const TOGETHER: u32 = 20;
/// For less, nobody falls asleep: so many arrive in batches anyway.
const SHORTEST: Duration = Duration::from_micros(60);

/// From now on, threads that call [`before_park`] rest for at most so long, which is at most
/// [`LONGEST_REST`]. The kernel adds its timer slack, 50 us by default.
pub fn set_rest(longest: Duration) {
    let micros = longest.min(LONGEST_REST).as_micros();
    LONGEST.store(u32::try_from(micros).unwrap_or(u32::MAX), Relaxed);
}

/// To be called before a thread looks at its sockets: `tokio::runtime::Builder::on_thread_park`.
pub fn before_park() {
    let longest = Duration::from_micros(LONGEST.load(Relaxed).into());
    if longest.is_zero() {
        return;
    }
    let rest = THREAD.with_borrow_mut(|thread| {
        let (started, thread) = thread.get_or_insert_with(|| (Instant::now(), Rest::default()));
        thread.before_park(started.elapsed(), longest)
    });
    if let Some(rest) = rest {
        thread::sleep(rest);
    }
}

/// This thread has carried so many datagrams.
pub(crate) fn carried(datagrams: u64) {
    THREAD.with_borrow_mut(|thread| {
        if let Some((_, thread)) = thread {
            thread.carried(datagrams);
        }
    });
}

thread_local! {
    /// And when its clock began. None until it is to rest.
    static THREAD: RefCell<Option<(Instant, Rest)>> = const { RefCell::new(None) };
}

/// How one thread rests. Time counts from any moment.
#[derive(Default)]
struct Rest {
    /// When the window began.
    window: Duration,
    /// Since then.
    carried: u64,
    /// Since the last look.
    worked: bool,
    /// What the window before says: one datagram in so long, if there was any.
    every: Option<Duration>,
}

impl Rest {
    fn carried(&mut self, datagrams: u64) {
        self.carried += datagrams;
        self.worked |= datagrams > 0;
    }

    /// How long to rest now, if at all.
    fn before_park(&mut self, now: Duration, longest: Duration) -> Option<Duration> {
        let window = now.saturating_sub(self.window);
        if window >= WINDOW {
            let carried = u32::try_from(self.carried).unwrap_or(u32::MAX);
            self.every = window.checked_div(carried);
            self.window = now;
            self.carried = 0;
        }
        let worked = std::mem::take(&mut self.worked);
        let every = self.every.filter(|every| worked && *every <= BUSY)?;
        let rest = (every * TOGETHER).min(longest);
        (rest >= SHORTEST).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);

    /// Datagrams arrive every so often for ten milliseconds; where one finds the thread waiting,
    /// it wakes. The rests of the second half.
    fn rests(every: Duration, longest: Duration) -> Vec<Duration> {
        let (mut rest, mut now) = (Rest::default(), Duration::ZERO);
        let (mut rests, mut taken) = (Vec::new(), 0);
        while now < 10_000 * MICRO {
            let arrived = (now.as_nanos() / every.as_nanos()) as u64;
            rest.carried(arrived - taken);
            taken = arrived;
            match rest.before_park(now, longest) {
                Some(length) => {
                    now += length;
                    if now > 5_000 * MICRO {
                        rests.push(length);
                    }
                }
                None => now = every * (arrived as u32 + 1),
            }
        }
        rests
    }

    #[test]
    fn who_carries_little_never_rests() {
        for rate in [1, 100, 1_000, 10_000, 19_000] {
            let every = Duration::from_secs(1) / rate;
            assert!(rests(every, USUAL_REST).is_empty(), "{rate} in a second");
        }
    }

    #[test]
    fn who_carries_much_rests_until_some_have_come_and_never_longer_than_it_may() {
        for (rate, least, most) in [
            (25_000, 200, 200),
            (40_000, 200, 200),
            (100_000, 190, 200),
            (200_000, 95, 105),
        ] {
            let every = Duration::from_secs(1) / rate;
            let rests = rests(every, USUAL_REST);
            assert!(!rests.is_empty(), "{rate} in a second");
            for rest in rests {
                assert!(
                    (least * MICRO..=most * MICRO).contains(&rest),
                    "{rate} in a second: {rest:?}"
                );
            }
        }
        let rests = rests(MICRO * 25, MICRO * 60);
        assert!(rests.iter().all(|it| *it == MICRO * 60), "{rests:?}");
    }

    #[test]
    fn what_comes_in_batches_anyway_is_not_waited_for() {
        assert!(rests(MICRO * 2, USUAL_REST).is_empty());
    }

    #[test]
    fn a_look_that_carried_nothing_is_followed_by_none() {
        let mut rest = Rest::default();
        rest.carried(100);
        let longest = LONGEST_REST;
        assert_eq!(rest.before_park(WINDOW, longest), Some(200 * MICRO));
        assert_eq!(rest.before_park(WINDOW, longest), None);
        rest.carried(1);
        assert_eq!(rest.before_park(WINDOW, longest), Some(200 * MICRO));
        // And it ends with what led to it.
        rest.carried(1);
        assert_eq!(rest.before_park(2 * WINDOW, longest), None);
    }
}
