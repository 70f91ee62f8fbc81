//! The service manager: sockets that it hands over, and what it is told.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::Signal;

use super::configuration;
use super::script::{Http, Upstream, await_that};
use crate::daemon::{Daemon, Ended, PATIENCE, connect, exchange, run, write_configuration};

const GET: &str = "GET /up/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// A socket under a name.
type Named = (&'static str, OwnedFd);

/// Has a command started as a service manager does it: the sockets from the third descriptor on, and told so.
fn hand_over(command: &mut Command, sockets: Vec<Named>) {
    let names: Vec<_> = sockets.iter().map(|(name, _)| *name).collect();
    // Only the process itself knows its number before it is what it is to be.
    let mut started = Command::new("sh");
    started.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    started.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(folder) = command.get_current_dir() {
        started.current_dir(folder);
    }
    started.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    let mappings = sockets.into_iter().zip(3..).map(|((_, parent_fd), child_fd)| FdMapping { parent_fd, child_fd });
    started.fd_mappings(mappings.collect()).unwrap();
    started.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("NO_COLOR", "1");
    *command = started;
}

fn start(configuration: &str, sockets: Vec<Named>) -> Daemon {
    Daemon::start_in(tempfile::tempdir().unwrap(), configuration, |command| hand_over(command, sockets))
}

/// The outcome where the daemon cannot start.
fn fail_to_start(configuration: &str, sockets: Vec<Named>) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let file = write_configuration(folder.path(), configuration);
    let ended = run(folder.path(), &["run", "-c", file.to_str().unwrap()], |command| hand_over(command, sockets));
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    ended
}

fn tcp() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn two_routes(upstream: &str, server: &str, up: &str, other: &str) -> String {
    let route = |name: &str, more: &str| {
        format!(
            "[routes.{name}]\nupstream = \"{upstream}\"\n{more}\n[routes.{name}.header]\nheaders = {{ \"X-T\" = \"t\" }}\n"
        )
    };
    format!("[server]\n{server}\n") + &route("up", up) + &route("other", other)
}

#[test]
fn sockets_that_are_handed_over_are_served_under_their_names_and_left_alone_at_the_end() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.sock");
    let (web, web_address) = tcp();
    let (own, own_address) = tcp();
    let unix = UnixListener::bind(&path).unwrap();
    let uid = nix::unistd::geteuid();
    let configuration = two_routes(
        &upstream.url(),
        "listen = [\"systemd:web\"]\nworkers = 2",
        "listen = [\"systemd:own\"]",
        &format!("callers = {{ uid = [{uid}] }}"),
    );
    let sockets = [("web", web.try_clone().unwrap().into()), ("web", unix.try_clone().unwrap().into())];
    let mut daemon =
        start(&configuration, sockets.into_iter().chain([("own", own.try_clone().unwrap().into())]).collect());
    assert_eq!((daemon.address(), daemon.own_address("up")), (web_address, own_address));
    for _ in 0..8 {
        assert!(exchange(connect(web_address), GET).ends_with("yes"));
        // On a route's own listener the path is the upstream's alone.
        assert!(exchange(connect(own_address), GET.replace("/up/", "/")).ends_with("yes"));
        // Who is there is known as on a socket that the daemon has made itself.
        let reply = exchange(UnixStream::connect(&path).unwrap(), GET.replace("/up/", "/other/"));
        assert!(reply.ends_with("yes"), "{reply}");
    }
    assert!(!daemon.log().contains("handed over"), "{}", daemon.log());
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(path.exists());
    // Callers of the time in between wait for the next daemon.
    let waiting = [web_address, own_address].map(|address| TcpStream::connect(address).unwrap());
    let unnamed = configuration.replace("systemd:own", "127.0.0.1:0");
    let sockets = vec![("own", own.into()), ("web", web.into()), ("web", unix.into())];
    let daemon = start(&unnamed, sockets);
    let [first, _] = waiting;
    assert!(exchange(first, GET).ends_with("yes"));
    daemon.await_log("a socket was handed over that no `listen` names");
    assert!(daemon.log().contains(&format!("name=\"own\" address=\"{own_address}\"")), "{}", daemon.log());
}

#[test]
fn a_reload_may_name_others_of_the_sockets_and_closes_none() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let ((a, a_address), (b, b_address)) = (tcp(), tcp());
    let configuration = |name: &str| {
        two_routes(&upstream.url(), &format!("listen = [\"systemd:{name}\", \"127.0.0.1:0\"]\nworkers = 2"), "", "")
    };
    let daemon = start(&configuration("a"), vec![("a", a.into()), ("b", b.into())]);
    assert!(exchange(connect(a_address), GET).ends_with("yes"));
    let mut early = Http::new(connect(b_address));
    early.send(GET);
    let reload = |name: &str, what: &str| {
        let before = daemon.log().matches(what).count();
        write_configuration(daemon.folder(), &configuration(name));
        await_that(what, || daemon.log().matches(what).count() > before);
    };
    reload("b", "reloaded");
    assert_eq!(early.reply().text(), "yes");
    reload("c", "the one before it goes on serving");
    assert!(daemon.log().contains("cannot listen on systemd:c: no socket of this name was handed over, only a, b"));
    assert!(exchange(connect(b_address), GET).ends_with("yes"));
    let mut late = Http::new(connect(a_address));
    late.send(GET);
    reload("a", "reloaded");
    assert_eq!(late.reply().text(), "yes");
}

#[test]
fn what_cannot_be_listened_on_is_explained() {
    let listening = |listen: &str, more: &str| {
        two_routes("http://127.0.0.1:1", &format!("listen = [\"{listen}\"]\n{more}"), "", "")
    };
    let (held, address) = tcp();
    let connected = TcpStream::connect(address).unwrap();
    let all = || ("web", TcpListener::bind("0.0.0.0:0").unwrap().into());
    let one = |name| (name, tcp().0.into());
    let remote = "allow_remote = true";
    for (configuration, sockets, expected) in [
        (listening("systemd:web", ""), vec![], "systemd:web: no socket was handed over: start the daemon through"),
        (
            listening("systemd:web", ""),
            vec![one("a"), one("a"), one("b")],
            "was handed over, only a, b: FileDescriptorName=",
        ),
        (listening("systemd:web", ""), vec![all()], "is no loopback address"),
        (listening("systemd:web", remote), vec![all()], "other machines can reach route \"up\" at 0.0.0.0:"),
        (listening("systemd:web", ""), vec![("web", connected.into())], "take Accept=yes out"),
        (
            listening("systemd:web", ""),
            vec![one("web"), ("web", UdpSocket::bind("127.0.0.1:0").unwrap().into())],
            "is no stream socket: ListenStream= makes one",
        ),
        (listening(&address.to_string(), ""), vec![("web", held.into())], "write \"systemd:web\" in its place"),
    ] {
        let ended = fail_to_start(&configuration, sockets);
        assert!(ended.err.contains(expected), "{expected}: {}", ended.err);
    }
    // With `callers` other machines may come.
    let callers = "callers = { net = [\"127.0.0.0/8\"] }";
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let (all, server) = (TcpListener::bind("0.0.0.0:0").unwrap(), format!("listen = [\"systemd:web\"]\n{remote}"));
    let port = all.local_addr().unwrap().port();
    let _daemon = start(&two_routes(&upstream.url(), &server, callers, callers), vec![("web", all.into())]);
    assert!(exchange(connect(SocketAddr::from(([127, 0, 0, 1], port))), GET).ends_with("yes"));
}

#[test]
fn sockets_for_another_process_are_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let file =
        write_configuration(folder.path(), &two_routes("http://127.0.0.1:1", "listen = [\"systemd:web\"]", "", ""));
    for pid in [None, Some("1")] {
        let ended = run(folder.path(), &["run", "-c", file.to_str().unwrap()], |command| {
            command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "web");
            command.envs(pid.map(|pid| ("LISTEN_PID", pid)));
            command.fd_mappings(vec![FdMapping { parent_fd: tcp().0.into(), child_fd: 3 }]).unwrap();
        });
        assert_eq!(ended.code, Some(1));
        assert!(ended.err.contains("no socket was handed over"), "{}", ended.err);
    }
}

#[test]
fn programs_that_are_run_inherit_nothing_of_it() {
    let (web, _) = tcp();
    let inode = std::fs::read_link(format!("/proc/self/fd/{}", web.as_raw_fd())).unwrap();
    let script = r#"["sh", "-c", "env > DIR/environment; ls -l /proc/self/fd > DIR/descriptors; echo token"]"#;
    let configuration = format!(
        "server.listen = [\"systemd:web\"]\n[routes.up]\nupstream = \"http://127.0.0.1:1\"\n[routes.up.header]\n\
         headers = {{ \"X-T\" = {{ command = {script} }} }}\n"
    );
    let manager = Manager::new();
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &configuration, |command| {
        manager.watch(command, Duration::from_secs(100));
        hand_over(command, vec![("web", web.into())]);
    });
    let read = |name: &str| std::fs::read_to_string(daemon.folder().join(name)).unwrap();
    let environment = read("environment");
    for name in ["NOTIFY_", "WATCHDOG_", "LISTEN_"] {
        assert!(!environment.contains(name), "{environment}");
    }
    assert!(environment.contains("PATH="));
    let descriptors = read("descriptors");
    assert!(descriptors.contains("/dev/null") && !descriptors.contains(inode.to_str().unwrap()), "{descriptors}");
}

/// The part of a service manager that is told something.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, folder }
    }

    fn watch(&self, command: &mut Command, watchdog: Duration) {
        command.env("NOTIFY_SOCKET", self.folder.path().join("notify"));
        command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
    }

    fn start(&self, configuration: &str, watchdog: Duration) -> Daemon {
        Daemon::start_in(tempfile::tempdir().unwrap(), configuration, |command| self.watch(command, watchdog))
    }

    /// The next message.
    fn told(&self) -> String {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("nothing more is told");
        String::from_utf8(message[..length].to_vec()).unwrap()
    }

    /// The next one that is no mere sign of life.
    fn news(&self) -> String {
        loop {
            let told = self.told();
            if told != "WATCHDOG=1\n" {
                return told;
            }
        }
    }

    fn expect_reload(&self) {
        let began = self.news();
        let rest = began.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{began}"));
        let (usec, rest) = rest.split_once('\n').unwrap();
        assert!(usec.parse::<u64>().is_ok_and(|usec| usec > 0) && rest.starts_with("WATCHDOG_USEC="), "{began}");
    }
}

#[test]
fn the_service_manager_is_told_how_it_goes_from_the_start_to_the_end() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let manager = Manager::new();
    let configuration =
        configuration(&upstream.url(), "server.drain_timeout = \"20s\"\nserver.drain_delay = \"1ms\"", "");
    let mut daemon = manager.start(&configuration, Duration::from_secs(1000));
    assert_eq!(manager.news(), "READY=1\nSTATUS=serving 1 route\n");
    assert!(exchange(daemon.connect(), GET).ends_with("yes"), "it said so, so it listens");
    daemon.signal(Signal::SIGHUP);
    manager.expect_reload();
    assert_eq!(manager.news(), "READY=1\nWATCHDOG_USEC=1000000000\nSTATUS=serving 1 route\n");
    let file = write_configuration(daemon.folder(), "[server]\nlisten = 1\n");
    manager.expect_reload();
    let refused = format!(
        "READY=1\nWATCHDOG_USEC=1000000000\nSTATUS=reload refused: {}:2:10: `server.listen`: expected a list",
        file.display()
    );
    let told = manager.news();
    assert!(
        told.starts_with(&refused) && told.ends_with("; the configuration before goes on: serving 1 route\n"),
        "{told}"
    );
    write_configuration(daemon.folder(), &configuration);
    manager.expect_reload();
    assert_eq!(manager.news(), "READY=1\nWATCHDOG_USEC=1000000000\nSTATUS=serving 1 route\n");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(
        manager.news(),
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=30001000\nSTATUS=stopping: what has begun is answered first\n"
    );
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn routes_that_are_not_ready_are_named() {
    let manager = Manager::new();
    let configuration = "server.listen = [\"127.0.0.1:0\"]\n[routes.sms]\nupstream = \"https://127.0.0.1:1\"\n\
         [routes.sms.huawei-token]\niam = \"https://127.0.0.1:1\"\naccount = \"A\"\nuser = \"U\"\npassword = \"P\"\n\
         scope = { project = \"p\" }\n";
    let _daemon = manager.start(configuration, Duration::from_millis(200));
    let told = manager.news();
    assert!(told.starts_with("READY=1\nSTATUS=serving 1 route; not ready: sms: "), "{told}");
}

#[test]
fn signs_of_life_come_as_long_as_it_lives_and_through_the_drain() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.await_end();
    });
    let manager = Manager::new();
    let mut daemon = manager.start(&configuration(&upstream.url(), "", ""), Duration::from_millis(100));
    let expect = |count: usize| {
        for _ in 0..count {
            assert_eq!(manager.told(), "WATCHDOG=1\n");
        }
    };
    assert!(manager.told().starts_with("READY=1\n"));
    expect(5);
    let mut caller = Http::new(daemon.connect());
    caller.send("GET / HTTP/1.1\r\nHost: up.localhost\r\n\r\n");
    upstream.await_connections(1);
    daemon.signal(Signal::SIGTERM);
    assert!(manager.news().starts_with("STOPPING=1\n"));
    expect(5);
    drop(caller);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_service_manager_that_is_not_there_keeps_nobody_from_serving() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &configuration(&upstream.url(), "", ""), |command| {
        command.env("NOTIFY_SOCKET", "/nonexistent/notify");
    });
    assert!(daemon.log().contains("NOTIFY_SOCKET"), "{}", daemon.log());
    assert!(exchange(daemon.connect(), GET).ends_with("yes"));
}
