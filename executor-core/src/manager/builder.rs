//! Options of a manager, and its start.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

#[cfg(feature = "tls")]
use super::link::tls::Identity;
use super::{
    Manager, ManagerError, Started,
    client::{Door, Reference, ServerId},
    server::entry::{Secret, Serve, ServerSetup},
};
use crate::{
    error::TaskError,
    ipc::{AuthKey, Transfer},
    os::{fork::Creator, random, socket},
    process::Process,
    task::{IntoTask, Task, TaskArgs, TaskFn, encode::encode},
    wire::buffer::Buffer,
};

/// Options of a [`Manager`].
///
/// ```
/// use executor::{manager::Manager, prelude::*};
///
/// #[task]
/// fn prepare() { /* runs in the server, before it serves */ }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let manager = Manager::builder().name("cache").initializer(prepare::task()).start()?;
///     assert_eq!(manager.objects()?, 0);
///     Ok(())
/// }
/// ```
#[must_use = "a manager does nothing until it is started"]
pub struct ManagerBuilder {
    name: String,
    initializer: Option<Result<(u64, Vec<u8>), ManagerError>>,
    key: Option<AuthKey>,
    #[cfg(feature = "tls")]
    identity: Option<Identity>,
    clients_max: usize,
    objects_max: usize,
    client_calls_max: usize,
    client_bytes_max: u64,
    message_bytes_max: u64,
    unread_bytes_max: u64,
    shutdown_timeout: Duration,
}

impl Default for ManagerBuilder {
    fn default() -> Self {
        ManagerBuilder {
            name: "manager".to_owned(),
            initializer: None,
            key: None,
            #[cfg(feature = "tls")]
            identity: None,
            clients_max: 1_000,
            objects_max: 10_000_000,
            client_calls_max: 100_000,
            client_bytes_max: 2 << 30,
            message_bytes_max: 1 << 30,
            unread_bytes_max: 2 << 30,
            shutdown_timeout: Duration::from_secs(1),
        }
    }
}

impl fmt::Debug for ManagerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagerBuilder")
            .field("name", &self.name)
            .field("clients_max", &self.clients_max)
            .field("objects_max", &self.objects_max)
            .field("client_calls_max", &self.client_calls_max)
            .field("client_bytes_max", &self.client_bytes_max)
            .field("message_bytes_max", &self.message_bytes_max)
            .field("unread_bytes_max", &self.unread_bytes_max)
            .field("shutdown_timeout", &self.shutdown_timeout)
            .finish_non_exhaustive()
    }
}

impl ManagerBuilder {
    /// Sets the name of the server's process. The default is `manager`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets a task that the server runs before it serves. If it fails, [`start`](Self::start)
    /// returns its error. The task cannot have a timeout or other options that nobody would heed
    /// here: they are an error of [`start`](Self::start), too.
    pub fn initializer(mut self, task: impl IntoTask) -> Self {
        self.initializer = Some(encoded(task.into_task()));
        self
    }

    /// Sets the key that clients which come by an address have to know. Without it, the manager
    /// does not [listen](Manager::listen) anywhere, and neither does it with an empty one.
    ///
    /// Processes that get a handle from one that has it need no key.
    pub fn key(mut self, key: AuthKey) -> Self {
        self.key = Some(key);
        self
    }

    /// Sets who the server is. Clients that come over TCP recognize it by its certificate. Needs
    /// the feature `tls`.
    ///
    /// ```
    /// use executor::{AuthKey, manager::{Identity, Manager, Trust}};
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let (key, identity) = (AuthKey::random()?, Identity::generate()?);
    ///     let fingerprint = identity.fingerprint();
    ///     let manager = Manager::builder().key(key.clone()).identity(identity).start()?;
    ///     let address = manager.listen(&"127.0.0.1:0".parse()?)?;
    ///
    ///     // This could be another machine.
    ///     let far = Manager::connector(&address, &key).trust(Trust::fingerprint(fingerprint));
    ///     let far = far.connect()?;
    ///     let squares = far.dict((0..4).map(|n| (n, n * n)))?;
    ///     assert_eq!(squares.get(&3)?, Some(9));
    ///     Ok(())
    /// }
    /// ```
    #[cfg(feature = "tls")]
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Sets how many processes may use the manager at the same time. The default is 1000. Each
    /// needs a descriptor of the server, and up to 256 KiB of memory. A process on the same machine
    /// that sends values above 48 KiB needs a second descriptor, and memory for those that are on
    /// their way, up to 4 GiB. Memory that is not used is given back after a second or two.
    pub fn clients_max(mut self, clients: usize) -> Self {
        self.clients_max = clients;
        self
    }

    /// Sets how many objects there may be. The default is ten million.
    pub fn objects_max(mut self, objects: usize) -> Self {
        self.objects_max = objects;
        self
    }

    /// Sets how many calls of one process may wait at the same time, for items of queues or for
    /// locks. The default is 100,000.
    pub fn client_calls_max(mut self, calls: usize) -> Self {
        self.client_calls_max = calls;
        self
    }

    /// Sets how many bytes the server keeps for calls of one process that wait: for items that it
    /// wants to put into full queues, and for calls of an object that is being updated. The default
    /// is 2 GiB.
    pub fn client_bytes_max(mut self, bytes: u64) -> Self {
        self.client_bytes_max = bytes;
        self
    }

    /// Sets how many bytes one call may have. The default is 1 GiB. A call with more returns
    /// [`ManagerError::Limit`], and nothing is sent.
    pub fn message_bytes_max(mut self, bytes: u64) -> Self {
        self.message_bytes_max = bytes;
        self
    }

    /// Sets how many bytes of answers may wait in the server for a process that does not receive
    /// them. A process with more is cut off: its calls return [`ManagerError::Gone`]. The default
    /// is 2 GiB.
    ///
    /// Over TCP, items of queues count that the process has not confirmed. On the same machine,
    /// large values that wait in shared memory have the same limit for themselves: if they are
    /// more, the next ones go the way of small ones.
    pub fn unread_bytes_max(mut self, bytes: u64) -> Self {
        self.unread_bytes_max = bytes;
        self
    }

    /// Sets how long the server may take to end after it was asked to. Then it is killed. The
    /// default is one second.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Starts the server.
    ///
    /// # Errors
    /// If the process cannot be started, or its initializer fails.
    pub fn start(self) -> Result<Manager, ManagerError> {
        let pair = |what| socket::pair().map_err(ManagerError::os(what));
        let (door, outside) = pair("a socket for a manager")?;
        let (owner, theirs) = pair("a socket for a manager")?;
        let id = random::bytes::<16>().map_err(ManagerError::os("random numbers for a manager"))?;
        let copy = outside.try_clone().map_err(ManagerError::os("a socket for a manager"))?;
        let initializer = self.initializer.transpose()?;
        let setup = ServerSetup {
            id,
            door: Transfer::new(door),
            outside: Transfer::new(copy),
            owner: Transfer::new(theirs),
            clients_max: self.clients_max as u64,
            objects_max: self.objects_max as u64,
            client_calls_max: self.client_calls_max as u64,
            client_bytes_max: self.client_bytes_max,
            message_bytes_max: self.message_bytes_max,
            unread_bytes_max: self.unread_bytes_max,
            key: self.key.as_ref().map(|key| Secret(key.as_bytes().to_vec())),
            #[cfg(feature = "tls")]
            identity: self.identity.as_ref().map(Identity::to_parts),
            initializer,
        };
        let child = Process::new(Task::<Serve, ServerSetup>::new(setup))
            .name(self.name)
            .daemon(true)
            .start()
            // Its `Debug` has the causes, too.
            .map_err(|error| ManagerError::NotStarted(format!("{error:?}").into()))?;
        let door = Arc::new(Door::near(ServerId(u128::from_le_bytes(id)), Arc::new(outside)));
        let server = Reference::to_server(door);
        let server = server.map_err(|error| match error {
            // Its end says more than the closed socket.
            ManagerError::Gone(_) => match child.join_timeout(self.shutdown_timeout) {
                Some(Err(TaskError::Failed(error))) => {
                    ManagerError::NotStarted(error.message().into())
                }
                Some(Err(error)) => ManagerError::NotStarted(format!("{error:?}").into()),
                _ => error,
            },
            error => error,
        });
        let server = server.inspect_err(|_| {
            // Without a manager, nobody would end it.
            let _ = child.kill();
        })?;
        let started = Started {
            child,
            owner: Mutex::new(Some(Arc::new(owner))),
            orders: Mutex::default(),
            addresses: Mutex::default(),
            // An empty one is what a program has that has read an empty file. Everybody knows it.
            has_key: self.key.as_ref().is_some_and(|key| !key.as_bytes().is_empty()),
            #[cfg(feature = "tls")]
            has_identity: self.identity.is_some(),
            #[cfg(not(feature = "tls"))]
            has_identity: false,
            shutdown_timeout: self.shutdown_timeout,
        };
        Ok(Manager {
            started: Some(started),
            route: None,
            server: Arc::new(server),
            later: Mutex::default(),
            creator: Creator::here(),
        })
    }
}

fn encoded<F: TaskArgs<A>, A>(task: Task<F, A>) -> Result<(u64, Vec<u8>), ManagerError> {
    let (args, options) = task.into_parts();
    let timeout = "`timeout`, which nobody keeps here: the server runs it before it serves";
    let refused = options.refusal_without_queue().or(options.timeout().map(|_| timeout));
    if let Some(what) = refused {
        let task = options.called(F::NAME);
        let text = format!("its initializer, task `{task}`, has a {what}");
        return Err(ManagerError::NotStarted(text.into()));
    }
    let (mut buffer, mut attached) = (Buffer::new(), Vec::new());
    encode::<F, A>(args, &options, &mut buffer, &mut attached)
        .map_err(|error| ManagerError::Encode(error.to_string().into()))?;
    if !attached.is_empty() {
        let text = "the initializer's arguments contain something that belongs to processes, such as a file";
        return Err(ManagerError::Encode(text.into()));
    }
    Ok((<F as TaskFn>::entry().number().0, buffer.into_vec()))
}
