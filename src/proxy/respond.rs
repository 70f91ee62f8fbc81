//! Step 9: return, and the answers of our own.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, Entry, HeaderName, LOCATION, RETRY_AFTER, SET_COOKIE, TRAILER};
use http::{HeaderMap, HeaderValue, Response, Version};
use serde_json::json;
use smallvec::SmallVec;
use tracing::debug;

use crate::canonical::headers::{FRAMING, is_hop_by_hop};

use super::activity::Turn;
use super::attempts::Retries;
use super::body::Reply;
use super::clean::{Names, remove_named_by_connection, remove_where};
use super::error::Error;
use super::location::{Fate, View};
use super::{cookie, location};

/// Cleans the head of an upstream's reply. `concealed` are headers that would show the caller a credential.
/// `is_welcome_page` is true if a page of an origin that the configuration names asked: to others no upstream may open its
/// replies.
pub fn clean(headers: &mut HeaderMap, concealed: Option<&Names>, is_welcome_page: bool) {
    remove_named_by_connection(headers);
    remove_where(headers, |name| {
        (is_hop_by_hop(name) && name != TRAILER)
            || name.starts_with("x-countersign-")
            || (!is_welcome_page && name.starts_with("access-control-"))
            || OF_TLS.contains(&name)
            || concealed.is_some_and(|concealed| concealed.contains(name))
    });
}

/// Cleans the trailers of an upstream's reply: what is ours to say, or to decide at the head, cannot come behind it.
pub fn clean_trailers(trailers: &mut HeaderMap, concealed: Option<&Names>) {
    clean(trailers, concealed, false);
    for name in FRAMING.iter().chain(&OF_HEADS) {
        trailers.remove(*name);
    }
}

/// Turns what the head of an upstream's reply says of places into the caller's terms.
pub fn turn_back(headers: &mut HeaderMap, view: &View<'_>) {
    turn_each(headers, &LOCATION, |value| {
        let fate = location::turn_back(value, view);
        if fate == Fate::Dropped {
            debug!(route = view.name, "the upstream's Location may lead to another door of ours, and is dropped");
        }
        fate
    });
    turn_each(headers, &SET_COOKIE, |value| cookie::turn_back(value, view));
}

/// Gives each value of a header its fate; one that no header can hold is dropped too.
fn turn_each(headers: &mut HeaderMap, name: &HeaderName, fate: impl Fn(&[u8]) -> Fate) {
    let fates: SmallVec<[Fate; 4]> = headers.get_all(name).iter().map(|value| fate(value.as_bytes())).collect();
    if fates.iter().all(|fate| *fate == Fate::Kept) {
        return;
    }
    let Entry::Occupied(values) = headers.entry(name) else { return };
    let (_, values) = values.remove_entry_mult();
    let left = values.zip(fates).filter_map(|(value, fate)| match fate {
        Fate::Kept => Some(value),
        Fate::Changed(changed) => HeaderValue::try_from(changed).ok(),
        Fate::Dropped => None,
    });
    for value in left.collect::<SmallVec<[HeaderValue; 4]>>() {
        headers.append(name, value);
    }
}

/// Says why the request was sent again, if it was.
pub fn tell(headers: &mut HeaderMap, retries: Retries) {
    if let Some(reasons) = retries.header() {
        headers.insert(RETRY.clone(), reasons);
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

/// An answer of our own to what went wrong: the code in a header, the message in JSON, and when to come again if that is
/// known.
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
    headers.extend(error.retry_after.map(|seconds| (RETRY_AFTER, HeaderValue::from(seconds))));
    response
}

static REQUEST_ID: HeaderName = HeaderName::from_static("x-countersign-request-id");
static RETRY: HeaderName = HeaderName::from_static("x-countersign-retry");
static ERROR: HeaderName = HeaderName::from_static("x-countersign-error");

/// What an origin says of itself over TLS, which the caller does not speak to us: that it is also found elsewhere, where no
/// request is signed (RFC 7838, section 3), and that it is never to be spoken to without (RFC 6797, section 7.2, forbids to
/// say so in the clear).
const OF_TLS: [&str; 2] = ["alt-svc", "strict-transport-security"];

/// What belongs into a head and nowhere else, since there it was decided on.
const OF_HEADS: [&str; 3] = ["location", "set-cookie", "trailer"];

#[cfg(test)]
mod tests {
    use super::super::location::testing::{TCP, seen};
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_head_keeps_what_is_meant_for_the_caller() {
        const ALWAYS: [&str; 6] = ["content-length", "etag", "proxy-status", "trailer", "via", "www-authenticate"];
        let reply = headers(&[
            ("Connection", "x-hop, Content-Length, etag-2, keep-alive"),
            ("Connection", "X-Hop-2"),
            ("X-Hop", "1"),
            ("X-Hop-2", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("Proxy-Authenticate", "Basic"),
            ("Proxy-Authorization", "Basic"),
            ("Transfer-Encoding", "chunked"),
            ("TE", "trailers"),
            ("Upgrade", "h2c"),
            ("Alt-Svc", "h3=\":443\""),
            ("Strict-Transport-Security", "max-age=1"),
            ("X-Countersign-Error", "forged"),
            ("Access-Control-Allow-Origin", "*"),
            ("Access-Control-Allow-Private-Network", "true"),
            ("Access-Control-Anything", "1"),
            ("X-Subject-Token", "secret"),
            ("x_subject.token", "secret"),
            ("Content-Length", "5"),
            ("Trailer", "ETag"),
            ("ETag", "1"),
            ("Via", "1.1 other"),
            ("Proxy-Status", "other"),
            ("WWW-Authenticate", "Basic"),
        ]);
        let cors = ["access-control-allow-origin", "access-control-allow-private-network", "access-control-anything"];
        let tokens = ["x-subject-token", "x_subject.token"];
        let concealed = Names::new(["X-Subject-Token"]);
        for (concealed, is_welcome_page, more) in [
            (None, false, tokens.as_slice()),
            (Some(&concealed), false, &[]),
            (None, true, &[cors.as_slice(), &tokens].concat()),
            (Some(&concealed), true, &cors),
        ] {
            let mut head = reply.clone();
            clean(&mut head, concealed, is_welcome_page);
            let mut expected = [&ALWAYS, more].concat();
            expected.sort_unstable();
            assert_eq!(names(&head), expected, "{is_welcome_page}");
        }
    }

    #[test]
    fn trailers_decide_nothing_that_the_head_has_decided() {
        let concealed = Names::new(["X-Subject-Token"]);
        for (concealed, expected) in [(None, ["x-subject-token", "x-sum"].as_slice()), (Some(&concealed), &["x-sum"])] {
            let mut trailers = headers(&[
                ("X-Sum", "1"),
                ("Content-Length", "5"),
                ("Host", "x"),
                ("Trailer", "x"),
                ("Connection", "x-hop"),
                ("X-Hop", "1"),
                ("Access-Control-Allow-Origin", "*"),
                ("X-Countersign-Retry", "clock"),
                ("Location", "/x"),
                ("Set-Cookie", "a=b"),
                ("Alt-Svc", "clear"),
                ("X-Subject-Token", "secret"),
            ]);
            clean_trailers(&mut trailers, concealed);
            assert_eq!(names(&trailers), expected);
        }
    }

    #[test]
    fn each_value_has_a_fate_of_its_own() {
        let mut reply = headers(&[
            ("Location", "/x"),
            ("Set-Cookie", "a=b; Path=/"),
            ("Location", "http://cluster.localhost:8080/"),
            ("Etag", "1"),
            ("Set-Cookie", "c=d"),
            ("Location", "https://example.com/"),
            ("Set-Cookie", "e=f; Domain=localhost"),
        ]);
        seen(TCP, "/cert/a", "localhost:8080", |view| turn_back(&mut reply, view));
        let all = |name| reply.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("location"), ["/cert/x", "https://example.com/"]);
        assert_eq!(all("set-cookie"), ["a=b; Path=/cert/", "c=d", "e=f"]);
        assert_eq!(all("etag"), ["1"]);
        let mut lost = headers(&[("Location", "http://cluster.localhost:8080/")]);
        seen(TCP, "/cert/a", "localhost:8080", |view| turn_back(&mut lost, view));
        assert!(lost.is_empty());
    }
}
