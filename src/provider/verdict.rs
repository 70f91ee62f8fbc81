//! What a reply says about the request's authentication: what providers judge by, and what they find.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value};

use crate::clock::Timestamp;
pub use crate::credential::Used;

/// A reply that may be about the request's authentication.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// The method of the request.
    pub method: &'a Method,
    /// The status, one that the provider [judges](super::Provider::judges).
    pub status: StatusCode,
    /// The headers as they came.
    pub headers: &'a HeaderMap,
    /// The body's first 64 KiB, its content coding undone.
    pub body: &'a [u8],
    /// By how many milliseconds the server's clock is ahead of the time that the request was signed with, by the reply's
    /// `Date`: correct to half a second and half the round trip. `None` where there is no `Date`, or where it may be a cache's.
    pub ahead: Option<i64>,
    /// The credential that the request was signed with.
    pub credential: Used,
}

impl Reply<'_> {
    /// True if the time that was signed is known to be more than `window` from the server's.
    pub(super) fn is_off_by(&self, window: Duration) -> bool {
        self.ahead.is_some_and(|ahead| Duration::from_millis(ahead.unsigned_abs()) > window)
    }
}

/// What a reply says about the request's authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Why the request was refused.
    pub cause: Cause,
    /// The vendor's code, such as `SignatureDoesNotMatch`.
    pub code: Option<String>,
    /// The vendor's message. It may quote what was sent, signature included, and is shown to nobody but the caller.
    pub message: Option<String>,
    /// The vendor's name for the request, for its support.
    pub request_id: Option<String>,
    /// What a person can do about it, lower case, without a full stop; empty if nothing is known.
    pub advice: Cow<'static, str>,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// For no reason that has to do with authentication, or for one that nothing but a person can change: a permission.
    Other,
    /// The credential is not valid any more, or not yet known: another one may be accepted.
    Credential,
    /// The time that was signed is too far from the server's, which is this one if the reply quotes it, else that of its `Date`.
    Clock(Option<Timestamp>),
    /// The signature does not match: a wrong secret most likely. Sent again it is wrong again.
    Signature,
    /// The provider has locked the access key after bad signatures.
    Locked,
    /// Too many requests.
    Throttled,
    /// The signature itself cannot be used again, though nothing is wrong with it: a nonce that was seen before.
    Spent,
}

impl Verdict {
    /// A verdict without details.
    #[must_use]
    pub fn of(cause: Cause) -> Self {
        Self { cause, code: None, message: None, request_id: None, advice: Cow::Borrowed("") }
    }
}

/// How a vendor's servers word their errors.
#[derive(Debug)]
pub(super) struct Wording {
    /// The names of code and message in the body, in the order in which they are looked for: in the outer object first,
    /// then in those directly inside it.
    pub(super) names: &'static [(&'static str, &'static str)],
    /// The names of the request's id there.
    pub(super) ids: &'static [&'static str],
    /// The headers that hold it where the body does not.
    pub(super) id_headers: &'static [&'static str],
    /// True if errors may be XML, with elements of the same names.
    pub(super) has_xml: bool,
}

impl Wording {
    /// What the reply says by a table; *other* if no row fits.
    ///
    /// Of the rows that fit, the one counts whose words come first in the message, then the first. For messages may go on
    /// to quote the request, and a caller must not choose the verdict.
    pub(super) fn judge(&self, reply: &Reply<'_>, rows: &[Row]) -> Verdict {
        let mut verdict = self.read(reply);
        let message = verdict.message.as_deref().unwrap_or_default().to_ascii_lowercase();
        let fitting = rows.iter().filter_map(|row| {
            let place = row.fits(reply.status, verdict.code.as_deref(), &message)?;
            Some((place, row))
        });
        if let Some((_, row)) = fitting.min_by_key(|(place, _)| *place) {
            (verdict.cause, verdict.advice) = (row.cause, Cow::Borrowed(row.advice));
        }
        verdict
    }

    /// What there is to read, of no cause yet.
    fn read(&self, reply: &Reply<'_>) -> Verdict {
        let document: Value = serde_json::from_slice(reply.body).unwrap_or_default();
        let markup = if self.has_xml { String::from_utf8_lossy(reply.body) } else { Cow::Borrowed("") };
        let levels: Vec<_> = match &document {
            Value::Object(outer) => {
                let inner = outer.values().filter_map(Value::as_object);
                std::iter::once(outer).chain(inner).map(Level::Object).collect()
            }
            _ => vec![Level::Markup(&markup)],
        };
        let of_level = |level| self.names.iter().map(move |(code, message)| (level, *code, *message));
        let found = levels.iter().flat_map(of_level).find_map(|(level, code, message): (&Level<'_>, _, _)| {
            Some((level.get(code).filter(|code| is_name(code))?, level.get(message)))
        });
        let (code, message) = found.map_or((None, None), |(code, message)| (Some(code), message));
        let of_body = levels.iter().flat_map(|level| self.ids.iter().filter_map(|id| level.get(id)));
        let of_headers =
            self.id_headers.iter().filter_map(|id| Some(reply.headers.get(*id)?.to_str().ok()?.to_owned()));
        let request_id = of_body.chain(of_headers).find(|id| is_name(id));
        Verdict { code, message, request_id, ..Verdict::of(Cause::Other) }
    }
}

/// Where names have values.
enum Level<'a> {
    Object(&'a Map<String, Value>),
    Markup(&'a str),
}

impl Level<'_> {
    fn get(&self, name: &str) -> Option<String> {
        match self {
            Self::Object(object) => match object.get(name)? {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            },
            Self::Markup(text) => {
                let (_, rest) = text.split_once(&format!("<{name}>"))?;
                let (value, _) = rest.split_once(&format!("</{name}>"))?;
                Some(value.trim().to_owned())
            }
        }
    }
}

/// True for what looks like a code or an id, and is safe to show wherever people look.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let is_part = |octet: u8| octet.is_ascii_alphanumeric() || b"-._:".contains(&octet);
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(is_part)
}

const LONGEST_NAME: usize = 128;

/// A row of a vendor's table: which refusals it is about, and what they mean.
#[derive(Debug)]
pub(super) struct Row {
    /// `None`: any.
    status: Option<u16>,
    /// Codes, or families of them, which are what stands before a dot. Empty: any, and none.
    codes: &'static [&'static str],
    /// What the message contains, in lower case.
    words: Option<&'static str>,
    cause: Cause,
    advice: &'static str,
}

impl Row {
    /// A row for some codes.
    pub(super) const fn of(codes: &'static [&'static str], cause: Cause, advice: &'static str) -> Self {
        Self { status: None, codes, words: None, cause, advice }
    }

    /// The same for one status alone.
    pub(super) const fn at(self, status: u16) -> Self {
        Self { status: Some(status), ..self }
    }

    /// The same for messages alone that contain these words, given in lower case and found in any.
    pub(super) const fn saying(self, words: &'static str) -> Self {
        Self { words: Some(words), ..self }
    }

    /// Where in the message its words are, at the very end if it wants none; `None` if it does not fit.
    fn fits(&self, status: StatusCode, code: Option<&str>, message: &str) -> Option<usize> {
        let is_of = |family: &&str| {
            let rest = code.and_then(|code| code.strip_prefix(*family));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let is_right = self.status.is_none_or(|right| right == status.as_u16())
            && (self.codes.is_empty() || self.codes.iter().any(is_of));
        let place = self.words.map_or(Some(message.len()), |words| message.find(words));
        place.filter(|_| is_right)
    }
}
