//! What passes, in both directions.

use std::{process::Command, time::Duration};

use boringtun::{noise::TunnResult, x25519};
use futures_util::SinkExt;
use tokio::time::{sleep, timeout};
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

/// Records that are read one by one, as of a client among many: one acknowledgement serves two.
#[tokio::test]
async fn what_comes_closely_is_acknowledged_two_at_a_time() {
    let fixture = fixture().await;
    let (mut websocket, _) = fixture.proven().await;
    // A kernel that takes a connection for a dialogue since its handshake has learnt better then.
    sleep(KERNEL_WAITS).await;
    let mut round = async |number: u8| {
        send(&mut websocket, &[&data(number)]).await;
        assert_eq!(fixture.at_gateway().await.0, data(number));
    };
    let mut fifty = async || {
        let before = Segments::of(&fixture);
        for number in 0..50 {
            round(number).await;
        }
        Segments::of(&fixture).received - before.received
    };
    // A machine that has more to do may come between two of them.
    let few = timeout(SOON, async { while !(25..40).contains(&fifty().await) {} }).await;
    assert!(few.is_ok(), "{}", fifty().await);
    // And the last, whether it is a second one or not, does not wait as long as the kernel would.
    for more in [20, 21] {
        for number in 0..more {
            round(number).await;
        }
        sleep(KERNEL_WAITS / 4).await;
        // On a thread that stood still, the relay's turn comes after this.
        sleep(Duration::from_millis(1)).await;
        assert_eq!(Segments::of(&fixture).unacknowledged, 0);
    }
}

#[tokio::test]
async fn what_comes_alone_is_acknowledged_at_once() {
    let fixture = fixture().await;
    let (mut websocket, _) = fixture.proven().await;
    for number in 0..10 {
        sleep(KERNEL_WAITS).await;
        send(&mut websocket, &[&data(number)]).await;
        fixture.at_gateway().await;
        assert_eq!(Segments::of(&fixture).unacknowledged, 0, "{number}");
    }
}

/// Longer than Linux waits for a second segment.
const KERNEL_WAITS: Duration = Duration::from_millis(60);

/// The segments of a relay's only connection, as its client counts them.
struct Segments {
    received: u64,
    unacknowledged: u64,
}

impl Segments {
    fn of(fixture: &Fixture) -> Segments {
        let filter = format!("dst {}", fixture.address);
        let ss = Command::new("ss").args(["-tinHO", &filter]).output();
        let said = String::from_utf8(ss.expect("iproute2 has ss").stdout).unwrap();
        let count = |name| {
            let mut words = said.split_whitespace();
            words.find_map(|word| word.strip_prefix(name)?.parse().ok())
        };
        Segments {
            received: count("segs_in:").unwrap_or_else(|| panic!("{said}")),
            unacknowledged: count("unacked:").unwrap_or(0),
        }
    }
}
