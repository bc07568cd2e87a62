//! One connection of a command, joined to one stream of a tunnel.
//!
//! A unix socket knows one end, and no reason for it: a stream that was cut looks like one that was
//! complete, and so does an agent that was killed. Whoever reads the end therefore asks how it
//! came about, and takes no answer for a cut.

use std::{
    collections::VecDeque,
    io,
    os::fd::AsFd,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::UnixStream,
};

use crate::client::network::Failure;

/// Between the two, each way.
const COPY: usize = 64 * 1024;

/// Ends that are remembered: they are asked for at once.
const REMEMBERED: usize = 4096;

/// How streams have ended.
#[derive(Default)]
pub(super) struct Ends {
    next: AtomicU64,
    ended: Mutex<VecDeque<(u64, Option<Failure>)>>,
}

impl Ends {
    /// The number of a new stream.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    fn note(&self, stream: u64, failure: Option<Failure>) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() == REMEMBERED {
            ended.pop_front();
        }
        ended.push_back((stream, failure));
    }

    /// What ended a stream: nothing, where it was complete. Asked once.
    pub(super) fn of(&self, stream: u64) -> Option<Option<Failure>> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let at = ended.iter().rposition(|(number, _)| *number == stream)?;
        ended.remove(at).map(|(_, failure)| failure)
    }
}

/// Joins the two until both directions have ended, or one of the two is gone.
pub(super) async fn join(
    local: UnixStream,
    remote: carrier::TcpStream,
    number: u64,
    ends: &Ends,
) -> io::Result<()> {
    // A handle of its own, so that its readiness is nobody else's.
    let whole = std::os::unix::net::UnixStream::from(local.as_fd().try_clone_to_owned()?);
    let whole = UnixStream::from_std(whole)?;
    let (mut from_local, mut to_local) = local.into_split();
    let (mut from_remote, mut to_remote) = tokio::io::split(remote);
    let up = async {
        let mut buffer = vec![0; COPY];
        loop {
            let n = from_local.read(&mut buffer).await.unwrap_or(0);
            if n == 0 {
                break;
            }
            if to_remote.write_all(&buffer[..n]).await.is_err() {
                // The reading side says why, and when.
                std::future::pending::<()>().await;
            }
        }
        // As above.
        let _ = to_remote.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; COPY];
        loop {
            match from_remote.read(&mut buffer).await {
                Ok(0) => {
                    ends.note(number, None);
                    break to_local.shutdown().await.is_ok();
                }
                Ok(n) => {
                    if to_local.write_all(&buffer[..n]).await.is_err() {
                        break false;
                    }
                }
                Err(error) => {
                    ends.note(number, Some(cut(&error)));
                    break false;
                }
            }
        }
    };
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    let mut gone = std::pin::pin!(gone(&whole));
    let (mut up_ended, mut down_ended) = (false, false);
    while !(up_ended && down_ended) {
        tokio::select! {
            () = &mut up, if !up_ended => up_ended = true,
            complete = &mut down, if !down_ended => {
                if !complete {
                    break;
                }
                down_ended = true;
            }
            // What it wrote is on its way, and nobody is there for an answer.
            () = &mut gone, if up_ended => break,
        }
    }
    Ok(())
}

fn cut(error: &io::Error) -> Failure {
    Failure {
        code: "stream_cut".to_owned(),
        message: error.to_string(),
        hint: "connect again".to_owned(),
    }
}

/// Waits until the other side has closed its end altogether: a socket that it will only write no
/// more to still takes what comes.
async fn gone(socket: &UnixStream) {
    while let Ok(ready) = socket.ready(Interest::WRITABLE).await {
        if ready.is_write_closed() {
            return;
        }
        // Room to write is no news; this waits for the next change.
        let _ = socket.try_io(Interest::WRITABLE, || -> io::Result<()> {
            Err(io::ErrorKind::WouldBlock.into())
        });
    }
}
