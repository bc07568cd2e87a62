//! TCP streams and listeners inside the tunnel, as tokio knows them.
//!
//! A stream and the driver share two bounded buffers and nothing else: a reader that stalls fills
//! its own buffer, and from there on closes its own TCP window.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv6Addr, SocketAddrV6},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, mpsc},
};
use tunnel::{Class, CloseReason, ListenerId, StreamId};

use crate::CarrierError;

/// What the driver has to look at again. Every object is in here at most once, so it is bounded by
/// their number.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    notices: Mutex<Vec<Notice>>,
    wake: Notify,
}

#[derive(Debug)]
pub(crate) enum Notice {
    /// The stream's buffers or wishes changed.
    Stream(StreamId),
    /// Nobody accepts any more.
    Unlisten(ListenerId),
    /// Nobody uses the UDP socket any more.
    UdpClosed(tunnel::UdpId),
}

impl Inbox {
    pub(crate) fn push(&self, notice: Notice) {
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        let first = notices.is_empty();
        notices.push(notice);
        drop(notices);
        if first {
            self.wake.notify_one();
        }
    }

    pub(crate) fn take(&self, into: &mut Vec<Notice>) {
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *notices, into);
    }

    pub(crate) async fn notified(&self) {
        self.wake.notified().await;
    }
}

/// What a stream and the driver share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: StreamId,
    capacity: usize,
    state: Mutex<State>,
    inbox: Arc<Inbox>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// From the tunnel, for the reader.
    pub(crate) inward: VecDeque<u8>,
    /// From the writer, for the tunnel.
    pub(crate) outward: VecDeque<u8>,
    /// The other side has said that no more comes.
    pub(crate) end_of_stream: bool,
    /// The driver left bytes in the tunnel because `inward` was full.
    pub(crate) inward_full: bool,
    /// Nothing more comes, and why. What `inward` holds can still be read.
    pub(crate) closed: Option<Closed>,
    /// Nothing more can be written, and why.
    pub(crate) write_closed: Option<Closed>,
    /// The writer's wishes, in the order of their strength.
    pub(crate) shutdown: bool,
    pub(crate) dropped: bool,
    pub(crate) abort: bool,
    /// The tunnel was told of the shutdown.
    pub(crate) shutdown_done: bool,
    noticed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Why a stream is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    Inside(CloseReason),
    /// The driver has ended.
    Stopped,
}

impl Closed {
    fn error(self) -> io::Error {
        match self {
            Closed::Inside(reason) => io::Error::new(reason.kind(), reason.to_string()),
            Closed::Stopped => CarrierError::Stopped.into(),
        }
    }
}

/// Wakers collected under the lock of a stream, to be woken after it is let go.
#[derive(Default)]
#[must_use]
pub(crate) struct Wakes(Option<Waker>, Option<Waker>);

impl Wakes {
    pub(crate) fn wake(self) {
        if let Some(waker) = self.0 {
            waker.wake();
        }
        if let Some(waker) = self.1 {
            waker.wake();
        }
    }
}

impl State {
    pub(crate) fn wake_reader(&mut self, wakes: &mut Wakes) {
        wakes.0 = self.reader.take().or(wakes.0.take());
    }

    pub(crate) fn wake_writer(&mut self, wakes: &mut Wakes) {
        wakes.1 = self.writer.take().or(wakes.1.take());
    }

    /// The driver has seen the state: the next change is to be noticed again.
    pub(crate) fn seen(&mut self) {
        self.noticed = false;
    }
}

impl Shared {
    pub(crate) fn new(id: StreamId, class: Class, inbox: Arc<Inbox>) -> Arc<Shared> {
        let capacity = match class {
            Class::Interactive => 32 * 1024,
            Class::Bulk => 128 * 1024,
        };
        Arc::new(Shared {
            id,
            capacity,
            state: Mutex::default(),
            inbox,
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much each of the two buffers holds at most.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    fn notice(&self, mut state: MutexGuard<'_, State>) {
        let first = !std::mem::replace(&mut state.noticed, true);
        drop(state);
        if first {
            self.inbox.push(Notice::Stream(self.id));
        }
    }
}

/// A TCP connection inside the tunnel.
///
/// Dropping it closes it gracefully: what was written is still delivered. Writes are buffered
/// within a bound, and [`flush`](tokio::io::AsyncWriteExt::flush) waits for nothing more, as with
/// tokio's own stream.
#[derive(Debug)]
pub struct TcpStream {
    shared: Arc<Shared>,
    local: SocketAddrV6,
    remote: SocketAddrV6,
}

impl TcpStream {
    pub(crate) fn new(shared: Arc<Shared>, local: SocketAddrV6, remote: SocketAddrV6) -> TcpStream {
        TcpStream {
            shared,
            local,
            remote,
        }
    }

    /// The address on the other side.
    pub fn peer_addr(&self) -> SocketAddrV6 {
        self.remote
    }

    /// The address on this side.
    pub fn local_addr(&self) -> SocketAddrV6 {
        self.local
    }

    /// Resets the connection: what was written and not yet delivered is lost.
    pub fn abort(self) {
        let mut state = self.shared.state();
        state.abort = true;
        self.shared.notice(state);
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.shared.state();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if state.inward.is_empty() {
            if state.end_of_stream {
                return Poll::Ready(Ok(()));
            }
            return match state.closed {
                Some(Closed::Inside(CloseReason::Finished)) => Poll::Ready(Ok(())),
                Some(closed) => Poll::Ready(Err(closed.error())),
                None => {
                    state.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        while buf.remaining() > 0 && !state.inward.is_empty() {
            let (front, _) = state.inward.as_slices();
            let n = front.len().min(buf.remaining());
            buf.put_slice(&front[..n]);
            state.inward.drain(..n);
        }
        // Half empty before the driver is woken: a wake per byte read would cost more than it
        // brings.
        if state.inward_full && state.inward.len() <= self.shared.capacity / 2 {
            state.inward_full = false;
            self.shared.notice(state);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.shared.state();
        if let Some(closed) = state.write_closed {
            return Poll::Ready(Err(match closed {
                Closed::Inside(CloseReason::Finished) => io::ErrorKind::BrokenPipe.into(),
                closed => closed.error(),
            }));
        }
        if state.shutdown {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = self.shared.capacity.saturating_sub(state.outward.len());
        if room == 0 && !bytes.is_empty() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = room.min(bytes.len());
        state.outward.extend(&bytes[..n]);
        if n > 0 {
            self.shared.notice(state);
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.state();
        if !std::mem::replace(&mut state.shutdown, true) && state.write_closed.is_none() {
            self.shared.notice(state);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.dropped = true;
        // Nobody reads these any more; what comes is left to the tunnel to refuse.
        state.inward = VecDeque::new();
        state.inward_full = false;
        self.shared.notice(state);
    }
}

/// Accepts TCP connections inside the tunnel. Dropping it stops listening; what was accepted
/// lives on.
#[derive(Debug)]
pub struct TcpListener {
    pub(crate) accepted: mpsc::Receiver<TcpStream>,
    pub(crate) port: u16,
    pub(crate) address: Ipv6Addr,
    pub(crate) started: Option<tokio::sync::oneshot::Receiver<Result<ListenerId, CarrierError>>>,
    pub(crate) id: Option<ListenerId>,
    pub(crate) inbox: Arc<Inbox>,
}

impl TcpListener {
    /// The next connection. Safe to cancel.
    pub async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddrV6)> {
        self.listening().await?;
        match self.accepted.recv().await {
            Some(stream) => {
                let remote = stream.peer_addr();
                Ok((stream, remote))
            }
            None => Err(CarrierError::Stopped.into()),
        }
    }

    /// Waits until the port is taken; an error says why it cannot be.
    pub async fn listening(&mut self) -> Result<(), CarrierError> {
        let Some(started) = &mut self.started else {
            return if self.id.is_some() {
                Ok(())
            } else {
                Err(CarrierError::Stopped)
            };
        };
        let result = started.await.unwrap_or(Err(CarrierError::Stopped));
        self.started = None;
        self.id = Some(result?);
        Ok(())
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddrV6 {
        SocketAddrV6::new(self.address, self.port, 0, 0)
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        if let Some(started) = &mut self.started {
            // Closed unread, the answer goes back to the driver, which then stops listening.
            started.close();
            if let Ok(Ok(id)) = started.try_recv() {
                self.id = Some(id);
            }
        }
        if let Some(id) = self.id {
            self.inbox.push(Notice::Unlisten(id));
        }
    }
}
