//! One connection: who is let in, and an answer to every request.
//!
//! The protocol library leaves pty, env, x11, shell, exec, subsystem and window requests without
//! a reply unless its handler gives one, and a client that waits for it hangs. Each callback here
//! ends in a success or a failure. None of them waits for a program.
//!
//! It is one file because it is one trait: what its callbacks do lies elsewhere.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};

use russh::server::{Auth, ChannelOpenHandle, Msg, Response, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Pty, Sig};
use ssh::{Authorized, Denied, Trust, authorize};
use ssh_key::Certificate;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::agent::{self, Socket};
use crate::channels::{Channels, Parts, State};
use crate::config::Config;
use crate::environment::{Environment, is_for_clients};
use crate::forward::{self, Target};
use crate::intake::{self, Intake, Verdict};
use crate::modes;
use crate::process;
use crate::program::{Event, Running};
use crate::start::{Request, Start, Terminal};
use crate::trust::{TrustSource, TrustUnavailable};
use crate::tty::{self, Size};
use crate::users::Account;

pub(crate) struct Handler {
    config: Arc<Config>,
    trust: Arc<dyn TrustSource>,
    clock: fn() -> std::time::SystemTime,
    source: SocketAddr,
    /// Told once the client is logged in.
    welcome: Option<oneshot::Sender<()>>,
    login: Option<Login>,
    /// Why the last offer was refused, to be told once to whoever asks.
    refusal: Option<Refusal>,
    told: bool,
    intake: Arc<Intake>,
    channels: Channels,
}

struct Login {
    authorized: Authorized,
    account: Account,
}

/// Why nobody was let in: what a person at the other end is told.
struct Refusal {
    code: &'static str,
    sentence: String,
    hint: &'static str,
}

impl Refusal {
    /// No certificate came as far as this server. The protocol library refuses those of another
    /// time and broken ones by itself; a client then goes on to the plain key beside it.
    fn no_certificate() -> Refusal {
        Refusal {
            code: "no_certificate",
            sentence: "no certificate was offered, or it has ended, has not begun or is damaged; \
                       a key without one opens nothing here"
                .to_owned(),
            hint: "`ssh-keygen -L -f KEY-cert.pub` shows its times, `underpass ssh issue` makes one",
        }
    }
}

/// Why a connection ends by this server's will.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Protocol(#[from] russh::Error),
    #[error("the client sends more than it was granted")]
    Overrun,
}

impl Handler {
    pub(crate) fn new(
        config: Arc<Config>,
        trust: Arc<dyn TrustSource>,
        clock: fn() -> std::time::SystemTime,
        source: SocketAddr,
        welcome: oneshot::Sender<()>,
    ) -> Handler {
        Handler {
            config,
            trust,
            clock,
            source,
            welcome: Some(welcome),
            login: None,
            refusal: None,
            told: false,
            intake: Arc::default(),
            channels: Channels::default(),
        }
    }

    /// Decides on a certificate whose key the client has proven to hold.
    async fn admit(&self, user: &str, certificate: &Certificate) -> Result<Login, Refusal> {
        let (source, key_id) = (self.source, certificate.key_id());
        let refuse = |code: &'static str, sentence: String, hint: &'static str| {
            self.config.counters.refuse(code);
            warn!(code, %source, user, key_id, hint, "login refused: {sentence}");
            Refusal {
                code,
                sentence,
                hint,
            }
        };
        let unavailable = |error: TrustUnavailable| {
            let hint =
                "the instance cannot ask who may log in: try again, then look at its network";
            refuse("trust_unavailable", error.to_string(), hint)
        };
        let decide =
            |trust: &Trust| authorize(certificate, user, source.ip(), (self.clock)(), trust);
        let mut decided = decide(&self.trust.trust().await.map_err(unavailable)?);
        if matches!(decided, Err(Denied::UnknownAuthority { .. })) {
            decided = decide(&self.trust.fresh_trust().await.map_err(unavailable)?);
        }
        let authorized =
            decided.map_err(|denied| refuse(denied.code(), denied.to_string(), denied.hint()))?;
        let account = self.config.users.account(user).map_err(|error| {
            refuse(
                "no_account",
                error.to_string(),
                "log in as a user of the instance",
            )
        })?;
        Ok(Login {
            authorized,
            account,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ChannelId, State>> {
        self.channels.lock()
    }

    fn refuse(&self, code: &'static str) {
        self.config.counters.refuse(code);
        debug!(code, source = %self.source, "request refused");
    }

    /// Makes room for a channel, or says why not.
    fn admit_channel(
        &self,
        channel: Channel<Msg>,
        session: &Session,
    ) -> Result<(ChannelId, State), ChannelOpenFailure> {
        if self.login.is_none() {
            return Err(ChannelOpenFailure::AdministrativelyProhibited);
        }
        if self.lock().len() >= self.config.limits.channels {
            self.refuse("channel_limit");
            return Err(ChannelOpenFailure::ResourceShortage);
        }
        self.config.counters.channel();
        Ok(State::new(channel, &self.intake, session.handle()))
    }

    /// Starts a program on the channel, once. The program's task outlives no connection: it ends
    /// when the channel's state is dropped.
    fn start(&self, id: ChannelId, request: Request) -> bool {
        let Some(login) = &self.login else {
            return false;
        };
        let mut channels = self.lock();
        let Some(state) = channels.get_mut(&id) else {
            return false;
        };
        let Some(Parts {
            inbox,
            outbox,
            events,
        }) = state.parts.take()
        else {
            return false;
        };
        let terminal = state.terminal.take();
        let no_terminal = state.no_terminal.take();
        let variables = std::mem::take(&mut state.environment);
        let agent = state.agent.take();
        drop(channels);

        info!(
            source = %self.source, key_id = login.authorized.key_id(),
            terminal = terminal.is_some(), what = request.name(), "program starts"
        );
        let agent_path = agent.as_ref().map(Socket::path);
        let agent = agent.map(|socket| {
            let client = agent::Client {
                handle: outbox.handle.clone(),
                config: Arc::clone(&self.config),
                channels: self.channels.clone(),
                intake: Arc::clone(&self.intake),
            };
            let ended = CancellationToken::new();
            tokio::spawn(socket.forward(client, ended.clone()));
            ended.drop_guard()
        });
        let start = Start {
            running: Running {
                inbox,
                outbox,
                events,
            },
            request,
            forced: login.authorized.forced_command().map(str::to_owned),
            environment: self.environment(variables, terminal.as_ref(), agent_path),
            account: login.account.clone(),
            terminal,
            no_terminal,
            sftp_program: self.config.sftp_program.clone().unwrap_or_default(),
        };
        let (channels, intake) = (self.channels.clone(), Arc::clone(&self.intake));
        tokio::spawn(async move {
            start.run().await;
            drop(agent);
            channels.remove(id);
            intake.forget(id);
        });
        true
    }

    fn environment(
        &self,
        variables: Vec<(String, String)>,
        terminal: Option<&Terminal>,
        agent: Option<PathBuf>,
    ) -> Environment {
        let mut environment = Environment::of_entry_point(&self.config.environment);
        for (name, value) in variables {
            environment.set(&name, value);
        }
        let (address, port) = (self.source.ip().to_canonical(), self.source.port());
        environment.set("SSH_CLIENT", format!("{address} {port} 22"));
        environment.set("SSH_CONNECTION", format!("{address} {port} :: 22"));
        if let Some(terminal) = terminal {
            environment.set("TERM", terminal.term.clone());
            environment.set("SSH_TTY", terminal.slave.path.clone());
        }
        if let Some(agent) = agent {
            environment.set("SSH_AUTH_SOCK", agent);
        }
        environment
    }
}

impl russh::server::Handler for Handler {
    type Error = Fault;

    /// A plain key proves nothing here, however well it is held.
    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Fault> {
        let fingerprint = key.public_key.fingerprint(ssh_key::HashAlg::Sha256);
        self.config.counters.refuse("plain_key");
        debug!(code = "plain_key", source = %self.source, user, %fingerprint, "a plain key is refused");
        Ok(certificates_alone())
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Fault> {
        match self.admit(user, certificate).await {
            Ok(login) => {
                let (authorized, account) = (&login.authorized, &login.account.name);
                info!(
                    source = %self.source, user, account,
                    key_id = authorized.key_id(), serial = authorized.serial(),
                    fingerprint = authorized.fingerprint(), "login"
                );
                self.config.counters.login();
                self.login = Some(login);
                Ok(Auth::Accept)
            }
            Err(refusal) => {
                self.refusal = Some(refusal);
                Ok(certificates_alone())
            }
        }
    }

    /// Asks nothing: it is the one place where a stock client shows its person a text after a
    /// refusal. Told once, it is not offered again.
    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _: &str,
        _: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Fault> {
        if response.is_some() || self.told {
            return Ok(nothing_more());
        }
        self.told = true;
        let refusal = self.refusal.take().unwrap_or_else(Refusal::no_certificate);
        let Refusal {
            code,
            sentence,
            hint,
        } = refusal;
        Ok(Auth::Partial {
            name: "".into(),
            instructions: format!("login refused: {sentence} ({code})\nhint: {hint}").into(),
            prompts: Cow::Borrowed(&[]),
        })
    }

    async fn auth_none(&mut self, _: &str) -> Result<Auth, Fault> {
        Ok(certificates_alone())
    }

    async fn auth_password(&mut self, _: &str, _: &str) -> Result<Auth, Fault> {
        self.refuse("password");
        Ok(certificates_alone())
    }

    async fn auth_succeeded(&mut self, _: &mut Session) -> Result<(), Fault> {
        if let Some(welcome) = self.welcome.take() {
            // Nobody waits once the connection is being ended.
            let _ = welcome.send(());
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Fault> {
        match self.admit_channel(channel, session) {
            Ok((id, state)) => {
                self.lock().insert(id, state);
                reply.accept().await;
            }
            Err(reason) => reply.reject(reason).await,
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Fault> {
        let permitted = self
            .login
            .as_ref()
            .is_some_and(|login| login.authorized.permit_port_forwarding());
        let target = Target::parse(host, port).filter(|_| permitted);
        let Some(target) = target else {
            self.refuse("forwarding");
            reply
                .reject(ChannelOpenFailure::AdministrativelyProhibited)
                .await;
            return Ok(());
        };
        let (id, mut state) = match self.admit_channel(channel, session) {
            Ok(admitted) => admitted,
            Err(reason) => {
                reply.reject(reason).await;
                return Ok(());
            }
        };
        let Some(Parts { inbox, outbox, .. }) = state.parts.take() else {
            return Ok(());
        };
        self.lock().insert(id, state);
        let (channels, intake) = (self.channels.clone(), Arc::clone(&self.intake));
        tokio::spawn(async move {
            match target.connect().await {
                Some(stream) => {
                    reply.accept().await;
                    forward::run(stream.into_split(), inbox, outbox).await;
                }
                None => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            }
            channels.remove(id);
            intake.forget(id);
        });
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Session) -> Result<(), Fault> {
        let verdict = self.intake.arrived(id, data.len());
        if verdict == Verdict::Overrun {
            self.refuse("window_overrun");
            return Err(Fault::Overrun);
        }
        let waits = self
            .lock()
            .get(&id)
            .is_some_and(|state| state.inlet.push(data));
        if !waits {
            // Nobody takes it any more.
            self.intake.forget(id);
        }
        if verdict == Verdict::Pause {
            tokio::time::sleep(intake::PAUSE).await;
        }
        Ok(())
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        self.intake.next_window()
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Fault> {
        if let Some(state) = self.lock().get(&id) {
            state.inlet.eof();
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Fault> {
        self.lock().remove(&id);
        self.intake.forget(id);
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        cols: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Fault> {
        let permitted = self
            .login
            .as_ref()
            .is_some_and(|login| login.authorized.permit_pty());
        let size = Size::new(cols, rows, width, height);
        let opened = if permitted {
            tty::open(size).map_err(|error| error.to_string())
        } else {
            Err("the certificate does not permit a terminal".to_owned())
        };
        let mut channels = self.lock();
        let Some(state) = channels.get_mut(&id).filter(|state| state.parts.is_some()) else {
            drop(channels);
            return Ok(session.channel_failure(id)?);
        };
        match opened {
            Ok((master, slave)) => {
                if let Err(error) = modes::apply(&slave.file, modes) {
                    debug!(%error, "the terminal's modes cannot be set");
                }
                let plain = is_for_clients("TERM", term) && !term.is_empty();
                let term = if plain {
                    term.to_owned()
                } else {
                    "dumb".to_owned()
                };
                state.terminal = Some(Terminal {
                    master,
                    slave,
                    term,
                });
                session.channel_success(id)?;
            }
            Err(reason) => {
                warn!(source = %self.source, "no terminal: {reason}");
                state.no_terminal = Some(reason);
                drop(channels);
                self.refuse("pty");
                session.channel_failure(id)?;
            }
        }
        Ok(())
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Fault> {
        let mut channels = self.lock();
        match channels.get_mut(&id) {
            Some(state) if is_for_clients(name, value) && state.environment.len() < VARIABLES => {
                state.environment.push((name.to_owned(), value.to_owned()));
                session.channel_success(id)?;
            }
            _ => session.channel_failure(id)?,
        }
        Ok(())
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Fault> {
        answer(id, self.start(id, Request::Shell), session)
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Fault> {
        let whole = !command.contains(&0);
        answer(
            id,
            whole && self.start(id, Request::Command(command.to_vec())),
            session,
        )
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Fault> {
        answer(id, name == "sftp" && self.start(id, Request::Sftp), session)
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        cols: u32,
        rows: u32,
        width: u32,
        height: u32,
        session: &mut Session,
    ) -> Result<(), Fault> {
        let size = Size::new(cols, rows, width, height);
        let channels = self.lock();
        let done = channels
            .get(&id)
            .is_some_and(|state| match &state.terminal {
                Some(terminal) => terminal.master.resize(size).is_ok(),
                None => state.events.try_send(Event::Resize(size)).is_ok(),
            });
        drop(channels);
        answer(id, done, session)
    }

    async fn signal(
        &mut self,
        id: ChannelId,
        signal: Sig,
        session: &mut Session,
    ) -> Result<(), Fault> {
        let name = match signal {
            Sig::Custom(name) => name,
            known => format!("{known:?}"),
        };
        let done = process::signal(&name).is_some_and(|signal| {
            self.lock()
                .get(&id)
                .is_some_and(|state| state.events.try_send(Event::Signal(signal)).is_ok())
        });
        answer(id, done, session)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Fault> {
        self.refuse("x11");
        answer(id, false, session)
    }

    async fn agent_request(&mut self, id: ChannelId, _: &mut Session) -> Result<bool, Fault> {
        let permitted = self.login.as_ref();
        let permitted = permitted.filter(|login| login.authorized.permit_agent_forwarding());
        let Some(login) = permitted else {
            self.refuse("agent_forwarding");
            return Ok(false);
        };
        let mut channels = self.channels.lock();
        let waits = |state: &&mut State| state.parts.is_some() && state.agent.is_none();
        let Some(state) = channels.get_mut(&id).filter(waits) else {
            return Ok(false);
        };
        match Socket::open(&login.account) {
            Ok(socket) => {
                state.agent = Some(socket);
                Ok(true)
            }
            Err(error) => {
                drop(channels);
                warn!(source = %self.source, %error, "no socket for the agent");
                self.refuse("agent_socket");
                Ok(false)
            }
        }
    }

    async fn tcpip_forward(
        &mut self,
        _: &str,
        _: &mut u32,
        _: &mut Session,
    ) -> Result<bool, Fault> {
        self.refuse("remote_forwarding");
        Ok(false)
    }
}

/// Programs hold on to the channels' states; this is what hangs up on them.
impl Drop for Handler {
    fn drop(&mut self) {
        self.lock().clear();
    }
}

/// Refuses an offer; what may follow is another, or the question why.
fn certificates_alone() -> Auth {
    rejected(&METHODS)
}

/// Refuses, and has said why.
fn nothing_more() -> Auth {
    rejected(&METHODS[..1])
}

fn rejected(methods: &[MethodKind]) -> Auth {
    Auth::Reject {
        proceed_with_methods: Some(MethodSet::from(methods)),
        partial_success: false,
    }
}

/// Certificates let in. Keyboard-interactive lets nobody in: it tells why.
pub(crate) const METHODS: [MethodKind; 2] =
    [MethodKind::PublicKey, MethodKind::KeyboardInteractive];

fn answer(id: ChannelId, yes: bool, session: &mut Session) -> Result<(), Fault> {
    if yes {
        session.channel_success(id)?;
    } else {
        session.channel_failure(id)?;
    }
    Ok(())
}

/// Variables that a client may set on one channel.
const VARIABLES: usize = 32;
