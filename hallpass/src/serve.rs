//! Takes connections, within limits.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use russh::server;
use russh::{Disconnect, MethodSet, SshId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::guard::Guard;
use crate::handler::{Fault, Handler, METHODS};
use crate::intake;
use crate::listener::Listener;
use crate::trust::TrustSource;

/// Serves connections until told to stop, or until the listener fails for good.
///
/// What cannot be taken now is dropped and counted. On stopping, clients are told, and programs
/// hang up.
pub async fn serve<L: Listener>(
    config: Arc<Config>,
    trust: Arc<dyn TrustSource>,
    mut listener: L,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let connections = Arc::new(Semaphore::new(config.limits.connections));
    let startups = Arc::new(Semaphore::new(config.limits.startups));
    let tasks = TaskTracker::new();
    let mut failures = 0;
    let result = loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break Ok(()),
            accepted = listener.accept() => accepted,
        };
        let (stream, source) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a client that was gone before it was taken: the next may
                // do better. A listener that only fails is no listener.
                failures += 1;
                if failures > FAILURES {
                    break Err(error);
                }
                warn!(%error, "a connection cannot be taken");
                sleep(RETRY).await;
                continue;
            }
        };
        failures = 0;
        let refuse = |code| {
            config.counters.refuse(code);
            warn!(code, %source, "connection refused");
        };
        let Ok(room) = Arc::clone(&connections).try_acquire_owned() else {
            refuse("connection_limit");
            continue;
        };
        let Ok(startup) = Arc::clone(&startups).try_acquire_owned() else {
            refuse("startup_limit");
            continue;
        };
        let connection = Connection {
            config: Arc::clone(&config),
            // With the host's certificate of now.
            protocol: Arc::new(protocol(&config)),
            trust: Arc::clone(&trust),
            source,
            shutdown: shutdown.clone(),
        };
        tasks.spawn(async move {
            connection.run(stream, startup).await;
            drop(room);
        });
    };
    tasks.close();
    // What has not ended by then ends with the runtime.
    let _ = timeout(GOODBYE * 2, tasks.wait()).await;
    result
}

struct Connection {
    config: Arc<Config>,
    protocol: Arc<server::Config>,
    trust: Arc<dyn TrustSource>,
    source: SocketAddr,
    shutdown: CancellationToken,
}

impl Connection {
    async fn run<S>(self, stream: S, startup: OwnedSemaphorePermit)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let limits = &self.config.limits;
        let source = self.source;
        let end = CancellationToken::new();
        let stream = Guard::new(stream, end.clone(), limits.write_stall);
        // However this function ends, the protocol's own task ends with it.
        let _end = end.clone().drop_guard();
        let (welcome, welcomed) = oneshot::channel();
        let handler = Handler::new(
            Arc::clone(&self.config),
            Arc::clone(&self.trust),
            clock,
            source,
            welcome,
        );

        let deadline = Instant::now() + limits.login_grace;
        let too_late = || {
            self.config.counters.refuse("login_grace");
            warn!(code = "login_grace", %source, "the client did not log in in time");
        };
        let starting = server::run_stream(Arc::clone(&self.protocol), stream, handler);
        let mut session = match timeout_at(deadline, Box::pin(starting)).await {
            Ok(Ok(session)) => session,
            Ok(Err(fault)) => return debug!(%source, "no SSH: {fault}"),
            Err(_) => return too_late(),
        };
        tokio::select! {
            ended = &mut session => {
                // The protocol library refuses a certificate of another time, or one that was
                // tampered with, before anybody here is asked.
                self.config.counters.refuse("no_login");
                info!(code = "no_login", %source, "a client left without logging in");
                return log(source, &ended);
            }
            Ok(()) = welcomed => {}
            () = sleep_until(deadline) => return too_late(),
            () = self.shutdown.cancelled() => {}
        }
        drop(startup);

        let handle = session.handle();
        tokio::select! {
            ended = &mut session => log(source, &ended),
            () = self.shutdown.cancelled() => {
                let words = "the instance's SSH server stops".to_owned();
                let goodbye = async {
                    let _ = handle.disconnect(Disconnect::ByApplication, words, "en".to_owned()).await;
                    let _ = session.await;
                };
                let _ = timeout(GOODBYE, goodbye).await;
            }
        }
    }
}

fn log(source: SocketAddr, ended: &Result<(), Fault>) {
    match ended {
        Ok(()) => debug!(%source, "the connection ended"),
        Err(Fault::Protocol(error)) => debug!(%source, "the connection ended: {error}"),
        Err(fault @ Fault::Overrun) => warn!(%source, "the connection was ended: {fault}"),
    }
}

fn protocol(config: &Config) -> server::Config {
    let limits = &config.limits;
    let host = config.host.identity();
    server::Config {
        server_id: SshId::Standard(concat!("SSH-2.0-hallpass_", env!("CARGO_PKG_VERSION")).into()),
        methods: MethodSet::from(&METHODS[..]),
        // There is nothing to guess, and so nothing to slow down: an agent's dozen plain keys
        // would cost the person a dozen waits.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![host.key.clone()],
        certificates: vec![host.certificate.clone()],
        window_size: intake::OPEN,
        event_buffer_size: QUEUE,
        preferred: ssh::preferred(),
        max_auth_attempts: limits.login_attempts,
        inactivity_timeout: None,
        keepalive_interval: Some(limits.keepalive),
        keepalive_max: limits.keepalive_count,
        ..server::Config::default()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this file drives: certificates are judged by now"
)]
fn clock() -> SystemTime {
    SystemTime::now()
}

/// Messages of at most 32 KiB from all programs of a connection that wait to be encrypted.
const QUEUE: usize = 32;
/// How long a client is given to take leave.
const GOODBYE: Duration = Duration::from_secs(1);
/// How many connections in a row may fail to be taken.
const FAILURES: u32 = 20;
const RETRY: Duration = Duration::from_millis(100);
