//! One session: a WebSocket, a connected UDP socket, and what waits between them; how it begins
//! and how its client is told of the end. What passes in between is `pump`'s.

mod pump;

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use wire::{
    CloseCode, Control,
    frame::{self, Opcode},
};

use self::pump::Pump;
use crate::{
    admission::Gateway,
    config::Limits,
    counters::{Counter, Counters},
    held::Held,
    resume::{Kept, Registered},
    slots::SessionSlot,
};

/// What a session is opened with.
pub(crate) struct Opening {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) token: bool,
    /// It is flyctl's byte stream, which has no control messages.
    pub(crate) flyctl: bool,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    pub(crate) shutdown: CancellationToken,
    /// Its place among the sessions that can be resumed.
    pub(crate) registered: Option<Registered>,
    /// The session that goes on in this one.
    pub(crate) kept: Option<Kept>,
    pub(crate) slot: Option<SessionSlot>,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The client closed the WebSocket, with this code.
    Left(Option<u16>),
    /// The connection broke.
    Lost,
    /// The relay closes it.
    Close(CloseCode),
}

impl End {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            End::Left(_) => "left",
            End::Lost => "lost",
            End::Close(code) => code.reason(),
        }
    }
}

impl End {
    /// Whether the client may come back: nobody has said goodbye.
    fn may_return(self) -> bool {
        matches!(
            self,
            End::Lost | End::Close(CloseCode::ClientSilent | CloseCode::SlowClient)
        )
    }
}

/// What the end of a session needs and its life does not.
struct Parting {
    flyctl: bool,
    limits: Limits,
    shutdown: CancellationToken,
    /// Counted when it is dropped early, too.
    ended: Ended,
}

/// Runs a session to its end; the client has been told when it returns, and had its time to come
/// back where its connection was lost.
///
/// The future is small, since it is moved into larger ones, and each keeps a place for it: what a
/// session needs is in boxes.
pub(crate) fn run(mut socket: Box<Held>, opening: Opening) -> impl Future<Output = End> {
    opening.counters.count(Counter::SessionsOpened);
    let parting = Box::new(Parting {
        flyctl: opening.flyctl,
        limits: opening.limits,
        shutdown: opening.shutdown.clone(),
        ended: Ended(opening.counters.clone()),
    });
    let mut pump = Box::new(Pump::new(opening));
    async move {
        let end = std::future::poll_fn(|context| pump.poll(&mut socket, context)).await;
        Box::pin(part(socket, *pump, end, *parting)).await;
        end
    }
}

/// Says goodbye, and waits for the client where its connection was lost.
async fn part(socket: Box<Held>, pump: Pump, end: End, parting: Parting) {
    let Parting {
        flyctl,
        limits,
        shutdown,
        ended,
    } = parting;
    let counters = ended.0.clone();
    let Rest {
        unwritten,
        kept,
        registered,
        newcomer,
        told_to_leave,
    } = pump.into_rest();
    let parked = match (newcomer, kept, registered) {
        (Some(newcomer), Some(kept), _) => {
            // It may be gone itself by now: then the session has ended.
            let _ = newcomer.send(kept);
            None
        }
        (None, Some(kept), Some(registered)) if end.may_return() => Some((kept, registered)),
        _ => None,
    };
    match end {
        End::Left(_) => counters.count(Counter::SessionsLeft),
        End::Lost => counters.count(Counter::SessionsLost),
        End::Close(code) => counters.closed(code),
    }
    let farewell = async {
        match end {
            // The client's close frame is answered by its like.
            End::Left(code) => {
                let mut words = unwritten;
                match code {
                    Some(code) => frame::push_close(&mut words, code, ""),
                    None => frame::push(&mut words, Opcode::Close, &[]),
                }
                last_words(socket, &words).await;
            }
            End::Lost => drop(socket),
            End::Close(code) if flyctl => {
                let mut words = unwritten;
                frame::push_close(&mut words, code as u16, code.reason());
                last_words(socket, &words).await;
            }
            End::Close(code) => goodbye(socket, unwritten, code, told_to_leave).await,
        }
        drop(ended);
    };
    let parking = async {
        if let Some((kept, registered)) = parked {
            registered.park(kept, &limits, &counters, &shutdown).await;
        }
    };
    tokio::join!(Box::pin(farewell), parking);
}

/// What is left of a session that has ended.
struct Rest {
    /// The rest of a message whose beginning has left.
    unwritten: Vec<u8>,
    /// What outlives the WebSocket of a proven session.
    kept: Option<Kept>,
    registered: Option<Registered>,
    /// Who has asked for it.
    newcomer: Option<oneshot::Sender<Kept>>,
    /// The client knows already when to come back.
    told_to_leave: bool,
}

/// Tells a client whose session is refused why, and closes.
pub(crate) async fn refuse(socket: Box<Held>, code: CloseCode) {
    goodbye(socket, Vec::new(), code, false).await;
}

/// The last words take at most this long to leave, and the client's answer as long again.
const GOODBYE: Duration = Duration::from_secs(2);

/// Sends `closing` and the close frame.
async fn goodbye(socket: Box<Held>, unwritten: Vec<u8>, code: CloseCode, told_to_leave: bool) {
    let mut words = unwritten;
    if code == CloseCode::Restarting && !told_to_leave {
        // Clients that are sent away at once return over two seconds.
        let retry_after_ms = (spread() * 2000.0) as u64;
        let draining = Control::Draining { retry_after_ms }.to_text();
        frame::push(&mut words, Opcode::Text, draining.as_bytes());
    }
    let closing = Control::closing(code).to_text();
    frame::push(&mut words, Opcode::Text, closing.as_bytes());
    frame::push_close(&mut words, code as u16, code.reason());
    last_words(socket, &words).await;
}

/// Writes, then reads until the client hangs up: closing a socket with unread bytes would reset
/// it, and the client would never see the reason.
async fn last_words(mut socket: Box<Held>, words: &[u8]) {
    let said = async {
        socket.write_all(words).await?;
        socket.flush().await
    };
    if !matches!(timeout(GOODBYE, said).await, Ok(Ok(()))) {
        return;
    }
    let _ = timeout(GOODBYE, async {
        socket.shutdown().await?;
        let mut sink = [0; 1024];
        while socket.read(&mut sink).await? > 0 {}
        io::Result::Ok(())
    })
    .await;
}

/// Between a quarter and one, at random.
fn spread() -> f64 {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    0.25 + 0.75 * f64::from(random) / f64::from(u32::MAX)
}

struct Ended(Arc<Counters>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.count(Counter::SessionsEnded);
    }
}
