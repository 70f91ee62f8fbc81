//! Whose a TCP socket of this machine is: a question to the kernel, and its answer (`sock_diag(7)`).

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recvfrom, sendto, socket_with};

/// The user who made the socket that is at `near` and connected to `far`. `None` if there is none, or if it is not open
/// any more: of what its owner has closed the kernel says that it is root's.
///
/// # Errors
/// The kernel does not answer such questions, or not to us.
pub fn owner(near: SocketAddr, far: SocketAddr) -> io::Result<Option<u32>> {
    let Some(question) = question(near, far) else { return Ok(None) };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(SOCK_DIAG))?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &question, SendFlags::empty(), &kernel)?;
    // The kernel has answered before it returns from the question, so there is nothing to wait for.
    let mut answer = [0; MOST];
    let (octets, _, from) = recvfrom(&socket, &mut answer, RecvFlags::empty())?;
    if from.and_then(|from| SocketAddrNetlink::try_from(from).ok()).is_none_or(|from| from.pid() != 0) {
        return Err(io::Error::new(ErrorKind::InvalidData, "somebody else answered"));
    }
    read(answer.get(..octets).unwrap_or_default(), near, far)
}

/// A `nlmsghdr` and an `inet_diag_req_v2` (`linux/netlink.h`, `linux/inet_diag.h`).
fn question(near: SocketAddr, far: SocketAddr) -> Option<Vec<u8>> {
    let (family, source, destination) = match (near.ip().to_canonical(), far.ip().to_canonical()) {
        (IpAddr::V4(near), IpAddr::V4(far)) => (INET, padded(near.octets()), padded(far.octets())),
        (IpAddr::V6(near), IpAddr::V6(far)) => (INET6, near.octets(), far.octets()),
        _ => return None,
    };
    let mut message = Vec::with_capacity(usize::from(QUESTION));
    message.extend(u32::from(QUESTION).to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // Its number, and who asks: one question a socket needs neither.
    message.extend([0; 8]);
    message.extend([family, IPPROTO_TCP, 0, 0]);
    message.extend((1_u32 << ESTABLISHED).to_ne_bytes());
    message.extend(near.port().to_be_bytes());
    message.extend(far.port().to_be_bytes());
    message.extend(source);
    message.extend(destination);
    // Any interface, any cookie.
    message.extend([0; 4]);
    message.extend([0xff; 8]);
    Some(message)
}

fn padded(address: [u8; 4]) -> [u8; 16] {
    let mut octets = [0; 16];
    for (place, octet) in octets.iter_mut().zip(address) {
        *place = octet;
    }
    octets
}

/// Reads a `nlmsghdr` and an `inet_diag_msg`, or the kernel's reason for having none.
fn read(answer: &[u8], near: SocketAddr, far: SocketAddr) -> io::Result<Option<u32>> {
    let broken = || io::Error::new(ErrorKind::InvalidData, "the kernel's answer cannot be read");
    let length = word(answer, 0).and_then(|length| usize::try_from(length).ok());
    let answer = length.and_then(|length| answer.get(..length)).ok_or_else(broken)?;
    let kind = octets(answer, 4).map(u16::from_ne_bytes).ok_or_else(broken)?;
    if kind == NLMSG_ERROR {
        let reason = octets(answer, BODY).map(i32::from_ne_bytes).ok_or_else(broken)?;
        let reason = io::Error::from_raw_os_error(reason.checked_neg().ok_or_else(broken)?);
        return if reason.kind() == ErrorKind::NotFound { Ok(None) } else { Err(reason) };
    }
    if kind != SOCK_DIAG_BY_FAMILY {
        return Err(broken());
    }
    let socket = Socket::read(answer).ok_or_else(broken)?;
    // Where none is connected like this, one that listens at the same port may be found.
    let is_it = socket.near == canonical(near) && socket.far == canonical(far);
    let is_open = socket.state == ESTABLISHED && socket.inode != 0;
    Ok((is_it && is_open).then_some(socket.uid))
}

/// What the kernel says of a socket.
struct Socket {
    state: u8,
    near: (IpAddr, u16),
    far: (IpAddr, u16),
    uid: u32,
    inode: u32,
}

impl Socket {
    fn read(answer: &[u8]) -> Option<Self> {
        let [family, state] = octets(answer, BODY)?;
        let address = |at| match family {
            INET => octets(answer, at).map(|octets: [u8; 4]| IpAddr::from(Ipv4Addr::from(octets))),
            INET6 => octets(answer, at).map(|octets: [u8; 16]| Ipv6Addr::from(octets).to_canonical()),
            _ => None,
        };
        let port = |at| octets(answer, at).map(u16::from_be_bytes);
        let (near, far) = ((address(BODY + 8)?, port(BODY + 4)?), (address(BODY + 24)?, port(BODY + 6)?));
        Some(Self { state, near, far, uid: word(answer, BODY + 64)?, inode: word(answer, BODY + 68)? })
    }
}

fn canonical(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

fn word(octets_of: &[u8], at: usize) -> Option<u32> {
    octets(octets_of, at).map(u32::from_ne_bytes)
}

fn octets<const N: usize>(all: &[u8], at: usize) -> Option<[u8; N]> {
    all.get(at..)?.first_chunk().copied()
}

/// How much of an answer is read, in octets: more than it has.
const MOST: usize = 1024;

/// The size of a question, and where an answer's header ends.
const QUESTION: u16 = 72;
const BODY: usize = 16;

const INET: u8 = 2;
const INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const ESTABLISHED: u8 = 1;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const SOCK_DIAG_BY_FAMILY: u16 = 20;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use super::*;

    fn pair(listen: &str, connect: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(listen).unwrap();
        let port = listener.local_addr().unwrap().port();
        let near = TcpStream::connect((connect.parse::<IpAddr>().unwrap(), port)).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn user() -> u32 {
        std::fs::metadata("/proc/self").unwrap().uid()
    }

    #[test]
    fn an_open_sockets_owner_is_known_and_no_others() {
        for (listen, connect) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
            ("127.0.0.1:0", "::ffff:127.0.0.1"),
            ("[::]:0", "127.0.0.1"),
        ] {
            if TcpListener::bind(listen).is_err() {
                // A machine without IPv6.
                continue;
            }
            let (near, far) = pair(listen, connect);
            let (here, there) = (far.peer_addr().unwrap(), far.local_addr().unwrap());
            assert_eq!(owner(here, there).unwrap(), Some(user()), "{connect} to {listen}");
            let mut other = here;
            other.set_port(here.port() ^ 1);
            assert_eq!(owner(other, there).unwrap(), None, "{connect} to {listen}");
            drop(near);
            assert_eq!(owner(here, there).unwrap(), None, "{connect} to {listen}");
        }
    }

    #[test]
    fn one_that_listens_is_nobodys_caller() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(owner(address, "127.0.0.1:9".parse().unwrap()).unwrap(), None);
        assert_eq!(owner(address, "[::1]:9".parse().unwrap()).unwrap(), None);
    }

    const NEAR: &str = "127.0.0.1:40000";
    const FAR: &str = "127.0.0.1:8080";

    fn answer(state: u8, uid: u32, inode: u32) -> Vec<u8> {
        let mut message = question(NEAR.parse().unwrap(), FAR.parse().unwrap()).unwrap();
        message.drain(20..24);
        message.splice(..4, 88_u32.to_ne_bytes());
        message[17] = state;
        message.extend([0; 12]);
        message.extend(uid.to_ne_bytes());
        message.extend(inode.to_ne_bytes());
        message
    }

    fn taken(message: &[u8]) -> io::Result<Option<u32>> {
        read(message, NEAR.parse().unwrap(), FAR.parse().unwrap())
    }

    #[test]
    fn only_what_is_established_and_has_an_owner_counts() {
        assert_eq!(taken(&answer(ESTABLISHED, 1000, 7)).unwrap(), Some(1000));
        // FIN_WAIT2, TIME_WAIT, CLOSE_WAIT, LISTEN.
        for state in [5, 6, 8, 10] {
            assert_eq!(taken(&answer(state, 1000, 7)).unwrap(), None, "{state}");
        }
        assert_eq!(taken(&answer(ESTABLISHED, 0, 0)).unwrap(), None);
        let whole = answer(ESTABLISHED, 1000, 7);
        for (place, why) in [(20, "near port"), (22, "far port"), (24, "near address"), (40, "far address")] {
            let mut other = whole.clone();
            other[place] ^= 1;
            assert_eq!(taken(&other).unwrap(), None, "{why}");
        }
    }

    #[test]
    fn the_kernels_reasons_are_told() {
        let refusal = |reason: i32| {
            let mut message = [0; 36];
            message[..4].copy_from_slice(&36_u32.to_ne_bytes());
            message[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
            message[16..20].copy_from_slice(&reason.to_ne_bytes());
            taken(&message)
        };
        assert_eq!(refusal(-2).unwrap(), None);
        assert_eq!(refusal(-1).unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(refusal(i32::MIN).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = taken(&octets);
        }

        #[test]
        fn nothing_is_made_of_a_part(end in 0_usize..88, place in 0_usize..88, octet in any::<u8>()) {
            let whole = answer(ESTABLISHED, 1000, 7);
            prop_assert!(taken(&whole[..end]).is_err());
            let mut other = whole;
            other[place] = octet;
            if let Ok(Some(uid)) = taken(&other) {
                prop_assert!(uid == 1000 || (80..84).contains(&place));
            }
        }
    }
}
