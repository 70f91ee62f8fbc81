//! Secrets, where credentials come from, how they stay fresh.

mod secret;

pub use secrecy::{ExposeSecret, SecretString};
pub use secret::{SecretRef, Unreadable};

use crate::settings::{Table, Value};

/// What a signer is made with: everything of one generation, never a new key with an old secret.
#[derive(Clone, Debug)]
pub enum Credential {
    /// Nothing: the TLS identity does the work.
    Nothing,
    /// An access key and its secret.
    AccessKey(AccessKey),
    /// Secrets in the order in which the provider named them.
    Secrets(Vec<SecretString>),
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
}

impl Source {
    /// Reads a provider's `credentials` table.
    pub fn read(table: &Table<'_>) -> Option<Self> {
        let form = "{ access_key = …, secret_key = … }";
        let keys = table.require("credentials", form)?.table_as(form)?;
        if let Some(source) = keys.get("source") {
            source.error("fetched credentials are not supported yet: give `access_key` and `secret_key`");
            return None;
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
            Self::Secrets(references) => reveal(references).map(Credential::Secrets),
            Self::AccessKey { access_key, secret_key, security_token } => {
                let references = [Some(access_key), Some(secret_key), security_token.as_ref()];
                let mut secrets = reveal(references.into_iter().flatten())?.into_iter();
                let (Some(access_key), Some(secret_key)) = (secrets.next(), secrets.next()) else {
                    return Err(Vec::new());
                };
                let access_key = access_key.expose_secret().to_owned();
                Ok(Credential::AccessKey(AccessKey { access_key, secret_key, security_token: secrets.next() }))
            }
        }
    }
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
