//! A request's head on its way, from the guard to the signature.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method};
use http_body::Body;

use crate::provider::BodyNeed;

use super::body::Outgoing;
use super::error::{Code, Error};
use super::guard::{self, Permit};
use super::hold::Reason;
use super::state::Route;

/// A cleaned head, ready to be signed for whichever endpoint is chosen.
#[derive(Clone, Debug)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// The target as it goes upstream.
    pub target: PathAndQuery,
    /// The headers.
    pub headers: HeaderMap,
}

impl Head {
    /// Cleans a caller's head, gives its target the form in which the scheme can carry it, and asks the route's `allow`,
    /// which thus decides on the very octets that are signed and sent.
    ///
    /// # Errors
    /// `bad_request` for what no parser should guess at, `not_allowed`.
    pub fn ready(
        route: &Route,
        method: Method,
        target: PathAndQuery,
        mut headers: HeaderMap,
    ) -> Result<(Self, Permit), Error> {
        route.cleaner.head(&mut headers)?;
        let head = Self { method, target: rewrite(route, target)?, headers };
        let permit = head.permit(route, None)?;
        Ok((head, permit))
    }

    /// What the route's `allow` says; `form` is the body, once it is known to be a form and held.
    ///
    /// # Errors
    /// `not_allowed`.
    pub fn permit(&self, route: &Route, form: Option<&[u8]>) -> Result<Permit, Error> {
        let (path, query) = self.path_and_query();
        guard::allow(route.allow.as_deref(), &self.method, path, query, &self.headers, form)
    }

    /// Why the body is held, if it can be.
    #[must_use]
    pub fn hold_reason(&self, route: &Route, permit: Permit) -> Reason {
        match route.provider.body(&self.method, &self.headers) {
            _ if permit == Permit::NeedsForm => Reason::Needed,
            BodyNeed::Whole => Reason::Needed,
            BodyNeed::Presence => Reason::Presence,
            BodyNeed::Nothing => Reason::Replay,
        }
    }

    /// The path and the query as they go upstream.
    #[must_use]
    pub fn path_and_query(&self) -> (&str, Option<&str>) {
        (self.target.path(), self.target.query())
    }

    /// Says how the body is framed before anything is signed. The library would add it later, unsigned, and takes a GET
    /// that says nothing for one without a body.
    pub fn announce(&mut self, body: &Outgoing) {
        if matches!(body, Outgoing::Empty) || self.headers.contains_key(CONTENT_LENGTH) {
            return;
        }
        match body.size_hint().exact() {
            Some(length) => self.headers.insert(CONTENT_LENGTH, HeaderValue::from(length)),
            None => self.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked")),
        };
    }
}

/// Gives the target the form in which the scheme can carry it.
///
/// # Errors
/// `bad_request` where that form is no target.
fn rewrite(route: &Route, target: PathAndQuery) -> Result<PathAndQuery, Error> {
    let Some(query) = target.query().and_then(|query| route.provider.rewrite_query(query)) else { return Ok(target) };
    let rewritten = format!("{}?{query}", target.path()).try_into();
    rewritten.map_err(|_| Error::new(Code::BadRequest, "the request target is not valid"))
}
