//! Asks `allow` about a request: the first line is `METHOD /path?query`, the second a form body, each further one a rule.
//! Nothing may panic, a path that could be read in two ways never passes, and rules decide one by one.

use countersign::proxy::guard::{Permit, Rule, allow};
use http::header::CONTENT_TYPE;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method};

pub(super) fn run(octets: &[u8]) {
    let text = String::from_utf8_lossy(octets);
    let mut lines = text.split('\n');
    let (method, target) = lines.next().unwrap_or_default().split_once(' ').unwrap_or_default();
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return };
    // What is no target has been refused before.
    let Ok(target) = PathAndQuery::try_from(target) else { return };
    let (path, query) = (target.path(), target.query());
    let form = lines.next().unwrap_or_default().as_bytes();
    let rules: Vec<_> = lines.filter_map(|line| Rule::parse(line).ok()).collect();
    let plain = HeaderMap::new();
    let of_form = HeaderValue::from_static("application/x-www-form-urlencoded");
    let with_form = HeaderMap::from_iter([(CONTENT_TYPE, of_form)]);
    let ask = |rules: &[Rule], method: &Method| {
        let early = allow(Some(rules), method, path, query, &with_form, None);
        let held = allow(Some(rules), method, path, query, &with_form, Some(form)).is_ok();
        match early {
            Ok(Permit::Granted) => assert!(held, "what passes without its form passes with it"),
            Err(_) => assert!(!held, "what is refused early is not let in later"),
            Ok(Permit::NeedsForm) => {}
        }
        let bare = allow(Some(rules), method, path, query, &plain, None);
        assert!(!matches!(bare, Ok(Permit::NeedsForm)), "no form, nothing to wait for");
        (held, bare.is_ok())
    };
    let answer = ask(&rules, &method);
    if answer != (false, false) {
        assert!(!is_walk(path), "{path}");
        assert!(!rules.is_empty());
    }
    let single: Vec<_> = rules.iter().map(|rule| ask(std::slice::from_ref(rule), &method)).collect();
    assert_eq!(answer, (single.iter().any(|(held, _)| *held), single.iter().any(|(_, bare)| *bare)));
    if method == Method::GET {
        assert!(ask(&rules, &Method::HEAD).1 || !answer.1, "GET includes HEAD");
    }
}

/// True if somebody on the way could take the path for another one.
fn is_walk(path: &str) -> bool {
    let read = path.to_ascii_lowercase().replace("%2e", ".");
    let read = read.replace("%2f", "/").replace("%5c", "/").replace('\\', "/");
    read.contains("//")
        || read.contains(';')
        || read.contains("%00")
        || read.split('/').any(|segment| segment == "." || segment == "..")
}
