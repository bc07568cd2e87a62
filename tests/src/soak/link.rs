//! A client's connection, with every way to misuse it.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use wire::{
    Control,
    frame::{self, Decoder, Event, Opcode, Peer},
    record, subprotocol,
    wireguard::{KEEPALIVE, Kind},
};

use super::{
    World,
    gateway::{ECHO, FILL, ID, NUMBER, PORT, WISH, pattern},
    life::Life,
    random::Random,
};

/// Longer than anything takes that the relay does at once, on a machine that does other things.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// What all clients have done and seen.
#[derive(Default)]
pub(super) struct Tally {
    /// Links that are open now.
    pub(super) open: AtomicUsize,
    /// Requests for a session, and those whose hello came.
    pub(super) requests: AtomicU64,
    pub(super) hellos: AtomicU64,
    /// Hellos that said `resumed`.
    pub(super) resumed: AtomicU64,
    /// Datagrams that were sent while the gateway answered, and their answers.
    pub(super) asked: AtomicU64,
    pub(super) answered: AtomicU64,
    ids: AtomicU64,
    pub(super) lives: [AtomicU64; Life::ALL.len()],
}

impl Tally {
    pub(super) fn lives(&self) -> Vec<(&'static str, u64)> {
        let counts = self.lives.iter().map(|count| count.load(Relaxed));
        Life::ALL
            .iter()
            .map(|(life, _)| life.name())
            .zip(counts)
            .collect()
    }
}

/// Who a session is to the gateway. It outlives its connections.
pub(super) struct Identity {
    id: u64,
    number: u64,
    /// The relay's port for it, once an answer has told it.
    port: Option<u16>,
}

impl Identity {
    pub(super) fn new(world: &World) -> Identity {
        Identity {
            id: world.tally.ids.fetch_add(1, Relaxed),
            number: 0,
            port: None,
        }
    }

    /// The next datagram.
    pub(super) fn datagram(&mut self, length: usize, wish: u8) -> Vec<u8> {
        self.number += 1;
        let mut datagram = vec![0; length.max(KEEPALIVE)];
        datagram[0] = 4;
        datagram[ID].copy_from_slice(&self.id.to_be_bytes());
        datagram[NUMBER].copy_from_slice(&self.number.to_be_bytes());
        datagram[WISH] = wish;
        for (at, byte) in datagram.iter_mut().enumerate().skip(FILL) {
            *byte = pattern(self.number, at);
        }
        datagram
    }

    /// Looks at what has come: it is an answer to this session, whole. Its number; none for the
    /// answer to an initiation.
    fn check(&mut self, datagram: &[u8]) -> Result<Option<u64>, String> {
        match Kind::of(datagram) {
            Some(Kind::Response) => return Ok(None),
            Some(Kind::Data) => {}
            other => return Err(format!("{other:?} came from the gateway")),
        }
        let number = u64::from_be_bytes(datagram[NUMBER].try_into().unwrap_or_default());
        if datagram[ID] != self.id.to_be_bytes() {
            return Err("a datagram of another session came".to_owned());
        }
        if number > self.number {
            return Err(format!("an answer to {number} came before it was asked"));
        }
        let mut rest = datagram.iter().enumerate().skip(FILL);
        if rest.any(|(at, byte)| *byte != pattern(number, at)) {
            return Err("a datagram came back changed".to_owned());
        }
        let port = u16::from_be_bytes([datagram[PORT][0], datagram[PORT][1]]);
        match self.port.replace(port) {
            Some(before) if before != port => Err(format!(
                "the session moved from port {before} to {port} of the relay"
            )),
            _ => Ok(Some(number)),
        }
    }
}

/// What a client hears.
#[derive(Debug)]
pub(super) enum Heard {
    Datagrams(Vec<Vec<u8>>),
    Control(Control),
    Ping(Vec<u8>),
    Close(Option<u16>),
    /// The connection has ended, by an end of TLS or without.
    End,
}

/// Which session is asked for, and how.
#[derive(Default)]
pub(super) struct Ask<'a> {
    pub(super) resume: Option<&'a str>,
    pub(super) without_token: bool,
    /// The kernel takes little for a client that does not read.
    pub(super) small: bool,
}

/// A WebSocket whose hello has come.
pub(super) struct Link {
    tls: TlsStream<TcpStream>,
    decoder: Decoder,
    heard: VecDeque<Heard>,
    mask: u32,
    pub(super) resume: String,
    pub(super) resumed: bool,
    _open: Open,
}

/// Counts a link while it is open.
struct Open(Arc<World>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.tally.open.fetch_sub(1, Relaxed);
    }
}

/// TCP from one of a few addresses: no source is over its limits.
pub(super) async fn tcp(world: &World, source: u8, small: bool) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if small {
        socket.set_recv_buffer_size(8 * 1024)?;
    }
    let source = Ipv4Addr::new(127, 0, 1, source);
    socket.bind(SocketAddr::from((source, 0)))?;
    let tcp = timeout(SOON, socket.connect(world.relay)).await??;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// TLS over that.
pub(super) async fn tls(tls: &TlsConnector, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let name = "127.0.0.1".try_into().expect("a name");
    timeout(SOON, tls.connect(name, tcp)).await?
}

/// A request for a tunnel, with these lines more.
pub(super) fn request(host: &str, path: &str, protocols: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\n\
         host: {host}\r\n\
         connection: Upgrade\r\n\
         upgrade: websocket\r\n\
         sec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         sec-websocket-protocol: {protocols}\r\n\
         {more}\r\n"
    )
}

/// Closes a connection by a reset.
pub(super) fn reset(tcp: &TcpStream) {
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

impl Link {
    /// Connects, upgrades and reads the hello.
    pub(super) async fn open(
        world: &Arc<World>,
        source: u8,
        random: &mut Random,
        ask: Ask<'_>,
    ) -> Result<Link, String> {
        let tcp = tcp(world, source, ask.small)
            .await
            .map_err(|error| format!("TCP: {error}"))?;
        let mut tls = tls(&world.tls, tcp)
            .await
            .map_err(|error| format!("TLS: {error}"))?;
        let protocols = subprotocol::offer(None, ask.resume).join(", ");
        let token = match ask.without_token {
            true => String::new(),
            false => format!("authorization: Bearer {}\r\n", world.token),
        };
        let request = request("127.0.0.1", "/v1/tunnel/local", &protocols, &token);
        world.tally.requests.fetch_add(1, Relaxed);
        let upgrade = async {
            tls.write_all(request.as_bytes()).await?;
            tls.flush().await?;
            let mut answer = Vec::new();
            loop {
                if tls.read_buf(&mut answer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
                    let rest = answer.split_off(end + 4);
                    return Ok((answer, rest));
                }
            }
        };
        let upgraded: io::Result<_> = match timeout(SOON, upgrade).await {
            Ok(upgraded) => upgraded,
            Err(_) => return Err("no answer to an upgrade".to_owned()),
        };
        let (answer, rest) = upgraded.map_err(|error| format!("upgrade: {error}"))?;
        if !answer.starts_with(b"HTTP/1.1 101 ") {
            return Err(format!("refused: {}", String::from_utf8_lossy(&answer)));
        }
        world.tally.open.fetch_add(1, Relaxed);
        let mut link = Link {
            tls,
            decoder: Decoder::new(Peer::Server, record::MAX_MESSAGE),
            heard: VecDeque::new(),
            mask: random.next() as u32,
            resume: String::new(),
            resumed: false,
            _open: Open(Arc::clone(world)),
        };
        link.take(&rest)?;
        match link.hear(SOON).await? {
            Some(Heard::Control(Control::Hello {
                resume: Some(resume),
                resumed,
                ..
            })) => {
                (link.resume, link.resumed) = (resume, resumed);
                world.tally.hellos.fetch_add(1, Relaxed);
                world.tally.resumed.fetch_add(resumed.into(), Relaxed);
                Ok(link)
            }
            other => Err(format!("no hello: {other:?}")),
        }
    }

    /// Opens a session and proves it.
    pub(super) async fn proven(
        world: &Arc<World>,
        source: u8,
        random: &mut Random,
    ) -> Result<Link, String> {
        let mut link = Link::open(world, source, random, Ask::default()).await?;
        link.prove(world).await?;
        Ok(link)
    }

    /// Proves a session, and waits until the relay has seen it.
    pub(super) async fn prove(&mut self, world: &World) -> Result<(), String> {
        self.send(std::slice::from_ref(&world.initiation)).await?;
        self.sync().await
    }

    /// Waits until the relay has taken all that was sent: it answers in order. What comes
    /// meanwhile is passed over.
    pub(super) async fn sync(&mut self) -> Result<(), String> {
        let n = u64::from(self.mask);
        let ping = Control::Ping { n }.to_text();
        self.frame(Opcode::Text, ping.as_bytes()).await?;
        let deadline = Instant::now() + SOON;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.hear(left).await? {
                Some(Heard::Control(Control::Pong { n: heard })) if heard == n => return Ok(()),
                Some(Heard::Datagrams(_) | Heard::Control(Control::Limited { .. })) => {}
                Some(other) => return Err(format!("no pong: {other:?}")),
                None => return Err("no pong in time".to_owned()),
            }
        }
    }

    /// Comes back to a session that has to be there still.
    pub(super) async fn again(
        world: &Arc<World>,
        source: u8,
        random: &mut Random,
        resume: &str,
    ) -> Result<Link, String> {
        let ask = Ask {
            resume: Some(resume),
            ..Ask::default()
        };
        let link = Link::open(world, source, random, ask).await?;
        match link.resumed {
            true => Ok(link),
            false => Err("a session that waited for its client was not resumed".to_owned()),
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while let Some(event) = self
            .decoder
            .decode(&mut bytes)
            .map_err(|error| format!("the relay broke WebSocket: {error}"))?
        {
            self.heard.push_back(match event {
                Event::Binary(message) => Heard::Datagrams(
                    record::records(message)
                        .map_err(|error| format!("the relay broke records: {error}"))?
                        .map(<[u8]>::to_vec)
                        .collect(),
                ),
                Event::Text(text) => Heard::Control(
                    Control::parse(text).map_err(|error| format!("{error:?}: {text}"))?,
                ),
                Event::Ping(payload) => Heard::Ping(payload.to_vec()),
                Event::Pong(_) => continue,
                Event::Close(code, _) => Heard::Close(code),
            });
        }
        Ok(())
    }

    /// The next that is heard, if it is heard within this time. Pings are answered.
    pub(super) async fn hear(&mut self, within: Duration) -> Result<Option<Heard>, String> {
        let deadline = Instant::now() + within;
        loop {
            match self.heard.pop_front() {
                Some(Heard::Ping(payload)) => self.frame(Opcode::Pong, &payload).await?,
                Some(heard) => return Ok(Some(heard)),
                None => {
                    let mut buffer = vec![0; 16 * 1024];
                    match timeout_at(deadline, self.tls.read(&mut buffer)).await {
                        Err(_) => return Ok(None),
                        Ok(Ok(0) | Err(_)) => return Ok(Some(Heard::End)),
                        Ok(Ok(length)) => self.take(&buffer[..length])?,
                    }
                }
            }
        }
    }

    /// Writes any bytes into TLS. A connection that is gone is found by who reads.
    pub(super) async fn raw(&mut self, bytes: &[u8]) -> Result<(), String> {
        let written = async {
            self.tls.write_all(bytes).await?;
            self.tls.flush().await
        };
        match timeout(SOON, written).await {
            Ok(_) => Ok(()),
            Err(_) => Err("the relay takes nothing".to_owned()),
        }
    }

    /// The same, past TLS.
    pub(super) async fn rawest(&mut self, bytes: &[u8]) {
        let _ = timeout(SOON, self.tls.get_mut().0.write_all(bytes)).await;
    }

    /// A frame as a client sends it.
    pub(super) async fn frame(&mut self, opcode: Opcode, payload: &[u8]) -> Result<(), String> {
        let bytes = self.masked(opcode, payload);
        self.raw(&bytes).await
    }

    pub(super) fn masked(&mut self, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        self.mask = self.mask.rotate_left(7) ^ 0x5bd1_e995;
        let mask = self.mask.to_be_bytes();
        let (mut header, length) = frame::header(opcode, payload.len());
        header[1] |= 0x80;
        let mut bytes = [&header[..length], &mask].concat();
        let masked = payload.iter().zip(mask.iter().cycle());
        bytes.extend(masked.map(|(byte, mask)| byte ^ mask));
        bytes
    }

    /// Sends datagrams as one message, or as few as hold them.
    pub(super) async fn send(&mut self, datagrams: &[Vec<u8>]) -> Result<(), String> {
        let mut message = Vec::new();
        for datagram in datagrams {
            if record::push(&mut message, datagram).is_err() {
                self.frame(Opcode::Binary, &message).await?;
                message.clear();
                record::push(&mut message, datagram).map_err(|error| error.to_string())?;
            }
        }
        self.frame(Opcode::Binary, &message).await
    }

    /// Asks the gateway a few times, and looks at what it answers.
    pub(super) async fn exchange(
        &mut self,
        world: &World,
        identity: &mut Identity,
        random: &mut Random,
        rounds: u64,
    ) -> Result<(), String> {
        for _ in 0..rounds {
            if world.is_over() {
                return Ok(());
            }
            let turn = world.gateway.answers();
            let asked = 1 + random.below(8);
            let first = identity.number;
            let datagrams: Vec<Vec<u8>> = (0..asked)
                .map(|_| {
                    let length = 32 + random.below(1_369) as usize;
                    identity.datagram(length, ECHO)
                })
                .collect();
            self.send(&datagrams).await?;
            let deadline = Instant::now() + random.millis(300, 600);
            let mut answered = 0;
            while answered < asked {
                let left = deadline.saturating_duration_since(Instant::now());
                match self.hear(left).await? {
                    None => break,
                    Some(Heard::Datagrams(datagrams)) => {
                        for datagram in datagrams {
                            let number = identity.check(&datagram)?;
                            answered += u64::from(number.is_some_and(|number| number > first));
                        }
                    }
                    Some(Heard::Control(Control::Limited { .. })) => {}
                    Some(other) => return Err(format!("in the middle of a session: {other:?}")),
                }
            }
            // A turn that has passed meanwhile says nothing.
            if turn.is_some() && turn == world.gateway.answers() {
                world.tally.asked.fetch_add(asked, Relaxed);
                world.tally.answered.fetch_add(answered, Relaxed);
            }
        }
        Ok(())
    }

    /// Reads until the relay has closed; the code in its close frame.
    pub(super) async fn ending(&mut self, within: Duration) -> Result<Option<u16>, String> {
        let deadline = Instant::now() + within;
        let mut closed = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.hear(left).await? {
                None => return Err(format!("no end within {} s", within.as_secs())),
                Some(Heard::End) => return Ok(closed),
                Some(Heard::Close(code)) => closed = code,
                Some(_) => {}
            }
        }
    }

    /// Says goodbye, and hears the relay's.
    pub(super) async fn leave(mut self) -> Result<(), String> {
        self.frame(Opcode::Close, &1000_u16.to_be_bytes()).await?;
        match self.ending(SOON).await? {
            Some(1000) => Ok(()),
            other => Err(format!("a goodbye was answered by {other:?}")),
        }
    }

    /// Is cut off in one of several ways.
    pub(super) async fn cut(mut self, random: &mut Random) {
        match random.below(4) {
            // In the middle of a TLS record ...
            0 => self.rawest(&[23, 3, 3, 0x20, 0, 1, 2, 3, 4, 5]).await,
            // ... or of a frame ...
            1 => {
                let frame = self.masked(Opcode::Binary, &[7; 1_000]);
                let _ = self.raw(&frame[..frame.len() / 2]).await;
            }
            // ... or without a reset.
            2 => return,
            _ => {}
        }
        reset(self.tls.get_ref().0);
    }
}
