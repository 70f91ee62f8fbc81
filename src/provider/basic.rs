//! A user and a password (RFC 7617), in UTF-8.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::AUTHORIZATION;
use secrecy::zeroize::Zeroizing;

use super::{Fields, Fixed, Key, Provider, Registration, Signer, concealed};
use crate::credential::{AccessKey, Credential, ExposeSecret, SecretRef, Source};
use crate::settings::Table;

/// The provider.
pub(super) static REGISTRATION: Registration = Registration {
    name: "basic",
    summary: "Authorization: Basic …",
    keys: &[
        Key { name: "user", default: "", meaning: "the user, which may be empty" },
        Key { name: "password", default: "", meaning: "the password, a secret: { env = \"PASSWORD\" }" },
    ],
    credential_headers: &["Authorization"],
    id_headers: &["X-Request-Id"],
    finds_upstream: false,
    read: |table| Basic::read(table).map(|provider| Box::new(provider) as Box<dyn Provider>),
};

#[derive(Debug)]
struct Basic {
    source: Source,
}

impl Basic {
    fn read(table: &Table<'_>) -> Option<Self> {
        let user = table.require("user", "the user").and_then(|value| SecretRef::name(&value));
        let password = table.require("password", "the password, a secret").and_then(|value| SecretRef::secret(&value));
        // The user is to the password what the access key is to its secret: a name.
        let source = Source::AccessKey { access_key: user?, secret_key: password?, security_token: None };
        Some(Self { source })
    }
}

impl Provider for Basic {
    fn source(&self) -> &Source {
        &self.source
    }

    fn sets(&self) -> Vec<String> {
        vec!["Authorization".to_owned()]
    }

    fn signer(&self, credential: &Credential) -> Result<Arc<dyn Signer>, String> {
        let Credential::AccessKey(AccessKey { access_key: user, secret_key: password, .. }) = credential else {
            return Err("expected a user and a password".to_owned());
        };
        let password = password.expose_secret();
        if user.contains(':') || user.chars().any(char::is_control) {
            return Err("the user must be without `:`, which ends it, and without control characters".to_owned());
        }
        if password.is_empty() || password.chars().any(char::is_control) {
            return Err("the password is empty or holds a control character, such as a line break".to_owned());
        }
        let pair = Zeroizing::new([user, ":", password].concat());
        let encoded = Zeroizing::new(BASE64_STANDARD.encode(pair.as_bytes()));
        let value = concealed(&["Basic ", &encoded]).ok_or("the password does not fit into a header")?;
        Ok(Arc::new(Fixed { fields: Fields::from_iter([(AUTHORIZATION, value)]) }))
    }

    fn is_replayable(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(user: &str, password: &str) -> Result<String, String> {
        let credential = AccessKey { access_key: user.to_owned(), secret_key: password.into(), security_token: None };
        let signer = Basic { source: Source::Nothing }.signer(&Credential::AccessKey(credential))?;
        let (method, headers) = (&http::Method::GET, &http::HeaderMap::new());
        let time = crate::clock::Timestamp(0);
        let request = super::super::Request { method, path: "/", query: None, headers, body: b"", time, nonce: "" };
        let fields = signer.sign(&request, None)?;
        assert!(fields.len() == 1 && fields.iter().all(|(name, value)| name == AUTHORIZATION && value.is_sensitive()));
        Ok(fields.iter().map(|(_, value)| value.to_str().unwrap()).collect())
    }

    #[test]
    fn the_examples_of_the_rfc_come_out() {
        assert_eq!(value("Aladdin", "open sesame"), Ok("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==".to_owned()));
        assert_eq!(value("test", "123£"), Ok("Basic dGVzdDoxMjPCow==".to_owned()));
        assert_eq!(value("", "a:b"), Ok("Basic OmE6Yg==".to_owned()));
    }

    #[test]
    fn what_no_header_can_hold_is_refused_without_being_shown() {
        for user in ["hunter:2", ":", "hunter2\n", "\0hunter2", "hunter\u{85}2"] {
            let message = value(user, "password").unwrap_err();
            assert!(message.starts_with("the user must be") && !message.contains("hunter"), "{message}");
        }
        for password in ["", "hunter2\r\n", "hunter2\t", "\u{7f}hunter2"] {
            let message = value("user", password).unwrap_err();
            assert!(message.starts_with("the password is") && !message.contains("hunter"), "{message}");
        }
        assert!(Basic { source: Source::Nothing }.signer(&Credential::Nothing).is_err());
    }
}
