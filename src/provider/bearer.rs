//! A fixed bearer token (RFC 6750 section 2.1).

use std::sync::Arc;

use http::header::AUTHORIZATION;

use super::{Fields, Fixed, Key, Provider, Registration, Signer, concealed};
use crate::credential::{Credential, ExposeSecret, SecretRef, Source};
use crate::settings::Table;

/// The provider.
pub(super) static REGISTRATION: Registration = Registration {
    name: "bearer",
    summary: "Authorization: Bearer …",
    keys: &[Key { name: "token", default: "", meaning: "the token, a secret: { env = \"TOKEN\" }" }],
    credential_headers: &["Authorization"],
    id_headers: &["X-Request-Id"],
    finds_upstream: false,
    read: |table| Bearer::read(table).map(|provider| Box::new(provider) as Box<dyn Provider>),
};

#[derive(Debug)]
struct Bearer {
    source: Source,
}

impl Bearer {
    fn read(table: &Table<'_>) -> Option<Self> {
        let token = SecretRef::secret(&table.require("token", "the token, a secret")?)?;
        Some(Self { source: Source::Secrets(vec![token]) })
    }
}

impl Provider for Bearer {
    fn source(&self) -> &Source {
        &self.source
    }

    fn sets(&self) -> Vec<String> {
        vec!["Authorization".to_owned()]
    }

    fn signer(&self, credential: &Credential) -> Result<Arc<dyn Signer>, String> {
        let Credential::Secrets(secrets) = credential else { return Err("expected a token".to_owned()) };
        let [token] = secrets.as_slice() else { return Err("expected one token".to_owned()) };
        let token = token.expose_secret();
        // RFC 6750 has fewer characters; tokens with others exist.
        let is_sendable = !token.is_empty() && token.bytes().all(|octet| octet.is_ascii_graphic());
        let value = is_sendable.then(|| concealed(&["Bearer ", token])).flatten();
        let value = value.ok_or("the token must be visible ASCII without spaces: give it alone, without `Bearer`")?;
        Ok(Arc::new(Fixed { fields: Fields::from_iter([(AUTHORIZATION, value)]) }))
    }

    fn is_replayable(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(token: &str) -> Result<String, String> {
        let signer = Bearer { source: Source::Nothing }.signer(&Credential::Secrets(vec![token.into()]))?;
        let (method, headers) = (&http::Method::GET, &http::HeaderMap::new());
        let time = crate::clock::Timestamp(0);
        let request = super::super::Request { method, path: "/", query: None, headers, body: b"", time, nonce: "" };
        let fields = signer.sign(&request, None)?;
        assert!(fields.len() == 1 && fields.iter().all(|(name, value)| name == AUTHORIZATION && value.is_sensitive()));
        Ok(fields.iter().map(|(_, value)| value.to_str().unwrap()).collect())
    }

    #[test]
    fn the_token_follows_its_scheme() {
        assert_eq!(value("eyJ.a-b_c~d+e/f=="), Ok("Bearer eyJ.a-b_c~d+e/f==".to_owned()));
        assert_eq!(value("1|abc:d"), Ok("Bearer 1|abc:d".to_owned()));
    }

    #[test]
    fn a_token_that_no_header_can_hold_is_refused_without_being_shown() {
        for token in
            ["", " ", "Bearer hunter2", "hunter2 ", "hunter2\r\nX-Evil: 1", "hunter2\0", "hunter2\t", "hünter2"]
        {
            let message = value(token).unwrap_err();
            assert!(message.starts_with("the token must be") && !message.contains("hunter2"), "{message}");
        }
        for credential in [Credential::Nothing, Credential::Secrets(Vec::new())] {
            assert!(Bearer { source: Source::Nothing }.signer(&credential).is_err());
        }
    }
}
