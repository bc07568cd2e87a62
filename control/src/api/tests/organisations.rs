//! What a member sees, and what nobody else does.

use super::*;

#[tokio::test]
async fn apps_are_listed() {
    let house = House::new();
    let session = house.session(&house.acme, "ann").await;
    let body = house
        .call(by(&session, fetch("/orgs/acme/apps")))
        .await
        .ok();
    let instance = &house.control.store.apps(house.acme.id).unwrap()[0].instances[0];
    let address = instance.address.address().to_string();
    assert_eq!(
        body,
        json!({ "apps": [{ "name": "web", "instances": [
            { "id": instance.id, "region": "ams", "address": address, "started": true }
        ]}]})
    );
}

#[tokio::test]
async fn anothers_organisation_does_not_exist() {
    let house = House::new();
    let session = house.session(&house.acme, "ann").await;
    house.token(&house.rival, "eve");
    let lease = json!({ "public_key": key(1) });
    let certificate = json!({ "public_key": SSH_KEY });
    let mut bodies = Vec::new();
    for org in ["rival", "nobody", "ACME", "%00", "a%2Fb"] {
        for request in [
            fetch(&format!("/orgs/{org}/apps")),
            fetch(&format!("/orgs/{org}/peers")),
            post(&format!("/orgs/{org}/peers"), &lease),
            remove(&format!("/orgs/{org}/peers/laptop")),
            post(&format!("/orgs/{org}/ssh/certificates"), &certificate),
            fetch(&format!("/orgs/{org}/ssh/authorities")),
            post(&format!("/orgs/{org}/ssh/authorities/rotate"), &json!({})),
            post(&format!("/orgs/{org}/ssh/authorities/retire"), &json!({})),
        ] {
            let answer = house.call(by(&session, request)).await;
            answer.refused(404, "org_unknown");
            bodies.push(answer.body);
        }
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "answers differ: {bodies:?}");
    let not_text = by(&session, fetch("/orgs/%ff/apps"));
    house.call(not_text).await.refused(400, "bad_request");
}
