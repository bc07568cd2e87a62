//! `{"error": {"code": ..., "message": ..., "hint": ...}}` with a fitting status.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;

use crate::Error;

/// An answer that says no.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    hint: String,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Refusal {
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Refusal {
        Refusal {
            status,
            code,
            message: message.into(),
            hint: hint.into(),
            header: None,
        }
    }

    pub(super) fn too_many_attempts(wait_seconds: u64) -> Refusal {
        let refusal = Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_attempts",
            "too many attempts to log in came from this address",
            format!("wait {wait_seconds} seconds"),
        );
        Refusal {
            header: Some((header::RETRY_AFTER, HeaderValue::from(wait_seconds))),
            ..refusal
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::TokenUnknown
            | Error::TokenUsed
            | Error::TokenExpired
            | Error::SessionMissing
            | Error::SessionUnknown
            | Error::SessionExpired => StatusCode::UNAUTHORIZED,
            Error::OrgUnknown | Error::AppUnknown | Error::InstanceUnknown | Error::PeerUnknown => {
                StatusCode::NOT_FOUND
            }
            Error::NameTaken(_) | Error::KeyTaken | Error::RotationUnderWay | Error::NoRotation => {
                StatusCode::CONFLICT
            }
            Error::TooManyTokens | Error::TooManyPeers => StatusCode::TOO_MANY_REQUESTS,
            Error::NameInvalid(_)
            | Error::PeerKeyInvalid
            | Error::KeyUnreadable
            | Error::KeyRefused(_)
            | Error::HoursOutOfRange { .. }
            | Error::PrincipalsInvalid => StatusCode::BAD_REQUEST,
            Error::StoreTooNew | Error::Store(_) | Error::Internal(_) => {
                tracing::error!(%error, "the control plane failed");
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Refusal {
            header: (status == StatusCode::UNAUTHORIZED)
                .then(|| (header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            ..Refusal::new(status, error.code(), error.message(), error.hint())
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let error = json!({ "code": self.code, "message": self.message, "hint": self.hint });
        let mut response = (self.status, Json(json!({ "error": error }))).into_response();
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
