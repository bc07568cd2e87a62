//! `underpass ssh issue`

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use http::Method;
use serde_json::json;
use ssh_key::{Certificate, LineEnding};

use crate::client::{
    self,
    args::Common,
    ssh::{Certified, beside, fresh_key, key_agent},
};

/// Arguments of `ssh issue`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Where to write the private key; may be left out with --agent
    #[arg(value_name = "PATH", required_unless_present = "agent")]
    path: Option<PathBuf>,
    /// Put key and certificate into the running ssh-agent
    #[arg(long)]
    agent: bool,
    /// How long the certificate lives
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=72))]
    hours: u32,
    /// A user name to log in as; may be given again [default: root and fly]
    #[arg(long, short, value_name = "USER")]
    user: Vec<String>,
    /// Permit agent forwarding: ssh -A
    #[arg(long)]
    forward_agent: bool,
    /// Permit port forwarding: ssh -L
    #[arg(long)]
    forward_ports: bool,
    /// Replace files that exist
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    common: Common,
}

/// Has a fresh key certified, and keeps both where they were wanted.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let files = args.path.as_ref().map(|path| Files {
        key: path.clone(),
        certificate: beside(path, "-cert.pub"),
        known_hosts: beside(path, "-known_hosts"),
    });
    if let Some(files) = &files {
        files.refuse_existing(args.overwrite)?;
    }
    // Before anything is signed for nothing.
    let agent = match args.agent {
        true => Some(key_agent::Connection::open().await?),
        false => None,
    };
    let (api, org) = args.common.scope.open().await?;
    let key = fresh_key(&format!("underpass {org}"))?;
    let mut body = json!({
        "public_key": key.public_key().to_openssh()?,
        "hours": args.hours,
        "agent_forwarding": args.forward_agent,
        "port_forwarding": args.forward_ports,
    });
    if !args.user.is_empty() {
        body["principals"] = json!(args.user);
    }
    let path = format!("/api/v1/orgs/{org}/ssh/certificates");
    let certified: Certified = api.call(Method::POST, &path, &body).await?;
    let trust: Vec<String> = certified
        .host_cas
        .iter()
        .map(|ca| format!("@cert-authority *.internal,fdaa:* {}", ca.trim_end()))
        .collect();
    if let Some(agent) = agent {
        let certificate = Certificate::from_openssh(certified.certificate.trim())
            .context("control made a certificate that cannot be read")?;
        let until = UNIX_EPOCH + Duration::from_secs(certified.expires);
        let lifetime = until.duration_since(now()).unwrap_or_default();
        agent.add(&key, &certificate, lifetime).await?;
    }
    if let Some(files) = &files {
        let key = key.to_openssh(LineEnding::LF)?;
        let lines: String = trust.iter().map(|line| format!("{line}\n")).collect();
        files.write(&key, &certified.certificate, &lines, args.overwrite)?;
    }
    if args.common.json {
        let files = files.map(|files| {
            json!({
                "key": files.key,
                "certificate": files.certificate,
                "known_hosts": files.known_hosts,
            })
        });
        let said = json!({
            "org": org,
            "expires": certified.expires,
            "agent": args.agent,
            "files": files,
            "known_hosts": trust,
        });
        println!("{said}");
        return Ok(());
    }
    let hours = args.hours;
    if args.agent {
        println!("the ssh-agent has a key for {org} for {hours} hours");
    }
    match files {
        Some(files) => {
            let (key, known_hosts) = (files.key.display(), files.known_hosts.display());
            println!("{key} is certified for {hours} hours");
            println!("hint: ssh -i {key} -o UserKnownHostsFile={known_hosts} root@APP.internal");
        }
        None => {
            println!("hint: for ssh to verify the instances, known_hosts needs:");
            trust.iter().for_each(|line| println!("{line}"));
        }
    }
    Ok(())
}

/// What is written.
struct Files {
    key: PathBuf,
    certificate: PathBuf,
    known_hosts: PathBuf,
}

impl Files {
    fn refuse_existing(&self, overwrite: bool) -> anyhow::Result<()> {
        for path in [&self.key, &self.certificate, &self.known_hosts] {
            if path.exists() && !overwrite {
                anyhow::bail!(
                    "{} exists already\nhint: choose another path, or say --overwrite",
                    path.display()
                );
            }
        }
        Ok(())
    }

    fn write(
        &self,
        key: &str,
        certificate: &str,
        trust: &str,
        overwrite: bool,
    ) -> anyhow::Result<()> {
        client::write_secret(&self.key, key, overwrite)?;
        let certificate = format!("{}\n", certificate.trim_end());
        client::write_secret(&self.certificate, &certificate, overwrite)?;
        client::write_secret(&self.known_hosts, trust, overwrite)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a certificate's end as a time from now"
)]
fn now() -> SystemTime {
    SystemTime::now()
}
