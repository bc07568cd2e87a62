//! What a side that only listens does about silence.
//!
//! It has nothing on its way, so that nothing of its own goes unanswered, and the loss of its path
//! looks like a server that thinks. So it asks: a byte that was acknowledged long ago, which every
//! TCP answers (RFC 9293 section 3.8.4). The same byte tells the other side of a new path, where
//! what it sent over the old one waits for a time-out: a stack like this one sends it again then.

use std::time::Duration;

use super::{
    Stack, StreamId,
    flow::Phase,
    packet::{self, Tcp},
    recovery::before,
};
use crate::Instant;

/// When data came last, until that was asked about.
pub(super) type Fed = Option<(Instant, StreamId)>;

/// Data that pauses for this long may have lost its path.
const PAUSE: Duration = Duration::from_secs(1);

impl Stack {
    /// A segment of the other side arrives. One byte may be a question of this kind: it brings no
    /// question back. But who asks has waited, perhaps for what is on its way and lost.
    pub(super) fn note_fed(&mut self, now: Instant, id: StreamId, segment: &Tcp) {
        if segment.length > 1 {
            self.fed = Some((now, id));
        } else if segment.length == 1
            && let Some(flow) = self.flows.get_mut(&id)
            && flow.phase == Phase::Open
            && before(segment.sequence, flow.said.0)
        {
            flow.recovery.nudge(now);
            self.send_again(now, id, false);
        }
    }

    /// When it is time to ask whether the other side is there: data came, and then nothing.
    pub fn lull_at(&self) -> Option<Instant> {
        self.fed.map(|(at, _)| at + PAUSE)
    }

    /// Asks if it is time to, once until data comes again; since when nothing came.
    pub fn ask_in_lull(&mut self, now: Instant) -> Option<Instant> {
        let (since, id) = self.fed.filter(|(at, _)| now.since(*at) >= PAUSE)?;
        self.fed = None;
        self.ask(now, id).then_some(since)
    }

    /// Asks on one of the streams.
    pub fn ask_again(&mut self, now: Instant) {
        let ids: Vec<StreamId> = self.flows.keys().copied().collect();
        let _ = ids.into_iter().any(|id| self.ask(now, id));
    }

    /// The path is back, or is another: both sides send again at once what was on its way.
    pub fn path_changed(&mut self, now: Instant) {
        self.nudge(now);
        let ids: Vec<StreamId> = self.flows.keys().copied().collect();
        for id in ids {
            if !self.outbox.has_room() {
                return;
            }
            self.ask(now, id);
        }
    }

    /// False where the stream has no other side, or the link no room.
    fn ask(&mut self, now: Instant, id: StreamId) -> bool {
        self.advance(now);
        let Some(flow) = self.flows.get(&id) else {
            return false;
        };
        if flow.phase != Phase::Open || !self.outbox.has_room() {
            return false;
        }
        let ours = (flow.key.local, flow.key.local_port);
        let theirs = (flow.key.remote, flow.key.remote_port);
        let (acknowledged, window) = flow.said;
        let numbers = (flow.acknowledged.wrapping_sub(1), acknowledged, window);
        self.outbox
            .push_with(|out| packet::write_tcp(out, ours, theirs, numbers, packet::ACK, &[0]))
    }
}
