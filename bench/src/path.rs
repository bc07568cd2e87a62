//! Where a measurement takes place: on loopback, or over a throttled path between two network
//! namespaces. The gateway's side of the relay is a path of its own, not throttled.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
};

use anyhow::{Context, bail};

/// The addresses of a measurement, and where its server runs.
pub struct Place {
    /// The server's namespace.
    pub namespace: Option<String>,
    /// Where the server listens.
    pub listen: IpAddr,
    /// Where the gateway is.
    pub gateway: IpAddr,
}

impl Place {
    /// Everything on loopback.
    pub fn loopback() -> Place {
        Place {
            namespace: None,
            listen: Ipv4Addr::LOCALHOST.into(),
            gateway: Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// Inside the namespaces of a [`Path`]: this process is in the load's.
    pub fn throttled(server: &str) -> Place {
        Place {
            namespace: Some(server.to_owned()),
            listen: Ipv4Addr::new(10, 99, 1, 2).into(),
            gateway: Ipv4Addr::new(10, 99, 2, 1).into(),
        }
    }
}

/// Two namespaces and the path between them. They go when this is dropped.
pub struct Path {
    /// Where the load runs.
    pub load: String,
    /// Where the server runs.
    pub server: String,
}

impl Path {
    /// A path on which the server's side sends `megabits` in a second.
    ///
    /// # Errors
    /// Without root, or without `ip` and `tc`.
    pub fn new(megabits: u32) -> anyhow::Result<Path> {
        let name = |end| format!("bench-{}-{end}", std::process::id());
        let path = Path {
            load: name("load"),
            server: name("server"),
        };
        let (load, server) = (&path.load, &path.server);
        run(&format!("ip netns add {load}"))?;
        run(&format!("ip netns add {server}"))?;
        // What the load measures of its host goes over loopback.
        run(&format!("ip -n {load} link set lo up"))?;
        for (link, net) in [("slow", 1), ("fast", 2)] {
            run(&format!(
                "ip link add {link} netns {load} type veth peer name {link} netns {server}"
            ))?;
            for (namespace, host) in [(load, 1), (server, 2)] {
                run(&format!(
                    "ip -n {namespace} address add 10.99.{net}.{host}/24 dev {link}"
                ))?;
                run(&format!("ip -n {namespace} link set {link} up"))?;
            }
        }
        run(&format!(
            "tc -n {server} qdisc add dev slow root tbf rate {megabits}mbit burst 16kb latency 200ms"
        ))?;
        Ok(path)
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        for namespace in [&self.load, &self.server] {
            let _ = run(&format!("ip netns delete {namespace}"));
        }
    }
}

fn run(line: &str) -> anyhow::Result<()> {
    let mut words = line.split(' ');
    let program = words.next().context("no program")?;
    let status = Command::new(program)
        .args(words)
        .status()
        .with_context(|| format!("cannot run {program}\nhint: apt install iproute2"))?;
    if !status.success() {
        bail!("failed: {line}\nhint: network namespaces take root");
    }
    Ok(())
}
