//! The servers that secrets are sent to, and what arrived there.

use std::net::SocketAddr;

use countersign::clock::Clock;
use countersign::credential::{AccessKey, ExposeSecret, SecretString};
use countersign::demo::certificates::KeyFormat;
use http::HeaderMap;
use serde_json::json;
use socket2::Socket;

use crate::cloud::{Cloud, Control, Fault};
use crate::ports::reserve;
use crate::routes::{mark, secret};
use crate::scripted::Scripted;

/// The clouds, and other servers that are of no help.
pub(crate) struct Scene {
    pub(crate) cloud: Cloud,
    peers: Vec<Scripted>,
    /// Where nobody listens.
    pub(crate) closed: SocketAddr,
    _closed: Socket,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let echoed = json!({ "code": mark("Echoed"), "error_code": mark("Echoed"), "requestId": mark("Echoed"),
            "error": { "code": mark("Echoed") } });
        let closing = |status: &str, body: &str| {
            format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: application/json\r\n\r\n{body}",
                body.len()
            )
        };
        let peers = [
            closing("401 Unauthorized", "{}"),
            closing("407 Proxy Authentication Required", "no"),
            closing("401 Unauthorized", &echoed.to_string()),
            "this is no HTTP\r\n\r\n".to_owned(),
        ];
        let (closed, socket) = reserve();
        let cloud = Cloud::start(&Clock::system());
        cloud.iam.play.set(|settings| settings.passwords = vec![secret("Iam").leak()]);
        Self { cloud, peers: peers.iter().map(|reply| Scripted::start(reply)).collect(), closed, _closed: socket }
    }

    pub(crate) fn lasting() -> AccessKey {
        AccessKey { access_key: "AKlasting".to_owned(), secret_key: secret("Lasting").into(), security_token: None }
    }

    pub(crate) fn temporary() -> AccessKey {
        let token = Some(secret("Session").into());
        AccessKey {
            access_key: "AKtemporary".to_owned(),
            secret_key: secret("Temporary").into(),
            security_token: token,
        }
    }

    /// Answers 401 to everything.
    pub(crate) fn refusing(&self) -> SocketAddr {
        self.peers[0].address
    }

    /// A proxy that wants to know who asks.
    pub(crate) fn proxy(&self) -> SocketAddr {
        self.peers[1].address
    }

    /// Repeats a secret where codes and ids of requests stand.
    pub(crate) fn echoing(&self) -> SocketAddr {
        self.peers[2].address
    }

    /// Speaks no HTTP.
    pub(crate) fn babbling(&self) -> SocketAddr {
        self.peers[3].address
    }

    /// A folder with the files that the routes refer to.
    pub(crate) fn folder(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let client = self.cloud.authority.client("client").unwrap();
        let keys = json!({ "AccessKeyId": "AKgiven", "SecretAccessKey": secret("Given"), "SessionToken": secret("GivenToken") });
        for (name, content) in [
            ("lasting", secret("Lasting")),
            ("session", secret("Session")),
            ("tem", secret("Tem")),
            ("token", secret("File")),
            ("rotated", secret("Rotated")),
            ("keys.json", keys.to_string()),
            ("ca.pem", self.cloud.authority.pem()),
            ("cert.pem", client.certificate_pem()),
            ("key.pem", client.key_pem(KeyFormat::Pkcs8)),
        ] {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    pub(crate) fn sites(&self) -> [&Control; 5] {
        [&self.cloud.baidu, &self.cloud.acm, &self.cloud.gateway, &self.cloud.acs, &self.cloud.service]
    }

    pub(crate) fn each(&self, tell: impl Fn(&Control)) {
        for site in self.sites() {
            tell(site);
        }
    }

    pub(crate) fn everywhere(&self, fault: &Fault) {
        self.each(|site| site.fail("/", usize::MAX, fault.clone()));
    }

    /// All is well again.
    pub(crate) fn recover(&self) {
        for site in self.sites().into_iter().chain(self.givers()) {
            site.recover();
            site.shift(0);
        }
        for key in [Self::lasting(), Self::temporary()] {
            self.cloud.revoke(&key.access_key);
            self.cloud.add(&key);
        }
    }

    /// Those that give credentials out.
    pub(crate) fn givers(&self) -> [&Control; 3] {
        [&self.cloud.iam, &self.cloud.ecs, &self.cloud.huawei]
    }

    /// Every access key that was given out.
    pub(crate) fn given(&self) -> Vec<AccessKey> {
        [self.cloud.ecs.play.mint.issued(), self.cloud.huawei.play.mint.issued()].concat()
    }

    /// Their secrets, and the last token of IAM.
    pub(crate) fn given_secrets(&self) -> Vec<String> {
        let reveal = |secret: &SecretString| secret.expose_secret().to_owned();
        let of_key = |key: AccessKey| [Some(reveal(&key.secret_key)), key.security_token.as_ref().map(reveal)];
        self.given().into_iter().flat_map(of_key).chain([self.cloud.iam.play.tokens.latest()]).flatten().collect()
    }

    /// Every signature, and every header with a token, that arrived anywhere.
    pub(crate) fn sent(&self) -> Vec<String> {
        let mut sent = Vec::new();
        for call in self.sites().into_iter().chain(self.givers()).flat_map(Control::calls) {
            sent.extend(proofs(&call.headers));
        }
        for line in self
            .peers
            .iter()
            .flat_map(Scripted::heard)
            .flat_map(|heard| heard.lines().map(str::to_owned).collect::<Vec<_>>())
        {
            if let Some((name, value)) = line.split_once(": ")
                && PROOFS.contains(&name.to_ascii_lowercase().as_str())
            {
                sent.extend(signature(value));
            }
        }
        sent.sort();
        sent.dedup();
        sent
    }
}

/// The headers that prove something.
pub(crate) const PROOFS: [&str; 14] = [
    "authorization",
    "proxy-authorization",
    "spas-signature",
    "spas-securitytoken",
    "x-auth-token",
    "x-security-token",
    "x-bce-security-token",
    "x-acs-security-token",
    "x-own",
    "x-aliyun-ecs-metadata-token",
    "x-metadata-token",
    "x-subject-token",
    "cookie",
    "x-acs-signature",
];

pub(crate) fn proofs(headers: &HeaderMap) -> Vec<String> {
    let proofs = headers.iter().filter(|(name, _)| PROOFS.contains(&name.as_str()));
    proofs.filter_map(|(_, value)| signature(value.to_str().unwrap())).collect()
}

/// The part of a header's value that proves something.
pub(crate) fn signature(value: &str) -> Option<String> {
    let part = match value {
        _ if value.starts_with("bce-auth-v1/") => value.rsplit('/').next(),
        _ if value.starts_with("acs ") => value.split_once(':').map(|(_, signature)| signature),
        _ if value.contains("Signature=") => value.split_once("Signature=").map(|(_, signature)| signature),
        _ => Some(value.split_once(' ').map_or(value, |(_, rest)| rest)),
    };
    part.map(|part| part.trim_end_matches('=').to_owned()).filter(|part| part.len() >= 16)
}
