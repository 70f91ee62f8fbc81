//! Listeners that come, go, stay and change hands.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, mpsc};

use nix::sys::signal::Signal;

use crate::daemon::{Daemon, PATIENCE, connect, exchange, write_configuration};
use crate::ports::reserve;
use crate::script::{Conn, Http, Upstream, await_that, request};
use crate::{caller, reload, route};

/// The inodes of the sockets that listen on a TCP port.
fn inodes(address: SocketAddr) -> BTreeSet<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{:04X}", address.port());
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.filter(|fields| fields[1].ends_with(&port) && fields[3] == "0A").map(|fields| fields[9].to_owned()).collect()
}

fn server(listen: &[String]) -> String {
    format!("server = {{ listen = {listen:?}, workers = 2 }}\n")
}

const GET: &str = "GET /up/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

#[test]
fn listeners_come_and_go_and_change_hands_while_the_others_stay() {
    let upstream = Upstream::start(|conn| conn.serve("up"));
    let other = Upstream::start(|conn| conn.serve("other"));
    let [(stays_at, _stays), (moves_at, _moves), (comes_at, _comes)] = [(); 3].map(|()| reserve());
    let [stays, moves, comes] = [stays_at, moves_at, comes_at].map(|address| address.to_string());
    let configuration = |shared: &[&str], own: &[&str]| {
        let shared: Vec<_> = shared.iter().map(|&address| address.to_owned()).collect();
        server(&shared)
            + &route("up", &upstream.url(), "")
            + &route("other", &other.url(), &format!("listen = {own:?}"))
    };
    let daemon = Daemon::start(&configuration(&[&stays, &moves], &[]));
    let before = (inodes(stays_at), inodes(moves_at));
    assert_eq!((before.0.len(), before.1.len()), (2, 2));
    let mut kept = Http::new(connect(stays_at));
    assert_eq!(kept.get("/").text(), "up");
    let change = |shared: &[&str], own: &[&str]| {
        reload(&daemon, || drop(write_configuration(daemon.folder(), &configuration(shared, own))));
    };
    change(&[&stays, &comes], &[&moves]);
    assert_eq!((inodes(stays_at), inodes(moves_at)), before);
    for (address, expected) in [(stays_at, "up"), (comes_at, "up"), (moves_at, "other")] {
        // On a route's own listener the path is the upstream's alone.
        assert!(exchange(connect(address), GET).ends_with(expected), "{address}");
    }
    change(&[&stays], &[]);
    for address in [moves_at, comes_at] {
        await_that("no listener", || TcpStream::connect(address).is_err());
    }
    change(&[&stays, &moves], &[&comes]);
    for (address, expected) in [(stays_at, "up"), (comes_at, "other"), (moves_at, "up")] {
        assert!(exchange(connect(address), GET).ends_with(expected), "{address}");
    }
    assert_eq!(inodes(stays_at), before.0);
    assert_eq!(kept.get("/").text(), "up", "on the same connection");
}

#[test]
fn ports_that_the_kernel_chose_stay_with_their_owners() {
    let upstream = Upstream::start(|conn| conn.serve("up"));
    let any = ["127.0.0.1:0".to_owned()];
    let own = "listen = [\"127.0.0.1:0\"]";
    let configuration = |first: &str| server(&any) + first + &route("up", &upstream.url(), own);
    let daemon = Daemon::start(&configuration(""));
    let ports = [daemon.address(), daemon.own_address("up")];
    let before = ports.map(inodes);
    let more = route("first", &upstream.url(), own);
    reload(&daemon, || drop(write_configuration(daemon.folder(), &configuration(&more))));
    assert_eq!(ports.map(inodes), before);
    assert!(exchange(connect(ports[1]), GET).ends_with("up"));
}

#[test]
fn a_port_is_widened_to_all_addresses_and_narrowed_again() {
    let upstream = Upstream::start(|conn| conn.serve("up"));
    let (address, _socket) = reserve();
    let port = address.port();
    let configuration = |ip: &str| {
        let remote = "allow_remote = true, ".to_owned();
        let server = server(&[format!("{ip}:{port}")]).replace("{ ", &format!("{{ {remote}"));
        server + &route("up", &upstream.url(), "callers = { net = [\"127.0.0.0/8\"] }")
    };
    let daemon = Daemon::start(&configuration("127.0.0.1"));
    for ip in ["0.0.0.0", "127.0.0.1", "0.0.0.0"] {
        reload(&daemon, || drop(write_configuration(daemon.folder(), &configuration(ip))));
        assert!(exchange(connect(address), GET).ends_with("up"), "{ip}");
    }
}

#[test]
fn a_unix_socket_changes_its_mode_and_nothing_else() {
    let upstream = Upstream::start(|conn| conn.serve("up"));
    let configuration = |mode: &str, more: &str| {
        server(
            &["127.0.0.1:0".to_owned(), format!("unix:DIR/cs.sock?mode={mode}"), more.to_owned()]
                [..2 + usize::from(!more.is_empty())],
        ) + &route("up", &upstream.url(), "")
    };
    let daemon = Daemon::start(&configuration("0600", ""));
    let path = daemon.folder().join("cs.sock");
    let metadata = || {
        let metadata = std::fs::metadata(&path).unwrap();
        (metadata.permissions().mode() & 0o777, metadata.ino())
    };
    let (mode, inode) = metadata();
    assert_eq!(mode, 0o600);
    let mut kept = Http::new(UnixStream::connect(&path).unwrap());
    let mut ask = |text: &str| {
        std::io::Write::write_all(&mut kept.stream, b"GET /up/ HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert_eq!(kept.reply().text(), text);
    };
    ask("up");
    reload(&daemon, || drop(write_configuration(daemon.folder(), &configuration("0666", ""))));
    assert_eq!(metadata(), (0o666, inode));
    ask("up");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let bad = configuration("0640", &taken.local_addr().unwrap().to_string());
    write_configuration(daemon.folder(), &bad);
    daemon.await_log("another process does");
    assert_eq!(metadata(), (0o666, inode), "all or nothing");
    ask("up");
    reload(&daemon, || {
        let none = server(&["127.0.0.1:0".to_owned()]) + &route("up", &upstream.url(), "");
        write_configuration(daemon.folder(), &none);
    });
    assert!(!path.exists());
}

#[test]
fn whoever_came_to_a_listener_before_it_went_is_served() {
    let upstream = Upstream::start(|conn| conn.serve("up"));
    let ((stays, _stays), (address, _goes)) = (reserve(), reserve());
    let (stays, goes) = (stays.to_string(), address.to_string());
    let configuration = |listen: &[String]| server(listen) + &route("up", &upstream.url(), "");
    let (both, one) = (configuration(&[stays.clone(), goes.clone()]), configuration(&[stays]));
    let daemon = Daemon::start(&both);
    for _ in 0..5 {
        // They queue in the kernel, since nobody accepts.
        daemon.signal(Signal::SIGSTOP);
        let mut callers: Vec<_> = (0..40).map(|_| Http::new(connect(address))).collect();
        for caller in &mut callers {
            caller.send(request("GET", "/", ""));
        }
        write_configuration(daemon.folder(), &one);
        daemon.signal(Signal::SIGHUP);
        daemon.signal(Signal::SIGCONT);
        for caller in &mut callers {
            assert_eq!(caller.reply().text(), "up");
        }
        await_that("no listener", || TcpStream::connect(address).is_err());
        // A signal and a changed file may be two reloads, so that the log does not tell which of them it speaks of.
        write_configuration(daemon.folder(), &both);
        await_that("the listener", || inodes(address).len() == 2);
    }
}

/// What a connection of the upstream waits for.
type Gate = mpsc::Receiver<Conn>;

/// An upstream that hands over each connection, with the head of its request still unread.
fn handing() -> (Upstream, Gate) {
    let (sender, conns) = mpsc::channel();
    let sender = Mutex::new(sender);
    (Upstream::start(move |conn| sender.lock().unwrap().send(conn).unwrap()), conns)
}

#[test]
fn what_is_in_flight_goes_on_with_what_it_began_with() {
    let (old, conns) = handing();
    let new = Upstream::start(|conn| conn.serve("new"));
    let (goes_at, _goes) = reserve();
    let goes = goes_at.to_string();
    let keys = "headers = { X-Version = \"old\" }";
    let before = server(&["127.0.0.1:0".to_owned(), goes.clone()]) + &route("up", &old.url(), keys);
    let after = server(&["127.0.0.1:0".to_owned()]) + &route("up", &new.url(), "");
    let none = server(&["127.0.0.1:0".to_owned()]) + &route("other", &new.url(), "");
    let daemon = Daemon::start(&before);
    let begin = |octets: &str| {
        let mut caller = Http::new(connect(goes_at));
        caller.send(octets);
        let mut conn = conns.recv_timeout(PATIENCE).unwrap();
        let head = conn.head().unwrap();
        (caller, conn, head)
    };
    let (mut slow, mut slow_conn, _) = begin(&request("GET", "/slow", ""));
    slow_conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst");
    let (mut poll, mut poll_conn, _) = begin(&request("GET", "/poll", ""));
    let upload = "POST /upload HTTP/1.1\r\nHost: up.localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    let (mut upload, mut upload_conn, upload_head) = begin(upload);
    let switch = "GET /ws HTTP/1.1\r\nHost: up.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let (mut tunnel, mut tunnel_conn, _) = begin(switch);
    tunnel_conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert!(tunnel.head().unwrap().starts_with("HTTP/1.1 101 "));
    for configuration in [&after, &none, &after] {
        reload(&daemon, || drop(write_configuration(daemon.folder(), configuration)));
    }
    await_that("no listener", || TcpStream::connect(goes_at).is_err());
    slow_conn.send("-last");
    assert_eq!(slow.reply().text(), "first-last");
    poll_conn.ok("changed");
    assert_eq!(poll.reply().text(), "changed");
    upload.send("5\r\n-last\r\n0\r\n\r\n");
    assert_eq!(upload_conn.body(&upload_head).unwrap(), b"first-last");
    upload_conn.ok("taken");
    assert_eq!(upload.reply().text(), "taken");
    tunnel.send("ping");
    assert_eq!(tunnel_conn.octets(4).unwrap(), b"ping");
    tunnel_conn.send("pong");
    assert_eq!(tunnel.octets(4).unwrap(), b"pong");
    assert_eq!(slow.get("/").text(), "new", "the next request on the same connection");
    assert_eq!(caller(&daemon).get("/").text(), "new");
}
