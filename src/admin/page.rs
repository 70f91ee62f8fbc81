//! The status as a page: for people, without scripts, and with nothing that is fetched from elsewhere.

use std::fmt::Write as _;

use super::words::Paragraph;

/// A page of what is told of the daemon and its routes, and of the last refusals, which come oldest first and are shown newest first.
#[must_use]
pub fn render(status: &[Paragraph], last: &[Paragraph]) -> String {
    let mut page = String::from(HEAD);
    for (at, paragraph) in status.iter().enumerate() {
        let level = if at == 0 { 1 } else { 2 };
        let _ = write!(page, "<h{level}>{}</h{level}>\n{}", escape(&paragraph.title), table(paragraph));
    }
    page.push_str("<h1>The last refusals</h1>\n");
    if last.is_empty() {
        page.push_str("<p>None since the start.</p>\n");
    }
    // Whoever opens the page looks for what has just happened.
    for paragraph in last.iter().rev() {
        let title = escape(&paragraph.title);
        let _ = write!(page, "<details><summary>{title}</summary>\n{}</details>\n", table(paragraph));
    }
    page
}

fn table(paragraph: &Paragraph) -> String {
    let mut table = String::from("<table>\n");
    for (name, fact) in &paragraph.facts {
        let _ = writeln!(table, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(fact));
    }
    table.push_str("</table>\n");
    table
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            character => escaped.push(character),
        }
    }
    escaped
}

/// What the page may do: wear its own style, and nothing else, nor inside another page.
pub const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEAD: &str = "<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width\">
<title>countersign</title>
<style>
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.3em; margin-top: 1.5em } h2 { font-size: 1.1em }
th { text-align: left; vertical-align: top; font-weight: normal; opacity: .7; padding-right: 1.5em; white-space: nowrap }
td, summary { white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, monospace }
</style>
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_callers_and_upstreams_say_is_no_markup() {
        let hostile = "<script>alert(1)</script>\"'&";
        let paragraph = Paragraph { title: hostile.to_owned(), facts: vec![("code", hostile.to_owned())] };
        let page = render(std::slice::from_ref(&paragraph), std::slice::from_ref(&paragraph));
        assert!(!page.contains("<script"), "{page}");
        assert_eq!(page.matches("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;").count(), 4, "{page}");
        assert!(render(&[], &[]).contains("None since the start"));
    }
}
