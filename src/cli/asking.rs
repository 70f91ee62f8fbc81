//! Asking the running daemon, over its admin listener.

use std::io;
use std::path::Path;
use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::LocalOptions;
use tokio::time::timeout;

use crate::proxy::listen::Address;

use super::{ConfigFile, Failed, complain};

/// What is asked for.
#[derive(Debug, clap::Args)]
pub(super) struct About {
    #[command(flatten)]
    file: ConfigFile,
    /// Print what the daemon says in JSON, as it comes
    #[arg(long)]
    pub(super) json: bool,
    /// What is about one route alone
    name: Option<String>,
}

/// What the daemon says.
pub(super) struct Answer {
    /// The status.
    pub(super) status: StatusCode,
    /// The body.
    pub(super) body: String,
}

/// Asks the daemon of this configuration for a path.
///
/// # Errors
/// The configuration cannot be read or has no admin listener, or nobody answers there in time. It has been said.
pub(super) fn ask(file: &ConfigFile, target: &str) -> Result<Answer, Failed> {
    let config = file.load()?;
    let path = config.path.display();
    let Some(admin) = config.admin else {
        complain(format!(
            "{path}: no admin listener to ask: add `[admin]` with `listen = \"127.0.0.1:9900\"` and restart the daemon"
        ));
        return Err(Failed::Configuration);
    };
    if matches!(admin.listen, Address::Tcp(address) if address.port() == 0) {
        complain(format!("{path}: `admin.listen` has the port 0, which is another one at every start: choose one"));
        return Err(Failed::Configuration);
    }
    exchange(&admin.listen, target).map_err(|error| {
        complain(explain(&error, &admin.listen, &config.path));
        Failed::Running
    })
}

/// Asks for a route's part of what there is, or for all of it, in JSON.
///
/// # Errors
/// As for [`ask`], or what answers is no daemon of ours, or knows no such route.
pub(super) fn ask_about(about: &About, path: &str) -> Result<(Value, String), Failed> {
    let (file, route) = (&about.file, about.name.as_deref());
    if let Some(route) = route.filter(|route| !is_name(route)) {
        complain(format!("{route:?} is no name of a route: it is a-z, 0-9 and, inside, \"-\""));
        return Err(Failed::Usage);
    }
    let target = route.map_or_else(|| path.to_owned(), |route| format!("{path}?route={route}"));
    let Answer { status, body } = ask(file, &target)?;
    match (status, serde_json::from_str(&body)) {
        (StatusCode::OK, Ok(told)) => Ok((told, body)),
        (StatusCode::NOT_FOUND, _) if route.is_some() => {
            complain(line(&body));
            Err(Failed::Usage)
        }
        _ => Err(stranger(status)),
    }
}

/// Says that what answered is no daemon of ours.
pub(super) fn stranger(status: StatusCode) -> Failed {
    complain(format!("at `admin.listen` something else than this countersign answers ({status})"));
    Failed::Running
}

/// The first line of an answer, which is to steer nobody's terminal.
pub(super) fn line(body: &str) -> String {
    body.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(LINE).collect()
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-')
}

fn explain(error: &io::Error, address: &Address, path: &Path) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            format!("nobody listens on {address}: start the daemon with `countersign run -c {path}`")
        }
        io::ErrorKind::PermissionDenied => {
            format!("{address} may not be opened: ask as the user that the daemon runs as")
        }
        io::ErrorKind::TimedOut => format!("{address} gives no answer: is it countersign that listens there?"),
        _ => format!("{address} gives no answer: {error}"),
    }
}

fn exchange(address: &Address, target: &str) -> io::Result<Answer> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(async {
        let answer = async {
            match address {
                Address::Tcp(address) => converse(TcpStream::connect(address).await?, target).await,
                Address::Unix { path, .. } => converse(UnixStream::connect(path).await?, target).await,
                Address::Systemd(_) => Err(io::ErrorKind::Unsupported.into()),
            }
        };
        timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    })
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, target: &str) -> io::Result<Answer> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends with its sender, which is dropped below, or with the runtime.
    tokio::task::spawn_local(connection);
    let request = Request::get(target).header(header::HOST, "localhost").body(Empty::<Bytes>::new());
    let response = sender.send_request(request.map_err(io::Error::other)?).await.map_err(io::Error::other)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MOST).collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
}

/// How long all of it may take: the daemon answers from memory.
const PATIENCE: Duration = Duration::from_secs(10);

/// More than a hundred refusals of the longest requests take.
const MOST: usize = 256 << 20;

/// How much of a line is shown.
const LINE: usize = 1000;
