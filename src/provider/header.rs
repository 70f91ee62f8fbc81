//! Fixed headers, for a token that neither expires nor depends on the request.

use std::sync::Arc;

use http::HeaderName;

use super::{Fields, Fixed, Key, Provider, Registration, Signer, secret_value};
use crate::canonical::headers::is_hop_by_hop;
use crate::credential::{Credential, SecretRef, Source};
use crate::settings::Table;

/// The provider.
pub(super) static REGISTRATION: Registration = Registration {
    name: "header",
    summary: "fixed headers",
    keys: &[Key {
        name: "headers",
        default: "",
        meaning: "the headers to set, each name with its secret: { \"X-Auth-Token\" = { env = \"TOKEN\" } }",
    }],
    credential_headers: &[],
    id_headers: &["X-Request-Id"],
    finds_upstream: false,
    read: |table| Header::read(table).map(|provider| Box::new(provider) as Box<dyn Provider>),
};

#[derive(Debug)]
struct Header {
    /// As spelt in the configuration, in the order of the secrets.
    names: Vec<(String, HeaderName)>,
    source: Source,
}

impl Header {
    fn read(table: &Table<'_>) -> Option<Self> {
        let value = table.require("headers", "{ \"NAME\" = SECRET, … }")?;
        let headers = value.table()?.rest();
        if headers.is_empty() {
            value.error("expected at least one header");
            return None;
        }
        let (mut names, mut secrets) = (Vec::<(String, HeaderName)>::new(), Vec::new());
        let mut is_right = true;
        for (spelling, value) in headers {
            let name = header_name(spelling).and_then(|name| {
                let is_new = names.iter().all(|(_, other)| *other != name);
                is_new.then_some(name).ok_or("the same header twice: names are compared without case")
            });
            // The name stays out of the message: it may be a secret that slipped to the left of its equals sign.
            let name = name.map_err(|message| value.reader().error_at(value.key_place(), message));
            let (Ok(name), Some(secret)) = (name, SecretRef::secret(&value)) else {
                is_right = false;
                continue;
            };
            names.push((spelling.to_owned(), name));
            secrets.push(secret);
        }
        is_right.then_some(Self { names, source: Source::Secrets(secrets) })
    }
}

fn header_name(spelling: &str) -> Result<HeaderName, &'static str> {
    let name = HeaderName::from_bytes(spelling.as_bytes()).map_err(|_| "expected the name of a header")?;
    if name == http::header::HOST {
        return Err("`Host` is the upstream's and cannot be set here");
    }
    if name == http::header::CONTENT_LENGTH || is_hop_by_hop(name.as_str()) {
        return Err("expected the name of a header that reaches the upstream: this one belongs to a connection");
    }
    Ok(name)
}

impl Provider for Header {
    fn source(&self) -> &Source {
        &self.source
    }

    fn sets(&self) -> Vec<String> {
        self.names.iter().map(|(spelling, _)| spelling.clone()).collect()
    }

    fn signer(&self, credential: &Credential) -> Result<Arc<dyn Signer>, String> {
        let secrets = match credential {
            Credential::Secrets(secrets) if secrets.len() == self.names.len() => secrets,
            _ => return Err("expected a secret for each header".to_owned()),
        };
        let mut fields = Fields::new();
        for ((spelling, name), secret) in self.names.iter().zip(secrets) {
            fields.push((name.clone(), secret_value(spelling, secret)?));
        }
        Ok(Arc::new(Fixed { fields }))
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

    fn read(text: &str) -> Result<Header, Vec<String>> {
        let reader = Reader::new(text, Path::new("/"), BareSecrets::Accept);
        let document = reader.parse();
        let header = Header::read(&Table::root(&reader, &document));
        let (errors, _) = reader.into_remarks();
        assert_eq!(header.is_none(), !errors.is_empty(), "{errors:?}");
        header.ok_or_else(|| errors.into_iter().map(|error| format!("{}: {}", error.place, error.message)).collect())
    }

    fn refusal(provider: &Header, credential: &Credential) -> String {
        provider.signer(credential).err().unwrap()
    }

    #[test]
    fn every_header_is_set_in_the_order_and_spelling_of_the_file() {
        let provider = read("headers = { X-Token = 'one', \"x_b\" = 'zwei ü' }").unwrap();
        assert_eq!(provider.sets(), ["X-Token", "x_b"]);
        let signer = provider.signer(&provider.source().load().unwrap()).unwrap();
        let request = Request {
            method: &Method::GET,
            path: "/",
            query: None,
            headers: &HeaderMap::new(),
            body: b"",
            time: Timestamp(0),
            nonce: "",
        };
        let fields = signer.sign(&request, None).unwrap();
        let expected = [("x-token", "one".as_bytes()), ("x_b", "zwei ü".as_bytes())];
        assert!(fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).eq(expected));
        assert!(fields.iter().all(|(_, value)| value.is_sensitive()));
    }

    #[test]
    fn names_that_cannot_be_set_are_refused_unseen_and_all_at_once() {
        let text =
            "[headers]\nHost = 'x'\n'hunter2 ' = 'x'\nConnection = 'x'\nContent-Length = 'x'\nA = 1\nB = 'x'\nb = 'x'";
        let errors = read(text).unwrap_err();
        let lines: Vec<_> = errors.iter().filter_map(|error| error.split(':').next()).collect();
        assert_eq!(lines, ["2", "3", "4", "5", "6", "8"]);
        assert!(!errors.concat().contains("hunter2"));
    }

    #[test]
    fn no_header_at_all_is_an_error() {
        assert_eq!(read("headers = {}").unwrap_err(), ["1:11: `headers`: expected at least one header"]);
        assert!(read("").is_err());
        assert!(read("headers = 'x'").is_err());
    }

    #[test]
    fn a_secret_that_no_header_can_hold_is_refused_without_being_shown() {
        let provider = read("headers = { X-Token = 'x' }").unwrap();
        for secret in ["hunter2\r\nX-Evil: 1", "hunter2\0", "hunter2\t", "hunter2\u{7f}", "", "  "] {
            let message = refusal(&provider, &Credential::Secrets(vec![secret.into()]));
            assert!(message.starts_with("header `X-Token`: the secret "), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
        for credential in [Credential::Nothing, Credential::Secrets(Vec::new())] {
            assert_eq!(refusal(&provider, &credential), "expected a secret for each header");
        }
    }
}
