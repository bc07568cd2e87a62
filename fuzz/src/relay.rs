//! Targets over `relay`: the upgrade request, and what a session may send.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use underpass_relay::{
    GatewayTarget, RelayConfig, Rules,
    proof::{GARBAGE_IN_A_ROW, Proof, UNPROVEN_DATAGRAMS, Verdict},
};
use wire::{
    PublicKey,
    wireguard::{Kind, Mac1Key},
};

/// A target: a name, which is that of its corpus too, and what it does with any bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[("upgrade", upgrade), ("proof", proof)];

/// Lines of a request's headers: nothing admits a request but what it must have.
pub fn upgrade(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(64) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else {
            continue;
        };
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.trim_ascii()),
            HeaderValue::from_bytes(value.trim_ascii()),
        ) {
            headers.append(name, value);
        }
    }
    let mut config = RelayConfig::new();
    let target = GatewayTarget {
        endpoint: ([127, 0, 0, 1], 51820).into(),
        public_key: PublicKey([7; 32]),
    };
    config.gateways.insert("gw1".to_owned(), target);
    config.allowed_hosts = vec!["localhost".to_owned()];
    config.allowed_origins = vec!["https://localhost".to_owned()];
    config.token_keys = vec![[1; 32]];
    let rules = Rules::new(&config);
    let lower = |name: &str| {
        let values = headers.get_all(name).iter();
        let values = values.filter_map(|value| value.to_str().ok());
        values.collect::<Vec<_>>().join(",").to_ascii_lowercase()
    };
    assert!(
        !rules.admits("gw2", &headers),
        "a gateway that there is not"
    );
    if rules.admits("gw1", &headers) {
        assert!(lower("host").starts_with("localhost"));
        assert!(lower("upgrade").contains("websocket"));
        assert!(lower("connection").contains("upgrade"));
        assert_eq!(lower("sec-websocket-version"), "13");
        assert!(lower("sec-websocket-protocol").contains("underpass.v1"));
        assert!(["", "https://localhost"].contains(&lower("origin").as_str()));
        // Nobody here can sign.
        assert!(!headers.contains_key("authorization"));
        let offered = headers.get_all("sec-websocket-protocol").iter();
        let mut offered = offered.filter_map(|value| value.to_str().ok());
        assert!(!offered.any(|value| value.split(',').any(|it| it.trim().starts_with("bearer."))));
    }
}

/// The first byte says whether there is a token; then datagrams: who, when, and so many bytes.
/// Without a valid mac1 and without an answer of the gateway nothing is proven, and what passes is
/// bounded.
pub fn proof(data: &[u8]) {
    let Some((token, mut rest)) = data.split_first() else {
        return;
    };
    let token = token & 1 == 1;
    let deadline = Duration::from_secs(30);
    let mut proof = Proof::new(Mac1Key::new(&PublicKey([7; 32])), token, deadline);
    let (mut now, mut passed, mut garbage, mut answered) = (Duration::ZERO, 0, 0, false);
    while let Some(([who, wait, length, kind], more)) = rest.split_first_chunk::<4>() {
        now += Duration::from_millis(u64::from(*wait));
        let length = usize::from(*length);
        let mut datagram = vec![0; length.max(4)];
        let body = &more[..more.len().min(datagram.len() - 4)];
        datagram[0] = *kind;
        datagram[4..4 + body.len()].copy_from_slice(body);
        rest = &more[body.len()..];
        let was_proven = proof.is_proven();
        if who & 1 == 1 {
            let verdict = proof.handle_gateway(&datagram);
            let kind = Kind::of(&datagram);
            assert_eq!(matches!(verdict, Verdict::Pass(_)), kind.is_some());
            answered |= matches!(kind, Some(Kind::Response | Kind::Data));
            assert_eq!(proof.is_proven(), was_proven || answered);
            continue;
        }
        let verdict = proof.handle_client(now, &datagram);
        match Kind::of(&datagram) {
            None => {
                garbage += 1;
                let ends = matches!(verdict, Verdict::Close(..));
                assert_eq!(ends, garbage >= GARBAGE_IN_A_ROW);
            }
            Some(_) => garbage = 0,
        }
        if matches!(verdict, Verdict::Pass(_)) && !proof.is_proven() {
            passed += 1;
            assert!(token && passed <= UNPROVEN_DATAGRAMS);
        }
        if proof.is_proven() && !was_proven {
            assert_eq!(Kind::of(&datagram), Some(Kind::Initiation));
        }
        assert_eq!(proof.poll_timeout().is_none(), proof.is_proven());
    }
}
