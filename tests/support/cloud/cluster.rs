//! The cluster-management API of Alibaba Cloud's container service: one cluster's details and certificates, for whoever signs
//! in the ROA style (swarm.md, sections 2 and 6).

use std::sync::Mutex;

use countersign::demo::verify::{AcsRoa, Keys, Received, Refusal, Scheme};
use http::StatusCode;
use serde_json::{Value, json};

use super::reply::Reply;
use super::server::Play;

/// The id of the one cluster there is.
pub const CLUSTER: &str = "c0123456789abcdef0123456789abcdef";

/// The API.
pub struct Cluster {
    /// What is accepted.
    pub keys: Keys,
    roa: AcsRoa,
    known: Mutex<Known>,
}

#[derive(Clone, Default)]
struct Known {
    master_url: Value,
    certificates: Value,
}

impl Cluster {
    pub(super) fn new(keys: Keys) -> Self {
        Self { roa: AcsRoa::new(keys.clone()), keys, known: Mutex::default() }
    }

    /// Says that the master is there from now on.
    pub fn set_master(&self, url: impl Into<Value>) {
        self.known.lock().unwrap().master_url = url.into();
    }

    /// Hands these certificates out from now on.
    pub fn hand_out(&self, certificates: &Value) {
        self.known.lock().unwrap().certificates = certificates.clone();
    }
}

impl Play for Cluster {
    fn answer(&self, request: &Received<'_>) -> Reply {
        let verified = match self.roa.verify(request) {
            Ok(verified) => verified,
            Err(refusal) => return Reply::refused(&self.roa, &refusal),
        };
        if request.header("accept") != Some("application/json") {
            return Reply::text(200, "<xml/>", Ok("XML".to_owned()));
        }
        let Known { master_url, certificates } = self.known.lock().unwrap().clone();
        let path = request.path.strip_prefix("/clusters/").and_then(|rest| rest.strip_prefix(CLUSTER));
        match path {
            Some("") => {
                let details = json!({
                    "cluster_id": CLUSTER, "name": "a test's", "state": "running", "size": 2, "network_mode": "vpc",
                    "agent_version": "0.9", "master_url": master_url,
                });
                Reply::json(200, &details, Ok(format!("details: {verified}")))
            }
            Some("/certs") => Reply::json(200, &certificates, Ok(format!("certs: {verified}"))),
            _ => {
                let message = "The specified cluster is not found.";
                Reply::refused(&self.roa, &Refusal::new(StatusCode::NOT_FOUND, "ErrorClusterNotFound", message))
            }
        }
    }
}
