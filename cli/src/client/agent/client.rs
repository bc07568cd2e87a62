//! How a command finds the agent, starts it where there is none, and uses its tunnel.

use std::{
    io,
    net::Ipv6Addr,
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    task::{Context as TaskContext, Poll, ready},
    time::Duration,
};

use anyhow::{Context, anyhow};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::de::DeserializeOwned;
use ssh::client::{Identity, Sign, SignFailed, SignFuture, Signer};
use ssh_key::Certificate;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::UnixStream,
    sync::OnceCell,
    time::timeout,
};
use tunnel::{Answer as Records, Class, RecordKind};

use super::{
    BUSY, ELSEWHERE, LEAVES, TUNNEL_GONE,
    place::{Place, open_private},
    protocol::{
        Answer, Connected, Found, Opened, Pong, ProtocolError, Ready, Request, Surroundings,
        SystemId, Wanted, receive, send,
    },
};
use crate::{
    api::{Api, origin},
    client::{
        args::{Scope, System},
        network::{Echo, Failure, Stream, Way},
    },
};

/// How long an agent may take to begin.
const BEGIN: Duration = Duration::from_secs(15);

/// Longer than any question inside the network takes.
const ANSWER: Duration = Duration::from_secs(60);

/// Longer than an agent takes to say goodbye.
const GOODBYE: Duration = Duration::from_secs(15);

/// Between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(50);

/// The connection to the agent failed.
const AGENT_GONE: &str = "agent_gone";

/// Why the agent is not used.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It cannot be, and a tunnel of one's own can.
    Unusable(anyhow::Error),
    /// Control or the network says no, and would again.
    Failed(anyhow::Error),
}

/// A tunnel of the agent.
pub(crate) struct Borrowed {
    place: Place,
    scope: Scope,
    wanted: Wanted,
    current: Mutex<Arc<Current>>,
    transport: Mutex<String>,
    org: String,
    api: OnceCell<Api>,
}

/// The tunnel as it was opened last.
struct Current {
    opened: Opened,
    /// Open for as long as the tunnel is to be kept.
    _hold: UnixStream,
}

impl Borrowed {
    /// Has the agent open a tunnel, without waiting for the gateway.
    pub(crate) async fn open(scope: &Scope, way: Way) -> Result<Borrowed, Refused> {
        let wanted = wanted(scope, way).map_err(Refused::Failed)?;
        let place = Place::find().map_err(Refused::Unusable)?;
        let current = Box::pin(open(&place, &wanted)).await?;
        Ok(Borrowed {
            place,
            scope: scope.clone(),
            wanted,
            org: current.opened.org.clone(),
            current: Mutex::new(Arc::new(current)),
            transport: Mutex::default(),
            api: OnceCell::new(),
        })
    }

    pub(crate) fn org(&self) -> &str {
        &self.org
    }

    /// Control, asked by this process itself.
    pub(crate) async fn api(&self) -> anyhow::Result<&Api> {
        let open = || Api::open(&self.scope.system);
        self.api.get_or_try_init(open).await
    }

    pub(crate) fn host_cas(&self) -> Vec<String> {
        self.current().opened.host_cas.clone()
    }

    /// As the last answer said.
    pub(crate) fn transport(&self) -> String {
        let transport = self.transport.lock();
        transport.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) async fn ready(&self) -> Result<Duration, Failure> {
        let ready: Ready = self.ask(|tunnel| Request::Ready { tunnel }).await?;
        self.note_transport(ready.transport);
        Ok(Duration::from_micros(ready.micros))
    }

    pub(crate) async fn identity(&self, user: &str) -> anyhow::Result<Identity> {
        let user = user.to_owned();
        let certificate: String = self
            .ask(|tunnel| Request::Certificate {
                tunnel,
                user: user.clone(),
            })
            .await?;
        let certificate = Certificate::from_openssh(certificate.trim());
        let signer = AgentSigner {
            place: self.place.clone(),
            tunnel: self.current().opened.tunnel,
        };
        Ok(Identity {
            certificate: certificate.context("control made a certificate that cannot be read")?,
            signer: Signer::External(Box::new(signer)),
        })
    }

    pub(crate) async fn connect(
        &self,
        host: &str,
        port: u16,
        class: Class,
    ) -> Result<Stream, Failure> {
        let request = |tunnel| Request::Connect {
            tunnel,
            host: host.to_owned(),
            port,
            class: class.into(),
        };
        let (connected, socket): (Connected, _) = self.ask_for_stream(request).await?;
        self.note_transport(connected.transport);
        Ok(Box::new(AgentStream {
            socket,
            place: self.place.clone(),
            number: connected.stream,
            end: End::NotYet,
        }))
    }

    pub(crate) async fn lookup(&self, name: &str, kind: RecordKind) -> Result<Records, Failure> {
        let request = |tunnel| Request::Lookup {
            tunnel,
            name: name.to_owned(),
            kind: kind.into(),
        };
        Ok(self.ask::<Found>(request).await?.into())
    }

    pub(crate) async fn ping(&self, to: Ipv6Addr) -> Result<Echo, Failure> {
        let echo: Echo = self.ask(|tunnel| Request::Echo { tunnel, to }).await?;
        self.note_transport(echo.transport.clone());
        Ok(echo)
    }

    fn current(&self) -> Arc<Current> {
        let current = self.current.lock();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }

    fn note_transport(&self, transport: String) {
        *self
            .transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = transport;
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        request: impl Fn(u64) -> Request,
    ) -> Result<T, Failure> {
        let (answer, _) = self.ask_for_stream(request).await?;
        Ok(answer)
    }

    /// Asks; where agent or tunnel have gone meanwhile, once more of those that follow them.
    async fn ask_for_stream<T: DeserializeOwned>(
        &self,
        request: impl Fn(u64) -> Request,
    ) -> Result<(T, UnixStream), Failure> {
        let tunnel = self.current().opened.tunnel;
        let failure = match ask(&self.place, &request(tunnel)).await {
            Err(failure) if [AGENT_GONE, TUNNEL_GONE].contains(&&*failure.code) => failure,
            other => return other,
        };
        tracing::debug!("opened anew: {failure}");
        let current = match Box::pin(open(&self.place, &self.wanted)).await {
            Ok(current) => Arc::new(current),
            Err(Refused::Unusable(error) | Refused::Failed(error)) => {
                tracing::debug!("not opened anew: {error:#}");
                return Err(failure);
            }
        };
        let tunnel = current.opened.tunnel;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = current;
        ask(&self.place, &request(tunnel)).await
    }
}

/// The system as it runs now, and what is wanted of it.
fn wanted(scope: &Scope, way: Way) -> anyhow::Result<Wanted> {
    let system = match scope.system.find()? {
        System::Local(dir) => {
            let running = dir.running()?;
            SystemId {
                data_dir: Some(dir.path().to_owned()),
                url: None,
                run: format!("{} {} {}", running.url, running.pid, running.fingerprint),
            }
        }
        System::Remote(url, login) => SystemId {
            data_dir: None,
            url: Some(origin(&url)),
            run: format!("{} {}", login.user, login.expires),
        },
    };
    Ok(Wanted {
        system,
        org: scope.org.org.clone(),
        way,
    })
}

async fn open(place: &Place, wanted: &Wanted) -> Result<Current, Refused> {
    let request = Request::Open {
        wanted: wanted.clone(),
        surroundings: Surroundings::here(),
    };
    // An agent that makes room is followed by one that fits.
    for _ in 0..2 {
        let socket = reach(place).await.map_err(Refused::Unusable)?;
        let failure = match exchange(socket, &request).await {
            Ok((opened, hold)) => {
                return Ok(Current {
                    opened,
                    _hold: hold,
                });
            }
            Err(failure) => failure,
        };
        match &*failure.code {
            LEAVES => {}
            BUSY | ELSEWHERE | AGENT_GONE => return Err(Refused::Unusable(failure.into())),
            _ => return Err(Refused::Failed(failure.into())),
        }
    }
    Err(Refused::Unusable(anyhow!(
        "the agent ended\nhint: run the command again"
    )))
}

/// A connection to the agent, which is started where there is none.
async fn reach(place: &Place) -> anyhow::Result<UnixStream> {
    if let Ok(socket) = dial(place).await {
        return Ok(socket);
    }
    Box::pin(start(place, None)).await?;
    dial(place).await
}

async fn dial(place: &Place) -> anyhow::Result<UnixStream> {
    let socket = UnixStream::connect(place.socket()).await;
    let socket =
        socket.with_context(|| format!("no agent listens on {}", place.socket().display()))?;
    check_peer(&socket)?;
    Ok(socket)
}

/// Whoever is on the other side has to be the same user.
pub(super) fn check_peer(socket: &UnixStream) -> anyhow::Result<()> {
    let theirs = socket.peer_cred()?.uid();
    let ours = nix::unistd::geteuid().as_raw();
    anyhow::ensure!(
        theirs == ours,
        "the other side of the agent's socket is user {theirs}, not {ours}"
    );
    Ok(())
}

/// Starts an agent of its own session, and returns when it listens; its process id.
pub(super) async fn start(place: &Place, idle: Option<u64>) -> anyhow::Result<u32> {
    let program = std::env::current_exe().context("the path of this program is not known")?;
    let mut command = tokio::process::Command::new(&program);
    command.args(["agent", "run", "--detached"]);
    if let Some(idle) = idle {
        command.args(["--idle", &idle.to_string()]);
    }
    let log = open_private(&place.log()).context("its log cannot be written")?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    let mut child = command
        .spawn()
        .with_context(|| format!("{} cannot be run", program.display()))?;
    let said = child.stdout.take().context("it has no output")?;
    let mut lines = BufReader::new(said).lines();
    let line = timeout(BEGIN, lines.next_line()).await;
    let line = line.map_err(|_| anyhow!("it does not begin\nhint: underpass agent logs"))?;
    let line = line?.unwrap_or_default();
    match line.split_once(' ') {
        Some(("agent", pid)) => pid.parse().context("it said no number"),
        Some(("failed", why)) => Err(anyhow!("{}", why.replace("; hint: ", "\nhint: "))),
        _ => Err(anyhow!("it ended at once\nhint: underpass agent logs")),
    }
}

/// The process id of the agent that runs.
pub(super) async fn ping(place: &Place) -> Result<u32, Failure> {
    let (pong, _): (Pong, _) = ask(place, &Request::Ping {}).await?;
    Ok(pong.pid)
}

/// Tells the agent to end and waits until it has. False where none runs.
pub(super) async fn stop(place: &Place) -> anyhow::Result<bool> {
    let Ok(socket) = dial(place).await else {
        return Ok(false);
    };
    let pid = socket.peer_cred()?.pid();
    let Ok(((), mut rest)) = exchange::<()>(socket, &Request::Stop {}).await else {
        // One of another version does not understand, and its system does.
        let pid = pid.context("its process is not known\nhint: end it by hand")?;
        return end(place, pid).await;
    };
    let ended = tokio::io::AsyncReadExt::read_u8(&mut rest);
    // It ends with the process.
    match timeout(GOODBYE, ended).await {
        Ok(_) => Ok(true),
        Err(_) => Err(anyhow!("it does not end\nhint: underpass agent logs")),
    }
}

async fn end(place: &Place, pid: i32) -> anyhow::Result<bool> {
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGTERM,
    )?;
    for _ in 0..GOODBYE.as_millis() / LOOK.as_millis() {
        if dial(place).await.is_err() {
            return Ok(true);
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(anyhow!("process {pid} does not end\nhint: kill -9 {pid}"))
}

/// One question to the agent that runs.
pub(super) async fn ask<T: DeserializeOwned>(
    place: &Place,
    request: &Request,
) -> Result<(T, UnixStream), Failure> {
    let socket = dial(place)
        .await
        .map_err(|error| gone(&format!("{error:#}")))?;
    exchange(socket, request).await
}

async fn exchange<T: DeserializeOwned>(
    mut socket: UnixStream,
    request: &Request,
) -> Result<(T, UnixStream), Failure> {
    let exchange = async {
        // An agent that has no room for us answers unasked: its words say more than our error.
        let sent = send(&mut socket, request).await;
        match receive(&mut socket).await {
            Ok(answer) => Ok(answer),
            Err(error @ ProtocolError::Version(_)) => Err(error),
            Err(error) => sent.and(Err(error)),
        }
    };
    let answer = timeout(ANSWER, exchange).await;
    match answer.map_err(|_| gone("it does not answer"))? {
        Ok(Answer::Ok(value)) => Ok((value, socket)),
        Ok(Answer::Error(failure)) => Err(failure),
        Err(error) => Err(gone(&error.to_string())),
    }
}

fn gone(why: &str) -> Failure {
    Failure {
        code: AGENT_GONE.to_owned(),
        message: format!("the agent cannot be asked: {why}"),
        hint: "underpass agent stop ends one that is stuck or of another version".to_owned(),
    }
}

/// Signs by the key that the agent keeps to itself.
struct AgentSigner {
    place: Place,
    tunnel: u64,
}

impl Sign for AgentSigner {
    fn sign(&mut self, data: Vec<u8>) -> SignFuture {
        let request = Request::Sign {
            tunnel: self.tunnel,
            data: STANDARD.encode(data),
        };
        let place = self.place.clone();
        Box::pin(async move {
            let signed = ask::<String>(&place, &request).await;
            let (signature, _) = signed.map_err(|failure| SignFailed(failure.to_string()))?;
            STANDARD
                .decode(signature)
                .map_err(|_| SignFailed("it is not in base64".to_owned()))
        })
    }
}

/// A stream through the agent. Its end is believed when the agent confirms it.
struct AgentStream {
    socket: UnixStream,
    place: Place,
    number: u64,
    end: End,
}

type Asking = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

enum End {
    NotYet,
    Asking(Asking),
    Complete,
}

impl AsyncRead for AgentStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            match &mut this.end {
                End::Complete => return Poll::Ready(Ok(())),
                End::NotYet => {
                    let before = buf.filled().len();
                    let read = ready!(Pin::new(&mut this.socket).poll_read(cx, buf));
                    if read.is_ok() && buf.filled().len() > before {
                        return Poll::Ready(Ok(()));
                    }
                    let (place, stream) = (this.place.clone(), this.number);
                    this.end = End::Asking(Box::pin(async move {
                        let request = Request::Ended { stream };
                        let ((), _) = ask(&place, &request).await?;
                        Ok(())
                    }));
                }
                End::Asking(asking) => {
                    let answer = ready!(asking.as_mut().poll(cx));
                    this.end = End::Complete;
                    return Poll::Ready(answer.map_err(|failure| {
                        io::Error::new(io::ErrorKind::ConnectionReset, failure.message)
                    }));
                }
            }
        }
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
