//! An upstream that answers what it is told to, and keeps what it heard octet by octet.

#![allow(dead_code, unreachable_pub, reason = "every test crate that includes this uses its own part of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A server on the loopback, for as long as the tests run.
pub struct Scripted {
    /// Where it listens.
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Scripted {
    /// Answers every request with the same octets, which should say how long their body is.
    pub fn start(reply: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let (reply, journal) = (reply.as_bytes().to_vec(), Arc::clone(&heard));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (reply, journal) = (reply.clone(), Arc::clone(&journal));
                std::thread::spawn(move || converse(stream, &reply, &journal));
            }
        });
        Self { address, heard }
    }

    /// Everything that came so far, connection by connection.
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().iter().map(|octets| String::from_utf8_lossy(octets).into_owned()).collect()
    }

    /// What came on the only connection there was.
    pub fn heard_once(&self) -> String {
        let mut heard = self.heard();
        assert_eq!(heard.len(), 1, "{heard:?}");
        heard.remove(0)
    }
}

/// Reads until the other side closes: a request that was smuggled in behind another is heard as well.
fn converse(mut stream: TcpStream, reply: &[u8], journal: &Mutex<Vec<Vec<u8>>>) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let index = {
        let mut journal = journal.lock().unwrap();
        journal.push(Vec::new());
        journal.len() - 1
    };
    let (mut octets, mut answered) = ([0; 4096], 0);
    while let Ok(length @ 1..) = stream.read(&mut octets) {
        let is_whole = {
            let heard = &mut journal.lock().unwrap()[index];
            heard.extend_from_slice(&octets[..length]);
            let is_whole = is_whole(&heard[answered..]);
            if is_whole {
                answered = heard.len();
            }
            is_whole
        };
        if is_whole && stream.write_all(reply).is_err() {
            return;
        }
    }
}

/// True if the octets end where a request does.
fn is_whole(octets: &[u8]) -> bool {
    let text = String::from_utf8_lossy(octets);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        return body == "0\r\n\r\n" || body.contains("\r\n0\r\n") && body.ends_with("\r\n\r\n");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    body.len() >= length.parse().unwrap()
}
