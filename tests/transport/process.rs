//! The process: signals, draining, the admin listener, what it takes from the system.

use std::fs::File;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use super::script::{Http, Upstream, await_that, request};
use super::{caller, configuration, daemon};
use crate::daemon::{Daemon, PATIENCE, connect, exchange, write_configuration};
use crate::ports::reserve;

/// An upstream that answers each request when the test sends something over the channel.
fn gated() -> (Upstream, mpsc::Sender<()>) {
    let (open, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let upstream = Upstream::start(move |mut conn| {
        while conn.request().is_some() && gate.lock().unwrap().recv_timeout(PATIENCE).is_ok() {
            conn.ok("answered");
        }
    });
    (upstream, open)
}

/// Asks the admin listener.
fn ask(daemon: &Daemon, request: &str) -> String {
    exchange(
        connect(daemon.admin_address()),
        format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
    )
}

const ADMIN: &str = r#"admin.listen = "127.0.0.1:0""#;

#[test]
fn what_is_in_flight_is_answered_before_the_end() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (upstream, open) = gated();
        let mut daemon = daemon(&upstream.url(), "", "");
        let address = daemon.address();
        let mut callers = [caller(&daemon), caller(&daemon), caller(&daemon)];
        for caller in &mut callers {
            caller.send(request("POST", "/", "with a body"));
        }
        let mut uploading = caller(&daemon);
        uploading.send("POST / HTTP/1.1\r\nHost: up.localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
        upstream.await_connections(4);
        daemon.signal(signal);
        await_that("no new callers", || TcpStream::connect(address).is_err());
        uploading.send("4\r\nhalf\r\n0\r\n\r\n");
        for _ in 0..4 {
            open.send(()).unwrap();
        }
        for caller in callers.iter_mut().chain([&mut uploading]) {
            let reply = caller.reply();
            assert_eq!((reply.status, reply.text().as_str()), (200, "answered"));
            assert!(caller.has_ended());
        }
        assert_eq!(daemon.wait().code(), Some(0));
        assert!(daemon.log().contains("everything was answered"), "{}", daemon.log());
    }
}

#[test]
fn whoever_came_before_the_signal_is_served() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    for _ in 0..10 {
        let mut daemon = daemon(&upstream.url(), "", "");
        let mut callers: Vec<_> = (0..20).map(|_| caller(&daemon)).collect();
        for caller in &mut callers {
            caller.send(request("GET", "/", ""));
        }
        daemon.signal(Signal::SIGTERM);
        for caller in &mut callers {
            assert_eq!(caller.reply().status, 200);
        }
        assert_eq!(daemon.wait().code(), Some(0));
    }
}

#[test]
fn the_end_comes_in_time_even_if_not_everything_is_answered() {
    let (upstream, _open) = gated();
    let mut daemon = daemon(&upstream.url(), r#"server.drain_timeout = "300ms""#, "");
    let mut caller = caller(&daemon);
    caller.send(request("GET", "/", ""));
    upstream.await_connections(1);
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(20), "{took:?}");
    assert!(daemon.log().contains("`server.drain_timeout` passed"), "{}", daemon.log());
    assert!(caller.try_reply().is_none());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (upstream, _open) = gated();
    let mut daemon = daemon(&upstream.url(), "", "");
    let mut caller = caller(&daemon);
    caller.send(request("GET", "/", ""));
    upstream.await_connections(1);
    daemon.signal(Signal::SIGTERM);
    daemon.await_log("told to stop by a signal");
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(daemon.log().contains("second signal"), "{}", daemon.log());
}

#[test]
fn a_delay_serves_on_while_it_says_that_it_is_not_ready() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let mut daemon = daemon(&upstream.url(), &format!("{ADMIN}\nserver.drain_delay = \"60s\""), "");
    assert!(ask(&daemon, "GET /readyz").starts_with("HTTP/1.1 200 "));
    daemon.signal(Signal::SIGTERM);
    await_that("not ready", || ask(&daemon, "GET /readyz").starts_with("HTTP/1.1 503 "));
    assert!(ask(&daemon, "GET /livez").starts_with("HTTP/1.1 200 "));
    let mut caller = caller(&daemon);
    for _ in 0..2 {
        assert_eq!(caller.get("/").status, 200);
    }
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(1));
}

#[test]
fn a_delay_ends_with_the_drain() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let mut daemon = daemon(&upstream.url(), "server.drain_delay = \"300ms\"", "");
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[test]
fn idle_callers_do_not_hold_up_the_end() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let mut daemon = daemon(&upstream.url(), r#"limits.header_timeout = "1s""#, "");
    let mut served = caller(&daemon);
    assert_eq!(served.get("/").status, 200);
    let mut silent = caller(&daemon);
    let mut slow = caller(&daemon);
    slow.send("GET / HT");
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(daemon.log().contains("everything was answered"), "{}", daemon.log());
    assert!(served.has_ended() && silent.has_ended() && slow.has_ended());
}

#[test]
fn a_hang_up_is_no_end() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let daemon = daemon(&upstream.url(), "", "");
    daemon.signal(Signal::SIGHUP);
    daemon.await_log("reloaded");
    assert_eq!(caller(&daemon).get("/").status, 200);
}

#[test]
fn the_admin_listener_answers_its_own_paths_alone() {
    let daemon = daemon("http://127.0.0.1:1", ADMIN, "");
    for (request, status) in [
        ("GET /livez", 200),
        ("HEAD /livez", 200),
        ("GET /readyz", 200),
        ("GET /readyz?verbose", 200),
        ("POST /livez", 405),
        ("GET /quit", 405),
        ("POST /quit", 403),
        ("GET /", 200),
        ("GET /up/", 404),
    ] {
        let reply = ask(&daemon, request);
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {reply}");
    }
    assert!(ask(&daemon, "POST /quit").contains("`admin.quit`"));
}

#[test]
fn the_admin_listener_ends_the_daemon_if_it_may() {
    let mut daemon = daemon("http://127.0.0.1:1", &format!("{ADMIN}\nadmin.quit = true"), "");
    assert!(ask(&daemon, "GET /quit").starts_with("HTTP/1.1 405 "));
    assert!(ask(&daemon, "POST /quit").starts_with("HTTP/1.1 200 "));
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn the_admin_listener_is_guarded() {
    let mut daemon = daemon("http://127.0.0.1:1", &format!("{ADMIN}\nadmin.quit = true"), "");
    let admin = daemon.admin_address();
    for (headers, status, code) in [
        ("Host: evil.example\r\n", 421, "unknown_host"),
        ("Host: localhost\r\nHost: localhost\r\n", 400, "bad_request"),
        ("Host: localhost\r\nOrigin: http://evil.example\r\n", 403, "cross_site"),
        ("Host: localhost\r\nSec-Fetch-Site: cross-site\r\n", 403, "cross_site"),
        ("Host: localhost\r\nOrigin: null\r\n", 403, "cross_site"),
        ("", 400, "bad_request"),
    ] {
        let mut http = Http::new(connect(admin));
        http.send(format!("POST /quit HTTP/1.1\r\n{headers}Content-Length: 0\r\n\r\n"));
        let reply = http.reply();
        assert_eq!((reply.status, reply.code()), (status, Some(code)), "{headers:?}");
    }
    assert!(ask(&daemon, "GET /readyz").starts_with("HTTP/1.1 200 "));
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn the_admin_listener_may_be_a_unix_socket() {
    let mut daemon = daemon("http://127.0.0.1:1", r#"admin.listen = "unix:DIR/admin.sock""#, "");
    let path = daemon.folder().join("admin.sock");
    let request = "GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert!(exchange(UnixStream::connect(&path).unwrap(), request).starts_with("HTTP/1.1 200 "));
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn the_unix_sockets_of_a_killed_daemon_are_replaced() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let folder = tempfile::tempdir().unwrap();
    let (path, admin) = (folder.path().join("cs.sock"), folder.path().join("admin.sock"));
    let configuration = format!(
        r#"
        server.listen = ["unix:{}"]
        admin.listen = "unix:{}"
        [routes.up]
        upstream = "{}"
        [routes.up.header]
        headers = {{ "X-Auth-Token" = "t" }}
        "#,
        path.display(),
        admin.display(),
        upstream.url()
    );
    let get = "GET /up/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let ask = || exchange(UnixStream::connect(&path).unwrap(), get);
    drop(Daemon::start(&configuration));
    assert!(path.exists() && admin.exists(), "killed, it cannot have removed them");
    let mut daemon = Daemon::start(&configuration);
    assert!(ask().starts_with("HTTP/1.1 200 "));
    let (code, log) = run_to_its_end(&configuration);
    assert_eq!(code, Some(1));
    assert!(log.contains("another process does"), "{log}");
    assert!(ask().starts_with("HTTP/1.1 200 "), "the one that lives keeps its socket");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!path.exists() && !admin.exists());
}

#[test]
fn the_limit_of_open_files_is_raised_as_far_as_it_may_be() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &configuration(&upstream.url(), "", ""), |command| {
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -Sn 64; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
        limited.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).env("NO_COLOR", "1");
        *command = limited;
    });
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut values = line.split_whitespace();
    let (soft, hard) = (values.next(), values.next());
    assert_eq!(soft, hard);
    let mut callers: Vec<_> = (0..100).map(|_| caller(&daemon)).collect();
    assert!(callers.iter_mut().all(|caller| caller.get("/").status == 200));
}

#[test]
fn neither_a_core_nor_a_process_of_the_same_user_gets_at_its_memory() {
    /// Whoever is root may read everything: then all of it is played as somebody else.
    fn as_one_user(command: &mut Command) -> &mut Command {
        if nix::unistd::geteuid().is_root() { command.uid(65534).gid(65534) } else { command }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let daemon = Daemon::start_in(folder, &configuration("http://127.0.0.1:1", "", ""), |command| {
        if nix::unistd::geteuid().is_root() {
            for path in [path.join("countersign.toml"), path] {
                chown(path, Some(65534), Some(65534)).unwrap();
            }
            // An open file can be run even where others cannot enter its folder.
            let mut other = Command::new("/proc/self/fd/0");
            other.args(command.get_args()).stdin(File::open(command.get_program()).unwrap());
            other.stdout(Stdio::null()).stderr(Stdio::piped()).env("NO_COLOR", "1");
            *command = other;
        }
        as_one_user(command);
    });
    let may_open = |pid: u32, name: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", ": < \"$0\"", &format!("/proc/{pid}/{name}")]).stderr(Stdio::null());
        as_one_user(&mut shell).status().unwrap().success()
    };
    let mut other = as_one_user(Command::new("sleep").arg("60")).spawn().unwrap();
    let is_open = ["environ", "maps"].map(|name| may_open(other.id(), name));
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(is_open, [true, true], "of any other process they can be opened");
    let pid = u32::try_from(daemon.pid().as_raw()).unwrap();
    for name in ["environ", "maps", "mem"] {
        assert!(!may_open(pid, name), "{name}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(line.split_whitespace().take(2).collect::<Vec<_>>(), ["0", "0"]);
    assert!(!daemon.log().contains("WARN"), "{}", daemon.log());
}

/// Runs the daemon where it is expected to end by itself; its exit code and its log.
fn run_to_its_end(configuration: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = write_configuration(folder.path(), configuration);
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    command.arg("run").arg("-c").arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.env("NO_COLOR", "1").spawn().unwrap();
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut log = String::new();
    child.stderr.unwrap().read_to_string(&mut log).unwrap();
    (status.code(), log)
}

fn listening_at(address: SocketAddr) -> String {
    format!("server.listen = [\"{address}\"]\nroutes = {{}}")
}

#[test]
fn a_port_that_another_process_listens_on_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let shared = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    shared.set_reuse_port(true).unwrap();
    shared.set_reuse_address(true).unwrap();
    shared.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    shared.listen(16).unwrap();
    let daemon = daemon("http://127.0.0.1:1", ADMIN, "");
    for address in [
        taken.local_addr().unwrap(),
        shared.local_addr().unwrap().as_socket().unwrap(),
        daemon.address(),
        daemon.admin_address(),
    ] {
        let (code, log) = run_to_its_end(&listening_at(address));
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(&format!("cannot listen on {address}: another process does")), "{log}");
        let (code, log) = run_to_its_end(&format!("server.listen = [\"127.0.0.1:0\"]\nadmin.listen = \"{address}\""));
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(&format!("cannot listen on {address}: another process does")), "{log}");
    }
}

#[test]
fn a_route_that_leads_back_to_us_is_a_bad_gateway_that_says_so() {
    let ((shared, _first), (own, _second), (admin, _third)) = (reserve(), reserve(), reserve());
    let route = |name: &str, upstream: String| {
        format!(
            "[routes.{name}]\nupstream = \"http://{upstream}\"\n[routes.{name}.header]\nheaders = {{ X-A = \"t\" }}\n"
        )
    };
    let configuration = [
        format!("server.listen = [\"{shared}\"]\nadmin.listen = \"{admin}\"\n"),
        route("shared", shared.to_string()),
        route("named", format!("localhost:{}", shared.port())),
        route("own", own.to_string())
            .replace("[routes.own.header]", &format!("listen = [\"{own}\"]\n[routes.own.header]")),
        route("admin", admin.to_string()),
    ];
    let daemon = Daemon::start(&configuration.concat());
    for name in ["shared", "named", "own", "admin"] {
        let mut caller = caller(&daemon);
        caller.send(format!("GET /{name}/livez HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let message = caller.reply().expect(502, "upstream_unreachable");
        assert!(message.contains("one of countersign's own listeners"), "{name}: {message}");
    }
}
