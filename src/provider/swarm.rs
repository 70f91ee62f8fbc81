//! A Swarm cluster of Alibaba Cloud's container service: mutual TLS, as [`mtls`] has it, but with the client
//! certificate, its key, the cluster's own CA and the master's address fetched from the cluster-management API.
//!
//! - The API takes the ROA signature; what it hands out stays in memory.
//! - A master's certificate often lacks its address, and its CA signs nothing but this cluster: `verify` is "ca-only" here.

use std::sync::Arc;

use http::StatusCode;

use super::{Destination, Fields, Fixed, Key, Patience, Provider, Registration, Signer, acs_roa, mtls};
use crate::credential::{AliyunCluster, Credential, ExposeSecret, Source};
use crate::settings::Table;
use crate::upstream::bundle::{self, Identity};
use crate::upstream::tls::ClientIdentity;

/// The provider.
pub(super) static REGISTRATION: Registration = Registration {
    name: "swarm",
    summary: "nothing: the client certificate, which is fetched as the upstream's address is, does the work",
    keys: &[
        Key { name: "cluster_id", default: "", meaning: "the cluster: a \"c\" and 32 hex digits" },
        Key {
            name: "credentials",
            default: "",
            meaning: "{ access_key = S, secret_key = S } for the cluster-management API, or { source = … }",
        },
        Key {
            name: "endpoint",
            default: "\"https://cs.aliyuncs.com\"",
            meaning: "where the cluster-management API is",
        },
    ],
    credential_headers: &[],
    id_headers: &[],
    finds_upstream: true,
    read: |table| Swarm::read(table).map(|provider| Box::new(provider) as Box<dyn Provider>),
};

#[derive(Debug)]
struct Swarm {
    source: Source,
}

impl Swarm {
    fn read(table: &Table<'_>) -> Option<Self> {
        let cluster = AliyunCluster::read(table, acs_roa::sign_get)?;
        Some(Self { source: Source::Fetched(Arc::new(cluster)) })
    }
}

impl Provider for Swarm {
    fn source(&self) -> &Source {
        &self.source
    }

    fn sets(&self) -> Vec<String> {
        Vec::new()
    }

    fn signer(&self, credential: &Credential) -> Result<Arc<dyn Signer>, String> {
        let Credential::Certificate(certificate) = credential else {
            return Err("expected a client certificate and where it is shown".to_owned());
        };
        let bundle = bundle::unpack(certificate.reply.expose_secret().as_bytes(), Identity::Source)?;
        if bundle.ca.is_empty() {
            return Err("the certificates came without the cluster's `ca`".to_owned());
        }
        Ok(Arc::new(Fixed { fields: Fields::new() }))
    }

    /// Who shows a wrong certificate is turned away before there is a reply.
    fn judges(&self, _status: StatusCode) -> bool {
        false
    }

    fn destination(&self, credential: &Credential) -> Option<Result<Destination, String>> {
        let Credential::Certificate(certificate) = credential else { return None };
        let identity = ClientIdentity::Fetched { reply: certificate.reply.clone() };
        Some(Ok(Destination { upstream: certificate.upstream.clone(), identity }))
    }

    fn is_http1_only(&self) -> bool {
        true
    }

    fn patience(&self) -> Patience {
        mtls::PATIENCE
    }
}
