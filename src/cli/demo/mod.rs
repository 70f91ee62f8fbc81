//! `countersign demo`.

mod page;
mod scene;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::clock::Clock;
use crate::config::{self, Config};
use crate::demo::Stage;
use crate::demo::acts::{self, ACTS};
use crate::demo::upstream::{Seen, Upstream};
use crate::proxy::daemon::{Daemon, Plan, Wishes};
use crate::proxy::listen::Address;
use crate::proxy::state::Access;
use crate::settings::BareSecrets;

use super::ways::{Door, curl};
use super::{Failed, complain, show};
use page::{Line, Page, width};
use scene::{Scene, brief};

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
    // The usual port makes the curl lines look as they will at home; any other works as well.
    let begin = |port| start(&acts::configuration(&stage, port), &stage, folder.path(), &clock);
    let daemon = begin(8080).or_else(|_| begin(0))?;
    let doors = Doors::of(&daemon)?;
    let outcome = tokio::select! {
        outcome = play(&stage.upstream, doors.shared, width(), show) => outcome,
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

fn start(configuration: &str, stage: &Stage, folder: &Path, clock: &Clock) -> io::Result<Daemon> {
    fs::write(folder.join("ca.pem"), stage.authority.pem())?;
    let parsed = config::parse(configuration, &folder.join("demo.toml"), BareSecrets::Accept);
    let Config { server, routes, limits, .. } = parsed.map_err(io::Error::other)?;
    let wishes = Wishes { server, routes, limits, access: Access::Off, file: None };
    Daemon::start(Plan { wishes, others: Vec::new(), workers: 1, clock: clock.clone() }).map_err(io::Error::other)
}

async fn ended((interrupt, terminate): &mut (Signal, Signal)) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Plays all acts and shows them; true if all went as they should.
async fn play(upstream: &Upstream, proxy: SocketAddr, width: usize, mut show: impl FnMut(&str)) -> io::Result<bool> {
    let mut page = Page::new(width);
    page.title("countersign", &format!(" on http://{proxy}, an upstream that verifies behind it"));
    show(page.text());
    let mut scenes = Vec::new();
    for (number, act) in (1..).zip(ACTS) {
        let scene = Scene::play(act, upstream, proxy).await?;
        let mut page = Page::new(width);
        scene.tell(number, &mut page);
        show(page.text());
        scenes.push(scene);
    }
    let mut page = Page::new(width);
    let is_good = summarize(&scenes, &mut page);
    show(page.text());
    Ok(is_good)
}

fn summarize(scenes: &[Scene], page: &mut Page) -> bool {
    let rows: Vec<_> = scenes.iter().map(|scene| (scene.summary(page.is_narrow()), scene.is_good())).collect();
    page.pause();
    page.table(["", "right secret", "wrong secret"], &rows);
    let is_good = rows.iter().all(|(_, is_good)| *is_good);
    if is_good {
        page.pause();
        page.say("All were accepted; with a wrong secret all were refused.");
    }
    is_good
}

/// Where the daemon can be reached.
struct Doors {
    shared: SocketAddr,
    own: SocketAddr,
    socket: PathBuf,
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
            let verdict =
                verdict.as_ref().map_or_else(|words| Line::Bad(words.clone()), |found| Line::Good(brief(found)));
            page.tell("arrived", [Line::Plain(format!("{method} {target}, at \"{site}\""))]);
            page.tell("found", [verdict]);
            show(page.text());
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  countersign demo
  countersign demo --once";

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    /// Plays before an upstream with this done to the configuration: what is shown, and how it ends.
    async fn played(change: impl FnOnce(&Stage, String) -> String) -> (Stage, String, Result<(), Failed>) {
        let stage = Stage::start(Clock::system()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let configuration = change(&stage, acts::configuration(&stage, 0));
        let daemon = start(&configuration, &stage, folder.path(), &Clock::system()).unwrap();
        let doors = Doors::of(&daemon).unwrap();
        let mut shown = String::new();
        let outcome = play(&stage.upstream, doors.shared, 80, |text| shown.push_str(text)).await;
        let shown = anstream::adapter::strip_str(&shown).to_string();
        let _ = daemon.drain(Duration::from_secs(1));
        (stage, shown, end(outcome))
    }

    #[tokio::test]
    async fn all_is_well_and_no_secret_is_shown() {
        let (stage, shown, end) = played(|_, text| text).await;
        assert_eq!(end, Ok(()), "{shown}");
        let seen = stage.upstream.seen();
        let proofs = ["authorization", "x-auth-token", "spas-signature"];
        let proofs = seen.iter().flat_map(|seen| proofs.iter().filter_map(|name| seen.headers.get(*name)));
        let is_other = |letter: char| !(letter.is_ascii_alphanumeric() || "+/".contains(letter));
        let longest = |value: &'_ http::HeaderValue| {
            value.to_str().unwrap().split(is_other).max_by_key(|part| part.len()).unwrap().to_owned()
        };
        let mut secrets: Vec<_> = proofs.map(longest).collect();
        assert!(secrets.len() >= 12, "{secrets:?}");
        let of_stage = [&stage.access_key.secret_key, &stage.password, &stage.token];
        secrets.extend(of_stage.map(|secret| secret.expose_secret().to_owned()));
        for secret in secrets {
            let end = secret.get(secret.len() - 10..).unwrap();
            assert!(!shown.contains(end), "{secret}\n{shown}");
        }
    }

    #[tokio::test]
    async fn what_is_refused_with_the_right_secret_is_a_failure() {
        let wrong = |stage: &Stage, text: String| text.replace(stage.access_key.secret_key.expose_secret(), "other");
        let (_, shown, end) = played(wrong).await;
        assert_eq!(end, Err(Failed::Running), "{shown}");
        assert_eq!((shown.matches("WRONG").count(), shown.matches("  ok\n").count()), (ACTS.len() - 1, 1), "{shown}");
    }

    #[tokio::test]
    async fn what_is_accepted_with_a_wrong_secret_is_a_failure() {
        let right = |stage: &Stage, text: String| {
            text.replace("password = \"wrong\"", &format!("password = \"{}\"", stage.password.expose_secret()))
        };
        let (_, shown, end) = played(right).await;
        assert_eq!(end, Err(Failed::Running), "{shown}");
        assert_eq!(shown.matches("WRONG").count(), 1, "{shown}");
    }
}
