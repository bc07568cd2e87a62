//! `underpass ssh sftp`

mod progress;
mod shell;
mod transfer;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{anyhow, bail, ensure};
use russh_sftp::client::{SftpSession, error::Error as SftpError};
use serde_json::json;
use ssh::client::{Output, ReadHalf, Session};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tunnel::Class;

use crate::client::{
    network::{Network, NetworkArgs},
    ssh::{console, target::TargetArgs},
    terminal::{ended_by_signal, exit_code_of_signal},
};

use self::transfer::{Copied, Transfer};

/// Copy files to and from an instance.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Fetch a file, or a directory with all that is in it
    ///
    /// A file appears under its name when it is whole; until then it is LOCAL.part.
    #[command(
        after_help = "Examples:\n  underpass ssh sftp get -a web /var/log/app.log\n  underpass ssh sftp get -a web -R /srv/data ./data --resume"
    )]
    Get {
        /// The file there
        remote: String,
        /// Where to write it [default: its own name, here]
        local: Option<PathBuf>,
        /// A directory: what is in it goes into LOCAL; links are left out
        #[arg(long, short = 'R')]
        recursive: bool,
        /// Go on where an earlier try broke off: with a LOCAL.part, and past files that are whole
        #[arg(long)]
        resume: bool,
        /// Replace files that exist
        #[arg(long)]
        overwrite: bool,
        #[command(flatten)]
        args: Args,
    },
    /// Send a file, or a directory with all that is in it
    #[command(after_help = "Example:\n  underpass ssh sftp put -a web ./site.tar /srv/site.tar")]
    Put {
        /// The file here
        local: PathBuf,
        /// Where to write it [default: its own name, in the home directory there]
        remote: Option<String>,
        /// A directory: what is in it goes into REMOTE; links are left out
        #[arg(long, short = 'R')]
        recursive: bool,
        /// Go on where an earlier try broke off: with a shorter file there, and past files that are
        /// whole
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
    /// Go about in the files there, line by line
    ///
    /// `help` lists what can be said. Where standard input is no terminal its lines are a script:
    /// the first that fails ends it with status 1, unless it begins with `-`.
    #[command(
        after_help = "Examples:\n  underpass ssh sftp shell -a web\n  printf 'cd /srv\\nput -R site\\n' | underpass ssh sftp shell -a web"
    )]
    Shell {
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

impl Command {
    fn args(&self) -> &Args {
        match self {
            Command::Get { args, .. }
            | Command::Put { args, .. }
            | Command::Ls { args, .. }
            | Command::Shell { args } => args,
        }
    }
}

/// A path that was cut may take this long to come back.
const PATIENCE: u64 = 60;

/// Between file and network.
const PIECE: usize = 256 * 1024;

/// Runs one of them.
pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let args = command.args();
    // Before anything is opened.
    match &command {
        Command::Get {
            remote,
            local,
            resume: false,
            overwrite: false,
            recursive: false,
            ..
        } => {
            let local = destination(remote, local.as_deref())?;
            ensure!(
                !local.exists(),
                "{} exists already\nhint: name another file, or say --overwrite",
                local.display()
            );
        }
        Command::Shell { args } => {
            ensure!(!args.json, "a shell prints no JSON\nhint: leave out --json");
        }
        _ => {}
    }
    let network = Box::pin(Network::open(&args.network)).await?;
    let ended = if matches!(command, Command::Shell { .. }) {
        // It has its own idea of Ctrl-C.
        Box::pin(within(&command, args, &network)).await
    } else {
        tokio::select! {
            ended = Box::pin(within(&command, args, &network)) => ended,
            signal = ended_by_signal() => Ok(ExitCode::from(exit_code_of_signal(signal))),
        }
    };
    network.close().await;
    ended
}

async fn within(command: &Command, args: &Args, network: &Network) -> anyhow::Result<ExitCode> {
    let host = args.target.choose(network).await?;
    let session = Box::pin(console::log_in(network, &host, &args.user, Class::Bulk)).await?;
    let sftp = subsystem(&session).await?;
    let done = match command {
        Command::Get {
            remote,
            local,
            recursive,
            resume,
            overwrite,
            ..
        } => {
            let local = match local {
                // The same words again go on with what broke off, and do not go one deeper.
                Some(local) if *recursive => local.clone(),
                local => destination(remote, local.as_deref())?,
            };
            let transfer = Transfer::new(&sftp, *resume, *overwrite);
            Box::pin(transfer.get(remote, &local, *recursive)).await
        }
        Command::Put {
            local,
            remote,
            recursive,
            resume,
            ..
        } => {
            let remote = remote.clone().map_or_else(|| own_name(local), Ok)?;
            let transfer = Transfer::new(&sftp, *resume, true);
            Box::pin(transfer.put(local, &remote, *recursive)).await
        }
        Command::Ls { path, .. } => {
            ls(&sftp, path, args.json).await?;
            session.close().await;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Shell { .. } => {
            let code = Box::pin(shell::run(&sftp, &session, &host)).await;
            session.close().await;
            return code;
        }
    };
    session.close().await;
    let done = done?;
    if args.json {
        println!("{}", done.as_json());
    }
    Ok(ExitCode::SUCCESS)
}

impl Copied {
    fn as_json(&self) -> serde_json::Value {
        json!({
            "files": self.files,
            "bytes": self.bytes,
            "resumed_at": self.resumed_at,
            "skipped": self.skipped,
            "seconds": self.elapsed.as_secs_f64(),
        })
    }
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
                json!({ "name": entry.file_name(), "bytes": meta.len(), "directory": meta.file_type().is_dir() })
            })
            .collect();
        println!("{}", json!({ "entries": entries }));
        return Ok(());
    }
    for entry in &entries {
        let (meta, name) = (entry.metadata(), entry.file_name());
        let slash = if meta.file_type().is_dir() { "/" } else { "" };
        println!("{:>12}  {}{slash}", meta.len(), printable(&name));
    }
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

/// Where a file or directory of the other side goes: into a directory under its own name.
fn destination(remote: &str, local: Option<&Path>) -> anyhow::Result<PathBuf> {
    let name = remote.trim_end_matches('/').rsplit('/').next();
    let name = name.filter(|name| is_name(name));
    match (local, name) {
        (Some(local), Some(name)) if local.is_dir() => Ok(local.join(name)),
        (Some(local), _) => Ok(local.to_owned()),
        (None, Some(name)) => Ok(PathBuf::from(name)),
        (None, None) => bail!("{remote} has no name for a file here\nhint: give one"),
    }
}

/// The name of a file here, for the other side.
fn own_name(local: &Path) -> anyhow::Result<String> {
    match local.file_name().and_then(|name| name.to_str()) {
        Some(name) => Ok(name.to_owned()),
        None => bail!(
            "{} has no name for the other side\nhint: give one",
            local.display()
        ),
    }
}

/// Whether a name from the other side makes a file here and no path: what it says of its directory
/// stays in the directory that was asked for.
fn is_name(name: &str) -> bool {
    let leads_away = |c: char| c == '\0' || c == '/' || (cfg!(windows) && (c == '\\' || c == ':'));
    !matches!(name, "" | "." | "..") && !name.contains(leads_away)
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
        for bad in ["", ".", "..", "a/b", "/etc", "a\0b", "../x"] {
            assert!(!is_name(bad), "{bad:?}");
        }
        for good in ["a", "...", ".bashrc", "-rf", "a b", "\u{fc}"] {
            assert!(is_name(good), "{good}");
        }
        assert_eq!(
            destination("x", Some(Path::new("y"))).ok(),
            Some("y".into())
        );
    }
}
