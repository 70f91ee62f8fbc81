//! One act: the request, the same with a wrong secret, and what there is to tell of them.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderName, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cli::patiently;
use crate::demo::acts::Act;
use crate::demo::upstream::{Seen, Upstream};

use super::page::{Line, Page};

/// An act as it went.
#[derive(Debug)]
pub(super) struct Scene {
    act: &'static Act,
    sent: Request<Bytes>,
    /// What the source of the credential, or of the upstream's address, was asked.
    fetched: Vec<Seen>,
    right: Outcome,
    wrong: Outcome,
}

/// What became of a request.
#[derive(Debug)]
struct Outcome {
    status: StatusCode,
    body: Bytes,
    /// As it reached the site that it was for, if it did.
    seen: Option<Seen>,
    /// Who found something wrong, and what.
    refusal: Option<(&'static str, String)>,
}

impl Scene {
    /// Plays an act. All its requests have been answered then.
    pub(super) async fn play(act: &'static Act, upstream: &Upstream, proxy: SocketAddr) -> io::Result<Self> {
        let (sent, right) = ask(act, act.route, upstream, proxy).await?;
        let fetched = act.source.map(|(site, _)| of(site, upstream.seen())).unwrap_or_default();
        let fetched = fetched.into_iter().filter(|seen| seen.verdict.is_ok()).collect();
        let (_, wrong) = ask(act, &act.wrong_route(), upstream, proxy).await?;
        Ok(Self { act, sent, fetched, right, wrong })
    }

    /// True if the upstream accepted the right secret, and it, or who was asked beforehand, refused the wrong one.
    pub(super) fn is_good(&self) -> bool {
        let is_accepted = self.right.seen.as_ref().is_some_and(|seen| seen.verdict.is_ok());
        let is_fetched = self.act.source.is_none() || !self.fetched.is_empty();
        let is_refused = self.wrong.refusal.is_some() && !self.wrong.status.is_success();
        is_accepted && is_fetched && self.right.status.is_success() && is_refused
    }

    /// The system, and the two statuses, in a row of a table.
    pub(super) fn summary(&self, is_narrow: bool) -> [String; 3] {
        let status = |status: StatusCode| if is_narrow { status.as_str().to_owned() } else { status.to_string() };
        [self.act.system.to_owned(), status(self.right.status), status(self.wrong.status)]
    }

    /// Tells what happened.
    pub(super) fn tell(&self, number: usize, page: &mut Page) {
        let Act { system, shows, .. } = self.act;
        page.pause();
        page.title(&format!("{number}. {system}"), &format!(": {shows}"));
        let body = std::str::from_utf8(self.sent.body()).ok().filter(|body| !body.is_empty());
        let headers = self.sent.headers().iter().map(|(name, value)| header(name, value.as_bytes()));
        let target = format!("{} {}", self.sent.method(), self.sent.uri());
        let sent = std::iter::once(target).chain(headers).chain(body.map(str::to_owned));
        page.tell("caller sent", sent.map(Line::Plain));
        if let Some((_, source)) = self.act.source {
            page.tell("fetched from", self.fetched(source));
        }
        page.tell("added", self.added());
        page.tell("found", [self.right.found()]);
        page.tell("wrong secret", [self.wrong.found()]);
    }

    fn fetched(&self, source: &str) -> Vec<Line> {
        let mut lines = vec![Line::Plain(source.to_owned())];
        for seen in &self.fetched {
            for line in [
                Line::Plain(format!("{} {}", seen.method, seen.target)),
                Line::Good(seen.verdict.as_deref().map(brief).unwrap_or_default()),
            ] {
                if !lines.contains(&line) {
                    lines.push(line);
                }
            }
        }
        lines
    }

    /// What the upstream received that the caller did not send.
    fn added(&self) -> Vec<Line> {
        let Some(seen) = &self.right.seen else { return vec![Line::Bad("the request did not arrive".to_owned())] };
        let is_new = |(name, value): &(_, _)| !self.sent.headers().get_all(*name).iter().any(|sent| sent == *value);
        let headers = seen.headers.iter().filter(is_new).map(|(name, value)| {
            let shown = match self.act.proof {
                Some((proof, separators)) if *name == proof => shorten(value.as_bytes(), separators).into_bytes(),
                _ => value.as_bytes().to_vec(),
            };
            header(name, &shown)
        });
        let client = seen.client.as_ref().map(|client| format!("TLS with the client certificate of \"{client}\""));
        headers.chain(client).map(Line::Added).collect()
    }
}

impl Outcome {
    /// What was found, and what was answered to that.
    fn found(&self) -> Line {
        let verdict = self.seen.as_ref().and_then(|seen| seen.verdict.as_ref().ok());
        match (&self.refusal, verdict) {
            // Some vendors go on and on.
            (Some((site, words)), _) => {
                let words = words.split_once(". ").map_or(words.as_str(), |(first, _)| first);
                Line::Bad(format!("{}; {site}: {words}", self.status))
            }
            (None, Some(verdict)) if self.status.is_success() => {
                Line::Good(format!("{}; {}", self.status, brief(verdict)))
            }
            (None, Some(verdict)) => Line::Bad(format!("{}; {verdict}", self.status)),
            (None, None) => Line::Bad(format!("{}; {}", self.status, own_words(&self.body))),
        }
    }
}

/// Sends an act's request to a route, and says what became of it.
async fn ask(
    act: &'static Act,
    route: &str,
    upstream: &Upstream,
    proxy: SocketAddr,
) -> io::Result<(Request<Bytes>, Outcome)> {
    let request = request(act, route, proxy.port()).map_err(io::Error::other)?;
    let before = upstream.seen().len();
    let (status, body) =
        patiently(&format!("the answer of the route \"{route}\""), send(proxy, request.clone())).await?;
    let all = upstream.seen();
    let since = all.get(before..).unwrap_or_default().to_vec();
    let seen = of(act.site, since).pop();
    let refused = |seen: Seen| seen.verdict.err();
    let here = seen.clone().and_then(refused).map(|words| ("the upstream", words));
    // What is fetched may have been refused before this request came.
    let before = || {
        let (site, source) = act.source?;
        Some((source, of(site, all).into_iter().filter_map(refused).next_back()?))
    };
    let refusal = here.or_else(|| before().filter(|_| seen.is_none()));
    Ok((request, Outcome { status, body, seen, refusal }))
}

fn request(act: &Act, route: &str, port: u16) -> Result<Request<Bytes>, http::Error> {
    let request =
        Request::builder().method(act.method).uri(act.target).header(HOST, format!("{route}.localhost:{port}"));
    let Some(body) = act.body else { return request.body(Bytes::new()) };
    let request = request.header(CONTENT_TYPE, "application/json").header(CONTENT_LENGTH, body.len());
    request.body(Bytes::from_static(body.as_bytes()))
}

async fn send(proxy: SocketAddr, request: Request<Bytes>) -> io::Result<(StatusCode, Bytes)> {
    let exchange = async {
        let stream = TcpStream::connect(proxy).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // It ends with this.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let reply = sender.send_request(request.map(Full::new)).await.map_err(io::Error::other)?;
        let (head, body) = reply.into_parts();
        let body = Limited::new(body, BODY).collect().await.map_err(io::Error::other)?;
        Ok((head.status, body.to_bytes()))
    };
    timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Those that a site received.
fn of(site: &str, seen: Vec<Seen>) -> Vec<Seen> {
    seen.into_iter().filter(|seen| seen.site == site).collect()
}

fn header(name: &HeaderName, value: &[u8]) -> String {
    format!("{name}: {}", String::from_utf8_lossy(value))
}

/// A value without its long parts, which prove something.
fn shorten(value: &[u8], separators: &[char]) -> String {
    let value = String::from_utf8_lossy(value);
    let parts = value.split_inclusive(separators).map(|part| {
        if part.chars().count() < PROOF {
            return part.to_owned();
        }
        let end: String = part.chars().rev().take_while(|last| separators.contains(last)).collect();
        part.chars().take(SHOWN).chain(['…']).chain(end.chars()).collect()
    });
    parts.collect()
}

/// What was verified, without how old it was: here all is of this moment.
pub(super) fn brief(verified: &str) -> String {
    let age = verified.rsplit_once(" (").filter(|(_, rest)| rest.ends_with(" old)"));
    age.map_or(verified, |(before, _)| before).to_owned()
}

/// What countersign itself says in an answer of its own.
fn own_words(body: &[u8]) -> String {
    let parsed = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
    let message = parsed.pointer("/error/message").and_then(serde_json::Value::as_str);
    message.unwrap_or("without a word").to_owned()
}

/// How long a request may take, with what must be fetched for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Octets of a reply.
const BODY: usize = 1 << 20;
/// Characters that make a signature or a token.
const PROOF: usize = 24;
/// Those of them that are shown.
const SHOWN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_parts_are_shortened() {
        let long = "0123456789abcdef0123456789abcdef";
        for (value, separators, expected) in [
            (format!("scheme/key/1800/host;date/{long}"), ['/'].as_slice(), "scheme/key/1800/host;date/01234567…"),
            (format!("Bearer KEY:{long}:17"), &[':'], "Bearer KEY:01234567…:17"),
            (format!("H Access=key, Signature={long}"), &[' ', '='], "H Access=key, Signature=01234567…"),
            (long.to_owned(), &[], "01234567…"),
        ] {
            assert_eq!(shorten(value.as_bytes(), separators), expected);
        }
    }
}
