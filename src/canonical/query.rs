//! Query strings and forms, taken apart.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::CONTENT_TYPE;

use crate::settings::Table;

/// The pairs of a query: split at `&`, empty pieces skipped, each split at its first `=`; nothing decoded.
pub fn pairs(query: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    query.split('&').filter(|piece| !piece.is_empty()).map(|piece| match piece.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (piece, None),
    })
}

/// The pairs of a query or a form body, whose octets need not be text, taken apart alike: a name alone has an empty value.
pub fn form_pairs(form: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    form.split(|octet| *octet == b'&').filter(|piece| !piece.is_empty()).map(|piece| {
        let equals = piece.iter().position(|octet| *octet == b'=').unwrap_or(piece.len());
        let (name, value) = piece.split_at_checked(equals).unwrap_or((piece, b""));
        (name, value.get(1..).unwrap_or(b""))
    })
}

/// True for a body of `application/x-www-form-urlencoded`, whatever its parameters. `None` for one that one server may take
/// for a form and another not: PHP reads the type up to a comma or space, others up to a semicolon, and of two headers some
/// read the first and some the last.
#[must_use]
pub fn is_form(headers: &HeaderMap) -> Option<bool> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (types.next(), types.next()) else {
        return (!headers.contains_key(CONTENT_TYPE)).then_some(false);
    };
    let media_type = value.as_bytes().split(|octet| *octet == b';').next().unwrap_or(b"").trim_ascii();
    if media_type.iter().any(|octet| octet.is_ascii_whitespace() || matches!(octet, b',' | b'"')) {
        return None;
    }
    Some(media_type.eq_ignore_ascii_case(b"application/x-www-form-urlencoded"))
}

/// What a raw `+` in a query is signed and sent as, where a scheme cannot carry it: servers read it in two ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plus {
    /// `%20`, as forms mean it.
    #[default]
    Space,
    /// `%2B`, as RFC 3986 means it.
    Literal,
}

impl Plus {
    /// Reads a provider's key `plus`; `None` if it is wrong, which is then noted.
    pub fn read(table: &Table<'_>) -> Option<Self> {
        let choices = [("space", Self::Space), ("literal", Self::Literal)];
        table.get("plus").map_or(Some(Self::default()), |value| value.choice(&choices))
    }

    /// The query without a raw `+`, if it has one.
    #[must_use]
    pub fn rewrite(self, query: &str) -> Option<String> {
        let escape = match self {
            Self::Space => "%20",
            Self::Literal => "%2B",
        };
        query.contains('+').then(|| query.replace('+', escape))
    }
}

/// Undoes `+` and every well-formed `%XX` once, as HTML forms do; a stray `%` stands for itself.
#[must_use]
pub fn form_decode(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.iter().any(|octet| matches!(octet, b'+' | b'%')) {
        return Cow::Borrowed(text);
    }
    let spaced: Vec<u8> = text.iter().map(|octet| if *octet == b'+' { b' ' } else { *octet }).collect();
    Cow::Owned(percent_encoding::percent_decode(&spaced).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_split_at_their_first_equals_sign() {
        let found: Vec<_> = pairs("&a=b=c&&d&=&e=&").collect();
        assert_eq!(found, [("a", Some("b=c")), ("d", None), ("", Some("")), ("e", Some(""))]);
        assert_eq!(pairs("").count(), 0);
    }

    #[test]
    fn forms_are_split_as_queries_are() {
        let found: Vec<_> = form_pairs(b"&a=b=c&&\xb7&=&e=&").collect();
        let expected: [(&[u8], &[u8]); 4] = [(b"a", b"b=c"), (b"\xb7", b""), (b"", b""), (b"e", b"")];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_form_is_known_by_its_media_type_alone() {
        let is_form = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_TYPE, http::HeaderValue::from_static(value));
            }
            is_form(&headers)
        };
        for form in ["application/x-www-form-urlencoded", "Application/X-WWW-Form-Urlencoded ;charset=GBK, x"] {
            assert_eq!(is_form(&[form]), Some(true), "{form}");
        }
        for other in ["application/x-www-form-urlencoded2", "text/plain; a=application/x-www-form-urlencoded", ""] {
            assert_eq!(is_form(&[other]), Some(false), "{other}");
        }
        assert_eq!(is_form(&[]), Some(false));
        for doubtful in [
            ["application/x-www-form-urlencoded, text/plain"].as_slice(),
            &["application/x-www-form-urlencoded x"],
            &["text/plain", "text/plain"],
        ] {
            assert_eq!(is_form(doubtful), None, "{doubtful:?}");
        }
    }

    #[test]
    fn a_raw_plus_becomes_what_it_stands_for() {
        assert_eq!(Plus::Space.rewrite("a+b=+%2B"), Some("a%20b=%20%2B".to_owned()));
        assert_eq!(Plus::Literal.rewrite("a+b=+%20"), Some("a%2Bb=%2B%20".to_owned()));
        assert_eq!(Plus::Space.rewrite("a%2Bb"), None);
    }

    #[test]
    fn forms_are_decoded_once() {
        assert_eq!(form_decode(b"a+b%2B%252f%").as_ref(), b"a b+%2f%");
        assert_eq!(form_decode(b"plain").as_ref(), b"plain");
    }
}
