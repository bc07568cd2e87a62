//! What a program holds of a running carrier.

use std::{
    io,
    net::{Ipv6Addr, SocketAddrV6},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::timeout,
};
use tunnel::{Answer, Class, ListenerId, RecordKind, UdpId};

use crate::{
    CarrierError, Stats,
    link::Target,
    stream::{Inbox, Notice, TcpListener, TcpStream},
};

/// Connections that wait to be accepted, per listener.
const BACKLOG: usize = 128;

/// Datagrams that wait to be received, per UDP socket inside the tunnel.
const UDP_QUEUE: usize = 64;

/// How long [`Handle::ready`] waits when nothing says yes or no.
const READY_LIMIT: Duration = Duration::from_secs(15);

/// Longer than the driver gives itself to say goodbye.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// A running carrier. Clones share it.
///
/// Dropping the last one stops the carrier: streams that are still open deliver what was written
/// to them, within two seconds, and end. [`close`](Handle::close) does the same and waits.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) shared: Arc<HandleShared>,
}

#[derive(Debug)]
pub(crate) struct HandleShared {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) stats: Arc<Mutex<Stats>>,
    pub(crate) target: Option<Arc<Target>>,
    pub(crate) address: Ipv6Addr,
    pub(crate) is_race: bool,
}

/// What the driver is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Connect {
        remote: SocketAddrV6,
        class: Class,
        reply: Reply<TcpStream>,
    },
    Listen {
        port: u16,
        class: Class,
        accepted: mpsc::Sender<TcpStream>,
        reply: Reply<ListenerId>,
    },
    UdpBind {
        port: u16,
        received: mpsc::Sender<(SocketAddrV6, Vec<u8>)>,
        reply: Reply<UdpId>,
    },
    UdpSend {
        id: UdpId,
        remote: SocketAddrV6,
        datagram: Vec<u8>,
    },
    Ping {
        to: Ipv6Addr,
        reply: Reply<Duration>,
    },
    Resolve {
        name: String,
        kind: RecordKind,
        reply: Reply<Answer>,
    },
    Wake,
    Stop,
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, CarrierError>>;

/// How the carrier fares, for those who wait for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    /// Round trip of the handshake of the session that stands.
    pub(crate) session: Option<Duration>,
    /// Attempts that failed so far.
    pub(crate) failures: u64,
    pub(crate) link_error: Option<CarrierError>,
    /// The last trouble that the link told of.
    pub(crate) trouble: Option<String>,
    pub(crate) stopped: bool,
}

/// What happens to a carrier, for whoever shows it to a person.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The link carries datagrams (again).
    LinkUp,
    /// The link is lost; it is tried again after `retry_in`.
    LinkDown {
        /// Why.
        error: CarrierError,
        /// When it is tried again.
        retry_in: Duration,
    },
    /// The link goes on, but something is the matter with it.
    Trouble {
        /// Stable code.
        code: String,
        /// What to do about it.
        hint: String,
    },
    /// A WireGuard session stands.
    SessionEstablished {
        /// Round trip of its handshake; zero when the other side began it.
        rtt: Duration,
    },
    /// The gateway does not answer handshakes. Attempts go on.
    HandshakeFailed {
        /// Stable code.
        code: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// Data goes another way from now on; sessions and streams live on.
    PathChanged {
        /// `UDP` or `WebSocket`.
        transport: &'static str,
    },
    /// Data has been unanswered for a while.
    PathSilent,
    /// The machine slept; a handshake was sent.
    Woke,
}

impl Handle {
    /// Waits for a WireGuard session and returns the round trip of its handshake, zero when the
    /// other side began it.
    ///
    /// An error says that there is none so far; attempts go on behind it.
    pub async fn ready(&self) -> Result<Duration, CarrierError> {
        let mut status = self.shared.status.clone();
        let before = status.borrow().failures;
        let waiting = async {
            loop {
                {
                    let status = status.borrow_and_update();
                    if let Some(rtt) = status.session {
                        return Ok(rtt);
                    }
                    if status.stopped {
                        return Err(CarrierError::Stopped);
                    }
                    match &status.link_error {
                        Some(error) if error.is_permanent() => return Err(error.clone()),
                        None if status.failures > before => break,
                        _ => {}
                    }
                }
                status.changed().await.map_err(|_| CarrierError::Stopped)?;
            }
            Err(self.no_answer())
        };
        match timeout(READY_LIMIT, waiting).await {
            Ok(result) => result,
            Err(_) => Err(self.no_answer()),
        }
    }

    fn no_answer(&self) -> CarrierError {
        let status = self.shared.status.borrow();
        if let Some(error) = &status.link_error {
            return error.clone();
        }
        let detail = status
            .trouble
            .as_ref()
            .map_or_else(String::new, |hint| format!("; {hint}"));
        CarrierError::HandshakeNoAnswer {
            transport: if self.shared.is_race {
                "UDP and WebSocket"
            } else {
                self.transport()
            },
            detail,
        }
    }

    /// Opens a TCP connection inside the tunnel.
    pub async fn connect(
        &self,
        remote: SocketAddrV6,
        class: Class,
    ) -> Result<TcpStream, CarrierError> {
        self.ask(|reply| Command::Connect {
            remote,
            class,
            reply,
        })
        .await
    }

    /// Listens on a TCP port of the tunnel's address, with the windows of a transfer. A port that
    /// cannot be taken shows at [`TcpListener::listening`] and at the first
    /// [`TcpListener::accept`].
    pub fn listen(&self, port: u16) -> Result<TcpListener, CarrierError> {
        self.listen_class(port, Class::Bulk)
    }

    /// The same with windows of that class: small ones let more streams fit the tunnel's memory.
    pub fn listen_class(&self, port: u16, class: Class) -> Result<TcpListener, CarrierError> {
        let (to_listener, accepted) = mpsc::channel(BACKLOG);
        let (reply, started) = oneshot::channel();
        let command = Command::Listen {
            port,
            class,
            accepted: to_listener,
            reply,
        };
        self.commands
            .try_send(command)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => CarrierError::Busy,
                mpsc::error::TrySendError::Closed(_) => CarrierError::Stopped,
            })?;
        Ok(TcpListener {
            accepted,
            port,
            address: self.shared.address,
            started: Some(started),
            id: None,
            inbox: Arc::clone(&self.shared.inbox),
        })
    }

    /// Asks the tunnel's DNS server.
    pub async fn lookup(&self, name: &str, kind: RecordKind) -> Result<Answer, CarrierError> {
        let name = name.to_owned();
        self.ask(|reply| Command::Resolve { name, kind, reply })
            .await
    }

    /// Sends an ICMPv6 echo request and returns its round trip.
    pub async fn ping(&self, to: Ipv6Addr) -> Result<Duration, CarrierError> {
        self.ask(|reply| Command::Ping { to, reply }).await
    }

    /// A UDP socket on a port of the tunnel's address; port 0 takes a free one.
    pub async fn udp(&self, port: u16) -> Result<UdpSocket, CarrierError> {
        let (to_socket, received) = mpsc::channel(UDP_QUEUE);
        let id = self
            .ask(|reply| Command::UdpBind {
                port,
                received: to_socket,
                reply,
            })
            .await?;
        Ok(UdpSocket {
            id,
            received,
            commands: self.commands.downgrade(),
            inbox: Arc::clone(&self.shared.inbox),
        })
    }

    /// The counters, as they were 50 ms ago at most.
    pub fn stats(&self) -> Stats {
        self.shared
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What happens from now on. A receiver that lags loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// The tunnel's own address.
    pub fn local_addr(&self) -> Ipv6Addr {
        self.shared.address
    }

    /// `UDP` or `WebSocket`: the one that carries data now.
    pub fn transport(&self) -> &'static str {
        self.stats().transport
    }

    /// The relay token for connections from now on; a lease that was renewed brings a new one.
    pub fn set_token(&self, token: Option<String>) {
        if let Some(target) = &self.shared.target {
            target.set_token(token);
        }
    }

    /// The network may have changed: tests the path and sends a fresh handshake.
    pub fn wake(&self) {
        // A full queue means that the driver is about to run anyway.
        let _ = self.commands.try_send(Command::Wake);
    }

    /// Stops the carrier for every clone of this handle and waits until it has said goodbye.
    pub async fn close(self) {
        let mut status = self.shared.status.clone();
        let closing = async {
            // An error of either means that the driver has ended already.
            let _ = self.commands.send(Command::Stop).await;
            let _ = status.wait_for(|status| status.stopped).await;
        };
        let _ = timeout(CLOSE_LIMIT, closing).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, CarrierError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| CarrierError::Stopped)?;
        answer.await.unwrap_or(Err(CarrierError::Stopped))
    }
}

/// A UDP socket inside the tunnel. It does not keep the carrier running.
#[derive(Debug)]
pub struct UdpSocket {
    id: UdpId,
    received: mpsc::Receiver<(SocketAddrV6, Vec<u8>)>,
    commands: mpsc::WeakSender<Command>,
    inbox: Arc<Inbox>,
}

impl UdpSocket {
    /// Sends a datagram. As with any UDP socket, nothing says whether it arrives.
    pub async fn send_to(&self, datagram: &[u8], remote: SocketAddrV6) -> io::Result<()> {
        let commands = self.commands.upgrade().ok_or(CarrierError::Stopped)?;
        let command = Command::UdpSend {
            id: self.id,
            remote,
            datagram: datagram.to_vec(),
        };
        commands
            .send(command)
            .await
            .map_err(|_| CarrierError::Stopped.into())
    }

    /// The next datagram and its sender. Safe to cancel.
    pub async fn recv_from(&mut self) -> io::Result<(SocketAddrV6, Vec<u8>)> {
        self.received
            .recv()
            .await
            .ok_or_else(|| CarrierError::Stopped.into())
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.inbox.push(Notice::UdpClosed(self.id));
    }
}
