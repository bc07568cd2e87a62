//! A tunnel that runs in this process.

use std::{
    net::{Ipv6Addr, SocketAddrV6},
    sync::Arc,
    time::Duration,
};

use carrier::{CarrierError, Handle, TcpStream};
use tokio::task::JoinHandle;
use tunnel::{Answer, Class, RecordKind};

use super::{Failure, Peer, Way, explain};
use crate::client::args::Scope;

/// A leased peer, its tunnel, and the task that keeps the lease.
pub(crate) struct Own {
    peer: Arc<Peer>,
    handle: Handle,
    renewal: JoinHandle<()>,
}

impl Own {
    /// Leases a peer and starts its tunnel, without waiting for the gateway. `lost` is called when
    /// the lease is lost; the tunnel is closed then.
    pub(crate) async fn open(
        scope: &Scope,
        way: Way,
        lost: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<Own> {
        let peer = Arc::new(Box::pin(Peer::lease(scope)).await?);
        let started = async {
            let transport = peer.transport(way).await?;
            Box::pin(peer.start(transport)).await
        };
        let handle = match started.await {
            Ok(handle) => handle,
            Err(error) => {
                peer.release().await;
                return Err(error);
            }
        };
        let renewal = tokio::spawn({
            let (peer, handle) = (Arc::clone(&peer), handle.clone());
            async move {
                let renewed = |token| handle.set_token(Some(token));
                peer.keep(Some(handle.events()), renewed).await;
                lost();
                handle.close().await;
            }
        });
        Ok(Own {
            peer,
            handle,
            renewal,
        })
    }

    /// Whose tunnel it is.
    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Its carrier.
    pub(crate) fn carrier(&self) -> &Handle {
        &self.handle
    }

    /// Waits until the gateway has answered.
    pub(crate) async fn ready(&self) -> anyhow::Result<Duration> {
        self.handle.ready().await.map_err(|error| explain(&error))
    }

    /// Says goodbye to the gateway and gives the lease back.
    pub(crate) async fn close(&self) {
        self.renewal.abort();
        self.handle.clone().close().await;
        self.peer.release().await;
    }
}

/// The address that a host is, with or without brackets.
pub(super) fn literal(host: &str) -> Option<Ipv6Addr> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    bare.unwrap_or(host).parse().ok()
}

async fn resolve(handle: &Handle, host: &str) -> Result<Vec<Ipv6Addr>, CarrierError> {
    if let Some(address) = literal(host) {
        return Ok(vec![address]);
    }
    match handle.lookup(host, RecordKind::Aaaa).await? {
        Answer::Aaaa(addresses) => Ok(addresses),
        Answer::Txt(_) => Ok(Vec::new()),
    }
}

/// Connects to a host: to the first of its addresses that answers.
pub(crate) async fn connect(
    handle: &Handle,
    host: &str,
    port: u16,
    class: Class,
) -> Result<TcpStream, Failure> {
    let mut last = None;
    for address in resolve(handle, host).await? {
        match handle
            .connect(SocketAddrV6::new(address, port, 0, 0), class)
            .await
        {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(CarrierError::Stopped).into())
}
