//! The client session, over any byte stream.
//!
//! No socket is opened and no clock is read here: stream and clock are arguments. On
//! `wasm32-unknown-unknown` there is no rekey by time, no keepalive and no time-out; who carries
//! the stream notices a dead peer.
//!
//! What arrives on a channel waits in a bounded queue. A reader that stops reading stops the whole
//! session at the stream, and so its other channels too: one that wants independent channels
//! reads all of them. What is sent waits for the window that the server grants.

mod auth;
mod channel;
mod error;
mod outbox;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use russh::client::{self, DisconnectReason};
use russh::keys::PublicKeyOrCertificate;
use ssh_key::{Certificate, PrivateKey, PublicKey};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

pub use self::auth::{Sign, SignFailed, SignFuture};
pub use self::channel::{Channel, ExitStatus, Output, ReadHalf, WriteHalf};
pub use self::error::SshError;
use self::outbox::Outbox;
use crate::certificate::fingerprint;
use crate::host::{Dialled, HostDenied, VerifiedHost, verify_host};
use crate::preferred;

/// Who logs in: a user certificate and what signs with its key.
pub struct Identity {
    /// The user certificate.
    pub certificate: Certificate,
    /// What signs with the certified key.
    pub signer: Signer,
}

/// What signs with the certified key.
pub enum Signer {
    /// The key itself.
    Local(Box<PrivateKey>),
    /// Something that keeps the key to itself.
    External(Box<dyn Sign>),
}

/// Which host is believed.
#[derive(Clone, Debug)]
pub enum HostPolicy {
    /// One that presents a certificate for what was dialled, signed by one of the authorities.
    Certificate {
        /// What was dialled.
        dialled: Dialled,
        /// The authorities trusted for hosts.
        authorities: Vec<PublicKey>,
    },
    /// One that has exactly this key; its certificate, where it has one, is not looked at.
    Key(Box<PublicKey>),
}

/// A terminal to allocate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pty {
    /// The value of `TERM`.
    pub term: String,
    /// Columns of text.
    pub cols: u32,
    /// Rows of text.
    pub rows: u32,
}

/// How the session behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many bytes of a channel may be on their way to here. The default is 2 MiB.
    pub window: u32,
    /// Ask the server whether it is there after this much silence, three times, and then give up.
    /// `None`, the default, never asks; it must be `None` on wasm.
    pub keepalive: Option<Duration>,
    /// Takes the channels that the server opens to the agent of this side. With it, shells and
    /// commands ask for forwarding, and fail where the server refuses; without it, the default,
    /// every such channel is refused. What finds no place in it is refused, too.
    pub agent: Option<mpsc::Sender<Channel>>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            window: 2 * 1024 * 1024,
            keepalive: None,
            agent: None,
        }
    }
}

/// A session that is logged in. Dropping it ends the connection and every channel.
pub struct Session {
    handle: client::Handle<Handler>,
    shared: Arc<Mutex<Shared>>,
    host: Option<VerifiedHost>,
    forwards_agent: bool,
}

/// Connects over the stream, believes the host or not, and logs in.
pub async fn connect<S>(
    stream: S,
    user: &str,
    identity: Identity,
    expect: HostPolicy,
    now: fn() -> SystemTime,
) -> Result<Session, SshError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    connect_with(stream, user, identity, expect, now, Options::default()).await
}

/// [`connect`], with options.
pub async fn connect_with<S>(
    stream: S,
    user: &str,
    identity: Identity,
    expect: HostPolicy,
    now: fn() -> SystemTime,
    options: Options,
) -> Result<Session, SshError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = client::Config {
        client_id: russh::SshId::Standard(
            concat!("SSH-2.0-underpass_", env!("CARGO_PKG_VERSION")).into(),
        ),
        window_size: options.window,
        channel_buffer_size: CHANNEL_QUEUE,
        preferred: preferred(),
        inactivity_timeout: None,
        keepalive_interval: options.keepalive,
        keepalive_max: 3,
        ..client::Config::default()
    };
    let shared = Arc::new(Mutex::new(Shared::default()));
    let forwards_agent = options.agent.is_some();
    let handler = Handler {
        expect,
        now,
        agent: options.agent,
        shared: Arc::clone(&shared),
    };
    let stream = Outbox::new(stream);
    let mut handle = match client::connect_stream(Arc::new(config), stream, handler).await {
        Ok(handle) => handle,
        Err(fault) => return Err(lock(&shared).failure(fault)),
    };

    let certificate = identity.certificate.clone();
    let accepted = match auth::authenticate(&mut handle, user, identity).await {
        Ok(accepted) => accepted,
        Err(error) => return Err(lock(&shared).ended().unwrap_or(error)),
    };
    if !accepted {
        let ended = lock(&shared).ended();
        return Err(ended.unwrap_or_else(|| auth::denied(&certificate, user, now())));
    }
    let host = lock(&shared).host.take();
    Ok(Session {
        handle,
        shared,
        host,
        forwards_agent,
    })
}

impl Session {
    /// The host, where it was believed by certificate.
    pub fn host(&self) -> Option<&VerifiedHost> {
        self.host.as_ref()
    }

    /// Opens the login shell on a terminal.
    pub async fn open_shell(&self, pty: &Pty, env: &[(&str, &str)]) -> Result<Channel, SshError> {
        let mut channel = self.open_program(env).await?;
        channel.request_pty(pty).await?;
        channel.request_shell().await?;
        Ok(channel)
    }

    /// Opens the login shell on pipes.
    pub async fn open_shell_on_pipes(&self, env: &[(&str, &str)]) -> Result<Channel, SshError> {
        let mut channel = self.open_program(env).await?;
        channel.request_shell().await?;
        Ok(channel)
    }

    /// Runs a command, on a terminal or on pipes.
    pub async fn exec(
        &self,
        command: &str,
        pty: Option<&Pty>,
        env: &[(&str, &str)],
    ) -> Result<Channel, SshError> {
        let mut channel = self.open_program(env).await?;
        if let Some(pty) = pty {
            channel.request_pty(pty).await?;
        }
        channel.request_exec(command).await?;
        Ok(channel)
    }

    /// Opens a subsystem, such as `sftp`.
    pub async fn subsystem(&self, name: &str) -> Result<Channel, SshError> {
        let mut channel = self.open().await?;
        channel.request_subsystem(name).await?;
        Ok(channel)
    }

    /// Connects from the host to an address that it can reach.
    pub async fn direct_tcpip(&self, to: IpAddr, port: u16) -> Result<Channel, SshError> {
        let channel = self
            .handle
            .channel_open_direct_tcpip(to.to_string(), port.into(), "::1", 0)
            .await;
        channel
            .map(|channel| Channel::new(channel, Arc::clone(&self.shared)))
            .map_err(|error| self.explain(error))
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Says goodbye to the server.
    pub async fn close(self) {
        // The server may be gone already, which is what is wanted.
        let _ = self
            .handle
            .disconnect(russh::Disconnect::ByApplication, "", "en")
            .await;
    }

    async fn open(&self) -> Result<Channel, SshError> {
        let channel = self.handle.channel_open_session().await;
        channel
            .map(|channel| Channel::new(channel, Arc::clone(&self.shared)))
            .map_err(|error| self.explain(error))
    }

    /// A channel for a program, with what a program finds.
    async fn open_program(&self, env: &[(&str, &str)]) -> Result<Channel, SshError> {
        let mut channel = self.open().await?;
        channel.set_env(env).await?;
        if self.forwards_agent {
            channel.request_agent().await?;
        }
        Ok(channel)
    }

    fn explain(&self, error: russh::Error) -> SshError {
        lock(&self.shared)
            .ended()
            .unwrap_or_else(|| SshError::from(error))
    }
}

/// What the connection's task leaves for whoever asks why it ended.
#[derive(Debug, Default)]
struct Shared {
    host: Option<VerifiedHost>,
    denied: Option<HostDenied>,
    ended: Option<SshError>,
}

impl Shared {
    fn failure(&mut self, fault: Fault) -> SshError {
        match self.denied.take() {
            Some(denied) => SshError::Host(denied),
            None => fault.0.into(),
        }
    }

    fn ended(&self) -> Option<SshError> {
        self.ended.clone()
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Handler {
    expect: HostPolicy,
    now: fn() -> SystemTime,
    agent: Option<mpsc::Sender<Channel>>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Fault(russh::Error);

impl From<russh::Error> for Fault {
    fn from(error: russh::Error) -> Fault {
        Fault(error)
    }
}

impl client::Handler for Handler {
    type Error = Fault;

    async fn check_server_key(
        &mut self,
        presented: &PublicKeyOrCertificate,
    ) -> Result<bool, Fault> {
        let verdict = match (&self.expect, presented.certificate()) {
            (
                HostPolicy::Certificate {
                    dialled,
                    authorities,
                },
                Some(certificate),
            ) => verify_host(certificate, dialled, (self.now)(), authorities).map(Some),
            (HostPolicy::Certificate { dialled, .. }, None) => {
                Err(HostDenied::CertificateMissing {
                    dialled: dialled.to_string(),
                    fingerprint: fingerprint(presented.public_key().key_data()),
                })
            }
            (HostPolicy::Key(key), _) => {
                let key_presented = presented.public_key();
                if key_presented.key_data() == key.key_data() {
                    Ok(None)
                } else {
                    let fingerprint = fingerprint(key_presented.key_data());
                    Err(HostDenied::KeyMismatch { fingerprint })
                }
            }
        };
        let mut shared = lock(&self.shared);
        match verdict {
            Ok(host) => {
                shared.host = host;
                Ok(true)
            }
            Err(denied) => {
                shared.denied = Some(denied);
                Ok(false)
            }
        }
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: russh::Channel<client::Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Fault> {
        refuse(reply).await
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: russh::Channel<client::Msg>,
        _: &str,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Fault> {
        refuse(reply).await
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: russh::Channel<client::Msg>,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Fault> {
        let place = self.agent.as_ref().map(mpsc::Sender::try_reserve);
        let Some(Ok(place)) = place else {
            return refuse(reply).await;
        };
        reply.accept().await;
        place.send(Channel::new(channel, Arc::clone(&self.shared)));
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: russh::Channel<client::Msg>,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Fault> {
        refuse(reply).await
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: russh::Channel<client::Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Fault> {
        refuse(reply).await
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: russh::Channel<client::Msg>,
        _: &str,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Fault> {
        refuse(reply).await
    }

    async fn server_channel_open_x11(
        &mut self,
        _: russh::Channel<client::Msg>,
        _: &str,
        _: u32,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Fault> {
        refuse(reply).await
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Fault>) -> Result<(), Fault> {
        let ended = match &reason {
            DisconnectReason::ReceivedDisconnect(info) => SshError::Disconnected {
                reason: error::printable(&info.message),
            },
            DisconnectReason::Error(Fault(error)) => SshError::of(error),
        };
        lock(&self.shared).ended.get_or_insert(ended);
        match reason {
            DisconnectReason::ReceivedDisconnect(_) => Ok(()),
            DisconnectReason::Error(fault) => Err(fault),
        }
    }
}

/// A server has no business opening other channels to this client: nothing was asked to be forwarded.
async fn refuse(reply: client::ChannelOpenHandle) -> Result<(), Fault> {
    reply
        .reject(russh::ChannelOpenFailure::AdministrativelyProhibited)
        .await;
    Ok(())
}

/// Messages of at most 32 KiB that wait for a channel's reader.
const CHANNEL_QUEUE: usize = 32;
