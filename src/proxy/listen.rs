//! Step 1: listen.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use crate::upstream::connect::keep_alive;
use crate::upstream::flow;

use super::caller::Stream;
use super::guard::Peer;

/// Where callers are listened to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix {
        /// Its file.
        path: PathBuf,
        /// Its mode; 0600, with a group 0660, if not given.
        mode: Option<u32>,
        /// Its group, by name or number.
        group: Option<String>,
    },
    /// A socket that systemd hands over, by its name.
    Systemd(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
            Self::Systemd(name) => write!(f, "systemd:{name}"),
        }
    }
}

/// A bound address: a socket for every thread that accepts there.
#[derive(Debug)]
pub struct Bound {
    /// The address, with the port that the kernel chose where 0 was asked for.
    pub address: Address,
    /// The sockets.
    pub sockets: Vec<BoundSocket>,
}

/// A bound socket that no runtime knows yet.
#[derive(Debug)]
pub enum BoundSocket {
    /// A TCP socket.
    Tcp(std::net::TcpListener),
    /// A Unix socket.
    Unix(std::os::unix::net::UnixListener),
}

impl Address {
    /// Binds the address for a number of threads. A TCP address is shared among sockets of our own; one that another
    /// process listens on is an error even if it would share it.
    ///
    /// # Errors
    /// Why it cannot be bound.
    pub fn bind(&self, threads: usize, sharing: Sharing) -> io::Result<Bound> {
        match self {
            Self::Tcp(address) => bind_tcp(*address, threads, sharing),
            Self::Unix { path, mode, group } => {
                let listener = bind_unix(path, *mode, group.as_deref())?;
                let sockets = (0..threads).map(|_| listener.try_clone().map(BoundSocket::Unix));
                Ok(Bound { address: self.clone(), sockets: sockets.collect::<io::Result<_>>()? })
            }
            Self::Systemd(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "sockets handed over by systemd are not supported yet: name an address",
            )),
        }
    }
}

/// Who listens on a port already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody may.
    Nobodys,
    /// We do, on an address that is a part of this one or that this one is a part of.
    Ours,
}

impl Address {
    /// True if both cannot be listened on at one time.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix { path, .. }, Self::Unix { path: other, .. }) => path == other,
            (one, other) => one == other,
        }
    }

    /// True if one is a part of the other: the same port, of all addresses and of one of them.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let (Self::Tcp(one), Self::Tcp(other)) = (self, other) else { return false };
        one.port() == other.port()
            && one.is_ipv4() == other.is_ipv4()
            && (one.ip().is_unspecified() || other.ip().is_unspecified())
    }

    /// Gives the file of a socket that is listened on already its mode and its group.
    ///
    /// # Errors
    /// What the kernel says, or that there is no such group.
    pub fn adjust(&self) -> io::Result<()> {
        match self {
            Self::Unix { path, mode, group } => open_to(path, *mode, group.as_deref()),
            _ => Ok(()),
        }
    }
}

fn bind_tcp(mut address: SocketAddr, threads: usize, sharing: Sharing) -> io::Result<Bound> {
    // A process that shares its port would get part of our callers, or we of its: found out by not sharing, once.
    // That socket stays until the others are bound, lest somebody else be given the port that the kernel chose.
    let probe = (sharing == Sharing::Nobodys).then(|| tcp_socket(address)).transpose()?;
    if let Some(probe) = &probe {
        probe.bind(&address.into())?;
        address = probe.local_addr()?.as_socket().unwrap_or(address);
    }
    let bind = |_| {
        let socket = tcp_socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(BoundSocket::Tcp(socket.into()))
    };
    Ok(Bound { address: Address::Tcp(address), sockets: (0..threads).map(bind).collect::<io::Result<_>>()? })
}

fn tcp_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Without it a restart would wait for the last connections' time to pass.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn bind_unix(path: &Path, mode: Option<u32>, group: Option<&str>) -> io::Result<std::os::unix::net::UnixListener> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // Nobody can connect before `listen`, so the file is never open to more than it should be.
    open_to(path, mode, group)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Opens a socket's file to those who may use it.
fn open_to(path: &Path, mode: Option<u32>, group: Option<&str>) -> io::Result<()> {
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group_id(group)?))?;
    }
    let mode = mode.unwrap_or(if group.is_some() { 0o660 } else { 0o600 });
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Removes the socket of a process that is gone; one that answers, or a file that is no socket, is left alone.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file exists and is no socket"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(error),
    }
}

fn group_id(group: &str) -> io::Result<u32> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let found = nix::unistd::Group::from_name(group).map_err(io::Error::from)?;
    let unknown = || io::Error::new(io::ErrorKind::NotFound, "there is no group of this name");
    found.map(|group| group.gid.as_raw()).ok_or_else(unknown)
}

/// A listener of one thread.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// Hands a bound socket to the current runtime.
    ///
    /// # Errors
    /// What the runtime's poller says.
    pub fn new(socket: BoundSocket) -> io::Result<Self> {
        match socket {
            BoundSocket::Tcp(socket) => TcpListener::from_std(socket).map(Self::Tcp),
            BoundSocket::Unix(socket) => UnixListener::from_std(socket).map(Self::Unix),
        }
    }

    /// The next caller.
    ///
    /// # Errors
    /// What the kernel says; running out of file descriptors among it.
    pub async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // A reply is written whole, so there is nothing to wait for.
                let _ = stream.set_nodelay(true);
                flow::bound_unsent(&SockRef::from(&stream));
                // One on this machine cannot vanish without the kernel's knowing.
                if !address.ip().to_canonical().is_loopback() {
                    keep_alive(&SockRef::from(&stream));
                }
                Ok((Stream::Tcp(stream), Peer { address: Some(address.ip()), ..Peer::default() }))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let credentials = stream.peer_cred().ok();
                let uid = credentials.map(|credentials| credentials.uid());
                let gid = credentials.map(|credentials| credentials.gid());
                Ok((Stream::Unix(stream), Peer { address: None, uid, gid }))
            }
        }
    }
}

/// How many callers the kernel lets wait to be accepted.
const BACKLOG: i32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_another_socket_shares_is_refused() {
        let bound = Address::Tcp("127.0.0.1:0".parse().unwrap()).bind(2, Sharing::Nobodys).unwrap();
        assert_eq!(bound.sockets.len(), 2);
        let error = bound.address.bind(1, Sharing::Nobodys).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn unix_sockets_get_their_mode_and_replace_only_stale_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cs.sock");
        let address = |mode| Address::Unix { path: path.clone(), mode, group: None };
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let bound = address(None).bind(2, Sharing::Nobodys).unwrap();
        assert_eq!(mode(), 0o600);
        assert_eq!(address(None).bind(1, Sharing::Nobodys).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(bound);
        let bound = address(Some(0o666)).bind(1, Sharing::Nobodys).unwrap();
        assert_eq!(mode(), 0o666);
        drop(bound);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(address(None).bind(1, Sharing::Nobodys).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn groups_go_by_name_or_number() {
        assert_eq!(group_id("0").unwrap(), 0);
        assert_eq!(group_id("root").unwrap(), 0);
        assert_eq!(group_id("no-such-group").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
