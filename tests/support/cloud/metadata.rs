//! What an instance asks for the keys of its role: Alibaba Cloud's metadata service (acm.md, 6) and Huawei Cloud's
//! (huawei.md, B6).

use std::sync::Mutex;
use std::time::Duration;

use countersign::credential::{AccessKey, ExposeSecret};
use countersign::demo::verify::{Keys, Received};
use http::Method;
use serde_json::json;

use super::issue::{Mint, Sessions, in_micros, in_seconds};
use super::reply::Reply;
use super::server::Play;

/// What is asked for beside the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A token of the service's own, always.
    Hardened,
    /// A token, which must be good if it is there.
    Lenient,
    /// None can be had: that step is answered with this status.
    Plain(u16),
}

/// Alibaba Cloud's: `token`, `role` and `credentials` are what it gives.
pub struct Ecs {
    /// All keys that it gave.
    pub mint: Mint,
    settings: Mutex<EcsSettings>,
    sessions: Sessions,
}

/// What can be changed while it runs.
#[derive(Clone, Debug)]
pub struct EcsSettings {
    pub mode: Mode,
    /// The role's name; an instance may have none.
    pub role: Option<&'static str>,
    /// How long keys live from when they are given.
    pub life: Duration,
    /// `Code` in the reply.
    pub code: &'static str,
}

impl Ecs {
    pub(super) fn new(rings: Vec<Keys>) -> Self {
        let settings = EcsSettings {
            mode: Mode::Lenient,
            role: Some("the-role"),
            life: Duration::from_secs(3600),
            code: "Success",
        };
        Self { mint: Mint::new("STS.ecs", rings), settings: Mutex::new(settings), sessions: Sessions::default() }
    }

    /// Changes the settings.
    pub fn set(&self, change: impl FnOnce(&mut EcsSettings)) {
        change(&mut self.settings.lock().unwrap());
    }

    /// Makes all its own tokens stale.
    pub fn forget_tokens(&self) {
        self.sessions.forget();
    }
}

impl Play for Ecs {
    fn answer(&self, request: &Received<'_>) -> Reply {
        let settings = self.settings.lock().unwrap().clone();
        if request.path == "/latest/api/token" {
            let ttl = "x-aliyun-ecs-metadata-token-ttl-seconds";
            return token(request, settings.mode, &self.sessions, ttl).unwrap_or_else(|reply| reply);
        }
        let token = "x-aliyun-ecs-metadata-token";
        if let Err(why) = admit(request, settings.mode, &self.sessions, token) {
            let status = if request.headers.contains_key(token) { 401 } else { 403 };
            return Reply::text(status, "", Err(why));
        }
        let role = request.path.strip_prefix("/latest/meta-data/ram/security-credentials/");
        match (role, settings.role) {
            (Some(""), Some(role)) => Reply::text(200, role, Ok("role".to_owned())),
            (Some(asked), Some(role)) if asked == role => {
                let expires = request.time.after(settings.life);
                let key = self.mint.issue(expires);
                let [secret, token] = secrets(&key);
                let body = json!({
                    "AccessKeyId": key.access_key,
                    "AccessKeySecret": secret,
                    "SecurityToken": token,
                    "Expiration": in_seconds(expires),
                    "LastUpdated": in_seconds(request.time),
                    "Code": settings.code,
                });
                Reply::json(200, &body, Ok(format!("credentials {}", key.access_key)))
            }
            _ => Reply::text(404, "<html>404 - Not Found</html>", Err("no such role or path".to_owned())),
        }
    }
}

/// Huawei Cloud's: `token` and `securitykey` are what it gives.
pub struct Huawei {
    /// All keys that it gave.
    pub mint: Mint,
    settings: Mutex<HuaweiSettings>,
    sessions: Sessions,
}

/// What can be changed while it runs.
#[derive(Clone, Debug)]
pub struct HuaweiSettings {
    pub mode: Mode,
    /// Whether the instance may have keys at all.
    pub has_agency: bool,
    /// How long keys live from when they are given.
    pub life: Duration,
}

impl Huawei {
    pub(super) fn new(rings: Vec<Keys>) -> Self {
        let settings = HuaweiSettings { mode: Mode::Lenient, has_agency: true, life: Duration::from_secs(86_400) };
        Self { mint: Mint::new("HST.huawei", rings), settings: Mutex::new(settings), sessions: Sessions::default() }
    }

    /// Changes the settings.
    pub fn set(&self, change: impl FnOnce(&mut HuaweiSettings)) {
        change(&mut self.settings.lock().unwrap());
    }

    /// Makes all its own tokens stale.
    pub fn forget_tokens(&self) {
        self.sessions.forget();
    }
}

impl Play for Huawei {
    fn answer(&self, request: &Received<'_>) -> Reply {
        let settings = self.settings.lock().unwrap().clone();
        if request.path == "/meta-data/latest/api/token" {
            let ttl = "x-metadata-token-ttl-seconds";
            return token(request, settings.mode, &self.sessions, ttl).unwrap_or_else(|reply| reply);
        }
        if request.path != "/openstack/latest/securitykey" {
            return Reply::text(404, "", Err("no such path".to_owned()));
        }
        if let Err(why) = admit(request, settings.mode, &self.sessions, "x-metadata-token") {
            return Reply::text(401, "Unauthorized", Err(why));
        }
        if !settings.has_agency {
            let message = "Please configure Cloud Service Agency first.";
            return Reply::text(401, message, Err(message.to_owned()));
        }
        let expires = request.time.after(settings.life);
        let key = self.mint.issue(expires);
        let [secret, token] = secrets(&key);
        let credential = json!({
            "access": key.access_key,
            "secret": secret,
            "securitytoken": token,
            "expires_at": in_micros(expires),
        });
        Reply::json(200, &json!({ "credential": credential }), Ok(format!("securitykey {}", key.access_key)))
    }
}

/// The step before keys are asked for; the error is its refusal.
fn token(request: &Received<'_>, mode: Mode, sessions: &Sessions, header: &str) -> Result<Reply, Reply> {
    let refused = |status, why: &str| Reply::text(status, "", Err(why.to_owned()));
    if let Mode::Plain(status) = mode {
        return Err(refused(status, "there is no such step"));
    }
    if request.method != Method::PUT {
        return Err(refused(405, "a token is asked for with PUT"));
    }
    let ttl = request.header(header).and_then(|ttl| ttl.parse().ok()).filter(|ttl| (1..=21_600).contains(ttl));
    let ttl = Duration::from_secs(ttl.ok_or_else(|| refused(400, "no time to live from 1 to 21600"))?);
    Ok(Reply::text(200, sessions.issue(request.time.after(ttl)), Ok("token".to_owned())))
}

/// Whether what a token is wanted for may be read.
fn admit(request: &Received<'_>, mode: Mode, sessions: &Sessions, header: &str) -> Result<(), String> {
    if request.method != Method::GET {
        return Err("only GET is known here".to_owned());
    }
    match request.header(header) {
        Some(_) if matches!(mode, Mode::Plain(_)) => Ok(()),
        Some(token) if sessions.is_good(token, request.time) => Ok(()),
        Some(_) => Err("a stale token".to_owned()),
        None if mode == Mode::Hardened => Err("no token".to_owned()),
        None => Ok(()),
    }
}

fn secrets(key: &AccessKey) -> [&str; 2] {
    [key.secret_key.expose_secret(), key.security_token.as_ref().unwrap().expose_secret()]
}
