//! `underpass ssh config`

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::json;

use crate::client::{args::Common, ssh::beside};

/// Arguments of `ssh config`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The key that `ssh issue` wrote
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Log in as this user where none is named
    #[arg(long, short, value_name = "USER", default_value = "root")]
    user: String,
    #[command(flatten)]
    common: Common,
}

/// Prints what goes into `~/.ssh/config`.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let key = std::path::absolute(&args.path)?;
    let known_hosts = beside(&key, "-known_hosts");
    let trusted = std::fs::read_to_string(&known_hosts);
    let Ok(trusted) = trusted else {
        bail!(
            "{} is not there\nhint: underpass ssh issue {}",
            known_hosts.display(),
            args.path.display()
        );
    };
    let [flag, place] = args.common.scope.system.find()?.flags();
    let (_, org) = args.common.scope.open().await?;
    let program = std::env::current_exe().context("the path of this program is not known")?;
    let proxy = format!(
        "{} stdio --org {} {flag} {} %h %p",
        quoted(&program)?,
        quoted(Path::new(&org))?,
        quoted(Path::new(&place))?
    );
    let block = format!(
        "Host *.internal\n    User {}\n    IdentityFile {}\n    CertificateFile {}\n    IdentitiesOnly yes\n    UserKnownHostsFile {}\n    StrictHostKeyChecking yes\n    ServerAliveInterval 15\n    ProxyCommand {proxy}\n",
        args.user,
        quoted(&key)?,
        quoted(&beside(&key, "-cert.pub"))?,
        quoted(&known_hosts)?,
    );
    if args.common.json {
        let lines: Vec<&str> = trusted.lines().collect();
        println!("{}", json!({ "config": block, "known_hosts": lines }));
        return Ok(());
    }
    print!("{block}");
    println!(
        "# {} holds, and any other known_hosts file may:",
        known_hosts.display()
    );
    trusted.lines().for_each(|line| println!("# {line}"));
    Ok(())
}

/// A word for ssh's configuration and for the shell that runs a ProxyCommand.
fn quoted(path: &Path) -> anyhow::Result<String> {
    let text = path
        .to_str()
        .filter(|text| !text.contains(['"', '\n', '$', '`', '\\']));
    let Some(text) = text else {
        bail!(
            "ssh's configuration cannot name {}\nhint: choose a path without quotes, dollars and backslashes",
            path.display()
        );
    };
    // What ssh would take for a token of its own.
    let text = text.replace('%', "%%");
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:%".contains(c);
    Ok(if text.chars().all(plain) {
        text
    } else {
        format!("\"{text}\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_ssh_and_its_shell() {
        let word = |text: &str| quoted(Path::new(text)).ok();
        assert_eq!(
            word("/home/a/.ssh/id_demo").as_deref(),
            Some("/home/a/.ssh/id_demo")
        );
        assert_eq!(
            word("/home/a b/100%").as_deref(),
            Some("\"/home/a b/100%%\"")
        );
        for bad in ["/a\"b", "/a$b", "/a`b`", "/a\nb", "/a\\b"] {
            assert_eq!(word(bad), None, "{bad}");
        }
    }
}
