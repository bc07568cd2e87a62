//! The SSH CAs of an organisation: which there are, and their rotation.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Control,
    body::{Body, Session, Within},
    handlers::Answer,
};
use crate::{AuthorityKind, AuthorityRecord, store::unix};

pub(super) async fn list(
    State(control): State<Arc<Control>>,
    session: Session,
    Within(org): Within<String>,
) -> Answer {
    let org = control.org(&session, org).await?;
    let now = control.now();
    let all = control
        .run(move |store| store.authorities(org.id, now))
        .await?;
    Ok(answer(&all))
}

/// Which CAs are meant; both kinds, unless one is named.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kinds {
    only: Option<Kind>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    User,
    Host,
}

impl Kinds {
    fn meant(&self) -> Vec<AuthorityKind> {
        match self.only {
            None => AuthorityKind::ALL.to_vec(),
            Some(Kind::User) => vec![AuthorityKind::User],
            Some(Kind::Host) => vec![AuthorityKind::Host],
        }
    }
}

pub(super) async fn rotate(
    State(control): State<Arc<Control>>,
    session: Session,
    Within(org): Within<String>,
    Body(kinds): Body<Kinds>,
) -> Answer {
    let org = control.org(&session, org).await?;
    let now = control.now();
    let (id, meant) = (org.id, kinds.meant());
    let all = control
        .run(move |store| store.rotate_authorities(id, &meant, now))
        .await?;
    log(&org.name, &session, &all, "made SSH CAs");
    Ok(answer(&all))
}

pub(super) async fn retire(
    State(control): State<Arc<Control>>,
    session: Session,
    Within(org): Within<String>,
    Body(kinds): Body<Kinds>,
) -> Answer {
    let org = control.org(&session, org).await?;
    let now = control.now();
    let (id, meant) = (org.id, kinds.meant());
    let all = control
        .run(move |store| store.retire_authorities(id, &meant, now))
        .await?;
    log(&org.name, &session, &all, "retired SSH CAs");
    Ok(answer(&all))
}

fn log(org: &str, session: &Session, all: &[AuthorityRecord], what: &str) {
    let held: Vec<_> = all.iter().map(|ca| ca.fingerprint.as_str()).collect();
    tracing::warn!(org, user = session.identity.user(), ?held, "{what}");
}

fn answer(all: &[AuthorityRecord]) -> Json<Value> {
    let all = all.iter().map(|ca| {
        json!({
            "kind": ca.kind.name(),
            "public_key": ca.public_key,
            "fingerprint": ca.fingerprint,
            "created": unix(ca.created),
            "signs": ca.signs,
            "signs_from": unix(ca.signs_from),
            "retires": ca.retires.map(unix),
        })
    });
    Json(json!({ "authorities": all.collect::<Vec<_>>() }))
}
