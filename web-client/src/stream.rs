//! A TCP stream through the tunnel, as the asynchronous byte stream that SSH is spoken over.
//!
//! It has no buffer of its own: a reader that stops reading closes the TCP window.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use send_wrapper::SendWrapper;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tunnel::{StreamError, StreamId};

use crate::driver::Driver;

/// A stream that stands. Dropped, it says goodbye to the other side.
pub(crate) struct TcpStream {
    /// `Send` by word alone: there is one thread here.
    driver: SendWrapper<Driver>,
    id: StreamId,
}

impl TcpStream {
    pub(crate) fn new(driver: Driver, id: StreamId) -> TcpStream {
        TcpStream {
            driver: SendWrapper::new(driver),
            id,
        }
    }

    fn io<T>(
        &self,
        context: &mut Context<'_>,
        writable: bool,
        verb: impl FnOnce(&mut tunnel::Tunnel, tunnel::Instant) -> Result<T, StreamError>,
    ) -> Poll<io::Result<T>> {
        if self.driver.is_closed() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the tunnel is closed",
            )));
        }
        match self.driver.verb(verb) {
            Ok(value) => Poll::Ready(Ok(value)),
            Err(StreamError::WouldBlock) => {
                self.driver.wake_when(self.id, writable, context.waker());
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(io::Error::new(error.kind(), error))),
        }
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let id = self.id;
        let room = buffer.initialize_unfilled();
        if room.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let read = self.io(context, false, |tunnel, now| tunnel.read(now, id, room));
        read.map_ok(|length| buffer.advance(length))
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let id = self.id;
        self.io(context, true, |tunnel, now| tunnel.write(now, id, data))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let id = self.id;
        self.driver.verb(|tunnel, now| tunnel.shutdown(now, id));
        Poll::Ready(Ok(()))
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.driver.release(self.id);
    }
}
