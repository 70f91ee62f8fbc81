//! Who calls, by the kernel's word.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Gid, Uid, geteuid, getgid, getgroups, getuid};
use rustix::thread::set_thread_res_uid;

use crate::daemon::{Daemon, connect, write_configuration};
use crate::scene::{Reply, Scene, ask, connect_unix};

/// Users and a group that the machine need not know.
const ANOTHER: u32 = 54_321;
const STRANGER: u32 = 54_322;
const GROUP: u32 = 54_323;

fn head(route: &str) -> String {
    format!("GET /v1/certificate HTTP/1.1\nHost: {route}.localhost\nAuthorization: Bearer sesame")
}

/// Calls as another user, which takes a superuser: the thread becomes it for good.
fn ask_as(user: u32, address: SocketAddr, head: &str) -> Reply {
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let user = rustix::process::Uid::from_raw(user);
            set_thread_res_uid(user, user, user).unwrap();
            ask(connect(address), head)
        });
        asked.join().unwrap()
    })
}

/// Calls as a member of the group. A thread that joins one, as the C library has it, makes all others join it, whose system
/// calls it interrupts.
fn ask_joined(socket: &Path, route: &str) -> Reply {
    let mut command = Command::new("setpriv");
    command.args([&format!("--groups={GROUP}"), "curl", "-si", "--max-time", "60", "--unix-socket"]).arg(socket);
    let output = command.arg(format!("http://{route}.localhost/v1/certificate")).output().unwrap();
    Reply::parse(&String::from_utf8(output.stdout).unwrap())
}

fn expect(reply: &Reply, is_welcome: bool, context: &str) {
    if is_welcome {
        assert_eq!((reply.status, reply.header("x-countersign-error")), (200, None), "{context}: {reply:?}");
    } else {
        let refusal = reply.refused();
        assert_eq!((refusal.status, refusal.code.as_str()), (403, "caller_denied"), "{context}: {refusal:?}");
    }
}

#[test]
fn callers_on_tcp_are_who_made_their_sockets() {
    let scene = Scene::new();
    let user = getuid().as_raw();
    let routes = [
        ("own", format!("uid = [{STRANGER}, {user}]"), true, false),
        ("another", format!("uid = [{ANOTHER}]"), false, true),
        ("both", format!("uid = [{user}, {ANOTHER}]"), true, true),
        ("stranger", format!("uid = [{STRANGER}]"), false, false),
        ("near", format!("uid = [{user}], net = [\"127.0.0.0/8\", \"::1\"]"), true, false),
        ("far", format!("uid = [{user}], net = [\"10.0.0.0/8\"]"), false, false),
        // Groups are not known on TCP, whosever they are.
        ("group", format!("gid = [{}]", getgid()), false, false),
    ];
    let tables = routes.each_ref().map(|(name, callers, ..)| {
        let listen = "listen = [\"127.0.0.1:0\", \"unix:DIR/NAME.sock\"]".replace("NAME", name);
        scene.bce(name, &format!("callers = {{ {callers} }}\n{listen}"))
    });
    let tables = tables.concat();
    let addresses = ["127.0.0.1:0", "[::1]:0"];
    for listen in addresses.into_iter().filter(|address| TcpListener::bind(address).is_ok()) {
        let daemon = scene.start_listening(&format!("listen = [\"{listen}\"]"), &tables);
        for (name, _, is_welcome, is_other_welcome) in &routes {
            for address in [daemon.address(), daemon.own_address(name)] {
                let before = scene.count();
                let near_alone = *name == "near" || *name == "far";
                expect(&ask(connect(address), &head(name)), *is_welcome, name);
                let mut welcome = usize::from(*is_welcome);
                if geteuid().is_root() && !near_alone {
                    expect(&ask_as(ANOTHER, address, &head(name)), *is_other_welcome, name);
                    welcome += usize::from(*is_other_welcome);
                }
                assert_eq!(scene.count() - before, welcome, "{name}");
            }
        }
        let log = daemon.log();
        let denial = log.lines().find(|line| line.contains("a caller was denied") && line.contains("\"stranger\""));
        let denial = denial.unwrap_or_else(|| panic!("{log}"));
        assert!(denial.contains("WARN") && denial.contains(&format!("uid={user} pid=unknown")), "{denial}");
        let another = log.lines().any(|line| line.contains(&format!("uid={ANOTHER} pid=unknown")));
        assert_eq!(another, geteuid().is_root(), "{log}");
        assert!(!log.contains("sesame"), "{log}");
    }
}

#[test]
fn a_caller_that_has_closed_is_unknown() {
    let scene = Scene::new();
    // What is closed belongs to nobody any more, and so it would seem to root.
    let callers = format!("callers = {{ uid = [0, {}] }}", getuid());
    let daemon = scene.start(&[scene.bce("cert", &callers), scene.bce("open", "")].concat());
    let await_that = |what: &str, condition: &dyn Fn() -> bool| {
        let began = std::time::Instant::now();
        while !condition() {
            assert!(began.elapsed() < crate::daemon::PATIENCE, "{what}: {}", daemon.log());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    let is_stopped = || {
        let mut threads = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        threads.all(|thread| {
            // A thread that has ended meanwhile has no status.
            let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap_or_default();
            status.is_empty() || status.contains("\nState:\tT")
        })
    };
    let denials = || daemon.log().matches("uid=unknown pid=unknown from=\"127.0.0.1\"").count();
    let closings: [&dyn Fn(TcpStream); 2] = [&drop, &|caller| {
        caller.shutdown(Shutdown::Write).unwrap();
        drop(caller);
    }];
    for close in closings {
        // Stopped, it accepts the caller only after that has closed.
        daemon.signal(Signal::SIGSTOP);
        await_that("it does not stop", &is_stopped);
        let mut caller = daemon.connect();
        // Of a caller that has gone away nobody needs to answer the last request.
        let request = head("cert").replace('\n', "\r\n") + "\r\n\r\n";
        caller.write_all(request.repeat(2).as_bytes()).unwrap();
        close(caller);
        let before = denials();
        daemon.signal(Signal::SIGCONT);
        await_that("nobody is denied", &|| denials() > before);
    }
    assert_eq!(scene.count(), 0);
    // The same caller, while it waits for its reply.
    expect(&ask(daemon.connect(), &head("cert")), true, "cert");
}

#[test]
fn all_groups_of_a_caller_on_a_unix_socket_count() {
    let scene = Scene::new();
    let primary = getgid();
    // Root can have a program join a group; whoever else runs this has those that it has.
    let joined = if geteuid().is_root() { vec![Gid::from_raw(GROUP)] } else { getgroups().unwrap() };
    let joined = joined.into_iter().filter(|group| *group != primary);
    // Linux tells them since 6.5; before, they do not count.
    let is_told = getsockopt(&UnixStream::pair().unwrap().0, sockopt::PeerPidfd).is_ok();
    let mut routes: Vec<_> =
        joined.enumerate().map(|(at, group)| (format!("joined-{at}"), group.as_raw(), is_told)).collect();
    routes.push(("primary".to_owned(), primary.as_raw(), true));
    routes.push(("other".to_owned(), STRANGER, false));
    let tables: Vec<_> = routes
        .iter()
        .map(|(name, group, _)| {
            let keys = format!("callers = {{ uid = [{STRANGER}], gid = [{group}] }}\nlisten = [\"unix:{name}.sock\"]");
            scene.bce(name, &keys)
        })
        .collect();
    let daemon = scene.start_listening("listen = [\"unix:shared.sock\"]", &tables.concat());
    for (name, group, is_welcome) in &routes {
        for socket in [format!("{name}.sock"), "shared.sock".to_owned()] {
            let socket = daemon.folder().join(socket);
            let reply =
                if *group == GROUP { ask_joined(&socket, name) } else { ask(connect_unix(&socket), &head(name)) };
            expect(&reply, *is_welcome, &format!("{name}: {group}"));
        }
    }
    let log = daemon.log();
    let denied = format!("uid={} pid={} from=\"a Unix socket\"", Uid::current(), std::process::id());
    assert!(log.contains(&denied), "{log}");
    assert!(!log.contains("sesame"), "{log}");
}

#[test]
fn a_connection_from_before_anybody_asked_is_told_to_come_anew() {
    let scene = Scene::new();
    let folder = scene.folder();
    let configuration = |callers: &str| format!("[server]\nlisten = [\"127.0.0.1:0\"]\n{}", scene.bce("cert", callers));
    let daemon = Daemon::start_in(folder, &configuration(""), |_| {});
    let mut caller = daemon.connect();
    let request = head("cert").replace('\n', "\r\n") + "\r\n\r\n";
    caller.write_all(request.as_bytes()).unwrap();
    let mut first = [0; 15];
    std::io::Read::read_exact(&mut caller, &mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    write_configuration(daemon.folder(), &configuration(&format!("callers = {{ uid = [{}] }}", getuid())));
    daemon.await_log("reloaded");
    // Until it is said to be the last one, the connection would stay.
    let rest = crate::daemon::exchange(caller, request.as_bytes());
    let denied = rest.split("HTTP/1.1 403").nth(1).unwrap_or_else(|| panic!("{rest}"));
    assert!(denied.contains("caller_denied") && denied.to_lowercase().contains("connection: close"), "{denied}");
    expect(&ask(daemon.connect(), &head("cert")), true, "anew");
}
