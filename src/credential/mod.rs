//! Secrets, where credentials come from, how they stay fresh.

mod aliyun_cluster;
mod command;
mod ecs_ram_role;
mod fetch;
mod file;
mod huawei_iam;
mod huawei_ids;
mod huawei_metadata;
pub mod keeper;
mod mask;
mod metadata;
mod reply;
mod secret;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use aliyun_cluster::{AliyunCluster, SignGet};
pub use fetch::{Failed, Fetch, Fetched, Margins, Retry};
pub use huawei_iam::{HuaweiIam, Iam};
pub use huawei_ids::{HuaweiIds, Sign, Wanted};
pub use mask::MASK;
pub use secrecy::{ExposeSecret, SecretString};
pub use secret::{SecretRef, Unreadable};

use crate::settings::{Table, Value};
use crate::upstream::Endpoint;
use crate::upstream::ask::Asker;

/// What a signer is made with: everything of one generation, never a new key with an old secret.
#[derive(Clone, Debug)]
pub enum Credential {
    /// Nothing: the TLS identity does the work.
    Nothing,
    /// An access key and its secret.
    AccessKey(AccessKey),
    /// Secrets in the order in which the provider named them.
    Secrets(Vec<SecretString>),
    /// An access key, its secret, and what else is known of it.
    Identified(AccessKey, Ids),
    /// A client certificate, and where it is shown.
    Certificate(Certificate),
}

impl Credential {
    /// The access key, if it is one.
    #[must_use]
    pub fn access_key(&self) -> Option<&AccessKey> {
        match self {
            Self::AccessKey(key) | Self::Identified(key, _) => Some(key),
            Self::Nothing | Self::Secrets(_) | Self::Certificate(_) => None,
        }
    }
}

/// What an access key belongs to, as far as it had to be found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// The project.
    pub project: Option<String>,
    /// The account.
    pub domain: Option<String>,
}

/// A client certificate that was fetched, and the server that it is for.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate service's reply in JSON: the certificate, its key and the CA.
    pub reply: SecretString,
    /// The server.
    pub upstream: Endpoint,
}

/// An access key and its secret, with a security token if they are temporary.
#[derive(Clone, Debug)]
pub struct AccessKey {
    /// The name of the key: not a secret.
    pub access_key: String,
    /// The secret.
    pub secret_key: SecretString,
    /// The token that temporary keys need beside them.
    pub security_token: Option<SecretString>,
}

/// Where a route's credential comes from, as the configuration says it.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a route, inside its boxed provider")]
pub enum Source {
    /// There is none.
    Nothing,
    /// An access key out of secret references.
    AccessKey {
        /// The name of the key.
        access_key: SecretRef,
        /// Its secret.
        secret_key: SecretRef,
        /// The token of temporary keys.
        security_token: Option<SecretRef>,
    },
    /// Secrets by reference.
    Secrets(Vec<SecretRef>),
    /// Whatever a service, a program or a file says.
    Fetched(Arc<dyn Fetch>),
}

/// What is known of a credential that was used.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// True for one that has an end, or a security token: its access key may be unknown because that end has come.
    pub is_temporary: bool,
    /// How long ago it was fetched, or read.
    pub age: Duration,
}

impl Source {
    /// Reads a provider's `credentials` table.
    pub fn read(table: &Table<'_>) -> Option<Self> {
        let form = "{ access_key = …, secret_key = … }";
        let keys = table.require("credentials", form)?.table_as(form)?;
        if let Some(source) = keys.get("source") {
            let read = source.choice(&FETCHED)?;
            let fetch = read(&keys);
            keys.finish();
            return fetch.map(Self::Fetched);
        }
        let access_key = keys.require("access_key", "the name of the key").and_then(|v| SecretRef::name(&v));
        let secret_key = keys.require("secret_key", "its secret").and_then(|v| SecretRef::secret(&v));
        let security_token = keys.get("security_token").map(|v: Value<'_>| SecretRef::secret(&v));
        keys.finish();
        Some(Self::AccessKey {
            access_key: access_key?,
            secret_key: secret_key?,
            security_token: security_token.map_or(Some(None), |token| token.map(Some))?,
        })
    }

    /// Reads every secret that is referred to; all that cannot be read are reported.
    ///
    /// # Errors
    /// The references that lead nowhere, each with its place in the configuration file.
    pub fn load(&self) -> Result<Credential, Vec<Unreadable>> {
        match self {
            Self::Nothing => Ok(Credential::Nothing),
            Self::Fetched(_) => Err(Vec::new()),
            Self::Secrets(references) => reveal(references).map(Credential::Secrets),
            Self::AccessKey { .. } => {
                let mut secrets = reveal(self.references())?.into_iter();
                let (Some(access_key), Some(secret_key)) = (secrets.next(), secrets.next()) else {
                    return Err(Vec::new());
                };
                let access_key = access_key.expose_secret().to_owned();
                Ok(Credential::AccessKey(AccessKey { access_key, secret_key, security_token: secrets.next() }))
            }
        }
    }
}

impl Source {
    /// What it is called, for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::AccessKey { .. } | Self::Secrets(_) => "configured",
            Self::Fetched(fetch) => fetch.name(),
        }
    }

    /// What it refers to.
    #[must_use]
    pub fn references(&self) -> Vec<&SecretRef> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Fetched(fetch) => fetch.references(),
            Self::Secrets(references) => references.iter().collect(),
            Self::AccessKey { access_key, secret_key, security_token } => {
                [Some(access_key), Some(secret_key), security_token.as_ref()].into_iter().flatten().collect()
            }
        }
    }

    /// What distinguishes it from others, without a secret.
    #[must_use]
    pub fn identity(&self) -> String {
        match self {
            Self::Fetched(fetch) => fetch.identity(),
            _ => self.references().into_iter().map(SecretRef::identity).collect::<Vec<_>>().join(", "),
        }
    }

    /// The files whose change may bring another credential.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Fetched(fetch) => fetch.files(),
            _ => self.references().into_iter().filter_map(SecretRef::file).collect(),
        }
    }

    /// True if it runs programs.
    #[must_use]
    pub fn runs_programs(&self) -> bool {
        matches!(self, Self::Fetched(fetch) if fetch.runs_programs())
            || self.references().into_iter().any(SecretRef::runs_a_program)
    }

    /// After how long it is to be read anew, for what says so.
    fn ttl(&self) -> Option<Duration> {
        match self {
            Self::Fetched(fetch) => fetch.ttl(),
            _ => self.references().into_iter().filter_map(SecretRef::ttl).min(),
        }
    }

    /// Obtains the credential, be it that it is asked for or read.
    pub(super) async fn obtain(&self, asker: &Asker) -> Result<Fetched, Failed> {
        if let Self::Fetched(fetch) = self {
            return fetch.fetch(asker).await;
        }
        let load = || {
            let source = self.clone();
            // A command may take its time.
            let loading = tokio::task::spawn_blocking(move || source.load());
            async move {
                let loaded = loading.await.map_err(|_| Failed::passing("reading the secrets was broken off"))?;
                loaded.map_err(|troubles| Failed::unreadable(&troubles))
            }
        };
        let mut credential = load().await?;
        if self.files().len() > 1 {
            // A pair is changed one file after the other: what is read twice alike was most likely whole.
            for _ in 0..READINGS {
                tokio::time::sleep(SETTLING).await;
                let again = load().await?;
                if again.is_same(&credential) {
                    return Ok(Fetched { credential, expiry: None });
                }
                credential = again;
            }
            return Err(Failed::passing("the files of the credential change all the time"));
        }
        Ok(Fetched { credential, expiry: None })
    }

    /// True if reading it once more may lead to something else.
    #[must_use]
    pub fn may_change(&self) -> bool {
        matches!(self, Self::Fetched(_)) || self.ttl().is_some() || !self.files().is_empty()
    }
}

/// Reads the rest of a `credentials` table.
type Reader = fn(&Table<'_>) -> Option<Arc<dyn Fetch>>;

/// What `source` may say.
const FETCHED: [(&str, Reader); 4] = [
    ("command", command::read),
    ("ecs-ram-role", ecs_ram_role::read),
    ("file", file::read),
    ("huawei-metadata", huawei_metadata::read),
];

/// How long the files of a pair must stay as they are, and how often that is looked at.
const SETTLING: Duration = Duration::from_millis(20);
const READINGS: usize = 50;

/// Reads an address that secrets may be sent to.
fn address(value: &Value<'_>) -> Option<Endpoint> {
    let endpoint = value.parse(Endpoint::parse)?;
    if !endpoint.secure && !endpoint.is_loopback() {
        value.error("http:// would send what is asked with in the clear: use https://");
        return None;
    }
    Some(endpoint)
}

fn reveal<'a>(references: impl IntoIterator<Item = &'a SecretRef>) -> Result<Vec<SecretString>, Vec<Unreadable>> {
    let (mut secrets, mut troubles) = (Vec::new(), Vec::new());
    for reference in references {
        match reference.reveal() {
            Ok(secret) => secrets.push(secret),
            Err(trouble) => troubles.push(trouble),
        }
    }
    if troubles.is_empty() { Ok(secrets) } else { Err(troubles) }
}
