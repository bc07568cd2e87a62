//! What can go wrong between a program and the tunnel it asked for.

use std::{fmt, io, net::SocketAddr, time::Duration};

/// Why a carrier cannot do what it was asked. Each has a stable [`code`](CarrierError::code) for
/// programs, a sentence for people and a [`hint`](CarrierError::hint) of what to do now.
///
/// No variant holds a token or a key. Text that came from the other side is cleaned of control
/// characters and cut to a bounded length before it gets here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CarrierError {
    /// The URL of the relay cannot be used.
    #[error("the relay URL cannot be used: {reason}")]
    RelayUrl {
        /// What is wrong with it.
        reason: String,
    },
    /// The name of the relay has no address.
    #[error("the relay's name {host} cannot be resolved: {reason}")]
    RelayName {
        /// The name that was looked up.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// Nothing accepts TCP connections at the relay's address.
    #[error("{address} refused the TCP connection")]
    RelayRefused {
        /// The address that was tried last.
        address: SocketAddr,
    },
    /// The relay's address cannot be reached by TCP.
    #[error("{address} cannot be reached by TCP: {reason}")]
    RelayUnreachable {
        /// The address that was tried last.
        address: SocketAddr,
        /// What the operating system said.
        reason: String,
    },
    /// The HTTP proxy of the environment cannot be used.
    #[error("HTTPS_PROXY cannot be used: {reason}")]
    ProxyUnusable {
        /// What is wrong with it.
        reason: String,
    },
    /// The HTTP proxy opens no way to the relay.
    #[error("the HTTP proxy {proxy} opens no way to the relay: {message}{}", if *status == 0 { String::new() } else { format!(" ({status})") })]
    ProxyRefused {
        /// Its host and port.
        proxy: String,
        /// HTTP status, 0 where it gave none.
        status: u16,
        /// Its own words, or what it did.
        message: String,
    },
    /// A step on the way to the relay took too long.
    #[error("{step} took longer than {} s", limit.as_secs())]
    RelayTimedOut {
        /// The step that did not end.
        step: Step,
        /// How long it was given.
        limit: Duration,
    },
    /// The relay's TLS certificate is not one that this client trusts.
    #[error(
        "the TLS certificate of {host} is not trusted: {reason}; its fingerprint is {fingerprint}"
    )]
    TlsUntrusted {
        /// The host that presented it.
        host: String,
        /// What the verifier said.
        reason: String,
        /// SHA-256 of the certificate, as [`Trust::fingerprint`](crate::Trust::fingerprint) reads it.
        fingerprint: String,
        /// What to do in this case.
        hint: &'static str,
    },
    /// TLS could not be agreed on.
    #[error("the TLS handshake with {host} failed: {reason}")]
    TlsFailed {
        /// The host on the other side.
        host: String,
        /// What the TLS library said.
        reason: String,
    },
    /// The trusted roots or the pinned fingerprint cannot be used.
    #[error("the TLS trust settings cannot be used: {reason}")]
    TlsSettings {
        /// What is wrong with them.
        reason: String,
    },
    /// The relay knows the session's token and refuses it.
    #[error("the relay refused the token: {message}")]
    TokenRefused {
        /// The relay's own code, when it gave one.
        code: String,
        /// The relay's own sentence.
        message: String,
        /// The relay's own hint.
        hint: String,
    },
    /// The server answered HTTP, but not by opening a WebSocket.
    #[error("the relay refused the WebSocket with status {status}: {message}")]
    UpgradeRefused {
        /// HTTP status.
        status: u16,
        /// The relay's own code; `upgrade_refused` when it gave none.
        code: String,
        /// The relay's own sentence, or the beginning of what came instead.
        message: String,
        /// The relay's own hint, empty when it gave none.
        hint: String,
    },
    /// The server does not speak the relay's protocol.
    #[error("the server at the relay's address is no Underpass relay: {reason}")]
    NotARelay {
        /// How that showed.
        reason: String,
    },
    /// The relay closed the WebSocket and said why.
    #[error("the relay closed the session: {message}")]
    RelayClosed {
        /// WebSocket close code.
        status: u16,
        /// The stable reason of that close code.
        code: String,
        /// The sentence of that close code.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// The WebSocket broke.
    #[error("the connection to the relay was lost: {reason}")]
    RelayLost {
        /// How it broke.
        reason: String,
    },
    /// The local socket cannot be made or used.
    #[error("the local socket failed: {reason}")]
    Socket {
        /// What the operating system said.
        reason: String,
    },
    /// The gateway answered no WireGuard handshake in time.
    #[error("the gateway did not answer the WireGuard handshake over {transport}{detail}")]
    HandshakeNoAnswer {
        /// `UDP`, `WebSocket`, or `UDP and WebSocket`.
        transport: &'static str,
        /// What else is known, beginning with a separator; empty when nothing is.
        detail: String,
    },
    /// A connection inside the tunnel could not be opened, or a ping got no answer.
    #[error("{message}")]
    Inside {
        /// Stable code of the failure, such as `refused` or `timed_out`.
        code: &'static str,
        /// The sentence of that failure.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// Too many requests wait for this carrier.
    #[error("the carrier has too many requests waiting")]
    Busy,
    /// The carrier's task has ended.
    #[error("the carrier has stopped")]
    Stopped,
}

/// A step on the way to an open WebSocket; each has a time limit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Looking up the relay's name.
    Dns,
    /// Opening the TCP connection.
    Tcp,
    /// Asking the HTTP proxy for a way.
    Proxy,
    /// Agreeing on TLS.
    Tls,
    /// Asking for the WebSocket.
    Upgrade,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Dns => "looking up the relay's name",
            Step::Tcp => "connecting to the relay by TCP",
            Step::Proxy => "asking the HTTP proxy for a way to the relay",
            Step::Tls => "the TLS handshake with the relay",
            Step::Upgrade => "opening the WebSocket",
        })
    }
}

impl CarrierError {
    /// The stable name of this failure.
    pub fn code(&self) -> &str {
        match self {
            CarrierError::RelayUrl { .. } => "relay_url_invalid",
            CarrierError::RelayName { .. } => "relay_name_unknown",
            CarrierError::RelayRefused { .. } => "relay_refused",
            CarrierError::RelayUnreachable { .. } => "relay_unreachable",
            CarrierError::RelayTimedOut { step, .. } => match step {
                Step::Dns => "relay_dns_timed_out",
                Step::Tcp => "relay_tcp_timed_out",
                Step::Proxy => "proxy_timed_out",
                Step::Tls => "relay_tls_timed_out",
                Step::Upgrade => "relay_upgrade_timed_out",
            },
            CarrierError::ProxyUnusable { .. } => "proxy_unusable",
            CarrierError::ProxyRefused { status: 407, .. } => "proxy_login",
            CarrierError::ProxyRefused { .. } => "proxy_refused",
            CarrierError::TlsUntrusted { .. } => "tls_untrusted",
            CarrierError::TlsFailed { .. } => "tls_failed",
            CarrierError::TlsSettings { .. } => "tls_settings_invalid",
            CarrierError::TokenRefused { code, .. }
            | CarrierError::UpgradeRefused { code, .. }
            | CarrierError::RelayClosed { code, .. } => code,
            CarrierError::NotARelay { .. } => "not_a_relay",
            CarrierError::RelayLost { .. } => "relay_lost",
            CarrierError::Socket { .. } => "socket_failed",
            CarrierError::HandshakeNoAnswer { .. } => "handshake_no_answer",
            CarrierError::Inside { code, .. } => code,
            CarrierError::Busy => "busy",
            CarrierError::Stopped => "stopped",
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> &str {
        match self {
            CarrierError::RelayUrl { .. } => {
                "give a URL like wss://relay.example:443/v1/tunnel/NAME"
            }
            CarrierError::RelayName { .. } => {
                "check the relay's name and that this machine's DNS works"
            }
            CarrierError::RelayRefused { .. } => {
                "check that the relay runs and that the port in its URL is right"
            }
            CarrierError::RelayUnreachable { .. } => {
                "check this machine's network; a firewall may block the relay's address"
            }
            CarrierError::RelayTimedOut {
                step: Step::Dns, ..
            } => "check that this machine's DNS works",
            CarrierError::RelayTimedOut {
                step: Step::Tcp, ..
            } => "check this machine's network; a firewall may drop packets to the relay",
            CarrierError::RelayTimedOut { .. } => {
                "something accepts connections for the relay and does not answer: check the relay, \
                 and any proxy in between"
            }
            CarrierError::ProxyUnusable { .. } => {
                "give a URL like http://proxy.example:3128, or unset HTTPS_PROXY"
            }
            CarrierError::ProxyRefused { status: 407, .. } => {
                "give the proxy's login: HTTPS_PROXY=http://name:password@proxy.example:3128"
            }
            CarrierError::ProxyRefused { status: 0, .. } => {
                "check HTTPS_PROXY: it may name a proxy of another network; unset it where none is \
                 needed"
            }
            CarrierError::ProxyRefused {
                status: 300..400, ..
            } => "this network may want a login: open a browser, and try again after it",
            CarrierError::ProxyRefused { .. } => {
                "ask whoever runs the proxy to allow the relay's host, or name the relay in NO_PROXY"
            }
            CarrierError::TlsUntrusted { hint, .. } => hint,
            CarrierError::TlsFailed { .. } => {
                "something in between may answer for the relay, such as a login page: open a browser; \
                 or the relay's URL names a port without TLS"
            }
            CarrierError::TlsSettings { .. } => {
                "give a PEM file with at least one certificate, or a SHA-256 fingerprint of 64 hex \
                 digits"
            }
            CarrierError::TokenRefused { hint, .. } if hint.is_empty() => {
                "log in again to get a fresh token"
            }
            CarrierError::UpgradeRefused { hint, .. } if hint.is_empty() => {
                "check that the URL is that of a relay; a captive portal or proxy may have answered"
            }
            CarrierError::RelayClosed { hint, .. } if hint.is_empty() => {
                "try again; if it happens again, ask whoever runs the relay"
            }
            CarrierError::TokenRefused { hint, .. }
            | CarrierError::UpgradeRefused { hint, .. }
            | CarrierError::RelayClosed { hint, .. }
            | CarrierError::Inside { hint, .. } => hint,
            CarrierError::NotARelay { .. } => {
                "check the relay's URL; a captive portal or proxy may have answered"
            }
            CarrierError::RelayLost { .. } => {
                "the carrier reconnects by itself; check this machine's network if it cannot"
            }
            CarrierError::Socket { .. } => "check this machine's limits and network interfaces",
            CarrierError::HandshakeNoAnswer {
                transport: "UDP", ..
            } => {
                "a firewall may drop UDP: try the WebSocket relay; if that fails too, the gateway \
                 is down or does not know this key"
            }
            CarrierError::HandshakeNoAnswer {
                transport: "UDP and WebSocket",
                ..
            } => {
                "UDP may be blocked and the relay out of reach, or the gateway behind both is down: \
                 `underpass doctor` says which"
            }
            CarrierError::HandshakeNoAnswer { .. } => {
                "the relay works but the gateway behind it is down or does not know this key: log \
                 in again, or ask whoever runs the gateway"
            }
            CarrierError::Busy => "wait for some of them to end",
            CarrierError::Stopped => "start a new one",
        }
    }

    /// Whether trying again with the same settings cannot help.
    pub fn is_permanent(&self) -> bool {
        match self {
            CarrierError::RelayUrl { .. }
            | CarrierError::ProxyUnusable { .. }
            | CarrierError::TlsUntrusted { .. }
            | CarrierError::TlsSettings { .. }
            | CarrierError::TokenRefused { .. }
            | CarrierError::NotARelay { .. } => true,
            CarrierError::UpgradeRefused { status, .. } => {
                (400..500).contains(status) && *status != 429
            }
            _ => false,
        }
    }

    /// The message of an error of the tunnel may carry its hint after `; hint: `.
    pub(crate) fn inside(code: &'static str, message: impl fmt::Display, hint: &str) -> Self {
        let whole = message.to_string();
        let (message, own) = whole.split_once("; hint: ").unwrap_or((&whole, ""));
        let hint = if hint.is_empty() { own } else { hint };
        CarrierError::Inside {
            code,
            message: message.to_owned(),
            hint: hint.to_owned(),
        }
    }

    fn kind(&self) -> io::ErrorKind {
        match self {
            CarrierError::RelayRefused { .. } => io::ErrorKind::ConnectionRefused,
            CarrierError::RelayTimedOut { .. } | CarrierError::HandshakeNoAnswer { .. } => {
                io::ErrorKind::TimedOut
            }
            CarrierError::RelayName { .. } | CarrierError::RelayUnreachable { .. } => {
                io::ErrorKind::HostUnreachable
            }
            CarrierError::TokenRefused { .. } | CarrierError::TlsUntrusted { .. } => {
                io::ErrorKind::PermissionDenied
            }
            CarrierError::Inside { code, .. } => match *code {
                "refused" => io::ErrorKind::ConnectionRefused,
                "reset" => io::ErrorKind::ConnectionReset,
                "timed_out" | "no_answer" => io::ErrorKind::TimedOut,
                "unreachable" => io::ErrorKind::HostUnreachable,
                "nx_domain" | "no_data" => io::ErrorKind::NotFound,
                _ => io::ErrorKind::Other,
            },
            CarrierError::Stopped => io::ErrorKind::NotConnected,
            _ => io::ErrorKind::Other,
        }
    }
}

impl From<CarrierError> for io::Error {
    fn from(error: CarrierError) -> Self {
        io::Error::new(error.kind(), error)
    }
}

/// Text from the other side, fit to be shown: one line, no control characters, bounded.
pub(crate) fn clean(text: &str) -> String {
    const LIMIT: usize = 300;
    let mut out = String::with_capacity(text.len().min(LIMIT));
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        for c in word
            .chars()
            .filter(|c| !c.is_control() && !is_invisible(*c))
        {
            if out.len() >= LIMIT {
                out.push('…');
                return out;
            }
            out.push(c);
        }
    }
    out
}

/// A code from the other side, or `otherwise` when it is not shaped like one.
pub(crate) fn clean_code(code: &str, otherwise: &str) -> String {
    let shaped = !code.is_empty()
        && code.len() <= 48
        && code
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if shaped { code } else { otherwise }.to_owned()
}

/// Marks that reorder or hide text on a terminal.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_the_other_side_cannot_drive_a_terminal() {
        assert_eq!(clean("a\x1b[31mred\x07\n\n  b\u{202e}c"), "a[31mred bc");
        assert!(clean(&"x".repeat(10_000)).len() < 310);
        assert_eq!(clean_code("token_expired", "other"), "token_expired");
        assert_eq!(clean_code("Token expired\n", "other"), "other");
        assert_eq!(clean_code("", "other"), "other");
    }

    #[test]
    fn io_errors_keep_the_kind_and_the_sentence() {
        let error: io::Error =
            CarrierError::inside("refused", "nothing listens", "start it").into();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(error.to_string(), "nothing listens");
    }
}
