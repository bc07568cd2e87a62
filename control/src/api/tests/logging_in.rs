//! Tokens become sessions, once, and sessions end.

use super::*;

#[tokio::test]
async fn a_token_becomes_a_session_once() {
    let house = House::new();
    let token = house.token(&house.acme, "ann");
    let login = || post("/login", &json!({ "token": token }));
    let body = house.call(login()).await.ok();
    assert_eq!(body["user"], "ann");
    assert_eq!(body["orgs"], json!([{ "name": "acme" }]));
    assert_eq!(body["expires"], START + 12 * 3600);
    let session = body["session"].as_str().unwrap();
    house.call(login()).await.refused(401, "token_used");
    let orgs = house.call(by(session, fetch("/orgs"))).await.ok();
    assert_eq!(orgs, json!({ "orgs": [{ "name": "acme" }] }));
}

#[tokio::test]
async fn expired_and_wrong_tokens_say_which_they_are() {
    let house = House::new();
    let token = house.token(&house.acme, "ann");
    house.pass(600);
    let login = |token: &str| post("/login", &json!({ "token": token }));
    house
        .call(login(&token))
        .await
        .refused(401, "token_expired");
    house
        .call(login("uplt_wrong"))
        .await
        .refused(401, "token_unknown");
    house.call(login("")).await.refused(401, "token_unknown");
    let other = House::new().token(&house.acme, "ann");
    let refused = house.call(login(&other)).await;
    refused.refused(401, "token_unknown");
    assert!(
        !refused.body.to_string().contains(&other),
        "the token is repeated"
    );
    assert_eq!(refused.headers["www-authenticate"], "Bearer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_who_redeem_at_once_one_gets_in() {
    let house = Arc::new(House::new());
    let token = house.token(&house.acme, "ann");
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (house, login) = (
                Arc::clone(&house),
                post("/login", &json!({ "token": token })),
            );
            tokio::spawn(async move { house.call(login).await })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        let answer = task.await.unwrap();
        if answer.status == StatusCode::OK {
            won += 1;
        } else {
            answer.refused(401, "token_used");
        }
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn sessions_are_asked_for_and_end() {
    let house = House::new();
    let session = house.session(&house.acme, "ann").await;
    let refused = |request: Request<Body>, code| {
        let house = &house;
        async move { house.call(request).await.refused(401, code) }
    };
    refused(fetch("/orgs"), "session_missing").await;
    refused(
        with(fetch("/orgs"), "authorization", "Basic YTpi"),
        "session_missing",
    )
    .await;
    refused(
        with(fetch("/orgs"), "authorization", &session),
        "session_missing",
    )
    .await;
    refused(
        with(fetch("/orgs"), "cookie", &format!("session={session}")),
        "session_missing",
    )
    .await;
    refused(
        fetch(&format!("/orgs?session={session}")),
        "session_missing",
    )
    .await;
    refused(by("upss_nonsense", fetch("/orgs")), "session_unknown").await;
    for (method, path) in [
        (Method::POST, "/login-tokens"),
        (Method::DELETE, "/session"),
        (Method::GET, "/orgs/acme/apps"),
        (Method::GET, "/orgs/acme/peers"),
        (Method::POST, "/orgs/acme/peers"),
        (Method::DELETE, "/orgs/acme/peers/x"),
        (Method::POST, "/orgs/acme/ssh/certificates"),
    ] {
        refused(request(method, path, Body::from("{}")), "session_missing").await;
    }
    house.pass(12 * 3600);
    refused(by(&session, fetch("/orgs")), "session_expired").await;

    let session = house.session(&house.acme, "ann").await;
    let ended = house.call(by(&session, remove("/session"))).await;
    assert_eq!(ended.status, StatusCode::NO_CONTENT);
    refused(by(&session, fetch("/orgs")), "session_unknown").await;
}

#[tokio::test]
async fn a_local_command_ends_its_own_session_and_no_other() {
    let house = House::new();
    let log_in = async || {
        let token = house
            .control
            .store
            .create_local_login_token("local", house.now())
            .unwrap();
        let login = post("/login", &json!({ "token": token.token.reveal() }));
        let body = house.call(login).await.ok();
        assert_eq!(
            body["orgs"],
            json!([{ "name": "acme" }, { "name": "rival" }])
        );
        body["session"].as_str().unwrap().to_owned()
    };
    let (console, command) = (log_in().await, log_in().await);
    let ended = house.call(by(&command, remove("/session"))).await;
    assert_eq!(ended.status, StatusCode::NO_CONTENT);
    house
        .call(by(&command, remove("/session")))
        .await
        .refused(401, "session_unknown");
    house
        .call(by(&console, fetch("/orgs/rival/apps")))
        .await
        .ok();
}

#[tokio::test]
async fn one_who_is_in_lets_only_themselves_in_again() {
    let house = House::new();
    let session = house.session(&house.acme, "ann").await;
    let body = house
        .call(by(&session, post("/login-tokens", &json!({}))))
        .await
        .ok();
    assert_eq!(body["expires"], START + 600);
    let again = house
        .call(post("/login", &json!({ "token": body["token"] })))
        .await
        .ok();
    assert_eq!(
        (&again["user"], &again["orgs"]),
        (&json!("ann"), &json!([{ "name": "acme" }]))
    );
    let asks_more = post("/login-tokens", &json!({ "user": "root" }));
    house
        .call(by(&session, asks_more))
        .await
        .refused(400, "bad_request");
}

#[tokio::test]
async fn guessing_is_slowed_for_the_one_who_guesses() {
    let house = House::new();
    let from = |address: &str, token: &str| {
        let mut login = post("/login", &json!({ "token": token }));
        let address: SocketAddr = address.parse().unwrap();
        login.extensions_mut().insert(ConnectInfo(address));
        login
    };
    for n in 0..20 {
        let guess = from(&format!("192.0.2.1:{}", 1000 + n), "uplt_guess");
        house.call(guess).await.refused(401, "token_unknown");
    }
    let token = house.token(&house.acme, "ann");
    let slowed = house.call(from("192.0.2.1:9", &token)).await;
    slowed.refused(429, "too_many_attempts");
    assert_eq!(slowed.headers["retry-after"], "3");
    // Another address is not slowed, nor is this one in a while; the token was not spent.
    house
        .call(from("192.0.2.2:9", "uplt_guess"))
        .await
        .refused(401, "token_unknown");
    house.pass(3);
    house.call(from("192.0.2.1:9", &token)).await.ok();
    // Who succeeds may go on.
    for _ in 0..30 {
        let token = house.token(&house.acme, "ann");
        house.call(from("192.0.2.3:9", &token)).await.ok();
    }
}
