//! The HTTP API of control, as commands call it.
//!
//! A system of this machine is trusted by the fingerprint that it left in its data directory, and
//! by nothing else; the login is a token made through the store there. Its session is kept beside
//! it, so that a thousand commands are one session, and is replaced when control no longer takes
//! it. Any other system is known by its URL, and by the session that `underpass login` keeps.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use carrier::{CarrierError, Trust};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1::SendRequest,
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};
use url::Url;

use crate::{
    client::args::{System, SystemArg},
    data_dir::DataDir,
};

/// A logged in caller.
pub(crate) struct Api {
    server: Server,
    session: Mutex<Option<String>>,
    /// Whose store makes a new session.
    dir: Option<DataDir>,
}

/// One server, and the way to it.
pub(crate) struct Server {
    url: Url,
    /// Where it listens on this machine; one that is elsewhere is found by its name.
    local: Option<SocketAddr>,
    trust: Trust,
    tls: Arc<rustls::ClientConfig>,
    /// The connection of the last request: a command has several, and each connection would cost
    /// two round trips more.
    kept: Mutex<Option<Kept>>,
}

/// A connection that has answered, and when.
struct Kept {
    sender: SendRequest<Full<Bytes>>,
    since: Instant,
}

/// A connection that was idle for longer may be one that the network has forgotten.
const KEPT_FOR: Duration = Duration::from_secs(3);

/// Answers are lists of apps and peers; nothing near this size.
const MAX_ANSWER: usize = 8 << 20;

/// A server that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(15);

impl Api {
    /// The system that is meant, as who is logged in there.
    pub(crate) async fn open(arg: &SystemArg) -> anyhow::Result<Api> {
        match arg.find()? {
            System::Local(dir) => {
                let running = dir.running()?;
                let server = Server::new(
                    Url::parse(&running.url).context("up.json has no URL")?,
                    Some(running.address),
                    Trust::fingerprint(&running.fingerprint)?,
                )?;
                let api = Api {
                    session: Mutex::new(dir.session()),
                    server,
                    dir: Some(dir),
                };
                if api.session().is_none() {
                    Box::pin(api.renew()).await?;
                }
                Ok(api)
            }
            System::Remote(url, login) => Ok(Api {
                server: Server::new(url, None, login.trust()?)?,
                session: Mutex::new(Some(login.session)),
                dir: None,
            }),
        }
    }

    /// What the certificate of API and relay has to pass.
    pub(crate) fn trust(&self) -> Trust {
        self.server.trust.clone()
    }

    /// One call; a refusal becomes an error with its code and hint.
    pub(crate) async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<A> {
        let session = self.session();
        let first = self.server.exchange(&method, path, body, session).await?;
        match first {
            Answer::Is(answer) => Ok(answer),
            Answer::Refused(refused) if refused.status == StatusCode::UNAUTHORIZED => {
                tracing::debug!("a new session: {}", refused.code);
                Box::pin(self.renew()).await?;
                let session = self.session();
                self.server
                    .exchange(&method, path, body, session)
                    .await?
                    .ok()
            }
            refused => refused.ok(),
        }
    }

    /// A call without a body.
    pub(crate) async fn get<A: DeserializeOwned>(&self, path: &str) -> anyhow::Result<A> {
        self.call(Method::GET, path, &()).await
    }

    /// Replaces the session by a new one, where that takes nobody.
    async fn renew(&self) -> anyhow::Result<()> {
        let url = origin(&self.server.url);
        let Some(dir) = &self.dir else {
            bail!("the session at {url} has ended\nhint: underpass login {url}");
        };
        let session = local_session(&self.server, dir).await?;
        dir.keep_session(&session)?;
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
        Ok(())
    }

    fn session(&self) -> Option<String> {
        self.session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A session for the owner of a data directory.
async fn local_session(server: &Server, dir: &DataDir) -> anyhow::Result<String> {
    let token = crate::up::local_login_token(dir)?;
    let login = server.redeem(&token).await?;
    Ok(login.session)
}

/// What a login is answered with.
#[derive(Deserialize)]
pub(crate) struct Session {
    pub(crate) session: String,
    pub(crate) user: String,
    pub(crate) orgs: Vec<crate::client::Org>,
    pub(crate) expires: u64,
}

impl Server {
    /// A server that is trusted as `trust` says.
    pub(crate) fn new(url: Url, local: Option<SocketAddr>, trust: Trust) -> anyhow::Result<Server> {
        Ok(Server {
            tls: carrier::tls_config(&trust)?,
            url,
            local,
            trust,
            kept: Mutex::new(None),
        })
    }

    /// Exchanges a login token for a session.
    pub(crate) async fn redeem(&self, token: &str) -> anyhow::Result<Session> {
        let body = serde_json::json!({ "token": token });
        let answer = self.exchange(&Method::POST, "/api/v1/login", &body, None);
        let login = answer.await.and_then(Answer::ok);
        login.with_context(|| format!("cannot log in to {}", origin(&self.url)))
    }

    /// One request and its answer.
    pub(crate) async fn exchange<A: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        body: &impl Serialize,
        session: Option<String>,
    ) -> anyhow::Result<Answer<A>> {
        let body = if method == Method::GET || method == Method::DELETE {
            Vec::new()
        } else {
            serde_json::to_vec(body)?
        };
        let exchange = self.exchange_untimed(method, path, body, session);
        let answer = tokio::time::timeout(TIMEOUT, Box::pin(exchange)).await;
        answer.map_err(|_| {
            anyhow!(
                "{} does not answer within {} s\nhint: a firewall may drop packets to it, or `underpass up` is stuck",
                origin(&self.url),
                TIMEOUT.as_secs()
            )
        })?
    }

    async fn exchange_untimed<A: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        body: Vec<u8>,
        session: Option<String>,
    ) -> anyhow::Result<Answer<A>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.url.authority())
            .header(header::CONTENT_TYPE, "application/json")
            .header(
                header::USER_AGENT,
                concat!("underpass/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(session) = session {
            let mut bearer = header::HeaderValue::try_from(format!("Bearer {session}"))?;
            bearer.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, bearer);
        }
        let request = request.body(Full::new(Bytes::from(body)))?;
        let (mut sender, response) = self.send(request).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow!("the answer broke off: {error}"))?;
        let body = body.to_bytes();
        // Ready again only where the server keeps the connection too.
        if sender.ready().await.is_ok() {
            let since = Instant::now();
            *self.kept() = Some(Kept { sender, since });
        }
        if !head.status.is_success() {
            let refused = Refused::read(&self.url, head.status, &head.headers, &body);
            return Ok(Answer::Refused(refused));
        }
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        match serde_json::from_slice(body) {
            Ok(answer) => Ok(Answer::Is(answer)),
            Err(_) => Err(not_ours(&self.url, head.status, &head.headers)),
        }
    }

    /// Over the connection that was kept, or a new one.
    async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> anyhow::Result<(SendRequest<Full<Bytes>>, Response<Incoming>)> {
        let lost = |error: hyper::Error| {
            anyhow!(
                "{} broke the connection: {error}\nhint: try again; something in between may \
                 interfere",
                origin(&self.url)
            )
        };
        let kept = self.kept().take();
        if let Some(mut kept) = kept.filter(|kept| kept.since.elapsed() < KEPT_FOR)
            && !kept.sender.is_closed()
        {
            match kept.sender.try_send_request(request).await {
                Ok(response) => return Ok((kept.sender, response)),
                // It was closed before anything was sent.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(lost(error.into_error())),
                },
            }
        }
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(lost)?;
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(lost)?;
        Ok((sender, response))
    }

    async fn connect(&self) -> anyhow::Result<Box<dyn Io>> {
        let Some(address) = self.local else {
            let reached = carrier::reach(&self.url, Arc::clone(&self.tls)).await;
            let stream = reached.map_err(|error| unreachable(&self.url, &self.trust, &error))?;
            return Ok(Box::new(stream));
        };
        let stream = TcpStream::connect(address).await.map_err(|error| {
            let (what, hint) = match error.kind() {
                ErrorKind::ConnectionRefused => {
                    ("nothing listens on", "start it with `underpass up`")
                }
                _ => (
                    "no way to",
                    "check this machine's network: is it connected?",
                ),
            };
            anyhow!(error).context(format!("{what} {address}\nhint: {hint}"))
        })?;
        // A request is its head and its body: the second does not wait for news of the first.
        let _ = stream.set_nodelay(true);
        let host = self.url.host_str().unwrap_or_default();
        let name = host.trim_matches(['[', ']']).to_owned();
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls));
        let tls = connector.connect(name.clone().try_into()?, stream).await;
        let tls = tls.map_err(|error| match CarrierError::of_tls(&name, &error) {
            CarrierError::TlsUntrusted { reason, .. } | CarrierError::TlsFailed { reason, .. } => {
                anyhow!(
                    "{address} is not the system that was started here: {reason}\n\
                     hint: something in between may answer for it, such as a login page or a \
                     proxy that inspects TLS; if `underpass up` was given another certificate, \
                     restart it"
                )
            }
            other => unreachable(&self.url, &self.trust, &other),
        })?;
        Ok(Box::new(tls))
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A byte stream to a server.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Why a server cannot be reached, and what a person can type where its certificate is unknown.
fn unreachable(url: &Url, trust: &Trust, error: &CarrierError) -> anyhow::Error {
    let url = origin(url);
    let code = error.code();
    if let CarrierError::TlsUntrusted { fingerprint, .. } = error
        && *trust == Trust::System
    {
        return anyhow!(
            "{error} ({code})\nhint: compare it with the one that `underpass up` prints there; \
             where they are equal: underpass login {url} --cert-fingerprint {fingerprint}"
        );
    }
    anyhow!(
        "{url} cannot be reached: {error} ({code})\nhint: {}",
        error.hint()
    )
}

/// What a call brought.
#[derive(Debug)]
pub(crate) enum Answer<A> {
    Is(A),
    Refused(Refused),
}

/// A refusal, as control words it.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) code: String,
    error: anyhow::Error,
}

impl<A> Answer<A> {
    pub(crate) fn ok(self) -> anyhow::Result<A> {
        match self {
            Answer::Is(answer) => Ok(answer),
            Answer::Refused(refused) => Err(refused.error),
        }
    }
}

#[derive(Deserialize)]
struct Refusal {
    error: RefusalBody,
}

#[derive(Deserialize)]
struct RefusalBody {
    code: String,
    message: String,
    hint: String,
}

impl Refused {
    fn read(url: &Url, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Refused {
        match serde_json::from_slice::<Refusal>(body) {
            Ok(Refusal { error }) => Refused {
                status,
                error: anyhow!(
                    "{} ({})\nhint: {}",
                    plain(&error.message),
                    plain(&error.code),
                    plain(&error.hint)
                ),
                code: error.code,
            },
            Err(_) => Refused {
                status,
                code: String::new(),
                error: not_ours(url, status, headers),
            },
        }
    }
}

/// Something answered that is not control: a captive portal, a proxy, another program.
fn not_ours(url: &Url, status: StatusCode, headers: &HeaderMap) -> anyhow::Error {
    let url = origin(url);
    let leads = headers
        .get(header::LOCATION)
        .and_then(|to| to.to_str().ok());
    match leads.filter(|_| status.is_redirection()) {
        Some(to) => anyhow!(
            "{url} is answered by something else, which leads to {} (not_underpass)\nhint: this \
             network may want you to sign in first: open that page in a browser",
            plain(to)
        ),
        None => anyhow!(
            "{url} is answered by something else than Underpass, with status {status} \
             (not_underpass)\nhint: check the URL; a captive portal or proxy may have answered, or \
             one side is of another version"
        ),
    }
}

/// Text of the other side, fit for a terminal.
fn plain(text: &str) -> String {
    let shown = text.chars().filter(|c| !c.is_control()).take(300);
    shown.collect()
}

/// `https://HOST:PORT`.
pub(crate) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn up() -> Url {
        Url::parse("https://up.example:8443").unwrap()
    }

    fn said(errors: &[anyhow::Error]) -> String {
        let all: Vec<String> = errors.iter().map(crate::output::explained).collect();
        all.join("\n\n")
    }

    #[test]
    fn what_answers_in_place_of_control_is_said_to_be_that() {
        let refused = |status: StatusCode, to: Option<&str>, body: &str| {
            let mut headers = HeaderMap::new();
            if let Some(to) = to {
                headers.insert(header::LOCATION, HeaderValue::from_str(to).unwrap());
            }
            Refused::read(&up(), status, &headers, body.as_bytes()).error
        };
        let page = "<html>Welcome to the hotel";
        insta::assert_snapshot!(said(&[
            refused(
                StatusCode::FOUND,
                Some("http://login.hotel.example/?from=up"),
                page
            ),
            refused(StatusCode::OK, None, page),
            refused(StatusCode::FORBIDDEN, None, page),
            refused(
                StatusCode::CONFLICT,
                None,
                r#"{"error":{"code":"name_taken","message":"the name of a peer\u001b[31m is taken","hint":"choose another"}}"#,
            ),
        ]));
    }

    #[test]
    fn what_is_in_the_way_is_told_with_what_to_do() {
        let address = "192.0.2.7:8443".parse().unwrap();
        let host = || "up.example".to_owned();
        let errors = [
            CarrierError::RelayName {
                host: host(),
                reason: "Temporary failure in name resolution".into(),
            },
            CarrierError::RelayUnreachable {
                address,
                reason: "Network is unreachable (os error 101)".into(),
            },
            CarrierError::RelayRefused { address },
            CarrierError::TlsFailed {
                host: host(),
                reason: "received corrupt message of type InvalidContentType".into(),
            },
            CarrierError::TlsUntrusted {
                host: host(),
                reason: "nobody whom this machine knows signed it".into(),
                fingerprint: "SHA256:AB:CD".into(),
                hint: "compare",
            },
            CarrierError::TlsUntrusted {
                host: host(),
                reason: "it ended on 2026-11-19 12:00 UTC, and this machine's clock says 2026-11-20 12:00 UTC".into(),
                fingerprint: "SHA256:AB:CD".into(),
                hint: "set this machine's clock if it is wrong",
            },
        ];
        let pinned = Trust::Fingerprint([7; 32]);
        let trusts = [
            &Trust::System,
            &Trust::System,
            &Trust::System,
            &Trust::System,
            &Trust::System,
            &pinned,
        ];
        let errors: Vec<_> = errors
            .iter()
            .zip(trusts)
            .map(|(error, trust)| unreachable(&up(), trust, error))
            .collect();
        insta::assert_snapshot!(said(&errors));
    }
}
