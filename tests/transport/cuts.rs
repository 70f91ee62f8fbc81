//! What no server and no caller should send, and connections that end where they should not. Whatever comes of one request,
//! the next one gets its own reply.

use std::net::Shutdown;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::script::{Conn, Upstream, await_that, header, request};
use super::{caller, daemon};

/// What an upstream does behind its octets.
#[derive(Clone, Copy, Debug)]
enum Then {
    Waits,
    Closes,
    Resets,
}

/// What the caller gets.
#[derive(Clone, Copy, Debug)]
enum Gets {
    /// A 502 of the daemon's own.
    Refusal,
    /// The reply.
    Whole(u16, &'static str),
    /// The reply up to where it broke off, and visibly no further.
    Cut(&'static str),
}

use Gets::{Cut, Refusal, Whole};
use Then::{Closes, Resets, Waits};

#[derive(Clone)]
struct Case {
    octets: Vec<u8>,
    then: Then,
    gets: Gets,
}

impl Case {
    fn new(octets: impl AsRef<[u8]>, then: Then, gets: Gets) -> Self {
        Self { octets: octets.as_ref().to_vec(), then, gets }
    }

    /// The rest of a 200.
    fn ok(rest: impl AsRef<str>, then: Then, gets: Gets) -> Self {
        Self::new(format!("HTTP/1.1 200 OK\r\n{}", rest.as_ref()), then, gets)
    }
}

fn shown(octets: &[u8]) -> String {
    let end = octets.len().min(100);
    format!("{:?}", String::from_utf8_lossy(&octets[..end]))
}

/// Answers `/n` with the octets of the nth case, and all else well.
fn misbehave(cases: Vec<Case>) -> impl Fn(Conn) + Send + Sync + 'static {
    move |mut conn| {
        while let Some((head, _)) = conn.request() {
            let index: Option<usize> = head.split(['/', ' ']).nth(2).and_then(|index| index.parse().ok());
            let Some(Case { octets, then, .. }) = index.map(|index| &cases[index]) else {
                conn.ok("fine");
                continue;
            };
            conn.send(octets);
            match then {
                Waits => {}
                Closes => return conn.close(),
                Resets => return conn.reset(),
            }
        }
    }
}

/// Asks for each case, and compares all outcomes at once. The next request would go over the same connection if the daemon
/// still trusted it.
fn judge(cases: Vec<Case>) {
    let upstream = Upstream::start(misbehave(cases.clone()));
    let daemon = daemon(&upstream.url(), "server.workers = 1", "");
    let mut wrong = Vec::new();
    let mut asking = caller(&daemon);
    for (index, Case { octets, then, gets }) in cases.into_iter().enumerate() {
        let reply = asking.get(&format!("/{index}"));
        let text = reply.text();
        let got = (reply.status, reply.code(), text.as_str(), reply.is_whole);
        let is_right = match gets {
            Refusal => matches!(got, (502, Some("upstream_protocol"), _, true)),
            Whole(status, body) => got == (status, None, body, true),
            Cut(body) => got == (200, None, body, false),
        };
        if !is_right {
            let got = shown(format!("{got:?}").as_bytes());
            wrong.push(format!("{}, {then:?}: {gets:?} expected, got {got}", shown(&octets)));
        }
        if !reply.is_whole {
            asking = caller(&daemon);
        }
        let next = asking.get("/next");
        if (next.status, next.text().as_str()) != (200, "fine") {
            wrong.push(format!("behind {}, {then:?}: {}", shown(&octets), next.head));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_does_not_begin_a_reply_is_a_bad_gateway() {
    let mut cases = Vec::new();
    for octets in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "<html>HTTP/0.9 has no head</html>",
        "HTTP/2 200\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        " HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/1.1\t200 OK\r\n\r\n",
        "HTTP/1.1 OK\r\n\r\n",
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 99 x\r\n\r\n",
        "HTTP/1.1 099 x\r\n\r\n",
        "HTTP/1.1 -20 x\r\n\r\n",
        "HTTP/1.1 1000 x\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        cases.extend([Waits, Closes].map(|then| Case::new(octets, then, Refusal)));
    }
    for octets in [
        "",
        "\r\n\r\n\r\n",
        "HTTP/1.1",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\nContent-Len",
        "HTTP/1.1 200 OK\r\nX-A: 1\r\n\r",
    ] {
        cases.extend([Closes, Resets].map(|then| Case::new(octets, then, Refusal)));
    }
    for head in [
        "HTTP/1.1 200\r\n",
        "HTTP/1.1 200 \r\n",
        "HTTP/1.1 200 Gru\u{df}\r\n",
        "\r\nHTTP/1.1 200 OK\r\n",
        "HTTP/1.0 200 OK\r\n",
    ] {
        cases.push(Case::new(format!("{head}Content-Length: 2\r\n\r\nok"), Waits, Whole(200, "ok")));
    }
    cases.push(Case::new("HTTP/1.1 999 Far\r\nContent-Length: 2\r\n\r\nok", Waits, Whole(999, "ok")));
    judge(cases);
}

#[test]
fn headers_that_are_none_make_a_bad_gateway() {
    let mut cases = Vec::new();
    for line in [
        "X-A: a\0b",
        "X-A: a\rb",
        "X-A: a\u{1}b",
        "X-A: a\u{7f}b",
        "X-A: a\r\n folded",
        " X-A: a",
        "X A: a",
        "X-A : a",
        "X-\0A: a",
        "X-\u{e4}: a",
        ": a",
        "no colon",
    ] {
        cases.push(Case::ok(format!("{line}\r\nContent-Length: 2\r\n\r\nok"), Waits, Refusal));
    }
    for line in ["X-A:", "X-A:a", "X-A:\t a \t", "X-A: \u{e4}", "!#$%&'*+-.^_`|~09: a"] {
        cases.push(Case::ok(format!("{line}\r\nContent-Length: 2\r\n\r\nok"), Waits, Whole(200, "ok")));
    }
    // A line may end with a bare line feed (RFC 9112, section 2.2): to the caller it ends as it should.
    cases.push(Case::new("HTTP/1.1 200 OK\nX-A: a\nContent-Length: 2\n\nok", Waits, Whole(200, "ok")));
    let headers = |count: usize| format!("{}Content-Length: 2\r\n\r\nok", "X-A: a\r\n".repeat(count - 1));
    cases.push(Case::ok(headers(100), Waits, Whole(200, "ok")));
    cases.push(Case::ok(headers(101), Waits, Refusal));
    cases.push(Case::ok(headers(500), Waits, Refusal));
    judge(cases);
}

#[test]
fn interim_replies_are_followed_by_the_final_one() {
    let interim = |count: usize| {
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n";
        ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 102 Processing\r\n\r\n", hints].concat().repeat(count)
    };
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    judge(vec![
        Case::new(interim(1) + last, Waits, Whole(200, "ok")),
        Case::new(interim(20) + last, Waits, Whole(200, "ok")),
        Case::new(interim(20), Closes, Refusal),
        Case::new(interim(20), Resets, Refusal),
    ]);
}

#[test]
fn a_head_without_end_is_a_timeout() {
    let upstream = Upstream::start(|mut conn| {
        let (head, _) = conn.request().unwrap();
        let (start, octets, pause) = match head.split(' ').nth(1).unwrap() {
            "/flood" => ("", "HTTP/1.1 102 Processing\r\n\r\n".repeat(100), 1),
            "/trickle" => ("", "HTTP/1.1 102 Processing\r\n\r\n".to_owned(), 20),
            _ => ("HTTP/1.1 200 OK\r\n", "X-A: a\r\n".to_owned(), 20),
        };
        conn.send(start);
        while conn.send(&octets) {
            std::thread::sleep(Duration::from_millis(pause));
        }
        conn.await_end();
    });
    let daemon = daemon(&upstream.url(), "", r#"timeouts.response = "300ms""#);
    let mut caller = caller(&daemon);
    for (connection, path) in ["/flood", "/trickle", "/header"].into_iter().enumerate() {
        caller.get(path).expect(504, "upstream_timeout");
        upstream.await_end(connection);
    }
}

#[test]
fn a_reply_whose_length_is_in_doubt_is_a_bad_gateway() {
    let body = "3\r\nabc\r\n0\r\n\r\n";
    let mut cases = Vec::new();
    for lengths in ["3", "003", "3\r\nContent-Length: 3", "\t3 "] {
        cases.push(Case::ok(format!("Content-Length: {lengths}\r\n\r\nabc"), Waits, Whole(200, "abc")));
    }
    for lengths in [
        "3\r\nContent-Length: 4",
        "3, 3",
        "3, 4",
        "3,",
        "-1",
        "+3",
        "0x3",
        "3 3",
        "3;",
        "3.0",
        "abc",
        "",
        "\"3\"",
        "18446744073709551615",
        "18446744073709551616",
        "3\r\nTransfer-Encoding: chunked",
    ] {
        cases.push(Case::ok(format!("Content-Length: {lengths}\r\n\r\n{body}"), Closes, Refusal));
    }
    for coding in ["chunked", "Chunked", "\tchunked "] {
        cases.push(Case::ok(format!("Transfer-Encoding: {coding}\r\n\r\n{body}"), Waits, Whole(200, "abc")));
    }
    for coding in [
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "chunked\r\nTransfer-Encoding: chunked",
        "chunked\r\nTransfer-Encoding: identity",
        "identity\r\nTransfer-Encoding: chunked",
        "gzip",
        "identity",
        "",
        "chunked,",
        ",chunked",
        "chunked;x=1",
        "x chunked",
        "\"chunked\"",
        "\u{b}chunked",
        "chunked\r\nContent-Length: 3",
    ] {
        cases.push(Case::ok(format!("Transfer-Encoding: {coding}\r\n\r\n{body}"), Closes, Refusal));
    }
    cases.push(Case::new(format!("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}"), Closes, Refusal));
    judge(cases);
}

#[test]
fn a_reply_that_breaks_off_is_cut_where_it_did() {
    let chunks = |octets: &str| format!("Transfer-Encoding: chunked\r\n\r\n6\r\nas far\r\n{octets}");
    let mut cases = Vec::new();
    for octets in [
        "zz\r\n",
        "-1\r\n",
        "+1\r\na\r\n",
        "0x1\r\na\r\n",
        " 1\r\na\r\n",
        "1 1\r\na\r\n",
        "1\na\r\n",
        "1\ra\r\n",
        "1;x\ny\r\na\r\n",
        "\r\n",
        "10000000000000000\r\na\r\n",
        "fffffffffffffffff\r\na\r\n",
        "0\r\nno colon\r\n\r\n",
        "0\r\nX-A : 1\r\n\r\n",
        "0\r\n: 1\r\n\r\n",
        "0\r\nX-A: \0\r\n\r\n",
        "0\r\n\r\0",
    ] {
        cases.extend([Waits, Closes].map(|then| Case::ok(chunks(octets), then, Cut("as far"))));
    }
    cases.push(Case::ok(chunks(&format!("0\r\n{}\r\n", "X-A: 1\r\n".repeat(20_000))), Waits, Cut("as far")));
    for octets in ["2\r\nand on\r\n", "2\r\nan\n0\r\n\r\n", "2\r\nan0\r\n\r\n", "2\r\nan\r0\r\n\r\n"] {
        cases.push(Case::ok(chunks(octets), Waits, Cut("as faran")));
    }
    for octets in [
        "",
        "1",
        "1\r",
        "1\r\n",
        "1;x=y\r\n",
        "ffffffffffffffff\r\n",
        "0",
        "0\r\n",
        "0\r\n\r",
        "0\r\nX-A: 1",
        "0\r\nX-A: 1\r\n",
    ] {
        cases.extend([Closes, Resets].map(|then| Case::ok(chunks(octets), then, Cut("as far"))));
    }
    for rest in ["Content-Length: 7\r\n\r\nas far", "Content-Length: 18446744073709551613\r\n\r\nas far"] {
        cases.extend([Closes, Resets].map(|then| Case::ok(rest, then, Cut("as far"))));
    }
    cases.push(Case::ok("\r\nas far", Resets, Cut("as far")));
    cases.push(Case::ok("\r\nas far", Closes, Whole(200, "as far")));
    cases.push(Case::ok(
        chunks("01 ;x=y\t;z=\"a b\"\r\n!\r\n000;last\r\nX-A: 1\r\n\r\n"),
        Waits,
        Whole(200, "as far!"),
    ));
    judge(cases);
}

#[test]
fn a_reply_that_nobody_asked_for_is_nobodys() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.ok("first");
        if conn.index == 0 {
            // It comes while the connection waits in the pool, which is closed over it.
            conn.ok("unasked");
            return conn.await_end();
        }
        conn.serve("next");
    });
    let daemon = daemon(&upstream.url(), "server.workers = 1", "");
    let mut caller = caller(&daemon);
    assert_eq!(caller.get("/").text(), "first");
    upstream.await_end(0);
    assert_eq!(caller.get("/").text(), "first");
    assert_eq!(caller.get("/").text(), "next");
    assert_eq!(upstream.connections(), 2);
}

/// A request as an upstream sees it: its first line's beginning, its body or that it was cut, and whether it was signed.
fn record(seen: &Arc<Mutex<Vec<String>>>) -> impl Fn(Conn) + Send + Sync + 'static {
    let seen = Arc::clone(seen);
    move |mut conn| {
        while let Some(head) = conn.head() {
            let body = conn.body(&head);
            let body_shown = body.as_ref().map_or("cut".into(), |body| String::from_utf8_lossy(body).into_owned());
            let start = head.split(" HTTP/1.1\r\n").next().unwrap();
            let is_signed = header(&head, "x-auth-token") == Some("the token");
            seen.lock().unwrap().push(format!("{start} {body_shown}{}", if is_signed { "" } else { " UNSIGNED" }));
            if body.is_none() {
                return;
            }
            conn.ok(format!("{start} {body_shown}"));
        }
    }
}

/// Sends each case's octets over a connection of its own, and compares what comes back and what has reached the upstream:
/// no more than was meant, and all of it signed.
fn judge_callers(route: &str, cases: &[(impl AsRef<str>, &[u16], &[&str])]) {
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let upstream = Upstream::start(record(&seen));
    let daemon = daemon(&upstream.url(), "", route);
    let mut wrong = Vec::new();
    for (octets, statuses, reached) in cases {
        let (octets, mut caller) = (octets.as_ref(), caller(&daemon));
        caller.send(octets.replace("HOST", "Host: up.localhost\r\n"));
        let mut got: Vec<_> = statuses.iter().map_while(|_| caller.try_reply()).map(|reply| reply.status).collect();
        // Where the connection has ended already, there is nothing to shut down.
        let _ = caller.stream.shutdown(Shutdown::Write);
        got.extend(std::iter::from_fn(|| caller.try_reply()).map(|reply| reply.status));
        await_that("as much as was meant", || seen.lock().unwrap().len() >= reached.len());
        let came = std::mem::take(&mut *seen.lock().unwrap());
        if got != *statuses || came != *reached {
            wrong.push(format!("{}: {got:?}, upstream {came:?}", shown(octets.as_bytes())));
        }
    }
    assert_eq!(caller(&daemon).get("/last").text(), "GET /last ");
    assert_eq!(*seen.lock().unwrap(), ["GET /last "], "something came late");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A request that must never arrive.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: up.localhost\r\n\r\n";

#[test]
fn no_spelling_of_a_framing_hides_a_request() {
    let mut cases = Vec::new();
    for line in [
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        " Transfer-Encoding: chunked",
        "Transfer-Encoding:\u{b}chunked",
        "Transfer-Encoding: chunked\u{b}",
        "Transfer-Encoding: chunked;x",
        "Transfer-Encoding: chunked\0",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunk",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        "Transfer-Encoding",
        "Transfer\0Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "Content-Length : 4",
        " Content-Length: 4",
        "Content-Length: 4\u{b}",
        "Content-Length: 4 4",
        "Content-Length: 4\r\nContent-Length:",
        "Content-Length: 4,",
    ] {
        cases.push((
            format!("POST / HTTP/1.1\r\nHOST{line}\r\n\r\n0\r\n\r\n{HIDDEN}"),
            [400].as_slice(),
            [].as_slice(),
        ));
    }
    // What is legal is read as it is meant, and goes on in the one way that it can be read.
    let behind = "GET /behind ";
    let legal = [
        ("transfer-ENCODING:\tCHUNKED \t", "5;x=y\r\nhello\r\n0\r\n\r\n", ["POST / hello", behind]),
        ("X: y\nTransfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n", ["POST / hello", behind]),
        ("Content-Length:\t05 ", "hello", ["POST / hello", behind]),
        ("X-Transfer-Encoding: chunked", "", ["POST / ", behind]),
    ];
    for (line, body, reached) in &legal {
        let octets = format!("POST / HTTP/1.1\r\nHOST{line}\r\n\r\n{body}GET /behind HTTP/1.1\r\nHOST\r\n");
        cases.push((octets, [200, 200].as_slice(), reached));
    }
    judge_callers("", &cases);
}

#[test]
fn a_body_that_breaks_off_ends_its_request_and_nothing_behind_it_is_one() {
    let mut cases = Vec::new();
    for chunk in [
        "zz\r\n",
        "-1\r\n",
        "+1\r\na\r\n",
        "0x1\r\na\r\n",
        " 1\r\na\r\n",
        "1\na\r\n",
        "fffffffffffffffff\r\n",
        "1\r\naa\r\n",
        "1\r\na\n",
        "0\r\nno colon\r\n\r\n",
    ] {
        let octets = format!("POST / HTTP/1.1\r\nHOSTTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n{chunk}{HIDDEN}");
        cases.push((octets, [400].as_slice(), ["POST / cut"].as_slice()));
    }
    judge_callers("", &cases);
}

#[test]
fn the_body_of_a_request_that_is_refused_is_no_request() {
    let length = HIDDEN.len();
    let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{HIDDEN}\r\n0\r\n\r\n");
    let framed = [
        format!("Content-Length: {length}\r\n\r\n{HIDDEN}"),
        format!("Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"),
        chunked.clone(),
        format!("Expect: 100-continue\r\n{chunked}"),
        // More is announced than comes.
        format!("Content-Length: 100000\r\n\r\n{HIDDEN}"),
        format!("Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n{HIDDEN}"),
    ];
    let head = "PUT / HTTP/1.1\r\nHOST";
    let cases = framed.map(|framed| (format!("{head}{framed}"), [403].as_slice(), [].as_slice()));
    judge_callers("allow = [\"GET /**\"]", &cases);
}

#[test]
fn heads_that_are_odd_are_refused_or_put_right() {
    judge_callers(
        "",
        &[
            ("", &[], &[]),
            ("GET / HTTP/1.1\r\nHost: up.loc", &[], &[]),
            ("GET /\r\n\r\n", &[400], &[]),
            ("GET / HTTP/1.1 \r\nHOST\r\n", &[400], &[]),
            ("GET / HTTP/1.1\r\nHOST: empty\r\n\r\n", &[400], &[]),
            ("GET / HTTP/1.1\nHost: up.localhost\n\n", &[200], &["GET / "]),
            ("\r\n\r\nGET / HTTP/1.1\r\nHOST\r\n", &[200], &["GET / "]),
            ("GET http://up.localhost/a?b HTTP/1.1\r\nHOST\r\n", &[200], &["GET /a?b "]),
            (
                "GET /a HTTP/1.0\r\nHOSTContent-Length: 2\r\n\r\nokGET /hidden HTTP/1.0\r\nHOST\r\n",
                &[200],
                &["GET /a ok"],
            ),
        ],
    );
}

#[test]
fn requests_in_one_segment_are_answered_in_their_order() {
    let upstream = Upstream::start(record(&Arc::default()));
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = caller(&daemon);
    let chunked = "HTTP/1.1\r\nHost: up.localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    let octets = (0..10).map(|number| match number % 3 {
        0 => request("GET", &format!("/{number}"), ""),
        1 => request("POST", &format!("/{number}"), "with a body"),
        _ => format!("PUT /{number} {chunked}"),
    });
    caller.send(octets.collect::<Vec<_>>().concat());
    for number in 0..10 {
        let expected = match number % 3 {
            0 => format!("GET /{number} "),
            1 => format!("POST /{number} with a body"),
            _ => format!("PUT /{number} x"),
        };
        assert_eq!(caller.reply().text(), expected);
    }
}
