//! IAM: tokens for passwords (huawei.md, A1 and A5), the ids of projects and accounts for signatures (B5).

use std::sync::Mutex;
use std::time::Duration;

use countersign::clock::Timestamp;
use countersign::demo::verify::{Keys, Received, Refusal, Scheme, SdkHmac};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::issue::{Tokens, in_micros, in_seconds, opaque};
use super::reply::Reply;
use super::server::Play;

/// The identity service of one account.
pub struct Iam {
    /// All tokens that it gave.
    pub tokens: Tokens,
    /// The access keys that may ask for ids.
    pub keys: Keys,
    state: Mutex<State>,
}

/// What can be changed while it runs.
#[derive(Clone, Debug)]
pub struct IamSettings {
    /// The account's name and id.
    pub account: (&'static str, &'static str),
    pub user: &'static str,
    /// Any of these is right.
    pub passwords: Vec<&'static str>,
    /// Wrong ones in a row that lock the user.
    pub lock_after: usize,
    /// How long tokens live from when they are given.
    pub life: Duration,
    pub expiry: Expiry,
    /// How long a token is, in octets.
    pub length: usize,
    /// Names, which need not be unique, and ids.
    pub projects: Vec<(&'static str, &'static str)>,
    /// Whether the list of accounts has this one: a user may lack the permission to read it.
    pub shows_account: bool,
}

/// How `expires_at` is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// With a fraction of six digits.
    Micros,
    /// Without a fraction.
    Seconds,
    /// Not at all.
    Absent,
}

struct State {
    settings: IamSettings,
    wrong: usize,
    wrong_in_a_row: usize,
}

impl Iam {
    pub(super) fn new(keys: Keys, tokens: Tokens) -> Self {
        let settings = IamSettings {
            account: ("the-account", "1fc0ba4b7f0f4ab5a7c0d7d6a40f2f5e"),
            user: "the-user",
            passwords: vec!["the-password"],
            lock_after: 5,
            life: Duration::from_secs(86_400),
            expiry: Expiry::Micros,
            length: 5000,
            projects: vec![
                ("cn-north-4", "77b6a44cba5143ab91d13ab9a8ff44fd"),
                ("cn-east-3", "0b5c2d3a4e5f60718293a4b5c6d7e8f9"),
            ],
            shows_account: true,
        };
        Self { tokens, keys, state: Mutex::new(State { settings, wrong: 0, wrong_in_a_row: 0 }) }
    }

    /// Changes the settings.
    pub fn set(&self, change: impl FnOnce(&mut IamSettings)) {
        change(&mut self.state.lock().unwrap().settings);
    }

    /// How many wrong passwords have come.
    pub fn wrong_passwords(&self) -> usize {
        self.state.lock().unwrap().wrong
    }

    /// Whether wrong passwords have locked the user.
    pub fn is_locked(&self) -> bool {
        self.state.lock().unwrap().is_locked()
    }

    /// Forgives the wrong passwords.
    pub fn unlock(&self) {
        self.state.lock().unwrap().wrong_in_a_row = 0;
    }

    fn token(&self, request: &Received<'_>) -> Result<Reply, Refusal> {
        let malformed = |why: &str| Refusal::new(StatusCode::BAD_REQUEST, "Bad Request", why);
        if request.query != Some("nocatalog=true") {
            return Err(malformed("the query is not nocatalog=true"));
        }
        let content_type = request.header("content-type").unwrap_or_default().replace(' ', "").to_ascii_lowercase();
        if !["application/json;charset=utf8", "application/json;charset=utf-8"].contains(&content_type.as_str()) {
            return Err(malformed("the content type is not application/json;charset=utf8"));
        }
        if ["authorization", "x-auth-token"].iter().any(|name| request.headers.contains_key(*name)) {
            return Err(malformed("a password is the only proof wanted"));
        }
        let body: Value = serde_json::from_slice(request.body).map_err(|_| malformed("the body is not JSON"))?;
        let mut state = self.state.lock().unwrap();
        let (settings, auth) = (state.settings.clone(), &body["auth"]);
        let (account, user) = (settings.account.0, settings.user);
        let password = auth["identity"]["password"]["user"]["password"].as_str().unwrap_or_default();
        let name = auth["identity"]["password"]["user"]["name"].as_str().unwrap_or_default();
        let domain = auth["identity"]["password"]["user"]["domain"]["name"].as_str().unwrap_or_default();
        let expected = json!({ "auth": {
            "identity": { "methods": ["password"], "password": {
                "user": { "name": name, "password": password, "domain": { "name": domain } } } },
            "scope": auth["scope"],
        } });
        if body != expected {
            return Err(malformed("the body is not that of a password and a scope"));
        }
        let unauthorized = |why: &str| Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized", why);
        if state.is_locked() {
            return Err(unauthorized("The account is locked."));
        }
        if (domain, name) != (account, user) || !settings.passwords.contains(&password) {
            state.wrong += 1;
            state.wrong_in_a_row += 1;
            return Err(unauthorized("The username or password is wrong."));
        }
        state.wrong_in_a_row = 0;
        let (described, scope) =
            settings.scope(&auth["scope"]).ok_or_else(|| malformed("the scope is not well formed"))?;
        let scope = scope
            .ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "Not Found", format!("Could not find {described}.")))?;
        Ok(self.give(&settings, (&described, &auth["scope"]), scope, request.time))
    }

    /// `asked` is what the scope is called and how it was named, `scope` what stands for it in the reply.
    fn give(&self, settings: &IamSettings, asked: (&str, &Value), scope: (&str, Value), now: Timestamp) -> Reply {
        let (described, named) = asked;
        let expires = now.after(settings.life);
        let token = self.tokens.issue(described, expires, settings.length);
        let (account, id) = settings.account;
        let mut about = json!({
            "issued_at": in_micros(now),
            "methods": ["password"],
            "user": { "name": settings.user, "domain": { "name": account, "id": id } },
            "roles": [{ "name": "te_admin", "id": "0" }],
        });
        about[scope.0] = scope.1;
        match settings.expiry {
            Expiry::Micros => about["expires_at"] = in_micros(expires).into(),
            Expiry::Seconds => about["expires_at"] = in_seconds(expires).into(),
            Expiry::Absent => {}
        }
        Reply::json(201, &json!({ "token": about }), Ok(format!("token of {described} named by {named}")))
            .with("x-subject-token", token)
    }

    fn id(&self, request: &Received<'_>) -> Result<Reply, Refusal> {
        let verified = SdkHmac { keys: self.keys.clone(), derived: None }.verify(request)?;
        let bad = |why: &str| Refusal::new(StatusCode::BAD_REQUEST, "Bad Request", why);
        if ["x-project-id", "x-domain-id"].iter().any(|name| request.headers.contains_key(*name)) {
            return Err(bad("an id is looked up without an id"));
        }
        let settings = self.state.lock().unwrap().settings.clone();
        let (account, account_id) = settings.account;
        let name = request.query.and_then(|query| query.strip_prefix("name="));
        let body = match (request.path, name) {
            ("/v3/projects", Some(name)) => {
                let named = settings.projects.iter().filter(|project| project.0 == name);
                let found: Vec<_> = named
                    .map(|(name, id)| json!({ "name": name, "id": id, "domain_id": account_id, "enabled": true }))
                    .collect();
                json!({ "projects": found, "links": {} })
            }
            ("/v3/auth/domains", None) => {
                let domain = json!({ "name": account, "id": account_id, "enabled": true });
                json!({ "domains": if settings.shows_account { vec![domain] } else { vec![] }, "links": {} })
            }
            ("/v5/caller-identity", None) => json!({
                "account_id": account_id,
                "principal_id": "0",
                "principal_urn": format!("iam::{account_id}:user:{}", settings.user),
            }),
            _ => return Err(Refusal::new(StatusCode::NOT_FOUND, "Not Found", "no such path")),
        };
        let what = request.path.rsplit('/').next().unwrap_or_default();
        Ok(Reply::json(200, &body, Ok(format!("{what} for {verified}"))))
    }
}

impl Play for Iam {
    fn answer(&self, request: &Received<'_>) -> Reply {
        let answer = match (request.method, request.path) {
            (&Method::POST, "/v3/auth/tokens") => self.token(request),
            (&Method::GET, _) => self.id(request),
            _ => Err(Refusal::new(StatusCode::NOT_FOUND, "Not Found", "no such path")),
        };
        let trace = format!("token_trace_{}", opaque(12));
        let answer = answer.unwrap_or_else(|refusal| {
            let (status, message) = (refusal.status.as_u16(), &refusal.message);
            // Signatures are refused by the gateway before it.
            let body = if refusal.code.starts_with("APIGW.") {
                json!({ "error_msg": message, "error_code": refusal.code, "request_id": trace })
            } else {
                json!({ "error": { "code": status, "message": message, "title": refusal.code } })
            };
            Reply::refused_with(&refusal, &body)
        });
        answer.with("x-iam-trace-id", trace)
    }
}

impl State {
    fn is_locked(&self) -> bool {
        self.wrong_in_a_row >= self.settings.lock_after
    }
}

impl IamSettings {
    /// What a scope is called, and the name and object that stand for it in a token, if it is one of this account's.
    fn scope(&self, scope: &Value) -> Option<(String, Option<(&'static str, Value)>)> {
        let (account, account_id) = self.account;
        let domains = [json!({ "name": account }), json!({ "id": account_id })];
        let domain = json!({ "name": account, "id": account_id });
        for (name, id) in &self.projects {
            let mut project = vec![json!({ "name": name }), json!({ "id": id })];
            project.extend(domains.iter().map(|domain| json!({ "name": name, "domain": domain })));
            if project.iter().any(|project| *scope == json!({ "project": project })) {
                let about = json!({ "name": name, "id": id, "domain": domain });
                return Some((format!("project {name}"), Some(("project", about))));
            }
        }
        if domains.iter().any(|domain| *scope == json!({ "domain": domain })) {
            return Some((format!("domain {account}"), Some(("domain", domain))));
        }
        let (kind, about) = scope.as_object().filter(|scope| scope.len() == 1)?.iter().next()?;
        let is_named = about["name"].is_string() || about["id"].is_string();
        (is_named && ["project", "domain"].contains(&kind.as_str())).then(|| (kind.clone(), None))
    }
}
