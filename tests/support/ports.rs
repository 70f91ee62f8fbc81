//! Ports that a test must know before anybody listens on them.

#![allow(dead_code, unreachable_pub, reason = "every test crate that includes this uses its own part of it")]

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// An address that is kept for as long as the socket is there: the kernel gives its port to nobody who asks for any port.
/// It is bound and does not listen, so connections are refused there, and the daemon can listen on it.
pub fn reserve() -> (SocketAddr, Socket) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    (socket.local_addr().unwrap().as_socket().unwrap(), socket)
}
