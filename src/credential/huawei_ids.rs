//! The ids that Huawei Cloud knows an access key's project and account by: IAM tells them, once for each key, to whoever
//! signs with it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::zeroize::Zeroizing;
use serde_json::Value;

use crate::clock::{Skew, Timestamp};
use crate::settings::Table;
use crate::upstream::ask::{Answer, Asker};
use crate::upstream::{Endpoint, Host};

use super::huawei_iam::{Iam, refusal, said};
use super::{
    AccessKey, Credential, Failed, Fetch, Fetched, Ids, Margins, SecretRef, Source, Unreadable, address, reply,
};

/// Signs a GET for an authority and a target, at a time: the headers to send.
pub type Sign = fn(&AccessKey, authority: &str, target: &str, Timestamp) -> Result<HeaderMap, String>;

/// A source of access keys, and the service that knows their ids.
#[derive(Debug)]
pub struct HuaweiIds {
    source: Source,
    iam: Iam,
    /// Who knows the account where IAM does not tell it.
    sts: Option<Iam>,
    /// The project's name, if its id is wanted.
    region: Option<String>,
    wants_domain: bool,
    sign: Sign,
    /// How far IAM's clock is ahead, as its refusals have taught.
    skew: Skew,
    /// By access key, the newest last.
    known: Mutex<VecDeque<(String, Ids)>>,
}

/// Which ids are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The project's.
    pub project: bool,
    /// The account's.
    pub domain: bool,
}

impl HuaweiIds {
    /// Reads `iam`, `iam_ca`, `sts` and `region` out of a provider's table; `source` is where the access keys come from.
    #[must_use]
    pub fn read(table: &Table<'_>, source: Source, wanted: Wanted, sign: Sign) -> Option<Self> {
        let iam = Iam::read(table);
        let region = if wanted.project {
            table.require("region", "the region whose project is to be found, as \"cn-north-4\"")
        } else {
            table.get("region")
        };
        let region = region.map(|value| {
            value.parse(|text| (!text.is_empty()).then(|| text.to_owned()).ok_or("expected the id of a region"))
        });
        let region = region.map_or(Some(None), |region| region.map(Some));
        let sts = table.get("sts").map(|value| address(&value));
        let sts = sts.map_or(Some(None), |sts| sts.map(Some));
        let (iam, region, sts) = (iam?, region?, sts?);
        let sts = sts.or_else(|| sts_beside(&iam.endpoint, region.as_deref()));
        let sts = sts.map(|endpoint| Iam { endpoint, key: "sts", ca: iam.ca.clone() });
        Some(Self {
            source,
            iam,
            sts,
            region: region.filter(|_| wanted.project),
            wants_domain: wanted.domain,
            sign,
            skew: Skew::default(),
            known: Mutex::default(),
        })
    }

    async fn ask(&self, asker: &Asker) -> Result<Fetched, Failed> {
        let Fetched { credential, expiry } = self.source.obtain(asker).await?;
        let Credential::AccessKey(key) = credential else {
            return Err(Failed::lasting("ids are found out for access keys alone"));
        };
        let known = self.known().iter().find(|(name, _)| *name == key.access_key).map(|(_, ids)| ids.clone());
        let ids = match known {
            Some(ids) => ids,
            None => self.find(asker, &key).await?,
        };
        Ok(Fetched { credential: Credential::Identified(key, ids), expiry })
    }

    async fn find(&self, asker: &Asker, key: &AccessKey) -> Result<Ids, Failed> {
        let mut ids = Ids::default();
        if let Some(region) = &self.region {
            ids.project = Some(self.project(asker, key, region).await?);
        }
        if self.wants_domain {
            ids.domain = Some(self.domain(asker, key).await?);
        }
        let mut known = self.known();
        known.push_back((key.access_key.clone(), ids.clone()));
        while known.len() > MOST_KEYS {
            known.pop_front();
        }
        Ok(ids)
    }

    async fn project(&self, asker: &Asker, key: &AccessKey, region: &str) -> Result<String, Failed> {
        let target = format!("/v3/projects?name={}", utf8_percent_encode(region, IN_QUERY));
        let answer = self.get(asker, &self.iam, key, &target, "`project_id`").await?;
        let projects = listed(&answer, "projects", "id");
        let iam = &self.iam.endpoint;
        match projects.as_deref() {
            Some([id]) => Ok(id.clone()),
            Some([]) => {
                let trace = trace(&answer);
                Err(Failed::lasting(format!(
                    "{iam} knows no project \"{region}\" of this access key's account{trace}: correct `region`, or give \
                     `project_id`"
                )))
            }
            Some(several) => {
                let listed = several.iter().take(MOST_LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
                let more = if several.len() > MOST_LISTED { " and more" } else { "" };
                Err(Failed::lasting(format!(
                    "{iam} knows several projects \"{region}\": give the one that is meant as `project_id`, one of {listed}{more}"
                )))
            }
            None => Err(unreadable(iam, "projects", &answer)),
        }
    }

    async fn domain(&self, asker: &Asker, key: &AccessKey) -> Result<String, Failed> {
        let answer = self.get(asker, &self.iam, key, "/v3/auth/domains", "`domain_id`").await?;
        let iam = &self.iam.endpoint;
        let domains = listed(&answer, "domains", "id").ok_or_else(|| unreadable(iam, "domains", &answer))?;
        if let Some(id) = domains.into_iter().next() {
            return Ok(id);
        }
        // Whoever may not read the list gets an empty one.
        let Some(sts) = &self.sts else {
            let trace = trace(&answer);
            return Err(Failed::lasting(format!(
                "{iam} does not tell the account of this access key{trace}: give `domain_id`, or in `sts` the address of STS"
            )));
        };
        let answer = self.get(asker, sts, key, "/v5/caller-identity", "`domain_id`").await?;
        let id = reply::object(&answer.body).ok().and_then(|reply| id(reply.get("account_id")?));
        id.ok_or_else(|| unreadable(&sts.endpoint, "account_id", &answer))
    }

    /// Asks, and once more with the server's own time where ours is what it refuses.
    async fn get(
        &self,
        asker: &Asker,
        server: &Iam,
        key: &AccessKey,
        target: &str,
        instead: &str,
    ) -> Result<Answer, Failed> {
        let mut may_correct = true;
        loop {
            let authority = server.endpoint.authority();
            let time = Timestamp(asker.clock.now().0.saturating_add(self.skew.millis()));
            let headers = (self.sign)(key, &authority, target, time).map_err(Failed::lasting)?;
            let answer = server.ask(asker, Method::GET, target, headers, Zeroizing::default()).await?;
            if answer.status == StatusCode::OK {
                return Ok(answer);
            }
            // Bad signatures lock the access key for everybody: no more than one is made good.
            let ahead =
                answer.ahead.filter(|ahead| may_correct && is_of_the_clock(&answer, ahead - self.skew.millis()));
            if let Some(ahead) = ahead {
                self.skew.learn(ahead);
                may_correct = false;
                continue;
            }
            let (endpoint, status) = (&server.endpoint, answer.status);
            let help = match status {
                StatusCode::UNAUTHORIZED => format!(": correct `credentials`, or give {instead}"),
                status if status.is_server_error() => String::new(),
                _ => format!(": give {instead}"),
            };
            let what = format!("{endpoint} does not tell the id");
            return Err(refusal(&answer, &what, &help, Some(&key.secret_key)));
        }
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<(String, Ids)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fetch for HuaweiIds {
    fn name(&self) -> &'static str {
        self.source.name()
    }

    fn identity(&self) -> String {
        let Self { source, iam, sts, region, wants_domain, .. } = self;
        let sts = sts.as_ref().map(|sts| &sts.endpoint);
        format!("huawei-ids {} {sts:?} {region:?} {wants_domain} of {}", iam.identity(), source.identity())
    }

    fn references(&self) -> Vec<&SecretRef> {
        self.source.references()
    }

    fn files(&self) -> Vec<PathBuf> {
        let ca = self.iam.ca.as_ref().map(|ca| ca.path.clone());
        self.source.files().into_iter().chain(ca).collect()
    }

    fn runs_programs(&self) -> bool {
        self.source.runs_programs()
    }

    fn ttl(&self) -> Option<Duration> {
        self.source.ttl()
    }

    fn check(&self) -> Result<(), Vec<Unreadable>> {
        match &self.source {
            Source::Fetched(fetch) => fetch.check(),
            source => source.load().map(drop),
        }
    }

    fn margins(&self) -> Margins {
        match &self.source {
            Source::Fetched(fetch) => fetch.margins(),
            _ => super::command::MARGINS,
        }
    }

    fn fetch<'a>(&'a self, asker: &'a Asker) -> Pin<Box<dyn Future<Output = Result<Fetched, Failed>> + 'a>> {
        Box::pin(self.ask(asker))
    }
}

/// True for a refusal that another time would mend.
fn is_of_the_clock(answer: &Answer, off: i64) -> bool {
    answer.status == StatusCode::UNAUTHORIZED
        && (off.abs() > WINDOW || said(&answer.body).is_some_and(|said| said.contains("signature expired")))
}

/// Where STS is, for what IAM's address tells of the region.
fn sts_beside(iam: &Endpoint, region: Option<&str>) -> Option<Endpoint> {
    let Host::Name(name) = &iam.host else { return None };
    let rest = name.strip_prefix("iam.")?;
    let host = match region {
        // The global address of IAM.
        Some(region) if rest.matches('.').count() == 1 => format!("sts.{region}.{rest}"),
        _ => format!("sts.{rest}"),
    };
    Some(Endpoint { host: Host::parse(&host).ok()?, ..iam.clone() })
}

/// The ids in a list of objects, if that is what the answer holds.
fn listed(answer: &Answer, list: &str, key: &str) -> Option<Vec<String>> {
    let reply = reply::object(&answer.body).ok()?;
    reply.get(list)?.as_array()?.iter().map(|entry| id(entry.get(key)?)).collect()
}

/// An id that a header can hold.
fn id(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    let is_id = (1..=64).contains(&text.len()) && text.bytes().all(|octet| octet.is_ascii_graphic());
    is_id.then(|| text.to_owned())
}

fn unreadable(endpoint: &Endpoint, what: &str, answer: &Answer) -> Failed {
    let trace = trace(answer);
    Failed::passing(format!(
        "{endpoint} answered, but without `{what}` that can be read{trace}: is that the right address?"
    ))
}

fn trace(answer: &Answer) -> String {
    super::huawei_iam::trace(&answer.headers)
}

/// How far the time of a signature may be off, in milliseconds.
const WINDOW: i64 = 15 * 60 * 1000;

/// For how many access keys the ids are remembered: temporary ones are many, but one after the other.
const MOST_KEYS: usize = 8;

/// How many projects are told.
const MOST_LISTED: usize = 10;

static IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sts_stands_beside_iam() {
        let sts =
            |iam: &str, region| sts_beside(&Endpoint::parse(iam).unwrap(), region).map(|endpoint| endpoint.to_string());
        let north = Some("https://sts.cn-north-4.myhuaweicloud.com".to_owned());
        assert_eq!(sts("https://iam.cn-north-4.myhuaweicloud.com", None), north);
        assert_eq!(sts("https://iam.cn-north-4.myhuaweicloud.com", Some("cn-north-4")), north);
        assert_eq!(sts("https://iam.myhuaweicloud.com", Some("cn-north-4")), north);
        assert_eq!(sts("https://iam.example.com:8443", None), Some("https://sts.example.com:8443".to_owned()));
        assert_eq!(sts("https://127.0.0.1", Some("cn-north-4")), None);
        assert_eq!(sts("https://keys.example.com", None), None);
        assert_eq!(sts("https://iam.myhuaweicloud.com", Some("not a host")), None);
    }
}
