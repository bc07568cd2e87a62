//! Peers that talk to a gateway, without sockets: two networks, their names, and strangers.

mod bench;
mod door;
mod hostile;
mod resolver;
mod routing;
