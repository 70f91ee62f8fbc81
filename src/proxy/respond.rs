//! Step 9: return, and the answers of our own.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, TRAILER};
use http::{HeaderMap, HeaderValue, Response, Version};
use serde_json::json;

use crate::canonical::headers::{FRAMING, is_hop_by_hop};

use super::body::Reply;
use super::caller::Turn;
use super::clean::{remove_named_by_connection, remove_where};
use super::error::Error;

/// Cleans the head of an upstream's reply. `is_welcome_page` is true if a page of an origin that the configuration
/// names asked: to others no upstream may open its replies.
pub fn clean(headers: &mut HeaderMap, is_welcome_page: bool) {
    remove_named_by_connection(headers);
    remove_where(headers, |name| {
        (is_hop_by_hop(name) && name != TRAILER)
            || name.starts_with("x-countersign-")
            || (!is_welcome_page && name.starts_with("access-control-"))
    });
}

/// Cleans the trailers of an upstream's reply: what is ours to say, or to decide at the head, cannot come behind it.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    clean(trailers, false);
    for name in FRAMING {
        trailers.remove(name);
    }
}

/// Names the request.
pub fn name<B>(response: &mut Response<B>, id: &str) {
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID.clone(), id);
    }
}

/// An answer that a provider gives in the upstream's place.
#[must_use]
pub fn own(text: String, turn: Turn) -> Response<Reply> {
    let mut response = Response::new(Reply::own(Bytes::from(text), turn));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// An answer of our own to what went wrong: the code in a header, the message in JSON.
#[must_use]
pub fn error(error: &Error, route: Option<&str>, id: &str, turn: Turn) -> Response<Reply> {
    let body = json!({
        "error": { "code": error.code.name(), "message": error.message, "route": route, "request_id": id }
    });
    let mut response = Response::new(Reply::own(Bytes::from(format!("{body}\n")), turn));
    *response.status_mut() = error.code.status();
    *response.version_mut() = Version::HTTP_11;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ERROR.clone(), HeaderValue::from_static(error.code.name()));
    response
}

static REQUEST_ID: HeaderName = HeaderName::from_static("x-countersign-request-id");
static ERROR: HeaderName = HeaderName::from_static("x-countersign-error");
