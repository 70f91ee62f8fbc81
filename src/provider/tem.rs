//! TEM: `TEM-AUTH` tokens, after the vendor's page "TEM `OpenAPI` introduction". There is no client library.
//!
//! ```text
//! S = "ak:" access key "|sk:" secret key "|time:" Unix seconds "|method:" METHOD "|url:" URL "|params:" PARAMS
//!
//! L3.SHA256     Authorization: Bearer TEM-AUTH:access key:hex(SHA256(S)):Unix seconds
//! L3.SHA1       Authorization: Bearer TEM-AUTH:access key:hex(SHA1(S)):Unix seconds
//! L0.SHA1       Authorization: Bearer TEM-AUTH:access key:hex(SHA1(secret key))
//! L0.PAINTEXT   Authorization: Bearer TEM-AUTH:access key:secret key
//! ```
//!
//! - Plain digests, no HMAC: the secret is inside S. Nothing in S is escaped, neither `|` nor `:`.
//! - URL is path and query as they are sent, nothing decoded, sorted or dropped, a bare `?` at the end included.
//! - PARAMS is the body for POST, PUT and PATCH, whatever its type, octet by octet; for all other methods nothing, even
//!   if there is a body. The page leaves open what PATCH and a DELETE with a body are.
//! - The seconds are cut off, not rounded. How far the clock may be off is not documented.
//! - The tokens of L0 depend on nothing but the key: who reads one has the access.
//! - `PAINTEXT` is how the page's tables spell it, `PLAINTEXT` how its curl example does.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method};
use percent_encoding::percent_decode_str;
use secrecy::zeroize::Zeroizing;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::verdict::{Cause, Reply, Verdict};
use super::{BodyNeed, Explanation, Fields, Key, Provider, Registration, Request, Signer, concealed};
use crate::credential::{AccessKey, Credential, ExposeSecret, SecretString, Source};
use crate::settings::Table;

/// The provider.
pub(super) static REGISTRATION: Registration = Registration {
    name: "tem",
    summary: "Authorization: Bearer TEM-AUTH:…",
    keys: &[
        Key { name: "credentials", default: "", meaning: "{ access_key = S, secret_key = S }" },
        Key {
            name: "algorithm",
            default: "\"L3.SHA256\"",
            meaning: "what TEM has noted for the key: \"L3.SHA256\", \"L3.SHA1\", \"L0.SHA1\" or \"L0.PAINTEXT\"",
        },
        Key {
            name: "url_form",
            default: "\"path_and_query\"",
            meaning: "the URL in the signature: \"path_and_query\" as sent, the \"path\" alone, or both \"decoded\" once",
        },
        Key {
            name: "params_methods",
            default: "[\"POST\", \"PUT\", \"PATCH\"]",
            meaning: "the methods whose bodies are signed, and held until they are complete",
        },
        Key { name: "hex", default: "\"lower\"", meaning: "the digits of the signature: \"lower\" or \"upper\" case" },
    ],
    credential_headers: &["Authorization"],
    id_headers: &[],
    finds_upstream: false,
    read: |table| Tem::read(table).map(|provider| Box::new(provider) as Box<dyn Provider>),
};

#[derive(Debug)]
struct Tem {
    source: Source,
    algorithm: Algorithm,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    L3Sha256,
    L3Sha1,
    L0Sha1,
    L0PlainText,
}

/// What the vendor's page leaves open.
#[derive(Clone, Debug)]
struct Form {
    url: UrlForm,
    params_methods: Vec<Method>,
    has_capitals: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UrlForm {
    PathAndQuery,
    Path,
    Decoded,
}

impl Tem {
    fn read(table: &Table<'_>) -> Option<Self> {
        let source = Source::read(table).filter(|source| {
            let has_token = matches!(source, Source::AccessKey { security_token: Some(_), .. });
            if has_token && let Some(value) = table.get("credentials") {
                value.error("`security_token` means nothing to TEM: leave it out");
            }
            !has_token
        });
        let algorithm = table.get("algorithm").map_or(Some(Algorithm::L3Sha256), |value| {
            value.choice(&[
                ("L3.SHA256", Algorithm::L3Sha256),
                ("L3.SHA1", Algorithm::L3Sha1),
                ("L0.SHA1", Algorithm::L0Sha1),
                ("L0.PAINTEXT", Algorithm::L0PlainText),
                ("L0.PLAINTEXT", Algorithm::L0PlainText),
            ])
        });
        let url = table.get("url_form").map_or(Some(UrlForm::PathAndQuery), |value| {
            value.choice(&[
                ("path_and_query", UrlForm::PathAndQuery),
                ("path", UrlForm::Path),
                ("decoded", UrlForm::Decoded),
            ])
        });
        let params_methods = match table.get("params_methods") {
            None => Some(vec![Method::POST, Method::PUT, Method::PATCH]),
            Some(value) => value.list().and_then(|list| {
                let methods: Vec<_> = list.iter().filter_map(|value| value.parse(method)).collect();
                (methods.len() == list.len()).then_some(methods)
            }),
        };
        let has_capitals =
            table.get("hex").map_or(Some(false), |value| value.choice(&[("lower", false), ("upper", true)]));
        let form = Form { url: url?, params_methods: params_methods?, has_capitals: has_capitals? };
        Some(Self { source: source?, algorithm: algorithm?, form })
    }
}

fn method(text: &str) -> Result<Method, &'static str> {
    let is_usual = text.bytes().all(|octet| octet.is_ascii_uppercase());
    let method = Method::from_bytes(text.as_bytes()).ok().filter(|_| is_usual);
    method.ok_or("expected a method in capital letters, such as \"POST\"")
}

impl Provider for Tem {
    fn source(&self) -> &Source {
        &self.source
    }

    fn sets(&self) -> Vec<String> {
        vec!["Authorization".to_owned()]
    }

    fn signer(&self, credential: &Credential) -> Result<Arc<dyn Signer>, String> {
        let Credential::AccessKey(AccessKey { access_key, secret_key, security_token }) = credential else {
            return Err("expected an access key and its secret".to_owned());
        };
        if security_token.is_some() {
            return Err(
                "the access key is a temporary one, whose security token means nothing to TEM: give a lasting one"
                    .to_owned(),
            );
        }
        let is_sendable = |character: char| character != ':' && !character.is_control() && !character.is_whitespace();
        if access_key.is_empty() || !access_key.chars().all(is_sendable) {
            return Err("the access key must be characters other than `:`, spaces and control characters".to_owned());
        }
        let secret = secret_key.expose_secret();
        if secret.is_empty() {
            return Err("the secret key is empty".to_owned());
        }
        Ok(match self.algorithm {
            Algorithm::L3Sha256 => Arc::new(Signed::<Sha256>::new(access_key, secret_key, self.form.clone())),
            Algorithm::L3Sha1 => Arc::new(Signed::<Sha1>::new(access_key, secret_key, self.form.clone())),
            Algorithm::L0Sha1 => {
                // As good as the secret: what it is made of is cleared too.
                let mut digits = Zeroizing::new(Vec::new());
                push_hex(&mut digits, &Sha1::digest(secret), self.form.has_capitals);
                let digits = str::from_utf8(&digits).expect("hex digits are ASCII");
                Arc::new(Constant::new(access_key, digits, Some(secret_key.clone()))?)
            }
            Algorithm::L0PlainText => {
                let is_visible = |octet: u8| octet == b' ' || octet.is_ascii_graphic() && octet != b':';
                if !secret.bytes().all(is_visible) || secret.trim() != secret {
                    return Err(
                        "under L0.PAINTEXT the secret key goes into a header as it is, so it must be visible ASCII \
                                without `:`, and without spaces at its ends: give the key another algorithm in TEM"
                            .to_owned(),
                    );
                }
                Arc::new(Constant::new(access_key, secret, None)?)
            }
        })
    }

    fn body(&self, method: &Method, _headers: &HeaderMap) -> BodyNeed {
        let is_signed = matches!(self.algorithm, Algorithm::L3Sha256 | Algorithm::L3Sha1);
        if is_signed && self.form.covers_body(method) { BodyNeed::Whole } else { BodyNeed::Nothing }
    }

    /// The page has no word on refusals, so nothing is sent again. A token that stays good holds no time.
    fn verdict(&self, reply: &Reply<'_>) -> Verdict {
        let ahead = reply.ahead.filter(|_| !self.is_replayable() && reply.is_off_by(CONSIDERABLE));
        let advice = match ahead {
            Some(ahead) => {
                let side = if ahead < 0 { "behind" } else { "ahead of" };
                let seconds = ahead.unsigned_abs() / 1000;
                format!("the server's clock is {seconds} seconds {side} the time that was signed: set the clock that is wrong")
                    .into()
            }
            None => {
                "check the access key and its secret, and that `algorithm` is what TEM has noted for the key".into()
            }
        };
        Verdict { advice, ..Verdict::of(Cause::Signature) }
    }

    fn is_replayable(&self) -> bool {
        matches!(self.algorithm, Algorithm::L0Sha1 | Algorithm::L0PlainText)
    }
}

impl Form {
    fn covers_body(&self, method: &Method) -> bool {
        self.params_methods.iter().any(|covered| covered.as_str().eq_ignore_ascii_case(method.as_str()))
    }
}

/// A token of L0.
struct Constant {
    authorization: HeaderValue,
    /// What the digest in it is made from, if there is one.
    digested: Option<SecretString>,
}

impl Constant {
    fn new(access_key: &str, rest: &str, digested: Option<SecretString>) -> Result<Self, &'static str> {
        let authorization = concealed(&[&start(access_key), rest]).ok_or(UNFIT)?;
        Ok(Self { authorization, digested })
    }
}

impl Signer for Constant {
    fn sign(&self, _request: &Request<'_>, explain: Option<&mut Explanation>) -> Result<Fields, String> {
        if let Some(explain) = explain {
            explain.string_to_sign = self.digested.as_ref().map(|secret| secret.expose_secret().to_owned());
        }
        Ok(Fields::from_iter([(AUTHORIZATION, self.authorization.clone())]))
    }
}

/// Makes tokens of L3.
struct Signed<D> {
    /// What the token begins with.
    start: String,
    /// What S begins with, up to the time; for explanations alone.
    prefix: SecretString,
    /// Fed with that.
    digest: D,
    form: Form,
}

impl<D: Digest + Clone> Signed<D> {
    fn new(access_key: &str, secret_key: &SecretString, form: Form) -> Self {
        let prefix = Zeroizing::new(["ak:", access_key, "|sk:", secret_key.expose_secret(), "|time:"].concat());
        let digest = D::new().chain_update(prefix.as_bytes());
        Self { start: start(access_key), digest, prefix: prefix.as_str().into(), form }
    }
}

impl<D: Digest + Clone + Send + Sync> Signer for Signed<D> {
    fn sign(&self, request: &Request<'_>, explain: Option<&mut Explanation>) -> Result<Fields, String> {
        let Form { url, has_capitals, .. } = self.form;
        let time = request.time.seconds().to_string();
        let method = request.method.as_str().to_ascii_uppercase();
        let (mark, query) = match request.query {
            Some(query) if url != UrlForm::Path => ("?", query),
            _ => ("", ""),
        };
        let escaped = |text| match url {
            UrlForm::Decoded => Cow::from(percent_decode_str(text)),
            _ => Cow::from(str::as_bytes(text)),
        };
        let (path, query) = (escaped(request.path), escaped(query));
        let params = if self.form.covers_body(request.method) { request.body } else { b"" };
        // The body is the last part and is not copied.
        let parts = [
            time.as_bytes(),
            b"|method:",
            method.as_bytes(),
            b"|url:",
            &path,
            mark.as_bytes(),
            &query,
            b"|params:",
            params,
        ];
        let digest = parts.iter().fold(self.digest.clone(), Digest::chain_update).finalize();

        let mut token = Vec::with_capacity(self.start.len() + 2 * digest.len() + 1 + time.len());
        token.extend_from_slice(self.start.as_bytes());
        push_hex(&mut token, &digest, has_capitals);
        token.push(b':');
        token.extend_from_slice(time.as_bytes());

        if let Some(explain) = explain {
            let rest = parts.concat();
            explain.string_to_sign = Some(self.prefix.expose_secret().to_owned() + &String::from_utf8_lossy(&rest));
        }
        Ok(Fields::from_iter([(AUTHORIZATION, header_value(token)?)]))
    }
}

/// By how much clocks may differ before it is worth a word: more than a `Date`, which has no fractions, is wrong by.
const CONSIDERABLE: Duration = Duration::from_secs(5);

fn start(access_key: &str) -> String {
    format!("Bearer TEM-AUTH:{access_key}:")
}

fn push_hex(out: &mut Vec<u8>, digest: &[u8], has_capitals: bool) {
    let at = out.len();
    out.resize(at + 2 * digest.len(), 0);
    let Some(digits) = out.get_mut(at..) else { return };
    hex::encode_to_slice(digest, digits).expect("two digits for each octet");
    if has_capitals {
        digits.make_ascii_uppercase();
    }
}

fn header_value(token: Vec<u8>) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::try_from(token).map_err(|_| UNFIT)?;
    value.set_sensitive(true);
    Ok(value)
}

const UNFIT: &str = "the token does not fit into a header";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock::Timestamp;
    use crate::settings::{BareSecrets, Reader, Remark};

    fn read(text: &str) -> (Option<Tem>, Vec<Remark>) {
        let text = format!("credentials = {{ access_key = 'ak', secret_key = 'hunter2' }}\n{text}");
        read_all(&text)
    }

    fn read_all(text: &str) -> (Option<Tem>, Vec<Remark>) {
        let reader = Reader::new(text, Path::new("/"), BareSecrets::Accept);
        let document = reader.parse();
        let provider = Tem::read(&Table::root(&reader, &document));
        (provider, reader.into_remarks().0)
    }

    fn refusal(algorithm: &str, access_key: &str, secret_key: &str) -> Option<String> {
        let credential = Credential::AccessKey(AccessKey {
            access_key: access_key.to_owned(),
            secret_key: secret_key.into(),
            security_token: None,
        });
        read(&format!("algorithm = '{algorithm}'")).0.unwrap().signer(&credential).err()
    }

    const ALGORITHMS: [&str; 5] = ["L3.SHA256", "L3.SHA1", "L0.SHA1", "L0.PAINTEXT", "L0.PLAINTEXT"];

    #[test]
    fn temporary_keys_are_refused_unseen() {
        let provider = read("").0.unwrap();
        let message = crate::provider::testing::refusal(&provider, "ak", "hunter2", Some("hunter2")).unwrap();
        assert!(message.contains("means nothing to TEM: give a lasting one"), "{message}");
        assert!(!message.contains("hunter2"));
    }

    #[test]
    fn bodies_are_held_only_where_they_are_signed() {
        for (keys, held) in [
            ("", "POST PUT PATCH post"),
            ("params_methods = ['DELETE']", "DELETE"),
            ("params_methods = []", ""),
            ("algorithm = 'L0.SHA1'", ""),
            ("algorithm = 'L0.PAINTEXT'", ""),
        ] {
            let provider = read(keys).0.unwrap();
            for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "post"] {
                let need = provider.body(&method.parse().unwrap(), &HeaderMap::new());
                let is_held = held.split(' ').any(|held| held == method);
                assert_eq!(need == BodyNeed::Whole, is_held, "{keys}: {method}");
            }
        }
    }

    #[test]
    fn only_tokens_of_l0_stay_good() {
        for algorithm in ALGORITHMS {
            let provider = read(&format!("algorithm = '{algorithm}'")).0.unwrap();
            assert_eq!(provider.is_replayable(), algorithm.starts_with("L0"), "{algorithm}");
        }
    }

    #[test]
    fn wrong_values_are_noted_at_their_place_and_not_shown() {
        for text in [
            "algorithm = 'hunter2'",
            "algorithm = 'L3.SHA512'",
            "algorithm = 256",
            "url_form = 'hunter2'",
            "params_methods = 'POST'",
            "params_methods = ['hunter 2']",
            "params_methods = ['post']",
            "params_methods = ['POST', '']",
            "hex = 'hunter2'",
        ] {
            let (provider, errors) = read(text);
            assert!(provider.is_none(), "{text}");
            let [error] = errors.as_slice() else { panic!("{text}: {errors:?}") };
            assert_eq!(error.place.line, 2, "{text}");
            assert!(!error.message.contains("hunter"), "{text}: {}", error.message);
        }
        let (provider, errors) =
            read_all("credentials = { access_key = 'ak', secret_key = 'hunter2', security_token = 'hunter2' }");
        assert!(provider.is_none() && errors.len() == 1 && !errors[0].message.contains("hunter"), "{errors:?}");
    }

    #[test]
    fn credentials_that_make_no_token_are_refused_unseen() {
        for algorithm in ALGORITHMS {
            for access_key in ["", "hunter:2", "hunter2\n", "hunter2 ", "\u{7f}hunter2"] {
                let message = refusal(algorithm, access_key, "sk").unwrap();
                assert!(message.starts_with("the access key must be") && !message.contains("hunter"), "{message}");
            }
            assert_eq!(refusal(algorithm, "ak", "").unwrap(), "the secret key is empty");
            assert_eq!(refusal(algorithm, "ak-1", "s|k +/= s"), None);
        }
        for secret_key in ["hunter:2", "hunter2\n", "\thunter2", "hunter2 ", " hunter2", "hünter2", "hunter\u{7f}2"] {
            for algorithm in ["L3.SHA256", "L3.SHA1", "L0.SHA1"] {
                assert_eq!(refusal(algorithm, "ak", secret_key), None);
            }
            for algorithm in ["L0.PAINTEXT", "L0.PLAINTEXT"] {
                let message = refusal(algorithm, "ak", secret_key).unwrap();
                assert!(message.starts_with("under L0.PAINTEXT") && !message.contains("hunter"), "{message}");
            }
        }
        assert!(read("").0.unwrap().signer(&Credential::Nothing).is_err());
        assert!(!format!("{:?}", read("").0).contains("hunter2"));
    }

    #[test]
    fn tokens_are_marked_as_secret() {
        for algorithm in ALGORITHMS {
            let provider = read(&format!("algorithm = '{algorithm}'")).0.unwrap();
            let signer = provider.signer(&provider.source().load().unwrap()).unwrap();
            let (method, headers) = (&Method::GET, &HeaderMap::new());
            let request = Request { method, path: "/", query: None, headers, body: b"", time: Timestamp(0), nonce: "" };
            let fields = signer.sign(&request, None).unwrap();
            assert!(fields.len() == 1 && fields.iter().all(|(_, value)| value.is_sensitive()), "{algorithm}");
        }
    }
}
