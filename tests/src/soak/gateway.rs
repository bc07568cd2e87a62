//! What is behind the relay: it answers, is silent or is not there, in turns.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use socket2::SockRef;
use tokio::time::{sleep, timeout};
use wire::wireguard::{INITIATION, KEEPALIVE, RESPONSE};

use super::{World, random::Random};
use crate::clock;

/// A gateway with nothing behind it.
pub(super) struct Gateway {
    pub(super) address: SocketAddr,
    /// Even while it answers: the number of turns, twice.
    turn: AtomicU64,
    silent: AtomicBool,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
}

/// What a client's datagram asks for, in its 23rd byte.
pub(super) const ECHO: u8 = 0;
/// A thousand datagrams.
pub(super) const FLOOD: u8 = 1;

/// Where in a datagram of data things stand.
pub(super) const ID: std::ops::Range<usize> = 4..12;
pub(super) const NUMBER: std::ops::Range<usize> = 12..20;
/// The client's port as the gateway sees it; written by the gateway.
pub(super) const PORT: std::ops::Range<usize> = 20..22;
pub(super) const WISH: usize = 22;
/// From here on a pattern.
pub(super) const FILL: usize = 23;

impl Gateway {
    /// Outside the ports that the kernel gives to others: while it is not there, nobody else may
    /// take its place.
    pub(super) fn new() -> Gateway {
        let free = (20_000..30_000)
            .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
            .find(|address| UdpSocket::bind(address).is_ok());
        Gateway {
            address: free.expect("a free port"),
            turn: AtomicU64::new(0),
            silent: AtomicBool::new(false),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        }
    }

    /// The turn in which it answers, if it does.
    pub(super) fn answers(&self) -> Option<u64> {
        let turn = self.turn.load(Relaxed);
        turn.is_multiple_of(2).then_some(turn)
    }

    pub(super) fn mood(&self) -> &'static str {
        match (self.answers(), self.silent.load(Relaxed)) {
            (Some(_), _) => "answers",
            (None, true) => "is silent",
            (None, false) => "is gone",
        }
    }
}

/// Runs it until it is told to end.
pub(super) async fn serve(world: Arc<World>, mut random: Random, running: Arc<AtomicBool>) {
    let gateway = &world.gateway;
    while running.load(Relaxed) {
        let socket = match open(gateway.address) {
            Ok(socket) => Arc::new(socket),
            Err(error) => {
                world.fault(format!("the gateway cannot come back: {error}"));
                sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        // It answers, is silent, answers, and goes.
        for answers in [true, false, true] {
            if !answers {
                gateway.silent.store(true, Relaxed);
                gateway.turn.fetch_add(1, Relaxed);
            }
            let until = match answers {
                true => random.millis(3_000, 7_000),
                false => random.millis(500, 2_000),
            };
            let until = clock::now() + until;
            while clock::now() < until && running.load(Relaxed) {
                let mut buffer = [0; 4096];
                let one = timeout(
                    Duration::from_millis(100),
                    socket.recv_from(&mut buffer[..]),
                );
                // An ICMP error on this side is a client that has gone.
                if let Ok(Ok((length, from))) = one.await {
                    gateway.received.fetch_add(1, Relaxed);
                    if answers {
                        answer(&world, &socket, &mut buffer[..length], from, &mut random);
                    }
                }
            }
            if !answers {
                gateway.turn.fetch_add(1, Relaxed);
            }
        }
        gateway.silent.store(false, Relaxed);
        gateway.turn.fetch_add(1, Relaxed);
        drop(socket);
        sleep(random.millis(500, 2_000)).await;
        // The next turn begins when it is there again.
        gateway.turn.fetch_add(1, Relaxed);
    }
}

fn open(address: SocketAddr) -> std::io::Result<tokio::net::UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    let _ = SockRef::from(&socket).set_recv_buffer_size(4 << 20);
    let _ = SockRef::from(&socket).set_send_buffer_size(4 << 20);
    socket.set_nonblocking(true)?;
    tokio::net::UdpSocket::from_std(socket)
}

fn answer(
    world: &Arc<World>,
    socket: &Arc<tokio::net::UdpSocket>,
    datagram: &mut [u8],
    from: SocketAddr,
    random: &mut Random,
) {
    let send = |datagram: &[u8]| {
        if socket.try_send_to(datagram, from).is_ok() {
            world.gateway.sent.fetch_add(1, Relaxed);
        }
    };
    match (datagram.first(), datagram.len()) {
        (Some(1), INITIATION) => {
            let mut response = [0; RESPONSE];
            response[0] = 2;
            send(&response);
        }
        (Some(4), KEEPALIVE..) => {
            datagram[PORT].copy_from_slice(&from.port().to_be_bytes());
            send(datagram);
            if datagram[WISH] == FLOOD {
                tokio::spawn(flood(
                    Arc::clone(world),
                    Arc::downgrade(socket),
                    datagram.to_vec(),
                    from,
                ));
            }
            // What a gateway never sends, and the relay does not pass.
            match random.below(200) {
                0 => send(&[]),
                1 => send(&[4; 2_500]),
                2 => send(b"no WireGuard"),
                _ => {}
            }
        }
        _ => world.fault(format!(
            "{} bytes came through to the gateway",
            datagram.len()
        )),
    }
}

/// A thousand datagrams of 1,400 bytes, as fast as a socket takes them.
async fn flood(
    world: Arc<World>,
    socket: Weak<tokio::net::UdpSocket>,
    mut datagram: Vec<u8>,
    to: SocketAddr,
) {
    let begun = datagram.len();
    datagram.resize(1_400, 0);
    let number = u64::from_be_bytes(datagram[NUMBER].try_into().unwrap_or_default());
    for (at, byte) in datagram.iter_mut().enumerate().skip(begun) {
        *byte = pattern(number, at);
    }
    for _ in 0..40 {
        // It goes when the gateway does.
        let Some(socket) = socket.upgrade() else {
            return;
        };
        for _ in 0..25 {
            if socket.try_send_to(&datagram, to).is_ok() {
                world.gateway.sent.fetch_add(1, Relaxed);
            }
        }
        drop(socket);
        sleep(Duration::from_millis(5)).await;
    }
}

/// The byte at a place of the datagram of this number.
pub(super) fn pattern(number: u64, at: usize) -> u8 {
    (number.wrapping_mul(31) as u8).wrapping_add(at as u8)
}
