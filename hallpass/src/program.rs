//! Runs what a client asks for on a channel, from its start to the channel's close.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use crate::channel::{Closed, Exit, Inbox, Outbox};
use crate::process::{self, Plan};
use crate::tty::{self, Keyboard, Master, Slave};

/// What else can happen to a program.
#[derive(Debug)]
pub(crate) enum Event {
    Resize(tty::Size),
    Signal(Signal),
}

/// A channel with a program on it.
pub(crate) struct Running {
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
    pub(crate) events: mpsc::Receiver<Event>,
}

impl Running {
    /// Says on standard error why nothing runs.
    pub(crate) async fn fail(self, reason: &str, code: u32) {
        let line = Bytes::from(format!("hallpass: {reason}\r\n"));
        let _ = self.outbox.stderr(line).await;
        self.outbox.finish(Exit::Code(code)).await;
    }

    /// Runs on pipes: standard output and standard error stay apart.
    pub(crate) async fn on_pipes(self, plan: Plan) {
        let (mut child, group) = match plan.start() {
            Ok(started) => started,
            Err(error) => return self.not_started(&error).await,
        };
        let Running {
            inbox,
            outbox,
            mut events,
        } = self;
        let feeding = child.stdin.take().map(|stdin| feed(inbox, stdin));
        let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
        let output = async {
            tokio::try_join!(
                copy(&outbox, &mut stdout, false),
                copy(&outbox, &mut stderr, true)
            )
        };
        // Standard input has no say in when this ends: some clients never close theirs. What the
        // program's own children still write is waited for, as sshd does.
        let ended = async {
            let (status, output) = tokio::join!(child.wait(), output);
            output.map(|_| status)
        };
        let ended = tokio::select! {
            ended = ended => ended,
            () = outbox.closed.cancelled() => Err(Closed),
            () = signals(&mut events, None, group) => Err(Closed),
        };
        drop(feeding);
        match ended {
            Ok(status) => outbox.finish(process::exit(&status)).await,
            Err(Closed) => hang_up(child, group, last_words(stdout, stderr)),
        }
    }

    /// Runs on a terminal.
    pub(crate) async fn on_terminal(self, plan: Plan, master: Master, slave: Slave) {
        let (mut child, group) = match plan.start_on(slave) {
            Ok(started) => started,
            Err(error) => return self.not_started(&error).await,
        };
        let Running {
            inbox,
            outbox,
            mut events,
        } = self;
        let master = Arc::new(master);
        let feeding = feed(inbox, Keyboard(Arc::clone(&master)));
        let exited = CancellationToken::new();
        let ended = async {
            let wait = async {
                let status = child.wait().await;
                exited.cancel();
                status
            };
            let (status, output) = tokio::join!(wait, screen(&master, &outbox, &exited));
            output.map(|()| status)
        };
        let ended = tokio::select! {
            ended = ended => ended,
            () = outbox.closed.cancelled() => Err(Closed),
            () = signals(&mut events, Some(&master), group) => Err(Closed),
        };
        drop(feeding);
        match ended {
            Ok(status) => outbox.finish(process::exit(&status)).await,
            Err(Closed) => hang_up(child, group, async {}),
        }
    }

    async fn not_started(self, error: &io::Error) {
        warn!(%error, "a program did not start");
        self.fail(&format!("the program does not start: {error}"), NOT_STARTED)
            .await;
    }
}

/// Feeds a program for as long as it is wanted.
fn feed(mut inbox: Inbox, into: impl AsyncWrite + Send + Unpin + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        inbox.feed(into).await;
        inbox.drain().await;
    }))
}

async fn copy(
    outbox: &Outbox,
    from: &mut Option<impl AsyncRead + Unpin>,
    stderr: bool,
) -> Result<(), Closed> {
    match from {
        Some(from) => outbox.copy(from, stderr).await,
        None => Ok(()),
    }
}

/// Copies what appears on the terminal. A job left in the background keeps the terminal open: once
/// the program itself has ended, silence is the end.
async fn screen(
    master: &Master,
    outbox: &Outbox,
    exited: &CancellationToken,
) -> Result<(), Closed> {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let silence = async {
            exited.cancelled().await;
            tokio::time::sleep(SILENCE).await;
        };
        let read = tokio::select! {
            biased;
            read = master.read(&mut buffer) => read,
            () = silence => return Ok(()),
        };
        match read {
            Ok(0) => return Ok(()),
            Ok(length) => {
                outbox
                    .stdout(Bytes::copy_from_slice(&buffer[..length]))
                    .await?;
            }
            Err(error) => {
                debug!(%error, "the terminal cannot be read");
                return Ok(());
            }
        }
    }
}

/// Passes on events until there can be no more, and then waits for ever: a channel that is closed
/// says so by itself.
async fn signals(events: &mut mpsc::Receiver<Event>, master: Option<&Arc<Master>>, group: Pid) {
    while let Some(event) = events.recv().await {
        match (event, master) {
            (Event::Resize(size), Some(master)) => {
                if let Err(error) = master.resize(size) {
                    debug!(%error, "the terminal does not change its size");
                }
            }
            (Event::Resize(_), None) => {}
            (Event::Signal(signal), master) => {
                let in_foreground = master.map(|master| master.signal(signal));
                if !matches!(in_foreground, Some(Ok(()))) {
                    tty::signal_group(group, signal);
                }
            }
        }
    }
    std::future::pending::<()>().await;
}

/// The client is gone: tells the program and its children so, as a terminal would.
fn hang_up(mut child: Child, group: Pid, last_words: impl Future<Output = ()> + Send + 'static) {
    tty::signal_group(group, Signal::SIGHUP);
    tty::signal_group(group, Signal::SIGCONT);
    tokio::spawn(async move {
        last_words.await;
        // Somebody has to notice when it ends, or it stays as a zombie.
        child.wait().await
    });
}

/// Takes what a program still has to say while it cleans up: a closed pipe would kill it first.
async fn last_words(
    mut stdout: Option<impl AsyncRead + Unpin>,
    mut stderr: Option<impl AsyncRead + Unpin>,
) {
    async fn hear(from: &mut Option<impl AsyncRead + Unpin>) {
        if let Some(from) = from {
            // Whatever it is, nobody listens any more.
            let _ = tokio::io::copy(from, &mut tokio::io::sink()).await;
        }
    }
    let both = async { tokio::join!(hear(&mut stdout), hear(&mut stderr)) };
    let _ = tokio::time::timeout(LAST_WORDS, both).await;
}

/// How long a program may still write after its client is gone.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long a terminal has to be silent after its program ended.
const SILENCE: Duration = Duration::from_millis(50);
/// The exit code of a program that is not there.
const NOT_STARTED: u32 = 127;
