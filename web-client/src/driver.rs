//! Carries a tunnel's datagrams over a WebSocket, and wakes the tunnel in time.
//!
//! There is no task and no lock: whatever happens - a message, a timer, a verb of a stream - enters
//! the one [`State`], does its part, and takes a turn: what is due is done, what is ready is sent,
//! who waits is woken. The page's callbacks run after the state has been let go.
//!
//! A lost WebSocket is opened again with growing pauses, and begins with a fresh handshake. In
//! between the tunnel's clock stands still: its streams neither time out nor retransmit, nothing is
//! dropped, and what waits is sent when there is a way again. The same holds while the machine
//! sleeps.

mod link;
mod turn;

use std::{
    cell::{Cell, RefCell},
    net::{Ipv6Addr, SocketAddrV6},
    rc::{Rc, Weak},
    task::Waker,
    time::Duration,
};

use js_sys::Function;
use tokio::sync::oneshot;
use tunnel::{
    Answer, Class, CloseReason, QueryId, RecordKind, ResolveError, StackError, StreamId, Tunnel,
};
use wasm_bindgen::prelude::*;

use self::link::{Handlers, Link};
use crate::{
    failure::{self, Failure},
    page::{self, Listener, Timer},
    stream::TcpStream,
};

/// What a tunnel is connected with.
pub(crate) struct Settings {
    pub(crate) url: String,
    pub(crate) token: Option<String>,
    pub(crate) config: tunnel::Config,
    pub(crate) on_status: Option<Function>,
}

/// A handle to the one driver of a tunnel.
#[derive(Clone)]
pub(crate) struct Driver(Rc<Shared>);

pub(crate) struct Shared {
    state: RefCell<State>,
    on_status: Option<Function>,
    handlers: Handlers,
    /// A turn is on its way already.
    turn_queued: Cell<bool>,
    _listeners: Vec<Listener>,
}

pub(crate) struct State {
    tunnel: Tunnel,
    clock: Clock,
    link: Link,
    url: String,
    token: Option<String>,
    /// Takes the next WebSocket to the session of the last one.
    resume: Option<String>,
    /// Reconnects in a row that came to nothing.
    failures: u32,
    /// A WireGuard session stood once: from then on a loss is mended, not told as an error.
    stood: bool,
    /// The page was told last that it stands.
    told_stands: bool,
    streams: Vec<(StreamId, Waiting)>,
    queries: Vec<(QueryId, oneshot::Sender<Result<Answer, ResolveError>>)>,
    opened: Option<Verdict>,
    established: Option<Verdict>,
    /// What the page is told once the state has been let go.
    news: Vec<(&'static str, Option<Failure>)>,
    timer: Option<(Timer, tunnel::Instant)>,
    hidden_since: Option<tunnel::Instant>,
    reconnects: u32,
    refused: u32,
    rtt: Option<Duration>,
    handshake: Option<Duration>,
}

/// Tells whoever connects how it went.
type Verdict = oneshot::Sender<Result<(), Failure>>;

/// Who waits for a stream.
#[derive(Default)]
struct Waiting {
    connect: Option<oneshot::Sender<Result<(), CloseReason>>>,
    read: Option<Waker>,
    write: Option<Waker>,
}

/// The page's clock, and the tunnel's: the latter stands still while there is no way to the relay.
struct Clock {
    behind: Duration,
    stopped_at: Option<tunnel::Instant>,
}

impl Clock {
    fn tunnel(&self, now: tunnel::Instant) -> tunnel::Instant {
        let now = self.stopped_at.unwrap_or(now);
        tunnel::Instant::ZERO + now.since(tunnel::Instant::ZERO).saturating_sub(self.behind)
    }

    fn page(&self, of_tunnel: tunnel::Instant) -> tunnel::Instant {
        of_tunnel + self.behind
    }

    fn stop(&mut self, now: tunnel::Instant) {
        self.stopped_at.get_or_insert(now);
    }

    fn go_on(&mut self, now: tunnel::Instant) {
        if let Some(stopped) = self.stopped_at.take() {
            self.behind += now.since(stopped);
        }
    }

    /// Time that passed while nothing here ran.
    fn skip(&mut self, gap: Duration) {
        if self.stopped_at.is_none() {
            self.behind += gap;
        }
    }
}

impl Driver {
    /// Opens the WebSocket; [`Driver::opened`] and [`Driver::established`] wait for what follows.
    pub(crate) fn start(settings: Settings) -> Driver {
        let now = page::now();
        let driver = Rc::new_cyclic(|this: &Weak<Shared>| {
            let state = State {
                tunnel: Tunnel::new(settings.config, now),
                clock: Clock {
                    behind: Duration::ZERO,
                    stopped_at: Some(now),
                },
                link: Link::Closed,
                url: settings.url,
                token: settings.token,
                resume: None,
                failures: 0,
                stood: false,
                told_stands: false,
                streams: Vec::new(),
                queries: Vec::new(),
                opened: None,
                established: None,
                news: Vec::new(),
                timer: None,
                hidden_since: None,
                reconnects: 0,
                refused: 0,
                rtt: None,
                handshake: None,
            };
            if let Some(listener) = &settings.on_status {
                failure::tell_of_panic(listener);
            }
            Shared {
                state: RefCell::new(state),
                on_status: settings.on_status,
                handlers: Handlers::new(this),
                turn_queued: Cell::new(false),
                _listeners: listeners(this),
            }
        });
        driver.enter(|state, now| state.open(&driver.handlers, now));
        Driver(driver)
    }

    /// The first WebSocket stands, and the relay takes this client.
    pub(crate) async fn opened(&self) -> Result<(), Failure> {
        self.wait(|state| &mut state.opened, |state| state.link.is_greeted())
            .await
    }

    /// The first WireGuard session stands.
    pub(crate) async fn established(&self) -> Result<(), Failure> {
        self.wait(|state| &mut state.established, |state| state.stood)
            .await
    }

    async fn wait(
        &self,
        slot: fn(&mut State) -> &mut Option<Verdict>,
        done: fn(&State) -> bool,
    ) -> Result<(), Failure> {
        let (tell, told) = oneshot::channel();
        {
            let mut state = self.0.state.borrow_mut();
            if done(&state) {
                return Ok(());
            }
            if let Link::Lost { failure, .. } = &state.link {
                return Err(failure.clone());
            }
            *slot(&mut state) = Some(tell);
        }
        told.await.unwrap_or_else(|_| Err(Failure::closed()))
    }

    /// Asks the network's DNS server.
    pub(crate) async fn resolve(&self, name: &str) -> Result<Vec<Ipv6Addr>, Failure> {
        let (tell, told) = oneshot::channel();
        self.0.enter(|state, now| {
            let query = state
                .tunnel
                .resolve(state.clock.tunnel(now), name, RecordKind::Aaaa);
            state.queries.push((query, tell));
        });
        match told.await {
            Ok(Ok(Answer::Aaaa(addresses))) => Ok(addresses),
            Ok(Ok(_)) => Ok(Vec::new()),
            Ok(Err(error)) => Err(Failure::told(error.code(), &error.to_string(), "try again")),
            Err(_) => Err(Failure::closed()),
        }
    }

    /// Opens a TCP stream through the tunnel. Dropped on the way, it leaves nothing behind.
    pub(crate) async fn dial(&self, to: SocketAddrV6, class: Class) -> Result<TcpStream, Failure> {
        let (tell, told) = oneshot::channel();
        let opened = self.0.enter(|state, now| {
            let id = state.tunnel.connect(state.clock.tunnel(now), to, class)?;
            state.streams.push((
                id,
                Waiting {
                    connect: Some(tell),
                    ..Waiting::default()
                },
            ));
            Ok(id)
        });
        let id = opened.map_err(|error: StackError| {
            Failure::told(
                error.code(),
                &error.to_string(),
                "close sessions that are not needed",
            )
        })?;
        let stream = TcpStream::new(self.clone(), id);
        match told.await {
            Ok(Ok(())) => Ok(stream),
            Ok(Err(reason)) => Err(Failure::told(
                reason.code(),
                &reason.to_string(),
                reason.hint(),
            )),
            Err(_) => Err(Failure::closed()),
        }
    }

    /// A verb on the tunnel, at the tunnel's time. A turn follows when the page's present task and
    /// all that it has woken are done.
    pub(crate) fn verb<T>(&self, verb: impl FnOnce(&mut Tunnel, tunnel::Instant) -> T) -> T {
        let result = {
            let state = &mut *self.0.state.borrow_mut();
            let now = state.clock.tunnel(page::now());
            verb(&mut state.tunnel, now)
        };
        if !self.0.turn_queued.replace(true) {
            page::queue_microtask(self.0.handlers.turn());
        }
        result
    }

    /// Remembers whom to wake when a stream can be read or written.
    pub(crate) fn wake_when(&self, stream: StreamId, writable: bool, waker: &Waker) {
        let mut state = self.0.state.borrow_mut();
        if let Some((_, waiting)) = state.streams.iter_mut().find(|(id, _)| *id == stream) {
            let slot = if writable {
                &mut waiting.write
            } else {
                &mut waiting.read
            };
            *slot = Some(waker.clone());
        }
    }

    /// Lets a stream go: the tunnel says goodbye to the other side.
    pub(crate) fn release(&self, stream: StreamId) {
        let connected = {
            let mut state = self.0.state.borrow_mut();
            let at = state.streams.iter().position(|(id, _)| *id == stream);
            at.is_none_or(|at| state.streams.swap_remove(at).1.connect.is_none())
        };
        self.verb(|tunnel, now| {
            if !connected {
                tunnel.abort(now, stream);
            }
            tunnel.close(now, stream);
        });
    }

    /// Takes the relay token of a renewed lease, for the next WebSocket.
    pub(crate) fn set_token(&self, token: String) {
        self.0.state.borrow_mut().token = Some(token);
    }

    /// The network changed or the machine slept: says so at once instead of waiting for silence.
    pub(crate) fn wake(&self) {
        self.0.wake();
    }

    /// Ends the tunnel and every stream in it.
    pub(crate) fn close(&self) {
        self.0.enter(State::close);
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.0.state.borrow().link, Link::Closed)
    }

    /// See `TunnelStats`.
    pub(crate) fn stats(&self) -> js_sys::Object {
        let state = self.0.state.borrow();
        let peer = state.tunnel.stats().peer;
        let stats = js_sys::Object::new();
        page::set(&stats, "transport", "websocket");
        page::set(&stats, "state", state.link.name(state.stood));
        if let Some(rtt) = state.rtt {
            page::set(&stats, "rttMs", rtt.as_secs_f64() * 1000.0);
        }
        if let Some(rtt) = state.handshake {
            page::set(&stats, "handshakeMs", rtt.as_secs_f64() * 1000.0);
        }
        page::set(&stats, "txBytes", peer.tx_bytes as f64);
        page::set(&stats, "rxBytes", peer.rx_bytes as f64);
        page::set(&stats, "reconnects", state.reconnects);
        page::set(&stats, "refused", state.refused);
        stats
    }
}

impl Shared {
    /// Enters the state, takes a turn, and tells the page what is new.
    fn enter<T>(&self, change: impl FnOnce(&mut State, tunnel::Instant) -> T) -> T {
        let (result, news) = {
            let state = &mut *self.state.borrow_mut();
            let now = page::now();
            let result = change(state, now);
            state.turn(&self.handlers, now);
            (result, std::mem::take(&mut state.news))
        };
        let Some(on_status) = &self.on_status else {
            return result;
        };
        for (name, failure) in news {
            let status = js_sys::Object::new();
            page::set(&status, "state", name);
            if let Some(failure) = failure {
                page::set(&status, "message", &*failure.message);
                failure.describe(&status);
            }
            // A listener that throws is the page's affair.
            let _ = on_status.call1(&JsValue::UNDEFINED, &status);
        }
        result
    }

    fn wake(&self) {
        self.enter(|state, now| state.wake(&self.handlers, now));
    }

    /// The page was hidden, or is to be seen again: a browser slows the timers of a hidden page,
    /// and a machine that slept woke with the page in front.
    fn visibility(&self) {
        let document = page::member(&js_sys::global(), "document");
        let hidden = page::member(&document, "visibilityState")
            .as_string()
            .as_deref()
            == Some("hidden");
        self.enter(|state, now| {
            if hidden {
                state.hidden_since = Some(now);
            } else if state
                .hidden_since
                .take()
                .is_some_and(|since| now.since(since) >= HIDDEN)
            {
                state.wake(&self.handlers, now);
            }
        });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(listener) = &self.on_status {
            failure::forget_listener(listener);
        }
    }
}

/// A page hidden for less than this did not miss a timer.
const HIDDEN: Duration = Duration::from_secs(10);

fn listeners(driver: &Weak<Shared>) -> Vec<Listener> {
    let on = |target: &JsValue, event, act: fn(&Shared)| {
        let driver = driver.clone();
        Listener::new(target, event, move |_| {
            if let Some(driver) = driver.upgrade() {
                act(&driver);
            }
        })
    };
    let global = js_sys::global();
    let document = page::member(&global, "document");
    let listeners = [
        on(&global, "online", Shared::wake),
        on(&global, "pageshow", Shared::visibility),
        (!document.is_undefined())
            .then(|| on(&document, "visibilitychange", Shared::visibility))
            .flatten(),
    ];
    listeners.into_iter().flatten().collect()
}
