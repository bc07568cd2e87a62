//! A gateway on a real socket of the loopback interface.

use std::{
    collections::HashMap,
    net::SocketAddrV6,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use names::{Directory, NetworkView};
use sixpn::{Interface, NetworkId, peer_interface};
use tokio::task::JoinHandle;
use tunnel::{
    peer::{Peer, PeerConfig},
    stack::{Limits as StackLimits, Stack, StackConfig, StackEvent},
};

use super::*;

struct Everybody(Mutex<HashMap<PublicKey, PeerRecord>>);

impl Peers for Everybody {
    async fn peer(&self, key: PublicKey) -> Result<Option<PeerRecord>, PeersUnavailable> {
        Ok(self.0.lock().unwrap().get(&key).cloned())
    }
}

struct Nothing;

impl Directory for Nothing {
    fn view(&self, _: NetworkId) -> Option<Arc<NetworkView>> {
        Some(Arc::new(NetworkView::default()))
    }
}

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

fn interface(seed: u8) -> Interface {
    peer_interface(NetworkId::new(9).unwrap(), 1, seed.into())
}

struct Client {
    socket: UdpSocket,
    peer: Peer,
    stack: Stack,
    start: tokio::time::Instant,
}

impl Client {
    async fn new(seed: u8, gateway: SocketAddr) -> Client {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(gateway).await.unwrap();
        let config = PeerConfig::client(key(seed), key(200).public());
        let stack = StackConfig {
            addresses: vec![interface(seed).address()],
            mtu: 1420,
            seed: seed.into(),
            any_ip: false,
            limits: StackLimits::default(),
        };
        Client {
            socket,
            peer: Peer::new(config, Instant::ZERO),
            stack: Stack::new(stack, Instant::ZERO),
            start: tokio::time::Instant::now(),
        }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.start.elapsed().as_micros() as u64)
    }

    /// Drives this client until `done` says something.
    async fn until<T>(&mut self, mut done: impl FnMut(&mut Client) -> Option<T>) -> T {
        let mut buffer = [0; 2048];
        timeout(Duration::from_secs(20), async {
            loop {
                let now = self.now();
                self.peer.handle_timeout(now);
                self.stack.handle_timeout(now);
                while let Some(packet) = self.peer.poll_packet() {
                    self.stack.handle_packet(now, &packet);
                }
                while let Some(packet) = self.stack.poll_transmit(now) {
                    self.peer.send_packet(now, &packet);
                }
                while let Some(datagram) = self.peer.poll_transmit() {
                    self.socket.send(&datagram).await.unwrap();
                }
                if let Some(done) = done(self) {
                    return done;
                }
                let wait = Duration::from_millis(20);
                if let Ok(len) = timeout(wait, self.socket.recv(&mut buffer)).await {
                    let _ = self
                        .peer
                        .handle_datagram(self.now(), None, &buffer[..len.unwrap()]);
                }
            }
        })
        .await
        .expect("nothing happens")
    }

    async fn ping(&mut self, to: std::net::Ipv6Addr) -> StackEvent {
        let now = self.now();
        let id = self.stack.ping(now, to, 56);
        self.until(|client| {
            let stack = &mut client.stack;
            std::iter::from_fn(|| stack.poll_event()).find(|event| match event {
                StackEvent::Pong { id: pong, .. } | StackEvent::PingFailed { id: pong, .. } => {
                    *pong == id
                }
                _ => false,
            })
        })
        .await
    }
}

struct World {
    gateway: SocketAddr,
    handle: Handle,
    peers: Arc<Everybody>,
    shutdown: CancellationToken,
    task: JoinHandle<io::Result<()>>,
}

async fn world(seeds: &[u8]) -> World {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let gateway = socket.local_addr().unwrap();
    let peers = seeds.iter().map(|seed| {
        let record = PeerRecord {
            name: format!("peer-{seed}"),
            key: key(*seed).public(),
            range: interface(*seed).prefix(),
            preshared: None,
            expires: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 33)),
        };
        (record.key, record)
    });
    let peers = Arc::new(Everybody(Mutex::new(peers.collect())));
    let (handle, inbox) = handle();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(serve(
        socket,
        key(200),
        peers.clone(),
        Arc::new(Names::new(Nothing)),
        Options::default(),
        inbox,
        shutdown.clone(),
    ));
    World {
        gateway,
        handle,
        peers,
        shutdown,
        task,
    }
}

#[tokio::test]
async fn peers_meet_over_real_sockets() {
    let world = world(&[1, 2]).await;
    let mut a = Client::new(1, world.gateway).await;
    let mut b = Client::new(2, world.gateway).await;
    let dns = NetworkId::new(9).unwrap().dns();
    assert!(matches!(a.ping(dns).await, StackEvent::Pong { .. }));
    assert!(matches!(b.ping(dns).await, StackEvent::Pong { .. }));

    let answers = tokio::spawn(async move { b.until(|_| None::<()>).await });
    let there = interface(2).address();
    assert!(matches!(a.ping(there).await, StackEvent::Pong { from, .. } if from == there));
    answers.abort();

    // A name that nobody has, asked over UDP.
    let now = a.now();
    let udp = a.stack.udp_bind(0).unwrap();
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x', 8];
    query.extend_from_slice(b"internal\0\0\x1c\0\x01");
    a.stack
        .udp_send(now, udp, SocketAddrV6::new(dns, 53, 0, 0), &query)
        .unwrap();
    let answer = a.until(|client| client.stack.udp_recv(udp)).await;
    assert_eq!(
        (answer.payload[1], answer.payload[3] & 15),
        (7, 3),
        "NXDOMAIN"
    );

    let snapshot = world.handle.snapshot().await.expect("it runs");
    let names: Vec<_> = snapshot
        .peers
        .iter()
        .map(|peer| peer.name.as_str())
        .collect();
    assert_eq!(names, ["peer-1", "peer-2"]);
    assert!(
        snapshot
            .peers
            .iter()
            .all(|peer| peer.connected && peer.last_handshake.is_some())
    );

    world.peers.0.lock().unwrap().remove(&key(2).public());
    world.handle.revoke(key(2).public()).await;
    let failed = a.ping(there).await;
    assert!(
        matches!(failed, StackEvent::PingFailed { .. }),
        "{failed:?}"
    );
    assert_eq!(
        world.handle.snapshot().await.expect("it runs").peers.len(),
        1
    );

    world.shutdown.cancel();
    world.task.await.unwrap().unwrap();
    assert!(world.handle.snapshot().await.is_none());
}

#[tokio::test]
async fn an_unknown_peer_waits_until_the_directory_knows_it() {
    let world = world(&[]).await;
    let mut a = Client::new(3, world.gateway).await;
    a.peer.initiate(Instant::ZERO);
    let waited = a
        .until(|client| (client.now() > Instant::from_micros(400_000)).then_some(()))
        .await;
    let () = waited;
    assert!(!a.peer.has_session());
    let record = PeerRecord {
        name: "late".into(),
        key: key(3).public(),
        range: interface(3).prefix(),
        preshared: None,
        expires: None,
    };
    world.peers.0.lock().unwrap().insert(record.key, record);
    world.handle.changed(key(3).public()).await;
    a.until(|client| client.peer.has_session().then_some(()))
        .await;
    world.shutdown.cancel();
    world.task.await.unwrap().unwrap();
}

/// A directory whose thread blocks, on its own lock or disk, until it is let go.
#[derive(Default)]
struct Stuck {
    entered: AtomicBool,
    let_go: AtomicBool,
    left: AtomicBool,
}

impl Peers for Stuck {
    async fn peer(&self, _: PublicKey) -> Result<Option<PeerRecord>, PeersUnavailable> {
        self.entered.store(true, Ordering::SeqCst);
        for _ in 0..600 {
            if self.let_go.load(Ordering::SeqCst) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.left.store(true, Ordering::SeqCst);
        panic!("a directory that fails")
    }
}

#[tokio::test]
async fn a_directory_that_blocks_and_panics_holds_up_nobody() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let gateway = socket.local_addr().unwrap();
    let peers = Arc::new(Stuck::default());
    let (handle, inbox) = handle();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(serve(
        socket,
        key(200),
        peers.clone(),
        Arc::new(Names::new(Nothing)),
        Options::default(),
        inbox,
        shutdown.clone(),
    ));
    let mut a = Client::new(1, gateway).await;
    a.peer.initiate(Instant::ZERO);
    a.until(|_| peers.entered.load(Ordering::SeqCst).then_some(()))
        .await;
    let snapshot = handle.snapshot().await.expect("it runs");
    assert!(
        !peers.left.load(Ordering::SeqCst),
        "the gateway's thread was taken"
    );
    peers.let_go.store(true, Ordering::SeqCst);
    a.until(|_| {
        let unavailable = snapshot.counters.dropped(DropReason::LookupUnavailable);
        (unavailable > 0).then_some(())
    })
    .await;
    shutdown.cancel();
    task.await.unwrap().unwrap();
}
