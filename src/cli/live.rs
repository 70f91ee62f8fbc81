//! `countersign check --live`: what a route needs from others, tried out.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Method, Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};

use crate::canonical::time;
use crate::clock::{Clock, Timestamp};
use crate::credential::Source;
use crate::credential::keeper::Generation;
use crate::proxy::lasting::Lasting;
use crate::proxy::servers::{Endpoint, Servers};
use crate::proxy::state::Route;
use crate::upstream::Timeouts;
use crate::upstream::ask;
use crate::upstream::connect::{Offer, Trouble, connect};
use crate::upstream::outbound::Outbound;

/// What was found, a line each.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// The lines, indented.
    pub(super) lines: String,
    /// How many of them tell of trouble.
    pub(super) troubles: usize,
}

impl Report {
    fn good(&mut self, what: &str, found: &str) {
        let _ = writeln!(self.lines, "  good  {what}: {found}");
    }

    fn bad(&mut self, what: &str, found: &str) {
        let _ = writeln!(self.lines, "  BAD   {what}: {found}");
        self.troubles += 1;
    }
}

/// Tries a route out: its credential, then each of its servers. `own` are our own listeners. Nothing is sent that is signed,
/// but for what fetches a credential.
pub(super) async fn examine(route: &Route, lasting: &Lasting, proxy: Outbound, own: Arc<[SocketAddr]>) -> Report {
    let mut report = Report::default();
    let asker = lasting.asker(proxy, Arc::clone(&own));
    if !route.keeper.is_usable()
        && let Err(failed) = route.keeper.ask(&asker).await
    {
        report.bad("credential", &failed.message);
        return report;
    }
    let generation = match route.keeper.take().await {
        Ok(taken) => taken.generation,
        Err(trouble) => {
            report.bad("credential", &trouble.0);
            return report;
        }
    };
    report.good("credential", &describe(&generation, route.keeper.source()));
    let servers = match route.signers.of(&generation).map(|armed| armed.servers.clone()) {
        Err(trouble) => {
            report.bad("credential", &trouble);
            return report;
        }
        Ok(Some(servers)) => servers,
        Ok(None) => match route.located.ask(&asker, lasting).await {
            Ok(servers) => servers,
            Err(error) => {
                report.bad("servers", &error.message);
                return report;
            }
        },
    };
    visit(&servers, route, &lasting.clock, &own, &mut report).await;
    report
}

async fn visit(servers: &Servers, route: &Route, clock: &Clock, own: &[SocketAddr], report: &mut Report) {
    for endpoint in servers.all() {
        let (name, began) = (endpoint.target.to_string(), Instant::now());
        match ask_once(endpoint, &route.timeouts, own, clock).await {
            Ok((response, sent)) => {
                let took = began.elapsed().as_millis();
                report.good(&name, &format!("answers after {took} ms"));
                clocks(&response, sent, clock.now(), route, &name, report);
            }
            Err(trouble) => report.bad(&name, &trouble),
        }
    }
    if servers.all().is_empty() {
        report.bad("servers", "the route has none");
    }
}

/// Compares the clocks; a difference that is followed is no trouble.
fn clocks(
    response: &Response<Incoming>,
    sent: Timestamp,
    received: Timestamp,
    route: &Route,
    name: &str,
    report: &mut Report,
) {
    let Some(ahead) = ask::ahead(response.headers(), sent, received) else { return };
    let seconds = ahead.unsigned_abs() / 1000;
    if seconds < FAR {
        return report.good(name, "its clock agrees with this machine's");
    }
    let side = if ahead > 0 { "ahead of" } else { "behind" };
    let found = format!("its clock is {seconds} s {side} this machine's");
    if route.follows_clock {
        report.good(name, &format!("{found}, and signatures will follow it where that matters"));
    } else {
        report.bad(name, &format!("{found}: set this machine's clock, or leave out `clock = \"local\"`"));
    }
}

/// Asks a server for nothing in particular, unsigned: any answer shows that it is there, and tells its time.
async fn ask_once(
    endpoint: &Endpoint,
    timeouts: &Timeouts,
    own: &[SocketAddr],
    clock: &Clock,
) -> Result<(Response<Incoming>, Timestamp), String> {
    let target = &endpoint.target;
    let timeouts = Timeouts { connect: timeouts.connect.or(Some(PATIENCE)), ..*timeouts };
    let patience = || format!("{} s (`timeouts.connect`)", timeouts.connect.unwrap_or(PATIENCE).as_secs_f32());
    let words = |trouble: Trouble| trouble.describe(target, "the route's `upstream` or `connect`", &patience());
    let stream = connect(target, Offer::Http1, &timeouts, own).await.map_err(words)?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::HEAD;
    request.headers_mut().insert(HOST, HeaderValue::clone(&endpoint.authority));
    target.passage.adapt(&mut request);
    let broken = |error: hyper::Error| format!("the connection broke before an answer: {error}");
    let sent = clock.now();
    let exchange = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let drive = tokio::task::spawn_local(connection);
        let response = sender.send_request(request).await.map_err(broken);
        drive.abort();
        response
    };
    let response = timeout(PATIENCE, exchange).await;
    let response = response.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))?;
    match target.passage.denial(&response) {
        Some(denial) => Err(denial),
        None => Ok((response, sent)),
    }
}

fn describe(generation: &Generation, source: &Source) -> String {
    let got = match source {
        Source::Fetched(fetch) => format!("fetched ({})", fetch.name()),
        Source::Nothing => return "none is needed".to_owned(),
        _ => "read".to_owned(),
    };
    let key = generation.credential.access_key().map(|key| format!("access key {}, ", key.access_key));
    let until = generation.expiry.map(|expiry| format!(", good until {}", time::iso(expiry)));
    format!("{}{got}{}", key.unwrap_or_default(), until.unwrap_or_default())
}

/// How far clocks may be apart without a word, in seconds.
const FAR: u64 = 5;

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
