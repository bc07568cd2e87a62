//! How much of what is written may lie in the kernel and on the path.
//!
//! TCP fills whatever queue the slowest hop has before it slows down, and datagrams that wait there
//! can be dropped by nobody: a path of 10 Mbit/s with a queue of 200 ms delays every one by 200 ms.
//! So the round trip is watched, and while it is longer than the shortest by more than [`PATIENCE`],
//! no more is written than the path carries in the shortest round trip and that patience. The rest
//! waits in the session's queue, where the oldest is dropped first.
//!
//! A round trip may have been long for a moment that is over: it is doubted for [`DOUBT`] first.
//!
//! A queue may be somebody else's, or the path's round trips differ by nature: then holding back
//! empties nothing and costs what the path would carry. When the rate has fallen by half since
//! holding back began, or the queue stands in spite of it, twice as much is let out for a moment: a
//! path that then carries half as much again is shared, and left alone for [`TRUCE`]. Where it
//! brought nothing, the next such moment comes later.
//!
//! The idea is that of BBR (draft-ietf-ccwg-bbr) and LEDBAT (RFC 6817), kept beside the kernel's
//! congestion control, not in place of it.

use std::time::Duration;

/// What a path may add to its shortest round trip before it is held back, and keeps then.
const PATIENCE: Duration = Duration::from_millis(5);
/// What may always lie there: less would leave the path idle between two looks.
const LEAST: u64 = 16 * 1024;
/// More than any path with a shorter queue than this needs.
const MOST: u64 = 16 * 1024 * 1024;
/// Without a limit the path is looked at once in what it carries in so much time, which is at least
/// and at most so many bytes ...
const LOOK: Duration = Duration::from_micros(250);
const STRIDE: u64 = 32 * 1024;
const LONG_STRIDE: u64 = 256 * 1024;
/// ... and, while it is [`crowded`](Pace::is_crowded) or in doubt, in so many.
const SHORT_STRIDE: u64 = 8 * 1024;
/// With so many bytes unsent it is.
const CROWD: u64 = 4 * 1024;
/// A long round trip may be that of a moment that is over: a client that was sent little has
/// acknowledged late, or a host stood still. Then what is acknowledged in so much time is more than
/// a path with such a queue would carry.
const DOUBT: Duration = Duration::from_millis(2);
/// Nor is it believed for what a look before a quiet time has found: one without a look for so long,
/// and for two round trips.
const QUIET: Duration = Duration::from_millis(100);
/// With one, the rate is that of at least so much time.
const WINDOW: Duration = Duration::from_millis(40);
/// How long a path is left alone that nothing was won on.
const TRUCE: Duration = Duration::from_secs(10);
/// A trial lasts so many windows: in the first, what was let out arrives; each of the others has to
/// say the same.
const TRIAL: u32 = 3;
/// A host that stood still for a moment has a window with little in it, and one with much: what a
/// path carries is the most of so many.
const RECENT: usize = 4;
/// How many windows a queue may stand in spite of holding back, at first; and how many times that
/// grows, by four.
const BORNE: u32 = 8;
const MOST_BORNE: u32 = 4;

/// What the kernel says of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Path {
    /// Bytes sent and not acknowledged ...
    pub(crate) in_flight: u64,
    /// ... and bytes not sent.
    pub(crate) unsent: u64,
    /// Bytes acknowledged since the connection began.
    pub(crate) acknowledged: u64,
    /// The round trip, smoothed.
    pub(crate) round_trip: Duration,
    /// The shortest lately.
    pub(crate) shortest: Duration,
}

/// What a connection may write.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Bytes that may be written before the path is looked at again.
    room: u64,
    /// When it was looked at last, and what had been acknowledged then.
    looked: (Duration, u64),
    /// The kernel had bytes that it could not send, when it was asked last.
    crowded: bool,
    /// Since when each look has found the round trip too long, and what had been acknowledged then.
    long: Option<(Duration, u64)>,
    held: Option<Held>,
    truce: Option<Truce>,
    /// How many windows a queue may stand, as a power of four times [`BORNE`].
    borne: u32,
}

/// Nothing is held back for a while.
#[derive(Debug, Clone, Copy)]
struct Truce {
    /// Since when, and what had been acknowledged then.
    since: (Duration, u64),
    /// The rate before.
    held: u64,
}

#[derive(Debug)]
struct Held {
    /// Bytes that may lie in the kernel.
    limit: u64,
    /// Bytes that the path carries in a second.
    rate: u64,
    /// Bytes that have to leave before something is written.
    excess: u64,
    /// The rate when holding back began: while what stood in the queue left it.
    before: Option<u64>,
    /// The rates of the last windows, the newest first.
    recent: [u64; RECENT],
    /// Since when the rate is measured, and what had been acknowledged then.
    since: (Duration, u64),
    /// Something waited for room in that time.
    waited: bool,
    /// For so many windows the queue has stood in spite of it.
    stood: u32,
    trial: Option<Trial>,
}

/// Twice as much is let out, to see whether the path carries more then.
#[derive(Debug)]
struct Trial {
    /// The rate before.
    rate: u64,
    /// It lasts for so many windows more.
    left: u32,
    /// The least rate after the first window.
    least: u64,
}

impl Pace {
    /// How much may be written now; 0 means that it is time for a [`look`](Pace::look).
    pub(crate) fn room(&self) -> u64 {
        self.room
    }

    pub(crate) fn wrote(&mut self, bytes: u64) {
        self.room = self.room.saturating_sub(bytes);
    }

    /// Whether the path takes less than it is given: then each write is to be a segment of its own
    /// in the kernel, which asks whether there is room (`TCP_NOTSENT_LOWAT`) for a new one alone
    /// and otherwise appends up to 64 KB to the last.
    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded || self.held.is_some()
    }

    /// How long it takes until there is room.
    pub(crate) fn wait(&self) -> Duration {
        let Some(held) = &self.held else {
            return SHORTEST_WAIT;
        };
        let micros = held.excess.saturating_mul(1_000_000) / held.rate.max(1);
        Duration::from_micros(micros).clamp(SHORTEST_WAIT, LONGEST_WAIT)
    }

    /// Takes what the kernel says. `now` is the time since any fixed moment.
    pub(crate) fn look(&mut self, now: Duration, path: &Path) {
        let queued = path.round_trip.saturating_sub(path.shortest);
        self.crowded = path.unsent > CROWD;
        let looked = std::mem::replace(&mut self.looked, (now, path.acknowledged));
        if now.saturating_sub(looked.0) > QUIET.max(2 * path.round_trip) {
            self.long = None;
        }
        let long = *self.long.get_or_insert((now, path.acknowledged));
        if queued <= PATIENCE || self.truce.is_some() {
            self.long = None;
        }
        let stride = if self.crowded || self.long.is_some() {
            SHORT_STRIDE
        } else {
            carried(LOOK, rate_since(looked, now, path)).clamp(STRIDE, LONG_STRIDE)
        };
        if let Some(Truce { since, held }) = self.truce
            && now.saturating_sub(since.0) >= TRUCE
        {
            self.truce = None;
            let bytes = path.acknowledged.saturating_sub(since.1);
            let won = per_second(bytes, now.saturating_sub(since.0)) > held + held / 2;
            self.borne = if won {
                0
            } else {
                (self.borne + 1).min(MOST_BORNE)
            };
        }
        // The kernel's own rate is that of a burst that a token bucket let through.
        let rate = per_second(path.in_flight, path.round_trip);
        if self.held.is_none() && self.long.is_some() && is_queue(now, path, long, rate) {
            self.held = Some(Held {
                limit: fitting(rate, path.shortest),
                rate,
                excess: 0,
                before: None,
                recent: [0; RECENT],
                since: (now, path.acknowledged),
                waited: false,
                stood: 0,
                trial: None,
            });
        }
        let Some(held) = &mut self.held else {
            self.room = stride;
            return;
        };
        let (since, acknowledged) = held.since;
        let window = now.saturating_sub(since);
        if window >= WINDOW.max(path.round_trip) {
            let bytes = path.acknowledged.saturating_sub(acknowledged);
            let rate = per_second(bytes, window);
            let before = *held.before.get_or_insert(rate);
            held.rate = rate;
            held.recent.rotate_right(1);
            held.recent[0] = rate;
            let carried = held.recent.into_iter().max().unwrap_or(rate);
            held.since = (now, path.acknowledged);
            let waited = std::mem::take(&mut held.waited);
            match held.trial.take() {
                // What is offered is less than what may leave: that tells nothing.
                Some(_) if !waited => held.limit /= 2,
                Some(trial) if trial.left > 0 => {
                    let arrives = trial.left == TRIAL - 1;
                    let least = if arrives {
                        u64::MAX
                    } else {
                        rate.min(trial.least)
                    };
                    let left = trial.left - 1;
                    held.trial = Some(Trial {
                        left,
                        least,
                        ..trial
                    });
                }
                Some(trial) if rate.min(trial.least) > trial.rate + trial.rate / 2 => {
                    let since = (now, path.acknowledged);
                    let held = trial.rate;
                    self.truce = Some(Truce { since, held });
                    self.held = None;
                    self.room = stride;
                    return;
                }
                Some(_) => {
                    held.limit = fitting(rate, path.shortest);
                    held.before = Some(rate);
                    held.stood = 0;
                    self.borne = (self.borne + 1).min(MOST_BORNE);
                }
                None if !waited => {}
                None => {
                    held.stood = if queued > 2 * PATIENCE {
                        held.stood + 1
                    } else {
                        0
                    };
                    if queued > PATIENCE
                        && (carried < before / 2 || held.stood > BORNE << (2 * self.borne))
                    {
                        held.limit *= 2;
                        held.trial = Some(Trial {
                            rate: carried,
                            left: TRIAL - 1,
                            least: u64::MAX,
                        });
                    } else if queued > PATIENCE {
                        held.limit = fitting(rate, path.shortest);
                    } else if queued < PATIENCE / 2 {
                        held.limit += held.limit / 4;
                    }
                }
            }
            if held.limit > MOST {
                self.held = None;
                self.room = stride;
                return;
            }
        }
        let there = path.in_flight + path.unsent;
        self.room = held.limit.saturating_sub(there);
        if self.room < SMALLEST {
            held.excess = there + SMALLEST - held.limit;
            self.room = 0;
            held.waited = true;
        }
    }
}

/// Whether a round trip that has been long for a while is that of a queue on a path that carries so
/// many bytes in a second.
fn is_queue(now: Duration, path: &Path, long: (Duration, u64), rate: u64) -> bool {
    now.saturating_sub(long.0) >= DOUBT && rate_since(long, now, path) <= rate + rate / 2
}

/// The rate of what was acknowledged since a look.
fn rate_since((since, acknowledged): (Duration, u64), now: Duration, path: &Path) -> u64 {
    let bytes = path.acknowledged.saturating_sub(acknowledged);
    per_second(bytes, now.saturating_sub(since))
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    bytes.saturating_mul(1_000_000) / micros.max(1)
}

/// Bytes in so much time.
fn carried(time: Duration, rate: u64) -> u64 {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    rate.saturating_mul(micros) / 1_000_000
}

/// What a path holds that carries so many bytes in a second and is given [`PATIENCE`].
fn fitting(rate: u64, shortest: Duration) -> u64 {
    carried(shortest + PATIENCE, rate).max(LEAST)
}

/// A write of less than this is put off.
const SMALLEST: u64 = 1400;
/// What is put off is put off for at least and at most so long.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    /// A path with a queue, looked at every millisecond by a writer that has more than it takes.
    struct Simulated {
        rate: u64,
        base: Duration,
        in_kernel: u64,
        acknowledged: u64,
        round_trip: Duration,
        shortest: Duration,
    }

    impl Simulated {
        fn new(megabits: u64, base: Duration) -> Simulated {
            Simulated {
                rate: megabits * 125_000,
                base,
                in_kernel: 0,
                acknowledged: 0,
                round_trip: base,
                shortest: base,
            }
        }

        /// Of another's bytes so many lie in the queue all the time, and take their share.
        fn run(&mut self, pace: &mut Pace, from: u64, millis: u64, others: u64) -> Duration {
            let mut worst = Duration::ZERO;
            for millisecond in from..from + millis {
                let now = Duration::from_millis(millisecond);
                pace.look(now, &self.path());
                // The kernel takes no more than its window: 4 MiB here.
                let room = pace.room().min((4 << 20) - self.in_kernel.min(4 << 20));
                pace.wrote(room);
                self.in_kernel += room;
                // Who is held back wants more than that.
                if pace.held.is_some() {
                    pace.look(now, &self.path());
                }
                let share = if others == 0 {
                    self.rate
                } else {
                    self.rate * self.in_kernel / (self.in_kernel + others)
                };
                let queue = (self.in_kernel + others).saturating_sub(
                    self.rate * u64::try_from(self.base.as_micros()).unwrap() / 1_000_000,
                );
                let sample = self.base + Duration::from_micros(queue * 1_000_000 / self.rate);
                self.round_trip = (self.round_trip * 7 + sample) / 8;
                let left = (share / 1000).min(self.in_kernel);
                self.in_kernel -= left;
                self.acknowledged += left;
                worst = worst.max(sample);
            }
            worst
        }

        fn path(&self) -> Path {
            Path {
                in_flight: self.in_kernel,
                unsent: 0,
                acknowledged: self.acknowledged,
                round_trip: self.round_trip,
                shortest: self.shortest,
            }
        }
    }

    #[test]
    fn a_slow_path_keeps_a_short_queue_and_is_used_whole() {
        for (megabits, base) in [(10, 1), (50, 1), (50, 40), (2, 100), (100, 20)] {
            let base = Duration::from_millis(base);
            let mut path = Simulated::new(megabits, base);
            let mut pace = Pace::default();
            path.run(&mut pace, 0, 500, 0);
            let begun = path.acknowledged;
            let worst = path.run(&mut pace, 500, 2000, 0);
            // A trial doubles it for a moment.
            let least = Duration::from_micros(2 * LEAST * 8 / megabits);
            let bound = base + (PATIENCE * 4).max(least + Duration::from_millis(2));
            assert!(worst <= bound, "{megabits} Mbit/s, {base:?}: {worst:?}");
            let used = (path.acknowledged - begun) / 2;
            assert!(used > path.rate * 9 / 10, "{megabits} Mbit/s: {used}");
        }
    }

    #[test]
    fn a_fast_path_is_never_held_back() {
        let mut pace = Pace::default();
        for millis in 0..10_000 {
            let path = Path {
                in_flight: 3 << 20,
                unsent: 0,
                acknowledged: millis << 20,
                round_trip: Duration::from_millis(80),
                shortest: Duration::from_millis(75),
            };
            pace.look(Duration::from_millis(millis), &path);
            assert!(pace.room() >= STRIDE);
        }
    }

    /// Its acknowledgements were late while it was sent little, and the kernel forgets that slowly.
    #[test]
    fn a_client_that_was_quiet_is_not_held_back() {
        let mut pace = Pace::default();
        let second = Duration::from_secs(1);
        let mut path = Path {
            in_flight: 128 * 1024,
            unsent: 0,
            acknowledged: 1000,
            round_trip: Duration::from_millis(9),
            shortest: Duration::from_micros(50),
        };
        // Nor for a look while it was.
        pace.look(second, &path);
        for look in 0..200 {
            pace.look(2 * second + look * Duration::from_micros(50), &path);
            assert!(pace.room() > 0 && pace.held.is_none(), "{look}: {pace:?}");
            path.acknowledged += 100_000;
            path.round_trip = path.round_trip * 199 / 200;
        }
        assert_eq!(pace.room(), LONG_STRIDE);
    }

    /// A host that stands still now and then: what was due meanwhile comes at once.
    #[test]
    fn a_stall_is_not_taken_for_somebody_elses_queue() {
        for seed in 0..50 {
            let mut random: u64 = seed;
            let mut below = |most: u64| {
                random = random.wrapping_mul(6_364_136_223_846_793_005) + 1;
                (random >> 33) % most
            };
            let mut path = Simulated::new(10, Duration::from_millis(1));
            let mut pace = Pace::default();
            let (mut now, mut left_alone) = (0, 0);
            while now < 20_000 {
                let calm = 40 + below(300);
                path.run(&mut pace, now, calm, 0);
                let stall = 5 + below(35);
                now += calm + stall;
                let left = (path.rate * stall / 1000).min(path.in_kernel);
                path.in_kernel -= left;
                path.acknowledged += left;
                left_alone += u32::from(pace.truce.is_some());
            }
            assert_eq!(left_alone, 0, "seed {seed}");
        }
    }

    #[test]
    fn a_path_that_grows_is_followed() {
        let mut path = Simulated::new(10, Duration::from_millis(10));
        let mut pace = Pace::default();
        path.run(&mut pace, 0, 1000, 0);
        path.rate *= 20;
        path.run(&mut pace, 1000, 2000, 0);
        let begun = path.acknowledged;
        path.run(&mut pace, 3000, 1000, 0);
        assert!(path.acknowledged - begun > path.rate * 8 / 10);
    }

    #[test]
    fn a_queue_of_somebody_else_is_not_waited_out() {
        let mut path = Simulated::new(50, Duration::from_millis(10));
        let mut pace = Pace::default();
        // 160 ms of queue that stay whatever we do.
        path.run(&mut pace, 0, 4000, 1_000_000);
        let begun = path.acknowledged;
        path.run(&mut pace, 4000, 20_000, 1_000_000);
        let share = (path.acknowledged - begun) / 20;
        assert!(share > path.rate / 3, "{share} of {}", path.rate);
    }
}
