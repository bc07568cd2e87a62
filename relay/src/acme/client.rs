//! HTTPS to an ACME server. Orders are rare: each request has a connection of its own.

use std::{
    future::Future,
    io,
    path::Path,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use http::{HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::AcmeError;
use crate::tls::preferred_provider;

/// A request is answered within this time.
const PATIENCE: Duration = Duration::from_secs(30);
/// No answer of an ACME server is longer.
const ANSWER_BYTES: usize = 1024 * 1024;

type Bytes = hyper::body::Bytes;
type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// A client that trusts the roots it was given.
#[derive(Clone)]
pub(super) struct Https(TlsConnector);

impl Https {
    /// Trusts the certificates of a PEM file, or without one those of the operating system.
    pub(super) fn new(roots: Option<&Path>) -> Result<Https, AcmeError> {
        let roots = match roots {
            Some(file) => pem_roots(file)?,
            None => system_roots()?,
        };
        let config = ClientConfig::builder_with_provider(Arc::new(preferred_provider()))
            .with_safe_default_protocol_versions()
            .map_err(AcmeError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Https(TlsConnector::from(Arc::new(config))))
    }
}

fn pem_roots(file: &Path) -> Result<RootCertStore, AcmeError> {
    let failed = |error: AnyError| AcmeError::Roots {
        file: file.to_owned(),
        error,
    };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(file).map_err(|error| failed(error.into()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| failed(error.into()))?;
        roots
            .add(certificate)
            .map_err(|error| failed(error.into()))?;
    }
    if roots.is_empty() {
        return Err(failed("it holds no certificate".into()));
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, AcmeError> {
    let mut roots = RootCertStore::empty();
    let loaded = rustls_native_certs::load_native_certs();
    match roots.add_parsable_certificates(loaded.certs) {
        (0, _) => Err(AcmeError::NoRoots),
        _ => Ok(roots),
    }
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let tls = self.0.clone();
        Box::pin(async move {
            let uri = request.uri().clone();
            let asked = timeout(PATIENCE, ask(tls, request)).await;
            asked
                .unwrap_or_else(|_| Err("no answer in time".into()))
                .map_err(|error| format!("{uri}: {error}").into())
                .map_err(instant_acme::Error::Other)
        })
    }
}

async fn ask(
    tls: TlsConnector,
    mut request: Request<BodyWrapper<Bytes>>,
) -> Result<BytesResponse, AnyError> {
    let (host, authority, port, path) = target(request.uri())?;
    let tcp = TcpStream::connect((host.as_str(), port)).await?;
    let stream = tls.connect(ServerName::try_from(host)?, tcp).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    request.headers_mut().insert(header::HOST, authority);
    *request.uri_mut() = path;
    let mut answer = pin!(async move {
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES).collect().await?.to_bytes();
        Ok::<_, AnyError>((parts, body))
    });
    let (parts, body) = tokio::select! {
        answer = &mut answer => answer?,
        // What the server said before it hung up counts.
        _ = connection => answer.await?,
    };
    // A page of a proxy in between, for example: no ACME server says it that way.
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
    if !parts.status.is_success() && !is_json {
        return Err(format!("it answers {}", parts.status).into());
    }
    Ok(BytesResponse {
        parts,
        body: Box::new(body),
    })
}

/// The host to dial, the Host header, the port, and what is asked for there.
fn target(uri: &Uri) -> Result<(String, HeaderValue, u16, Uri), AnyError> {
    let (Some("https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(io::Error::other("an ACME server is asked by https: alone").into());
    };
    let host = authority.host();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Ok((
        host.to_owned(),
        HeaderValue::try_from(authority.as_str())?,
        authority.port_u16().unwrap_or(443),
        Uri::try_from(path)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_apart() {
        let of = |uri: &str| target(&uri.parse().unwrap());
        let (host, authority, port, path) = of("https://[::1]:14000/dir?a=b").unwrap();
        assert_eq!(
            (host.as_str(), port, path.to_string().as_str()),
            ("::1", 14000, "/dir?a=b")
        );
        assert_eq!(authority, "[::1]:14000");
        let (host, authority, port, _) = of("https://acme.example/directory").unwrap();
        assert_eq!((host.as_str(), port), ("acme.example", 443));
        assert_eq!(authority, "acme.example");
        assert!(of("http://acme.example/directory").is_err());
        assert!(of("/directory").is_err());
    }
}
