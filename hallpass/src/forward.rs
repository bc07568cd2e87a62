//! Local forwarding: from a channel to the instance's own loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::channel::{Inbox, Outbox};

/// Where a forwarded connection may go.
pub(crate) struct Target(Vec<SocketAddr>);

impl Target {
    /// Loopback alone, by name or by address: what else the instance can reach is not this
    /// server's to give.
    pub(crate) fn parse(host: &str, port: u32) -> Option<Target> {
        let port = u16::try_from(port).ok().filter(|&port| port != 0)?;
        let addresses = if host.eq_ignore_ascii_case("localhost") {
            vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
        } else {
            let address: IpAddr = host.parse().ok()?;
            vec![Some(address.to_canonical()).filter(IpAddr::is_loopback)?]
        };
        Some(Target(
            addresses
                .into_iter()
                .map(|address| SocketAddr::new(address, port))
                .collect(),
        ))
    }

    pub(crate) async fn connect(&self) -> Option<TcpStream> {
        let connect = TcpStream::connect(self.0.as_slice());
        tokio::time::timeout(CONNECT, connect).await.ok()?.ok()
    }
}

/// Copies both ways until the connection has ended or the client closes the channel.
pub(crate) async fn run(
    (mut read, write): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    mut inbox: Inbox,
    outbox: Outbox,
) {
    let both = async {
        let inward = async {
            inbox.feed(write).await;
            Ok(())
        };
        let outward = async {
            outbox.copy(&mut read, false).await?;
            outbox.unless_closed(outbox.write.eof()).await
        };
        tokio::try_join!(inward, outward)
    };
    let done = tokio::select! {
        done = both => done.is_ok(),
        () = outbox.closed.cancelled() => false,
    };
    if done {
        let _ = outbox.unless_closed(outbox.write.close()).await;
    }
}

const CONNECT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_alone() {
        for host in [
            "localhost",
            "LOCALHOST",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(Target::parse(host, 80).is_some(), "{host}");
        }
        for host in [
            "",
            "10.0.0.1",
            "fdaa::3",
            "0.0.0.0",
            "::",
            "example.com",
            "localhost.",
            "169.254.169.254",
        ] {
            assert!(Target::parse(host, 80).is_none(), "{host}");
        }
        assert!(Target::parse("localhost", 0).is_none());
        assert!(Target::parse("localhost", 65_536).is_none());
    }
}
