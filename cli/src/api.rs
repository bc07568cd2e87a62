//! The HTTP API of control, as the commands of this machine call it.
//!
//! The server is trusted by the fingerprint that it left in its data directory, and by nothing
//! else. The login is a token made through the store there; its session is kept beside it, so that
//! a thousand commands are one session, and is replaced when control no longer takes it.

use std::{
    io::ErrorKind,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, anyhow};
use carrier::Trust;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::net::TcpStream;

use crate::{
    client::args::SystemArg,
    data_dir::{DataDir, Running},
};

/// A logged in caller.
pub(crate) struct Api {
    dir: DataDir,
    running: Running,
    tls: Arc<rustls::ClientConfig>,
    session: Mutex<Option<String>>,
}

/// Answers are lists of apps and peers; nothing near this size.
const MAX_ANSWER: usize = 8 << 20;

/// A call to a process on this machine that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(15);

impl Api {
    /// The system that runs on the data directory, as the local user.
    pub(crate) async fn open(arg: &SystemArg) -> anyhow::Result<Api> {
        let dir = arg.data_dir.find()?;
        let running = dir.running()?;
        let api = Api {
            tls: carrier::tls_config(&trust(&running)?)?,
            session: Mutex::new(dir.session()),
            dir,
            running,
        };
        if api.session().is_none() {
            Box::pin(api.login()).await?;
        }
        Ok(api)
    }

    /// What the certificate of API and relay has to pass.
    pub(crate) fn trust(&self) -> anyhow::Result<Trust> {
        trust(&self.running)
    }

    /// One call; a refusal becomes an error with its code and hint.
    pub(crate) async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<A> {
        let body = if method == Method::GET {
            Vec::new()
        } else {
            serde_json::to_vec(body)?
        };
        let first = self.exchange(&method, path, &body, self.session()).await?;
        match first {
            Answer::Is(answer) => Ok(answer),
            Answer::Refused(status, error) if status == StatusCode::UNAUTHORIZED => {
                tracing::debug!("a new session: {error:#}");
                Box::pin(self.login()).await?;
                let again = self.exchange(&method, path, &body, self.session()).await?;
                again.ok()
            }
            refused => refused.ok(),
        }
    }

    /// A call without a body.
    pub(crate) async fn get<A: DeserializeOwned>(&self, path: &str) -> anyhow::Result<A> {
        self.call(Method::GET, path, &()).await
    }

    /// Replaces the session by a new one.
    async fn login(&self) -> anyhow::Result<()> {
        let token = crate::up::local_login_token(&self.dir)?;
        let body = serde_json::to_vec(&json!({ "token": token.token.reveal() }))?;
        let answer = self
            .exchange::<Login>(&Method::POST, "/api/v1/login", &body, None)
            .await;
        let login = answer.and_then(Answer::ok);
        let login = login.with_context(|| format!("cannot log in to {}", self.running.url))?;
        self.dir.keep_session(&login.session)?;
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(login.session);
        Ok(())
    }

    fn session(&self) -> Option<String> {
        self.session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn exchange<A: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        body: &[u8],
        session: Option<String>,
    ) -> anyhow::Result<Answer<A>> {
        let exchange = self.exchange_untimed(method, path, body, session);
        let answer = tokio::time::timeout(TIMEOUT, exchange).await;
        let url = &self.running.url;
        answer.map_err(|_| {
            anyhow!(
                "{url} does not answer within {} s\nhint: a firewall may drop packets to it, or `underpass up` is stuck",
                TIMEOUT.as_secs()
            )
        })?
    }

    async fn exchange_untimed<A: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        body: &[u8],
        session: Option<String>,
    ) -> anyhow::Result<Answer<A>> {
        let address = self.running.address;
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
        let uri: http::Uri = self.running.url.parse()?;
        let authority = uri
            .authority()
            .context("up.json has no host\nhint: restart `underpass up`")?;
        let name = authority.host().trim_matches(['[', ']']).to_owned();
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls));
        let tls = connector
            .connect(ServerName::try_from(name)?, stream)
            .await
            .with_context(|| {
                format!(
                    "{address} is not the system that was started here\n\
                     hint: something in between may answer for it, such as a login page or a proxy that inspects TLS; \
                     if `underpass up` was given another certificate, restart it"
                )
            })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, authority.as_str())
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(session) = session {
            request = request.header(header::AUTHORIZATION, format!("Bearer {session}"));
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body)))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        let body = body.map_err(|error| anyhow!("the answer broke off: {error}"))?;
        let body = body.to_bytes();
        connection.abort();
        if !status.is_success() {
            return Ok(Answer::Refused(status, refusal(status, &body)));
        }
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        let answer = serde_json::from_slice(body);
        let answer =
            answer.context("an answer of another version\nhint: restart `underpass up`")?;
        Ok(Answer::Is(answer))
    }
}

/// What a call brought.
enum Answer<A> {
    Is(A),
    Refused(StatusCode, anyhow::Error),
}

impl<A> Answer<A> {
    fn ok(self) -> anyhow::Result<A> {
        match self {
            Answer::Is(answer) => Ok(answer),
            Answer::Refused(_, error) => Err(error),
        }
    }
}

fn trust(running: &Running) -> anyhow::Result<Trust> {
    Ok(Trust::fingerprint(&running.fingerprint)?)
}

#[derive(Deserialize)]
struct Login {
    session: String,
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

fn refusal(status: StatusCode, body: &[u8]) -> anyhow::Error {
    match serde_json::from_slice::<Refusal>(body) {
        Ok(Refusal { error }) => {
            anyhow!("{} ({})\nhint: {}", error.message, error.code, error.hint)
        }
        Err(_) => anyhow!("the server answered {status}"),
    }
}
