//! A process that has confined itself: what it can still take over, and what takes a restart.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use landlock::{AccessFs, LandlockStatus, Ruleset, RulesetAttr};
use tempfile::TempDir;

use crate::bad::is_told;
use crate::daemon::{Daemon, write_configuration};
use crate::script::{Upstream, await_that, header};
use crate::{SERVER, caller, reload};

const RESTART: &str = "restart needed: the process has confined itself";

/// What the kernel says of itself, found out on a thread that is confined for it.
fn is_available() -> bool {
    let restricted = std::thread::spawn(|| {
        let ruleset = Ruleset::default().handle_access(AccessFs::MakeFifo).unwrap();
        ruleset.create().unwrap().restrict_self().unwrap().landlock
    });
    let is_available = matches!(restricted.join().unwrap(), LandlockStatus::Available { .. });
    if !is_available {
        #[allow(clippy::print_stderr, reason = "whoever runs the tests is to know")]
        {
            eprintln!("NOT CHECKED: confinement, since this kernel has no Landlock");
        }
    }
    is_available
}

/// Answers with the token that it was shown.
fn echo() -> Upstream {
    Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            let token = header(&head, "x-auth-token").unwrap().to_owned();
            if !conn.ok(token) {
                return;
            }
        }
    })
}

fn configuration(upstream: &Upstream, secret: &str) -> String {
    let route = "[routes.up]\nupstream = \"URL\"\n[routes.up.header]\nheaders = { X-Auth-Token = { SECRET } }\n";
    SERVER.to_owned() + &route.replace("URL", &upstream.url()).replace("SECRET", secret)
}

fn written(name: &str, content: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(name), content).unwrap();
    folder
}

/// Puts a link in the place of a file at once.
fn swap_link(folder: &Path, name: &str, target: impl AsRef<Path>) {
    let new = folder.join(format!("{name}.link"));
    symlink(target, &new).unwrap();
    fs::rename(new, folder.join(name)).unwrap();
}

fn token(daemon: &Daemon) -> String {
    caller(daemon).get("/").text()
}

/// True if the kernel lets neither it nor what it starts gain privileges.
fn has_no_new_privileges(daemon: &Daemon) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    status.lines().any(|line| line == "NoNewPrivs:\t1")
}

#[test]
fn a_link_that_leads_elsewhere_is_not_followed() {
    let (upstream, outside) = (echo(), written("token", "outside"));
    let folder = written("token", "inside");
    let daemon = Daemon::start_in(folder, &configuration(&upstream, "file = \"token\""), |_| {});
    assert!(has_no_new_privileges(&daemon));
    assert_eq!(token(&daemon), "inside");
    if !is_available() {
        return;
    }
    daemon.await_log("confined: beside what is the system's");
    swap_link(daemon.folder(), "token", outside.path().join("token"));
    daemon.await_log(RESTART);
    assert_eq!(token(&daemon), "inside");
    // A folder that is new, but in one that was there.
    fs::create_dir_all(daemon.folder().join("..2/deep")).unwrap();
    fs::write(daemon.folder().join("..2/deep/token"), "deeper inside").unwrap();
    swap_link(daemon.folder(), "token", "..2/deep/token");
    await_that("the new token", || token(&daemon) == "deeper inside");
    assert!(!daemon.log().contains("ermission denied"), "{}", daemon.log());
}

#[test]
fn what_a_reload_needs_beyond_takes_a_restart() {
    let upstream = echo();
    let outside = written("token", "outside");
    let at = |name: &str| outside.path().join(name).display().to_string();
    let inside = configuration(&upstream, "file = \"token\"");
    let needs = [
        configuration(&upstream, &format!("file = \"{}\"", at("token"))),
        configuration(&upstream, "command = [\"cat\", \"DIR/token\"]"),
        inside.replace("[\"127.0.0.1:0\"]", &format!("[\"127.0.0.1:0\", \"unix:{}\"]", at("new.sock"))),
        // What is unreadable to start with is reported as what it is.
        inside.replace("[routes.up]\n", "[routes.up]\ntls.ca = \"/proc/1/mem/ca\"\n").replace("http:", "https:"),
    ];
    let (unreadable, beyond) = needs.split_last().unwrap();
    if !is_available() {
        return;
    }
    for needed in beyond {
        let mut daemon = Daemon::start_in(written("token", "inside"), &inside, |_| {});
        write_configuration(daemon.folder(), unreadable);
        await_that("a refusal", || is_told(&daemon, "/proc/1/mem/ca"));
        assert!(!daemon.log().contains(RESTART), "{}", daemon.log());
        write_configuration(daemon.folder(), needed);
        await_that("a refusal", || is_told(&daemon, RESTART));
        assert_eq!(token(&daemon), "inside", "{needed}");
        reload(&daemon, || drop(write_configuration(daemon.folder(), &(inside.clone() + "\n"))));
        daemon.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(daemon.wait().code(), Some(0));
        // The one that starts with it has it.
        let again = Daemon::start_in(written("token", "inside"), needed, |_| {});
        assert!(["inside", "outside"].contains(&token(&again).as_str()), "{needed}");
    }
}

#[test]
fn programs_that_print_secrets_read_what_they_like() {
    let (upstream, outside) = (echo(), written("token", "printed"));
    let script = format!("command = [\"cat\", \"{}\"]", outside.path().join("token").display());
    let daemon = Daemon::start(&configuration(&upstream, &script));
    assert_eq!(token(&daemon), "printed");
    assert!(daemon.log().contains("since the configuration names programs to run"), "{}", daemon.log());
    assert!(has_no_new_privileges(&daemon));
}

#[test]
fn without_the_sandbox_nothing_is_given_up() {
    let (upstream, outside) = (echo(), written("token", "outside"));
    let folder = written("token", "inside");
    let daemon = Daemon::start_in(folder, &configuration(&upstream, "file = \"token\""), |command| {
        command.arg("--no-sandbox");
    });
    swap_link(daemon.folder(), "token", outside.path().join("token"));
    await_that("the new token", || token(&daemon) == "outside");
    assert!(daemon.log().contains("not confined: --no-sandbox"), "{}", daemon.log());
    let own = fs::read_to_string("/proc/self/status").unwrap();
    assert_eq!(has_no_new_privileges(&daemon), own.contains("NoNewPrivs:\t1"));
}
