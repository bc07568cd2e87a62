//! The agent itself: one process per user, which listens on a unix socket.

use std::{fs, io, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use nix::fcntl::Flock;
use serde::Serialize;
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, UnixStream},
    sync::{Notify, Semaphore},
    time::{Instant, timeout},
};

use super::{
    log::Log,
    place::Place,
    protocol::{
        Answer, Connected, Found, Opened, Pong, ProtocolError, Ready, Request, Status,
        Surroundings, micros, receive, send, send_version,
    },
    stream::{Ends, join},
    tunnels::{Tunnels, busy},
};
use crate::client::{
    network::{Echo, Failure, connect},
    terminal::ended_by_signal,
};

/// Connections at once: streams, and commands that keep a tunnel.
const MAX_CONNECTIONS: usize = 512;

/// Whoever connects says what it wants within this time.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long an agent that begins waits for one that ends.
const SUCCESSION: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// How an attempt to be the agent went.
pub(super) enum Begun {
    /// This process is the agent.
    Agent(Listening),
    /// Another process is.
    Another(u32),
}

/// A socket, and the right to it.
pub(super) struct Listening {
    place: Place,
    listener: UnixListener,
    lock: Flock<fs::File>,
}

/// Becomes the agent, or finds the one that is.
pub(super) async fn begin(place: &Place) -> anyhow::Result<Begun> {
    let deadline = Instant::now() + SUCCESSION;
    loop {
        if let Some(lock) = place.lock()? {
            return Ok(Begun::Agent(Listening::new(place, lock)?));
        }
        if let Ok(pid) = super::client::ping(place).await {
            return Ok(Begun::Another(pid));
        }
        if Instant::now() >= deadline {
            bail!("another agent runs and does not answer\nhint: underpass agent stop");
        }
        // It has just begun, or is about to end.
        tokio::time::sleep(LOOK).await;
    }
}

impl Listening {
    fn new(place: &Place, lock: Flock<fs::File>) -> anyhow::Result<Listening> {
        let path = place.socket();
        // Whoever holds the lock owns the socket: one that is there was left by a crash.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot replace {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(|| {
            format!(
                "cannot listen on {}\nhint: a shorter XDG_RUNTIME_DIR may help",
                path.display()
            )
        })?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Listening {
            place: place.clone(),
            listener,
            lock,
        })
    }

    /// Serves until it is told to stop, or nobody has needed it for `idle`.
    pub(super) async fn serve(self, idle: Duration) {
        let agent = Arc::new(Agent {
            idle,
            started: Instant::now(),
            surroundings: Surroundings::here(),
            tunnels: Arc::new(Tunnels::new(idle)),
            ends: Ends::default(),
            stop: Notify::new(),
        });
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!(pid = std::process::id(), version, "began");
        let why = tokio::select! {
            () = accept(&self.listener, &agent) => "it cannot listen",
            () = agent.tunnels.reap() => "nobody uses it",
            () = agent.stop.notified() => "it was asked to",
            _ = ended_by_signal() => "a signal",
        };
        // The next command finds no agent, and the next agent no lock, from here on.
        let _ = fs::remove_file(self.place.socket());
        drop((self.listener, self.lock));
        agent.tunnels.close().await;
        tracing::info!(why, "ended");
    }
}

struct Agent {
    idle: Duration,
    started: Instant,
    surroundings: Surroundings,
    tunnels: Arc<Tunnels>,
    ends: Ends,
    stop: Notify,
}

async fn accept(listener: &UnixListener, agent: &Arc<Agent>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(error) = super::client::check_peer(&stream) {
            tracing::warn!("refused: {error}");
            continue;
        }
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            let answer = Answer::<()>::Error(busy("connections", MAX_CONNECTIONS));
            // Not waited for: a full house waits for nobody.
            let _ = timeout(LOOK, send(&mut stream, &answer)).await;
            continue;
        };
        let agent = Arc::clone(agent);
        tokio::spawn(async move {
            if let Err(error) = Box::pin(converse(stream, &agent)).await {
                tracing::debug!("a connection broke: {error}");
            }
            drop(slot);
        });
    }
}

async fn converse(mut stream: UnixStream, agent: &Arc<Agent>) -> Result<(), ProtocolError> {
    let request = match timeout(PATIENCE, receive(&mut stream)).await {
        Ok(Ok(request)) => request,
        Ok(Err(ProtocolError::Version(version))) => {
            tracing::info!(version, "refused: another version");
            return Ok(send_version(&mut stream).await?);
        }
        Ok(Err(error)) => return Err(error),
        Err(_) => return Ok(()),
    };
    match request {
        Request::Ping {} => {
            let pong = Pong {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            };
            send(&mut stream, &Answer::Ok(pong)).await
        }
        Request::Status {} => send(&mut stream, &Answer::Ok(status(agent))).await,
        Request::Stop {} => {
            send(&mut stream, &Answer::Ok(())).await?;
            agent.stop.notify_one();
            // Open until the process has ended: whoever asked can wait for that.
            std::future::pending().await
        }
        Request::Open {
            wanted,
            surroundings,
        } => {
            if surroundings != agent.surroundings {
                return send(&mut stream, &Answer::<()>::Error(elsewhere(agent))).await;
            }
            let kept = match Box::pin(agent.tunnels.open(wanted)).await {
                Ok(kept) => kept,
                Err(error) => return send(&mut stream, &Answer::<()>::Error(said(&error))).await,
            };
            let opened = Opened {
                tunnel: kept.id,
                org: kept.org().to_owned(),
                host_cas: kept.own.peer().lease.host_ca_lines().to_vec(),
            };
            send(&mut stream, &Answer::Ok(opened)).await?;
            // Nothing comes but the end.
            let _ = stream.read_u8().await;
            Ok(())
        }
        Request::Connect {
            tunnel,
            host,
            port,
            class,
        } => {
            let connected = async {
                let kept = agent.tunnels.get(tunnel)?;
                let remote = connect(kept.own.carrier(), &host, port, class.into()).await?;
                Ok((kept, remote))
            };
            let (kept, remote) = match connected.await {
                Ok(connected) => connected,
                Err(failure) => return send(&mut stream, &Answer::<()>::Error(failure)).await,
            };
            let number = agent.ends.number();
            let connected = Connected {
                stream: number,
                transport: kept.own.carrier().transport().to_owned(),
            };
            send(&mut stream, &Answer::Ok(connected)).await?;
            Ok(join(stream, remote, number, &agent.ends).await?)
        }
        other => Box::pin(answer(stream, agent, other)).await,
    }
}

/// A question about a tunnel, and its answer.
async fn answer(
    mut stream: UnixStream,
    agent: &Arc<Agent>,
    request: Request,
) -> Result<(), ProtocolError> {
    match request {
        Request::Ready { tunnel } => {
            let ready = async {
                let kept = agent.tunnels.get(tunnel)?;
                let rtt = kept.own.carrier().ready().await?;
                Ok(Ready {
                    micros: micros(rtt),
                    transport: kept.own.carrier().transport().to_owned(),
                })
            };
            reply(&mut stream, ready.await).await
        }
        Request::Certificate { tunnel, user } => {
            let certificate = async {
                let kept = agent.tunnels.get(tunnel)?;
                let certificate = kept.certificate(&user).await;
                certificate.map_err(|error| said(&error))
            };
            reply(&mut stream, Box::pin(certificate).await).await
        }
        Request::Sign { tunnel, data } => {
            let sign = || {
                let kept = agent.tunnels.get(tunnel)?;
                let data = STANDARD.decode(data).map_err(|_| Failure {
                    code: "malformed".to_owned(),
                    message: "what is to be signed is not in base64".to_owned(),
                    hint: String::new(),
                })?;
                Ok(STANDARD.encode(kept.sign(&data)))
            };
            reply(&mut stream, sign()).await
        }
        Request::Lookup { tunnel, name, kind } => {
            let found = async {
                let kept = agent.tunnels.get(tunnel)?;
                let records = kept.own.carrier().lookup(&name, kind.into()).await?;
                Ok(Found::from(records))
            };
            reply(&mut stream, found.await).await
        }
        Request::Echo { tunnel, to } => {
            let echo = async {
                let kept = agent.tunnels.get(tunnel)?;
                Echo::ask(kept.own.carrier(), to).await
            };
            reply(&mut stream, echo.await).await
        }
        Request::Ended { stream: number } => {
            let ended = match agent.ends.of(number) {
                Some(None) => Ok(()),
                Some(Some(failure)) => Err(failure),
                None => Err(Failure {
                    code: "stream_unknown".to_owned(),
                    message: "the agent knows nothing of this stream".to_owned(),
                    hint: "connect again".to_owned(),
                }),
            };
            reply(&mut stream, ended).await
        }
        // Answered before.
        Request::Ping {}
        | Request::Status {}
        | Request::Stop {}
        | Request::Open { .. }
        | Request::Connect { .. } => Ok(()),
    }
}

async fn reply<T: Serialize>(
    stream: &mut UnixStream,
    result: Result<T, Failure>,
) -> Result<(), ProtocolError> {
    let answer = match result {
        Ok(value) => Answer::Ok(value),
        Err(failure) => Answer::Error(failure),
    };
    send(stream, &answer).await
}

/// An error that says its code and hint itself.
fn said(error: &anyhow::Error) -> Failure {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.clone();
    }
    let text = format!("{error:#}");
    let (message, hint) = text.split_once("\nhint: ").unwrap_or((&text, ""));
    Failure {
        code: String::new(),
        message: message.to_owned(),
        hint: hint.to_owned(),
    }
}

/// A command whose packets would go another way than ours. An agent that nobody uses makes room
/// for one that is where the command is.
fn elsewhere(agent: &Agent) -> Failure {
    if !agent.tunnels.in_use() {
        agent.stop.notify_one();
        return Failure {
            code: super::LEAVES.to_owned(),
            message: "the agent was started with another proxy or network, and ends".to_owned(),
            hint: "run the command again".to_owned(),
        };
    }
    Failure {
        code: super::ELSEWHERE.to_owned(),
        message: "the agent was started with another proxy or network".to_owned(),
        hint: "underpass agent stop, and the next command starts one that fits".to_owned(),
    }
}

fn status(agent: &Agent) -> Status {
    Status {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime: agent.started.elapsed().as_secs(),
        idle_limit: agent.idle.as_secs(),
        tunnels: agent.tunnels.status(),
    }
}

/// What an agent that was started by a command leaves behind of that command: its session, its
/// directory and the files it had open.
pub(super) fn detach(place: &Place) -> anyhow::Result<()> {
    let log = super::place::open_private(&place.log())?;
    nix::unistd::dup2_stderr(&log)?;
    // It is a group's leader already where it was started by hand as one; then it stays.
    let _ = nix::unistd::setsid();
    std::env::set_current_dir("/")?;
    close_inherited();
    Log::open(place, true)?.take_traces();
    Ok(())
}

/// Tells the command that started this process how that went.
pub(super) fn announce(words: &str) -> anyhow::Result<()> {
    println!("{words}");
    let null = fs::OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}

/// A pipe that the command's caller waits on would stay open for as long as the agent lives. What
/// this program opens itself is closed on exec; what came through one is not.
fn close_inherited() {
    const CLOSE_ON_EXEC: u32 = 0o2_000_000;
    let Ok(open) = fs::read_dir("/proc/self/fdinfo") else {
        return;
    };
    for entry in open.flatten() {
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(number) = number.filter(|number: &i32| *number > 2) else {
            continue;
        };
        let info = fs::read_to_string(entry.path()).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        if flags.is_some_and(|flags| flags & CLOSE_ON_EXEC == 0) {
            // One that is gone already is what is wanted.
            let _ = nix::unistd::close(number);
        }
    }
}
