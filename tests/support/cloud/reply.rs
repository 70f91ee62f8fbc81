//! What is answered, and in which shape it goes over the wire.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

use countersign::clock::Timestamp;
use countersign::demo::verify::{Refusal, Scheme};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderValue, Response, header};
use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use serde_json::Value;

use super::issue::{http_date, opaque};
use super::server::Manner;

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
    /// For the journal: what was given or verified, or why nothing was.
    pub verdict: Result<String, String>,
}

impl Reply {
    pub fn text(status: u16, text: impl Into<String>, verdict: Result<String, String>) -> Self {
        let headers = vec![("content-type", "text/plain".to_owned())];
        Self { status, headers, body: text.into().into(), verdict }
    }

    pub fn json(status: u16, json: &Value, verdict: Result<String, String>) -> Self {
        let headers = vec![("content-type", "application/json; charset=utf-8".to_owned())];
        Self { status, headers, body: json.to_string().into(), verdict }
    }

    /// What a scheme refused, with the id of the request in a header.
    pub(super) fn refused(scheme: &impl Scheme, refusal: &Refusal) -> Self {
        let id = opaque(16);
        let body = scheme.error_body(refusal, &id);
        Self::refused_with(refusal, &body).with(scheme.request_id_header(), id)
    }

    /// The same with another body.
    pub(super) fn refused_with(refusal: &Refusal, body: &Value) -> Self {
        let (status, verdict) = (refusal.status.as_u16(), Err(format!("{}: {}", refusal.code, refusal.message)));
        match body {
            Value::String(text) => Self::text(status, text, verdict),
            body => Self::json(status, body, verdict),
        }
    }

    fn told(status: u16) -> Self {
        Self::text(status, "", Err(format!("told to answer {status}")))
    }

    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn render(&self, manner: &Manner, now: Timestamp) -> Response<Framed> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in &self.headers {
            response = response.header(*name, value);
        }
        // hyper would put the machine's time here.
        response = response.header(header::DATE, HeaderValue::try_from(http_date(now)).unwrap());
        let mut body = self.body.clone();
        if manner.gzip && self.status >= 400 {
            response = response.header(header::CONTENT_ENCODING, "gzip");
            let mut packer = GzEncoder::new(Vec::new(), Compression::default());
            packer.write_all(&body).unwrap();
            body = packer.finish().unwrap().into();
        }
        response.body(Framed { body: Full::new(body), is_chunked: manner.chunked }).unwrap()
    }
}

/// What happens to a request instead of an answer by the service.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection is closed without an answer.
    Cut,
    /// This is answered.
    Answer(Reply),
}

impl Fault {
    /// A status and nothing else.
    pub fn status(status: u16) -> Self {
        Self::Answer(Reply::told(status))
    }

    /// 429 or 503 with `Retry-After`.
    pub fn throttle(status: u16, retry_after: u32) -> Self {
        Self::Answer(Reply::told(status).with("retry-after", retry_after.to_string()))
    }

    /// 302.
    pub fn redirect(location: &str) -> Self {
        Self::Answer(Reply::told(302).with("location", location))
    }

    /// An error with a body of one's own, a missing permission for example.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::Answer(Reply::json(status, body, Reply::told(status).verdict))
    }
}

/// A body that need not say how long it is.
pub(super) struct Framed {
    body: Full<Bytes>,
    is_chunked: bool,
}

impl Body for Framed {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_chunked { SizeHint::default() } else { self.body.size_hint() }
    }
}
