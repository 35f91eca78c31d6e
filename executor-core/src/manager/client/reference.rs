//! A reference to an object of a server, as every handle has one, and the calls made through it.

use std::{
    any::type_name,
    borrow::Cow,
    cell::Cell,
    fmt,
    ops::Deref,
    os::fd::AsFd,
    pin::Pin,
    ptr,
    sync::{Arc, Mutex, OnceLock, Weak},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, de::DeserializeOwned, ser};

use super::{
    super::{
        error::ManagerError,
        function::EncodedCall,
        protocol::{
            Fields, HEADER_BYTES, ObjectId, Operation, Reply, Status, names_in_reply, put_bytes,
            put_number, put_value,
        },
    },
    calls::{Message, Undo},
    connection::{Body, Connection, PendingCall},
    door::{Door, ServerId},
    route::Route,
    segments::{SEGMENT_FROM, Tail},
    table,
    value::{self, Lent, Taken},
};
#[cfg(feature = "tls")]
use super::{keeper, way};
use crate::{
    os::{process::above_stdio, socket, spare, std_or_model::lock},
    segment::Store,
    wire::{
        attachment::{self, Attachment},
        codec::CodecError,
    },
};

/// How long the server may take to answer when a handle is encoded: it connects, claims the object,
/// or notes that the handle is sent. A server that is stopped would otherwise hold up `submit` for
/// ever. With a lower value, handles cannot be sent while the server is slow on a busy machine.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// A reference to an object of a server. The object lives at least as long.
pub(crate) struct Reference {
    door: Arc<Door>,
    object: ObjectId,
    /// This process's hold on the object, if the connection is never made again.
    hold: OnceLock<Arc<Hold>>,
    /// This process's hold on the object, if a connection that was lost is made again. The lost one
    /// is let go, with its memory.
    renewed: Mutex<Option<Arc<Hold>>>,
    /// The hold of a process that was forked from the one above, which may have held that lock.
    forked: Mutex<Option<Arc<Hold>>>,
    /// The end of a pipe. While it is open anywhere, the object lives. It was received with this
    /// reference, or is made when the reference is sent for the first time.
    lease: OnceLock<Attachment>,
    /// The same for an object of a server that is reached over TCP, if this process has sent it.
    #[cfg(feature = "tls")]
    kept: OnceLock<keeper::Kept>,
    /// The same in a process that was forked from the one above, for which nothing is kept there.
    #[cfg(feature = "tls")]
    kept_in_fork: Mutex<Option<keeper::Kept>>,
    /// In the server itself: the reference that its functions were lent for this handle.
    lent: Option<Arc<Lent>>,
}

/// A reference that the server counts for a connection.
pub(super) struct Hold {
    connection: Arc<Connection>,
    object: ObjectId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.object == ObjectId::NONE || self.connection.is_elsewhere() {
            return;
        }
        let mut one = Vec::new();
        put_number(&mut one, 1);
        self.connection.tell(Operation::Release, self.object, &one);
        kill_point!(ClientReleased);
    }
}

/// Connects to a server if need be, and claims an object there.
fn claim(
    door: &Arc<Door>,
    object: ObjectId,
    deadline: Option<Instant>,
) -> Result<Arc<Hold>, ManagerError> {
    let mut attempts = None;
    loop {
        let connection = match door.route() {
            // What concerns no object can be asked of whichever server is there.
            Some(route) if object == ObjectId::NONE => route.connection(None, deadline)?,
            _ => table::connection_to(door, deadline)?,
        };
        if object == ObjectId::NONE {
            return Ok(Arc::new(Hold { connection, object }));
        }
        let undo = Undo { operation: Operation::Claim, object, owner: 0 };
        match connection.call(undo, object, Body::NONE, deadline) {
            // A claim is of no use on another connection, and does no harm.
            Err(ManagerError::Gone(_)) if again(door, &mut attempts) => {}
            answer => {
                Answer::new(answer?, Arc::clone(&connection), undo.operation)?;
                kill_point!(ClientClaimed);
                return Ok(Arc::new(Hold { connection, object }));
            }
        }
    }
}

/// Does what [`claim`] does, without blocking the thread.
async fn claim_async(
    route: &Arc<Route>,
    door: &Door,
    object: ObjectId,
) -> Result<Arc<Hold>, ManagerError> {
    let mut attempts = None;
    loop {
        if object == ObjectId::NONE {
            let connection = route.connection_async(None).await?;
            return Ok(Arc::new(Hold { connection, object }));
        }
        let connection = route.connection_async(Some(door.id)).await?;
        let undo = Undo { operation: Operation::Claim, object, owner: 0 };
        let called = match connection.begin(undo, object, Body::NONE) {
            Ok(pending) => pending.await,
            Err(error) => Err(error),
        };
        match called {
            // A claim is of no use on another connection, and does no harm.
            Err(ManagerError::Gone(_)) if again(door, &mut attempts) => {}
            answer => {
                Answer::new(answer?, Arc::clone(&connection), undo.operation)?;
                return Ok(Arc::new(Hold { connection, object }));
            }
        }
    }
}

/// Claims an object of a server on this machine, without blocking the thread.
async fn claim_near_async(door: &Arc<Door>, object: ObjectId) -> Result<Arc<Hold>, ManagerError> {
    let connection = table::connection_to_async(door).await?;
    if object != ObjectId::NONE {
        let undo = Undo { operation: Operation::Claim, object, owner: 0 };
        let answer = connection.begin(undo, object, Body::NONE)?.await?;
        Answer::new(answer, Arc::clone(&connection), undo.operation)?;
        kill_point!(ClientClaimed);
    }
    Ok(Arc::new(Hold { connection, object }))
}

/// Whether a call that was lost with its connection is made again, on another one. `end` is when
/// that ends, which is decided when the first connection is lost.
fn again(door: &Door, end: &mut Option<Instant>) -> bool {
    let Some(route) = door.route().filter(|route| route.reconnects()) else { return false };
    match *end {
        Some(end) => Instant::now() < end,
        None => {
            *end = route.end_of_attempts();
            true
        }
    }
}

/// The connection on which something is held. On another one, it is not.
#[derive(Clone, Debug)]
pub(crate) struct Session(Weak<Connection>);

#[cfg(all(test, feature = "tls", not(any(executor_loom, executor_shuttle))))]
impl Session {
    /// Whether nothing has the connection any more.
    pub(super) fn is_forgotten(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reference")
            .field("manager", &format_args!("{:016x}", self.door.id.0 as u64))
            // Not the whole id: who knows it may use the object.
            .field("object", &format_args!("{:05x}", self.object.0 >> 44))
            .finish()
    }
}

impl PartialEq for Reference {
    fn eq(&self, other: &Self) -> bool {
        (self.door.id, self.object) == (other.door.id, other.object)
    }
}

impl Eq for Reference {}

impl std::hash::Hash for Reference {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.door.id, self.object).hash(state);
    }
}

impl Reference {
    fn new(door: Arc<Door>, object: ObjectId, hold: Option<Arc<Connection>>) -> Self {
        let reference = Reference {
            door,
            object,
            hold: OnceLock::new(),
            renewed: Mutex::default(),
            forked: Mutex::default(),
            lease: OnceLock::new(),
            #[cfg(feature = "tls")]
            kept: OnceLock::new(),
            #[cfg(feature = "tls")]
            kept_in_fork: Mutex::default(),
            lent: None,
        };
        if let Some(connection) = hold {
            reference.keep(Arc::new(Hold { connection, object }));
        }
        reference
    }

    /// Returns a reference to a server itself. It is for calls that concern no object.
    pub(crate) fn to_server(door: Arc<Door>) -> Result<Self, ManagerError> {
        // It waits as long as the server lives: its initializer may take any time.
        let connection = table::connection_to(&door, None)?;
        Ok(Reference::new(door, ObjectId::NONE, Some(connection)))
    }

    /// Forgets this process's connection to the server, which was shut down.
    pub(crate) fn forget_server(&self) {
        table::forget(self.door.id);
        #[cfg(feature = "tls")]
        way::forget(self.door.id);
    }

    pub(crate) fn object(&self) -> ObjectId {
        self.object
    }

    /// Returns a reference to the server itself, as [`to_server`](Self::to_server) does. It
    /// connects with the first call.
    pub(crate) fn to_server_later(door: Arc<Door>) -> Self {
        Reference::new(door, ObjectId::NONE, None)
    }

    /// Returns a reference to the server of a connection. It is for calls that concern no object.
    pub(crate) fn to_server_of(connection: Arc<Connection>) -> Self {
        Reference::new(Arc::clone(connection.door()), ObjectId::NONE, Some(connection))
    }

    /// Returns the server's door, as this reference has got to know it.
    pub(crate) fn door(&self) -> &Arc<Door> {
        &self.door
    }

    /// Returns the connection for calls about this object. Connects and claims the object if this
    /// process has not done so yet.
    fn connection(&self, deadline: Option<Instant>) -> Result<Arc<Connection>, ManagerError> {
        Ok(Arc::clone(&self.hold(deadline)?.connection))
    }

    /// Whether calls can be made through this hold, or say why they cannot.
    fn is_of_use(&self, hold: &Hold) -> bool {
        let Hold { connection, .. } = hold;
        if connection.is_elsewhere() {
            return false;
        }
        !self.door.reconnects() || !connection.has_quietly_ended()
    }

    /// Returns the place of this process's hold, unless it is the one that is set once.
    fn place(&self) -> Option<&Mutex<Option<Arc<Hold>>>> {
        let is_ours = self.hold.get().is_none_or(|hold| !hold.connection.is_elsewhere());
        match self.door.route() {
            Some(route) if route.is_elsewhere() => Some(&self.forked),
            Some(route) if route.reconnects() => Some(&self.renewed),
            _ if is_ours => None,
            _ => Some(&self.forked),
        }
    }

    /// Returns this process's hold on the object, if it has one.
    fn held(&self) -> Option<Arc<Hold>> {
        let hold = match self.place() {
            None => self.hold.get().cloned(),
            Some(place) => lock(place).clone(),
        };
        // Whoever waits for a connection that has ended is told, while no lock is held.
        hold.filter(|hold| self.is_of_use(hold))
    }

    /// Returns this process's hold on the object, as [`connection`](Self::connection) does.
    fn hold(&self, deadline: Option<Instant>) -> Result<Arc<Hold>, ManagerError> {
        match self.held() {
            Some(hold) => Ok(hold),
            None => Ok(self.keep(claim(&self.door, self.object, deadline)?)),
        }
    }

    /// Does what [`hold`](Self::hold) does, without blocking the thread.
    async fn hold_async(&self) -> Result<Arc<Hold>, ManagerError> {
        if let Some(hold) = self.held() {
            return Ok(hold);
        }
        match self.door.route() {
            // A fork has no part in the route, and can go through the door by itself.
            Some(route)
                if self.object == ObjectId::NONE
                    || !route.is_elsewhere()
                    || self.door.socket().is_none() =>
            {
                Ok(self.keep(claim_async(route, &self.door, self.object).await?))
            }
            _ => Ok(self.keep(claim_near_async(&self.door, self.object).await?)),
        }
    }

    /// Returns where segments for large values are taken from, if this process has a connection
    /// that has some.
    fn store(&self) -> Option<Arc<Store>> {
        match self.place() {
            None => self.hold.get()?.connection.store(),
            Some(place) => lock(place).as_ref()?.connection.store(),
        }
    }

    /// Keeps a hold for the calls that follow.
    fn keep(&self, hold: Arc<Hold>) -> Arc<Hold> {
        // Two threads may have claimed it. The hold that is too many gives its reference back.
        match self.place() {
            None => drop(self.hold.set(Arc::clone(&hold))),
            Some(place) => {
                let before = lock(place).replace(Arc::clone(&hold));
                // A lost connection goes with it. No lock is held, since what goes tells others.
                drop(before);
            }
        }
        // What this handle has on its way was kept by the connection that was lost.
        #[cfg(feature = "tls")]
        if let Some(kept) = self.kept() {
            keeper::renew(&kept, Arc::clone(&hold));
        }
        hold
    }

    /// Whether the connection on which this object was used is not the one on which it is used now,
    /// so that what was held there is not held any more.
    pub(crate) fn was_lost_in(&self, session: &Session) -> bool {
        self.door.reconnects()
            && self.held().is_none_or(|hold| {
                !ptr::eq(Arc::as_ptr(&hold.connection), session.0.as_ptr())
                    || hold.connection.is_gone()
            })
    }

    /// Connects and claims the object, if this process has not done so yet. The next call then
    /// begins when it is polled first.
    pub(crate) async fn ready_async(&self) -> Result<(), ManagerError> {
        self.hold_async().await.map(drop)
    }

    /// Begins a request about this object.
    pub(crate) fn request(&self, operation: Operation) -> Request<'_> {
        Request::new(About::Borrowed(self), operation)
    }

    /// Begins a request about this object, which keeps the reference.
    pub(crate) fn into_request(self: Arc<Self>, operation: Operation) -> Request<'static> {
        Request::new(About::Owned(self), operation)
    }

    /// Returns a reference to an object that a reply to [`Operation::Create`] has brought.
    pub(crate) fn created(answer: &Answer) -> Self {
        let connection = Arc::clone(&answer.connection);
        Reference::new(Arc::clone(connection.door()), ObjectId(answer.number()), Some(connection))
    }

    /// Returns the end of a pipe that keeps the object alive while it is open anywhere.
    fn lease(&self) -> Result<Attachment, ManagerError> {
        if let Some(lease) = self.lease.get() {
            return Ok(Arc::clone(lease));
        }
        let deadline = Instant::now().checked_add(SEND_TIMEOUT);
        let connection = self.connection(deadline)?;
        let (watched, held) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(|error| ManagerError::os("a pipe for a managed object")(error.into()))?;
        let held = above_stdio(held).map_err(ManagerError::os("a pipe for a managed object"))?;
        kill_point!(ClientPipeMade);
        connection.lease(self.object, &watched, deadline)?;
        kill_point!(ClientPipeSent);
        // The server answers when it has the pipe. From then on the object may lose this reference.
        let undo = Undo { operation: Operation::Lease, object: self.object, owner: 0 };
        let answer = connection.call(undo, self.object, Body::NONE, deadline)?;
        Answer::new(answer, connection, undo.operation)?;
        kill_point!(ClientLeased);
        Ok(Arc::clone(self.lease.get_or_init(|| Arc::new(held))))
    }
}

#[cfg(feature = "tls")]
impl Reference {
    /// Returns the end of a pipe that keeps an object of a far server alive while it is open
    /// anywhere, as long as the process lives that has made the pipe.
    fn far_lease(&self) -> Result<Attachment, ManagerError> {
        if let (Some(received), None) = (self.lease.get(), self.held()) {
            // This process has not used it so far, so who has sent it keeps it on.
            return Ok(Arc::clone(received));
        }
        let hold = self.hold(Instant::now().checked_add(SEND_TIMEOUT))?;
        if let Some(kept) = self.kept() {
            return Ok(kept.end);
        }
        let made = keeper::keep(hold)?;
        if !self.is_of_fork() {
            // Of two threads that come here, one is too many. Its pipe is closed at once.
            return Ok(Arc::clone(&self.kept.get_or_init(|| made).end));
        }
        // Here both pipes are of use, each for the message of its thread.
        let before = lock(&self.kept_in_fork).replace(made.clone());
        drop(before);
        Ok(made.end)
    }

    /// Whether this process is a fork of the one that has made this reference.
    fn is_of_fork(&self) -> bool {
        self.door.route().is_some_and(|route| route.is_elsewhere())
    }

    /// Returns what this process keeps for messages with this handle, if it has sent one.
    fn kept(&self) -> Option<keeper::Kept> {
        match self.is_of_fork() {
            false => self.kept.get().cloned(),
            true => lock(&self.kept_in_fork).clone().filter(|kept| !kept.is_elsewhere()),
        }
    }

    /// Encodes a handle of an object of a far server for a process of this program.
    fn serialize_far<S: Serializer>(
        &self,
        serializer: S,
        attach: impl Fn(&Attachment) -> Result<u8, S::Error>,
    ) -> Result<S::Ok, S::Error> {
        let failed = |error: ManagerError| ser::Error::custom(unsent(&error));
        let way = self.door.route().and_then(|route| route.way());
        let way = way.ok_or_else(|| ser::Error::custom("a managed object of nowhere"))?;
        let way = attach(&way.map_err(failed)?)?;
        let lease = attach(&self.far_lease().map_err(failed)?)?;
        kill_point!(ClientHandleAttached);
        (self.door.id.0.to_le_bytes(), self.object.0, Some((way, lease))).serialize(serializer)
    }
}

/// Returns why a handle cannot be encoded, with all causes, which are lost otherwise.
fn unsent(error: &ManagerError) -> String {
    match error {
        ManagerError::TimedOut => format!(
            "the handle of a managed object cannot be sent: its manager has not answered within {} \
             seconds",
            SEND_TIMEOUT.as_secs()
        ),
        error => format!("{error:?}"),
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Reference { door, object, .. } = self;
        let server = door.id.0.to_le_bytes();
        if let Some((other, is_result)) = value::encoding_for() {
            if other.id != door.id {
                return Err(ser::Error::custom(
                    "an object of one manager cannot be stored in another manager",
                ));
            }
            if is_result && let Some(lent) = &self.lent {
                value::name_lent(Arc::clone(lent));
                return (server, object.0, None::<(u8, u8)>).serialize(serializer);
            }
            // The server counts it for this process and its connection, so both must have it until
            // the value is sent. If this process is the server, any connection will do.
            let deadline = Instant::now().checked_add(SEND_TIMEOUT);
            let hold = self.hold(deadline);
            let hold = hold.and_then(|hold| match is_result || other.is_reached_as(door) {
                true => Ok(hold),
                false => claim(&other, *object, deadline),
            });
            match hold {
                Ok(hold) => value::name(*object, hold),
                Err(error) => {
                    let text = unsent(&error);
                    value::fail(error);
                    return Err(ser::Error::custom(text));
                }
            }
            kill_point!(ClientHandleNamed);
            return (server, object.0, None::<(u8, u8)>).serialize(serializer);
        }
        let attach = |descriptor: &Attachment| {
            let attached = attachment::attach::<S>(descriptor);
            attached.map_err(|why| {
                ser::Error::custom(format!(
                    "a managed object: {why}; many of them travel as items of one managed list"
                ))
            })
        };
        #[cfg(feature = "tls")]
        if door.socket().is_none() {
            return self.serialize_far(serializer, attach);
        }
        // All handles of a message share one descriptor for their server, and each has one more.
        let known = table::door(door.id);
        let known = known.as_ref().and_then(|door| door.socket());
        let Some(own) = door.socket() else {
            return Err(ser::Error::custom("a managed object of nowhere"));
        };
        let socket = attach(known.unwrap_or(own))?;
        let lease = self.lease().map_err(|error| ser::Error::custom(unsent(&error)))?;
        let lease = attach(&lease)?;
        kill_point!(ClientHandleAttached);
        (server, object.0, Some((socket, lease))).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (server, object, attached) =
            <([u8; 16], u64, Option<(u8, u8)>)>::deserialize(deserializer)?;
        let (server, object) = (ServerId(u128::from_le_bytes(server)), ObjectId(object));
        let Some((socket, lease)) = attached else {
            return match value::take(server, object) {
                Some(Taken::Client(connection)) => {
                    Ok(Reference::new(Arc::clone(connection.door()), object, Some(connection)))
                }
                Some(Taken::Server(door, lent)) => {
                    Ok(Reference { lent: Some(lent), ..Reference::new(door, object, None) })
                }
                None => Err(de::Error::custom("the object did not come with its handle")),
            };
        };
        let socket = attachment::detach(socket).map_err(de::Error::custom)?;
        let lease = attachment::detach(lease).map_err(de::Error::custom)?;
        let door = match socket::is_one(socket.as_fd()) {
            true => Door::near(server, socket),
            #[cfg(feature = "tls")]
            false => {
                let route = way::received(&socket).map_err(de::Error::custom)?;
                Door::at((server, 0), None, route)
            }
            #[cfg(not(feature = "tls"))]
            false => return Err(de::Error::custom("what came is no socket of a manager")),
        };
        let reference = Reference::new(Arc::new(door), object, None);
        // The lease keeps the object alive until the first call, which claims it, and afterwards.
        let _ = reference.lease.set(lease);
        kill_point!(ClientHandleReceived);
        Ok(reference)
    }
}

/// What a request is about.
enum About<'a> {
    Borrowed(&'a Reference),
    Owned(Arc<Reference>),
}

impl Deref for About<'_> {
    type Target = Reference;

    fn deref(&self) -> &Reference {
        match self {
            About::Borrowed(reference) => reference,
            About::Owned(reference) => reference,
        }
    }
}

/// A request that is being put together.
pub(crate) struct Request<'a> {
    reference: About<'a>,
    /// The object that the request is for.
    object: ObjectId,
    undo: Undo,
    body: Vec<u8>,
    /// The bytes of the last value, if they are in a segment.
    tail: Option<Tail>,
    /// Whether they would be, if there were segments.
    is_large: bool,
    /// The objects that the values name. They are kept until the request is sent, although their
    /// handles may be dropped as soon as they are encoded.
    named: Vec<Arc<Hold>>,
    failed: Option<ManagerError>,
}

impl<'a> Request<'a> {
    fn new(reference: About<'a>, operation: Operation) -> Self {
        let object = reference.object;
        let undo = Undo { operation, object, owner: 0 };
        Request {
            reference,
            object,
            undo,
            body: Vec::new(),
            tail: None,
            is_large: false,
            named: Vec::new(),
            failed: None,
        }
    }

    /// Turns a request that concerns the server into one for its directory.
    pub(crate) fn for_directory(mut self) -> Self {
        self.object = ObjectId::DIRECTORY;
        self.undo.object = ObjectId::DIRECTORY;
        self
    }

    pub(crate) fn number(mut self, number: u64) -> Self {
        debug_assert!(self.tail.is_none(), "nothing stands behind the last value");
        put_number(&mut self.body, number);
        self
    }

    pub(crate) fn flag(self, flag: bool) -> Self {
        self.number(u64::from(flag))
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        debug_assert!(self.tail.is_none(), "nothing stands behind the last value");
        put_bytes(&mut self.body, bytes);
        self
    }

    /// Adds an encoded value.
    pub(crate) fn value<T: Serialize + ?Sized>(self, value: &T) -> Self {
        self.encode(value, None)
    }

    /// Adds an encoded value, behind which nothing else is added. A large one may travel in a
    /// segment of shared memory.
    pub(crate) fn last_value<T: Serialize + ?Sized>(self, value: &T) -> Self {
        let (before, store) = (self.body.len(), self.reference.store());
        let mut request = self.encode(value, store);
        request.is_large = request.body.len() - before > SEGMENT_FROM;
        request
    }

    fn encode<T: Serialize + ?Sized>(mut self, value: &T, store: Option<Arc<Store>>) -> Self {
        debug_assert!(self.tail.is_none(), "nothing stands behind the last value");
        if self.failed.is_none() {
            let Request { reference, body, named, .. } = &mut self;
            match value::encode(&reference.door, value, body, named, store) {
                Ok(tail) => self.tail = tail,
                Err(error) => self.failed = Some(error),
            }
        }
        self
    }

    /// Returns the door of the server that the request goes to.
    pub(crate) fn door(&self) -> &Arc<Door> {
        &self.reference.door
    }

    /// Adds a function, and its arguments with what they name.
    pub(crate) fn call_of(self, call: EncodedCall) -> Self {
        self.number(call.function).arguments_of(call)
    }

    /// Adds the arguments of a function, with what they name.
    pub(crate) fn arguments_of(mut self, call: EncodedCall) -> Self {
        put_value(&mut self.body, &call.arguments, &call.named.ids);
        self.named.extend(call.named.into_holds());
        self
    }

    /// Adds an encoded key. The server finds it by its bytes, so it cannot name an object.
    pub(crate) fn key<T: Serialize + ?Sized>(self, key: &T) -> Self {
        let before = self.body.len();
        let mut request = self.value(key);
        let names =
            Fields::new(&request.body[before..]).value().is_ok_and(|key| key.names().len() > 0);
        if names && request.failed.is_none() {
            let text = format!("a {} as a key: it contains managed objects", type_name::<T>());
            request.failed = Some(ManagerError::Encode(text.into()));
        }
        request
    }

    /// Adds all values of an iterator.
    pub(crate) fn values<T: Serialize>(self, values: impl IntoIterator<Item = T>) -> Self {
        values.into_iter().fold(self, |request, value| request.value(&value))
    }

    /// Sets who owns the lock that the request takes, and the lock if that is another object.
    pub(crate) fn takes_lock(mut self, owner: u64, lock: ObjectId) -> Self {
        self.undo.owner = owner;
        self.undo.object = lock;
        self
    }

    /// Makes the call and waits for the answer.
    pub(crate) fn call(self) -> Result<Answer, ManagerError> {
        self.call_until(None)
    }

    /// Makes the call and waits for the answer until the deadline.
    ///
    /// If the connection is lost meanwhile, and may be made again, a call that changes nothing is
    /// repeated.
    pub(crate) fn call_until(mut self, deadline: Option<Instant>) -> Result<Answer, ManagerError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut attempts = None;
        loop {
            let hold = self.reference.hold(deadline)?;
            self.check(&hold)?;
            let (undo, object, body) = (self.undo, self.object, self.body(&hold.connection));
            let called = hold.connection.call(undo, object, body, deadline);
            if self.is_lost(&called) && self.repeats() && again(&self.reference.door, &mut attempts)
            {
                continue;
            }
            let message = called.map_err(|error| self.explained(error))?;
            return Answer::new(message, Arc::clone(&hold.connection), self.undo.operation);
        }
    }

    /// Returns the body. It stays there if the call may have to be made again.
    fn body(&mut self, connection: &Connection) -> Body<'_> {
        let is_large = self.is_large;
        if self.repeats() && self.reference.door.reconnects() {
            debug_assert!(self.tail.is_none(), "what is repeated stores nothing");
            return Body { fields: Cow::Borrowed(&self.body), tail: None, is_large };
        }
        let mut fields = std::mem::take(&mut self.body);
        let mut tail = self.tail.take();
        if let Some(other) = tail.take_if(|tail| !tail.is_of(connection.segments())) {
            // The connection for which it was encoded is lost.
            other.append_to(&mut fields);
        }
        Body { fields: Cow::Owned(fields), tail, is_large }
    }

    fn is_lost<T>(&self, called: &Result<T, ManagerError>) -> bool {
        matches!(called, Err(ManagerError::Gone(_)))
    }

    /// Whether it does no harm if the call is made twice, and it means the same on another
    /// connection.
    fn repeats(&self) -> bool {
        self.undo.operation.changes_nothing() && self.named.is_empty()
    }

    /// Checks that what the values name is known to the server that the call goes to.
    fn check(&self, hold: &Hold) -> Result<(), ManagerError> {
        let named = self.named.iter();
        match { named }.all(|named| Arc::ptr_eq(&named.connection, &hold.connection)) {
            true => Ok(()),
            false => Err(ManagerError::NoObject),
        }
    }

    /// Adds to the error of a call that was lost on its way what is known about it.
    fn explained(&self, error: ManagerError) -> ManagerError {
        explained(error, self.reference.door.reconnects(), self.undo.operation)
    }

    /// Makes the call. At the deadline, asks the server to answer, and waits for that, for `grace`
    /// at most. So it is known whether the call was done.
    pub(crate) fn call_then_give_up(
        mut self,
        deadline: Option<Instant>,
        grace: Option<Duration>,
    ) -> Result<Answer, ManagerError> {
        if deadline.is_none() {
            return self.call();
        }
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        // The first call of a handle claims its object, which is a call before this one. The server
        // may take as long for it as for the answer.
        let limit = grace.and_then(|grace| deadline?.checked_add(grace));
        let hold = self.reference.hold(limit)?;
        self.check(&hold)?;
        let (connection, undo, object) = (&hold.connection, self.undo, self.object);
        let body = self.body(connection);
        let called = connection.call_then_give_up(undo, object, body, deadline, grace);
        let message = called.map_err(|error| self.explained(error))?;
        Answer::new(message, Arc::clone(connection), self.undo.operation)
    }

    /// Makes the call, and awaits the answer. Nothing happens before it is polled.
    pub(crate) async fn call_async(mut self) -> Result<Answer, ManagerError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut attempts = None;
        loop {
            let hold = self.reference.hold_async().await?;
            self.check(&hold)?;
            let (undo, object, body) = (self.undo, self.object, self.body(&hold.connection));
            let called = match hold.connection.begin(undo, object, body) {
                Ok(pending) => pending.await,
                Err(error) => Err(error),
            };
            if self.is_lost(&called) && self.repeats() && again(&self.reference.door, &mut attempts)
            {
                continue;
            }
            let message = called.map_err(|error| self.explained(error))?;
            return Answer::new(message, Arc::clone(&hold.connection), self.undo.operation);
        }
    }

    /// Makes the call, and returns without its answer. The thread may wait for the server if it has
    /// to claim the object first.
    pub(crate) fn begin(mut self) -> Result<PendingAnswer, ManagerError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let hold = self.reference.hold(None)?;
        self.check(&hold)?;
        let (undo, object, body) = (self.undo, self.object, self.body(&hold.connection));
        let call = hold.connection.begin(undo, object, body);
        let reconnects = self.reference.door.reconnects();
        let operation = self.undo.operation;
        Ok(PendingAnswer {
            call: call.map_err(|error| self.explained(error))?,
            operation,
            reconnects,
        })
    }

    /// Sends a request that gets no answer.
    pub(crate) fn tell(self) {
        if self.failed.is_some() {
            return;
        }
        // Nothing that is told is worth a connection to a server that was lost.
        let hold = match self.reference.door.route() {
            Some(_) => self.reference.held(),
            None => self.reference.hold(None).ok(),
        };
        if let Some(hold) = hold {
            hold.connection.tell(self.undo.operation, self.object, &self.body);
        }
    }
}

/// Adds to the error of a call that was lost on its way what is known about it.
fn explained(error: ManagerError, reconnects: bool, operation: Operation) -> ManagerError {
    match error {
        ManagerError::Gone(why) if reconnects && !operation.changes_nothing() => {
            ManagerError::Gone(format!("{why}; it is not known whether the call was done").into())
        }
        error => error,
    }
}

/// A call that was made, and whose answer may be awaited or waited for.
pub(crate) struct PendingAnswer {
    call: PendingCall,
    operation: Operation,
    reconnects: bool,
}

impl PendingAnswer {
    fn answer(&self, message: Result<Message, ManagerError>) -> Result<Answer, ManagerError> {
        let message = message.map_err(|error| explained(error, self.reconnects, self.operation))?;
        Answer::new(message, Arc::clone(self.call.connection()), self.operation)
    }

    /// Waits for the answer until the deadline. `None` if it has not come by then.
    pub(crate) fn wait(
        &mut self,
        deadline: Option<Instant>,
    ) -> Option<Result<Answer, ManagerError>> {
        let message = self.call.wait(deadline)?;
        Some(self.answer(message))
    }
}

impl Future for PendingAnswer {
    type Output = Result<Answer, ManagerError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let message = ready!(Pin::new(&mut self.call).poll(context));
        Poll::Ready(self.answer(message))
    }
}

/// The answer to a call.
pub(crate) struct Answer {
    reply: Reply,
    message: Message,
    connection: Arc<Connection>,
    operation: Operation,
    /// Whether the values were read, so that the objects that they name have handles.
    read: Cell<bool>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.read.get() {
            self.give_back(self.body());
        }
        spare::give(std::mem::take(&mut self.message));
    }
}

impl Answer {
    fn new(
        message: Message,
        connection: Arc<Connection>,
        operation: Operation,
    ) -> Result<Self, ManagerError> {
        let reply = message.first_chunk().and_then(Reply::from_bytes);
        let reply = reply.ok_or_else(|| ManagerError::Protocol("a reply without a head".into()))?;
        let answer = Answer { reply, message, connection, operation, read: Cell::new(false) };
        match reply.status {
            Status::Done
            | Status::Missing
            | Status::NotNow
            | Status::GivenUp
            | Status::Refused
            | Status::Broken => Ok(answer),
            Status::NoObject => Err(ManagerError::NoObject),
            Status::WrongKind => {
                Err(ManagerError::Protocol("the object is of another kind than its handle".into()))
            }
            Status::Malformed => Err(ManagerError::Protocol(answer.text())),
            Status::Limit => Err(ManagerError::Limit(answer.text())),
            Status::Failed => Err(answer.failure()),
        }
    }

    /// Gives back the references that came with values which nobody reads.
    fn give_back(&self, fields: Fields<'_>) {
        let brings = matches!(self.reply.status, Status::Done | Status::Missing);
        if brings && !fields.is_empty() {
            value::release(&self.connection, names_in_reply(self.operation, fields));
        }
    }

    fn body(&self) -> Fields<'_> {
        Fields::new(self.message.get(HEADER_BYTES..).unwrap_or_default())
    }

    fn text(&self) -> Arc<str> {
        String::from_utf8_lossy(self.body().bytes().unwrap_or_default()).into()
    }

    fn failure(&self) -> ManagerError {
        super::super::function::failure(self.message.get(HEADER_BYTES..).unwrap_or_default())
    }

    /// Returns the connection that the answer came over.
    pub(crate) fn session(&self) -> Session {
        Session(Arc::downgrade(&self.connection))
    }

    pub(crate) fn status(&self) -> Status {
        self.reply.status
    }

    pub(crate) fn number(&self) -> u64 {
        self.reply.number
    }

    /// Whether the number in the answer says yes.
    pub(crate) fn is_yes(&self) -> bool {
        self.reply.status == Status::Done && self.reply.number == 1
    }

    /// Returns the error if the object has refused the call.
    pub(crate) fn unless_refused(self, why: &'static str) -> Result<Self, ManagerError> {
        match self.reply.status {
            Status::Refused => Err(ManagerError::Refused(why)),
            _ => Ok(self),
        }
    }

    /// Decodes the one value of the answer.
    pub(crate) fn value<T: DeserializeOwned>(&self) -> Result<T, ManagerError> {
        let mut fields = self.body();
        let value = fields.value().map_err(short)?;
        self.read.set(true);
        value::decode(&self.connection, value)
    }

    /// Decodes the one value of the answer with `decode`. `name` says whose it is.
    pub(crate) fn value_with<T>(
        &self,
        name: &str,
        decode: impl FnOnce(&[u8]) -> Result<T, CodecError>,
    ) -> Result<T, ManagerError> {
        let mut fields = self.body();
        let value = fields.value().map_err(short)?;
        self.read.set(true);
        value::decode_with(&self.connection, value, name, decode)
    }

    /// Decodes the value of the answer, if there is one.
    pub(crate) fn optional<T: DeserializeOwned>(&self) -> Result<Option<T>, ManagerError> {
        match self.reply.status {
            Status::Missing => Ok(None),
            // Where nothing is expected, an empty body means that nothing is there.
            _ if self.body().is_empty() => Ok(None),
            _ => self.value().map(Some),
        }
    }

    /// Decodes all values of the answer with `each`, which reads one or more at a time.
    pub(crate) fn each<R>(
        &self,
        mut each: impl FnMut(&mut Values<'_>) -> Result<R, ManagerError>,
    ) -> Result<Vec<R>, ManagerError> {
        let mut values = Values { fields: self.body(), connection: &self.connection };
        self.read.set(true);
        let mut all = Vec::new();
        while !values.fields.is_empty() {
            match each(&mut values) {
                Ok(one) => all.push(one),
                Err(error) => {
                    // Nobody will read the others.
                    self.give_back(values.fields);
                    return Err(error);
                }
            }
        }
        Ok(all)
    }

    /// Decodes all values of the answer.
    pub(crate) fn values<T: DeserializeOwned>(&self) -> Result<Vec<T>, ManagerError> {
        self.each(|values: &mut Values<'_>| values.next())
    }

    /// Returns the numbers of the answer.
    pub(crate) fn numbers<const N: usize>(&self) -> Result<[u64; N], ManagerError> {
        let mut fields = self.body();
        let mut numbers = [0; N];
        for number in &mut numbers {
            *number = fields.number().map_err(short)?;
        }
        Ok(numbers)
    }
}

/// Reads the values of an answer, one after the other.
pub(crate) struct Values<'a> {
    fields: Fields<'a>,
    connection: &'a Arc<Connection>,
}

impl Values<'_> {
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<T, ManagerError> {
        let value = self.fields.value().map_err(short)?;
        value::decode(self.connection, value)
    }

    /// Passes over a value. The objects that it names are given back.
    pub(crate) fn skip(&mut self) -> Result<(), ManagerError> {
        let value = self.fields.value().map_err(short)?;
        value::release(self.connection, value.names());
        Ok(())
    }

    /// Reads a value that may be absent.
    pub(crate) fn optional<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ManagerError> {
        match self.fields.flag().map_err(short)? {
            true => self.next().map(Some),
            false => Ok(None),
        }
    }
}

fn short(error: super::super::protocol::Malformed) -> ManagerError {
    ManagerError::Protocol(error.to_string().into())
}
