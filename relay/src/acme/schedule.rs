//! When a certificate is ordered. The clock and chance are arguments.

use std::time::{Duration, SystemTime};

/// How long a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: SystemTime,
    pub(super) until: SystemTime,
}

impl Validity {
    pub(super) fn covers(&self, now: SystemTime) -> bool {
        (self.from..self.until).contains(&now)
    }
}

/// Why an order was not fulfilled, as far as trying again is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nobody was asked, or nobody could answer: asking again costs nothing.
    Passing,
    /// The ACME server refused. Such servers count refusals, and five in an hour are many.
    Refused,
}

/// The first wait after a failure; it doubles with each that follows.
const PASSING: Duration = Duration::from_secs(5);
const REFUSED: Duration = Duration::from_secs(120);
/// And never exceeds this.
const LONGEST_PASSING: Duration = Duration::from_secs(10 * 60);
const LONGEST_REFUSED: Duration = Duration::from_secs(6 * 3600);

/// When the next order is due.
#[derive(Debug)]
pub(super) struct Schedule {
    due: SystemTime,
    failures: u32,
}

impl Schedule {
    /// Without a certificate: at once.
    pub(super) fn at_once(now: SystemTime) -> Schedule {
        Schedule {
            due: now,
            failures: 0,
        }
    }

    /// With a certificate: when two thirds of its time are over, or a hundredth of its time
    /// earlier by `chance`, so that relays that began together do not renew together.
    pub(super) fn renewing(validity: Validity, chance: u8) -> Schedule {
        let life = validity.until.duration_since(validity.from);
        let life = life.unwrap_or_default();
        Schedule {
            due: validity.from + life * 2 / 3 - part(life / 100, chance),
            failures: 0,
        }
    }

    pub(super) fn due(&self) -> SystemTime {
        self.due
    }

    /// The last order was not fulfilled.
    pub(super) fn has_failed(&self) -> bool {
        self.failures > 0
    }

    /// An order was not fulfilled: the next is put off, and by `chance` a quarter more.
    pub(super) fn failed(&mut self, failure: Failure, now: SystemTime, chance: u8) {
        let (first, longest) = match failure {
            Failure::Passing => (PASSING, LONGEST_PASSING),
            Failure::Refused => (REFUSED, LONGEST_REFUSED),
        };
        let wait = (first * 2_u32.pow(self.failures.min(12))).min(longest);
        self.due = now + wait + part(wait / 4, chance);
        self.failures += 1;
    }

    /// Somebody has mended what was wrong: what was put off is due now.
    pub(super) fn hurry(&mut self, now: SystemTime) {
        if self.has_failed() {
            self.due = now;
        }
    }
}

/// From nothing to all of it.
fn part(of: Duration, chance: u8) -> Duration {
    of * u32::from(chance) / u32::from(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY
    }

    fn days(days: u32) -> Validity {
        Validity {
            from: start(),
            until: start() + DAY * days,
        }
    }

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_time() {
        let due = |life, chance| Schedule::renewing(days(life), chance).due();
        assert_eq!(due(90, 0), start() + 60 * DAY);
        assert_eq!(due(6, 0), start() + 4 * DAY);
        let early = due(90, u8::MAX);
        assert_eq!(early, start() + 60 * DAY - DAY * 90 / 100);
        // One that is over before it begins is due.
        let upside_down = Validity {
            from: start(),
            until: start() - DAY,
        };
        assert_eq!(Schedule::renewing(upside_down, 9).due(), start());
        assert!(days(1).covers(start()) && !days(1).covers(start() + DAY));
    }

    #[test]
    fn what_fails_is_put_off_ever_further_and_not_for_ever() {
        let waits = |failure| {
            let mut schedule = Schedule::at_once(start());
            let mut waits = Vec::new();
            for _ in 0..20 {
                schedule.failed(failure, start(), 0);
                waits.push(schedule.due().duration_since(start()).unwrap().as_secs());
            }
            waits
        };
        assert_eq!(waits(Failure::Passing)[..4], [5, 10, 20, 40]);
        assert_eq!(waits(Failure::Passing)[19], 600);
        let refused = waits(Failure::Refused);
        assert_eq!(refused[19], 6 * 3600);
        // The first at once: no more than five in an hour.
        let mut at = 0;
        let mut within_the_hour = 1;
        for wait in refused {
            at += wait;
            within_the_hour += u32::from(at < 3600);
        }
        assert_eq!(within_the_hour, 5);
    }

    #[test]
    fn only_what_was_put_off_can_be_hurried() {
        let mut schedule = Schedule::renewing(days(90), 0);
        schedule.hurry(start());
        assert_eq!(schedule.due(), start() + 60 * DAY);
        schedule.failed(Failure::Refused, start() + 60 * DAY, 200);
        assert!(schedule.due() > start() + 60 * DAY);
        schedule.hurry(start() + 60 * DAY);
        assert_eq!(schedule.due(), start() + 60 * DAY);
    }
}
