//! The carrier against the relay itself.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::bench::{A, B, Switch, at, config, key, receive, send_while};
use relay::{
    AcceptLimits, Counters, GatewayTarget, Relay, RelayConfig, router, serve, tls::Certificate,
};
use ring::signature::{Ed25519KeyPair, KeyPair};
use tempfile::TempDir;
use tokio::{
    io::split,
    net::TcpListener,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tunnel::{Class, PrivateKey};
use underpass_carrier::{Event, Handle, Transport, Trust, start, tls_config};
use url::Url;
use wire::token::{self, Claims};

/// Signs as control does.
fn token(gateway: &str, expires_unix: u64) -> (String, [u8; 32]) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let claims = Claims {
        gateway: gateway.to_owned(),
        expires_unix,
        id: "test".to_owned(),
    };
    let part = claims.encode();
    let signature = pair.sign(&token::signed_bytes(&part));
    let public = pair.public_key().as_ref().try_into().unwrap();
    (
        token::join(&part, signature.as_ref().try_into().unwrap()),
        public,
    )
}

const FUTURE: u64 = 4_000_000_000;

struct Running {
    address: SocketAddr,
    pin: Trust,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

/// A relay with the certificate of that directory, on `port` or a free one.
async fn run(directory: &TempDir, gateway: SocketAddr, key: &PrivateKey, port: u16) -> Running {
    let now = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
    let certificate = Certificate::load_or_make(directory.path(), &[], now).unwrap();
    let pin = Trust::fingerprint(&certificate.fingerprint().to_string()).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let target = GatewayTarget {
        endpoint: gateway,
        public_key: key.public(),
    };
    let relay_config = RelayConfig {
        gateways: HashMap::from([("here".to_owned(), target)]),
        token_keys: vec![token("here", 0).1],
        allowed_hosts: vec!["127.0.0.1".to_owned()],
        ..RelayConfig::new()
    };
    let (counters, stop) = (Arc::new(Counters::default()), CancellationToken::new());
    let relay = Relay::new(&relay_config, counters.clone(), stop.clone());
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(serve(
        listener,
        certificate.server_config().unwrap(),
        router(relay),
        AcceptLimits::default(),
        counters,
        stop.clone(),
    ));
    Running {
        address,
        pin,
        stop,
        served,
    }
}

impl Running {
    fn transport(&self, gateway: &str, token: Option<&str>) -> Transport {
        Transport::WebSocket {
            url: Url::parse(&format!("wss://{}/v1/tunnel/{gateway}", self.address)).unwrap(),
            token: token.map(str::to_owned),
            tls: tls_config(&self.pin).unwrap(),
        }
    }
}

async fn gateway(switch: &Switch, own: &PrivateKey, peer: &PrivateKey) -> Handle {
    let udp = Transport::Udp {
        endpoint: switch.address(1),
    };
    let handle = start(config(own, peer, B), udp).await.unwrap();
    while switch.heard(1).is_none() {
        sleep(Duration::from_millis(5)).await;
    }
    handle
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_pass_while_the_relay_restarts() {
    let switch = Switch::new().await;
    let directory = tempfile::tempdir().unwrap();
    let (key_a, key_b) = (key(), key());
    let relay = run(&directory, switch.address(0), &key_b, 0).await;
    let b = gateway(&switch, &key_b, &key_a).await;
    let (good, _) = token("here", FUTURE);
    let a = start(
        config(&key_a, &key_b, A),
        relay.transport("here", Some(&good)),
    )
    .await
    .unwrap();
    a.ready().await.unwrap();
    let mut events = a.events();
    let mut listener = b.listen(7000).unwrap();
    let (read, write) = split(a.connect(at(B, 7000), Class::Bulk).await.unwrap());
    let (read_there, write_there) = split(listener.accept().await.unwrap().0);
    let going = Arc::new(AtomicBool::new(true));
    let transfer = tokio::spawn({
        let [here, there] = [going.clone(), going.clone()];
        async move {
            tokio::join!(
                receive(read),
                send_while(write, 1, here),
                receive(read_there),
                send_while(write_there, 2, there)
            )
        }
    });
    sleep(Duration::from_millis(300)).await;
    relay.stop.cancel();
    timeout(Duration::from_secs(15), relay.served)
        .await
        .unwrap()
        .unwrap();
    let _relay = run(&directory, switch.address(0), &key_b, relay.address.port()).await;
    sleep(Duration::from_secs(1)).await;
    going.store(false, Relaxed);
    let (received, sent, received_there, sent_there) = timeout(Duration::from_secs(60), transfer)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(received, sent_there);
    assert_eq!(received_there, sent);
    let told = async {
        loop {
            if let Event::LinkDown { error, .. } = events.recv().await.unwrap() {
                return error;
            }
        }
    };
    assert_eq!(told.await.code(), "restarting");
}

#[tokio::test]
async fn what_the_relay_refuses_is_said_in_its_words() {
    let switch = Switch::new().await;
    let gateway_key = key();
    let directory = tempfile::tempdir().unwrap();
    let relay = run(&directory, switch.address(0), &gateway_key, 0).await;
    let (good, _) = token("here", FUTURE);
    let (old, _) = token("here", 1_000_000_000);
    let (elsewhere, _) = token("there", FUTURE);
    let forged = format!("{}A", &good[..good.len() - 1]);
    for (gateway, token, wanted) in [
        ("here", Some(old.as_str()), "token_expired"),
        ("here", Some(elsewhere.as_str()), "token_wrong_gateway"),
        ("here", Some(forged.as_str()), "token_invalid"),
        ("nowhere", Some(good.as_str()), "gateway_unknown"),
    ] {
        let own = config(&key(), &gateway_key, A);
        let error = match start(own, relay.transport(gateway, token)).await {
            Err(error) => error,
            // The session is opened and closed with the reason.
            Ok(handle) => handle.ready().await.unwrap_err(),
        };
        assert_eq!(error.code(), wanted, "{error:?}");
        assert!(error.hint().len() > 5, "{error:?}");
    }
    // Nothing behind it answers: the relay is fine, and says what it knows.
    let own = config(&key(), &gateway_key, A);
    let handle = start(own, relay.transport("here", Some(&good)))
        .await
        .unwrap();
    let error = handle.ready().await.unwrap_err();
    assert_eq!(error.code(), "handshake_no_answer", "{error}");
    // A handshake for another key never leaves the relay.
    let own = config(&key(), &key(), A);
    let handle = start(own, relay.transport("here", None)).await.unwrap();
    assert_eq!(
        handle.ready().await.unwrap_err().code(),
        "handshake_no_answer"
    );
}
