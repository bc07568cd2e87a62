//! The API as a client meets it.

mod certificates;
mod logging_in;
mod organisations;
mod peers;
mod programs;
mod the_door;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{HeaderMap, Method, Request, StatusCode},
    routing::get,
};
use http_body_util::BodyExt;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde_json::{Value, json};
use ssh_key::Certificate;
use tower::ServiceExt;
use wire::PublicKey;

use super::{Config, Control, GatewayInfo, Hosts, guard_hosts, router};
use crate::{Org, Store};

const HOST: &str = "127.0.0.1:8443";
const START: u64 = 1_800_000_000;
const SSH_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti ann@home";

/// A control plane with the organisations `acme` and `rival`, and a clock that tests turn.
struct House {
    control: Arc<Control>,
    clock: Arc<AtomicU64>,
    revoked: Arc<Mutex<Vec<PublicKey>>>,
    acme: Org,
    rival: Org,
}

impl House {
    fn new() -> House {
        let clock = Arc::new(AtomicU64::new(START));
        let store = Arc::new(Store::open_in_memory().unwrap());
        let now = UNIX_EPOCH + Duration::from_secs(START);
        let acme = store.create_org("acme", now).unwrap();
        let rival = store.create_org("rival", now).unwrap();
        store.create_app(acme.id, "web", now).unwrap();
        store.create_app(rival.id, "secret", now).unwrap();
        let key = PublicKey([9; 32]);
        store
            .add_instance(acme.id, "web", "ams", key, true, now)
            .unwrap();
        let revoked = Arc::new(Mutex::new(Vec::new()));
        let config = Config {
            gateway: GatewayInfo {
                name: "gw1".into(),
                public_key: PublicKey([5; 32]),
                endpoint: "127.0.0.1:51820".into(),
            },
            relay_url: format!("wss://{HOST}"),
            hosts: Hosts::new([HOST, "localhost:8443"]),
            origins: vec!["https://embedder.example".into()],
            revoked: {
                let revoked = Arc::clone(&revoked);
                Arc::new(move |key| revoked.lock().unwrap().push(key))
            },
        };
        let reads = Arc::clone(&clock);
        let read = move || UNIX_EPOCH + Duration::from_secs(reads.load(Ordering::Relaxed));
        let control = Control::new(store, config, Arc::new(read)).unwrap();
        House {
            control: Arc::new(control),
            clock,
            revoked,
            acme,
            rival,
        }
    }

    fn pass(&self, seconds: u64) {
        self.clock.fetch_add(seconds, Ordering::Relaxed);
    }

    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.clock.load(Ordering::Relaxed))
    }

    fn token(&self, org: &Org, user: &str) -> String {
        let token = self
            .control
            .store
            .create_login_token(org.id, user, self.now())
            .unwrap();
        token.token.reveal().to_owned()
    }

    async fn session(&self, org: &Org, user: &str) -> String {
        let token = self.token(org, user);
        let answer = self.call(post("/login", &json!({ "token": token }))).await;
        assert_eq!(answer.status, StatusCode::OK);
        answer.body["session"].as_str().unwrap().to_owned()
    }

    async fn call(&self, request: Request<Body>) -> Answer {
        answer(router(Arc::clone(&self.control)), request).await
    }
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    #[track_caller]
    fn refused(&self, status: u16, code: &str) {
        let error = &self.body["error"];
        assert_eq!(
            (self.status.as_u16(), error["code"].as_str()),
            (status, Some(code)),
            "{self:?}"
        );
        for text in ["message", "hint"] {
            assert!(
                error[text].as_str().is_some_and(|text| !text.is_empty()),
                "{self:?}"
            );
        }
    }

    #[track_caller]
    fn ok(self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        self.body
    }
}

async fn answer(router: Router, request: Request<Body>) -> Answer {
    let response = router.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
    }
}

fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(format!("/api/v1{path}"))
        .header("host", HOST)
        .header("content-type", "application/json")
        .body(body)
        .unwrap()
}

fn fetch(path: &str) -> Request<Body> {
    request(Method::GET, path, Body::empty())
}

fn remove(path: &str) -> Request<Body> {
    request(Method::DELETE, path, Body::empty())
}

fn post(path: &str, body: &Value) -> Request<Body> {
    request(Method::POST, path, Body::from(body.to_string()))
}

fn with(mut request: Request<Body>, name: &'static str, value: &str) -> Request<Body> {
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

fn by(session: &str, request: Request<Body>) -> Request<Body> {
    with(request, "authorization", &format!("Bearer {session}"))
}

fn key(n: u8) -> String {
    PublicKey([n; 32]).to_string()
}

#[tokio::test]
async fn the_control_plane_is_the_directory_of_names() {
    use names::Directory;
    let house = House::new();
    let session = house.session(&house.acme, "ann").await;
    let ask = json!({ "public_key": key(1), "name": "laptop" });
    house
        .call(by(&session, post("/orgs/acme/peers", &ask)))
        .await
        .ok();
    let view = || house.control.view(house.acme.network).unwrap();
    assert_eq!(view().peers[0].name, "laptop");
    assert_eq!(view().apps[0].instances[0].region, "ams");
    house.pass(600);
    assert!(view().peers.is_empty());
    assert!(!format!("{:?}", house.control).contains("seed"));
}
