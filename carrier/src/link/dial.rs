//! The way to an open WebSocket: name, TCP, TLS, upgrade, the relay's hello. Each step has a time
//! limit and an error of its own.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming as Body;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};
use url::{Host, Url};
use wire::{Control, subprotocol};

use super::{proxy::Proxy, websocket::closed};
use crate::{
    CarrierError,
    error::{Step, clean, clean_code},
};

/// A byte stream to the relay, TLS or not.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(super) type Socket = WebSocketStream<Box<dyn Io>>;

/// A WebSocket whose relay has said hello.
pub(super) struct Dialled {
    pub(super) socket: Socket,
    /// With which to resume this session after its connection is lost.
    pub(super) resume: Option<String>,
    /// Datagrams must pass at least this often.
    pub(super) idle: Duration,
}

/// The relay to dial.
pub(crate) struct Target {
    url: Url,
    host: Host<String>,
    port: u16,
    tls: Option<Arc<rustls::ClientConfig>>,
    proxy: Option<Proxy>,
    token: Mutex<Option<String>>,
}

/// The token is a secret and is not shown.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("host", &self.host)
            .field("port", &self.port)
            .finish()
    }
}

const DNS_LIMIT: Duration = Duration::from_secs(5);
const TCP_LIMIT: Duration = Duration::from_secs(10);
const PROXY_LIMIT: Duration = Duration::from_secs(10);
const TLS_LIMIT: Duration = Duration::from_secs(10);
const UPGRADE_LIMIT: Duration = Duration::from_secs(10);

/// The next address is tried when the last has not answered for this long (RFC 8305).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// Encrypted bytes cannot be dropped any more, so few may wait in the kernel.
#[cfg(any(target_os = "linux", target_os = "android"))]
const NOTSENT_LOWAT: u32 = 16 * 1024;

/// An HTTP error is read up to here.
const MAX_ERROR_BODY: usize = 8 * 1024;

impl Target {
    pub(crate) fn new(
        url: Url,
        token: Option<String>,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Target, CarrierError> {
        let bad = |reason: &str| CarrierError::RelayUrl {
            reason: reason.to_owned(),
        };
        let host = url
            .host()
            .ok_or_else(|| bad("it names no host"))?
            .to_owned();
        let tls = match url.scheme() {
            "wss" | "https" => Some(tls),
            "ws" | "http" if is_loopback(&host) => None,
            "ws" | "http" => return Err(bad("without TLS it may only name this machine")),
            _ => return Err(bad("its scheme is not wss")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("it holds a user name or password"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("it holds a query or a fragment"));
        }
        let port = url.port().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let proxy = Proxy::of_environment(&host)?;
        Ok(Target {
            url,
            host,
            port,
            tls,
            proxy,
            token: Mutex::new(token),
        })
    }

    /// The token for the connections from now on.
    pub(crate) fn set_token(&self, token: Option<String>) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }

    pub(super) async fn dial(&self, resume: Option<&str>) -> Result<Dialled, CarrierError> {
        let io = self.reach().await?;
        let opening = async {
            let socket = self.upgrade(io, resume).await?;
            hello(socket).await
        };
        limited(Step::Upgrade, UPGRADE_LIMIT, Box::pin(opening)).await
    }

    /// The way to the server, TLS included.
    pub(crate) async fn reach(&self) -> Result<Box<dyn Io>, CarrierError> {
        let reach = async {
            let addresses = limited(Step::Dns, DNS_LIMIT, self.addresses()).await?;
            limited(Step::Tcp, TCP_LIMIT, connect(&addresses)).await
        };
        let mut tcp = reach.await.map_err(|error| match &self.proxy {
            // It was the proxy that was looked up and called, not the relay.
            Some(proxy) => proxy.unreachable(&error),
            None => error,
        })?;
        // Without these the connection works, slower.
        let _ = tcp.set_nodelay(true);
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let _ = socket2::SockRef::from(&tcp).set_tcp_notsent_lowat(NOTSENT_LOWAT);
        if let Some(proxy) = &self.proxy {
            let passing = proxy.pass(&mut tcp, &self.host, self.port);
            limited(Step::Proxy, PROXY_LIMIT, passing).await?;
        }
        match &self.tls {
            None => Ok(Box::new(tcp)),
            Some(tls) => limited(Step::Tls, TLS_LIMIT, self.secure(tls, tcp)).await,
        }
    }

    /// Where to connect to: the proxy where there is one, and then the relay's name is its affair.
    async fn addresses(&self) -> Result<Vec<SocketAddr>, CarrierError> {
        let (host, port) = match &self.proxy {
            Some(proxy) => (&proxy.host, proxy.port),
            None => (&self.host, self.port),
        };
        let name = match host {
            Host::Ipv4(ip) => return Ok(vec![(*ip, port).into()]),
            Host::Ipv6(ip) => return Ok(vec![(*ip, port).into()]),
            Host::Domain(name) => name,
        };
        let unknown = |reason: String| CarrierError::RelayName {
            host: name.clone(),
            reason,
        };
        let found = tokio::net::lookup_host((name.as_str(), port))
            .await
            .map_err(|error| unknown(error.to_string()))?;
        let (mut v6, mut v4): (Vec<_>, Vec<_>) = found.partition(SocketAddr::is_ipv6);
        // Alternating, so that one broken family costs one NEXT_ADDRESS and no more.
        let mut addresses = Vec::with_capacity(v6.len() + v4.len());
        v6.reverse();
        v4.reverse();
        while let Some(address) = v6.pop().or_else(|| v4.pop()) {
            addresses.push(address);
            addresses.extend(v4.pop());
        }
        addresses.truncate(8);
        if addresses.is_empty() {
            return Err(unknown("it has no address".to_owned()));
        }
        Ok(addresses)
    }

    async fn secure(
        &self,
        tls: &Arc<rustls::ClientConfig>,
        tcp: TcpStream,
    ) -> Result<Box<dyn Io>, CarrierError> {
        let name = match &self.host {
            Host::Ipv4(ip) => ServerName::from(IpAddr::from(*ip)),
            Host::Ipv6(ip) => ServerName::from(IpAddr::from(*ip)),
            Host::Domain(name) => {
                ServerName::try_from(name.clone()).map_err(|_| CarrierError::RelayUrl {
                    reason: format!("{name} is no host name for TLS"),
                })?
            }
        };
        match TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(CarrierError::of_tls(&self.host.to_string(), &error)),
        }
    }

    fn request(
        &self,
        key: &str,
        resume: Option<&str>,
    ) -> Result<Request<Empty<Bytes>>, CarrierError> {
        let bad = |what: &str| CarrierError::RelayUrl {
            reason: format!("{what} is malformed"),
        };
        let secret = |text: String| {
            let mut value = HeaderValue::try_from(text).map_err(|_| bad("the token"))?;
            value.set_sensitive(true);
            Ok(value)
        };
        let host = match self.url.port() {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.to_string(),
        };
        let mut request = Request::get(self.url.path())
            .header(header::HOST, host)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, key)
            .header(
                header::USER_AGENT,
                concat!("underpass/", env!("CARGO_PKG_VERSION")),
            )
            .body(Empty::new())
            .map_err(|_| bad("the path"))?;
        let headers = request.headers_mut();
        let offer = subprotocol::offer(None, resume).join(", ");
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, secret(offer)?);
        if let Some(token) = &*self.token.lock().unwrap_or_else(PoisonError::into_inner) {
            headers.insert(header::AUTHORIZATION, secret(format!("Bearer {token}"))?);
        }
        Ok(request)
    }

    async fn upgrade(&self, io: Box<dyn Io>, resume: Option<&str>) -> Result<Socket, CarrierError> {
        let key = generate_key();
        let request = self.request(&key, resume)?;
        // A client of its own here, because that of tungstenite shows whole requests in its log
        // and reads no error bodies.
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
            .await
            .map_err(|error| lost(&error))?;
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(request).await.map_err(|error| {
            if error.is_parse() {
                CarrierError::NotARelay {
                    reason: "it does not answer in HTTP".to_owned(),
                }
            } else {
                lost(&error)
            }
        })?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refused(response).await);
        }
        check_upgrade(response.headers(), &key)?;
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|error| lost(&error))?;
        let parts =
            upgraded
                .downcast::<TokioIo<Box<dyn Io>>>()
                .map_err(|_| CarrierError::RelayLost {
                    reason: "the upgraded stream is of another type".to_owned(),
                })?;
        let config = WebSocketConfig::default()
            .read_buffer_size(64 * 1024)
            .max_write_buffer_size(512 * 1024)
            .max_message_size(Some(wire::record::MAX_MESSAGE))
            .max_frame_size(Some(wire::record::MAX_MESSAGE));
        Ok(WebSocketStream::from_partially_read(
            parts.io.into_inner(),
            parts.read_buf.into(),
            Role::Client,
            Some(config),
        )
        .await)
    }
}

pub(super) fn is_loopback(host: &Host<String>) -> bool {
    match host {
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => ip.is_loopback(),
        Host::Domain(name) => name == "localhost",
    }
}

async fn limited<T>(
    step: Step,
    limit: Duration,
    work: impl Future<Output = Result<T, CarrierError>>,
) -> Result<T, CarrierError> {
    timeout(limit, work)
        .await
        .unwrap_or(Err(CarrierError::RelayTimedOut { step, limit }))
}

/// The first address that answers; a new one is tried while the older ones are still awaited.
async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, CarrierError> {
    let mut rest = addresses.iter().copied();
    let mut attempts = FuturesUnordered::new();
    let mut failed = None;
    loop {
        let next = rest.next();
        let more = next.is_some();
        if let Some(address) = next {
            attempts.push(async move { (address, TcpStream::connect(address).await) });
        } else if attempts.is_empty() {
            break;
        }
        let pause = async {
            if more {
                sleep(NEXT_ADDRESS).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            Some((address, result)) = attempts.next() => match result {
                Ok(tcp) => return Ok(tcp),
                Err(error) => failed = Some((address, error)),
            },
            () = pause => {}
        }
    }
    Err(match failed {
        Some((address, error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            CarrierError::RelayRefused { address }
        }
        Some((address, error)) => CarrierError::RelayUnreachable {
            address,
            reason: error.to_string(),
        },
        None => CarrierError::RelayUrl {
            reason: "it has no address".to_owned(),
        },
    })
}

/// The error and what caused it: hyper's own sentence is about its part alone.
fn lost(error: &hyper::Error) -> CarrierError {
    let mut reason = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        reason = format!("{reason}: {error}");
        cause = error.source();
    }
    CarrierError::RelayLost {
        reason: clean(&reason),
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorFields,
}

#[derive(Deserialize)]
struct ErrorFields {
    code: String,
    message: String,
    #[serde(default)]
    hint: String,
}

async fn refused(response: Response<Body>) -> CarrierError {
    let status = response.status();
    let body = match Limited::new(response.into_body(), MAX_ERROR_BODY)
        .collect()
        .await
    {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let plain = || clean(status.canonical_reason().unwrap_or("no reason given"));
    let (code, message, hint) = match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(ErrorBody { error }) => (
            clean_code(&error.code, "upgrade_refused"),
            clean(&error.message),
            clean(&error.hint),
        ),
        Err(_) => ("upgrade_refused".to_owned(), plain(), String::new()),
    };
    if status == StatusCode::UNAUTHORIZED || code.starts_with("token_") {
        let code = if code == "upgrade_refused" {
            "token_refused".to_owned()
        } else {
            code
        };
        return CarrierError::TokenRefused {
            code,
            message,
            hint,
        };
    }
    if status.is_success() || status.is_redirection() {
        let reason = format!(
            "it answered with status {} instead of a WebSocket",
            status.as_u16()
        );
        return CarrierError::NotARelay { reason };
    }
    CarrierError::UpgradeRefused {
        status: status.as_u16(),
        code,
        message,
        hint,
    }
}

fn check_upgrade(headers: &HeaderMap, key: &str) -> Result<(), CarrierError> {
    let not = |reason: &str| {
        Err(CarrierError::NotARelay {
            reason: reason.to_owned(),
        })
    };
    let is = |name, value: &str| {
        headers
            .get(name)
            .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(value.as_bytes()))
    };
    if !is(header::UPGRADE, "websocket") {
        return not("it upgraded to something else than a WebSocket");
    }
    let accept = derive_accept_key(key.as_bytes());
    if headers
        .get(header::SEC_WEBSOCKET_ACCEPT)
        .is_none_or(|v| v.as_bytes() != accept.as_bytes())
    {
        return not("it did not prove that it read the WebSocket request");
    }
    if !is(header::SEC_WEBSOCKET_PROTOCOL, subprotocol::V1) {
        return not("its WebSocket does not speak underpass.v1");
    }
    Ok(())
}

/// The relay's first message. A relay that refuses the session says so in its place.
async fn hello(mut socket: Socket) -> Result<Dialled, CarrierError> {
    let mut last_words = None;
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => match Control::parse(text.as_str()) {
                Ok(Control::Hello {
                    resume,
                    idle_seconds,
                    ..
                }) => {
                    let idle = Duration::from_secs(idle_seconds.max(10).into());
                    return Ok(Dialled {
                        socket,
                        resume,
                        idle,
                    });
                }
                Ok(closing @ Control::Closing { .. }) => last_words = Some(closing),
                Ok(_) | Err(wire::control::ControlError::UnknownType) => {}
                Err(error) => {
                    return Err(CarrierError::NotARelay {
                        reason: error.to_string(),
                    });
                }
            },
            Some(Ok(Message::Close(frame))) => {
                return Err(closed(last_words.as_ref(), frame.as_ref()));
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(_)) => {
                let reason = "it sent data before its hello".to_owned();
                return Err(CarrierError::NotARelay { reason });
            }
            Some(Err(error)) => {
                return Err(CarrierError::RelayLost {
                    reason: clean(&error.to_string()),
                });
            }
            None => return Err(closed(last_words.as_ref(), None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Trust, tls_config};

    fn target(url: &str) -> Result<Target, CarrierError> {
        let tls = tls_config(&Trust::Fingerprint([0; 32])).unwrap();
        Target::new(Url::parse(url).unwrap(), Some("secret".into()), tls)
    }

    #[test]
    fn urls_that_would_leak_or_mislead_are_refused() {
        for good in [
            "wss://relay.example/v1/tunnel/a",
            "ws://127.0.0.1:80/",
            "ws://[::1]/x",
        ] {
            assert!(target(good).is_ok(), "{good}");
        }
        for bad in [
            "ws://relay.example/",
            "ftp://relay.example/",
            "wss://user:pass@relay.example/",
            "wss://relay.example/?token=secret",
            "wss://relay.example/#secret",
            "data:text/plain,x",
        ] {
            assert_eq!(
                target(bad).unwrap_err().code(),
                "relay_url_invalid",
                "{bad}"
            );
        }
    }

    #[test]
    fn the_token_is_in_no_debug_output() {
        let target = target("wss://relay.example/v1/tunnel/a").unwrap();
        assert!(!format!("{target:?}").contains("secret"));
        let request = target.request("key", Some("resume-secret")).unwrap();
        assert!(!format!("{request:?}").contains("secret"), "{request:?}");
        assert!(!format!("{request:?}").contains("resume."), "{request:?}");
    }
}
