//! What commands and the agent say to each other.
//!
//! ```text
//! both ways    "undrpas" VERSION, then frames: u32 big-endian length, JSON
//! open         the connection stays open; the tunnel is kept for as long
//! connect      after the answer, the connection is the stream
//! others       one question, one answer, the end
//! ```
//!
//! Whoever hears another version says its own and hangs up: what follows a version is read by those
//! who speak it, and by nobody else.

use std::{io, net::Ipv6Addr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tunnel::{Answer as Records, Class, RecordKind};
use zeroize::Zeroizing;

use crate::client::network::{Failure, Way};

/// Changes whenever a request or an answer does.
pub(crate) const VERSION: u8 = 1;

const MAGIC: &[u8; 7] = b"undrpas";

/// An answer of a name server holds 64 KiB at most, and a certificate is nothing near that.
const MAX_FRAME: usize = 256 * 1024;

/// A question.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Who is there?
    Ping {},
    /// How do the tunnels fare?
    Status {},
    /// End, once what is written is delivered.
    Stop {},
    /// Keep this tunnel for as long as this connection is open.
    Open {
        wanted: Wanted,
        surroundings: Surroundings,
    },
    /// Wait until the gateway has answered.
    Ready { tunnel: u64 },
    /// A certificate for the tunnel's key and address.
    Certificate { tunnel: u64, user: String },
    /// Sign with the tunnel's key; the bytes are in base64, and so is the signature.
    Sign { tunnel: u64, data: String },
    /// Ask the name server.
    Lookup {
        tunnel: u64,
        name: String,
        kind: Kind,
    },
    /// Ping a host.
    Echo { tunnel: u64, to: Ipv6Addr },
    /// Connect to a host.
    Connect {
        tunnel: u64,
        host: String,
        port: u16,
        class: StreamClass,
    },
    /// How did this stream end?
    Ended { stream: u64 },
}

/// The tunnel that a command wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Wanted {
    pub(crate) system: SystemId,
    /// None where there is only one.
    pub(crate) org: Option<String>,
    pub(crate) way: Way,
}

/// Which system, and which run of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct SystemId {
    /// Of one that runs on this machine.
    pub(crate) data_dir: Option<PathBuf>,
    /// Of one that somebody logged in to.
    pub(crate) url: Option<String>,
    pub(crate) run: String,
}

impl SystemId {
    /// Where it is, as a person knows it.
    pub(crate) fn place(&self) -> String {
        match (&self.data_dir, &self.url) {
            (Some(dir), _) => dir.display().to_string(),
            (None, url) => url.clone().unwrap_or_default(),
        }
    }
}

/// What a process makes connections by beside its arguments. Where a command's differs from the
/// agent's, the agent's tunnel would go another way.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Surroundings {
    /// The network namespace.
    network: Option<u64>,
    variables: Vec<Option<String>>,
}

/// A proxy's login may be among the variables.
impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings")
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

/// Read by the carrier and its TLS, and to find the session of a login.
const VARIABLES: [&str; 8] = [
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "UNDERPASS_CONFIG",
    "XDG_CONFIG_HOME",
];

impl Surroundings {
    /// Those of this process.
    pub(crate) fn here() -> Surroundings {
        use std::os::unix::fs::MetadataExt;
        let network = std::fs::metadata("/proc/self/ns/net");
        Surroundings {
            network: network.ok().map(|meta| meta.ino()),
            variables: VARIABLES.map(|name| std::env::var(name).ok()).to_vec(),
        }
    }
}

/// A kind of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Aaaa,
    Txt,
}

impl From<RecordKind> for Kind {
    fn from(kind: RecordKind) -> Kind {
        match kind {
            RecordKind::Aaaa => Kind::Aaaa,
            RecordKind::Txt => Kind::Txt,
        }
    }
}

impl From<Kind> for RecordKind {
    fn from(kind: Kind) -> RecordKind {
        match kind {
            Kind::Aaaa => RecordKind::Aaaa,
            Kind::Txt => RecordKind::Txt,
        }
    }
}

/// The windows of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StreamClass {
    Interactive,
    Bulk,
}

impl From<Class> for StreamClass {
    fn from(class: Class) -> StreamClass {
        match class {
            Class::Interactive => StreamClass::Interactive,
            Class::Bulk => StreamClass::Bulk,
        }
    }
}

impl From<StreamClass> for Class {
    fn from(class: StreamClass) -> Class {
        match class {
            StreamClass::Interactive => Class::Interactive,
            StreamClass::Bulk => Class::Bulk,
        }
    }
}

/// The answer to [`Request::Ping`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Pong {
    pub(crate) pid: u32,
    /// Of the program.
    pub(crate) version: String,
}

/// The answer to [`Request::Open`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Opened {
    pub(crate) tunnel: u64,
    pub(crate) org: String,
    pub(crate) host_cas: Vec<String>,
}

/// The answer to [`Request::Ready`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) micros: u64,
    pub(crate) transport: String,
}

/// The answer to [`Request::Lookup`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Found {
    Aaaa(Vec<Ipv6Addr>),
    Txt(Vec<String>),
}

impl From<Records> for Found {
    fn from(records: Records) -> Found {
        match records {
            Records::Aaaa(addresses) => Found::Aaaa(addresses),
            Records::Txt(texts) => Found::Txt(texts),
        }
    }
}

impl From<Found> for Records {
    fn from(found: Found) -> Records {
        match found {
            Found::Aaaa(addresses) => Records::Aaaa(addresses),
            Found::Txt(texts) => Records::Txt(texts),
        }
    }
}

/// The answer to [`Request::Connect`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Connected {
    /// For [`Request::Ended`].
    pub(crate) stream: u64,
    pub(crate) transport: String,
}

/// The answer to [`Request::Status`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) pid: u32,
    pub(crate) version: String,
    /// Seconds since it started.
    pub(crate) uptime: u64,
    /// Seconds without use after which it ends.
    pub(crate) idle_limit: u64,
    pub(crate) tunnels: Vec<TunnelStatus>,
}

/// One tunnel.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TunnelStatus {
    pub(crate) org: String,
    /// Where the system is.
    pub(crate) system: String,
    pub(crate) address: Ipv6Addr,
    /// `UDP` or `WebSocket`.
    pub(crate) transport: String,
    /// Round trip of the last handshake, where a session stands.
    pub(crate) rtt_micros: Option<u64>,
    /// Commands and streams that use it.
    pub(crate) uses: usize,
    /// Seconds since the last of them, where there is none.
    pub(crate) idle: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
}

/// What comes back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer<T> {
    Ok(T),
    Error(Failure),
}

/// Why there is no conversation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolError {
    /// The other side is of another version.
    #[error("it speaks version {0} of the agent's protocol, this program version {VERSION}")]
    Version(u8),
    /// The other side is no agent and none of its clients.
    #[error("it does not speak the agent's protocol")]
    Strange,
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Sends a version and a frame together.
pub(crate) async fn send(
    to: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> Result<(), ProtocolError> {
    let body = Zeroizing::new(serde_json::to_vec(message).map_err(|_| ProtocolError::Strange)?);
    let length = u32::try_from(body.len()).map_err(|_| ProtocolError::Strange)?;
    if body.len() > MAX_FRAME {
        return Err(ProtocolError::Strange);
    }
    let mut frame = Zeroizing::new(Vec::with_capacity(12 + body.len()));
    frame.extend_from_slice(MAGIC);
    frame.push(VERSION);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&body);
    to.write_all(&frame).await?;
    Ok(())
}

/// Takes a version and a frame, and not a byte more.
pub(crate) async fn receive<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> Result<T, ProtocolError> {
    let mut head = [0; 8];
    from.read_exact(&mut head).await?;
    let [magic @ .., version] = head;
    if magic != *MAGIC {
        return Err(ProtocolError::Strange);
    }
    if version != VERSION {
        return Err(ProtocolError::Version(version));
    }
    let length = from.read_u32().await?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MAX_FRAME {
        return Err(ProtocolError::Strange);
    }
    let mut body = Zeroizing::new(vec![0; length]);
    from.read_exact(&mut body).await?;
    serde_json::from_slice(&body).map_err(|_| ProtocolError::Strange)
}

/// Says which version is spoken here, to one who speaks another.
pub(crate) async fn send_version(to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut head = MAGIC.to_vec();
    head.push(VERSION);
    to.write_all(&head).await
}

/// A duration for a frame.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn hear(bytes: &[u8]) -> Result<Request, ProtocolError> {
        receive(&mut &*bytes).await
    }

    #[tokio::test]
    async fn a_frame_arrives_as_it_was_and_what_follows_stays() {
        let (mut ours, mut theirs) = tokio::io::duplex(4096);
        let request = Request::Connect {
            tunnel: 7,
            host: "web.internal".to_owned(),
            port: 22,
            class: StreamClass::Bulk,
        };
        send(&mut ours, &request).await.unwrap();
        ours.write_all(b"stream").await.unwrap();
        drop(ours);
        let heard: Request = receive(&mut theirs).await.unwrap();
        assert_eq!(format!("{heard:?}"), format!("{request:?}"));
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"stream");
    }

    #[tokio::test]
    async fn nothing_else_is_taken_for_a_frame() {
        let frame = |version: u8, length: u32, body: &[u8]| {
            let mut frame = MAGIC.to_vec();
            frame.push(version);
            frame.extend_from_slice(&length.to_be_bytes());
            frame.extend_from_slice(body);
            frame
        };
        let ping = br#"{"do":"ping"}"#;
        hear(&frame(VERSION, 13, ping)).await.unwrap();
        // Whatever another version says after its number, it is not read.
        let other = hear(&frame(VERSION + 1, u32::MAX, b"")).await;
        assert!(matches!(other, Err(ProtocolError::Version(2))), "{other:?}");
        for strange in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"SSH-2.0-OpenSSH_9.9\r\n",
            &frame(VERSION, u32::MAX, b""),
            &frame(VERSION, 4, b"null"),
            &frame(VERSION, 12, br#"{"do":"dig"}"#),
            &frame(VERSION, 19, br#"{"do":"ping","x":1}"#),
        ] {
            let heard = hear(strange).await;
            assert!(matches!(heard, Err(ProtocolError::Strange)), "{heard:?}");
        }
        for cut in [&b""[..], b"undrp", &frame(VERSION, 14, ping)] {
            let heard = hear(cut).await;
            assert!(matches!(heard, Err(ProtocolError::Io(_))), "{heard:?}");
        }
    }
}
