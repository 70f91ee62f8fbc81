//! Servers that a test plays, and lists of them in the configuration.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::daemon::Daemon;
use crate::ports::reserve;
use crate::script::{Http, Reply, Upstream, request};
use crate::{caller, route};

/// What a server does with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Does {
    /// Answers with a status, more headers, and its address as the body.
    Answer(u16, &'static str),
    /// Ends the connection with a reset.
    Reset,
    /// Ends it in the middle of a head.
    Cut,
    /// Does not answer.
    Nothing,
}

pub(crate) const FINE: Does = Does::Answer(200, "");

/// A server, and what it was asked.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    does: Arc<Mutex<Does>>,
    heads: Arc<Mutex<Vec<String>>>,
    _upstream: Upstream,
}

impl Server {
    pub(crate) fn start(does: Does) -> Self {
        Self::start_then(does, || {})
    }

    /// The same with something that happens at every request.
    pub(crate) fn start_then(does: Does, then: impl Fn() + Send + Sync + 'static) -> Self {
        let (does, heads) = (Arc::new(Mutex::new(does)), Arc::<Mutex<Vec<String>>>::default());
        let (now, noted) = (Arc::clone(&does), Arc::clone(&heads));
        let upstream = Upstream::start(move |mut conn| {
            let name = conn.tcp.local_addr().unwrap().to_string();
            while let Some((head, _)) = conn.request() {
                noted.lock().unwrap().push(head);
                then();
                let does = *now.lock().unwrap();
                let is_sent = match does {
                    Does::Answer(status, headers) => {
                        let length = name.len();
                        conn.send(format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n{name}"))
                    }
                    Does::Reset => return conn.reset(),
                    Does::Cut => {
                        conn.send("HTTP/1.1 200 O");
                        return;
                    }
                    Does::Nothing => return conn.await_end(),
                };
                if !is_sent {
                    return;
                }
            }
        });
        Self { address: upstream.address, does, heads, _upstream: upstream }
    }

    /// Behaves otherwise from now on.
    pub(crate) fn turn(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }

    /// How many requests have come.
    pub(crate) fn count(&self) -> usize {
        self.heads.lock().unwrap().len()
    }

    /// The heads of the requests that came since this was asked last.
    pub(crate) fn heads(&self) -> Vec<String> {
        std::mem::take(&mut *self.heads.lock().unwrap())
    }
}

/// A daemon with a route to these servers.
fn daemon(servers: &[SocketAddr]) -> Daemon {
    let urls: Vec<_> = servers.iter().map(|address| format!("http://{address}")).collect();
    let route = route("up", "LIST", "timeouts = { connect = \"5s\", response = \"3s\" }");
    let list = format!("{urls:?}");
    Daemon::start(&format!(
        "server = {{ listen = [\"127.0.0.1:0\"], workers = 1 }}\n{}",
        route.replace("\"LIST\"", &list)
    ))
}

fn retry(reply: &Reply) -> Option<&str> {
    reply.header("x-countersign-retry")
}

#[test]
fn a_list_takes_turns() {
    let servers = [Server::start(FINE), Server::start(FINE), Server::start(FINE)];
    let daemon = daemon(&[0, 1, 2].map(|index: usize| servers[index].address));
    let mut caller = caller(&daemon);
    for _ in 0..30 {
        assert_eq!(caller.get("/").status, 200);
    }
    assert_eq!(servers.each_ref().map(Server::count), [10, 10, 10]);
}

#[test]
fn a_get_goes_on_to_the_next_server_whatever_the_failure() {
    let good = Server::start(FINE);
    for does in
        [Does::Answer(500, ""), Does::Answer(502, ""), Does::Answer(503, ""), Does::Reset, Does::Cut, Does::Nothing]
    {
        let bad = Server::start(FINE);
        let daemon = daemon(&[bad.address, good.address]);
        let mut caller = caller(&daemon);
        // So that there are connections that were used before.
        let (first, second) = (caller.get("/"), caller.get("/"));
        assert_ne!(first.text(), second.text());
        bad.turn(does);
        good.heads();
        let replies = [caller.get("/"), caller.get("/")];
        for reply in &replies {
            assert_eq!((reply.status, reply.text()), (200, good.address.to_string()), "{does:?}: {}", reply.head);
        }
        let again = replies.iter().filter(|reply| retry(reply) == Some("endpoint")).count();
        assert_eq!(again, 1, "{does:?}: then it rests");
        assert_eq!(caller.get("/").text(), good.address.to_string(), "{does:?}");
        assert_eq!(good.heads().len(), 3);
    }
}

#[test]
fn a_server_that_refuses_connections_is_passed_over_by_every_method() {
    let (nobody, _socket) = reserve();
    let good = Server::start(FINE);
    for method in ["GET", "POST", "PUT", "DELETE"] {
        let daemon = daemon(&[nobody, good.address]);
        let mut caller = caller(&daemon);
        let mut again = 0;
        for _ in 0..4 {
            caller.send(request(method, "/", if method == "POST" { "body" } else { "" }));
            let reply = caller.reply();
            assert_eq!(reply.status, 200, "{method}");
            again += usize::from(retry(&reply) == Some("endpoint"));
        }
        assert_eq!(again, 1, "{method}");
    }
}

#[test]
fn what_may_have_been_acted_on_goes_nowhere_else_but_the_next_request_does() {
    for does in [Does::Reset, Does::Nothing, Does::Answer(503, "Retry-After: 7\r\n")] {
        let (bad, good) = (Server::start(does), Server::start(FINE));
        let daemon = daemon(&[bad.address, good.address]);
        let mut caller = caller(&daemon);
        let mut statuses = Vec::new();
        for _ in 0..6 {
            caller.send(request("POST", "/", "body"));
            let reply = caller.reply();
            assert_eq!(retry(&reply), None);
            statuses.push(reply.status);
        }
        assert_eq!(statuses.iter().filter(|status| **status != 200).count(), 1, "{does:?}: {statuses:?}");
        assert_eq!((bad.count(), good.count()), (1, 5), "{does:?}");
    }
}

#[test]
fn a_body_that_streams_does_not_go_again() {
    let (bad, good) = (Server::start(Does::Answer(503, "")), Server::start(FINE));
    let daemon = daemon(&[bad.address, good.address]);
    let chunked = "GET / HTTP/1.1\r\nHost: up.localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
    let statuses: Vec<_> = (0..4)
        .map(|_| {
            let mut caller = caller(&daemon);
            caller.send(chunked);
            caller.reply().status
        })
        .collect();
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 1, "{statuses:?}");
}

#[test]
fn when_all_fail_the_last_reply_goes_to_the_caller() {
    let last = |reply: Reply| (reply.status, reply.header("retry-after").map(str::to_owned));
    let expected = (503, Some("7".to_owned()));
    let busy = || Server::start(Does::Answer(503, "Retry-After: 7\r\n"));
    let (one, other) = (busy(), busy());
    let both_busy = daemon(&[one.address, other.address]);
    assert_eq!(last(caller(&both_busy).get("/")), expected);
    assert_eq!((one.count(), other.count()), (1, 1), "each once");
    // Whoever gives no reply at all has no last word.
    let (nobody, _socket) = reserve();
    let daemon = daemon(&[one.address, nobody]);
    let mut http: Http<_> = caller(&daemon);
    for _ in 0..4 {
        assert_eq!(last(http.get("/")), expected);
    }
    let (nobody, _first) = reserve();
    let (noone, _second) = reserve();
    let daemon = self::daemon(&[nobody, noone]);
    caller(&daemon).get("/").expect(502, "upstream_unreachable");
}

#[test]
fn answers_are_no_failures() {
    for status in [400, 403, 404, 409, 501, 504] {
        let servers = [Server::start(Does::Answer(status, "")), Server::start(Does::Answer(status, ""))];
        let daemon = daemon(&[servers[0].address, servers[1].address]);
        let reply = caller(&daemon).get("/");
        assert_eq!((reply.status, retry(&reply)), (status, None));
        assert_eq!(servers[0].count() + servers[1].count(), 1);
    }
}

#[test]
fn a_server_that_answers_slowly_is_waited_for() {
    let slow = Server::start_then(FINE, || std::thread::sleep(Duration::from_millis(300)));
    let other = Server::start_then(FINE, || std::thread::sleep(Duration::from_millis(300)));
    let daemon = daemon(&[slow.address, other.address]);
    let mut caller = caller(&daemon);
    for _ in 0..4 {
        let reply = caller.get("/");
        assert_eq!((reply.status, retry(&reply)), (200, None));
    }
}
