//! What is to be done after an event: replies to send, and functions to run.

use std::{ops::Range, sync::Arc};

use super::{
    clients::{Caller, ClientId},
    own::ValueId,
};
use crate::manager::protocol::{self, CallId, Malformed, ObjectId, Reply, Status};

/// How many bytes of bodies are kept for the next event. More is given back to the system, so that
/// one large snapshot does not cost memory for ever. With less, each reply with a large value would
/// allocate.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// Identifies a run of a user's function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct JobId(pub(crate) u64);

impl JobId {
    /// Returns the id of a job for an object of a user's own type. Those of updates are even.
    pub(super) fn of_own(number: u64) -> Self {
        JobId(number << 1 | 1)
    }

    /// Returns the id of a job for an update.
    pub(super) fn of_update(number: u64) -> Self {
        JobId(number << 1)
    }

    pub(super) fn is_own(self) -> bool {
        self.0 & 1 == 1
    }
}

/// A user's function that is to run. [`Core::ran`](super::Core::ran) is to be told how it has
/// ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    /// Who has asked for it. A job that has not begun when its client is gone is not run, but ends
    /// with an error. `None` for one that is run in any case.
    pub(crate) client: Option<ClientId>,
    pub(crate) work: Work,
}

/// What a user's function is run for. `function` says what the function means
/// (`registry::meaning`), and `arguments` are its encoded arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// An update of a stored value. The object is busy meanwhile.
    Update {
        function: u64,
        /// Whether the function takes an `Option` of the value.
        optional: bool,
        /// The value that is there now. There is one, unless the function takes an `Option`.
        current: Option<Arc<[u8]>>,
        /// The arguments behind the value.
        arguments: Vec<u8>,
        /// The objects that the value and the arguments name. See [`Work::names`].
        names: Vec<ObjectId>,
    },
    /// Makes a value of a user's own type. The value has the id of this job.
    Construct { function: u64, arguments: Vec<u8>, names: Vec<ObjectId> },
    /// Calls a method of such a value.
    Call { value: ValueId, function: u64, arguments: Vec<u8>, names: Vec<ObjectId> },
    /// Drops such a value. Nobody uses it any more.
    Drop { value: ValueId },
    /// Concerns a pool of workers. It runs no function of a user in this process, and waits for
    /// nothing.
    Pool { executor: ValueId, order: PoolOrder },
}

impl Work {
    /// Returns the objects that the values in it name, with repetitions. The function is lent a
    /// reference for each of them, and [`Core::let_go`](super::Core::let_go) is to be told when it
    /// is not needed any more. That may be long after the function has ended: a value of a user's
    /// own type may keep a handle.
    pub(crate) fn names(&self) -> &[ObjectId] {
        match self {
            Work::Update { names, .. }
            | Work::Construct { names, .. }
            | Work::Call { names, .. } => names,
            Work::Drop { .. } | Work::Pool { .. } => &[],
        }
    }
}

/// What a function has returned: its encoded result, and the objects that the result names. Whoever
/// tells it has a reference to each of them, and keeps it until the core has counted its own.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Returned<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) names: &'a [ObjectId],
}

impl<'a> Returned<'a> {
    /// Returns a result that names no object.
    pub(crate) fn plain(bytes: &'a [u8]) -> Self {
        Returned { bytes, names: &[] }
    }
}

/// What is to be done with the executor of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PoolOrder {
    /// Make it. It has the id of this job.
    Make { workers: u64 },
    /// Submit a task. It has the id of this job.
    Submit { function: u64, options: Vec<u8>, arguments: Vec<u8> },
    /// Cancel a task that has not begun. The task has an end of its own.
    Cancel { task: JobId },
    /// Accept no more tasks.
    Close,
    /// Terminate its workers.
    Terminate,
    /// Tell when it has ended.
    Join,
    /// Tell the process ids of its workers.
    Workers,
    /// Terminate its workers, and forget it when they are gone.
    End,
}

/// A value of this length is not copied if it is the last thing in a reply. With a lower value,
/// sending such a value takes a part of its own in the ring.
const TAIL_FROM: usize = 16 * 1024;

/// The body of a reply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplyBody<'a> {
    pub(crate) front: &'a [u8],
    /// A large value at the end, as the object has it.
    pub(crate) tail: Option<&'a Arc<[u8]>>,
}

impl<'a> ReplyBody<'a> {
    pub(crate) fn len(self) -> usize {
        self.front.len() + self.tail.map_or(0, |tail| tail.len())
    }

    /// Returns the whole body.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn to_bytes(self) -> std::borrow::Cow<'a, [u8]> {
        match self.tail {
            None => self.front.into(),
            Some(tail) => [self.front, tail].concat().into(),
        }
    }
}

/// A reply.
#[derive(Debug)]
struct Written {
    to: ClientId,
    reply: Reply,
    /// Where the body is in the buffer, except for its tail.
    front: Range<usize>,
    tail: Option<Arc<[u8]>>,
    /// Whether the reply gives the client something that is noted for it.
    takes: bool,
}

/// Replies and jobs, in the order in which they are to be sent and started.
///
/// All bodies lie in one buffer, which is used again for the next event. So a reply allocates
/// nothing. A large value at the end of a body stays where the object has it.
#[derive(Debug, Default)]
pub(crate) struct Actions {
    replies: Vec<Written>,
    bytes: Vec<u8>,
    /// The large value with which the body of the next reply ends so far.
    tail: Option<Arc<[u8]>>,
    /// Where the body of the next reply begins.
    body_start: usize,
    jobs: Vec<Job>,
    /// Whether the next reply gives its client something.
    takes: bool,
}

impl Actions {
    /// Returns the replies: to whom, header, body, and whether it gives the client something. The
    /// core has noted each such reply, and waits for [`Core::takes_read`](super::Core::takes_read).
    pub(crate) fn replies(
        &self,
    ) -> impl ExactSizeIterator<Item = (ClientId, Reply, ReplyBody<'_>, bool)> {
        self.replies.iter().map(|written| {
            let Written { to, reply, front, tail, takes } = written;
            let body = ReplyBody { front: &self.bytes[front.clone()], tail: tail.as_ref() };
            (*to, *reply, body, *takes)
        })
    }

    pub(crate) fn take_jobs(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.jobs)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.replies.is_empty() && self.jobs.is_empty()
    }

    /// Forgets all replies and jobs.
    pub(crate) fn clear(&mut self) {
        self.replies.clear();
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
        self.body_start = 0;
        self.jobs.clear();
    }

    /// Returns the body of the next reply. Fields are appended to it.
    pub(super) fn body(&mut self) -> &mut Vec<u8> {
        if let Some(tail) = self.tail.take() {
            self.bytes.extend_from_slice(&tail);
        }
        &mut self.bytes
    }

    /// Appends a value to the body of the next reply.
    pub(super) fn write(&mut self, bytes: &Arc<[u8]>, names: &[ObjectId]) {
        if bytes.len() < TAIL_FROM {
            return protocol::put_value(self.body(), bytes, names);
        }
        protocol::put_value_head(self.body(), bytes.len(), names);
        self.tail = Some(Arc::clone(bytes));
    }

    /// Takes back what was written since the last reply.
    fn undo(&mut self) {
        self.bytes.truncate(self.body_start);
        self.tail = None;
    }

    /// Adds a reply that the core does not know of.
    pub(crate) fn reply(&mut self, to: ClientId, reply: Reply, body: &[u8]) {
        self.body().extend_from_slice(body);
        self.end_reply(Caller { client: to, call: reply.call }, reply.status, reply.number);
    }

    /// Says that the next reply gives its client something that was noted for it.
    pub(super) fn next_takes(&mut self) {
        self.takes = true;
    }

    /// Ends a reply. Its body is what was written since the last reply.
    pub(super) fn end_reply(&mut self, to: Caller, status: Status, number: u64) {
        let takes = std::mem::take(&mut self.takes);
        debug_assert!(!takes || to.call != CallId::NONE, "what is noted has a reply");
        if to.call == CallId::NONE {
            return self.undo();
        }
        let (front, tail) = (self.body_start..self.bytes.len(), self.tail.take());
        let len = front.len() + tail.as_ref().map_or(0, |tail| tail.len());
        let reply = Reply { call: to.call, status, number, len: len as u64 };
        self.replies.push(Written { to: to.client, reply, front, tail, takes });
        self.body_start = self.bytes.len();
    }

    /// Ends a reply with the outcome of a request. A refusal has no body other than its text.
    pub(super) fn answer(&mut self, to: Caller, outcome: Outcome) {
        match outcome {
            Ok(number) => self.end_reply(to, Status::Done, number),
            Err(refusal) => {
                self.undo();
                if !refusal.text.is_empty() {
                    protocol::put_bytes(&mut self.bytes, refusal.text.as_bytes());
                }
                self.end_reply(to, refusal.status, refusal.number);
            }
        }
    }

    pub(super) fn run(&mut self, job: Job) {
        self.jobs.push(job);
    }
}

/// The reply to a request that was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: Status,
    pub(super) number: u64,
    pub(super) text: &'static str,
}

/// The reply to a request: the number of a request that was done, or a refusal.
pub(super) type Outcome = Result<u64, Refusal>;

impl Refusal {
    /// A limit of the manager is reached.
    pub(super) fn limit(text: &'static str) -> Self {
        Refusal { status: Status::Limit, number: 0, text }
    }

    pub(super) fn malformed(text: &'static str) -> Self {
        Refusal { status: Status::Malformed, number: 0, text }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Refusal { status, number: 0, text: "" }
    }
}

impl From<Malformed> for Refusal {
    fn from(_: Malformed) -> Self {
        Refusal::malformed("the message does not have the fields that it should have")
    }
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It is done. This is the number of its reply.
    Done(u64),
    /// It waits, and is answered later.
    Waits,
}
