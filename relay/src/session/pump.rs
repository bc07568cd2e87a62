//! What passes: one future per session, that holds no task, no channel and no lock.
//!
//! Each turn reads what the client sent, sends it to the gateway, drains the gateway's socket and
//! writes what is ready as one message. The next message is begun when the last has left for the
//! kernel, so that what cannot be dropped any more is one message and the kernel's unsent bytes.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Sink, Stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UdpSocket,
    time::{Instant, Sleep},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error as WebSocketError, Message, error::ProtocolError},
};
use tokio_util::sync::WaitForCancellationFutureOwned;
use wire::{CloseCode, Control, Limit, record, wireguard::Kind};

use super::{End, Opening, text};
use crate::{
    admission::Gateway,
    config::Limits,
    counters::{Counter, Counters},
    proof::{self, Proof, Verdict},
    queue::Queue,
};

/// A session between its first and its last word.
pub(super) struct Pump<S> {
    websocket: WebSocketStream<S>,
    udp: Option<UdpSocket>,
    gateway: Arc<Gateway>,
    limits: Limits,
    counters: Arc<Counters>,
    proof: Proof,
    /// Waits for the gateway's socket; empty nearly always.
    up: Queue,
    /// Waits for the client.
    down: Queue,
    /// Control messages and pings that wait for the client, before any data.
    notices: VecDeque<Message>,
    /// The number of the ping that waits for its pong.
    pong: Option<u64>,
    /// The limits that the client has been told of, and when.
    told: Vec<(Limit, Duration)>,
    /// The gateway's host or the network refused the last datagram.
    unreachable: bool,
    /// A message is on its way into the kernel; since when it has been stuck there.
    writing: bool,
    stuck: Option<Duration>,
    /// The client has been slower than the gateway since the queue was last empty.
    backlogged: bool,
    started: Instant,
    last_datagram: Duration,
    last_heard: Duration,
    last_ping: Duration,
    timer: Pin<Box<Sleep>>,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// What one turn takes from one side before the other side gets its turn.
const MESSAGES_PER_TURN: usize = 16;
const DATAGRAMS_PER_TURN: usize = 128;
/// Turns before other sessions get theirs.
const TURNS: usize = 8;
/// Control messages that may wait.
const NOTICES: usize = 32;
/// The furthest that a deadline is looked ahead.
const FURTHEST: Duration = Duration::from_secs(24 * 3600);
/// The same limit is told again after this long.
const TELL_AGAIN: Duration = Duration::from_secs(10);

impl<S: AsyncRead + AsyncWrite + Unpin> Pump<S> {
    pub(super) fn new(websocket: WebSocketStream<S>, opening: Opening) -> Pump<S> {
        let Opening {
            gateway,
            token,
            limits,
            counters,
            shutdown,
        } = opening;
        let started = Instant::now();
        let hello = Control::Hello {
            caps: Vec::new(),
            resume: None,
            idle_seconds: u32::try_from(limits.idle.as_secs()).unwrap_or(u32::MAX),
        };
        let mut pump = Pump {
            websocket,
            udp: None,
            proof: Proof::new(gateway.mac1.clone(), token, limits.unproven),
            gateway,
            up: Queue::new(limits.queue_bytes, limits.queue_age),
            down: Queue::new(limits.queue_bytes, limits.queue_age),
            limits,
            counters,
            notices: VecDeque::from([text(&hello)]),
            pong: None,
            told: Vec::new(),
            unreachable: false,
            writing: false,
            stuck: None,
            backlogged: false,
            started,
            last_datagram: Duration::ZERO,
            last_heard: Duration::ZERO,
            last_ping: Duration::ZERO,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            shutdown: Box::pin(shutdown.cancelled_owned()),
        };
        let due = started + pump.poll_timeout(Duration::ZERO);
        pump.timer.as_mut().reset(due);
        pump
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        if self.shutdown.as_mut().poll(context).is_ready() {
            return Poll::Ready(End::Close(CloseCode::Restarting));
        }
        for _ in 0..TURNS {
            let now = self.started.elapsed();
            match self.turn(context, now) {
                Err(end) => return Poll::Ready(end),
                Ok(true) => continue,
                Ok(false) => {}
            }
            // Deadlines mostly move away: the timer is set again when it fires early, not each
            // time one moves.
            let due = self.started + self.poll_timeout(now);
            if self.timer.deadline() > due || self.timer.is_elapsed() {
                self.timer.as_mut().reset(due);
            }
            if self.timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// The WebSocket alone: the gateway's datagrams are nobody's from here on, and what waits is
    /// counted as dropped.
    pub(super) fn into_websocket(self) -> WebSocketStream<S> {
        self.counters.add(Counter::UpEnded, self.up.len() as u64);
        self.counters
            .add(Counter::DownEnded, self.down.len() as u64);
        self.websocket
    }

    /// One turn; says whether more is ready. When not, every waker is in place.
    fn turn(&mut self, context: &mut Context<'_>, now: Duration) -> Result<bool, End> {
        self.handle_timeout(now)?;
        let more_from_client = self.poll_client(context, now)?;
        self.poll_up(context, now);
        let more_from_gateway = self.poll_gateway(context, now);
        self.poll_down(context, now)?;
        Ok(more_from_client || more_from_gateway)
    }

    /// Reads what the client sent. True when there may be more.
    fn poll_client(&mut self, context: &mut Context<'_>, now: Duration) -> Result<bool, End> {
        for _ in 0..MESSAGES_PER_TURN {
            let message = match Pin::new(&mut self.websocket).poll_next(context) {
                Poll::Pending => return Ok(false),
                Poll::Ready(None) => return Err(End::Left),
                Poll::Ready(Some(Err(error))) => return Err(fault(&error)),
                Poll::Ready(Some(Ok(message))) => message,
            };
            self.last_heard = now;
            match message {
                Message::Binary(message) => {
                    let records = record::records(&message).map_err(|error| {
                        End::Close(match error {
                            record::RecordError::TooLong { .. } => CloseCode::RecordTooLarge,
                            _ => CloseCode::RecordMalformed,
                        })
                    })?;
                    for datagram in records {
                        self.handle_client_datagram(context, now, datagram)?;
                    }
                }
                Message::Text(text) => match Control::parse(&text) {
                    // The newest ping alone is answered: a flood gets one pong.
                    Ok(Control::Ping { n }) => self.pong = Some(n),
                    Ok(Control::Pong { .. }) => {}
                    // A client has nothing else to say in this version.
                    Ok(_) | Err(_) => return Err(End::Close(CloseCode::ControlMalformed)),
                },
                Message::Close(_) => return Err(End::Left),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        Ok(true)
    }

    fn handle_client_datagram(
        &mut self,
        context: &mut Context<'_>,
        now: Duration,
        datagram: &[u8],
    ) -> Result<(), End> {
        self.counters.count(Counter::UpDatagrams);
        self.counters.add(Counter::UpBytes, datagram.len() as u64);
        let was_proven = self.proof.is_proven();
        let verdict = self.proof.handle_client(now, datagram);
        if self.proof.is_proven() && !was_proven {
            self.counters.count(Counter::SessionsProven);
        }
        let (dropped, close) = match verdict {
            Verdict::Pass(kind) => {
                self.last_datagram = now;
                return self.send_up(context, now, kind, datagram);
            }
            Verdict::Drop(dropped) => (dropped, None),
            Verdict::Close(dropped, code) => (dropped, Some(code)),
        };
        let (counter, limit) = match dropped {
            proof::Dropped::NotWireguard => (Counter::UpNotWireguard, Limit::NotWireguard),
            proof::Dropped::Unproven => (Counter::UpUnproven, Limit::Unproven),
            proof::Dropped::Initiations => (Counter::UpInitiations, Limit::Initiations),
        };
        self.counters.count(counter);
        self.tell(now, limit);
        close.map_or(Ok(()), |code| Err(End::Close(code)))
    }

    /// Sends to the gateway at once, or queues when the socket is full.
    fn send_up(
        &mut self,
        context: &mut Context<'_>,
        now: Duration,
        kind: Kind,
        datagram: &[u8],
    ) -> Result<(), End> {
        if self.udp.is_none() {
            match open(self.gateway.endpoint) {
                Ok(socket) => self.udp = Some(socket),
                Err(error) => {
                    tracing::warn!(gateway = self.gateway.name, %error, "no UDP socket to the gateway");
                    self.counters.count(Counter::SocketFailed);
                    self.counters.count(Counter::UpSendFailed);
                    return Err(End::Close(CloseCode::GatewayUnreachable));
                }
            }
        }
        if self.up.is_empty() && self.poll_send(context, now, datagram).is_ready() {
            return Ok(());
        }
        let dropped = self.up.push(now, kind, datagram);
        self.counters.add(Counter::UpFull, dropped.full);
        self.counters.add(Counter::UpOld, dropped.old);
        if dropped.full > 0 {
            self.tell(now, Limit::Overload);
        }
        Ok(())
    }

    /// Sends what waits for the gateway's socket.
    fn poll_up(&mut self, context: &mut Context<'_>, now: Duration) {
        let old = self.up.expire(now);
        self.counters.add(Counter::UpOld, old);
        while let Some(datagram) = self.up.front() {
            // The queue is borrowed by the datagram: a copy of what rarely waits.
            let datagram = datagram.to_vec();
            if self.poll_send(context, now, &datagram).is_pending() {
                return;
            }
            self.up.pop();
        }
    }

    /// Sends one datagram; ready when it was sent or dropped.
    fn poll_send(&mut self, context: &mut Context<'_>, now: Duration, datagram: &[u8]) -> Poll<()> {
        // An error that an earlier datagram caused is reported here once, in place of sending.
        for last_try in [false, true] {
            let Some(socket) = &self.udp else { break };
            match ready!(socket.poll_send(context, datagram)) {
                Ok(_) => {
                    self.counters.count(Counter::UpSent);
                    return Poll::Ready(());
                }
                Err(error) if is_unreachable(&error) => {
                    self.gateway_unreachable(now);
                    if last_try {
                        self.counters.count(Counter::UpUnreachable);
                    }
                }
                Err(_) => {
                    self.counters.count(Counter::UpSendFailed);
                    break;
                }
            }
        }
        Poll::Ready(())
    }

    /// Drains the gateway's socket. True when there may be more.
    fn poll_gateway(&mut self, context: &mut Context<'_>, now: Duration) -> bool {
        // One byte more than may pass, to tell what is too large.
        let mut storage = [0; record::MAX_RECORD + 1];
        for _ in 0..DATAGRAMS_PER_TURN {
            let Some(socket) = &self.udp else {
                return false;
            };
            let mut buffer = ReadBuf::new(&mut storage);
            match socket.poll_recv(context, &mut buffer) {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) => self.handle_gateway_datagram(now, buffer.filled()),
                Poll::Ready(Err(error)) if is_unreachable(&error) => self.gateway_unreachable(now),
                Poll::Ready(Err(_)) => self.counters.count(Counter::GatewayUnreachable),
            }
        }
        true
    }

    fn handle_gateway_datagram(&mut self, now: Duration, datagram: &[u8]) {
        self.counters.count(Counter::DownDatagrams);
        self.counters.add(Counter::DownBytes, datagram.len() as u64);
        if datagram.is_empty() {
            return self.counters.count(Counter::DownEmpty);
        }
        if datagram.len() > record::MAX_RECORD {
            return self.counters.count(Counter::DownTooLarge);
        }
        let was_proven = self.proof.is_proven();
        let Verdict::Pass(kind) = self.proof.handle_gateway(datagram) else {
            return self.counters.count(Counter::DownNotWireguard);
        };
        if self.proof.is_proven() && !was_proven {
            self.counters.count(Counter::SessionsProven);
        }
        self.last_datagram = now;
        if self.unreachable {
            self.unreachable = false;
            self.notice(text(&Control::limited(Limit::GatewayReachable)));
        }
        let dropped = self.down.push(now, kind, datagram);
        self.counters.add(Counter::DownFull, dropped.full);
        self.counters.add(Counter::DownOld, dropped.old);
        if dropped.full > 0 {
            self.tell(now, Limit::Overload);
        }
    }

    /// Writes notices, then what waits for the client, one message at a time.
    fn poll_down(&mut self, context: &mut Context<'_>, now: Duration) -> Result<(), End> {
        loop {
            if self.writing {
                match Pin::new(&mut self.websocket).poll_flush(context) {
                    Poll::Ready(Ok(())) => {
                        self.writing = false;
                        self.stuck = None;
                    }
                    Poll::Ready(Err(error)) => return Err(fault(&error)),
                    Poll::Pending => {
                        self.stuck.get_or_insert(now);
                        self.backlogged = true;
                        return Ok(());
                    }
                }
            }
            let pong = self.pong.take().map(|n| text(&Control::Pong { n }));
            let message = pong
                .or_else(|| self.notices.pop_front())
                .or_else(|| self.next_message(now).map(Message::binary));
            let Some(message) = message else {
                return Ok(());
            };
            // The last flush has ended, so that the sink is ready.
            Pin::new(&mut self.websocket)
                .start_send(message)
                .map_err(|error| fault(&error))?;
            self.writing = true;
        }
    }

    /// As much as is ready and fits.
    fn next_message(&mut self, now: Duration) -> Option<Vec<u8>> {
        let old = self.down.expire(now);
        self.counters.add(Counter::DownOld, old);
        let limit = if self.backlogged {
            self.limits.backlogged_message
        } else {
            record::MAX_MESSAGE
        };
        let mut message = Vec::new();
        let mut count = 0;
        while let Some(datagram) = self.down.front() {
            let fits = message.len() + record::HEADER + datagram.len() <= limit;
            if !(fits || message.is_empty()) || record::push(&mut message, datagram).is_err() {
                break;
            }
            self.down.pop();
            count += 1;
        }
        if count == 0 {
            self.backlogged = false;
            return None;
        }
        self.counters.add(Counter::DownSent, count);
        self.counters.count(Counter::DownMessages);
        Some(message)
    }

    fn handle_timeout(&mut self, now: Duration) -> Result<(), End> {
        let close = |code| Err(End::Close(code));
        if let Some(code) = self.proof.handle_timeout(now) {
            return close(code);
        }
        if self
            .stuck
            .is_some_and(|since| now >= since.saturating_add(self.limits.write_timeout))
        {
            return close(CloseCode::SlowClient);
        }
        if now >= self.last_heard.saturating_add(self.limits.silent) {
            return close(CloseCode::ClientSilent);
        }
        if now >= self.last_datagram.saturating_add(self.limits.idle) {
            return close(CloseCode::Idle);
        }
        if now >= self.next_ping() {
            self.last_ping = now;
            self.notice(Message::Ping(Vec::new().into()));
        }
        Ok(())
    }

    /// The time of the next deadline, since the session began.
    fn poll_timeout(&self, now: Duration) -> Duration {
        [
            self.proof.poll_timeout(),
            self.stuck
                .map(|since| since.saturating_add(self.limits.write_timeout)),
            Some(self.last_heard.saturating_add(self.limits.silent)),
            Some(self.last_datagram.saturating_add(self.limits.idle)),
            Some(self.next_ping()),
        ]
        .into_iter()
        .flatten()
        .fold(now + FURTHEST, Duration::min)
    }

    fn next_ping(&self) -> Duration {
        self.last_heard
            .max(self.last_ping)
            .saturating_add(self.limits.ping_after)
    }

    fn gateway_unreachable(&mut self, now: Duration) {
        self.counters.count(Counter::GatewayUnreachable);
        if !self.unreachable {
            self.unreachable = true;
            self.told
                .retain(|(limit, _)| *limit != Limit::GatewayUnreachable);
        }
        self.tell(now, Limit::GatewayUnreachable);
    }

    /// Tells the client of a limit, unless it was told lately.
    fn tell(&mut self, now: Duration, limit: Limit) {
        match self.told.iter_mut().find(|(told, _)| *told == limit) {
            Some((_, since)) if now < *since + TELL_AGAIN => return,
            Some((_, since)) => *since = now,
            None => self.told.push((limit, now)),
        }
        self.notice(text(&Control::limited(limit)));
    }

    fn notice(&mut self, notice: Message) {
        if self.notices.len() < NOTICES {
            self.notices.push_back(notice);
        } else {
            self.counters.count(Counter::NoticeFull);
        }
    }
}

/// What a failed read or write means.
fn fault(error: &WebSocketError) -> End {
    match error {
        WebSocketError::Capacity(_) => End::Close(CloseCode::MessageTooLarge),
        WebSocketError::Utf8(_) => End::Close(CloseCode::ControlMalformed),
        WebSocketError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::Lost,
        WebSocketError::Protocol(_) => End::Close(CloseCode::FrameMalformed),
        _ => End::Lost,
    }
}

fn open(gateway: SocketAddr) -> io::Result<UdpSocket> {
    let any = match gateway {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(gateway)?;
    UdpSocket::from_std(socket)
}

/// What ICMP, or a route that is missing, makes of a connected UDP socket.
fn is_unreachable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}
