//! `underpass ssh sftp`

use std::{
    io::{self, IsTerminal, SeekFrom},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail, ensure};
use russh_sftp::{
    client::{SftpSession, error::Error as SftpError},
    protocol::OpenFlags,
};
use serde_json::json;
use ssh::client::{Output, ReadHalf, Session};
use tokio::{
    fs::{File, OpenOptions},
    io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt},
};
use tunnel::Class;

use crate::client::{
    network::{Network, NetworkArgs},
    ssh::{beside, console, target::TargetArgs},
    terminal::{ended_by_signal, exit_code_of_signal},
};

/// Copy files to and from an instance.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Fetch a file
    ///
    /// It appears under its name when it is whole; until then it is LOCAL.part.
    #[command(after_help = "Example:\n  underpass ssh sftp get -a web /var/log/app.log")]
    Get {
        /// The file there
        remote: String,
        /// Where to write it [default: its own name, here]
        local: Option<PathBuf>,
        /// Go on with a LOCAL.part that an earlier try left
        #[arg(long)]
        resume: bool,
        /// Replace a file that exists
        #[arg(long)]
        overwrite: bool,
        #[command(flatten)]
        args: Args,
    },
    /// Send a file
    #[command(after_help = "Example:\n  underpass ssh sftp put -a web ./site.tar /srv/site.tar")]
    Put {
        /// The file here
        local: PathBuf,
        /// Where to write it [default: its own name, in the home directory there]
        remote: Option<String>,
        /// Go on with a shorter file there that an earlier try left
        #[arg(long)]
        resume: bool,
        #[command(flatten)]
        args: Args,
    },
    /// List a directory
    #[command(after_help = "Example:\n  underpass ssh sftp ls -a web /var/log")]
    Ls {
        /// The directory there
        #[arg(default_value = ".")]
        path: String,
        #[command(flatten)]
        args: Args,
    },
}

/// What every `sftp` command takes.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Log in as this user
    #[arg(long, short, value_name = "USER", default_value = "root")]
    user: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: NetworkArgs,
}

/// A path that was cut may take this long to come back.
const PATIENCE: u64 = 60;

/// Between file and network.
const PIECE: usize = 256 * 1024;

/// Runs one of them.
pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let (Command::Get { args, .. } | Command::Put { args, .. } | Command::Ls { args, .. }) =
        &command;
    // Before anything is opened.
    if let Command::Get {
        remote,
        local,
        overwrite: false,
        ..
    } = &command
    {
        let local = destination(remote, local.as_deref())?;
        ensure!(
            !local.exists(),
            "{} exists already\nhint: name another file, or say --overwrite",
            local.display()
        );
    }
    let network = Box::pin(Network::open(&args.network)).await?;
    let ended = tokio::select! {
        ended = Box::pin(within(&command, args, &network)) => ended.map(|()| ExitCode::SUCCESS),
        signal = ended_by_signal() => Ok(ExitCode::from(exit_code_of_signal(signal))),
    };
    network.close().await;
    ended
}

async fn within(command: &Command, args: &Args, network: &Network) -> anyhow::Result<()> {
    let host = args.target.choose(network).await?;
    let session = Box::pin(console::log_in(network, &host, &args.user, Class::Bulk)).await?;
    let sftp = subsystem(&session).await?;
    let done = match command {
        Command::Get {
            remote,
            local,
            resume,
            ..
        } => {
            let local = destination(remote, local.as_deref())?;
            Box::pin(get(&sftp, remote, &local, *resume)).await
        }
        Command::Put {
            local,
            remote,
            resume,
            ..
        } => {
            let name = local.file_name().and_then(|name| name.to_str());
            let remote = match (remote, name) {
                (Some(remote), _) => remote.clone(),
                (None, Some(name)) => name.to_owned(),
                (None, None) => bail!(
                    "{} has no name for the other side\nhint: give one",
                    local.display()
                ),
            };
            Box::pin(put(&sftp, local, &remote, *resume)).await
        }
        Command::Ls { path, .. } => {
            ls(&sftp, path, args.json).await?;
            session.close().await;
            return Ok(());
        }
    };
    session.close().await;
    let Copied {
        bytes,
        resumed_at,
        elapsed,
    } = done?;
    if args.json {
        let seconds = elapsed.as_secs_f64();
        println!(
            "{}",
            json!({ "bytes": bytes, "resumed_at": resumed_at, "seconds": seconds })
        );
    }
    Ok(())
}

/// What was copied.
struct Copied {
    bytes: u64,
    resumed_at: u64,
    elapsed: Duration,
}

async fn get(
    sftp: &SftpSession,
    remote: &str,
    local: &Path,
    resume: bool,
) -> anyhow::Result<Copied> {
    let started = now();
    let size = sftp
        .metadata(remote)
        .await
        .map_err(|error| explain(remote, &error))?
        .len();
    let mut from = sftp
        .open(remote)
        .await
        .map_err(|error| explain(remote, &error))?;
    let part = beside(local, ".part");
    let shown = part.display();
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(!resume);
    let mut to = options
        .open(&part)
        .await
        .with_context(|| format!("cannot write {shown}"))?;
    let at = to.metadata().await?.len();
    ensure!(
        at <= size,
        "{shown} is longer than {} there\nhint: it is of another file: leave out --resume",
        printable(remote)
    );
    if at > 0 {
        to.seek(SeekFrom::Start(at)).await?;
        from.seek(SeekFrom::Start(at)).await?;
    }
    copy(&mut from, &mut to, Progress::new(at, size))
        .await
        .with_context(|| {
            format!(
                "{} was not fetched whole\nhint: go on with --resume",
                printable(remote)
            )
        })?;
    to.sync_all().await?;
    tokio::fs::rename(&part, local).await?;
    Ok(Copied {
        bytes: size.saturating_sub(at),
        resumed_at: at,
        elapsed: started.elapsed(),
    })
}

async fn put(
    sftp: &SftpSession,
    local: &Path,
    remote: &str,
    resume: bool,
) -> anyhow::Result<Copied> {
    let started = now();
    let shown = local.display();
    let mut from = File::open(local)
        .await
        .with_context(|| format!("cannot read {shown}"))?;
    let meta = from.metadata().await?;
    ensure!(
        meta.is_file(),
        "{shown} is not a file\nhint: tar c {shown} | underpass ssh console -C 'tar x'"
    );
    let size = meta.len();
    // A directory takes the file under its own name.
    let there = sftp.metadata(remote).await.ok();
    let remote = match (&there, local.file_name().and_then(|name| name.to_str())) {
        (Some(there), Some(name)) if there.is_dir() => {
            format!("{}/{name}", remote.trim_end_matches('/'))
        }
        _ => remote.to_owned(),
    };
    let at = match (resume, sftp.metadata(&remote).await) {
        (true, Ok(there)) => there.len(),
        _ => 0,
    };
    ensure!(
        at <= size,
        "{} is longer there than here\nhint: it is another file: leave out --resume",
        printable(&remote)
    );
    let mut flags = OpenFlags::CREATE | OpenFlags::WRITE;
    if at == 0 {
        flags |= OpenFlags::TRUNCATE;
    }
    let to = sftp.open_with_flags(&remote, flags).await;
    let mut to = to.map_err(|error| explain(&remote, &error))?;
    if at > 0 {
        to.seek(SeekFrom::Start(at)).await?;
        from.seek(SeekFrom::Start(at)).await?;
    }
    let copied = async {
        copy(&mut from, &mut to, Progress::new(at, size)).await?;
        to.close().await
    };
    copied
        .await
        .with_context(|| format!("{shown} was not sent whole\nhint: go on with --resume"))?;
    Ok(Copied {
        bytes: size.saturating_sub(at),
        resumed_at: at,
        elapsed: started.elapsed(),
    })
}

async fn ls(sftp: &SftpSession, path: &str, as_json: bool) -> anyhow::Result<()> {
    let entries = sftp
        .read_dir(path)
        .await
        .map_err(|error| explain(path, &error))?;
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(russh_sftp::client::fs::DirEntry::file_name);
    if as_json {
        let entries: Vec<_> = entries
            .iter()
            .map(|entry| {
                let meta = entry.metadata();
                json!({ "name": entry.file_name(), "bytes": meta.len(), "directory": meta.is_dir() })
            })
            .collect();
        println!("{}", json!({ "entries": entries }));
        return Ok(());
    }
    for entry in &entries {
        let (meta, name) = (entry.metadata(), entry.file_name());
        let slash = if meta.is_dir() { "/" } else { "" };
        println!("{:>12}  {}{slash}", meta.len(), printable(&name));
    }
    Ok(())
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut progress: Progress,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let n = from.read(&mut piece).await?;
        if n == 0 {
            break;
        }
        to.write_all(&piece[..n]).await?;
        progress.add(n);
    }
    to.flush().await?;
    progress.end();
    Ok(())
}

/// The subsystem as a byte stream. What it says on standard error is not for its protocol.
async fn subsystem(session: &Session) -> anyhow::Result<SftpSession> {
    let channel = session
        .subsystem("sftp")
        .await
        .map_err(|error| console::explain(&error))?;
    let (read, write) = channel.split();
    let (ours, theirs) = tokio::io::duplex(PIECE);
    let (mut outward, inward) = tokio::io::split(ours);
    tokio::spawn(receive(read, inward));
    tokio::spawn(async move {
        let mut writer = write.writer();
        // An end or an error shows at the protocol.
        let _ = tokio::io::copy(&mut outward, &mut writer).await;
        let _ = writer.shutdown().await;
    });
    let sftp = SftpSession::new(theirs)
        .await
        .map_err(|error| explain("sftp", &error))?;
    sftp.set_timeout(PATIENCE);
    Ok(sftp)
}

async fn receive(mut read: ReadHalf, mut to: impl AsyncWrite + Unpin) {
    while let Some(output) = read.next().await {
        if let Output::Stdout(bytes) = output
            && to.write_all(&bytes).await.is_err()
        {
            return;
        }
    }
    let _ = to.shutdown().await;
}

fn explain(path: &str, error: &SftpError) -> anyhow::Error {
    let hint = match error {
        SftpError::Status(_) => "underpass ssh sftp ls shows what is there",
        SftpError::Timeout => "the connection is slow or gone: try again",
        _ => "connect again",
    };
    anyhow!(
        "{}: {}\nhint: {hint}",
        printable(path),
        printable(&error.to_string())
    )
}

/// Names and words of the other side, without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .take(4096)
        .collect()
}

/// A name from the other side makes a file here and no path.
fn destination(remote: &str, local: Option<&Path>) -> anyhow::Result<PathBuf> {
    let name = remote.trim_end_matches('/').rsplit('/').next();
    let name = name.filter(|name| !matches!(*name, "" | "." | ".."));
    match (local, name) {
        (Some(local), Some(name)) if local.is_dir() => Ok(local.join(name)),
        (Some(local), _) => Ok(local.to_owned()),
        (None, Some(name)) => Ok(PathBuf::from(name)),
        (None, None) => bail!("{remote} has no name for a file here\nhint: give one"),
    }
}

/// How far a copy is, on a terminal.
struct Progress {
    begun: Instant,
    from: u64,
    at: u64,
    size: u64,
    shown: Option<Instant>,
}

impl Progress {
    fn new(at: u64, size: u64) -> Progress {
        let begun = now();
        let shown = io::stderr().is_terminal().then_some(begun);
        Progress {
            begun,
            from: at,
            at,
            size,
            shown,
        }
    }

    fn add(&mut self, bytes: usize) {
        self.at += bytes as u64;
        if self
            .shown
            .is_some_and(|shown| shown.elapsed() >= Duration::from_millis(200))
        {
            self.shown = Some(now());
            eprint!("\r{}", self.line());
        }
    }

    fn end(&self) {
        if self.shown.is_some() {
            eprintln!("\r{}", self.line());
        }
    }

    fn line(&self) -> String {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let rate = mb(self.at - self.from) / self.begun.elapsed().as_secs_f64().max(0.001);
        let percent = (self.at * 100).checked_div(self.size).unwrap_or(100);
        format!(
            "{:>9.1} MB of {:.1} MB  {percent:>3} %  {rate:>7.1} MB/s",
            mb(self.at),
            mb(self.size)
        )
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how fast a copy is, for who watches it"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_from_the_other_side_stays_in_its_directory() {
        let named = |remote: &str| destination(remote, None).ok();
        assert_eq!(named("/var/log/a.log"), Some("a.log".into()));
        assert_eq!(named("a.log"), Some("a.log".into()));
        assert_eq!(named("dir/"), Some("dir".into()));
        for bad in ["", "/", "..", "a/..", "."] {
            assert_eq!(named(bad), None, "{bad}");
        }
        assert_eq!(
            destination("x", Some(Path::new("y"))).ok(),
            Some("y".into())
        );
    }
}
