//! What waits for one direction of a session: bounded in bytes and in age. The oldest data is
//! dropped first; handshakes and cookies last.

use std::{collections::VecDeque, time::Duration};

use wire::wireguard::Kind;

/// Handshake messages are small and few, and losing one costs seconds: they may wait this long.
const HANDSHAKE_AGE: Duration = Duration::from_secs(5);

/// A queue whose oldest datagram was late whenever one left, for its whole age, stands: a path is
/// slower than what comes. Data that waits in it gains nothing by waiting, and costs every packet
/// behind it.
const STANDING_AGE: Duration = Duration::from_millis(8);
/// Half of that is late. That it was empty says nothing: a message takes all there is.
const LATE: Duration = Duration::from_millis(4);

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
    /// Since when what left has been late.
    since: Option<Duration>,
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
            since: None,
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
        self.since.get_or_insert(now);
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
        let stands = self
            .since
            .is_some_and(|since| now.saturating_sub(since) > self.age);
        let age = if stands {
            STANDING_AGE.min(self.age)
        } else {
            self.age
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

    /// Nothing stands.
    pub(crate) fn rested(&mut self) {
        self.since = None;
    }

    /// The oldest datagram left after so long: in time, nothing stands.
    pub(crate) fn left(&mut self, waited: Duration) {
        if waited < LATE {
            self.rested();
        }
    }

    /// The same datagrams under other bounds, as if they had come now: what a client was away for
    /// is not late.
    pub(crate) fn anew(mut self, now: Duration, limit: usize, age: Duration) -> Queue {
        for waiting in self.handshakes.iter_mut().chain(&mut self.data) {
            waiting.since = now;
        }
        let since = (!self.is_empty()).then_some(now);
        Queue {
            limit,
            age,
            since,
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
        // Two in, one out, and late from the ninth millisecond on.
        for millis in 0..=208 {
            queue.push(at(millis), Kind::Data, &[1; 10]);
            queue.push(at(millis), Kind::Data, &[2; 10]);
            let waited = queue.pop(at(millis));
            queue.left(waited);
            assert_eq!(queue.expire(at(millis)), 0, "a burst waits");
        }
        assert!(queue.expire(at(209)) > 0);
        // What is left is at most 8 ms old.
        assert_eq!(queue.len(), 2 * 8);
        while !queue.is_empty() {
            assert!(queue.pop(at(210)) <= at(9));
        }
        queue.push(at(210), Kind::Data, &[1; 10]);
        assert_eq!(queue.expire(at(219)), 1, "it stands still");
        queue.push(at(219), Kind::Data, &[1; 10]);
        let waited = queue.pop(at(222));
        queue.left(waited);
        queue.push(at(222), Kind::Data, &[1; 10]);
        assert_eq!(queue.expire(at(422)), 0, "one was in time");
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
