//! IAM: tokens for a project, to whoever has proved to be its user.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde_json::{Value, json};

use super::super::random;
use super::super::verify::{Received, Refusal, Tokens};
use super::Reply;
use crate::clock::Timestamp;

/// The identity service.
pub struct Iam {
    /// All that it gives out.
    pub tokens: Tokens,
    /// The one project there is.
    pub project: &'static str,
}

impl Iam {
    /// `POST /v3/auth/tokens`.
    pub(super) fn answer(&self, request: &Received<'_>) -> Result<Reply, Refusal> {
        if request.path != "/v3/auth/tokens" {
            return Err(Refusal::new(StatusCode::NOT_FOUND, "Not Found", "no such path"));
        }
        if *request.method != Method::POST {
            return Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "Method Not Allowed",
                "tokens are asked for by POST",
            ));
        }
        let body: Value = serde_json::from_slice(request.body).unwrap_or_default();
        if body.pointer("/auth/scope") != Some(&json!({ "project": { "name": self.project } })) {
            let message = format!("Could not find another project than \"{}\".", self.project);
            return Err(Refusal::new(StatusCode::NOT_FOUND, "Not Found", message));
        }
        let unable =
            |_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error", "there is no randomness");
        let token = format!("MII{}", hex::encode(random::<48>().map_err(unable)?));
        let value = HeaderValue::try_from(&token).map_err(|_| unable(std::io::ErrorKind::InvalidData.into()))?;
        let expires = request.time.after(LIFE);
        self.tokens.add(token.into(), format!("the project \"{}\"", self.project), Some(expires));
        let about = json!({
            "expires_at": written(expires),
            "issued_at": written(request.time),
            "methods": ["password"],
            "project": { "name": self.project },
        });
        Ok(Reply {
            status: StatusCode::CREATED,
            headers: HeaderMap::from_iter([(HeaderName::from_static("x-subject-token"), value)]),
            body: Some(json!({ "token": about })),
        })
    }
}

/// `2026-01-02T03:04:05.678000Z`
fn written(time: Timestamp) -> String {
    let time = jiff::Timestamp::from_millisecond(time.0).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// How long a token is good.
const LIFE: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::verify::{AuthToken, Scheme};

    #[test]
    fn what_it_gives_out_is_accepted_for_a_day() {
        let iam = Iam { tokens: Tokens::default(), project: "p" };
        let ask = |method: &Method, path: &str, body: &str| {
            let (headers, body, time) = (&HeaderMap::new(), body.as_bytes(), Timestamp(1_767_323_045_678));
            iam.answer(&Received { method, path, query: None, headers, body, client: None, time })
        };
        let path = "/v3/auth/tokens";
        let scope = r#"{"auth":{"scope":{"project":{"name":"p"}}}}"#;
        for (method, path, body, status) in [
            (Method::POST, "/v3", scope, 404),
            (Method::GET, path, scope, 405),
            (Method::POST, path, "{}", 404),
            (Method::POST, path, &scope.replace("\"p\"", "\"q\""), 404),
        ] {
            assert_eq!(ask(&method, path, body).unwrap_err().status.as_u16(), status, "{method} {path} {body}");
        }
        let reply = ask(&Method::POST, path, scope).unwrap();
        assert_eq!(reply.status, StatusCode::CREATED);
        assert_eq!(reply.body.unwrap()["token"]["expires_at"], "2026-01-03T03:04:05.678000Z");
        let headers =
            HeaderMap::from_iter([(HeaderName::from_static("x-auth-token"), reply.headers["x-subject-token"].clone())]);
        let accepts = |time| {
            let method = &Method::GET;
            let request = Received { method, path: "/", query: None, headers: &headers, body: b"", client: None, time };
            AuthToken(iam.tokens.clone()).verify(&request).is_ok()
        };
        assert!(accepts(Timestamp(1_767_409_445_677)) && !accepts(Timestamp(1_767_409_445_678)));
    }
}
