//! One channel of a session: a shell, a command, a subsystem.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::io::AsyncWrite;

use super::{Pty, Shared, SshError, lock};

/// One channel of a session.
pub struct Channel {
    read: ReadHalf,
    write: WriteHalf,
}

/// What arrives on a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Bytes of standard output, or of the terminal.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// No more bytes follow.
    Eof,
    /// The command ended.
    Exit(ExitStatus),
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u32),
    /// A signal killed it.
    Signal {
        /// The signal's name without `SIG`, such as `TERM`.
        name: String,
        /// The server's words about it.
        message: String,
    },
}

/// The receiving half of a channel.
pub struct ReadHalf {
    inner: ChannelReadHalf,
    /// What arrived while the answer to a request was awaited.
    early: VecDeque<Output>,
    exit: Option<ExitStatus>,
    closed: bool,
}

/// The sending half of a channel.
pub struct WriteHalf {
    inner: ChannelWriteHalf<Msg>,
    shared: Arc<Mutex<Shared>>,
}

impl Channel {
    pub(super) fn new(channel: russh::Channel<Msg>, shared: Arc<Mutex<Shared>>) -> Channel {
        let (read, write) = channel.split();
        Channel {
            read: ReadHalf {
                inner: read,
                early: VecDeque::new(),
                exit: None,
                closed: false,
            },
            write: WriteHalf {
                inner: write,
                shared,
            },
        }
    }

    /// Splits the channel into halves that two tasks can use.
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        (self.read, self.write)
    }

    /// See [`ReadHalf::next`].
    pub async fn next(&mut self) -> Option<Output> {
        self.read.next().await
    }

    /// See [`WriteHalf::write`].
    pub async fn write(&self, data: impl Into<Bytes>) -> Result<(), SshError> {
        self.write.write(data).await
    }

    /// See [`WriteHalf::eof`].
    pub async fn eof(&self) -> Result<(), SshError> {
        self.write.eof().await
    }

    /// See [`WriteHalf::resize`].
    pub async fn resize(&self, cols: u32, rows: u32) -> Result<(), SshError> {
        self.write.resize(cols, rows).await
    }

    /// See [`WriteHalf::signal`].
    pub async fn signal(&self, name: &str) -> Result<(), SshError> {
        self.write.signal(name).await
    }

    /// See [`WriteHalf::close`].
    pub async fn close(&self) -> Result<(), SshError> {
        self.write.close().await
    }

    /// Asks for variables; a server is free to ignore them, so no answer is awaited.
    pub(super) async fn set_env(&mut self, env: &[(&str, &str)]) -> Result<(), SshError> {
        for (name, value) in env {
            self.write
                .done(self.write.inner.set_env(false, *name, *value).await)?;
        }
        Ok(())
    }

    pub(super) async fn request_pty(&mut self, pty: &Pty) -> Result<(), SshError> {
        let request = self
            .write
            .inner
            .request_pty(true, &pty.term, pty.cols, pty.rows, 0, 0, &[])
            .await;
        self.write.done(request)?;
        self.answer(SshError::PtyRefused).await
    }

    pub(super) async fn request_agent(&mut self) -> Result<(), SshError> {
        self.write
            .done(self.write.inner.agent_forward(true).await)?;
        self.answer(SshError::AgentRefused).await
    }

    pub(super) async fn request_shell(&mut self) -> Result<(), SshError> {
        self.write
            .done(self.write.inner.request_shell(true).await)?;
        self.answer(SshError::RequestRefused {
            what: "a shell".to_owned(),
        })
        .await
    }

    pub(super) async fn request_exec(&mut self, command: &str) -> Result<(), SshError> {
        self.write
            .done(self.write.inner.exec(true, command).await)?;
        self.answer(SshError::RequestRefused {
            what: "the command".to_owned(),
        })
        .await
    }

    pub(super) async fn request_subsystem(&mut self, name: &str) -> Result<(), SshError> {
        self.write
            .done(self.write.inner.request_subsystem(true, name).await)?;
        self.answer(SshError::RequestRefused {
            what: format!("the subsystem {name}"),
        })
        .await
    }

    /// Awaits yes or no. What else arrives before it is kept; a server sends next to nothing then.
    async fn answer(&mut self, refused: SshError) -> Result<(), SshError> {
        loop {
            match self.read.inner.wait().await {
                Some(ChannelMsg::Success) => return Ok(()),
                Some(ChannelMsg::Failure) => return Err(refused),
                Some(ChannelMsg::Close) | None => return Err(self.write.lost()),
                Some(other) => {
                    if self.read.early.len() >= EARLY_LIMIT {
                        let reason = "output before the answer to a request".to_owned();
                        return Err(SshError::Protocol { reason });
                    }
                    let output = self.read.output(other);
                    self.read.early.extend(output);
                }
            }
        }
    }
}

impl ReadHalf {
    /// What arrives next; `None` once the channel is closed.
    ///
    /// Reading is what makes room: while nobody reads, the queue is full, and the session waits.
    pub async fn next(&mut self) -> Option<Output> {
        if let Some(early) = self.early.pop_front() {
            return Some(early);
        }
        while !self.closed {
            match self.inner.wait().await {
                Some(ChannelMsg::Close) | None => self.closed = true,
                Some(message) => {
                    if let Some(output) = self.output(message) {
                        return Some(output);
                    }
                }
            }
        }
        None
    }

    /// How the command ended, once that has arrived.
    pub fn exit(&self) -> Option<&ExitStatus> {
        self.exit.as_ref()
    }

    fn output(&mut self, message: ChannelMsg) -> Option<Output> {
        match message {
            ChannelMsg::Data { data } => Some(Output::Stdout(data)),
            ChannelMsg::ExtendedData { data, ext: STDERR } => Some(Output::Stderr(data)),
            ChannelMsg::Eof => Some(Output::Eof),
            ChannelMsg::ExitStatus { exit_status } => {
                self.exit = Some(ExitStatus::Code(exit_status));
                self.exit.clone().map(Output::Exit)
            }
            ChannelMsg::ExitSignal {
                signal_name,
                error_message,
                ..
            } => {
                let name = super::error::printable(&signal_name_of(&signal_name));
                let message = super::error::printable(&error_message);
                self.exit = Some(ExitStatus::Signal { name, message });
                self.exit.clone().map(Output::Exit)
            }
            _ => None,
        }
    }
}

impl WriteHalf {
    /// Sends bytes to standard input. Returns when all are on their way, which takes as long as
    /// the server's window stays shut.
    pub async fn write(&self, data: impl Into<Bytes>) -> Result<(), SshError> {
        self.done(self.inner.data_bytes(data).await)
    }

    /// The same as [`WriteHalf::write`], as an `AsyncWrite`; shutting it down sends the end.
    pub fn writer(&self) -> impl AsyncWrite + Send + Unpin + 'static {
        Box::pin(self.inner.make_writer())
    }

    /// Says that no more bytes follow.
    pub async fn eof(&self) -> Result<(), SshError> {
        self.done(self.inner.eof().await)
    }

    /// Tells the terminal's new size.
    pub async fn resize(&self, cols: u32, rows: u32) -> Result<(), SshError> {
        self.done(self.inner.window_change(cols, rows, 0, 0).await)
    }

    /// Sends a signal to the command, by its name without `SIG`, such as `TERM`.
    pub async fn signal(&self, name: &str) -> Result<(), SshError> {
        self.done(self.inner.signal(Sig::Custom(name.to_owned())).await)
    }

    /// Closes the channel: the terminal hangs up.
    pub async fn close(&self) -> Result<(), SshError> {
        self.done(self.inner.close().await)
    }

    fn done(&self, result: Result<(), russh::Error>) -> Result<(), SshError> {
        result.map_err(|_| self.lost())
    }

    fn lost(&self) -> SshError {
        lock(&self.shared)
            .ended()
            .unwrap_or(SshError::ConnectionLost)
    }
}

/// Messages kept while the answer to a request is awaited.
const EARLY_LIMIT: usize = 16;

/// The number of standard error among the streams of extended data.
const STDERR: u32 = 1;

/// The library keeps the name to itself, and derives a `Debug` that is the name for every signal
/// the protocol knows.
fn signal_name_of(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => name.clone(),
        known => format!("{known:?}"),
    }
}
