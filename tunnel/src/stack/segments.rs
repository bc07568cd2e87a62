//! TCP segments: from the wire to the engine, from the engine to the wire, and what the engine makes
//! of a stream.

use std::{collections::BTreeSet, time::Duration};

use smoltcp::socket::tcp::State;

use super::{
    Class, CloseReason, Drop, Link, Notice, Outbox, Stack, StackError, StreamError, StreamId,
    Unreachable,
    flow::{self, Flow, FlowKey, Phase, engine_local},
    packet::{self, Ipv6, Sack, Tcp},
};
use crate::Instant;

/// Segments.
impl Stack {
    pub(super) fn handle_tcp(&mut self, now: Instant, packet: &Ipv6<'_>) {
        let Some(segment) = Tcp::parse(packet) else {
            return self.drops.count(Drop::Malformed);
        };
        let key = FlowKey {
            remote_port: segment.source,
            local_port: segment.destination,
            remote: packet.source,
            local: packet.destination,
        };
        if let Some(&id) = self.by_key.get(&key) {
            return self.feed(now, id, packet, &segment);
        }
        if segment.opens() && self.listeners.contains_key(&key.local_port) {
            self.time_waits.remove(&key);
            return self.accept(now, key, packet, &segment);
        }
        self.drops.count(Drop::NoStream);
        if self.time_waits.contains(now, &key) {
            if segment.fin() && segment.ack() {
                // The acknowledgement of their goodbye was lost: here it is again.
                let end = segment.sequence.wrapping_add(segment.length);
                let (ours, theirs) = ((key.local, key.local_port), (key.remote, key.remote_port));
                self.outbox.push_with(|out| {
                    let numbers = (segment.acknowledged, end, u16::MAX);
                    packet::write_tcp(out, ours, theirs, numbers, packet::ACK, &[]);
                });
            }
            return;
        }
        let mut link = Link {
            packet: Some(packet.bytes),
            outbox: &mut self.outbox,
            mtu: self.mtu,
        };
        self.engines[0].poll_ingress_single(flow::engine_time(now), &mut link, &mut self.nobody);
    }

    /// A SYN to a listener makes a stream of its own.
    fn accept(&mut self, now: Instant, key: FlowKey, packet: &Ipv6<'_>, segment: &Tcp) {
        let Some(listener) = self.listeners.get_mut(&key.local_port) else {
            return;
        };
        if listener.half_open >= listener.backlog {
            return self.drops.count(Drop::Backlog);
        }
        let (id, class) = (listener.id, listener.class);
        let share = self.half_open_memory + flow::memory_of(class) <= self.limits.memory / 2;
        if !share || self.make_room(class).is_err() {
            return self.drops.count(Drop::Memory);
        }
        let deadline = now + self.limits.half_open_timeout;
        let mut flow = Flow::new(key, Phase::HalfOpen(key.local_port), class, deadline);
        flow.timeout = Some(self.limits.stream_timeout);
        flow.narrow = self.narrow.contains(&key.remote);
        flow.listener = Some(id);
        flow.state = State::Listen;
        if flow.socket_mut().listen(engine_local(&key)).is_err() {
            return self.drops.count(Drop::Malformed);
        }
        if let Some(listener) = self.listeners.get_mut(&key.local_port) {
            listener.half_open += 1;
        }
        self.half_open_memory += flow.memory();
        let id = self.insert(flow);
        self.feed(now, id, packet, segment);
    }

    fn feed(&mut self, now: Instant, id: StreamId, packet: &Ipv6<'_>, segment: &Tcp) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        flow.hear(now, segment);
        self.note_fed(now, id, segment);
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let sack = Sack::parse(packet, segment);
        let advice = flow.recovery.note_arrived(now, segment, &sack);
        let (behind, ahead) = flow.off_sequence(segment);
        let beyond = ahead && segment.length == 0;
        // What begins elsewhere, and data while the window is closed, the engine throws away with
        // the acknowledgement in it.
        let refused = behind || ahead || (segment.length > 0 && flow.phase == Phase::Open);
        if let Some(first) = advice.split {
            self.tell(now, id, first, segment.window, 1);
        }
        if advice.feed && (beyond || (advice.news && refused)) {
            self.tell(now, id, segment.acknowledged, segment.window, 1);
        }
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if advice.feed && !beyond {
            let before = self.outbox.packets;
            let mut link = Link {
                packet: Some(packet.bytes),
                outbox: &mut self.outbox,
                mtu: self.mtu,
            };
            let engine = &mut self.engines[usize::from(flow.narrow)];
            engine.poll_ingress_single(flow::engine_time(now), &mut link, &mut flow.set);
            if self.outbox.packets != before {
                note_sent(now, flow, &self.outbox);
            }
        }
        self.send_again(now, id, advice.signal);
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if flow.orphan.is_some() && flow.socket().can_recv() {
            // Nobody will read it: say so, instead of a window that closes for ever.
            self.reset(now, id);
            return self.remove(id);
        }
        self.settle(now, id);
        self.make_ready(id);
    }

    /// Tells the engine of an acknowledgement, so many times.
    fn tell(&mut self, now: Instant, id: StreamId, acknowledged: u32, window: u16, times: u32) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let ours = (flow.key.local, flow.key.local_port);
        let theirs = (flow.key.remote, flow.key.remote_port);
        let numbers = (flow.expected(), acknowledged, window);
        packet::write_tcp(&mut self.scratch, theirs, ours, numbers, packet::ACK, &[]);
        for _ in 0..times {
            let mut link = Link {
                packet: Some(&self.scratch),
                outbox: &mut self.outbox,
                mtu: self.mtu,
            };
            let engine = &mut self.engines[usize::from(flow.narrow)];
            engine.poll_ingress_single(flow::engine_time(now), &mut link, &mut flow.set);
        }
    }

    /// Sends what is lost and may be sent again, and tells the engine of a loss by three
    /// acknowledgements that repeat the last.
    pub(super) fn send_again(&mut self, now: Instant, id: StreamId, signal: bool) {
        let told = self.flows.get(&id).and_then(|flow| flow.recovery.told());
        if let Some((acknowledged, window)) = told.filter(|_| signal) {
            self.tell(now, id, acknowledged, window, 3);
        }
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let ours = (flow.key.local, flow.key.local_port);
        let theirs = (flow.key.remote, flow.key.remote_port);
        let (acknowledged, window) = flow.said;
        while self.outbox.has_room()
            && let Some((sequence, flags, payload)) = flow.recovery.next(now)
        {
            let numbers = (sequence, acknowledged, window);
            self.outbox
                .push_with(|out| packet::write_tcp(out, ours, theirs, numbers, flags, payload));
        }
    }

    /// A path is back, or is another: what is on its way over each stream is probed at once,
    /// instead of after a time-out that has grown to a minute.
    pub fn nudge(&mut self, now: Instant) {
        let now = self.advance(now);
        let ids: Vec<StreamId> = self.flows.keys().copied().collect();
        for id in ids {
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.recovery.nudge(now);
            }
            self.send_again(now, id, false);
            self.settle(now, id);
        }
    }

    /// Lets a stream send one packet, and puts it at the end of the queue if it did.
    pub(super) fn send_one(&mut self, now: Instant, id: StreamId) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if matches!(flow.phase, Phase::Done(_)) {
            return;
        }
        let before = self.outbox.packets;
        flow.avoid_small_segments(self.mtu);
        let mut link = Link {
            packet: None,
            outbox: &mut self.outbox,
            mtu: self.mtu,
        };
        let engine = &mut self.engines[usize::from(flow.narrow)];
        let engine_now = flow::engine_time(now);
        engine.poll_egress(engine_now, &mut link, &mut flow.set);
        if self.outbox.packets != before {
            note_sent(now, flow, &self.outbox);
            if flow.repeats_itself(now) {
                // An engine that would say the same for ever is not asked again at once.
                set_timer(&mut self.timers, id, flow, now + REPEAT);
                return self.settle(now, id);
            }
            self.settle(now, id);
            return self.make_ready(id);
        }
        let due = engine
            .poll_at(engine_now, &flow.set)
            .map(flow::from_engine_time);
        if flow.socket().state() == State::TimeWait
            && due.is_none_or(|due| due.since(now) > TIME_WAIT_IS_LEFT)
        {
            // The last acknowledgement is sent. The engine would keep the buffers for ten
            // seconds and then throw away what was not read.
            self.time_waits.insert(now, flow.key);
            return self.finish(id, CloseReason::Finished);
        }
        if let Some(due) = due {
            // Something that is due and was not done is looked at again a little later.
            let due = due.max(now + Duration::from_millis(1));
            set_timer(&mut self.timers, id, flow, due);
        }
        self.settle(now, id);
    }

    /// A stream's timer has gone off.
    pub(super) fn expire(&mut self, now: Instant, id: StreamId) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if flow.recovery.due().is_some_and(|due| due <= now) && flow.phase == Phase::Open {
            let signal = flow.recovery.handle_timeout(now);
            self.send_again(now, id, signal);
        }
        let Some(flow) = self.flows.get(&id) else {
            return;
        };
        match flow.given_up() {
            Some((at, _)) if at <= now && matches!(flow.phase, Phase::HalfOpen(_)) => {
                self.drops.count(Drop::HalfOpenExpired);
                self.remove(id);
            }
            Some((at, reason)) if at <= now => {
                let trouble = flow.trouble.map(|(_, why)| CloseReason::Unreachable(why));
                self.reset(now, id);
                self.finish(id, trouble.unwrap_or(reason));
            }
            _ if self.outbox.has_room() => self.send_one(now, id),
            _ => self.make_ready(id),
        }
    }

    /// An ICMPv6 "unreachable" quotes a stream.
    pub(super) fn trouble(&mut self, now: Instant, id: StreamId, why: Unreachable) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let gone = match flow.phase {
            Phase::Done(_) => return,
            Phase::Connecting | Phase::HalfOpen(_) => true,
            Phase::Open => {
                let (since, _) = *flow.trouble.get_or_insert((now, why));
                !why.is_soft() || now.since(since) >= TROUBLE_LIMIT
            }
        };
        if gone {
            // No reset: it would not arrive either.
            flow.socket_mut().abort();
            self.finish(id, CloseReason::Unreachable(why));
        }
    }

    /// An ICMPv6 "packet too big" quotes a stream: from here on it, and those that follow to the
    /// same place, use the smallest MTU there is.
    pub(super) fn narrow(&mut self, now: Instant, id: StreamId) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        flow.narrow = true;
        let remote = flow.key.remote;
        if !self.narrow.contains(&remote) {
            if self.narrow.len() >= MAX_NARROW {
                self.narrow.pop_front();
            }
            self.narrow.push_back(remote);
        }
        self.settle(now, id);
        self.make_ready(id);
    }
}

/// Book-keeping.
impl Stack {
    /// Looks at what the engine made of a stream, and tells of it.
    pub(super) fn settle(&mut self, now: Instant, id: StreamId) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let state = flow.socket().state();
        let before = std::mem::replace(&mut flow.state, state);
        match (flow.phase, state) {
            (Phase::Done(_), _) => return,
            (Phase::Connecting, State::Closed) => return self.finish(id, CloseReason::Refused),
            (Phase::HalfOpen(_), State::Closed | State::Listen) => return self.remove(id),
            (Phase::Connecting | Phase::HalfOpen(_), State::SynSent | State::SynReceived) => {}
            (Phase::Connecting | Phase::HalfOpen(_), _) => {
                if let Phase::HalfOpen(port) = flow.phase {
                    self.half_open_memory -= flow.memory();
                    if let Some(listener) = self.listeners.get_mut(&port) {
                        listener.half_open -= 1;
                    }
                }
                flow.phase = Phase::Open;
                flow.note_connected();
                if flow.shut_down {
                    flow.socket_mut().close();
                    flow.state = flow.socket().state();
                }
            }
            (Phase::Open, State::Closed) => {
                let reason = match before {
                    State::LastAck | State::Closing | State::TimeWait => CloseReason::Finished,
                    _ => CloseReason::Reset,
                };
                return self.finish(id, reason);
            }
            (Phase::Open, _) => {}
        }
        let all_said = state == State::FinWait2 && before != state;
        let acknowledged = flow.acknowledged;
        flow.note_waiting(now);
        flow.note_data_and_room();
        let given_up = flow.given_up().map(|(at, _)| at);
        if let Some(at) = given_up.into_iter().chain(flow.recovery.due()).min() {
            set_timer(&mut self.timers, id, flow, at);
        }
        self.notice(id);
        if all_said {
            // There is nothing to send any more; an engine that believes that the window is
            // closed would probe it, and in this state for ever.
            self.tell(now, id, acknowledged, 1, 1);
        }
    }

    /// The engine is done with a stream.
    fn finish(&mut self, id: StreamId, reason: CloseReason) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if flow.orphan.is_some() || matches!(flow.phase, Phase::HalfOpen(_)) {
            // Nobody knows of it, or wants to.
            return self.remove(id);
        }
        flow.phase = Phase::Done(reason);
        flow.note_closed();
        self.by_key.remove(&flow.key);
        if let Some(timer) = flow.timer.take() {
            self.timers.remove(&(timer, id));
        }
        self.notice(id);
    }

    /// Sends a reset if the other side knows of the stream and the link has room.
    pub(super) fn reset(&mut self, now: Instant, id: StreamId) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if matches!(flow.phase, Phase::Done(_)) {
            return;
        }
        flow.socket_mut().abort();
        let mut link = Link {
            packet: None,
            outbox: &mut self.outbox,
            mtu: self.mtu,
        };
        let engine = &mut self.engines[usize::from(flow.narrow)];
        engine.poll_egress(flow::engine_time(now), &mut link, &mut flow.set);
    }

    pub(super) fn insert(&mut self, flow: Flow) -> StreamId {
        let id = StreamId(self.fresh_id());
        self.memory += flow.memory();
        self.by_key.insert(flow.key, id);
        self.flows.insert(id, flow);
        id
    }

    pub(super) fn remove(&mut self, id: StreamId) {
        self.leave_half_open(id);
        let Some(flow) = self.flows.remove(&id) else {
            return;
        };
        self.memory -= flow.memory();
        if self.by_key.get(&flow.key) == Some(&id) {
            self.by_key.remove(&flow.key);
        }
        if let Some(timer) = flow.timer {
            self.timers.remove(&(timer, id));
        }
        if flow.ready {
            self.ready.retain(|other| *other != id);
        }
        if flow.noticed {
            self.notices
                .retain(|other| !matches!(other, Notice::Stream(other) if *other == id));
        }
    }

    fn leave_half_open(&mut self, id: StreamId) {
        let Some(flow) = self.flows.get(&id) else {
            return;
        };
        if let Phase::HalfOpen(port) = flow.phase {
            self.half_open_memory -= flow.memory();
            if let Some(listener) = self.listeners.get_mut(&port) {
                listener.half_open -= 1;
            }
        }
    }

    pub(super) fn make_room(&self, class: Class) -> Result<(), StackError> {
        if self.flows.len() >= self.limits.streams {
            return Err(StackError::TooManyStreams {
                limit: self.limits.streams,
            });
        }
        if self.memory + flow::memory_of(class) > self.limits.memory {
            return Err(StackError::Memory {
                limit: self.limits.memory,
            });
        }
        Ok(())
    }

    pub(super) fn make_ready(&mut self, id: StreamId) {
        if let Some(flow) = self.flows.get_mut(&id)
            && !flow.ready
            && !matches!(flow.phase, Phase::Done(_))
        {
            flow.ready = true;
            self.ready.push_back(id);
        }
    }

    fn notice(&mut self, id: StreamId) {
        if let Some(flow) = self.flows.get_mut(&id)
            && flow.has_events()
            && !flow.noticed
        {
            flow.noticed = true;
            self.notices.push_back(Notice::Stream(id));
        }
    }

    /// A stream whose handle is open.
    pub(super) fn flow(&mut self, id: StreamId) -> Result<&mut Flow, StreamError> {
        let flow = self.flows.get_mut(&id).filter(|flow| flow.orphan.is_none());
        flow.ok_or(StreamError::Unknown)
    }
}

/// The last packet in the outbox is of this stream.
fn note_sent(now: Instant, flow: &mut Flow, outbox: &Outbox) {
    if let Some(sent) = outbox.last().and_then(Ipv6::parse)
        && let Some(segment) = Tcp::parse(&sent)
    {
        flow.note_sent(now, &segment, &segment.segment(&sent));
    }
}

/// A timer moves to an earlier moment; one that goes off too early does no harm.
fn set_timer(
    timers: &mut BTreeSet<(Instant, StreamId)>,
    id: StreamId,
    flow: &mut Flow,
    at: Instant,
) {
    match flow.timer {
        Some(timer) if timer <= at => return,
        Some(timer) => timers.remove(&(timer, id)),
        None => true,
    };
    flow.timer = Some(at);
    timers.insert((at, id));
}

/// The engine's own TIME-WAIT lasts ten seconds; anything else that is due is due sooner.
const TIME_WAIT_IS_LEFT: Duration = Duration::from_secs(5);
/// An open stream outlives "unreachable" this long: a gateway that restarts says so too.
const TROUBLE_LIMIT: Duration = Duration::from_secs(15);
/// When an engine that repeats itself is asked again.
const REPEAT: Duration = Duration::from_secs(1);
/// Destinations behind narrow paths that are remembered.
const MAX_NARROW: usize = 64;
