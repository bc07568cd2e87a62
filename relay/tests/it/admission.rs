//! Who may open a session, and what it may send before it is proven.

use std::time::Duration;

use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Error;
use underpass_relay::Counter;
use wire::{CloseCode, Control, Limit, PublicKey};

use crate::support::*;

/// The status and the error code that a program is refused with.
async fn refused(fixture: &Fixture, dial: Dial<'_>) -> (u16, String) {
    let Err(Error::Http(response)) = fixture.dial(dial).await else {
        panic!("not refused")
    };
    let body: serde_json::Value =
        serde_json::from_slice(response.body().as_ref().unwrap()).unwrap();
    let error = &body["error"];
    assert!(error["hint"].as_str().unwrap().ends_with('.'));
    assert!(error["message"].as_str().unwrap().ends_with('.'));
    (
        response.status().as_u16(),
        error["code"].as_str().unwrap().to_owned(),
    )
}

/// A page sees no HTTP status: it is upgraded, told and closed.
async fn told(fixture: &Fixture, dial: Dial<'_>, code: CloseCode) {
    let mut websocket = fixture.dial(dial).await.unwrap();
    assert_eq!(closed(&mut websocket, code).await, []);
    assert_eq!(fixture.counters.get_refused(code), 1);
}

#[tokio::test]
async fn programs_and_pages_learn_why() {
    let expired = token_of(&signer(1), "gw1", -1);
    let foreign = token_of(&signer(2), "gw1", 3600);
    let other = token_of(&signer(1), "gw2", 3600);
    let cases = [
        (expired.as_str(), 401, CloseCode::TokenExpired),
        (foreign.as_str(), 401, CloseCode::TokenInvalid),
        ("no token at all", 401, CloseCode::TokenInvalid),
        ("", 401, CloseCode::TokenInvalid),
        (other.as_str(), 403, CloseCode::TokenWrongGateway),
    ];
    for (token, status, code) in cases {
        let fixture = fixture().await;
        let program = Dial {
            token: Some(token),
            ..Dial::default()
        };
        assert_eq!(
            refused(&fixture, program).await,
            (status, code.reason().to_owned())
        );
        assert_eq!(fixture.counters.get_refused(code), 1);
        let fixture = crate::support::fixture().await;
        let page = Dial {
            page_token: Some(token),
            origin: Some(ORIGIN),
            ..Dial::default()
        };
        told(&fixture, page, code).await;
        assert_eq!(fixture.count(Counter::SessionsOpened), 0);
    }
}

#[tokio::test]
async fn an_unknown_gateway() {
    let fixture = fixture().await;
    let token = good_token();
    let program = Dial {
        gateway: "nowhere",
        token: Some(&token),
        ..Dial::default()
    };
    assert_eq!(
        refused(&fixture, program).await,
        (404, "gateway_unknown".to_owned())
    );
    let page = Dial {
        gateway: "nowhere",
        origin: Some(ORIGIN),
        ..Dial::default()
    };
    let mut websocket = fixture.dial(page).await.unwrap();
    closed(&mut websocket, CloseCode::GatewayUnknown).await;
}

#[tokio::test]
async fn origins() {
    let fixture = fixture().await;
    let token = good_token();
    let page = |origin| Dial {
        page_token: Some(&token),
        origin: Some(origin),
        ..Dial::default()
    };
    fixture.open(page(ORIGIN)).await;
    for origin in ["https://evil.example", "null", "http://console.example", ""] {
        let mut websocket = fixture.dial(page(origin)).await.unwrap();
        closed(&mut websocket, CloseCode::OriginRefused).await;
    }
    let two = upgrade_request(
        "localhost",
        "gw1",
        &[
            "origin: https://console.example",
            "origin: https://evil.example",
        ],
    );
    let answer = fixture.exchange(&two).await;
    assert!(answer.contains("origin_refused"), "{answer}");
    assert_eq!(fixture.count(Counter::SessionsOpened), 1);
}

#[tokio::test]
async fn foreign_hosts_and_other_requests() {
    let fixture = fixture().await;
    let check = async |request: &str, status: &str, code: &str| {
        let answer = fixture
            .exchange(&request.replace("keep-alive", "close"))
            .await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(answer.contains(code), "{answer}");
    };
    let good = upgrade_request("localhost", "gw1", &[]);
    check(
        &upgrade_request("evil.example", "gw1", &[]),
        "421",
        "host_refused",
    )
    .await;
    check(
        &upgrade_request("evil.example", "gw1", &["host: localhost"]),
        "421",
        "host_refused",
    )
    .await;
    check(
        &good.replace("host: localhost\r\n", ""),
        "421",
        "host_refused",
    )
    .await;
    let plain = "GET /v1/tunnel/gw1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    check(plain, "426", "upgrade_required").await;
    check(
        &good
            .replace("version: 13", "version: 8")
            .replace(", Upgrade", ", Upgrade, close"),
        "426",
        "version_unsupported",
    )
    .await;
    let other = good
        .replace("underpass.v1", "underpass.v2")
        .replace(", Upgrade", ", Upgrade, close");
    check(&other, "400", "subprotocol_missing").await;
    check("POST /v1/tunnel/gw1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", "405", "").await;
    assert_eq!(fixture.count(Counter::HostRefused), 3);
    assert_eq!(fixture.count(Counter::SessionsOpened), 0);
}

#[tokio::test]
async fn without_a_token_the_initiation_alone_passes() {
    let fixture = fixture().await;
    let mut websocket = fixture.open(Dial::default()).await;
    let elsewhere = initiation(PublicKey([9; 32]));
    send(
        &mut websocket,
        &[
            &data(1),
            &elsewhere,
            &datagram(2, 92, 0),
            &datagram(3, 64, 0),
        ],
    )
    .await;
    assert_eq!(
        control(&mut websocket).await,
        Control::limited(Limit::Unproven)
    );
    fixture.nothing_at_gateway().await;
    assert_eq!(fixture.count(Counter::UpUnproven), 4);

    let good = initiation(fixture.gateway_key());
    send(&mut websocket, &[&data(2), &good, &data(3)]).await;
    let (first, client) = fixture.at_gateway().await;
    assert_eq!(first, good);
    assert_eq!(fixture.at_gateway().await.0, data(3));
    fixture.gateway.send_to(&data(4), client).await.unwrap();
    assert_eq!(datagrams(&mut websocket).await, [data(4)]);
    fixture.assert_adds_up();
}

#[tokio::test]
async fn unproven_sessions_end() {
    let fixture =
        fixture_with(|config, _| config.limits.unproven = Duration::from_millis(300)).await;
    let token = good_token();
    for token in [None, Some(token.as_str())] {
        let mut websocket = fixture
            .open(Dial {
                token,
                ..Dial::default()
            })
            .await;
        // Well formed, but with the mac1 of another gateway.
        send(&mut websocket, &[&initiation(PublicKey([9; 32]))]).await;
        closed(&mut websocket, CloseCode::Unproven).await;
    }
    // With a token it passed, and proved nothing.
    assert_eq!(fixture.count(Counter::UpSent), 1);
    assert_eq!(fixture.count(Counter::SessionsProven), 0);

    let (mut proven, _) = {
        while fixture.gateway.try_recv(&mut [0; 2048]).is_ok() {}
        fixture.proven().await
    };
    let end = timeout(Duration::from_millis(600), next(&mut proven)).await;
    assert!(end.is_err(), "{end:?}");
}

#[tokio::test]
async fn an_answer_of_the_gateway_proves() {
    let fixture = fixture().await;
    let mut websocket = fixture.client().await;
    // What a session that moved here begins with: data of a session that stands.
    for mark in 0..100 {
        send(&mut websocket, &[&data(mark)]).await;
    }
    let mut client = None;
    for mark in 0..64 {
        let (received, from) = fixture.at_gateway().await;
        assert_eq!(received, data(mark));
        client = Some(from);
    }
    fixture.nothing_at_gateway().await;
    assert_eq!(fixture.count(Counter::UpUnproven), 36);
    assert_eq!(
        control(&mut websocket).await,
        Control::limited(Limit::Unproven)
    );
    fixture
        .gateway
        .send_to(&data(200), client.unwrap())
        .await
        .unwrap();
    assert_eq!(datagrams(&mut websocket).await, [data(200)]);
    send(&mut websocket, &[&data(201)]).await;
    assert_eq!(fixture.at_gateway().await.0, data(201));
    fixture.assert_adds_up();
}

#[tokio::test]
async fn initiations_over_the_rate_are_dropped() {
    let fixture = fixture().await;
    let mut websocket = fixture.client().await;
    let good = initiation(fixture.gateway_key());
    send(&mut websocket, &vec![good.as_slice(); 30]).await;
    assert_eq!(
        control(&mut websocket).await,
        Control::limited(Limit::Initiations)
    );
    fixture
        .until("a burst", |counters| counters.get(Counter::UpSent) == 10)
        .await;
    assert_eq!(fixture.count(Counter::UpInitiations), 20);
    send(&mut websocket, &[&data(1)]).await;
    fixture
        .until("data", |counters| counters.get(Counter::UpSent) == 11)
        .await;
}

#[tokio::test]
async fn sessions_are_limited_per_source() {
    let fixture = fixture_with(|config, _| config.limits.sessions_per_source = 2).await;
    let first = fixture.client().await;
    let _second = fixture.client().await;
    let program = Dial::default();
    assert_eq!(
        refused(&fixture, program).await,
        (429, "too_many_from_source".to_owned())
    );
    let page = Dial {
        origin: Some(ORIGIN),
        ..Dial::default()
    };
    let mut websocket = fixture.dial(page).await.unwrap();
    closed(&mut websocket, CloseCode::TooManyFromSource).await;
    drop(first);
    fixture
        .until("a free slot", |counters| counters.sessions() == 1)
        .await;
    fixture.client().await;
}

#[tokio::test]
async fn sessions_are_limited_per_token() {
    let fixture = fixture_with(|config, _| config.limits.sessions_per_token = 2).await;
    let first = fixture.client().await;
    let _second = fixture.client().await;
    let token = good_token();
    let program = Dial {
        token: Some(&token),
        ..Dial::default()
    };
    assert_eq!(
        refused(&fixture, program).await,
        (429, "too_many_of_token".to_owned())
    );
    let page = Dial {
        page_token: Some(&token),
        origin: Some(ORIGIN),
        ..Dial::default()
    };
    let mut websocket = fixture.dial(page).await.unwrap();
    closed(&mut websocket, CloseCode::TooManyOfToken).await;
    // Another token, and none, are other people's.
    let other = token_for(&signer(1), "gw1", "other", 3600);
    let other = Dial {
        token: Some(&other),
        ..Dial::default()
    };
    let _other = fixture.open(other).await;
    let _nobody = fixture.open(Dial::default()).await;
    drop(first);
    fixture
        .until("a free slot", |counters| counters.sessions() == 3)
        .await;
    fixture.client().await;
}

/// Over its rate a session loses the rest, is told once, and goes on.
#[tokio::test]
async fn rates_are_limited_per_session() {
    let fixture = fixture_with(|config, _| {
        config.limits.datagrams_per_second = Some(40);
        config.limits.bytes_per_second = Some(1 << 20);
    })
    .await;
    let (mut websocket, client) = fixture.proven().await;
    // The initiation was one of the twenty that may come at once.
    let many: Vec<Vec<u8>> = (0..60).map(data).collect();
    send(
        &mut websocket,
        &many.iter().map(Vec::as_slice).collect::<Vec<_>>(),
    )
    .await;
    assert_eq!(control(&mut websocket).await, Control::limited(Limit::Rate));
    fixture
        .until("the rest is lost", |it| it.get(Counter::UpRate) >= 35)
        .await;
    for mark in 0..19 {
        assert_eq!(fixture.at_gateway().await.0, data(mark), "the first pass");
    }
    let dropped = fixture.count(Counter::UpRate);
    // The way down has a rate of its own.
    for mark in 0..60 {
        fixture.gateway.try_send_to(&data(mark), client).unwrap();
    }
    let mut got = Vec::new();
    while got.len() < 20 {
        got.extend(datagrams(&mut websocket).await);
    }
    assert_eq!(got[..20], (0..20).map(data).collect::<Vec<_>>());
    fixture
        .until("lost on the way down", |it| it.get(Counter::DownRate) >= 35)
        .await;
    // Other sessions have theirs, and this one has more in a while.
    let (mut other, _) = fixture.proven().await;
    send(&mut other, &[&data(1)]).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    send(&mut websocket, &[&data(99)]).await;
    fixture
        .until("both arrive", |it| it.get(Counter::UpSent) >= 23)
        .await;
    assert_eq!(fixture.count(Counter::UpRate), dropped, "not one more");
    fixture.assert_adds_up();
}
