//! UDP sockets: a port and a bounded queue.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{Ipv6Addr, SocketAddrV6},
};

use super::{
    Drop, Notice, Stack, StackError, UdpId, Unreachable, is_unicast,
    packet::{self, Ipv6, Quoted},
};
use crate::Instant;

/// A datagram that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub remote: SocketAddrV6,
    /// Which of our addresses it was sent to: the answer's source.
    pub local: Ipv6Addr,
    /// What it says.
    pub payload: Vec<u8>,
}

#[derive(Default)]
pub(super) struct UdpSockets {
    by_port: BTreeMap<u16, UdpSocket>,
    ports: BTreeMap<UdpId, u16>,
}

struct UdpSocket {
    id: UdpId,
    queue: VecDeque<Datagram>,
    bytes: usize,
    /// Armed: see the rule of the module `stack`.
    wants_read: bool,
    noticed: bool,
    trouble: Option<(SocketAddrV6, Unreachable)>,
}

impl UdpSockets {
    fn socket(&mut self, id: UdpId) -> Option<&mut UdpSocket> {
        self.by_port.get_mut(self.ports.get(&id)?)
    }

    /// The event of a socket is told; false if the socket is gone.
    pub(super) fn told(&mut self, id: UdpId) -> bool {
        let socket = self.socket(id);
        socket.map(|socket| socket.noticed = false).is_some()
    }
}

impl Stack {
    /// Takes a UDP port of every address of ours; 0 takes a free port.
    pub fn udp_bind(&mut self, port: u16) -> Result<UdpId, StackError> {
        let limit = self.limits.udp_sockets;
        if self.udp.by_port.len() >= limit {
            return Err(StackError::TooManySockets { limit });
        }
        let port = match port {
            0 => (0..PORT_ATTEMPTS)
                .map(|_| self.rng.port())
                .find(|port| !self.udp.by_port.contains_key(port))
                .ok_or(StackError::NoPorts)?,
            port => port,
        };
        if self.udp.by_port.contains_key(&port) {
            return Err(StackError::PortInUse(port));
        }
        let id = UdpId(self.fresh_id());
        let socket = UdpSocket {
            id,
            queue: VecDeque::new(),
            bytes: 0,
            wants_read: true,
            noticed: false,
            trouble: None,
        };
        self.udp.by_port.insert(port, socket);
        self.udp.ports.insert(id, port);
        Ok(id)
    }

    /// The port of a UDP socket.
    pub fn udp_port(&self, id: UdpId) -> Option<u16> {
        self.udp.ports.get(&id).copied()
    }

    /// Sends a datagram from our nearest address.
    pub fn udp_send(
        &mut self,
        now: Instant,
        id: UdpId,
        remote: SocketAddrV6,
        payload: &[u8],
    ) -> Result<(), StackError> {
        let local = self.source_for(*remote.ip()).ok_or(StackError::NoAddress)?;
        self.udp_send_from(now, id, local, remote, payload)
    }

    /// Sends a datagram from this address of ours: the [`Datagram::local`] of what it answers.
    pub fn udp_send_from(
        &mut self,
        now: Instant,
        id: UdpId,
        local: Ipv6Addr,
        remote: SocketAddrV6,
        payload: &[u8],
    ) -> Result<(), StackError> {
        self.advance(now);
        let port = self.udp_port(id).ok_or(StackError::Unknown)?;
        if remote.port() == 0 || !is_unicast(*remote.ip()) {
            return Err(StackError::Unaddressable(remote));
        }
        let limit = self.mtu - packet::HEADER - 8;
        if payload.len() > limit {
            return Err(StackError::TooLong {
                size: payload.len(),
                limit,
            });
        }
        let to = (*remote.ip(), remote.port());
        let queued = self
            .outbox
            .push_with(|out| packet::write_udp(out, (local, port), to, payload));
        if queued {
            Ok(())
        } else {
            Err(StackError::Busy)
        }
    }

    /// The next datagram.
    pub fn udp_recv(&mut self, id: UdpId) -> Option<Datagram> {
        let socket = self.udp.socket(id)?;
        let Some(datagram) = socket.queue.pop_front() else {
            socket.wants_read = true;
            return None;
        };
        socket.bytes -= cost(&datagram.payload);
        Some(datagram)
    }

    /// The last "unreachable" that quotes a datagram of this socket, and where that was sent;
    /// told once.
    pub fn udp_error(&mut self, id: UdpId) -> Option<(SocketAddrV6, Unreachable)> {
        self.udp.socket(id)?.trouble.take()
    }

    /// Gives the port back.
    pub fn udp_close(&mut self, id: UdpId) {
        if let Some(port) = self.udp.ports.remove(&id)
            && let Some(socket) = self.udp.by_port.remove(&port)
            && socket.noticed
        {
            self.notices
                .retain(|other| !matches!(other, Notice::Udp(other) if *other == id));
        }
    }

    pub(super) fn handle_udp(&mut self, now: Instant, packet: &Ipv6<'_>) {
        let Some((from, to, payload)) = packet::parse_udp(packet) else {
            return self.drops.count(Drop::Malformed);
        };
        let limit = self.limits.udp_queue;
        let Some(socket) = self.udp.by_port.get_mut(&to) else {
            self.drops.count(Drop::NoSocket);
            return self.send_icmp_error(now, packet, (1, 4, 0));
        };
        if socket.bytes + cost(payload) > limit {
            return self.drops.count(Drop::UdpQueueFull);
        }
        socket.bytes += cost(payload);
        socket.queue.push_back(Datagram {
            remote: SocketAddrV6::new(packet.source, from, 0, 0),
            local: packet.destination,
            payload: payload.to_vec(),
        });
        if socket.wants_read {
            socket.wants_read = false;
            if !socket.noticed {
                socket.noticed = true;
                self.notices.push_back(Notice::Udp(socket.id));
            }
        }
    }

    /// An ICMPv6 "unreachable" quotes a datagram from `local` to `remote`.
    pub(super) fn udp_trouble(&mut self, why: Unreachable, quoted: &Quoted, ports: (u16, u16)) {
        if let Some(socket) = self.udp.by_port.get_mut(&ports.0) {
            let remote = SocketAddrV6::new(quoted.destination, ports.1, 0, 0);
            socket.trouble = Some((remote, why));
        }
    }
}

/// What a datagram weighs in the queue: an empty one weighs something too.
fn cost(payload: &[u8]) -> usize {
    payload.len() + size_of::<Datagram>()
}

const PORT_ATTEMPTS: usize = 64;
