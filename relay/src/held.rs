//! A connection that holds its slot until its socket is closed, and whose last answer arrives.
//!
//! A socket that is closed with bytes unread resets the connection, and the reset overtakes the
//! answer. A request whose body was refused is therefore read on after the answer, undecrypted and
//! up to a bound, before the socket goes.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use crate::{pool, slots::Slot, tls_stream::TlsStream};

/// So long and so much is read of what nobody wants.
const LINGER: Duration = Duration::from_secs(3);
const LINGER_BYTES: usize = 32 << 20;

/// A connection and its slot.
pub(crate) struct Held {
    tls: TlsStream,
    unread: Unread,
    lingering: Option<Lingering>,
    /// What has come behind the request that asked for an upgrade.
    early: Bytes,
    _slot: Slot,
}

struct Lingering {
    until: Pin<Box<Sleep>>,
    bytes: usize,
}

/// Whether the body of a connection's last request has not been read to its end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unread(Arc<AtomicBool>);

impl Held {
    pub(crate) fn new(tls: TlsStream, slot: Slot, unread: Unread) -> Held {
        Held {
            tls,
            unread,
            lingering: None,
            early: Bytes::new(),
            _slot: slot,
        }
    }

    /// The connection of a request that was upgraded; none when it is not one of [`crate::serve()`].
    pub(crate) fn upgraded(connection: Upgraded) -> Option<Box<Held>> {
        let parts = connection.downcast::<TokioIo<Held>>().ok()?;
        let held = parts.io.into_inner();
        Some(Box::new(Held {
            early: parts.read_buf,
            ..held
        }))
    }

    /// Hands out what has arrived, piece by piece; how many bytes it was, 0 at the end.
    pub(crate) fn poll_take(
        &mut self,
        context: &mut Context<'_>,
        take: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        let early = std::mem::take(&mut self.early);
        if !early.is_empty() {
            take(&early);
            return Poll::Ready(Ok(early.len()));
        }
        self.tls.poll_take(context, take)
    }

    /// The kernel acknowledges what waits for that, and what follows when it is read; or an
    /// acknowledgement may wait for another segment. Until the kernel decides otherwise.
    pub(crate) fn acknowledge(&mut self, at_once: bool) {
        // Of a connection that is no more, the next read says so.
        let _ = self.tls.tcp().set_quickack(at_once);
    }

    /// Reads until the client hangs up, or has had its time.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let lingering = self.lingering.get_or_insert_with(|| Lingering {
            until: Box::pin(tokio::time::sleep(LINGER)),
            bytes: 0,
        });
        if lingering.until.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let mut buffer = pool::take_read();
        let polled = loop {
            let mut read = ReadBuf::new(&mut buffer);
            match Pin::new(self.tls.tcp()).poll_read(context, &mut read) {
                Poll::Pending => break Poll::Pending,
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                    lingering.bytes += read.filled().len();
                }
                Poll::Ready(_) => break Poll::Ready(()),
            }
            if lingering.bytes > LINGER_BYTES {
                break Poll::Ready(());
            }
        };
        pool::give_read(buffer);
        polled
    }
}

impl Unread {
    /// A body that says when it was read.
    pub(crate) fn watch(&self, body: Incoming) -> Watched {
        self.0.store(!body.is_end_stream(), Ordering::Relaxed);
        Watched {
            body,
            unread: self.clone(),
        }
    }
}

/// The body of a request.
pub(crate) struct Watched {
    body: Incoming,
    unread: Unread,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let whole = frame.is_none() || self.body.is_end_stream();
        self.unread.0.store(!whole, Ordering::Relaxed);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(context, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.tls).poll_shutdown(context))?;
        }
        if self.unread.0.load(Ordering::Relaxed) {
            ready!(self.poll_linger(context));
        }
        Poll::Ready(Ok(()))
    }
}
