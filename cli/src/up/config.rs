//! What was typed, and what it means.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context, ensure};

use crate::data_dir::DataDirArg;

/// Run control, relay, gateway, names and the console in one process, on one TLS port and one UDP
/// port.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  underpass up --demo                                 two apps and three instances on this machine
  underpass up --demo --listen 127.0.0.1:0 --json     free ports, one line of JSON when ready
  underpass up --listen 0.0.0.0:443 --gateway-listen 0.0.0.0:51820 \\
               --host relay.example.com --advertise relay.example.com:51820 \\
               --tls-cert cert.pem --tls-key key.pem")]
pub(crate) struct Args {
    /// Add an organisation with two apps and three instances, whose shells run as you
    #[arg(long)]
    demo: bool,
    /// Let others than this machine reach the demo, at this address of it
    #[arg(long, value_name = "ADDRESS", requires = "demo")]
    demo_expose: Option<IpAddr>,
    /// Where to serve TLS: console, API and relay. Port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// Where to serve WireGuard [default: port 51820 beside --listen, free when that took a free one]
    #[arg(long, value_name = "ADDRESS:PORT")]
    gateway_listen: Option<SocketAddr>,
    /// What WireGuard peers are told as the gateway's endpoint [default: what it listens on]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// A name that this system is reached by; may be given again
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// An origin whose pages may use the API and embed the console; may be given again
    #[arg(long = "allow-origin", value_name = "ORIGIN")]
    origins: Vec<String>,
    /// A TLS certificate chain, read again when it changes [default: a self-signed one, kept in the data directory]
    #[arg(long, value_name = "PEM", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of --tls-cert
    #[arg(long, value_name = "PEM", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Where to forward names outside .internal [default: the first nameserver of /etc/resolv.conf]
    #[arg(long, value_name = "ADDRESS:PORT")]
    dns_upstream: Option<SocketAddr>,
    /// Serve flyctl's WebSocket stream on /, too
    #[arg(long)]
    flyctl: bool,
    /// An address that a relay elsewhere sends from: each of its sessions is a client of its own,
    /// not all of them one; may be given again
    #[arg(long = "relay-address", value_name = "ADDRESS")]
    relay_addresses: Vec<IpAddr>,
    /// Where to serve /metrics, /healthz and /readyz in cleartext, loopback for example [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) data_dir: DataDirArg,
    /// Print one line of JSON on stdout when ready, and nothing else there
    #[arg(long)]
    json: bool,
}

/// What an `up` does, decided before anything is opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) demo: bool,
    pub(crate) listen: SocketAddr,
    pub(crate) gateway_listen: SocketAddr,
    pub(crate) advertise: Option<String>,
    pub(crate) hosts: Vec<String>,
    pub(crate) origins: Vec<String>,
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    pub(crate) dns_upstream: Option<SocketAddr>,
    pub(crate) flyctl: bool,
    pub(crate) relay_addresses: Vec<IpAddr>,
    pub(crate) metrics_listen: Option<SocketAddr>,
    pub(crate) json: bool,
}

/// The port that WireGuard's own tools take.
const WIREGUARD_PORT: u16 = 51820;

impl Args {
    /// Resolves defaults and refuses what cannot be meant.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        let mut listen = self.listen;
        let free = if listen.port() == 0 {
            0
        } else {
            WIREGUARD_PORT
        };
        if let Some(address) = self.demo_expose {
            listen.set_ip(address);
        }
        let gateway_listen = self
            .gateway_listen
            .unwrap_or(SocketAddr::new(listen.ip(), free));
        if self.demo && self.demo_expose.is_none() {
            for address in [listen, gateway_listen] {
                ensure!(
                    address.ip().is_loopback(),
                    "a demo gives a shell as you to whoever has its URL: it stays on this machine, and {address} is not\n\
                     hint: --demo-expose {} if others shall reach it",
                    address.ip()
                );
            }
        }
        for origin in &self.origins {
            let rest = origin
                .strip_prefix("https://")
                .or_else(|| origin.strip_prefix("http://"));
            let plain = rest.is_some_and(|rest| {
                !rest.is_empty() && !rest.contains(['/', '*', ' ', ';', ',', '\''])
            });
            ensure!(
                plain,
                "{origin} is not an origin\nhint: https://dashboard.example.com, without a path"
            );
        }
        let advertised = !gateway_listen.ip().is_unspecified() || self.advertise.is_some();
        ensure!(
            advertised,
            "peers cannot be told to send to {gateway_listen}\nhint: --advertise HOST:PORT with a name or address they reach"
        );
        if let Some(advertise) = &self.advertise {
            let port = advertise
                .rsplit_once(':')
                .and_then(|(host, port)| (!host.is_empty()).then_some(port));
            let port: Option<u16> = port.and_then(|port| port.parse().ok());
            port.context(format!(
                "{advertise} is not HOST:PORT\nhint: --advertise relay.example.com:51820"
            ))?;
        }
        Ok(Config {
            demo: self.demo,
            listen,
            gateway_listen,
            advertise: self.advertise.clone(),
            hosts: self.hosts.clone(),
            origins: self.origins.clone(),
            tls: self.tls_cert.clone().zip(self.tls_key.clone()),
            dns_upstream: self.dns_upstream.or_else(system_nameserver),
            flyctl: self.flyctl,
            relay_addresses: self
                .relay_addresses
                .iter()
                .map(IpAddr::to_canonical)
                .collect(),
            metrics_listen: self.metrics_listen,
            json: self.json,
        })
    }
}

/// The names and addresses that `up` is reached by, the best for a URL first.
pub(crate) fn names(listen: SocketAddr, hosts: &[String]) -> Vec<String> {
    let mut names: Vec<String> = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
    if !listen.ip().is_unspecified() {
        names.push(listen.ip().to_string());
    }
    if listen.ip().is_loopback() || listen.ip().is_unspecified() {
        names.extend(["127.0.0.1".to_owned(), "localhost".to_owned()]);
    }
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// Every value of a Host header that names this system.
pub(crate) fn hosts(names: &[String], port: u16) -> Vec<String> {
    let plain = names
        .iter()
        .filter(|_| port == HTTPS)
        .map(|name| bracketed(name));
    plain
        .chain(
            names
                .iter()
                .map(|name| format!("{}:{port}", bracketed(name))),
        )
        .collect()
}

/// The first of the names as a URL writes it.
pub(crate) fn authority(names: &[String], port: u16) -> String {
    let name = names.first().map_or("localhost", String::as_str);
    if port == HTTPS {
        bracketed(name)
    } else {
        format!("{}:{port}", bracketed(name))
    }
}

const HTTPS: u16 = 443;

fn bracketed(name: &str) -> String {
    if name.parse::<std::net::Ipv6Addr>().is_ok() {
        format!("[{name}]")
    } else {
        name.to_owned()
    }
}

/// The address that reaches a listener from this machine.
pub(crate) fn reachable(listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        return SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), listen.port());
    }
    listen
}

fn system_nameserver() -> Option<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").ok()?;
    let mut servers = text
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok());
    Some(SocketAddr::new(servers.next()?, 53))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Up {
        #[command(flatten)]
        args: Args,
    }

    fn config(words: &str) -> anyhow::Result<Config> {
        let words = std::iter::once("up").chain(words.split_whitespace());
        Up::parse_from(words).args.config()
    }

    #[test]
    fn ports_go_together() {
        let plain = config("--demo").unwrap();
        assert_eq!(plain.listen.to_string(), "127.0.0.1:8443");
        assert_eq!(plain.gateway_listen.to_string(), "127.0.0.1:51820");
        let free = config("--demo --listen 127.0.0.1:0").unwrap();
        assert_eq!(free.gateway_listen.to_string(), "127.0.0.1:0");
        let exposed = config("--demo --demo-expose 10.9.8.7").unwrap();
        assert_eq!(exposed.listen.to_string(), "10.9.8.7:8443");
        assert_eq!(exposed.gateway_listen.to_string(), "10.9.8.7:51820");
    }

    #[test]
    fn a_demo_stays_on_this_machine_unless_told() {
        for words in [
            "--demo --listen 0.0.0.0:8443",
            "--demo --gateway-listen 10.9.8.7:1",
        ] {
            let error = config(words).unwrap_err().to_string();
            assert!(error.contains("hint: --demo-expose"), "{error}");
        }
    }

    #[test]
    fn relays_elsewhere_are_named_by_what_the_gateway_sees() {
        let config = config("--relay-address ::ffff:192.0.2.1 --relay-address 2001:db8::1");
        let addresses = config.unwrap().relay_addresses;
        let shown: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        assert_eq!(shown, ["192.0.2.1", "2001:db8::1"]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_hint() {
        for words in [
            "--listen 0.0.0.0:1",
            "--advertise nowhere",
            "--advertise :1",
            "--allow-origin example.com",
            "--allow-origin https://example.com/path",
        ] {
            let error = config(words).unwrap_err().to_string();
            assert!(error.contains("hint: "), "{words}: {error}");
        }
    }
}
