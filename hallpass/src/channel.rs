//! The two ends of one channel, as a program's task holds them.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use russh::server::{Handle, Msg};
use russh::{ChannelId, ChannelWriteHalf, Sig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::intake::Intake;

/// What a client sends on a channel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Inbound {
    Data(Bytes),
    Eof,
}

/// What waits for a program: its end of the queue.
///
/// The queue has no bound of its own: [`Intake`] bounds what gets here.
pub(crate) struct Inbox {
    pub(crate) id: ChannelId,
    pub(crate) intake: Arc<Intake>,
    queue: Arc<Mutex<Queue>>,
}

/// What waits for a program: the connection's end of the queue. Dropping it ends the queue.
#[derive(Debug)]
pub(crate) struct Inlet(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<BytesMut>,
    eof: bool,
    /// The connection is gone.
    ended: bool,
    /// The program is gone.
    unread: bool,
    reader: Option<Waker>,
}

/// A queue between a connection and a program.
pub(crate) fn queue(id: ChannelId, intake: Arc<Intake>) -> (Inlet, Inbox) {
    let queue = Arc::<Mutex<Queue>>::default();
    (Inlet(Arc::clone(&queue)), Inbox { id, intake, queue })
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inlet {
    /// Queues data, or says that nobody reads it. Small pieces share a chunk: many of them cost no
    /// more than few large ones.
    pub(crate) fn push(&self, data: &[u8]) -> bool {
        let mut queue = lock(&self.0);
        if queue.unread {
            return false;
        }
        match queue.chunks.back_mut() {
            Some(last) if last.len() + data.len() <= CHUNK => last.extend_from_slice(data),
            _ => queue.chunks.push_back(BytesMut::from(data)),
        }
        wake(queue);
        true
    }

    pub(crate) fn eof(&self) {
        let mut queue = lock(&self.0);
        queue.eof = true;
        wake(queue);
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        let mut queue = lock(&self.0);
        queue.ended = true;
        wake(queue);
    }
}

/// Wakes the reader with the queue unlocked.
fn wake(mut queue: MutexGuard<'_, Queue>) {
    let reader = queue.reader.take();
    drop(queue);
    if let Some(reader) = reader {
        reader.wake();
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let mut queue = lock(&self.queue);
        queue.unread = true;
        queue.chunks.clear();
    }
}

/// The way to the client. Every send waits for the client's window.
#[derive(Clone)]
pub(crate) struct Outbox {
    pub(crate) id: ChannelId,
    pub(crate) write: Arc<ChannelWriteHalf<Msg>>,
    pub(crate) handle: Handle,
    /// The client closed the channel, or is gone.
    pub(crate) closed: CancellationToken,
}

/// The client closed the channel, or is gone.
#[derive(Debug)]
pub(crate) struct Closed;

/// How a program ended.
#[derive(Debug)]
pub(crate) enum Exit {
    Code(u32),
    Signal { name: String, core_dumped: bool },
}

impl Inbox {
    /// What comes next; `None` once the client closed the channel, or is gone.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Inbound>> {
        let mut queue = lock(&self.queue);
        if queue.ended {
            Poll::Ready(None)
        } else if let Some(chunk) = queue.chunks.pop_front() {
            Poll::Ready(Some(Inbound::Data(chunk.freeze())))
        } else if std::mem::take(&mut queue.eof) {
            Poll::Ready(Some(Inbound::Eof))
        } else {
            queue.reader = Some(cx.waker().clone());
            Poll::Pending
        }
    }

    async fn next(&mut self) -> Option<Inbound> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Copies what the client sends until it sends no more, or until nobody takes it.
    pub(crate) async fn feed(&mut self, mut into: impl AsyncWrite + Unpin) {
        while let Some(Inbound::Data(data)) = self.next().await {
            let written = into.write_all(&data).await.is_ok() && into.flush().await.is_ok();
            self.intake.taken(self.id, data.len());
            if !written {
                return;
            }
        }
        // A pipe ends by being dropped, a socket by being shut down.
        let _ = into.shutdown().await;
    }

    /// Drops what the client sends, so that it does not wait for ever.
    pub(crate) async fn drain(mut self) {
        while let Some(inbound) = self.next().await {
            if let Inbound::Data(data) = inbound {
                self.intake.taken(self.id, data.len());
            }
        }
    }
}

impl Outbox {
    pub(crate) async fn stdout(&self, data: Bytes) -> Result<(), Closed> {
        self.unless_closed(self.write.data_bytes(data)).await
    }

    pub(crate) async fn stderr(&self, data: Bytes) -> Result<(), Closed> {
        self.unless_closed(self.write.extended_data_bytes(STDERR, data))
            .await
    }

    /// Copies until the source ends.
    pub(crate) async fn copy(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        stderr: bool,
    ) -> Result<(), Closed> {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            match from.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            }
            let data = buffer.split().freeze();
            if stderr {
                self.stderr(data).await?;
            } else {
                self.stdout(data).await?;
            }
        }
    }

    /// Says how the program ended, and closes the channel: status, end, close, in this order.
    pub(crate) async fn finish(&self, exit: Exit) {
        let goodbye = async {
            match exit {
                Exit::Code(code) => self.write.exit_status(code).await,
                Exit::Signal { name, core_dumped } => {
                    let signal = Sig::Custom(name);
                    let sent = self.handle.exit_signal_request(
                        self.id,
                        signal,
                        core_dumped,
                        String::new(),
                        "en".to_owned(),
                    );
                    sent.await.map_err(|()| russh::Error::SendError)
                }
            }?;
            self.write.eof().await?;
            self.write.close().await
        };
        let _ = self.unless_closed(goodbye).await;
    }

    /// A waiting send is given up when the client closes the channel.
    pub(crate) async fn unless_closed<T>(
        &self,
        send: impl Future<Output = Result<T, russh::Error>>,
    ) -> Result<T, Closed> {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(Closed),
            sent = send => sent.map_err(|_| Closed),
        }
    }
}

const CHUNK: usize = 32 * 1024;
const STDERR: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::tests::channel;

    #[tokio::test]
    async fn small_pieces_share_a_chunk() {
        let (inlet, mut inbox) = queue(channel(1), Arc::default());
        for _ in 0..CHUNK {
            assert!(inlet.push(b"ab"));
        }
        inlet.eof();
        assert_eq!(lock(&inbox.queue).chunks.len(), 2);
        for _ in 0..2 {
            let Some(Inbound::Data(data)) = inbox.next().await else {
                panic!()
            };
            assert_eq!(data.len(), CHUNK);
        }
        assert_eq!(inbox.next().await, Some(Inbound::Eof));
        drop(inlet);
        assert_eq!(inbox.next().await, None);
    }

    #[tokio::test]
    async fn either_end_may_go() {
        let (inlet, inbox) = queue(channel(1), Arc::default());
        drop(inbox);
        assert!(!inlet.push(b"x"));
        let (inlet, mut inbox) = queue(channel(1), Arc::default());
        let waiting = tokio::spawn(async move { inbox.next().await });
        tokio::task::yield_now().await;
        drop(inlet);
        assert_eq!(waiting.await.unwrap(), None);
    }
}
