//! Sessions whose WebSocket was lost, and who may go on with them.
//!
//! Every session has a resume token, which its hello says: 128 bits to find it by and 128 bits to
//! prove, used once, and of account only for the gateway and the token id that it was given to.
//! While its client is away, for [`Limits::resume`] at most, the session's UDP socket stays open,
//! so that the gateway sees no move. A newcomer takes over from a connection that is half open,
//! too: its session is asked to give, whether it carries or waits.

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use subtle::ConstantTimeEq;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use wire::record;

use crate::{
    config::Limits,
    counters::{Counter, Counters},
    proof::{Proof, Verdict},
    queue::Queue,
    slots::SessionSlot,
    udp::Udp,
};

/// What of a session outlives its WebSocket.
pub(crate) struct Kept {
    pub(crate) udp: Udp,
    pub(crate) proof: Proof,
    /// The zero of the session's clock.
    pub(crate) started: Instant,
    /// What the gateway sent while the client was away.
    pub(crate) down: Queue,
    pub(crate) slot: Option<SessionSlot>,
}

/// The sessions of a relay that can be resumed, by the first half of their tokens.
#[derive(Default)]
pub(crate) struct Resumes(Mutex<HashMap<[u8; HALF], Entry>>);

struct Entry {
    secret: [u8; HALF],
    gateway: String,
    token_id: Option<String>,
    ask: oneshot::Sender<oneshot::Sender<Kept>>,
}

/// A session's place among them, until it is dropped.
pub(crate) struct Registered {
    all: Arc<Resumes>,
    id: [u8; HALF],
    token: String,
    asked: oneshot::Receiver<oneshot::Sender<Kept>>,
    over: bool,
}

const HALF: usize = 16;
/// A session that is asked gives at once, or never.
const GIVES: Duration = Duration::from_secs(2);
/// While a client is away, so much waits for it, so long.
const AWAY_BYTES: usize = 64 * 1024;
const AWAY_AGE: Duration = Duration::from_secs(2);

impl Resumes {
    /// A place for a session; none without randomness.
    pub(crate) fn register(
        self: &Arc<Resumes>,
        gateway: &str,
        token_id: Option<&str>,
    ) -> Option<Registered> {
        let mut bytes = [0; 2 * HALF];
        getrandom::fill(&mut bytes).ok()?;
        let (id, secret) = bytes.split_first_chunk::<HALF>()?;
        let (ask, asked) = oneshot::channel();
        let entry = Entry {
            secret: secret.try_into().ok()?,
            gateway: gateway.to_owned(),
            token_id: token_id.map(str::to_owned),
            ask,
        };
        self.table().insert(*id, entry);
        Some(Registered {
            all: Arc::clone(self),
            id: *id,
            token: URL_SAFE_NO_PAD.encode(bytes),
            asked,
            over: false,
        })
    }

    /// Whether [`Resumes::claim`] would find a session.
    pub(crate) fn knows(&self, token: &str, gateway: &str, token_id: Option<&str>) -> bool {
        let Some((id, secret)) = decode(token) else {
            return false;
        };
        let table = self.table();
        table
            .get(&id)
            .is_some_and(|entry| entry.is_for(&secret, gateway, token_id))
    }

    /// Takes a session over. The token is used up; one of another client's stays as it was.
    pub(crate) async fn claim(
        &self,
        token: &str,
        gateway: &str,
        token_id: Option<&str>,
    ) -> Option<Kept> {
        let (id, secret) = decode(token)?;
        let entry = {
            let mut table = self.table();
            if !table.get(&id)?.is_for(&secret, gateway, token_id) {
                return None;
            }
            table.remove(&id)?
        };
        let (give, given) = oneshot::channel();
        entry.ask.send(give).ok()?;
        timeout(GIVES, given).await.ok()?.ok()
    }

    fn table(&self) -> MutexGuard<'_, HashMap<[u8; HALF], Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn is_for(&self, secret: &[u8; HALF], gateway: &str, token_id: Option<&str>) -> bool {
        let proven: bool = self.secret.ct_eq(secret).into();
        proven && self.gateway == gateway && self.token_id.as_deref() == token_id
    }
}

impl Registered {
    /// What the client is told.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// Ready when a newcomer asks for the session: where to give it.
    pub(crate) fn poll_asked(&mut self, context: &mut Context<'_>) -> Poll<oneshot::Sender<Kept>> {
        if self.over {
            return Poll::Pending;
        }
        match Pin::new(&mut self.asked).poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(asked) => {
                self.over = true;
                asked.map_or(Poll::Pending, Poll::Ready)
            }
        }
    }

    /// Waits for the client of a lost session. What it does not come back for is dropped and
    /// counted.
    pub(crate) async fn park(
        mut self,
        mut kept: Kept,
        limits: &Limits,
        counters: &Counters,
        shutdown: &CancellationToken,
    ) {
        counters.count(Counter::SessionsParked);
        kept.down = Queue::new(AWAY_BYTES, AWAY_AGE);
        let deadline = Instant::now() + limits.resume;
        let asked = {
            let away = poll_fn(|context| {
                while kept.poll_away(context, counters).is_ready() {}
                self.poll_asked(context)
            });
            tokio::select! {
                asked = away => Some(asked),
                () = sleep_until(deadline) => None,
                () = shutdown.cancelled() => None,
            }
        };
        let lost = match asked {
            None => kept,
            Some(give) => match give.send(kept) {
                Ok(()) => return,
                Err(kept) => kept,
            },
        };
        counters.add(Counter::DownEnded, lost.down.len() as u64);
        counters.count(Counter::SessionsUnclaimed);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.all.table().remove(&self.id);
    }
}

impl Kept {
    /// Takes what the gateway sends to a client that is away.
    fn poll_away(&mut self, context: &mut Context<'_>, counters: &Counters) -> Poll<()> {
        let Kept {
            udp,
            proof,
            down,
            started,
            ..
        } = self;
        let now = started.elapsed();
        let mut take = |bytes: &[u8], size: usize| {
            if bytes.is_empty() {
                counters.count(Counter::DownDatagrams);
                counters.count(Counter::DownEmpty);
            }
            for datagram in bytes.chunks(size) {
                counters.count(Counter::DownDatagrams);
                counters.add(Counter::DownBytes, datagram.len() as u64);
                if datagram.len() > record::MAX_RECORD {
                    counters.count(Counter::DownTooLarge);
                } else if let Verdict::Pass(kind) = proof.handle_gateway(datagram) {
                    // It stands, and that is no sign of a slow path.
                    down.rested();
                    let dropped = down.push(now, kind, datagram);
                    counters.add(Counter::DownFull, dropped.full);
                    counters.add(Counter::DownOld, dropped.old);
                } else {
                    counters.count(Counter::DownNotWireguard);
                }
            }
        };
        match udp.poll_receive(context, &mut take) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(result) => {
                if result.is_err() {
                    counters.count(Counter::GatewayUnreachable);
                }
                Poll::Ready(())
            }
        }
    }
}

/// The two halves of a token.
fn decode(token: &str) -> Option<([u8; HALF], [u8; HALF])> {
    let bytes: [u8; 2 * HALF] = URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok()?;
    let (id, secret) = bytes.split_first_chunk::<HALF>()?;
    Some((*id, secret.try_into().ok()?))
}
