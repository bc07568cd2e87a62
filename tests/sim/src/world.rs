//! Two tunnels, two links, and a clock.

use std::{
    net::{Ipv6Addr, SocketAddrV6},
    time::Duration,
};

use mock_instant::MockClock;
use tunnel::{Class, Config, Event, Instant, Limits, PrivateKey, StreamError, StreamId, Tunnel};

use crate::{Link, LinkConfig};

/// The port that the server of a [`World`] listens on.
pub const SERVER_PORT: u16 = 22;

/// Who.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Begins.
    Client,
    /// Listens.
    Server,
}

/// What a world is made of.
#[derive(Debug, Clone, Copy)]
pub struct WorldConfig {
    /// From the client to the server.
    pub up: LinkConfig,
    /// From the server to the client.
    pub down: LinkConfig,
    /// All that is random follows from it.
    pub seed: u64,
    /// The client's persistent keepalive, in seconds.
    pub keepalive: Option<u16>,
}

impl WorldConfig {
    /// The same link both ways.
    pub fn both(link: LinkConfig) -> WorldConfig {
        WorldConfig {
            up: link,
            down: link,
            seed: 1,
            keepalive: None,
        }
    }
}

/// Two tunnels over two links.
pub struct World {
    /// The moment.
    pub now: Instant,
    /// The side that begins.
    pub client: Tunnel,
    /// The side that listens.
    pub server: Tunnel,
    /// From the client.
    pub up: Link,
    /// From the server.
    pub down: Link,
    /// What happened, and when.
    pub events: Vec<(Instant, Side, Event)>,
    /// What is done with events as they come: nothing, unless a transfer runs.
    pump: Option<Pump>,
}

/// A transfer that goes on by itself.
struct Pump {
    from: (Side, StreamId),
    to: (Side, StreamId),
    left: u64,
    read: u64,
    buffer: Vec<u8>,
}

/// What came of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Bytes read at the other end.
    pub bytes: u64,
    /// In this time.
    pub time: Duration,
}

impl Figures {
    /// Bytes per second.
    pub fn rate(&self) -> u64 {
        self.bytes * 1_000_000 / u64::try_from(self.time.as_micros().max(1)).unwrap_or(u64::MAX)
    }
}

impl World {
    /// A world in which nothing has happened; the server listens.
    pub fn new(config: WorldConfig) -> World {
        World::with_limits(config, Limits::default())
    }

    /// The same with other bounds on both sides.
    pub fn with_limits(config: WorldConfig, limits: Limits) -> World {
        let now = Instant::from_micros(1_000_000_000);
        MockClock::set_time(Duration::from_micros(now.as_micros()));
        let key = |n: u8| PrivateKey::from_bytes([n; 32]);
        let tunnel = |ours: u8, theirs: u8, keepalive| {
            let config = Config {
                private_key: key(ours),
                peer: key(theirs).public(),
                preshared: None,
                addresses: vec![address(ours)],
                dns: Some(address(theirs)),
                mtu: 1420,
                keepalive,
                seed: config.seed ^ u64::from(ours) << 56,
            };
            Tunnel::with_limits(config, limits, now)
        };
        let client = tunnel(1, 2, config.keepalive);
        let mut server = tunnel(2, 1, None);
        #[expect(clippy::unwrap_used, reason = "the port of a new tunnel is free")]
        server.listen(SERVER_PORT, 64).unwrap();
        World {
            now,
            client,
            server,
            up: Link::new(config.up, config.seed.wrapping_mul(3)),
            down: Link::new(config.down, config.seed.wrapping_mul(5)),
            events: Vec::new(),
            pump: None,
        }
    }

    /// The tunnel of a side.
    pub fn tunnel(&mut self, side: Side) -> &mut Tunnel {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// Where the server listens.
    pub fn server_address(&self) -> SocketAddrV6 {
        SocketAddrV6::new(address(2), SERVER_PORT, 0, 0)
    }

    /// Goes to the next moment at which something is due, unless that is after `end`. False when
    /// nothing is.
    pub fn step(&mut self, end: Instant) -> bool {
        self.settle();
        let due = [
            self.up.next(),
            self.down.next(),
            self.client.poll_timeout(),
            self.server.poll_timeout(),
        ];
        let Some(next) = due.into_iter().flatten().min().filter(|next| *next <= end) else {
            return false;
        };
        self.set_time(next.max(self.now));
        while let Some(datagram) = self.up.receive(self.now) {
            self.server.handle_datagram(self.now, &datagram);
        }
        while let Some(datagram) = self.down.receive(self.now) {
            self.client.handle_datagram(self.now, &datagram);
        }
        self.client.handle_timeout(self.now);
        self.server.handle_timeout(self.now);
        self.settle();
        true
    }

    /// Lets so much time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.set_time(end);
    }

    /// Goes on until `done`, for at most so long. False when it never was.
    pub fn run_until(&mut self, time: Duration, mut done: impl FnMut(&World) -> bool) -> bool {
        let end = self.now + time;
        loop {
            if done(self) {
                return true;
            }
            if !self.step(end) {
                self.set_time(end);
                return done(self);
            }
        }
    }

    /// A stream from the client to the server: both ends of it.
    pub fn connect(&mut self, class: Class) -> Option<(StreamId, StreamId)> {
        let to = self.server_address();
        let client = self.client.connect(self.now, to, class).ok()?;
        let begun = self.events.len();
        let accepted = |world: &World| {
            world.events[begun..]
                .iter()
                .find_map(|(_, _, event)| match event {
                    Event::Accepted { stream, .. } => Some(*stream),
                    _ => None,
                })
        };
        self.run_until(Duration::from_secs(60), |world| accepted(world).is_some());
        Some((client, accepted(self)?))
    }

    /// Sends from one end of a stream to the other until `bytes` were read there, what was on its
    /// way before included, for at most so long.
    pub fn transfer(
        &mut self,
        from: (Side, StreamId),
        to: (Side, StreamId),
        bytes: u64,
        limit: Duration,
    ) -> Figures {
        let begun = self.now;
        let buffer = vec![0; 1 << 16];
        self.pump = Some(Pump {
            from,
            to,
            left: bytes,
            read: 0,
            buffer,
        });
        let read = |world: &World| world.pump.as_ref().map_or(0, |pump| pump.read);
        self.run_until(limit, |world| read(world) >= bytes);
        let bytes = read(self);
        self.pump = None;
        Figures {
            bytes,
            time: self.now.since(begun),
        }
    }

    /// The events of one side so far, without their times.
    pub fn events_of(&self, side: Side) -> Vec<Event> {
        let of_side = self.events.iter().filter(|(_, whose, _)| *whose == side);
        of_side.map(|(_, _, event)| event.clone()).collect()
    }

    fn set_time(&mut self, now: Instant) {
        self.now = now;
        MockClock::set_time(Duration::from_micros(now.as_micros()));
    }

    /// What both sides do without time passing.
    fn settle(&mut self) {
        if let Some(mut pump) = self.pump.take() {
            pump.run(self);
            self.pump = Some(pump);
        }
        while let Some(datagram) = self.client.poll_transmit(self.now) {
            self.up.send(self.now, &datagram);
        }
        while let Some(datagram) = self.server.poll_transmit(self.now) {
            self.down.send(self.now, &datagram);
        }
        for side in [Side::Client, Side::Server] {
            while let Some(event) = self.tunnel(side).poll_event() {
                let busy = matches!(event, Event::Readable(_) | Event::Writable(_));
                if self.pump.is_none() || !busy {
                    self.events.push((self.now, side, event));
                }
            }
        }
    }
}

impl Pump {
    fn run(&mut self, world: &mut World) {
        let now = world.now;
        while self.left > 0 {
            let size = self.left.min(self.buffer.len() as u64);
            let data = &self.buffer[..usize::try_from(size).unwrap_or(0)];
            match world.tunnel(self.from.0).write(now, self.from.1, data) {
                Ok(written) => self.left -= written as u64,
                Err(StreamError::WouldBlock) => break,
                Err(error) => panic!("write: {error}"),
            }
        }
        loop {
            match world
                .tunnel(self.to.0)
                .read(now, self.to.1, &mut self.buffer)
            {
                Ok(0) => panic!("the stream ended"),
                Ok(read) => self.read += read as u64,
                Err(StreamError::WouldBlock) => break,
                Err(error) => panic!("read: {error}"),
            }
        }
    }
}

fn address(last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfdaa, 0, 1, 0, 0, 0, 0, last.into())
}
