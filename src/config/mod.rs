//! What the file says: from text to types that cannot hold nonsense, every mistake with its place.
//!
//! Nothing here opens a file that the configuration names, reads a secret or binds a port.

mod address;
mod callers;
mod claims;
mod file;
mod headers;
mod route;
mod server;
mod tls;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::proxy::{Limits, RouteSettings, ServerSettings, listen};
use crate::settings::{BareSecrets, Reader, Remark, Table};

use claims::Claims;

pub use file::{NotFound, locate};

/// The example that explains every key: `config/countersign.toml`.
pub const EXAMPLE: &str = include_str!("../../config/countersign.toml");

/// A configuration without mistakes: secrets not read yet, files not opened.
#[derive(Debug)]
pub struct Config {
    /// The file, as it was named.
    pub path: PathBuf,
    /// The listeners that all routes share.
    pub server: ServerSettings,
    /// Threads that serve; 0 is one a core.
    pub workers: usize,
    /// How long requests may go on after the daemon was told to end.
    pub drain_timeout: Duration,
    /// How long the daemon still accepts requests after it was told to end.
    pub drain_delay: Duration,
    /// The admin listener, if there is one.
    pub admin: Option<Admin>,
    /// What is logged.
    pub log: Log,
    /// What callers may use at most.
    pub limits: Limits,
    /// The routes, in the order of the file.
    pub routes: Vec<RouteSettings>,
    /// The environment variables that secrets are kept in, and names beside them.
    pub secret_variables: BTreeSet<String>,
    /// What is legal but unwise, or not in effect yet, in the order of the file.
    pub warnings: Vec<Remark>,
}

/// The admin listener.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Its address: loopback or a Unix socket.
    pub listen: listen::Address,
    /// True if `POST /quit` ends the daemon.
    pub quit: bool,
}

/// What is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least important level of our own code that is still logged.
    pub level: tracing::Level,
    /// How a line looks.
    pub format: Format,
    /// True for a line a request.
    pub access: bool,
    /// True if that line shows the query.
    pub query: bool,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

/// A configuration that cannot be used, and everything that is wrong with it.
#[derive(Debug)]
pub struct Invalid {
    /// The file, as it was named.
    pub path: PathBuf,
    /// What is wrong, in the order of the file; at least one.
    pub remarks: Vec<Remark>,
    /// What could be read all the same, for whoever looks for still more mistakes.
    pub rest: Option<Box<Config>>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, remark) in self.remarks.iter().enumerate() {
            let end = if at == 0 { "" } else { "\n" };
            write!(f, "{end}{}", remark.of(&self.path))?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

/// Reads a configuration file.
///
/// # Errors
/// The file cannot be read, or everything that is wrong in it.
pub fn load(path: &Path) -> Result<Config, Invalid> {
    let invalid = |remark| Invalid { path: path.to_owned(), remarks: vec![remark], rest: None };
    let file::Contents { text, bare_secrets, warning } = file::read(path).map_err(invalid)?;
    let mut config = parse(&text, path, bare_secrets)?;
    config.warnings.splice(..0, warning);
    Ok(config)
}

/// Reads a configuration out of text, as if it stood in the file `path`, which need not exist.
///
/// # Errors
/// Everything that is wrong in it.
pub fn parse(text: &str, path: &Path, bare_secrets: BareSecrets) -> Result<Config, Invalid> {
    let folder = file::folder(path);
    let reader = Reader::new(text, &folder, bare_secrets);
    let document = reader.parse();
    let config = (!reader.is_guess()).then(|| read(Table::root(&reader, &document), path));
    let secret_variables = reader.secret_variables();
    let (errors, warnings) = reader.into_remarks();
    let config = config.map(|config| Config { secret_variables, warnings, ..config });
    match config {
        Some(config) if errors.is_empty() => Ok(config),
        rest => Err(Invalid { path: path.to_owned(), remarks: errors, rest: rest.map(Box::new) }),
    }
}

/// Reads what can be read; whatever is left out was noted.
fn read(root: Table<'_>, path: &Path) -> Config {
    let mut claims = Claims::default();
    let shared = server::shared(root.section("server"), &mut claims);
    let admin = server::admin(root.section("admin"), &mut claims);
    let log = server::log(root.section("log"));
    let limits = server::limits(root.section("limits"));
    let (place, named) = match root.get("routes") {
        Some(value) => (value.key_place(), value.table().map(|table| table.rest())),
        None => (root.place(), None),
    };
    let named = named.unwrap_or_default();
    if named.is_empty() {
        root.reader().warning_at(place, "no routes: every request will be answered with 421 until there is one");
    }
    let routes =
        named.iter().filter_map(|(name, value)| route::read(name, value, &shared.proxy, &mut claims)).collect();
    claims.check(&shared.settings.domains, shared.allow_remote);
    root.finish();
    Config {
        path: path.to_owned(),
        server: shared.settings,
        workers: shared.workers,
        drain_timeout: shared.drain_timeout,
        drain_delay: shared.drain_delay,
        admin,
        log,
        limits,
        routes,
        secret_variables: BTreeSet::new(),
        warnings: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::upstream::tls::Verify;
    use crate::upstream::{Host, Timeouts};

    const CONTRACT: &str = include_str!("../../tests/config/design.toml");

    fn read(text: &str) -> Config {
        parse(text, Path::new("/etc/countersign.toml"), BareSecrets::Refuse)
            .unwrap_or_else(|invalid| panic!("{invalid}"))
    }

    #[test]
    fn the_contracts_values_are_the_defaults() {
        let (contract, empty) = (read(CONTRACT), read(""));
        let shared = |config: &Config| {
            let Config { server, workers, drain_timeout, drain_delay, log, limits, .. } = config;
            format!("{:?}", (server, workers, drain_timeout, drain_delay, log, limits))
        };
        assert_eq!(shared(&contract), shared(&empty));
        assert!(contract.admin.is_some_and(|admin| !admin.quit));
        assert!(empty.admin.is_none());
    }

    #[test]
    fn the_contracts_routes_are_read_in_full() {
        let config = read(CONTRACT);
        let [cert, cluster] = config.routes.as_slice() else { panic!("expected two routes") };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let defaults =
            Timeouts { connect: seconds(5), response: seconds(60), body: seconds(60), pool_idle: seconds(60) };
        assert_eq!((cert.name.as_str(), cert.place.line, cert.timeouts), ("cert", 31, defaults));
        assert_eq!(cert.connect, Some((Host::parse("10.0.0.7").unwrap(), 80)));
        assert_eq!(cert.hosts, [(Host::parse("certificate.baidubce.com").unwrap(), None)]);
        let socket = listen::Address::Unix { path: "/etc/cert.sock".into(), mode: None, group: None };
        assert_eq!(cert.listen, [listen::Address::Tcp("127.0.0.1:8081".parse().unwrap()), socket]);
        assert_eq!(cert.allow.as_ref().map(Vec::len), Some(2));
        assert!(
            cert.callers.as_ref().is_some_and(|callers| callers.token.is_some() && callers.uid == Some(vec![1000]))
        );
        assert_eq!(cert.headers.len(), 1);
        assert_eq!(cluster.upstream.first().map(ToString::to_string).unwrap(), "https://123.123.123.123:1234");
        assert_eq!(cluster.timeouts, Timeouts { response: None, body: seconds(3600), ..defaults });
        assert_eq!(cluster.tls.verify, Verify::CaOnly);
        assert!(cluster.tls.identity.is_some());
        assert_eq!([cert.registration.name, cluster.registration.name], ["bce", "mtls"]);
    }

    #[test]
    fn a_file_is_read_with_its_name_in_every_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("countersign.toml");
        let shown = path.display();
        std::fs::write(&path, "[log]\nlevel = 1\nformat = 2\n").unwrap();
        let expected = format!(
            "{shown}:2:9: `log.level`: expected a string in quotes\n\
             {shown}:3:10: `log.format`: expected a string in quotes"
        );
        assert_eq!(load(&path).unwrap_err().to_string(), expected);
        assert!(load(folder.path()).unwrap_err().to_string().ends_with("it is a folder, expected a file"));
        std::fs::write(&path, "").unwrap();
        assert_eq!(load(&path).unwrap().path, path);
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in ".*", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for text in [text.as_str(), &String::from_utf8_lossy(&bytes)] {
                try_to_read(text);
            }
        }

        #[test]
        fn no_file_is_too_broken(
            edits in proptest::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<prop::sample::Index>()), 1..12),
        ) {
            const PIECES: [&str; 16] =
                ["\"", "'", "[", "]", "{", "}", "=", ".", "\n", "é", "\0", "[[routes]]\n", "unix:?", "://", "@:", "\"\"\""];
            let mut lines: Vec<String> = CONTRACT.lines().map(str::to_owned).collect();
            for (at, how, other) in edits {
                let (from, to) = (other.index(lines.len()), at.index(lines.len()));
                match how {
                    0 => drop(lines.remove(to)),
                    1 => lines.insert(to, lines[from].clone()),
                    2 => lines.swap(from, to),
                    _ => {
                        let places: Vec<_> = lines[to].char_indices().map(|(place, _)| place).chain([0]).collect();
                        lines[to].insert_str(places[other.index(places.len())], PIECES[other.index(PIECES.len())]);
                    }
                }
                lines.push(String::new());
            }
            try_to_read(&lines.join("\n"));
        }
    }

    fn try_to_read(text: &str) {
        let mut shown = String::new();
        match parse(text, Path::new("f"), BareSecrets::Warn) {
            Ok(config) => write!(shown, "{config:?}").unwrap(),
            Err(invalid) => {
                assert!(!invalid.remarks.is_empty(), "wrong, but for no reason");
                write!(shown, "{invalid}").unwrap();
            }
        }
    }
}
