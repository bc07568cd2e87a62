//! A program is let in by a person who is signed in.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::digest;

use super::*;

const VERIFIER: &str = "a secret that stays in the program";

fn challenge(verifier: &str) -> String {
    let hash = digest::digest(&digest::SHA256, verifier.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(hash)
}

fn begin() -> Request<Body> {
    let ask = json!({ "host": "laptop", "challenge": challenge(VERIFIER) });
    post("/device", &ask)
}

fn fetch_login(code: &str, verifier: &str) -> Request<Body> {
    post(
        "/device/login",
        &json!({ "code": code, "verifier": verifier }),
    )
}

fn decide(code: &str, allow: bool) -> Request<Body> {
    post("/device/answer", &json!({ "code": code, "allow": allow }))
}

impl House {
    async fn code(&self) -> String {
        let begun = self.call(begin()).await.ok();
        assert_eq!(begun["expires"], self.clock.load(Ordering::Relaxed) + 600);
        begun["code"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_click_lets_a_program_in_once() {
    let house = House::new();
    let ann = house.session(&house.acme, "ann").await;
    let code = house.code().await;
    assert!(code.len() == 9 && code.as_bytes()[4] == b'-', "{code}");
    let waits = house.call(fetch_login(&code, VERIFIER)).await;
    assert_eq!(waits.status, StatusCode::ACCEPTED);
    assert_eq!(waits.body, json!({ "pending": true }));

    let typed = code.to_lowercase().replace('-', " ");
    let seen = house
        .call(by(&ann, post("/device/look", &json!({ "code": typed }))))
        .await
        .ok();
    assert_eq!(
        (&seen["host"], &seen["answered"]),
        (&json!("laptop"), &json!(false))
    );
    let answer = house.call(by(&ann, decide(&code, true))).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{answer:?}");
    house
        .call(by(&ann, decide(&code, false)))
        .await
        .refused(409, "code_answered");

    house.pass(2);
    house
        .call(fetch_login(&code, "another secret"))
        .await
        .refused(404, "code_unknown");
    let login = house.call(fetch_login(&code, VERIFIER)).await.ok();
    assert_eq!(login["user"], "ann");
    let session = login["session"].as_str().unwrap();
    assert_ne!(session, ann);
    house.call(by(session, fetch("/orgs"))).await.ok();
    house
        .call(fetch_login(&code, VERIFIER))
        .await
        .refused(404, "code_unknown");
}

#[tokio::test]
async fn nobody_is_let_in_by_anything_else() {
    let house = House::new();
    let ann = house.session(&house.acme, "ann").await;
    let code = house.code().await;
    // Without a session nobody learns of a code nor answers one.
    for request in [
        post("/device/look", &json!({ "code": code })),
        decide(&code, true),
    ] {
        house.call(request).await.refused(401, "session_missing");
    }
    house
        .call(by(&ann, decide("BCDF-GHJK", true)))
        .await
        .refused(404, "code_unknown");
    house.call(by(&ann, decide(&code, false))).await;
    house
        .call(fetch_login(&code, VERIFIER))
        .await
        .refused(403, "login_denied");
    let late = house.code().await;
    house.call(by(&ann, decide(&late, true))).await;
    house.pass(600);
    house
        .call(fetch_login(&late, VERIFIER))
        .await
        .refused(404, "code_unknown");
    for bad in [
        json!({ "host": "", "challenge": challenge("x") }),
        json!({ "host": "a\u{1b}[31m", "challenge": challenge("x") }),
        json!({ "host": "x".repeat(65), "challenge": challenge("x") }),
        json!({ "host": "laptop", "challenge": "short" }),
        json!({ "host": "laptop" }),
    ] {
        house
            .call(post("/device", &bad))
            .await
            .refused(400, "bad_request");
    }
}

#[tokio::test]
async fn codes_that_wait_guesses_and_haste_are_bounded() {
    let house = House::new();
    let ann = house.session(&house.acme, "ann").await;
    let code = house.code().await;
    house.call(fetch_login(&code, VERIFIER)).await;
    house
        .call(fetch_login(&code, VERIFIER))
        .await
        .refused(429, "slow_down");
    for _ in 1..16 {
        house.code().await;
    }
    house.call(begin()).await.refused(429, "too_many_logins");
    house.pass(600);
    house.code().await;
    let mut refused = 0;
    for _ in 0..40 {
        let guess = house.call(by(&ann, decide("BCDF-GHJK", true))).await;
        refused += usize::from(guess.status == StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!(refused, 20);
}
