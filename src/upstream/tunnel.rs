//! A tunnel through a proxy: `CONNECT` (RFC 9110, section 9.3.6).

use std::io::{self, ErrorKind};

use http::HeaderValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::outbound::ProxyServer;

/// Why there is no tunnel.
#[derive(Debug)]
pub enum Refusal {
    /// The connection broke before the answer was complete.
    Broken(io::Error),
    /// What came is no answer of HTTP/1.
    Garbled,
    /// The answer's head does not end within [`MOST`].
    TooLarge,
    /// The proxy wants to be shown who asks, or does not accept what it was shown: 407, with what it said in
    /// `Proxy-Authenticate`.
    Denied(Vec<Vec<u8>>),
    /// Another answer, with its status and its reason phrase, if it has one that can be shown.
    Answered(u16, Option<String>),
}

impl Refusal {
    /// What happened, and what to do about it. The proxy's answers are told as its own: the upstream has seen nothing.
    #[must_use]
    pub fn describe(&self, proxy: &ProxyServer, authority: &str) -> String {
        let (status, reason) = match self {
            Self::Denied(challenges) => return proxy.denial(challenges.iter().map(Vec::as_slice)),
            Self::Answered(status, reason) => (status, reason),
            Self::Broken(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return format!(
                    "the outbound proxy {proxy} closed the connection before a tunnel to {authority} was open"
                );
            }
            Self::Broken(error) => {
                return format!(
                    "the connection to the outbound proxy {proxy} broke before a tunnel to {authority} was open: {error}"
                );
            }
            Self::Garbled => {
                return format!(
                    "the outbound proxy {proxy} does not answer in HTTP/1: is there an HTTP proxy, at a port without TLS?"
                );
            }
            Self::TooLarge => {
                return format!("the outbound proxy {proxy} answered CONNECT with a head of more than {MOST} octets");
            }
        };
        let space = if reason.is_some() { " " } else { "" };
        let reason = reason.as_deref().unwrap_or_default();
        let help = match status {
            403 | 405 => "it does not allow that: ask whoever runs it",
            // squid says 500 where it does not find the name.
            500..=599 => "it cannot reach the upstream itself",
            _ => "is it an HTTP proxy?",
        };
        format!(
            "the outbound proxy {proxy}, not the upstream, answered {status}{space}{reason} when asked for a tunnel to \
             {authority}: {help}"
        )
    }
}

/// Asks the proxy at the other end of a stream for a tunnel to `authority`, a host and a port. Afterwards the stream is the
/// tunnel: nothing that came through it has been read.
///
/// # Errors
/// Why there is no tunnel.
pub async fn open(stream: &mut TcpStream, authority: &str, authorization: Option<&HeaderValue>) -> Result<(), Refusal> {
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n").into_bytes();
    if let Some(authorization) = authorization {
        request.extend([b"Proxy-Authorization: ", authorization.as_bytes(), b"\r\n"].concat());
    }
    request.extend(b"\r\n");
    stream.write_all(&request).await.map_err(Refusal::Broken)?;
    let mut room = MOST;
    loop {
        let head = head(stream, room).await?;
        room = room.saturating_sub(head.len());
        match status(&head).ok_or(Refusal::Garbled)? {
            // An interim answer; 101 would be the end of HTTP, which nobody asked for.
            (100 | 102..200, _) => {}
            // What it says of a body means nothing here.
            (200..300, _) => return Ok(()),
            (407, _) => return Err(Refusal::Denied(challenges(&head))),
            (status, reason) => return Err(Refusal::Answered(status, shown(reason, authorization))),
        }
    }
}

/// Reads a head with its empty line, and not an octet more: what follows belongs to the tunnel.
async fn head(stream: &mut TcpStream, room: usize) -> Result<Vec<u8>, Refusal> {
    let mut head = Vec::new();
    let mut piece = vec![0; 1024];
    loop {
        // Looked at first, and taken as far as it is ours.
        let before = head.len();
        let seen = stream.peek(&mut piece).await.map_err(Refusal::Broken)?;
        if seen == 0 {
            return Err(Refusal::Broken(ErrorKind::UnexpectedEof.into()));
        }
        head.extend_from_slice(piece.get(..seen).unwrap_or_default());
        let end = end(&head);
        head.truncate(end.unwrap_or(head.len()));
        let taken = piece.get_mut(..head.len() - before).unwrap_or_default();
        stream.read_exact(taken).await.map_err(Refusal::Broken)?;
        // Whatever else greets us would not answer before it is asked, and would not end.
        if !head.iter().zip(VERSION).all(|(found, expected)| found == expected) {
            return Err(Refusal::Garbled);
        }
        if head.len() > room {
            return Err(Refusal::TooLarge);
        }
        if end.is_some() {
            return Ok(head);
        }
    }
}

/// Where a head ends: behind its first empty line.
fn end(octets: &[u8]) -> Option<usize> {
    let mut end = 0;
    octets.split_inclusive(|octet| *octet == b'\n').find_map(|line| {
        end += line.len();
        matches!(line, b"\n" | b"\r\n").then_some(end)
    })
}

/// The status and the reason phrase of a head (RFC 9112, section 4).
fn status(head: &[u8]) -> Option<(u16, &[u8])> {
    let line = head.split(|octet| *octet == b'\n').next()?.trim_ascii_end();
    let (minor, rest) = line.strip_prefix(VERSION)?.split_first()?;
    let (digits, reason) = rest.strip_prefix(b" ")?.split_at_checked(3)?;
    let is_status = minor.is_ascii_digit() && digits.iter().all(u8::is_ascii_digit);
    let status = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let is_over = reason.is_empty() || reason.starts_with(b" ");
    (is_status && is_over && (100..600).contains(&status)).then_some((status, reason.trim_ascii()))
}

/// The values of a head's `Proxy-Authenticate`.
fn challenges(head: &[u8]) -> Vec<Vec<u8>> {
    let name = b"proxy-authenticate:";
    let value = |line: &[u8]| match line.split_at_checked(name.len()) {
        Some((start, value)) if start.eq_ignore_ascii_case(name) => Some(value.trim_ascii().to_vec()),
        _ => None,
    };
    head.split(|octet| *octet == b'\n').filter_map(value).collect()
}

/// A reason phrase as people may see it: short, of visible ASCII, and without what the proxy was shown.
fn shown(reason: &[u8], authorization: Option<&HeaderValue>) -> Option<String> {
    let is_shown = |octet: &u8| octet.is_ascii_graphic() || *octet == b' ';
    let reason: String = reason.iter().filter(|octet| is_shown(octet)).map(|octet| char::from(*octet)).collect();
    let secret = authorization.and_then(|value| value.to_str().ok()?.split(' ').nth(1));
    let is_echo = secret.is_some_and(|secret| reason.contains(secret));
    (!reason.is_empty() && !is_echo).then(|| reason.chars().take(LONGEST).collect())
}

const VERSION: &[u8] = b"HTTP/1.";

/// What the heads of an answer may measure together, in octets.
pub const MOST: usize = 16 << 10;

/// How many characters of a reason phrase are shown.
const LONGEST: usize = 80;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    /// Asks for a tunnel; the proxy answers in these pieces and closes. What it was asked, how that ended, and what is left
    /// in the tunnel.
    async fn ask(pieces: &[&[u8]], authorization: Option<&str>) -> (String, Result<(), Refusal>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut proxy, _) = listener.accept().await.unwrap();
        proxy.set_nodelay(true).unwrap();
        let play = async move {
            let mut asked = vec![0; 1024];
            let length = proxy.read(&mut asked).await.unwrap();
            for piece in pieces {
                // A refusal ends the connection, and may come before all is sent.
                let _ = proxy.write_all(piece).await;
                tokio::task::yield_now().await;
            }
            asked.truncate(length);
            String::from_utf8(asked).unwrap()
        };
        let authorization = authorization.map(|value| HeaderValue::from_str(value).unwrap());
        let open = async move {
            let opened = open(&mut stream, "example.com:443", authorization.as_ref()).await;
            let mut left = String::new();
            if opened.is_ok() {
                stream.read_to_string(&mut left).await.unwrap();
            }
            (opened, left)
        };
        let (asked, (opened, left)) =
            timeout(Duration::from_secs(20), async { tokio::join!(play, open) }).await.unwrap();
        (asked, opened, left)
    }

    /// How asking ends, in short.
    async fn outcome(answer: &[u8]) -> String {
        match ask(&[answer], Some("Basic c2VjcmV0OnNlY3JldA==")).await.1 {
            Ok(()) => "open".to_owned(),
            Err(Refusal::Broken(error)) => error.kind().to_string(),
            Err(Refusal::Garbled) => "garbled".to_owned(),
            Err(Refusal::TooLarge) => "too large".to_owned(),
            Err(Refusal::Denied(challenges)) => format!("denied, {} challenges", challenges.len()),
            Err(Refusal::Answered(status, reason)) => format!("{status} {}", reason.unwrap_or_default()),
        }
    }

    #[tokio::test]
    async fn a_proxy_is_asked_for_one_host_and_port() {
        let answer: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\n\r\n"];
        let (asked, opened, _) = ask(answer, None).await;
        assert!(opened.is_ok());
        assert_eq!(asked, "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n");
        let (asked, ..) = ask(answer, Some("Basic dTpw")).await;
        assert!(asked.ends_with("\r\nHost: example.com:443\r\nProxy-Authorization: Basic dTpw\r\n\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn what_comes_through_the_tunnel_is_left_there() {
        let whole = b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.0 200 \r\nContent-Length: 9\r\n\r\n\r\nearly\r\n\r\n";
        let all: Vec<&[u8]> = vec![whole];
        let octets: Vec<&[u8]> = whole.chunks(1).collect();
        let pieces: Vec<&[u8]> = whole.chunks(7).collect();
        for pieces in [all, octets, pieces] {
            let (_, opened, left) = ask(&pieces, None).await;
            assert!(opened.is_ok(), "{opened:?}");
            assert_eq!(left, "\r\nearly\r\n\r\n");
        }
    }

    #[tokio::test]
    async fn an_answer_is_understood_or_refused() {
        let head = |size: usize| format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(size - 24)).into_bytes();
        let interim = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(1000);
        let long = format!("HTTP/1.1 403 {}\r\n\r\n", "no ".repeat(100)).into_bytes();
        let cut = format!("403 {}no", "no ".repeat(26));
        for (answer, expected) in [
            (b"HTTP/1.1 200 Connection established\r\n\r\n".as_slice(), "open"),
            (b"HTTP/1.1 299\nX: y\n\n", "open"),
            (&head(MOST), "open"),
            (&head(MOST + 1), "too large"),
            (&head(100 * MOST), "too large"),
            (&interim, "too large"),
            (
                b"HTTP/1.1 407 x\r\nPROXY-authenticate: Basic\r\nProxy-Authenticate:NTLM\r\n\r\nbody",
                "denied, 2 challenges",
            ),
            (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nbody", "403 Forbidden"),
            (b"HTTP/1.1 503\r\n\r\n", "503 "),
            (b"HTTP/1.1 302 \x1b[31mgo\xff\x07\xc3\xa9\tne\r\n\r\n", "302 [31mgone"),
            (b"HTTP/1.1 403 not c2VjcmV0OnNlY3JldA==\r\n\r\n", "403 "),
            (&long, &cut),
            (b"HTTP/1.1 101 Switching\r\n\r\n", "101 Switching"),
            (b"HTTP/2 200\r\n\r\n", "garbled"),
            (b"HTTP/1.1 2000\r\n\r\n", "garbled"),
            (b"HTTP/1.1 099\r\n\r\n", "garbled"),
            (b"HTTP/1.1 +20\r\n\r\n", "garbled"),
            (b"HTTP/1.1  200\r\n\r\n", "garbled"),
            (b"HTTP/1.1\r\n\r\n", "garbled"),
            (b"\r\nHTTP/1.1 200 OK\r\n\r\n", "garbled"),
            (b"SSH-2.0-OpenSSH", "garbled"),
            (b"\x15\x03\x01\x00\x02\x02\x46", "garbled"),
            (b"HTTP/1.1 200 OK\r\nX: y\r\n", "unexpected end of file"),
            (b"HT", "unexpected end of file"),
            (b"", "unexpected end of file"),
        ] {
            assert_eq!(outcome(answer).await, expected, "{}", String::from_utf8_lossy(&answer[..answer.len().min(80)]));
        }
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            for head in [octets.clone(), [VERSION, &octets].concat()] {
                let end = end(&head);
                prop_assert!(end.is_none_or(|end| end <= head.len() && head[..end].ends_with(b"\n")));
                let (_, reason) = status(&head).unwrap_or((0, &head));
                let shown = shown(reason, None).unwrap_or_default();
                prop_assert!(shown.len() <= LONGEST && shown.bytes().all(|octet| (b' '..=b'~').contains(&octet)));
                challenges(&head);
            }
        }
    }
}
