//! The console's files, embedded in the binary, and the headers they are served with.

use axum::{
    Router,
    extract::Request,
    http::{HeaderName, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use rust_embed::RustEmbed;

#[derive(RustEmbed)]
#[folder = "../www/dist"]
struct Dist;

/// Serves the page at every path that nothing else serves.
///
/// `embedders` are the origins that may frame it; without any, nobody may.
pub(crate) fn router(embedders: &[String]) -> Router {
    let ancestors = if embedders.is_empty() {
        "'none'".to_owned()
    } else {
        embedders.join(" ")
    };
    Router::new().fallback(move |request: Request| {
        let answer = serve(&request, &ancestors);
        async move { answer }
    })
}

fn serve(request: &Request, ancestors: &str) -> Response {
    let path = request.uri().path().trim_start_matches('/');
    let path = if path.is_empty() { "index.html" } else { path };
    // The files are in the binary; a name that walks is none of theirs all the same.
    let walks = path.split('/').any(|part| matches!(part, "" | "." | "..")) || path.contains('\\');
    let Some(file) = Dist::get(path).filter(|_| !walks) else {
        return missing(path);
    };
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or("");
    // Vite puts a hash of the content into every name below assets/.
    let cache = if path.starts_with("assets/") {
        "public, max-age=31536000, immutable"
    } else {
        "no-cache"
    };
    let headers = [
        (header::CONTENT_TYPE, file.metadata.mimetype().to_owned()),
        (header::CACHE_CONTROL, cache.to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy(host, ancestors)),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        (OPENER_POLICY, "same-origin".to_owned()),
    ];
    (headers, file.data).into_response()
}

/// Whoever opened the console's window gets no handle of it.
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// The page's policy, kept beside the page.
const POLICY: &str = include_str!("../../../www/csp.txt");

/// `host` has passed the guard of allowed hosts. `wss://` is spelled out for browsers whose
/// `'self'` means https only.
fn policy(host: &str, ancestors: &str) -> String {
    let relay = format!("wss://{host}");
    POLICY
        .trim()
        .replace("{relay}", &relay)
        .replace("{frame_ancestors}", ancestors)
}

fn missing(path: &str) -> Response {
    if path == "index.html" {
        let text = "<!doctype html><title>Underpass</title><p>This binary was built without its page.\
                    <p>hint: <code>cargo xtask web</code>, then build it again.";
        return (StatusCode::NOT_FOUND, Html(text)).into_response();
    }
    (
        StatusCode::NOT_FOUND,
        "there is nothing here\nhint: the console is at /\n",
    )
        .into_response()
}
