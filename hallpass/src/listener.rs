//! Where connections come from.

use std::future::Future;
use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite};

/// A source of connections.
pub trait Listener: Send {
    /// One connection.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next connection, and says where it comes from.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, SocketAddr)>> + Send;
}

impl Listener for tokio::net::TcpListener {
    type Io = tokio::net::TcpStream;

    async fn accept(&mut self) -> io::Result<(Self::Io, SocketAddr)> {
        let (stream, from) = tokio::net::TcpListener::accept(self).await?;
        // Keystrokes are small and do not wait for each other.
        stream.set_nodelay(true)?;
        Ok((stream, from))
    }
}

impl Listener for carrier::TcpListener {
    type Io = carrier::TcpStream;

    async fn accept(&mut self) -> io::Result<(Self::Io, SocketAddr)> {
        let (stream, from) = carrier::TcpListener::accept(self).await?;
        Ok((stream, from.into()))
    }
}
