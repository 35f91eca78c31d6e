//! The messages between clients and the server of a manager: their headers, and the fields of
//! their bodies. No I/O.
//!
//! ```text
//!  request   │ call │ operation │ object │ length │  fields, one behind the other
//!  reply     │ call │ status    │ number │ length │  fields, one behind the other
//! ```
//!
//! Over TCP, the server marks a reply that gives the client an item of a queue, and the client
//! tells when it has received that. Over a lane, its position in the ring says so.
//!
//! A field is a number (8 bytes), a byte string (its length in 4 bytes, then its bytes), or a
//! value: an encoded value of the user, and the ids of the objects that it names. The server never
//! decodes a user's value. It compares and keeps its bytes.
//!
//! The bytes of a large value at the end of a request may lie in a segment of shared memory, the
//! *tail* of the request ([`InSegment`]). The receiver copies them before anything looks at them.

use std::{fmt, sync::Arc};

/// Identifies an object of one server. Who knows it may use the object, so a server gives out ids
/// that nobody can guess. There are so many that none is met twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectId(pub(crate) u64);

impl ObjectId {
    /// The object of requests that concern no object.
    pub(crate) const NONE: ObjectId = ObjectId(0);
    /// The map of what is published. It is always there, and every client may use it. Its keys are
    /// names.
    pub(crate) const DIRECTORY: ObjectId = ObjectId(u64::MAX);
}

/// Identifies a call of one client. The client chooses the number. The reply repeats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CallId(pub(crate) u32);

impl CallId {
    /// The call of requests that get no reply.
    pub(crate) const NONE: CallId = CallId(0);
}

/// Length of a header. A multiple of 8, so that the body behind it begins at a word.
pub(crate) const HEADER_BYTES: usize = 24;

/// Declares an enumeration whose values travel as one byte.
macro_rules! bytes {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub(crate) enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            pub(crate) const ALL: &[$name] = &[$($name::$variant),*];

            pub(crate) fn from_byte(byte: u8) -> Option<Self> {
                Self::ALL.get(usize::from(byte)).copied()
            }
        }
    };
}

bytes! {
    /// What a request asks for. The comments name the fields of the body, and what the reply has.
    /// `number` is the number in the reply's header.
    Operation {
        // Objects and clients. These requests concern no object, or any kind of object.
        /// Fields: kind, then what [`Kind`] says. `number`: the new object's id. The client holds a
        /// reference to it.
        Create,
        /// Takes one more reference to an object that somebody else keeps alive.
        Claim,
        /// Gives back references. Field: how many. No reply.
        Release,
        /// Gives up a call. Field: its id. No reply of its own: the call is answered, by
        /// [`Status::GivenUp`] if it was still waiting.
        GiveUp,
        /// `number`: how many objects there are.
        CountObjects,
        /// Keeps an object alive as long as a pipe is open anywhere, whose other end has come over
        /// the socket. Not for the core: the loop answers it.
        Lease,

        // All containers.
        /// `number`: how many items.
        Len,
        Clear,
        /// Fields: a cursor (0 at first), and how many bytes of items at most. Items, for a map its
        /// keys and values in turn. `number`: the next cursor, 0 behind the last item. At least one
        /// item comes, if there is one.
        Page,
        /// All items. `number`: the version of the object, which changes with each change of it.
        Snapshot,

        // Maps.
        /// Field: key. Value, or [`Status::Missing`].
        MapGet,
        /// Fields: key, value. The previous value, or `Missing`.
        MapInsert,
        /// Fields: keys and values in turn.
        MapExtend,
        /// Field: key. Value, or `Missing`.
        MapRemove,
        /// Field: key. `number`: 1 if it is there.
        MapContains,
        /// Fields: key, value. Inserts it if the key is missing. The value that is there now.
        /// `number`: 1 if it was inserted.
        MapGetOrInsert,
        /// Removes the last entry in the order of insertion. Key and value, or `Missing`.
        MapPop,
        /// Fields: key, what is expected, what is to be there; each of the two latter is a number 0
        /// for nothing, or 1 and a value. `number`: 1 if it was exchanged. Otherwise the value that
        /// is there, or `Missing`.
        MapCompareExchange,
        /// Fields: key, function, 1 if it takes an `Option`, its further arguments as a value. The
        /// new value. `Missing` if there is no such key and the function takes no `Option`.
        MapUpdate,
        /// Fields: keys. For each a number 1 and the value, or 0.
        MapGetMany,

        // Lists, and arrays (lists whose length is fixed).
        /// Field: index. Value, or `Missing`.
        ListGet,
        /// Fields: index, value. The previous value, or `Missing`.
        ListSet,
        /// Fields: values.
        ListExtend,
        /// Fields: index, value. `Missing` if the index is greater than the length.
        ListInsert,
        /// Field: index, `u64::MAX` for the last item. The item, or `Missing`.
        ListRemove,
        /// Fields: start, end. Items. `Missing` if the range is not within the list.
        ListRange,
        /// Fields: start, end, values. Replaces that range by the values. `Missing` as above.
        ListSplice,
        /// Fields: value, start, end. `number`: the index of the first such item in that range, or
        /// `Missing`. A range that ends behind the list ends with it.
        ListFind,
        /// Field: value. `number`: how many items are equal to it.
        ListCount,
        ListReverse,
        /// Fields: version, values. Replaces all items, if the object still has that version.
        /// `number`: 1 if so.
        ListReplace,
        /// Fields: index, function, its further arguments as a value. The new value, or `Missing`.
        ListUpdate,

        // Sets.
        /// Field: value. `number`: 1 if it was not there.
        SetInsert,
        /// Field: value. `number`: 1 if it was there.
        SetRemove,
        /// Field: value. `number`: 1 if it is there.
        SetContains,
        /// Removes any item. The item, or `Missing`.
        SetPop,
        /// Fields: values. Adds all of them.
        SetUnion,
        /// Fields: values. Removes all of them.
        SetSubtract,
        /// Fields: values. Removes all others.
        SetIntersect,
        /// Fields: values. Removes those that are there, and adds those that are not.
        SetToggle,
        /// Fields: values, all different. `number`: how many of them are there. Field: the length
        /// of the set.
        SetCount,

        // Values.
        /// Value.
        CellGet,
        /// Field: value.
        CellSet,
        /// Field: value. The previous value.
        CellSwap,
        /// Fields: expected value, new value. `number`: 1 if it was exchanged. Otherwise the value
        /// that is there.
        CellCompareExchange,
        /// Fields: function, its further arguments as a value. The new value.
        CellUpdate,

        // Queues.
        /// Fields: 1 to wait for room, value. [`Status::NotNow`] if the queue is full.
        QueuePut,
        /// Field: 1 to wait for an item. Value, or `NotNow`.
        QueueGet,
        /// Field: value. Puts back an item that was got and that nobody wanted any more: it comes
        /// first again. No reply.
        QueuePutBack,
        /// One item that was got is done. [`Status::Refused`] if there is none.
        QueueTaskDone,
        /// Waits until all items are done.
        QueueJoin,
        /// `number`: 1 if there is no room for another item.
        QueueIsFull,

        // Locks and semaphores.
        /// Fields: owner, 1 to wait. `number`: 1 if the last owner died with it. Or `NotNow`.
        LockAcquire,
        /// Field: owner. `Refused` if it is not held, or for a lock that can be taken again, if it
        /// is held by another.
        LockRelease,
        /// Field: owner. `Refused` unless this owner holds it. Then possibly 1: the owner has not
        /// seen that the one before died, so the next one is told.
        LockReleaseOwn,
        /// `number`: 1 if it is held.
        LockIsHeld,
        /// Field: 1 to wait. Or `NotNow`.
        SemaphoreAcquire,
        /// Field: how many. `Refused` if a bounded semaphore would have more than at first.
        SemaphoreRelease,
        /// `number`: how many permits are left.
        SemaphoreValue,

        // Events.
        EventSet,
        EventClear,
        /// `number`: 1 if it is set.
        EventIsSet,
        EventWait,

        // Conditions. The lock is a lock of the same server, which the caller holds.
        /// Field: owner. Gives up the lock, waits to be notified, and takes the lock again.
        /// `GivenUp` comes when the lock is taken again, too. `Refused` if the caller does not hold
        /// the lock.
        ConditionWait,
        /// Fields: owner, how many to wake. `number`: how many were woken. `Refused` as above.
        ConditionNotify,

        // Barriers.
        /// `number`: how many came before this one. [`Status::Broken`] if the barrier is broken, or
        /// breaks meanwhile.
        BarrierWait,
        /// Those who wait get `Broken`. Afterwards it is as new.
        BarrierReset,
        /// Breaks it.
        BarrierAbort,
        /// Fields in the reply: parties, how many wait, 1 if it is broken.
        BarrierState,

        // Objects of users' own types.
        /// Fields: function, its arguments as a value. What the method returned.
        OwnCall,

        // Pools of workers.
        /// Fields: function, options of the task as bytes, its arguments as bytes. What the task
        /// returned.
        PoolSubmit,
        /// The pool accepts no more tasks.
        PoolClose,
        /// The same, and its workers are terminated.
        PoolTerminate,
        /// Waits until the pool has no worker any more. `Refused` if it accepts tasks.
        PoolJoin,
        /// The process ids of the workers, as a value.
        PoolWorkers,

        // The connection.
        /// Asks for segments of shared memory, for large values. With `Done`, their descriptor has
        /// come over the socket. Once more and without a reply: the client has opened it. Not for
        /// the core: the loop answers it.
        Segments,

        // Clients over TCP.
        /// The client has received more of the replies that are [marked](Reply::mark). Field: how
        /// many in all. No reply. Not for the core: the loop takes it.
        Received,
    }
}

impl Operation {
    /// Whether it leaves everything as it was, so that it does no harm if it is done twice. A call
    /// whose connection was lost is repeated only then.
    pub(crate) fn changes_nothing(self) -> bool {
        use Operation::*;
        matches!(
            self,
            CountObjects
                | Len
                | Page
                | Snapshot
                | MapGet
                | MapContains
                | MapGetMany
                | ListGet
                | ListRange
                | ListFind
                | ListCount
                | SetContains
                | SetCount
                | CellGet
                | QueueIsFull
                | QueueJoin
                | LockIsHeld
                | SemaphoreValue
                | EventIsSet
                | EventWait
                | BarrierState
                | PoolJoin
                | PoolWorkers
        )
    }
}

bytes! {
    /// The kinds of objects, and the fields of their `Create`.
    Kind {
        /// No fields.
        Map,
        /// Fields: 1 if its length is fixed, values.
        List,
        /// Fields: values.
        Set,
        /// Field: value.
        Cell,
        /// Fields: capacity (0: no limit), 1 if its items are to be reported as done.
        Queue,
        /// Field: 1 if its owner may take it again.
        Lock,
        /// Fields: permits, 1 if there are never more.
        Semaphore,
        Event,
        /// Field: the id of its lock, which lives as long as the condition.
        Condition,
        /// Field: parties.
        Barrier,
        /// An object of a user's own type. Fields: the function that makes it, its arguments as a
        /// value.
        Own,
        /// A pool of workers. Field: how many workers at most, up to [`POOL_WORKERS_MAX`].
        Pool,
    }
}

/// Maximum number of workers of a pool in a server. With a higher value, one client can make the
/// server start so many processes that nobody else can start one. With a lower value, large
/// machines are not used.
pub(crate) const POOL_WORKERS_MAX: u64 = 1024;

bytes! {
    /// How a request ended.
    Status {
        Done,
        /// There is no such key, item or index.
        Missing,
        /// It would have to wait, and was not to.
        NotNow,
        /// The call was given up before it was done.
        GivenUp,
        /// The object does not allow it in its state.
        Refused,
        /// The barrier is broken.
        Broken,
        /// The object does not exist (any more).
        NoObject,
        /// The object is of another kind.
        WrongKind,
        /// The request is not well formed. Field: a text.
        Malformed,
        /// A limit of the manager is reached. Field: a text.
        Limit,
        /// A function that ran on the server failed. Fields: the kind of reply of a worker, and its
        /// bytes, as a worker sends them.
        Failed,
    }
}

/// The header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) call: CallId,
    pub(crate) operation: Operation,
    pub(crate) object: ObjectId,
    /// Length of the body.
    pub(crate) len: u64,
}

/// The header of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) call: CallId,
    pub(crate) status: Status,
    pub(crate) number: u64,
    /// Length of the body.
    pub(crate) len: u64,
}

/// Where a header says whether its message has a tail in a segment.
const IN_SEGMENT_AT: usize = 5;
/// Where the header of a reply says whether the client is to tell that it has received it.
const MARK_AT: usize = 6;

fn header(call: CallId, byte: u8, word: u64, len: u64) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..4].copy_from_slice(&call.0.to_le_bytes());
    out[4] = byte;
    out[8..16].copy_from_slice(&word.to_le_bytes());
    out[16..].copy_from_slice(&len.to_le_bytes());
    out
}

/// Returns the parts of a header: call, byte, word, length.
fn parts(header: &[u8; HEADER_BYTES]) -> (CallId, u8, u64, u64) {
    let [c0, c1, c2, c3, byte, _, _, _, rest @ ..] = header;
    let (words, _) = rest.as_chunks::<8>();
    let call = CallId(u32::from_le_bytes([*c0, *c1, *c2, *c3]));
    (call, *byte, u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1]))
}

impl Request {
    pub(crate) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        header(self.call, self.operation as u8, self.object.0, self.len)
    }

    pub(crate) fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (call, byte, word, len) = parts(bytes);
        let operation = Operation::from_byte(byte)?;
        Some(Request { call, operation, object: ObjectId(word), len })
    }
}

impl Reply {
    /// Asks the client to tell that it has received this reply.
    pub(crate) fn mark(header: &mut [u8; HEADER_BYTES]) {
        header[MARK_AT] = 1;
    }

    /// Whether the server has asked for that.
    pub(crate) fn is_marked(message: &[u8]) -> bool {
        message.get(MARK_AT).is_some_and(|mark| *mark != 0)
    }

    pub(crate) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        header(self.call, self.status as u8, self.number, self.len)
    }

    pub(crate) fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (call, byte, number, len) = parts(bytes);
        Some(Reply { call, status: Status::from_byte(byte)?, number, len })
    }
}

/// The last bytes of a request, which lie in a segment: its number, and how many there are. Both
/// stand behind the fields of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InSegment {
    pub(crate) number: u64,
    pub(crate) len: u64,
}

impl InSegment {
    /// How many bytes this takes behind the fields of a body.
    pub(crate) const BYTES: usize = 16;

    /// Says it in a request: in its header, and behind its fields. The length in the header does
    /// not change, so it has to include [`BYTES`](Self::BYTES).
    pub(crate) fn put(self, header: &mut [u8; HEADER_BYTES], body: &mut Vec<u8>) {
        header[IN_SEGMENT_AT] = 1;
        put_number(body, self.number);
        put_number(body, self.len);
    }

    /// Whether a request with this header has such bytes.
    pub(crate) fn is_in(header: &[u8]) -> bool {
        header.get(IN_SEGMENT_AT).is_some_and(|byte| *byte != 0)
    }

    /// Reads it from such a request. Also returns the fields in front of it.
    pub(crate) fn take(body: &[u8]) -> Option<(&[u8], Self)> {
        let (fields, rest) = body.split_at_checked(body.len().checked_sub(Self::BYTES)?)?;
        let mut rest = Fields::new(rest);
        let (number, len) = (rest.number().ok()?, rest.number().ok()?);
        Some((fields, InSegment { number, len }))
    }
}

/// The body of a request, as the server has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestBody<'a> {
    pub(crate) fields: &'a [u8],
    /// The bytes of the last value, if they came apart from the fields.
    pub(crate) tail: Option<&'a Arc<[u8]>>,
}

impl<'a> RequestBody<'a> {
    pub(crate) fn fields(self) -> Fields<'a> {
        Fields { rest: self.fields, tail: self.tail }
    }

    pub(crate) fn len(self) -> usize {
        self.fields.len() + self.tail.map_or(0, |tail| tail.len())
    }
}

impl<'a> From<&'a [u8]> for RequestBody<'a> {
    fn from(fields: &'a [u8]) -> Self {
        RequestBody { fields, tail: None }
    }
}

/// A bit in the length of a value: the ids of objects that it names stand in front of its bytes.
const NAMES_OBJECTS: u32 = 1 << 31;

/// Maximum length of a byte string, or of a value.
pub(crate) const FIELD_BYTES_MAX: usize = (NAMES_OBJECTS - 1) as usize;

/// Maximum number of objects that one value names.
pub(crate) const NAMED_MAX: usize = u16::MAX as usize;

/// A value as it stands in a message: the user's encoded bytes, and the objects that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ValueField<'a> {
    pub(crate) bytes: &'a [u8],
    names: &'a [[u8; 8]],
    /// The same bytes, if they are in memory of their own, which may be kept.
    shared: Option<&'a Arc<[u8]>>,
}

impl<'a> ValueField<'a> {
    /// Returns the objects that the value names, with repetitions.
    pub(crate) fn names(&self) -> impl ExactSizeIterator<Item = ObjectId> + 'a {
        self.names.iter().map(|id| ObjectId(u64::from_le_bytes(*id)))
    }

    /// Returns the bytes, to keep them. They are copied unless they have come apart.
    pub(crate) fn to_shared(self) -> Arc<[u8]> {
        self.shared.map_or_else(|| self.bytes.into(), Arc::clone)
    }
}

/// Appends a number to a body.
pub(crate) fn put_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

/// Appends a byte string to a body. It has at most [`FIELD_BYTES_MAX`] bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    debug_assert!(bytes.len() <= FIELD_BYTES_MAX);
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Appends a value to a body. It has at most [`FIELD_BYTES_MAX`] bytes, and names at most
/// [`NAMED_MAX`] objects.
pub(crate) fn put_value(out: &mut Vec<u8>, bytes: &[u8], names: &[ObjectId]) {
    put_value_head(out, bytes.len(), names);
    out.extend_from_slice(bytes);
}

/// Appends what stands in front of the bytes of a value.
pub(crate) fn put_value_head(out: &mut Vec<u8>, len: usize, names: &[ObjectId]) {
    debug_assert!(len <= FIELD_BYTES_MAX && names.len() <= NAMED_MAX);
    if names.is_empty() {
        return out.extend_from_slice(&(len as u32).to_le_bytes());
    }
    out.extend_from_slice(&(len as u32 | NAMES_OBJECTS).to_le_bytes());
    out.extend_from_slice(&(names.len() as u16).to_le_bytes());
    names.iter().for_each(|id| out.extend_from_slice(&id.0.to_le_bytes()));
}

/// A value that is being appended to a body.
pub(crate) struct Opened {
    /// Where the length of the value is.
    at: usize,
}

impl Opened {
    /// Begins a value. Its bytes are then appended to the body.
    pub(crate) fn begin(out: &mut Vec<u8>) -> Self {
        let opened = Opened { at: out.len() };
        out.extend_from_slice(&[0; 4]);
        opened
    }

    /// Returns how many bytes were appended so far.
    pub(crate) fn len(&self, out: &[u8]) -> usize {
        out.len() - self.at - 4
    }

    /// Ends the value: the body is as after [`put_value`].
    pub(crate) fn end(self, out: &mut Vec<u8>, names: &[ObjectId]) {
        let len = self.len(out);
        debug_assert!(len <= FIELD_BYTES_MAX && names.len() <= NAMED_MAX);
        let mark = if names.is_empty() { 0 } else { NAMES_OBJECTS };
        out[self.at..self.at + 4].copy_from_slice(&(len as u32 | mark).to_le_bytes());
        if !names.is_empty() {
            let count = (names.len() as u16).to_le_bytes();
            let ids = names.iter().flat_map(|id| id.0.to_le_bytes());
            let behind = self.at + 4;
            drop(out.splice(behind..behind, count.into_iter().chain(ids)));
        }
    }

    /// Takes back what was appended.
    pub(crate) fn undo(self, out: &mut Vec<u8>) {
        out.truncate(self.at);
    }
}

/// Returns the objects that the values in a reply name: each is a reference that the client got
/// with it. The reply has ended with [`Status::Done`], or with a value that is there instead.
pub(crate) fn names_in_reply(operation: Operation, mut fields: Fields<'_>) -> Vec<ObjectId> {
    let mut names = Vec::new();
    let mut add = |value: ValueField<'_>| names.extend(value.names());
    match operation {
        // Numbers only.
        Operation::BarrierState | Operation::SetCount => {}
        Operation::MapGetMany => {
            while let Ok(there) = fields.flag() {
                if there {
                    let Ok(value) = fields.value() else { break };
                    add(value);
                }
            }
        }
        _ => {
            while let Ok(value) = fields.value() {
                add(value);
            }
        }
    }
    names
}

/// A body that does not have the fields that it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the message does not have the fields that it should have")
    }
}

/// The bytes of a field, and the memory of their own in which they are, if they came apart.
type Taken<'a> = (&'a [u8], Option<&'a Arc<[u8]>>);

/// Reads the fields of a body, one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    /// The bytes of the last field, if they do not stand behind the others.
    tail: Option<&'a Arc<[u8]>>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Fields { rest: body, tail: None }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.tail.is_none()
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Takes the bytes of a field, which may be the tail: then all of it, and nothing else.
    fn take_or_tail(&mut self, len: usize) -> Result<Taken<'a>, Malformed> {
        match self.tail.take_if(|tail| self.rest.is_empty() && tail.len() == len) {
            Some(tail) => Ok((tail, Some(tail))),
            None => Ok((self.take(len)?, None)),
        }
    }

    fn length(&mut self) -> Result<u32, Malformed> {
        let (length, rest) = self.rest.split_first_chunk().ok_or(Malformed)?;
        self.rest = rest;
        Ok(u32::from_le_bytes(*length))
    }

    pub(crate) fn number(&mut self) -> Result<u64, Malformed> {
        let (number, rest) = self.rest.split_first_chunk().ok_or(Malformed)?;
        self.rest = rest;
        Ok(u64::from_le_bytes(*number))
    }

    /// Reads a number that is 0 or 1.
    pub(crate) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.number()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.length()?;
        Ok(self.take_or_tail(len as usize)?.0)
    }

    pub(crate) fn value(&mut self) -> Result<ValueField<'a>, Malformed> {
        let length = self.length()?;
        let names: &[[u8; 8]] = if length & NAMES_OBJECTS == 0 {
            &[]
        } else {
            let (count, rest) = self.rest.split_first_chunk().ok_or(Malformed)?;
            self.rest = rest;
            self.take(usize::from(u16::from_le_bytes(*count)) * 8)?.as_chunks().0
        };
        let (bytes, shared) = self.take_or_tail((length & !NAMES_OBJECTS) as usize)?;
        Ok(ValueField { bytes, names, shared })
    }

    /// Reads all values that are left.
    pub(crate) fn values(mut self) -> Result<Vec<ValueField<'a>>, Malformed> {
        let mut values = Vec::new();
        while !self.is_empty() {
            values.push(self.value()?);
        }
        Ok(values)
    }

    /// Checks that no field is left.
    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_arrive_as_they_were() {
        let request = Request {
            call: CallId(7),
            operation: Operation::QueuePutBack,
            object: ObjectId(u64::MAX - 1),
            len: 1 << 40,
        };
        assert_eq!(Request::from_bytes(&request.to_bytes()), Some(request));
        let reply =
            Reply { call: CallId(u32::MAX), status: Status::Failed, number: 3, len: u64::MAX };
        assert_eq!(Reply::from_bytes(&reply.to_bytes()), Some(reply));
        let mut unknown = request.to_bytes();
        unknown[4] = Operation::ALL.len() as u8;
        assert_eq!(Request::from_bytes(&unknown), None);
        for (number, operation) in Operation::ALL.iter().enumerate() {
            assert_eq!(*operation as usize, number);
        }
    }

    #[test]
    fn fields_arrive_as_they_were() {
        let mut body = Vec::new();
        put_number(&mut body, u64::MAX);
        put_bytes(&mut body, b"name");
        put_value(&mut body, b"plain", &[]);
        put_value(&mut body, b"", &[ObjectId(1), ObjectId(u64::MAX)]);
        put_value(&mut body, b"last", &[ObjectId(2)]);
        let mut fields = Fields::new(&body);
        assert_eq!(fields.number(), Ok(u64::MAX));
        assert_eq!(fields.bytes(), Ok(&b"name"[..]));
        let plain = fields.value().unwrap();
        assert_eq!((plain.bytes, plain.names().count()), (&b"plain"[..], 0));
        let empty = fields.value().unwrap();
        assert_eq!(empty.bytes, b"");
        assert_eq!(empty.names().collect::<Vec<_>>(), [ObjectId(1), ObjectId(u64::MAX)]);
        assert_eq!(fields.values().unwrap().len(), 1);
    }

    #[test]
    fn a_tail_is_the_last_value_and_nothing_else() {
        let tail: Arc<[u8]> = b"value".as_slice().into();
        let body = |head: &dyn Fn(&mut Vec<u8>)| {
            let mut body = Vec::new();
            put_bytes(&mut body, b"key");
            head(&mut body);
            body
        };
        let right = body(&|body| put_value_head(body, 5, &[ObjectId(7)]));
        let whole = RequestBody { fields: &right, tail: Some(&tail) };
        assert_eq!(whole.len(), right.len() + 5);
        let mut fields = whole.fields();
        assert_eq!(fields.bytes(), Ok(&b"key"[..]));
        assert!(!fields.is_empty() && fields.end().is_err());
        let value = fields.value().unwrap();
        assert_eq!((value.bytes, value.names().next()), (&b"value"[..], Some(ObjectId(7))));
        assert!(Arc::ptr_eq(&value.to_shared(), &tail), "it is not copied");
        assert_eq!(fields.end(), Ok(()));
        // Longer or shorter than it says, with something in front of it, or not there at all.
        for (len, more) in [(4, &b""[..]), (6, b""), (5, b"x"), (0, b"")] {
            let wrong = body(&|body| {
                put_value_head(body, len, &[]);
                body.extend_from_slice(more);
            });
            let mut fields = RequestBody { fields: &wrong, tail: Some(&tail) }.fields();
            assert_eq!(fields.bytes(), Ok(&b"key"[..]));
            let read = fields.value().is_ok();
            assert!(!(read && fields.is_empty()), "{len}");
        }
        assert!(RequestBody::from(&right[..]).fields().values().is_err());
    }

    #[test]
    fn where_a_tail_is_arrives_as_it_was() {
        let there = InSegment { number: 63, len: u64::MAX };
        let (mut header, mut body) = ([0; HEADER_BYTES], b"fields".to_vec());
        assert!(!InSegment::is_in(&header));
        there.put(&mut header, &mut body);
        assert!(InSegment::is_in(&header));
        assert_eq!(InSegment::take(&body), Some((&b"fields"[..], there)));
        assert_eq!(InSegment::take(&body[..InSegment::BYTES - 1]), None);
    }

    #[test]
    fn bodies_that_end_too_early_are_malformed() {
        let mut body = Vec::new();
        put_value(&mut body, b"value", &[ObjectId(1), ObjectId(2)]);
        for len in 0..body.len() {
            assert_eq!(Fields::new(&body[..len]).value(), Err(Malformed), "{len}");
        }
        assert_eq!(Fields::new(&[0xff; 6]).value(), Err(Malformed));
        assert_eq!(Fields::new(&[0xff; 7]).number(), Err(Malformed));
        assert_eq!(Fields::new(&[0xff; 8]).flag(), Err(Malformed));
        assert_eq!(Fields::new(&body).end(), Err(Malformed));
    }
}
