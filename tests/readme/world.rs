//! A world in which every server that an example names is there: an outbound proxy that is at the other end of each tunnel
//! itself, and answers as the services do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use countersign::demo::certificates::{Authority, Identity, KeyFormat};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;

use crate::daemon::{Daemon, write_configuration};
use crate::script::{Conn, Upstream};

/// A request that reached a server.
#[derive(Clone, Debug)]
struct Heard {
    head: String,
    has_certificate: bool,
}

pub(crate) struct World {
    proxy: Upstream,
    authority: Arc<Authority>,
    client: Identity,
    journal: Arc<Mutex<Vec<Heard>>>,
}

impl World {
    /// With a server for every name in the text.
    pub(crate) fn new(text: &str) -> Self {
        let authority = Arc::new(Authority::new("the world's CA").unwrap());
        let client = authority.client("a client").unwrap();
        let config = Arc::new(server_config(&authority, &names(text)));
        let journal = Arc::<Mutex<Vec<Heard>>>::default();
        let service = Service { pems: pems(&authority, &client), journal: Arc::clone(&journal) };
        let proxy = Upstream::start(move |mut conn| {
            let Some(head) = conn.head() else { return };
            if head.starts_with("CONNECT ") {
                conn.send("HTTP/1.1 200 Connection established\r\n\r\n");
                conn.start_tls(&config);
                service.serve(conn, None);
            } else {
                service.serve(conn, Some(head));
            }
        });
        Self { proxy, authority, client, journal }
    }

    /// Starts a daemon with a configuration, unless it is one that has its own idea of the world.
    pub(crate) fn enter(&self, configuration: &str) -> Option<Place> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_path_buf();
        for name in quoted(configuration, "file = ").into_iter().chain(quoted(configuration, "credential = ")) {
            fs::write(path.join(name), "a-secret-from-a-file").unwrap();
        }
        for (key, content) in ["ca", "cert", "key"].into_iter().zip(pems(&self.authority, &self.client)) {
            for name in quoted(configuration, &format!("\n{key} = ")) {
                let file = path.join(name.trim_start_matches("~/"));
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, &content).unwrap();
            }
        }
        for name in quoted(configuration, "extra_ca = [").into_iter().chain(["world.pem"]) {
            fs::write(path.join(name), self.authority.pem()).unwrap();
        }
        let bin = path.join("bin");
        fs::create_dir(&bin).unwrap();
        tool(&bin, "pass", "echo a-secret-from-a-program");
        tool(&bin, "docker", "exec curl --unix-socket \"${DOCKER_HOST#unix://}\" http://localhost/containers/json");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_countersign"), bin.join("countersign")).unwrap();
        // What a person would see on a terminal, and a status that tells success.
        fs::write(path.join(".curlrc"), "silent\nshow-error\nfail\nmax-time = 60\n").unwrap();

        let variables: Vec<_> = quoted(configuration, "env = ").into_iter().map(str::to_owned).collect();
        let environment = move |command: &mut Command| {
            let found = std::env::var("PATH").unwrap();
            let at = command.get_current_dir().unwrap().to_owned();
            command.env_clear().env("PATH", format!("{}:{found}", at.join("bin").display())).env("HOME", &at);
            command.env("NO_COLOR", "1").env("CREDENTIALS_DIRECTORY", &at);
            for name in &variables {
                command.env(name, "a-value-of-a-variable");
            }
        };
        // Nor can one be started here whose sockets somebody else opens.
        let is_elsewhere = ["\nproxy = ", "origins = ", "\"systemd:"].iter().any(|sign| configuration.contains(sign));
        if is_elsewhere {
            let file = write_configuration(&path, configuration);
            let mut check = Command::new("countersign");
            check.current_dir(&path);
            environment(&mut check);
            let checked = check.args(["check", "-c"]).arg(file).output().unwrap();
            assert!(checked.status.success(), "{configuration}\n{}", String::from_utf8_lossy(&checked.stderr));
            return None;
        }
        let daemon = Daemon::start_in(folder, &self.adapt(configuration), |command| {
            command.current_dir(&path);
            environment(command);
        });
        let (route, provider) = configuration.lines().rev().find_map(provider).unwrap();
        Some(Place {
            daemon,
            environment: Box::new(environment),
            route: route.to_owned(),
            provider: provider.to_owned(),
            journal: Arc::clone(&self.journal),
        })
    }

    /// The same at ports that are free, and with a way into this world.
    fn adapt(&self, configuration: &str) -> String {
        let configuration = configuration
            .replace("\"127.0.0.1:8080\", \"[::1]:8080\"", "\"127.0.0.1:0\"")
            .replace("127.0.0.1:8081", "127.0.0.1:0")
            // Not everybody is in it.
            .replace("&group=users", "");
        let keys = format!("proxy = \"http://{}\"\nextra_ca = [\"world.pem\"]\n", self.proxy.address);
        match configuration.split_once("[server]\n") {
            Some((before, after)) => format!("{before}[server]\n{keys}{after}"),
            None => format!("[server]\nlisten = [\"127.0.0.1:0\"]\n{keys}{configuration}"),
        }
    }
}

/// Where an example's command lines are typed.
pub(crate) struct Place {
    daemon: Daemon,
    environment: Box<dyn Fn(&mut Command)>,
    /// The last route.
    route: String,
    provider: String,
    journal: Arc<Mutex<Vec<Heard>>>,
}

impl Place {
    /// Runs a command line; what it asks for must reach an upstream with the credential.
    pub(crate) fn run(&self, line: &str) {
        let mut adapted = line.replace(":8080", &format!(":{}", self.daemon.address().port()));
        if line.contains(":8081") {
            adapted = adapted.replace(":8081", &format!(":{}", self.daemon.own_address(&self.route).port()));
        }
        let before = self.journal.lock().unwrap().len();
        let mut shell = Command::new("sh");
        shell.current_dir(self.daemon.folder());
        (self.environment)(&mut shell);
        let output = shell.args(["-c", &adapted]).stdin(Stdio::null()).output().unwrap();
        let [out, err] = [&output.stdout, &output.stderr].map(|octets| String::from_utf8_lossy(octets));
        assert!(output.status.success(), "{line}\n{out}{err}{}", self.daemon.log());
        if !line.contains("curl ") && !line.contains("docker ") {
            return;
        }
        let heard = self.journal.lock().unwrap()[before..].to_vec();
        let is_there = heard.iter().any(|heard| carries(heard, &self.provider));
        assert!(is_there, "{line}: no credential of {} in {heard:?}", self.provider);
    }
}

/// True if a request has what a provider adds.
fn carries(heard: &Heard, provider: &str) -> bool {
    let mark = match provider {
        "mtls" | "swarm" => return heard.has_certificate,
        "bce" => "authorization: bce-auth-v1/a-value-of-a-variable/",
        "acm" => "spas-signature: ",
        "tem" => "authorization: bearer tem-auth:",
        "huawei-token" => "x-auth-token: the token",
        "huawei-aksk" => "authorization: sdk-hmac-sha256 ",
        "acs-roa" => "authorization: acs a-value-of-a-variable:",
        "bearer" | "basic" => "authorization: b",
        "header" => "private-token: a-secret-from-a-",
        _ => panic!("what does {provider} add?"),
    };
    heard.head.to_ascii_lowercase().contains(&format!("\r\n{mark}"))
}

/// What the servers do.
struct Service {
    pems: [String; 3],
    journal: Arc<Mutex<Vec<Heard>>>,
}

impl Service {
    fn serve(&self, mut conn: Conn, mut first: Option<String>) {
        while let Some(head) = first.take().or_else(|| conn.head()) {
            if conn.body(&head).is_none() {
                return;
            }
            let has_certificate = conn.session().is_some_and(|session| session.peer_certificates().is_some());
            let reply = self.answer(&head);
            self.journal.lock().unwrap().push(Heard { head, has_certificate });
            if !conn.send(reply) {
                return;
            }
        }
    }

    fn answer(&self, head: &str) -> String {
        let target = head.split(' ').nth(1).unwrap();
        let [ca, cert, key] = &self.pems;
        let (status, headers, body) = if target.starts_with("/v3/auth/tokens") {
            let token = json!({ "token": { "expires_at": "2099-01-01T00:00:00.000000Z" } });
            ("201 Created", "X-Subject-Token: the token\r\n", token)
        } else if target.starts_with("/clusters/") && target.ends_with("/certs") {
            ("200 OK", "", json!({ "ca": ca, "cert": cert, "key": key }))
        } else if target.starts_with("/clusters/") {
            let id = target.trim_start_matches("/clusters/");
            (
                "200 OK",
                "",
                json!({ "cluster_id": id, "master_url": "https://123.123.123.123:1234", "state": "running" }),
            )
        } else if target.contains("/certkey") {
            ("200 OK", "", json!({ "ca": ca, "cert": cert, "private_key": key }))
        } else {
            ("200 OK", "", json!({}))
        };
        let body = body.to_string();
        format!(
            "HTTP/1.1 {status}\r\n{headers}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

fn server_config(authority: &Authority, names: &[&str]) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = verifier.allow_unauthenticated().build().unwrap();
    let identity = authority.server(names).unwrap();
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    builder.with_client_cert_verifier(verifier).with_single_cert(vec![identity.certificate()], identity.key()).unwrap()
}

/// The CA's certificate, a client's, and its key.
fn pems(authority: &Authority, client: &Identity) -> [String; 3] {
    [authority.pem(), client.certificate_pem(), client.key_pem(KeyFormat::Pkcs8)]
}

/// Every host that is reached over TLS.
fn names(text: &str) -> Vec<&str> {
    let mut names: Vec<_> =
        text.split("https://").skip(1).filter_map(|rest| rest.split(['"', ':', '/']).next()).collect();
    names.retain(|name| name.contains('.') && !name.contains(' '));
    names.sort_unstable();
    names.dedup();
    names
}

/// What stands in quotes behind a text.
fn quoted<'t>(text: &'t str, before: &str) -> Vec<&'t str> {
    let rest = text.split(before).skip(1);
    rest.filter_map(|rest| rest.strip_prefix('"')?.split('"').next()).collect()
}

/// The route and the provider that a table's head names.
fn provider(line: &str) -> Option<(&str, &str)> {
    let named = line.strip_prefix("[routes.")?.strip_suffix(']')?.split_once('.')?;
    (named.1 != "tls").then_some(named)
}

fn tool(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
