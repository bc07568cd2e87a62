//! Hosts, origins, headers, bodies that are none.

use super::*;

#[tokio::test]
async fn foreign_hosts_are_refused() {
    let house = House::new();
    for host in [
        "evil.example",
        "127.0.0.1",
        "127.0.0.1:8444",
        "localhost",
        "localhost:8443.",
        "",
        "127.0.0.1:8443@evil",
    ] {
        let answer = house.call(with(fetch("/status"), "host", host)).await;
        answer.refused(421, "host_refused");
        let login = with(post("/login", &json!({ "token": "x" })), "host", host);
        house.call(login).await.refused(421, "host_refused");
    }
    let mut without = fetch("/status");
    without.headers_mut().remove("host");
    house.call(without).await.refused(421, "host_refused");
    let mut twice = fetch("/status");
    twice
        .headers_mut()
        .append("host", "evil.example".parse().unwrap());
    house.call(twice).await.refused(421, "host_refused");
    let mut target = fetch("/status");
    *target.uri_mut() = "http://evil.example/api/v1/status".parse().unwrap();
    house.call(target).await.refused(421, "host_refused");
    for host in [HOST, "localhost:8443", "LocalHost:8443"] {
        house.call(with(fetch("/status"), "host", host)).await.ok();
    }
}

#[tokio::test]
async fn other_routers_can_have_the_same_door() {
    let pages = Router::new().route("/", get(|| async { "page" }));
    let pages = guard_hosts(pages, Hosts::new([HOST]));
    let ask = |host: &str| {
        let request = Request::builder().uri("/").header("host", host);
        answer(pages.clone(), request.body(Body::empty()).unwrap())
    };
    assert_eq!(ask(HOST).await.status, StatusCode::OK);
    ask("evil.example").await.refused(421, "host_refused");
}

#[tokio::test]
async fn only_listed_origins_get_through_a_browser() {
    let house = House::new();
    let session = house.session(&house.acme, "ann").await;
    let from = |origin: &str| with(by(&session, fetch("/orgs")), "origin", origin);
    for own in ["https://127.0.0.1:8443", "https://localhost:8443"] {
        let answer = house.call(from(own)).await;
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
        answer.ok();
    }
    for foreign in [
        "https://evil.example",
        "null",
        "https://embedder.example.evil.example",
        "https://127.0.0.1:9",
        "file://",
    ] {
        let answer = house.call(from(foreign)).await;
        answer.refused(403, "origin_refused");
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
        let preflight = request(Method::OPTIONS, "/login", Body::empty());
        let answer = house.call(with(preflight, "origin", foreign)).await;
        answer.refused(403, "origin_refused");
    }
    let embedder = "https://embedder.example";
    let answer = house.call(from(embedder)).await;
    assert_eq!(answer.headers["access-control-allow-origin"], embedder);
    assert_eq!(answer.headers["vary"], "Origin");
    assert!(
        !answer
            .headers
            .contains_key("access-control-allow-credentials")
    );
    let preflight = with(
        request(Method::OPTIONS, "/orgs", Body::empty()),
        "origin",
        embedder,
    );
    let answer = house.call(preflight).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(
        answer.headers["access-control-allow-headers"],
        "authorization, content-type"
    );
}

#[tokio::test]
async fn every_answer_is_kept_nowhere() {
    let house = House::new();
    let mut foreign = fetch("/status");
    foreign
        .headers_mut()
        .insert("host", "evil.example".parse().unwrap());
    for request in [fetch("/status"), fetch("/orgs"), fetch("/nothing"), foreign] {
        let answer = house.call(request).await;
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert_eq!(answer.headers["referrer-policy"], "no-referrer");
        assert!(answer.headers.contains_key("content-security-policy"));
        assert!(!answer.headers.contains_key("set-cookie"));
    }
}

#[tokio::test]
async fn bodies_and_paths_that_are_none() {
    let house = House::new();
    let status = house.call(fetch("/status")).await.ok();
    assert_eq!(
        status,
        json!({ "name": "underpass", "version": env!("CARGO_PKG_VERSION") })
    );
    house
        .call(fetch("/nothing"))
        .await
        .refused(404, "not_found");
    house
        .call(fetch("/login"))
        .await
        .refused(405, "method_not_allowed");

    let send = |body: String| request(Method::POST, "/login", Body::from(body));
    for body in [
        "",
        "{",
        "[]",
        "null",
        "{}",
        r#"{"token":1}"#,
        r#"{"token":"x","more":1}"#,
    ] {
        house
            .call(send(body.into()))
            .await
            .refused(400, "bad_request");
    }
    let secret = "uplt_secret";
    let answer = house
        .call(send(format!(r#"{{"token":["{secret}"]}}"#)))
        .await;
    answer.refused(400, "bad_request");
    assert!(!answer.body.to_string().contains(secret));
    let fits = format!(r#"{{"token":"{}"}}"#, "x".repeat(16_000));
    house.call(send(fits)).await.refused(401, "token_unknown");
    let large = format!(r#"{{"token":"{}"}}"#, "x".repeat(16 * 1024));
    house.call(send(large)).await.refused(413, "body_too_large");
    let text = with(
        send(r#"{"token":"x"}"#.into()),
        "content-type",
        "text/plain",
    );
    house.call(text).await.refused(415, "not_json");
}
