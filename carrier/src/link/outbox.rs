//! The queue between the driver and a socket that may not drain.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;
use wire::wireguard::Kind;

use crate::stats::{Counters, Drop};

/// Datagrams that wait for a WebSocket: bounded in bytes and in age, the oldest data dropped first
/// and handshakes last.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: VecDeque<Waiting>,
    bytes: usize,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    datagram: Vec<u8>,
}

impl Outbox {
    /// How many bytes may wait. At 10 Mbit/s this is 100 ms.
    pub(super) const LIMIT: usize = 128 * 1024;

    /// How long data may wait. What is older has been sent again inside the tunnel.
    pub(super) const MAX_AGE: Duration = Duration::from_millis(1_500);

    /// Whether the driver should go on filling. The other half is for what does not wait to be
    /// asked.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < Self::LIMIT / 2
    }

    pub(super) fn push(&mut self, now: Instant, datagram: Vec<u8>, counters: &Counters) {
        self.expire(now, counters);
        while self.bytes + datagram.len() > Self::LIMIT {
            // A handshake goes only when nothing else is left to drop.
            let oldest_data = self.queue.iter().position(|w| !is_handshake(&w.datagram));
            let Some(dropped) = self.queue.remove(oldest_data.unwrap_or(0)) else {
                break;
            };
            self.bytes -= dropped.datagram.len();
            counters.dropped(Drop::OutboxFull);
        }
        self.bytes += datagram.len();
        self.queue.push_back(Waiting {
            since: now,
            datagram,
        });
    }

    /// Moves what fits into `message` as records, up to `limit` bytes and at least one.
    pub(super) fn fill(
        &mut self,
        now: Instant,
        message: &mut Vec<u8>,
        limit: usize,
        counters: &Counters,
    ) {
        self.expire(now, counters);
        while let Some(first) = self.queue.front() {
            let after = message.len() + wire::record::HEADER + first.datagram.len();
            if !message.is_empty() && after > limit {
                return;
            }
            match wire::record::push(message, &first.datagram) {
                Ok(()) => counters.sent(first.datagram.len()),
                Err(wire::record::RecordError::Full) => return,
                Err(_) => counters.dropped(Drop::Oversize),
            }
            self.bytes -= first.datagram.len();
            self.queue.pop_front();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Drops everything: the connection it waited for is gone.
    pub(super) fn clear(&mut self, counters: &Counters) {
        for _ in self.queue.drain(..) {
            counters.dropped(Drop::LinkDown);
        }
        self.bytes = 0;
    }

    fn expire(&mut self, now: Instant, counters: &Counters) {
        while let Some(first) = self.queue.front() {
            if now - first.since <= Self::MAX_AGE || is_handshake(&first.datagram) {
                return;
            }
            self.bytes -= first.datagram.len();
            self.queue.pop_front();
            counters.dropped(Drop::OutboxStale);
        }
    }
}

fn is_handshake(datagram: &[u8]) -> bool {
    Kind::of(datagram).is_some_and(Kind::is_handshake)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(n: u8) -> Vec<u8> {
        let mut datagram = vec![n; 1_440];
        datagram[..4].copy_from_slice(&[4, 0, 0, 0]);
        datagram
    }

    fn initiation() -> Vec<u8> {
        let mut datagram = vec![0; 148];
        datagram[0] = 1;
        datagram
    }

    #[test]
    fn the_oldest_data_goes_first_and_the_handshake_stays() {
        let (mut outbox, counters) = (Outbox::default(), Counters::default());
        let now = Instant::now();
        outbox.push(now, initiation(), &counters);
        for n in 0..200 {
            outbox.push(now, data(n), &counters);
        }
        assert!(outbox.bytes <= Outbox::LIMIT);
        assert!(!outbox.has_room());
        let mut message = Vec::new();
        outbox.fill(now, &mut message, 16_384, &counters);
        assert!(message.len() <= 16_384);
        let records: Vec<_> = wire::record::records(&message).unwrap().collect();
        assert_eq!(records[0], initiation());
        let kept = (Outbox::LIMIT - 148) / 1_440;
        assert_eq!(records[1], data(u8::try_from(200 - kept).unwrap()));
        assert_eq!(counters.drops(Drop::OutboxFull), 200 - kept as u64);
    }

    #[test]
    fn data_that_waited_too_long_is_dropped() {
        let (mut outbox, counters) = (Outbox::default(), Counters::default());
        let now = Instant::now();
        outbox.push(now, data(1), &counters);
        let later = now + Outbox::MAX_AGE + Duration::from_millis(1);
        outbox.push(later, data(2), &counters);
        assert_eq!(counters.drops(Drop::OutboxStale), 1);
        let mut message = Vec::new();
        outbox.fill(later, &mut message, 16_384, &counters);
        assert_eq!(wire::record::records(&message).unwrap().count(), 1);
        assert!(outbox.is_empty() && outbox.bytes == 0);
    }
}
