//! A password in a question to IAM: `POST /v3/auth/tokens`
//! (<https://support.huaweicloud.com/intl/en-us/api-iam/iam_30_0001.html>).

use http::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::{Received, Refusal, Scheme, openstack_error};

/// The body must be a question that this user's password proves.
pub struct Password {
    /// The account that the user belongs to.
    pub account: &'static str,
    /// The user.
    pub user: &'static str,
    /// The user's.
    pub password: SecretString,
}

impl Scheme for Password {
    fn verify(&self, request: &Received<'_>) -> Result<String, Refusal> {
        let malformed = |why| Refusal::new(StatusCode::BAD_REQUEST, "Bad Request", why);
        let content_type = request.header("content-type").unwrap_or_default();
        if !content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
            return Err(malformed("the content type is not application/json"));
        }
        let body: Value = serde_json::from_slice(request.body).map_err(|_| malformed("the body is not JSON"))?;
        let identity = body.pointer("/auth/identity").unwrap_or(&Value::Null);
        let text = |path: &str| identity.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let (name, domain) = (text("/password/user/name"), text("/password/user/domain/name"));
        let password = text("/password/user/password");
        let user = json!({ "name": name, "password": password, "domain": { "name": domain } });
        if *identity != json!({ "methods": ["password"], "password": { "user": user } }) {
            return Err(malformed("the identity is not that of a user with a password"));
        }
        if (domain, name, password) != (self.account, self.user, self.password.expose_secret()) {
            let message = "The username or password is wrong.";
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized", message));
        }
        Ok(format!("password of \"{}\" in the account \"{}\"", self.user, self.account))
    }

    fn request_id_header(&self) -> &'static str {
        "x-iam-trace-id"
    }

    fn error_body(&self, refusal: &Refusal, _request_id: &str) -> Value {
        openstack_error(refusal)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Method};

    use super::*;
    use crate::clock::Timestamp;

    fn verdict(content_type: &'static str, body: &str) -> Result<String, u16> {
        let scheme = Password { account: "account", user: "user", password: "right".into() };
        let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        let request = Received {
            method: &Method::POST,
            path: "/v3/auth/tokens",
            query: None,
            headers: &headers,
            body: body.as_bytes(),
            client: None,
            time: Timestamp(0),
        };
        scheme.verify(&request).map_err(|refusal| refusal.status.as_u16())
    }

    #[test]
    fn account_user_and_password_must_be_right() {
        let body = r#"{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"user","password":"right",
            "domain":{"name":"account"}}}},"scope":{}}}"#;
        let json = "application/json;charset=utf8";
        assert!(verdict(json, body).is_ok());
        assert_eq!(verdict("text/plain", body), Err(400));
        for (part, other, status) in [
            ("right", "wrong", 401),
            ("right", "", 401),
            ("\"user\",", "\"another\",", 401),
            ("\"account\"", "\"another\"", 401),
            ("\"account\"", "1", 400),
            ("\"password\"]", "\"token\"]", 400),
            ("{\"auth\"", "{\"other\"", 400),
            ("}}}", "", 400),
        ] {
            assert_eq!(verdict(json, &body.replacen(part, other, 1)), Err(status), "{part} {other}");
        }
    }
}
