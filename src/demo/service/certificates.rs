//! The certificate service of Baidu Cloud as far as its manual describes it, in memory.
//!
//! The certificates are not looked at: whatever text comes is kept and given back.

use std::sync::{Mutex, PoisonError};

use http::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};

use super::{Reply, is_reading};
use crate::demo::random;
use crate::demo::verify::{Received, Refusal};

/// The certificates of one account.
#[derive(Default)]
pub struct Certificates {
    kept: Mutex<Vec<Certificate>>,
}

struct Certificate {
    id: String,
    name: String,
    data: Data,
}

struct Data {
    server: String,
    key: SecretString,
    link: Option<String>,
    kind: i64,
}

impl Certificates {
    pub(super) fn answer(&self, request: &Received<'_>) -> Result<Reply, Refusal> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let path = request.path.strip_prefix("/v1/certificate").ok_or_else(unknown_call)?;
        match path.split('/').collect::<Vec<_>>().as_slice() {
            [""] | ["", ""] if *request.method == Method::POST => create(&mut kept, request),
            [""] | ["", "" | "detail"] if is_reading(request.method) => {
                let name = parameter(request, "certName");
                let found = kept.iter().filter(|certificate| name.is_none_or(|name| certificate.name == name));
                Ok(Reply::of(json!({ "certs": found.map(Certificate::summary).collect::<Vec<_>>() })))
            }
            ["", id] if is_reading(request.method) => Ok(Reply::of(find(&mut kept, id)?.summary())),
            ["", id, "rawdata"] if is_reading(request.method) => Ok(Reply::of(find(&mut kept, id)?.raw_data())),
            ["", id] if *request.method == Method::PUT => change(&mut kept, id, request),
            ["", id] if *request.method == Method::DELETE => {
                let index = kept.iter().position(|certificate| certificate.id == *id).ok_or_else(not_found)?;
                kept.remove(index);
                Ok(Reply::empty())
            }
            _ => Err(unknown_call()),
        }
    }
}

impl Certificate {
    fn summary(&self) -> Value {
        json!({ "certId": self.id, "certName": self.name, "certType": self.data.kind })
    }

    fn raw_data(&self) -> Value {
        json!({
            "certId": self.id,
            "certName": self.name,
            "certServerData": self.data.server,
            "certPrivateKey": self.data.key.expose_secret(),
            "certLinkData": self.data.link,
            "certType": self.data.kind,
        })
    }
}

fn create(kept: &mut Vec<Certificate>, request: &Received<'_>) -> Result<Reply, Refusal> {
    let body = body(request)?;
    let (name, data) = (name(&body)?, data(&body)?);
    only_once(kept, &name, None)?;
    if kept.len() >= MOST {
        return Err(Refusal::new(
            StatusCode::CONFLICT,
            "CertExceedLimit",
            format!("At most {MOST} certificates are kept."),
        ));
    }
    let id = random::<6>().map(hex::encode).map_err(|_| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "We encountered an internal error.")
    })?;
    let certificate = Certificate { id: format!("cert-{id}"), name, data };
    let reply = json!({ "certId": certificate.id, "certName": certificate.name });
    kept.push(certificate);
    Ok(Reply::of(reply))
}

fn change(kept: &mut [Certificate], id: &str, request: &Received<'_>) -> Result<Reply, Refusal> {
    find(kept, id)?;
    let body = body(request)?;
    let name = name(&body)?;
    only_once(kept, &name, Some(id))?;
    let data = match (parameter(request, "certName"), parameter(request, "certData")) {
        (Some(_), None) => None,
        (None, Some(_)) => Some(data(&body)?),
        _ => return Err(invalid("expected exactly one of ?certName and ?certData")),
    };
    let certificate = find(kept, id)?;
    certificate.name = name;
    if let Some(data) = data {
        certificate.data = data;
    }
    Ok(Reply::empty())
}

fn find<'a>(kept: &'a mut [Certificate], id: &str) -> Result<&'a mut Certificate, Refusal> {
    kept.iter_mut().find(|certificate| certificate.id == id).ok_or_else(not_found)
}

fn only_once(kept: &[Certificate], name: &str, except: Option<&str>) -> Result<(), Refusal> {
    if kept.iter().any(|certificate| certificate.name == name && Some(certificate.id.as_str()) != except) {
        return Err(Refusal::new(StatusCode::CONFLICT, "ResourceNameDuplicated", "The name is in use."));
    }
    Ok(())
}

fn body(request: &Received<'_>) -> Result<Map<String, Value>, Refusal> {
    serde_json::from_slice(request.body).map_err(|_| invalid("expected a JSON object"))
}

fn text(body: &Map<String, Value>, key: &str) -> Option<String> {
    body.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn name(body: &Map<String, Value>) -> Result<String, Refusal> {
    text(body, "certName").ok_or_else(|| invalid("expected certName"))
}

fn data(body: &Map<String, Value>) -> Result<Data, Refusal> {
    Ok(Data {
        server: text(body, "certServerData").ok_or_else(|| invalid("expected certServerData"))?,
        key: text(body, "certPrivateData").ok_or_else(|| invalid("expected certPrivateData"))?.into(),
        link: text(body, "certLinkData"),
        kind: body.get("certType").and_then(Value::as_i64).unwrap_or(1),
    })
}

/// The raw value of a query parameter, empty if it has none; names with escapes do not count.
fn parameter<'a>(request: &Received<'a>, name: &str) -> Option<&'a str> {
    let pieces = request.query.unwrap_or_default().split('&');
    pieces
        .map(|piece| piece.split_once('=').unwrap_or((piece, "")))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

fn invalid(what: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "ParametersInvalid", format!("Parameters are invalid: {what}."))
}

fn not_found() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "ResourceNotFound", "There is no such certificate.")
}

fn unknown_call() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "ResourceNotFound", "There is no such call.")
}

/// What is kept at most.
const MOST: usize = 100;

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::clock::Timestamp;

    fn call(service: &Certificates, method: &Method, target: &str, body: &Value) -> Result<Value, Refusal> {
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let (headers, body) = (HeaderMap::new(), body.to_string());
        let body = body.as_bytes();
        let request = Received { method, path, query, headers: &headers, body, client: None, time: Timestamp(0) };
        service.answer(&request).map(|reply| reply.body.unwrap_or_default())
    }

    fn certificate(name: &str, key: &str) -> Value {
        json!({ "certName": name, "certServerData": "a certificate", "certPrivateData": key })
    }

    #[test]
    fn a_certificate_lives_from_create_to_delete() {
        let service = Certificates::default();
        let created = call(&service, &Method::POST, "/v1/certificate", &certificate("one", "first")).unwrap();
        let id = created["certId"].as_str().unwrap().to_owned();
        let summary = json!({ "certId": id, "certName": "one", "certType": 1 });
        for list in ["", "?certName=one", "/detail"] {
            let listed = call(&service, &Method::GET, &format!("/v1/certificate{list}"), &Value::Null).unwrap();
            assert_eq!(listed, json!({ "certs": [summary] }), "{list}");
        }
        let none = call(&service, &Method::GET, "/v1/certificate?certName=two", &Value::Null).unwrap();
        assert_eq!(none, json!({ "certs": [] }));

        let one = format!("/v1/certificate/{id}");
        assert_eq!(call(&service, &Method::GET, &one, &Value::Null).unwrap(), summary);
        let renamed = call(&service, &Method::PUT, &format!("{one}?certName"), &json!({ "certName": "two" })).unwrap();
        assert_eq!(renamed, Value::Null);
        call(&service, &Method::PUT, &format!("{one}?certData="), &certificate("two", "second")).unwrap();
        let raw = call(&service, &Method::GET, &format!("{one}/rawdata"), &Value::Null).unwrap();
        assert_eq!((&raw["certName"], &raw["certPrivateKey"]), (&json!("two"), &json!("second")));

        call(&service, &Method::DELETE, &one, &Value::Null).unwrap();
        let gone = call(&service, &Method::GET, &one, &Value::Null).unwrap_err();
        assert_eq!((gone.status, gone.code), (StatusCode::NOT_FOUND, "ResourceNotFound"));
    }

    #[test]
    fn what_the_manual_refuses_is_refused() {
        let service = Certificates::default();
        let created = call(&service, &Method::POST, "/v1/certificate", &certificate("one", "first")).unwrap();
        let one = format!("/v1/certificate/{}", created["certId"].as_str().unwrap());
        for (method, target, body, code) in [
            (Method::POST, "/v1/certificate", certificate("one", "again"), "ResourceNameDuplicated"),
            (Method::POST, "/v1/certificate", json!({ "certName": "two" }), "ParametersInvalid"),
            (Method::POST, "/v1/certificate", json!([]), "ParametersInvalid"),
            (Method::PUT, &one, json!({ "certName": "two" }), "ParametersInvalid"),
            (Method::PUT, &format!("{one}?certname"), json!({ "certName": "two" }), "ParametersInvalid"),
            (Method::PUT, "/v1/certificate/cert-0?certName", json!({ "certName": "two" }), "ResourceNotFound"),
            (Method::PATCH, &one, Value::Null, "ResourceNotFound"),
            (Method::GET, "/v2/certificate", Value::Null, "ResourceNotFound"),
            (Method::GET, "/v1/certificates", Value::Null, "ResourceNotFound"),
        ] {
            assert_eq!(call(&service, &method, target, &body).unwrap_err().code, code, "{method} {target}");
        }
    }

    #[test]
    fn the_number_of_certificates_is_bounded() {
        let service = Certificates::default();
        for number in 0..MOST {
            call(&service, &Method::POST, "/v1/certificate", &certificate(&number.to_string(), "key")).unwrap();
        }
        let refused = call(&service, &Method::POST, "/v1/certificate", &certificate("more", "key")).unwrap_err();
        assert_eq!(refused.code, "CertExceedLimit");
    }
}
