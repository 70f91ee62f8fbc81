//! HTTP/2 frame by frame, for an upstream that does what no good library lets it do. Heads are not decoded: what matters
//! here is which frames come, and when.

#![allow(dead_code, unreachable_pub, reason = "every test crate that includes this uses its own part of it")]

use std::collections::HashMap;

use super::script::Conn;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const MAX_CONCURRENT_STREAMS: u16 = 3;
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// `:status: 200`, as HPACK has it in its table.
pub const OK: &[u8] = &[0x88];
/// `:status: 403`, spelt out.
pub const FORBIDDEN: &[u8] = b"\x08\x03403";
/// `:status: 103`, spelt out.
pub const EARLY_HINTS: &[u8] = b"\x08\x03103";

/// A frame.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The reason of a reset.
    pub fn reason(&self) -> u32 {
        assert_eq!(self.kind, RST_STREAM, "{self:?}");
        u32::from_be_bytes(self.payload[..4].try_into().unwrap())
    }
}

/// A connection on which HTTP/2 was agreed on.
pub struct Frames {
    pub conn: Conn,
    /// False to leave pings unanswered.
    pub answers_pings: bool,
    /// What has come of the requests that are not whole.
    bodies: HashMap<u32, Vec<u8>>,
}

impl Frames {
    /// Reads the client's preface and sends settings of our own; `None` if the client does not speak HTTP/2.
    pub fn begin(conn: Conn, settings: &[(u16, u32)]) -> Option<Self> {
        let mut frames = Self::begin_silently(conn)?;
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| [name.to_be_bytes().as_slice(), &value.to_be_bytes()].concat())
            .collect();
        frames.send(SETTINGS, 0, 0, &payload);
        Some(frames)
    }

    /// The same without settings, against the rules.
    pub fn begin_silently(mut conn: Conn) -> Option<Self> {
        assert_eq!(conn.agreed().as_deref(), Some("h2"));
        let preface = conn.octets(24)?;
        assert_eq!(preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        Some(Self { conn, answers_pings: true, bodies: HashMap::new() })
    }

    /// Sends a frame; false if the other side is gone.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.conn.send([&head, payload].concat())
    }

    /// The next frame but settings and pings, which are acknowledged; `None` at the end of the connection.
    pub fn next(&mut self) -> Option<Frame> {
        loop {
            let head = self.conn.octets(9)?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
            let payload = self.conn.octets(usize::try_from(length).unwrap())?;
            match (head[3], head[4]) {
                (SETTINGS, 0) => drop(self.send(SETTINGS, ACK, 0, &[])),
                (PING, 0) if self.answers_pings => drop(self.send(PING, ACK, 0, &payload)),
                (SETTINGS | PING, _) => {}
                (kind, flags) => return Some(Frame { kind, flags, stream, payload }),
            }
        }
    }

    /// The next frame of a kind.
    pub fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// The next request, whole: its stream and its body.
    pub fn request(&mut self) -> Option<(u32, Vec<u8>)> {
        loop {
            let Frame { kind, flags, stream, payload } = self.next()?;
            match kind {
                HEADERS => drop(self.bodies.entry(stream).or_default()),
                DATA => self.bodies.entry(stream).or_default().extend(payload),
                RST_STREAM => drop(self.bodies.remove(&stream)),
                _ => {}
            }
            if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                return self.bodies.remove(&stream).map(|body| (stream, body));
            }
        }
    }

    /// Answers with a 200 and a body.
    pub fn answer(&mut self, stream: u32, body: &str) -> bool {
        self.send(HEADERS, END_HEADERS, stream, OK) && self.send(DATA, END_STREAM, stream, body.as_bytes())
    }

    pub fn reset(&mut self, stream: u32, reason: u32) -> bool {
        self.send(RST_STREAM, 0, stream, &reason.to_be_bytes())
    }

    /// Says that nothing after a stream will be looked at.
    pub fn go_away(&mut self, last: u32, reason: u32) -> bool {
        self.send(GOAWAY, 0, 0, &[last.to_be_bytes(), reason.to_be_bytes()].concat())
    }

    /// Answers every request until the connection ends.
    pub fn serve(mut self, body: &str) {
        while let Some((stream, _)) = self.request() {
            if !self.answer(stream, body) {
                return;
            }
        }
    }
}
