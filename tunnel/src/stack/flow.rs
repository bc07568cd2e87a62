//! One TCP stream: the engine's socket and what the stack keeps beside it.

use std::{
    net::{Ipv6Addr, SocketAddrV6},
    time::Duration,
};

use smoltcp::{
    iface::{SocketHandle, SocketSet},
    socket::tcp::{Socket, SocketBuffer, State},
    wire::{IpAddress, IpListenEndpoint},
};

use super::{
    Class, CloseReason, ListenerId, StackEvent, StreamId, Unreachable,
    packet::{Segment, Tcp},
    recovery::Recovery,
};
use crate::Instant;

/// A four-tuple, ports first: they tell flows apart soonest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FlowKey {
    pub(super) remote_port: u16,
    pub(super) local_port: u16,
    pub(super) remote: Ipv6Addr,
    pub(super) local: Ipv6Addr,
}

impl FlowKey {
    pub(super) fn remote(&self) -> SocketAddrV6 {
        SocketAddrV6::new(self.remote, self.remote_port, 0, 0)
    }

    pub(super) fn local(&self) -> SocketAddrV6 {
        SocketAddrV6::new(self.local, self.local_port, 0, 0)
    }
}

/// Where a stream is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    /// Accepted by the listener on this port, not yet by its client.
    HalfOpen(u16),
    Open,
    /// The engine is done with it; what it received can be read.
    Done(CloseReason),
}

/// A stream whose handle was closed, while it says goodbye.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orphan {
    /// It is given up at this moment.
    pub(super) until: Instant,
    /// Only the other side's goodbye is awaited.
    last_word: bool,
}

pub(super) struct Flow {
    pub(super) key: FlowKey,
    pub(super) phase: Phase,
    pub(super) class: Class,
    pub(super) listener: Option<ListenerId>,
    /// A set of one: the engine looks at every socket of the set that it is given.
    pub(super) set: SocketSet<'static>,
    handle: SocketHandle,
    /// The path is narrower than our MTU.
    pub(super) narrow: bool,
    pub(super) orphan: Option<Orphan>,
    /// `shutdown` was called before the connection stood.
    pub(super) shut_down: bool,

    /// In the queue of streams that may have a packet to send.
    pub(super) ready: bool,
    /// Its entry in the stack's timers, never later than it is needed.
    pub(super) timer: Option<Instant>,
    /// Until when the handshake has to be complete.
    pub(super) deadline: Instant,
    /// When the other side was last heard.
    heard: Instant,
    /// Since when something is due from the other side.
    waiting: Option<Instant>,
    pub(super) timeout: Option<Duration>,
    keep_alive: bool,
    /// The first "unreachable" since the other side was last heard.
    pub(super) trouble: Option<(Instant, Unreachable)>,
    /// The engine's state after the last look.
    pub(super) state: State,
    /// What the other side has acknowledged, and the end of what was sent.
    pub(super) acknowledged: u32,
    sent: Option<u32>,
    /// Where the other side's bytes begin, and how many of them were read.
    first: u32,
    pub(super) taken: u32,
    /// Acknowledgement and window as last sent.
    pub(super) said: (u32, u16),
    /// The last segment without data: when, which, and how often at that moment.
    bare: (Instant, [u32; 2], u16, u32),
    pub(super) recovery: Recovery,

    wants_read: bool,
    wants_write: bool,
    /// Events that wait, one bit each.
    events: u8,
    /// In the stack's queue of notices.
    pub(super) noticed: bool,
}

const CONNECTED: u8 = 1;
const ACCEPTED: u8 = 2;
const READABLE: u8 = 4;
const WRITABLE: u8 = 8;
const CLOSED: u8 = 16;

impl Flow {
    pub(super) fn new(key: FlowKey, phase: Phase, class: Class, deadline: Instant) -> Flow {
        let buffer = || SocketBuffer::new(vec![0; class.window()]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY.into()));
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        Flow {
            key,
            phase,
            class,
            listener: None,
            set,
            handle,
            narrow: false,
            orphan: None,
            shut_down: false,
            ready: false,
            timer: None,
            deadline,
            heard: Instant::ZERO,
            waiting: None,
            timeout: None,
            keep_alive: false,
            trouble: None,
            state: State::Closed,
            acknowledged: 0,
            sent: None,
            first: 0,
            taken: 0,
            said: (0, 0),
            bare: (Instant::ZERO, [0; 2], 0, 0),
            recovery: Recovery::new(class.window()),
            wants_read: true,
            wants_write: false,
            events: 0,
            noticed: false,
        }
    }

    /// Bytes of the buffers.
    pub(super) fn memory(&self) -> usize {
        memory_of(self.class)
    }

    pub(super) fn socket(&self) -> &Socket<'static> {
        self.set.get(self.handle)
    }

    pub(super) fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.set.get_mut(self.handle)
    }

    pub(super) fn buffered(&self) -> usize {
        self.socket().recv_queue() + self.socket().send_queue()
    }

    pub(super) fn set_keep_alive(&mut self, interval: Option<Duration>) {
        self.keep_alive = interval.is_some();
        self.socket_mut().set_keep_alive(interval.map(Into::into));
    }

    /// A segment of the other side arrives.
    pub(super) fn hear(&mut self, now: Instant, segment: &Tcp) {
        self.heard = now;
        self.trouble = None;
        if segment.syn() {
            self.first = segment.sequence.wrapping_add(1);
        }
        if let Some(sent) = self.sent
            && segment.ack()
            && is_between(segment.acknowledged, self.acknowledged, sent)
        {
            self.acknowledged = segment.acknowledged;
        }
    }

    /// The first sequence number that the engine has not received: the one that it always accepts.
    pub(super) fn expected(&self) -> u32 {
        let received = u32::try_from(self.socket().recv_queue()).unwrap_or(0);
        let bytes = self.taken.wrapping_add(received);
        let goodbye = u32::from(self.at_end());
        self.first.wrapping_add(bytes).wrapping_add(goodbye)
    }

    /// Whether a segment begins before what the engine has received, or behind what has not arrived.
    ///
    /// The engine takes no acknowledgement from a segment outside its window, where there is news
    /// in it. Behind: an engine that resends after a time-out acknowledges with the number that it
    /// resends from. Ahead: RFC 9293 (section 3.10.7.4) asks for it while the window is closed, and
    /// the end of the engine's window moves back by less than a unit of the window's scale (RFC
    /// 7323 section 2.4) with what arrives, so that a peer that has filled an earlier window is
    /// beyond it. While a reader that waits for room to write keeps the window closed, the room
    /// would never come.
    pub(super) fn off_sequence(&self, segment: &Tcp) -> (bool, bool) {
        if self.phase != Phase::Open || !segment.ack() || segment.syn() || segment.rst() {
            return (false, false);
        }
        let expected = self.expected();
        let near = |distance: u32| (1..=self.class.window() as u32).contains(&distance);
        let behind = near(expected.wrapping_sub(segment.sequence));
        (behind, near(segment.sequence.wrapping_sub(expected)))
    }

    /// A segment of ours leaves.
    pub(super) fn note_sent(&mut self, now: Instant, segment: &Tcp, sent: &Segment<'_>) {
        self.said = (segment.acknowledged, segment.window);
        self.recovery.note_sent(now, sent);
        let numbers = [segment.sequence, segment.acknowledged];
        let (at, before, window, times) = self.bare;
        let same = (at, before, window) == (now, numbers, segment.window) && segment.length == 0;
        self.bare = (
            now,
            numbers,
            segment.window,
            if same { times + 1 } else { 0 },
        );
        let end = segment.sequence.wrapping_add(segment.length);
        match self.sent {
            None => {
                self.acknowledged = segment.sequence;
                self.sent = Some(end);
            }
            Some(sent) if is_between(sent, self.acknowledged, end) => self.sent = Some(end),
            Some(_) => {}
        }
    }

    /// Nothing waits for an acknowledgement before it is sent: Nagle's algorithm is off. But where
    /// a transfer has more than a full segment to send, and several on their way, a congestion
    /// window with room for less waits for more (RFC 1122 section 4.2.3.4). The engine's Nagle
    /// does just that.
    pub(super) fn avoid_small_segments(&mut self, mtu: usize) {
        let on_its_way =
            self.sent
                .map_or(0, |sent| sent.wrapping_sub(self.acknowledged)) as usize;
        let unsent = self.socket().send_queue().saturating_sub(on_its_way);
        let transfer = unsent >= mtu && on_its_way >= 8 * mtu;
        if transfer != self.socket().nagle_enabled() {
            self.socket_mut().set_nagle_enabled(transfer);
        }
    }

    /// Segments without data leave that say what others said at this very moment.
    pub(super) fn repeats_itself(&self, now: Instant) -> bool {
        self.bare.0 == now && self.bare.3 >= 2
    }

    /// An ICMPv6 error is believed if it quotes something that is on its way (RFC 5927).
    pub(super) fn is_in_flight(&self, sequence: u32) -> bool {
        self.sent
            .is_some_and(|sent| is_between(sequence, self.acknowledged, sent))
    }

    /// Whether something is due from the other side, and since when, by the engine's state.
    pub(super) fn note_waiting(&mut self, now: Instant) {
        let goodbye = matches!(
            self.state,
            State::FinWait1 | State::Closing | State::LastAck
        );
        if goodbye || self.socket().send_queue() > 0 {
            self.waiting.get_or_insert(now);
        } else {
            self.waiting = None;
        }
        if let Some(orphan) = &mut self.orphan
            && self.state == State::FinWait2
            && !orphan.last_word
        {
            orphan.last_word = true;
            orphan.until = orphan.until.min(now + LAST_WORD);
        }
    }

    /// When the stream is given up, and as what, if nothing happens meanwhile.
    pub(super) fn given_up(&self) -> Option<(Instant, CloseReason)> {
        match self.phase {
            Phase::Connecting | Phase::HalfOpen(_) => Some((self.deadline, CloseReason::NoAnswer)),
            Phase::Done(_) => None,
            Phase::Open => {
                let since = match self.waiting {
                    Some(waiting) => Some(self.heard.max(waiting)),
                    None => self.keep_alive.then_some(self.heard),
                };
                let timeout = match (self.timeout, self.orphan) {
                    (Some(timeout), Some(_)) => Some(timeout.min(ORPHAN_TIMEOUT)),
                    (timeout, None) => timeout,
                    (None, Some(_)) => Some(ORPHAN_TIMEOUT),
                };
                let silent = since.zip(timeout).map(|(since, timeout)| since + timeout);
                let orphan = self.orphan.map(|orphan| orphan.until);
                let at = silent.into_iter().chain(orphan).min()?;
                Some((at, CloseReason::TimedOut))
            }
        }
    }

    /// The machine slept: nobody had a chance to answer.
    pub(super) fn excuse(&mut self, slept: Duration) {
        self.heard += slept;
        self.deadline += slept;
        if let Some(waiting) = &mut self.waiting {
            *waiting += slept;
        }
        if let Some(orphan) = &mut self.orphan {
            orphan.until += slept;
        }
        self.trouble = None;
    }

    pub(super) fn wait_for_data(&mut self) {
        self.wants_read = true;
    }

    pub(super) fn wait_for_room(&mut self) {
        self.wants_write = true;
    }

    pub(super) fn note_connected(&mut self) {
        self.events |= if self.listener.is_some() {
            ACCEPTED
        } else {
            CONNECTED
        };
    }

    pub(super) fn note_closed(&mut self) {
        self.events |= CLOSED;
        self.note_data_and_room();
    }

    /// Tells a reader of data and a writer of room, where they wait for it.
    pub(super) fn note_data_and_room(&mut self) {
        let done = matches!(self.phase, Phase::Done(_));
        if self.wants_read && (done || self.socket().can_recv() || self.at_end()) {
            self.wants_read = false;
            self.events |= READABLE;
        }
        if self.wants_write {
            let socket = self.socket();
            let room = socket.send_capacity() - socket.send_queue();
            // Not for every acknowledged segment: a writer has enough to do by then.
            let enough = socket.may_send() && room >= socket.send_capacity() / 4;
            // A side that was shut down will never have room: its writer has to hear that.
            let never = self.phase == Phase::Open && !socket.may_send();
            if done || enough || never {
                self.wants_write = false;
                self.events |= WRITABLE;
            }
        }
    }

    /// The other side has said goodbye.
    fn at_end(&self) -> bool {
        use State::{CloseWait, Closing, LastAck, TimeWait};
        matches!(self.state, CloseWait | Closing | LastAck | TimeWait)
    }

    pub(super) fn has_events(&self) -> bool {
        self.events != 0 && self.orphan.is_none()
    }

    /// The next event, in the order in which things happen to a stream.
    pub(super) fn next_event(&mut self, id: StreamId) -> Option<StackEvent> {
        let event = match self.events & self.events.wrapping_neg() {
            CONNECTED => StackEvent::Connected(id),
            ACCEPTED => StackEvent::Accepted {
                listener: self.listener?,
                stream: id,
                remote: self.key.remote(),
                local: self.key.local(),
            },
            READABLE => StackEvent::Readable(id),
            WRITABLE => StackEvent::Writable(id),
            CLOSED => match self.phase {
                Phase::Done(reason) => StackEvent::Closed(id, reason),
                _ => return None,
            },
            _ => {
                self.noticed = false;
                return None;
            }
        };
        self.events &= self.events - 1;
        Some(event)
    }

    /// The handle is gone: nobody listens to events any more.
    pub(super) fn become_orphan(&mut self, now: Instant) {
        self.orphan = Some(Orphan {
            until: now + ORPHAN_LIFE,
            last_word: false,
        });
        self.events = 0;
    }
}

/// What is received, what is to be sent, and what is on its way.
pub(super) fn memory_of(class: Class) -> usize {
    3 * class.window()
}

pub(super) fn engine_time(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

pub(super) fn engine_local(key: &FlowKey) -> IpListenEndpoint {
    IpListenEndpoint {
        addr: Some(IpAddress::Ipv6(key.local)),
        port: key.local_port,
    }
}

pub(super) fn from_engine_time(at: smoltcp::time::Instant) -> Instant {
    Instant::from_micros(u64::try_from(at.total_micros()).unwrap_or(0))
}

/// `number` lies in `low..=high` of the sequence space, which wraps.
fn is_between(number: u32, low: u32, high: u32) -> bool {
    number.wrapping_sub(low) <= high.wrapping_sub(low)
}

/// Long enough for an answer to carry the acknowledgement, too short for a sender to notice.
const ACK_DELAY: Duration = Duration::from_millis(10);
/// How long a stream without a handle bears silence ...
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);
/// ... waits for the other side's goodbye ...
const LAST_WORD: Duration = Duration::from_secs(30);
/// ... and lives at most.
const ORPHAN_LIFE: Duration = Duration::from_secs(10 * 60);
