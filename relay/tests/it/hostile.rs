//! Clients that break the protocol, are slow, or say nothing.

use std::time::Duration;

use futures_util::SinkExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::Message;
use underpass_relay::Counter;
use wire::{CloseCode, Control, Limit};

use crate::support::*;

#[tokio::test]
async fn broken_messages_end_the_session() {
    let over = [&[0x08, 0x01][..], &[4; 2049]].concat();
    let good_then_cut = [&[0, 96][..], &data(1), &[0, 96, 4]].concat();
    let long = format!(r#"{{"type":"ping","n":1,"pad":"{}"}}"#, "x".repeat(5000));
    let cases = [
        (Message::binary(over), CloseCode::RecordTooLarge),
        (Message::binary(good_then_cut), CloseCode::RecordMalformed),
        (Message::binary(vec![0, 0]), CloseCode::RecordMalformed),
        (Message::binary(vec![0]), CloseCode::RecordMalformed),
        (Message::binary(vec![]), CloseCode::RecordMalformed),
        (Message::text("hello"), CloseCode::ControlMalformed),
        (Message::text(""), CloseCode::ControlMalformed),
        (Message::text(long), CloseCode::ControlMalformed),
        (
            Message::text(r#"{"type":"weather"}"#),
            CloseCode::ControlMalformed,
        ),
        (
            Message::text(Control::closing(CloseCode::Idle).to_text()),
            CloseCode::ControlMalformed,
        ),
        (Message::binary(vec![0; 65_537]), CloseCode::MessageTooLarge),
    ];
    let fixture = fixture().await;
    for (message, code) in cases {
        let mut websocket = fixture.client().await;
        let before = fixture.counters.get_closed(code);
        websocket.send(message).await.unwrap();
        assert_eq!(closed(&mut websocket, code).await, []);
        assert_eq!(fixture.counters.get_closed(code), before + 1);
    }
    // Not one datagram of a message with a bad record was sent.
    fixture.nothing_at_gateway().await;
    fixture
        .until("no session", |counters| counters.sessions() == 0)
        .await;
}

#[tokio::test]
async fn broken_frames_end_the_session() {
    let unmasked = vec![0x82, 3, 0, 1, 4];
    let fragments = [frame(0x02, &[0; 40_000]), frame(0x80, &[0; 40_000])].concat();
    let cases = [
        ("unmasked", unmasked, CloseCode::FrameMalformed),
        (
            "reserved bit",
            frame(0xc2, &[0, 1, 4]),
            CloseCode::FrameMalformed,
        ),
        (
            "reserved opcode",
            frame(0x83, &[]),
            CloseCode::FrameMalformed,
        ),
        (
            "fragmented ping",
            frame(0x09, &[]),
            CloseCode::FrameMalformed,
        ),
        (
            "long ping",
            frame(0x89, &[0; 126]),
            CloseCode::FrameMalformed,
        ),
        (
            "stray continuation",
            frame(0x80, &[]),
            CloseCode::FrameMalformed,
        ),
        (
            "bad UTF-8",
            frame(0x81, &[0xff, 0xfe]),
            CloseCode::ControlMalformed,
        ),
        (
            "large frame",
            frame(0x82, &[0; 65_537]),
            CloseCode::MessageTooLarge,
        ),
        (
            "claimed size",
            [&[0x82, 0xff][..], &[0x7f; 8], &[0; 4]].concat(),
            CloseCode::MessageTooLarge,
        ),
        ("large in fragments", fragments, CloseCode::MessageTooLarge),
    ];
    let fixture = fixture().await;
    for (what, bytes, code) in cases {
        let mut raw = fixture.raw().await;
        raw.write_all(&bytes).await.unwrap();
        assert_eq!(raw_close_code(&mut raw).await, code as u16, "{what}");
    }
    fixture
        .until("no session", |counters| counters.sessions() == 0)
        .await;
}

/// Legal, if odd: a data message in fragments with a ping between them.
#[tokio::test]
async fn fragments_are_one_message() {
    let fixture = fixture().await;
    let mut raw = fixture.raw().await;
    let good = initiation(fixture.gateway_key());
    let message = [&[0, 148][..], &good].concat();
    let bytes = [
        frame(0x02, &message[..1]),
        frame(0x89, b"?"),
        frame(0x80, &message[1..]),
    ]
    .concat();
    for byte in bytes {
        raw.write_all(&[byte]).await.unwrap();
        raw.flush().await.unwrap();
    }
    assert_eq!(fixture.at_gateway().await.0, good);
}

#[tokio::test]
async fn garbage_is_dropped_and_only_garbage_ends_the_session() {
    let fixture = fixture().await;
    let (mut websocket, _) = fixture.proven().await;
    let nearly = [
        datagram(4, 31, 0),
        datagram(5, 96, 0),
        datagram(1, 147, 0),
        vec![4; 96],
    ];
    send(
        &mut websocket,
        &nearly.iter().map(Vec::as_slice).collect::<Vec<_>>(),
    )
    .await;
    assert_eq!(
        control(&mut websocket).await,
        Control::limited(Limit::NotWireguard)
    );
    send(&mut websocket, &[&data(1)]).await;
    assert_eq!(fixture.at_gateway().await.0, data(1));
    assert_eq!(fixture.count(Counter::UpNotWireguard), 4);

    send(&mut websocket, &[&b"GET / HTTP/1.1"[..]; 100]).await;
    closed(&mut websocket, CloseCode::NotWireguard).await;
    fixture.nothing_at_gateway().await;
    fixture.assert_adds_up();
}

#[tokio::test]
async fn a_slow_client_is_closed_and_its_queue_bounded() {
    let fixture = fixture_with(|config, _| {
        config.limits.write_timeout = Duration::from_millis(500);
        config.limits.queue_bytes = 64 * 1024;
        config.limits.resume = Duration::ZERO;
    })
    .await;
    let (websocket, client) = fixture.proven().await;
    let flood = async {
        // More than every buffer on the way holds.
        loop {
            for mark in 0..32 {
                let _ = fixture
                    .gateway
                    .try_send_to(&datagram(4, 1408, mark), client);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = flood => {}
        () = fixture.until("closed", |counters| counters.get_closed(CloseCode::SlowClient) == 1) => {}
    }
    assert!(
        fixture.count(Counter::DownFull) > 0,
        "{:?}",
        fixture.counters
    );
    fixture
        .until("ended", |counters| counters.sessions() == 0)
        .await;
    fixture.assert_adds_up();
    drop(websocket);
}

#[tokio::test]
async fn silent_and_idle_clients_are_closed() {
    let fixture = fixture_with(|config, _| {
        config.limits.ping_after = Duration::from_millis(100);
        config.limits.silent = Duration::from_millis(400);
        config.limits.idle = Duration::from_millis(1200);
    })
    .await;
    // Nobody reads this one, so that no ping is answered.
    let _silent = fixture.client().await;
    let closed_silent = fixture.until("silent", |it| it.get_closed(CloseCode::ClientSilent) == 1);
    // This one answers every ping, and sends no datagram.
    let idle = async {
        let mut websocket = fixture.client().await;
        closed(&mut websocket, CloseCode::Idle).await;
    };
    tokio::join!(closed_silent, idle);
    assert_eq!(fixture.counters.get_closed(CloseCode::ClientSilent), 1);
}

#[tokio::test]
async fn slow_and_foreign_connections_are_let_go() {
    let fixture = fixture_with(|_, accept| {
        accept.handshake_timeout = Duration::from_millis(300);
        accept.header_timeout = Duration::from_millis(300);
    })
    .await;
    let ends = async |tcp: &mut TcpStream| {
        let mut answer = Vec::new();
        let _ = timeout(SOON, tcp.read_to_end(&mut answer))
            .await
            .expect("an end");
        String::from_utf8_lossy(&answer).into_owned()
    };
    // Says nothing.
    let mut mute = TcpStream::connect(fixture.address).await.unwrap();
    assert_eq!(ends(&mut mute).await, "");
    // Begins a TLS record and stops.
    let mut slow = TcpStream::connect(fixture.address).await.unwrap();
    slow.write_all(&[22, 3, 1]).await.unwrap();
    ends(&mut slow).await;
    assert_eq!(fixture.count(Counter::TlsTimeout), 2);
    // Not TLS at all.
    let mut noise = TcpStream::connect(fixture.address).await.unwrap();
    noise.write_all(&[0xff; 64]).await.unwrap();
    ends(&mut noise).await;
    assert_eq!(fixture.count(Counter::TlsFailed), 1);
    // Cleartext.
    let mut clear = TcpStream::connect(fixture.address).await.unwrap();
    clear
        .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let answer = ends(&mut clear).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 400 ") && body.contains("https://"),
        "{answer}"
    );
    assert!(
        head.contains(&format!("content-length: {}", body.len())),
        "{answer}"
    );
    assert_eq!(fixture.count(Counter::Cleartext), 1);
    // Headers that never end.
    let mut tls = fixture.tls().await;
    tls.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = timeout(SOON, tls.read_to_end(&mut answer))
        .await
        .expect("an end");
    // No request at all.
    let mut tls = fixture.tls().await;
    let _ = timeout(SOON, tls.read_to_end(&mut answer))
        .await
        .expect("an end");
    // A second request that never comes.
    let mut tls = fixture.tls().await;
    tls.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let _ = timeout(SOON, tls.read_to_end(&mut answer))
        .await
        .expect("an end");
    // Headers without measure.
    for more in [
        format!("x: {}\r\n", "y".repeat(100_000)),
        "x: y\r\n".repeat(100),
    ] {
        let mut tls = fixture.tls().await;
        let request = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{more}\r\n");
        let _ = tls.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = timeout(SOON, tls.read_to_end(&mut answer))
            .await
            .expect("an end");
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
            "{answer}"
        );
    }
    // And everybody else is served.
    fixture.client().await;
}

#[tokio::test]
async fn connections_are_limited_until_their_sockets_close() {
    let fixture = fixture_with(|_, accept| accept.connections_per_source = 2).await;
    let first = fixture.client().await;
    let _second = fixture.client().await;
    let mut third = TcpStream::connect(fixture.address).await.unwrap();
    let refused = timeout(SOON, third.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(refused, Ok(0) | Err(_)));
    assert_eq!(fixture.count(Counter::ConnectionsFullSource), 1);
    drop(first);
    fixture
        .until("a free slot", |counters| counters.sessions() == 1)
        .await;
    // The socket closes a moment after the session.
    tokio::time::sleep(Duration::from_millis(50)).await;
    fixture.client().await;
}

/// A flood from one source is dropped before TLS begins, and another source is served at once.
#[tokio::test]
async fn a_flood_of_one_source_keeps_nobody_out() {
    let fixture = fixture_with(|_, limits| limits.connections_per_second_per_source = 20).await;
    let from = |address: &'static str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket
            .bind(format!("{address}:0").parse().unwrap())
            .unwrap();
        socket.connect(fixture.address)
    };
    let begun = Instant::now();
    let mut asked = 0;
    let flood = async {
        while begun.elapsed() < Duration::from_secs(2) {
            // Who is let in is waited for with TLS, and who is not is told by an end.
            let mut tcp = from("127.0.0.9").await.unwrap();
            let _ = timeout(Duration::from_millis(2), tcp.read(&mut [0; 1])).await;
            asked += 1;
        }
    };
    let others = async {
        let mut slowest = Duration::ZERO;
        while begun.elapsed() < Duration::from_millis(1800) {
            let before = Instant::now();
            fixture.tls_over(from("127.0.0.2").await.unwrap()).await;
            slowest = slowest.max(before.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        slowest
    };
    let ((), slowest) = tokio::join!(flood, others);
    let let_in = asked - fixture.count(Counter::ConnectionsRateSource);
    println!("{asked} asked, {let_in} were let in; the slowest other took {slowest:?}");
    assert!(asked > 200, "a flood: {asked}");
    // Two seconds' worth at once, and what two seconds and a little brought.
    assert!((60..=100).contains(&let_in), "{let_in} of {asked}");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    assert_eq!(fixture.count(Counter::ConnectionsRate), 0);
}

/// All sources together are limited, too.
#[tokio::test]
async fn a_flood_of_many_sources_is_limited() {
    let fixture = fixture_with(|_, limits| limits.connections_per_second = 10).await;
    let mut refused = 0;
    for n in 1..=50 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket
            .bind(format!("127.0.1.{n}:0").parse().unwrap())
            .unwrap();
        let mut tcp = socket.connect(fixture.address).await.unwrap();
        let end = timeout(Duration::from_millis(5), tcp.read(&mut [0; 1])).await;
        refused += u64::from(end.is_ok());
    }
    assert_eq!(fixture.count(Counter::ConnectionsRate), refused);
    assert!((25..=40).contains(&refused), "{refused} of 50");
    assert_eq!(fixture.count(Counter::ConnectionsRateSource), 0);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    fixture.client().await;
}

/// Handshakes that one source begins and never goes on with keep nobody else out.
#[tokio::test]
async fn one_source_cannot_take_every_handshake() {
    let fixture = fixture_with(|_, limits| {
        limits.handshakes = 8;
        limits.handshakes_per_source = 4;
    })
    .await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
    let mut silent = vec![socket.connect(fixture.address).await.unwrap()];
    for _ in 0..11 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(fixture.address).await.unwrap());
    }
    // Connections are accepted in order: the handshake of another source comes after all of these.
    fixture.tls().await;
    assert_eq!(fixture.count(Counter::HandshakesFullSource), 8);
    assert_eq!(fixture.count(Counter::HandshakesFull), 0);
}
