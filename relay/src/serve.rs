//! The accept loop: TCP, TLS and HTTP/1.1 on one port, for whatever router it is given.
//!
//! TLS handshakes and requests run in tasks of their own under time limits, so that a slow client
//! holds up nobody but itself. A connection is counted until its socket is closed, the time after
//! an upgrade included.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo, response::IntoResponse};
use http::{Request, StatusCode, header::CONNECTION};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use socket2::{Domain, SockFilter, SockRef, Socket, Type};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::{
    accept_rate::AcceptRate,
    counters::{Counter, Counters},
    held::{Held, Unread},
    slots::{NoSlot, Slot, Slots},
    tls::ACME_TLS,
    tls_stream::TlsStream,
};

/// Bounds on what connects.
#[derive(Debug, Clone, Copy)]
pub struct AcceptLimits {
    /// Connections in all, upgraded ones included.
    pub connections: usize,
    /// Connections from one IPv4 address or one IPv6 /64.
    pub connections_per_source: usize,
    /// Connections let in within a second; a second's worth at once.
    pub connections_per_second: u32,
    /// The same from one IPv4 address or one IPv6 /64; two seconds' worth at once.
    pub connections_per_second_per_source: u32,
    /// TLS handshakes under way at the same time.
    pub handshakes: usize,
    /// TLS handshakes under way from one IPv4 address or one IPv6 /64.
    pub handshakes_per_source: usize,
    /// A TLS handshake ends within this time.
    pub handshake_timeout: Duration,
    /// The headers of a request arrive within this time; so long may a connection wait for its
    /// next request, too.
    pub header_timeout: Duration,
    /// The size of a request's headers.
    pub header_bytes: usize,
    /// The number of a request's headers.
    pub headers: usize,
    /// A request is answered within this time, the arrival of its body included.
    pub request_timeout: Duration,
    /// A client that acknowledges nothing, or keeps its window shut, for this long is gone.
    pub unacknowledged: Duration,
    /// After `shutdown`, the listener lives on for this long and takes no new connection, so that
    /// one that is being made is not refused: those that come meanwhile ask again, and find who
    /// listens on the same port from then on. With zero it is closed at once.
    pub hand_over: Duration,
    /// After `shutdown`, requests under way may take this long.
    pub grace: Duration,
    /// What the kernel may hold of a connection that it has not sent. A bounded queue does
    /// nothing until this is bounded.
    pub unsent_bytes: u32,
}

impl Default for AcceptLimits {
    fn default() -> AcceptLimits {
        AcceptLimits {
            connections: 12_000,
            connections_per_source: 2_000,
            // All that may have a session are back within five seconds.
            connections_per_second: 2_000,
            connections_per_second_per_source: 200,
            handshakes: 512,
            handshakes_per_source: 128,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            header_bytes: 16 * 1024,
            headers: 64,
            request_timeout: Duration::from_secs(30),
            unacknowledged: Duration::from_secs(60),
            hand_over: Duration::ZERO,
            grace: Duration::from_secs(5),
            unsent_bytes: 16 * 1024,
        }
    }
}

/// Serves `app` over TLS until `shutdown`, and returns when every connection that is not upgraded
/// has ended, or `grace` is over. Handlers find the client as `ConnectInfo<SocketAddr>`.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    app: Router,
    limits: AcceptLimits,
    counters: Arc<Counters>,
    shutdown: CancellationToken,
) {
    let server = Arc::new(Server {
        tls,
        app,
        limits,
        counters,
        closing: CancellationToken::new(),
        cut_off: CancellationToken::new(),
    });
    let slots = Slots::new(limits.connections, limits.connections_per_source);
    let handshakes = Slots::new(limits.handshakes, limits.handshakes_per_source);
    let mut rate = AcceptRate::new(
        limits.connections_per_second,
        limits.connections_per_second_per_source,
    );
    let begun = Instant::now();
    let connections = TaskTracker::new();
    let listener = Arc::new(listener);
    let ending = {
        let (listener, shutdown) = (Arc::clone(&listener), shutdown.clone());
        async move {
            shutdown.cancelled().await;
            if !limits.hand_over.is_zero() {
                take_no_more(&listener);
                sleep(limits.hand_over).await;
            }
        }
    };
    let mut ending = Box::pin(ending);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut ending => break,
        };
        let (tcp, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                server.counters.count(Counter::AcceptFailed);
                // Without descriptors, trying again at once would only spin.
                if !is_of_one_connection(&error) {
                    tracing::warn!(%error, "cannot accept connections");
                    sleep(Duration::from_millis(50)).await;
                }
                continue;
            }
        };
        server.counters.count(Counter::Accepted);
        let slot = match slots.take(client.ip()) {
            Ok(slot) => slot,
            Err(NoSlot::InAll) => {
                server.counters.count(Counter::ConnectionsFull);
                continue;
            }
            Err(NoSlot::PerSource) => {
                server.counters.count(Counter::ConnectionsFullSource);
                continue;
            }
        };
        let handshake = match handshakes.take(client.ip()) {
            Ok(handshake) => handshake,
            Err(NoSlot::InAll) => {
                server.counters.count(Counter::HandshakesFull);
                continue;
            }
            Err(NoSlot::PerSource) => {
                server.counters.count(Counter::HandshakesFullSource);
                continue;
            }
        };
        // Asked last: what is refused above costs no handshake.
        match rate.take(begun.elapsed(), client.ip()) {
            Ok(()) => {}
            Err(NoSlot::InAll) => {
                server.counters.count(Counter::ConnectionsRate);
                continue;
            }
            Err(NoSlot::PerSource) => {
                server.counters.count(Counter::ConnectionsRateSource);
                continue;
            }
        }
        connections.spawn(Arc::clone(&server).connection(tcp, client, slot, handshake));
    }
    drop((ending, listener));
    server.closing.cancel();
    connections.close();
    if timeout(limits.grace, connections.wait()).await.is_err() {
        server.cut_off.cancel();
        connections.wait().await;
    }
}

struct Server {
    tls: Arc<ServerConfig>,
    app: Router,
    limits: AcceptLimits,
    counters: Arc<Counters>,
    /// Connections end when they have nothing under way.
    closing: CancellationToken,
    cut_off: CancellationToken,
}

impl Server {
    async fn connection(
        self: Arc<Server>,
        tcp: TcpStream,
        client: SocketAddr,
        slot: Slot,
        handshake: Slot,
    ) {
        // These fail on a connection that is gone already, and then the handshake says so.
        let _ = tcp.set_nodelay(true);
        let _ = SockRef::from(&tcp).set_tcp_notsent_lowat(self.limits.unsent_bytes);
        let _ = SockRef::from(&tcp).set_tcp_user_timeout(Some(self.limits.unacknowledged));
        // Boxed: the handshake's state is large and is gone when the connection lives.
        let tls = Box::pin(timeout(self.limits.handshake_timeout, self.handshake(tcp)));
        let tls = tokio::select! {
            tls = tls => tls,
            () = self.cut_off.cancelled() => return,
        };
        drop(handshake);
        let tls = match tls {
            Ok(Some(tls)) => tls,
            Ok(None) => return,
            Err(_) => return self.counters.count(Counter::TlsTimeout),
        };
        let unread = Unread::default();
        let stream = TokioIo::new(Held::new(tls, slot, unread.clone()));
        let service = service_fn(|mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(client));
            let request = request.map(|body| Body::new(unread.watch(body)));
            let answer = self.app.clone().oneshot(request);
            async {
                match timeout(self.limits.request_timeout, answer).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        self.counters.count(Counter::RequestTimeout);
                        Ok((StatusCode::REQUEST_TIMEOUT, [(CONNECTION, "close")]).into_response())
                    }
                }
            }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .max_headers(self.limits.headers)
            .max_buf_size(self.limits.header_bytes.max(8 * 1024));
        let mut connection = std::pin::pin!(http.serve_connection(stream, service).with_upgrades());
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = self.closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    served = connection.as_mut() => served,
                    () = self.cut_off.cancelled() => return,
                }
            }
        };
        if let Err(error) = served {
            self.counters.count(Counter::HttpFailed);
            tracing::debug!(%client, %error, "HTTP connection failed");
        }
    }

    /// TLS; none when it failed, which is counted here.
    async fn handshake(&self, mut tcp: TcpStream) -> Option<TlsStream> {
        let mut first = [0; 1];
        // A TLS record begins with 22, a cleartext request with a letter.
        if matches!(tcp.peek(&mut first).await, Ok(1)) && first[0].is_ascii_uppercase() {
            self.counters.count(Counter::Cleartext);
            let _ = tcp.write_all(CLEARTEXT_ANSWER).await;
            let _ = tcp.shutdown().await;
            // Read the request, as far as it has arrived: unread it would reset the answer.
            let mut sink = [0; 4096];
            let _ = timeout(Duration::from_secs(1), tcp.readable()).await;
            let _ = tcp.try_read(&mut sink);
            return None;
        }
        match TlsStream::accept(tcp, self.tls.clone()).await {
            Ok(mut tls) => {
                self.counters.count(Counter::TlsDone);
                if tls.alpn() != Some(ACME_TLS) {
                    return Some(tls);
                }
                self.counters.count(Counter::ChallengeAnswered);
                // The handshake is the whole of it.
                let _ = tls.shutdown().await;
                None
            }
            Err(error) => {
                self.counters.count(tls_failure(&error));
                tracing::debug!(%error, "TLS handshake failed");
                None
            }
        }
    }
}

/// A listener that others may share: a process that takes over listens on the same port before
/// the one before it stops.
///
/// # Errors
/// When the address cannot be had, by a process of another user for example.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.ip().is_unspecified() && address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Whether somebody listens there already, who may be about to hand over.
pub fn is_taken(address: SocketAddr) -> bool {
    let bound = Socket::new(Domain::for_address(address), Type::STREAM, None).and_then(|socket| {
        // Connections of a listener that is gone count for nothing.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    });
    bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

const BACKLOG: i32 = 1024;

/// The kernel drops what would begin a connection here: a client that is not answered asks again
/// after a second. What has begun already goes on, and is accepted. Without it, connections that
/// the kernel has made and nobody has accepted would be reset when the listener is closed.
fn take_no_more(listener: &TcpListener) {
    let filter = [
        SockFilter::new(LOAD_BYTE, 0, 0, TCP_FLAGS),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX >> 1),
    ];
    if let Err(error) = SockRef::from(listener).attach_filter(&filter) {
        tracing::warn!(%error, "connections that are being made may be refused");
    }
}

/// Classic BPF, from the TCP header on.
const LOAD_BYTE: u16 = 0x30;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const TCP_FLAGS: u32 = 13;
const SYN: u32 = 0x02;
const ACK: u32 = 0x10;

/// Why a TLS handshake failed.
fn tls_failure(error: &io::Error) -> Counter {
    let inner = error.get_ref().and_then(|it| it.downcast_ref());
    match inner {
        Some(rustls::Error::AlertReceived(_)) => Counter::TlsRefused,
        Some(rustls::Error::PeerIncompatible(_)) => Counter::TlsIncompatible,
        // What rustls says when `Identity` has nothing to present.
        Some(rustls::Error::General(_)) => Counter::TlsNoCertificate,
        Some(_) => Counter::TlsFailed,
        None => Counter::TlsCut,
    }
}

const CLEARTEXT_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: text/plain\r\n\
    content-length: 75\r\n\
    connection: close\r\n\
    \r\n\
    This port speaks HTTPS.\nhint: begin the address with https:// (or wss://).\n";

/// Errors of `accept` that belong to the connection that was not accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
