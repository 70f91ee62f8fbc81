//! The agency of a Huawei Cloud instance: temporary keys that the instance metadata service hands out
//! (<https://support.huaweicloud.com/intl/en-us/usermanual-ecs/ecs_03_0166.html>).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use serde_json::Value;

use crate::settings::Table;
use crate::upstream::ask::Asker;

use super::metadata::{Form, Metadata};
use super::{Credential, Failed, Fetch, Fetched, Margins, reply};

#[derive(Debug)]
struct HuaweiMetadata {
    metadata: Metadata,
}

/// Reads `{ source = "huawei-metadata", endpoint = "…" }`.
pub(super) fn read(table: &Table<'_>) -> Option<Arc<dyn Fetch>> {
    Some(Arc::new(HuaweiMetadata { metadata: Metadata::read(table, &FORM)? }))
}

impl HuaweiMetadata {
    async fn ask(&self, asker: &Asker) -> Result<Fetched, String> {
        let endpoint = &self.metadata.endpoint;
        let token = self.metadata.token(asker).await?;
        let mut answer = self.metadata.get(asker, KEYS, token.as_ref()).await?;
        let has_no_agency = |body: &[u8]| body.windows(NO_AGENCY.len()).any(|part| part == NO_AGENCY);
        if answer.status == StatusCode::UNAUTHORIZED && !has_no_agency(&answer.body) {
            // The token is stale, or there is none though one is wanted by now.
            self.metadata.forget();
            let token = self.metadata.token(asker).await?;
            let token = token.ok_or_else(|| format!("{endpoint} wants a token of metadata, but hands out none"))?;
            answer = self.metadata.get(asker, KEYS, Some(&token)).await?;
        }
        if has_no_agency(&answer.body) {
            return Err(format!("{endpoint} has no keys, since this instance has no agency: configure one for it"));
        }
        if answer.status != StatusCode::OK {
            return Err(format!("{endpoint} answered {} to the question for temporary keys", answer.status));
        }
        let wrong = |message: &str| format!("{endpoint} answered with keys, but {message}");
        let mut reply = reply::object(&answer.body).map_err(wrong)?;
        let fields = ["credential", "credentials"].iter().find_map(|name| reply.swap_remove(*name));
        let Some(Value::Object(fields)) = fields else { return Err(wrong("`credential` is missing")) };
        let (key, expiry) = reply::access_key(fields).map_err(|message| wrong(&message))?;
        let expiry = expiry.map(|expiry| answer.by_our_clock(expiry));
        Ok(Fetched { credential: Credential::AccessKey(key), expiry })
    }
}

impl Fetch for HuaweiMetadata {
    fn name(&self) -> &'static str {
        "huawei-metadata"
    }

    fn identity(&self) -> String {
        format!("huawei-metadata {}", self.metadata.endpoint)
    }

    fn margins(&self) -> Margins {
        Margins {
            refresh: Duration::from_secs(2400),
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
    endpoint: "http://169.254.169.254",
    token_path: "/meta-data/latest/api/token",
    life_header: HeaderName::from_static("x-metadata-token-ttl-seconds"),
    token_header: HeaderName::from_static("x-metadata-token"),
};

const KEYS: &str = "/openstack/latest/securitykey";

/// What the body of a 401 holds where the token is not what is wrong.
const NO_AGENCY: &[u8] = b"Please configure Cloud Service Agency first";
