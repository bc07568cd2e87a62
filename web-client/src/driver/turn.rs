//! One turn: what is due is done, what is ready is sent, who waits is woken, the timer is set.

use std::time::Duration;

use tunnel::{Event, Instant};
use wire::{Control, record, wireguard::Kind};

use super::{
    State, Waiting,
    link::{Handlers, Link, Open},
};
use crate::{failure::Failure, page::Timer};

/// What the browser may hold of ours. It is a queue like any other: what lies in it is late.
const MAX_BUFFERED: usize = 128 * 1024;

/// A browser does not say when its buffer falls.
const BUFFER_CHECK: Duration = Duration::from_millis(5);

/// How often the relay is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(10);

/// How long its answer may take.
const PING_PATIENCE: Duration = Duration::from_secs(6);

/// How long a WebSocket may take to open once the tunnel has stood.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// A timer this late says that the page was held up: nothing is concluded from silence.
const HELD_UP: Duration = Duration::from_millis(1500);

/// A timer this late says that the machine slept. A hidden page's timers fire once a minute.
const SLEPT: Duration = Duration::from_secs(90);

impl State {
    pub(super) fn turn(&mut self, handlers: &Handlers, now: Instant) {
        let late = self
            .timer
            .as_ref()
            .map_or(Duration::ZERO, |(_, due)| now.since(*due));
        if late >= SLEPT {
            self.clock.skip(late);
            self.wake(handlers, now);
        }
        self.mind_link(handlers, now, late >= HELD_UP);
        if self.link.is_open() {
            let time = self.clock.tunnel(now);
            if self.tunnel.poll_timeout().is_some_and(|due| due <= time) {
                self.tunnel.handle_timeout(time);
            }
        }
        // An event may ask for a handshake, and what is sent may make events.
        self.events(now);
        self.transmit(now);
        self.events(now);
        self.set_timer(handlers, now);
    }

    fn mind_link(&mut self, handlers: &Handlers, now: Instant, held_up: bool) {
        match &mut self.link {
            Link::Closed => {}
            Link::Lost { until, .. } => {
                if self.stood && *until <= now {
                    self.open(handlers, now);
                }
            }
            Link::Connecting { since, .. } => {
                if self.stood && now.since(*since) >= OPEN_PATIENCE {
                    self.lose(now, Failure::websocket_refused());
                }
            }
            Link::Open(open) => {
                if open.drained_at.is_some_and(|at| at <= now) {
                    self.open(handlers, now);
                    return;
                }
                match open.ping.asked {
                    Some(asked) if now.since(asked) < PING_PATIENCE => {}
                    // An answer may lie in the page's queue of events.
                    Some(asked) if open.heard < asked && !held_up => {
                        self.lose(
                            now,
                            Failure::new(
                                "relay_silent",
                                "The relay does not answer any more.",
                                "Check the network; it is tried again by itself.",
                            ),
                        );
                    }
                    Some(_) => open.ask(now),
                    None if open.ping.next <= now => open.ask(now),
                    None => {}
                }
            }
        }
    }

    /// Sends what is ready, in as few messages as possible and never waiting for more.
    fn transmit(&mut self, now: Instant) {
        let Link::Open(open) = &mut self.link else {
            return;
        };
        let time = self.clock.tunnel(now);
        let mut message = Vec::new();
        if std::mem::take(&mut open.fresh) {
            // The newest initiation goes first; what had been made before this WebSocket follows.
            let mut first = None;
            let mut rest = Vec::new();
            while let Some(datagram) = self.tunnel.poll_transmit(time) {
                if Kind::of(&datagram) == Some(Kind::Initiation) {
                    first = Some(datagram);
                } else {
                    rest.push(datagram);
                }
            }
            for datagram in first.into_iter().chain(rest) {
                open.push(&mut message, &datagram);
            }
        }
        while open.socket.buffered() + message.len() < MAX_BUFFERED {
            let Some(datagram) = self.tunnel.poll_transmit(time) else {
                break;
            };
            open.push(&mut message, &datagram);
        }
        if !message.is_empty() {
            open.socket.send(&message);
        }
    }

    fn events(&mut self, now: Instant) {
        while let Some(event) = self.tunnel.poll_event() {
            match event {
                Event::SessionEstablished { rtt } => {
                    self.handshake = rtt.or(self.handshake);
                    self.failures = 0;
                    self.stood = true;
                    if let Some(established) = self.established.take() {
                        let _ = established.send(Ok(()));
                    }
                    // A session is renewed every two minutes, which is no news.
                    if !std::mem::replace(&mut self.told_stands, true) {
                        self.news.push(("connected", None));
                    }
                }
                Event::HandshakeFailed { reason } => {
                    let failure = Failure::told(reason.code(), &reason.to_string(), reason.hint());
                    if let Some(established) = self.established.take() {
                        let _ = established.send(Err(failure));
                    } else if self.stood && self.link.is_open() {
                        self.tell_lost(failure);
                    }
                }
                // The gateway may have forgotten the session, or the relay be gone.
                Event::PathSilent { .. } => {
                    if let Link::Open(open) = &mut self.link {
                        self.tunnel.initiate(self.clock.tunnel(now));
                        if open.ping.asked.is_none() {
                            open.ask(now);
                        }
                    }
                }
                Event::Connected(stream) => {
                    if let Some(connect) = self
                        .waiting(stream)
                        .and_then(|waiting| waiting.connect.take())
                    {
                        let _ = connect.send(Ok(()));
                    }
                }
                Event::Readable(stream) => {
                    if let Some(waker) =
                        self.waiting(stream).and_then(|waiting| waiting.read.take())
                    {
                        waker.wake();
                    }
                }
                Event::Writable(stream) => {
                    if let Some(waker) = self
                        .waiting(stream)
                        .and_then(|waiting| waiting.write.take())
                    {
                        waker.wake();
                    }
                }
                Event::Closed(stream, reason) => {
                    if let Some(waiting) = self.waiting(stream) {
                        if let Some(connect) = waiting.connect.take() {
                            let _ = connect.send(Err(reason));
                        }
                        waiting.wake();
                    }
                }
                Event::Resolved { id, result } => {
                    if let Some(at) = self.queries.iter().position(|(query, _)| *query == id) {
                        let _ = self.queries.swap_remove(at).1.send(result);
                    }
                }
                _ => {}
            }
        }
    }

    fn waiting(&mut self, stream: tunnel::StreamId) -> Option<&mut Waiting> {
        self.streams
            .iter_mut()
            .find(|(id, _)| *id == stream)
            .map(|(_, waiting)| waiting)
    }

    fn set_timer(&mut self, handlers: &Handlers, now: Instant) {
        let next = match &self.link {
            Link::Closed => None,
            Link::Lost { until, .. } => self.stood.then_some(*until),
            Link::Connecting { since, .. } => Some(*since + OPEN_PATIENCE),
            Link::Open(open) => {
                let ping = open
                    .ping
                    .asked
                    .map_or(open.ping.next, |asked| asked + PING_PATIENCE);
                let full = open.socket.buffered() >= MAX_BUFFERED;
                let tunnel = if full {
                    Some(now + BUFFER_CHECK)
                } else {
                    self.tunnel.poll_timeout().map(|due| self.clock.page(due))
                };
                [Some(ping), tunnel, open.drained_at]
                    .into_iter()
                    .flatten()
                    .min()
            }
        };
        let Some(next) = next else {
            self.timer = None;
            return;
        };
        // A timer that fires too early costs a turn; to set one anew costs more.
        if self.timer.as_ref().is_none_or(|(_, due)| next < *due) {
            let after = next.since(now).max(Duration::from_millis(1));
            self.timer = Some((Timer::start(handlers.tick(), after), now + after));
        }
    }
}

impl Open {
    fn ask(&mut self, now: Instant) {
        self.ping.number += 1;
        self.ping.asked = Some(now);
        self.ping.next = now + PING_EVERY;
        self.socket.tell(&Control::Ping {
            n: self.ping.number,
        });
    }

    /// Adds to a message, which is sent when it is full.
    fn push(&self, message: &mut Vec<u8>, datagram: &[u8]) {
        if record::push(message, datagram) == Err(record::RecordError::Full) {
            self.socket.send(message);
            message.clear();
            // It fits an empty message, or none: then it is larger than any tunnel's MTU.
            let _ = record::push(message, datagram);
        }
    }
}

impl Waiting {
    pub(super) fn wake(&mut self) {
        for waker in [self.read.take(), self.write.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}
