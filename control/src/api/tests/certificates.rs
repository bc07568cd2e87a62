//! What is signed for whom, over HTTP.

use super::*;

async fn lease(house: &House, session: &str) -> String {
    let ask = by(
        session,
        post("/orgs/acme/peers", &json!({ "public_key": key(1) })),
    );
    house.call(ask).await.ok()["address"]
        .as_str()
        .unwrap()
        .to_owned()
}

async fn signed(house: &House, session: &str, body: &Value) -> Certificate {
    let ask = by(session, post("/orgs/acme/ssh/certificates", body));
    let answer = house.call(ask).await.ok();
    let line = answer["certificate"].as_str().unwrap();
    let certificate = Certificate::from_openssh(line).unwrap();
    assert_eq!(answer["expires"], certificate.valid_before());
    let host_cas = house.control.store.host_cas(house.acme.id).unwrap();
    assert_eq!(answer["host_cas"], json!(host_cas));
    certificate
}

#[tokio::test]
async fn for_a_console_and_for_stock_openssh() {
    let house = House::new();
    let session = house.session(&house.acme, "ann").await;
    let peer = lease(&house, &session).await;
    let bare = peer.trim_end_matches("/120");
    for peer in [bare, &peer] {
        let body = json!({ "public_key": SSH_KEY, "peer": peer });
        let console = signed(&house, &session, &body).await;
        assert_eq!(console.valid_before(), START + 3600);
        assert_eq!(console.valid_after(), START - 60);
        let source = console.critical_options().get("source-address");
        assert_eq!(source, Some(&format!("{bare}/128")));
        assert_eq!(console.key_id(), "org=acme;user=ann");
        assert_eq!(console.valid_principals(), ["root", "fly"]);
        assert_eq!(
            console.extensions().keys().collect::<Vec<_>>(),
            ["permit-pty"]
        );
    }
    let body = json!({
        "public_key": SSH_KEY, "principals": ["deploy"], "hours": 72,
        "port_forwarding": true, "agent_forwarding": true
    });
    let free = signed(&house, &session, &body).await;
    assert_eq!(free.valid_before(), START + 72 * 3600);
    assert_eq!(free.valid_principals(), ["deploy"]);
    assert!(free.critical_options().is_empty());
    assert_eq!(free.extensions().len(), 3);
    let agent = json!({ "public_key": SSH_KEY, "agent_forwarding": true });
    let agent = signed(&house, &session, &agent).await;
    assert_eq!(
        agent.extensions().keys().collect::<Vec<_>>(),
        ["permit-agent-forwarding", "permit-pty"]
    );
    let plain = signed(&house, &session, &json!({ "public_key": SSH_KEY })).await;
    assert_eq!(plain.valid_before(), START + 24 * 3600);
}

#[tokio::test]
async fn what_is_refused() {
    let house = House::new();
    let session = house.session(&house.acme, "ann").await;
    let peer = lease(&house, &session).await;
    let refused = async |body: &Value, status, code| {
        let ask = by(&session, post("/orgs/acme/ssh/certificates", body));
        house.call(ask).await.refused(status, code);
    };
    for hours in [-1, 0, 73, i64::MAX] {
        let body = json!({ "public_key": SSH_KEY, "hours": hours });
        refused(&body, 400, "hours_out_of_range").await;
    }
    let long = json!({ "public_key": SSH_KEY, "hours": 2, "peer": peer });
    refused(&long, 400, "hours_out_of_range").await;
    for principals in [json!([]), json!(["ro,ot"]), json!(["root", ""])] {
        let body = json!({ "public_key": SSH_KEY, "principals": principals });
        refused(&body, 400, "principals_invalid").await;
    }
    for (line, code) in [
        ("ssh-rsa AAAA", "key_refused"),
        ("nonsense", "key_unreadable"),
    ] {
        refused(&json!({ "public_key": line }), 400, code).await;
    }
    let dns = house.acme.network.dns().to_string();
    let wider = peer.replace("/120", "/48");
    for unknown in ["fdaa:0:1::2", "10.0.0.1", "laptop", "", &dns, &wider] {
        let body = json!({ "public_key": SSH_KEY, "peer": unknown });
        refused(&body, 404, "peer_unknown").await;
    }
    let misspelt = json!({ "public_key": SSH_KEY, "hour": 1 });
    refused(&misspelt, 400, "bad_request").await;
    house.pass(600);
    let body = json!({ "public_key": SSH_KEY, "peer": peer });
    refused(&body, 404, "peer_unknown").await;
}

#[tokio::test]
async fn a_peer_of_another_organisation_is_unknown() {
    let house = House::new();
    let acme = house.session(&house.acme, "ann").await;
    let rival = house.session(&house.rival, "eve").await;
    let body = json!({ "public_key": SSH_KEY, "peer": lease(&house, &acme).await });
    let ask = by(&rival, post("/orgs/rival/ssh/certificates", &body));
    house.call(ask).await.refused(404, "peer_unknown");
}

#[tokio::test]
async fn cas_are_rotated_with_an_overlap() {
    let house = House::new();
    let session = house.session(&house.acme, "ann").await;
    let path = |end: &str| format!("/orgs/acme/ssh/authorities{end}");
    let ask =
        async |end: &str, body: Value| house.call(by(&session, post(&path(end), &body))).await;
    let list = async || house.call(by(&session, fetch(&path("")))).await.ok();
    let before = list().await;
    let shape = |body: &Value| {
        let all = body["authorities"].as_array().unwrap().clone();
        let short = |ca: &Value| {
            (
                ca["kind"].clone(),
                ca["signs"].clone(),
                ca["retires"].clone(),
            )
        };
        all.iter().map(short).collect::<Vec<_>>()
    };
    assert_eq!(
        shape(&before),
        [
            (json!("user"), json!(true), Value::Null),
            (json!("host"), json!(true), Value::Null)
        ]
    );
    assert!(before.to_string().contains("SHA256:"));
    ask("/retire", json!({})).await.refused(409, "no_rotation");

    let body = ask("/rotate", json!({})).await.ok();
    assert_eq!(body, list().await);
    let (users, hosts) = (START + 72 * 3600, START + (30 * 24 + 72) * 3600);
    assert_eq!(
        shape(&body),
        [
            (json!("user"), json!(true), Value::Null),
            (json!("user"), json!(false), json!(users)),
            (json!("host"), json!(false), Value::Null),
            (json!("host"), json!(true), json!(hosts))
        ]
    );
    let again = ask("/rotate", json!({ "only": "user" })).await;
    again.refused(409, "rotation_under_way");
    let misspelt = ask("/rotate", json!({ "onyl": "user" })).await;
    misspelt.refused(400, "bad_request");
    let body = ask("/retire", json!({ "only": "user" })).await.ok();
    assert_eq!(shape(&body).len(), 3);
    let certificate = json!({ "public_key": SSH_KEY });
    let signed = signed(&house, &session, &certificate).await;
    let ca = body["authorities"][0]["fingerprint"].as_str().unwrap();
    assert_eq!(
        signed
            .signature_key()
            .fingerprint(ssh_key::HashAlg::Sha256)
            .to_string(),
        ca
    );
}
