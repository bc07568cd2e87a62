//! TCP: the verbs of streams and listeners.

use std::{net::SocketAddrV6, time::Duration};

use smoltcp::{
    socket::tcp::RecvError,
    wire::{IpAddress, IpEndpoint},
};

use super::{
    Class, Listener, ListenerId, Stack, StackError, StreamError, StreamId,
    flow::{Flow, FlowKey, Phase, engine_local},
    is_unicast,
};
use crate::Instant;

impl Stack {
    /// Opens a stream. `Connected` or `Closed` tells how it went.
    pub fn connect(
        &mut self,
        now: Instant,
        remote: SocketAddrV6,
        class: Class,
    ) -> Result<StreamId, StackError> {
        let now = self.advance(now);
        if remote.port() == 0 || !is_unicast(*remote.ip()) {
            return Err(StackError::Unaddressable(remote));
        }
        let local = self.source_for(*remote.ip()).ok_or(StackError::NoAddress)?;
        self.make_room(class)?;
        let mut key = FlowKey {
            remote_port: remote.port(),
            local_port: 0,
            remote: *remote.ip(),
            local,
        };
        let ports = (0..PORT_ATTEMPTS).map(|_| self.rng.port()).find(|port| {
            let taken = FlowKey {
                local_port: *port,
                ..key
            };
            !self.listeners.contains_key(port)
                && !self.by_key.contains_key(&taken)
                && !self.time_waits.contains(now, &taken)
        });
        key.local_port = ports.ok_or(StackError::NoPorts)?;

        let deadline = now + self.limits.connect_timeout;
        let mut flow = Flow::new(key, Phase::Connecting, class, deadline);
        flow.timeout = Some(self.limits.stream_timeout);
        flow.narrow = self.narrow.contains(&key.remote);
        let to = IpEndpoint::new(IpAddress::Ipv6(key.remote), key.remote_port);
        let engine = self.engines[usize::from(flow.narrow)].context();
        if flow
            .socket_mut()
            .connect(engine, to, engine_local(&key))
            .is_err()
        {
            return Err(StackError::Unaddressable(remote));
        }
        let id = self.insert(flow);
        self.settle(now, id);
        self.make_ready(id);
        Ok(id)
    }

    /// Takes connections on `port` of every address of ours; 0 takes a free port. At most
    /// `backlog` of them are half open at a time; streams get the windows of `class`.
    pub fn listen(
        &mut self,
        port: u16,
        backlog: usize,
        class: Class,
    ) -> Result<ListenerId, StackError> {
        let port = match port {
            0 => (0..PORT_ATTEMPTS)
                .map(|_| self.rng.port())
                .find(|port| !self.listeners.contains_key(port))
                .ok_or(StackError::NoPorts)?,
            port => port,
        };
        if self.listeners.contains_key(&port) {
            return Err(StackError::PortInUse(port));
        }
        let id = ListenerId(self.fresh_id());
        let listener = Listener {
            id,
            class,
            backlog: backlog.max(1),
            half_open: 0,
        };
        self.listeners.insert(port, listener);
        Ok(id)
    }

    /// The port of a listener.
    pub fn listener_port(&self, id: ListenerId) -> Option<u16> {
        self.listeners
            .iter()
            .find(|(_, listener)| listener.id == id)
            .map(|(port, _)| *port)
    }

    /// Takes no more connections; those that are half open are forgotten.
    pub fn unlisten(&mut self, id: ListenerId) {
        let Some(port) = self.listener_port(id) else {
            return;
        };
        let half_open: Vec<StreamId> = self
            .flows
            .iter()
            .filter(|(_, flow)| flow.phase == Phase::HalfOpen(port))
            .map(|(id, _)| *id)
            .collect();
        for id in half_open {
            self.remove(id);
        }
        self.listeners.remove(&port);
    }

    /// Reads what has arrived. `Ok(0)` is the end of the stream (or an empty `buffer`).
    pub fn read(
        &mut self,
        now: Instant,
        id: StreamId,
        buffer: &mut [u8],
    ) -> Result<usize, StreamError> {
        self.advance(now);
        let flow = self.flow(id)?;
        let phase = flow.phase;
        match flow.socket_mut().recv_slice(buffer) {
            Ok(0) if !buffer.is_empty() => {
                flow.wait_for_data();
                Err(StreamError::WouldBlock)
            }
            Ok(read) => {
                flow.taken = flow.taken.wrapping_add(u32::try_from(read).unwrap_or(0));
                // The window may have opened enough to say so.
                if phase == Phase::Open {
                    self.make_ready(id);
                }
                Ok(read)
            }
            Err(RecvError::Finished) => Ok(0),
            Err(RecvError::InvalidState) => match phase {
                Phase::Done(reason) => Err(StreamError::Closed(reason)),
                _ => {
                    flow.wait_for_data();
                    Err(StreamError::WouldBlock)
                }
            },
        }
    }

    /// Writes as much as there is room for, at least one byte of a `data` that is not empty.
    pub fn write(&mut self, now: Instant, id: StreamId, data: &[u8]) -> Result<usize, StreamError> {
        let now = self.advance(now);
        let flow = self.flow(id)?;
        match flow.phase {
            Phase::Done(reason) => return Err(StreamError::Closed(reason)),
            Phase::Connecting | Phase::HalfOpen(_) if flow.shut_down => {
                return Err(StreamError::ShutDown);
            }
            Phase::Connecting | Phase::HalfOpen(_) => {
                flow.wait_for_room();
                return Err(StreamError::WouldBlock);
            }
            Phase::Open => {}
        }
        let Ok(written) = flow.socket_mut().send_slice(data) else {
            return Err(StreamError::ShutDown);
        };
        if written < data.len() {
            flow.wait_for_room();
        }
        if written == 0 && !data.is_empty() {
            return Err(StreamError::WouldBlock);
        }
        flow.note_waiting(now);
        self.make_ready(id);
        Ok(written)
    }

    /// Ends our side of the stream once all that was written is sent. The other side can go on.
    pub fn shutdown(&mut self, now: Instant, id: StreamId) {
        let now = self.advance(now);
        let Ok(flow) = self.flow(id) else { return };
        if flow.phase == Phase::Connecting {
            flow.shut_down = true;
            return;
        }
        flow.socket_mut().close();
        self.settle(now, id);
        self.make_ready(id);
    }

    /// Resets the stream and forgets its handle. No event follows.
    pub fn abort(&mut self, now: Instant, id: StreamId) {
        let now = self.advance(now);
        if self.flow(id).is_ok() {
            self.reset(now, id);
            self.remove(id);
        }
    }

    /// Forgets the handle. What was written is still sent, then the stream says goodbye; when
    /// something was received that nobody will read, the other side is told by a reset. No event
    /// follows.
    pub fn close(&mut self, now: Instant, id: StreamId) {
        let now = self.advance(now);
        let Ok(flow) = self.flow(id) else { return };
        match flow.phase {
            Phase::Done(_) => self.remove(id),
            Phase::Open if !flow.socket().can_recv() => {
                flow.become_orphan(now);
                flow.socket_mut().close();
                self.settle(now, id);
                self.make_ready(id);
            }
            _ => {
                self.reset(now, id);
                self.remove(id);
            }
        }
    }

    /// Probes the other side of an idle stream this often, so that its loss is noticed.
    pub fn set_keep_alive(
        &mut self,
        now: Instant,
        id: StreamId,
        interval: Option<Duration>,
    ) -> Result<(), StreamError> {
        let now = self.advance(now);
        self.flow(id)?.set_keep_alive(interval);
        self.settle(now, id);
        self.make_ready(id);
        Ok(())
    }

    /// How long the stream bears silence while something is due from the other side (an
    /// acknowledgement, or the answer to a keep-alive probe); `None` for ever.
    pub fn set_timeout(
        &mut self,
        now: Instant,
        id: StreamId,
        timeout: Option<Duration>,
    ) -> Result<(), StreamError> {
        let now = self.advance(now);
        self.flow(id)?.timeout = timeout;
        self.settle(now, id);
        self.make_ready(id);
        Ok(())
    }

    /// The other side's address.
    pub fn peer_addr(&self, id: StreamId) -> Option<SocketAddrV6> {
        self.flows.get(&id).map(|flow| flow.key.remote())
    }

    /// Our address.
    pub fn local_addr(&self, id: StreamId) -> Option<SocketAddrV6> {
        self.flows.get(&id).map(|flow| flow.key.local())
    }

    /// Bytes written and not yet acknowledged.
    pub fn unsent(&self, id: StreamId) -> usize {
        self.flows
            .get(&id)
            .map_or(0, |flow| flow.socket().send_queue())
    }
}

/// Random ports tried before giving up.
const PORT_ATTEMPTS: usize = 64;
