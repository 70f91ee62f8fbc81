//! What is played before the upstream: a request through each provider, and the same with a wrong secret.

use std::fmt::Write;
use std::net::SocketAddr;

use crate::credential::ExposeSecret;

use super::Stage;

/// One request, and how its route is configured.
#[derive(Debug)]
pub struct Act {
    /// What it shows.
    pub title: &'static str,
    /// Its route; `ROUTE-wrong` is the same with a wrong secret.
    pub route: &'static str,
    /// The method.
    pub method: &'static str,
    /// The target.
    pub target: &'static str,
    /// The body: JSON, if there is one.
    pub body: Option<&'static str>,
    /// Headers that the upstream receives as they are although they are secrets.
    pub masked: &'static [&'static str],
    site: fn(&Stage) -> SocketAddr,
    is_secure: bool,
    proof: Proof,
}

/// What the route proves itself with.
#[derive(Debug)]
enum Proof {
    /// A provider of this name, with an access key.
    Key(&'static str),
    /// A provider's table and its key that takes the token.
    Token(&'static str, &'static str),
    /// The client certificate.
    Certificate,
}

/// Every act, in the order in which they are played.
pub const ACTS: &[Act] = &[
    Act {
        title: "A Swarm cluster: the client certificate answers for the caller",
        route: "cluster",
        method: "GET",
        target: "/projects/",
        body: None,
        masked: &[],
        site: |stage| stage.cluster,
        is_secure: true,
        proof: Proof::Certificate,
    },
    Act {
        title: "Its management API: ROA signature, a new nonce every time",
        route: "management",
        method: "GET",
        target: "/clusters/Cccfd68c474454665ace07efce924f75f/certs",
        body: None,
        masked: &[],
        site: |stage| stage.management,
        is_secure: true,
        proof: Proof::Key("acs-roa"),
    },
    Act {
        title: "Alibaba ACM: namespace and group are found and signed",
        route: "acm",
        method: "GET",
        target: "/diamond-server/config.co?dataId=app.yaml&group=DEFAULT_GROUP&tenant=demo",
        body: None,
        masked: &[],
        site: |stage| stage.configurations,
        is_secure: false,
        proof: Proof::Key("acm"),
    },
    Act {
        title: "PingCAP TEM: the body is signed as well",
        route: "tem",
        method: "POST",
        target: "/api/v1/cluster/tidbs",
        body: Some("{\"name\":\"demo\"}"),
        masked: &[],
        site: |stage| stage.platform,
        is_secure: false,
        proof: Proof::Key("tem"),
    },
    Act {
        title: "Huawei Cloud by access key: SDK-HMAC-SHA256",
        route: "migration",
        method: "GET",
        target: "/v3/tasks/7a9941f6-3dc4-4ac2-8d3f-3b5b39f12a3c/certkey?enable_ca_cert=true",
        body: None,
        masked: &[],
        site: |stage| stage.migration,
        is_secure: true,
        proof: Proof::Key("huawei-aksk"),
    },
    Act {
        title: "Huawei Cloud by token: X-Auth-Token",
        route: "token",
        method: "GET",
        target: "/v3/anything",
        body: None,
        masked: &["x-auth-token"],
        site: |stage| stage.echo,
        is_secure: true,
        proof: Proof::Token("huawei-token", "token"),
    },
    Act {
        title: "Baidu Cloud certificate service: bce-auth-v1",
        route: "cert",
        method: "GET",
        target: "/v1/certificate?certName=demo",
        body: None,
        masked: &[],
        site: |stage| stage.certificates,
        is_secure: false,
        proof: Proof::Key("bce"),
    },
];

/// The configuration for all of them. It refers to `ca.pem`, `cert.pem` and `key.pem`, and to `wrong-cert.pem` and
/// `wrong-key.pem` of a client whom nobody knows.
#[must_use]
pub fn configuration(stage: &Stage) -> String {
    let mut text = "[server]\nlisten = [\"127.0.0.1:8080\"]\n".to_owned();
    for act in ACTS {
        for is_right in [true, false] {
            act.configure(stage, is_right, &mut text);
        }
    }
    text
}

impl Act {
    fn configure(&self, stage: &Stage, is_right: bool, text: &mut String) {
        let route = if is_right { self.route.to_owned() } else { format!("{}-wrong", self.route) };
        let scheme = if self.is_secure { "https" } else { "http" };
        let _ = writeln!(text, "[routes.{route}]\nupstream = \"{scheme}://{}\"", (self.site)(stage));
        if self.is_secure {
            let _ = writeln!(text, "[routes.{route}.tls]\nca = \"ca.pem\"");
        }
        let secret = |right: &dyn Fn() -> String| if is_right { right() } else { "wrong".to_owned() };
        let _ = match self.proof {
            Proof::Key(provider) => {
                let secret = secret(&|| stage.access_key.secret_key.expose_secret().to_owned());
                let key = &stage.access_key.access_key;
                writeln!(
                    text,
                    "[routes.{route}.{provider}]\ncredentials = {{ access_key = \"{key}\", secret_key = \"{secret}\" }}"
                )
            }
            Proof::Token(provider, key) => {
                let secret = secret(&|| stage.token.expose_secret().to_owned());
                writeln!(text, "[routes.{route}.{provider}]\n{key} = \"{secret}\"")
            }
            Proof::Certificate => {
                let prefix = if is_right { "" } else { "wrong-" };
                writeln!(
                    text,
                    "cert = \"{prefix}cert.pem\"\nkey = \"{prefix}key.pem\"\nverify = \"ca-only\"\n[routes.{route}.mtls]"
                )
            }
        };
    }
}
