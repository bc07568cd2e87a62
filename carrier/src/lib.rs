//! Native transports that drive a tunnel: UDP and WebSocket
