//! What the upstream answers to requests that were found good.

mod addresses;
mod certificates;
mod clusters;
mod iam;

use http::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value, json};

use super::verify::{Received, Refusal};

pub use addresses::Addresses;
pub use certificates::Certificates;
pub use clusters::Clusters;
pub use iam::Iam;

/// A service behind a scheme.
pub enum Service {
    /// The list of ACM's servers.
    Addresses(Addresses),
    /// The certificate service of Baidu Cloud, in memory.
    Certificates(Certificates),
    /// The cluster-management API of Alibaba Cloud.
    Clusters(Clusters),
    /// The request as it was received, as JSON; the values of headers that carry credentials are left out.
    Echo,
    /// The identity service of Huawei Cloud.
    Iam(Iam),
    /// The projects of a Swarm cluster: one.
    Projects,
}

impl Service {
    /// Answers a request.
    pub(super) fn answer(&self, request: &Received<'_>) -> Result<Reply, Refusal> {
        match self {
            Self::Addresses(addresses) => addresses.answer(request),
            Self::Certificates(certificates) => certificates.answer(request),
            Self::Clusters(clusters) => clusters.answer(request),
            Self::Iam(iam) => iam.answer(request),
            Self::Echo => Ok(Reply::of(json!({
                "method": request.method.as_str(),
                "path": request.path,
                "query": request.query,
                "headers": shown(request.headers),
                "body": String::from_utf8_lossy(request.body),
            }))),
            Self::Projects => projects(request),
        }
    }
}

/// A good answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Value>,
}

impl Reply {
    fn of(body: Value) -> Self {
        Self { status: StatusCode::OK, headers: HeaderMap::new(), body: Some(body) }
    }

    fn empty() -> Self {
        Self { status: StatusCode::OK, headers: HeaderMap::new(), body: None }
    }
}

/// `GET /projects/`, with the slash at its end, as in the application API's description.
fn projects(request: &Received<'_>) -> Result<Reply, Refusal> {
    if request.path != "/projects/" {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "NotFound", "page not found"));
    }
    if !is_reading(request.method) {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "the demonstration is read-only"));
    }
    Ok(Reply::of(json!([{
        "name": "demo",
        "description": "asked for by the owner of a client certificate",
        "current_state": "running",
        "desired_state": "running",
        "client": request.client,
    }])))
}

fn shown(headers: &HeaderMap) -> Map<String, Value> {
    let mut shown = Map::new();
    for (name, value) in headers {
        let text = if CREDENTIALS.contains(&name.as_str()) {
            "(received)".into()
        } else {
            String::from_utf8_lossy(value.as_bytes())
        };
        let values = shown.entry(name.as_str()).or_insert_with(|| json!([]));
        if let Some(values) = values.as_array_mut() {
            values.push(text.into());
        }
    }
    shown
}

fn is_reading(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

const CREDENTIALS: [&str; 7] = [
    "authorization",
    "proxy-authorization",
    "x-auth-token",
    "x-bce-security-token",
    "x-acs-security-token",
    "x-security-token",
    "spas-signature",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn the_echo_keeps_repeated_headers_and_hides_credentials() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("a", "1"), ("a", "2"), ("x-auth-token", "hidden")] {
            headers.append(name, value.parse().unwrap());
        }
        let request = Received {
            method: &Method::POST,
            path: "/%41",
            query: Some("a+b"),
            headers: &headers,
            body: "größer".as_bytes(),
            client: None,
            time: Timestamp(0),
        };
        let reply = Service::Echo.answer(&request).unwrap().body.unwrap();
        let expected = json!({"method": "POST", "path": "/%41", "query": "a+b",
            "headers": {"a": ["1", "2"], "x-auth-token": ["(received)"]}, "body": "größer"});
        assert_eq!(reply, expected);
    }
}
