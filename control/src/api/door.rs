//! Who is answered at all: hosts, origins; and what every answer says to browsers.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::{Control, refusal::Refusal};

/// The values of `Host` that are answered, each as a browser sends it: `localhost:8443`, or
/// `example.com` alone when the port is the scheme's own. Any other is refused: a name that somebody
/// else's DNS points here would make its pages ours (DNS rebinding).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts(Arc<[String]>);

impl Hosts {
    /// A list of hosts.
    pub fn new(hosts: impl IntoIterator<Item = impl Into<String>>) -> Hosts {
        let lower = hosts
            .into_iter()
            .map(|host| host.into().to_ascii_lowercase());
        Hosts(lower.collect())
    }

    /// Whether a value of `Host` is on the list. Letter case is nothing; all else is exact.
    pub fn allows(&self, host: &str) -> bool {
        self.0
            .iter()
            .any(|allowed| host.eq_ignore_ascii_case(allowed))
    }

    /// The host that a request names, when it names one, and names no other.
    fn of<'a>(&self, request: &'a Request) -> Option<&'a str> {
        let mut headers = request.headers().get_all(header::HOST).iter();
        let (header, None) = (headers.next(), headers.next()) else {
            return None;
        };
        let header = match header {
            Some(value) => Some(value.to_str().ok()?),
            None => None,
        };
        // The target of a request through a proxy, or of HTTP/2, names the host too.
        let target = request.uri().authority().map(http::uri::Authority::as_str);
        let named = [header, target];
        let mut named = named.into_iter().flatten();
        named.all(|host| self.allows(host)).then_some(())?;
        header.or(target)
    }
}

/// Refuses, with 421, every request to a router that names another host.
pub fn guard_hosts<S: Clone + Send + Sync + 'static>(router: Router<S>, hosts: Hosts) -> Router<S> {
    router.layer(middleware::from_fn_with_state(hosts, guard))
}

pub(super) async fn guard(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    if hosts.of(&request).is_some() {
        return next.run(request).await;
    }
    let refusal = Refusal::new(
        StatusCode::MISDIRECTED_REQUEST,
        "host_refused",
        "this server does not answer to that host name",
        "use the address that `underpass console` prints, or add the name to the allowed hosts",
    );
    refusal.into_response()
}

/// Answers pages of our own hosts and of listed origins; browsers of any other are refused.
pub(super) async fn guard_origins(
    State(control): State<Arc<Control>>,
    request: Request,
    next: Next,
) -> Response {
    let origin = {
        let mut origins = request.headers().get_all(header::ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (None, _) => return next.run(request).await,
            (Some(origin), None) => origin.clone(),
            (Some(_), Some(_)) => return refuse_origin(),
        }
    };
    let Ok(text) = origin.to_str() else {
        return refuse_origin();
    };
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    if host.is_some_and(|host| control.config.hosts.allows(host)) {
        return next.run(request).await;
    }
    let listed = |allowed: &String| text.eq_ignore_ascii_case(allowed);
    if !control.config.origins.iter().any(listed) {
        return refuse_origin();
    }
    let is_preflight = request.method() == Method::OPTIONS;
    let mut response = if is_preflight {
        StatusCode::NO_CONTENT.into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    if is_preflight {
        for (name, value) in [
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, DELETE"),
            (
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                "authorization, content-type",
            ),
            (header::ACCESS_CONTROL_MAX_AGE, "600"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    response
}

fn refuse_origin() -> Response {
    let refusal = Refusal::new(
        StatusCode::FORBIDDEN,
        "origin_refused",
        "pages of that origin may not call this API",
        "open the console at its own address, or add the origin to the allowed origins",
    );
    refusal.into_response()
}

/// Nothing that the API says is stored, sniffed, framed or run.
pub(super) async fn protect(request: Request, next: Next) -> Response {
    const HEADERS: [(HeaderName, &str); 5] = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'",
        ),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The host that a request named; the guard has let it pass.
pub(super) fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST)?.to_str().ok()
}
