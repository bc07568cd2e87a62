//! What passes: one future per session, that holds no task, no channel and no lock.
//!
//! Each turn reads what the client sent, sends it to the gateway, drains the gateway's socket and
//! writes what is ready as one message. The next message is begun when the last has left for the
//! kernel, so that what cannot be dropped any more is one message and the kernel's unsent bytes.
//!
//! The file is long because it is one state machine: its two directions share the socket, the
//! buffers and the clock, and apart they would be methods of one another.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::AsyncWrite,
    sync::oneshot,
    time::{Instant, Sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;
use wire::{
    CloseCode, Control, Limit, flyctl,
    frame::{self, Decoder, Event, FrameError, Opcode, Peer},
    record,
    wireguard::Kind,
};

use super::{End, Opening, Rest, spread};
use crate::{
    acks::Acks,
    admission::Gateway,
    config::Limits,
    counters::{Counter, Counters, Delays},
    held::Held,
    pool,
    proof::{self, Proof, Verdict},
    queue::Queue,
    rate::Rate,
    rest,
    resume::{Kept, Registered},
    slots::SessionSlot,
    udp::{Batch, Sent, Udp, is_unreachable},
};

/// A session between its first and its last word.
pub(super) struct Pump {
    decoder: Decoder,
    /// What messages hold is flyctl's byte stream, not records.
    flyctl: bool,
    stream: flyctl::Stream,
    /// The message that is being filled, while `filled` counts its records; then what is left to
    /// write of it, while `writing`. It begins at `out_at`.
    out: Vec<u8>,
    out_at: usize,
    filled: u64,
    udp: Option<Udp>,
    gateway: Arc<Gateway>,
    limits: Limits,
    counters: Arc<Counters>,
    proof: Proof,
    up_rate: Rate,
    down_rate: Rate,
    acks: Acks,
    /// Waits for the gateway's socket; empty nearly always. The next try is at `up_again`.
    up: Queue,
    up_again: Duration,
    /// When the socket is asked for an error, while the gateway is silent.
    ask_error: Option<Duration>,
    last_answer: Option<Duration>,
    /// Waits for the client.
    down: Queue,
    /// Control messages and pings that wait for the client, before any data.
    notices: VecDeque<(Opcode, Vec<u8>)>,
    /// The number of the control ping that waits for its pong.
    pong: Option<u64>,
    /// The payload of the WebSocket ping that waits for its pong.
    frame_pong: Option<Vec<u8>>,
    /// The limits that the client has been told of, and when.
    told: Vec<(Limit, Duration)>,
    /// The gateway's host or the network refused the last datagram.
    unreachable: bool,
    /// A message is on its way into the kernel; since when it has been stuck there.
    writing: bool,
    stuck: Option<Duration>,
    /// The client has been slower than the gateway since the queue was last empty.
    backlogged: bool,
    /// The message size while backlogged: less, the longer a message takes to leave.
    message: usize,
    started: Instant,
    last_datagram: Duration,
    last_heard: Duration,
    last_ping: Duration,
    tally: Tally,
    timer: Pin<Box<Sleep>>,
    /// None once it has come.
    shutdown: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// The relay drains: this session is closed then, and its client knows.
    leaves: Option<Duration>,
    registered: Option<Registered>,
    slot: Option<SessionSlot>,
    /// Another connection goes on with the session, and waits for it here.
    newcomer: Option<oneshot::Sender<Kept>>,
}

/// What passed in a turn: counted together at its end.
#[derive(Default)]
struct Tally {
    up: u64,
    up_bytes: u64,
    down: u64,
    down_bytes: u64,
    delays: Delays,
}

/// What one turn takes from one side before the other side gets its turn.
const READS_PER_TURN: usize = 4;
const RECEIVES_PER_TURN: usize = 4;
/// When the gateway's socket has no room, it is tried again after this long.
const UP_AGAIN: Duration = Duration::from_millis(1);
/// A gateway that has not answered for so long may be gone: after a send its socket is asked for
/// an error in so much time. Otherwise the next send finds it.
const SILENT_GATEWAY: Duration = Duration::from_secs(1);
const ASK_ERROR: Duration = Duration::from_millis(10);
/// A message that takes so long to leave is too large for its path: what waits behind it waits for
/// all of it, and a client can decrypt nothing of a record before its end.
const LONG: Duration = Duration::from_millis(2);
const LEAST_MESSAGE: usize = 4 * 1024;
/// Turns before other sessions get theirs.
const TURNS: usize = 8;
/// A message for flyctl: its library's own limit is 32 KB.
const FLYCTL_MESSAGE: usize = 16 * 1024;
/// Control messages that may wait.
const NOTICES: usize = 32;
/// The furthest that a deadline is looked ahead.
const FURTHEST: Duration = Duration::from_secs(24 * 3600);
/// The same limit is told again after this long.
const TELL_AGAIN: Duration = Duration::from_secs(10);

impl Pump {
    pub(super) fn new(opening: Opening) -> Pump {
        let Opening {
            gateway,
            token,
            flyctl,
            limits,
            counters,
            shutdown,
            registered,
            kept,
            slot,
        } = opening;
        let hello = Control::Hello {
            caps: Vec::new(),
            resume: registered.as_ref().map(|it| it.token().to_owned()),
            idle_seconds: u32::try_from(limits.idle.as_secs()).unwrap_or(u32::MAX),
            resumed: kept.is_some(),
        };
        let (queue, queue_age) = (limits.queue_bytes, limits.queue_age);
        // The clock of a session that goes on goes on.
        let started = kept.as_ref().map_or_else(Instant::now, |kept| kept.started);
        let now = started.elapsed();
        let (udp, proof, down, slot) = match kept {
            None => {
                // flyctl connects long before it has something to say.
                let deadline = if flyctl { limits.idle } else { limits.unproven };
                let proof = Proof::new(gateway.mac1.clone(), token, deadline);
                (None, proof, Queue::new(queue, queue_age), slot)
            }
            Some(kept) => {
                let down = kept.down.anew(now, queue, queue_age);
                (Some(kept.udp), kept.proof, down, kept.slot)
            }
        };
        let mut pump = Pump {
            decoder: if flyctl {
                Decoder::of_bytes(Peer::Client, record::MAX_MESSAGE)
            } else {
                Decoder::new(Peer::Client, record::MAX_MESSAGE)
            },
            flyctl,
            stream: flyctl::Stream::default(),
            out: Vec::new(),
            out_at: 0,
            filled: 0,
            udp,
            proof,
            up_rate: Rate::new(&limits, now),
            down_rate: Rate::new(&limits, now),
            acks: Acks::default(),
            gateway,
            up: Queue::new(queue, queue_age),
            down,
            up_again: Duration::ZERO,
            ask_error: None,
            last_answer: None,
            limits,
            counters,
            // Nothing may be said to flyctl before it has spoken, and no control ever.
            notices: if flyctl {
                VecDeque::new()
            } else {
                VecDeque::from([(Opcode::Text, hello.to_text().into_bytes())])
            },
            pong: None,
            frame_pong: None,
            told: Vec::new(),
            unreachable: false,
            writing: false,
            stuck: None,
            backlogged: false,
            message: limits.backlogged_message.min(record::MAX_MESSAGE),
            started,
            last_datagram: now,
            last_heard: now,
            last_ping: now,
            tally: Tally::default(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            shutdown: Some(Box::pin(shutdown.cancelled_owned())),
            leaves: None,
            registered,
            slot,
            newcomer: None,
        };
        let due = started + pump.poll_timeout(now);
        pump.timer.as_mut().reset(due);
        pump
    }

    /// Takes turns at `socket` until nothing is ready, or the session ends.
    pub(super) fn poll(&mut self, socket: &mut Held, context: &mut Context<'_>) -> Poll<End> {
        let shutdown = self.shutdown.as_mut();
        if shutdown.is_some_and(|it| it.as_mut().poll(context).is_ready()) {
            self.shutdown = None;
            if self.limits.drain.is_zero() {
                return Poll::Ready(End::Close(CloseCode::Restarting));
            }
            self.drain();
        }
        let registered = self.registered.as_mut();
        if let Some(Poll::Ready(newcomer)) = registered.map(|it| it.poll_asked(context)) {
            self.newcomer = Some(newcomer);
            return Poll::Ready(End::Close(CloseCode::Superseded));
        }
        for _ in 0..TURNS {
            let now = self.started.elapsed();
            match self.turn(socket, context, now) {
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

    /// What of a message is still to be written, and what of a proven session can go on. What waits
    /// is counted as dropped.
    pub(super) fn into_rest(mut self) -> Rest {
        self.seal();
        self.counters.add(Counter::UpEnded, self.up.len() as u64);
        self.counters
            .add(Counter::DownEnded, self.down.len() as u64);
        let mut unwritten = self.out.split_off(self.out_at);
        // What was asked before the end is answered.
        if let Some(n) = self.pong {
            let pong = Control::Pong { n }.to_text();
            frame::push(&mut unwritten, Opcode::Text, pong.as_bytes());
        }
        if let Some(payload) = &self.frame_pong {
            frame::push(&mut unwritten, Opcode::Pong, payload);
        }
        let proven = self.proof.is_proven();
        let kept = self.udp.filter(|_| proven).map(|udp| Kept {
            udp,
            proof: self.proof,
            started: self.started,
            down: Queue::default(),
            slot: self.slot,
        });
        Rest {
            unwritten,
            kept,
            registered: self.registered,
            newcomer: self.newcomer,
            told_to_leave: self.leaves.is_some(),
        }
    }

    /// One turn; says whether more is ready. When not, every waker is in place.
    fn turn(
        &mut self,
        socket: &mut Held,
        context: &mut Context<'_>,
        now: Duration,
    ) -> Result<bool, End> {
        let more = self.turn_of_both(socket, context, now);
        let tally = std::mem::take(&mut self.tally);
        rest::carried(tally.up + tally.down);
        for (counter, count) in [
            (Counter::UpDatagrams, tally.up),
            (Counter::UpBytes, tally.up_bytes),
            (Counter::DownDatagrams, tally.down),
            (Counter::DownBytes, tally.down_bytes),
        ] {
            if count > 0 {
                self.counters.add(counter, count);
            }
        }
        self.counters.delays(&tally.delays);
        more
    }

    fn turn_of_both(
        &mut self,
        socket: &mut Held,
        context: &mut Context<'_>,
        now: Duration,
    ) -> Result<bool, End> {
        self.handle_timeout(now)?;
        let more_from_client = self.poll_client(socket, context, now)?;
        if self.acks.handle_timeout(now) {
            socket.acknowledge(true);
        }
        self.poll_up(now);
        let more_from_gateway = self.poll_gateway(socket, context, now)?;
        self.poll_down(socket, context, now)?;
        Ok(more_from_client || more_from_gateway)
    }

    /// Reads what the client sent, and sends it on as one batch or few. True when there may be
    /// more.
    fn poll_client(
        &mut self,
        socket: &mut Held,
        context: &mut Context<'_>,
        now: Duration,
    ) -> Result<bool, End> {
        let mut batch = Batch::new(pool::take());
        let read = self.read_client(socket, context, now, &mut batch);
        let sent = self.send_batch(now, &mut batch);
        pool::give(batch.into_buffer());
        let more = read?;
        sent.map(|()| more)
    }

    fn read_client(
        &mut self,
        socket: &mut Held,
        context: &mut Context<'_>,
        now: Duration,
        batch: &mut Batch,
    ) -> Result<bool, End> {
        // Its events borrow it while the rest of the session handles them.
        let idle = Decoder::new(Peer::Client, record::MAX_MESSAGE);
        let mut decoder = std::mem::replace(&mut self.decoder, idle);
        let mut lent = false;
        let mut read = || {
            for _ in 0..READS_PER_TURN {
                let mut handled = Ok(());
                let polled = socket.poll_take(context, &mut |mut bytes| {
                    if !std::mem::replace(&mut lent, true) {
                        decoder.lend(pool::take());
                    }
                    while handled.is_ok() {
                        handled = match decoder.decode(&mut bytes) {
                            Ok(Some(event)) => self.handle_client(now, event, batch),
                            Ok(None) => break,
                            Err(error) => Err(fault(error)),
                        };
                    }
                });
                handled?;
                match polled {
                    Poll::Pending => return Ok(false),
                    Poll::Ready(Ok(1..)) => {
                        if self.acks.handle_read(now) {
                            socket.acknowledge(false);
                        }
                    }
                    Poll::Ready(_) => return Err(End::Lost),
                }
            }
            Ok(true)
        };
        let more = read();
        if let Some(buffer) = decoder.rest() {
            pool::give(buffer);
        }
        self.decoder = decoder;
        more
    }

    fn handle_client(
        &mut self,
        now: Duration,
        event: Event<'_>,
        batch: &mut Batch,
    ) -> Result<(), End> {
        self.last_heard = now;
        match event {
            Event::Binary(message) if self.flyctl => self.handle_stream(now, message, batch),
            Event::Binary(message) => {
                let records = record::records(message).map_err(|error| {
                    End::Close(match error {
                        record::RecordError::TooLong { .. } => CloseCode::RecordTooLarge,
                        _ => CloseCode::RecordMalformed,
                    })
                })?;
                for datagram in records {
                    self.handle_client_datagram(now, datagram, batch)?;
                }
                Ok(())
            }
            Event::Text(text) => match Control::parse(text) {
                // The newest ping alone is answered: a flood gets one pong.
                Ok(Control::Ping { n }) => {
                    self.pong = Some(n);
                    Ok(())
                }
                Ok(Control::Pong { .. }) => Ok(()),
                // A client has nothing else to say in this version.
                Ok(_) | Err(_) => Err(End::Close(CloseCode::ControlMalformed)),
            },
            Event::Ping(payload) => {
                self.frame_pong = Some(payload.to_vec());
                Ok(())
            }
            Event::Pong(_) => Ok(()),
            Event::Close(code, _) => Err(End::Left(code)),
        }
    }

    fn handle_stream(
        &mut self,
        now: Duration,
        mut bytes: &[u8],
        batch: &mut Batch,
    ) -> Result<(), End> {
        let mut stream = std::mem::take(&mut self.stream);
        let mut handled = Ok(());
        while handled.is_ok() {
            match stream.decode(&mut bytes) {
                Ok(Some(flyctl::Event::Keepalive)) => {}
                Ok(Some(flyctl::Event::Datagram(datagram))) => {
                    handled = self.handle_client_datagram(now, datagram, batch);
                }
                Ok(None) => break,
                Err(error) => {
                    handled = Err(End::Close(match error {
                        flyctl::StreamError::TooLong(_) => CloseCode::RecordTooLarge,
                        flyctl::StreamError::Magic => CloseCode::RecordMalformed,
                    }));
                }
            }
        }
        stream.rest();
        self.stream = stream;
        handled
    }

    fn handle_client_datagram(
        &mut self,
        now: Duration,
        datagram: &[u8],
        batch: &mut Batch,
    ) -> Result<(), End> {
        self.tally.up += 1;
        self.tally.up_bytes += datagram.len() as u64;
        let was_proven = self.proof.is_proven();
        let verdict = self.proof.handle_client(now, datagram);
        if self.proof.is_proven() && !was_proven {
            self.counters.count(Counter::SessionsProven);
        }
        let (dropped, close) = match verdict {
            Verdict::Pass(_) if !self.up_rate.take(now, datagram.len()) => {
                self.counters.count(Counter::UpRate);
                self.tell(now, Limit::Rate);
                return Ok(());
            }
            Verdict::Pass(_) => {
                self.last_datagram = now;
                if !batch.push(datagram) {
                    let sent = self.send_batch(now, batch);
                    sent.inspect_err(|_| self.counters.count(Counter::UpSendFailed))?;
                    batch.push(datagram);
                }
                return Ok(());
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

    /// Sends a batch to the gateway, or queues what the socket does not take. The batch is empty
    /// then.
    fn send_batch(&mut self, now: Duration, batch: &mut Batch) -> Result<(), End> {
        if batch.len() == 0 {
            return Ok(());
        }
        let mut udp = match self.udp.take() {
            Some(udp) => udp,
            None => Udp::open(self.gateway.endpoint).map_err(|error| {
                tracing::warn!(gateway = self.gateway.name, %error, "no UDP socket to the gateway");
                self.counters.count(Counter::SocketFailed);
                let lost = batch.len() as u64;
                self.counters.add(Counter::UpSendFailed, lost);
                batch.clear();
                End::Close(CloseCode::GatewayUnreachable)
            })?,
        };
        let had_gso = udp.has_gso();
        let mut from = 0;
        let mut tried = false;
        // Behind what waits already, everything waits.
        while self.up.is_empty() && from < batch.len() {
            let (sent, lost) = match udp.send(batch, from) {
                Sent::All => (batch.len() - from, None),
                Sent::NoRoom(sent) => {
                    self.counters.add(Counter::UpSent, sent as u64);
                    from += sent;
                    self.up_again = now + UP_AGAIN;
                    break;
                }
                // An error that an earlier datagram caused is reported once, in place of sending.
                Sent::Earlier(sent) => {
                    self.gateway_unreachable(now);
                    let again = tried && sent == 0;
                    tried = !again;
                    (sent, again.then_some(Counter::UpUnreachable))
                }
                Sent::Refused(sent) => (sent, Some(Counter::UpSendFailed)),
            };
            self.counters.add(Counter::UpSent, sent as u64);
            from += sent;
            if let Some(counter) = lost {
                self.counters.count(counter);
                from += 1;
            }
        }
        if had_gso && !udp.has_gso() {
            self.counters.count(Counter::GsoRefused);
        }
        self.udp = Some(udp);
        let answered = self.last_answer;
        if answered.is_none_or(|answered| now > answered + SILENT_GATEWAY) {
            self.ask_error.get_or_insert(now + ASK_ERROR);
        }
        let mut full = 0;
        for datagram in batch.datagrams().skip(from) {
            let kind = Kind::of(datagram).unwrap_or(Kind::Data);
            let dropped = self.up.push(now, kind, datagram);
            self.counters.add(Counter::UpFull, dropped.full);
            self.counters.add(Counter::UpOld, dropped.old);
            full += dropped.full;
        }
        batch.clear();
        if full > 0 {
            self.tell(now, Limit::Overload);
        }
        Ok(())
    }

    /// Sends what waits for the gateway's socket.
    fn poll_up(&mut self, now: Duration) {
        if self.up.is_empty() || now < self.up_again {
            return;
        }
        let old = self.up.expire(now);
        self.counters.add(Counter::UpOld, old);
        let mut tried = false;
        while let (Some(datagram), Some(udp)) = (self.up.front(), &mut self.udp) {
            let mut one = Batch::new(pool::take());
            one.push(datagram);
            let sent = udp.send(&one, 0);
            pool::give(one.into_buffer());
            match sent {
                Sent::All => self.counters.count(Counter::UpSent),
                Sent::NoRoom(_) => {
                    self.up_again = now + UP_AGAIN;
                    return;
                }
                Sent::Earlier(_) => {
                    self.gateway_unreachable(now);
                    tried = !tried;
                    if tried {
                        continue;
                    }
                    self.counters.count(Counter::UpUnreachable);
                }
                Sent::Refused(_) => self.counters.count(Counter::UpSendFailed),
            }
            let waited = self.up.pop(now);
            self.up.left(now, waited);
        }
    }

    /// Drains the gateway's socket. True when there may be more.
    fn poll_gateway(
        &mut self,
        socket: &mut Held,
        context: &mut Context<'_>,
        now: Duration,
    ) -> Result<bool, End> {
        let Some(udp) = self.udp.take() else {
            return Ok(false);
        };
        let waker = context.waker();
        let mut handled = Ok(());
        let mut take = |session: &mut Pump, bytes: &[u8], size: usize| {
            if bytes.is_empty() {
                session.tally.down += 1;
                session.counters.count(Counter::DownEmpty);
            }
            for datagram in bytes.chunks(size) {
                let context = &mut Context::from_waker(waker);
                let result = session.handle_gateway_datagram(socket, context, now, datagram);
                // What has been received is counted, the end of the session notwithstanding.
                if handled.is_ok() {
                    handled = result;
                }
            }
        };
        let mut more = true;
        for _ in 0..RECEIVES_PER_TURN {
            let context = &mut Context::from_waker(waker);
            match udp.poll_receive(context, &mut |bytes, size| take(self, bytes, size)) {
                Poll::Pending => {
                    more = false;
                    break;
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) if is_unreachable(&error) => self.gateway_unreachable(now),
                Poll::Ready(Err(_)) => self.counters.count(Counter::GatewayUnreachable),
            }
        }
        self.udp = Some(udp);
        handled.map(|()| more)
    }

    fn handle_gateway_datagram(
        &mut self,
        socket: &mut Held,
        context: &mut Context<'_>,
        now: Duration,
        datagram: &[u8],
    ) -> Result<(), End> {
        self.tally.down += 1;
        self.tally.down_bytes += datagram.len() as u64;
        if datagram.len() > record::MAX_RECORD {
            self.counters.count(Counter::DownTooLarge);
            return Ok(());
        }
        let was_proven = self.proof.is_proven();
        let Verdict::Pass(kind) = self.proof.handle_gateway(datagram) else {
            self.counters.count(Counter::DownNotWireguard);
            return Ok(());
        };
        if self.proof.is_proven() && !was_proven {
            self.counters.count(Counter::SessionsProven);
        }
        self.last_datagram = now;
        self.last_answer = Some(now);
        if self.unreachable {
            self.unreachable = false;
            self.tell_at_once(Limit::GatewayReachable);
        }
        if !self.down_rate.take(now, datagram.len()) {
            self.counters.count(Counter::DownRate);
            self.tell(now, Limit::Rate);
            return Ok(());
        }
        // Straight into the message, as long as nothing waits before it.
        if self.down.is_empty() && !self.writing && (self.filled > 0 || self.notices.is_empty()) {
            if self.fill(datagram) {
                self.tally.delays.none(1);
                return Ok(());
            }
            let written = self.poll_down(socket, context, now);
            written.inspect_err(|_| self.counters.count(Counter::DownEnded))?;
            if self.down.is_empty() && !self.writing && self.fill(datagram) {
                self.tally.delays.none(1);
                return Ok(());
            }
        }
        let dropped = self.down.push(now, kind, datagram);
        self.counters.add(Counter::DownFull, dropped.full);
        self.counters.add(Counter::DownOld, dropped.old);
        if dropped.full > 0 {
            self.tell(now, Limit::Overload);
        }
        Ok(())
    }

    /// Adds a datagram to the message that is being filled; false when it has no room.
    fn fill(&mut self, datagram: &[u8]) -> bool {
        if self.filled == 0 {
            self.out = pool::take();
            self.out.resize(frame::MAX_HEADER, 0);
        }
        let limit = if self.backlogged {
            self.message
        } else if self.flyctl {
            FLYCTL_MESSAGE
        } else {
            record::MAX_MESSAGE
        };
        let fits = self.out.len() + flyctl::HEADER + datagram.len() <= limit;
        if !(fits || self.filled == 0) {
            return false;
        }
        let pushed = if self.flyctl {
            flyctl::push(&mut self.out, datagram)
        } else {
            record::push(&mut self.out, datagram).is_ok()
        };
        if !pushed {
            return false;
        }
        self.filled += 1;
        true
    }

    /// Ends the message that is being filled, if there is one: from here on it is written.
    fn seal(&mut self) {
        if self.filled == 0 {
            return;
        }
        // flyctl takes text alone, whatever is in it.
        let opcode = if self.flyctl {
            Opcode::Text
        } else {
            Opcode::Binary
        };
        let (header, length) = frame::header(opcode, self.out.len() - frame::MAX_HEADER);
        self.out_at = frame::MAX_HEADER - length;
        self.out[self.out_at..frame::MAX_HEADER].copy_from_slice(&header[..length]);
        self.counters.add(Counter::DownSent, self.filled);
        self.counters.count(Counter::DownMessages);
        self.filled = 0;
        self.writing = true;
    }

    /// Writes what is filled, notices, and what waits for the client, one message at a time.
    fn poll_down(
        &mut self,
        socket: &mut Held,
        context: &mut Context<'_>,
        now: Duration,
    ) -> Result<(), End> {
        loop {
            self.seal();
            if self.writing {
                match self.poll_write(socket, context) {
                    Poll::Ready(Ok(())) => {
                        self.writing = false;
                        let most = self.limits.backlogged_message.min(record::MAX_MESSAGE);
                        let took = self.stuck.take().map(|since| now.saturating_sub(since));
                        self.message = match took {
                            Some(took) if took > LONG => LEAST_MESSAGE.min(most),
                            Some(took) if took > LONG / 4 => self.message,
                            _ => (2 * self.message).min(most),
                        };
                        self.out_at = 0;
                        pool::give(std::mem::take(&mut self.out));
                    }
                    Poll::Ready(Err(_)) => return Err(End::Lost),
                    Poll::Pending => {
                        self.stuck.get_or_insert(now);
                        self.backlogged = true;
                        return Ok(());
                    }
                }
            }
            let pong = self.pong.take().map(|n| Control::Pong { n }.to_text());
            let notice = pong
                .map(|text| (Opcode::Text, text.into_bytes()))
                .or_else(|| Some((Opcode::Pong, self.frame_pong.take()?)))
                .or_else(|| self.notices.pop_front());
            if let Some((opcode, payload)) = notice {
                frame::push(&mut self.out, opcode, &payload);
                self.writing = true;
                continue;
            }
            let old = self.down.expire(now);
            self.counters.add(Counter::DownOld, old);
            self.fill_from_queue(now);
            if self.filled == 0 {
                self.backlogged = false;
                return Ok(());
            }
        }
    }

    /// As much as is ready and fits.
    fn fill_from_queue(&mut self, now: Duration) {
        let mut down = std::mem::take(&mut self.down);
        let mut oldest = None;
        while let Some(datagram) = down.front()
            && self.fill(datagram)
        {
            let waited = down.pop(now);
            oldest.get_or_insert(waited);
            self.tally.delays.one(waited);
        }
        if let Some(waited) = oldest {
            down.left(now, waited);
        }
        self.down = down;
    }

    /// Writes the message as far as the kernel takes it; ready when all of it is there.
    fn poll_write(
        &mut self,
        socket: &mut Held,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        while self.out_at < self.out.len() {
            let bytes = &self.out[self.out_at..];
            let written = ready!(Pin::new(&mut *socket).poll_write(context, bytes))?;
            if written == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            self.out_at += written;
        }
        Pin::new(&mut *socket).poll_flush(context)
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
        if self.leaves.is_some_and(|at| now >= at) {
            return close(CloseCode::Restarting);
        }
        if self.ask_error.is_some_and(|at| now >= at) {
            self.ask_error = None;
            if self.udp.as_ref().and_then(Udp::take_error).is_some() {
                self.gateway_unreachable(now);
            }
        }
        if now >= self.next_ping() {
            self.last_ping = now;
            self.notice(Opcode::Ping, Vec::new());
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
            (!self.up.is_empty()).then_some(self.up_again),
            self.acks.poll_timeout(),
            self.ask_error,
            self.leaves,
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

    /// Tells the client when it will have to go, which is at another moment for each, so that they
    /// do not all return in one. Until then the session goes on.
    fn drain(&mut self) {
        let wait = self.limits.drain.mul_f64(spread());
        self.leaves = Some(self.started.elapsed() + wait);
        let retry_after_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let draining = Control::Draining { retry_after_ms }.to_text();
        self.notice(Opcode::Text, draining.into_bytes());
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
        self.tell_at_once(limit);
    }

    fn tell_at_once(&mut self, limit: Limit) {
        let text = Control::limited(limit).to_text();
        self.notice(Opcode::Text, text.into_bytes());
    }

    fn notice(&mut self, opcode: Opcode, payload: Vec<u8>) {
        if self.flyctl {
            return;
        }
        if self.notices.len() < NOTICES {
            self.notices.push_back((opcode, payload));
        } else {
            self.counters.count(Counter::NoticeFull);
        }
    }
}

/// The code that says what a client did to the protocol.
fn fault(error: FrameError) -> End {
    End::Close(match error {
        FrameError::TooLarge => CloseCode::MessageTooLarge,
        FrameError::Utf8 => CloseCode::ControlMalformed,
        _ => CloseCode::FrameMalformed,
    })
}
