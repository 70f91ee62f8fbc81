//! Header names and values that a route sets or lets through.

use http::{HeaderName, HeaderValue};

use crate::canonical::headers::{FRAMING, HOP_BY_HOP, fold, is_same};
use crate::provider::ALWAYS;
use crate::proxy::Field;
use crate::proxy::clean::Names;
use crate::settings::Value;

/// Reads a table of headers to set. `taken` are the names that the route's provider sets; `seen` those that the route
/// sets already.
pub(super) fn read(value: &Value<'_>, taken: &[String], seen: &mut Vec<String>) -> Vec<Field> {
    let Some(table) = value.table() else { return Vec::new() };
    let credentials = Names::new(ALWAYS.iter().copied());
    let mut headers = Vec::new();
    for (key, value) in table.rest() {
        let Ok(name) = HeaderName::from_bytes(key.as_bytes()) else {
            value.error_at_key("expected the name of a header");
            continue;
        };
        let trouble = if is_framing(key) {
            Some("the proxy sets this header itself, for each connection anew".to_owned())
        } else if fold(key).take(12).eq(fold("X-Countersign")) {
            Some("the proxy's own headers go to callers only".to_owned())
        } else if let Some(own) = taken.iter().find(|own| is_same(own, key)) {
            Some(format!("the route's provider sets `{own}`"))
        } else if seen.iter().any(|seen| is_same(seen, key)) {
            Some("the route sets this header already".to_owned())
        } else {
            None
        };
        seen.push(key.to_owned());
        if let Some(trouble) = trouble {
            value.error_at_key(trouble);
        } else if credentials.contains(key) {
            let instead = "leave it to the provider `header`, which takes { env = \"NAME\" } and { file = \"PATH\" }";
            value.bare_secret("a credential", instead);
        }
        let content = value.parse(|text| {
            let content = HeaderValue::from_str(text).ok().filter(|_| text.trim_ascii() == text);
            content.ok_or("expected visible ASCII, without a space at either end")
        });
        headers.extend(content.map(|value| Field { spelling: key.to_owned(), name, value }));
    }
    headers
}

/// Reads the names of credential headers that pass from the caller.
pub(super) fn keep(value: &Value<'_>, taken: &[String]) -> Option<Vec<String>> {
    value.list_of(|value| {
        let name = name(value)?;
        if let Some(own) = taken.iter().find(|own| is_same(own, &name)) {
            value.error(format!("the route's provider sets `{own}`, and what a caller sends in it never passes"));
            return None;
        }
        if is_framing(&name) && !is_same(&name, "proxy-authorization") {
            value.error("a header of the connection or of the framing never passes");
            return None;
        }
        Some(name)
    })
}

/// Reads the names of credential headers that pass from the upstream. `concealed` are those that the route's provider removes,
/// if it is known.
pub(super) fn expose(value: &Value<'_>, concealed: Option<&[&str]>) -> Option<Vec<String>> {
    value.list_of(|value| {
        let name = name(value)?;
        if concealed.is_some_and(|concealed| !concealed.iter().any(|concealed| is_same(concealed, &name))) {
            value.warning("no effect: the route's provider removes no such header from replies");
        }
        Some(name)
    })
}

/// Reads the name of a header, in lower case.
fn name(value: &Value<'_>) -> Option<String> {
    let name = value.parse(|text| HeaderName::from_bytes(text.as_bytes()).map_err(|_| "expected the name of a header"));
    name.map(|name| name.as_str().to_owned())
}

/// True for hop-by-hop headers and those of framing.
fn is_framing(name: &str) -> bool {
    HOP_BY_HOP.iter().chain(&FRAMING).any(|framing| is_same(framing, name))
}
