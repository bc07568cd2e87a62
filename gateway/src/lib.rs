//! The WireGuard endpoint: peers on demand, isolation by network, routing between peers
