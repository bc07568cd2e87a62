//! The HTTP API of control, as the commands of this machine call it.
//!
//! The server is trusted by the very certificate that lies in its data directory, and by nothing
//! else; the login is a token made through the store there.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::net::TcpStream;

use crate::data_dir::{DataDir, DataDirArg};

/// A logged in caller.
pub(crate) struct Api {
    host: String,
    tls: Arc<rustls::ClientConfig>,
    session: String,
}

/// Answers are lists of apps and peers; nothing near this size.
const MAX_ANSWER: usize = 8 << 20;

/// A call to a process on this machine that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(15);

impl Api {
    /// Logs in to the system that runs on the data directory, as the local user.
    pub(crate) async fn local(arg: &DataDirArg) -> anyhow::Result<Api> {
        let dir = arg.find()?;
        let running = dir.running()?;
        let host = running.url.trim_start_matches("https://").to_owned();
        let mut api = Api {
            host,
            tls: Arc::new(trust(&dir)?),
            session: String::new(),
        };
        let token = crate::up::local_login_token(&dir)?;
        let login: Login = api
            .call(
                Method::POST,
                "/api/v1/login",
                &json!({ "token": token.token.reveal() }),
            )
            .await
            .with_context(|| format!("cannot log in to {}", running.url))?;
        api.session = login.session;
        Ok(api)
    }

    /// One call; a refusal becomes an error with its code and hint.
    pub(crate) async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<A> {
        let answer = tokio::time::timeout(TIMEOUT, self.exchange(method, path, body)).await;
        answer.map_err(|_| {
            anyhow!(
                "{} does not answer\nhint: is `underpass up` stuck?",
                self.host
            )
        })?
    }

    /// A call without a body.
    pub(crate) async fn get<A: DeserializeOwned>(&self, path: &str) -> anyhow::Result<A> {
        self.call(Method::GET, path, &()).await
    }

    async fn exchange<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<A> {
        let stream = TcpStream::connect(&self.host).await.with_context(|| {
            format!(
                "nothing listens on {}\nhint: start it with `underpass up`",
                self.host
            )
        })?;
        let name = self
            .host
            .rsplit_once(':')
            .map_or(self.host.as_str(), |(name, _)| name);
        let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned())?;
        let tls = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(&method)
            .uri(path)
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/json");
        if !self.session.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", self.session));
        }
        let body = if method == Method::GET {
            Vec::new()
        } else {
            serde_json::to_vec(body)?
        };
        let response = sender
            .send_request(request.body(Full::new(Bytes::from(body)))?)
            .await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        let body = body
            .map_err(|error| anyhow!("the answer broke off: {error}"))?
            .to_bytes();
        connection.abort();
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(body)
            .context("an answer of another version\nhint: restart `underpass up`")
    }
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

fn trust(dir: &DataDir) -> anyhow::Result<rustls::ClientConfig> {
    let path = dir.certificate();
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&path).with_context(|| {
        format!(
            "cannot read {}\nhint: restart `underpass up`",
            path.display()
        )
    })? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
