//! The verifying upstream, a daemon before it, and what comes back.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use countersign::clock::Clock;
use countersign::demo::Stage;
use countersign::demo::certificates::KeyFormat;
use countersign::demo::upstream::Seen;
use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::daemon::{self, Daemon};

/// The upstream, with a runtime of its own that goes on while a test waits.
pub(crate) struct Scene {
    pub(crate) stage: Stage,
    pub(crate) runtime: Runtime,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let stage = runtime.block_on(Stage::start(Clock::system())).unwrap();
        Self { stage, runtime }
    }

    /// A folder with the files that the routes below refer to.
    pub(crate) fn folder(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        write("ca.pem", self.stage.authority.pem());
        write("cert.pem", self.stage.client.certificate_pem());
        write("key.pem", self.stage.client.key_pem(KeyFormat::Pkcs8));
        folder
    }

    /// Starts a daemon that listens on a free port, with these tables.
    pub(crate) fn start(&self, tables: &str) -> Daemon {
        self.start_listening("listen = [\"127.0.0.1:0\"]", tables)
    }

    /// The same with all of `[server]` given.
    pub(crate) fn start_listening(&self, server: &str, tables: &str) -> Daemon {
        Daemon::start_in(self.folder(), &format!("[server]\n{server}\n{tables}"), |_| {})
    }

    /// A route that signs, in the clear.
    pub(crate) fn bce(&self, name: &str, keys: &str) -> String {
        self.bce_to(&self.stage.certificates.to_string(), name, keys)
    }

    /// The same to another upstream.
    pub(crate) fn bce_to(&self, upstream: &str, name: &str, keys: &str) -> String {
        let key = &self.stage.access_key;
        format!(
            "[routes.{name}]\nupstream = \"http://{upstream}\"\n{keys}\n[routes.{name}.bce]\n\
             credentials = {{ access_key = \"{}\", secret_key = \"{}\" }}\n",
            key.access_key,
            key.secret_key.expose_secret()
        )
    }

    /// A route with a token, over TLS.
    pub(crate) fn header(&self, name: &str, keys: &str) -> String {
        format!(
            "[routes.{name}]\nupstream = \"https://{}\"\n{keys}\n[routes.{name}.tls]\nca = \"ca.pem\"\n\
             [routes.{name}.header]\nheaders = {{ \"X-Auth-Token\" = \"{}\" }}\n",
            self.stage.echo,
            self.stage.token.expose_secret()
        )
    }

    /// A route with a client certificate, over TLS.
    pub(crate) fn mtls(&self, name: &str, keys: &str) -> String {
        self.mtls_verifying("ca-only", name, keys)
    }

    /// The same with another way to verify the server.
    pub(crate) fn mtls_verifying(&self, verify: &str, name: &str, keys: &str) -> String {
        format!(
            "[routes.{name}]\nupstream = \"https://{}\"\n{keys}\n[routes.{name}.tls]\nca = \"ca.pem\"\n\
             cert = \"cert.pem\"\nkey = \"key.pem\"\nverify = \"{verify}\"\n[routes.{name}.mtls]\n",
            self.stage.cluster
        )
    }

    /// A route for each provider.
    pub(crate) fn all(&self, keys: &str) -> String {
        [self.bce("cert", keys), self.header("echo", keys), self.mtls("cluster", keys)].concat()
    }

    /// How many requests have come.
    pub(crate) fn count(&self) -> usize {
        self.stage.upstream.seen().len()
    }

    /// The request that came last, found good.
    pub(crate) fn accepted(&self) -> Seen {
        let seen = self.stage.upstream.last_seen().expect("a request");
        assert!(seen.verdict.is_ok(), "{seen:?}");
        seen
    }
}

/// What a caller got.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

/// An answer of countersign's own.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) route: Option<String>,
}

impl Reply {
    pub(crate) fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("no header: {line:?}"));
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        Self { status, headers, body: body.to_owned() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The upstream's answer, not one of our own.
    pub(crate) fn passed_on(self) -> Self {
        assert_eq!(self.header("x-countersign-error"), None, "{self:?}");
        assert!(self.header("x-countersign-request-id").is_some(), "{self:?}");
        self
    }

    /// An answer of our own, which says the same in its head and in its body.
    pub(crate) fn refused(&self) -> Refusal {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        assert_eq!(self.header("content-length"), Some(self.body.len().to_string().as_str()), "{self:?}");
        let body = self.json();
        let error = body["error"].as_object().unwrap_or_else(|| panic!("no error: {self:?}"));
        assert_eq!(error.keys().collect::<Vec<_>>(), ["code", "message", "route", "request_id"], "{self:?}");
        let text = |key: &str| error[key].as_str().map(str::to_owned);
        assert_eq!(self.header("x-countersign-error"), text("code").as_deref(), "{self:?}");
        let id = text("request_id").filter(|id| !id.is_empty());
        assert!(id.is_some() && self.header("x-countersign-request-id") == id.as_deref(), "{self:?}");
        let (code, message) = (text("code").unwrap(), text("message").unwrap());
        assert!(error["route"].is_null() || error["route"].is_string(), "{self:?}");
        Refusal { status: self.status, code, message, route: text("route") }
    }
}

/// Sends a request, its lines joined by `\n`, on a connection that it is the last one of.
pub(crate) fn ask(stream: impl Read + Write, head: &str) -> Reply {
    ask_with_body(stream, head, "")
}

/// The same with a body, whose framing the head must tell.
pub(crate) fn ask_with_body(stream: impl Read + Write, head: &str, body: impl AsRef<[u8]>) -> Reply {
    let head = head.replace('\n', "\r\n") + "\r\nConnection: close\r\n\r\n";
    Reply::parse(&daemon::exchange(stream, [head.as_bytes(), body.as_ref()].concat()))
}

/// Connects to a Unix socket.
pub(crate) fn connect_unix(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(daemon::PATIENCE)).unwrap();
    stream.set_write_timeout(Some(daemon::PATIENCE)).unwrap();
    stream
}
