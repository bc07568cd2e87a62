//! A stream whose writes do not wait while there is something to read.
//!
//! The protocol library writes what it has and waits until the stream took all of it; while it
//! waits, it does not read. Where the library is on both sides, and both have much to write, each
//! waits for the other to read, for ever. So writes are taken here, and every look for something
//! to read moves them on.
//!
//! What waits is bounded twice: by the windows that the server granted, and by [`MOST`], beyond
//! which writes wait as they would without this.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What waits at most, in bytes: the windows of four channels of a server like ours.
const MOST: usize = 8 * 1024 * 1024;

pub(super) struct Outbox<S> {
    stream: S,
    waiting: VecDeque<u8>,
    /// The stream took bytes that it was not told to flush yet.
    unflushed: bool,
}

impl<S: AsyncWrite + Unpin> Outbox<S> {
    pub(super) fn new(stream: S) -> Outbox<S> {
        Outbox {
            stream,
            waiting: VecDeque::new(),
            unflushed: false,
        }
    }

    /// Moves what waits on, as far as the stream takes it. Ready when nothing waits.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let (front, _) = self.waiting.as_slices();
            let taken = match Pin::new(&mut self.stream).poll_write(cx, front) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(taken)) => taken,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            self.waiting.drain(..taken);
            self.unflushed = true;
        }
        // What a burst needed is not kept.
        self.waiting.shrink_to(KEPT);
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                other => return other,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Outbox<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let drained = self.poll_drain(cx);
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        // What the server said last is read before it is said that it does not listen.
        match (drained, read) {
            (Poll::Ready(Err(error)), Poll::Pending) => Poll::Ready(Err(error)),
            (_, read) => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Outbox<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        let mut taken = 0;
        if self.waiting.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, bytes) {
                Poll::Ready(Ok(n)) => taken = n,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
            self.unflushed |= taken > 0;
        }
        let room = MOST - self.waiting.len();
        let rest = &bytes[taken..];
        let rest = &rest[..rest.len().min(room)];
        self.waiting.extend(rest);
        taken += rest.len();
        if taken == 0 && !bytes.is_empty() {
            return Poll::Pending;
        }
        Poll::Ready(Ok(taken))
    }

    /// Waits for nothing: a caller that waited here would not read.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_drain(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.stream).poll_shutdown(cx),
            other => other,
        }
    }
}

/// Room that stays when nothing waits.
const KEPT: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Polls once.
    async fn once<F: Future>(future: F) -> Poll<F::Output> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
    }

    #[tokio::test]
    async fn writes_do_not_wait_and_reading_moves_them_on() {
        let (near, mut far) = duplex(16);
        let mut near = Outbox::new(near);
        let words: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        assert!(once(near.write_all(&words)).await.is_ready());
        assert!(once(near.flush()).await.is_ready());

        let mut arrived = Vec::new();
        let mut buffer = [0; 64];
        while arrived.len() < words.len() {
            let mut there = [0; 64];
            tokio::select! {
                _ = near.read(&mut buffer) => panic!("there is nothing to read"),
                n = far.read(&mut there) => arrived.extend_from_slice(&there[..n.unwrap()]),
            }
        }
        assert!(arrived == words);
        assert!(near.waiting.capacity() <= KEPT);

        far.write_all(b"answer").await.unwrap();
        assert_eq!(near.read(&mut buffer).await.unwrap(), 6);
    }

    #[tokio::test]
    async fn what_waits_is_bounded() {
        let (near, _far) = duplex(16);
        let mut near = Outbox::new(near);
        let words = vec![7; MOST + 17];
        assert!(once(near.write_all(&words)).await.is_pending());
        assert_eq!(near.waiting.len(), MOST);
        assert!(once(near.write_all(b"more")).await.is_pending());
    }

    #[tokio::test]
    async fn nothing_is_lost_at_the_end() {
        let (near, mut far) = duplex(16);
        let mut near = Outbox::new(near);
        near.write_all(&[7; 1000]).await.unwrap();
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            all
        });
        near.shutdown().await.unwrap();
        assert_eq!(reading.await.unwrap(), [7; 1000]);
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_said_by_reading_too() {
        let (near, far) = duplex(16);
        let mut near = Outbox::new(near);
        near.write_all(&[7; 1000]).await.unwrap();
        drop(far);
        assert!(near.write_all(b"more").await.is_err());
    }
}
