//! The relay that is soaked: its process, as its user and the kernel see it.

use std::{fs, net::SocketAddr, time::Duration};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{client::Lease, relay::Relay, system::System};

/// `underpass relay` in front of one gateway. It ends when this is dropped.
pub(super) struct RelayProcess {
    relay: Relay,
    _directory: TempDir,
}

impl RelayProcess {
    /// Starts one with the certificate and for the tokens of `system`. Its limits are the usual
    /// ones, but for the number of sessions of one token, which all clients share, and a rate.
    pub(super) fn start(system: &System, lease: &Lease, gateway: SocketAddr) -> RelayProcess {
        let directory = tempfile::tempdir().expect("a directory");
        for file in ["cert.pem", "key.pem"] {
            let from = system.data_dir().join("tls").join(file);
            fs::copy(from, directory.path().join(file)).expect("the certificate");
        }
        let text = format!(
            "listen = \"127.0.0.1:0\"\n\
             metrics_listen = \"127.0.0.1:0\"\n\
             hosts = [\"127.0.0.1\"]\n\
             token_keys = [\"{}\"]\n\
             [tls]\n\
             certificate = \"{}\"\n\
             key = \"{}\"\n\
             [gateways.{}]\n\
             endpoint = \"{gateway}\"\n\
             public_key = \"{}\"\n\
             [limits]\n\
             sessions_per_token = 10000\n\
             datagrams_per_second = 1500\n",
            system.ready.relay_token_key,
            directory.path().join("cert.pem").display(),
            directory.path().join("key.pem").display(),
            system.ready.gateway.name,
            lease.gateway.public_key,
        );
        let config = directory.path().join("relay.toml");
        fs::write(&config, text).expect("a configuration");
        RelayProcess {
            relay: Relay::start(&config),
            _directory: directory,
        }
    }

    pub(super) fn listen(&self) -> SocketAddr {
        self.relay.listen
    }

    pub(super) fn is_running(&mut self) -> bool {
        self.relay.is_running()
    }

    /// What `/metrics` says; nothing when it says nothing.
    pub(super) async fn metrics(&self) -> String {
        let mut text = String::new();
        let asked = timeout(Duration::from_secs(10), async {
            let mut tcp = TcpStream::connect(self.relay.metrics).await?;
            let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
            tcp.write_all(request).await?;
            tcp.read_to_string(&mut text).await
        });
        match asked.await {
            Ok(Ok(_)) if text.starts_with("HTTP/1.1 200 ") => text,
            _ => String::new(),
        }
    }

    /// Resident bytes.
    pub(super) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.relay.pid()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or_default() * 1024
    }

    /// Open descriptors.
    pub(super) fn descriptors(&self) -> usize {
        let open = fs::read_dir(format!("/proc/{}/fd", self.relay.pid()));
        open.map_or(0, Iterator::count)
    }

    /// The same, once the connection that asked for metrics is gone: the least of a few looks.
    pub(super) async fn idle_descriptors(&self) -> usize {
        let mut least = self.descriptors();
        for _ in 0..5 {
            sleep(Duration::from_millis(20)).await;
            least = least.min(self.descriptors());
        }
        least
    }
}
