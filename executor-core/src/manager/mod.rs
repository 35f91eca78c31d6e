//! Managers: objects that processes share, kept by a server process. They correspond to
//! `multiprocessing.Manager`.
//!
//! ```text
//!  this process           other processes           the server, a process of this program
//!  ────────────           ───────────────           ─────────────────────────────────────
//!  Manager ── starts, ends ───────────────────────► objects, by number
//!  Dict ──┐               Dict ──┐                    Dict: bytes of keys ─► bytes of values
//!  Queue ─┤ encode        Lock ──┤                    Queue, Lock, …: who waits
//!         └── lane ──────────────┴── lane ──────────► no user's type is ever decoded
//! ```
//!
//! A [`Manager`] starts the server and makes objects in it. Each method of an object is one call,
//! and calls are done one after the other: each is atomic. The handles of objects ([`Dict`],
//! [`List`], [`Queue`], …) can be sent to any process of the program, as arguments and results of
//! tasks, through queues and connections, and inside other managed objects. An object lives as long
//! as there is a handle of it, or a message on its way that contains one.
//!
//! ```
//! use executor::{manager::{Dict, Manager}, prelude::*};
//!
//! #[task]
//! fn count(words: Vec<String>, counts: Dict<String, u64>) -> Result<(), executor::manager::ManagerError> {
//!     for word in words {
//!         counts.update_or_insert(&word, one_more::with())?;
//!     }
//!     Ok(())
//! }
//!
//! /// Runs in the server, so no other process counts in between.
//! #[task]
//! fn one_more(count: Option<u64>) -> u64 { count.unwrap_or(0) + 1 }
//!
//! #[executor::main]
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let manager = Manager::start()?;
//!     let counts = manager.dict([("a".to_owned(), 10)])?;
//!     let pool = ProcessPoolExecutor::builder().max_workers(2).build()?;
//!     let pages = ["a b", "b c"].map(|page| page.split(' ').map(String::from).collect::<Vec<_>>());
//!     for done in pool.map(|page| count::task(page, counts.clone()), pages) {
//!         done?;
//!     }
//!     assert_eq!(counts.get("a")?, Some(11));
//!     assert_eq!(counts.get("b")?, Some(2));
//!     assert_eq!(counts.len()?, 3);
//!     Ok(())
//! }
//! ```
//!
//! # Which object to take
//!
//! [`Value`](crate::Value), [`Array`](crate::Array), [`Queue`](crate::Queue) and the locks at the
//! root of the crate are memory that processes share: a call takes nanoseconds. A manager costs a
//! round trip to another process, about a microsecond while both are awake. What it has in return
//! are maps, lists and sets that grow, nested objects, and values of any type and size.
//!
//! # Servers that others have started
//!
//! Within one program, handles are enough: whoever gets one can use the object. Processes that have
//! nothing in common but an address and a key [connect](Manager::connect) to the server: over a
//! Unix socket on the same machine, or over TCP from another one, with TLS (feature `tls`). Calls
//! are the same, and take as long as the way there and back. What differs:
//!
//! - A handle that came over TCP can be sent to processes of this program, as others can. Such a
//!   process connects to the server by itself, with its first call, and keeps the connection until
//!   the server ends. Until then it is the sender that keeps the object alive. If the sender ends,
//!   or loses its connection, before a handle has been used that it has sent, and nobody else has
//!   a handle of the object, the object is gone, and the call returns [`ManagerError::NoObject`].
//! - Such a handle brings the address, the key and what is trusted. It is refused where other
//!   programs might get that: by connections at an address ([`Listener`](crate::Listener),
//!   [`Client`](crate::Client)). To another machine no handle can be sent.
//! - A client tells the server that it has received an item of a queue, before anybody there sees
//!   the item. If the connection ends and the server was not told, the item is the first of the
//!   queue again. So no item is lost on the way, and a client that dies with an item takes it
//!   along. One thing cannot be excluded: the network fails in the moment after the item has
//!   arrived, and the word of that is lost. Then the client has the item, and another one gets it,
//!   too.
//! - The next owner of a lock that was on its way to a client that is gone is told that the last
//!   one died.
//! - A process that reads nothing for about ten seconds, for example because it is stopped, loses
//!   the connection if the other side has more to send than the two systems keep for it. If there
//!   is less, it may be stopped for as long as it likes.
//! - A connection can be lost while the server lives. Then calls return [`ManagerError::Gone`], or
//!   the client connects [again](Connector::reconnect).
//! - A function of an update runs in the program of the server. It has to exist there, with the
//!   same types, in the same version of its crate. Otherwise the update is an error.
//! - The types of handles and values are what each program says. A value that is no such type is
//!   [`ManagerError::Decode`].
//!
//! # How many handles travel at once
//!
//! In arguments, results and messages of queues and connections, a handle brings a descriptor. The
//! system allows 253 in one message, so at most 252 handles of one manager travel in one. Inside
//! managed objects there is no such limit: to send more, put them into a managed list, and send the
//! list.
//!
//! A handle that was sent costs its sender, its receiver and the server a descriptor each, as long
//! as it lives. One that came over TCP costs its sender two, its receiver one, and the server none.
//!
//! Sending a handle may wait for the server, which notes it. If the server does not answer within
//! 30 seconds, for example because it is stopped, the value cannot be encoded.
//!
//! # When somebody dies
//!
//! - **A process that uses objects.** Its calls that wait are forgotten, its locks are released
//!   (the next owner is told), its permits come back, and its handles are gone, at once. An item of
//!   a queue that was on its way to the process is the first of the queue again, and a lock that
//!   was on its way goes to the next one without a notice (over TCP with one: see above). An item
//!   that the process had received is lost with it.
//! - **The server.** All calls return [`ManagerError::Gone`]. What it kept is lost. A process that
//!   was given a handle of a server over TCP, and has not connected yet, gets
//!   [`ManagerError::NotConnected`]. A client that connects [again](Connector::reconnect), to a
//!   server that was started anew, gets [`ManagerError::NoObject`] for the objects of the old one.
//! - **The process that has started the `Manager`.** The server ends.
//! - **A machine, or the network.** Both sides notice it within about ten seconds, as the end of
//!   the other one.
//!
//! # Types of one's own
//!
//! `#[managed]` on an `impl` block makes a proxy for the type: the value is in the server, and its
//! public methods can be called from any process. They can be given handles of other objects of the
//! same manager, keep them, and return them. The documentation of that attribute says how.
//!
//! # Workers that processes share
//!
//! [`Manager::pool`] makes a pool whose workers are children of the server. Every process that has
//! a handle submits tasks to it.
//!
//! # Equal keys
//!
//! The server compares bytes. Two keys, items of a set, or values are equal if serde writes them
//! alike. That is so for numbers, texts, tuples, and structures and lists of them. It is not so for
//! a `HashMap`, whose order varies. A float differs from another one if their bits differ.

mod any;
mod builder;
mod client;
mod connector;
mod directory;
mod error;
pub(crate) mod function;
#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
pub(crate) mod fuzzed;
mod link;
mod listen;
pub(crate) mod managed;
mod protocol;
mod proxy;
mod server;

use std::{
    fmt,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

pub use any::Any;
pub use builder::ManagerBuilder;
pub use client::Backoff;
pub use connector::Connector;
pub use error::ManagerError;
pub use function::{Step, StepFn};
#[cfg(feature = "tls")]
pub use link::tls::{Fingerprint, FingerprintError, Identity, IdentityError, Trust};
pub use proxy::{
    array::Array,
    barrier::Barrier,
    condition::Condition,
    dict::{Dict, Entry},
    event::Event,
    iter::Iter,
    list::List,
    lock::{
        ConditionGuard, ConditionLock, Lock, LockGuard, OwnedLockGuard, OwnedRLockGuard, RLock,
        RLockGuard,
    },
    namespace::Namespace,
    pool::{Pool, PoolFuture, PoolMap, UnorderedPoolMap},
    queue::{JoinableQueue, Queue},
    semaphore::{BoundedSemaphore, OwnedPermit, Permit, Semaphore},
    set::Set,
    value::Value,
};

use client::{Reference, Request, Route};
use protocol::Operation;

use crate::{
    ipc::{Address, AuthKey},
    os::{fork::Creator, socket, std_or_model::lock},
    process::Child,
};

/// A server process and the objects in it. When the manager that has [started](Self::start) it is
/// dropped, the server ends. When one that has [connected](Self::connect) to it is dropped, its
/// handles can still be used.
///
/// See the [module](self) for an overview. The methods that make objects are with the objects:
/// [`dict`](Self::dict), [`list`](Self::list), [`set`](Self::set),
/// [`namespace`](Self::namespace), [`value`](Self::value), [`array`](Self::array),
/// [`queue`](Self::queue), [`joinable_queue`](Self::joinable_queue), [`lock`](Self::lock),
/// [`rlock`](Self::rlock), [`semaphore`](Self::semaphore),
/// [`bounded_semaphore`](Self::bounded_semaphore), [`condition`](Self::condition),
/// [`event`](Self::event), [`barrier`](Self::barrier) and [`pool`](Self::pool).
pub struct Manager {
    /// The server's process, if this process has started it.
    started: Option<Started>,
    /// The way to the server, if it was reached by its address.
    route: Option<Arc<Route>>,
    server: Arc<Reference>,
    /// The server that is at the address now, if it is another one.
    later: Mutex<Option<Arc<Reference>>>,
    creator: Creator,
}

struct Started {
    child: Child<()>,
    /// While this is open, the server runs. Orders to it go over this socket.
    owner: Mutex<Option<Arc<OwnedFd>>>,
    /// Number of the last order. Held while one is given.
    orders: Mutex<u32>,
    addresses: Mutex<Vec<Address>>,
    has_key: bool,
    /// Whether the server can be recognized over TCP.
    has_identity: bool,
    shutdown_timeout: Duration,
}

impl Manager {
    /// Starts a server, with the default limits.
    ///
    /// The server is a process of this program. It ends when the manager is dropped or shut down,
    /// and when this process ends in any way. It ignores SIGINT.
    ///
    /// # Errors
    /// If the process cannot be started. The entry point must have been reached, as for every
    /// process of this library.
    ///
    /// ```
    /// use executor::manager::Manager;
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let squares = manager.dict((0..4).map(|n| (n, n * n)))?;
    ///     assert_eq!(squares.get(&3)?, Some(9));
    ///     Ok(())
    /// }
    /// ```
    pub fn start() -> Result<Self, ManagerError> {
        Self::builder().start()
    }

    /// Sets options first: an initializer, a name, limits.
    pub fn builder() -> ManagerBuilder {
        ManagerBuilder::default()
    }

    /// Connects to a server that another process has started, on this machine or another one.
    ///
    /// This is enough for Unix sockets. Over TCP, the server has to be recognized: see
    /// [`connector`](Self::connector).
    ///
    /// # Errors
    /// See [`Connector::connect`].
    pub fn connect(address: &Address, key: &AuthKey) -> Result<Self, ManagerError> {
        Self::connector(address, key).connect()
    }

    /// Sets options first: which server is trusted, and what happens when the connection is lost.
    pub fn connector(address: &Address, key: &AuthKey) -> Connector {
        Connector::new(address.clone(), key.clone())
    }

    /// Returns the manager in whose server this code runs: in a method of a
    /// `#[managed]` type, or in a function of an update. Elsewhere it is `None`.
    ///
    /// With it, a method makes objects of its own server, and can return them, which
    /// `method_to_typeid` does in Python. Threads that a method has started can use it, too. It
    /// does not keep the server running. Its [`shutdown`](Self::shutdown) does nothing.
    ///
    /// ```
    /// use executor::{manager::{List, Manager, ManagerError}, prelude::*};
    ///
    /// struct Shelf { lists: Vec<List<u32>> }
    ///
    /// #[managed]
    /// impl Shelf {
    ///     pub fn new() -> Self { Shelf { lists: Vec::new() } }
    ///
    ///     pub fn new_list(&mut self) -> Result<List<u32>, ManagerError> {
    ///         let list = Manager::current().expect("this is the server").list([])?;
    ///         self.lists.push(list.clone());
    ///         Ok(list)
    ///     }
    ///
    ///     pub fn lists(&self) -> Vec<List<u32>> { self.lists.clone() }
    /// }
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let shelf = ShelfProxy::new(&manager)?;
    ///     shelf.new_list()?.push(&7)?;
    ///     assert_eq!(shelf.lists()?[0].snapshot()?, [7]);
    ///     assert!(Manager::current().is_none());
    ///     Ok(())
    /// }
    /// ```
    pub fn current() -> Option<Self> {
        let server = Reference::to_server_later(server::serving::own()?);
        Some(Manager {
            started: None,
            route: None,
            server: Arc::new(server),
            later: Mutex::default(),
            creator: Creator::here(),
        })
    }

    /// Returns the id of the server's process, on its machine.
    pub fn pid(&self) -> u32 {
        match &self.started {
            Some(started) => started.child.pid(),
            None => self.server().door().pid(),
        }
    }

    /// Returns a reference to the server.
    fn server(&self) -> Arc<Reference> {
        let Some(route) = self.route.as_ref().filter(|_| !self.creator.is_elsewhere()) else {
            return Arc::clone(&self.server);
        };
        let mut later = lock(&self.later);
        let server = later.as_ref().unwrap_or(&self.server);
        match route.current() {
            Some(connection) if connection.door().id != server.door().id => {
                let server = Arc::new(Reference::to_server_of(connection));
                *later = Some(Arc::clone(&server));
                server
            }
            _ => Arc::clone(server),
        }
    }

    /// Begins a request that concerns the server.
    fn request(&self, operation: Operation) -> Request<'static> {
        self.server().into_request(operation)
    }

    /// Returns how many objects the server has.
    ///
    /// ```
    /// # use executor::manager::Manager;
    /// # #[executor::main]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let manager = Manager::start()?;
    /// let list = manager.list([1])?;
    /// assert_eq!(manager.objects()?, 1);
    /// drop(list);
    /// assert_eq!(manager.objects()?, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn objects(&self) -> Result<u64, ManagerError> {
        Ok(self.request(Operation::CountObjects).call()?.number())
    }

    /// Does what [`objects`](Self::objects) does, without blocking the thread.
    pub async fn objects_async(&self) -> Result<u64, ManagerError> {
        Ok(self.request(Operation::CountObjects).call_async().await?.number())
    }

    /// Ends the server. Calls that wait, and all later ones, return [`ManagerError::Gone`]. It does
    /// nothing if the server has ended.
    ///
    /// A server that does not end within the
    /// [`shutdown_timeout`](ManagerBuilder::shutdown_timeout) is killed.
    ///
    /// If this manager was [connected](Self::connect), only the connection of this process ends. To
    /// end the server is up to the process that has started it.
    pub fn shutdown(&self) {
        if self.creator.is_elsewhere() {
            return;
        }
        if let Some(route) = &self.route {
            route.close();
        }
        let Some(Started { child, owner, shutdown_timeout, .. }) = &self.started else { return };
        if let Some(owner) = lock(owner).take() {
            // Closing it is not enough: a child that this process has forked may have a copy.
            let _ = socket::send_now(&*owner, b"!", &[]);
        }
        if child.join_timeout(*shutdown_timeout).is_none() {
            // It was stopped, or is in a system call that does not end.
            let _ = child.kill();
            let _ = child.join();
        }
        self.server.forget_server();
    }

    /// Returns how the server's process has ended. `None` while it runs, and for a server that
    /// another process has started.
    pub fn exit_status(&self) -> Option<crate::ExitStatus> {
        self.started.as_ref()?.child.exit_code()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        match &self.route {
            // The handles can still be used.
            Some(route) => route.leave(),
            None => self.shutdown(),
        }
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager")
            .field("pid", &self.pid())
            .field("exit_status", &self.exit_status())
            .finish_non_exhaustive()
    }
}
