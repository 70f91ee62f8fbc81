//! What is told of a request: it is followed from its head to the end of its reply, then there is a line about it, and it
//! counts. What the line says is what is counted.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use tokio::time::Instant;
use tracing::info;

use crate::credential::Credential;
use crate::provider::verdict::is_name;

use super::attempts::Retries;
use super::body::Upload;
use super::error::Error;
use super::lasting::Lasting;
use super::nonce::Digits;
use super::state::{Access, Route};
use super::tally::{NOWHERE, Tally};

/// Where a thread's requests are told.
#[derive(Debug)]
pub struct Desk {
    lasting: Arc<Lasting>,
    /// The thread's tallies by the numbers of routes.
    tallies: RefCell<Vec<Option<Arc<Tally>>>>,
    /// Of requests that were meant for no route.
    nowhere: Arc<Tally>,
}

impl Desk {
    /// A thread's.
    #[must_use]
    pub fn new(lasting: Arc<Lasting>) -> Rc<Self> {
        Rc::new(Self { nowhere: lasting.tallies.open(NOWHERE), tallies: RefCell::default(), lasting })
    }

    fn tally(&self, route: &Route) -> Arc<Tally> {
        let mut tallies = self.tallies.borrow_mut();
        if tallies.len() <= route.number {
            tallies.resize(route.number + 1, None);
        }
        let open = || self.lasting.tallies.open(&route.name);
        let place = tallies.get_mut(route.number).map(|place| Arc::clone(place.get_or_insert_with(open)));
        place.unwrap_or_else(|| Arc::clone(&self.nowhere))
    }
}

/// Who cut a reply off, or did not wait for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The caller went away.
    Caller,
    /// The upstream broke off, or fell silent.
    Upstream,
}

impl Cut {
    fn name(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Upstream => "upstream",
        }
    }
}

/// A request, as it is told when this is dropped. Until something else is known its caller has gone away.
#[derive(Debug)]
pub struct Account {
    desk: Rc<Desk>,
    tally: OnceCell<Arc<Tally>>,
    began: Instant,
    /// Our name for the request.
    pub id: Digits<16>,
    /// What only a line needs, if there is to be one.
    line: Option<Line>,
    is_head: bool,
    attempts: Cell<u32>,
    retries: Cell<Retries>,
    /// Since when an upstream's reply is awaited, while it is.
    awaited: Cell<Option<Instant>>,
    /// How long upstreams' replies were awaited.
    upstream: Cell<Duration>,
    /// How long it took to the reply's head.
    head: Option<Duration>,
    /// Octets of the request's body, those that stream left out.
    pub received: Cell<u64>,
    upload: OnceCell<Rc<Upload>>,
    /// Octets of the reply's body.
    pub sent: Cell<u64>,
    status: Option<StatusCode>,
    by: Option<&'static str>,
    error: Option<Error>,
    cut: Option<Cut>,
}

#[derive(Debug)]
struct Line {
    method: Method,
    uri: Uri,
    has_query: bool,
    uid: Option<u32>,
    said: RefCell<Said>,
}

/// What the provider said.
#[derive(Debug, Default)]
struct Said {
    code: Option<String>,
    id: Option<String>,
}

impl Account {
    /// A request whose head is there. `uid` is its caller's, if that is known.
    #[must_use]
    pub fn begin<B>(desk: &Rc<Desk>, access: Access, request: &Request<B>, uid: Option<u32>, id: Digits<16>) -> Self {
        let is_told = access != Access::Off && tracing::enabled!(target: TARGET, tracing::Level::INFO);
        let line = is_told.then(|| Line {
            method: request.method().clone(),
            uri: request.uri().clone(),
            has_query: access == Access::Query,
            uid,
            said: RefCell::default(),
        });
        Self {
            desk: Rc::clone(desk),
            tally: OnceCell::new(),
            began: Instant::now(),
            id,
            line,
            is_head: request.method() == Method::HEAD,
            attempts: Cell::new(0),
            retries: Cell::default(),
            awaited: Cell::new(None),
            upstream: Cell::new(Duration::ZERO),
            head: None,
            received: Cell::new(0),
            upload: OnceCell::new(),
            sent: Cell::new(0),
            status: None,
            by: None,
            error: None,
            cut: Some(Cut::Caller),
        }
    }

    /// The route is known.
    pub fn set_route(&self, route: &Route) {
        let tally = self.desk.tally(route);
        tally.begun.add(1);
        let _ = self.tally.set(tally);
    }

    /// The request's body streams.
    pub fn set_upload(&self, upload: &Rc<Upload>) {
        let _ = self.upload.set(Rc::clone(upload));
    }

    /// The request is sent; `retries` says why not for the first time.
    pub fn send(&self, now: Instant, retries: Retries) {
        self.answer(now);
        self.awaited.set(Some(now));
        self.attempts.set(self.attempts.get().saturating_add(1));
        self.retries.set(retries);
        if let Some(line) = &self.line {
            line.said.take();
        }
    }

    /// The upstream is awaited no longer.
    pub fn answer(&self, now: Instant) {
        if let Some(since) = self.awaited.take() {
            self.upstream.set(self.upstream.get() + now.saturating_duration_since(since));
        }
    }

    /// Notes the provider's name for the request: the first of these headers that looks like one.
    pub fn read(&self, headers: &HeaderMap, names: &[&str], credential: &Credential) {
        let Some(line) = &self.line else { return };
        let mut values = names.iter().filter_map(|name| headers.get(*name)?.to_str().ok());
        // A server may repeat what it was sent wherever it likes.
        line.said.borrow_mut().id = values.find(|id| is_name(id)).map(|id| credential.mask(id));
    }

    /// The upstream has refused the request; `code` and `id` are safe to show.
    pub fn refuse(&self, verdict: &str, code: Option<&String>, id: Option<&String>) {
        if let Some(tally) = self.tally.get() {
            tally.verdicts.add(verdict);
        }
        if let Some(line) = &self.line {
            let mut said = line.said.borrow_mut();
            said.code = code.cloned();
            said.id = id.cloned().or(said.id.take());
        }
    }

    /// The upstream's reply has begun.
    pub fn set_reply(&mut self, status: StatusCode) {
        let now = Instant::now();
        self.answer(now);
        (self.status, self.by, self.head) = (Some(status), Some("upstream"), Some(now - self.began));
    }

    /// The answer is our own, of so many octets, and there all at once.
    pub fn end_own(mut self, status: StatusCode, octets: u64, error: Option<Error>) {
        let octets = if self.is_head { 0 } else { octets };
        self.sent.set(octets);
        (self.status, self.by, self.error) = (Some(status), Some("proxy"), error);
        self.end(None);
    }

    /// The reply has ended, or was cut off.
    pub fn end(mut self, cut: Option<Cut>) {
        self.cut = cut;
    }

    fn write(&self, line: &Line, route: &str, total: Duration, own: Duration) {
        let error = self.error.as_ref();
        let code = error.map(|error| error.code.name());
        // An upstream sets the pace of its own refusals; a caller that we refuse could fill a disk.
        if code.is_some_and(|code| !self.desk.lasting.repeats.admit(route, code)) {
            return;
        }
        let path_and_query = line.uri.path_and_query().filter(|_| line.has_query);
        let path = path_and_query.map_or(line.uri.path(), PathAndQuery::as_str);
        let said = line.said.borrow();
        let attempts = self.attempts.get();
        let retry = self.retries.get().words();
        info!(
            target: TARGET,
            route,
            method = %line.method,
            // As text it is quoted, and what could break the line or a terminal is escaped.
            path,
            status = self.status.map(|status| status.as_u16()),
            by = self.by,
            code,
            error = error.map(|error| &*error.message),
            provider_code = said.code.as_deref(),
            provider_id = said.id.as_deref(),
            cut = self.cut.map(Cut::name),
            ms = milliseconds(total),
            own_ms = milliseconds(own),
            upstream_ms = (attempts > 0).then(|| milliseconds(self.upstream.get())),
            "in" = self.received.get(),
            out = self.sent.get(),
            attempts,
            retry = retry.as_deref(),
            uid = line.uid,
            id = &*self.id,
        );
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let now = Instant::now();
        self.answer(now);
        let total = now.saturating_duration_since(self.began);
        let own = self.head.unwrap_or(total).saturating_sub(self.upstream.get());
        let streamed = self.upload.get().map_or(0, |upload| upload.octets.get());
        self.received.set(self.received.get() + streamed);
        let tally = self.tally.get_or_init(|| {
            self.desk.nowhere.begun.add(1);
            Arc::clone(&self.desk.nowhere)
        });
        tally.end(self.status.map(|status| status.as_u16()));
        tally.received.add(self.received.get());
        tally.sent.add(self.sent.get());
        tally.own.add(own);
        if self.attempts.get() > 0 {
            tally.attempts.add(self.attempts.get().into());
            tally.upstream.add(self.upstream.get());
        }
        for reason in self.retries.get().reasons() {
            tally.retries.add(reason);
        }
        if let Some(error) = &self.error {
            tally.codes.add(error.code.name());
        }
        if let Some(cut) = self.cut {
            tally.cuts.add(cut.name());
        }
        if let Some(line) = &self.line {
            self.write(line, &tally.route, total, own);
        }
    }
}

/// To the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// What the lines are found by.
const TARGET: &str = "countersign::access";
