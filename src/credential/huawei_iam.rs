//! Huawei Cloud's identity service (IAM): tokens for a user's password
//! (<https://support.huaweicloud.com/intl/en-us/api-iam/iam_30_0001.html>).
//!
//! A token is good for 24 hours. IAM locks users out after several wrong passwords, so what it refuses is not sent again
//! for minutes.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::canonical::time;
use crate::clock::Timestamp;
use crate::settings::{self, Table};
use crate::upstream::Endpoint;
use crate::upstream::ask::{Answer, Asker, Question};
use crate::upstream::tls::FileRef;

use super::{Credential, Failed, Fetch, Fetched, Margins, SecretRef, Unreadable, address, reply};

/// Where IAM is.
#[derive(Clone, Debug)]
pub struct Iam {
    /// Its address.
    pub endpoint: Endpoint,
    /// The key that names it.
    pub(super) key: &'static str,
    /// The CA of its certificate, if that is a private one.
    pub ca: Option<FileRef>,
}

impl Iam {
    /// Reads `iam`, which must be there, and `iam_ca`.
    #[must_use]
    pub fn read(table: &Table<'_>) -> Option<Self> {
        let endpoint = table.require("iam", "the address of IAM, as \"https://iam.cn-north-4.myhuaweicloud.com\"");
        let endpoint = endpoint.and_then(|value| address(&value));
        let ca = table.get("iam_ca").map(|value| {
            if endpoint.as_ref().is_some_and(|endpoint| !endpoint.secure) {
                value.error("`iam` is http://, which knows no TLS: make it https://, or leave this out");
            }
            Some(FileRef { path: value.file()?, place: value.place() })
        });
        Some(Self { endpoint: endpoint?, key: "iam", ca: ca.map_or(Some(None), |ca| ca.map(Some))? })
    }

    /// What distinguishes it from others.
    pub(super) fn identity(&self) -> String {
        format!("{} {:?}", self.endpoint, self.ca.as_ref().map(|ca| &ca.path))
    }

    /// Asks it. In the clear nothing leaves this machine, not even by a proxy.
    pub(super) async fn ask(
        &self,
        asker: &Asker,
        method: Method,
        target: &str,
        headers: HeaderMap,
        body: Zeroizing<Vec<u8>>,
    ) -> Result<Answer, Failed> {
        let question = Question {
            endpoint: &self.endpoint,
            key: self.key,
            ca: self.ca.as_ref(),
            ca_key: "iam_ca",
            method,
            target,
            headers,
            body,
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(10),
        };
        let straight = (!self.endpoint.secure).then(|| asker.straight());
        straight.as_ref().unwrap_or(asker).ask(question).await.map_err(Failed::passing)
    }
}

/// Tokens of IAM.
#[derive(Debug)]
pub struct HuaweiIam {
    iam: Iam,
    account: SecretRef,
    user: SecretRef,
    password: SecretRef,
    scope: Scope,
}

/// What a token is for.
#[derive(Debug)]
struct Scope {
    /// `project` or `domain`.
    kind: &'static str,
    /// `id` or `name`.
    by: &'static str,
    what: SecretRef,
    /// The account that a project belongs to, where IAM wants that.
    domain: Option<SecretRef>,
}

impl HuaweiIam {
    /// Reads its keys out of a provider's table.
    #[must_use]
    pub fn read(table: &Table<'_>) -> Option<Self> {
        let iam = Iam::read(table);
        let name = |key, what| table.require(key, what).and_then(|value| SecretRef::name(&value));
        let account = name("account", "the account that the user belongs to");
        let user = name("user", "the IAM user");
        let password = table.require("password", "the user's, as a secret").and_then(|v| SecretRef::secret(&v));
        let scope = table.require("scope", SCOPE).and_then(|value| Scope::read(&value));
        Some(Self { iam: iam?, account: account?, user: user?, password: password?, scope: scope? })
    }

    /// What is asked, with the password as it is now.
    fn body(&self) -> Result<(Zeroizing<Vec<u8>>, SecretString), Vec<Unreadable>> {
        let reveal = |reference: &SecretRef| reference.reveal().map_err(|trouble| vec![trouble]);
        let password = reveal(&self.password)?;
        let [account, user, secret, what] = [
            quoted(&reveal(&self.account)?),
            quoted(&reveal(&self.user)?),
            quoted(&password),
            quoted(&reveal(&self.scope.what)?),
        ];
        let domain = self.scope.domain.as_ref().map(reveal).transpose()?.map(|domain| quoted(&domain));
        let domain = domain.map(|name| format!(r#","domain":{{"name":{}}}"#, *name)).unwrap_or_default();
        let Scope { kind, by, .. } = self.scope;
        // Room for all of it at once: what grows leaves copies behind.
        let mut body = Zeroizing::new(String::with_capacity(512 + 2 * (account.len() + user.len() + secret.len())));
        let _ = write!(
            body,
            r#"{{"auth":{{"identity":{{"methods":["password"],"password":{{"user":{{"name":{},"password":{},"domain":{{"name":{}}}}}}}}},"scope":{{"{kind}":{{"{by}":{}{domain}}}}}}}}}"#,
            *user, *secret, *account, *what
        );
        Ok((Zeroizing::new(std::mem::take(&mut *body).into_bytes()), password))
    }

    async fn ask(&self, asker: &Asker) -> Result<Fetched, Failed> {
        let (body, password) = self.body().map_err(|troubles| Failed::unreadable(&troubles))?;
        let json = HeaderValue::from_static("application/json;charset=utf8");
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, json)]);
        let answer = self.iam.ask(asker, Method::POST, TOKENS, headers, body).await?;
        let iam = &self.iam.endpoint;
        if answer.status != StatusCode::CREATED {
            let help = match answer.status {
                StatusCode::UNAUTHORIZED => ": correct `account`, `user` or `password`",
                StatusCode::FORBIDDEN => ": is the user enabled, and may it have tokens?",
                StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => ": correct `scope`, `account` or `iam`",
                status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                    ": it will be asked again"
                }
                _ => ": is `iam` the address of IAM?",
            };
            return Err(refusal(&answer, &format!("{iam} hands out no token"), help, Some(&password)));
        }
        let token = answer.headers.get("x-subject-token").and_then(|token| token.to_str().ok());
        let token = token.ok_or_else(|| Failed::passing(format!("{iam} answered without a token: is that IAM?")))?;
        let expiry = expires_at(&answer.body).ok_or_else(|| {
            Failed::passing(format!("{iam} answered with a token, but not with the time that it `expires_at`"))
        })?;
        Ok(Fetched {
            credential: Credential::Secrets(vec![SecretString::from(token)]),
            expiry: Some(answer.by_our_clock(expiry)),
        })
    }
}

impl Scope {
    fn read(value: &settings::Value<'_>) -> Option<Self> {
        let table = value.table_as(SCOPE)?;
        let keys = [("project", "project", "name"), ("project_id", "project", "id"), ("domain", "domain", "name")];
        let [project, project_id, domain] = keys.map(|(key, kind, by)| Some((table.get(key)?, kind, by)));
        table.finish();
        let ((chosen, kind, by), domain) = match (project, project_id, domain) {
            (Some(project), None, domain) => (project, domain),
            (None, Some(only), None) | (None, None, Some(only)) => (only, None),
            _ => {
                value.error(format!("expected {SCOPE}"));
                return None;
            }
        };
        let domain = domain.map(|(value, ..)| SecretRef::name(&value));
        let what = SecretRef::name(&chosen)?;
        Some(Self { kind, by, what, domain: domain.map_or(Some(None), |domain| domain.map(Some))? })
    }

    fn identity(&self) -> String {
        let Self { kind, by, what, domain } = self;
        let domain = domain.as_ref().map(SecretRef::identity);
        format!("{kind} {by} {} {domain:?}", what.identity())
    }
}

impl Fetch for HuaweiIam {
    fn name(&self) -> &'static str {
        "huawei-iam"
    }

    fn identity(&self) -> String {
        let Self { iam, account, user, password, scope } = self;
        let [account, user, password] = [account, user, password].map(SecretRef::identity);
        format!("huawei-iam {} {account:?} {user:?} {password:?} {}", iam.identity(), scope.identity())
    }

    fn references(&self) -> Vec<&SecretRef> {
        let Scope { what, domain, .. } = &self.scope;
        [&self.account, &self.user, &self.password, what].into_iter().chain(domain).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let ca = self.iam.ca.as_ref().map(|ca| ca.path.clone());
        self.references().into_iter().filter_map(SecretRef::file).chain(ca).collect()
    }

    fn margins(&self) -> Margins {
        Margins {
            refresh: Duration::from_secs(300),
            refresh_percent: 10,
            jitter: Duration::from_secs(60),
            wait: Duration::ZERO,
            gone: Duration::from_secs(30),
        }
    }

    fn fetch<'a>(&'a self, asker: &'a Asker) -> Pin<Box<dyn Future<Output = Result<Fetched, Failed>> + 'a>> {
        Box::pin(self.ask(asker))
    }
}

/// A text in JSON.
fn quoted(text: &SecretString) -> Zeroizing<String> {
    Zeroizing::new(serde_json::to_string(text.expose_secret()).unwrap_or_default())
}

/// When the token ends, by IAM's clock.
fn expires_at(body: &[u8]) -> Option<Timestamp> {
    let reply = reply::object(body).ok()?;
    time::parse_iso(reply.get("token")?.get("expires_at")?.as_str()?)
}

/// What an answer that is no success means, from `what` failed to what to do about it. A text of the server's that holds
/// the secret of the question is left out.
pub(super) fn refusal(answer: &Answer, what: &str, help: &str, secret: Option<&SecretString>) -> Failed {
    let said = said(&answer.body).filter(|said| secret.is_none_or(|secret| !said.contains(secret.expose_secret())));
    let said = said.map(|said| format!(" \"{}\"", reply::shown(&said))).unwrap_or_default();
    let trace = trace(&answer.headers);
    let status = answer.status;
    let message = format!("{what}: it answered {status}{said}{trace}{help}");
    let may_pass =
        status.is_server_error() || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
    if may_pass { Failed::passing(message) } else { Failed::lasting(message) }
}

/// What the server calls the question by, for people to quote.
pub(super) fn trace(headers: &HeaderMap) -> String {
    let trace = ["x-iam-trace-id", "x-request-id"].iter().find_map(|name| headers.get(*name));
    let trace = trace.and_then(|trace| trace.to_str().ok());
    trace.map(|trace| format!(" (X-IAM-Trace-Id {})", reply::shown(trace))).unwrap_or_default()
}

/// The message in a reply of one of the vendor's four shapes.
pub(super) fn said(body: &[u8]) -> Option<String> {
    let reply = Value::Object(reply::object(body).ok()?);
    let inner = reply.as_object()?.values();
    let message = std::iter::once(&reply)
        .chain(inner)
        .find_map(|reply| ["error_msg", "errorMsg", "message"].iter().find_map(|name| reply.get(name)?.as_str()));
    message.filter(|said| !said.trim().is_empty()).map(str::to_owned)
}

/// Without the catalogue of services the reply is a fraction as long.
const TOKENS: &str = "/v3/auth/tokens?nocatalog=true";

const SCOPE: &str = "{ project = \"…\" }, { project_id = \"…\" } or { domain = \"…\" }: what the token is for";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_vendors_four_shapes_are_read() {
        for text in [
            r#"{"error_code":"1","error_msg":"no"}"#,
            r#"{"errorCode":"1","errorMsg":"no"}"#,
            r#"{"code":1,"message":"no"}"#,
            r#"{"error":{"code":401,"message":"no","title":"Unauthorized"}}"#,
        ] {
            assert_eq!(said(text.as_bytes()).as_deref(), Some("no"), "{text}");
        }
        for text in ["", "no", "{}", r#"{"message":1}"#, r#"{"message":" "}"#, r#"["message"]"#] {
            assert_eq!(said(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn an_end_is_read_with_a_fraction_and_without() {
        let end = |text: &str| expires_at(format!(r#"{{"token":{{"expires_at":"{text}"}}}}"#).as_bytes());
        assert_eq!(end("2026-01-02T03:04:05.678000Z"), Some(Timestamp(1_767_323_045_678)));
        assert_eq!(end("2026-01-02T03:04:05Z"), Some(Timestamp(1_767_323_045_000)));
        assert_eq!(end("tomorrow"), None);
    }

    proptest! {
        #[test]
        fn no_octets_are_too_odd(octets: Vec<u8>) {
            let _ = (said(&octets), expires_at(&octets));
        }
    }
}
