//! Two carriers back to back, over loopback sockets that the test can cut.

use std::{
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use ring::digest;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::UdpSocket,
    task::JoinHandle,
};
use tunnel::PrivateKey;
use underpass_carrier::{Handle, Transport, start};

pub(crate) const A: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 0x18, 0xa, 0, 0, 0, 2);
pub(crate) const B: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 0x18, 0xb, 0, 0, 0, 2);

pub(crate) fn at(address: Ipv6Addr, port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(address, port, 0, 0)
}

/// The network between the two: what one side sends to its socket goes to where the other side
/// was last heard from.
pub(crate) struct Switch {
    sockets: [Arc<UdpSocket>; 2],
    heard: [Arc<Mutex<Option<SocketAddr>>>; 2],
    cut: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Switch {
    pub(crate) async fn new() -> Switch {
        let mut sockets = Vec::new();
        for _ in 0..2 {
            sockets.push(Arc::new(big_socket()));
        }
        let sockets: [Arc<UdpSocket>; 2] = sockets.try_into().unwrap();
        let heard: [Arc<Mutex<Option<SocketAddr>>>; 2] = Default::default();
        let cut = Arc::new(AtomicBool::new(false));
        let tasks = [(0, 1), (1, 0)]
            .map(|(from, to)| {
                let (from_socket, to_socket) = (sockets[from].clone(), sockets[to].clone());
                let (from_heard, to_heard) = (heard[from].clone(), heard[to].clone());
                let cut = cut.clone();
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    loop {
                        // An error is the echo of an earlier send.
                        let Ok((n, source)) = from_socket.recv_from(&mut buffer).await else {
                            continue;
                        };
                        *from_heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(source);
                        let target = *to_heard.lock().unwrap_or_else(PoisonError::into_inner);
                        if let (Some(target), false) = (target, cut.load(Relaxed)) {
                            let _ = to_socket.send_to(&buffer[..n], target).await;
                        }
                    }
                })
            })
            .into();
        Switch {
            sockets,
            heard,
            cut,
            tasks,
        }
    }

    /// Where side 0 or 1 sends to.
    pub(crate) fn address(&self, side: usize) -> SocketAddr {
        self.sockets[side].local_addr().unwrap()
    }

    /// Where that side was last heard from.
    pub(crate) fn heard(&self, side: usize) -> Option<SocketAddr> {
        *self.heard[side].lock().unwrap()
    }

    pub(crate) fn cut(&self, cut: bool) {
        self.cut.store(cut, Relaxed);
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn big_socket() -> UdpSocket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    let _ = socket.set_recv_buffer_size(4 << 20);
    socket.set_nonblocking(true).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    UdpSocket::from_std(socket.into()).unwrap()
}

pub(crate) fn key() -> PrivateKey {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).unwrap();
    PrivateKey::from_bytes(bytes)
}

pub(crate) fn config(key: &PrivateKey, peer: &PrivateKey, address: Ipv6Addr) -> tunnel::Config {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).unwrap();
    tunnel::Config {
        private_key: key.clone(),
        peer: peer.public(),
        preshared: None,
        addresses: vec![address],
        dns: Some(if address == A { B } else { A }),
        mtu: 1420,
        keepalive: Some(15),
        seed: u64::from_le_bytes(seed),
    }
}

/// Two carriers over UDP with a session between them.
pub(crate) struct Pair {
    pub(crate) a: Handle,
    pub(crate) b: Handle,
    pub(crate) switch: Switch,
}

pub(crate) async fn pair() -> Pair {
    let switch = Switch::new().await;
    let (key_a, key_b) = (key(), key());
    let udp = |side| Transport::Udp {
        endpoint: switch.address(side),
    };
    let b = start(config(&key_b, &key_a, B), udp(1)).await.unwrap();
    // The switch has to know where B is before A speaks.
    while switch.heard(1).is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let a = start(config(&key_a, &key_b, A), udp(0)).await.unwrap();
    a.ready().await.unwrap();
    b.ready().await.unwrap();
    Pair { a, b, switch }
}

/// A stream of bytes that differs at every place.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Noise {
        Noise(seed | 1)
    }

    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

pub(crate) type Hash = [u8; 32];

/// Writes `length` bytes of noise and says that no more comes; their hash.
pub(crate) async fn send(mut to: impl AsyncWrite + Unpin, seed: u64, length: usize) -> Hash {
    let (mut noise, mut context) = (Noise::new(seed), digest::Context::new(&digest::SHA256));
    let mut buffer = vec![0; 64 * 1024];
    let mut left = length;
    while left > 0 {
        let n = left.min(buffer.len());
        noise.fill(&mut buffer[..n]);
        context.update(&buffer[..n]);
        to.write_all(&buffer[..n]).await.unwrap();
        left -= n;
    }
    to.shutdown().await.unwrap();
    context.finish().as_ref().try_into().unwrap()
}

/// Writes noise for as long as it is told to, then says that no more comes; how much it was, and
/// its hash.
pub(crate) async fn send_while(
    mut to: impl AsyncWrite + Unpin,
    seed: u64,
    going: Arc<AtomicBool>,
) -> (usize, Hash) {
    let (mut noise, mut context) = (Noise::new(seed), digest::Context::new(&digest::SHA256));
    let mut buffer = vec![0; 16 * 1024];
    let mut total = 0;
    while going.load(Relaxed) {
        noise.fill(&mut buffer);
        context.update(&buffer);
        to.write_all(&buffer).await.unwrap();
        total += buffer.len();
    }
    to.shutdown().await.unwrap();
    (total, context.finish().as_ref().try_into().unwrap())
}

/// Reads to the end; how much it was, and its hash.
pub(crate) async fn receive(mut from: impl AsyncRead + Unpin) -> (usize, Hash) {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        let n = from.read(&mut buffer).await.unwrap();
        if n == 0 {
            return (total, context.finish().as_ref().try_into().unwrap());
        }
        context.update(&buffer[..n]);
        total += n;
    }
}
