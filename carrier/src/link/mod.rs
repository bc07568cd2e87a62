//! The ways datagrams travel between this carrier and the other side.

mod dial;
mod outbox;
mod proxy;
mod race;
mod udp;
mod websocket;

use std::time::Duration;

use bytes::Bytes;

use crate::{CarrierError, stats::LinkStats};

pub(crate) use dial::Target;
pub(crate) use proxy::Proxy;
pub(crate) use race::RaceLink;
pub(crate) use udp::UdpLink;
pub(crate) use websocket::WebSocketLink;

/// One path for datagrams. It loses, reorders and delays as a network does; it never blocks the
/// driver.
pub(crate) enum Link {
    Udp(UdpLink),
    WebSocket(WebSocketLink),
    Race(Box<RaceLink>),
}

/// What comes out of a link.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// Datagrams: one of UDP, or the records of a message, already checked.
    Datagram(Bytes),
    Message(Bytes),
    /// The path carries datagrams (again). The other side may have forgotten everything.
    Up,
    /// The same, and an initiation will be asked for where one is needed.
    Carries,
    /// One of several paths wants an initiation of its own; the next one given goes there.
    Initiate,
    /// Another path carries the data from now on.
    Switched,
    /// The path carries nothing until the next `Up`.
    Down {
        error: CarrierError,
        retry_in: Duration,
    },
    /// The path goes on, but something is the matter.
    Trouble {
        code: String,
        hint: String,
    },
}

impl Link {
    /// `UDP` or `WebSocket`.
    pub(crate) fn transport(&self) -> &'static str {
        match self {
            Link::Udp(_) => "UDP",
            Link::WebSocket(_) => "WebSocket",
            Link::Race(link) => link.transport(),
        }
    }

    /// Waits until [`try_recv`](Link::try_recv) has something or a link without room has room
    /// again. Safe to cancel.
    pub(crate) async fn ready(&mut self) {
        match self {
            Link::Udp(link) => link.ready().await,
            Link::WebSocket(link) => link.ready().await,
            Link::Race(link) => link.ready().await,
        }
    }

    /// What arrived, until there is no more.
    pub(crate) fn try_recv(&mut self) -> Option<Incoming> {
        match self {
            Link::Udp(link) => link.try_recv(),
            Link::WebSocket(link) => link.try_recv(),
            Link::Race(link) => link.try_recv(),
        }
    }

    /// Whether a datagram given to [`send`](Link::send) now would be on its way soon. While it
    /// would not, the driver leaves data where it can still be told to wait: inside the tunnel.
    pub(crate) fn has_room(&mut self) -> bool {
        match self {
            Link::Udp(link) => link.has_room(),
            Link::WebSocket(link) => link.has_room(),
            Link::Race(link) => link.has_room(),
        }
    }

    /// Takes a datagram; it may drop it, or an older one, and counts that.
    pub(crate) fn send(&mut self, datagram: Vec<u8>) {
        match self {
            Link::Udp(link) => link.send(datagram),
            Link::WebSocket(link) => link.send(datagram),
            Link::Race(link) => link.send(datagram),
        }
    }

    /// Everything that is ready was given to [`send`](Link::send): it may go.
    pub(crate) fn flush(&mut self) {
        match self {
            Link::Udp(_) => {}
            Link::WebSocket(link) => link.flush(),
            Link::Race(link) => link.flush(),
        }
    }

    /// The tunnel hears nothing: find out whether the path is still there.
    pub(crate) fn probe(&mut self) {
        match self {
            Link::Udp(link) => link.rebind(),
            Link::WebSocket(link) => link.probe(),
            Link::Race(link) => link.probe(),
        }
    }

    pub(crate) fn stats(&self) -> LinkStats {
        match self {
            Link::Udp(link) => link.stats(),
            Link::WebSocket(link) => link.stats(),
            Link::Race(link) => link.stats(),
        }
    }

    /// Says goodbye where the transport has one, within a second.
    pub(crate) async fn close(self) {
        match self {
            Link::Udp(_) => {}
            Link::WebSocket(link) => link.close().await,
            Link::Race(link) => link.close().await,
        }
    }
}
