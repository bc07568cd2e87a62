//! Clients that take their time, at every step: each is let go within its limit, and none is in
//! the way of another.

use std::time::Duration;

use axum::{Router, extract::DefaultBodyLimit, routing::post};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, interval, timeout},
};
use tokio_rustls::client::TlsStream;
use underpass_relay::Counter;
use wire::CloseCode;

use crate::support::*;

/// Writes byte by byte, round and round, until the other side has had enough; says how long.
async fn dribble(
    mut to: impl AsyncWriteExt + Unpin,
    bytes: impl IntoIterator<Item = u8>,
) -> Duration {
    let started = Instant::now();
    let mut pace = interval(Duration::from_millis(20));
    for byte in bytes {
        pace.tick().await;
        if to.write_all(&[byte]).await.is_err() || to.flush().await.is_err() {
            break;
        }
        assert!(started.elapsed() < SOON, "nobody minds");
    }
    started.elapsed()
}

/// A ClientHello that never ends, and one of many records.
#[tokio::test]
async fn handshakes_that_dribble_end() {
    let fixture = fixture_with(|_, accept| {
        accept.handshake_timeout = Duration::from_millis(400);
    })
    .await;
    let hello = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let endless = hello.into_iter().chain(std::iter::repeat(0)).take(400);
    let tcp = TcpStream::connect(fixture.address).await.unwrap();
    let many = (0..400).map(|n| [22, 3, 1, 0, 1, 1][n % 6]);
    let other = TcpStream::connect(fixture.address).await.unwrap();
    tokio::join!(dribble(tcp, endless), dribble(other, many));
    assert_eq!(
        fixture.count(Counter::TlsTimeout) + fixture.count(Counter::TlsFailed),
        2,
        "{:?}",
        fixture.counters
    );
    fixture.client().await;
}

#[tokio::test]
async fn requests_that_dribble_end() {
    let fixture = fixture_with(|_, accept| {
        accept.header_timeout = Duration::from_millis(400);
        accept.request_timeout = Duration::from_millis(400);
    })
    .await;
    let headers = upgrade_request("localhost", "gw1", &[]);
    let endless = headers[..headers.len() - 2]
        .bytes()
        .chain(b"x: y\r\n".repeat(99));
    dribble(fixture.tls().await, endless).await;
    assert!(fixture.count(Counter::HttpFailed) >= 1);
    assert_eq!(fixture.count(Counter::SessionsOpened), 0);
    fixture.client().await;
}

/// A frame that never ends is silence: no event of it has come.
#[tokio::test]
async fn a_frame_that_dribbles_is_silence() {
    let fixture = fixture_with(|config, _| {
        config.limits.silent = Duration::from_millis(500);
        config.limits.ping_after = Duration::from_millis(200);
    })
    .await;
    let mut raw = fixture.raw().await;
    let bytes = frame(0x82, &[0; 1000]);
    let (mut reads, writes) = tokio::io::split(&mut raw);
    let reading = async {
        let mut all = Vec::new();
        let _ = timeout(SOON, reads.read_to_end(&mut all))
            .await
            .expect("an end");
        all
    };
    let (all, _) = tokio::join!(reading, dribble(writes, bytes));
    let code = (CloseCode::ClientSilent as u16).to_be_bytes();
    assert!(all.windows(2).any(|two| two == code), "{all:?}");
    assert_eq!(fixture.counters.get_closed(CloseCode::ClientSilent), 1);
}

/// Fragments without an end and pings between them are heard, and carry nothing: an unproven
/// session ends, and a proven one is idle.
#[tokio::test]
async fn fragments_without_an_end_are_idle() {
    for proven in [false, true] {
        let fixture = fixture_with(|config, _| {
            config.limits.idle = Duration::from_millis(600);
            config.limits.unproven = Duration::from_millis(600);
        })
        .await;
        let mut raw = fixture.raw().await;
        if proven {
            let good = initiation(fixture.gateway_key());
            let record = [&[0, 148][..], &good].concat();
            raw.write_all(&frame(0x82, &record)).await.unwrap();
            raw.flush().await.unwrap();
            fixture.at_gateway().await;
        }
        let begin = frame(0x02, &[0]);
        let more = [frame(0x00, &[0]), frame(0x89, b"?")].concat();
        let bytes = begin.into_iter().chain(more.into_iter().cycle());
        let (mut reads, mut writes) = tokio::io::split(&mut raw);
        let dribbling = async {
            let mut pace = interval(Duration::from_millis(2));
            for byte in bytes {
                pace.tick().await;
                if writes.write_all(&[byte]).await.is_err() || writes.flush().await.is_err() {
                    break;
                }
            }
        };
        let reading = async {
            let mut all = Vec::new();
            let _ = reads.read_to_end(&mut all).await;
        };
        let code = if proven {
            CloseCode::Idle
        } else {
            CloseCode::Unproven
        };
        tokio::select! {
            () = dribbling => {}
            () = reading => {}
            () = tokio::time::sleep(SOON) => {}
        }
        assert_eq!(
            fixture.counters.get_closed(code),
            1,
            "{:?}",
            fixture.counters
        );
    }
}

/// A server with a route whose bodies are at most 1,000 bytes.
async fn with_bodies() -> Fixture {
    let app = Router::new()
        .route(
            "/body",
            post(|body: String| async move { body.len().to_string() }),
        )
        .layer(DefaultBodyLimit::max(1000));
    fixture_of(app, |_, accept| {
        accept.request_timeout = Duration::from_millis(500);
        accept.header_timeout = Duration::from_millis(500);
    })
    .await
}

async fn answer(tls: &mut TlsStream<TcpStream>) -> std::io::Result<String> {
    let mut answer = Vec::new();
    let read = timeout(SOON, tls.read_to_end(&mut answer))
        .await
        .expect("an end");
    match read {
        Ok(_) => Ok(String::from_utf8_lossy(&answer).into_owned()),
        Err(error) if answer.is_empty() => Err(error),
        Err(_) => Ok(String::from_utf8_lossy(&answer).into_owned()),
    }
}

/// Whoever sends far more than is wanted, all of it before it reads, is answered all the same.
#[tokio::test]
async fn who_sends_too_much_hears_the_answer() {
    let fixture = with_bodies().await;
    for (length, chunked) in [
        (2_000, false),
        (200_000, false),
        (8_000_000, false),
        (8_000_000, true),
    ] {
        let mut tls = fixture.tls().await;
        let size = match chunked {
            true => "transfer-encoding: chunked".to_owned(),
            false => format!("content-length: {length}"),
        };
        let head = format!("POST /body HTTP/1.1\r\nhost: localhost\r\n{size}\r\n\r\n");
        tls.write_all(head.as_bytes()).await.unwrap();
        let body = match chunked {
            true => format!("10000\r\n{}\r\n", "x".repeat(65_536)).repeat(length / 65_536),
            false => "x".repeat(length),
        };
        let sent = async {
            for piece in body.as_bytes().chunks(16_000) {
                tls.write_all(piece).await?;
                tls.flush().await?;
                // The answer has been there for long when the last of it is sent.
                if length < 1_000_000 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            Ok::<_, std::io::Error>(())
        };
        timeout(SOON, sent)
            .await
            .expect("taken in time")
            .expect("no reset");
        let answer = answer(&mut tls).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 413 "), "{length}: {answer}");
    }
}

/// And who never stops is not listened to for ever.
#[tokio::test]
async fn who_never_stops_is_let_go() {
    let fixture = with_bodies().await;
    let mut tls = fixture.tls().await;
    tls.write_all(b"POST /body HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\n\r\n")
        .await
        .unwrap();
    let endless = std::iter::repeat_n(b'x', 100_000);
    let took = dribble(&mut tls, endless).await;
    assert!(took < SOON, "{took:?}");
    // A body that is small enough and never comes, too.
    let mut tls = fixture.tls().await;
    tls.write_all(b"POST /body HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900\r\n\r\n")
        .await
        .unwrap();
    let (mut reads, writes) = tokio::io::split(&mut tls);
    let mut text = Vec::new();
    let reading = timeout(SOON, reads.read_to_end(&mut text));
    let (ended, _) = tokio::join!(reading, dribble(writes, std::iter::repeat_n(b'x', 400)));
    let _ = ended.expect("an end");
    let text = String::from_utf8_lossy(&text);
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    assert_eq!(fixture.count(Counter::RequestTimeout), 2);
}
