//! What becomes of datagrams when more of them come than a path carries, in virtual time: the
//! queue, the pace, and between them and the path a kernel that takes whatever it is given.

use std::{collections::VecDeque, time::Duration};

use wire::wireguard::Kind;

use crate::{
    pace::{Pace, Path},
    queue::Queue,
};

const STEP: Duration = Duration::from_micros(100);
const DATAGRAM: usize = 1400;
const SEGMENT: u64 = 1448;
/// As the session and the listener have them by default.
const MESSAGE: usize = 4 * 1024;
const QUEUE_BYTES: usize = 512 * 1024;
const QUEUE_AGE: Duration = Duration::from_millis(200);
const NOTSENT_LOWAT: u64 = 16 * 1024;
/// Into the last unsent segment the kernel takes so much without asking.
const APPENDED: u64 = 64 * 1024;

/// A connection and its path, from the queue of a session to the client.
struct Simulated {
    /// Bytes that the path carries in a second.
    rate: u64,
    base: Duration,
    queue: Queue,
    pace: Pace,
    /// Of the message that is being written, what the kernel has not taken.
    outgoing: u64,
    again: Duration,
    blocked: bool,
    written: u64,
    unsent: u64,
    window: u64,
    /// What lies before the slowest hop, and what is acknowledged when.
    on_path: u64,
    carried: u64,
    carry: u64,
    acknowledgements: VecDeque<(Duration, u64, Duration)>,
    acknowledged: u64,
    round_trip: Duration,
    /// Of the datagrams in messages: the number of bytes written when the message is whole, when
    /// it came, and its number.
    messages: VecDeque<(u64, Duration, u64)>,
    delays: Vec<Duration>,
    delivered: Vec<u64>,
}

impl Simulated {
    fn new(megabits: u64, base: Duration) -> Simulated {
        Simulated {
            rate: megabits * 125_000,
            base,
            queue: Queue::new(QUEUE_BYTES, QUEUE_AGE),
            pace: Pace::default(),
            outgoing: 0,
            again: Duration::ZERO,
            blocked: false,
            written: 0,
            unsent: 0,
            window: 10 * SEGMENT,
            on_path: 0,
            carried: 0,
            carry: 0,
            acknowledgements: VecDeque::new(),
            acknowledged: 0,
            round_trip: base,
            messages: VecDeque::new(),
            delays: Vec::new(),
            delivered: Vec::new(),
        }
    }

    /// A sender that slows down when something is lost, as TCP does: half as much again per round
    /// trip until the first loss, then a segment more, and at a loss three tenths less.
    fn run_responsive(&mut self, until: Duration) {
        let (mut now, mut window, mut started) = (Duration::ZERO, 10.0, true);
        let (mut next, mut waiting, mut acknowledgements) = (0u64, 0u64, VecDeque::new());
        let mut reduced = 0;
        while now < until {
            while (next - waiting) < window as u64 {
                self.arrive_as(now, next);
                next += 1;
            }
            self.write(now);
            let before = self.delivered.len();
            self.kernel(now);
            for at in before..self.delivered.len() {
                acknowledgements.push_back((now + self.base / 2, self.delivered[at]));
            }
            while let Some((at, number)) = acknowledgements.front().copied()
                && at <= now
            {
                acknowledgements.pop_front();
                let lost = number > waiting;
                waiting = number + 1;
                if lost && number >= reduced {
                    (started, reduced) = (false, next);
                    window = f64::max(window * 0.7, 2.0);
                } else if started {
                    window += 0.5;
                } else {
                    window += 1.0 / window;
                }
            }
            // Nothing is on its way any more: a time-out.
            if acknowledgements.is_empty() && self.is_idle() {
                waiting = next;
            }
            now += STEP;
        }
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.outgoing + self.unsent + self.on_path == 0
    }

    /// Offers so many bytes a second until `until`.
    fn run(&mut self, from: Duration, until: Duration, offered: u64) {
        let (mut now, mut due) = (from, 0);
        while now < until {
            due += offered * STEP.as_micros() as u64;
            while due >= DATAGRAM as u64 * 1_000_000 {
                due -= DATAGRAM as u64 * 1_000_000;
                self.arrive(now);
            }
            self.write(now);
            self.kernel(now);
            now += STEP;
        }
    }

    fn arrive(&mut self, now: Duration) {
        self.arrive_as(now, 0);
    }

    fn arrive_as(&mut self, now: Duration, number: u64) {
        let mut datagram = [0; DATAGRAM];
        datagram[..8].copy_from_slice(&(now.as_micros() as u64).to_le_bytes());
        datagram[8..16].copy_from_slice(&number.to_le_bytes());
        self.queue.push(now, Kind::Data, &datagram);
    }

    fn write(&mut self, now: Duration) {
        loop {
            if self.outgoing == 0 && !self.fill(now) {
                return;
            }
            if now < self.again {
                return;
            }
            if self.pace.room() == 0 {
                self.pace.look(now, &self.path());
            }
            let room = self.pace.room();
            if room == 0 {
                self.again = now + self.pace.wait();
                return;
            }
            let most = match (self.pace.is_crowded(), self.blocked) {
                (true, false) => NOTSENT_LOWAT,
                (true, true) => NOTSENT_LOWAT / 2,
                (false, _) => APPENDED,
            };
            self.blocked = self.unsent >= most;
            if self.blocked {
                return;
            }
            let bytes = room.min(self.outgoing);
            self.pace.wrote(bytes);
            self.outgoing -= bytes;
            self.written += bytes;
            self.unsent += bytes;
        }
    }

    /// The next message.
    fn fill(&mut self, now: Duration) -> bool {
        self.queue.expire(now);
        let mut oldest = None;
        let end = |bytes| self.written + bytes;
        while let Some(datagram) = self.queue.front()
            && self.outgoing as usize + datagram.len() <= MESSAGE
        {
            let number = |at| u64::from_le_bytes(datagram[at..at + 8].try_into().unwrap());
            let (came, number) = (Duration::from_micros(number(0)), number(8));
            self.outgoing += datagram.len() as u64;
            oldest.get_or_insert(self.queue.pop(now));
            self.messages.push_back((0, came, number));
        }
        let end = end(self.outgoing);
        for (at, ..) in self.messages.iter_mut().filter(|(at, ..)| *at == 0) {
            *at = end;
        }
        if let Some(waited) = oldest {
            self.queue.left(now, waited);
        }
        self.outgoing > 0
    }

    fn kernel(&mut self, now: Duration) {
        while let Some((at, bytes, sample)) = self.acknowledgements.front().copied()
            && at <= now
        {
            self.acknowledgements.pop_front();
            self.acknowledged += bytes;
            self.window += bytes;
            self.round_trip = (self.round_trip * 7 + sample) / 8;
        }
        let in_flight = self.carried + self.on_path - self.acknowledged;
        let sent = self.unsent.min(self.window.saturating_sub(in_flight));
        self.unsent -= sent;
        self.on_path += sent;
        self.carry += self.rate * STEP.as_micros() as u64;
        let carried = (self.carry / 1_000_000).min(self.on_path);
        self.carry = if carried == self.on_path {
            0
        } else {
            self.carry % 1_000_000
        };
        if carried == 0 {
            return;
        }
        let queued = Duration::from_micros(self.on_path * 1_000_000 / self.rate);
        self.on_path -= carried;
        self.carried += carried;
        let sample = self.base + queued;
        self.acknowledgements
            .push_back((now + self.base, carried, sample));
        while let Some((end, came, number)) = self.messages.front().copied()
            && end <= self.carried
        {
            self.messages.pop_front();
            self.delays.push(now + self.base / 2 - came);
            self.delivered.push(number);
        }
    }

    fn path(&self) -> Path {
        Path {
            in_flight: self.carried + self.on_path - self.acknowledged,
            unsent: self.unsent,
            acknowledged: self.acknowledged,
            round_trip: self.round_trip,
            shortest: self.base,
        }
    }
}

/// The 99th percentile of the delay, and the part of the path that was used.
fn offered_twice(megabits: u64, base: Duration) -> (Duration, f64) {
    let mut path = Simulated::new(megabits, base);
    let (begun, until) = (Duration::from_secs(2), Duration::from_secs(6));
    path.run(Duration::ZERO, begun, 2 * path.rate);
    path.delays.clear();
    let before = path.carried;
    path.run(begun, until, 2 * path.rate);
    path.delays.sort_unstable();
    let p99 = path.delays[path.delays.len() * 99 / 100];
    let used = (path.carried - before) as f64 / (path.rate as f64 * (until - begun).as_secs_f64());
    (p99, used)
}

#[test]
fn twice_what_a_path_carries_waits_for_milliseconds() {
    let millis = Duration::from_millis;
    for (megabits, base, bound) in [
        (10, 0, 40),
        (50, 0, 20),
        (10, 40, 40),
        (50, 40, 20),
        (200, 10, 15),
    ] {
        let base = millis(base).max(STEP * 2);
        let (p99, used) = offered_twice(megabits, base);
        assert!(
            p99 <= base / 2 + millis(bound),
            "{megabits} Mbit/s, {base:?}: {p99:?}"
        );
        assert!(used > 0.9, "{megabits} Mbit/s, {base:?}: {used}");
    }
}

/// What slows down for a loss uses the path nevertheless.
#[test]
fn a_sender_that_slows_down_uses_the_path() {
    for (megabits, base, least) in [(10, 10, 0.9), (10, 50, 0.9), (50, 20, 0.9), (50, 80, 0.8)] {
        let mut path = Simulated::new(megabits, Duration::from_millis(base));
        path.run_responsive(Duration::from_secs(20));
        let used = path.carried as f64 / (path.rate as f64 * 20.0);
        path.delays.sort_unstable();
        let p99 = path.delays[path.delays.len() * 99 / 100] - path.base / 2;
        assert!(
            p99 < Duration::from_millis(30),
            "{megabits} Mbit/s, {base} ms: {p99:?}"
        );
        assert!(used > least, "{megabits} Mbit/s, {base} ms: {used}");
    }
}

/// A burst that the path carries in less than the queue's age arrives whole.
#[test]
fn a_burst_is_not_cut() {
    let mut path = Simulated::new(10, Duration::from_millis(20));
    for _ in 0..100 {
        path.arrive(Duration::ZERO);
    }
    path.run(Duration::ZERO, Duration::from_secs(1), 0);
    assert_eq!(path.delays.len(), 100);
}
