//! Leases: what they say, who may have them.

use super::*;

#[tokio::test]
async fn a_lease_says_all_that_a_tunnel_needs() {
    let house = House::new();
    let session = house.session(&house.acme, "ann").await;
    let ask = |body: &Value| by(&session, post("/orgs/acme/peers", body));
    let lease = house.call(ask(&json!({ "public_key": key(1) }))).await.ok();

    let network = house.acme.network;
    let address: sixpn::Interface = lease["address"].as_str().unwrap().parse().unwrap();
    assert!(network.prefix().contains(address.address()) && address.prefix().len() == 120);
    assert_eq!(lease["network"], network.prefix().to_string());
    assert_eq!(lease["dns"], network.dns().to_string());
    assert_eq!(
        lease["gateway"],
        json!({ "name": "gw1", "public_key": key(5), "endpoint": "127.0.0.1:51820" })
    );
    assert_eq!(lease["relay"]["url"], "wss://127.0.0.1:8443/v1/tunnel/gw1");
    assert_eq!(lease["expires"], START + 600);
    let host_cas = house.control.store.host_cas(house.acme.id).unwrap();
    assert_eq!(lease["host_cas"], json!(host_cas));

    // The relay token is signed, for this gateway, and ends with the lease.
    let token = lease["relay"]["token"].as_str().unwrap();
    let (part, signature) = wire::token::split(token).unwrap();
    let relay_key = house.control.signer().public_key();
    UnparsedPublicKey::new(&ED25519, relay_key)
        .verify(&wire::token::signed_bytes(part), &signature)
        .unwrap();
    let claims = wire::token::Claims::decode(part).unwrap();
    assert_eq!(
        (claims.gateway.as_str(), claims.expires_unix),
        ("gw1", START + 600)
    );
    assert_eq!(
        claims.id,
        format!("acme/{}", lease["name"].as_str().unwrap())
    );

    house.pass(300);
    let renewed = house.call(ask(&json!({ "public_key": key(1) }))).await.ok();
    assert_eq!(renewed["expires"], START + 900);
    assert_eq!(
        (&renewed["name"], &renewed["address"]),
        (&lease["name"], &lease["address"])
    );
    let listed = house
        .call(by(&session, fetch("/orgs/acme/peers")))
        .await
        .ok();
    assert_eq!(
        listed,
        json!({ "peers": [{
            "name": lease["name"], "public_key": key(1), "address": lease["address"],
            "expires": START + 900,
        }]})
    );
}

#[tokio::test]
async fn the_relay_is_named_by_the_host_that_was_asked() {
    let house = House::new();
    let session = house.session(&house.acme, "ann").await;
    let ask = by(
        &session,
        post("/orgs/acme/peers", &json!({ "public_key": key(1) })),
    );
    let lease = house.call(with(ask, "host", "localhost:8443")).await.ok();
    assert_eq!(lease["relay"]["url"], "wss://localhost:8443/v1/tunnel/gw1");
}

#[tokio::test]
async fn permanent_peers_stay_until_they_are_removed() {
    let house = House::new();
    let session = house.session(&house.acme, "ann").await;
    let body = json!({ "public_key": key(1), "name": "laptop", "permanent": true });
    let ask = || by(&session, post("/orgs/acme/peers", &body));
    let lease = house.call(ask()).await.ok();
    assert_eq!(
        (&lease["name"], &lease["expires"]),
        (&json!("laptop"), &Value::Null)
    );
    house.pass(11 * 3600);
    let list = house
        .call(by(&session, fetch("/orgs/acme/peers")))
        .await
        .ok();
    assert_eq!(list["peers"][0]["name"], "laptop");

    let gone = || by(&session, remove("/orgs/acme/peers/laptop"));
    assert_eq!(house.call(gone()).await.status, StatusCode::NO_CONTENT);
    assert_eq!(*house.revoked.lock().unwrap(), [PublicKey([1; 32])]);
    house.call(gone()).await.refused(404, "peer_unknown");
}

#[tokio::test]
async fn bad_keys_and_stolen_ones() {
    let house = House::new();
    let session = house.session(&house.acme, "ann").await;
    let rival = house.session(&house.rival, "eve").await;
    let ask = |body: &Value| by(&session, post("/orgs/acme/peers", body));
    house
        .call(ask(&json!({ "public_key": key(1), "name": "laptop" })))
        .await
        .ok();
    for (body, status, code) in [
        (json!({}), 400, "bad_request"),
        (json!({ "public_key": "AAAA" }), 400, "public_key_invalid"),
        (json!({ "public_key": key(0) }), 400, "public_key_invalid"),
        (
            json!({ "public_key": key(2), "name": "Lap.top" }),
            400,
            "name_invalid",
        ),
        (
            json!({ "public_key": key(2), "name": "laptop" }),
            409,
            "name_taken",
        ),
        (json!({ "public_key": key(9) }), 409, "key_taken"),
    ] {
        house.call(ask(&body)).await.refused(status, code);
    }
    let stolen = by(
        &rival,
        post("/orgs/rival/peers", &json!({ "public_key": key(1) })),
    );
    house.call(stolen).await.refused(409, "key_taken");
}
