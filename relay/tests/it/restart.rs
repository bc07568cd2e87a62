//! A relay that is replaced under its clients, and a certificate and rules that are replaced under
//! the relay.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    sync::Notify,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use underpass_relay::{
    AcceptLimits, CertificateFiles, Counter, Counters, Relay, RelayConfig, keep_certificate,
    listen, router, serve,
    tls::{Certificate, Identity},
};
use wire::{CloseCode, Control};

use crate::support::*;

/// Sessions go on for a while, each for another, and are told; new ones are sent away.
#[tokio::test]
async fn a_drain_is_spread() {
    let fixture = fixture_with(|config, _| config.limits.drain = Duration::from_secs(2)).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(fixture.proven().await);
    }
    let started = Instant::now();
    fixture.shutdown.cancel();
    let mut told = Vec::new();
    for (websocket, from) in &mut clients {
        let Control::Draining { retry_after_ms } = control(websocket).await else {
            panic!("not told")
        };
        told.push(Duration::from_millis(retry_after_ms));
        // It carries on, both ways.
        send(websocket, &[&data(1)]).await;
        assert_eq!(fixture.at_gateway().await, (data(1), *from));
        fixture.gateway.send_to(&data(2), *from).await.unwrap();
        assert_eq!(datagrams(websocket).await, [data(2)]);
    }
    assert!(
        told.iter().all(|it| (500..=2000).contains(&it.as_millis())),
        "{told:?}"
    );
    let (first, last) = (told.iter().min().unwrap(), told.iter().max().unwrap());
    assert!(
        *last - *first > Duration::from_millis(200),
        "a spread: {told:?}"
    );
    for ((mut websocket, _), told) in clients.into_iter().zip(told) {
        let notices = closed(&mut websocket, CloseCode::Restarting).await;
        assert_eq!(notices, [], "told once");
        // Each in its own time, not before it.
        assert!(started.elapsed() + Duration::from_millis(50) >= told);
    }
    timeout(SOON, fixture.relay.closed()).await.expect("an end");
    fixture.assert_adds_up();
}

#[tokio::test]
async fn who_comes_while_it_drains_is_sent_away() {
    let fixture = fixture_with(|config, accept| {
        config.limits.drain = Duration::from_secs(1);
        accept.hand_over = Duration::from_millis(300);
    })
    .await;
    let _open = fixture.client().await;
    let tls = fixture.tls().await;
    fixture.shutdown.cancel();
    let request = upgrade_request("localhost", "gw1", &[]);
    let answer = exchange_over(tls, &request).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(
        answer.contains("\"restarting\"") && answer.contains("Connect again"),
        "{answer}"
    );
}

/// One relay after the other on one port, with clients that connect all the time: none is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_changes_hands_and_refuses_nobody() {
    let first = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = first.local_addr().unwrap();
    let data = tempfile::tempdir().unwrap();
    let certificate = Certificate::load_or_make(data.path(), &[], now()).unwrap();
    let start = |listener, stop: &CancellationToken| {
        let counters = Arc::new(Counters::new());
        let relay = Relay::new(&RelayConfig::new(), counters.clone(), stop.clone());
        let limits = AcceptLimits {
            hand_over: Duration::from_millis(200),
            // All of them from one address, without a pause.
            connections_per_second: u32::MAX,
            connections_per_second_per_source: u32::MAX,
            ..AcceptLimits::default()
        };
        let tls = certificate.server_config().unwrap();
        let served = serve(
            listener,
            tls,
            router(relay),
            limits,
            counters.clone(),
            stop.clone(),
        );
        (tokio::spawn(served), counters)
    };
    let connected = Arc::new(AtomicUsize::new(0));
    let enough = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (connected, enough) = (connected.clone(), enough.clone());
            tokio::spawn(async move {
                while !enough.load(Ordering::Relaxed) {
                    // Kept open until TLS would begin: who was accepted is not reset.
                    let tcp = timeout(SOON, TcpStream::connect(address)).await;
                    let mut tcp = tcp.expect("in time").expect("not refused");
                    let early = timeout(Duration::from_millis(3), tcp.read(&mut [0; 1])).await;
                    assert!(early.is_err(), "not reset: {early:?}");
                    connected.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut before = start(first, &CancellationToken::new());
    let mut stop_before = CancellationToken::new();
    let mut all = 0;
    for round in 0..4 {
        let stop = CancellationToken::new();
        let after = start(listen(address).unwrap(), &stop);
        tokio::time::sleep(Duration::from_millis(100)).await;
        if round == 0 {
            // The first of all has no token here: it ends with the test.
            before = after;
            stop_before = stop;
            continue;
        }
        let served = async {
            while before.1.get(Counter::Accepted) == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, served).await.expect("both are served");
        let had = before.1.get(Counter::Accepted);
        stop_before.cancel();
        timeout(SOON, before.0).await.expect("it ends").unwrap();
        all += had;
        (before, stop_before) = (after, stop);
    }
    enough.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("nobody was refused");
    }
    println!(
        "{} connections over three hand-overs",
        connected.load(Ordering::Relaxed)
    );
    assert!(connected.load(Ordering::Relaxed) > 100 && all > 0);
}

/// The leaf that a port presents.
async fn presented(fixture: &Fixture) -> Vec<u8> {
    let tls = fixture.tls_of_anyone().await;
    let (_, connection) = tls.get_ref();
    connection.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn a_certificate_is_replaced_under_way() {
    let files = tempfile::tempdir().unwrap();
    let (chain, key) = (files.path().join("chain.pem"), files.path().join("key.pem"));
    let made: Vec<_> = (0..3)
        .map(|_| {
            let data = tempfile::tempdir().unwrap();
            let certificate = Certificate::load_or_make(data.path(), &[], now()).unwrap();
            let read = |name: &str| fs::read(data.path().join(name)).unwrap();
            let leaf = certificate.leaf().unwrap().to_vec();
            (read("cert.pem"), read("key.pem"), leaf)
        })
        .collect();
    fs::write(&chain, &made[0].0).unwrap();
    fs::write(&key, &made[0].1).unwrap();
    let source = CertificateFiles {
        chain: chain.clone(),
        key: key.clone(),
    };
    let identity = Identity::new(&source.load().unwrap()).unwrap();
    let fixture = fixture_over(
        identity.server_config().unwrap(),
        axum::Router::new(),
        |_, _| {},
    )
    .await;
    let now = Arc::new(Notify::new());
    tokio::spawn(keep_certificate(
        identity,
        source,
        now.clone(),
        fixture.counters.clone(),
        fixture.shutdown.clone(),
    ));
    let (mut websocket, from) = fixture.proven_by_anyone().await;
    assert_eq!(presented(&fixture).await, made[0].2);

    // Half written: refused, by the signal and by the look at the files alike.
    fs::write(&chain, &made[1].0[..made[1].0.len() / 2]).unwrap();
    now.notify_one();
    let refused = |n| move |it: &Counters| it.get(Counter::CertificateRefused) == n;
    fixture.until("a cut chain", refused(1)).await;
    assert_eq!(presented(&fixture).await, made[0].2);
    // The new chain, and still the old key.
    fs::write(&chain, &made[1].0).unwrap();
    fixture.until("a key that does not fit", refused(2)).await;
    assert_eq!(presented(&fixture).await, made[0].2);
    fs::remove_file(&key).unwrap();
    now.notify_one();
    fixture.until("no key", refused(3)).await;
    // Whole: taken without a signal.
    fs::write(&key, &made[1].1).unwrap();
    fixture
        .until("the new one", |it| it.get(Counter::CertificateLoaded) == 1)
        .await;
    assert_eq!(presented(&fixture).await, made[1].2);
    // Renamed into place, as tools do it.
    for (file, content) in [(&chain, &made[2].0), (&key, &made[2].1)] {
        let new = file.with_extension("new");
        fs::write(&new, content).unwrap();
        fs::rename(&new, file).unwrap();
    }
    now.notify_one();
    fixture
        .until("the third", |it| it.get(Counter::CertificateLoaded) == 2)
        .await;
    assert_eq!(presented(&fixture).await, made[2].2);

    // The session from before has noticed nothing.
    send(&mut websocket, &[&data(1)]).await;
    assert_eq!(fixture.at_gateway().await, (data(1), from));
    assert_eq!(fixture.counters.sessions(), 1);
}

#[tokio::test]
async fn rules_are_replaced_for_the_sessions_to_come() {
    let fixture = fixture().await;
    let (mut open, from) = fixture.proven().await;
    let mut config = fixture.config.clone();
    config.gateways.remove("gw1");
    fixture.relay.reload(&config);
    let token = good_token();
    let dial = || Dial {
        token: Some(&token),
        ..Dial::default()
    };
    assert!(
        fixture.dial(dial()).await.is_err(),
        "no such gateway any more"
    );
    send(&mut open, &[&data(1)]).await;
    assert_eq!(fixture.at_gateway().await, (data(1), from));
    let mut config = fixture.config.clone();
    config.token_keys.clear();
    fixture.relay.reload(&config);
    assert!(
        fixture.dial(dial()).await.is_err(),
        "no key admits the token"
    );
    fixture.relay.reload(&fixture.config.clone());
    fixture.client().await;
}
