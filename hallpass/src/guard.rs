//! A connection's stream with a switch to end it and a limit on how long a write may stall.
//!
//! The protocol library's session ends when its stream does, and at no other word: a client that
//! stops reading would hold it for ever.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

pub(crate) struct Guard<S> {
    stream: S,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Guard<S> {
    pub(crate) fn new(stream: S, end: CancellationToken, stall: Duration) -> Guard<S> {
        Guard {
            stream,
            ended: Box::pin(end.cancelled_owned()),
            stall,
            stalled: None,
        }
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.ended.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }

    /// Watches the clock while a write does not move.
    fn stalling<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.stalled = None;
            return poll;
        }
        let stall = self.stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(stall)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => {
                stalled.as_mut().reset(Instant::now() + stall);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_ended(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_ended(cx)?;
        let poll = Pin::new(&mut self.stream).poll_write(cx, data);
        self.stalling(cx, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ended(cx)?;
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        self.stalling(cx, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ended(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stalled_write_ends() {
        let (near, mut far) = tokio::io::duplex(64);
        let stall = Duration::from_secs(5);
        let mut guard = Guard::new(near, CancellationToken::new(), stall);
        guard.write_all(&[0; 64]).await.unwrap();
        let started = Instant::now();
        let error = guard.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed(), stall);

        far.read_exact(&mut [0; 64]).await.unwrap();
        guard.write_all(&[0; 64]).await.unwrap();
    }

    #[tokio::test]
    async fn the_switch_ends_a_read() {
        let (near, _far) = tokio::io::duplex(64);
        let end = CancellationToken::new();
        let mut guard = Guard::new(near, end.clone(), Duration::from_secs(5));
        let read = tokio::spawn(async move { guard.read_u8().await });
        tokio::task::yield_now().await;
        end.cancel();
        let error = read.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
