//! What an operator sees: metrics that add up whatever comes, health, readiness.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use proptest::{
    collection::vec,
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use underpass_relay::{
    Counter, serve_admin,
    tls::{Certificate, Identity},
};

use crate::support::*;

/// A relay's admin address.
struct Admin {
    address: SocketAddr,
    stop: CancellationToken,
}

impl Admin {
    async fn of(fixture: &Fixture) -> Admin {
        let data = tempfile::tempdir().unwrap();
        let certificate = Certificate::load_or_make(data.path(), &[], now()).unwrap();
        Admin::with(fixture, Identity::new(&certificate).unwrap()).await
    }

    async fn with(fixture: &Fixture, identity: Arc<Identity>) -> Admin {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(serve_admin(
            listener,
            fixture.relay.clone(),
            identity,
            stop.clone(),
        ));
        Admin { address, stop }
    }

    async fn get(&self, path: &str, host: &str) -> (u16, String) {
        let mut tcp = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(SOON, tcp.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// Every series of `/metrics` with its value.
    async fn metrics(&self) -> HashMap<String, f64> {
        let (status, text) = self.get("/metrics", "localhost").await;
        assert_eq!(status, 200);
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let (series, value) = line.rsplit_once(' ').unwrap();
                (series.to_owned(), value.parse().unwrap())
            })
            .collect()
    }
}

/// The sum of a family's series whose labels contain `label`.
fn sum(metrics: &HashMap<String, f64>, family: &str, label: &str) -> f64 {
    let family = format!("underpass_relay_{family}");
    metrics
        .iter()
        .filter(|(series, _)| {
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            name == family && labels.contains(label)
        })
        .map(|(_, value)| value)
        .sum()
}

#[tokio::test]
async fn health_and_readiness() {
    let fixture = fixture().await;
    let admin = Admin::of(&fixture).await;
    assert_eq!(
        admin.get("/healthz", "127.0.0.1").await,
        (200, "ok\n".into())
    );
    assert_eq!(
        admin.get("/readyz", "localhost:1").await,
        (200, "ready\n".into())
    );
    assert_eq!(admin.get("/", "localhost").await.0, 404);
    assert_eq!(
        admin.get("/metrics", "evil.example").await.0,
        421,
        "a rebound name"
    );

    let without_certificate = Admin::with(&fixture, Identity::awaited()).await;
    let (status, why) = without_certificate.get("/readyz", "localhost").await;
    assert!(status == 503 && why.contains("no certificate yet"), "{why}");
    assert_eq!(
        without_certificate.get("/healthz", "localhost").await.0,
        200
    );

    let _client = fixture.client().await;
    assert_eq!(admin.metrics().await["underpass_relay_sessions"], 1.0);
    fixture.shutdown.cancel();
    assert_eq!(
        admin.get("/readyz", "localhost").await,
        (503, "draining\n".into())
    );
    assert_eq!(admin.get("/healthz", "localhost").await.0, 200, "it lives");
    assert_eq!(admin.metrics().await["underpass_relay_draining"], 1.0);
    admin.stop.cancel();
    let gone = async {
        while TcpStream::connect(admin.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, gone).await.expect("the listener closes");
}

#[tokio::test]
async fn slow_readers_of_metrics_are_bounded() {
    let fixture = fixture().await;
    let admin = Admin::of(&fixture).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(admin.address).await.unwrap());
    }
    // Their time is over after five seconds; until then the one behind them waits.
    let mut first = silent.remove(0);
    let ended = timeout(SOON, first.read(&mut [0; 1])).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
}

/// TLS and upgrades that fail are told apart.
#[tokio::test]
async fn failures_have_reasons() {
    let fixture = fixture_with(|_, accept| {
        accept.handshake_timeout = Duration::from_millis(300);
    })
    .await;
    let admin = Admin::of(&fixture).await;
    let send = async |bytes: &[u8]| {
        let mut tcp = TcpStream::connect(fixture.address).await.unwrap();
        tcp.write_all(bytes).await.unwrap();
        let _ = timeout(SOON, tcp.read_to_end(&mut Vec::new()))
            .await
            .unwrap();
    };
    send(&[0xff; 64]).await;
    send(b"GET / HTTP/1.1\r\n\r\n").await;
    send(&[22, 3, 1]).await;
    let cut = TcpStream::connect(fixture.address).await.unwrap();
    drop(cut);
    fixture.refused_by_client().await;
    for (change, to) in [
        ("upgrade: websocket\r\n", ""),
        ("version: 13", "version: 8"),
        ("underpass.v1", "chat"),
        ("host: localhost", "host: evil.example"),
    ] {
        let request = upgrade_request("localhost", "gw1", &[])
            .replace(change, to)
            .replace("keep-alive", "close");
        fixture.exchange(&request).await;
    }
    fixture
        .until("all of them", |counters| counters.get(Counter::TlsCut) == 1)
        .await;
    let metrics = admin.metrics().await;
    for reason in [
        "timeout",
        "cleartext",
        "cut",
        "refused_by_client",
        "protocol",
    ] {
        assert_eq!(sum(&metrics, "tls_failures_total", reason), 1.0, "{reason}");
    }
    for reason in ["\"host\"", "not_an_upgrade", "version", "subprotocol"] {
        assert_eq!(
            sum(&metrics, "upgrade_failures_total", reason),
            1.0,
            "{reason}"
        );
    }
    assert_eq!(
        metrics["underpass_relay_connections_accepted_total"],
        sum(&metrics, "tls_handshakes_total", "") + sum(&metrics, "tls_failures_total", "")
    );
}

/// What a hostile client does next.
#[derive(Debug, Clone)]
enum Act {
    Datagrams(Vec<(u8, usize)>),
    Bytes(Vec<u8>),
    Frame(u8, Vec<u8>),
    Text(String),
    Prove,
    GatewaySends(Vec<(u8, usize)>),
    Leave,
    Cut,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let one = || prop_oneof![2 => (Just(4u8), 32usize..1500), 1 => (0u8..6, 0usize..2100)];
    let datagrams = || vec(one(), 1..20);
    vec(
        prop_oneof![
            6 => datagrams().prop_map(Act::Datagrams),
            6 => Just(Act::Prove),
            6 => vec(one(), 1..90).prop_map(Act::GatewaySends),
            1 => vec(any::<u8>(), 1..60).prop_map(Act::Bytes),
            1 => (any::<u8>(), vec(any::<u8>(), 0..300)).prop_map(|(it, bytes)| Act::Frame(it, bytes)),
            1 => ".{0,40}".prop_map(Act::Text),
            1 => Just(Act::Leave),
            1 => Just(Act::Cut),
        ],
        1..25,
    )
    .prop_map(|acts| [vec![Act::Prove], acts].concat())
}

/// A storm of clients that mean no good; every datagram is accounted for, by the text of
/// `/metrics` alone.
#[tokio::test]
async fn counters_add_up_in_a_storm() {
    let fixture = fixture_with(|config, _| {
        config.limits.queue_bytes = 16 * 1024;
        config.limits.unproven = Duration::from_secs(2);
        config.limits.resume = Duration::from_millis(300);
    })
    .await;
    let admin = Admin::of(&fixture).await;
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let good = initiation(fixture.gateway_key());
    for _ in 0..12 {
        let storms = (0..20).map(|_| acts().new_tree(&mut runner).unwrap().current());
        let storms: Vec<Vec<Act>> = storms.collect();
        let storms = storms
            .iter()
            .map(|acts| storm(&fixture, acts, &good))
            .collect::<Vec<_>>();
        timeout(SOON, futures_util::future::join_all(storms))
            .await
            .expect("no client is stuck");
    }
    fixture
        .until("no session", |counters| counters.sessions() == 0)
        .await;
    // Some were cut, and waited for.
    fixture
        .until("no session that waits", |counters| {
            let parked = counters.get(Counter::SessionsParked);
            parked > 0 && parked == counters.get(Counter::SessionsUnclaimed)
        })
        .await;
    let metrics = admin.metrics().await;
    for direction in ["\"up\"", "\"down\""] {
        let received = sum(&metrics, "datagrams_received_total", direction);
        let sent = sum(&metrics, "datagrams_sent_total", direction);
        let dropped = sum(&metrics, "datagrams_dropped_total", direction);
        println!("{direction}: {received} in, {sent} out, {dropped} dropped");
        assert!(received > 1000.0 && sent > 200.0 && dropped > 200.0);
        assert_eq!(received, sent + dropped, "{direction}: {metrics:#?}");
    }
    let opened = metrics["underpass_relay_sessions_opened_total"];
    assert_eq!(opened, metrics["underpass_relay_sessions_ended_total"]);
    let reasons =
        sum(&metrics, "sessions_gone_total", "") + sum(&metrics, "sessions_closed_total", "");
    assert_eq!(opened, reasons, "each has ended for a reason");
    let delays = &metrics["underpass_relay_queue_delay_seconds_count"];
    assert_eq!(*delays, sum(&metrics, "datagrams_sent_total", "\"down\""));
}

async fn storm(fixture: &Fixture, acts: &[Act], good: &[u8]) {
    let mut websocket = fixture.client().await;
    let mut from = None;
    let datagrams = |of: &[(u8, usize)]| -> Vec<Vec<u8>> {
        of.iter()
            .map(|(kind, length)| match length {
                0..4 => vec![*kind; *length],
                length => datagram(*kind, *length, 7),
            })
            .collect()
    };
    for act in acts {
        match act {
            Act::Datagrams(of) => {
                let all = datagrams(of);
                let all: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
                let mut message = Vec::new();
                for one in all {
                    // A record holds no empty datagram and none over its cap.
                    let _ = wire::record::push(&mut message, one);
                }
                let _ = websocket.send(Message::binary(message)).await;
            }
            Act::Prove => {
                let mut message = Vec::new();
                wire::record::push(&mut message, good).unwrap();
                let _ = websocket.send(Message::binary(message)).await;
                let mut buffer = [0; 4096];
                let receive = fixture.gateway.recv_from(&mut buffer);
                if let Ok(Ok((_, address))) = timeout(Duration::from_millis(20), receive).await {
                    from = Some(address);
                }
                // The newest is of a session that lives: this one, or one beside it.
                while let Ok((_, address)) = fixture.gateway.try_recv_from(&mut buffer) {
                    from = Some(address);
                }
            }
            Act::GatewaySends(of) => {
                let Some(to) = from else { continue };
                for one in datagrams(of) {
                    let _ = fixture.gateway.try_send_to(&one, to);
                }
            }
            Act::Bytes(bytes) => {
                let _ = websocket.get_mut().write_all(bytes).await;
            }
            Act::Frame(first, payload) => {
                let _ = websocket.get_mut().write_all(&frame(*first, payload)).await;
            }
            Act::Text(text) => {
                let _ = websocket.send(Message::text(text.clone())).await;
            }
            Act::Leave => {
                let _ = websocket.close(None).await;
                while let Ok(Some(Ok(_))) =
                    timeout(Duration::from_millis(500), websocket.next()).await
                {}
                return;
            }
            Act::Cut => return,
        }
    }
}
