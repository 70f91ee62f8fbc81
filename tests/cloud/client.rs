//! A client that writes its requests octet by octet, and signs with the providers' own signers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use countersign::clock::{Clock, Timestamp};
use countersign::credential::{AccessKey, ExposeSecret};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

use crate::cloud::Cloud;
use crate::signing;

/// 2026-01-02T03:04:05.678Z.
pub(crate) const NOW: i64 = 1_767_323_045_678;

pub(crate) const TOKENS: &str = "/v3/auth/tokens?nocatalog=true";
pub(crate) const JSON: (&str, &str) = ("content-type", "application/json;charset=utf8");

pub(crate) type Headers<'a> = &'a [(&'a str, &'a str)];

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status and code of a refusal in JSON.
    pub(crate) fn code(&self) -> (u16, String) {
        let json = self.json();
        let names = ["error_code", "code", "Code"];
        let code = names.iter().find_map(|name| json[*name].as_str()).or_else(|| json["error"]["title"].as_str());
        (self.status, code.unwrap_or_default().to_owned())
    }
}

/// A raw client: a request on a connection of its own; `None` if there is no answer.
pub(crate) fn exchange(
    mut stream: impl Read + Write,
    request: &str,
    headers: Headers<'_>,
    body: &str,
) -> Option<Answer> {
    let mut text = format!("{request} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        text.extend([name, ": ", value, "\r\n"]);
    }
    if !headers.iter().any(|(name, _)| *name == "host") {
        text += "Host: somewhere\r\n";
    }
    stream.write_all(format!("{text}\r\n{body}").as_bytes()).ok()?;
    let mut octets = Vec::new();
    stream.read_to_end(&mut octets).ok()?;
    let end = octets.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, mut body) = (String::from_utf8(octets[..end].to_vec()).unwrap(), octets[end + 4..].to_vec());
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let fields = lines.map(|line| line.split_once(": ").unwrap());
    let headers: HeaderMap = fields
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()))
        .collect();
    if headers.get("transfer-encoding").is_some() {
        assert!(headers.get("content-length").is_none());
        body = unchunked(&body);
    }
    Some(Answer { status, headers, body })
}

pub(crate) fn unchunked(mut octets: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = octets.windows(2).position(|window| window == b"\r\n").unwrap();
        let length = usize::from_str_radix(str::from_utf8(&octets[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&octets[end + 2..end + 2 + length]);
        octets = &octets[end + 4 + length..];
    }
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

pub(crate) fn ask(address: SocketAddr, request: &str, headers: Headers<'_>) -> Answer {
    exchange(connect(address), request, headers, "").unwrap()
}

pub(crate) fn start() -> (Cloud, Clock) {
    let clock = Clock::fixed(Timestamp(NOW));
    (Cloud::start(&clock), clock)
}

pub(crate) fn lasting() -> AccessKey {
    AccessKey { access_key: "AKlasting".to_owned(), secret_key: "the-secret".into(), security_token: None }
}

/// A signed GET.
pub(crate) fn signed(
    provider: &str,
    key: &AccessKey,
    address: SocketAddr,
    target: &str,
    time: i64,
    nonce: &str,
) -> Answer {
    let mut table = format!(
        "credentials.access_key = '{}'\ncredentials.secret_key = '{}'\n",
        key.access_key,
        key.secret_key.expose_secret()
    );
    if let Some(token) = &key.security_token {
        table.extend(["credentials.security_token = '", token.expose_secret(), "'\n"]);
    }
    let (_, signer) = signing::configure(provider, &table);
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let host = address.to_string();
    let mut headers = HeaderMap::new();
    headers.insert("host", host.parse().unwrap());
    let (method, body, time) = (&Method::GET, &b""[..], Timestamp(time));
    let request = countersign::provider::Request { method, path, query, headers: &headers, body, time, nonce };
    let fields = signer.sign(&request, None).unwrap();
    let mut sent: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    sent.retain(|(name, _)| *name != "host");
    sent.push(("host", &host));
    ask(address, &format!("GET {target}"), &sent)
}

pub(crate) fn password(password: &str, scope: &Value) -> String {
    let user = json!({ "name": "the-user", "password": password, "domain": { "name": "the-account" } });
    json!({ "auth": { "identity": { "methods": ["password"], "password": { "user": user } }, "scope": scope } })
        .to_string()
}

pub(crate) fn log_in(cloud: &Cloud, body: &str) -> Answer {
    exchange(connect(cloud.iam.plain), &format!("POST {TOKENS}"), &[JSON], body).unwrap()
}
