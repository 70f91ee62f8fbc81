//! `countersign demo`.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::clock::Clock;
use crate::config::{self, Config};
use crate::demo::Stage;
use crate::demo::acts::{self, ACTS, Act};
use crate::demo::certificates::{Authority, KeyFormat};
use crate::demo::upstream::Seen;
use crate::proxy::daemon::{Daemon, Plan, Wishes};
use crate::proxy::handed::Handed;
use crate::proxy::listen::{Address, Sharing};
use crate::proxy::state::Access;
use crate::settings::BareSecrets;

use super::{Failed, complain, print};

/// Show signed requests being accepted by an upstream that verifies them; needs no configuration
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// End after the demonstration instead of staying up for requests of your own
    #[arg(long)]
    once: bool,
}

/// Plays every act; fails unless each was accepted, and refused with a wrong secret.
pub(super) fn main(arguments: &Arguments) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.and_then(|runtime| runtime.block_on(play(arguments.once)));
    match outcome {
        Ok(true) => Ok(()),
        Ok(false) => {
            complain("the demonstration failed: see above what was not accepted, or not refused");
            Err(Failed::Running)
        }
        Err(error) => {
            complain(format!("the demonstration could not be given: {error}"));
            Err(Failed::Running)
        }
    }
}

async fn play(once: bool) -> io::Result<bool> {
    let clock = Clock::system();
    let stage = Stage::start(clock.clone()).await?;
    let private = fs::Permissions::from_mode(0o700);
    let folder = tempfile::Builder::new().prefix("countersign-demo-").permissions(private).tempdir()?;
    let daemon = start(&stage, folder.path(), clock)?;
    let address = daemon.listening().find_map(|(_, address)| match address {
        Address::Tcp(address) => Some(*address),
        _ => None,
    });
    let address = address.ok_or_else(|| io::Error::other("there is nothing to listen on"))?;
    print(format!("countersign listens on http://{address}, an upstream that verifies waits behind it.\n"));
    let mut is_good = true;
    for (number, act) in ACTS.iter().enumerate() {
        let (text, as_it_should) = act_out(act, &stage, address).await?;
        is_good &= as_it_should;
        print(format!("\n{}. {}\n{text}", number + 1, act.title));
    }
    if is_good {
        print("\nAll were accepted; with a wrong secret all were refused.\n");
    }
    if !once {
        print(invitation(address));
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
    let _ = daemon.drain(Duration::from_secs(1));
    Ok(is_good)
}

fn start(stage: &Stage, folder: &Path, clock: Clock) -> io::Result<Daemon> {
    let stranger = Authority::new("another CA").and_then(|authority| authority.client("stranger"));
    let stranger = stranger.map_err(io::Error::other)?;
    for (name, content) in [
        ("ca.pem", stage.authority.pem()),
        ("cert.pem", stage.client.certificate_pem()),
        ("key.pem", stage.client.key_pem(KeyFormat::Pkcs8)),
        ("wrong-cert.pem", stranger.certificate_pem()),
        ("wrong-key.pem", stranger.key_pem(KeyFormat::Pkcs8)),
    ] {
        fs::write(folder.join(name), content)?;
    }
    let text = acts::configuration(stage);
    let parsed = config::parse(&text, &folder.join("demo.toml"), BareSecrets::Accept);
    let Config { mut server, routes, limits, .. } = parsed.map_err(io::Error::other)?;
    // The usual port makes the curl lines look as they will at home; any other works as well.
    if server.listen.iter().any(|address| address.bind(1, Sharing::Nobodys).is_err()) {
        server.listen = vec![Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))];
    }
    let wishes = Wishes { server, routes, limits, access: Access::Off, file: None };
    Daemon::start(Plan { wishes, others: Vec::new(), handed: Handed::default(), workers: 1, clock })
        .map_err(io::Error::other)
}

/// What there is to tell of an act, and whether it went as it should.
async fn act_out(act: &Act, stage: &Stage, address: SocketAddr) -> io::Result<(String, bool)> {
    let mut text = String::new();
    let sent = request(act, act.route, address);
    let reply = call(address, &sent).await?;
    let seen = stage.upstream.last_seen();
    tell(&mut text, "the caller sent", sent.trim_end());
    let verdict = seen.as_ref().map(|seen| {
        tell(&mut text, "the upstream got", &arrived(act, seen));
        seen.verdict.clone()
    });
    let found = match &verdict {
        Some(Ok(found)) => found.clone(),
        Some(Err(refusal)) => format!("REFUSED: {refusal}"),
        None => "NOTHING: the request did not arrive".to_owned(),
    };
    tell(&mut text, "it found", &format!("{found}; it answered {}", status(&reply)));
    let refusal = call(address, &request(act, &format!("{}-wrong", act.route), address)).await?;
    let judged = stage.upstream.last_seen().and_then(|seen| seen.verdict.err());
    let words = judged.unwrap_or_else(|| own_words(&refusal));
    tell(&mut text, "a wrong secret", &format!("refused: {}, {words}", status(&refusal)));
    let is_good = matches!(verdict, Some(Ok(_))) && is_success(&reply) && !is_success(&refusal);
    Ok((text, is_good))
}

fn request(act: &Act, route: &str, address: SocketAddr) -> String {
    let (method, target, port) = (act.method, act.target, address.port());
    let mut request = format!("{method} {target} HTTP/1.1\r\nHost: {route}.localhost:{port}\r\nConnection: close\r\n");
    if let Some(body) = act.body {
        let _ = write!(request, "Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    format!("{request}\r\n{}", act.body.unwrap_or_default())
}

fn arrived(act: &Act, seen: &Seen) -> String {
    let mut text = format!("{} {} HTTP/1.1", seen.method, seen.target);
    for (name, value) in &seen.headers {
        let is_masked = act.masked.contains(&name.as_str());
        let value = if is_masked { "********".into() } else { String::from_utf8_lossy(value.as_bytes()) };
        let _ = write!(text, "\n{name}: {value}");
    }
    if let Some(client) = &seen.client {
        let _ = write!(text, "\n(over TLS, with the certificate of \"{client}\")");
    }
    text
}

fn tell(text: &mut String, label: &str, lines: &str) {
    for (number, line) in lines.lines().enumerate() {
        let label = if number == 0 { label } else { "" };
        let _ = writeln!(text, "   {label:17} {line}");
    }
}

async fn call(address: SocketAddr, request: &str) -> io::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await?;
        Ok(String::from_utf8_lossy(&reply).into_owned())
    };
    timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn status(reply: &str) -> &str {
    reply.lines().next().and_then(|line| line.split_once(' ')).map_or("nothing", |(_, status)| status)
}

fn is_success(reply: &str) -> bool {
    status(reply).starts_with('2')
}

/// What countersign itself says in an answer of its own.
fn own_words(reply: &str) -> String {
    let body = reply.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let parsed = serde_json::from_str::<serde_json::Value>(body).unwrap_or_default();
    let message = parsed.get("error").and_then(|error| error.get("message")).and_then(|message| message.as_str());
    message.unwrap_or("without a word").to_owned()
}

fn invitation(address: SocketAddr) -> String {
    let port = address.port();
    format!(
        "\nTry it yourself, and press Ctrl-C to end:\n\
         \n  curl http://cert.localhost:{port}/v1/certificate\
         \n  curl http://127.0.0.1:{port}/token/v3/anything\
         \n  curl http://cluster.localhost:{port}/projects/\
         \n  curl -i http://cert-wrong.localhost:{port}/v1/certificate\n"
    )
}

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  countersign demo
  countersign demo --once";
