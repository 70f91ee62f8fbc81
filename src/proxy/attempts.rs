//! Steps 6 to 8, as often as it takes: sign, send, and see what the reply says about that.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::AGE;
use http::{HeaderValue, Method, Response};
use smallvec::SmallVec;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::clock::{Clock, Timestamp};
use crate::credential::keeper::{Generation, Taken, Trial};
use crate::provider::verdict::{self as said, Cause, Verdict};
use crate::upstream::pool::{Key, Lease, Pool};
use crate::upstream::{Timeouts, ask};

use super::access::Account;
use super::authorize::{authorize, explain};
use super::body::{Outgoing, Source, Upload};
use super::error::{Code, Error};
use super::head::Head;
use super::lockout::Pass;
use super::nonce::Nonces;
use super::refusals::Refusal;
use super::send::{self, Choice, Failure, Fate, Way};
use super::servers::{Endpoint, Round, Servers};
use super::signers::Armed;
use super::state::{Route, State};
use super::verdict::{self, Begun};

/// What it takes to get a request answered.
#[derive(Debug)]
pub struct Attempts<'a> {
    /// What all requests share.
    pub state: &'a State,
    /// Tells the time.
    pub clock: &'a Clock,
    /// The thread's pool.
    pub pool: &'a Rc<Pool<Outgoing>>,
    /// The thread's nonces.
    pub nonces: &'a RefCell<Nonces>,
    /// The route.
    pub route: &'a Route,
    /// The request's head.
    pub head: &'a Head,
    /// How far the request's body has come, if it streams.
    pub upload: Option<&'a Rc<Upload>>,
    /// What is told of the request.
    pub account: &'a Account,
}

/// A reply, and how it was come by.
#[derive(Debug)]
pub struct Delivered {
    /// The reply.
    pub response: Response<Source>,
    /// The connection that it comes on.
    pub lease: Lease<Outgoing>,
    /// The servers that it could go to.
    pub servers: Arc<Servers>,
    /// Why the request was sent again, if it was.
    pub retries: Retries,
}

/// Why a request was sent again: for each reason once, but for a credential as often as another had replaced it meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retries {
    credential: bool,
    clock: bool,
    endpoint: bool,
    /// How often it was sent again with another credential: as often as that was replaced meanwhile.
    renewals: u8,
}

impl Retries {
    /// The value of `X-Countersign-Retry`.
    #[must_use]
    pub fn header(self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.words()?).ok()
    }

    /// The same for the log; `None` if the request was not sent again.
    #[must_use]
    pub fn words(self) -> Option<String> {
        let reasons: SmallVec<[_; 3]> = self.reasons().collect();
        (!reasons.is_empty()).then(|| reasons.join(", "))
    }

    /// Why the request was sent again, of [`RETRIES`].
    pub fn reasons(self) -> impl Iterator<Item = &'static str> {
        let is_one = [self.endpoint, self.credential, self.clock];
        RETRIES.into_iter().zip(is_one).filter_map(|(name, is_one)| is_one.then_some(name))
    }
}

/// Why requests are sent again.
pub const RETRIES: [&str; 3] = ["endpoint", CREDENTIAL, CLOCK];

/// What upstreams' refusals mean.
pub const VERDICTS: [&str; 6] = [REFUSED, CREDENTIAL, CLOCK, "signature", "locked", "throttled"];

const REFUSED: &str = "refused";
const CREDENTIAL: &str = "credential";
const CLOCK: &str = "clock";

/// What a request was signed with.
struct Signed<'a> {
    endpoint: &'a Endpoint,
    armed: &'a Armed,
    generation: &'a Generation,
    /// True if it was fetched, or read, after the request had come.
    is_newer: bool,
    trial: Option<Trial>,
    pass: Option<Pass>,
    /// The time that was signed, and by how many milliseconds that was corrected.
    time: Timestamp,
    corrected: i64,
    nonce: &'a str,
    /// How long the reply took.
    took: Duration,
    /// The body, if it is at hand.
    body: Option<&'a Outgoing>,
}

impl Attempts<'_> {
    /// Signs and sends, anew for every attempt: once more on a fresh connection where a used one had died, at the next
    /// endpoint where one could not be reached, and once for each thing that a verdict could put right.
    ///
    /// # Errors
    /// Why there is no reply.
    pub async fn run(&self, mut body: Outgoing) -> Result<Delivered, Error> {
        let route = self.route;
        let timeouts = self.timeouts();
        let (mut choice, mut retries) = (Choice::Pooled, Retries::default());
        let (mut may_try, newest) = (true, route.keeper.newest());
        let mut round: Option<Round> = None;
        // The last reply of a server that failed: who is left in the end may give none at all.
        let mut failing: Option<Delivered> = None;
        loop {
            let Taken { generation, trial } = self.take(may_try && !retries.credential).await?;
            let armed = route.signers.of(&generation).map_err(|message| self.unavailable(message))?;
            let round = self.round(&mut round, &armed).await?;
            let Some(endpoint) = round.endpoint() else { return Err(nowhere()) };
            let pass = match &armed.lock {
                None => None,
                Some(lock) => match lock.enter(|| self.clock.now()).await {
                    Ok(pass) => Some(pass),
                    // The new access key has to rest; the old one need not.
                    Err(_) if trial.is_some() => {
                        may_try = false;
                        continue;
                    }
                    Err(error) => {
                        self.note_own(&error);
                        return Err(error);
                    }
                },
            };
            let spare = body.again();
            let nonce = self.nonces.borrow_mut().next_nonce();
            let ours = self.clock.now();
            let corrected = if route.follows_clock { endpoint.skew.millis() } else { 0 };
            let time = Timestamp(ours.0.saturating_add(corrected));
            let request = authorize(self.head.clone(), body, &*armed.signer, endpoint, (time, &nonce), None)?;
            let way = self.way(endpoint, &timeouts);
            let began = Instant::now();
            self.account.send(began, retries);
            let (response, lease) = match send::send(way, choice, request, self.upload).await {
                Ok(reply) => reply,
                Err(failure) => {
                    self.account.answer(Instant::now());
                    let used = (&*armed, &*generation, trial);
                    match Box::pin(self.after_failure(*failure, spare, used, round, &mut retries)).await {
                        Ok(again) => (body, choice) = again,
                        Err(error) => return failing.map_or(Err(error), |last| Ok(Delivered { retries, ..last })),
                    }
                    continue;
                }
            };
            let ended = Instant::now();
            self.account.answer(ended);
            self.account.read(response.headers(), route.id_headers, &generation.credential);
            let signed = Signed {
                endpoint,
                armed: &armed,
                generation: &generation,
                is_newer: generation.number > newest,
                trial,
                pass,
                time,
                corrected,
                nonce: &nonce,
                took: ended - began,
                body: spare.as_ref(),
            };
            // An error may have been found before anybody looked at the signature: a path that there is not.
            if matches!(response.status().as_u16(), 101 | 200..300 | 304) {
                signed.accepted();
                return Ok(Delivered { response, lease, servers: Arc::clone(&round.servers), retries });
            }
            let is_failing = matches!(response.status().as_u16(), 500 | 502 | 503);
            let servers = Arc::clone(&round.servers);
            let (response, is_again) = if route.provider.judges(response.status()) {
                Box::pin(self.judge(response, signed, &mut retries)).await
            } else {
                (response, false)
            };
            choice = Choice::Pooled;
            let now = self.clock.now();
            if is_failing && !is_again {
                round.blame(now);
            }
            match spare {
                Some(spare) if is_again => body = spare,
                Some(spare) if is_failing && self.may_repeat() && round.step(now) => {
                    failing = Some(Delivered { response, lease, servers, retries });
                    (body, retries.endpoint) = (spare, true);
                    continue;
                }
                _ => return Ok(Delivered { response, lease, servers, retries }),
            }
            let is_whole = match response.body() {
                Source::Begun(body) => body.is_whole(),
                body => http_body::Body::is_end_stream(body),
            };
            if is_whole {
                lease.give_back(true);
            }
        }
    }

    fn way<'w>(&'w self, endpoint: &'w Endpoint, timeouts: &'w Timeouts) -> Way<'w> {
        let (route, state) = (self.route, self.state);
        let (links, limits, own) = (&route.links, &state.limits, &*state.own);
        Way { pool: self.pool, links, key: Key(endpoint.number), endpoint, timeouts, limits, own }
    }

    fn timeouts(&self) -> Timeouts {
        let route = self.route;
        let deadline = || route.provider.deadline(&self.head.headers);
        let response =
            route.timeouts.response.map(|patience| deadline().map_or(patience, |deadline| patience.max(deadline)));
        Timeouts { response, ..route.timeouts }
    }

    async fn take(&self, may_try: bool) -> Result<Taken, Error> {
        let keeper = &self.route.keeper;
        let taken = if may_try { keeper.take().await } else { keeper.take_again().await };
        taken.map_err(|trouble| self.unavailable(&*trouble.0))
    }

    fn unavailable(&self, message: impl Into<String>) -> Error {
        let error = Error::new(Code::CredentialUnavailable, message.into());
        self.note_own(&error);
        error
    }

    /// What to go on with after an attempt without a reply: the same server, the next one, or another identity.
    async fn after_failure(
        &self,
        failure: Failure,
        spare: Option<Outgoing>,
        (armed, generation, trial): (&Armed, &Generation, Option<Trial>),
        round: &mut Round,
        retries: &mut Retries,
    ) -> Result<(Outgoing, Choice), Error> {
        let may_go_again = failure.may_go_again(&self.head.method);
        let Failure { error, unsent, fate, may_fresh_help, is_of_identity } = failure;
        debug!(route = self.route.name, ?fate, %error, "an attempt failed");
        let is_fresh_due = may_fresh_help && fate != Fate::Unknown;
        let is_servers = !is_fresh_due
            && matches!(
                error.code,
                Code::UpstreamUnreachable | Code::UpstreamTls | Code::UpstreamProtocol | Code::UpstreamTimeout
            );
        if is_servers {
            round.blame(self.clock.now());
        }
        let body = match unsent.or(spare) {
            Some(body) if may_go_again || self.may_repeat() => body,
            _ => return Err(error),
        };
        let is_refused = armed.servers.is_some() && is_of_identity;
        if is_refused && !retries.credential && self.renew_identity(generation, trial).await {
            let before = armed.servers.iter().flat_map(|servers| servers.all()).map(|endpoint| Key(endpoint.number));
            let before: SmallVec<[Key; 4]> = before.collect();
            self.pool.retain(|key| !before.contains(&key));
            // Who we are there, or where that is, has changed.
            retries.credential = true;
            return Ok((body, Choice::Pooled));
        }
        if is_fresh_due {
            retries.endpoint |= fate != Fate::Unsent;
            return Ok((body, Choice::Fresh));
        }
        if !is_servers || !round.step(self.clock.now()) {
            return Err(error);
        }
        retries.endpoint = true;
        Ok((body, Choice::Pooled))
    }

    /// The way through the servers, which may be others than before.
    async fn round<'r>(&self, round: &'r mut Option<Round>, armed: &Armed) -> Result<&'r mut Round, Error> {
        let servers = match &armed.servers {
            Some(servers) => Arc::clone(servers),
            None if round.is_none() => self.route.located.servers().await?,
            None => self.route.located.now(),
        };
        let now = self.clock.now();
        let begun = match round.take() {
            Some(begun) if begun.servers.is_same(&servers) => Some(begun),
            Some(begun) => begun.among(servers, now),
            None => Round::begin(servers, now),
        };
        Ok(round.insert(begun.ok_or_else(nowhere)?))
    }

    /// True if the request may go to the next server though the one before may have acted on it.
    fn may_repeat(&self) -> bool {
        matches!(self.head.method, Method::GET | Method::HEAD | Method::OPTIONS) || self.route.provider.repeats_posts()
    }

    /// After a sign that who we are has changed: true if there is, or comes, another identity than the one that was shown.
    /// One sign in a minute has it fetched, and all the others wait for that.
    async fn renew_identity(&self, generation: &Generation, trial: Option<Trial>) -> bool {
        if let Some(trial) = trial {
            return trial.refused();
        }
        let (keeper, now) = (&self.route.keeper, self.clock.now());
        if !keeper.has_other_than(generation.number) && !self.route.renewal.is_on(now) {
            keeper.disown(generation.number);
            // After that, so that whoever sees this finds something to wait for.
            self.route.renewal.begin(now);
        }
        keeper.join(generation.number).await
    }

    /// Reads what the upstream says, and does about it what can be done. True if the request is worth sending again.
    async fn judge(
        &self,
        response: Response<Source>,
        signed: Signed<'_>,
        retries: &mut Retries,
    ) -> (Response<Source>, bool) {
        let route = self.route;
        let ahead = ask::ahead(response.headers(), signed.time, signed.time.after(signed.took));
        let response = match response.body() {
            body if http_body::Body::is_end_stream(body) => response,
            _ => {
                let (head, body) = response.into_parts();
                Response::from_parts(head, Source::Begun(Box::new(Begun::read(body).await)))
            }
        };
        let decoded = match response.body() {
            Source::Begun(begun) => begun.decoded(response.headers()),
            _ => Vec::new(),
        };
        let now = self.clock.now();
        let verdict = route.provider.verdict(&said::Reply {
            method: &self.head.method,
            status: response.status(),
            headers: response.headers(),
            body: &decoded,
            ahead,
            credential: signed.generation.used(now),
        });
        let ahead = match verdict.cause {
            // What a cache quotes is as old as its `Date`.
            Cause::Clock(Some(theirs)) if !response.headers().contains_key(AGE) => {
                Some(verdict::beyond(theirs, signed.time, signed.took))
            }
            _ => ahead,
        };
        let is_noted = verdict.cause != Cause::Other || matches!(response.status().as_u16(), 401 | 403);
        let refusal = is_noted.then(|| self.refusal(&response, &verdict, &signed, now));
        let reason = self.act(&verdict, ahead, signed, retries, now).await;
        if let Some(refusal) = refusal {
            let (code, id) = (refusal.code.as_ref(), refusal.provider_request_id.as_ref());
            self.account.refuse(refusal.verdict, code, id);
            self.note(Refusal { sent_again: reason, ..refusal });
        }
        (response, reason.is_some())
    }

    /// Does what the verdict calls for; why the request is to be sent again, if it is.
    async fn act(
        &self,
        verdict: &Verdict,
        ahead: Option<i64>,
        signed: Signed<'_>,
        retries: &mut Retries,
        now: Timestamp,
    ) -> Option<&'static str> {
        let route = self.route;
        let keeper = &route.keeper;
        let (can_go_again, generation) =
            (signed.body.is_some() && retries.renewals < MOST_RENEWALS, signed.generation.number);
        match verdict.cause {
            Cause::Locked => {
                signed.pass?.locked(now);
                None
            }
            Cause::Signature => {
                let has_other = match signed.trial {
                    Some(trial) => trial.refused(),
                    None => keeper.has_replaced(generation),
                };
                keeper.reconsider(generation);
                if let Some(pass) = signed.pass {
                    pass.refused(now);
                }
                (has_other && can_go_again).then(|| retries.for_credential())
            }
            Cause::Spent if !retries.credential && can_go_again => Some(retries.for_credential()),
            Cause::Other | Cause::Spent | Cause::Throttled => None,
            Cause::Clock(_) => {
                let is_learned = route.follows_clock && !retries.clock && self.learn(ahead?, &signed);
                (is_learned && can_go_again).then(|| retries.for_clock())
            }
            Cause::Credential => {
                // Where it did not fall back, what was on trial is in use by now.
                if signed.trial.is_some_and(Trial::refused) {
                    return can_go_again.then(|| retries.for_credential());
                }
                if keeper.has_other_than(generation) {
                    return can_go_again.then(|| retries.for_credential());
                }
                if signed.is_newer {
                    // What was fetched for this very request is refused too: another one would fare no better.
                    keeper.reconsider(generation);
                    route.renewal.begin(now);
                    return None;
                }
                if route.renewal.is_on(now) {
                    return None;
                }
                if !can_go_again {
                    if !route.unseen_renewal.is_on(now) {
                        route.unseen_renewal.begin(now);
                        keeper.disown(generation);
                    }
                    return None;
                }
                if keeper.renew(generation).await {
                    return Some(retries.for_credential());
                }
                route.renewal.begin(now);
                None
            }
        }
    }

    /// Takes over what a reply has taught of the server's clock. False if that cannot be right.
    fn learn(&self, ahead: i64, signed: &Signed<'_>) -> bool {
        if ahead.unsigned_abs() < ALIKE {
            // The request was under way for too long; its time was right when it was signed.
            return true;
        }
        let (route, endpoint) = (&self.route.name, &signed.endpoint.target.endpoint);
        // Another request may have learned meanwhile, so this is not added to what is known now.
        let skew = signed.corrected.saturating_add(ahead);
        let most = if endpoint.secure { MOST_OVER_TLS } else { MOST_IN_THE_CLEAR };
        let seconds = skew / 1000;
        if skew.unsigned_abs() > most {
            if self.state.lasting.repeats.admit(route, "clock too far") {
                warn!(route, upstream = %endpoint, seconds, "the upstream's clock is too far from ours to be believed");
            }
            return false;
        }
        if (skew - signed.endpoint.skew.millis()).unsigned_abs() >= ALIKE {
            signed.endpoint.skew.learn(skew);
            // Servers that share a name may have clocks of their own.
            if self.state.lasting.repeats.admit(route, "clock ahead") {
                info!(route, upstream = %endpoint, seconds, "the upstream's clock is ahead of ours: signing with its time");
            }
        }
        true
    }

    fn refusal(&self, response: &Response<Source>, verdict: &Verdict, signed: &Signed<'_>, now: Timestamp) -> Refusal {
        let route = self.route;
        let held = signed.body.map_or(&[][..], Outgoing::held);
        let explanation = explain(self.head, held, &*signed.armed.signer, signed.endpoint, (signed.time, signed.nonce));
        // A server may repeat what it was sent wherever it likes.
        let mask = |text: Option<String>| text.map(|text| signed.generation.credential.mask(&text));
        Refusal {
            at: now,
            status: Some(response.status().as_u16()),
            verdict: name(verdict.cause),
            code: mask(verdict.code.clone()),
            provider_request_id: mask(verdict.request_id.clone()),
            advice: signed.generation.credential.mask(&verdict.advice),
            canonical_request: mask(explanation.canonical_request),
            string_to_sign: mask(explanation.string_to_sign),
            ..self.blank(route, now)
        }
    }

    /// Notes that there was no credential to send the request with.
    fn note_own(&self, error: &Error) {
        let blank = self.blank(self.route, self.clock.now());
        self.note(Refusal {
            code: Some(error.code.name().to_owned()),
            advice: error.message.clone().into_owned(),
            ..blank
        });
    }

    fn blank(&self, route: &Route, at: Timestamp) -> Refusal {
        Refusal {
            at,
            route: route.name.clone(),
            request_id: self.account.id.to_string(),
            method: self.head.method.to_string(),
            path: self.head.path_and_query().0.to_owned(),
            status: None,
            verdict: "not sent",
            code: None,
            provider_request_id: None,
            advice: String::new(),
            sent_again: None,
            canonical_request: None,
            string_to_sign: None,
        }
    }

    fn note(&self, refusal: Refusal) {
        self.state.lasting.refusals.note(refusal);
    }
}

impl Signed<'_> {
    /// The provider took the credential and the signature.
    fn accepted(self) {
        if let Some(trial) = self.trial {
            trial.passed();
        }
        if let Some(pass) = self.pass {
            pass.accepted();
        }
    }
}

impl Retries {
    fn for_credential(&mut self) -> &'static str {
        self.credential = true;
        self.renewals = self.renewals.saturating_add(1);
        CREDENTIAL
    }

    fn for_clock(&mut self) -> &'static str {
        self.clock = true;
        CLOCK
    }
}

fn name(cause: Cause) -> &'static str {
    match cause {
        Cause::Other => REFUSED,
        Cause::Credential | Cause::Spent => CREDENTIAL,
        Cause::Clock(_) => CLOCK,
        Cause::Signature => "signature",
        Cause::Locked => "locked",
        Cause::Throttled => "throttled",
    }
}

fn nowhere() -> Error {
    Error::new(Code::UpstreamUnreachable, "the route has no upstream")
}

/// How often a request is sent again where credentials are replaced faster than it comes through.
const MOST_RENEWALS: u8 = 16;

/// Clocks that differ by less than this, in milliseconds, are alike: `Date` leaves out fractions, and replies take time.
const ALIKE: u64 = 2_000;

/// By how much a server's clock may differ from ours to be believed, in milliseconds: in the clear anybody on the way could
/// have said it, and what is signed for tomorrow can be used tomorrow.
const MOST_OVER_TLS: u64 = 24 * 3_600_000;
const MOST_IN_THE_CLEAR: u64 = 3_600_000;
