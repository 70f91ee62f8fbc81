//! `countersign demo`.

mod page;
mod scene;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::clock::Clock;
use crate::config::{self, Config};
use crate::demo::Stage;
use crate::demo::acts::{self, ACTS};
use crate::demo::upstream::{Seen, Upstream};
use crate::proxy::daemon::{Daemon, Plan, Wishes};
use crate::proxy::listen::{Address, Sharing};
use crate::proxy::state::Access;
use crate::settings::BareSecrets;

use super::ways::{Door, curl};
use super::{Failed, complain, show};
use page::{Line, Page, width};
use scene::Scene;

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
    end(runtime.and_then(|runtime| runtime.block_on(perform(arguments.once))))
}

fn end(outcome: io::Result<bool>) -> Result<(), Failed> {
    match outcome {
        Ok(true) => return Ok(()),
        Ok(false) => complain("the demonstration failed: see above what was not accepted, or not refused"),
        Err(error) => complain(format!("the demonstration could not be given: {error}")),
    }
    Err(Failed::Running)
}

async fn perform(once: bool) -> io::Result<bool> {
    let mut signals = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let clock = Clock::system();
    let stage = Stage::start(clock.clone()).await?;
    let private = fs::Permissions::from_mode(0o700);
    let folder = tempfile::Builder::new().prefix("countersign-demo-").permissions(private).tempdir()?;
    fs::write(folder.path().join("ca.pem"), stage.authority.pem())?;
    let daemon = start(&acts::configuration(&stage, &listen().to_string()), folder.path(), clock)?;
    let doors = Doors::of(&daemon)?;
    let outcome = tokio::select! {
        outcome = play(&stage.upstream, doors.shared) => outcome,
        () = ended(&mut signals) => Err(io::Error::other("it was interrupted")),
    };
    if !once && outcome.is_ok() {
        show(&invitation(&doors));
        tokio::select! {
            () = report(&stage.upstream) => {}
            () = ended(&mut signals) => {}
        }
    }
    // The upstream is on this thread: requests that still wait for it are cut off.
    let _ = daemon.drain(Duration::from_secs(1));
    outcome
}

/// The usual port makes the curl lines look as they will at home; any other works as well.
fn listen() -> SocketAddr {
    let usual = SocketAddr::from(([127, 0, 0, 1], 8080));
    let is_free = Address::Tcp(usual).bind(1, Sharing::Nobodys).is_ok();
    if is_free { usual } else { SocketAddr::from(([127, 0, 0, 1], 0)) }
}

fn start(configuration: &str, folder: &Path, clock: Clock) -> io::Result<Daemon> {
    let parsed = config::parse(configuration, &folder.join("demo.toml"), BareSecrets::Accept);
    let Config { server, routes, limits, .. } = parsed.map_err(io::Error::other)?;
    let wishes = Wishes { server, routes, limits, access: Access::Off, file: None };
    Daemon::start(Plan { wishes, others: Vec::new(), workers: 1, clock }).map_err(io::Error::other)
}

async fn ended((interrupt, terminate): &mut (Signal, Signal)) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Plays all acts and shows them; true if all went as they should.
async fn play(upstream: &Upstream, proxy: SocketAddr) -> io::Result<bool> {
    let width = width();
    let mut page = Page::new(width);
    page.title("countersign", &format!(" listens on http://{proxy}; behind it is an upstream that verifies."));
    show(page.text());
    let mut scenes = Vec::new();
    for (number, act) in (1..).zip(ACTS) {
        let scene = Scene::play(act, upstream, proxy).await?;
        let mut page = Page::new(width);
        scene.tell(number, &mut page);
        show(page.text());
        scenes.push(scene);
    }
    let is_good = scenes.iter().all(Scene::is_good);
    let mut page = Page::new(width);
    summarize(&scenes, &mut page);
    show(page.text());
    Ok(is_good)
}

fn summarize(scenes: &[Scene], page: &mut Page) {
    let rows: Vec<_> = scenes.iter().map(|scene| (scene.summary(), scene.is_good())).collect();
    let verdict = |is_good| if is_good { "as it should be" } else { "WRONG" };
    let rows: Vec<_> = rows
        .iter()
        .map(|([system, right, wrong], is_good)| ([system, right, wrong, verdict(*is_good)], *is_good))
        .map(|(row, is_good)| (row.map(AsRef::as_ref), is_good))
        .collect();
    page.pause();
    page.table(["", "right secret", "wrong secret", ""], &rows);
    if scenes.iter().all(Scene::is_good) {
        page.pause();
        page.say("All were accepted; with a wrong secret all were refused.");
    }
}

/// Where the daemon can be reached.
struct Doors {
    shared: SocketAddr,
    own: SocketAddr,
    socket: std::path::PathBuf,
}

impl Doors {
    fn of(daemon: &Daemon) -> io::Result<Self> {
        let (mut shared, mut own, mut socket) = (None, None, None);
        for (owner, address) in daemon.listening() {
            match (owner, address) {
                (None, Address::Tcp(address)) => shared = Some(*address),
                (Some(_), Address::Tcp(address)) => own = Some(*address),
                (_, Address::Unix { path, .. }) => socket = Some(path.clone()),
                _ => {}
            }
        }
        let found = shared.zip(own).zip(socket).map(|((shared, own), socket)| Self { shared, own, socket });
        found.ok_or_else(|| io::Error::other("there is nothing to listen on"))
    }
}

/// A command for each front door.
fn invitation(doors: &Doors) -> String {
    let shared = doors.shared.to_string();
    let url = |authority: String, prefix: &str| Door::Url { authority, prefix: prefix.to_owned(), named: None };
    let by_name = |route: &str| url(format!("{route}.localhost:{}", doors.shared.port()), "");
    let proxy = (doors.shared.ip().to_string(), doors.shared.port().to_string());
    let mut page = Page::new(width());
    page.pause();
    page.title("Try it yourself", ", in another terminal; Ctrl-C ends this.");
    for (what, door, target) in [
        ("a route by its name", by_name("migration"), "/v3/tasks"),
        ("by a path, for programs that do not resolve such names", url(shared, "/token"), "/v3/anything"),
        (
            "by the upstream's own name, through an HTTP proxy",
            Door::Proxied { proxy, name: "certificate.baidubce.com".to_owned() },
            "/v1/certificate",
        ),
        ("on a port of its own", url(doors.own.to_string(), ""), "/api/v1/clusters"),
        (
            "on a Unix socket of its own",
            Door::Unix { path: doors.socket.clone(), host: "localhost".to_owned() },
            "/projects/",
        ),
        ("with a wrong secret: refused", by_name("cert-wrong"), "/v1/certificate"),
    ] {
        page.command(what, &curl(&door, target));
    }
    page.pause();
    page.text().to_owned()
}

/// Shows each request that comes, for ever.
async fn report(upstream: &Upstream) {
    let mut arrivals = upstream.arrivals();
    let mut known = *arrivals.borrow_and_update();
    // The sender is the upstream's, so it is there for as long as this borrows that.
    while arrivals.changed().await.is_ok() {
        let count = *arrivals.borrow_and_update();
        let seen = upstream.seen();
        let fresh = seen.len().saturating_sub(count.saturating_sub(known));
        known = count;
        for Seen { site, method, target, verdict, .. } in seen.get(fresh..).unwrap_or_default() {
            let mut page = Page::new(width());
            let verdict = verdict.clone().map_or_else(Line::Bad, Line::Good);
            page.tell(site, [Line::Plain(format!("{method} {target}")), verdict]);
            show(page.text());
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  countersign demo
  countersign demo --once";
