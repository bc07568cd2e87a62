//! The driver's part in a stream: between its two buffers and the tunnel.

use std::{net::SocketAddrV6, sync::Arc};

use tokio::sync::mpsc;
use tunnel::{CloseReason, Instant, ListenerId, StreamError, StreamId};

use super::{Connecting, Driver, Listening, answer};
use crate::{
    CarrierError, DropReason,
    stream::{Closed, Shared, TcpStream, Wakes},
};

impl Driver {
    pub(super) fn accepted(
        &mut self,
        now: Instant,
        listener: ListenerId,
        id: StreamId,
        remote: SocketAddrV6,
        local: SocketAddrV6,
    ) {
        let Some(Listening {
            accepted: backlog,
            class,
        }) = self.listeners.get(&listener)
        else {
            return self.tunnel.abort(now, id);
        };
        let shared = Shared::new(id, *class, Arc::clone(&self.inbox));
        self.streams.insert(id, Arc::clone(&shared));
        if let Err(refused) = backlog.try_send(TcpStream::new(shared, local, remote)) {
            let (mpsc::error::TrySendError::Full(stream)
            | mpsc::error::TrySendError::Closed(stream)) = refused;
            self.dropped.dropped(DropReason::BacklogFull);
            stream.abort();
        }
        self.pump(now, id);
    }

    pub(super) fn closed(&mut self, now: Instant, id: StreamId, reason: CloseReason) {
        if let Some(Connecting { reply, .. }) = self.connecting.remove(&id) {
            self.tunnel.close(now, id);
            let error = CarrierError::inside(reason.code(), reason, reason.hint());
            return answer(reply, Err(error));
        }
        // What arrived before the end is still read.
        self.pump(now, id);
        if let Some(shared) = self.streams.get(&id) {
            let mut wakes = Wakes::default();
            let mut state = shared.state();
            state.write_closed.get_or_insert(Closed::Inside(reason));
            // A reader that is behind finds the rest in the tunnel: the stream stays until it is
            // read or dropped.
            if !state.inward_full {
                state.closed.get_or_insert(Closed::Inside(reason));
            }
            state.wake_reader(&mut wakes);
            state.wake_writer(&mut wakes);
            drop(state);
            wakes.wake();
        }
    }

    /// Moves bytes between a stream and the tunnel, as far as both have room.
    pub(super) fn pump(&mut self, now: Instant, id: StreamId) {
        let Some(shared) = self.streams.get(&id) else {
            return;
        };
        let capacity = shared.capacity();
        let mut wakes = Wakes::default();
        let mut state = shared.state();
        state.seen();
        if state.abort {
            drop(state);
            self.tunnel.abort(now, id);
            self.streams.remove(&id);
            return;
        }
        while !state.dropped && !state.end_of_stream && state.closed.is_none() {
            let room = (capacity - state.inward.len()).min(self.scratch.len());
            if room == 0 {
                state.inward_full = true;
                break;
            }
            match self.tunnel.read(now, id, &mut self.scratch[..room]) {
                Ok(0) => state.end_of_stream = true,
                Ok(n) => state.inward.extend(&self.scratch[..n]),
                Err(StreamError::WouldBlock) => break,
                Err(error) => state.closed = Some(Closed::Inside(reason(error))),
            }
            state.wake_reader(&mut wakes);
        }
        while !state.outward.is_empty() {
            let (front, _) = state.outward.as_slices();
            match self.tunnel.write(now, id, front) {
                Ok(n) => {
                    state.outward.drain(..n);
                }
                Err(StreamError::WouldBlock) => break,
                Err(error) => {
                    state.write_closed = Some(Closed::Inside(reason(error)));
                    state.outward.clear();
                }
            }
            state.wake_writer(&mut wakes);
        }
        if state.outward.is_empty() {
            if state.shutdown && !std::mem::replace(&mut state.shutdown_done, true) {
                self.tunnel.shutdown(now, id);
            }
            if state.dropped {
                drop(state);
                // What nobody read would make the tunnel reset the stream, and lose what was
                // written.
                while let Ok(1..) = self.tunnel.read(now, id, &mut self.scratch) {}
                self.tunnel.close(now, id);
                self.streams.remove(&id);
                return;
            }
        }
        drop(state);
        wakes.wake();
    }
}

fn reason(error: StreamError) -> CloseReason {
    match error {
        StreamError::Closed(reason) => reason,
        // Neither is asked for: the driver writes to no stream that it has shut down or closed.
        StreamError::ShutDown | StreamError::Unknown | StreamError::WouldBlock => {
            CloseReason::Finished
        }
    }
}
