//! What is planted, and in which routes.

use std::fmt::Display;
use std::net::SocketAddr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::scene::Scene;

/// A secret of this name: marked, with octets at its end that are encoded wherever anything is.
pub(crate) fn secret(name: &str) -> String {
    format!("{}+/=", mark(name))
}

/// What is searched for: the part that is the same however it is encoded.
pub(crate) fn mark(name: &str) -> String {
    format!("Planted{name}Secret")
}

/// What is planted in the routes, by name.
pub(crate) const PLANTED: [&str; 18] = [
    "Lasting",
    "Temporary",
    "Session",
    "Tem",
    "File",
    "Bearer",
    "Password",
    "Header",
    "Caller",
    "Stranger",
    "Proxy",
    "Echoed",
    "Rotated",
    "Broken",
    "Iam",
    "Wrong",
    "Given",
    "GivenToken",
];

/// A route, and what is asked of it.
pub(crate) struct Planted {
    pub(crate) name: &'static str,
    pub(crate) target: &'static str,
    /// Further lines of the request's head.
    pub(crate) head: String,
    /// Its tables, in which NAME stands for its own.
    pub(crate) tables: String,
}

impl Planted {
    fn new(name: &'static str, tables: String) -> Self {
        Self { name, target: "/v1/things?a=b", head: String::new(), tables }
    }

    /// A route to an upstream, with a provider and what its table says.
    fn to(name: &'static str, upstream: impl Display, provider: &str, says: impl Display) -> Self {
        Self::new(name, format!("upstream = \"{upstream}\"\n[routes.NAME.{provider}]\n{says}\n"))
    }

    /// One with a token and further keys.
    fn bearer(name: &'static str, upstream: impl Display, keys: impl Display) -> Self {
        let token = secret("Bearer");
        Self::new(name, format!("upstream = \"{upstream}\"\n{keys}\n[routes.NAME.bearer]\ntoken = \"{token}\"\n"))
    }

    fn at(self, target: &'static str) -> Self {
        Self { target, ..self }
    }

    fn with(self, line: &str) -> Self {
        Self { head: format!("{}{line}\r\n", self.head), ..self }
    }
}

/// Every route.
pub(crate) fn all(scene: &Scene) -> Vec<Planted> {
    let mut routes = signing(scene);
    routes.extend(sending(scene));
    routes.extend(fetching(scene));
    routes.extend(failing(scene));
    routes
}

/// Those that sign.
fn signing(scene: &Scene) -> Vec<Planted> {
    let cloud = &scene.cloud;
    let (bce, acm, huawei, acs) = (cloud.baidu.http(), cloud.acm.http(), cloud.gateway.http(), cloud.acs.http());
    let lasting = "credentials = { access_key = \"AKlasting\", secret_key = { file = \"lasting\" } }";
    let temporary = "credentials = { access_key = \"AKtemporary\", secret_key = { env = \"TEMPORARY\" }, \
                     security_token = { command = [\"cat\", \"session\"] } }";
    let tem = "credentials = { access_key = \"AKtem\", secret_key = { file = \"tem\" } }\nalgorithm =";
    let refusing = format!("http://{}", scene.refusing());
    let config = "/diamond-server/config.co?dataId=a&group=G&tenant=T";
    let stranger = secret("Stranger");
    vec![
        Planted::to("bce", &bce, "bce", lasting)
            .with(&format!("Authorization: Bearer {stranger}"))
            .with(&format!("X-Auth-Token: {stranger}")),
        Planted::to("bce-sts", &bce, "bce", temporary),
        Planted::to("bce-all", &bce, "bce", format!("{temporary}\nsigned_headers = \"default\"")),
        Planted::to("acm", &acm, "acm", lasting).at(config),
        Planted::to("acm-sts", &acm, "acm", temporary).at(config),
        Planted::to("huawei", &huawei, "huawei-aksk", lasting),
        Planted::to("huawei-sts", &huawei, "huawei-aksk", format!("{temporary}\nsigned_headers = \"all\"")),
        Planted::to("acs", &acs, "acs-roa", lasting),
        Planted::to("acs-sts", &acs, "acs-roa", temporary),
        Planted::to("tem", &refusing, "tem", format!("{tem} \"L3.SHA256\"")),
        Planted::to("tem-plain", &refusing, "tem", format!("{tem} \"L0.PLAINTEXT\"")),
    ]
}

/// Those that send the secret itself.
fn sending(scene: &Scene) -> Vec<Planted> {
    let refusing = format!("http://{}", scene.refusing());
    let headers = format!("headers = {{ \"X-Own\" = \"{}\" }}", secret("Header"));
    let password = format!("user = \"me\"\npassword = \"{}\"", secret("Password"));
    let echoed = format!("token = \"{}\"", mark("Echoed"));
    let callers = "callers = { token = { env = \"CALLER\" } }";
    let as_password = BASE64_STANDARD.encode(format!("me:{}", secret("Stranger")));
    vec![
        Planted::to("token", scene.cloud.service.http(), "huawei-token", "token = { file = \"token\" }"),
        Planted::to("password", &refusing, "basic", password),
        Planted::to("header", &refusing, "header", headers),
        Planted::to("rotated", &refusing, "bearer", "token = { file = \"rotated\" }"),
        Planted::to("echoed", format!("http://{}", scene.echoing()), "huawei-token", echoed),
        Planted::bearer("called", &refusing, callers).with(&format!("Authorization: Bearer {}", secret("Caller"))),
        Planted::bearer("uncalled", &refusing, callers).with(&format!("Proxy-Authorization: Basic {as_password}")),
    ]
}

/// Those whose credential is fetched.
fn fetching(scene: &Scene) -> Vec<Planted> {
    let cloud = &scene.cloud;
    let iam = |password: &str| {
        let (iam, password) = (cloud.iam.http(), secret(password));
        format!(
            "iam = \"{iam}\"\naccount = \"the-account\"\nuser = \"the-user\"\npassword = \"{password}\"\n\
             scope = {{ project = \"cn-north-4\" }}"
        )
    };
    let from = |source: &str, endpoint: String| {
        format!("credentials = {{ source = \"{source}\", endpoint = \"{endpoint}\" }}")
    };
    let (service, bce) = (cloud.service.http(), cloud.baidu.http());
    let program = "credentials = { source = \"command\", command = [\"cat\", \"keys.json\"] }";
    let file = "credentials = { source = \"file\", path = \"keys.json\" }";
    vec![
        Planted::to("iam", &service, "huawei-token", iam("Iam")),
        Planted::to("iam-wrong", &service, "huawei-token", iam("Wrong")),
        Planted::to("ecs", cloud.acs.http(), "acs-roa", from("ecs-ram-role", cloud.ecs.http())),
        Planted::to("agency", cloud.gateway.http(), "huawei-aksk", from("huawei-metadata", cloud.huawei.http())),
        Planted::to("no-agency", &bce, "bce", from("huawei-metadata", format!("http://{}", scene.echoing()))),
        Planted::to("program", &bce, "bce", program),
        Planted::to("keys", &bce, "bce", file),
    ]
}

/// Those that never get through.
fn failing(scene: &Scene) -> Vec<Planted> {
    let site = &scene.cloud.service;
    let secure = site.https();
    let tls = |keys: &str| format!("tls = {{ {keys} }}");
    let through = |proxy: SocketAddr| format!("proxy = \"http://user:{}@{proxy}\"", mark("Proxy"));
    let pin = format!("verify = \"pin\", pin = [\"sha256/{}\"]", BASE64_STANDARD.encode([0; 32]));
    let files = "[routes.NAME.tls]\nca = \"ca.pem\"\ncert = \"cert.pem\"\nkey = \"key.pem\"";
    vec![
        Planted::bearer("babbled", format!("http://{}", scene.babbling()), ""),
        Planted::bearer("closed", format!("http://{}", scene.closed), ""),
        Planted::bearer("trusted", &secure, tls("ca = \"ca.pem\"")),
        Planted::bearer("untrusted", &secure, ""),
        Planted::bearer("misnamed", &secure, tls("ca = \"ca.pem\", server_name = \"another.test\"")),
        Planted::bearer("unpinned", &secure, tls(&pin)),
        Planted::bearer("no-tls", format!("https://{}", site.plain), ""),
        Planted::bearer("tunnelled", &secure, through(scene.proxy())),
        Planted::bearer("forwarded", format!("http://{}", scene.closed), through(scene.proxy())),
        Planted::bearer("proxyless", format!("http://{}", scene.refusing()), through(scene.closed)),
        Planted::bearer("babbling-proxy", &secure, through(scene.babbling())),
        Planted::new("cluster", format!("upstream = \"{secure}\"\n{files}\n[routes.NAME.mtls]\n")),
    ]
}
