//! The one place of this crate that reads a clock.

use std::time::{Duration, SystemTime};

use tunnel::Instant;

/// Monotonic time as a [`tunnel::Instant`], counted from the start of the carrier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    epoch: tokio::time::Instant,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock {
            epoch: tokio::time::Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::from_micros(u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    pub(crate) fn at(&self, instant: Instant) -> tokio::time::Instant {
        // A moment past what the platform can represent is one that never comes.
        let after = Duration::from_micros(instant.as_micros());
        self.epoch
            .checked_add(after)
            .unwrap_or_else(|| self.epoch + Duration::from_secs(86_400 * 365))
    }

    /// Wall clock time, which goes on while the machine sleeps; the monotonic clock may not.
    #[expect(clippy::disallowed_methods, reason = "this file is the driver's clock")]
    pub(crate) fn wall(&self) -> Duration {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
    }
}

/// Notices that the machine or the process slept: the peer may have forgotten the session, and a
/// handshake now is cheaper than finding out by silence.
#[derive(Debug)]
pub(crate) struct SleepWatch {
    seen: Instant,
    wall: Duration,
}

/// A gap that no scheduling delay explains.
const SLEPT: Duration = Duration::from_secs(5);

impl SleepWatch {
    pub(crate) fn new(now: Instant, wall: Duration) -> SleepWatch {
        SleepWatch { seen: now, wall }
    }

    /// Called at each wake of the driver. `due` is when it meant to wake at the latest.
    pub(crate) fn slept(&mut self, now: Instant, wall: Duration, due: Option<Instant>) -> bool {
        let monotonic = now - self.seen;
        // The monotonic clock stood still (suspend), or the wake came far too late (a process
        // stopped and continued). A wall clock set back says nothing.
        let suspended = wall.saturating_sub(self.wall) > monotonic + SLEPT;
        let late = due.is_some_and(|due| now - due.max(self.seen) > SLEPT);
        self.seen = now;
        self.wall = wall;
        suspended || late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn sleep_shows_as_a_jump_of_the_wall_clock_or_a_late_wake() {
        let t = |seconds| Instant::ZERO + s(seconds);
        let mut watch = SleepWatch::new(t(0), s(1_000));
        assert!(
            !watch.slept(t(1), s(1_001), Some(t(1))),
            "an ordinary second"
        );
        assert!(
            !watch.slept(t(61), s(1_061), None),
            "a quiet minute with nothing due"
        );
        assert!(
            watch.slept(t(62), s(1_500), Some(t(62))),
            "the wall clock went on alone"
        );
        assert!(!watch.slept(t(63), s(1_501), Some(t(63))), "once only");
        assert!(!watch.slept(t(64), s(900), Some(t(64))), "a clock set back");
        assert!(watch.slept(t(94), s(930), Some(t(65))), "29 s late");
        assert!(
            !watch.slept(t(95), s(931), Some(t(65))),
            "the same due time is not late twice"
        );
    }
}
