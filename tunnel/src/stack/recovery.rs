//! Loss recovery for what we send, beside the TCP engine.
//!
//! The engine knows one answer to loss: three duplicate acknowledgements bring the first missing
//! segment, all else waits for a time-out of at least a second. So the segments on their way are
//! kept here, with what the other side says of them in SACK (RFC 2018); what was overtaken in time
//! counts as lost (RACK, RFC 8985) and is sent again from here, one segment for each that arrived;
//! and a tail that brings no answer is probed (TLP, the same RFC).
//!
//! Congestion control stays with the engine. It is told of a loss once per round trip, by three
//! duplicate acknowledgements of our making; the real ones are kept from it while they mean no
//! more than that packets change places. New data leaves when the engine says so. With a peer that
//! does not speak SACK, nothing here does anything.

use std::{collections::VecDeque, time::Duration};

use super::packet::{Sack, Segment, Tcp};
use crate::Instant;

pub(super) struct Recovery {
    /// Both sides speak SACK.
    enabled: bool,
    /// Segments on their way, in sequence.
    board: VecDeque<Sent>,
    /// How many of them have arrived out of turn.
    arrived: usize,
    /// The most segments that are kept; beyond it the engine is on its own.
    limit: usize,
    /// What the engine was last told: acknowledgement and window.
    told: Option<(u32, u16)>,
    /// The newest delivery: when it was sent, where it ends, how long it took.
    newest: Option<(Instant, u32, Duration)>,
    smoothed: Option<Duration>,
    shortest: Duration,
    /// Packets have been seen to change places.
    reordering: bool,
    /// The loss that is being recovered from ends where sending was when it was noticed.
    recovering: Option<Episode>,
    /// The engine resends all by itself, up to here.
    timed_out: Option<u32>,
    /// The engine was told of a loss and owes the first segment.
    engine_owes: bool,
    /// The engine resent one segment unasked, which ends here: three acknowledgements that repeat
    /// each other had reached it, or it has timed out and more will follow.
    resent: Option<u32>,
    /// Bytes that may be sent again: as many as have arrived.
    allowance: usize,
    /// When segments that were overtaken count as lost.
    overtaken_at: Option<Instant>,
    probe_at: Option<Instant>,
    probes: u32,
    /// A probe was asked for.
    probe: bool,
}

struct Sent {
    sequence: u32,
    end: u32,
    flags: u8,
    payload: Vec<u8>,
    at: Instant,
    again: bool,
    arrived: bool,
    lost: bool,
}

#[derive(Clone, Copy)]
struct Episode {
    until: u32,
    /// The engine's fast recovery ended with the first acknowledgement of something new.
    engine_left: bool,
}

/// What to do with an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Advice {
    /// The engine may see it.
    pub(super) feed: bool,
    /// It says something that the engine has not heard.
    pub(super) news: bool,
    /// The engine is to be told of a loss.
    pub(super) signal: bool,
    /// It acknowledges two segments, of which the first ends here: the engine lets its window grow
    /// by acknowledgements, not by what they acknowledge (RFC 9438 section 4.3), and is given two.
    pub(super) split: Option<u32>,
}

impl Recovery {
    pub(super) fn new(window: usize) -> Recovery {
        Recovery {
            enabled: false,
            board: VecDeque::new(),
            arrived: 0,
            limit: window / SMALLEST,
            told: None,
            newest: None,
            smoothed: None,
            shortest: Duration::MAX,
            reordering: false,
            recovering: None,
            timed_out: None,
            engine_owes: false,
            resent: None,
            allowance: 0,
            overtaken_at: None,
            probe_at: None,
            probes: 0,
            probe: false,
        }
    }

    /// The engine sends a segment that uses sequence numbers.
    pub(super) fn note_sent(&mut self, now: Instant, segment: &Segment<'_>) {
        let Segment { sequence, end, .. } = *segment;
        let known_end = self.board.back().map(|last| last.end);
        if !self.enabled || sequence == end || segment.flags & SYN_OR_RST != 0 {
            return;
        }
        match known_end {
            Some(known) if before(sequence, known) => {
                // A window probe is the first byte of what follows once the window opens.
                if before(known, end) && self.board.back().is_some_and(|s| s.sequence == sequence) {
                    let probe = self.board.pop_back();
                    self.arrived -= usize::from(probe.is_some_and(|probe| probe.arrived));
                    self.push(now, segment);
                } else {
                    self.note_resent(now, sequence, end, known);
                }
            }
            Some(known) if sequence != known => {}
            _ => self.push(now, segment),
        }
        self.arm_probe(now);
    }

    fn push(&mut self, now: Instant, segment: &Segment<'_>) {
        // It goes on with something new: whatever it resent is done with.
        (self.resent, self.engine_owes) = (None, false);
        if self.board.len() < self.limit {
            self.board.push_back(Sent {
                sequence: segment.sequence,
                end: segment.end,
                flags: segment.flags,
                payload: segment.payload.to_vec(),
                at: now,
                again: false,
                arrived: false,
                lost: false,
            });
        }
    }

    /// The engine resends by itself: the first segment because it was told to, or all of them.
    fn note_resent(&mut self, now: Instant, sequence: u32, end: u32, known: u32) {
        for sent in &mut self.board {
            if before(sent.sequence, end) && before(sequence, sent.end) {
                (sent.at, sent.again, sent.lost) = (now, true, false);
            }
        }
        let owed = std::mem::take(&mut self.engine_owes);
        if owed || self.timed_out.is_some() {
            return;
        }
        let goes_on = self.resent.is_some_and(|last| !before(sequence, last));
        self.resent = Some(end);
        if !goes_on {
            self.recovering.get_or_insert(Episode {
                until: known,
                engine_left: false,
            });
            self.allowance = self.allowance.max(ALLOWANCE);
            return;
        }
        self.timed_out = Some(known);
        self.recovering = None;
        self.overtaken_at = None;
        for sent in &mut self.board {
            sent.lost = false;
        }
    }

    /// A segment of the other side arrives, before the engine sees it.
    pub(super) fn note_arrived(&mut self, now: Instant, segment: &Tcp, sacks: &Sack) -> Advice {
        let told = (segment.acknowledged, segment.window);
        let mut feed = Advice {
            feed: true,
            news: false,
            signal: false,
            split: None,
        };
        if segment.syn() {
            self.enabled = sacks.permitted;
            return feed;
        }
        if !segment.ack() {
            return feed;
        }
        let first = self.board.front().map(|first| first.sequence);
        if first.is_some_and(|first| before(segment.acknowledged, first)) {
            // Overtaken by a newer one.
            return feed;
        }
        feed.news = self.told != Some(told);
        self.told = Some(told);
        if !self.enabled {
            return feed;
        }
        let plain = segment.length == 0 && !segment.rst() && !self.board.is_empty();
        let repeats = plain && !feed.news;

        let split = self
            .board
            .get(1)
            .filter(|second| plain && second.end == told.0);
        let split = split.map(|second| second.sequence);
        let delivered = self.settle(now, segment.acknowledged, sacks);
        let advanced = first != self.board.front().map(|first| first.sequence);
        if advanced {
            self.probes = 0;
        }
        self.allowance += delivered;
        self.arm_probe(now);
        let una = segment.acknowledged;
        if self.timed_out.is_some_and(|until| !before(una, until)) {
            self.timed_out = None;
        }
        if let Some(episode) = &mut self.recovering {
            episode.engine_left |= advanced;
            if !before(una, episode.until) {
                self.recovering = None;
                self.allowance = 0;
            }
        }
        let signal = self.detect(now);
        if self.recovering.is_none() {
            self.allowance = 0;
        }
        feed.feed = match self.recovering {
            _ if !repeats => true,
            // Nothing is to be sent again: the engine may send something new instead.
            Some(episode) => !signal && !episode.engine_left && !self.has_lost(),
            None => false,
        };
        Advice {
            signal,
            split,
            ..feed
        }
    }

    /// Takes acknowledged segments off the board and marks those that arrived. Bytes that are
    /// known to have arrived now and were not before.
    fn settle(&mut self, now: Instant, una: u32, sacks: &Sack) -> usize {
        let mut delivered = 0;
        while let Some(first) = self.board.front()
            && !before(una, first.end)
        {
            if first.arrived {
                self.arrived -= 1;
            } else {
                delivered += first.payload.len();
                let first = (first.at, first.end, first.again);
                self.note_delivery(now, first);
            }
            self.board.pop_front();
        }
        for &(left, right) in sacks.blocks() {
            let sane = before(left, right)
                && !before(left, una)
                && self
                    .board
                    .back()
                    .is_some_and(|last| !before(last.end, right));
            if !sane {
                continue;
            }
            let from = self
                .board
                .partition_point(|sent| before(sent.sequence, left));
            for at in from..self.board.len() {
                let sent = &mut self.board[at];
                if before(right, sent.end) {
                    break;
                }
                if !std::mem::replace(&mut sent.arrived, true) {
                    sent.lost = false;
                    self.arrived += 1;
                    delivered += sent.payload.len();
                    let sent = (sent.at, sent.end, sent.again);
                    self.note_delivery(now, sent);
                }
            }
        }
        delivered
    }

    fn note_delivery(&mut self, now: Instant, (at, end, again): (Instant, u32, bool)) {
        let took = now.since(at);
        if again && took < self.shortest {
            // Too soon: it is the first copy that arrived, and was not lost.
            self.reordering = true;
            return;
        }
        if !again {
            self.shortest = self.shortest.min(took);
            self.smoothed = Some(match self.smoothed {
                Some(smoothed) => (smoothed * 7 + took) / 8,
                None => took,
            });
            let overtaken = self
                .newest
                .is_some_and(|(_, newest, _)| before(end, newest));
            self.reordering |= overtaken;
        }
        let newer =
            |(newest, newest_end, _)| newest < at || (newest == at && before(newest_end, end));
        if self.newest.is_none_or(newer) {
            self.newest = Some((at, end, took));
        }
    }

    /// Finds what was overtaken for long enough to be lost. True if that is news for the engine.
    fn detect(&mut self, now: Instant) -> bool {
        self.overtaken_at = None;
        let Some((newest, newest_end, took)) = self.newest else {
            return false;
        };
        let arrived = self.arrived;
        if self.timed_out.is_some() || (arrived == 0 && self.recovering.is_none()) {
            return false;
        }
        let patient = self.reordering || (arrived < 3 && self.recovering.is_none());
        let patience = if patient {
            self.shortest.min(took) / 4
        } else {
            Duration::ZERO
        };
        let mut found = false;
        for sent in &mut self.board {
            let overtaken = sent.at < newest || (sent.at == newest && before(sent.end, newest_end));
            if sent.lost {
                // It was found in an episode that ended before it.
                found = true;
                continue;
            }
            if sent.arrived || !overtaken {
                continue;
            }
            let due = sent.at + took + patience;
            if due <= now {
                sent.lost = true;
                found = true;
            } else {
                self.overtaken_at = Some(self.overtaken_at.map_or(due, |at| at.min(due)));
            }
        }
        let until = self.board.back().map_or(0, |last| last.end);
        let Some(first) = self
            .board
            .front_mut()
            .filter(|_| found && self.recovering.is_none())
        else {
            return false;
        };
        // The engine sends the first segment again when it hears of the loss.
        first.lost = false;
        (first.at, first.again) = (now, true);
        self.engine_owes = true;
        self.recovering = Some(Episode {
            until,
            engine_left: false,
        });
        self.allowance = ALLOWANCE;
        true
    }

    fn has_lost(&self) -> bool {
        self.board.iter().any(|sent| sent.lost)
    }

    /// The next segment to send again: sequence, flags, payload.
    pub(super) fn next(&mut self, now: Instant) -> Option<(u32, u8, &[u8])> {
        if std::mem::take(&mut self.probe) {
            let mut missing = self.board.iter_mut().filter(|sent| !sent.arrived);
            // The last tells most of what became of the others; where they are known to be
            // missing, the first moves most.
            let in_order = self.recovering.is_none() && self.timed_out.is_none();
            let sent = if in_order {
                missing.next_back()
            } else {
                missing.next()
            }?;
            (sent.at, sent.again, sent.lost) = (now, true, false);
            return Some((sent.sequence, sent.flags, &sent.payload));
        }
        self.recovering?;
        let lost = self.board.iter_mut().find(|sent| sent.lost)?;
        if self.allowance < lost.payload.len() {
            return None;
        }
        self.allowance -= lost.payload.len();
        (lost.at, lost.again, lost.lost) = (now, true, false);
        Some((lost.sequence, lost.flags, &lost.payload))
    }

    /// What the engine believes the other side said last: acknowledgement and window.
    pub(super) fn told(&self) -> Option<(u32, u16)> {
        self.told
    }

    /// When [`Recovery::handle_timeout`] wants to be called.
    pub(super) fn due(&self) -> Option<Instant> {
        self.overtaken_at.into_iter().chain(self.probe_at).min()
    }

    /// Does what has become due. True if the engine is to be told of a loss.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        let mut signal = false;
        if self.overtaken_at.is_some_and(|at| at <= now) {
            signal = self.detect(now);
        }
        if self.probe_at.is_some_and(|at| at <= now) {
            self.probes += 1;
            self.probe = true;
            self.arm_probe(now);
        }
        signal
    }

    /// The path is back, or is another: what is on its way is probed at once.
    pub(super) fn nudge(&mut self, now: Instant) {
        if self.enabled && !self.board.is_empty() {
            self.probes = 0;
            self.probe = true;
            self.arm_probe(now);
        }
    }

    /// A tail is probed after two round trips, then after four; then the engine times out.
    fn arm_probe(&mut self, now: Instant) {
        self.probe_at = None;
        let Some(smoothed) = self.smoothed else {
            return;
        };
        let idle = self.board.is_empty() || self.timed_out.is_some();
        if idle || self.probes >= MAX_PROBES {
            return;
        }
        let patience = if self.board.len() == 1 {
            LONE_ACK_DELAY
        } else {
            ACK_DELAY
        };
        self.probe_at = Some(now + (smoothed * 2 + patience) * (1 << self.probes));
    }
}

/// `a` comes before `b` in the sequence space, which wraps.
pub(super) fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) > i32::MAX as u32
}

const SYN_OR_RST: u8 = 2 | 4;
/// Segments of fewer bytes than this, on average, are too many to keep.
const SMALLEST: usize = 512;
/// What may be sent again before anything more arrives: two segments.
const ALLOWANCE: usize = 2 * 1360;
const MAX_PROBES: u32 = 2;
/// How long the other side may sit on an acknowledgement: of several segments ...
const ACK_DELAY: Duration = Duration::from_millis(10);
/// ... and of one.
const LONE_ACK_DELAY: Duration = Duration::from_millis(50);
