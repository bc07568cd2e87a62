//! `underpass ssh`

mod config;
pub(crate) mod console;
mod establish;
mod issue;
mod key_agent;
mod sftp;
pub(crate) mod target;
mod watch;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use serde::Deserialize;
use ssh_key::{Algorithm, PrivateKey, private::Ed25519Keypair, private::KeypairData};

/// Shells and commands on instances, keys and certificates for SSH.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Open a shell on an instance, or run a command there
    ///
    /// Needs no WireGuard, no root and no key file: everything is made here for this one session.
    /// Ends with the exit status of the remote command, 128+N when signal N killed it, and 255
    /// when the session itself failed. On a terminal, `~.` at the beginning of a line leaves a
    /// session that hangs.
    #[command(
        after_help = "Examples:\n  underpass ssh console -a web\n  underpass ssh console -a web -r lhr -C 'uptime'\n  underpass ssh console -a web -s\n  tar c . | underpass ssh console -a web -C 'tar x -C /srv'"
    )]
    Console(console::Args),
    /// Copy files to and from an instance
    #[command(subcommand)]
    Sftp(sftp::Command),
    /// Make a key and have it certified, for stock OpenSSH
    ///
    /// Writes PATH (mode 0600), PATH-cert.pub, and PATH-known_hosts, which lets ssh verify every
    /// instance by the organisation's host CA.
    /// With --agent they go into the running ssh-agent, for as long as the certificate lives.
    #[command(
        after_help = "Examples:\n  underpass ssh issue --org demo ./id_demo\n  ssh -i ./id_demo -o UserKnownHostsFile=./id_demo-known_hosts root@web.internal\n  underpass ssh issue --agent --hours 8"
    )]
    Issue(issue::Args),
    /// Rotate the organisation's SSH certificate authorities
    ///
    /// Every organisation has an authority for users' and one for hosts' certificates from the
    /// beginning: this replaces them, with an overlap in which both are trusted. Nothing is
    /// interrupted, and nobody has to do anything.
    #[command(
        after_help = "Examples:\n  underpass ssh establish --status\n  underpass ssh establish demo --yes\n  underpass ssh establish --only user --retire --yes   a user CA that is no longer to be trusted"
    )]
    Establish(establish::Args),
    /// Print the lines that make plain ssh, scp, rsync and git work by `.internal` name
    #[command(
        after_help = "Example:\n  underpass ssh issue ~/.ssh/id_underpass\n  underpass ssh config ~/.ssh/id_underpass >> ~/.ssh/config\n  ssh web.internal"
    )]
    Config(config::Args),
}

/// What control answers to a public key.
#[derive(Deserialize)]
pub(crate) struct Certified {
    /// In OpenSSH's format.
    pub(crate) certificate: String,
    /// Unix seconds.
    pub(crate) expires: u64,
    host_cas: Vec<String>,
}

/// Runs one of them.
pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Console(args) => Ok(console::run(args).await),
        Command::Sftp(command) => sftp::run(command).await,
        Command::Config(args) => config::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::Issue(args) => issue::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::Establish(args) => establish::run(args).await.map(|()| ExitCode::SUCCESS),
    }
}

/// An ed25519 key from the operating system's randomness.
pub(crate) fn fresh_key(comment: &str) -> anyhow::Result<PrivateKey> {
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice()).context("no randomness")?;
    let pair = Ed25519Keypair::from_seed(&seed);
    debug_assert_eq!(
        KeypairData::from(pair.clone()).algorithm()?,
        Algorithm::Ed25519
    );
    Ok(PrivateKey::new(pair.into(), comment)?)
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}
