//! A channel as the byte stream that the SFTP library wants.
//!
//! The library's loop ends at the end of its input and at nothing else: after any other error it
//! asks for the next packet, for ever if need be. Here every error, a packet longer than allowed
//! and the channel's close are followed by the end of input.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::MAX_PACKET;
use crate::channel::{Inbound, Inbox, Outbox};

pub(super) struct Stream<R, W> {
    read: R,
    write: W,
    framing: Framing,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    over: bool,
    /// Dropped with the stream: whoever waits for the end sees it.
    _running: oneshot::Sender<()>,
}

impl Stream<Pull, Pin<Box<dyn AsyncWrite + Send>>> {
    pub(super) fn new(inbox: Inbox, outbox: &Outbox, running: oneshot::Sender<()>) -> Self {
        Stream {
            read: Pull {
                inbox,
                rest: Bytes::new(),
            },
            write: Box::pin(outbox.write.make_writer()),
            framing: Framing::default(),
            closed: Box::pin(outbox.closed.clone().cancelled_owned()),
            over: false,
            _running: running,
        }
    }
}

pub(super) fn on_stdio(
    running: oneshot::Sender<()>,
) -> Stream<tokio::io::Stdin, tokio::io::Stdout> {
    Stream {
        read: tokio::io::stdin(),
        write: tokio::io::stdout(),
        framing: Framing::default(),
        closed: Box::pin(CancellationToken::new().cancelled_owned()),
        over: false,
        _running: running,
    }
}

impl<R, W> Stream<R, W> {
    fn poll_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.over = self.over || self.closed.as_mut().poll(cx).is_ready();
        self.over
    }

    fn after<T>(&mut self, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.over |= matches!(poll, Poll::Ready(Err(_)));
        poll
    }
}

impl<R: AsyncRead + Unpin, W: Unpin> AsyncRead for Stream<R, W> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.poll_over(cx) {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let poll = Pin::new(&mut this.read).poll_read(cx, buf);
        let read = buf.filled().get(before..).unwrap_or_default();
        this.over |= !this.framing.follow(read);
        this.after(poll)
    }
}

impl<R: Unpin, W: AsyncWrite + Unpin> AsyncWrite for Stream<R, W> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.poll_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let poll = Pin::new(&mut this.write).poll_write(cx, data);
        this.after(poll)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.write).poll_flush(cx);
        this.after(poll)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.write).poll_shutdown(cx);
        this.after(poll)
    }
}

/// What a client sends, as bytes.
pub(super) struct Pull {
    inbox: Inbox,
    rest: Bytes,
}

impl AsyncRead for Pull {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.rest.is_empty() {
            match ready!(this.inbox.poll_next(cx)) {
                Some(Inbound::Data(data)) => this.rest = data,
                Some(Inbound::Eof) | None => return Poll::Ready(Ok(())),
            }
        }
        let length = this.rest.len().min(buf.remaining());
        buf.put_slice(&this.rest[..length]);
        this.rest.advance(length);
        this.inbox.intake.taken(this.inbox.id, length);
        Poll::Ready(Ok(()))
    }
}

/// Follows the packets in a byte stream, by their lengths.
#[derive(Debug, Default)]
struct Framing {
    header: u32,
    header_bytes: u8,
    body: u32,
}

impl Framing {
    /// Whether all packets that begin in these bytes are of a length that is allowed.
    fn follow(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.body > 0 {
                let length = bytes.len().min(self.body as usize);
                self.body -= u32::try_from(length).unwrap_or(self.body);
                bytes = &bytes[length..];
                continue;
            }
            bytes = rest;
            self.header = self.header << 8 | u32::from(byte);
            self.header_bytes += 1;
            if self.header_bytes == 4 {
                if self.header == 0 || self.header > MAX_PACKET {
                    return false;
                }
                self.body = self.header;
                (self.header, self.header_bytes) = (0, 0);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_followed_in_any_pieces() {
        let packets = [&[0, 0, 0, 2, 9, 9][..], &[0, 0, 0, 1, 7], &[0, 4, 0, 0]].concat();
        for size in 1..=packets.len() {
            let mut framing = Framing::default();
            assert!(
                packets.chunks(size).all(|piece| framing.follow(piece)),
                "{size}"
            );
            assert_eq!(framing.body, MAX_PACKET);
        }
        for bad in [[0, 0, 0, 0], [0, 4, 0, 1], [255; 4], *b"SSH-"] {
            assert!(!Framing::default().follow(&bad));
        }
    }
}
