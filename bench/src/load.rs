//! Load through a server and what comes of it: one thread makes datagrams, takes them at the other
//! end, and never sleeps.

use std::{
    io::{IoSlice, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
        setsockopt, sockopt,
    },
};
use socket2::SockRef;

use crate::{
    calm::Host,
    client::{Client, tls},
    cpu_nanos,
    path::Place,
    server::{Server, Side},
    syscalls::Syscalls,
};

/// The size of every datagram.
pub const LENGTH: usize = 1_400;
/// Datagrams in a GSO send of a peer that uses GSO.
const BATCH: usize = 32;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the gateway.
    Up,
    /// From the gateway to the client.
    Down,
}

/// How datagrams are spread over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Evenly.
    Even,
    /// Every millisecond what is due.
    Paced,
    /// As fast as they are taken; a gateway's side does not learn what is lost.
    Flood,
}

/// How a side sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// One datagram in a call; a client's, in a message and a TLS record of its own.
    Plain,
    /// Batches by GSO; a client's, in one message.
    Gso,
}

/// One measurement to make.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Which way.
    pub direction: Direction,
    /// How spread.
    pub load: Load,
    /// How sent.
    pub sender: Sender,
    /// Datagrams in a second, over all flows.
    pub rate: f64,
    /// For how long.
    pub time: Duration,
}

/// What was measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Datagrams in a second that were offered.
    pub offered: f64,
    /// Datagrams in a second that arrived.
    pub delivered: f64,
    /// The part that did not arrive.
    pub loss: f64,
    /// CPU time of the server per datagram that arrived, in microseconds.
    pub server_us: f64,
    /// The client's part of the load thread per datagram, in microseconds.
    pub client_us: f64,
    /// One-way delays in milliseconds.
    pub p50_ms: f64,
    /// See `p50_ms`.
    pub p99_ms: f64,
    /// How many arrived.
    pub arrived: usize,
    /// System calls of the server per datagram that arrived, where they were counted.
    pub syscalls: f64,
    /// How the host was meanwhile, at its worst.
    pub host: Host,
}

/// Clients of one server, and the gateway behind it.
pub struct World {
    pid: u32,
    gateway: UdpSocket,
    flows: Vec<Flow>,
    buffer: Vec<u8>,
    epoch: Instant,
}

struct Flow {
    client: Client,
    relayed: SocketAddr,
}

/// A gateway's socket: large buffers, GRO, never blocking.
///
/// # Errors
/// When there is no socket.
pub fn gateway(place: &Place) -> anyhow::Result<UdpSocket> {
    let gateway = UdpSocket::bind((place.gateway, 0))?;
    let socket = SockRef::from(&gateway);
    socket.set_recv_buffer_size(4 << 20)?;
    socket.set_send_buffer_size(4 << 20)?;
    setsockopt(&gateway, sockopt::UdpGroSegment, &true)?;
    Ok(gateway)
}

impl World {
    /// Connects so many clients to `server`.
    ///
    /// # Errors
    /// When one does not get through.
    pub fn new(server: &Server, gateway: UdpSocket, flows: usize) -> anyhow::Result<World> {
        let world = World {
            pid: server.pid(),
            gateway,
            flows: Vec::new(),
            buffer: vec![0; 65_536],
            epoch: Instant::now(),
        };
        world.join(server, flows)
    }

    /// Connects so many clients more.
    ///
    /// # Errors
    /// When one does not get through.
    pub fn join(mut self, server: &Server, flows: usize) -> anyhow::Result<World> {
        let tls = tls(&server.certificate)?;
        let (gateway, mut buffer) = (&self.gateway, vec![0; 65_536]);
        gateway.set_nonblocking(false)?;
        gateway.set_read_timeout(Some(Duration::from_secs(5)))?;
        while gateway_is_full(gateway, &mut buffer)? {}
        let flows: anyhow::Result<Vec<Flow>> = (0..flows)
            .map(|_| {
                let client = Client::open(server.address, &tls, server.side)?;
                let (_, relayed) = gateway
                    .recv_from(&mut buffer)
                    .context("no initiation arrived at the gateway")?;
                Ok(Flow { client, relayed })
            })
            .collect();
        gateway.set_nonblocking(true)?;
        self.flows.extend(flows?);
        Ok(self)
    }

    /// The system calls of the server per datagram that arrives.
    ///
    /// # Errors
    /// When a connection is lost, or the kernel does not count.
    pub fn syscalls(&mut self, plan: Plan) -> anyhow::Result<f64> {
        let mut syscalls = Syscalls::of(self.pid)?;
        let sample = self.run(plan)?;
        Ok(syscalls.count()? as f64 / sample.arrived as f64)
    }

    /// Runs one measurement.
    ///
    /// # Errors
    /// When a connection is lost.
    pub fn run(&mut self, plan: Plan) -> anyhow::Result<Sample> {
        let mut tally = Tally::default();
        let cpu = cpu_nanos(self.pid)?;
        let start = Instant::now();
        let (mut sent, mut skipped, mut flow) = (0usize, 0usize, 0);
        let mut batch = vec![0; LENGTH * BATCH * 2];
        for datagram in batch.chunks_exact_mut(LENGTH) {
            datagram[0] = 4;
        }
        loop {
            let elapsed = start.elapsed();
            if elapsed >= plan.time {
                break;
            }
            let due = match plan.load {
                Load::Even => (elapsed.as_secs_f64() * plan.rate) as usize,
                // What is due in a millisecond is due at its beginning.
                Load::Paced => ((elapsed.as_millis() + 1) as f64 * plan.rate / 1000.0) as usize,
                Load::Flood => usize::MAX,
            };
            // A generator that was held up does not make up for it in one burst.
            let most = match plan.load {
                Load::Even => 64.max(plan.rate as usize / 2000),
                Load::Paced => (plan.rate as usize / 1000) * 2,
                Load::Flood => usize::MAX,
            };
            let mut waiting = due.saturating_sub(sent + skipped);
            if waiting > most {
                skipped += waiting - most;
                waiting = most;
            }
            // Then what has arrived is taken.
            let one_send = match plan.sender {
                Sender::Plain => 16,
                Sender::Gso => BATCH,
            };
            let ready = match (plan.sender, plan.load) {
                (Sender::Gso, Load::Even) => waiting >= BATCH,
                _ => waiting > 0,
            };
            if ready {
                let mut count = waiting.min(one_send);
                while count > 0 {
                    let from = Instant::now();
                    let now = (from - self.epoch).as_nanos() as u64;
                    let part = match plan.sender {
                        Sender::Plain => 1,
                        Sender::Gso => count.min(BATCH),
                    };
                    for datagram in batch.chunks_exact_mut(LENGTH).take(part) {
                        datagram[16..24].copy_from_slice(&now.to_le_bytes());
                    }
                    let bytes = &batch[..part * LENGTH];
                    match plan.direction {
                        Direction::Down => {
                            let done = send_down(
                                &self.gateway,
                                self.flows[flow].relayed,
                                bytes,
                                plan.sender,
                            )?;
                            sent += done;
                            if done < part {
                                break;
                            }
                        }
                        Direction::Up => {
                            let client = &mut self.flows[flow].client;
                            client.flush()?;
                            if !client.is_idle() {
                                // TCP's backpressure: what is due now is sent later, or, paced,
                                // not at all.
                                tally.client += from.elapsed();
                                break;
                            }
                            client.send(bytes.chunks_exact(LENGTH))?;
                            tally.client += from.elapsed();
                            sent += part;
                        }
                    }
                    count -= part;
                    if plan.sender == Sender::Plain {
                        flow = (flow + 1) % self.flows.len();
                    }
                }
                flow = (flow + 1) % self.flows.len();
            }
            self.take(plan.direction, &mut tally)?;
        }
        let offered = start.elapsed();
        // What is on the way may arrive.
        let mut last = Instant::now();
        while tally.delays.len() < sent && last.elapsed() < Duration::from_millis(150) {
            for flow in &mut self.flows {
                flow.client.flush()?;
            }
            if self.take(plan.direction, &mut tally)? {
                last = Instant::now();
            }
        }
        let cpu = cpu_nanos(self.pid)? - cpu;
        if tally.delays.is_empty() {
            bail!("nothing arrived: {plan:?}");
        }
        let arrived = tally.delays.len();
        tally.delays.sort_unstable();
        let at = |part: f64| f64::from(tally.delays[((arrived - 1) as f64 * part) as usize]) / 1e6;
        Ok(Sample {
            offered: sent as f64 / offered.as_secs_f64(),
            delivered: arrived as f64 / offered.as_secs_f64(),
            loss: 1.0 - arrived as f64 / sent as f64,
            server_us: cpu as f64 / 1e3 / arrived as f64,
            client_us: tally.client.as_secs_f64() * 1e6 / arrived as f64,
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            arrived,
            syscalls: f64::NAN,
            host: Host::default(),
        })
    }

    /// Takes what has arrived; says whether there was anything.
    fn take(&mut self, direction: Direction, tally: &mut Tally) -> anyhow::Result<bool> {
        let before = tally.delays.len();
        let epoch = self.epoch;
        let one = |now: u64, delays: &mut Vec<u32>, datagram: &[u8]| {
            if datagram.len() == LENGTH
                && let Some(stamp) = datagram[16..].first_chunk()
            {
                let delay = now.saturating_sub(u64::from_le_bytes(*stamp));
                delays.push(u32::try_from(delay).unwrap_or(u32::MAX));
            }
        };
        match direction {
            Direction::Down => {
                for flow in &mut self.flows {
                    let from = Instant::now();
                    let delays = &mut tally.delays;
                    let now = epoch.elapsed().as_nanos() as u64;
                    if flow.client.receive(|datagram| one(now, delays, datagram))? {
                        tally.client += from.elapsed();
                    }
                }
            }
            Direction::Up => {
                for _ in 0..64 {
                    let Some((length, segment)) = receive(&self.gateway, &mut self.buffer)? else {
                        break;
                    };
                    let now = epoch.elapsed().as_nanos() as u64;
                    for datagram in self.buffer[..length].chunks(segment.max(1)) {
                        one(now, &mut tally.delays, datagram);
                    }
                }
            }
        }
        Ok(tally.delays.len() > before)
    }
}

#[derive(Default)]
struct Tally {
    /// In nanoseconds.
    delays: Vec<u32>,
    client: Duration,
}

/// How many of the datagrams in `bytes` the kernel took.
fn send_down(
    gateway: &UdpSocket,
    to: SocketAddr,
    bytes: &[u8],
    sender: Sender,
) -> anyhow::Result<usize> {
    let to = SockaddrStorage::from(to);
    let fd = gateway.as_raw_fd();
    let send = |bytes: &[u8], control: &[ControlMessage<'_>]| {
        let slices = [IoSlice::new(bytes)];
        match sendmsg(fd, &slices, control, MsgFlags::empty(), Some(&to)) {
            Ok(_) => Ok(true),
            // A server that has no room is what is measured.
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ECONNREFUSED) => Ok(false),
            Err(error) => Err(error),
        }
    };
    if sender == Sender::Gso {
        let segment = LENGTH as u16;
        let sent = send(bytes, &[ControlMessage::UdpGsoSegments(&segment)])?;
        return Ok(usize::from(sent) * bytes.len() / LENGTH);
    }
    let mut done = 0;
    for datagram in bytes.chunks_exact(LENGTH) {
        if !send(datagram, &[])? {
            break;
        }
        done += 1;
    }
    Ok(done)
}

/// The length of what arrived and of its segments.
fn receive(gateway: &UdpSocket, buffer: &mut [u8]) -> anyhow::Result<Option<(usize, usize)>> {
    let mut control = cmsg_space!(i32);
    let mut slices = [IoSliceMut::new(buffer)];
    let got = recvmsg::<()>(
        gateway.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::empty(),
    );
    let got = match got {
        Ok(got) => got,
        Err(Errno::EAGAIN | Errno::ECONNREFUSED) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let segment = got.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
        _ => None,
    });
    Ok(Some((got.bytes, segment.unwrap_or(got.bytes))))
}

fn gateway_is_full(gateway: &UdpSocket, buffer: &mut [u8]) -> anyhow::Result<bool> {
    gateway.set_nonblocking(true)?;
    let got = receive(gateway, buffer)?;
    gateway.set_nonblocking(false)?;
    Ok(got.is_some())
}

impl Direction {
    /// Its name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Up => "up",
            Direction::Down => "down",
        }
    }
}

impl Load {
    /// Its name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Load::Even => "even",
            Load::Paced => "paced",
            Load::Flood => "saturation",
        }
    }
}

impl Sender {
    /// Its name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Sender::Plain => "plain",
            Sender::Gso => "gso",
        }
    }
}

/// A server with a gateway and its clients, started anew.
///
/// # Errors
/// When it does not start.
pub fn open(side: Side, flows: usize, place: &Place) -> anyhow::Result<(Server, World)> {
    let gateway = gateway(place)?;
    let server = Server::start(side, gateway.local_addr()?, place)?;
    let world = World::new(&server, gateway, flows)?;
    Ok((server, world))
}
