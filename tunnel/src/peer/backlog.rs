//! IP packets that wait for a session: bounded in number, bytes and age, oldest dropped first.

use std::{collections::VecDeque, time::Duration};

use crate::Instant;

const MAX_PACKETS: usize = 256;
const MAX_BYTES: usize = 256 * 1024;
/// Whoever sent an older packet has sent it again, or has given up.
const MAX_AGE: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct Backlog {
    packets: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
}

impl Backlog {
    /// Returns how many packets had to go.
    pub(super) fn push(&mut self, now: Instant, packet: &[u8]) -> u64 {
        let mut dropped = self.expire(now);
        while self.packets.len() >= MAX_PACKETS || self.bytes + packet.len() > MAX_BYTES {
            self.pop();
            dropped += 1;
        }
        self.bytes += packet.len();
        self.packets.push_back((now, packet.to_vec()));
        dropped
    }

    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let (_, packet) = self.packets.pop_front()?;
        self.bytes -= packet.len();
        Some(packet)
    }

    /// Drops what is too old and returns how many that were.
    pub(super) fn expire(&mut self, now: Instant) -> u64 {
        let mut dropped = 0;
        while self
            .packets
            .front()
            .is_some_and(|(since, _)| now.since(*since) > MAX_AGE)
        {
            self.pop();
            dropped += 1;
        }
        dropped
    }

    /// Drops everything and returns how many that were.
    pub(super) fn clear(&mut self) -> u64 {
        let dropped = self.packets.len() as u64;
        *self = Backlog::default();
        dropped
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }
}
