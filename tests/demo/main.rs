//! `countersign demo` as people meet it: in a terminal, in a pipe, and with what it invites them to paste.

#![allow(clippy::unwrap_used, reason = "what does not work fails the test")]

#[path = "../support/daemon.rs"]
mod daemon;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::termios::{Winsize, tcsetwinsize};

/// Port 8080 is in use throughout, by this or by somebody else: no two demonstrations may race for it.
static TAKEN: LazyLock<Option<TcpListener>> = LazyLock::new(|| TcpListener::bind("127.0.0.1:8080").ok());

/// A command with a folder of its own for what it leaves behind.
fn demo(folder: &Path, arguments: &[&str]) -> Command {
    LazyLock::force(&TAKEN);
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    command.arg("demo").args(arguments).env_clear().env("TMPDIR", folder).stdin(Stdio::null());
    command
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn once_shows_what_is_sent_added_and_found() {
    let folder = tempfile::tempdir().unwrap();
    let ended = daemon::run(folder.path(), &["demo", "--once"], |command| {
        LazyLock::force(&TAKEN);
        command.env("TMPDIR", folder.path()).env("TERM", "xterm");
    });
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.out.contains(['\x1b', '\r']), "{}", ended.out);
    assert!(ended.out.lines().all(|line| line.chars().count() <= 80 && line == line.trim_end()), "{}", ended.out);
    assert!(is_empty(folder.path()));
    let (shown, expected) = (normalized(&ended.out), include_str!("once.txt"));
    assert!(shown == expected, "expected:\n{expected}\nshown:\n{shown}");
}

/// The transcript with lines that were broken put together, and 0 for what no two of them have in common: times, ports, and
/// what is random.
fn normalized(text: &str) -> String {
    let mut whole = String::new();
    for line in text.lines() {
        // A continued line begins two columns further than what it continues.
        match line.strip_prefix(CONTINUED).filter(|rest| !rest.starts_with(' ')) {
            Some(rest) => whole = format!("{} {rest}\n", whole.trim_end()),
            None => whole.extend([line, "\n"]),
        }
    }
    // What is left of a signature is random, and may hold whatever separates words.
    let parts = whole.split_inclusive('…').map(|part| match part.strip_suffix('…') {
        Some(proof) => format!("{}…", proof.get(..proof.len() - 8).unwrap()),
        None => part.to_owned(),
    });
    let whole: String = parts.collect();
    let words = whole.split_inclusive(SEPARATORS).map(|word| {
        let bare = word.trim_end_matches(SEPARATORS);
        let is_random = (bare.len() == 32 && bare.bytes().all(|digit| digit.is_ascii_hexdigit()))
            || ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"].contains(&bare)
            || MONTHS.contains(&bare);
        if is_random {
            return format!("0{}", word.strip_prefix(bare).unwrap());
        }
        let is_known = ["200", "503", "400", "403", "401", "127.0.0.1"].contains(&bare);
        let is_digit = |letter: char| letter.is_ascii_digit();
        // Numbers that are long, alone, or between the letters of a time.
        let is_number = bare.starts_with(is_digit) && bare.ends_with(|letter| is_digit(letter) || letter == 'Z');
        if is_number && !is_known { format!("0{}", word.strip_prefix(bare).unwrap()) } else { word.to_owned() }
    });
    words.collect()
}

const CONTINUED: &str = "                    ";
const SEPARATORS: [char; 6] = [' ', '\n', '/', ':', '=', ','];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// What it shows in a terminal of so many columns.
fn in_a_terminal(columns: u16, adjust: impl FnOnce(&mut Command)) -> String {
    let folder = tempfile::tempdir().unwrap();
    // Closed in what other tests start meanwhile, which openpty's would not be.
    let terminal = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let inner = OpenOptions::new().read(true).write(true).open(ptsname_r(&terminal).unwrap()).unwrap();
    tcsetwinsize(&inner, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let mut command = demo(folder.path(), &["--once"]);
    command.env("TERM", "xterm-256color").stdout(inner).stderr(Stdio::null());
    adjust(&mut command);
    let mut child = Running(command.spawn().unwrap());
    // It holds the other end too, which would never close.
    drop(command);
    let mut shown = Vec::new();
    // That the last of the others has closed its end comes as an error.
    let _ = File::from(OwnedFd::from(terminal)).read_to_end(&mut shown);
    assert_eq!(child.end().code(), Some(0));
    String::from_utf8(shown).unwrap().replace("\r\n", "\n")
}

/// A process that does not outlive its test.
struct Running(Child);

impl Running {
    /// Waits for its end.
    fn end(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < daemon::PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Without escape codes, all of which must be of the kind that sets one of the 16 colours, bold or dim, and have an end.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for (number, part) in text.split("\x1b[").enumerate() {
        let Some((code, rest)) = part.split_once('m').filter(|_| number > 0) else {
            assert_eq!(number, 0, "{part}");
            plain.push_str(part);
            continue;
        };
        assert!(["0", "1", "2", "31", "32"].contains(&code), "{code}");
        plain.push_str(rest);
    }
    plain
}

#[test]
fn a_terminal_is_shown_colours_and_no_line_too_long_for_it() {
    for columns in [60, 80] {
        let shown = in_a_terminal(columns, |_| {});
        for expected in ["\x1b[32m+ ", "\x1b[32m  200 OK", "\x1b[31m  ", "\x1b[1mcountersign\x1b[0m"] {
            assert!(shown.contains(expected), "{expected:?}: {shown:?}");
        }
        let plain = plain(&shown);
        assert!(plain.lines().all(|line| line.chars().count() <= usize::from(columns)), "{plain}");
        assert!(shown.lines().all(|line| !line.contains('\x1b') || line.contains("\x1b[0m")), "{shown:?}");
    }
}

#[test]
fn nobody_who_minds_is_shown_colours() {
    for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let shown = in_a_terminal(80, |command| {
            command.env(name, value);
        });
        assert!(shown.contains("  ok\n") && !shown.contains('\x1b'), "{name}: {shown:?}");
    }
    let shown = in_a_terminal(80, |command| {
        command.env("NO_COLOR", "");
    });
    assert!(shown.contains('\x1b'), "{shown:?}");
}

#[test]
fn it_stays_up_for_what_it_invites_to_paste() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Running(demo(folder.path(), &[]).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.by_ref().find(|line| line.starts_with("Try it yourself")).expect("an invitation");
    let mut commands = String::new();
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        assert!(line.chars().count() <= 80 || line.contains("--unix-socket"), "{line}");
        // What a command is for is not so far indented.
        if line.starts_with("    ") {
            commands += &line;
            commands += "\n";
        }
    }
    let commands = commands.replace("\\\n", "");
    let commands: Vec<_> = commands.lines().map(str::trim).collect();
    assert_eq!(commands.len(), 6, "{commands:?}");
    for (command, part) in commands.iter().zip([
        "curl http://migration.localhost:",
        "curl http://127.0.0.1:",
        "http_proxy=http://127.0.0.1:",
        "curl http://127.0.0.1:",
        "curl --unix-socket ",
        "curl http://cert-wrong.localhost:",
    ]) {
        assert!(command.starts_with(part), "{command}");
        let command = format!("{command} -sS -m 20 -o /dev/null -w '%{{http_code}}'");
        let ran = Command::new("sh").args(["-c", &command]).env_clear().env("PATH", env!("PATH")).output().unwrap();
        let expected = if part.contains("wrong") { "400" } else { "200" };
        assert_eq!(String::from_utf8_lossy(&ran.stdout), expected, "{command}: {ran:?}");
        let arrived = lines.by_ref().find(|line| line.starts_with("   arrived ")).unwrap();
        let found = lines.next().unwrap();
        assert!(found.starts_with("   found "), "{arrived}\n{found}");
        assert_eq!(found.contains("SignatureDoesNotMatch"), part.contains("wrong"), "{arrived}\n{found}");
    }
    assert!(!is_empty(folder.path()));
    kill(Pid::from_raw(i32::try_from(child.0.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(child.end().code(), Some(0));
    assert!(is_empty(folder.path()));
}
