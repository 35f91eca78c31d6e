//! The sockets of listeners and clients: TCP, Unix sockets with a path, and abstract ones.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FileType, FlockOperation, Mode, OFlags, fchmod, flock, lstat, open, unlink},
    io::Errno,
    net::{
        AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
        listen, socket_with, sockopt,
    },
};

use super::{
    super::{address::Address, readiness::Deadline},
    dial::connect_tcp,
    folder::check_folder,
};
use crate::os::random;

/// Length of the queue of connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 4096;

/// The file of a Unix socket with a path.
#[derive(Debug)]
pub(crate) struct SocketFile {
    pub(crate) path: PathBuf,
    /// Device and inode.
    pub(crate) inode: (u64, u64),
}

impl SocketFile {
    /// Removes the file if it is still ours: another listener may have replaced it.
    pub(crate) fn remove(&self) {
        let is_ours = lstat(&self.path).is_ok_and(|now| (now.st_dev, now.st_ino) == self.inode);
        if is_ours {
            let _ = unlink(&self.path);
        }
    }
}

/// Makes a socket that listens at an address. Returns the socket, the address with the port or name
/// that was chosen, and the file if there is one.
pub(super) fn bind_to(address: &Address) -> io::Result<(OwnedFd, Address, Option<SocketFile>)> {
    match address {
        Address::Tcp(host, port) => {
            let (socket, address) = bind_tcp(host, *port)?;
            Ok((socket, address, None))
        }
        Address::Abstract(name) => {
            let name = match name.is_empty() {
                true => {
                    format!("executor-{:032x}", u128::from_ne_bytes(random::bytes()?)).into_bytes()
                }
                false => name.clone(),
            };
            let socket = unix_socket(SocketFlags::NONBLOCK)?;
            bind(&socket, &SocketAddrUnix::new_abstract_name(&name)?)?;
            listen(&socket, BACKLOG)?;
            Ok((socket, Address::Abstract(name), None))
        }
        Address::Unix(path) => {
            let (socket, file) = bind_path(path, Access::ByUmask)?;
            Ok((socket, address.clone(), Some(file)))
        }
    }
}

/// Makes a socket that listens at an address, as [`bind_to`] does. If it has a file, only processes
/// of this user can connect to it, and nobody else can put another one in its place.
pub(crate) fn bind_private(
    address: &Address,
) -> io::Result<(OwnedFd, Address, Option<SocketFile>)> {
    match address {
        Address::Unix(path) => {
            let (socket, file) = bind_path(path, Access::Private)?;
            Ok((socket, address.clone(), Some(file)))
        }
        other => bind_to(other),
    }
}

/// Who may connect to a Unix socket with a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Whoever may write to the file that is created.
    ByUmask,
    /// Processes of this user, and of root.
    Private,
}

/// Connects a socket to an address.
pub(crate) fn connect_to(address: &Address, deadline: Deadline) -> io::Result<OwnedFd> {
    match address {
        Address::Tcp(host, port) => {
            let socket = connect_tcp(host, *port, deadline)?;
            prepare(&socket);
            Ok(socket)
        }
        Address::Unix(path) => connect_unix(&SocketAddrUnix::new(path)?, deadline),
        Address::Abstract(name) => {
            connect_unix(&SocketAddrUnix::new_abstract_name(name)?, deadline)
        }
    }
}

/// Returns the address of a peer, if it has one.
pub(super) fn address_of(address: SocketAddrAny) -> Option<Address> {
    if let Ok(address) = std::net::SocketAddr::try_from(address.clone()) {
        return Some(address.into());
    }
    let unix = SocketAddrUnix::try_from(address).ok()?;
    if let Some(name) = unix.abstract_name() {
        return Some(Address::Abstract(name.to_owned()));
    }
    use std::os::unix::ffi::OsStrExt;
    let path = unix.path_bytes().filter(|path| !path.is_empty())?;
    Some(Address::Unix(Path::new(std::ffi::OsStr::from_bytes(path)).to_owned()))
}

fn unix_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags | SocketFlags::CLOEXEC, None)?)
}

fn bind_tcp(host: &str, port: u16) -> io::Result<(OwnedFd, Address)> {
    // std sets the usual options (SO_REUSEADDR, close-on-exec) and tries all addresses of a host
    // name. Only its backlog is replaced below.
    let listener = std::net::TcpListener::bind((host, port))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?.into();
    let socket = OwnedFd::from(listener);
    listen(&socket, BACKLOG)?;
    Ok((socket, address))
}

/// Binds a path. If a killed listener has left its file there, removes the file first.
///
/// Between the check that no process listens there and the removal, another process could begin to
/// listen, and its file would be removed. So the folder is locked meanwhile, by every process that
/// binds a path with this function.
fn bind_path(path: &Path, access: Access) -> io::Result<(OwnedFd, SocketFile)> {
    let address = SocketAddrUnix::new(path)?;
    let parent =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder =
        open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok();
    if access == Access::Private {
        check_folder(parent)?;
    }
    let locked = folder.as_ref().is_some_and(lock_folder);
    let socket = unix_socket(SocketFlags::NONBLOCK)?;
    if access == Access::Private {
        // The file gets these permissions when it is created, so there is no moment at which others
        // could connect.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    }
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) if locked && is_left_behind(path, &address) => {
            unlink(path)?;
            bind(&socket, &address)?;
        }
        other => other?,
    }
    listen(&socket, BACKLOG)?;
    let now = lstat(path)?;
    Ok((socket, SocketFile { path: path.to_owned(), inode: (now.st_dev, now.st_ino) }))
}

/// Tries to lock the folder and returns whether it did. Processes hold this lock for microseconds.
/// If another program holds it for longer, we continue without the lock, and then remove no file.
fn lock_folder(folder: &OwnedFd) -> bool {
    (0..100).any(|_| {
        let locked = flock(folder, FlockOperation::NonBlockingLockExclusive).is_ok();
        if !locked {
            std::thread::sleep(Duration::from_millis(1));
        }
        locked
    })
}

fn is_left_behind(path: &Path, address: &SocketAddrUnix) -> bool {
    // Check the type of the file as well: connecting to any other kind of file is refused too.
    let is_socket =
        lstat(path).is_ok_and(|now| FileType::from_raw_mode(now.st_mode) == FileType::Socket);
    let probe =
        || -> io::Result<()> { Ok(connect(&unix_socket(SocketFlags::NONBLOCK)?, address)?) };
    is_socket && probe().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn connect_unix(address: &SocketAddrUnix, deadline: Deadline) -> io::Result<OwnedFd> {
    let socket = unix_socket(SocketFlags::empty())?;
    loop {
        // Connecting to a Unix socket waits only if the listener's backlog is full.
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            // Zero would mean no timeout.
            sockopt::set_socket_timeout(
                &socket,
                sockopt::Timeout::Send,
                Some(left.max(Duration::from_millis(1))),
            )?;
        }
        match connect(&socket, address) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            other => {
                other?;
                sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, None)?;
                return Ok(socket);
            }
        }
    }
}

/// Sets options of TCP sockets. Small messages are sent at once, and a peer machine that has
/// vanished is noticed within two minutes.
pub(super) fn prepare(socket: &OwnedFd) {
    // Errors mean that it is not a TCP socket.
    let _ = sockopt::set_tcp_nodelay(socket, true);
    if sockopt::set_tcp_keepidle(socket, Duration::from_secs(60)).is_ok() {
        let _ = sockopt::set_tcp_keepintvl(socket, Duration::from_secs(10));
        let _ = sockopt::set_tcp_keepcnt(socket, 6);
        let _ = sockopt::set_socket_keepalive(socket, true);
    }
}
