//! A Swarm cluster whose certificates and address are fetched: from the played cluster-management API to a played master that
//! wants client certificates, and takes them back.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "what is not there fails the test")]

#[path = "../support/cloud/mod.rs"]
mod cloud;
#[path = "../support/daemon.rs"]
mod daemon;
#[allow(dead_code, reason = "it is shared with another crate, whose services are not asked here")]
#[path = "../living/scene.rs"]
mod scene;
#[path = "../support/script.rs"]
mod script;

mod bootstrap;
mod commands;
mod master;
mod renewal;

use countersign::clock::Clock;

use cloud::{CLUSTER, Cloud};
use master::{Issued, Master};
use scene::{Proxy, key, start_cloud, written};

/// The API, and a master that it knows.
struct Stage {
    cloud: Cloud,
    master: Master,
    clock: Clock,
}

impl Stage {
    /// With a first certificate, which the API hands out.
    fn start(clock: &Clock) -> (Self, Issued) {
        let stage = Self { cloud: start_cloud(clock), master: Master::start(), clock: clock.clone() };
        stage.cloud.cluster.play.set_master(stage.master.url());
        let issued = stage.hand_out("first");
        (stage, issued)
    }

    /// Issues another certificate, which the API hands out from now on.
    fn hand_out(&self, name: &str) -> Issued {
        let issued = self.master.issue(name);
        self.cloud.cluster.play.hand_out(&issued.reply);
        issued
    }

    /// What a configuration says after its listeners.
    fn route(&self) -> String {
        self.route_as(CLUSTER, &written(&key()), "")
    }

    fn route_as(&self, id: &str, credentials: &str, tls: &str) -> String {
        let endpoint = self.cloud.cluster.https();
        format!(
            "extra_ca = [\"ca.pem\"]\n[routes.up]\n{tls}\n[routes.up.swarm]\ncluster_id = \"{id}\"\n\
             endpoint = \"{endpoint}\"\ncredentials = {credentials}\n"
        )
    }

    fn proxy(&self) -> Proxy {
        self.proxy_of(&self.route())
    }

    fn proxy_of(&self, route: &str) -> Proxy {
        Proxy::start(&self.cloud, &self.clock, route)
    }

    /// How often the certificates have been handed out.
    fn fetches(&self) -> usize {
        self.cloud.cluster.accepted("certs: ")
    }
}
