//! A container cluster of Alibaba Cloud: the cluster-management API tells where its master is, and hands out the client
//! certificate that the master wants to see, with its key and the cluster's own CA
//! (`GET /clusters/{id}` and `GET /clusters/{id}/certs`, version 2015-12-15).
//!
//! All of it stays in memory: the private key is in the reply.

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use serde_json::{Map, Value};

use crate::clock::{Skew, Timestamp};
use crate::settings::Table;
use crate::upstream::ask::{Answer, Asker, Question};
use crate::upstream::bundle::{self, Bundle, Identity};
use crate::upstream::{Endpoint, tls, x509};

use super::{
    AccessKey, Certificate, Credential, Failed, Fetch, Fetched, Margins, SecretRef, Source, Unreadable, address, reply,
};

/// Signs a GET for a target, at a time and with a nonce: the headers to send.
pub type SignGet = fn(&AccessKey, target: &str, Timestamp, nonce: &str) -> Result<HeaderMap, String>;

/// A cluster, and the source of the access keys that it is asked for with.
#[derive(Debug)]
pub struct AliyunCluster {
    source: Source,
    endpoint: Endpoint,
    id: String,
    sign: SignGet,
    /// How far the API's clock is ahead, as its refusals have taught.
    skew: Skew,
}

impl AliyunCluster {
    /// Reads `cluster_id`, `credentials` and `endpoint` out of a provider's table.
    #[must_use]
    pub fn read(table: &Table<'_>, sign: SignGet) -> Option<Self> {
        let id = table.require("cluster_id", "the cluster's id, as the console shows it");
        let id = id.and_then(|value| value.parse(cluster_id));
        let source = Source::read(table);
        let endpoint = match table.get("endpoint") {
            Some(value) => address(&value),
            None => Endpoint::parse(ENDPOINT).ok(),
        };
        Some(Self { source: source?, endpoint: endpoint?, id: id?, sign, skew: Skew::default() })
    }

    async fn ask(&self, asker: &Asker) -> Result<Fetched, Failed> {
        let Credential::AccessKey(key) = self.source.obtain(asker).await?.credential else {
            return Err(Failed::lasting("a cluster's certificates are handed out for access keys alone"));
        };
        let Self { endpoint, id, .. } = self;
        let details = self.get(asker, &key, &format!("/clusters/{id}")).await?;
        let wrong = |message: &str| Failed::passing(format!("{endpoint} answered for the cluster {id}, but {message}"));
        let upstream = master(&reply::object(&details.body).map_err(wrong)?);
        let upstream = upstream.map_err(|failed| Failed { retry: failed.retry, ..wrong(&failed.message) })?;

        let certificates = self.get(asker, &key, &format!("/clusters/{id}/certs")).await?;
        let unfit = |message: String| wrong(&format!("not with certificates that can be used: {message}"));
        let bundle = bundle::unpack(&certificates.body, Identity::Source).map_err(unfit)?;
        let text = std::str::from_utf8(&certificates.body).map_err(|_| wrong("it is no text"))?;
        let reply = SecretString::from(text);
        Ok(Fetched { credential: Credential::Certificate(Certificate { reply, upstream }), expiry: end(&bundle) })
    }

    /// Asks, and once more with the server's own time where ours is what it refuses.
    async fn get(&self, asker: &Asker, key: &AccessKey, target: &str) -> Result<Answer, Failed> {
        let mut may_correct = true;
        loop {
            let time = Timestamp(asker.clock.now().0.saturating_add(self.skew.millis()));
            let headers = (self.sign)(key, target, time, &nonce()).map_err(Failed::lasting)?;
            let question = Question {
                endpoint: &self.endpoint,
                key: "endpoint",
                ca: None,
                ca_key: "server.extra_ca",
                method: Method::GET,
                target,
                headers,
                body: Zeroizing::default(),
                connect: Duration::from_secs(5),
                answer: Duration::from_secs(10),
            };
            // In the clear nothing leaves this machine, not even by a proxy.
            let straight = (!self.endpoint.secure).then(|| asker.straight());
            let answer = straight.as_ref().unwrap_or(asker).ask(question).await.map_err(Failed::passing)?;
            if answer.status == StatusCode::OK {
                return Ok(answer);
            }
            let said = Said::of(&answer);
            match answer.ahead {
                Some(ahead) if may_correct && said.is(&["InvalidTimeStamp", "IllegalTimestamp"]) => {
                    self.skew.learn(ahead);
                    may_correct = false;
                }
                _ => return Err(self.refusal(answer.status, &said, key)),
            }
        }
    }

    fn refusal(&self, status: StatusCode, said: &Said, key: &AccessKey) -> Failed {
        let Self { endpoint, id, .. } = self;
        let (help, is_of_key) = said.help(status);
        // Its message is left out, since it may quote what was signed, a security token with it.
        let Said { code, request_id } = said;
        let code = code.as_ref().map(|code| format!(" {code}")).unwrap_or_default();
        let trace = request_id.as_ref().map(|id| format!(" (RequestId {id})")).unwrap_or_default();
        let message =
            format!("{endpoint} does not tell about the cluster {id}: it answered {status}{code}{trace}{help}");
        let message = Credential::AccessKey(key.clone()).mask(&message);
        let may_pass = status.is_server_error()
            || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status)
            || said.is(&["Throttling", "SignatureNonceUsed"])
            // The next ones are other keys.
            || (is_of_key && key.security_token.is_some());
        if may_pass { Failed::passing(message) } else { Failed::lasting(message) }
    }
}

impl Fetch for AliyunCluster {
    fn name(&self) -> &'static str {
        "aliyun-cluster"
    }

    fn identity(&self) -> String {
        format!("aliyun-cluster {} {} of {}", self.endpoint, self.id, self.source.identity())
    }

    fn references(&self) -> Vec<&SecretRef> {
        self.source.references()
    }

    fn files(&self) -> Vec<PathBuf> {
        self.source.files()
    }

    fn runs_programs(&self) -> bool {
        self.source.runs_programs()
    }

    fn ttl(&self) -> Option<Duration> {
        Some(EVERY)
    }

    fn check(&self) -> Result<(), Vec<Unreadable>> {
        match &self.source {
            Source::Fetched(fetch) => fetch.check(),
            source => source.load().map(drop),
        }
    }

    fn margins(&self) -> Margins {
        Margins {
            refresh: EVERY,
            refresh_percent: 0,
            jitter: Duration::ZERO,
            wait: Duration::from_secs(60),
            gone: Duration::ZERO,
        }
    }

    fn fetch<'a>(&'a self, asker: &'a Asker) -> Pin<Box<dyn Future<Output = Result<Fetched, Failed>> + 'a>> {
        Box::pin(self.ask(asker))
    }
}

/// What a refusal says, fit to be shown.
struct Said {
    code: Option<String>,
    request_id: Option<String>,
}

impl Said {
    fn of(answer: &Answer) -> Self {
        let fields = reply::object(&answer.body).unwrap_or_default();
        let text = |names: [&str; 2]| names.iter().find_map(|name| fields.get(*name)?.as_str()).map(reply::shown);
        let header = || answer.headers.get("x-acs-request-id")?.to_str().ok().map(reply::shown);
        Self { code: text(["Code", "code"]), request_id: text(["RequestId", "requestId"]).or_else(header) }
    }

    /// True if the code, up to its first dot, begins with one of these.
    fn is(&self, families: &[&str]) -> bool {
        self.code.as_ref().is_some_and(|code| families.iter().any(|family| code.starts_with(family)))
    }

    /// What to do about it, and whether that is about the access key.
    fn help(&self, status: StatusCode) -> (&'static str, bool) {
        let help = HELP.iter().find(|(families, ..)| self.is(families));
        match help {
            Some((_, help, is_of_key)) => (help, *is_of_key),
            None if status == StatusCode::NOT_FOUND => {
                (": correct `cluster_id`, or `endpoint` if it is of another region", false)
            }
            None => ("", false),
        }
    }
}

/// Codes by their beginnings, what to do about them, and whether that is about the access key.
const HELP: [(&[&str], &str, bool); 6] = [
    (&["SignatureDoesNotMatch"], ": correct the secret key", false),
    (&["InvalidAccessKeyId.Inactive"], ": enable the access key, or use another one", false),
    (&["InvalidAccessKeyId"], ": check that the access key exists, and that a temporary one has not expired", true),
    (
        &["InvalidSecurityToken", "MissingSecurityToken"],
        ": key, secret and security token belong together and expire together",
        true,
    ),
    (&["Forbidden", "NoPermission"], ": give the owner of the access key a policy that allows it", false),
    (&["InvalidTimeStamp", "IllegalTimestamp"], ": set this machine's clock", false),
];

/// Where the master is, by the details of its cluster.
fn master(details: &Map<String, Value>) -> Result<Endpoint, Failed> {
    let state = || {
        details
            .get("state")
            .and_then(Value::as_str)
            .map_or_else(String::new, |state| format!(" (it is in the state \"{}\")", reply::shown(state)))
    };
    let url = match details.get("master_url") {
        Some(Value::String(url)) if !url.trim().is_empty() => url.trim(),
        Some(Value::String(_) | Value::Null) => {
            return Err(Failed::passing(format!("it has no `master_url` yet{}: it will be asked for again", state())));
        }
        _ => return Err(Failed::passing("without a `master_url` that is text: is that the cluster-management API?")),
    };
    if url.starts_with('{') {
        let message =
            "its `master_url` is that of a Kubernetes cluster: only Swarm clusters have certificates of this kind";
        return Err(Failed::lasting(message));
    }
    let endpoint = if url.contains("://") { Endpoint::parse(url) } else { Endpoint::parse(&format!("tcp://{url}")) };
    let endpoint = endpoint.ok().filter(|endpoint| endpoint.secure);
    endpoint.ok_or_else(|| Failed::lasting("its `master_url` is no address of a server that speaks TLS"))
}

/// When the first certificate of the chain ends.
fn end(bundle: &Bundle) -> Option<Timestamp> {
    let chain = bundle.identity.cert.iter();
    chain.filter_map(|certificate| x509::Certificate::parse(certificate)).map(|parsed| parsed.not_after).min()
}

fn cluster_id(text: &str) -> Result<String, &'static str> {
    let digits = text.strip_prefix(['c', 'C']);
    let is_id =
        digits.is_some_and(|digits| digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    is_id.then(|| text.to_owned()).ok_or("expected the id of a cluster: a \"c\" and 32 hex digits")
}

/// 32 hex digits that do not come again.
fn nonce() -> String {
    let mut octets = [0; 16];
    if tls::provider().secure_random.fill(&mut octets).is_err() {
        octets = fastrand::u128(..).to_ne_bytes();
    }
    hex::encode(octets)
}

const ENDPOINT: &str = "https://cs.aliyuncs.com";

/// How often the certificates are fetched anew, though nothing was wrong with them.
const EVERY: Duration = Duration::from_secs(12 * 3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::Retry;

    #[test]
    fn a_masters_address_is_read_in_every_spelling() {
        let read = |details: &str| {
            let endpoint = master(&reply::object(details.as_bytes()).unwrap());
            endpoint.map(|endpoint| endpoint.to_string()).map_err(|failed| (failed.retry, failed.message))
        };
        for url in [
            "tcp://123.123.123.123:1234",
            "https://123.123.123.123:1234",
            "123.123.123.123:1234",
            " 123.123.123.123:1234 ",
        ] {
            let read = read(&format!(r#"{{"master_url":"{url}"}}"#));
            assert_eq!(read.as_deref(), Ok("https://123.123.123.123:1234"), "{url}");
        }
        for (details, retry, said) in [
            (r#"{"master_url":"","state":"initial"}"#, Retry::Soon, "yet (it is in the state \"initial\")"),
            (r#"{"master_url":null}"#, Retry::Soon, "yet: it will be asked for again"),
            ("{}", Retry::Soon, "is that the cluster-management API?"),
            (r#"{"master_url":"{\"api_server_endpoint\":\"https://1.2.3.4:6443\"}"}"#, Retry::Late, "Kubernetes"),
            (r#"{"master_url":"http://1.2.3.4:2375"}"#, Retry::Late, "speaks TLS"),
            (r#"{"master_url":"no address"}"#, Retry::Late, "speaks TLS"),
        ] {
            let (found, message) = read(details).unwrap_err();
            assert!(found == retry && message.contains(said), "{details}: {message}");
        }
    }

    #[test]
    fn a_cluster_is_called_by_33_characters() {
        for id in ["Cccfd68c474454665ace07efce924f75f", "c0123456789abcdefABCDEF0123456789"] {
            assert_eq!(cluster_id(id).as_deref(), Ok(id));
        }
        for id in [
            "",
            "c",
            "ccfd68c474454665ace07efce924f75f",
            "dccfd68c474454665ace07efce924f75f",
            "cccfd68c474454665ace07efce924f7/f",
        ] {
            assert!(cluster_id(id).is_err(), "{id}");
        }
        assert_eq!(nonce().len(), 32);
        assert_ne!(nonce(), nonce());
    }
}
