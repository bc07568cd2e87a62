//! The HTTP proxy that the environment names, and the tunnel through it (RFC 9110, CONNECT).

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use url::{Host, Url};

use crate::{CarrierError, error::clean};

/// A proxy on the way to the relay.
#[derive(PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(super) host: Host<String>,
    pub(super) port: u16,
    /// `name:password` in base64.
    login: Option<String>,
}

/// The login is a secret and is not shown.
impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// An answer's head is read up to here.
const MAX_HEAD: usize = 8 * 1024;

impl Proxy {
    /// What `HTTPS_PROXY` and `NO_PROXY` say about this host, in either case of letters.
    pub(crate) fn of_environment(host: &Host<String>) -> Result<Option<Proxy>, CarrierError> {
        let value = |name: &str| {
            let value = std::env::var(name).or_else(|_| std::env::var(name.to_lowercase()));
            value.unwrap_or_default()
        };
        Proxy::choose(&value("HTTPS_PROXY"), &value("NO_PROXY"), host)
    }

    /// The proxy for this host, if there is one. This machine is reached without.
    fn choose(
        proxy: &str,
        exceptions: &str,
        host: &Host<String>,
    ) -> Result<Option<Proxy>, CarrierError> {
        let proxy = proxy.trim();
        if proxy.is_empty() || super::dial::is_loopback(host) || is_excepted(exceptions, host) {
            return Ok(None);
        }
        let unusable = |reason: &str| CarrierError::ProxyUnusable {
            reason: reason.to_owned(),
        };
        let whole = if proxy.contains("://") {
            proxy.to_owned()
        } else {
            format!("http://{proxy}")
        };
        let url = Url::parse(&whole).map_err(|error| unusable(&error.to_string()))?;
        if url.scheme() != "http" {
            return Err(unusable("its scheme is not http"));
        }
        let host = url.host().ok_or_else(|| unusable("it names no host"))?;
        let password = url.password().unwrap_or_default();
        let login = (!url.username().is_empty() || !password.is_empty()).then(|| {
            let mut login = decoded(url.username());
            login.push(b':');
            login.extend(decoded(password));
            STANDARD.encode(login)
        });
        Ok(Some(Proxy {
            host: host.to_owned(),
            port: url.port().unwrap_or(80),
            login,
        }))
    }

    /// What failed on the way to the proxy itself.
    pub(super) fn unreachable(&self, error: &CarrierError) -> CarrierError {
        self.silent(match error {
            CarrierError::RelayName { reason, .. } => {
                format!("its name cannot be resolved: {reason}")
            }
            CarrierError::RelayRefused { .. } => "it refused the TCP connection".to_owned(),
            CarrierError::RelayUnreachable { reason, .. } => {
                format!("it cannot be reached by TCP: {reason}")
            }
            CarrierError::RelayTimedOut { limit, .. } => {
                format!("it did not answer within {} s", limit.as_secs())
            }
            other => other.to_string(),
        })
    }

    /// It gave no HTTP answer.
    fn silent(&self, reason: String) -> CarrierError {
        CarrierError::ProxyRefused {
            proxy: self.to_string(),
            status: 0,
            message: reason,
        }
    }

    /// Asks for a way to `host:port`; what follows on the stream is between us and them.
    pub(super) async fn pass(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        host: &Host<String>,
        port: u16,
    ) -> Result<(), CarrierError> {
        let login = self.login.as_ref();
        let login = login.map(|login| format!("Proxy-Authorization: Basic {login}\r\n"));
        let request = format!(
            "CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: underpass/{}\r\n{}\r\n",
            env!("CARGO_PKG_VERSION"),
            login.unwrap_or_default()
        );
        let broken = |reason: String| self.silent(reason);
        stream
            .write_all(request.as_bytes())
            .await
            .map_err(|error| broken(error.to_string()))?;
        // Byte by byte: what comes after the head is the relay's.
        let mut head = Vec::with_capacity(256);
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= MAX_HEAD {
                return Err(broken("its answer is too long".to_owned()));
            }
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return Err(broken("it hung up".to_owned())),
            }
        }
        let text = String::from_utf8_lossy(&head);
        let line = text.lines().next().unwrap_or_default();
        let mut words = line.splitn(3, ' ');
        let version = words.next().unwrap_or_default();
        let status = words.next().and_then(|status| status.parse::<u16>().ok());
        match status.filter(|_| version.starts_with("HTTP/1.")) {
            Some(200..300) => Ok(()),
            Some(status) => Err(CarrierError::ProxyRefused {
                proxy: self.to_string(),
                status,
                message: clean(words.next().unwrap_or_default()),
            }),
            None => Err(broken("it does not answer in HTTP".to_owned())),
        }
    }
}

/// Whether `NO_PROXY` names the host: itself, a domain that it is in, or `*`.
fn is_excepted(exceptions: &str, host: &Host<String>) -> bool {
    let host = host.to_string().to_ascii_lowercase();
    let bare = host.trim_matches(['[', ']']);
    exceptions.split([',', ' ']).any(|exception| {
        let exception = exception.trim().to_ascii_lowercase();
        let exception = exception.trim_start_matches("*.").trim_start_matches('.');
        let inside = || {
            bare.strip_suffix(exception)
                .is_some_and(|rest| rest.ends_with('.'))
        };
        exception == "*" || (!exception.is_empty() && (bare == exception || inside()))
    })
}

/// Undoes percent-encoding; what is none stays as it is.
fn decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(value) if byte == b'%' => {
                out.push(value);
                rest = &after[2..];
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host<String> {
        Host::parse(text).unwrap()
    }

    fn choose(proxy: &str, exceptions: &str, to: &str) -> Option<String> {
        let chosen = Proxy::choose(proxy, exceptions, &host(to)).unwrap();
        chosen.map(|proxy| proxy.to_string())
    }

    #[test]
    fn the_environment_names_a_proxy_and_its_exceptions() {
        let relay = "relay.example.com";
        assert_eq!(choose("", "", relay), None);
        assert_eq!(
            choose("http://p:3128/", "", relay).as_deref(),
            Some("p:3128")
        );
        assert_eq!(choose("p:3128", "", relay).as_deref(), Some("p:3128"));
        assert_eq!(choose("http://u:s@p", "", relay).as_deref(), Some("p:80"));
        for this_machine in ["localhost", "127.0.0.1", "[::1]"] {
            assert_eq!(choose("p:3128", "", this_machine), None, "{this_machine}");
        }
        for exceptions in [
            "*",
            "example.com",
            ".example.com",
            "a, relay.example.com",
            "*.EXAMPLE.com",
        ] {
            assert_eq!(choose("p:3128", exceptions, relay), None, "{exceptions}");
        }
        for others in ["ample.com", "relay", "10.0.0.1", ","] {
            assert!(choose("p:3128", others, relay).is_some(), "{others}");
        }
        for bad in ["socks5://p:1", "https://p:1", "http://", "http://p:99999"] {
            let error = Proxy::choose(bad, "", &host(relay)).unwrap_err();
            assert_eq!(error.code(), "proxy_unusable", "{bad}");
        }
    }

    /// What the proxy got, and what became of it.
    async fn pass(proxy: &str, answer: &[u8]) -> (String, Result<(), CarrierError>, Vec<u8>) {
        let relay = host("relay.example.com");
        let proxy = Proxy::choose(proxy, "", &relay).unwrap().unwrap();
        assert!(!format!("{proxy:?}").contains("c2V"), "a secret is shown");
        let (mut ours, mut theirs) = tokio::io::duplex(64 * 1024);
        theirs.write_all(answer).await.unwrap();
        theirs.shutdown().await.unwrap();
        let result = proxy.pass(&mut ours, &relay, 443).await;
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).await.unwrap();
        drop(ours);
        let mut got = String::new();
        theirs.read_to_string(&mut got).await.unwrap();
        (got, result, rest)
    }

    #[tokio::test]
    async fn what_follows_the_answer_belongs_to_the_relay() {
        let answer = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nhello";
        let (got, result, rest) = pass("http://sec%40ret:pass@p:1", answer).await;
        assert_eq!(result, Ok(()));
        assert_eq!(rest, b"hello");
        assert!(got.starts_with(
            "CONNECT relay.example.com:443 HTTP/1.1\r\nHost: relay.example.com:443\r\n"
        ));
        let login = STANDARD.encode("sec@ret:pass");
        assert!(
            got.contains(&format!("\r\nProxy-Authorization: Basic {login}\r\n")),
            "{got}"
        );
        let (got, ..) = pass("p:1", answer).await;
        assert!(!got.contains("Authorization"), "{got}");
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_named() {
        let long = [b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &[b'y'; 10_000]].concat();
        for (answer, code) in [
            (
                &b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..],
                "proxy_login",
            ),
            (b"HTTP/1.0 403 Forbidden\x1b[31m\r\n\r\n", "proxy_refused"),
            (b"SSH-2.0-x\r\n\r\n", "proxy_refused"),
            (b"HTTP/1.1 200", "proxy_refused"),
            (b"", "proxy_refused"),
            (&long, "proxy_refused"),
        ] {
            let (_, result, _) = pass("p:1", answer).await;
            let error = result.unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains("p:1") && !error.to_string().contains('\x1b'));
        }
    }
}
