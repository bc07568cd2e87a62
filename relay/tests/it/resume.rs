//! A client that comes back with its resume token finds its session: the gateway sees no move.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt, StreamExt};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use underpass_relay::Counter;
use wire::{CloseCode, Control};

use crate::support::*;

/// Opens with a resume token; what the hello said of it, and the next one.
async fn come_back(fixture: &Fixture, resume: &str) -> (WebSocket, bool, String) {
    let token = good_token();
    open(
        fixture,
        Dial {
            token: Some(&token),
            resume: Some(resume),
            ..Dial::default()
        },
    )
    .await
}

async fn open(fixture: &Fixture, dial: Dial<'_>) -> (WebSocket, bool, String) {
    let mut websocket = fixture.dial(dial).await.unwrap();
    let Control::Hello {
        resume: Some(next),
        resumed,
        ..
    } = control(&mut websocket).await
    else {
        panic!("no resume token")
    };
    (websocket, resumed, next)
}

/// A proven session, its address as the gateway sees it, and its resume token.
async fn proven(fixture: &Fixture) -> (WebSocket, SocketAddr, String) {
    let (mut websocket, resumed, resume) = come_back(fixture, "").await;
    assert!(!resumed);
    send(&mut websocket, &[&initiation(fixture.gateway_key())]).await;
    let (_, from) = fixture.at_gateway().await;
    (websocket, from, resume)
}

async fn parked(fixture: &Fixture, sessions: u64) {
    fixture
        .until("parked", |it| it.get(Counter::SessionsParked) == sessions)
        .await;
}

#[tokio::test]
async fn a_lost_session_goes_on() {
    let fixture = fixture().await;
    let (websocket, from, mut resume) = proven(&fixture).await;
    assert!(resume.len() >= 43, "256 bits: {resume}");
    let mut websocket = Some(websocket);
    for round in 1..=3u8 {
        // Cut, without a goodbye.
        drop(websocket.take());
        parked(&fixture, round.into()).await;
        fixture.gateway.send_to(&data(round), from).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let (mut again, resumed, next) = come_back(&fixture, &resume).await;
        assert!(resumed, "round {round}");
        assert_ne!(next, resume, "rotated");
        // What came while it was away, from a socket that never moved.
        assert_eq!(datagrams(&mut again).await, [data(round)]);
        // Proven already: data passes at once, an initiation is not needed.
        send(&mut again, &[&data(100 + round)]).await;
        assert_eq!(fixture.at_gateway().await, (data(100 + round), from));
        fixture.gateway.send_to(&data(200), from).await.unwrap();
        assert_eq!(datagrams(&mut again).await, [data(200)]);
        // A token is used once.
        let (_, resumed, _) = come_back(&fixture, &resume).await;
        assert!(!resumed);
        resume = next;
        websocket = Some(again);
    }
    assert_eq!(fixture.count(Counter::SessionsResumed), 3);
    fixture.assert_adds_up();
}

/// The relay does not know yet that the connection is dead: the newcomer takes over.
#[tokio::test]
async fn a_newcomer_supersedes_the_half_open() {
    let fixture = fixture().await;
    let (mut old, from, resume) = proven(&fixture).await;
    let (mut new, resumed, _) = come_back(&fixture, &resume).await;
    assert!(resumed);
    closed(&mut old, CloseCode::Superseded).await;
    send(&mut new, &[&data(1)]).await;
    assert_eq!(fixture.at_gateway().await, (data(1), from));
    fixture.gateway.send_to(&data(2), from).await.unwrap();
    assert_eq!(datagrams(&mut new).await, [data(2)]);
    fixture
        .until("one session", |counters| counters.sessions() == 1)
        .await;
}

/// A token is of account for the client and the gateway that it was given to alone, and who tries
/// it elsewhere does not use it up.
#[tokio::test]
async fn tokens_of_others_open_nothing() {
    let fixture = fixture().await;
    let (websocket, from, resume) = proven(&fixture).await;
    drop(websocket);
    parked(&fixture, 1).await;
    let other_client = token_for(&signer(1), "gw1", "other", 3600);
    let other_gateway = token_of(&signer(1), "gw2", 3600);
    let longer = format!("{resume}AA");
    let nearly = {
        let last = if resume.ends_with('A') { "E" } else { "A" };
        format!("{}{last}", &resume[..resume.len() - 1])
    };
    for (gateway, token, resume) in [
        ("gw1", Some(other_client.as_str()), resume.as_str()),
        ("gw1", None, &resume),
        ("gw2", Some(&other_gateway), &resume),
        ("gw1", Some(&good_token()), &nearly),
        ("gw1", Some(&good_token()), &longer),
        ("gw1", Some(&good_token()), "AAAA"),
    ] {
        let dial = Dial {
            gateway,
            token,
            resume: Some(resume),
            ..Dial::default()
        };
        let (_, resumed, _) = open(&fixture, dial).await;
        assert!(!resumed, "{gateway}");
    }
    let empty = open(
        &fixture,
        Dial {
            resume: Some(""),
            ..Dial::default()
        },
    )
    .await;
    assert!(!empty.1);
    assert_eq!(fixture.count(Counter::SessionsResumed), 0);
    let (mut again, resumed, _) = come_back(&fixture, &resume).await;
    assert!(resumed);
    send(&mut again, &[&data(7)]).await;
    assert_eq!(fixture.at_gateway().await, (data(7), from));
}

/// A page that returns sends both tokens as subprotocols.
#[tokio::test]
async fn a_page_comes_back() {
    let fixture = fixture().await;
    let token = good_token();
    let page = |resume| Dial {
        page_token: Some(&token),
        origin: Some(ORIGIN),
        resume,
        ..Dial::default()
    };
    let (mut websocket, _, resume) = open(&fixture, page(None)).await;
    send(&mut websocket, &[&initiation(fixture.gateway_key())]).await;
    let (_, from) = fixture.at_gateway().await;
    drop(websocket);
    parked(&fixture, 1).await;
    let (mut again, resumed, _) = open(&fixture, page(Some(&resume))).await;
    assert!(resumed);
    send(&mut again, &[&data(3)]).await;
    assert_eq!(fixture.at_gateway().await, (data(3), from));
}

#[tokio::test]
async fn nobody_waits_for_ever() {
    let fixture = fixture_with(|config, _| {
        config.limits.resume = Duration::from_millis(300);
        config.limits.sessions_per_source = 1;
    })
    .await;
    let (websocket, from, resume) = proven(&fixture).await;
    drop(websocket);
    parked(&fixture, 1).await;
    // It holds its place, and comes back to it, as the one session that its source may have.
    let refused = fixture.dial(Dial::default()).await;
    assert!(refused.is_err(), "no room beside it");
    let (websocket, resumed, resume_again) = come_back(&fixture, &resume).await;
    assert!(resumed);
    drop(websocket);
    parked(&fixture, 2).await;
    for mark in 0..5 {
        fixture.gateway.send_to(&data(mark), from).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    let (_, resumed, _) = come_back(&fixture, &resume_again).await;
    assert!(!resumed, "its time is over");
    assert_eq!(fixture.count(Counter::DownEnded), 5);
    fixture.assert_adds_up();
}

/// Who says goodbye, or was never proven, leaves nothing behind; while a client is away little
/// waits for it, the newest.
#[tokio::test]
async fn what_is_kept_is_bounded() {
    let fixture = fixture().await;
    let (mut websocket, _, resume) = proven(&fixture).await;
    websocket.close(None).await.unwrap();
    while let Some(Ok(_)) = websocket.next().await {}
    assert!(!come_back(&fixture, &resume).await.1);
    let (mut unproven, _, resume) = come_back(&fixture, "").await;
    send(&mut unproven, &[&data(1)]).await;
    fixture.at_gateway().await;
    drop(unproven);
    fixture
        .until("gone", |counters| counters.get(Counter::SessionsLost) >= 1)
        .await;
    assert!(!come_back(&fixture, &resume).await.1);
    assert_eq!(fixture.count(Counter::SessionsParked), 0);

    let (websocket, from, resume) = proven(&fixture).await;
    drop(websocket);
    parked(&fixture, 1).await;
    for mark in 0..200 {
        let datagram = datagram(4, 1400, mark);
        fixture.gateway.send_to(&datagram, from).await.unwrap();
        if mark % 20 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    fixture
        .until("all of them", |it| it.get(Counter::DownDatagrams) == 200)
        .await;
    let (mut again, resumed, _) = come_back(&fixture, &resume).await;
    assert!(resumed);
    let mut got = Vec::new();
    while got.last().is_none_or(|last: &Vec<u8>| last[5] != 199) {
        got.extend(datagrams(&mut again).await);
    }
    assert_eq!(got.len(), 64 * 1024 / 1400);
    assert_eq!(
        got[0][5],
        200 - got.len() as u8,
        "in order, and the oldest went"
    );
    fixture.assert_adds_up();
}

/// At the end of the relay nobody is waited for.
#[tokio::test]
async fn the_end_waits_for_nobody() {
    let fixture = fixture().await;
    let (websocket, ..) = proven(&fixture).await;
    drop(websocket);
    parked(&fixture, 1).await;
    fixture.shutdown.cancel();
    timeout(Duration::from_secs(2), fixture.relay.closed())
        .await
        .expect("at once");
}

/// A client that the relay has given up on (it was silent) may come back, too.
#[tokio::test]
async fn silence_is_no_goodbye() {
    let fixture = fixture_with(|config, _| {
        config.limits.silent = Duration::from_millis(300);
        config.limits.ping_after = Duration::from_millis(200);
    })
    .await;
    let (websocket, from, resume) = proven(&fixture).await;
    parked(&fixture, 1).await;
    let (mut again, resumed, _) = come_back(&fixture, &resume).await;
    assert!(resumed);
    send(&mut again, &[&data(3)]).await;
    assert_eq!(fixture.at_gateway().await, (data(3), from));
    again.send(Message::Ping(vec![].into())).await.unwrap();
    drop(websocket);
}
