//! TEM-AUTH, as TEM could check it from its page "TEM `OpenAPI` introduction".
//!
//! ```text
//! Authorization: Bearer TEM-AUTH:{ak}:{signature}[:{time}]
//! L3: signature = hex(digest("ak:{ak}|sk:{sk}|time:{time}|method:{METHOD}|url:{URL}|params:{PARAMS}"))
//! L0: signature = hex(SHA1(sk)), or sk itself; no time
//! ```

use http::{HeaderMap, Method, StatusCode};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{Received, Refusal, Scheme};
use crate::credential::AccessKey;

/// The access keys that TEM knows, and how it reads what the page leaves open.
pub struct Tem {
    /// All of them.
    pub keys: Vec<AccessKey>,
    /// The algorithm that their owner has chosen.
    pub algorithm: TemAlgorithm,
    /// The methods whose bodies are PARAMS.
    pub params_methods: Vec<Method>,
    /// False if URL is the path alone.
    pub has_query: bool,
}

/// How tokens are made; the name is stored with the key and never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemAlgorithm {
    /// The secret itself.
    PlainText,
    /// The secret's SHA-1.
    Sha1OfSecret,
    /// SHA-1 over the request.
    Sha1,
    /// SHA-256 over the request.
    Sha256,
}

impl Tem {
    /// The page's own reading.
    #[must_use]
    pub fn new(keys: Vec<AccessKey>, algorithm: TemAlgorithm) -> Self {
        Self { keys, algorithm, params_methods: vec![Method::POST, Method::PUT, Method::PATCH], has_query: true }
    }

    fn string_to_sign(&self, key: &AccessKey, time: &str, request: &Received<'_>) -> Vec<u8> {
        let method = request.method.as_str().to_uppercase();
        let url = match request.query {
            Some(query) if self.has_query => format!("{}?{query}", request.path),
            _ => request.path.to_owned(),
        };
        let (name, secret) = (&key.access_key, key.secret_key.expose_secret());
        let mut text = format!("ak:{name}|sk:{secret}|time:{time}|method:{method}|url:{url}|params:").into_bytes();
        if self.params_methods.iter().any(|covered| covered.as_str() == method) {
            text.extend_from_slice(request.body);
        }
        text
    }
}

impl Scheme for Tem {
    fn verify(&self, request: &Received<'_>) -> Result<String, Refusal> {
        let token = token(request.headers).ok_or_else(|| unauthorized("no TEM-AUTH token"))?;
        let fields: Vec<&str> = token.split(':').collect();
        let is_of_request = matches!(self.algorithm, TemAlgorithm::Sha1 | TemAlgorithm::Sha256);
        let (name, signature, time) = match (is_of_request, fields.as_slice()) {
            (true, [name, signature, time]) => (*name, *signature, *time),
            (false, [name, signature]) => (*name, *signature, ""),
            _ => return Err(unauthorized("a token with another number of fields")),
        };
        let key = self.keys.iter().find(|key| key.access_key == name);
        let key = key.ok_or_else(|| unauthorized("an unknown access key"))?;
        let secret = key.secret_key.expose_secret();
        let (expected, what) = match self.algorithm {
            TemAlgorithm::PlainText => (secret.to_owned(), "L0.PAINTEXT token"),
            TemAlgorithm::Sha1OfSecret => (hex::encode(Sha1::digest(secret)), "L0.SHA1 token"),
            TemAlgorithm::Sha1 => {
                (hex::encode(Sha1::digest(self.string_to_sign(key, time, request))), "L3.SHA1 signature")
            }
            TemAlgorithm::Sha256 => {
                (hex::encode(Sha256::digest(self.string_to_sign(key, time, request))), "L3.SHA256 signature")
            }
        };
        let is_equal = match self.algorithm {
            TemAlgorithm::PlainText => expected == signature,
            _ => expected.eq_ignore_ascii_case(signature),
        };
        if !is_equal {
            return Err(unauthorized("a token that does not match"));
        }
        if is_of_request {
            let seconds = time.parse::<i64>().ok().filter(|seconds| seconds.to_string() == time);
            let seconds = seconds.ok_or_else(|| unauthorized("a time that is not in seconds"))?;
            if (request.time.seconds() - seconds).abs() > WINDOW {
                return Err(unauthorized("a token of another time"));
            }
        }
        Ok(format!("{what} of {name}"))
    }

    fn error_body(&self, refusal: &Refusal, _request_id: &str) -> Value {
        json!({ "Data": Value::Null, "Success": false, "Message": refusal.message })
    }
}

/// What follows `Bearer TEM-AUTH:` in the only Authorization there is.
fn token(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all("authorization").iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    std::str::from_utf8(value.as_bytes()).ok()?.strip_prefix("Bearer TEM-AUTH:")
}

/// The page has no codes.
fn unauthorized(message: &'static str) -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
}

/// How far the time may be off, in seconds; the page does not say.
const WINDOW: i64 = 5 * 60;

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::clock::Timestamp;

    const TIME: i64 = 1_650_000_000;
    const SIGNATURE: &str = "201f2b9a7ff72492c2170ac27af3306bddc2539d2445e14fb4b282f45486aa39";

    fn verdict(algorithm: TemAlgorithm, token: &str, target: &str, later: i64) -> Result<String, String> {
        let keys = [("5e685006656cfc80", "75997c30879a58436fa55d73c7b9c5c9"), ("pingcap", "pingcap")];
        let keys = keys.map(|(access_key, secret_key)| AccessKey {
            access_key: access_key.to_owned(),
            secret_key: secret_key.into(),
            security_token: None,
        });
        let mut headers = HeaderMap::new();
        for value in token.split_terminator(' ').filter(|value| !value.is_empty()) {
            let value = format!("Bearer TEM-AUTH:{value}");
            headers.append("authorization", HeaderValue::try_from(value).unwrap());
        }
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let time = Timestamp((TIME + later) * 1000);
        let method = &Method::GET;
        let request = Received { method, path, query, headers: &headers, body: b"body", client: None, time };
        Tem::new(keys.to_vec(), algorithm).verify(&request).map_err(|refusal| refusal.message)
    }

    #[test]
    fn the_known_answers_are_accepted() {
        let (plain, sha1) = ("pingcap:pingcap", "pingcap:73bf9ef43a44f42e2ea2894d62f0917af149a006");
        assert!(verdict(TemAlgorithm::PlainText, plain, "/", 0).is_ok());
        assert!(verdict(TemAlgorithm::Sha1OfSecret, sha1, "/", 0).is_ok());
        let (token, url) = (format!("5e685006656cfc80:{SIGNATURE}:{TIME}"), "/api/v1/resource/monitor?ip=172.17.0.15");
        for later in [0, WINDOW, -WINDOW] {
            assert_eq!(
                verdict(TemAlgorithm::Sha256, &token, url, later),
                Ok("L3.SHA256 signature of 5e685006656cfc80".to_owned())
            );
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let url = "/api/v1/resource/monitor?ip=172.17.0.15";
        let token = format!("5e685006656cfc80:{SIGNATURE}:{TIME}");
        let twice = format!("{token} {token}");
        for (algorithm, token, url, later) in [
            (TemAlgorithm::Sha256, token.as_str(), "/api/v1/resource/monitor?ip=172.17.0.16", 0),
            (TemAlgorithm::Sha256, &token, "/api/v1/resource/monitor", 0),
            (TemAlgorithm::Sha256, &token, url, WINDOW + 1),
            (TemAlgorithm::Sha256, &token, url, -WINDOW - 1),
            (TemAlgorithm::Sha1, &token, url, 0),
            (TemAlgorithm::PlainText, &token, url, 0),
            (TemAlgorithm::Sha256, &twice, url, 0),
            (TemAlgorithm::Sha256, "", url, 0),
            (TemAlgorithm::Sha256, "5e685006656cfc80", url, 0),
            (TemAlgorithm::Sha256, "pingcap:pingcap", url, 0),
            (TemAlgorithm::Sha256, &token.replace("5e68", "5e69"), url, 0),
            (TemAlgorithm::Sha256, &token.replace(":165", ":166"), url, 0),
            (TemAlgorithm::PlainText, "pingcap:PINGCAP", url, 0),
            (TemAlgorithm::Sha1OfSecret, "pingcap:pingcap", url, 0),
        ] {
            let message = verdict(algorithm, token, url, later).unwrap_err();
            assert!(!message.contains("75997c30") && !message.contains("pingcap"), "{message}");
        }
    }
}
