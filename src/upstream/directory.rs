//! Lists of servers that a service hands out in plain text, one a line.

use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use secrecy::zeroize::Zeroizing;

use super::ask::{Asker, Question};
use super::{Endpoint, Host, split_authority};

/// Where a list of servers is found, and what its lines leave out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Who hands it out.
    pub endpoint: Endpoint,
    /// The key of the configuration that names it.
    pub key: String,
    /// Path and query.
    pub target: &'static str,
    /// True if the servers are spoken to over TLS.
    pub secure: bool,
    /// Their port where a line names none.
    pub port: u16,
}

impl Directory {
    /// Asks for the list.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub async fn ask(&self, asker: &Asker) -> Result<Vec<Endpoint>, String> {
        let question = Question {
            endpoint: &self.endpoint,
            key: &self.key,
            ca: None,
            ca_key: &self.key,
            method: Method::GET,
            target: self.target,
            headers: HeaderMap::new(),
            body: Zeroizing::default(),
            connect: PATIENCE,
            answer: PATIENCE,
        };
        let answer = asker.ask(question).await?;
        if answer.status != StatusCode::OK {
            return Err(format!("{} answered {} where a list of servers was expected", self.endpoint, answer.status));
        }
        let mut servers = self.read(&String::from_utf8_lossy(&answer.body));
        // Many directories shuffle: another order is no other list.
        servers.sort_by_cached_key(ToString::to_string);
        if servers.is_empty() {
            return Err(format!("{} names no server that could be used", self.endpoint));
        }
        Ok(servers)
    }

    /// The servers that a list names; what is no server is left out, and so is what would lead back to this machine or to
    /// a service of its own, unless the list comes from there.
    #[must_use]
    pub fn read(&self, text: &str) -> Vec<Endpoint> {
        let is_near = |host: &Host| matches!(host, Host::Address(address) if is_near(*address));
        let is_trusted = self.endpoint.is_loopback() || is_near(&self.endpoint.host);
        let mut servers = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let Ok((host, port)) = split_authority(line) else { continue };
            let server = Endpoint { secure: self.secure, host, port: port.unwrap_or(self.port) };
            let is_fit = server.port != 0 && (is_trusted || !(server.is_loopback() || is_near(&server.host)));
            if is_fit && !servers.contains(&server) && servers.len() < MOST {
                servers.push(server);
            }
        }
        servers
    }
}

/// True for this machine and for what answers each machine about itself.
fn is_near(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.octets() == [100, 100, 100, 200]
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local(),
    }
}

/// How long connecting may take, and then the answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// How many servers of a list are used.
const MOST: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn directory(endpoint: &str, secure: bool) -> Directory {
        let port = if secure { 443 } else { 8080 };
        let endpoint = Endpoint::parse(endpoint).unwrap();
        Directory { endpoint, key: "address_server".to_owned(), target: "/list", secure, port }
    }

    fn read(directory: &Directory, text: &str) -> Vec<String> {
        directory.read(text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn lines_are_addresses_with_or_without_a_port() {
        let text =
            " 10.0.0.1 \r\n\n10.0.0.2:9000\nacm.test\nno server\n10.0.0.1\n10.0.0.3:0\n10.0.0.4:99999\n[fd00::1]:1\n";
        let expected = ["http://10.0.0.1:8080", "http://10.0.0.2:9000", "http://acm.test:8080", "http://[fd00::1]:1"];
        assert_eq!(read(&directory("http://acm.aliyun.com:8080", false), text), expected);
        let expected = ["https://10.0.0.1", "https://10.0.0.2:9000", "https://acm.test", "https://[fd00::1]:1"];
        assert_eq!(read(&directory("http://acm.aliyun.com:8080", true), text), expected);
    }

    #[test]
    fn a_list_from_afar_leads_nowhere_near() {
        let text = "127.0.0.1\nlocalhost\n169.254.169.254:80\n100.100.100.200\n0.0.0.0\n[::1]:1\n[fe80::1]\n10.0.0.1";
        assert_eq!(read(&directory("http://acm.aliyun.com", false), text), ["http://10.0.0.1:8080"]);
        assert_eq!(directory("http://127.0.0.1:1", false).read(text).len(), 8);
    }

    proptest! {
        #[test]
        fn no_list_is_too_odd(text in ".{0,200}") {
            let servers = directory("http://acm.aliyun.com", false).read(&text);
            prop_assert!(servers.iter().all(|server| server.port != 0 && !server.is_loopback()));
        }
    }
}
