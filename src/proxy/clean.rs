//! Step 4: what of a caller's head goes no further.
//!
//! Callers must not be able to send a credential of their own beside the injected one, nor to take an injected header
//! away by naming it in `Connection`. So everything is removed here, before anything is set.

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, TE, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue};
use smallvec::SmallVec;

use crate::canonical::headers::fold;

use super::error::{Code, Error};

/// A set of header names, which are the same if they [fold] to the same.
#[derive(Clone, Debug)]
pub struct Names {
    by_first: Vec<Vec<Name>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    folded: Box<[u8]>,
    is_prefix: bool,
}

impl Names {
    /// A set of names; a final `*` stands for any ending.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut by_first = vec![Vec::new(); 128];
        for name in names {
            let name = Name { folded: fold(name).collect(), is_prefix: name.ends_with('*') };
            let list = name.folded.first().and_then(|first| by_first.get_mut(usize::from(*first)));
            if let Some(list) = list.filter(|list| !list.contains(&name)) {
                list.push(name);
            }
        }
        Self { by_first }
    }

    /// True if the set has this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        let mut octets = fold(name);
        let list = octets.next().and_then(|first| self.by_first.get(usize::from(first)));
        list.is_some_and(|list| {
            list.iter().any(|known| {
                let mut octets = octets.clone();
                let rest = known.folded.get(1..).unwrap_or_default();
                rest.iter().all(|octet| octets.next() == Some(*octet)) && (known.is_prefix || octets.next().is_none())
            })
        })
    }
}

/// What a route removes from its callers' heads and trailers, and what it sets.
#[derive(Clone, Debug)]
pub struct Cleaner {
    /// Credential headers of every provider, what this route's provider sets, our own `X-Countersign-*`, and the headers
    /// of framing.
    pub remove: Names,
    /// Those of them that may pass.
    pub keep: Names,
    /// Headers that are set.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Headers that are set where the caller sent none.
    pub default: Vec<(HeaderName, HeaderValue)>,
}

impl Cleaner {
    /// Cleans a head and sets the route's own headers.
    ///
    /// # Errors
    /// `bad_request` for a transfer coding that we would have to guess at.
    pub fn head(&self, headers: &mut HeaderMap) -> Result<(), Error> {
        framing(headers).map_err(|message| Error::new(Code::BadRequest, message))?;
        let takes_trailers = takes_trailers(headers);
        self.fields(headers);
        if takes_trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
            headers.insert(CONNECTION, HeaderValue::from_static("TE"));
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.default {
            headers.entry(name).or_insert_with(|| value.clone());
        }
        Ok(())
    }

    /// Cleans the trailers of a body, which must not say anything about its framing either.
    pub fn trailers(&self, trailers: &mut HeaderMap) {
        for name in [CONTENT_LENGTH, HOST, TRAILER] {
            trailers.remove(name);
        }
        self.fields(trailers);
    }

    /// One look at each name, since a head has more names than there is to remove from it.
    fn fields(&self, headers: &mut HeaderMap) {
        remove_named_by_connection(headers);
        remove_where(headers, |name| {
            self.remove.contains(name) && !self.keep.contains(name) && !PASSES_AS_SPELT.contains(&name)
        });
    }
}

/// Makes one header of a cookie that HTTP/2 let the caller split (RFC 9113 section 8.2.3), before it is signed or goes to
/// where it must be one.
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut pieces = headers.get_all(COOKIE).iter();
    if pieces.nth(1).is_none() {
        return;
    }
    let pieces: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&pieces.join(b"; ".as_slice())) {
        headers.insert(COOKIE, joined);
    }
}

/// True if the caller says that it reads trailers, the one thing in `TE` that holds for the whole way: replies of gRPC are
/// nothing without (RFC 9110 section 10.1.4).
fn takes_trailers(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TE).iter().flat_map(|value| value.as_bytes().split(|octet| *octet == b','));
    codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// Removes the headers whose names satisfy a condition.
pub fn remove_where(headers: &mut HeaderMap, condition: impl Fn(&str) -> bool) {
    let doomed: SmallVec<[HeaderName; 8]> = headers.keys().filter(|name| condition(name.as_str())).cloned().collect();
    for name in doomed {
        headers.remove(name);
    }
}

/// Removes the headers that `Connection` names: they concern one connection alone (RFC 9110, section 7.6.1). A length
/// concerns everybody: a reply to HEAD would lose what nothing else tells.
pub fn remove_named_by_connection(headers: &mut HeaderMap) {
    let named: SmallVec<[HeaderName; 4]> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|octet| *octet == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        .filter(|name| *name != CONTENT_LENGTH)
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// Refuses every transfer coding but one plain `chunked`, and a length beside it: hyper undoes that one alone, and what
/// would go on as something else than it says is how requests are smuggled and replies garbled. A length that is a list
/// must not go on as one (RFC 9110, section 8.6), and clients that read a number there wait for ever; the same length
/// twice goes on as one. Over HTTP/2 the library also takes none for a length.
///
/// # Errors
/// What is wrong.
pub fn framing(headers: &mut HeaderMap) -> Result<(), &'static str> {
    let is_number = |length: &HeaderValue| !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let mut is_repeated = false;
        let is_same = lengths.all(|other| {
            is_repeated = true;
            other == length
        });
        if !is_number(length) || !is_same {
            return Err("the body's length is not one number");
        }
        if is_repeated {
            let length = length.clone();
            headers.insert(CONTENT_LENGTH, length);
        }
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_plain = match (codings.next(), codings.next()) {
        (None, _) => return Ok(()),
        (Some(coding), None) => coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"),
        _ => false,
    };
    if !is_plain {
        return Err("the only transfer coding that is understood is one plain `chunked`");
    }
    if headers.contains_key(CONTENT_LENGTH) {
        return Err("the body's length is given twice: as a length and as chunks");
    }
    Ok(())
}

/// Headers that go on, but under their own spelling alone: a server that reads names loosely would take `Content_Length`
/// for a second length. `Trailer` is among them since trailers are carried through.
const PASSES_AS_SPELT: [&str; 3] = ["content-length", "host", "trailer"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::headers::{self, HOP_BY_HOP};

    fn cleaner() -> Cleaner {
        Cleaner {
            remove: Names::new(
                ["Authorization", "X-Auth-Token", "x-bce-date", "Spas-*", "X-Countersign-*"]
                    .into_iter()
                    .chain(HOP_BY_HOP)
                    .chain(headers::FRAMING),
            ),
            keep: Names::new(["authorization"]),
            set: vec![(HeaderName::from_static("x-set"), HeaderValue::from_static("ours"))],
            default: vec![(HeaderName::from_static("accept"), HeaderValue::from_static("*/*"))],
        }
    }

    fn clean(pairs: &[(&str, &str)]) -> Result<Vec<String>, Code> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        cleaner().head(&mut headers).map_err(|error| error.code)?;
        let mut left: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        left.sort();
        Ok(left)
    }

    #[test]
    fn credentials_go_however_they_are_spelt() {
        let left = clean(&[
            ("x-auth-token", "a"),
            ("X_AUTH_TOKEN", "b"),
            ("xauthtoken", "b"),
            ("X-Bce-Date", "c"),
            ("x.bce_date", "c"),
            ("spas-anything", "d"),
            ("SPAS_", "d"),
            ("x-countersign-request-id", "e"),
            ("authorization", "kept"),
            ("x-auth-token-2", "kept"),
            ("x-set", "theirs"),
        ]);
        assert_eq!(left.unwrap(), ["accept: */*", "authorization: kept", "x-auth-token-2: kept", "x-set: ours"]);
    }

    #[test]
    fn framing_goes_on_under_its_own_name_only() {
        let left = clean(&[
            ("content-length", "5"),
            ("content_length", "6"),
            ("Transfer_Encoding", "chunked"),
            ("transfer.encoding", "chunked"),
            ("h-o-s-t", "evil.example"),
            ("x-host", "kept"),
        ]);
        assert_eq!(left.unwrap(), ["accept: */*", "content-length: 5", "x-host: kept", "x-set: ours"]);
    }

    #[test]
    fn connection_removes_what_it_names_but_nothing_that_is_set() {
        let left = clean(&[
            ("connection", "close, x-hop ,X-Set,accept"),
            ("connection", "keep-alive"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("x-hop", "1"),
            ("accept", "text/html"),
            ("x-end", "2"),
        ]);
        assert_eq!(left.unwrap(), ["accept: */*", "connection: TE", "te: trailers", "x-end: 2", "x-set: ours"]);
    }

    #[test]
    fn of_te_only_trailers_pass() {
        for (te, passes) in
            [("trailers", true), ("gzip;q=0.5, Trailers", true), ("gzip", false), ("trailers;q=0", false)]
        {
            let left = clean(&[("te", te), ("connection", "te")]).unwrap();
            assert_eq!(left.contains(&"te: trailers".to_owned()), passes, "{te}");
        }
    }

    #[test]
    fn a_split_cookie_becomes_one() {
        let mut headers = HeaderMap::new();
        for value in ["a=1", "b=2; c=3", "d=4"] {
            headers.append(COOKIE, HeaderValue::from_static(value));
        }
        join_cookies(&mut headers);
        assert_eq!((headers.len(), &headers[COOKIE]), (1, &HeaderValue::from_static("a=1; b=2; c=3; d=4")));
    }

    #[test]
    fn one_plain_chunked_is_the_only_transfer_coding() {
        assert!(clean(&[("transfer-encoding", "Chunked")]).is_ok());
        for coding in ["gzip, chunked", "chunked, chunked", "identity", "xchunked", "chunked;q=1", ""] {
            assert_eq!(clean(&[("transfer-encoding", coding)]), Err(Code::BadRequest), "{coding}");
        }
        let twice = [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(clean(&twice), Err(Code::BadRequest));
        assert_eq!(clean(&[("transfer-encoding", "chunked"), ("content-length", "3")]), Err(Code::BadRequest));
    }

    #[test]
    fn a_length_is_one_number() {
        assert!(clean(&[("content-length", "18446744073709551615")]).is_ok());
        for length in ["", "3,3", "+3", "3 ", "0x3"] {
            assert_eq!(clean(&[("content-length", length)]), Err(Code::BadRequest), "{length}");
        }
        assert_eq!(clean(&[("content-length", "3"), ("content-length", "4")]), Err(Code::BadRequest));
        let same = clean(&[("content-length", "3"), ("content-length", "3")]).unwrap();
        assert_eq!(
            same.iter().filter(|field| field.starts_with("content-length")).collect::<Vec<_>>(),
            ["content-length: 3"]
        );
    }

    #[test]
    fn trailers_are_cleaned_of_framing_too() {
        let mut trailers = HeaderMap::new();
        for name in ["x-checksum", "x_auth-token", "content-length", "transfer-encoding", "host", "spas-signature"] {
            trailers.insert(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("1"));
        }
        cleaner().trailers(&mut trailers);
        assert_eq!(trailers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-checksum"]);
    }
}
