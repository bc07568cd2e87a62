//! A port that waits for its certificate, and that an ACME server asks for a proof.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use underpass_relay::{
    Counter,
    tls::{Certificate, Identity},
};

use crate::support::*;

const ACME: &[u8] = b"acme-tls/1";
const HTTP: &[u8] = b"http/1.1";

async fn fixture_of_identity(identity: &Arc<Identity>) -> Fixture {
    let tls = identity.server_config().unwrap();
    fixture_over(tls, axum::Router::new(), |_, _| {}).await
}

fn certificate() -> Certificate {
    let data = tempfile::tempdir().unwrap();
    Certificate::load_or_make(data.path(), &[], now()).unwrap()
}

#[tokio::test]
async fn without_a_certificate_handshakes_are_refused_and_counted() {
    let identity = Identity::awaited();
    assert!(!identity.is_ready());
    let fixture = fixture_of_identity(&identity).await;
    for protocols in [&[][..], &[HTTP], &[ACME], &[ACME, HTTP]] {
        let refused = fixture.tls_offering("relay.example", protocols).await;
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("AccessDenied"), "{error}");
    }
    fixture
        .until("four refusals", |it| it.get(Counter::TlsNoCertificate) == 4)
        .await;
    identity.replace(&certificate()).unwrap();
    assert!(identity.is_ready());
    fixture
        .tls_offering("relay.example", &[HTTP])
        .await
        .unwrap();
    assert_eq!(fixture.count(Counter::TlsFailed), 0);
}

#[tokio::test]
async fn a_challenge_is_answered_and_disturbs_nobody() {
    let identity = Identity::awaited();
    identity.replace(&certificate()).unwrap();
    let fixture = fixture_of_identity(&identity).await;
    let (mut open, from) = fixture.proven_by_anyone().await;

    identity
        .answer_challenge("relay.example", &[0xa5; 32])
        .unwrap();
    let mut challenged = fixture
        .tls_offering("relay.example", &[ACME])
        .await
        .unwrap();
    let (_, tls) = challenged.get_ref();
    assert_eq!(tls.alpn_protocol(), Some(ACME));
    let shown = tls.peer_certificates().unwrap()[0].to_vec();
    // id-pe-acmeIdentifier, critical, and the digest in two octet strings (RFC 8737, section 3).
    let proof = [
        &[6, 8, 0x2b, 6, 1, 5, 5, 7, 1, 31, 1, 1, 0xff, 4, 34, 4, 32][..],
        &[0xa5; 32],
    ]
    .concat();
    assert!(shown.windows(proof.len()).any(|it| it == proof));
    // Nothing is spoken in it.
    let _ = challenged
        .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await;
    let mut said = Vec::new();
    let ended = timeout(SOON, challenged.read_to_end(&mut said)).await;
    assert!(ended.is_ok() && said.is_empty(), "{said:?}");
    fixture
        .until("an answer", |it| it.get(Counter::ChallengeAnswered) == 1)
        .await;

    // Of another name, and once the order is over, there is no proof to show.
    assert!(
        fixture
            .tls_offering("other.example", &[ACME])
            .await
            .is_err()
    );
    identity.forget_challenges();
    assert!(
        fixture
            .tls_offering("relay.example", &[ACME])
            .await
            .is_err()
    );
    fixture
        .until("two refusals", |it| it.get(Counter::TlsNoCertificate) == 2)
        .await;

    send(&mut open, &[&data(1)]).await;
    assert_eq!(fixture.at_gateway().await, (data(1), from));
    assert_eq!(fixture.count(Counter::ChallengeAnswered), 1);
}

/// An ACME server offers its protocol alone.
#[tokio::test]
async fn the_protocol_of_challenges_is_chosen_for_nothing_else() {
    let identity = Identity::awaited();
    let ordinary = certificate();
    identity.replace(&ordinary).unwrap();
    identity
        .answer_challenge("relay.example", &[1; 32])
        .unwrap();
    let fixture = fixture_of_identity(&identity).await;
    let tls = fixture
        .tls_offering("relay.example", &[ACME, HTTP])
        .await
        .unwrap();
    let (_, tls) = tls.get_ref();
    assert_eq!(tls.alpn_protocol(), Some(HTTP));
    assert_eq!(
        tls.peer_certificates().unwrap()[0],
        *ordinary.leaf().unwrap()
    );
    let beside = fixture.tls_offering("relay.example", &[ACME, b"h2"]).await;
    assert!(beside.is_err());

    // A relay whose certificate is in files knows no such protocol.
    let identity = Identity::new(&ordinary).unwrap();
    identity
        .answer_challenge("relay.example", &[1; 32])
        .unwrap();
    let fixture = fixture_of_identity(&identity).await;
    let refused = fixture.tls_offering("relay.example", &[ACME]).await;
    assert!(refused.is_err());
    assert_eq!(fixture.count(Counter::TlsDone), 0);
}
