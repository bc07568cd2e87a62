//! The ladder: the rungs of a connection, each timed, each with a time-out, each cancelled by one
//! `AbortSignal`, each reported as it begins and as it ends.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use js_sys::Function;
use tokio::sync::Notify;
use wasm_bindgen::prelude::*;
use web_sys::AbortSignal;

use crate::{
    failure::Failure,
    page::{self, Listener},
};

/// A step of a connection, in the order they happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rung {
    Websocket,
    Wireguard,
    Dns,
    Tcp,
    Ssh,
    Pty,
}

impl Rung {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Rung::Websocket => "websocket",
            Rung::Wireguard => "wireguard",
            Rung::Dns => "dns",
            Rung::Tcp => "tcp",
            Rung::Ssh => "ssh",
            Rung::Pty => "pty",
        }
    }

    /// How long a person is let wait.
    fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Rung::Dns | Rung::Wireguard | Rung::Websocket | Rung::Pty => 10,
            Rung::Tcp => 15,
            Rung::Ssh => 20,
        })
    }

    fn late(self) -> Failure {
        let (message, hint) = match self {
            Rung::Websocket => (
                "The relay does not answer.",
                "Check that the relay's address is right and that the network lets HTTPS through.",
            ),
            Rung::Wireguard => (
                "The gateway does not answer the WireGuard handshake.",
                "Check that the gateway runs; a lease that expired looks the same: log in again.",
            ),
            Rung::Dns => (
                "The gateway does not answer DNS.",
                "Try again; when it persists look at the gateway's log.",
            ),
            Rung::Tcp => (
                "The instance does not answer.",
                "Check that the instance is started, then try again.",
            ),
            Rung::Ssh => (
                "The instance's SSH server does not get on.",
                "Try again; when it persists look at the instance's log.",
            ),
            Rung::Pty => (
                "The instance gives no terminal in time.",
                "Try again; when it persists look at the instance's log.",
            ),
        };
        Failure::new("timed_out", message, hint)
    }
}

type Work<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + 'a>>;

/// Who is told about the rungs, and what cancels the climb.
pub(crate) struct Ladder {
    on_rung: Option<Function>,
    signal: Option<AbortSignal>,
}

impl Ladder {
    pub(crate) fn new(on_rung: Option<Function>, signal: Option<AbortSignal>) -> Ladder {
        Ladder { on_rung, signal }
    }

    /// Does the work of one rung, unless it takes too long or is cancelled: then it is dropped.
    pub(crate) async fn climb<T>(
        &self,
        rung: Rung,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let mut value = None;
        // One copy of the rest serves every kind of work.
        self.climb_any(
            rung,
            Box::pin(async {
                value = Some(work.await?);
                Ok(())
            }),
        )
        .await?;
        value.ok_or_else(Failure::cancelled)
    }

    async fn climb_any(&self, rung: Rung, work: Work<'_>) -> Result<(), Failure> {
        let started = page::now();
        self.tell(rung, "started", None, None);
        let result = self.race(rung, work).await;
        let ms = page::now().since(started).as_secs_f64() * 1000.0;
        match result {
            Ok(()) => {
                self.tell(rung, "done", Some(ms), None);
                Ok(())
            }
            Err(failure) => {
                let failure = Failure {
                    rung: Some(rung),
                    ..failure
                };
                self.tell(rung, "failed", Some(ms), Some(&failure));
                Err(failure)
            }
        }
    }

    async fn race(&self, rung: Rung, mut work: Work<'_>) -> Result<(), Failure> {
        if self.signal.as_ref().is_some_and(AbortSignal::aborted) {
            return Err(Failure::cancelled());
        }
        let cancel = Rc::new(Notify::new());
        let _listener = self.signal.as_ref().and_then(|signal| {
            let cancel = Rc::clone(&cancel);
            Listener::new(signal, "abort", move |_| cancel.notify_one())
        });
        let mut cancelled = pin!(cancel.notified());
        let mut late = pin!(page::sleep(rung.limit()));
        poll_fn(|context| {
            if let Poll::Ready(result) = work.as_mut().poll(context) {
                return Poll::Ready(result);
            }
            if cancelled.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(Failure::cancelled()));
            }
            late.as_mut().poll(context).map(|()| Err(rung.late()))
        })
        .await
    }

    fn tell(&self, rung: Rung, state: &str, ms: Option<f64>, failure: Option<&Failure>) {
        let Some(on_rung) = &self.on_rung else { return };
        let told = js_sys::Object::new();
        page::set(&told, "rung", rung.name());
        page::set(&told, "state", state);
        if let Some(ms) = ms {
            page::set(&told, "ms", ms);
        }
        if let Some(failure) = failure {
            page::set(&told, "message", &*failure.message);
            failure.describe(&told);
        }
        // A listener that throws is the page's affair.
        let _ = on_rung.call1(&JsValue::UNDEFINED, &told);
    }
}
