//! Step 5: which bodies are held, and how much of them at one time.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;

use super::body::{Broken, Outgoing, Wire};
use super::clean::Cleaner;
use super::error::{Code, Error};
use super::{Limits, body::Upload};

/// What all held bodies together may take.
#[derive(Debug, Default)]
pub struct Budget {
    used: AtomicUsize,
}

impl Budget {
    /// What is held now, in octets.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    octets: usize,
}

impl Reservation {
    /// Nothing reserved yet.
    #[must_use]
    pub fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), octets: 0 }
    }

    /// Takes more, if there is as much left.
    fn grow(&mut self, octets: usize, most: usize) -> bool {
        let before = self.budget.used.fetch_add(octets, Ordering::Relaxed);
        let fits = before.checked_add(octets).is_some_and(|used| used <= most);
        if fits {
            self.octets += octets;
        } else {
            self.budget.used.fetch_sub(octets, Ordering::Relaxed);
        }
        fits
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.octets, Ordering::Relaxed);
    }
}

/// Why a body is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The signature, or the route's `allow`, must see all of it.
    Needed,
    /// The signature must know whether there is any of it; it may be held so that it can be sent again.
    Presence,
    /// So that it can be sent again.
    Replay,
}

/// Holds a body where there is reason to, and lets it stream otherwise; a streamed one tells how far it has come. What is held
/// counts as `received`.
///
/// # Errors
/// `body_too_large`, `overloaded`, and what a caller's broken body is: `caller_timeout` or `bad_request`.
pub async fn hold(
    mut wire: Wire,
    reason: Reason,
    limits: &Limits,
    budget: &Arc<Budget>,
    cleaner: &Arc<Cleaner>,
    received: &Cell<u64>,
) -> Result<(Outgoing, Option<Rc<Upload>>), Error> {
    if wire.is_end_stream() {
        return Ok((Outgoing::Empty, None));
    }
    let most = match reason {
        Reason::Needed => limits.signed_body,
        Reason::Presence | Reason::Replay => limits.replay_body,
    };
    let length = wire.size_hint().exact().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    let mut reservation = Reservation::new(budget);
    let fits = length.is_some_and(|length| length <= most && reservation.grow(length, limits.held_bodies));
    if reason == Reason::Presence && length.is_none() && !wire.has_octets().await.map_err(broken)? {
        return Ok((Outgoing::holding(Bytes::new(), None, reservation), None));
    }
    match (reason, length) {
        _ if fits => {}
        (Reason::Presence | Reason::Replay, _) => {
            let (body, upload) = Outgoing::streaming(wire, Arc::clone(cleaner));
            return Ok((body, Some(upload)));
        }
        (Reason::Needed, Some(length)) if length > most => return Err(too_large(most)),
        (Reason::Needed, Some(_)) => return Err(overloaded()),
        (Reason::Needed, None) => {}
    }
    let (mut octets, mut trailers) = (Pieces::default(), None);
    while let Some(frame) = Pin::new(&mut wire).frame().await {
        let data = match frame.map_err(broken)?.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = frame.into_trailers().ok();
                continue;
            }
        };
        received.set(received.get() + data.len() as u64);
        if octets.length() + data.len() > most {
            return Err(too_large(most));
        }
        if length.is_none() && !reservation.grow(data.len(), limits.held_bodies) {
            return Err(overloaded());
        }
        octets.push(data);
    }
    if let Some(trailers) = &mut trailers {
        cleaner.trailers(trailers);
    }
    Ok((Outgoing::holding(octets.join(), trailers, reservation), None))
}

/// What a caller is told whose body ended before its end.
#[must_use]
pub fn broken(broken: Broken) -> Error {
    match broken {
        Broken::Silent => {
            Error::new(Code::CallerTimeout, "the request's body fell silent: send it without such pauses")
        }
        Broken::Cut => Error::new(Code::BadRequest, "the request's body was cut off or is not framed as announced"),
    }
}

/// What a caller is told whose body is larger than what may be held.
#[must_use]
pub fn too_large(most: usize) -> Error {
    let message = format!("the body must be held and is larger than {most} octets: raise `limits.signed_body`");
    Error::new(Code::BodyTooLarge, message)
}

fn overloaded() -> Error {
    Error::new(Code::Overloaded, "too many bodies are being held: try again, or raise `limits.held_bodies`")
}

/// A body's pieces; a single one, as most bodies are, is not copied.
#[derive(Debug, Default)]
struct Pieces {
    first: Bytes,
    all: BytesMut,
}

impl Pieces {
    fn length(&self) -> usize {
        self.first.len() + self.all.len()
    }

    fn push(&mut self, piece: Bytes) {
        if self.first.is_empty() && self.all.is_empty() {
            self.first = piece;
            return;
        }
        self.all.extend_from_slice(&std::mem::take(&mut self.first));
        self.all.extend_from_slice(&piece);
    }

    fn join(self) -> Bytes {
        if self.all.is_empty() { self.first } else { self.all.freeze() }
    }
}
