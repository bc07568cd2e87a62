//! A carrier behind a relay: the way there, what can be wrong with it, and life after a loss.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::bench::{A, B, Switch, at, config, key, receive, send, send_while};
use crate::fake_relay::{FakeRelay, Manner};
use tokio::{
    io::split,
    time::{Instant, sleep, timeout},
};
use tunnel::Class;
use underpass_carrier::{
    CarrierError, DropReason, Event, Handle, Transport, Trust, start, tls_config,
};
use url::Url;

const MB: usize = 1_000_000;

/// A on a WebSocket, B on UDP behind the relay.
struct Lab {
    a: Handle,
    b: Handle,
    relay: FakeRelay,
    switch: Switch,
}

fn websocket(relay: &FakeRelay, token: Option<&str>) -> Transport {
    Transport::WebSocket {
        url: relay.url.clone(),
        token: token.map(str::to_owned),
        tls: tls_config(&relay.pin).unwrap(),
    }
}

async fn lab() -> Lab {
    let switch = Switch::new().await;
    let relay = FakeRelay::start(switch.address(0), &["127.0.0.1"]).await;
    let (key_a, key_b) = (key(), key());
    let udp = Transport::Udp {
        endpoint: switch.address(1),
    };
    let b = start(config(&key_b, &key_a, B), udp).await.unwrap();
    while switch.heard(1).is_none() {
        sleep(Duration::from_millis(5)).await;
    }
    let a = start(config(&key_a, &key_b, A), websocket(&relay, Some("secret")))
        .await
        .unwrap();
    a.ready().await.unwrap();
    Lab {
        a,
        b,
        relay,
        switch,
    }
}

async fn dial(relay: &FakeRelay, tls: Arc<rustls::ClientConfig>, url: Url) -> CarrierError {
    let transport = Transport::WebSocket {
        url,
        token: Some("secret".into()),
        tls,
    };
    let Err(error) = start(config(&key(), &key(), A), transport).await else {
        panic!("the relay at {} was taken", relay.url)
    };
    assert!(!error.hint().is_empty(), "{error:?}");
    assert!(
        !format!("{error:?} {error}").contains("secret"),
        "{error:?}"
    );
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_megabytes_both_ways_in_messages_of_many_datagrams() {
    let Lab {
        a,
        b,
        relay,
        switch: _switch,
    } = lab().await;
    let mut listener = b.listen(7000).unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (read, write) = split(stream);
        tokio::join!(receive(read), send(write, 2, 50 * MB))
    });
    let started = Instant::now();
    let (read, write) = split(a.connect(at(B, 7000), Class::Bulk).await.unwrap());
    let (received, sent) = tokio::join!(receive(read), send(write, 1, 50 * MB));
    let (received_there, sent_there) = server.await.unwrap();
    assert_eq!(received, (50 * MB, sent_there));
    assert_eq!(received_there, (50 * MB, sent));
    let elapsed = started.elapsed();
    sleep(Duration::from_millis(150)).await;
    let stats = a.stats().link;
    println!(
        "50 MB both ways in {:.2} s; {:.1} datagrams a message there, {:.1} back",
        elapsed.as_secs_f64(),
        stats.sent as f64 / stats.messages_sent as f64,
        stats.received as f64 / stats.messages_received as f64,
    );
    assert!(
        stats.messages_sent * 2 < stats.sent,
        "what is ready goes together: {stats:?}"
    );
    assert_eq!(
        stats.dropped(DropReason::OutboxFull),
        0,
        "a full queue holds the tunnel back"
    );
    let seen = &relay.seen()[0];
    assert_eq!(seen.path, "/v1/tunnel/here");
    assert_eq!(seen.authorization.as_deref(), Some("Bearer secret"));
    assert_eq!(seen.protocols, "underpass.v1");
}

#[tokio::test]
async fn streams_outlive_the_connection_to_the_relay() {
    let Lab {
        a,
        b,
        relay,
        switch: _switch,
    } = lab().await;
    let mut events = a.events();
    let mut listener = b.listen(7000).unwrap();
    let stream = a.connect(at(B, 7000), Class::Bulk).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let going = Arc::new(AtomicBool::new(true));
    let transfer = tokio::spawn({
        let going = going.clone();
        async move { tokio::join!(send_while(stream, 5, going), receive(accepted)) }
    });
    for _ in 0..3 {
        sleep(Duration::from_millis(150)).await;
        relay.kill();
        sleep(Duration::from_millis(400)).await;
    }
    a.set_token(Some("renewed".into()));
    relay.kill();
    sleep(Duration::from_millis(400)).await;
    going.store(false, Relaxed);
    let (sent, received) = timeout(Duration::from_secs(60), transfer)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(received, sent);
    let stats = a.stats().link;
    assert!(stats.connects >= 4, "{stats:?}");
    let seen = relay.seen();
    // The resume token of a hello is offered once, by the connection that follows.
    assert!(
        seen[1].protocols.starts_with("underpass.v1, resume."),
        "{}",
        seen[1].protocols
    );
    assert_eq!(
        seen.last().unwrap().authorization.as_deref(),
        Some("Bearer renewed")
    );
    let mut downs = 0;
    while let Ok(event) = events.try_recv() {
        if let Event::LinkDown { error, retry_in } = event {
            assert_eq!(error.code(), "relay_lost");
            assert!(retry_in < Duration::from_secs(3), "{retry_in:?}");
            downs += 1;
        }
    }
    assert!(downs >= 3, "{downs}");
}

#[tokio::test]
async fn a_relay_that_restarts_is_found_again() {
    let Lab {
        a,
        b,
        relay,
        switch: _switch,
    } = lab().await;
    let mut events = a.events();
    relay.be(Manner::Refuse(503, "restarting"));
    relay.kill();
    let down = async {
        loop {
            if let Event::LinkDown { error, .. } = events.recv().await.unwrap()
                && error.code() == "upgrade_refused"
            {
                return;
            }
        }
    };
    timeout(Duration::from_secs(5), down).await.unwrap();
    // Nothing is up: who waits is told why.
    let error = timeout(Duration::from_secs(20), a.ready())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.code(), "upgrade_refused");
    relay.be(Manner::Well);
    // A person who knows better need not wait for the next attempt.
    a.wake();
    let ready = async { while a.ready().await.is_err() {} };
    timeout(Duration::from_secs(10), ready).await.unwrap();
    a.ping(B).await.unwrap();
    b.ping(A).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_dead_in_silence_is_left() {
    let Lab {
        a,
        b: _b,
        relay,
        switch,
    } = lab().await;
    let mut events = a.events();
    relay.be(Manner::Deaf);
    relay.kill();
    let found = |wanted: &'static str| {
        let mut events = a.events();
        async move {
            loop {
                if let Event::LinkDown { error, .. } = events.recv().await.unwrap()
                    && error.to_string().contains(wanted)
                {
                    return;
                }
            }
        }
    };
    while !matches!(events.recv().await.unwrap(), Event::LinkUp) {}
    // Nothing comes back any more, neither pongs nor datagrams. Data that nobody answers is the
    // sign; the relay is then asked, and left when it does not answer either.
    switch.cut(true);
    let noticed = found("does not answer");
    let asked = tokio::spawn({
        let a = a.clone();
        async move {
            let _ = a.ping(B).await;
        }
    });
    timeout(Duration::from_secs(15), noticed).await.unwrap();
    asked.abort();
}

#[tokio::test]
async fn each_step_of_the_way_fails_with_its_own_code() {
    let switch = Switch::new().await;
    let relay = FakeRelay::start(switch.address(0), &["127.0.0.1"]).await;
    let pinned = tls_config(&relay.pin).unwrap();
    let code = |error: &CarrierError| error.code().to_owned();

    let mut nowhere = relay.url.clone();
    nowhere.set_host(Some("no-such-relay.invalid")).unwrap();
    let error = dial(&relay, pinned.clone(), nowhere).await;
    assert!(
        ["relay_name_unknown", "relay_dns_timed_out"].contains(&error.code()),
        "{error:?}"
    );

    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut closed = relay.url.clone();
    closed.set_port(Some(free)).unwrap();
    assert_eq!(
        code(&dial(&relay, pinned.clone(), closed).await),
        "relay_refused"
    );

    let strict = tls_config(&Trust::Fingerprint([7; 32])).unwrap();
    let error = dial(&relay, strict, relay.url.clone()).await;
    assert_eq!(code(&error), "tls_untrusted");
    assert!(error.to_string().contains("pinned"), "{error}");
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let strict = tls_config(&Trust::Pem(other.cert.pem().into_bytes())).unwrap();
    assert_eq!(
        code(&dial(&relay, strict, relay.url.clone()).await),
        "tls_untrusted"
    );

    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut no_tls = relay.url.clone();
    no_tls
        .set_port(Some(plain.local_addr().unwrap().port()))
        .unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = plain.accept().unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .unwrap();
    });
    assert_eq!(
        code(&dial(&relay, pinned.clone(), no_tls).await),
        "tls_failed"
    );

    for (manner, wanted) in [
        (
            Manner::Refuse(404, "<html>not here</html>"),
            "upgrade_refused",
        ),
        (
            Manner::Refuse(
                421,
                r#"{"error":{"code":"host_refused","message":"No.","hint":"Yes."}}"#,
            ),
            "host_refused",
        ),
        (Manner::Refuse(401, ""), "token_refused"),
        (
            Manner::Refuse(
                403,
                r#"{"error":{"code":"token_expired","message":"Old.","hint":"Log in again."}}"#,
            ),
            "token_expired",
        ),
        (Manner::Refuse(302, "welcome to the hotel"), "not_a_relay"),
        (Manner::NoProtocol, "not_a_relay"),
        (Manner::Close(4010, false), "token_invalid"),
        (Manner::Close(4900, true), "too_sunny"),
    ] {
        relay.be(manner.clone());
        let error = dial(&relay, pinned.clone(), relay.url.clone()).await;
        assert_eq!(error.code(), wanted, "{manner:?}: {error:?}");
    }

    relay.be(Manner::Silent);
    let started = Instant::now();
    assert_eq!(
        code(&dial(&relay, pinned, relay.url.clone()).await),
        "relay_tls_timed_out"
    );
    assert!(started.elapsed() < Duration::from_secs(12));
}

#[tokio::test]
async fn a_relay_that_sends_no_records_is_none() {
    let Lab {
        a,
        b: _b,
        relay,
        switch: _switch,
    } = lab().await;
    let mut events = a.events();
    relay.be(Manner::BadRecord);
    relay.kill();
    let left = async {
        loop {
            if let Event::LinkDown { error, retry_in } = events.recv().await.unwrap()
                && error.code() == "not_a_relay"
            {
                return retry_in;
            }
        }
    };
    // And it is not hammered.
    assert!(timeout(Duration::from_secs(5), left).await.unwrap() > Duration::from_secs(20));
    assert_eq!(a.ready().await.unwrap_err().code(), "not_a_relay");
}

#[tokio::test]
async fn a_named_certificate_in_a_file_is_trusted() {
    let switch = Switch::new().await;
    let relay = FakeRelay::start(switch.address(0), &["127.0.0.1"]).await;
    let path = std::env::temp_dir().join(format!("underpass-carrier-{}.pem", std::process::id()));
    std::fs::write(&path, &relay.pem).unwrap();
    let tls = tls_config(&Trust::PemFile(path.clone())).unwrap();
    let transport = Transport::WebSocket {
        url: relay.url.clone(),
        token: None,
        tls,
    };
    assert!(!format!("{transport:?}").contains("tunnel/here"));
    let handle = start(config(&key(), &key(), A), transport).await.unwrap();
    assert_eq!(relay.seen()[0].authorization, None);
    // The relay is fine and the gateway silent: that is another failure.
    let error = handle.ready().await.unwrap_err();
    assert_eq!(error.code(), "handshake_no_answer");
    assert!(error.hint().contains("relay works"), "{}", error.hint());
    handle.close().await;
    std::fs::remove_file(path).unwrap();
}
