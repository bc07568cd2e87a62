//! What passes, in both directions.

use boringtun::{noise::TunnResult, x25519};
use futures_util::SinkExt;
use tokio_tungstenite::tungstenite::Message;
use underpass_relay::Counter;
use wire::Control;

use crate::support::*;

/// A whole WireGuard handshake and a packet each way, by two boringtun endpoints.
#[tokio::test]
async fn wireguard_goes_through() {
    let fixture = fixture().await;
    let client_secret = x25519::StaticSecret::from([5; 32]);
    let mut client = peer(&client_secret, fixture.gateway_key());
    let mut gateway = peer(&fixture.gateway_secret, public(&client_secret));
    let mut websocket = fixture.client().await;
    let (mut a, mut b) = ([0; 2048], [0; 2048]);

    let TunnResult::WriteToNetwork(initiation) = client.format_handshake_initiation(&mut a, false)
    else {
        panic!("no initiation")
    };
    send(&mut websocket, &[initiation]).await;
    let (received, from) = fixture.at_gateway().await;
    let TunnResult::WriteToNetwork(response) = gateway.decapsulate(None, &received, &mut b) else {
        panic!("no response")
    };
    fixture.gateway.send_to(response, from).await.unwrap();
    let response = datagrams(&mut websocket).await.remove(0);
    let TunnResult::WriteToNetwork(keepalive) = client.decapsulate(None, &response, &mut a) else {
        panic!("no keepalive")
    };
    send(&mut websocket, &[keepalive]).await;
    let (keepalive, same_from) = fixture.at_gateway().await;
    assert_eq!(same_from, from);
    assert!(matches!(
        gateway.decapsulate(None, &keepalive, &mut b),
        TunnResult::Done
    ));

    let mut packet = [0; 40];
    packet[0] = 0x60;
    let TunnResult::WriteToNetwork(up) = client.encapsulate(&packet, &mut a) else {
        panic!("no transport message")
    };
    send(&mut websocket, &[up]).await;
    let (up, _) = fixture.at_gateway().await;
    let TunnResult::WriteToTunnelV6(up, _) = gateway.decapsulate(None, &up, &mut b) else {
        panic!("no packet")
    };
    assert_eq!(up, packet);
    let TunnResult::WriteToNetwork(down) = gateway.encapsulate(&packet, &mut b) else {
        panic!("no transport message")
    };
    fixture.gateway.send_to(down, from).await.unwrap();
    let down = datagrams(&mut websocket).await.remove(0);
    let TunnResult::WriteToTunnelV6(down, _) = client.decapsulate(None, &down, &mut a) else {
        panic!("no packet")
    };
    assert_eq!(down, packet);
    assert_eq!(fixture.count(Counter::SessionsProven), 1);
    fixture.assert_adds_up();
}

#[tokio::test]
async fn what_is_ready_shares_a_message() {
    let fixture = fixture().await;
    let (mut websocket, client) = fixture.proven().await;
    let before = fixture.count(Counter::DownMessages);
    // On one thread: all fifty wait in the socket before the relay's turn.
    for mark in 0..50 {
        fixture.gateway.try_send_to(&data(mark), client).unwrap();
    }
    let mut received = Vec::new();
    while received.len() < 50 {
        received.extend(datagrams(&mut websocket).await);
    }
    assert_eq!(received, (0..50).map(data).collect::<Vec<_>>());
    assert!(fixture.count(Counter::DownMessages) - before <= 2);

    let many: Vec<Vec<u8>> = (0..50).map(data).collect();
    send(
        &mut websocket,
        &many.iter().map(Vec::as_slice).collect::<Vec<_>>(),
    )
    .await;
    for expect in &many {
        assert_eq!(fixture.at_gateway().await, (expect.clone(), client));
    }
    fixture.assert_adds_up();
}

#[tokio::test]
async fn a_gateway_that_sends_nonsense_is_counted() {
    let fixture = fixture().await;
    let (mut websocket, client) = fixture.proven().await;
    for nonsense in [vec![], vec![4; 96], datagram(4, 2064, 0), vec![0; 65_507]] {
        fixture.gateway.send_to(&nonsense, client).await.unwrap();
    }
    fixture
        .gateway
        .send_to(&datagram(4, 2048, 7), client)
        .await
        .unwrap();
    assert_eq!(datagrams(&mut websocket).await, [datagram(4, 2048, 7)]);
    assert_eq!(fixture.count(Counter::DownEmpty), 1);
    assert_eq!(fixture.count(Counter::DownNotWireguard), 1);
    assert_eq!(fixture.count(Counter::DownTooLarge), 2);
    fixture.assert_adds_up();
}

/// The socket is connected: nobody but the gateway reaches the client.
#[tokio::test]
async fn datagrams_of_others_do_not_arrive() {
    let fixture = fixture().await;
    let (mut websocket, client) = fixture.proven().await;
    let stranger = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    stranger.send_to(&data(1), client).await.unwrap();
    fixture.gateway.send_to(&data(2), client).await.unwrap();
    assert_eq!(datagrams(&mut websocket).await, [data(2)]);
}

#[tokio::test]
async fn pings_are_answered() {
    let fixture = fixture().await;
    let mut websocket = fixture.client().await;
    websocket
        .send(Message::text(Control::Ping { n: 7 }.to_text()))
        .await
        .unwrap();
    assert_eq!(control(&mut websocket).await, Control::Pong { n: 7 });
    websocket
        .send(Message::text(Control::Pong { n: 9 }.to_text()))
        .await
        .unwrap();
    websocket.send(Message::Ping(vec![1].into())).await.unwrap();
    assert_eq!(next(&mut websocket).await, Message::Pong(vec![1].into()));
}
