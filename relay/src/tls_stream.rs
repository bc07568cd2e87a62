//! A TLS connection that holds no buffer while it waits: rustls without its own buffers, over
//! those that a thread's sessions share. What it keeps is a record that has arrived in part, and
//! what the kernel has not taken.

use std::{
    future::poll_fn,
    io,
    os::fd::AsRawFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use nix::sys::socket::{MsgFlags, send};
use rustls::{
    ServerConfig,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, UnbufferedStatus},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use crate::{pace::Pace, path::path_of, pool};

/// What is encrypted at once; with what TLS adds it fits a pooled buffer.
const WRITE: usize = 64 * 1024;

/// A server's end of a connection, over TCP.
pub(crate) struct TlsStream {
    tcp: TcpStream,
    tls: UnbufferedServerConnection,
    /// The beginning of a record, as it arrived, or of a handshake message: less than a buffer.
    incoming: Vec<u8>,
    /// Decrypted, and not asked for yet.
    plain: Waiting,
    /// Encrypted, and not taken by the kernel yet.
    outgoing: Waiting,
    /// How much of it the kernel is given.
    pace: Pace,
    begun: Instant,
    look_again: Option<Pin<Box<Sleep>>>,
    /// The client has said that it sends nothing more.
    ended: bool,
    /// We have said so.
    goodbye: bool,
    /// What came is not all in `incoming`: rustls is not to be asked again.
    broken: bool,
}

/// Bytes that wait in a pooled buffer; without bytes there is no buffer.
#[derive(Default)]
struct Waiting {
    buffer: Option<Box<[u8]>>,
    at: usize,
    end: usize,
}

impl TlsStream {
    /// Shakes hands.
    pub(crate) async fn accept(tcp: TcpStream, config: Arc<ServerConfig>) -> io::Result<TlsStream> {
        let tls = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        let mut stream = TlsStream {
            tcp,
            tls,
            incoming: Vec::new(),
            plain: Waiting::default(),
            outgoing: Waiting::default(),
            pace: Pace::default(),
            begun: Instant::now(),
            look_again: None,
            ended: false,
            goodbye: false,
            broken: false,
        };
        poll_fn(|context| stream.poll_handshake(context)).await?;
        Ok(stream)
    }

    /// The connection below: what arrives after the end is of no account, decrypted or not.
    pub(crate) fn tcp(&mut self) -> &mut TcpStream {
        &mut self.tcp
    }

    /// The protocol that was agreed on.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    fn poll_handshake(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let sent = self.poll_outgoing(context)?;
            if !self.tls.is_handshaking() {
                return sent.map(Ok);
            }
            let received = ready!(self.poll_keep(context));
            // The alert that says why, as far as the kernel takes it at once.
            let _ = self.poll_outgoing(context);
            received?;
            // Who says goodbye with the last message of the handshake has shaken hands.
            if self.ended && self.tls.is_handshaking() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Reads from the network once and hands out what is decrypted, record by record; how many
    /// bytes it was, 0 when the client has said that it sends nothing more.
    pub(crate) fn poll_take(
        &mut self,
        context: &mut Context<'_>,
        take: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        if !self.plain.is_empty() {
            let bytes = self.plain.bytes();
            take(bytes);
            let length = bytes.len();
            self.plain.take(length);
            return Poll::Ready(Ok(length));
        }
        let mut taken = 0;
        while taken == 0 && !self.ended {
            let mut count = |bytes: &[u8]| {
                taken += bytes.len();
                take(bytes);
            };
            let mut buffer = pool::take_bulk();
            let polled = self.poll_incoming(context, &mut buffer, &mut count);
            pool::give_bulk(buffer);
            ready!(polled)?;
            self.answer(context)?;
        }
        Poll::Ready(Ok(taken))
    }

    /// Reads from the network once; what is decrypted waits.
    fn poll_keep(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (mut plain, mut kept) = (std::mem::take(&mut self.plain), Ok(()));
        let mut buffer = pool::take_read();
        let polled = self.poll_incoming(context, &mut buffer, &mut |bytes| {
            if kept.is_ok() {
                kept = plain.push(bytes);
            }
        });
        pool::give_read(buffer);
        self.plain = plain;
        ready!(polled)?;
        Poll::Ready(kept)
    }

    /// A new key, for example, is answered; the rest goes with what is written next.
    fn answer(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if !self.outgoing.is_empty()
            && let Poll::Ready(sent) = self.poll_outgoing(context)
        {
            sent?;
        }
        Ok(())
    }

    /// Reads from the network once, into `buffer`, and hands out what of it is whole and decrypted.
    fn poll_incoming(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
        take: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let kept = self.incoming.len();
        buffer[..kept].copy_from_slice(&self.incoming);
        let mut read = ReadBuf::new(&mut buffer[kept..]);
        let polled = Pin::new(&mut self.tcp).poll_read(context, &mut read);
        let length = kept + read.filled().len();
        ready!(polled)?;
        // Without a farewell, it was cut off.
        if length == kept {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        let used = self.process(&mut buffer[..length], take)?;
        // rustls wants to see the records of a handshake message until it is whole.
        if length - used >= pool::READ {
            self.broken = true;
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        // Memory for what is there, no more.
        self.incoming = buffer[used..length].to_vec();
        Poll::Ready(Ok(()))
    }

    /// Hands out the records that are whole; the number of bytes that were used.
    fn process(&mut self, bytes: &mut [u8], take: &mut dyn FnMut(&[u8])) -> io::Result<usize> {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.tls.process_tls_records(&mut bytes[used..]);
            let mut more = true;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid)?;
                        discard += record.discard;
                        take(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    self.outgoing
                        .fill(|room| data.encode(room).map_err(io::Error::other))?;
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.ended = true,
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
                    more = false;
                }
                Ok(ConnectionState::Closed) => {
                    self.ended = true;
                    more = false;
                }
                // Early data is not offered.
                Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
                Err(error) => {
                    if let Ok(ConnectionState::EncodeTlsData(mut alert)) =
                        self.tls.process_tls_records(&mut []).state
                    {
                        self.outgoing
                            .fill(|room| alert.encode(room).map_err(io::Error::other))?;
                    }
                    return Err(invalid(error));
                }
            }
            used += discard;
            if !more {
                return Ok(used);
            }
        }
    }

    /// Writes what is encrypted; ready when all of it has left.
    fn poll_outgoing(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let room = ready!(self.poll_room(context));
            let bytes = self.outgoing.bytes();
            let bytes = &bytes[..bytes.len().min(room)];
            let written = ready!(poll_send(&self.tcp, context, bytes, self.pace.is_crowded()))?;
            self.pace.wrote(written as u64);
            self.outgoing.take(written);
        }
        Poll::Ready(Ok(()))
    }

    /// How many bytes may be written: some, once it is ready.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        loop {
            if let Some(timer) = &mut self.look_again {
                ready!(timer.as_mut().poll(context));
                self.look_again = None;
            }
            if self.pace.room() == 0 {
                // Of a connection that is no more, the write says so.
                let path = path_of(&self.tcp).unwrap_or_default();
                self.pace.look(self.begun.elapsed(), &path);
            }
            match usize::try_from(self.pace.room()).unwrap_or(usize::MAX) {
                0 => self.look_again = Some(Box::pin(sleep(self.pace.wait()))),
                room => return Poll::Ready(room),
            }
        }
    }

    /// Encrypts, or says goodbye when there is nothing to encrypt.
    fn encrypt(&mut self, bytes: Option<&[u8]>) -> io::Result<()> {
        if self.broken {
            return Err(io::ErrorKind::NotConnected.into());
        }
        loop {
            let UnbufferedStatus { discard, state } =
                self.tls.process_tls_records(&mut self.incoming);
            let mut done = false;
            match state.map_err(invalid)? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    self.outgoing.fill(|room| {
                        match bytes {
                            Some(bytes) => traffic.encrypt(bytes, room),
                            None => traffic.queue_close_notify(room),
                        }
                        .map_err(io::Error::other)
                    })?;
                    done = true;
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    self.outgoing
                        .fill(|room| data.encode(room).map_err(io::Error::other))?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.ended = true,
                _ => return Err(io::ErrorKind::NotConnected.into()),
            }
            self.incoming.drain(..discard);
            if done {
                return Ok(());
            }
        }
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        loop {
            if !self.plain.is_empty() {
                let bytes = self.plain.bytes();
                let length = bytes.len().min(buffer.remaining());
                buffer.put_slice(&bytes[..length]);
                self.plain.take(length);
            }
            if buffer.filled().len() > before || self.ended || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_keep(context))?;
            self.answer(context)?;
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_outgoing(context))?;
        let length = bytes.len().min(WRITE);
        if length > 0 {
            self.encrypt(Some(&bytes[..length]))?;
        }
        // These bytes are taken, whether the kernel has room or not.
        let _ = self.poll_outgoing(context)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_outgoing(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_outgoing(context))?;
        if !self.goodbye {
            self.goodbye = true;
            self.encrypt(None)?;
            ready!(self.poll_outgoing(context))?;
        }
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

/// Gives bytes to the kernel, as a segment that nothing is appended to if `apart`.
fn poll_send(
    tcp: &TcpStream,
    context: &mut Context<'_>,
    bytes: &[u8],
    apart: bool,
) -> Poll<io::Result<usize>> {
    let mut flags = MsgFlags::MSG_NOSIGNAL;
    flags.set(MsgFlags::MSG_EOR, apart);
    loop {
        ready!(tcp.poll_write_ready(context))?;
        let sent = tcp.try_io(Interest::WRITABLE, || {
            Ok(send(tcp.as_raw_fd(), bytes, flags)?)
        });
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            sent => return Poll::Ready(sent),
        }
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.at == self.end
    }

    fn bytes(&self) -> &[u8] {
        self.buffer
            .as_ref()
            .map_or(&[], |buffer| &buffer[self.at..self.end])
    }

    /// Appends what `write` writes into the room that is left.
    fn fill(&mut self, write: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<()> {
        let buffer = self.buffer.get_or_insert_with(pool::take_read);
        let length = write(&mut buffer[self.end..])?;
        self.end += length;
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.fill(|room| {
            let room = room
                .get_mut(..bytes.len())
                .ok_or(io::ErrorKind::OutOfMemory)?;
            room.copy_from_slice(bytes);
            Ok(bytes.len())
        })
    }

    fn take(&mut self, length: usize) {
        self.at += length;
        if self.is_empty() {
            (self.at, self.end) = (0, 0);
            if let Some(buffer) = self.buffer.take() {
                pool::give_read(buffer);
            }
        }
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests;
