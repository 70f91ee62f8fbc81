//! What services, programs and files say of temporary access keys, in JSON.

use secrecy::SecretString;
use serde_json::{Map, Value};

use crate::canonical::time;
use crate::clock::Timestamp;

use super::AccessKey;

/// Takes an access key and its end out of an object. Each vendor has its spelling, which differ in more than case and
/// underscores in the shorter names alone, so that one list does for all.
///
/// # Errors
/// What is missing or cannot be read; never a value.
pub(super) fn access_key(mut fields: Map<String, Value>) -> Result<(AccessKey, Option<Timestamp>), String> {
    let mut take = |names: &[&str]| take(&mut fields, names);
    let access_key = take(&["accesskeyid", "access"])?.ok_or("`AccessKeyId` is missing")?;
    let secret_key = take(&["accesskeysecret", "secretaccesskey", "secret"])?;
    let secret_key = secret_key.ok_or("`SecretAccessKey`, or `AccessKeySecret`, is missing")?;
    let security_token = take(&["securitytoken", "sessiontoken"])?.map(SecretString::from);
    let expiry = take(&["expiration", "expiresat"])?
        .map(|text| time::parse_iso(&text).ok_or("`Expiration` is no date and time such as 2026-01-02T03:04:05Z"));
    Ok((AccessKey { access_key, secret_key: secret_key.into(), security_token }, expiry.transpose()?))
}

/// Takes the text of the first of these names, which are compared without case and underscores. What is null or empty is not
/// there.
fn take(fields: &mut Map<String, Value>, names: &[&str]) -> Result<Option<String>, String> {
    let is_named = |key: &str, name: &str| {
        key.bytes().filter(|octet| *octet != b'_').map(|octet| octet.to_ascii_lowercase()).eq(name.bytes())
    };
    for name in names {
        let Some(key) = fields.keys().find(|key| is_named(key, name)).cloned() else { continue };
        match fields.swap_remove(&key) {
            Some(Value::String(text)) if !text.is_empty() => return Ok(Some(text)),
            Some(Value::String(_) | Value::Null) | None => {}
            Some(_) => return Err(format!("`{key}` is no text")),
        }
    }
    Ok(None)
}

/// The object that these octets are.
///
/// # Errors
/// That they are none.
pub(super) fn object(octets: &[u8]) -> Result<Map<String, Value>, &'static str> {
    match serde_json::from_slice(octets) {
        Ok(Value::Object(fields)) => Ok(fields),
        // The library's own words could quote a part.
        _ => Err("it is no JSON object"),
    }
}

/// A stranger's text for people: not too long, and without what a terminal or a log would act upon.
pub(super) fn shown(text: &str) -> String {
    let is_harmless = |c: char| !c.is_control() && !('\u{202a}'..='\u{202e}').contains(&c);
    text.trim().chars().take(MOST_CHARACTERS).map(|c| if is_harmless(c) { c } else { '?' }).collect()
}

/// How much of a stranger's text is shown.
const MOST_CHARACTERS: usize = 300;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    use super::*;

    fn read(text: &str) -> Result<(String, String, Option<String>, Option<i64>), String> {
        let (key, expiry) = access_key(object(text.as_bytes())?)?;
        let token = key.security_token.map(|token| token.expose_secret().to_owned());
        Ok((key.access_key, key.secret_key.expose_secret().to_owned(), token, expiry.map(|expiry| expiry.0)))
    }

    #[test]
    fn every_vendors_spelling_is_read() {
        let end = Some(1_767_323_045_000);
        for text in [
            r#"{"AccessKeyId":"a","AccessKeySecret":"s","SecurityToken":"t","Expiration":"2026-01-02T03:04:05Z"}"#,
            r#"{"Version":1,"AccessKeyId":"a","SecretAccessKey":"s","SessionToken":"t","Expiration":"2026-01-02T11:04:05+08:00"}"#,
            r#"{"access":"a","secret":"s","securitytoken":"t","expires_at":"2026-01-02T03:04:05.000000Z"}"#,
            r#"{"access_key_id":"a","secret_access_key":"s","security_token":"t","expiration":"2026-01-02T03:04:05Z"}"#,
        ] {
            let expected = ("a".to_owned(), "s".to_owned(), Some("t".to_owned()), end);
            assert_eq!(read(text), Ok(expected), "{text}");
        }
        let plain = r#"{"AccessKeyId":"a","SecretAccessKey":"s","SessionToken":null,"Expiration":""}"#;
        assert_eq!(read(plain), Ok(("a".to_owned(), "s".to_owned(), None, None)));
    }

    #[test]
    fn what_is_wrong_is_told_without_being_shown() {
        for (text, expected) in [
            ("hunter2", "no JSON object"),
            (r#"["hunter2"]"#, "no JSON object"),
            (r#"{"AccessKeyId":"hunter2"}"#, "`SecretAccessKey`, or `AccessKeySecret`, is missing"),
            (r#"{"SecretAccessKey":"hunter2"}"#, "`AccessKeyId` is missing"),
            (r#"{"AccessKeyId":["hunter2"]}"#, "`AccessKeyId` is no text"),
            (r#"{"AccessKeyId":"a","SecretAccessKey":"s","Expiration":"hunter2"}"#, "`Expiration` is no date"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(expected) && !said.contains("hunter2"), "{text}: {said}");
        }
    }

    proptest! {
        #[test]
        fn no_octets_are_too_odd(octets: Vec<u8>, text: String) {
            let _ = object(&octets).map(access_key);
            let fields = [("AccessKeyId", &*text), ("SecretAccessKey", &text), ("Expiration", &text)];
            let _ = access_key(fields.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect());
            prop_assert!(shown(&text).chars().count() <= MOST_CHARACTERS);
        }
    }
}
