//! The same facts for people: what the page shows, and what the commands print.

use std::fmt::Write as _;

use serde_json::Value;

/// Facts that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paragraph {
    /// What they are about.
    pub title: String,
    /// What each is called, and what it says, perhaps in several lines.
    pub facts: Vec<(&'static str, String)>,
}

impl Paragraph {
    fn new(title: &str) -> Self {
        Self { title: plain(title), facts: Vec::new() }
    }

    /// Says nothing where there is nothing to say.
    fn say(&mut self, name: &'static str, fact: impl Into<Option<String>>) {
        if let Some(fact) = fact.into().filter(|fact| !fact.is_empty()) {
            self.facts.push((name, plain(&fact)));
        }
    }

    /// Aligned text.
    #[must_use]
    pub fn text(&self) -> String {
        let in_a_line = self.facts.iter().filter(|(_, fact)| !fact.contains('\n'));
        let width = in_a_line.map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut text = format!("{}\n", self.title);
        for (name, fact) in &self.facts {
            if fact.contains('\n') {
                let _ = writeln!(text, "  {name}");
                for line in fact.split('\n') {
                    let _ = writeln!(text, "    {line}");
                }
            } else {
                let _ = writeln!(text, "  {name:width$}  {fact}");
            }
        }
        text
    }
}

/// The daemon, then each route, out of what [`daemon`](super::status::daemon) tells.
#[must_use]
pub fn status(status: &Value) -> Vec<Paragraph> {
    let is_true = |key: &str| status.get(key).and_then(Value::as_bool).unwrap_or(false);
    let state = match (is_true("draining"), is_true("ready")) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    let mut daemon = Paragraph::new(&format!("countersign {}: {state}", text(status, "version").unwrap_or_default()));
    let uptime = number(status, "uptime_seconds").map(|seconds| format!(", {} ago", span(seconds)));
    daemon.say("started", text(status, "started").map(|started| started + &uptime.unwrap_or_default()));
    for warning in list(status, "warnings") {
        daemon.say("warning", warning.as_str().map(str::to_owned));
    }
    std::iter::once(daemon).chain(list(status, "routes").iter().map(route)).collect()
}

fn route(route: &Value) -> Paragraph {
    let is_ready = route.get("ready").and_then(Value::as_bool).unwrap_or(false);
    let state = if is_ready { "ready" } else { "not ready" };
    let mut paragraph = Paragraph::new(&format!("{}: {state}", text(route, "name").unwrap_or_default()));
    paragraph.say("provider", text(route, "provider"));
    let is_local = text(route, "clock").is_some_and(|clock| clock == "local");
    for upstream in list(route, "upstreams") {
        paragraph.say("upstream", self::upstream(upstream, is_local));
    }
    paragraph.say(
        "verify",
        match text(route, "verify").as_deref() {
            Some("none") => Some("none: anyone on the way can read and change what is sent".to_owned()),
            verify => verify.map(str::to_owned),
        },
    );
    if let Some(credential) = route.get("credential") {
        self::credential(&mut paragraph, credential);
    }
    if let Some(refusal) = route.get("last_refusal").filter(|refusal| refusal.is_object()) {
        let code = text(refusal, "code").map(|code| format!(" ({code})")).unwrap_or_default();
        let [at, verdict] = ["at", "verdict"].map(|key| text(refusal, key).unwrap_or_default());
        let name = text(route, "name").unwrap_or_default();
        paragraph.say("refused", format!("{at}, {verdict}{code}: `countersign last {name}`"));
    }
    for certificate in list(route, "certificates") {
        let what = text(certificate, "what").unwrap_or_default();
        let until = text(certificate, "until").map(|until| format!("{what} is valid until {until}"));
        paragraph.say("certificate", text(certificate, "warning").or(until));
    }
    paragraph
}

fn upstream(upstream: &Value, is_local: bool) -> Option<String> {
    let mut said = text(upstream, "url")?;
    for (key, how) in [("connect", "at"), ("proxy", "through")] {
        if let Some(value) = text(upstream, key) {
            let _ = write!(said, " {how} {value}");
        }
    }
    let ahead = number(upstream, "clock_ahead_ms").unwrap_or(0) / 1000;
    let where_to = if ahead < 0 { "behind" } else { "ahead of" };
    if ahead != 0 {
        let ignored = if is_local { ", and not followed" } else { "" };
        let _ = write!(said, " (its clock is {} {where_to} ours{ignored})", span(ahead.saturating_abs()));
    }
    Some(said)
}

fn credential(paragraph: &mut Paragraph, credential: &Value) {
    let mut said = text(credential, "source").unwrap_or_default();
    match (number(credential, "generation"), number(credential, "age_seconds")) {
        (Some(generation), Some(age)) => {
            let _ = write!(said, ", generation {generation}, got {} ago", span(age));
        }
        _ => said.push_str(", not there yet"),
    }
    paragraph.say("credential", said);
    let end = text(credential, "expires_at").zip(number(credential, "expires_in_seconds"));
    paragraph.say(
        "expires",
        end.map(|(at, left)| match left {
            0.. => format!("{at}, in {}", span(left)),
            _ => format!("{at}, {} ago", span(left.saturating_abs())),
        }),
    );
    paragraph.say("refreshed", text(credential, "last_refresh"));
    let rotation = credential.get("rotation").and_then(|rotation| Some((rotation, text(rotation, "state")?)));
    paragraph.say(
        "rotation",
        rotation.map(|(rotation, state)| match text(rotation, "at") {
            Some(at) => format!("{state} at {at}: the old credential goes on serving, correct the new one"),
            None => format!("{state}: the next request shows whether the new credential is good"),
        }),
    );
    let error = credential.get("last_error").and_then(|error| Some((text(error, "at")?, text(error, "message")?)));
    paragraph.say("error", error.map(|(at, message)| format!("{message} (at {at})")));
}

/// Each refusal out of what [`last`](super::status::last) tells.
#[must_use]
pub fn last(last: &Value) -> Vec<Paragraph> {
    list(last, "refusals").iter().map(refusal).collect()
}

fn refusal(refusal: &Value) -> Paragraph {
    let said = |key: &str| text(refusal, key);
    let part = |key: &str| said(key).unwrap_or_default();
    let title = format!("{} {}: {} {}", part("at"), part("route"), part("method"), part("path"));
    let mut paragraph = Paragraph::new(&title);
    let status = number(refusal, "status").map(|status| format!("{status}, "));
    paragraph.say("verdict", status.unwrap_or_default() + &part("verdict"));
    paragraph.say("code", said("code"));
    paragraph.say("provider's id", said("provider_request_id"));
    paragraph.say("request id", said("request_id"));
    paragraph.say("sent again", said("sent_again"));
    paragraph.say("what to do", said("advice"));
    paragraph.say("canonical request", said("canonical_request"));
    paragraph.say("string to sign", said("string_to_sign"));
    paragraph
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key)?.as_str().map(str::to_owned)
}

fn number(value: &Value, key: &str) -> Option<i64> {
    value.get(key)?.as_i64()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A time as long as this, in its two largest units.
fn span(seconds: i64) -> String {
    let units = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];
    let first = units.iter().position(|(_, length)| seconds >= *length).unwrap_or(units.len() - 1);
    let mut left = seconds;
    let parts = units.iter().skip(first).take(2).map(|(name, length)| {
        let count = left / length;
        left %= length;
        (count, name)
    });
    let parts: Vec<_> = parts.enumerate().filter(|(at, (count, _))| *at == 0 || *count > 0).collect();
    parts.iter().map(|(_, (count, name))| format!("{count} {name}")).collect::<Vec<_>>().join(" ")
}

/// Some of it comes from upstreams and callers, and is to steer nobody's terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn spans_have_two_units_at_most() {
        for (seconds, said) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3_599, "59 min 59 s"),
            (3_600, "1 h"),
            (3_659, "1 h"),
            (90_061, "1 d 1 h"),
        ] {
            assert_eq!(span(seconds), said, "{seconds}");
        }
    }

    #[test]
    fn routes_are_told_in_aligned_lines() {
        let told = json!({ "version": "0", "started": "T", "uptime_seconds": 61, "ready": true, "draining": false,
            "warnings": ["f:1:1: unwise"],
            "routes": [{
                "name": "sms", "provider": "huawei-token", "ready": false, "clock": "local", "verify": "none",
                "upstreams": [
                    { "url": "https://a", "connect": "10.0.0.7:443", "proxy": "http://p:1", "clock_ahead_ms": -61_500 },
                    { "url": "https://b", "connect": null, "proxy": null, "clock_ahead_ms": 900 },
                ],
                "credential": {
                    "source": "iam", "generation": null, "obtained": null, "age_seconds": null,
                    "expires_at": "E", "expires_in_seconds": -3, "last_refresh": null,
                    "last_error": { "at": "L", "message": "the password is wrong" },
                    "rotation": { "state": "refused", "at": "R" } },
                "certificates": [{ "what": "`tls.ca`: ca.pem", "from": "F", "until": "U", "warning": null }],
            }] });
        let said: String = status(&told).iter().map(Paragraph::text).collect();
        let expected = "countersign 0: ready\n\
            \x20 started  T, 1 min 1 s ago\n\
            \x20 warning  f:1:1: unwise\n\
            sms: not ready\n\
            \x20 provider     huawei-token\n\
            \x20 upstream     https://a at 10.0.0.7:443 through http://p:1 (its clock is 1 min 1 s behind ours, and not followed)\n\
            \x20 upstream     https://b\n\
            \x20 verify       none: anyone on the way can read and change what is sent\n\
            \x20 credential   iam, not there yet\n\
            \x20 expires      E, 3 s ago\n\
            \x20 rotation     refused at R: the old credential goes on serving, correct the new one\n\
            \x20 error        the password is wrong (at L)\n\
            \x20 certificate  `tls.ca`: ca.pem is valid until U\n";
        assert_eq!(said, expected);
    }

    #[test]
    fn what_an_upstream_says_steers_no_terminal() {
        let told = json!({ "refusals": [{ "path": "/", "code": "a\u{1b}[2Jb\r", "canonical_request": "GET\n/\n" }] });
        let said = last(&told).remove(0).text();
        assert!(said.contains("a\u{fffd}[2Jb\u{fffd}\n"), "{said}");
        assert!(said.contains("  canonical request\n    GET\n    /\n"), "{said}");
    }
}
