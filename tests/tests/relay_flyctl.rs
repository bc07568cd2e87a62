//! wireguard-go over flyctl's WebSocket stream, through a client written from the stream's
//! description: records split, merged and fragmented over text frames, keepalives, reconnects.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use carrier::{Trust, tls_config};
use tests::{
    clock::wait_for,
    namespace::{Namespace, connect},
    peer::Peer,
    root,
    system::{Setup, System},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use tokio_rustls::client::TlsStream;

type Tls = TlsStream<TcpStream>;

const LISTEN: &str = "127.0.0.1:51999";
const MAGIC: [u8; 4] = [0x2f, 0xac, 0xed, 0x77];

/// What the test asks of the bridge, and what it has seen.
#[derive(Default)]
struct Orders {
    stop: AtomicBool,
    /// Drop the connection and dial again.
    cut: AtomicBool,
    dials: AtomicU64,
    keepalives: AtomicU64,
}

/// UDP on one side, the stream on the other, until told to stop.
async fn bridge(authority: &str, certificate: &Path, orders: &Orders) {
    let udp = UdpSocket::bind(LISTEN).await.expect("a port");
    let tls = tls_config(&Trust::PemFile(certificate.to_owned())).expect("the certificate");
    let mut wireguard = None;
    let mut buffer = [0; 2048];
    while !orders.stop.load(Ordering::Relaxed) {
        let tcp = TcpStream::connect(authority).await.expect("TCP");
        let host = authority.split(':').next().unwrap_or_default().to_owned();
        let name = host.try_into().expect("a name");
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&tls));
        let mut tls = connector.connect(name, tcp).await.expect("TLS");
        upgrade(&mut tls, authority).await;
        orders.dials.fetch_add(1, Ordering::Relaxed);
        let (mut reads, mut writes) = tokio::io::split(tls);
        text(&mut writes, 0x81, &MAGIC).await;
        let mut stream = Vec::new();
        let mut sent = 0_u32;
        let mut first = [0];
        loop {
            if orders.stop.load(Ordering::Relaxed) || orders.cut.swap(false, Ordering::Relaxed) {
                break;
            }
            tokio::select! {
                received = udp.recv_from(&mut buffer) => {
                    let (length, from) = received.expect("a datagram");
                    wireguard = Some(from);
                    sent += 1;
                    send(&mut writes, &buffer[..length], sent).await;
                }
                read = reads.read(&mut first) => {
                    assert!(matches!(read, Ok(1)), "the relay has closed: {read:?}");
                    let whole = frame(first[0], &mut reads, &mut stream).await;
                    assert!(whole.is_some(), "cut in a frame");
                    while let Some((length, rest)) = stream.split_first_chunk::<4>() {
                        let length = u32::from_be_bytes(*length) as usize;
                        assert!((1..=2048).contains(&length), "a record of {length}");
                        if rest.len() < length {
                            break;
                        }
                        if let Some(to) = wireguard {
                            let _ = udp.send_to(&rest[..length], to).await;
                        }
                        stream.drain(..4 + length);
                    }
                }
                () = tokio::time::sleep(Duration::from_secs(1)) => {
                    orders.keepalives.fetch_add(1, Ordering::Relaxed);
                    text(&mut writes, 0x81, &[0; 4]).await;
                }
            }
        }
    }
}

async fn upgrade(tls: &mut Tls, authority: &str) {
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: Go-http-client/1.1\r\n\
         Connection: Upgrade\r\nOrigin: wss://{authority}/\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Upgrade: websocket\r\n\r\n"
    );
    tls.write_all(request.as_bytes()).await.expect("sent");
    tls.flush().await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(Duration::from_secs(10), tls.read_u8()).await;
        head.push(byte.expect("an answer").expect("an answer"));
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(!head.contains("sec-websocket-protocol"), "{head}");
}

/// A record, in each of the ways that there are, one after the other.
async fn send(to: &mut WriteHalf<Tls>, datagram: &[u8], sent: u32) {
    let length = (datagram.len() as u32).to_be_bytes();
    let record = [&length[..], datagram].concat();
    let middle = record.len() / 2;
    match sent % 5 {
        // Whole.
        0 => text(to, 0x81, &record).await,
        // Length and body apart, as old clients do.
        1 => {
            text(to, 0x81, &length).await;
            text(to, 0x81, datagram).await;
        }
        // In fragments of one message.
        2 => {
            text(to, 0x01, &record[..3]).await;
            text(to, 0x00, &record[3..middle]).await;
            text(to, 0x80, &record[middle..]).await;
        }
        // Behind a keepalive, in one message.
        3 => text(to, 0x81, &[&[0; 4], &record[..]].concat()).await,
        // Over two messages, a keepalive in the second.
        _ => {
            text(to, 0x81, &record[..middle]).await;
            text(to, 0x81, &[&record[middle..], &[0; 4]].concat()).await;
        }
    }
}

/// A masked frame.
async fn text(to: &mut WriteHalf<Tls>, first: u8, payload: &[u8]) {
    let mask = [0x12, 0xfe, 0x00, 0x99];
    let mut bytes = vec![first];
    match payload.len() {
        short @ 0..126 => bytes.push(0x80 | short as u8),
        long => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(long).expect("short").to_be_bytes());
        }
    }
    bytes.extend(mask);
    let masked = payload.iter().zip(mask.iter().cycle());
    bytes.extend(masked.map(|(byte, mask)| byte ^ mask));
    to.write_all(&bytes).await.expect("sent");
    to.flush().await.expect("sent");
}

/// Reads the rest of a frame.
async fn frame(first: u8, from: &mut ReadHalf<Tls>, stream: &mut Vec<u8>) -> Option<()> {
    assert_eq!(first, 0x81, "text alone: anything else makes flyctl close");
    let length = match from.read_u8().await.ok()? {
        126 => usize::from(from.read_u16().await.ok()?),
        127 => panic!("over the 32 KB that its library takes"),
        short => usize::from(short),
    };
    assert!(length <= 32 * 1024);
    let from_here = stream.len();
    stream.resize(from_here + length, 0);
    from.read_exact(&mut stream[from_here..]).await.ok()?;
    Some(())
}

#[test]
fn wireguard_go_over_flyctls_stream() {
    if !root() {
        return;
    }
    let (server, client) = (Namespace::new(), Namespace::new());
    let (address, _) = connect(&server, &client, 1);
    let system = Setup {
        namespace: Some((&server, &address)),
        arguments: &["--flyctl"],
        ..Setup::default()
    }
    .start();
    let peer = peer(&system, client);
    let authority = format!("{address}:8443");
    let orders = Orders::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            peer.namespace.enter(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime");
                runtime.block_on(bridge(&authority, &system.certificate(), &orders));
            });
        });
        let outcome = std::panic::catch_unwind(|| carries(&system, &peer, &orders));
        orders.stop.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

fn peer(system: &System, client: Namespace) -> Peer {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("wg.conf");
    let org = system.ready.org.clone();
    let path = file.display().to_string();
    system
        .underpass(&["wireguard", "create", "--org", &org, "fly", &path])
        .ok();
    let text = fs::read_to_string(&file).expect("a configuration");
    let lines = text.lines().map(|line| match line.starts_with("Endpoint") {
        true => format!("Endpoint = {LISTEN}\n"),
        false => format!("{line}\n"),
    });
    fs::write(&file, lines.collect::<String>()).expect("written");
    Peer::up(client, &file)
}

/// Names and an SSH server's greeting, and names again after the connection was dropped.
fn carries(system: &System, peer: &Peer, orders: &Orders) {
    let (app, instance) = system.instance();
    let name = format!("{}.vm.{}.internal", instance.id, app.name);
    let works = || {
        let answers = peer.run(
            "dig",
            [
                &format!("@{}", peer.dns),
                "+short",
                "+time=1",
                "+tries=1",
                &name,
                "AAAA",
            ],
        );
        (answers.text().trim() == instance.address).then_some(())
    };
    wait_for("a name", Duration::from_secs(20), works);
    // Every way of cutting, many times, and TCP with full segments.
    for transport in ["+notcp", "+tcp"].repeat(15) {
        assert_eq!(
            peer.dig([transport, &name, "AAAA"]),
            [instance.address.as_str()]
        );
    }
    let scan = peer.run(
        "ssh-keyscan",
        ["-T", "20", "-t", "ed25519", &instance.address],
    );
    let keys = scan.ok().text();
    assert!(keys.contains(" ssh-ed25519 "), "{keys}");
    assert_eq!(orders.dials.load(Ordering::Relaxed), 1);
    wait_for("a keepalive", Duration::from_secs(10), || {
        (orders.keepalives.load(Ordering::Relaxed) > 0).then_some(())
    });
    orders.cut.store(true, Ordering::Relaxed);
    // A stranger's data does not pass: wireguard-go begins anew when it is not answered, 15 s
    // later at the most.
    wait_for("a name after a reconnect", Duration::from_secs(40), works);
    assert_eq!(orders.dials.load(Ordering::Relaxed), 2);
}
