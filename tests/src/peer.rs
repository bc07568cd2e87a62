//! A stock WireGuard client in a namespace of its own: wireguard-go, brought up by the steps of
//! `wg-quick` (which wants resolvconf and the kernel's module).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use crate::{
    clock::wait_for,
    command::{Background, Output, run},
    namespace::{Namespace, interface},
};

/// A machine with a WireGuard tunnel up.
#[derive(Debug)]
pub struct Peer {
    // Before the namespace, because it lives in it.
    _wireguard: Background,
    /// Where its programs run.
    pub namespace: Namespace,
    /// Its address in the private network.
    pub address: String,
    /// The DNS server of its network.
    pub dns: String,
    /// The private network, a /48.
    pub network: String,
    /// The name of its WireGuard interface.
    pub interface: String,
}

impl Peer {
    /// Brings up the configuration file at `path` in `namespace`.
    ///
    /// # Panics
    /// When a step fails.
    pub fn up(namespace: Namespace, path: &Path) -> Peer {
        let text = fs::read_to_string(path).expect("the configuration file");
        let value = |key: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.trim().strip_prefix('='));
            line.unwrap_or_else(|| panic!("no {key} in {text}"))
                .trim()
                .to_owned()
        };
        let (address, dns, network) = (value("Address"), value("DNS"), value("AllowedIPs"));
        let interface = interface("wg");
        let mut command = namespace.command("wireguard-go");
        command
            .args(["--foreground", &interface])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        // It says at length that a kernel would do.
        command.stderr(Stdio::null());
        let wireguard = Background::start(command);
        let socket = PathBuf::from("/var/run/wireguard").join(format!("{interface}.sock"));
        wait_for("wireguard-go", Duration::from_secs(10), || {
            socket.exists().then_some(())
        });
        // What `wg-quick strip` leaves.
        let stripped: String = text
            .lines()
            .filter(|line| !line.starts_with("Address") && !line.starts_with("DNS"))
            .flat_map(|line| [line, "\n"])
            .collect();
        let mut command = namespace.command("wg");
        command.args(["setconf", &interface, "/dev/stdin"]);
        run(command, stripped.as_bytes(), Duration::from_secs(10)).ok();
        // No duplicate address detection: there is no neighbour, and it takes a second.
        namespace.ip(["-6", "addr", "add", &address, "dev", &interface, "nodad"]);
        namespace.ip(["link", "set", &interface, "mtu", "1420", "up"]);
        namespace.ip(["-6", "route", "add", &network, "dev", &interface]);
        namespace.set_resolv_conf(&format!("nameserver {dns}\noptions timeout:2 attempts:3\n"));
        let address = address.split('/').next().unwrap_or_default().to_owned();
        Peer {
            _wireguard: wireguard,
            namespace,
            address,
            dns,
            network,
            interface,
        }
    }

    /// Runs a program on this machine.
    pub fn run<const N: usize>(&self, program: &str, arguments: [&str; N]) -> Output {
        self.namespace
            .run(program, arguments, Duration::from_secs(60))
    }

    /// What `dig` answers, one record per line.
    pub fn dig<const N: usize>(&self, question: [&str; N]) -> Vec<String> {
        let mut command = self.namespace.command("dig");
        command
            .args([&format!("@{}", self.dns), "+short", "+tries=2", "+time=3"])
            .args(question);
        let output = run(command, b"", Duration::from_secs(20)).ok();
        output.text().lines().map(str::to_owned).collect()
    }

    /// The status that `dig` shows: `NOERROR`, `NXDOMAIN`, ...
    pub fn dig_status<const N: usize>(&self, question: [&str; N]) -> String {
        let mut command = self.namespace.command("dig");
        command
            .args([&format!("@{}", self.dns), "+tries=2", "+time=3"])
            .args(question);
        let text = run(command, b"", Duration::from_secs(20)).ok().text();
        let status = text
            .split("status: ")
            .nth(1)
            .and_then(|rest| rest.split(',').next());
        status
            .unwrap_or_else(|| panic!("no status in {text}"))
            .to_owned()
    }

    /// Seconds since the last handshake, as `wg` shows it; none before the first.
    pub fn handshake(&self) -> Option<u64> {
        let output = self
            .run("wg", ["show", &self.interface, "latest-handshakes"])
            .ok();
        let at: u64 = output.text().split_whitespace().nth(1)?.parse().ok()?;
        (at > 0).then(|| crate::clock::unix().saturating_sub(at))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = fs::remove_file(format!("/var/run/wireguard/{}.sock", self.interface));
    }
}
