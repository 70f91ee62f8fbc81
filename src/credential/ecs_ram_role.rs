//! The role of an Alibaba Cloud instance: temporary keys that the instance metadata service hands out
//! (<https://www.alibabacloud.com/help/en/ecs/user-guide/attach-an-instance-ram-role-to-an-ecs-instance>).
//!
//! The hardened mode wants a token first; the plain one, which is the default of old instances, takes the question as it is.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use secrecy::SecretString;
use serde_json::Value;

use crate::settings::Table;
use crate::upstream::ask::{Answer, Asker};

use super::metadata::{Form, Metadata};
use super::{Credential, Failed, Fetch, Fetched, Margins, reply};

#[derive(Debug)]
struct EcsRamRole {
    metadata: Metadata,
    role: Option<String>,
}

/// Reads `{ source = "ecs-ram-role", role = "…", endpoint = "…" }`.
pub(super) fn read(table: &Table<'_>) -> Option<Arc<dyn Fetch>> {
    let metadata = Metadata::read(table, &FORM);
    let role = table.get("role").map(|value| {
        value.parse(|text| is_role(text).then(|| text.to_owned()).ok_or("expected the name of a RAM role"))
    });
    Some(Arc::new(EcsRamRole { metadata: metadata?, role: role.map_or(Some(None), |role| role.map(Some))? }))
}

fn is_role(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

impl EcsRamRole {
    async fn ask(&self, asker: &Asker) -> Result<Fetched, String> {
        // A machine without tokens answers all the same, unless it was hardened: then it says so.
        let token = self.metadata.token(asker).await.unwrap_or_default();
        let role = match &self.role {
            Some(role) => role.clone(),
            None => self.role(asker, token.as_ref()).await?,
        };
        let answer = self.get(asker, &format!("{FOLDER}{role}"), token.as_ref()).await?;
        let endpoint = &self.metadata.endpoint;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                return Err(format!("{endpoint} knows no role \"{role}\": attach it to this instance"));
            }
            status => return Err(format!("{endpoint} answered {status} to the question for the keys of a role")),
        }
        let wrong = |message: &str| format!("{endpoint} answered for the role \"{role}\", but {message}");
        let fields = reply::object(&answer.body).map_err(wrong)?;
        match fields.get("Code").and_then(Value::as_str) {
            Some("Success") => {}
            Some(code) => return Err(wrong(&format!("`Code` is \"{}\"", reply::shown(code)))),
            None => return Err(wrong("`Code` is missing")),
        }
        let (key, expiry) = reply::access_key(fields).map_err(|message| wrong(&message))?;
        let expiry = expiry.map(|expiry| answer.by_our_clock(expiry));
        Ok(Fetched { credential: Credential::AccessKey(key), expiry })
    }

    /// The role that is attached to this instance.
    async fn role(&self, asker: &Asker, token: Option<&SecretString>) -> Result<String, String> {
        let Answer { status, body, .. } = self.get(asker, FOLDER, token).await?;
        let endpoint = &self.metadata.endpoint;
        let name = std::str::from_utf8(&body).ok().and_then(|text| text.lines().next()).map(str::trim);
        match (status, name) {
            (StatusCode::OK, Some(name)) if is_role(name) => Ok(name.to_owned()),
            (StatusCode::OK, Some(name)) if !name.is_empty() => {
                Err(format!("{endpoint} answered, but not with the name of a role: is that the metadata service?"))
            }
            (StatusCode::OK | StatusCode::NOT_FOUND, _) => {
                Err(format!("{endpoint} names no RAM role: attach one to this instance"))
            }
            (status, _) => Err(format!("{endpoint} answered {status} to the question for this instance's role")),
        }
    }

    /// Asks with the token, and once more without where that does not do.
    async fn get(&self, asker: &Asker, path: &str, token: Option<&SecretString>) -> Result<Answer, String> {
        let answer = self.metadata.get(asker, path, token).await?;
        if answer.status == StatusCode::OK {
            return Ok(answer);
        }
        self.metadata.forget();
        match token {
            Some(_) => self.metadata.get(asker, path, None).await,
            None => Ok(answer),
        }
    }
}

impl Fetch for EcsRamRole {
    fn name(&self) -> &'static str {
        "ecs-ram-role"
    }

    fn identity(&self) -> String {
        format!("ecs-ram-role {} {}", self.metadata.endpoint, self.role.as_deref().unwrap_or_default())
    }

    fn margins(&self) -> Margins {
        Margins {
            refresh: Duration::from_secs(900),
            refresh_percent: 0,
            jitter: Duration::from_secs(60),
            wait: Duration::from_secs(180),
            gone: Duration::ZERO,
        }
    }

    fn fetch<'a>(&'a self, asker: &'a Asker) -> Pin<Box<dyn Future<Output = Result<Fetched, Failed>> + 'a>> {
        Box::pin(async { self.ask(asker).await.map_err(Failed::passing) })
    }
}

static FORM: Form = Form {
    endpoint: "http://100.100.100.200",
    token_path: "/latest/api/token",
    life_header: HeaderName::from_static("x-aliyun-ecs-metadata-token-ttl-seconds"),
    token_header: HeaderName::from_static("x-aliyun-ecs-metadata-token"),
};

const FOLDER: &str = "/latest/meta-data/ram/security-credentials/";
