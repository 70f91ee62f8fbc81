//! Huawei Cloud with a token of its identity service (IAM), which is the whole authentication: `X-Auth-Token`
//! (<https://support.huaweicloud.com/intl/en-us/api-iam/iam_30_0001.html>).
//!
//! - A token is good for 24 hours, for whoever holds it, and dies early when a password, a key or a permission changes.
//! - It is several KiB long: the vendor's documents promise no more than that 16 KiB are enough.
//! - It is for one scope, a project or a whole account: which one a service wants is in the service's own manual.

use std::sync::Arc;

use http::HeaderName;

use super::{Fixed, Key, Provider, Registration, Signer, secret_value};
use crate::credential::{Credential, SecretRef, Source};
use crate::settings::Table;

/// The provider.
pub(super) static REGISTRATION: Registration = Registration {
    name: "huawei-token",
    summary: "X-Auth-Token",
    keys: &[
        Key { name: "token", default: "", meaning: "a token that was fetched already, as a secret" },
        Key { name: "iam", default: "", meaning: "where tokens come from; not supported yet, as all that follows" },
        Key { name: "iam_ca", default: "", meaning: "the file of a private CA that signed the certificate of `iam`" },
        Key { name: "account", default: "", meaning: "the account that the user belongs to" },
        Key { name: "user", default: "", meaning: "the IAM user" },
        Key { name: "password", default: "", meaning: "its password, as a secret" },
        Key {
            name: "scope",
            default: "",
            meaning: "{ project = \"…\" }, { project_id = \"…\" } or { domain = \"…\" }: what the token is for",
        },
    ],
    credential_headers: &["X-Auth-Token", "X-Subject-Token"],
    read: |table| Token::read(table).map(|provider| Box::new(provider) as Box<dyn Provider>),
};

#[derive(Debug)]
struct Token {
    source: Source,
}

impl Token {
    fn read(table: &Table<'_>) -> Option<Self> {
        let of_iam = ["iam", "iam_ca", "account", "user", "password", "scope"].map(|key| table.get(key));
        let mut of_iam = of_iam.into_iter().flatten().peekable();
        let is_fetched = of_iam.peek().is_some();
        for value in of_iam {
            value.error_at_key("tokens from IAM are not supported yet: give `token`");
        }
        let token = if is_fetched { table.get("token") } else { table.require("token", "a token of IAM") };
        let token = token.and_then(|value| SecretRef::secret(&value))?;
        (!is_fetched).then_some(Self { source: Source::Secrets(vec![token]) })
    }
}

impl Provider for Token {
    fn source(&self) -> &Source {
        &self.source
    }

    fn sets(&self) -> Vec<String> {
        vec!["X-Auth-Token".to_owned()]
    }

    /// What IAM answers with: a fresh token, as good as the one that asked for it.
    fn conceals(&self) -> &'static [&'static str] {
        &["X-Subject-Token"]
    }

    fn signer(&self, credential: &Credential) -> Result<Arc<dyn Signer>, String> {
        let Credential::Secrets(secrets) = credential else { return Err("expected a token".to_owned()) };
        let [token] = secrets.as_slice() else { return Err("expected one token".to_owned()) };
        let field = (HeaderName::from_static("x-auth-token"), secret_value("X-Auth-Token", token)?);
        Ok(Arc::new(Fixed { fields: std::iter::once(field).collect() }))
    }

    fn is_replayable(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use http::{HeaderMap, Method};

    use super::*;
    use crate::clock::Timestamp;
    use crate::provider::Request;
    use crate::settings::{BareSecrets, Reader};

    fn read(text: &str) -> Result<Token, Vec<String>> {
        let reader = Reader::new(text, Path::new("/"), BareSecrets::Accept);
        let document = reader.parse();
        let table = Table::root(&reader, &document);
        let token = Token::read(&table);
        table.finish();
        let (errors, _) = reader.into_remarks();
        assert_eq!(token.is_none(), !errors.is_empty(), "{errors:?}");
        token.ok_or_else(|| errors.into_iter().map(|error| format!("{}: {}", error.place, error.message)).collect())
    }

    #[test]
    fn a_token_of_16_kib_is_set_and_marked_as_secret() {
        let token = "MIIT".repeat(4096);
        let provider = read(&format!("token = '{token}'")).unwrap();
        let signer = provider.signer(&provider.source().load().unwrap()).unwrap();
        let (method, headers) = (&Method::GET, &HeaderMap::new());
        let request = Request { method, path: "/", query: None, headers, body: b"", time: Timestamp(0), nonce: "" };
        let fields = signer.sign(&request, None).unwrap();
        let [(name, value)] = fields.as_slice() else { panic!("one header is set") };
        assert_eq!((name.as_str(), value.as_bytes()), ("x-auth-token", token.as_bytes()));
        assert!(value.is_sensitive() && provider.is_replayable());
        assert_eq!(provider.sets(), ["X-Auth-Token"]);
    }

    #[test]
    fn keys_of_iam_are_known_and_refused() {
        let help = "tokens from IAM are not supported yet: give `token`";
        for key in ["iam", "iam_ca", "account", "user", "password", "scope"] {
            assert_eq!(read(&format!("{key} = 'hunter2'")).unwrap_err(), [format!("1:1: `{key}`: {help}")]);
            assert!(read(&format!("{key} = 'x'\ntoken = 'x'")).is_err());
        }
        assert_eq!(read("scope = { project = 'x' }\nuser = 'y'").unwrap_err().len(), 2);
        assert_eq!(read("").unwrap_err(), ["1:1: `token` is missing: a token of IAM"]);
        assert!(read("token = 1").is_err());
    }

    #[test]
    fn a_token_that_no_header_can_hold_is_refused_without_being_shown() {
        let provider = read("token = 'x'").unwrap();
        for token in ["hunter2\r\nX-Evil: 1", "hunter2\0", "", " "] {
            let message = provider.signer(&Credential::Secrets(vec![token.into()])).err().unwrap();
            assert!(message.starts_with("header `X-Auth-Token`: the secret "), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
        for credential in [Credential::Nothing, Credential::Secrets(Vec::new())] {
            assert!(provider.signer(&credential).is_err());
        }
    }
}
