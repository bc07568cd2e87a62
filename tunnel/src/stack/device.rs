//! Between the TCP engine and the packets: one packet in by reference, packets out through a
//! bounded queue of reused buffers.

use std::collections::VecDeque;

use smoltcp::{
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    time::Instant,
};

/// Packets for the wire. Data waits in the sockets until the driver asks for a packet; what
/// queues here are answers that the engine makes on the spot (RST, duplicate ACK), ICMPv6 and
/// UDP, at most `limit` packets.
pub(super) struct Outbox {
    queue: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    limit: usize,
    /// Packets that found the queue full.
    pub(super) overflow: u64,
    /// Packets put into the queue so far.
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// Buffers kept for reuse.
const SPARE: usize = 32;

impl Outbox {
    pub(super) fn new(limit: usize) -> Outbox {
        Outbox {
            queue: VecDeque::new(),
            spare: Vec::new(),
            limit: limit.max(1),
            overflow: 0,
            packets: 0,
            bytes: 0,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.queue.len() < self.limit
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        self.queue.pop_front()
    }

    /// Lets `write` fill a buffer and queues it; false when the queue is full.
    pub(super) fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut buffer = self.buffer();
        write(&mut buffer);
        self.push(buffer)
    }

    fn buffer(&mut self) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer
    }

    fn push(&mut self, packet: Vec<u8>) -> bool {
        if !self.has_room() {
            self.overflow += 1;
            self.recycle(packet);
            return false;
        }
        self.packets += 1;
        self.bytes += packet.len() as u64;
        self.queue.push_back(packet);
        true
    }

    /// The last packet queued.
    pub(super) fn last(&self) -> Option<&[u8]> {
        self.queue.back().map(Vec::as_slice)
    }

    pub(super) fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < SPARE {
            self.spare.push(buffer);
        }
    }
}

/// A device that exists for one call of the engine.
pub(super) struct Link<'a> {
    pub(super) packet: Option<&'a [u8]>,
    pub(super) outbox: &'a mut Outbox,
    pub(super) mtu: usize,
}

impl Device for Link<'_> {
    type RxToken<'t>
        = Incoming<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outgoing<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        // An answer that finds no room is dropped and counted: TCP makes another.
        Some((Incoming(self.packet.take()?), Outgoing(self.outbox)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        self.outbox.has_room().then_some(Outgoing(self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

pub(super) struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

pub(super) struct Outgoing<'a>(&'a mut Outbox);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = self.0.buffer();
        packet.resize(length, 0);
        let result = write(&mut packet);
        self.0.push(packet);
        result
    }
}
