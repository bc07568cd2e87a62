//! Two machines and a firewall between them that drops what it is told to, without a word.

use std::{path::Path, process::Command, time::Duration};

use crate::{
    command::run,
    namespace::{Namespace, connect},
    peer::Peer,
    system::{Setup, System, binary},
};

/// What passes between the two machines, not within one and not from a third.
const FROM_OUTSIDE: &str = "iifname v* ip saddr 10.99.7.0/24";

const QUICK: Duration = Duration::from_secs(10);

/// A system at 10.99.7.1 of the one machine, clients on the other at 10.99.7.2.
#[derive(Debug)]
pub struct Firewall {
    /// Stopped before its machine goes.
    pub system: System,
    /// Where the system runs.
    pub server: Namespace,
    /// Where the clients run.
    pub client: Namespace,
}

impl Firewall {
    /// Lays the machines, the firewall wide open, and starts the system.
    pub fn new() -> Firewall {
        Firewall::with(&[])
    }

    /// The same, with more arguments for `up`.
    pub fn with(arguments: &[&str]) -> Firewall {
        let (server, client) = (Namespace::new(), Namespace::new());
        let (address, _) = connect(&server, &client, 7);
        let setup = Setup {
            namespace: Some((&server, &address)),
            arguments,
            ..Setup::default()
        };
        let system = setup.start();
        for namespace in [&server, &client] {
            let chain = "add table inet wall; add chain inet wall in { type filter hook input priority 0; }";
            namespace.run("nft", [chain], QUICK).ok();
        }
        let counter = format!(
            "add chain inet wall seen {{ type filter hook prerouting priority 0; }}; \
             add rule inet wall seen {FROM_OUTSIDE} udp dport 51820 counter"
        );
        server.run("nft", [&counter], QUICK).ok();
        Firewall {
            system,
            server,
            client,
        }
    }

    /// Drops what arrives of that protocol at either side.
    pub fn drops(&self, protocol: &str) {
        for namespace in [&self.server, &self.client] {
            let rule = format!("add rule inet wall in {FROM_OUTSIDE} meta l4proto {protocol} drop");
            namespace.run("nft", [&rule], QUICK).ok();
        }
    }

    /// Drops nothing any more.
    pub fn opens(&self) {
        for namespace in [&self.server, &self.client] {
            namespace
                .run("nft", ["flush chain inet wall in"], QUICK)
                .ok();
        }
    }

    /// Bytes that the client's machine has sent to the gateway's UDP port, the dropped ones too.
    ///
    /// # Panics
    /// When nft does not say.
    pub fn seen_over_udp(&self) -> u64 {
        let output = self
            .server
            .run("nft", ["list chain inet wall seen"], QUICK)
            .ok();
        let text = output.text();
        let bytes = text.split("bytes ").nth(1);
        let bytes = bytes.and_then(|rest| rest.split_whitespace().next());
        bytes
            .and_then(|bytes| bytes.parse().ok())
            .unwrap_or_else(|| panic!("no counter in {text}"))
    }

    /// The binary on the client's machine, finding the system.
    pub fn underpass(&self, arguments: &[&str]) -> Command {
        let mut command = self.client.command(binary());
        command
            .args(arguments)
            .env("UNDERPASS_DATA_DIR", self.system.data_dir());
        command
    }

    /// A third machine, `inner._peer.internal`, with a stock WireGuard tunnel that the firewall does
    /// not touch. Its configuration is written into `directory`.
    pub fn inner(&self, directory: &Path) -> Peer {
        let namespace = Namespace::new();
        connect(&self.server, &namespace, 8);
        namespace.ip(["route", "add", "10.99.7.0/24", "via", "10.99.8.1"]);
        let path = directory.join("inner.conf");
        let shown = path.display().to_string();
        let org = &self.system.ready.org;
        self.system
            .underpass(&["wireguard", "create", "--org", org, "inner", &shown])
            .ok();
        let peer = Peer::up(namespace, &path);
        // Its tunnel begins with what it sends: from now on it can be reached.
        peer.dig(["inner._peer.internal", "AAAA"]);
        peer
    }

    /// Which way a ping goes: `UDP` or `WebSocket`.
    pub fn way(&self) -> String {
        let ping = self.underpass(&["ping", "-c", "1", "web.internal"]);
        let output = run(ping, b"", Duration::from_secs(30)).ok();
        let first = output.text();
        first
            .lines()
            .next()
            .and_then(|line| line.rsplit(' ').next())
            .unwrap_or_default()
            .to_owned()
    }
}

impl Default for Firewall {
    fn default() -> Firewall {
        Firewall::new()
    }
}
