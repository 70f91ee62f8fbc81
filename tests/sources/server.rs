//! A server that answers every request, one a connection, as a function says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign::demo::certificates::{Authority, Purpose, Wish};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A server on the loopback, for as long as the tests run.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Answers with what `reply` makes of a request.
    pub(crate) fn start(reply: impl Fn(&str) -> String + Send + 'static) -> Self {
        Self::over(None, reply)
    }

    /// The same over TLS, with a certificate of this authority.
    pub(crate) fn secure(authority: &Authority, reply: impl Fn(&str) -> String + Send + 'static) -> Self {
        Self::over(Some(config(authority)), reply)
    }

    fn over(tls: Option<Arc<ServerConfig>>, reply: impl Fn(&str) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let journal = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                match &tls {
                    None => answer(stream, &reply, &journal),
                    Some(config) => {
                        let connection = ServerConnection::new(Arc::clone(config)).unwrap();
                        answer(StreamOwned::new(connection, stream), &reply, &journal);
                    }
                }
            }
        });
        Self { address, heard }
    }

    /// Every request so far.
    pub(crate) fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    /// The first line of every request so far, without the version.
    pub(crate) fn asked(&self) -> Vec<String> {
        let heard = self.heard();
        heard.iter().map(|request| request.split(" HTTP/1.1").next().unwrap().to_owned()).collect()
    }
}

fn answer(mut stream: impl Read + Write, reply: &impl Fn(&str) -> String, journal: &Mutex<Vec<String>>) {
    let (mut request, mut octets) = (Vec::new(), [0; 4096]);
    loop {
        let Ok(length @ 1..) = stream.read(&mut octets) else { return };
        request.extend_from_slice(&octets[..length]);
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let wanted = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
        if body.len() >= wanted.parse().unwrap() {
            break;
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    journal.lock().unwrap().push(request.clone());
    let _ = stream.write_all(reply(&request).as_bytes());
    let _ = stream.flush();
}

/// A reply with a status and a body, dated as the tests are.
pub(crate) fn reply(status: &str, body: &str) -> String {
    dated("Fri, 02 Jan 2026 03:04:05 GMT", status, "", body)
}

/// The same with another date, and with more lines in its head.
pub(crate) fn dated(date: &str, status: &str, lines: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ndate: {date}\r\ncontent-length: {length}\r\nconnection: close\r\n{lines}\r\n{body}")
}

fn config(authority: &Authority) -> Arc<ServerConfig> {
    let wish = Wish { names: &["127.0.0.1"], ..Wish::new(Purpose::Server, "a test") };
    let identity = authority.issue(&wish).unwrap();
    let config = ServerConfig::builder_with_provider(countersign::upstream::tls::provider());
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    Arc::new(config.with_single_cert(vec![identity.certificate()], identity.key()).unwrap())
}
