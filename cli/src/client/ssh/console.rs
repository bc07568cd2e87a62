//! `underpass ssh console`

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, anyhow};
use http::Method;
use serde_json::json;
use ssh::client::{
    ExitStatus, HostPolicy, Identity, Options, Output, Pty, ReadHalf, Session, Signer, SshError,
    WriteHalf,
};
use ssh_key::{Certificate, PublicKey};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};
use tunnel::Class;

use crate::client::{
    network::{self, Io, Network, Peer},
    ssh::{Certified, fresh_key, key_agent, target, watch},
    terminal::{self, RawMode, ended_by_signal, exit_code_of_signal},
};

/// Arguments of `ssh console`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    target: target::TargetArgs,
    /// Run this command, passed on as it is, instead of a shell
    #[arg(long, short = 'C', value_name = "COMMAND", allow_hyphen_values = true)]
    command: Option<String>,
    /// Log in as this user
    #[arg(long, short, value_name = "USER", default_value = "root")]
    user: String,
    /// Allocate a terminal for a command too, or where standard input is none
    #[arg(long)]
    pty: bool,
    /// Let programs there ask this machine's ssh-agent, for as long as the session lasts
    ///
    /// Whoever is superuser on the instance can ask it meanwhile, too.
    #[arg(long)]
    forward_agent: bool,
    /// Say nothing but errors
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    network: network::NetworkArgs,
}

/// The client's own failures, as ssh has them.
const FAILED: u8 = 255;

/// Runs it, and ends as the remote command does.
pub(crate) async fn run(args: Args) -> ExitCode {
    match Box::pin(session(&args)).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("underpass: {}", crate::output::explained(&error));
            ExitCode::from(FAILED)
        }
    }
}

async fn session(args: &Args) -> anyhow::Result<u8> {
    let network = if args.forward_agent {
        // Before anything is opened for nothing.
        drop(key_agent::connect().await?);
        // Nobody else's session shares a certificate that lets the agent be asked.
        Box::pin(Network::open(&args.network.own())).await?
    } else {
        Box::pin(Network::open(&args.network)).await?
    };
    let result = tokio::select! {
        result = Box::pin(within(args, &network)) => result,
        signal = ended_by_signal() => Ok(exit_code_of_signal(signal)),
    };
    network.close().await;
    result
}

async fn within(args: &Args, network: &Network) -> anyhow::Result<u8> {
    let host = args.target.choose(network).await?;
    let session = Box::pin(open(args, network, &host)).await?;
    if !args.quiet && io::stderr().is_terminal() {
        let way = network.transport();
        eprintln!("connected to {host} over {way}");
    }
    let wants_pty = args.pty || (args.command.is_none() && io::stdin().is_terminal());
    let pty = wants_pty.then(|| {
        let (cols, rows) = terminal::size();
        let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
        Pty { term, cols, rows }
    });
    let channel = match (&args.command, &pty) {
        (Some(command), pty) => session.exec(command, pty.as_ref(), &[]).await,
        (None, Some(pty)) => session.open_shell(pty, &[]).await,
        (None, None) => session.open_shell_on_pipes(&[]).await,
    };
    let (read, write) = channel.map_err(|error| explain(&error))?.split();
    let raw = match &pty {
        Some(_) => RawMode::begin().context("the terminal cannot be used")?,
        None => None,
    };
    let ended = tokio::select! {
        ended = pump(read, Arc::new(write), raw.is_some()) => ended,
        gone = watch::gone(network, &host) => Err(gone),
    };
    // The terminal is itself again before anything is said on it.
    drop(raw);
    session.close().await;
    match ended? {
        Ended::Exit(ExitStatus::Code(code)) => Ok(u8::try_from(code & 0xff).unwrap_or(FAILED)),
        Ended::Exit(ExitStatus::Signal { name, .. }) => {
            if !args.quiet {
                eprintln!("underpass: the command was killed by SIG{name}");
            }
            let signal = terminal::signal_number(&name);
            Ok(signal.map_or(FAILED, exit_code_of_signal))
        }
        Ended::OutputClosed => Ok(exit_code_of_signal(terminal::SIGPIPE)),
        Ended::Escaped => {
            eprintln!("connection to {host} closed");
            Ok(FAILED)
        }
    }
}

/// Logs in, with the agent behind it where that was asked for.
async fn open(args: &Args, network: &Network, host: &str) -> anyhow::Result<Session> {
    let Some(peer) = network.own_peer().filter(|_| args.forward_agent) else {
        return log_in(network, host, &args.user, class(args)).await;
    };
    let certified = certify_with(peer, &args.user, true);
    let (_, identity) = tokio::try_join!(network.ready(), certified)?;
    let stream = network.connect(host, SSH_PORT, class(args)).await;
    let stream = stream.map_err(|error| network::explain_at(host, &error))?;
    let (agent, channels) = mpsc::channel(key_agent::WAITING);
    tokio::spawn(key_agent::serve(channels));
    let options = Options {
        agent: Some(agent),
        ..options()
    };
    log_in_with(
        network.host_cas()?,
        stream,
        host,
        &args.user,
        identity,
        options,
    )
    .await
}

/// A terminal answers keys at once; pipes carry much.
fn class(args: &Args) -> Class {
    if args.command.is_some() && !args.pty {
        Class::Bulk
    } else {
        Class::Interactive
    }
}

/// A server that is gone is noticed within three of these.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Connects to the SSH server of a host, believes its certificate or not, and logs in with a
/// fresh key and a certificate that this peer alone can use.
pub(super) async fn log_in(
    network: &Network,
    host: &str,
    user: &str,
    class: Class,
) -> anyhow::Result<Session> {
    let (_, identity) = tokio::try_join!(network.ready(), network.identity(user))?;
    let stream = network.connect(host, SSH_PORT, class).await;
    let stream = stream.map_err(|error| network::explain_at(host, &error))?;
    log_in_over(network.host_cas()?, stream, host, user, identity).await
}

/// The same over a connection that stands.
pub(crate) async fn log_in_over(
    authorities: Vec<PublicKey>,
    stream: impl Io + 'static,
    host: &str,
    user: &str,
    identity: Identity,
) -> anyhow::Result<Session> {
    log_in_with(authorities, stream, host, user, identity, options()).await
}

fn options() -> Options {
    Options {
        keepalive: Some(KEEPALIVE),
        ..Options::default()
    }
}

async fn log_in_with(
    authorities: Vec<PublicKey>,
    stream: impl Io + 'static,
    host: &str,
    user: &str,
    identity: Identity,
    options: Options,
) -> anyhow::Result<Session> {
    let policy = HostPolicy::Certificate {
        dialled: ssh::Dialled::parse(host),
        authorities,
    };
    ssh::client::connect_with(stream, user, identity, policy, now, options)
        .await
        .map_err(|error| explain(&error))
}

const SSH_PORT: u16 = 22;

/// A fresh key and a certificate for it that this peer alone can use.
pub(crate) async fn certify(peer: &Peer, user: &str) -> anyhow::Result<Identity> {
    certify_with(peer, user, false).await
}

async fn certify_with(peer: &Peer, user: &str, forward_agent: bool) -> anyhow::Result<Identity> {
    let key = fresh_key("underpass")?;
    let body = json!({
        "public_key": key.public_key().to_openssh()?,
        "peer": peer.lease.address()?,
        "principals": [user],
        "agent_forwarding": forward_agent,
    });
    let path = format!("/api/v1/orgs/{}/ssh/certificates", peer.org);
    let certified: Certified = peer.api.call(Method::POST, &path, &body).await?;
    let certificate = Certificate::from_openssh(certified.certificate.trim());
    Ok(Identity {
        certificate: certificate.context("control made a certificate that cannot be read")?,
        signer: Signer::Local(Box::new(key)),
    })
}

#[expect(clippy::disallowed_methods, reason = "certificates are of today")]
fn now() -> SystemTime {
    SystemTime::now()
}

pub(super) fn explain(error: &SshError) -> anyhow::Error {
    anyhow!("{error} ({})\nhint: {}", error.code(), error.hint())
}

/// How a session came to its end.
enum Ended {
    /// The command ended.
    Exit(ExitStatus),
    /// Whoever read our standard output has gone.
    OutputClosed,
    /// A person typed the way out.
    Escaped,
}

/// Carries bytes both ways until the channel is closed.
async fn pump(read: ReadHalf, write: Arc<WriteHalf>, raw: bool) -> anyhow::Result<Ended> {
    let mut feed = tokio::spawn(feed(Arc::clone(&write), raw.then(Escape::default)));
    let resize = raw.then(|| tokio::spawn(follow_size(write)));
    let mut show = std::pin::pin!(show(read));
    let ended = tokio::select! {
        ended = &mut show => ended,
        escaped = &mut feed => match escaped {
            Ok(true) => Ok(Ended::Escaped),
            // Input has ended; output goes on.
            _ => show.await,
        },
    };
    feed.abort();
    if let Some(resize) = resize {
        resize.abort();
    }
    ended
}

/// Standard input to the channel, its end included. True when a person wants out.
async fn feed(write: Arc<WriteHalf>, mut escape: Option<Escape>) -> bool {
    let mut input = terminal::input();
    // A read that fails ends the input as its end does.
    while let Some(Ok(mut piece)) = input.recv().await {
        let mut out = false;
        if let Some(escape) = &mut escape {
            (piece, out) = escape.filter(&piece);
        }
        if write.write(piece).await.is_err() {
            // The reading side says why.
            return false;
        }
        if out {
            return true;
        }
    }
    // As above.
    let _ = write.eof().await;
    false
}

async fn follow_size(write: Arc<WriteHalf>) {
    let Ok(mut resizes) = terminal::resizes() else {
        return;
    };
    while resizes.recv().await.is_some() {
        let (cols, rows) = terminal::size();
        if write.resize(cols, rows).await.is_err() {
            return;
        }
    }
}

/// The channel to standard output and error.
async fn show(mut read: ReadHalf) -> anyhow::Result<Ended> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(output) = read.next().await {
        let shown = match output {
            Output::Stdout(bytes) => put(&mut stdout, &bytes).await,
            Output::Stderr(bytes) => put(&mut stderr, &bytes).await,
            Output::Eof | Output::Exit(_) => Ok(()),
        };
        match shown {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(Ended::OutputClosed);
            }
            shown => shown.context("the output cannot be written")?,
        }
    }
    match read.exit() {
        Some(status) => Ok(Ended::Exit(status.clone())),
        // The channel is closed, and nobody said how the command ended.
        None => Err(explain(&SshError::ConnectionLost)),
    }
}

async fn put(out: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes).await?;
    out.flush().await
}

/// The way out of a session that hangs, as ssh has it: `~.` at the beginning of a line; `~~` is a
/// tilde.
#[derive(Debug)]
struct Escape {
    line_start: bool,
    tilde: bool,
}

impl Default for Escape {
    fn default() -> Escape {
        Escape {
            line_start: true,
            tilde: false,
        }
    }
}

impl Escape {
    /// What is to be sent of these keys, and whether they ask for the way out.
    fn filter(&mut self, keys: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(keys.len() + 1);
        for &key in keys {
            if std::mem::take(&mut self.tilde) {
                match key {
                    b'.' => return (out, true),
                    b'~' => {}
                    _ => out.push(b'~'),
                }
            } else if self.line_start && key == b'~' {
                self.tilde = true;
                continue;
            }
            out.push(key);
            self.line_start = matches!(key, b'\r' | b'\n');
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_is_at_the_beginning_of_a_line_alone() {
        let typed = |keys: &[&str]| {
            let mut escape = Escape::default();
            let mut sent = String::new();
            for keys in keys {
                let (out, end) = escape.filter(keys.as_bytes());
                sent += std::str::from_utf8(&out).unwrap();
                if end {
                    return (sent, true);
                }
            }
            (sent, false)
        };
        assert_eq!(typed(&["ls\r", "~", "."]), ("ls\r".into(), true));
        assert_eq!(typed(&["~.never"]), (String::new(), true));
        assert_eq!(typed(&["a~.b\r"]), ("a~.b\r".into(), false));
        assert_eq!(typed(&["~~.\r"]), ("~.\r".into(), false));
        assert_eq!(typed(&["~", "x"]), ("~x".into(), false));
        assert_eq!(typed(&["~"]), (String::new(), false));
    }
}
