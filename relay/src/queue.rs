//! What waits for one direction of a session: bounded in bytes and in age. The oldest data is
//! dropped first; handshakes and cookies last.

use std::{collections::VecDeque, time::Duration};

use wire::wireguard::Kind;

/// Handshake messages are small and few, and losing one costs seconds: they may wait this long.
const HANDSHAKE_AGE: Duration = Duration::from_secs(5);

/// A queue whose oldest datagram was late whenever one left, for its whole age, stands: a path is
/// slower than what comes. Data that waits in it gains nothing by waiting, and costs every packet
/// behind it.
const STANDING_AGE: Duration = Duration::from_millis(6);
/// Half of that is late. That it was empty says nothing: a message takes all there is.
const LATE: Duration = Duration::from_millis(3);
/// It stands until nothing has been late for so long. One that leaves in time is no sign: what is
/// dropped makes the next one young.
const REST: Duration = Duration::from_millis(500);

/// Room for this many datagrams of data stays when the queue is empty.
const KEPT: usize = 64;

/// Datagrams that wait. `now` is the time since the session began.
#[derive(Default)]
pub(crate) struct Queue {
    handshakes: VecDeque<Waiting>,
    data: VecDeque<Waiting>,
    bytes: usize,
    limit: usize,
    age: Duration,
    timeliness: Timeliness,
}

/// Whether what leaves leaves in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Timeliness {
    #[default]
    InTime,
    /// Nothing has, since then.
    LateSince(Duration),
    /// It stands; the last that was late was so then.
    Stands(Duration),
}

/// How many datagrams a call dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) full: u64,
    pub(crate) old: u64,
}

struct Waiting {
    since: Duration,
    datagram: Box<[u8]>,
}

impl Queue {
    /// At most `limit` bytes, each datagram of data for at most `age`: a burst may wait so long, and
    /// what stands longer is cut to a few milliseconds.
    pub(crate) fn new(limit: usize, age: Duration) -> Queue {
        Queue {
            handshakes: VecDeque::new(),
            data: VecDeque::new(),
            bytes: 0,
            limit,
            age,
            timeliness: Timeliness::InTime,
        }
    }

    /// Adds a datagram and makes room for it.
    pub(crate) fn push(&mut self, now: Duration, kind: Kind, datagram: &[u8]) -> Dropped {
        let mut dropped = Dropped {
            full: 0,
            old: self.expire(now),
        };
        if datagram.len() > self.limit {
            dropped.full += 1;
            return dropped;
        }
        while self.bytes + datagram.len() > self.limit {
            let oldest = self
                .data
                .pop_front()
                .or_else(|| self.handshakes.pop_front());
            let Some(oldest) = oldest else { break };
            self.bytes -= oldest.datagram.len();
            dropped.full += 1;
        }
        self.bytes += datagram.len();
        if self.timeliness == Timeliness::InTime {
            self.timeliness = Timeliness::LateSince(now);
        }
        let waiting = Waiting {
            since: now,
            datagram: datagram.into(),
        };
        if kind.is_handshake() {
            self.handshakes.push_back(waiting);
        } else {
            self.data.push_back(waiting);
        }
        dropped
    }

    /// Drops what has waited too long; says how many.
    pub(crate) fn expire(&mut self, now: Duration) -> u64 {
        let mut old = 0;
        if let Timeliness::LateSince(since) = self.timeliness
            && now.saturating_sub(since) > self.age
        {
            self.timeliness = Timeliness::Stands(now);
        }
        let age = match self.timeliness {
            Timeliness::Stands(_) => STANDING_AGE.min(self.age),
            Timeliness::InTime | Timeliness::LateSince(_) => self.age,
        };
        for (queue, age) in [(&mut self.data, age), (&mut self.handshakes, HANDSHAKE_AGE)] {
            while let Some(first) = queue.front()
                && now.saturating_sub(first.since) > age
            {
                self.bytes -= first.datagram.len();
                queue.pop_front();
                old += 1;
            }
        }
        if old > 0 {
            self.was_late(now);
        }
        old
    }

    /// The next datagram: handshakes before data, each in order.
    pub(crate) fn front(&self) -> Option<&[u8]> {
        self.handshakes
            .front()
            .or_else(|| self.data.front())
            .map(|first| &*first.datagram)
    }

    /// Takes the datagram that [`Queue::front`] showed; how long it has waited.
    pub(crate) fn pop(&mut self, now: Duration) -> Duration {
        let first = self
            .handshakes
            .pop_front()
            .or_else(|| self.data.pop_front());
        let waited = first.map_or(Duration::ZERO, |first| {
            self.bytes -= first.datagram.len();
            now.saturating_sub(first.since)
        });
        // A burst leaves no memory behind.
        if self.is_empty() && self.data.capacity() > KEPT {
            self.data.shrink_to(KEPT);
        }
        waited
    }

    /// Whatever waits, nothing is late.
    pub(crate) fn rested(&mut self) {
        self.timeliness = Timeliness::InTime;
    }

    /// The oldest datagram left after so long.
    pub(crate) fn left(&mut self, now: Duration, waited: Duration) {
        if waited >= LATE {
            return self.was_late(now);
        }
        match self.timeliness {
            Timeliness::Stands(last) if now.saturating_sub(last) <= REST => {}
            _ => self.timeliness = Timeliness::InTime,
        }
    }

    fn was_late(&mut self, now: Duration) {
        if let Timeliness::Stands(last) = &mut self.timeliness {
            *last = now;
        }
    }

    /// The same datagrams under other bounds, as if they had come now: what a client was away for
    /// is not late.
    pub(crate) fn anew(mut self, now: Duration, limit: usize, age: Duration) -> Queue {
        for waiting in self.handshakes.iter_mut().chain(&mut self.data) {
            waiting.since = now;
        }
        let timeliness = if self.is_empty() {
            Timeliness::InTime
        } else {
            Timeliness::LateSince(now)
        };
        Queue {
            limit,
            age,
            timeliness,
            ..self
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.handshakes.is_empty() && self.data.is_empty()
    }

    /// How many datagrams wait.
    pub(crate) fn len(&self) -> usize {
        self.handshakes.len() + self.data.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const AGE: Duration = Duration::from_millis(200);

    fn drain(queue: &mut Queue) -> Vec<u8> {
        let mut first_bytes = Vec::new();
        while let Some(datagram) = queue.front() {
            first_bytes.push(datagram[0]);
            queue.pop(Duration::ZERO);
        }
        first_bytes
    }

    #[test]
    fn the_oldest_data_goes_first() {
        let mut queue = Queue::new(30, AGE);
        let mut push = |kind, byte| queue.push(Duration::ZERO, kind, &[byte; 10]).full;
        assert_eq!(push(Kind::Initiation, 1), 0);
        assert_eq!(push(Kind::Data, 2), 0);
        assert_eq!(push(Kind::Data, 3), 0);
        assert_eq!(push(Kind::Cookie, 4), 1);
        assert_eq!(push(Kind::Response, 5), 1);
        // Only handshakes are left: now the oldest of them goes.
        assert_eq!(push(Kind::Data, 6), 1);
        assert_eq!(drain(&mut queue), [4, 5, 6]);
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn age_ends_data_before_handshakes() {
        let mut queue = Queue::new(1000, AGE);
        queue.push(Duration::ZERO, Kind::Data, &[1; 10]);
        queue.push(Duration::ZERO, Kind::Response, &[2; 10]);
        queue.push(AGE, Kind::Data, &[3; 10]);
        assert_eq!(queue.expire(AGE), 0);
        assert_eq!(queue.expire(AGE + Duration::from_millis(1)), 1);
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.expire(HANDSHAKE_AGE + AGE), 2);
        assert!(queue.is_empty() && queue.bytes == 0);
    }

    #[test]
    fn what_stands_is_cut_short() {
        let mut queue = Queue::new(100_000, AGE);
        let at = Duration::from_millis;
        let standing = STANDING_AGE.as_millis() as usize;
        let leaves = |queue: &mut Queue, now| {
            let waited = queue.pop(now);
            queue.left(now, waited);
        };
        // Two in, one out, and late from then on.
        let late = 2 * LATE.as_millis() as u64 + 1;
        for millis in 0..late + 200 {
            queue.push(at(millis), Kind::Data, &[1; 10]);
            queue.push(at(millis), Kind::Data, &[2; 10]);
            leaves(&mut queue, at(millis));
            assert_eq!(queue.expire(at(millis)), 0, "a burst waits");
        }
        let mut now = late + 200;
        assert!(queue.expire(at(now)) > 0);
        assert_eq!(queue.len(), 2 * standing, "the youngest stay");
        // One that is in time changes nothing.
        while !queue.is_empty() {
            queue.pop(at(now));
        }
        queue.push(at(now), Kind::Data, &[1; 10]);
        leaves(&mut queue, at(now));
        queue.push(at(now), Kind::Data, &[1; 10]);
        now += standing as u64 + 1;
        assert_eq!(queue.expire(at(now)), 1, "it stands still");
        // In time for half a second: the next burst waits.
        for _ in 0..=501 {
            queue.push(at(now), Kind::Data, &[1; 10]);
            leaves(&mut queue, at(now));
            now += 1;
        }
        queue.push(at(now), Kind::Data, &[1; 10]);
        assert_eq!(queue.expire(at(now) + AGE), 0);
        assert_eq!(queue.expire(at(now + 1) + AGE), 1);
    }

    #[test]
    fn what_never_fits_is_dropped_alone() {
        let mut queue = Queue::new(10, AGE);
        queue.push(Duration::ZERO, Kind::Data, &[1; 10]);
        assert_eq!(
            queue.push(Duration::ZERO, Kind::Data, &[2; 11]),
            Dropped { full: 1, old: 0 }
        );
        assert_eq!(drain(&mut queue), [1]);
    }

    proptest! {
        #[test]
        fn in_is_out_plus_dropped(steps in vec((0u64..500, 0u8..3, 1usize..400), 1..200)) {
            let mut queue = Queue::new(1000, AGE);
            let (mut now, mut pushed, mut popped, mut dropped) = (Duration::ZERO, 0, 0, 0);
            for (millis, action, length) in steps {
                now += Duration::from_millis(millis);
                match action {
                    0 => {
                        popped += u64::from(queue.front().is_some());
                        queue.pop(now);
                    }
                    _ => {
                        let kind = if action == 1 { Kind::Data } else { Kind::Response };
                        let lost = queue.push(now, kind, &vec![0; length]);
                        pushed += 1;
                        dropped += lost.full + lost.old;
                    }
                }
                prop_assert!(queue.bytes <= 1000);
                prop_assert_eq!(pushed, popped + dropped + queue.len() as u64);
            }
        }
    }
}
