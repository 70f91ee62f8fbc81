//! The cluster-management API of Alibaba Cloud's container service, for one cluster: `GET /clusters/{id}` and
//! `GET /clusters/{id}/certs`, version 2015-12-15.

use std::net::SocketAddr;

use http::StatusCode;
use serde_json::{Value, json};

use super::super::certificates::{Authority, Identity, KeyFormat};
use super::super::verify::{Received, Refusal};
use super::{Reply, is_reading};

/// The cluster.
pub struct Clusters {
    id: &'static str,
    master: SocketAddr,
    certificates: Value,
}

impl Clusters {
    /// One whose master is there, and takes certificates like this client's.
    #[must_use]
    pub fn new(id: &'static str, master: SocketAddr, authority: &Authority, client: &Identity) -> Self {
        let (cert, key) = (client.certificate_pem(), client.key_pem(KeyFormat::Pkcs8));
        Self { id, master, certificates: json!({ "ca": authority.pem(), "cert": cert, "key": key }) }
    }

    pub(super) fn answer(&self, request: &Received<'_>) -> Result<Reply, Refusal> {
        // Without this header the service answers in XML.
        if request.header("accept") != Some("application/json") {
            return Err(Refusal::new(
                StatusCode::NOT_ACCEPTABLE,
                "NotAcceptable",
                "The demonstration speaks JSON alone.",
            ));
        }
        let path = request.path.strip_prefix("/clusters/").and_then(|rest| rest.strip_prefix(self.id));
        match path.filter(|_| is_reading(request.method)) {
            Some("") => Ok(Reply::of(json!({
                "cluster_id": self.id,
                "name": "demo",
                "state": "running",
                "master_url": format!("tcp://{}", self.master),
            }))),
            Some("/certs") => Ok(Reply::of(self.certificates.clone())),
            _ => {
                let message = "The specified cluster is not found.";
                Err(Refusal::new(StatusCode::NOT_FOUND, "ErrorClusterNotFound", message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Method};

    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn it_tells_about_one_cluster_in_json_alone() {
        let authority = Authority::new("a CA").unwrap();
        let client = authority.client("a client").unwrap();
        let clusters = Clusters::new("c1", "127.0.0.1:1".parse().unwrap(), &authority, &client);
        let ask = |method: &Method, path: &str, accept: &'static str| {
            let headers = &HeaderMap::from_iter([(http::header::ACCEPT, HeaderValue::from_static(accept))]);
            let time = Timestamp(0);
            let request = Received { method, path, query: None, headers, body: b"", client: None, time };
            clusters.answer(&request).map(|reply| reply.body.unwrap()).map_err(|refusal| refusal.status.as_u16())
        };
        let json = "application/json";
        assert_eq!(ask(&Method::GET, "/clusters/c1", json).unwrap()["master_url"], "tcp://127.0.0.1:1");
        assert_eq!(ask(&Method::GET, "/clusters/c1/certs", json).unwrap()["ca"], authority.pem());
        assert_eq!(ask(&Method::GET, "/clusters/c1", "*/*"), Err(406));
        for (method, path) in [(Method::GET, "/clusters/c2"), (Method::GET, "/clusters"), (Method::PUT, "/clusters/c1")]
        {
            assert_eq!(ask(&method, path, json), Err(404), "{method} {path}");
        }
    }
}
