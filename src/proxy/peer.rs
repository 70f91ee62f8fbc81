//! Who calls, by the kernel's word.
//!
//! On a Unix socket the kernel keeps the other end's user and primary group from the moment that it connected
//! (`SO_PEERCRED`). Its other groups (`SO_PEERGROUPS`) no safe interface tells, so they are read out of `/proc`, under the
//! protection of a descriptor for the process (`SO_PEERPIDFD`, since Linux 6.5): while that names the process, nobody
//! else has its number. What the system's database says of the user would be another matter: a service may have groups
//! that are not written there, and a program may have given up those that are.
//!
//! On TCP the kernel tells the user who made the other end's socket ([`socket_diag`]), if that is on this machine. It
//! tells no process: to find one, everybody's open files would have to be looked through, and those of other users are
//! closed to us.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Once, OnceLock};

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::net::unix::UCred;
use tracing::warn;

use super::caller::Stream;
use super::socket_diag;

/// Who calls, as far as the kernel tells. What is unknown is `None`, never a number that could be somebody's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The address, on TCP.
    pub address: Option<IpAddr>,
    /// The user; on TCP only where it was asked for.
    pub(super) uid: Option<u32>,
    /// The primary group, on a Unix socket.
    pub(super) gid: Option<u32>,
    /// The other groups, on a Unix socket, where they were asked for.
    pub(super) groups: Vec<u32>,
    /// The process that connected, on a Unix socket.
    pub(super) pid: Option<i32>,
    /// What was asked for.
    pub(super) asked: Asks,
}

/// What is asked about callers beyond what the kernel tells at once: it costs some microseconds a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asks {
    /// The user, on TCP.
    pub users: bool,
    /// Groups beside the primary one, on a Unix socket.
    pub groups: bool,
}

impl Asks {
    /// What either asks for.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { users: self.users || other.users, groups: self.groups || other.groups }
    }

    /// True if whoever was asked this has been asked all that the other asks.
    fn includes(self, other: Self) -> bool {
        self.or(other) == self
    }
}

impl Peer {
    /// Asks the kernel about the other end of a stream that has just been accepted; `address` is its address, on TCP.
    #[must_use]
    pub fn of(stream: &Stream, address: Option<SocketAddr>, asks: Asks) -> Self {
        let mut peer = Self { address: address.map(|address| address.ip()), asked: asks, ..Self::default() };
        match (stream, address) {
            (Stream::Tcp(stream), Some(address)) => {
                let is_local = address.ip().to_canonical().is_loopback();
                peer.uid = (asks.users && is_local).then(|| owner(stream, address)).flatten();
            }
            (Stream::Tcp(_), None) => {}
            (Stream::Unix(stream), _) => {
                if let Ok(credentials) = stream.peer_cred() {
                    let nobody = overflow();
                    peer.pid = credentials.pid();
                    peer.uid = known(credentials.uid(), nobody.uid);
                    peer.gid = known(credentials.gid(), nobody.gid);
                    if asks.groups {
                        let groups = groups(stream, &credentials).unwrap_or_default();
                        peer.groups = groups.into_iter().filter_map(|group| known(group, nobody.gid)).collect();
                    }
                }
            }
        }
        peer
    }

    /// The user, if the kernel was asked and knows.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// True unless it came when less was asked about callers, so that it may be unknown for that reason alone.
    #[must_use]
    pub fn was_asked(&self, asks: Asks) -> bool {
        self.asked.includes(asks)
    }

    /// Logs that it was denied.
    pub fn log_denied(&self, route: &str, id: &str, error: &impl fmt::Display) {
        let (uid, pid) = (Shown(self.uid), Shown(self.pid));
        let from = self.address.map_or_else(|| "a Unix socket".to_owned(), |address| address.to_string());
        warn!(route, %uid, %pid, from, id, "a caller was denied: {error}");
    }
}

/// A number, for people.
struct Shown<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(number) => number.fmt(f),
            None => f.write_str("unknown"),
        }
    }
}

/// The user who made the other end of a TCP connection, if that is still open.
fn owner(stream: &TcpStream, address: SocketAddr) -> Option<u32> {
    let found = stream.local_addr().and_then(|ours| socket_diag::owner(address, ours));
    let uid = found.unwrap_or_else(|error| {
        static WARNED: Once = Once::new();
        WARNED.call_once(|| {
            let denied = "the kernel does not tell who callers on TCP are, so `callers.uid` denies them";
            warn!(%error, "{denied}: is AF_NETLINK forbidden?");
        });
        None
    });
    // While our end is open, no other connection has the same two ports: else the answer could be about a later one.
    stream.peer_addr().ok()?;
    known(uid?, overflow().uid)
}

/// The groups of the process at the other end. `None` if they cannot be told, or if it is not the user any more that it
/// was when it connected.
fn groups(stream: &impl AsFd, credentials: &UCred) -> Option<Vec<u32>> {
    let process = getsockopt(stream, sockopt::PeerPidfd).ok()?;
    // The number by which this /proc knows the process; gone when the process is.
    let description = format!("/proc/self/fdinfo/{}", process.as_raw_fd());
    let number = || field(&read(&description).ok()?, "Pid:")?.trim().parse::<u32>().ok().filter(|pid| *pid > 0);
    let before = number()?;
    let status = read(&format!("/proc/{before}/status")).ok()?;
    (number()? == before).then_some(())?;
    groups_of(&status, credentials.uid(), credentials.gid())
}

fn read(path: &str) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MOST).read_to_string(&mut text)?;
    Ok(text)
}

/// The groups out of a process' status, if it has this user and this group.
fn groups_of(status: &str, uid: u32, gid: u32) -> Option<Vec<u32>> {
    let numbers =
        |name| field(status, name)?.split_whitespace().map(|id| id.parse().ok()).collect::<Option<Vec<u32>>>();
    // Real, effective, saved, and for files: a socket has the effective ones.
    let effective = |name| numbers(name)?.get(1).copied();
    (effective("Uid:")? == uid && effective("Gid:")? == gid).then_some(())?;
    numbers("Groups:")
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    // A line that was cut off by the bound has no end.
    text.split_inclusive('\n').find_map(|line| line.strip_prefix(name)?.strip_suffix('\n'))
}

/// What the kernel says of those whom our user namespace has no number for.
struct Overflow {
    uid: u32,
    gid: u32,
}

fn overflow() -> &'static Overflow {
    static OVERFLOW: OnceLock<Overflow> = OnceLock::new();
    let id = |name| read(&format!("/proc/sys/kernel/{name}")).ok().and_then(|id| id.trim().parse().ok());
    OVERFLOW
        .get_or_init(|| Overflow { uid: id("overflowuid").unwrap_or(NOBODY), gid: id("overflowgid").unwrap_or(NOBODY) })
}

/// What it says of everybody who has no number is nobody's.
fn known(id: u32, nobody: u32) -> Option<u32> {
    (id != nobody).then_some(id)
}

/// The number that stands for those who have none.
pub const NOBODY: u32 = 65534;

/// How long a status may be: there may be 65536 groups.
const MOST: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str =
        "Name:\tGroups:\nUid:\t1\t1000\t2\t3\nGid:\t4\t100\t5\t6\nFDSize:\t64\nGroups:\t4 24 100 \nSeccomp:\t0\n";

    #[test]
    fn groups_are_of_the_user_who_connected() {
        assert_eq!(groups_of(STATUS, 1000, 100), Some(vec![4, 24, 100]));
        for (uid, gid) in [(1, 100), (1000, 4), (0, 0)] {
            assert_eq!(groups_of(STATUS, uid, gid), None, "{uid} {gid}");
        }
        assert_eq!(groups_of(&STATUS.replace("4 24 100 ", ""), 1000, 100), Some(vec![]));
    }

    #[test]
    fn what_is_no_status_tells_no_groups() {
        for end in 0..STATUS.len() {
            let cut = STATUS.get(..end).unwrap();
            let is_whole = cut.contains("100 \n");
            assert_eq!(groups_of(cut, 1000, 100), is_whole.then(|| vec![4, 24, 100]), "{cut:?}");
        }
        for (part, other) in [("24", "x"), ("24", "-1"), ("24", "4294967296"), ("1000", ""), ("Uid", "uid")] {
            assert_eq!(groups_of(&STATUS.replace(part, other), 1000, 100), None, "{other}");
        }
    }

    #[test]
    fn who_has_no_number_is_unknown() {
        assert_eq!(known(NOBODY, NOBODY), None);
        assert_eq!(known(0, NOBODY), Some(0));
    }

    #[test]
    fn whoever_came_before_more_was_asked_can_be_told() {
        let (none, users) = (Asks::default(), Asks { users: true, groups: false });
        let peer = |asked| Peer { asked, ..Peer::default() };
        assert!(peer(none).was_asked(none) && peer(users).was_asked(none) && peer(users).was_asked(users));
        assert!(!peer(none).was_asked(users) && !peer(users).was_asked(Asks { users: true, groups: true }));
    }
}
