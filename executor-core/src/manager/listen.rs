//! How a server gets addresses, at which other processes and other machines connect to it.
//!
//! ```text
//!  Manager::listen ── bind ──► a socket that listens ──► server: its gate
//!                                                          │
//!  Manager::connect, elsewhere ────────────────────────────┘
//! ```
//!
//! The process that has the manager makes the socket, so that it learns at once that an address is
//! in use or not allowed, and which port was chosen.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::PollFlags;

use super::{
    Manager, ManagerError, Started,
    link::wait_for,
    server::gate::{ListenOrder, ORDER_BYTES_MAX},
};
use crate::{
    ipc::{Address, bind_private},
    os::{socket, std_or_model::lock},
};

/// How long a server may take to begin to listen. With a lower value, a server on a busy machine
/// seems dead. With a higher one, an order to a server that is stopped takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

impl Manager {
    /// Lets other processes [connect](Self::connect) to the server at this address. Returns the
    /// address, with the port that was chosen if it was 0. There may be several addresses.
    ///
    /// The builder needs a [`key`](super::ManagerBuilder::key), which both sides prove to know
    /// before anything else is looked at.
    ///
    /// - A path, such as `/run/me/socket`, is for processes of the same user, and of root, on this
    ///   machine. They then use shared memory, as the processes of this program do. The folder must
    ///   be one in which no other user can replace files, and so must the folders above it be. The
    ///   server removes the file at its end. If it was killed, the next one that listens there
    ///   does.
    /// - A host and a port, such as `0.0.0.0:7000`, are for other machines. The connections are
    ///   encrypted (TLS 1.3). This needs the feature `tls`, and an `identity` of the builder, by
    ///   which clients recognize the server.
    ///
    /// ```
    /// use executor::{AuthKey, manager::Manager};
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let key = AuthKey::random()?;
    ///     let manager = Manager::builder().key(key.clone()).start()?;
    ///     let folder = tempfile::tempdir()?;
    ///     let address = manager.listen(&folder.path().join("socket").into())?;
    ///     manager.publish("limit", &manager.value(7)?)?;
    ///
    ///     // This could be a process of another program.
    ///     let other = Manager::connect(&address, &key)?;
    ///     let limit: Option<executor::manager::Value<i32>> = other.published("limit")?;
    ///     assert_eq!(limit.expect("published above").get()?, 7);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`ManagerError::NotListening`] if the address is in use or not allowed, if other users could
    /// replace the file, if there is no key or an empty one, and for an abstract name: any user can
    /// take one.
    /// [`ManagerError::Refused`] if this manager was connected and not started.
    pub fn listen(&self, address: &Address) -> Result<Address, ManagerError> {
        let failed = |error: io::Error| ManagerError::NotListening {
            address: address.clone(),
            error: Arc::new(error),
        };
        let started = self.started()?;
        if self.creator.is_elsewhere() {
            return Err(ManagerError::Gone("this process is a fork of its owner".into()));
        }
        started
            .check_address(address)
            .map_err(|why| failed(io::Error::new(io::ErrorKind::InvalidInput, why)))?;
        let mut orders = lock(&started.orders);
        let owner = lock(&started.owner).clone();
        let owner = owner.ok_or_else(|| ManagerError::Gone("it was shut down".into()))?;
        let (socket, address, file) = bind_private(address).map_err(failed)?;
        *orders = orders.wrapping_add(1);
        let file_of_order = file.as_ref().map(|file| {
            // The server may have another current folder.
            let path = std::path::absolute(&file.path).unwrap_or_else(|_| file.path.clone());
            (file.inode.0, file.inode.1, path)
        });
        let order = ListenOrder { number: *orders, file: file_of_order };
        let done = ask(&owner, &order, &socket).inspect_err(|_| {
            if let Some(file) = &file {
                file.remove();
            }
            // A server that goes on later must not listen at an address that nobody was told.
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        });
        done.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                ManagerError::Gone("it has ended".into())
            }
            _ => failed(error),
        })?;
        lock(&started.addresses).push(address.clone());
        Ok(address)
    }

    /// Lets others connect at this address, and [waits](Self::wait) until the server has ended. It
    /// corresponds to `serve_forever`.
    ///
    /// ```no_run
    /// use executor::{AuthKey, manager::Manager};
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let key = AuthKey::new(std::fs::read("manager.key")?);
    ///     let manager = Manager::builder().key(key).start()?;
    ///     manager.publish("jobs", &manager.queue::<String>(None)?)?;
    ///     manager.serve(&"/run/jobs/socket".parse()?)?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// As for [`listen`](Self::listen) and [`wait`](Self::wait).
    pub fn serve(&self, address: &Address) -> Result<(), ManagerError> {
        self.listen(address)?;
        self.wait()
    }

    /// Waits until the server has ended: by [`shutdown`](Self::shutdown) in another thread.
    ///
    /// SIGINT and SIGTERM end the program as they always do, and the server with it.
    ///
    /// # Errors
    /// [`ManagerError::Gone`] if the server has ended in another way. The text says how.
    /// [`ManagerError::Refused`] if this manager was connected and not started.
    pub fn wait(&self) -> Result<(), ManagerError> {
        let started = self.started()?;
        match started.child.join() {
            Ok(()) => Ok(()),
            // A server that did not end in time was killed.
            Err(_) if lock(&started.owner).is_none() => Ok(()),
            Err(error) => Err(ManagerError::Gone(error.to_string().into())),
        }
    }

    /// Returns the addresses at which this manager [listens](Self::listen). None for a manager that
    /// was connected.
    pub fn addresses(&self) -> Vec<Address> {
        self.started.as_ref().map_or_else(Vec::new, |started| lock(&started.addresses).clone())
    }

    fn started(&self) -> Result<&Started, ManagerError> {
        let why =
            "only the process that has started a manager can let it listen, and wait for its end";
        self.started.as_ref().ok_or(ManagerError::Refused(why))
    }
}

impl Started {
    /// Returns why this manager cannot listen at such an address.
    fn check_address(&self, address: &Address) -> Result<(), &'static str> {
        match address {
            Address::Abstract(_) => {
                Err("every user could connect to an abstract name, or take it: use a path")
            }
            _ if !self.has_key => Err("it has no key, or an empty one: see `ManagerBuilder::key`"),
            Address::Unix(_) => Ok(()),
            Address::Tcp(..) if cfg!(not(feature = "tls")) => Err("TCP needs the feature `tls`"),
            Address::Tcp(..) if !self.has_identity => {
                Err("it has no identity, which TCP needs: see `ManagerBuilder::identity`")
            }
            Address::Tcp(..) => Ok(()),
        }
    }
}

/// Asks the server to listen, and waits for its answer.
fn ask(owner: &OwnedFd, order: &ListenOrder, listener: &OwnedFd) -> io::Result<()> {
    socket::send_now(owner, &order.to_bytes(), &[listener.as_fd()]).map_err(socket::explained)?;
    let deadline = Instant::now() + PATIENCE;
    let mut answer = [0; ORDER_BYTES_MAX];
    loop {
        match socket::recv_short_now(owner, &mut answer) {
            Ok((0, _)) => return Err(io::ErrorKind::BrokenPipe.into()),
            Ok((len, _)) => match order.read_answer(&answer[..len]) {
                Some(done) => return done.map_err(io::Error::other),
                // To an order that was not waited for.
                None => continue,
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if !wait_for(owner.as_fd(), PollFlags::IN, Some(deadline))? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "its server does not answer"));
        }
    }
}
