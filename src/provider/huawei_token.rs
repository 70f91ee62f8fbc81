//! Huawei Cloud with a token of its identity service (IAM), which is the whole authentication: `X-Auth-Token`
//! (<https://support.huaweicloud.com/intl/en-us/api-iam/iam_30_0001.html>).
//!
//! - A token is good for 24 hours, for whoever holds it, and dies early when a password, a key or a permission changes.
//! - It is several KiB long: the vendor's documents promise no more than that 16 KiB are enough.
//! - It is for one scope, a project or a whole account: which one a service wants is in the service's own manual.

use std::sync::Arc;

use http::{HeaderName, StatusCode};

use super::verdict::{Cause, Reply, Row, Verdict, Wording};
use super::{Fixed, Key, Provider, Registration, Signer, secret_value};
use crate::credential::{Credential, HuaweiIam, SecretRef, Source};
use crate::settings::Table;

/// The provider.
pub(super) static REGISTRATION: Registration = Registration {
    name: "huawei-token",
    summary: "X-Auth-Token",
    keys: &[
        Key { name: "token", default: "", meaning: "a token that was fetched already, as a secret" },
        Key {
            name: "iam",
            default: "",
            meaning: "where tokens come from otherwise, as \"https://iam.REGION.myhuaweicloud.com\"",
        },
        Key { name: "iam_ca", default: "", meaning: "the file of a private CA that signed the certificate of `iam`" },
        Key { name: "account", default: "", meaning: "the account that the user belongs to" },
        Key { name: "user", default: "", meaning: "the IAM user" },
        Key { name: "password", default: "", meaning: "its password, as a secret" },
        Key {
            name: "scope",
            default: "",
            meaning: "{ project = \"…\" }, { project_id = \"…\" } or { domain = \"…\" }: what the token is for; beside \
                      `project` a `domain` where IAM wants that",
        },
    ],
    credential_headers: &["X-Auth-Token", "X-Subject-Token"],
    id_headers: ID_HEADERS,
    finds_upstream: false,
    read: |table| Token::read(table).map(|provider| Box::new(provider) as Box<dyn Provider>),
};

#[derive(Debug)]
struct Token {
    source: Source,
}

impl Token {
    fn read(table: &Table<'_>) -> Option<Self> {
        let of_iam = OF_IAM.map(|key| table.get(key));
        let source = match (table.get("token"), of_iam.iter().flatten().next()) {
            (Some(token), None) => SecretRef::secret(&token).map(|token| Source::Secrets(vec![token])),
            (None, Some(_)) => HuaweiIam::read(table).map(|iam| Source::Fetched(Arc::new(iam))),
            (Some(_), Some(other)) => {
                other.error_at_key("goes with tokens that are fetched from IAM: leave it out, or leave out `token`");
                None
            }
            (None, None) => {
                table.error("the token is missing: give `token`, or what fetching it from `iam` needs");
                None
            }
        };
        Some(Self { source: source? })
    }
}

impl Provider for Token {
    fn source(&self) -> &Source {
        &self.source
    }

    fn mints_at(&self) -> &'static [&'static str] {
        &["iam", "sts", "sms"]
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

    fn judges(&self, status: StatusCode) -> bool {
        matches!(status.as_u16(), 401 | 403 | 429)
    }

    fn verdict(&self, reply: &Reply<'_>) -> Verdict {
        WORDING.judge(reply, REFUSALS)
    }

    fn is_replayable(&self) -> bool {
        true
    }
}

/// The keys of a token that is fetched.
const OF_IAM: [&str; 6] = ["iam", "iam_ca", "account", "user", "password", "scope"];

pub(super) const ID_HEADERS: &[&str] = &["X-Request-Id", "X-IAM-Trace-Id"];

/// The errors of every service and of the gateway before it.
pub(super) static WORDING: Wording = Wording {
    names: &[("error_code", "error_msg"), ("errorCode", "errorMsg"), ("code", "message")],
    ids: &["request_id"],
    id_headers: ID_HEADERS,
    has_xml: false,
};

/// What the gateway says that does not depend on what it was shown.
pub(super) const FORBIDDEN: Row =
    Row::of(&[], Cause::Other, "give the user a permission for the request, and check the project or domain").at(403);
pub(super) const THROTTLED: Row = Row::of(&[], Cause::Throttled, "send fewer requests").at(429);

/// The gateway's errors (<https://support.huaweicloud.com/intl/en-us/apig_faq/apig-faq-0003.html>). A service without it has words
/// of its own, which say nothing but that the token is not good.
static REFUSALS: &[Row] = &[
    Row::of(
        &["APIGW.0301", "APIG.0301"],
        Cause::Other,
        "check that nothing on the way to the server takes the header `X-Auth-Token` out",
    )
    .at(401)
    .saying("x-auth-token not found"),
    Row::of(&[], Cause::Credential, "fetch another token, of the region and for the scope that the service wants")
        .at(401),
    FORBIDDEN,
    THROTTLED,
];

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
        let errors: Vec<_> = errors.into_iter().map(|error| format!("{}: {}", error.place, error.message)).collect();
        assert!(token.is_some() || !errors.is_empty());
        if errors.is_empty() { Ok(token.unwrap()) } else { Err(errors) }
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
    fn a_token_is_given_or_fetched_and_not_both() {
        let iam = "iam = 'https://iam.example'\naccount = 'a'\nuser = 'u'\npassword = 'hunter2'\n";
        for scope in
            ["{ project = 'p' }", "{ project = 'p', domain = 'd' }", "{ project_id = 'p' }", "{ domain = 'd' }"]
        {
            let provider = read(&format!("{iam}scope = {scope}")).unwrap();
            assert!(matches!(provider.source(), Source::Fetched(_)), "{scope}");
            assert!(!format!("{provider:?}").contains("hunter2"));
        }
        for scope in ["{}", "'p'", "{ project = 'p', project_id = 'p' }", "{ project_id = 'p', domain = 'd' }"] {
            let errors = read(&format!("{iam}scope = {scope}")).unwrap_err();
            assert!(errors.len() == 1 && errors[0].contains("`scope`: expected { project ="), "{scope}: {errors:?}");
        }
        for key in OF_IAM {
            let errors = read(&format!("{key} = 'hunter2'\ntoken = 'hunter2'")).unwrap_err();
            assert_eq!(errors.len(), 1);
            assert!(errors[0].starts_with(&format!("1:1: `{key}`: goes with tokens that are fetched")), "{errors:?}");
        }
        assert_eq!(read("iam = 'https://iam.example'").unwrap_err().len(), 4);
        assert_eq!(read("scope = { project = 'x' }\nuser = 'y'").unwrap_err().len(), 3);
        let nothing = "the token is missing: give `token`, or what fetching it from `iam` needs";
        assert_eq!(read("").unwrap_err(), [format!("1:1: {nothing}")]);
        assert!(read("token = 1").is_err());
    }

    #[test]
    fn a_password_crosses_no_network_in_the_clear() {
        let errors = |iam: &str| {
            let rest = "account = 'a'\nuser = 'u'\npassword = 'p'\nscope = { domain = 'd' }";
            read(&format!("iam = '{iam}'\n{rest}")).err().unwrap_or_default()
        };
        assert_eq!(errors("http://127.0.0.1:8000"), [""; 0]);
        let expected = "1:7: `iam`: http:// would send what is asked with in the clear: use https://";
        assert_eq!(errors("http://iam.example"), [expected]);
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
