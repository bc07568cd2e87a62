//! What a request brings: its body, its session, its source.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    Json,
    extract::{
        ConnectInfo, FromRequest, FromRequestParts, Path, Request, rejection::JsonRejection,
    },
};
use http::{StatusCode, header, request::Parts};
use serde::de::DeserializeOwned;

use super::{Control, refusal::Refusal};
use crate::{Error, Identity, Secret};

/// A JSON body. Fields that are not known are refused: one that is misspelt would be ignored, and
/// what it was to forbid allowed.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let Json(value) = Json::from_request(request, state)
            .await
            .map_err(|rejection| {
                let status = match &rejection {
                    JsonRejection::MissingJsonContentType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    JsonRejection::BytesRejection(bytes)
                        if bytes.status() == StatusCode::PAYLOAD_TOO_LARGE =>
                    {
                        StatusCode::PAYLOAD_TOO_LARGE
                    }
                    _ => StatusCode::BAD_REQUEST,
                };
                // What serde says may repeat a value, and a value may be a token.
                let (code, hint) = match status {
                    StatusCode::PAYLOAD_TOO_LARGE => ("body_too_large", "send at most 16 KiB"),
                    StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                        ("not_json", "send `Content-Type: application/json`")
                    }
                    _ => (
                        "bad_request",
                        "send a JSON object with the fields of this request and no others",
                    ),
                };
                Refusal::new(status, code, "the body of the request cannot be read", hint)
            })?;
        Ok(Body(value))
    }
}

/// Who asks: a session that holds. Every handler that has one has had it checked.
pub(super) struct Session {
    pub(super) identity: Identity,
    pub(super) bearer: Secret,
}

impl FromRequestParts<Arc<Control>> for Session {
    type Rejection = Refusal;

    async fn from_request_parts(
        parts: &mut Parts,
        control: &Arc<Control>,
    ) -> Result<Self, Refusal> {
        let mut values = parts.headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(Error::SessionMissing.into());
        };
        let bearer = value
            .to_str()
            .ok()
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, bearer)| Secret::new(bearer.trim().to_owned()))
            .ok_or(Error::SessionMissing)?;
        let now = control.now();
        let asked = bearer.clone();
        let identity = control
            .run(move |store| store.session(asked.reveal(), now))
            .await?;
        Ok(Session { identity, bearer })
    }
}

/// What the path names.
pub(super) struct Within<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Within<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(names)) => Ok(Within(names)),
            Err(_) => Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "bad_request",
                "the path of the request cannot be read",
                "names are lower case letters, digits and hyphens",
            )),
        }
    }
}

/// Where a request comes from, as far as the listener says: with [`ConnectInfo`].
pub(super) struct Source(pub(super) Option<IpAddr>);

impl<S: Send + Sync> FromRequestParts<S> for Source {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let info = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        Ok(Source(info.map(|ConnectInfo(address)| address.ip())))
    }
}
