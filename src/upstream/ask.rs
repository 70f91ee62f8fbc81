//! Asking a service of our own accord, for what requests will need: one question, one connection.

use std::error::Error;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{AGE, DATE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use secrecy::zeroize::Zeroizing;
use tokio::time::timeout;

use crate::canonical::time;
use crate::clock::{Clock, Timestamp};
use crate::settings::{Place, Remark};

use super::connect::{Offer, Stream, Target, Tls, Trouble, connect};
use super::outbound::Outbound;
use super::tls::{self, FileRef, Roots};
use super::{Endpoint, Timeouts};

/// What it takes to ask.
#[derive(Clone, Debug)]
pub struct Asker {
    /// Tells the time.
    pub clock: Clock,
    /// Whom to trust where a question names no CA of its own.
    pub roots: Arc<ArcSwap<Roots>>,
    /// Whether a proxy is between.
    pub proxy: Outbound,
    /// Our own listeners.
    pub own: Arc<[SocketAddr]>,
}

/// A question.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// Whom to ask.
    pub endpoint: &'a Endpoint,
    /// The key of the configuration that names it.
    pub key: &'a str,
    /// The CA of its certificate, if that is a private one.
    pub ca: Option<&'a FileRef>,
    /// The key of the configuration that would name one.
    pub ca_key: &'a str,
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: &'a str,
    /// The headers beside `Host` and `Content-Length`.
    pub headers: HeaderMap,
    /// The body, which may hold a secret.
    pub body: Zeroizing<Vec<u8>>,
    /// How long resolving, connecting and the handshake may take.
    pub connect: Duration,
    /// How long the answer may take after that.
    pub answer: Duration,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status; redirects are not followed.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, which may hold a secret.
    pub body: Zeroizing<Vec<u8>>,
    /// By how many milliseconds the server's clock is ahead of ours, by its `Date`; `None` where it has none, or it may be a
    /// cache's.
    pub ahead: Option<i64>,
}

impl Asker {
    /// The same, but straight even where a proxy is set: for services that answer this machine alone.
    #[must_use]
    pub fn straight(&self) -> Self {
        Self { proxy: Outbound::Direct, ..self.clone() }
    }

    /// Asks over a connection of its own, in HTTP/1.1.
    ///
    /// # Errors
    /// Why there is no answer, in words, which begin with the server.
    pub async fn ask(&self, question: Question<'_>) -> Result<Answer, String> {
        let target = self.target(&question)?;
        let answer = question.answer;
        let timeouts =
            Timeouts { connect: Some(question.connect), response: Some(answer), body: Some(answer), pool_idle: None };
        let connected = connect(&target, Offer::Http1, &timeouts, &self.own).await;
        let stream = connected.map_err(|trouble| in_the_way(&trouble, &target, &question))?;
        let talk = timeout(answer, self.converse(stream, &target, question)).await;
        talk.unwrap_or_else(|_| Err(format!("{target} did not answer within {} s", answer.as_secs_f32())))
    }

    fn target(&self, question: &Question<'_>) -> Result<Target, String> {
        let Question { endpoint, key, ca, .. } = *question;
        let settings = tls::Settings { ca: ca.cloned(), ..tls::Settings::default() };
        let config =
            endpoint.secure.then(|| tls::client_config(&settings, &self.roots.load(), Place::default())).transpose();
        let config = config.map_err(|remarks| in_words(&remarks, question))?;
        let name = endpoint.host.to_server_name();
        let name = name.ok_or_else(|| format!("{endpoint} has a host that is no TLS server name: correct `{key}`"))?;
        let passage = self.proxy.passage(endpoint, None).map_err(|remark| in_words(&[remark], question))?;
        let tls = config.map(|(http1, _)| Tls { http1, http2: None, name });
        Ok(Target { endpoint: endpoint.clone(), host: endpoint.host.clone(), port: endpoint.port, passage, tls })
    }

    async fn converse(&self, stream: Stream, target: &Target, question: Question<'_>) -> Result<Answer, String> {
        let Question { endpoint, method, headers, body, .. } = question;
        let mut request = Request::new(Full::new(Bytes::from_owner(body)));
        *request.method_mut() = method;
        let unfit = || format!("{endpoint} cannot be asked for such a path");
        *request.uri_mut() = question.target.parse().map_err(|_| unfit())?;
        *request.headers_mut() = headers;
        let host = HeaderValue::try_from(endpoint.authority()).map_err(|_| unfit())?;
        request.headers_mut().insert(HOST, host);
        target.passage.adapt(&mut request);

        let mut builder = http1::Builder::new();
        builder.max_buf_size(MOST_HEAD).max_header_size(MOST_HEAD);
        let broke = |error: hyper::Error| broke(target, &error);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broke)?;
        let sent = self.clock.now();
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broke)?;
            let ahead = ahead(response.headers(), sent, self.clock.now());
            if let Some(denial) = target.passage.denial(&response) {
                return Err(denial);
            }
            let (head, body) = response.map(|body| read(body, target)).into_parts();
            Ok(Answer { status: head.status, headers: head.headers, body: body.await?, ahead })
        };
        // What ends the connection too early is told to the exchange as well.
        let drive = async {
            let _ = connection.await;
            pending().await
        };
        tokio::select! {
            answer = exchange => answer,
            answer = drive => answer,
        }
    }
}

/// Reads a body whole.
async fn read(mut body: Incoming, target: &Target) -> Result<Zeroizing<Vec<u8>>, String> {
    // Room for all that is usual at once: what grows leaves copies behind, and it may be a secret.
    let mut whole = Zeroizing::new(Vec::with_capacity(64 << 10));
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| broke(target, &error))?.into_data() else { continue };
        if whole.len() + data.len() > MOST_BODY {
            return Err(format!("{target}: its answer is larger than {MOST_BODY} octets"));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole)
}

/// By how many milliseconds a server's clock is ahead of ours, by the `Date` of a reply, which leaves the fraction of its
/// second out: the server looked at its clock half way, most likely. `None` where there is no `Date`, or where it may be a
/// cache's, which says `Age` (RFC 9111, section 5.1).
#[must_use]
pub fn ahead(headers: &HeaderMap, sent: Timestamp, received: Timestamp) -> Option<i64> {
    let mut dates = headers.get_all(DATE).iter();
    let (date, None, false) = (dates.next()?, dates.next(), headers.contains_key(AGE)) else { return None };
    let server = time::parse_http(date.to_str().ok()?)?.0 + 500;
    let ours = sent.after(received.since(sent) / 2).0;
    Some(server.saturating_sub(ours))
}

fn in_the_way(trouble: &Trouble, target: &Target, question: &Question<'_>) -> String {
    let patience = format!("{} s", question.connect.as_secs_f32());
    of_keys(&trouble.describe(target, &format!("`{}`", question.key), &patience), question)
}

fn in_words(remarks: &[Remark], question: &Question<'_>) -> String {
    let messages: Vec<_> = remarks.iter().map(|remark| remark.message.as_str()).collect();
    format!("{} cannot be asked: {}", question.endpoint, of_keys(&messages.join("; "), question))
}

/// The words are a route's, where more can be set.
fn of_keys(message: &str, question: &Question<'_>) -> String {
    let ca_key = format!("`{}`", question.ca_key);
    let message = message.replace("`tls.ca`", &ca_key);
    if message.contains("`tls.") {
        return format!("{message}; but for this server {ca_key} is all that can be set");
    }
    message
}

fn broke(target: &Target, error: &hyper::Error) -> String {
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    if error.is_parse_too_large() {
        format!("{target}: its reply's head is larger than {MOST_HEAD} octets, or has more than 100 headers")
    } else if error.is_parse() {
        format!("{target}: its reply is not HTTP/1.1")
    } else if let Some(error) = io {
        format!("{target}: the connection broke before the end of its reply: {error}")
    } else {
        format!("{target} closed the connection before the end of its reply")
    }
}

impl Answer {
    /// A moment that the server named, by our clock.
    #[must_use]
    pub fn by_our_clock(&self, moment: Timestamp) -> Timestamp {
        Timestamp(moment.0.saturating_sub(self.ahead.unwrap_or(0)))
    }
}

/// Octets of a reply's head: tokens of 16 KiB are documented, and larger ones not excluded.
const MOST_HEAD: usize = 128 << 10;

/// Octets of a reply's body.
const MOST_BODY: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn ahead_of(headers: &[(&'static str, &'static str)]) -> Option<i64> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        ahead(&map, Timestamp(1_000), Timestamp(3_000))
    }

    #[test]
    fn a_servers_clock_is_known_by_its_own_date_alone() {
        let date = ("date", "Thu, 01 Jan 1970 01:00:02 GMT");
        assert_eq!(ahead_of(&[date]), Some(3_600_500));
        for headers in [&[][..], &[date, ("age", "0")], &[date, date], &[("date", "today")], &[("date", "0")]] {
            assert_eq!(ahead_of(headers), None, "{headers:?}");
        }
    }
}
