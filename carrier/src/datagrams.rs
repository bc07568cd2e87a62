//! A relay's WebSocket as a path for somebody else's datagrams: no tunnel, no keys.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use url::Url;

use crate::{
    CarrierError, LinkStats,
    link::{Incoming, Target, WebSocketLink},
};

/// Datagrams to and from one gateway, through its relay. It loses them as a network does; a
/// connection that is lost is made again.
pub struct Datagrams {
    link: WebSocketLink,
    target: Arc<Target>,
    /// Of the last message, what was not taken yet.
    waiting: VecDeque<Bytes>,
}

impl std::fmt::Debug for Datagrams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datagrams")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl Datagrams {
    /// The largest datagram that passes; what is larger is dropped and counted.
    pub const LARGEST: usize = wire::record::MAX_RECORD;

    /// Returns when the relay has accepted the session.
    pub async fn open(
        url: Url,
        token: Option<String>,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Datagrams, CarrierError> {
        let target = Arc::new(Target::new(url, token, tls)?);
        let link = Box::pin(WebSocketLink::open(Arc::clone(&target))).await?;
        Ok(Datagrams {
            link,
            target,
            waiting: VecDeque::new(),
        })
    }

    /// Takes a datagram on its way. One too many is dropped, the oldest first, and counted.
    pub fn send(&mut self, datagram: &[u8]) {
        self.link.send(datagram.to_vec());
    }

    /// What was sent may go: called once for what came together.
    pub fn flush(&mut self) {
        self.link.flush();
    }

    /// The next datagram of the gateway. Safe to cancel.
    pub async fn recv(&mut self) -> Bytes {
        loop {
            if let Some(datagram) = self.try_recv() {
                return datagram;
            }
            self.link.ready().await;
        }
    }

    /// The next that is here already.
    pub fn try_recv(&mut self) -> Option<Bytes> {
        loop {
            if let Some(datagram) = self.waiting.pop_front() {
                return Some(datagram);
            }
            match self.link.try_recv()? {
                Incoming::Message(message) => {
                    // The link has checked it: an error would mean no datagrams.
                    let records = wire::record::records(&message).into_iter().flatten();
                    self.waiting
                        .extend(records.map(|record| message.slice_ref(record)));
                }
                Incoming::Down { error, retry_in } => {
                    tracing::warn!("{error}; again in {} ms", retry_in.as_millis());
                }
                Incoming::Trouble { code, hint } => tracing::warn!("{code}: {hint}"),
                _ => {}
            }
        }
    }

    /// The relay token for connections from now on.
    pub fn set_token(&self, token: Option<String>) {
        self.target.set_token(token);
    }

    /// The counters.
    pub fn stats(&self) -> LinkStats {
        self.link.stats()
    }

    /// Says goodbye to the relay.
    pub async fn close(self) {
        self.link.close().await;
    }
}
