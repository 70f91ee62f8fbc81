//! Step 6: authorize, last of all and anew for every attempt.

use http::header::HOST;
use http::{Request, Version};

use crate::clock::Timestamp;
use crate::provider::{self, Explanation, Signer};

use super::body::Outgoing;
use super::error::{Code, Error};
use super::head::Head;
use super::servers::Endpoint;

/// Signs a head for an endpoint and joins it with its body: what is signed is what is sent.
///
/// # Errors
/// `bad_request` where the scheme cannot carry the request.
pub fn authorize(
    mut head: Head,
    body: Outgoing,
    signer: &dyn Signer,
    endpoint: &Endpoint,
    (time, nonce): (Timestamp, &str),
    explain: Option<&mut Explanation>,
) -> Result<Request<Outgoing>, Error> {
    head.headers.insert(HOST, endpoint.authority.clone());
    let (path, query) = head.path_and_query();
    let (method, headers) = (&head.method, &head.headers);
    let request = provider::Request { method, path, query, headers, body: body.held(), time, nonce };
    let fields = signer.sign(&request, explain).map_err(|message| Error::new(Code::BadRequest, message))?;
    for (name, value) in fields {
        head.headers.insert(name, value);
    }
    let mut request = Request::new(body);
    *request.method_mut() = head.method;
    *request.uri_mut() = head.target.into();
    *request.headers_mut() = head.headers;
    *request.version_mut() = Version::HTTP_11;
    Ok(request)
}

/// How the same head would be signed, stage by stage. `body` is what the signer sees of it.
#[must_use]
pub fn explain(
    head: &Head,
    body: &[u8],
    signer: &dyn Signer,
    endpoint: &Endpoint,
    (time, nonce): (Timestamp, &str),
) -> Explanation {
    let mut headers = head.headers.clone();
    headers.insert(HOST, endpoint.authority.clone());
    let (path, query) = head.path_and_query();
    let request = provider::Request { method: &head.method, path, query, headers: &headers, body, time, nonce };
    let mut explanation = Explanation::default();
    // It was signed before, so this can be no error.
    let _ = signer.sign(&request, Some(&mut explanation));
    explanation
}
