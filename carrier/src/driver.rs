//! The task that owns the tunnel.
//!
//! Each turn takes what is ready - commands, notices of streams, datagrams - then lets the tunnel
//! speak once, so that what was asked together leaves together; then it sleeps until the next
//! datagram, request or deadline. It waits for no reader: a stream whose buffer is full leaves its
//! bytes in the tunnel.

mod streams;

use std::{
    collections::HashMap,
    net::{Ipv6Addr, SocketAddrV6},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::sleep_until,
};
use tunnel::{Answer, Class, Instant, ListenerId, PingId, QueryId, StreamId, Tunnel, UdpId};

use crate::{
    CarrierError, DropReason, Event, Handle, Stats,
    clock::{Clock, SleepWatch},
    handle::{Command, HandleShared, Reply, Status},
    link::{Incoming, Link, Target},
    stats::Counters,
    stream::{Closed, Inbox, Notice, Shared, TcpStream, Wakes},
};

const COMMANDS: usize = 256;
const EVENTS: usize = 64;

/// How much one turn takes from the link before the tunnel answers.
const DATAGRAMS_PER_TURN: usize = 128;

/// How long open streams may take to deliver what was written, when the carrier stops.
const GOODBYE: Duration = Duration::from_secs(2);

/// Figures are summed over all streams: not at every turn.
const PUBLISH_EVERY: Duration = Duration::from_millis(50);

/// Through which bytes pass from the tunnel to a stream.
const SCRATCH: usize = 64 * 1024;

pub(crate) fn spawn(config: tunnel::Config, link: Link, target: Option<Arc<Target>>) -> Handle {
    let clock = Clock::start();
    let now = clock.now();
    let address = config
        .addresses
        .first()
        .copied()
        .unwrap_or(Ipv6Addr::UNSPECIFIED);
    let tunnel = Tunnel::new(config, now);
    let (commands, from_handles) = mpsc::channel(COMMANDS);
    let (status, status_seen) = watch::channel(Status::default());
    let (events, _) = broadcast::channel(EVENTS);
    let inbox = Arc::new(Inbox::default());
    let stats = Arc::new(Mutex::new(Stats {
        transport: link.transport(),
        link: link.stats(),
        tunnel: tunnel.stats(),
        streams: 0,
    }));
    let shared = Arc::new(HandleShared {
        inbox: Arc::clone(&inbox),
        status: status_seen,
        events: events.clone(),
        stats: Arc::clone(&stats),
        target,
        address,
        is_race: matches!(link, Link::Race(_)),
    });
    let driver = Driver {
        tunnel,
        link,
        sleep_watch: SleepWatch::new(now, clock.wall()),
        clock,
        commands: from_handles,
        inbox,
        status,
        events,
        stats,
        local: SocketAddrV6::new(address, 0, 0, 0),
        streams: HashMap::new(),
        connecting: HashMap::new(),
        listeners: HashMap::new(),
        sockets: HashMap::new(),
        pings: HashMap::new(),
        queries: HashMap::new(),
        dropped: Counters::default(),
        scratch: vec![0; SCRATCH].into(),
        notices: Vec::new(),
        published: now,
        moved: false,
        stopping: None,
    };
    tokio::spawn(driver.run());
    Handle { commands, shared }
}

struct Driver {
    tunnel: Tunnel,
    link: Link,
    clock: Clock,
    sleep_watch: SleepWatch,
    commands: mpsc::Receiver<Command>,
    inbox: Arc<Inbox>,
    status: watch::Sender<Status>,
    events: broadcast::Sender<Event>,
    stats: Arc<Mutex<Stats>>,
    /// Where a stream is from when the tunnel has forgotten it already.
    local: SocketAddrV6,
    streams: HashMap<StreamId, Arc<Shared>>,
    connecting: HashMap<StreamId, Connecting>,
    listeners: HashMap<ListenerId, Listening>,
    sockets: HashMap<UdpId, mpsc::Sender<(SocketAddrV6, Vec<u8>)>>,
    pings: HashMap<PingId, Reply<Duration>>,
    queries: HashMap<QueryId, Reply<Answer>>,
    dropped: Counters,
    scratch: Box<[u8]>,
    /// Empty between uses; keeps its room.
    notices: Vec<Notice>,
    published: Instant,
    /// The link is another, or is back, and no session has been made over it yet.
    moved: bool,
    /// Nobody holds the carrier any more; it ends at this time at the latest.
    stopping: Option<Instant>,
}

struct Connecting {
    shared: Arc<Shared>,
    remote: SocketAddrV6,
    reply: Reply<TcpStream>,
}

struct Listening {
    accepted: mpsc::Sender<TcpStream>,
    class: Class,
}

impl Driver {
    async fn run(mut self) {
        let mut due = None;
        loop {
            let now = self.clock.now();
            if self.sleep_watch.slept(now, self.clock.wall(), due) {
                self.tell(Event::Woke);
                self.wake(now);
            }
            while let Ok(command) = self.commands.try_recv() {
                self.command(now, command);
            }
            self.take_notices(now);
            let more = self.receive(now);
            if self.tunnel.poll_timeout().is_some_and(|at| at <= now) {
                self.tunnel.handle_timeout(now);
            }
            self.take_events(now);
            self.transmit(now);
            // What was sent may have moved a stream on, which may have something to send then.
            while self.take_events(now) {
                self.transmit(now);
            }
            let publish_at = self.published + PUBLISH_EVERY;
            if now >= publish_at {
                self.publish(now);
            }
            if self.stopping.is_some_and(|at| now >= at || self.is_done()) {
                break;
            }
            due = self.tunnel.poll_timeout();
            if self.published < now {
                due = Some(due.map_or(publish_at, |at| at.min(publish_at)));
            }
            if let Some(end) = self.stopping {
                due = Some(due.map_or(end, |at| at.min(end)));
            }
            if more {
                tokio::task::yield_now().await;
                continue;
            }
            let timer = async {
                match due {
                    Some(at) => sleep_until(self.clock.at(at)).await,
                    None => std::future::pending().await,
                }
            };
            let command = tokio::select! {
                command = self.commands.recv(), if self.stopping.is_none() => Some(command),
                () = self.inbox.notified() => None,
                () = self.link.ready() => None,
                () = timer => None,
            };
            if let Some(command) = command {
                let now = self.clock.now();
                self.command(now, command.unwrap_or(Command::Stop));
            }
        }
        Box::pin(self.end()).await;
    }

    fn command(&mut self, now: Instant, command: Command) {
        // Whoever drops a listener and asks for its port again means it in that order.
        self.take_notices(now);
        match command {
            Command::Stop => self.stop(now),
            Command::Wake => self.wake(now),
            Command::UdpSend {
                id,
                remote,
                datagram,
            } => {
                // A socket that was closed or a datagram that does not fit is the sender's loss,
                // as with any UDP.
                if self.tunnel.udp_send(now, id, remote, &datagram).is_err() {
                    self.dropped.dropped(DropReason::SendFailed);
                }
            }
            // The rest asks for something new: its reply is dropped, which says `Stopped`.
            _ if self.stopping.is_some() => {}
            Command::Connect {
                remote,
                class,
                reply,
            } => match self.tunnel.connect(now, remote, class) {
                Ok(id) => {
                    let shared = Shared::new(id, class, Arc::clone(&self.inbox));
                    self.connecting.insert(
                        id,
                        Connecting {
                            shared,
                            remote,
                            reply,
                        },
                    );
                }
                Err(error) => answer(reply, Err(stack_error(&error))),
            },
            Command::Listen {
                port,
                class,
                accepted,
                reply,
            } => {
                let backlog = accepted.max_capacity();
                match self.tunnel.listen_class(port, backlog, class) {
                    Ok(id) => {
                        if reply.send(Ok(id)).is_ok() {
                            self.listeners.insert(id, Listening { accepted, class });
                        } else {
                            self.tunnel.unlisten(id);
                        }
                    }
                    Err(error) => answer(reply, Err(stack_error(&error))),
                }
            }
            Command::UdpBind {
                port,
                received,
                reply,
            } => match self.tunnel.udp_bind(port) {
                Ok(id) => {
                    if reply.send(Ok(id)).is_ok() {
                        self.sockets.insert(id, received);
                    } else {
                        self.tunnel.udp_close(id);
                    }
                }
                Err(error) => answer(reply, Err(stack_error(&error))),
            },
            Command::Ping { to, reply } => {
                self.pings.retain(|_, reply| !reply.is_closed());
                let id = self.tunnel.ping(now, to, PING_PAYLOAD);
                self.pings.insert(id, reply);
            }
            Command::Resolve { name, kind, reply } => {
                self.queries.retain(|_, reply| !reply.is_closed());
                let id = self.tunnel.resolve(now, &name, kind);
                self.queries.insert(id, reply);
            }
        }
    }

    fn take_notices(&mut self, now: Instant) {
        let mut notices = std::mem::take(&mut self.notices);
        self.inbox.take(&mut notices);
        for notice in notices.drain(..) {
            match notice {
                Notice::Stream(id) => self.pump(now, id),
                Notice::Unlisten(id) => {
                    if self.listeners.remove(&id).is_some() {
                        self.tunnel.unlisten(id);
                    }
                }
                Notice::UdpClosed(id) => {
                    if self.sockets.remove(&id).is_some() {
                        self.tunnel.udp_close(id);
                    }
                }
            }
        }
        self.notices = notices;
    }

    /// Takes what the link has; true when there may be more.
    fn receive(&mut self, now: Instant) -> bool {
        for _ in 0..DATAGRAMS_PER_TURN {
            match self.link.try_recv() {
                None => return false,
                Some(Incoming::Datagram(datagram)) => self.tunnel.handle_datagram(now, &datagram),
                Some(Incoming::Message(message)) => {
                    // The link has checked it: an error would mean no datagrams.
                    for datagram in wire::record::records(&message).into_iter().flatten() {
                        self.tunnel.handle_datagram(now, datagram);
                    }
                }
                Some(Incoming::Up) => {
                    self.status.send_modify(|status| status.link_error = None);
                    self.tell(Event::LinkUp);
                    self.moved = true;
                    // The other side may not know this path, and may know no session: its own
                    // initiation is the one message that is good on any path.
                    self.tunnel.initiate(now);
                }
                Some(Incoming::Carries) => {
                    self.status.send_modify(|status| status.link_error = None);
                    self.tell(Event::LinkUp);
                }
                Some(Incoming::Initiate) => self.tunnel.initiate(now),
                Some(Incoming::Switched) => {
                    self.publish(now);
                    let transport = self.link.transport();
                    self.tell(Event::PathChanged { transport });
                    // Where an answer made it the path, it works; where the other was lost, an
                    // answer on this one is still to come.
                    self.tunnel.path_changed(now);
                    self.moved = true;
                }
                Some(Incoming::Down { error, retry_in }) => {
                    self.status.send_modify(|status| {
                        status.link_error = Some(error.clone());
                        status.session = None;
                    });
                    self.tell(Event::LinkDown { error, retry_in });
                }
                Some(Incoming::Trouble { code, hint }) => {
                    self.status
                        .send_modify(|status| status.trouble = Some(hint.clone()));
                    self.tell(Event::Trouble { code, hint });
                }
            }
        }
        true
    }

    fn transmit(&mut self, now: Instant) {
        while self.link.has_room() {
            let Some(datagram) = self.tunnel.poll_transmit(now) else {
                break;
            };
            self.link.send(datagram);
        }
        self.link.flush();
    }

    /// True if there were any.
    fn take_events(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(event) = self.tunnel.poll_event() {
            any = true;
            match event {
                tunnel::Event::SessionEstablished { rtt } => {
                    let rtt = rtt.unwrap_or_default();
                    self.status.send_modify(|status| {
                        status.session = Some(rtt);
                        status.trouble = None;
                    });
                    self.tell(Event::SessionEstablished { rtt });
                    if std::mem::take(&mut self.moved) {
                        self.tunnel.path_changed(now);
                    }
                }
                tunnel::Event::HandshakeFailed { reason } => {
                    self.status.send_modify(|status| {
                        status.session = None;
                        status.failures += 1;
                    });
                    self.link.probe();
                    self.tell(Event::HandshakeFailed {
                        code: reason.code(),
                        hint: reason.hint(),
                    });
                }
                tunnel::Event::PathSilent { .. } => {
                    self.link.probe();
                    if !matches!(self.link, Link::Race(_)) {
                        // Its answer tells that the path is back, where data waits for time-outs.
                        self.tunnel.initiate(now);
                    }
                    self.tell(Event::PathSilent);
                }
                tunnel::Event::Connected(id) => {
                    if let Some(Connecting {
                        shared,
                        remote,
                        reply,
                    }) = self.connecting.remove(&id)
                    {
                        let local = self.tunnel.local_addr(id).unwrap_or(self.local);
                        self.streams.insert(id, Arc::clone(&shared));
                        // An unwanted stream is dropped here, and so closes itself.
                        answer(reply, Ok(TcpStream::new(shared, local, remote)));
                        self.pump(now, id);
                    }
                }
                tunnel::Event::Accepted {
                    listener,
                    stream,
                    remote,
                    local,
                } => {
                    self.accepted(now, listener, stream, remote, local);
                }
                tunnel::Event::Readable(id) | tunnel::Event::Writable(id) => self.pump(now, id),
                tunnel::Event::Closed(id, reason) => self.closed(now, id, reason),
                tunnel::Event::UdpReadable(id) => {
                    let Some(received) = self.sockets.get(&id) else {
                        continue;
                    };
                    while let Some(datagram) = self.tunnel.udp_recv(id) {
                        if received.try_send(datagram).is_err() {
                            self.dropped.dropped(DropReason::UdpQueueFull);
                        }
                    }
                }
                tunnel::Event::Pong { id, rtt, .. } => {
                    if let Some(reply) = self.pings.remove(&id) {
                        answer(reply, Ok(rtt));
                    }
                }
                tunnel::Event::PingFailed { id, reason } => {
                    if let Some(reply) = self.pings.remove(&id) {
                        answer(reply, Err(CarrierError::inside(reason.code(), reason, "")));
                    }
                }
                tunnel::Event::Resolved { id, result } => {
                    if let Some(reply) = self.queries.remove(&id) {
                        answer(
                            reply,
                            result.map_err(|e| CarrierError::inside(e.code(), e, "")),
                        );
                    }
                }
                _ => {}
            }
        }
        any
    }

    /// The path or the session may be gone without anybody saying so.
    fn wake(&mut self, now: Instant) {
        self.link.probe();
        self.tunnel.initiate(now);
    }

    fn tell(&self, event: Event) {
        tracing::debug!(?event, "carrier");
        // An error says that nobody listens.
        let _ = self.events.send(event);
    }

    fn publish(&mut self, now: Instant) {
        self.published = now;
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.transport = self.link.transport();
        stats.link = self.link.stats().plus_drops(&self.dropped);
        stats.tunnel = self.tunnel.stats();
        stats.streams = self.streams.len();
    }

    /// Takes nothing new and lets every stream deliver what was written to it.
    fn stop(&mut self, now: Instant) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(now + GOODBYE);
        self.pings.clear();
        self.queries.clear();
        self.sockets.clear();
        for (id, _) in self.listeners.drain() {
            self.tunnel.unlisten(id);
        }
        for (id, _) in self.connecting.drain() {
            self.tunnel.abort(now, id);
        }
        let ids: Vec<_> = self.streams.keys().copied().collect();
        for id in ids {
            if let Some(shared) = self.streams.get(&id) {
                let mut wakes = Wakes::default();
                let mut state = shared.state();
                state.dropped = true;
                state.closed.get_or_insert(Closed::Stopped);
                state.write_closed.get_or_insert(Closed::Stopped);
                state.wake_reader(&mut wakes);
                state.wake_writer(&mut wakes);
                drop(state);
                wakes.wake();
            }
            self.pump(now, id);
        }
    }

    /// Whether every goodbye was said and heard.
    fn is_done(&self) -> bool {
        self.streams.is_empty() && self.tunnel.stats().stack.streams == 0
    }

    async fn end(mut self) {
        let now = self.clock.now();
        for id in self.streams.keys() {
            self.tunnel.abort(now, *id);
        }
        self.transmit(now);
        self.commands.close();
        self.link.close().await;
        self.status.send_modify(|status| {
            status.stopped = true;
            status.session = None;
        });
    }
}

/// Of a ping, after its header: the length that ping(8) uses.
const PING_PAYLOAD: usize = 56;

fn stack_error(error: &tunnel::StackError) -> CarrierError {
    CarrierError::inside(error.code(), error, "")
}

/// Whoever asked may have gone; then the answer goes with it.
fn answer<T>(reply: oneshot::Sender<Result<T, CarrierError>>, result: Result<T, CarrierError>) {
    let _ = reply.send(result);
}
