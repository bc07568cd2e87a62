//! `underpass agent`: one process per user that keeps tunnels for the other commands.
//!
//! ```text
//! place      the directory of the socket, and who may be the agent
//! protocol   what is said on the socket
//! client     a command's side: finds the agent, starts it, uses a tunnel of it
//! server     the agent's side
//! tunnels    the tunnels that it keeps, and for how long
//! stream     a connection of a command joined to a stream of a tunnel
//! log        what it writes down
//! ```

mod client;
mod log;
mod place;
mod protocol;
mod server;
mod stream;
mod tunnels;

use std::{process::ExitCode, time::Duration};

use anyhow::bail;
use serde_json::json;

pub(crate) use client::{Borrowed, Refused};
use place::Place;
use protocol::{Request, Status};
use server::Begun;

/// Whether this system has one.
pub(crate) const AVAILABLE: bool = true;

/// The tunnel was given up, by its lease or by the agent's idle limit.
const TUNNEL_GONE: &str = "tunnel_gone";
/// No room.
const BUSY: &str = "agent_busy";
/// The agent's packets go another way.
const ELSEWHERE: &str = "agent_elsewhere";
/// The same, and it ends for that.
const LEAVES: &str = "agent_leaves";

/// Keep tunnels for the other commands, so that each begins at once.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Start it in the background
    ///
    /// The first command that needs a tunnel does so by itself; --no-agent or UNDERPASS_AGENT=off
    /// keeps it from that.
    #[command(after_help = "Example:\n  underpass agent start --idle 3600")]
    Start {
        #[command(flatten)]
        idle: IdleArg,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run it in the foreground
    #[command(after_help = "Example:\n  UNDERPASS_LOG=info underpass agent run")]
    Run {
        #[command(flatten)]
        idle: IdleArg,
        /// Say on standard output how it went, and leave everything of the caller behind
        #[arg(long, hide = true)]
        detached: bool,
    },
    /// End it, and the sessions that go through it
    #[command(after_help = "Example:\n  underpass agent stop")]
    Stop {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether it runs, and which tunnels it keeps
    #[command(after_help = "Example:\n  underpass agent status --json")]
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what it has written down
    #[command(after_help = "Example:\n  underpass agent logs --follow")]
    Logs {
        /// Go on with what it writes
        #[arg(long, short)]
        follow: bool,
    },
}

/// When an agent that nobody uses ends.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct IdleArg {
    /// End after this many seconds without use
    #[arg(
        long = "idle",
        value_name = "SECONDS",
        default_value_t = 600,
        value_parser = clap::value_parser!(u64).range(1..=7 * 86_400)
    )]
    seconds: u64,
}

/// Runs one of them.
pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Start { idle, json } => start(idle, json).await,
        Command::Run { idle, detached } if detached => Ok(Box::pin(run_detached(idle)).await),
        Command::Run { idle, .. } => Box::pin(run_here(idle)).await,
        Command::Stop { json } => stop(json).await,
        Command::Status { json } => status(json).await,
        Command::Logs { follow } => {
            let place = Place::find()?;
            tokio::select! {
                shown = log::show(&place, follow) => shown.map(|()| ExitCode::SUCCESS),
                _ = super::terminal::ended_by_signal() => Ok(ExitCode::SUCCESS),
            }
        }
    }
}

async fn start(idle: IdleArg, json: bool) -> anyhow::Result<ExitCode> {
    let place = Place::find()?;
    if let Ok(pid) = client::ping(&place).await {
        tell(json, pid, false);
        return Ok(ExitCode::SUCCESS);
    }
    // One of another version answers no ping.
    client::stop(&place).await?;
    let pid = Box::pin(client::start(&place, Some(idle.seconds))).await?;
    tell(json, pid, true);
    Ok(ExitCode::SUCCESS)
}

fn tell(json: bool, pid: u32, started: bool) {
    match (json, started) {
        (true, _) => println!("{}", json!({ "pid": pid, "started": started })),
        (false, true) => println!("the agent runs (process {pid})"),
        (false, false) => println!("an agent runs already (process {pid})"),
    }
}

async fn run_here(idle: IdleArg) -> anyhow::Result<ExitCode> {
    let place = Place::find()?;
    match server::begin(&place).await? {
        Begun::Another(pid) => {
            bail!("an agent runs already (process {pid})\nhint: underpass agent stop")
        }
        Begun::Agent(listening) => {
            log::Log::open(&place, false)?.take_traces();
            println!("the agent listens on {}", place.socket().display());
            listening.serve(Duration::from_secs(idle.seconds)).await;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn run_detached(idle: IdleArg) -> ExitCode {
    let begun = async {
        let place = Place::find()?;
        server::detach(&place)?;
        server::begin(&place).await
    };
    let listening = match begun.await {
        Ok(Begun::Agent(listening)) => listening,
        Ok(Begun::Another(pid)) => {
            println!("agent {pid}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            println!("failed {}", format!("{error:#}").replace('\n', "; "));
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = server::announce(&format!("agent {}", std::process::id())) {
        tracing::warn!("nobody heard that it began: {error:#}");
    }
    listening.serve(Duration::from_secs(idle.seconds)).await;
    ExitCode::SUCCESS
}

async fn stop(json: bool) -> anyhow::Result<ExitCode> {
    let stopped = client::stop(&Place::find()?).await?;
    match (json, stopped) {
        (true, _) => println!("{}", json!({ "stopped": stopped })),
        (false, true) => println!("the agent has ended"),
        (false, false) => println!("no agent runs"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(json: bool) -> anyhow::Result<ExitCode> {
    let place = Place::find()?;
    let (status, _): (Status, _) = match client::ask(&place, &Request::Status {}).await {
        Ok(answer) => answer,
        Err(failure) if !place.socket().exists() => {
            tracing::debug!("{failure}");
            if json {
                println!("{}", json!({ "running": false }));
            } else {
                println!("no agent runs");
            }
            return Ok(ExitCode::FAILURE);
        }
        Err(failure) => return Err(failure.into()),
    };
    if json {
        let mut value = serde_json::to_value(&status)?;
        value["running"] = true.into();
        println!("{value}");
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "the agent runs (process {}, version {}) since {} s, and ends after {} s without use",
        status.pid, status.version, status.uptime, status.idle_limit
    );
    for tunnel in status.tunnels {
        let session = match tunnel.rtt_micros {
            Some(micros) => {
                let ms = Duration::from_micros(micros).as_secs_f64() * 1e3;
                format!("{} in {ms:.1} ms", tunnel.transport)
            }
            None => format!("{}, no session", tunnel.transport),
        };
        let used = match (tunnel.uses, tunnel.idle) {
            (0, idle) => format!("unused for {idle} s"),
            (1, _) => "1 use".to_owned(),
            (uses, _) => format!("{uses} uses"),
        };
        println!("  {}  {}  {session}, {used}", tunnel.org, tunnel.address);
    }
    Ok(ExitCode::SUCCESS)
}
