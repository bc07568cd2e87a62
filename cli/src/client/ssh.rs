//! `underpass ssh`

mod config;
pub(crate) mod console;
mod sftp;
pub(crate) mod target;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use http::Method;
use serde::Deserialize;
use serde_json::json;
use ssh_key::{Algorithm, LineEnding, PrivateKey, private::Ed25519Keypair, private::KeypairData};

use crate::client::{self, args::Common};

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
    #[command(
        after_help = "Example:\n  underpass ssh issue --org demo ./id_demo\n  ssh -i ./id_demo -o UserKnownHostsFile=./id_demo-known_hosts root@web.internal"
    )]
    Issue(Issue),
    /// Print the lines that make plain ssh, scp, rsync and git work by `.internal` name
    #[command(
        after_help = "Example:\n  underpass ssh issue ~/.ssh/id_underpass\n  underpass ssh config ~/.ssh/id_underpass >> ~/.ssh/config\n  ssh web.internal"
    )]
    Config(config::Args),
}

/// Arguments of `ssh issue`.
#[derive(clap::Args, Debug)]
pub(crate) struct Issue {
    /// Where to write the private key
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// How long the certificate lives
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=72))]
    hours: u32,
    /// A user name to log in as; may be given again [default: root and fly]
    #[arg(long, short, value_name = "USER")]
    user: Vec<String>,
    /// Replace files that exist
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    common: Common,
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
        Command::Issue(issue) => self::issue(issue).await.map(|()| ExitCode::SUCCESS),
    }
}

async fn issue(issue: Issue) -> anyhow::Result<()> {
    let certificate = beside(&issue.path, "-cert.pub");
    let known_hosts = beside(&issue.path, "-known_hosts");
    for path in [&issue.path, &certificate, &known_hosts] {
        if path.exists() && !issue.overwrite {
            anyhow::bail!(
                "{} exists already\nhint: choose another path, or say --overwrite",
                path.display()
            );
        }
    }
    let (api, org) = issue.common.scope.open().await?;
    let key = fresh_key(&format!("underpass {org}"))?;
    let mut body = json!({ "public_key": key.public_key().to_openssh()?, "hours": issue.hours });
    if !issue.user.is_empty() {
        body["principals"] = json!(issue.user);
    }
    let path = format!("/api/v1/orgs/{org}/ssh/certificates");
    let certified: Certified = api.call(Method::POST, &path, &body).await?;
    client::write_secret(
        &issue.path,
        &key.to_openssh(LineEnding::LF)?,
        issue.overwrite,
    )?;
    client::write_secret(&certificate, &line(&certified.certificate), issue.overwrite)?;
    let trust: String = certified
        .host_cas
        .iter()
        .map(|ca| line(&format!("@cert-authority *.internal,fdaa:* {ca}")))
        .collect();
    client::write_secret(&known_hosts, &trust, issue.overwrite)?;
    if issue.common.json {
        let files =
            json!({ "key": issue.path, "certificate": certificate, "known_hosts": known_hosts });
        println!(
            "{}",
            json!({ "org": org, "expires": certified.expires, "files": files })
        );
    } else {
        println!(
            "{} is certified for {} hours",
            issue.path.display(),
            issue.hours
        );
        println!(
            "hint: ssh -i {} -o UserKnownHostsFile={} root@APP.internal",
            issue.path.display(),
            known_hosts.display()
        );
    }
    Ok(())
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

fn line(text: &str) -> String {
    format!("{}\n", text.trim_end())
}
