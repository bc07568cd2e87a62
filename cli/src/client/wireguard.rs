//! `underpass wireguard`

use std::{fmt::Write, path::PathBuf};

use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tunnel::PrivateKey;

use crate::{
    client::{self, args::Common},
    settings::{self, Settings, Source},
};

/// Create, list and remove WireGuard peers.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Create a peer and write its configuration file for any WireGuard client
    ///
    /// The private key is made here, written to the file (mode 0600), and sent nowhere.
    #[command(
        after_help = "Example:\n  underpass wireguard create --org demo laptop\n  sudo wg-quick up ./laptop.conf"
    )]
    Create {
        /// The peer's name: letters, digits and dashes
        name: String,
        /// Where to write the configuration, `-` for stdout [default: NAME.conf]
        file: Option<PathBuf>,
        /// Replace a file that exists
        #[arg(long)]
        overwrite: bool,
        #[command(flatten)]
        common: Common,
    },
    /// List the peers of an organisation
    #[command(after_help = "Example:\n  underpass wireguard list --json")]
    List(Common),
    /// Have commands go through the relay's WebSocket alone, or not
    #[command(subcommand)]
    Websockets(Websockets),
    /// Remove a peer; its sessions end at once
    #[command(after_help = "Example:\n  underpass wireguard remove laptop")]
    Remove {
        /// The peer's name
        name: String,
        #[command(flatten)]
        common: Common,
    },
}

/// How commands go where no flag says.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Websockets {
    /// Use the relay's WebSocket alone from now on: for networks that lose UDP without saying so
    ///
    /// Sets `transport` in the settings; --udp and --transport count before it.
    #[command(after_help = "Example:\n  underpass wireguard websockets enable")]
    Enable,
    /// Use UDP again where it gets through
    #[command(after_help = "Example:\n  underpass wireguard websockets disable")]
    Disable,
}

/// A peer as control leases it.
#[derive(Deserialize)]
struct Lease {
    address: String,
    network: String,
    dns: String,
    gateway: Gateway,
}

#[derive(Deserialize)]
struct Gateway {
    public_key: String,
    endpoint: String,
}

#[derive(Serialize, Deserialize)]
struct Peers {
    peers: Vec<Peer>,
}

#[derive(Serialize, Deserialize)]
struct Peer {
    name: String,
    public_key: String,
    address: String,
    expires: Option<u64>,
}

/// Runs one of them.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create {
            name,
            file,
            overwrite,
            common,
        } => create(&name, file, overwrite, &common).await,
        Command::List(common) => list(&common).await,
        Command::Websockets(wish) => prefer_websockets(matches!(wish, Websockets::Enable)),
        Command::Remove { name, common } => {
            let (api, org) = common.scope.open().await?;
            let path = format!("/api/v1/orgs/{org}/peers/{name}");
            let _gone: serde_json::Value = api.call(Method::DELETE, &path, &()).await?;
            if common.json {
                println!("{}", json!({ "name": name, "org": org, "removed": true }));
            } else {
                println!("{name} is removed");
            }
            Ok(())
        }
    }
}

async fn create(
    name: &str,
    file: Option<PathBuf>,
    overwrite: bool,
    common: &Common,
) -> anyhow::Result<()> {
    let path = file.unwrap_or_else(|| PathBuf::from(format!("{name}.conf")));
    let to_stdout = path.as_os_str() == "-";
    // Before the peer exists: a name that is taken here would cost the peer its only key.
    if !to_stdout && !overwrite && path.exists() {
        anyhow::bail!(
            "{} exists already\nhint: choose another file, or say --overwrite",
            path.display()
        );
    }
    let (api, org) = common.scope.open().await?;
    let mut random = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(random.as_mut_slice())?;
    let key = PrivateKey::from_bytes(*random);
    let body = json!({ "public_key": key.public(), "name": name, "permanent": true });
    let lease: Lease = api
        .call(Method::POST, &format!("/api/v1/orgs/{org}/peers"), &body)
        .await?;
    let text = configuration(&key, &lease)?;
    if to_stdout {
        print!("{}", text.as_str());
        return Ok(());
    }
    client::write_secret(&path, &text, overwrite)?;
    if common.json {
        println!(
            "{}",
            json!({ "name": name, "org": org, "address": lease.address, "file": path })
        );
    } else {
        println!(
            "{} holds the private key of {name}: it cannot be had again.",
            path.display()
        );
        println!(
            "hint: sudo wg-quick up {}",
            std::path::absolute(&path)?.display()
        );
    }
    Ok(())
}

fn prefer_websockets(wish: bool) -> anyhow::Result<()> {
    let mut settings = Settings::load()?;
    let key = settings::key("transport")?;
    settings.store(key, wish.then_some("websockets"))?;
    let (value, source) = settings.value(key);
    println!("transport is {}", value.unwrap_or_default());
    if source == Source::Environment {
        eprintln!(
            "underpass: {} counts before the settings\nhint: unset it",
            key.variable
        );
    }
    Ok(())
}

/// The file that `wg-quick`, NetworkManager and the apps of every platform read.
fn configuration(key: &PrivateKey, lease: &Lease) -> anyhow::Result<zeroize::Zeroizing<String>> {
    let mut text = zeroize::Zeroizing::new(String::with_capacity(512));
    writeln!(text, "[Interface]")?;
    writeln!(text, "PrivateKey = {}", key.to_base64().as_str())?;
    writeln!(text, "Address = {}", lease.address)?;
    writeln!(text, "DNS = {}", lease.dns)?;
    writeln!(text)?;
    writeln!(text, "[Peer]")?;
    writeln!(text, "PublicKey = {}", lease.gateway.public_key)?;
    writeln!(text, "AllowedIPs = {}", lease.network)?;
    writeln!(text, "Endpoint = {}", lease.gateway.endpoint)?;
    writeln!(text, "PersistentKeepalive = 15")?;
    Ok(text)
}

async fn list(common: &Common) -> anyhow::Result<()> {
    let (api, org) = common.scope.open().await?;
    let peers: Peers = api.get(&format!("/api/v1/orgs/{org}/peers")).await?;
    if common.json {
        println!("{}", serde_json::to_string(&peers)?);
        return Ok(());
    }
    println!("{:<24} {:<36} PUBLIC KEY", "NAME", "ADDRESS");
    for peer in &peers.peers {
        println!("{:<24} {:<36} {}", peer.name, peer.address, peer.public_key);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_the_seeds() {
        let lease = Lease {
            address: "fdaa:0:18:a7b:d6b:0:a:2/120".into(),
            network: "fdaa:0:18::/48".into(),
            dns: "fdaa:0:18::3".into(),
            gateway: Gateway {
                public_key: "PUBLIC".into(),
                endpoint: "gw.example.com:51820".into(),
            },
        };
        let key = PrivateKey::from_bytes([7; 32]);
        let text = configuration(&key, &lease).unwrap();
        insta::assert_snapshot!(text.replace(key.to_base64().as_str(), "PRIVATE"));
    }
}
