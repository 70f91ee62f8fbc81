//! What went wrong on the way of a request, and what the caller is told.

use std::borrow::Cow;
use std::fmt;

use http::StatusCode;

/// Every answer of our own, with its status and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Something that no parser should guess at. The caller must send it otherwise.
    BadRequest,
    /// The route's `allow` does not name the request. Its owner may add it there.
    NotAllowed,
    /// A web page of another origin asks. Its owner may name the origin in `server.origins`.
    CrossSite,
    /// The caller is none of the route's `callers`.
    CallerDenied,
    /// The caller stopped in the middle of its body.
    CallerTimeout,
    /// A body that must be held is over `limits.signed_body`.
    BodyTooLarge,
    /// The head is over `limits.header_bytes`.
    HeadersTooLarge,
    /// No route belongs to the name that the request was sent to.
    UnknownHost,
    /// The provider's own limit would be passed. The caller must ask less often, or later.
    RateLimited,
    /// The upstream cannot be reached. Its address, the network or the server itself need a look.
    UpstreamUnreachable,
    /// The upstream's certificate, or its wish for one of ours, stands in the way.
    UpstreamTls,
    /// The upstream's answer is not HTTP, or broke off.
    UpstreamProtocol,
    /// The upstream did not answer in time.
    UpstreamTimeout,
    /// There is no credential that could be used.
    CredentialUnavailable,
    /// The provider refuses the credential's signatures, and would lock its key. Its secret must be corrected.
    CredentialRejected,
    /// There are too many connections or held bodies; later may help.
    Overloaded,
    /// The daemon is being stopped.
    Draining,
}

impl Code {
    /// All there are.
    pub const ALL: [Self; 17] = [
        Self::BadRequest,
        Self::NotAllowed,
        Self::CrossSite,
        Self::CallerDenied,
        Self::CallerTimeout,
        Self::BodyTooLarge,
        Self::HeadersTooLarge,
        Self::UnknownHost,
        Self::RateLimited,
        Self::UpstreamUnreachable,
        Self::UpstreamTls,
        Self::UpstreamProtocol,
        Self::UpstreamTimeout,
        Self::CredentialUnavailable,
        Self::CredentialRejected,
        Self::Overloaded,
        Self::Draining,
    ];

    /// The name in `X-Countersign-Error`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::NotAllowed => "not_allowed",
            Self::CrossSite => "cross_site",
            Self::CallerDenied => "caller_denied",
            Self::CallerTimeout => "caller_timeout",
            Self::BodyTooLarge => "body_too_large",
            Self::HeadersTooLarge => "headers_too_large",
            Self::UnknownHost => "unknown_host",
            Self::RateLimited => "rate_limited",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamTls => "upstream_tls",
            Self::UpstreamProtocol => "upstream_protocol",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::CredentialUnavailable => "credential_unavailable",
            Self::CredentialRejected => "credential_rejected",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
        }
    }

    /// The status that goes with it.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::NotAllowed | Self::CrossSite | Self::CallerDenied => StatusCode::FORBIDDEN,
            Self::CallerTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UnknownHost => StatusCode::MISDIRECTED_REQUEST,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::UpstreamUnreachable | Self::UpstreamTls | Self::UpstreamProtocol => StatusCode::BAD_GATEWAY,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::CredentialUnavailable | Self::CredentialRejected | Self::Overloaded | Self::Draining => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }
}

/// What went wrong, and what to do about it in words for the caller.
#[derive(Clone, Debug)]
pub struct Error {
    /// What kind of trouble.
    pub code: Code,
    /// What happened and what to do; never a secret, a token or a signature.
    pub message: Cow<'static, str>,
    /// After how many seconds it may fare better, where that is known.
    pub retry_after: Option<u64>,
}

impl Error {
    /// An error of a kind, in words.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), retry_after: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
