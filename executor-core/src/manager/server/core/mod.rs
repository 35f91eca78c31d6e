//! The state of a manager's server: requests in, replies out. It does no I/O, reads no clock, and
//! has no thread.
//!
//! ```text
//!  connect, request, disconnect ─┐   ┌───────────────────────────────┐
//!  lease, lease_ended ───────────┼──►│ Core                          ├──► Actions: replies, jobs
//!  ran (a user's function) ──────┘   │  clients ──references──►      │
//!                                    │  leases  ──references──► objects ──names──► objects
//!                                    │  updates, methods: what runs  │
//!                                    └───────────────────────────────┘
//!  objects   data        map, list, set, cell      a request is done at once, or behind a function
//!            waiting     queue, lock, semaphore,   a request is done at once, or waits in a line
//!                        event, condition, barrier
//!            own         a user's own type: its methods run one by one, or side by side
//!            pool        workers of the server: tasks run there, and answer their calls at the end
//! ```
//!
//! A request is done in one step. Afterwards [`settle`](Core::settle) counts the references that it
//! has added and taken away. What a kind of object does is in the file of that kind; what it may
//! use meanwhile is a [`Turn`].
//!
//! Promises:
//!
//! - Each call is answered exactly once, unless its client is gone.
//! - An object lives as long as a client, a lease, a value of another object, or a handle in this
//!   process refers to it. Functions and methods get handles with their values and arguments: the
//!   references are lent to them ([`Work::names`]), and come back by [`let_go`](Core::let_go).
//!   Cycles are not found: objects that refer to each other live until the server ends.
//! - A client that is gone holds nothing: its calls do not wait any more, its locks are free, its
//!   permits are back, and its references are dropped. An item or a lock that it was given in a
//!   reply which it has not read was never given to it.
//! - A client can only use objects to which it has a reference, and the directory
//!   ([`ObjectId::DIRECTORY`]): a map that is always there, in which clients publish objects by
//!   name. It gets a reference by creating an object, with a value that names it, or by its id,
//!   which nobody can guess ([`hide_ids`](Core::hide_ids)).
//!
//! A request whose call is [`CallId::NONE`] is done without a reply. If it would have to wait, it
//! is not done.

mod actions;
mod barrier;
mod cell;
#[cfg(test)]
mod check;
mod clients;
mod condition;
mod event;
mod list;
mod lock;
mod map;
#[cfg(test)]
mod models;
mod ordered;
mod own;
mod pool;
mod queue;
mod references;
mod semaphore;
mod set;
#[cfg(test)]
mod sim;
mod takes;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod travels;
mod turn;
mod updates;
mod waiting;

use std::collections::HashMap;

pub(crate) use actions::{Actions, Job, JobId, PoolOrder, ReplyBody, Returned, Work};
pub(crate) use clients::{ClientId, LimitReached};
pub(crate) use own::ValueId;

use self::{
    actions::{Outcome, Progress, Refusal},
    clients::{Caller, Client, Clients},
    own::Methods,
    references::{Changes, Objects, State},
    turn::Turn,
    updates::Updates,
    waiting::Leave,
};
use super::super::protocol::{
    CallId, Fields, Kind, Malformed, ObjectId, Operation, Request, RequestBody, Status,
};
use crate::id::IdHasher;

/// How much a manager serves. More is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) clients: usize,
    pub(crate) objects: usize,
    /// Calls of one client that wait.
    pub(crate) calls_per_client: usize,
    /// Bytes that are kept for the calls of one client that wait: items that it wants to put into
    /// full queues, and requests for objects that are busy.
    pub(crate) bytes_per_client: u64,
}

/// Identifies a lease: a reference that lives as long as a pipe, and not as long as a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LeaseId(pub(crate) u64);

/// The state of a manager's server.
#[derive(Debug)]
pub(crate) struct Core {
    objects_max: usize,
    clients: Clients,
    objects: Objects,
    leases: HashMap<LeaseId, ObjectId, IdHasher>,
    last_lease: u64,
    updates: Updates,
    methods: Methods,
    changes: Changes,
}

impl Core {
    /// Returns a core without objects. `is_exclusive` says of each method of users' own types
    /// whether it has its object for itself.
    pub(crate) fn new(limits: Limits, is_exclusive: fn(u64) -> bool) -> Self {
        Core {
            objects_max: limits.objects,
            clients: Clients::new(&limits),
            objects: Objects::default(),
            leases: HashMap::default(),
            last_lease: 0,
            updates: Updates::default(),
            methods: Methods::new(is_exclusive),
            changes: Changes::default(),
        }
    }

    /// Lets nobody guess the ids of the objects that are created from now on. A client can claim
    /// each object of which it knows the id, so who knows one may use the object.
    ///
    /// The key has to be random: a process that was forked from this one's ancestor may know all
    /// that this one knew then.
    pub(crate) fn hide_ids(&mut self, key: &[u8; 32]) {
        self.objects.hide_ids(key);
    }

    /// Returns how many objects there are.
    pub(crate) fn objects(&self) -> usize {
        self.objects.len()
    }

    /// Adds a client.
    pub(crate) fn connect(&mut self) -> Result<ClientId, LimitReached> {
        self.clients.connect(false)
    }

    /// Adds a client that has come over TCP.
    #[cfg(any(feature = "tls", test))]
    pub(crate) fn connect_far(&mut self) -> Result<ClientId, LimitReached> {
        self.clients.connect(true)
    }

    /// Does a request, or lets it wait.
    pub(crate) fn request(
        &mut self,
        client: ClientId,
        request: Request,
        body: RequestBody<'_>,
        out: &mut Actions,
    ) {
        if self.clients.get(client).is_none() {
            return;
        }
        let Request { call, operation, object, .. } = request;
        let (caller, mut fields) = (Caller { client, call }, body.fields());
        match operation {
            Operation::Release
            | Operation::GiveUp
            | Operation::Lease
            | Operation::Segments
            | Operation::QueuePutBack
            | Operation::Received
                if call != CallId::NONE =>
            {
                out.answer(caller, Err(Refusal::malformed("this request has no reply")));
            }
            // The server's loop calls `lease` when it has the pipe, and has the segments.
            Operation::Lease | Operation::Segments => {}
            // The loop counts what a far client has received. Others have no marked replies.
            Operation::Received => {}
            Operation::GiveUp => {
                // A client that sends garbage gives up nothing.
                if let Ok(Ok(call)) = fields.number().map(u32::try_from) {
                    self.give_up(client, CallId(call), out);
                }
            }
            Operation::Release => {
                if let Ok(count) = fields.number() {
                    let taken = self.clients.take_references(client, object, count);
                    self.changes.lose(object, taken);
                    self.settle(out);
                }
            }
            Operation::Create => {
                match self.create(caller, fields, out) {
                    Ok(Progress::Waits) => {}
                    Ok(Progress::Done(id)) => out.answer(caller, Ok(id)),
                    Err(refusal) => out.answer(caller, Err(refusal)),
                }
                self.settle(out);
            }
            Operation::Claim => {
                let outcome = self.claim(client, object, fields);
                out.answer(caller, outcome);
            }
            Operation::CountObjects => {
                let count = self.objects() as u64;
                out.answer(caller, fields.end().map(|()| count).map_err(Refusal::from));
            }
            _ => self.on_object(caller, operation, object, body, out),
        }
    }

    /// Creates an object, and gives the caller a reference to it.
    fn create(
        &mut self,
        caller: Caller,
        mut fields: Fields<'_>,
        out: &mut Actions,
    ) -> Result<Progress, Refusal> {
        if self.objects.len() + self.methods.constructing() >= self.objects_max {
            return Err(Refusal::limit("the manager has too many objects"));
        }
        if caller.call == CallId::NONE {
            // Nobody would learn the id.
            return Err(Malformed.into());
        }
        let kind = u8::try_from(fields.number()?).ok().and_then(Kind::from_byte);
        let mut turn = Turn {
            caller,
            object: ObjectId::NONE,
            clients: &mut self.clients,
            changes: &mut self.changes,
            out,
        };
        let state = match kind.ok_or(Malformed)? {
            Kind::Map => State::Map(map::Map::create(fields)?.into()),
            Kind::List => State::List(list::List::create(fields, &mut turn)?.into()),
            Kind::Set => State::Set(set::Set::create(fields, &mut turn)?.into()),
            Kind::Cell => State::Cell(cell::Cell::create(fields, &mut turn)?.into()),
            Kind::Queue => State::Queue(queue::Queue::create(fields)?.into()),
            Kind::Lock => State::Lock(lock::Lock::create(fields)?.into()),
            Kind::Semaphore => State::Semaphore(semaphore::Semaphore::create(fields)?.into()),
            Kind::Event => State::Event(event::Event::create(fields)?.into()),
            Kind::Condition => State::Condition(
                condition::Condition::create(fields, &self.objects, &mut turn)?.into(),
            ),
            Kind::Barrier => State::Barrier(barrier::Barrier::create(fields)?.into()),
            Kind::Own => return self.methods.construct(fields, &mut turn),
            Kind::Pool => return pool::create(fields, &mut self.methods, &mut turn),
        };
        let id = self.objects.insert(state);
        self.clients.add_reference(caller.client, id);
        Ok(Progress::Done(id.0))
    }

    /// Gives a client one more reference to an object that somebody keeps alive.
    fn claim(&mut self, client: ClientId, object: ObjectId, fields: Fields<'_>) -> Outcome {
        fields.end()?;
        if !self.objects.add_reference(object) {
            return Err(Status::NoObject.into());
        }
        self.clients.add_reference(client, object);
        Ok(0)
    }

    /// Does a request for an object, and counts what has changed.
    fn on_object(
        &mut self,
        caller: Caller,
        operation: Operation,
        object: ObjectId,
        body: RequestBody<'_>,
        out: &mut Actions,
    ) {
        match self.perform(caller, operation, object, body, out) {
            Ok(Progress::Done(number)) => out.answer(caller, Ok(number)),
            Ok(Progress::Waits) => {}
            Err(refusal) => out.answer(caller, Err(refusal)),
        }
        self.settle(out);
    }

    fn perform(
        &mut self,
        caller: Caller,
        operation: Operation,
        object: ObjectId,
        body: RequestBody<'_>,
        out: &mut Actions,
    ) -> Result<Progress, Refusal> {
        if !self.clients.has_reference(caller.client, object) {
            return Err(Status::NoObject.into());
        }
        let entry = self.objects.get_mut(object).ok_or(Status::NoObject)?;
        let fields = body.fields();
        let mut turn =
            Turn { caller, object, clients: &mut self.clients, changes: &mut self.changes, out };
        if self.updates.is_busy(object) {
            self.updates.queue(operation, body, &mut turn)?;
            return Ok(Progress::Waits);
        }
        if let Operation::MapUpdate | Operation::ListUpdate | Operation::CellUpdate = operation {
            if object == ObjectId::DIRECTORY {
                // A function that does not end would keep it busy for all clients.
                return Err(Status::WrongKind.into());
            }
            let update = entry.state.update(operation, fields, &turn)?;
            self.updates.begin(update, &mut turn)?;
            return Ok(Progress::Waits);
        }
        match &mut entry.state {
            State::Map(map) => map.request(operation, fields, &mut turn).map(Progress::Done),
            State::List(list) => list.request(operation, fields, &mut turn).map(Progress::Done),
            State::Set(set) => set.request(operation, fields, &mut turn).map(Progress::Done),
            State::Cell(cell) => cell.request(operation, fields, &mut turn).map(Progress::Done),
            State::Queue(queue) => queue.request(operation, fields, &mut turn),
            State::Lock(lock) => lock.request(operation, fields, &mut turn),
            State::Semaphore(semaphore) => semaphore.request(operation, fields, &mut turn),
            State::Event(event) => event.request(operation, fields, &mut turn),
            State::Barrier(barrier) => barrier.request(operation, fields, &mut turn),
            State::Own(own) => own.request(operation, fields, &mut self.methods, &mut turn),
            State::Pool(pool) => pool.request(operation, fields, &mut self.methods, &mut turn),
            State::Condition(_) => {
                condition::request(&mut self.objects, operation, fields, &mut turn)
            }
        }
    }

    /// A client is gone. What it had ends, in this order: its calls that wait, so that no lock is
    /// passed on to it; what it was given in the last `unread` replies that gave it something; its
    /// locks and permits; its references.
    pub(crate) fn disconnect(&mut self, client: ClientId, unread: usize, out: &mut Actions) {
        let Some(gone) = self.clients.remove(client) else { return };
        let Client { references, holds, waits, takes, .. } = gone;
        for (call, wait) in waits {
            self.leave(Caller { client, call }, wait, Leave::ClientGone, out);
        }
        self.undo_takes(client, &references, takes, unread, out);
        for object in holds {
            self.for_gone(client, object, out, |state, turn| match state {
                State::Lock(lock) => lock.owner_died(turn),
                State::Semaphore(semaphore) => semaphore.holder_died(turn),
                _ => {}
            });
        }
        for (object, count) in references {
            self.changes.lose(object, count);
        }
        self.settle(out);
    }

    /// Changes an object, if there still is one, in the turn of a client that is gone.
    fn for_gone(
        &mut self,
        client: ClientId,
        object: ObjectId,
        out: &mut Actions,
        change: impl FnOnce(&mut State, &mut Turn<'_>),
    ) {
        let Some(entry) = self.objects.get_mut(object) else { return };
        let caller = Caller { client, call: CallId::NONE };
        let (clients, changes) = (&mut self.clients, &mut self.changes);
        change(&mut entry.state, &mut Turn { caller, object, clients, changes, out });
    }

    /// Adds a reference to an object that does not end with a client. `None` if the client has no
    /// reference to it.
    pub(crate) fn lease(&mut self, client: ClientId, object: ObjectId) -> Option<LeaseId> {
        if !self.clients.has_reference(client, object) || !self.objects.add_reference(object) {
            return None;
        }
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        self.leases.insert(lease, object);
        Some(lease)
    }

    /// A reference that was lent to a function is not needed any more.
    pub(crate) fn let_go(&mut self, object: ObjectId, out: &mut Actions) {
        if self.clients.take_lent(object) {
            self.changes.lose(object, 1);
            self.settle(out);
        }
    }

    /// The pipe of a lease is closed.
    pub(crate) fn lease_ended(&mut self, lease: LeaseId, out: &mut Actions) {
        if let Some(object) = self.leases.remove(&lease) {
            self.changes.lose(object, 1);
            self.settle(out);
        }
    }
}
