//! A client of either server: TLS and WebSocket frames over a socket that does not block, with no
//! runtime between, so that it costs the load core little.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    sync::Arc,
};

use anyhow::{Context, bail};
use nix::sys::socket::{MsgFlags, send};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use underpass_relay::tls::preferred_provider;
use wire::record;

use crate::server::Side;

/// A handshake initiation whose mac1 is valid for [`crate::server::GATEWAY_KEY`].
pub const INITIATION: [u8; 148] = {
    let mut message = [0; 148];
    message[0] = 1;
    let mut at = 4;
    while at < 116 {
        message[at] = at as u8;
        at += 1;
    }
    let mac1 = 0x64b1a5c6_fce758a7_79b3fc48_1c04c799_u128.to_be_bytes();
    while at < 132 {
        message[at] = mac1[at - 116];
        at += 1;
    }
    message
};

/// TLS as a client of one server has it.
///
/// # Errors
/// When the certificate is none.
pub fn tls(certificate: &CertificateDer<'static>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    Ok(Arc::new(
        ClientConfig::builder_with_provider(Arc::new(preferred_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth(),
    ))
}

/// A connected client.
pub struct Client {
    tcp: TcpStream,
    tls: ClientConnection,
    side: Side,
    network: Vec<u8>,
    plain: Vec<u8>,
    message: Vec<u8>,
    mask: u32,
}

impl Client {
    /// Connects and upgrades.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn connect(
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
        side: Side,
    ) -> anyhow::Result<Client> {
        Client::over(TcpStream::connect(address)?, tls, side)
    }

    /// Upgrades a connection that is there.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn over(mut tcp: TcpStream, tls: &Arc<ClientConfig>, side: Side) -> anyhow::Result<Client> {
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let mut tls = ClientConnection::new(tls.clone(), name)?;
        tls.set_buffer_limit(None);
        let request = "GET /v1/tunnel/gw HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\n\
            upgrade: websocket\r\nsec-websocket-version: 13\r\n\
            sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        tls.writer().write_all(request.as_bytes())?;
        if side != Side::Baseline {
            let protocol = b"sec-websocket-protocol: underpass.v1\r\n";
            tls.writer().write_all(protocol)?;
        }
        tls.writer().write_all(b"\r\n")?;
        let mut plain = Vec::new();
        loop {
            tls.complete_io(&mut tcp)?;
            match tls.reader().fill_buf_into(&mut plain) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(end) = plain.windows(4).position(|four| four == b"\r\n\r\n") {
                if !plain.starts_with(b"HTTP/1.1 101 ") {
                    bail!("refused: {}", String::from_utf8_lossy(&plain));
                }
                plain.drain(..end + 4);
                break;
            }
        }
        tcp.set_nonblocking(true)?;
        Ok(Client {
            tcp,
            tls,
            side,
            network: vec![0; 256 * 1024],
            plain,
            message: Vec::new(),
            mask: 0x9d27_b1c3,
        })
    }

    /// Connects, and opens the way to the gateway by an initiation.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn open(
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
        side: Side,
    ) -> anyhow::Result<Client> {
        let mut client = Client::connect(address, tls, side).context("cannot connect")?;
        client.send([&INITIATION[..]].into_iter())?;
        Ok(client)
    }

    /// Whether all that was sent has left.
    pub fn is_idle(&self) -> bool {
        !self.tls.wants_write()
    }

    /// Sends datagrams: to the relay in as few messages as hold them, to the baseline each in a
    /// message and a TLS record of its own.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn send<'a>(&mut self, datagrams: impl Iterator<Item = &'a [u8]>) -> anyhow::Result<()> {
        let mut message = std::mem::take(&mut self.message);
        message.clear();
        for datagram in datagrams {
            if self.side == Side::Baseline {
                message.clear();
                message.extend_from_slice(datagram);
                self.frame(&mut message)?;
                self.flush()?;
                message.clear();
            } else if record::push(&mut message, datagram).is_err() {
                self.frame(&mut message)?;
                message.clear();
                record::push(&mut message, datagram)?;
            }
        }
        if !message.is_empty() {
            self.frame(&mut message)?;
        }
        self.message = message;
        self.flush()
    }

    fn frame(&mut self, payload: &mut [u8]) -> io::Result<()> {
        self.mask = self.mask.rotate_left(7) ^ 0x5bd1_e995;
        let mask = self.mask.to_ne_bytes();
        let mut header = [0; 14];
        header[0] = 0x82;
        let length = match payload.len() {
            short @ 0..126 => {
                header[1] = 0x80 | short as u8;
                2
            }
            middle @ 126..=0xffff => {
                header[1] = 0x80 | 126;
                header[2..4].copy_from_slice(&(middle as u16).to_be_bytes());
                4
            }
            long => {
                header[1] = 0x80 | 127;
                header[2..10].copy_from_slice(&(long as u64).to_be_bytes());
                10
            }
        };
        header[length..length + 4].copy_from_slice(&mask);
        let wide = u64::from_ne_bytes([mask, mask].concat().try_into().unwrap_or_default());
        let (words, rest) = payload.as_chunks_mut::<8>();
        for word in words {
            *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
        }
        for (byte, mask) in rest.iter_mut().zip(mask) {
            *byte ^= mask;
        }
        let parts = [
            io::IoSlice::new(&header[..length + 4]),
            io::IoSlice::new(payload),
        ];
        // One record; the buffer has no limit, so that all of it is taken.
        let written = self.tls.writer().write_vectored(&parts)?;
        if written < parts.iter().map(|part| part.len()).sum() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Writes what waits, as far as the kernel takes it.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Sends(&self.tcp)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads what has arrived once, and hands out every datagram in it; says whether there was
    /// anything.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn receive(&mut self, mut take: impl FnMut(&[u8])) -> anyhow::Result<bool> {
        let length = match self.tcp.read(&mut self.network) {
            Ok(0) => bail!("the server closed the connection"),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.plain.is_empty() => {
                return Ok(false);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error.into()),
        };
        let mut rest = &self.network[..length];
        while !rest.is_empty() {
            self.tls.read_tls(&mut rest)?;
            self.tls.process_new_packets()?;
            match self.tls.reader().fill_buf_into(&mut self.plain) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (mut at, mut pinged) = (0, false);
        while let Some((header, payload)) = frame_in(&self.plain[at..]) {
            let opcode = self.plain[at] & 0x0f;
            let body = &self.plain[at + header..at + header + payload];
            at += header + payload;
            match (opcode, self.side) {
                (2, Side::Baseline) => take(body),
                (2, _) => record::records(body)?.for_each(&mut take),
                (8, _) => bail!("closed: {}", String::from_utf8_lossy(body)),
                (9, _) => pinged = true,
                _ => {}
            }
        }
        self.plain.drain(..at);
        if pinged {
            // Masked with zeros; the relay's pings are empty.
            self.tls.writer().write_all(&[0x8a, 0x80, 0, 0, 0, 0])?;
            self.flush()?;
        }
        Ok(length > 0)
    }
}

/// The lengths of the header and the payload, when the frame is whole.
fn frame_in(bytes: &[u8]) -> Option<(usize, usize)> {
    let (header, length): (usize, u64) = match bytes.get(1)? & 0x7f {
        126 => (
            4,
            u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)),
        ),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)),
        short => (2, u64::from(short)),
    };
    let length = usize::try_from(length).ok()?;
    (bytes.len() >= header.checked_add(length)?).then_some((header, length))
}

/// One record goes by `send`, which costs less than the `writev` that rustls asks for.
struct Sends<'a>(&'a TcpStream);

impl Write for Sends<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?)
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match parts {
            [one] => self.write(one),
            more => self.0.write_vectored(more),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Everything that is decrypted, appended.
trait FillBufInto {
    fn fill_buf_into(&mut self, to: &mut Vec<u8>) -> io::Result<()>;
}

impl FillBufInto for rustls::Reader<'_> {
    fn fill_buf_into(&mut self, to: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let chunk = io::BufRead::fill_buf(self)?;
            if chunk.is_empty() {
                return Ok(());
            }
            to.extend_from_slice(chunk);
            let length = chunk.len();
            io::BufRead::consume(self, length);
        }
    }
}
