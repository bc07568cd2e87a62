//! Gateways that go and return, clients that come and go, and the end.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::{net::UdpSocket, time::timeout};
use tokio_tungstenite::tungstenite::Message;
use underpass_relay::Counter;
use wire::{CloseCode, Control, Limit};

use crate::support::*;

#[tokio::test]
async fn a_gateway_goes_and_returns() {
    let mut fixture = fixture().await;
    let (mut websocket, _) = fixture.proven().await;
    let address = fixture.gateway.local_addr().unwrap();
    // The port is free from here on: the host answers by ICMP.
    let elsewhere = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    drop(std::mem::replace(&mut fixture.gateway, elsewhere));
    for mark in 0..5 {
        send(&mut websocket, &[&data(mark)]).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // One notice, not five.
    assert_eq!(
        control(&mut websocket).await,
        Control::limited(Limit::GatewayUnreachable)
    );
    assert!(fixture.count(Counter::GatewayUnreachable) >= 2);

    fixture.gateway = UdpSocket::bind(address).await.unwrap();
    send(&mut websocket, &[&data(9)]).await;
    let (received, client) = fixture.at_gateway().await;
    assert_eq!(received, data(9));
    fixture.gateway.send_to(&data(10), client).await.unwrap();
    assert_eq!(
        control(&mut websocket).await,
        Control::limited(Limit::GatewayReachable)
    );
    assert_eq!(datagrams(&mut websocket).await, [data(10)]);
    fixture.assert_adds_up();
}

#[tokio::test]
async fn clients_come_and_go() {
    let fixture = fixture_with(|config, _| config.limits.resume = Duration::from_millis(200)).await;
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let good = initiation(fixture.gateway_key());
    for round in 0..20 {
        let clients = futures_util::future::join_all((0..10).map(|n| {
            let (fixture, good) = (&fixture, &good);
            async move {
                let mut websocket = fixture.client().await;
                send(&mut websocket, &[good]).await;
                match n % 3 {
                    0 => {
                        websocket.close(None).await.unwrap();
                        while let Some(Ok(_)) = websocket.next().await {}
                    }
                    1 => websocket.send(Message::text("nonsense")).await.unwrap(),
                    _ => {}
                }
            }
        }));
        timeout(SOON, clients)
            .await
            .unwrap_or_else(|_| panic!("round {round}"));
    }
    fixture
        .until("no session", |counters| counters.sessions() == 0)
        .await;
    assert_eq!(fixture.count(Counter::SessionsOpened), 200);
    let freed = timeout(SOON, async {
        while descriptors() > before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(
        freed.await.is_ok(),
        "{} descriptors, {before} before",
        descriptors()
    );
    fixture.assert_adds_up();
}

#[tokio::test]
async fn at_the_end_everybody_is_told() {
    let fixture = fixture().await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(fixture.client().await);
    }
    let idle_http = fixture.tls().await;
    fixture.shutdown.cancel();
    for websocket in &mut clients {
        let before = closed(websocket, CloseCode::Restarting).await;
        let [Control::Draining { retry_after_ms }] = before[..] else {
            panic!("{before:?}")
        };
        assert!((500..=2000).contains(&retry_after_ms));
    }
    drop(clients);
    timeout(SOON, fixture.relay.closed())
        .await
        .expect("sessions end");
    timeout(SOON, fixture.served)
        .await
        .expect("the accept loop ends")
        .unwrap();
    assert_eq!(fixture.counters.sessions(), 0);
    drop(idle_http);
    assert!(
        tokio::net::TcpStream::connect(fixture.address)
            .await
            .is_err()
    );
}
