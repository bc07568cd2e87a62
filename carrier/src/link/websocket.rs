//! Datagrams over a relay's WebSocket, reconnected when it is lost.
//!
//! A task of its own reads and writes, so that a connection that does not drain holds up nobody:
//! the driver fills an [`Outbox`] and takes messages from a bounded channel.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, Sink, SinkExt, Stream, StreamExt};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_tungstenite::tungstenite::{
    Error as WsError, Message,
    protocol::{CloseFrame, frame::coding::CloseCode as FrameCode},
};
use wire::{CloseCode, Control, Limit, control::ControlError};

use super::{
    Incoming,
    dial::{Dialled, Target},
    outbox::Outbox,
};
use crate::{
    CarrierError,
    error::{clean, clean_code},
    stats::{Counters, Drop, LinkStats},
};

/// The driver's end of a WebSocket path.
pub(crate) struct WebSocketLink {
    shared: Arc<Shared>,
    inbound: mpsc::Receiver<Incoming>,
    next: Option<Incoming>,
    task: JoinHandle<()>,
}

struct Shared {
    target: Arc<Target>,
    outbox: Mutex<Outbox>,
    /// Answers and questions that go before data. Bounded by [`MAX_CONTROLS`].
    controls: Mutex<Vec<Control>>,
    /// Something waits to be written.
    wake: Notify,
    /// The outbox has room again.
    room: Notify,
    starved: AtomicBool,
    up: AtomicBool,
    /// The path is to be tested or dialled now.
    probe: Notify,
    stop: Notify,
    stopping: AtomicBool,
    counters: Counters,
}

/// Messages between task and driver: enough to keep both busy, 1 MiB at most.
const INBOUND: usize = 16;
const MAX_CONTROLS: usize = 8;

/// Backlogged messages stay small, because what is encrypted can no longer be dropped.
const SMALL_MESSAGE: usize = 16 * 1024;

/// A connection that was silent for this long is asked whether it lives, and has as long as
/// `PONG_LIMIT` to answer.
const PING_EVERY: Duration = Duration::from_secs(10);
const PONG_LIMIT: Duration = Duration::from_secs(5);
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// A session that lasted this long was a good one: the next dial follows at once.
const GOOD_SESSION: Duration = Duration::from_secs(10);
const RETRY_MS: [u64; 8] = [100, 250, 500, 1_000, 2_000, 4_000, 8_000, 15_000];
const RETRY_PERMANENT: Duration = Duration::from_secs(30);
const MAX_DRAIN_WAIT: Duration = Duration::from_secs(30);

impl WebSocketLink {
    /// Dials once; what is wrong with the relay shows here.
    pub(crate) async fn open(target: Arc<Target>) -> Result<WebSocketLink, CarrierError> {
        let first = Box::pin(target.dial(None)).await?;
        let shared = Arc::new(Shared {
            target,
            outbox: Mutex::default(),
            controls: Mutex::default(),
            wake: Notify::new(),
            room: Notify::new(),
            starved: AtomicBool::new(false),
            up: AtomicBool::new(true),
            probe: Notify::new(),
            stop: Notify::new(),
            stopping: AtomicBool::new(false),
            counters: Counters::default(),
        });
        shared.counters.connected();
        let (to_driver, inbound) = mpsc::channel(INBOUND);
        let task = tokio::spawn(run(Arc::clone(&shared), first, to_driver));
        Ok(WebSocketLink {
            shared,
            inbound,
            next: None,
            task,
        })
    }

    pub(crate) async fn ready(&mut self) {
        if self.next.is_some() {
            return;
        }
        tokio::select! {
            incoming = self.inbound.recv() => match incoming {
                Some(incoming) => self.next = Some(incoming),
                // The task ends only when this end is closed.
                None => std::future::pending().await,
            },
            () = self.shared.room.notified() => {}
        }
    }

    pub(crate) fn try_recv(&mut self) -> Option<Incoming> {
        self.next.take().or_else(|| self.inbound.try_recv().ok())
    }

    pub(crate) fn has_room(&mut self) -> bool {
        let room = self.shared.up.load(Ordering::Acquire) && self.shared.outbox().has_room();
        if !room {
            self.shared.starved.store(true, Ordering::Release);
        }
        room
    }

    pub(crate) fn send(&mut self, datagram: Vec<u8>) {
        if !self.shared.up.load(Ordering::Acquire) {
            self.shared.counters.dropped(Drop::LinkDown);
        } else if datagram.len() > wire::record::MAX_RECORD {
            self.shared.counters.dropped(Drop::Oversize);
        } else {
            self.shared
                .outbox()
                .push(Instant::now(), datagram, &self.shared.counters);
        }
    }

    pub(crate) fn flush(&mut self) {
        if !self.shared.outbox().is_empty() {
            self.shared.wake.notify_one();
        }
    }

    pub(crate) fn probe(&mut self) {
        self.shared.probe.notify_one();
    }

    pub(crate) fn stats(&self) -> LinkStats {
        self.shared.counters.snapshot()
    }

    pub(crate) async fn close(mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.stop.notify_one();
        // A task that waits for the driver to take a message must not wait for ever.
        self.inbound.close();
        let _ = timeout(Duration::from_secs(1), &mut self.task).await;
    }
}

/// Without a goodbye: the driver was dropped with its runtime.
impl std::ops::Drop for WebSocketLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn controls(&self) -> MutexGuard<'_, Vec<Control>> {
        self.controls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a control message; a flood of them loses its tail.
    fn control(&self, control: Control) {
        let mut controls = self.controls();
        if controls.len() < MAX_CONTROLS {
            controls.push(control);
        }
        drop(controls);
        self.wake.notify_one();
    }
}

/// Dials, carries, and dials again, until the link is closed.
async fn run(shared: Arc<Shared>, first: Dialled, to_driver: mpsc::Sender<Incoming>) {
    let mut dialled = first;
    let mut failures = 0;
    loop {
        shared.up.store(true, Ordering::Release);
        if to_driver.send(Incoming::Up).await.is_err() {
            return;
        }
        let since = Instant::now();
        let mut resume = None;
        let mut drain = None;
        let ended = session(&shared, dialled, &to_driver, &mut resume, &mut drain).await;
        shared.up.store(false, Ordering::Release);
        shared.outbox().clear(&shared.counters);
        shared.controls().clear();
        shared.room.notify_one();
        let Some(mut error) = ended else { return };
        if since.elapsed() >= GOOD_SESSION {
            failures = 0;
        }
        dialled = loop {
            let wait = match drain.take() {
                // The relay said it a while before it went.
                Some(at) => at.saturating_duration_since(Instant::now()),
                None => retry_in(failures, &error),
            };
            failures += 1;
            tracing::debug!(code = error.code(), ?wait, "the relay's connection is down");
            let down = Incoming::Down {
                error: error.clone(),
                retry_in: wait,
            };
            if to_driver.send(down).await.is_err() {
                return;
            }
            tokio::select! {
                () = sleep(wait) => {}
                // Somebody knows that the network has changed; but a relay is not hammered.
                () = async { sleep(wait.min(Duration::from_millis(250))).await; shared.probe.notified().await } => {}
                () = shared.stop.notified() => return,
            }
            tokio::select! {
                result = Box::pin(shared.target.dial(resume.as_deref())) => match result {
                    Ok(dialled) => {
                        shared.counters.connected();
                        break dialled;
                    }
                    Err(failed) => error = failed,
                },
                () = shared.stop.notified() => return,
            }
            // A resume token is used once.
            resume = None;
        };
    }
}

/// How long to wait before dial number `failures`, spread so that many clients of a relay that
/// restarts do not come back in one instant.
fn retry_in(failures: usize, error: &CarrierError) -> Duration {
    let base = Duration::from_millis(RETRY_MS[failures.min(RETRY_MS.len() - 1)]);
    let base = if error.is_permanent() {
        base.max(RETRY_PERMANENT)
    } else {
        base
    };
    let mut random = [0; 1];
    let spread = match getrandom::fill(&mut random) {
        Ok(()) => u32::from(random[0]),
        Err(_) => 128,
    };
    base * (192 + spread / 2) / 256
}

/// Carries datagrams over one connection. `None` when the link is being closed.
async fn session(
    shared: &Shared,
    dialled: Dialled,
    to_driver: &mpsc::Sender<Incoming>,
    resume: &mut Option<String>,
    drain: &mut Option<Instant>,
) -> Option<CarrierError> {
    let Dialled {
        socket,
        resume: token,
        idle,
    } = dialled;
    *resume = token;
    let (sink, stream) = socket.split();
    let reading = read(shared, stream, to_driver, idle, resume, drain);
    let mut writing = Box::pin(write(shared, sink));
    tokio::select! {
        error = reading => error,
        // The writer ends when the link is closed, its goodbye sent; an error shows at the reader.
        result = &mut writing => match result {
            Ok(()) => None,
            Err(error) => Some(broken(&error)),
        },
    }
}

async fn read(
    shared: &Shared,
    mut stream: impl Stream<Item = Result<Message, WsError>> + Unpin,
    to_driver: &mpsc::Sender<Incoming>,
    idle: Duration,
    resume: &mut Option<String>,
    drain: &mut Option<Instant>,
) -> Option<CarrierError> {
    let ping_every = PING_EVERY.min(idle / 3);
    let mut last_words = None;
    let mut number = 0;
    // When silence is too long, and whether a ping is out.
    let mut deadline = Instant::now() + ping_every;
    let mut asked = false;
    loop {
        let message = tokio::select! {
            message = timeout_at(deadline, stream.next()) => message,
            () = shared.probe.notified(), if !asked => {
                number += 1;
                shared.control(Control::Ping { n: number });
                asked = true;
                deadline = Instant::now() + PROBE_LIMIT;
                continue;
            }
        };
        let message = match message {
            Ok(message) => message,
            Err(_) if asked => {
                let reason = "the relay does not answer".to_owned();
                return Some(CarrierError::RelayLost { reason });
            }
            Err(_) => {
                number += 1;
                shared.control(Control::Ping { n: number });
                asked = true;
                deadline = Instant::now() + PONG_LIMIT;
                continue;
            }
        };
        asked = false;
        deadline = Instant::now() + ping_every;
        match message {
            Some(Ok(Message::Binary(bytes))) => {
                let records = match wire::record::records(&bytes) {
                    Ok(records) => records,
                    Err(error) => {
                        return Some(CarrierError::NotARelay {
                            reason: error.to_string(),
                        });
                    }
                };
                records.for_each(|datagram| shared.counters.received(datagram.len()));
                shared.counters.message_received();
                if to_driver.send(Incoming::Message(bytes)).await.is_err() {
                    return None;
                }
                // The driver may have taken its time: that was not the relay's silence.
                deadline = Instant::now() + ping_every;
            }
            Some(Ok(Message::Text(text))) => match Control::parse(text.as_str()) {
                Ok(Control::Ping { n }) => shared.control(Control::Pong { n }),
                Ok(Control::Pong { .. }) | Err(ControlError::UnknownType) => {}
                Ok(Control::Hello { resume: token, .. }) => *resume = token,
                Ok(Control::Limited { what, hint }) => {
                    let code = clean_code(&what, "limited");
                    let hint = match Limit::from_code(&what) {
                        Some(limit) => format!("{} {}", limit.sentence(), limit.hint()),
                        None => clean(&hint),
                    };
                    if to_driver
                        .send(Incoming::Trouble { code, hint })
                        .await
                        .is_err()
                    {
                        return None;
                    }
                }
                Ok(Control::Draining { retry_after_ms }) => {
                    let wait = Duration::from_millis(retry_after_ms).min(MAX_DRAIN_WAIT);
                    *drain = Some(Instant::now() + wait);
                }
                Ok(closing @ Control::Closing { .. }) => last_words = Some(closing),
                Err(error) => {
                    return Some(CarrierError::NotARelay {
                        reason: error.to_string(),
                    });
                }
            },
            Some(Ok(Message::Close(frame))) => {
                return Some(closed(last_words.as_ref(), frame.as_ref()));
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => return Some(broken(&error)),
            None => return Some(closed(last_words.as_ref(), None)),
        }
    }
}

async fn write(
    shared: &Shared,
    mut sink: impl Sink<Message, Error = WsError> + Unpin,
) -> Result<(), WsError> {
    let mut backlogged = false;
    loop {
        let controls = std::mem::take(&mut *shared.controls());
        for control in controls {
            sink.feed(Message::text(control.to_text())).await?;
        }
        let limit = if backlogged {
            SMALL_MESSAGE
        } else {
            wire::record::MAX_MESSAGE
        };
        let mut message = Vec::new();
        {
            let now = Instant::now();
            let mut outbox = shared.outbox();
            if !outbox.is_empty() {
                message.reserve(SMALL_MESSAGE);
                outbox.fill(now, &mut message, limit, &shared.counters);
            }
            if outbox.has_room() && shared.starved.swap(false, Ordering::AcqRel) {
                shared.room.notify_one();
            }
        }
        let sent = !message.is_empty();
        if sent {
            sink.feed(Message::Binary(Bytes::from(message))).await?;
            shared.counters.message_sent();
        }
        let mut flush = sink.flush();
        backlogged = match (&mut flush).now_or_never() {
            Some(result) => {
                result?;
                false
            }
            None => {
                flush.await?;
                true
            }
        };
        if shared.stopping.load(Ordering::Acquire) && shared.outbox().is_empty() {
            let goodbye = CloseFrame {
                code: FrameCode::Normal,
                reason: "".into(),
            };
            sink.send(Message::Close(Some(goodbye))).await?;
            return Ok(());
        }
        if !sent {
            tokio::select! {
                () = shared.wake.notified() => {}
                () = shared.stop.notified() => {}
            }
        }
    }
}

/// What a close means: our code and the relay's last words, or the plain WebSocket code.
pub(super) fn closed(last_words: Option<&Control>, frame: Option<&CloseFrame>) -> CarrierError {
    let told = match last_words {
        Some(Control::Closing { code, reason, hint }) => {
            Some((*code, reason.as_str(), hint.as_str()))
        }
        _ => None,
    };
    let status = frame
        .map(|frame| u16::from(frame.code))
        .or(told.map(|(code, ..)| code));
    let Some(status) = status else {
        return CarrierError::RelayLost {
            reason: "it ended without a goodbye".to_owned(),
        };
    };
    if let Some(code) = CloseCode::from_u16(status) {
        return CarrierError::RelayClosed {
            status,
            code: code.reason().to_owned(),
            message: code.sentence().to_owned(),
            hint: code.hint().to_owned(),
        };
    }
    let reason = told.map_or_else(
        || frame.map_or("", |frame| frame.reason.as_str()),
        |(_, reason, _)| reason,
    );
    CarrierError::RelayClosed {
        status,
        code: clean_code(reason, "relay_closed"),
        message: match clean(reason) {
            reason if reason.is_empty() => format!("WebSocket close code {status}"),
            reason => format!("{reason} ({status})"),
        },
        hint: told.map_or_else(String::new, |(_, _, hint)| clean(hint)),
    }
}

fn broken(error: &WsError) -> CarrierError {
    match error {
        WsError::Capacity(_) | WsError::Utf8(_) => CarrierError::NotARelay {
            reason: clean(&error.to_string()),
        },
        _ => CarrierError::RelayLost {
            reason: clean(&error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_is_told_in_the_most_telling_words() {
        let frame = |code: u16, reason: &str| {
            Some(CloseFrame {
                code: FrameCode::from(code),
                reason: reason.to_owned().into(),
            })
        };
        let ours = closed(None, frame(4010, "token_invalid").as_ref());
        assert_eq!(ours.code(), "token_invalid");
        assert!(ours.hint().contains("Log in again"));
        let newer = Control::Closing {
            code: 4900,
            reason: "too_sunny".into(),
            hint: "wait for\nclouds".into(),
        };
        let newer = closed(Some(&newer), frame(4900, "").as_ref());
        assert_eq!(
            (newer.code(), newer.hint()),
            ("too_sunny", "wait for clouds")
        );
        assert_eq!(
            closed(None, frame(1001, "bye now").as_ref()).code(),
            "relay_closed"
        );
        assert_eq!(closed(None, None).code(), "relay_lost");
    }

    #[test]
    fn retries_grow_and_are_spread() {
        let error = CarrierError::RelayLost {
            reason: String::new(),
        };
        for (failures, base) in RETRY_MS.iter().enumerate() {
            let wait = retry_in(failures, &error).as_millis();
            let base = u128::from(*base);
            assert!(
                wait >= base * 3 / 4 && wait <= base * 5 / 4,
                "{failures}: {wait}"
            );
        }
        assert!(retry_in(100, &error) <= Duration::from_secs(19));
        let refused = CarrierError::NotARelay {
            reason: String::new(),
        };
        assert!(
            retry_in(0, &refused) >= Duration::from_secs(22),
            "permanent errors wait"
        );
    }
}
