//! `/metrics`, `/healthz` and `/readyz`, in cleartext on an address of their own.
//!
//! The address is the operator's choice and off by default: what is said here is for who runs the
//! relay. It says counts and nothing that names a client. A page cannot read it from a loopback
//! address through a name of its own (DNS rebinding): there, no name but `localhost` is answered.

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use axum::body::Body;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{metrics, router::Relay, tls::Identity};

/// Connections at the same time; one more waits.
const CONNECTIONS: usize = 16;
/// A connection says what it wants in this time, and lives no longer than a minute.
const HEADERS: Duration = Duration::from_secs(5);
const LIFE: Duration = Duration::from_secs(60);

/// Answers until `stop`. It is to outlive the drain, which `/readyz` tells of.
pub async fn serve_admin(
    listener: TcpListener,
    relay: Relay,
    identity: Arc<Identity>,
    stop: CancellationToken,
) {
    let loopback = listener
        .local_addr()
        .is_ok_and(|address| address.ip().is_loopback());
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let next = async {
            let room = Arc::clone(&room).acquire_owned().await;
            (room, listener.accept().await)
        };
        let (Some((Ok(room), accepted)), false) =
            (stop.run_until_cancelled(next).await, stop.is_cancelled())
        else {
            return;
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (relay, identity, stop) = (relay.clone(), Arc::clone(&identity), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(&relay, &identity, loopback, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS)
                .max_buf_size(8 * 1024)
                .serve_connection(TokioIo::new(tcp), service);
            // How it ended is nobody's concern.
            let _ = stop.run_until_cancelled(timeout(LIFE, connection)).await;
            drop(room);
        });
    }
}

fn answer(
    relay: &Relay,
    identity: &Identity,
    loopback: bool,
    request: &Request<Incoming>,
) -> Response<Body> {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    if loopback && !host.is_some_and(is_of_this_machine) {
        let words = "This server does not answer under that name.\nhint: use its address.\n";
        return plain(StatusCode::MISDIRECTED_REQUEST, words);
    }
    if request.method() != http::Method::GET {
        return plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "Only GET is answered here.\n",
        );
    }
    match request.uri().path() {
        "/metrics" => {
            let text = metrics::text(relay.counters(), relay.is_draining());
            let mut response = Response::new(Body::from(text));
            let media_type = HeaderValue::from_static(metrics::MEDIA_TYPE);
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, media_type);
            response
        }
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" if relay.is_draining() => plain(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        "/readyz" if !identity.is_ready() => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "no certificate yet\nhint: the log says what the ACME server answered.\n",
        ),
        "/readyz" => plain(StatusCode::OK, "ready\n"),
        _ => plain(
            StatusCode::NOT_FOUND,
            "Nothing is here.\nhint: /metrics, /healthz, /readyz\n",
        ),
    }
}

/// Whether a Host header is `localhost` or an address, which no name leads to.
fn is_of_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

fn plain(status: StatusCode, words: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(words));
    *response.status_mut() = status;
    let media_type = HeaderValue::from_static("text/plain; charset=utf-8");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, media_type);
    response
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_foreign_on_loopback() {
        for host in [
            "localhost",
            "LOCALHOST:9100",
            "127.0.0.1",
            "127.0.0.1:9100",
            "[::1]:9100",
            "[::1]",
        ] {
            assert!(super::is_of_this_machine(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9100",
            "localhost.evil.example",
            "127.0.0.1.evil.example:9100",
        ] {
            assert!(!super::is_of_this_machine(host), "{host}");
        }
    }
}
