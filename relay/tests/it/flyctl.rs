//! flyctl's byte stream on `/`, by a client written from its description: text frames that hold
//! any bytes, and records that lie across them as they like.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;
use underpass_relay::Counter;
use wire::CloseCode;

use crate::support::*;

/// The request as flyctl sends it.
fn request(more: &str) -> String {
    format!(
        "GET / HTTP/1.1\r\n\
         Host: localhost\r\n\
         User-Agent: Go-http-client/1.1\r\n\
         Connection: Upgrade\r\n\
         {more}\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\n\
         Upgrade: websocket\r\n\r\n"
    )
}

const ORIGIN_OF_FLYCTL: &str = "Origin: wss://localhost:443/\r\n";
const MAGIC: &[u8] = &[0x2f, 0xac, 0xed, 0x77];

/// A client of the stream.
struct Fly {
    tls: TlsStream<TcpStream>,
    /// What has come, without frames.
    stream: Vec<u8>,
    /// The code that the relay has closed with.
    closed: Option<u16>,
}

impl Fly {
    /// Connects, and says the magic number.
    async fn dial(fixture: &Fixture) -> Fly {
        let mut fly = Fly::connect(fixture).await;
        fly.text(MAGIC).await;
        fly
    }

    async fn connect(fixture: &Fixture) -> Fly {
        let mut tls = fixture.tls().await;
        tls.write_all(request(ORIGIN_OF_FLYCTL).as_bytes())
            .await
            .unwrap();
        tls.flush().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(SOON, tls.read_u8()).await.unwrap().unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        for never in ["sec-websocket-protocol", "sec-websocket-extensions"] {
            assert!(!head.contains(never), "{head}");
        }
        Fly {
            tls,
            stream: Vec::new(),
            closed: None,
        }
    }

    /// A text frame, whatever is in it.
    async fn text(&mut self, payload: &[u8]) {
        self.frames(&[(0x81, payload)]).await;
    }

    async fn frames(&mut self, frames: &[(u8, &[u8])]) {
        for (first, payload) in frames {
            let mut bytes = frame(*first, payload);
            let at = bytes.len() - payload.len();
            bytes[at - 4..at].copy_from_slice(&[0xa5, 0xff, 0x00, 0x80]);
            for (n, byte) in bytes[at..].iter_mut().enumerate() {
                *byte ^= [0xa5, 0xff, 0x00, 0x80][n % 4];
            }
            self.tls.write_all(&bytes).await.unwrap();
        }
        self.tls.flush().await.unwrap();
    }

    /// The next datagram; none when the relay closes.
    async fn datagram(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some((length, rest)) = self.stream.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                assert_ne!(
                    length, 0,
                    "an empty record would be an empty datagram there"
                );
                if rest.len() >= length {
                    let datagram = rest[..length].to_vec();
                    self.stream.drain(..4 + length);
                    return Some(datagram);
                }
            }
            self.read_frame().await?;
        }
    }

    async fn read_frame(&mut self) -> Option<()> {
        let first = timeout(SOON, self.tls.read_u8())
            .await
            .expect("in time")
            .ok()?;
        let length = match self.tls.read_u8().await.unwrap() {
            126 => usize::from(self.tls.read_u16().await.unwrap()),
            127 => panic!("over the 32 KB that its library takes"),
            short => usize::from(short),
        };
        assert!(length <= 32 * 1024);
        let mut payload = vec![0; length];
        self.tls.read_exact(&mut payload).await.unwrap();
        match first {
            0x81 => self.stream.extend(payload),
            0x88 => {
                self.closed = Some(u16::from_be_bytes([payload[0], payload[1]]));
                return None;
            }
            0x8a => {}
            other => panic!("frame {other:02x} makes it close with 1003"),
        }
        Some(())
    }
}

fn records(datagrams: &[&[u8]]) -> Vec<u8> {
    let record = |it: &&[u8]| [&(it.len() as u32).to_be_bytes()[..], it].concat();
    datagrams.iter().flat_map(record).collect()
}

async fn with_flyctl() -> Fixture {
    fixture_with(|config, _| config.flyctl_gateway = Some("gw1".into())).await
}

/// Split, merged and fragmented records, with keepalives in between; both ways.
#[tokio::test]
async fn a_stream_is_carried_however_it_is_cut() {
    let fixture = with_flyctl().await;
    let good = initiation(fixture.gateway_key());
    let mut fly = Fly::dial(&fixture).await;
    // As old clients do it: length and body are messages of their own.
    fly.text(&148u32.to_be_bytes()).await;
    fly.text(&good).await;
    let (first, client) = fixture.at_gateway().await;
    assert_eq!(first, good);
    let expect = async |fixture: &Fixture, marks: &[u8]| {
        for mark in marks {
            assert_eq!(fixture.at_gateway().await, (data(*mark), client));
        }
    };
    fly.text(&records(&[&data(1), &data(2), &data(3)])).await;
    expect(&fixture, &[1, 2, 3]).await;
    for byte in records(&[&data(4)]) {
        fly.text(&[byte]).await;
    }
    expect(&fixture, &[4]).await;
    let two = records(&[&data(5), &data(6)]);
    fly.frames(&[
        (0x01, &two[..3]),
        (0x00, &two[3..120]),
        (0x89, b"?"),
        (0x80, &two[120..]),
    ])
    .await;
    expect(&fixture, &[5, 6]).await;
    fly.text(&[0; 4]).await;
    fly.text(&[&[0; 4], &records(&[&data(7)])[..], &[0; 6]].concat())
        .await;
    fly.text(&[&[0; 2], &records(&[&data(8)])[..]].concat())
        .await;
    expect(&fixture, &[7, 8]).await;
    // Binary frames carry the same stream.
    fly.frames(&[(0x82, &records(&[&data(9)]))]).await;
    expect(&fixture, &[9]).await;
    // The largest that a client sends.
    let largest = datagram(4, 1996, 10);
    fly.text(&records(&[&largest])).await;
    assert_eq!(fixture.at_gateway().await.0, largest);

    for mark in 0..100 {
        let _ = fixture
            .gateway
            .try_send_to(&datagram(4, 1400, mark), client);
    }
    let _ = fixture.gateway.try_send_to(&[], client);
    for mark in 0..100 {
        assert_eq!(fly.datagram().await, Some(datagram(4, 1400, mark)));
    }
    fixture
        .until("all", |it| it.get(Counter::DownEmpty) == 1)
        .await;
    fixture.assert_adds_up();
}

/// A whole WireGuard session, and it goes on over a connection after the first.
#[tokio::test]
async fn wireguard_goes_through_and_reconnects() {
    use boringtun::{noise::TunnResult, x25519};
    let fixture = with_flyctl().await;
    let secret = x25519::StaticSecret::from([5; 32]);
    let mut client = peer(&secret, fixture.gateway_key());
    let mut gateway = peer(&fixture.gateway_secret, public(&secret));
    let (mut a, mut b) = ([0; 2048], [0; 2048]);
    for round in 0..3 {
        let mut fly = Fly::dial(&fixture).await;
        let TunnResult::WriteToNetwork(initiation) =
            client.format_handshake_initiation(&mut a, true)
        else {
            panic!("no initiation")
        };
        fly.text(&records(&[initiation])).await;
        let (received, from) = fixture.at_gateway().await;
        let TunnResult::WriteToNetwork(response) = gateway.decapsulate(None, &received, &mut b)
        else {
            panic!("no response in round {round}")
        };
        fixture.gateway.send_to(response, from).await.unwrap();
        let response = fly.datagram().await.unwrap();
        let TunnResult::WriteToNetwork(keepalive) = client.decapsulate(None, &response, &mut a)
        else {
            panic!("no keepalive")
        };
        fly.text(&records(&[keepalive])).await;
        gateway.decapsulate(None, &fixture.at_gateway().await.0, &mut b);
        let mut packet = [0; 40];
        packet[0] = 0x60;
        let TunnResult::WriteToNetwork(up) = client.encapsulate(&packet, &mut a) else {
            panic!("no transport message")
        };
        fly.text(&records(&[up])).await;
        let (up, _) = fixture.at_gateway().await;
        let up = gateway.decapsulate(None, &up, &mut b);
        assert!(matches!(up, TunnResult::WriteToTunnelV6(bytes, _) if bytes == packet));
        // And drops it, as it does after sleep.
    }
    fixture.until("gone", |it| it.sessions() == 0).await;
    assert_eq!(
        fixture.count(Counter::SessionsParked),
        0,
        "it has no resume token"
    );
    fixture.assert_adds_up();
}

/// Nothing is said before the client has spoken, and no control, ping or notice at any time: it
/// would reset, or take them for records.
#[tokio::test]
async fn nothing_is_said_but_datagrams() {
    let fixture = fixture_with(|config, _| {
        config.flyctl_gateway = Some("gw1".into());
        config.limits.ping_after = Duration::from_millis(50);
        config.limits.unproven = Duration::from_millis(50);
        config.limits.idle = Duration::from_secs(3);
    })
    .await;
    let mut fly = Fly::connect(&fixture).await;
    let mut byte = [0; 1];
    assert!(timeout(A_WHILE, fly.tls.read(&mut byte)).await.is_err());
    fly.text(MAGIC).await;
    // Not WireGuard, and not proven: dropped, without a word.
    fly.text(&records(&[b"hello", &data(1)])).await;
    assert!(timeout(A_WHILE, fly.tls.read(&mut byte)).await.is_err());
    assert_eq!(fixture.count(Counter::UpUnproven), 1);
    assert_eq!(fixture.count(Counter::UpNotWireguard), 1);
    fixture.nothing_at_gateway().await;
    // What never proves itself is let go, later than others: it may have nothing to say yet.
    assert_eq!(fly.datagram().await, None);
    assert_eq!(fly.closed, Some(CloseCode::Unproven as u16));
}

#[tokio::test]
async fn what_is_no_stream_is_closed() {
    let fixture = with_flyctl().await;
    for (what, bytes, code) in [
        (
            "no magic",
            b"GET / HTTP/1.1".to_vec(),
            CloseCode::RecordMalformed,
        ),
        (
            "a record first",
            records(&[&data(1)]),
            CloseCode::RecordMalformed,
        ),
        (
            "too long",
            [MAGIC, &[0, 0, 8, 1]].concat(),
            CloseCode::RecordTooLarge,
        ),
        (
            "far too long",
            [MAGIC, &[255; 4]].concat(),
            CloseCode::RecordTooLarge,
        ),
    ] {
        let mut fly = Fly::connect(&fixture).await;
        fly.text(&bytes).await;
        assert_eq!(fly.datagram().await, None, "{what}");
        assert_eq!(fly.closed, Some(code as u16), "{what}");
    }
    let mut fly = Fly::dial(&fixture).await;
    fly.frames(&[(0x83, b"")]).await;
    assert_eq!(fly.datagram().await, None);
    assert_eq!(fly.closed, Some(CloseCode::FrameMalformed as u16));
}

#[tokio::test]
async fn who_may_speak_it() {
    let page = axum::Router::new().route("/", axum::routing::get(|| async { "the page" }));
    let fixture = fixture_of(page.clone(), |config, _| {
        config.flyctl_gateway = Some("gw1".into());
    })
    .await;
    let closing =
        |request: &str| request.replace("Connection: Upgrade", "Connection: Upgrade, close");
    for (what, request, status, words) in [
        (
            "a page",
            request("Origin: https://console.example\r\n"),
            403,
            "origin_refused",
        ),
        (
            "a page in cleartext",
            request("Origin: http://localhost\r\n"),
            403,
            "origin_refused",
        ),
        (
            "no origin that is one",
            request("Origin: null\r\n"),
            403,
            "origin_refused",
        ),
        (
            "two origins",
            request(&format!("{ORIGIN_OF_FLYCTL}Origin: https://a.example\r\n")),
            403,
            "origin_refused",
        ),
        (
            "a foreign host",
            request("").replace("Host: localhost", "Host: evil.example"),
            421,
            "host_refused",
        ),
        (
            "another version",
            request("").replace("Version: 13", "Version: 8"),
            426,
            "version_unsupported",
        ),
        (
            "a browser's own",
            request("Sec-WebSocket-Protocol: chat\r\n"),
            200,
            "the page",
        ),
        (
            "plain HTTP",
            request("").replace("Upgrade: websocket\r\n", ""),
            200,
            "the page",
        ),
        (
            "another path",
            request("").replace("GET / ", "GET /x "),
            404,
            "",
        ),
    ] {
        let answer = fixture.exchange(&closing(&request)).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{what}: {answer}"
        );
        assert!(answer.contains(words), "{what}: {answer}");
    }
    Fly::dial(&fixture).await;
    // Switched off, it is not there at all.
    let without = fixture_of(page, |_, _| {}).await;
    let answer = without.exchange(&closing(&request(ORIGIN_OF_FLYCTL))).await;
    assert!(answer.contains("the page"), "{answer}");
    assert_eq!(without.count(Counter::SessionsOpened), 0);
}

/// It is sent away as others are, in the one way that it has.
#[tokio::test]
async fn it_drains() {
    let fixture = fixture_with(|config, _| {
        config.flyctl_gateway = Some("gw1".into());
        config.limits.drain = Duration::from_millis(500);
    })
    .await;
    let mut fly = Fly::dial(&fixture).await;
    fly.text(&records(&[&initiation(fixture.gateway_key())]))
        .await;
    let (_, client) = fixture.at_gateway().await;
    fixture.shutdown.cancel();
    fixture.gateway.send_to(&data(1), client).await.unwrap();
    assert_eq!(fly.datagram().await, Some(data(1)));
    assert_eq!(fly.datagram().await, None);
    assert_eq!(fly.closed, Some(CloseCode::Restarting as u16));
}
