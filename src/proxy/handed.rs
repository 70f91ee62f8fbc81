//! Sockets that the service manager has bound and hands over, each under a name (`sd_listen_fds(3)`).

use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use listenfd::ListenFd;
use socket2::SockRef;

use super::listen::{Address, Bound, BoundSocket};

/// Every socket that was handed over. The manager keeps them too, so callers wait there while nobody accepts.
#[derive(Debug, Default)]
pub struct Handed(Vec<Socket>);

/// A socket that was handed over.
#[derive(Debug)]
pub struct Socket {
    /// The name, which several may share.
    name: String,
    /// Where it listens, and the socket; or why nobody can be accepted there.
    usable: Result<(Address, BoundSocket), String>,
}

impl Handed {
    /// Takes what the environment names, if it is meant for this process. Once, and before there is a second thread:
    /// variables are taken out of the environment.
    ///
    /// # Errors
    /// The environment contradicts itself, or what is open.
    pub fn take() -> io::Result<Self> {
        // From here on no program that is started inherits them, whatever becomes of them.
        if sd_notify::listen_fds()?.len() == 0 {
            // There may be names all the same, which are another process's.
            return Ok(Self::default());
        }
        let names: Vec<_> = sd_notify::listen_fds_with_names()?.map(|(_, name)| name).collect();
        let mut given = ListenFd::from_env();
        let sockets = names.into_iter().enumerate().map(|(at, name)| Socket { name, usable: usable(&mut given, at) });
        Ok(Self(sockets.collect()))
    }

    /// The sockets of a name.
    ///
    /// # Errors
    /// There is none, or one that cannot be used; what to do about it.
    pub fn named(&self, name: &str) -> io::Result<Vec<Given<'_>>> {
        let found: Vec<_> = self.0.iter().filter(|socket| socket.name == name).collect();
        if self.0.is_empty() {
            return Err(io::Error::other(
                "no socket was handed over: start the daemon through a .socket unit such as countersign.socket",
            ));
        }
        if found.is_empty() {
            let mut names: Vec<_> = self.0.iter().map(|socket| socket.name.as_str()).collect();
            names.dedup();
            let names = names.join(", ");
            return Err(io::Error::other(format!(
                "no socket of this name was handed over, only {names}: FileDescriptorName= of the .socket unit sets the name"
            )));
        }
        found.into_iter().map(|socket| socket.given().map_err(|reason| io::Error::other(reason.clone()))).collect()
    }

    /// The name under which a socket with this address was handed over.
    #[must_use]
    pub fn name_of(&self, address: &Address) -> Option<&str> {
        let is_it = |socket: &&Socket| socket.given().is_ok_and(|given| given.address.is_same_place(address));
        self.0.iter().find(is_it).map(|socket| socket.name.as_str())
    }

    /// The names, and where the sockets listen.
    pub fn all(&self) -> impl Iterator<Item = (&str, Option<&Address>)> {
        self.0.iter().map(|socket| (socket.name.as_str(), socket.given().ok().map(|given| given.address)))
    }
}

impl Socket {
    fn given(&self) -> Result<Given<'_>, &String> {
        self.usable.as_ref().map(|(address, socket)| Given { address, socket })
    }
}

/// A socket that callers can be accepted from.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// Where it listens.
    pub address: &'a Address,
    socket: &'a BoundSocket,
}

impl Given<'_> {
    /// The socket, for a number of threads.
    ///
    /// # Errors
    /// The descriptors have run out.
    pub fn bound(&self, threads: usize) -> io::Result<Bound> {
        let sockets = (0..threads).map(|_| self.socket.try_clone());
        Ok(Bound { address: self.address.clone(), sockets: sockets.collect::<io::Result<_>>()? })
    }
}

fn usable(given: &mut ListenFd, at: usize) -> Result<(Address, BoundSocket), String> {
    let socket = if let Ok(Some(socket)) = given.take_tcp_listener(at) {
        BoundSocket::Tcp(socket)
    } else if let Ok(Some(socket)) = given.take_unix_listener(at) {
        BoundSocket::Unix(socket)
    } else {
        return Err("what was handed over is no stream socket: ListenStream= makes one".to_owned());
    };
    let (is_listener, address) = match &socket {
        BoundSocket::Tcp(socket) => (SockRef::from(socket).is_listener(), socket.local_addr().map(Address::Tcp)),
        BoundSocket::Unix(socket) => (SockRef::from(socket).is_listener(), unix_address(socket)),
    };
    let prepared = is_listener.and_then(|is_listener| {
        socket.set_nonblocking()?;
        Ok((is_listener, address?))
    });
    match prepared {
        Ok((true, address)) => Ok((address, socket)),
        Ok((false, _)) => {
            Err("what was handed over is a caller's connection: take Accept=yes out of the .socket unit".to_owned())
        }
        Err(error) => Err(format!("what was handed over cannot be used: {error}")),
    }
}

/// A Unix socket's address: a path, or a name in the abstract namespace, written with `@`.
fn unix_address(socket: &UnixListener) -> io::Result<Address> {
    use std::os::linux::net::SocketAddrExt;

    let address = socket.local_addr()?;
    let name = address.as_abstract_name().map(|name| format!("@{}", name.escape_ascii()));
    let path = address.as_pathname().map_or_else(|| PathBuf::from(name.unwrap_or_default()), PathBuf::from);
    Ok(Address::Unix { path, mode: None, group: None })
}
