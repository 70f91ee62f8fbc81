//! Authentication schemes: the seam between the way of a request and what a vendor wants.
//!
//! A provider is one file. It holds the provider's settings, its signer, the headers that it owns and its documentation,
//! and is known to the rest of the program by its two lines here: the module and its row in [`ALL`].

mod acm;
mod acs_roa;
mod basic;
mod bce;
mod bearer;
mod header;
mod huawei_aksk;
mod huawei_token;
mod mtls;
mod swarm;
mod tem;
pub mod verdict;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use secrecy::zeroize::Zeroizing;
use smallvec::SmallVec;

use crate::clock::Timestamp;
use crate::credential::{Credential, ExposeSecret, SecretString, Source};
use crate::settings::Table;
use crate::upstream::directory::Directory;
use crate::upstream::tls::ClientIdentity;
use crate::upstream::{Endpoint, Host};

/// Every provider there is.
pub static ALL: &[&Registration] = &[
    &acm::REGISTRATION,
    &acs_roa::REGISTRATION,
    &basic::REGISTRATION,
    &bce::REGISTRATION,
    &bearer::REGISTRATION,
    &header::REGISTRATION,
    &huawei_aksk::REGISTRATION,
    &huawei_token::REGISTRATION,
    &mtls::REGISTRATION,
    &swarm::REGISTRATION,
    &tem::REGISTRATION,
];

/// The headers that carry credentials and are removed from callers' requests on every route, whatever its provider. A
/// final `*` stands for any ending; names are the same if their letters and digits are, without case. With the
/// [`credential_headers`](Registration::credential_headers) of every registration the list is complete.
pub const ALWAYS: &[&str] = &[
    "Authorization",
    "Proxy-Authorization",
    "X-Auth-Token",
    "X-Subject-Token",
    "Spas-*",
    "timeStamp",
    "x-bce-date",
    "x-bce-security-token",
    "X-Sdk-Date",
    "X-Sdk-Content-Sha256",
    "X-Security-Token",
    "x-acs-signature*",
    "x-acs-security-token",
    "x-acs-accesskey-id",
    "x-acs-bearer-token",
    "x-acs-credentials-provider",
];

/// What the program knows of a provider before a configuration uses it.
#[derive(Debug)]
pub struct Registration {
    /// The name of its table, as in `[routes.cert.bce]`.
    pub name: &'static str,
    /// What it adds to a request, in one line.
    pub summary: &'static str,
    /// The keys of its table.
    pub keys: &'static [Key],
    /// The headers that carry its credentials, removed from callers' requests on every route. A final `*` stands for
    /// any ending.
    pub credential_headers: &'static [&'static str],
    /// The headers of replies that hold its name for a request, the likeliest first. A log line may show them.
    pub id_headers: &'static [&'static str],
    /// True if its credential says where the server is, and who we are there.
    pub finds_upstream: bool,
    /// Reads its table; `None` if something was wrong, which is then noted.
    pub read: fn(&Table<'_>) -> Option<Box<dyn Provider>>,
}

/// A key of a provider's table.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Its default as it would be written, empty if there is none.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

/// The key that [`Plus`](crate::canonical::query::Plus) reads.
const PLUS: Key = Key {
    name: "plus",
    default: "\"space\"",
    meaning: "what a raw + in a query is sent and signed as: \"space\" is %20, \"literal\" is %2B",
};

/// A provider as a route is configured to use it.
pub trait Provider: fmt::Debug + Send + Sync {
    /// Where its credential comes from.
    fn source(&self) -> &Source;

    /// Every header that its signer may set, in the vendor's spelling, and those beside them that only it may set: none of
    /// them comes from a caller.
    fn sets(&self) -> Vec<String>;

    /// The headers that its signer adds to requests that have none, in the vendor's spelling: callers may send their own.
    fn defaults(&self) -> &'static [&'static str] {
        &[]
    }

    /// The headers of replies that carry a credential, which callers get only where the route's `expose` names them.
    fn conceals(&self) -> &'static [&'static str] {
        &[]
    }

    /// A signer for one generation of the credential, with everything prepared that does not depend on the request.
    ///
    /// # Errors
    /// Why the credential cannot be used, without showing any of it.
    fn signer(&self, credential: &Credential) -> Result<Arc<dyn Signer>, String>;

    /// What the signature needs of the body.
    fn body(&self, _method: &Method, _headers: &HeaderMap) -> BodyNeed {
        BodyNeed::Nothing
    }

    /// The query to sign and send in place of the caller's, where the scheme cannot carry it as it came.
    fn rewrite_query(&self, _query: &str) -> Option<String> {
        None
    }

    /// How long the reply's head may take, where the request itself says so; never less than what is configured.
    fn deadline(&self, _headers: &HeaderMap) -> Option<Duration> {
        None
    }

    /// The answer, in plain text, to a request that the proxy itself is to answer. `authority` is what the caller reached
    /// us by.
    fn answer(&self, _method: &Method, _path: &str, _authority: &(Host, Option<u16>)) -> Option<String> {
        None
    }

    /// What its servers let one address do, if they are known to limit it and the route is to keep to that.
    fn allowance(&self) -> Option<Allowance> {
        None
    }

    /// What a request takes of that. `query` and `body` are those that are sent; a body that streams is empty here.
    fn usage(&self, _method: &Method, _query: Option<&str>, _headers: &HeaderMap, _body: &[u8]) -> Usage {
        Usage::Nothing
    }

    /// True for a status with which its servers may speak of the authentication: the reply's body is then read before it
    /// goes on.
    fn judges(&self, status: StatusCode) -> bool {
        status == StatusCode::UNAUTHORIZED
    }

    /// What a reply with such a status says. By default what a server says that was shown a token: it wants another.
    fn verdict(&self, _reply: &verdict::Reply<'_>) -> verdict::Verdict {
        verdict::Verdict::of(verdict::Cause::Credential)
    }

    /// Which of several servers a request goes to first.
    fn order(&self) -> Order {
        Order::Turns
    }

    /// Who knows the servers, if that is not the configuration; `secure` is true if they are spoken to over TLS.
    fn directory(&self, _secure: bool) -> Option<Directory> {
        None
    }

    /// Where its credential leads, and who we are there, if that is what the credential says.
    ///
    /// # Errors
    /// Why that cannot be used.
    fn destination(&self, _credential: &Credential) -> Option<Result<Destination, String>> {
        None
    }

    /// How the vendor's own SDK for Python is told to come here, in its words; `authority` is a door that has no path prefix.
    fn sdk(&self, _authority: &str) -> Option<String> {
        None
    }

    /// The first labels of hosts where credentials, or private keys, are handed out to whoever asks with its own.
    fn mints_at(&self) -> &'static [&'static str] {
        &[]
    }

    /// True if a request goes to the next server whatever its method, though the one before may have acted on it.
    fn repeats_posts(&self) -> bool {
        false
    }

    /// True if bad signatures lock the access key for everybody who uses it.
    fn locks_keys(&self) -> bool {
        false
    }

    /// True if what it sends stays good for long, so that it must not cross a network in the clear.
    fn is_replayable(&self) -> bool {
        false
    }

    /// True if it is nothing without a client certificate.
    fn needs_client_certificate(&self) -> bool {
        false
    }

    /// True if its servers are known to speak nothing newer than HTTP/1.1.
    fn is_http1_only(&self) -> bool {
        false
    }

    /// The defaults for how long to wait for a reply's head, and how long a body may be silent (`None`: for ever).
    fn patience(&self) -> Patience {
        Patience { response: Some(Duration::from_secs(60)), body: Some(Duration::from_secs(60)) }
    }
}

/// What a provider's servers let one address do, which all callers behind us share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// How often each thing may be read in a second.
    pub reads: NonZeroU32,
    /// How often each thing may be changed in a second.
    pub changes: NonZeroU32,
    /// How many polls may wait at one time.
    pub polls: usize,
}

/// What a request takes of an [`Allowance`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Nothing that is counted.
    Nothing,
    /// It reads these things.
    Reads(Things),
    /// It changes them.
    Changes(Things),
    /// It waits for news.
    Poll {
        /// What it is told, as plain text, when there is no time left to wait: that there is none.
        unchanged: &'static str,
    },
}

/// Things that are counted each for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Things {
    /// Where they all are.
    pub space: Vec<u8>,
    /// What distinguishes them there.
    pub names: Vec<Vec<u8>>,
}

/// Where a credential leads.
#[derive(Debug)]
pub struct Destination {
    /// The server.
    pub upstream: Endpoint,
    /// Who we are there, and whom to trust.
    pub identity: ClientIdentity,
}

/// Which of several servers a request goes to first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Each in its turn.
    Turns,
    /// The same one until it fails.
    Stay,
}

/// Default timeouts; `None` is "off".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// To the reply's head.
    pub response: Option<Duration>,
    /// Silence inside a body.
    pub body: Option<Duration>,
}

/// What a signature needs of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyNeed {
    /// Nothing: it may stream.
    Nothing,
    /// Whether there is any: it may stream, but not before its first octet. The head tells by how it frames the body.
    Presence,
    /// All of it.
    Whole,
}

/// Signs requests with one generation of a credential: a pure function, without network, clock or state.
pub trait Signer: Send + Sync {
    /// The headers to set on a request that is otherwise ready to go: hop-by-hop headers and callers' credentials are
    /// gone, `Host` is the upstream's. The request is sent as it is given here, and these headers replace any of
    /// the same name.
    ///
    /// # Errors
    /// What is wrong with the request, for its sender to read.
    fn sign(&self, request: &Request<'_>, explain: Option<&mut Explanation>) -> Result<Fields, String>;
}

/// Adds the same headers to every request.
pub(crate) struct Fixed {
    /// The headers.
    pub(crate) fields: Fields,
}

impl Signer for Fixed {
    fn sign(&self, _request: &Request<'_>, _explain: Option<&mut Explanation>) -> Result<Fields, String> {
        Ok(self.fields.clone())
    }
}

/// A request as it goes upstream.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a Method,
    /// The raw path, at least `/`.
    pub path: &'a str,
    /// The raw query, without its question mark.
    pub query: Option<&'a str>,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The body, if the signer's provider asked for it; else empty.
    pub body: &'a [u8],
    /// The moment of signing.
    pub time: Timestamp,
    /// 32 hex digits, new for every attempt.
    pub nonce: &'a str,
}

/// Headers to set.
pub type Fields = SmallVec<[(HeaderName, HeaderValue); 4]>;

/// A secret as the value of the header `name`, marked so that nothing shows it.
///
/// # Errors
/// Why no header can hold it, without showing it.
fn secret_value(name: &str, secret: &SecretString) -> Result<HeaderValue, String> {
    // No header can carry outer blanks: whoever receives it trims them.
    let secret = secret.expose_secret().trim_matches(' ');
    if secret.trim().is_empty() {
        return Err(format!("header `{name}`: the secret is empty"));
    }
    concealed(&[secret]).filter(|value| !value.as_bytes().contains(&b'\t')).ok_or_else(|| {
        format!("header `{name}`: the secret holds a control character, such as a line break: give it without")
    })
}

/// A header's value of these parts, some of them secret: nothing shows it, and when its last copy is dropped it is cleared.
fn concealed(parts: &[&str]) -> Option<HeaderValue> {
    let octets = Zeroizing::new(parts.concat().into_bytes());
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(octets)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The stages of a signature, for a person to read and for tests to compare one by one. Holds secrets: what shows it
/// masks them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Explanation {
    /// The canonical request.
    pub canonical_request: Option<String>,
    /// The string to sign, where it is not the canonical request.
    pub string_to_sign: Option<String>,
    /// What the signing key is made from, where one is derived.
    pub signing_key_input: Option<String>,
    /// The signed headers, in order.
    pub signed_headers: Vec<String>,
    /// The parameters that were looked for, and their values where they were found.
    pub parameters: Vec<(&'static str, Option<String>)>,
}

/// What the tests of the signers share.
#[cfg(test)]
mod testing {
    use std::path::Path;

    use super::Provider;
    use crate::credential::{AccessKey, Credential};
    use crate::settings::{BareSecrets, Reader, Remark, Table};

    /// Reads a table that holds credentials and what is given; with the errors and the warnings.
    pub(super) fn read<P>(
        text: &str,
        read: impl FnOnce(&Table<'_>) -> Option<P>,
    ) -> (Option<P>, Vec<Remark>, Vec<Remark>) {
        let text = format!("credentials = {{ access_key = 'ak', secret_key = 'hunter2' }}\n{text}");
        let reader = Reader::new(&text, Path::new("/"), BareSecrets::Accept);
        let document = reader.parse();
        let provider = read(&Table::root(&reader, &document));
        let (errors, warnings) = reader.into_remarks();
        (provider, errors, warnings)
    }

    /// Why a provider makes no signer of an access key.
    pub(super) fn refusal(
        provider: &impl Provider,
        access_key: &str,
        secret_key: &str,
        security_token: Option<&str>,
    ) -> Option<String> {
        let credential = Credential::AccessKey(AccessKey {
            access_key: access_key.to_owned(),
            secret_key: secret_key.into(),
            security_token: security_token.map(Into::into),
        });
        provider.signer(&credential).err()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::settings::{BareSecrets, Reader};

    /// What is noted when a registration reads a table.
    fn errors(registration: &Registration, text: &str) -> Vec<String> {
        let reader = Reader::new(text, Path::new("/"), BareSecrets::Accept);
        let document = reader.parse();
        let table = Table::root(&reader, &document);
        let _ = (registration.read)(&table);
        table.finish();
        reader.into_remarks().0.into_iter().map(|remark| remark.message).collect()
    }

    #[test]
    fn a_secret_value_is_the_same_octets_in_every_copy_and_marked() {
        let value = concealed(&["Bearer ", "hunter2"]).unwrap();
        let copy = value.clone();
        assert_eq!(
            (copy.as_bytes(), copy.as_bytes().as_ptr()),
            (b"Bearer hunter2".as_slice(), value.as_bytes().as_ptr())
        );
        assert!(copy.is_sensitive() && !format!("{copy:?}").contains("hunter2"));
        assert_eq!(concealed(&["hunter2\r\n"]), None);
    }

    #[test]
    fn every_file_is_a_row_of_the_table() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/provider");
        let names = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut files: Vec<_> = names.filter(|name| !["mod.rs", "verdict.rs"].contains(&name.as_str())).collect();
        let mut rows: Vec<_> = ALL.iter().map(|row| format!("{}.rs", row.name.replace('-', "_"))).collect();
        files.sort();
        rows.sort();
        assert_eq!(files, rows);
    }

    #[test]
    fn the_keys_that_are_read_are_those_that_are_shown() {
        for registration in ALL {
            let mut shown: Vec<_> = registration.keys.iter().map(|key| format!("`{}`", key.name)).collect();
            shown.sort();
            let help = if shown.is_empty() {
                "this table has no keys".to_owned()
            } else {
                format!("known keys are {}", shown.join(", "))
            };
            let expected = format!("unknown key `zzzzzzzzzzzzzzzz`: {help}");
            let errors = errors(registration, "zzzzzzzzzzzzzzzz = 1");
            assert!(errors.contains(&expected), "{}: {errors:?}", registration.name);
        }
    }

    #[test]
    fn defaults_can_be_written_as_they_are_shown() {
        for registration in ALL {
            let defaults = registration.keys.iter().filter(|key| !key.default.is_empty());
            let lines: Vec<_> = defaults.map(|key| format!("{} = {}", key.name, key.default)).collect();
            for error in errors(registration, &lines.join("\n")) {
                assert!(error.contains("is missing"), "{}: {error}", registration.name);
            }
        }
    }

    #[test]
    fn what_is_always_removed_covers_every_providers_own() {
        for header in ALL.iter().flat_map(|registration| registration.credential_headers) {
            let is_covered = ALWAYS.iter().any(|always| match always.strip_suffix('*') {
                Some(start) => header.to_ascii_lowercase().starts_with(&start.to_ascii_lowercase()),
                None => header.eq_ignore_ascii_case(always),
            });
            assert!(is_covered, "{header}");
        }
    }
}
