//! The far end of a bulk measurement: a machine of the private network, in a process of its own,
//! that sends as fast as it may or counts what it takes.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read},
    net::Ipv6Addr,
    path::Path,
    process::{Child, ChildStdin, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use carrier::{TcpStream, Transport};
use tests::system::System;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
    time::{sleep, timeout},
};
use tunnel::Class;

use crate::{
    bulk::{Pace, Pattern},
    myself,
};

/// Where it listens inside the network.
pub const PORT: u16 = 5001;
/// The first byte of a connection that wants bytes; eight more say how many in a second, 0 for as
/// many as go.
pub const DOWN: u8 = b'd';
/// The first byte of a connection that brings bytes. It is told how many came as they were sent,
/// eight bytes each time; it is closed at the first that did not.
pub const UP: u8 = b'u';
/// How often it is told.
const REPORT_EVERY: u64 = 64 * 1024;

/// The running process. It ends when this is dropped.
pub struct Instance {
    child: Child,
    stdin: Option<ChildStdin>,
    /// Its address in the network.
    pub address: Ipv6Addr,
}

impl Instance {
    /// Makes a peer of the system's organisation and serves as it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(system: &System, directory: &Path) -> anyhow::Result<Instance> {
        let path = peer(system, directory, "far");
        let address = configuration(&path)?.address;
        let mut child = myself(&["--instance", &path])?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        anyhow::ensure!(line == "ready\n", "the far end did not start");
        Ok(Instance {
            child,
            stdin,
            address,
        })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// Makes a stock WireGuard peer; where its configuration is.
pub fn peer(system: &System, directory: &Path, name: &str) -> String {
    let path = directory.join(format!("{name}.conf")).display().to_string();
    let org = &system.ready.org;
    let create = ["wireguard", "create", "--org", org, name, &path];
    system.underpass(&create).ok();
    path
}

/// What a configuration file says.
pub struct Configuration {
    /// Base64.
    pub private_key: String,
    /// Base64.
    pub gateway_key: String,
    /// `address:port`.
    pub endpoint: String,
    /// Without its prefix.
    pub address: Ipv6Addr,
}

/// Reads a configuration file.
///
/// # Errors
/// When a line is missing.
pub fn configuration(path: &str) -> anyhow::Result<Configuration> {
    let text = fs::read_to_string(path)?;
    let lines = text.lines().filter_map(|line| line.split_once(" = "));
    let values: HashMap<&str, &str> = lines.collect();
    let value = |key: &str| {
        let value = values
            .get(key)
            .with_context(|| format!("no {key} in {path}"));
        value.map(|value| (*value).to_owned())
    };
    let address = value("Address")?;
    Ok(Configuration {
        private_key: value("PrivateKey")?,
        gateway_key: value("PublicKey")?,
        endpoint: value("Endpoint")?,
        address: address.split('/').next().unwrap_or_default().parse()?,
    })
}

/// What the child does: serves until its stdin ends.
///
/// # Errors
/// When it cannot join.
pub fn run(path: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let it = configuration(path)?;
        let config = tunnel::Config {
            private_key: tunnel::PrivateKey::from_base64(&it.private_key)
                .context("no private key")?,
            peer: it.gateway_key.parse().ok().context("no public key")?,
            preshared: None,
            addresses: vec![it.address],
            dns: None,
            mtu: 1420,
            keepalive: Some(15),
            seed: 1,
        };
        let endpoint = it.endpoint.parse()?;
        let network = carrier::start(config, Transport::Udp { endpoint }).await?;
        network.ready().await?;
        let mut listener = network.listen_class(PORT, Class::Bulk)?;
        println!("ready");
        let ended = Arc::new(Notify::new());
        let end = ended.clone();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read(&mut [0]);
            end.notify_one();
        });
        let serve = async {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        };
        tokio::select! {
            () = serve => {}
            () = ended.notified() => {}
        }
        Ok(())
    })
}

/// One connection; how it ends is the other side's affair.
async fn serve(mut stream: TcpStream) -> anyhow::Result<()> {
    let limit = Duration::from_secs(30);
    let kind = timeout(limit, stream.read_u8()).await??;
    let rate = timeout(limit, stream.read_u64()).await??;
    let mut pattern = Pattern::default();
    let mut piece = vec![0; 64 * 1024];
    if kind == DOWN {
        let mut pace = Pace::new(rate);
        loop {
            let due = pace.due(piece.len());
            if due == 0 {
                sleep(Pace::TICK).await;
                continue;
            }
            pattern.fill(&mut piece[..due]);
            timeout(limit, stream.write_all(&piece[..due])).await??;
        }
    }
    let (mut count, mut told) = (0, 0);
    loop {
        let n = timeout(limit, stream.read(&mut piece)).await??;
        if n == 0 || !pattern.follows(&piece[..n]) {
            return Ok(());
        }
        count += n as u64;
        if count - told >= REPORT_EVERY {
            told = count;
            stream.write_all(&count.to_be_bytes()).await?;
        }
    }
}
