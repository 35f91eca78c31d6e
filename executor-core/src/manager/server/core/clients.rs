//! What each client has: references, locks and permits, and calls that wait.
//!
//! All of it ends with the client. It is kept per client, so that the end of a client takes time
//! for what it had, and not for all objects.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fmt,
};

use super::{Limits, actions::Refusal, takes::Take, waiting::Ticket};
use crate::{
    id::IdHasher,
    manager::protocol::{CallId, ObjectId, Status},
};

/// Identifies a client. Ids are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientId(pub(crate) u64);

/// There are as many clients as the manager allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LimitReached;

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the manager has as many clients as it allows")
    }
}

/// Who is to be answered: a call of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) client: ClientId,
    pub(super) call: CallId,
}

/// A call that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) object: ObjectId,
    /// Its place in a line of that object.
    pub(super) ticket: Ticket,
    /// How many bytes of the client are kept meanwhile.
    bytes: u64,
}

/// One client.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// How many references it has to each object. None is 0.
    pub(super) references: HashMap<ObjectId, u64, IdHasher>,
    /// The locks that it holds, and the semaphores of which it has permits.
    pub(super) holds: HashSet<ObjectId, IdHasher>,
    /// A tree, because a hostile client could choose numbers of calls that collide in a hash table
    /// without a secret.
    pub(super) waits: BTreeMap<CallId, Wait>,
    /// The sum of the bytes of all waits.
    waiting_bytes: u64,
    /// What it was given in replies that it may not have read, in their order.
    pub(super) takes: VecDeque<Take>,
    /// Whether it is on another machine.
    far: bool,
}

/// All clients.
#[derive(Debug)]
pub(super) struct Clients {
    table: HashMap<ClientId, Client, IdHasher>,
    clients_max: usize,
    calls_max: usize,
    bytes_max: u64,
    /// How many references to each object are lent to functions that run in this process, and to
    /// the values of users' own types. None is 0.
    lent: HashMap<ObjectId, u64, IdHasher>,
    /// The last id. A counter of 64 bits that goes up by one for each request does not overflow.
    last_client: u64,
    last_ticket: u64,
}

impl Clients {
    pub(super) fn new(limits: &Limits) -> Self {
        Clients {
            table: HashMap::default(),
            clients_max: limits.clients,
            calls_max: limits.calls_per_client,
            bytes_max: limits.bytes_per_client,
            lent: HashMap::default(),
            last_client: 0,
            last_ticket: 0,
        }
    }

    pub(super) fn connect(&mut self, far: bool) -> Result<ClientId, LimitReached> {
        if self.table.len() >= self.clients_max {
            return Err(LimitReached);
        }
        self.last_client += 1;
        let id = ClientId(self.last_client);
        self.table.insert(id, Client { far, ..Client::default() });
        Ok(id)
    }

    pub(super) fn remove(&mut self, client: ClientId) -> Option<Client> {
        self.table.remove(&client)
    }

    pub(super) fn get(&self, client: ClientId) -> Option<&Client> {
        self.table.get(&client)
    }

    /// Returns whether a client has a reference to an object. Each has one to the directory.
    pub(super) fn has_reference(&self, client: ClientId, object: ObjectId) -> bool {
        if object == ObjectId::DIRECTORY {
            return true;
        }
        self.table.get(&client).is_some_and(|client| client.references.contains_key(&object))
    }

    /// Gives a client one more reference. Returns whether there is such a client.
    pub(super) fn add_reference(&mut self, client: ClientId, object: ObjectId) -> bool {
        let client = self.table.get_mut(&client);
        client.map(|client| *client.references.entry(object).or_default() += 1).is_some()
    }

    /// Takes references away. Returns how many: a client cannot give back more than it has.
    pub(super) fn take_references(
        &mut self,
        client: ClientId,
        object: ObjectId,
        count: u64,
    ) -> u64 {
        let Some(client) = self.table.get_mut(&client) else { return 0 };
        let Some(held) = client.references.get_mut(&object) else { return 0 };
        let taken = count.min(*held);
        *held -= taken;
        if *held == 0 {
            client.references.remove(&object);
        }
        taken
    }

    /// Notes that the references of these names are now those of a function.
    pub(super) fn lend(&mut self, names: &[ObjectId]) {
        names.iter().for_each(|name| *self.lent.entry(*name).or_default() += 1);
    }

    /// Takes back a reference that was lent. Returns whether there was one.
    pub(super) fn take_lent(&mut self, object: ObjectId) -> bool {
        let Some(count) = self.lent.get_mut(&object) else { return false };
        *count -= 1;
        if *count == 0 {
            self.lent.remove(&object);
        }
        true
    }

    /// Returns how many references to each object are lent.
    #[cfg(test)]
    pub(super) fn lent(&self) -> impl Iterator<Item = (ObjectId, u64)> {
        self.lent.iter().map(|(object, count)| (*object, *count))
    }

    /// Notes that a client holds a lock, or has a permit of a semaphore.
    pub(super) fn add_hold(&mut self, client: ClientId, object: ObjectId) {
        if let Some(client) = self.table.get_mut(&client) {
            client.holds.insert(object);
        }
    }

    pub(super) fn remove_hold(&mut self, client: ClientId, object: ObjectId) {
        if let Some(client) = self.table.get_mut(&client) {
            client.holds.remove(&object);
        }
    }

    /// Notes what the next reply to a client gives it. Returns whether it was noted.
    ///
    /// A lock of a far client is not: if what the client says gets lost, it may have the lock
    /// although it seems not to. The next owner is told that this one died, so that it checks what
    /// the lock protects.
    pub(super) fn note_take(&mut self, client: ClientId, take: Take) -> bool {
        let Some(client) = self.table.get_mut(&client) else { return false };
        if client.far && matches!(take, Take::Lock { .. }) {
            return false;
        }
        client.takes.push_back(take);
        true
    }

    /// Forgets the first of what a client was given, which it has read.
    pub(super) fn forget_takes(&mut self, client: ClientId, count: usize) {
        if let Some(client) = self.table.get_mut(&client) {
            drop(client.takes.drain(..count.min(client.takes.len())));
        }
    }

    /// Notes that a call waits at an object, and gives it a place behind all others. `bytes` is how
    /// much of the client's data has to be kept for it.
    pub(super) fn begin_wait(
        &mut self,
        caller: Caller,
        object: ObjectId,
        bytes: u64,
    ) -> Result<Ticket, Refusal> {
        if caller.call == CallId::NONE {
            // Nobody could give it up.
            return Err(Status::NotNow.into());
        }
        let client = self.table.get_mut(&caller.client).ok_or(Status::NoObject)?;
        if client.waits.contains_key(&caller.call) {
            return Err(Refusal::malformed("another call with this number still waits"));
        }
        if client.waits.len() >= self.calls_max {
            return Err(Refusal::limit("too many calls of this client wait"));
        }
        let total = client.waiting_bytes.saturating_add(bytes);
        if total > self.bytes_max {
            return Err(Refusal::limit(
                "the calls of this client that wait contain too many bytes",
            ));
        }
        client.waiting_bytes = total;
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        client.waits.insert(caller.call, Wait { object, ticket, bytes });
        Ok(ticket)
    }

    /// Moves a call that waits to another object, behind all others. `None` if it does not wait.
    pub(super) fn move_wait(&mut self, caller: Caller, object: ObjectId) -> Option<Ticket> {
        let wait = self.table.get_mut(&caller.client)?.waits.get_mut(&caller.call)?;
        self.last_ticket += 1;
        wait.object = object;
        wait.ticket = Ticket(self.last_ticket);
        Some(wait.ticket)
    }

    /// Notes that a call waits no more. Returns whether it waited. If not, its client is gone.
    pub(super) fn end_wait(&mut self, caller: Caller) -> bool {
        let Some(client) = self.table.get_mut(&caller.client) else { return false };
        let Some(wait) = client.waits.remove(&caller.call) else { return false };
        client.waiting_bytes -= wait.bytes;
        true
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (ClientId, &Client)> {
        self.table.iter().map(|(id, client)| (*id, client))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Core,
            testing::{Body, Desk, LARGE, number, text},
        },
        *,
    };
    use crate::manager::protocol::{Kind, Operation as O};

    #[test]
    fn limits_refuse_what_is_too_much() {
        let limits = Limits { clients: 2, objects: 2, calls_per_client: 2, bytes_per_client: 10 };
        let mut desk = Desk::with(limits);
        let (a, b) = (desk.client(), desk.client());
        assert_eq!(desk.core.connect(), Err(LimitReached));
        let event = desk.create(a, Kind::Event, Body::new());
        let queue = desk.create(a, Kind::Queue, number(1).number(0));
        desk.share(b, queue);
        let full = desk.ask(a, O::Create, ObjectId::NONE, number(Kind::Event as u64));
        assert_eq!((full.status, text(&full)), (Status::Limit, "the manager has too many objects"));

        desk.ask(a, O::QueuePut, queue, number(0).value("1")).done();
        let put = |len| number(1).value(vec![b'x'; len]);
        assert_eq!(desk.refused(a, O::QueuePut, queue, put(11)), Status::Limit);
        let first = desk.waits(a, O::QueuePut, queue, put(6));
        assert_eq!(desk.refused(a, O::QueuePut, queue, put(5)), Status::Limit);
        desk.give_up(first);
        desk.waits(a, O::QueuePut, queue, put(10));
        desk.waits(a, O::EventWait, event, Body::new());
        assert_eq!(desk.refused(a, O::EventWait, event, Body::new()), Status::Limit);
        // It is the limit of one client.
        desk.waits(b, O::QueuePut, queue, put(10));
        desk.disconnect(b);
        desk.client();
    }

    #[test]
    fn a_call_without_a_number_does_not_wait() {
        let mut desk = Desk::with(LARGE);
        let a = desk.client();
        let queue = desk.create(a, Kind::Queue, number(1).number(0));
        desk.tell(a, O::QueueGet, queue, number(1));
        desk.tell(a, O::QueuePut, queue, number(1).value("1"));
        desk.tell(a, O::QueuePut, queue, number(1).value("2"));
        assert_eq!(desk.ask(a, O::QueueGet, queue, number(0)).texts(), ["1"]);
        assert_eq!(desk.refused(a, O::QueueGet, queue, number(0)), Status::NotNow);
        // And requests without a reply have no number.
        assert_eq!(desk.refused(a, O::Release, queue, number(1)), Status::Malformed);
        assert!(desk.exists(queue));
    }

    #[test]
    fn a_number_of_a_call_that_waits_is_not_used_again() {
        let mut core = Core::new(LARGE, |_| false);
        let client = core.connect().unwrap();
        let caller = Caller { client, call: CallId(1) };
        assert!(core.clients.begin_wait(caller, ObjectId(1), 0).is_ok());
        let again = core.clients.begin_wait(caller, ObjectId(2), 0);
        assert_eq!(again.unwrap_err().status, Status::Malformed);
        assert!(core.clients.end_wait(caller));
        assert!(!core.clients.end_wait(caller));
    }
}
