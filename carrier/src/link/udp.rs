//! Datagrams over a connected UDP socket.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, net::UdpSocket, time::Instant};

use super::Incoming;
use crate::{
    CarrierError,
    stats::{Counters, Drop, LinkStats},
};

/// A UDP path. It has no connection: errors of the operating system are news, never an end.
#[derive(Debug)]
pub(crate) struct UdpLink {
    socket: UdpSocket,
    endpoint: SocketAddr,
    /// A datagram that the full socket did not take.
    waiting: Option<Vec<u8>>,
    news: VecDeque<Incoming>,
    /// The trouble that was told last, so that it is told once and not per datagram.
    told: Option<io::ErrorKind>,
    rebound: Option<Instant>,
    buffer: Box<[u8]>,
    counters: Counters,
}

/// More than one burst of the largest window inside the tunnel. The kernel gives what it allows.
const SOCKET_BUFFER: usize = 4 << 20;

/// A silent path gets a new socket at most this often.
const REBIND_EVERY: Duration = Duration::from_secs(5);

impl UdpLink {
    pub(crate) fn open(endpoint: SocketAddr) -> Result<UdpLink, CarrierError> {
        let socket = bind(endpoint).map_err(|error| CarrierError::Socket {
            reason: error.to_string(),
        })?;
        Ok(UdpLink {
            socket,
            endpoint,
            waiting: None,
            news: VecDeque::from([Incoming::Up]),
            told: None,
            rebound: None,
            // One byte more than a record may have shows what is too long.
            buffer: vec![0; wire::record::MAX_RECORD + 1].into(),
            counters: Counters::default(),
        })
    }

    pub(crate) async fn ready(&mut self) {
        if !self.news.is_empty() {
            return;
        }
        let interest = if self.waiting.is_some() {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        };
        // An error is found again, and told, by the call that follows.
        let _ = self.socket.ready(interest).await;
    }

    pub(crate) fn try_recv(&mut self) -> Option<Incoming> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Some(news);
            }
            match self.socket.try_recv(&mut self.buffer) {
                Ok(length) if length > wire::record::MAX_RECORD => {
                    self.counters.dropped(Drop::Oversize);
                }
                Ok(length) => {
                    self.told = None;
                    self.counters.received(length);
                    return Some(Incoming::Datagram(Bytes::copy_from_slice(
                        &self.buffer[..length],
                    )));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => self.trouble(&error),
            }
        }
    }

    pub(crate) fn has_room(&mut self) -> bool {
        if let Some(waiting) = self.waiting.take() {
            self.send(waiting);
        }
        self.waiting.is_none()
    }

    pub(crate) fn send(&mut self, datagram: Vec<u8>) {
        match self.socket.try_send(&datagram) {
            Ok(_) => self.counters.sent(datagram.len()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if self.waiting.replace(datagram).is_some() {
                    self.counters.dropped(Drop::OutboxFull);
                }
            }
            Err(error) => {
                // ECONNREFUSED here is the answer to an earlier datagram; this one did not go.
                if error.kind() == io::ErrorKind::ConnectionRefused
                    && self.socket.try_send(&datagram).is_ok()
                {
                    self.counters.sent(datagram.len());
                } else {
                    self.counters.dropped(Drop::SendFailed);
                }
                self.trouble(&error);
            }
        }
    }

    /// The network may have changed under the socket: a connected socket keeps the source address
    /// it was given first.
    pub(crate) fn rebind(&mut self) {
        let now = Instant::now();
        if self
            .rebound
            .is_some_and(|before| now - before < REBIND_EVERY)
        {
            return;
        }
        self.rebound = Some(now);
        match bind(self.endpoint) {
            Ok(socket)
                if socket.local_addr().ok().map(|a| a.ip())
                    != self.socket.local_addr().ok().map(|a| a.ip()) =>
            {
                self.socket = socket;
                self.news.push_back(Incoming::Up);
            }
            Ok(_) => {}
            Err(error) => self.trouble(&error),
        }
    }

    pub(crate) fn stats(&self) -> LinkStats {
        self.counters.snapshot()
    }

    fn trouble(&mut self, error: &io::Error) {
        if self.told.replace(error.kind()) == Some(error.kind()) {
            return;
        }
        let (code, hint) = match error.kind() {
            io::ErrorKind::ConnectionRefused => (
                "udp_refused",
                "nothing listens at the gateway's UDP address: check that the gateway runs",
            ),
            io::ErrorKind::PermissionDenied => (
                "udp_forbidden",
                "a local firewall forbids UDP to the gateway: use the relay",
            ),
            _ => (
                "udp_unreachable",
                "check this machine's network, or use the relay",
            ),
        };
        self.news.push_back(Incoming::Trouble {
            code: code.to_owned(),
            hint: format!("{error}: {hint}"),
        });
    }
}

fn bind(endpoint: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if endpoint.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = Socket::new(
        Domain::for_address(endpoint),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    // What the kernel does not grant costs throughput only.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&any.into())?;
    socket.connect(&endpoint.into())?;
    UdpSocket::from_std(socket.into())
}
