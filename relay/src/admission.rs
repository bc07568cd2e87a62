//! Who may open a session: host, origin, gateway and token, from the request's headers alone.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::SystemTime,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, StatusCode, header};
use wire::{CloseCode, subprotocol::Offered, wireguard::Mac1Key};

use crate::{config::RelayConfig, hosts::AllowedHosts, token::Verifier};

/// A gateway that is served.
pub(crate) struct Gateway {
    pub(crate) name: String,
    pub(crate) endpoint: SocketAddr,
    pub(crate) mac1: Mac1Key,
}

/// The rules of admission.
pub(crate) struct Admission {
    gateways: HashMap<String, Arc<Gateway>>,
    verifier: Verifier,
    origins: HashSet<String>,
    hosts: AllowedHosts,
    clock: fn() -> SystemTime,
    flyctl: Option<Arc<Gateway>>,
}

/// A session that may be opened.
pub(crate) struct Admitted {
    pub(crate) gateway: Arc<Gateway>,
    /// The id in the token; none without a token.
    pub(crate) token_id: Option<String>,
    /// The resume token that it comes with.
    pub(crate) resume: Option<String>,
    /// It speaks flyctl's byte stream.
    pub(crate) flyctl: bool,
}

/// A request that opens no session.
pub(crate) enum Refusal {
    /// Answered by HTTP, with the words of [`HttpRefusal`].
    Http(HttpRefusal),
    /// For a program: answered by HTTP with the status of the code.
    Status(CloseCode),
    /// For a page, which sees close codes but no HTTP status: upgraded, told, closed.
    Close(CloseCode),
}

/// Refusals that no WebSocket close can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpRefusal {
    Host,
    NotAnUpgrade,
    Version,
    Subprotocol,
}

impl Admission {
    pub(crate) fn new(config: &RelayConfig) -> Admission {
        let gateway = |(name, target): (&String, &crate::GatewayTarget)| {
            let gateway = Gateway {
                name: name.clone(),
                endpoint: target.endpoint,
                mac1: Mac1Key::new(&target.public_key),
            };
            (name.clone(), Arc::new(gateway))
        };
        let gateways: HashMap<_, _> = config.gateways.iter().map(gateway).collect();
        let of_flyctl = config.flyctl_gateway.as_ref();
        Admission {
            flyctl: of_flyctl.and_then(|name| gateways.get(name).cloned()),
            gateways,
            verifier: Verifier::new(config.token_keys.clone()),
            origins: config
                .allowed_origins
                .iter()
                .map(|it| it.to_ascii_lowercase())
                .collect(),
            hosts: AllowedHosts::new(&config.allowed_hosts),
            clock: config.clock,
        }
    }

    /// Judges a request for flyctl's stream; none when it is not one, or there is no gateway for it.
    /// flyctl names itself as its origin, by `wss:`; a page's origin is never that.
    pub(crate) fn judge_flyctl(&self, headers: &HeaderMap) -> Option<Result<Admitted, Refusal>> {
        let gateway = self.flyctl.as_ref()?;
        let is_upgrade = has_word(headers, &header::UPGRADE, "websocket");
        if !is_upgrade || headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
            return None;
        }
        let of_a_page = headers.get_all(header::ORIGIN).iter().any(|origin| {
            !origin
                .to_str()
                .is_ok_and(|origin| origin.starts_with("wss:") || origin.starts_with("ws:"))
        });
        Some(match self.judge_upgrade(headers) {
            Err(refusal) => Err(Refusal::Http(refusal)),
            Ok(()) if of_a_page => Err(Refusal::Status(CloseCode::OriginRefused)),
            Ok(()) => Ok(Admitted {
                gateway: gateway.clone(),
                token_id: None,
                resume: None,
                flyctl: true,
            }),
        })
    }

    /// Host, and the opening handshake of RFC 6455.
    fn judge_upgrade(&self, headers: &HeaderMap) -> Result<(), HttpRefusal> {
        // A request has one Host header; with none or two it is nobody's.
        if !only(headers, &header::HOST).is_some_and(|host| self.hosts.allows(host)) {
            return Err(HttpRefusal::Host);
        }
        if !has_word(headers, &header::CONNECTION, "upgrade")
            || !has_word(headers, &header::UPGRADE, "websocket")
            || !only(headers, &header::SEC_WEBSOCKET_KEY).is_some_and(is_key)
        {
            return Err(HttpRefusal::NotAnUpgrade);
        }
        if only(headers, &header::SEC_WEBSOCKET_VERSION) != Some("13") {
            return Err(HttpRefusal::Version);
        }
        Ok(())
    }

    /// Judges a request for the tunnel to `gateway`.
    pub(crate) fn judge(&self, gateway: &str, headers: &HeaderMap) -> Result<Admitted, Refusal> {
        self.judge_upgrade(headers).map_err(Refusal::Http)?;
        let protocols: Vec<&str> = headers
            .get_all(header::SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let offered = Offered::parse(&protocols.join(","));
        if !offered.v1 {
            return Err(Refusal::Http(HttpRefusal::Subprotocol));
        }

        let page = headers.contains_key(header::ORIGIN) || offered.bearer.is_some();
        let refuse = |code| {
            if page {
                Refusal::Close(code)
            } else {
                Refusal::Status(code)
            }
        };
        if headers.contains_key(header::ORIGIN)
            && !only(headers, &header::ORIGIN)
                .is_some_and(|origin| self.origins.contains(&origin.to_ascii_lowercase()))
        {
            return Err(refuse(CloseCode::OriginRefused));
        }
        let gateway = self
            .gateways
            .get(gateway)
            .ok_or_else(|| refuse(CloseCode::GatewayUnknown))?;
        let resume = offered.resume.clone();
        let token_id = match bearer(headers, offered) {
            None => None,
            Some(token) => {
                let claims = self
                    .verifier
                    .verify(&token, &gateway.name, (self.clock)())
                    .map_err(|refused| refuse(refused.close_code()))?;
                Some(claims.id)
            }
        };
        Ok(Admitted {
            gateway: gateway.clone(),
            token_id,
            resume,
            flyctl: false,
        })
    }
}

/// The rules of admission alone, without a relay: for checks of a configuration, and for fuzzing.
pub struct Rules(Admission);

impl Rules {
    /// The rules that a relay of this configuration has.
    pub fn new(config: &RelayConfig) -> Rules {
        Rules(Admission::new(config))
    }

    /// Whether a session to `gateway` may be opened, as far as the headers of its request say.
    pub fn admits(&self, gateway: &str, headers: &HeaderMap) -> bool {
        self.0.judge(gateway, headers).is_ok()
    }
}

impl Refusal {
    /// The same refusal for a request that [`Admission::judge`] would admit.
    pub(crate) fn for_request(code: CloseCode, headers: &HeaderMap) -> Refusal {
        // A client of flyctl's stream has an origin and no subprotocol.
        let page = headers.contains_key(header::ORIGIN)
            && headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL);
        if page {
            Refusal::Close(code)
        } else {
            Refusal::Status(code)
        }
    }
}

impl HttpRefusal {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            HttpRefusal::Host => StatusCode::MISDIRECTED_REQUEST,
            HttpRefusal::NotAnUpgrade | HttpRefusal::Version => StatusCode::UPGRADE_REQUIRED,
            HttpRefusal::Subprotocol => StatusCode::BAD_REQUEST,
        }
    }

    /// The stable code, what happened, and what to do.
    pub(crate) fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            HttpRefusal::Host => (
                "host_refused",
                "This server does not answer under that name.",
                "Use the address that the server announced.",
            ),
            HttpRefusal::NotAnUpgrade => (
                "upgrade_required",
                "A tunnel is a WebSocket, and this request is no WebSocket upgrade.",
                "Connect with a WebSocket client; look for a proxy that strips Upgrade headers.",
            ),
            HttpRefusal::Version => (
                "version_unsupported",
                "The WebSocket version is not 13.",
                "Update the client.",
            ),
            HttpRefusal::Subprotocol => (
                "subprotocol_missing",
                "The client does not offer the subprotocol underpass.v1.",
                "Offer underpass.v1 in Sec-WebSocket-Protocol, or update the client.",
            ),
        }
    }
}

/// The HTTP status that says the same as a close code.
pub(crate) fn status_of(code: CloseCode) -> StatusCode {
    match code {
        CloseCode::TokenInvalid | CloseCode::TokenExpired => StatusCode::UNAUTHORIZED,
        CloseCode::TokenWrongGateway | CloseCode::OriginRefused => StatusCode::FORBIDDEN,
        CloseCode::GatewayUnknown => StatusCode::NOT_FOUND,
        CloseCode::TooManyFromSource | CloseCode::TooManyOfToken => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The token: from the header, else from the subprotocols. A header that is no bearer token is an
/// empty one, which no verifier admits: a broken token is not an absent one.
fn bearer(headers: &HeaderMap, offered: Offered) -> Option<String> {
    if !headers.contains_key(header::AUTHORIZATION) {
        return offered.bearer;
    }
    let token = only(headers, &header::AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| token.trim().to_owned())
    });
    Some(token.unwrap_or_default())
}

/// Whether the text is the base64 of 16 bytes (RFC 6455, section 4.2.1).
fn is_key(text: &str) -> bool {
    STANDARD.decode(text).is_ok_and(|bytes| bytes.len() == 16)
}

/// The value of a header that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(first)
}

/// Whether one of the comma separated words of a header is `word`.
fn has_word(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(word))
}
