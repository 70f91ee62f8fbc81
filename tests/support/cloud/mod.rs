//! The clouds' services, played: those that give out credentials, and those that verify what was made with them. Each listens
//! in the clear and with TLS on ports of its own, can be told to misbehave while it runs, and remembers what it found.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "every test crate that includes this uses its own part of it"
)]

mod cluster;
mod iam;
mod issue;
mod metadata;
mod reply;
mod server;
mod services;

use countersign::clock::Clock;
use countersign::credential::AccessKey;
use countersign::demo::certificates::Authority;
use countersign::demo::verify::{Acm, AcsRoa, Bce, Keys};
use tokio::runtime::{Builder, Runtime};

pub use cluster::{CLUSTER, Cluster};
pub use iam::{Expiry, Iam, IamSettings};
pub use issue::{Mint, Tokens};
pub use metadata::{Ecs, EcsSettings, Huawei, HuaweiSettings, Mode};
pub use reply::{Fault, Reply};
pub use server::{Call, Control, Manner, Play, Site};
pub use services::{Gateway, TokenCheck, TokenRefusal};

/// All services of one account. They stop when this is dropped.
pub struct Cloud {
    /// Issued the certificates that they show, for `localhost` and `127.0.0.1`.
    pub authority: Authority,
    /// Tokens, and the ids of projects and accounts.
    pub iam: Site<Iam>,
    /// Alibaba Cloud's instance metadata.
    pub ecs: Site<Ecs>,
    /// Huawei Cloud's instance metadata.
    pub huawei: Site<Huawei>,
    /// ACM's signature, 60 s.
    pub acm: Site<Acm>,
    /// bce-auth-v1, 30 min.
    pub baidu: Site<Bce>,
    /// SDK-HMAC-SHA256, 15 min, five strikes.
    pub gateway: Site<Gateway>,
    /// ROA signature, 15 min, nonces.
    pub acs: Site<AcsRoa>,
    /// The cluster-management API of Alibaba Cloud.
    pub cluster: Site<Cluster>,
    /// `X-Auth-Token` of [`iam`](Self::iam).
    pub service: Site<TokenCheck>,
    runtime: Option<Runtime>,
}

impl Cloud {
    /// Starts them, on threads of their own. `clock` is what their clocks show until one is [shifted](Control::shift).
    pub fn start(clock: &Clock) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let authority = Authority::new("a test's cloud").unwrap();
        let rings: [Keys; 6] = Default::default();
        let [iam, acm, baidu, gateway, roa, cluster] = rings.clone();
        let tokens = Tokens::default();
        let open = server::Opener { runtime: &runtime, authority: &authority, clock };
        Self {
            iam: open.site(Iam::new(iam, tokens.clone())),
            ecs: open.site(Ecs::new(rings.to_vec())),
            huawei: open.site(Huawei::new(rings.to_vec())),
            acm: open.site(Acm { keys: acm, charset: encoding_rs::GBK }),
            baidu: open.site(Bce { keys: baidu }),
            gateway: open.site(Gateway::new(gateway)),
            acs: open.site(AcsRoa::new(roa)),
            cluster: open.site(Cluster::new(cluster)),
            service: open.site(TokenCheck::new(tokens)),
            authority,
            runtime: Some(runtime),
        }
    }

    /// Makes a key known to every service.
    pub fn add(&self, key: &AccessKey) {
        for ring in self.rings() {
            ring.add(key.clone(), None);
        }
    }

    /// Makes every service refuse the keys of this name.
    pub fn revoke(&self, access_key: &str) {
        for ring in self.rings() {
            ring.remove(access_key);
        }
    }

    fn rings(&self) -> [&Keys; 6] {
        let Self { iam, acm, baidu, gateway, acs, cluster, .. } = self;
        [&iam.play.keys, &acm.play.keys, &baidu.play.keys, &gateway.play.keys, &acs.play.keys, &cluster.play.keys]
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // Waiting for its threads is not allowed inside another runtime, where some tests run.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
