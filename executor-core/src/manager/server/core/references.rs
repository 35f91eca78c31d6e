//! Objects, and the references that keep them alive.
//!
//! ```text
//!  client ──references──► object ◄──1 for each name in a value── object
//!  lease ───────1───────►   │   ◄──1 for each handle in this process: lent to a function
//!                           └─ none left: dropped, and what its values name loses references
//! ```
//!
//! Objects that name each other in a cycle keep each other alive until the server ends, even if no
//! client can reach them any more.

use std::collections::HashMap;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{
    Core,
    actions::Actions,
    barrier::Barrier,
    cell::Cell,
    clients::{Caller, ClientId},
    condition::Condition,
    event::Event,
    list::List,
    lock::Lock,
    map::Map,
    own::Own,
    pool::Pool,
    queue::Queue,
    semaphore::Semaphore,
    set::Set,
    turn::{Names, Turn},
};
use crate::{
    id::IdHasher,
    manager::protocol::{CallId, ObjectId, Status},
};

/// Capacity that the lists of changes keep for the next request. A request that drops a large
/// container needs more, once.
const KEPT_CHANGES_MAX: usize = 1024;

/// The contents of an object. They lie behind a pointer, so that an entry in the table of objects
/// is small, whatever the kind.
#[derive(Debug)]
pub(super) enum State {
    Map(Box<Map>),
    List(Box<List>),
    Set(Box<Set>),
    Cell(Box<Cell>),
    Queue(Box<Queue>),
    Lock(Box<Lock>),
    Semaphore(Box<Semaphore>),
    Event(Box<Event>),
    Condition(Box<Condition>),
    Barrier(Box<Barrier>),
    Own(Box<Own>),
    Pool(Box<Pool>),
}

impl State {
    /// Calls a function for each name in the object's values, with repetitions.
    pub(super) fn each_name(&self, mut each: impl FnMut(ObjectId)) {
        let mut all = |names: &Names| names.as_slice().iter().copied().for_each(&mut each);
        match self {
            State::Map(map) => map.each_names(&mut all),
            State::List(list) => list.each_names(&mut all),
            State::Set(set) => set.each_names(&mut all),
            State::Cell(cell) => all(cell.names()),
            State::Queue(queue) => queue.each_names(&mut all),
            State::Condition(condition) => each(condition.lock),
            State::Own(own) => own.each_names(&mut all),
            State::Lock(_)
            | State::Semaphore(_)
            | State::Event(_)
            | State::Barrier(_)
            | State::Pool(_) => {}
        }
    }

    /// Returns the calls that wait at the object itself.
    pub(super) fn callers(&self) -> Vec<Caller> {
        match self {
            State::Map(_) | State::List(_) | State::Set(_) | State::Cell(_) => Vec::new(),
            State::Queue(queue) => queue.callers().collect(),
            State::Lock(lock) => lock.callers().collect(),
            State::Semaphore(semaphore) => semaphore.callers().collect(),
            State::Event(event) => event.callers().collect(),
            State::Condition(condition) => condition.callers().collect(),
            State::Barrier(barrier) => barrier.callers().collect(),
            State::Own(own) => own.callers().collect(),
            // Each is answered by the end of its task.
            State::Pool(_) => Vec::new(),
        }
    }

    /// Returns the clients that hold the lock, or have permits of the semaphore.
    pub(super) fn holders(&self) -> Vec<ClientId> {
        match self {
            State::Lock(lock) => lock.owner().map(|owner| owner.client).into_iter().collect(),
            State::Semaphore(semaphore) => semaphore.holders().collect(),
            _ => Vec::new(),
        }
    }
}

/// One object.
#[derive(Debug)]
pub(super) struct Object {
    /// Of clients, leases and values. Not 0.
    pub(super) references: u64,
    pub(super) state: State,
}

/// All objects, and the directory.
#[derive(Debug)]
pub(super) struct Objects {
    table: HashMap<ObjectId, Object, IdHasher>,
    /// How many ids were given out.
    last: u64,
    /// What makes ids from counts that nobody can guess. Without it, they are the counts.
    secret: Option<Hmac<Sha256>>,
}

impl Default for Objects {
    fn default() -> Self {
        // The one reference to the directory is the server's own, which is never dropped.
        let directory = Object { references: 1, state: State::Map(Box::default()) };
        let table = HashMap::from_iter([(ObjectId::DIRECTORY, directory)]);
        Objects { table, last: 0, secret: None }
    }
}

impl Objects {
    /// Lets nobody guess the ids of the objects that are inserted from now on.
    pub(super) fn hide_ids(&mut self, key: &[u8; 32]) {
        let secret = Hmac::new_from_slice(key).expect("keys of HMAC have any length");
        self.secret = Some(secret);
    }

    /// Returns an id that no object has.
    fn new_id(&mut self) -> ObjectId {
        loop {
            self.last += 1;
            let id = ObjectId(match &self.secret {
                None => self.last,
                Some(secret) => {
                    let mac = secret.clone().chain_update(self.last.to_le_bytes()).finalize();
                    u64::from_le_bytes(*mac.into_bytes().first_chunk().expect("32 bytes"))
                }
            });
            if id != ObjectId::NONE && !self.contains(id) {
                return id;
            }
        }
    }

    /// Returns how many objects there are, without the directory.
    pub(super) fn len(&self) -> usize {
        self.table.len() - 1
    }

    pub(super) fn contains(&self, id: ObjectId) -> bool {
        self.table.contains_key(&id)
    }

    pub(super) fn get(&self, id: ObjectId) -> Option<&Object> {
        self.table.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: ObjectId) -> Option<&mut Object> {
        self.table.get_mut(&id)
    }

    /// Adds an object with one reference.
    pub(super) fn insert(&mut self, state: State) -> ObjectId {
        let id = self.new_id();
        self.table.insert(id, Object { references: 1, state });
        id
    }

    /// Counts one more reference. Returns whether there is such an object.
    pub(super) fn add_reference(&mut self, id: ObjectId) -> bool {
        let object = self.table.get_mut(&id);
        // Each reference takes a step of its own, so 64 bits do not overflow.
        object.map(|object| object.references += 1).is_some()
    }

    /// Takes references away. Returns the object if none is left.
    fn take_references(&mut self, id: ObjectId, count: u64) -> Option<Object> {
        let object = self.table.get_mut(&id)?;
        debug_assert!(object.references >= count, "{id:?} has fewer references than it loses");
        object.references = object.references.saturating_sub(count);
        if object.references > 0 {
            return None;
        }
        self.table.remove(&id)
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (ObjectId, &Object)> {
        self.table.iter().map(|(id, object)| (*id, object))
    }
}

/// References that a request adds and takes away. They are counted when it is done, added ones
/// first, so that a value that only moves does not drop what it names.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Named by a value that an object keeps now.
    kept: Vec<ObjectId>,
    /// Named by a value in a reply to this client.
    given: Vec<(ClientId, ObjectId)>,
    /// Lost so many references.
    lost: Vec<(ObjectId, u64)>,
}

impl Changes {
    pub(super) fn keep(&mut self, names: &Names) {
        self.kept.extend_from_slice(names.as_slice());
    }

    pub(super) fn keep_one(&mut self, object: ObjectId) {
        self.kept.push(object);
    }

    pub(super) fn give(&mut self, client: ClientId, names: &Names) {
        self.given.extend(names.as_slice().iter().map(|name| (client, *name)));
    }

    pub(super) fn lose(&mut self, object: ObjectId, count: u64) {
        if count > 0 {
            self.lost.push((object, count));
        }
    }

    pub(super) fn lose_names(&mut self, names: &Names) {
        names.as_slice().iter().for_each(|name| self.lose(*name, 1));
    }

    fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.given.is_empty() && self.lost.is_empty()
    }
}

impl Core {
    /// Counts what has changed, and drops the objects that have no reference left.
    ///
    /// An object that is dropped adds what it names to the list of losses. So a chain of a million
    /// objects takes a longer list, and not a deeper stack.
    pub(super) fn settle(&mut self, out: &mut Actions) {
        if self.changes.is_empty() {
            return;
        }
        for name in self.changes.kept.drain(..) {
            let exists = self.objects.add_reference(name);
            debug_assert!(exists, "{name:?} is named by a value, and does not exist");
        }
        for (client, name) in self.changes.given.drain(..) {
            if self.clients.add_reference(client, name) {
                let exists = self.objects.add_reference(name);
                debug_assert!(exists, "{name:?} is named by a reply, and does not exist");
            }
        }
        while let Some((id, count)) = self.changes.lost.pop() {
            if let Some(object) = self.objects.take_references(id, count) {
                self.dropped(id, &object.state, out);
            }
        }
        self.changes.kept.shrink_to(KEPT_CHANGES_MAX);
        self.changes.given.shrink_to(KEPT_CHANGES_MAX);
        self.changes.lost.shrink_to(KEPT_CHANGES_MAX);
    }

    /// Forgets what clients had of an object that is gone. Calls that waited at it are answered.
    fn dropped(&mut self, id: ObjectId, state: &State, out: &mut Actions) {
        let (caller, changes) =
            (Caller { client: ClientId(0), call: CallId::NONE }, &mut self.changes);
        state.each_name(|name| changes.lose(name, 1));
        for holder in state.holders() {
            self.clients.remove_hold(holder, id);
        }
        if let State::Own(own) = state {
            self.methods.object_dropped(own, out);
        }
        if let State::Pool(pool) = state {
            self.methods.end_pool(pool.executor, out);
        }
        let queued = self.updates.drop_object(id);
        let mut turn = Turn { caller, object: id, clients: &mut self.clients, changes, out };
        for caller in state.callers().into_iter().chain(queued) {
            turn.answer(caller, Err(Status::NoObject.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Body, Desk, number},
        *,
    };
    use crate::manager::protocol::{Kind, Operation as O};

    #[test]
    fn an_object_lives_as_long_as_somebody_has_a_reference() {
        let (mut desk, a, b) = Desk::with_two();
        let cell = desk.create(a, Kind::Cell, Body::new().value("v"));
        desk.share(b, cell);
        desk.share(a, cell);
        desk.release(a, cell, 1);
        assert_eq!(desk.ask(a, O::CellGet, cell, Body::new()).texts(), ["v"]);
        // A client can only give back what it has.
        desk.release(a, cell, u64::MAX);
        desk.release(a, cell, 1);
        assert_eq!(desk.refused(a, O::CellGet, cell, Body::new()), Status::NoObject);
        assert!(desk.exists(cell));
        let lease = desk.core.lease(b, cell).unwrap();
        assert_eq!(desk.core.lease(a, cell), None);
        desk.disconnect(b);
        desk.share(a, cell);
        desk.lease_ended(lease);
        assert_eq!(desk.ask(a, O::CountObjects, ObjectId::NONE, Body::new()).done(), 1);
        desk.disconnect(a);
        assert_eq!(desk.core.objects(), 0);
        let late = desk.client();
        assert_eq!(desk.refused(late, O::Claim, cell, Body::new()), Status::NoObject);
    }

    #[test]
    fn an_object_is_not_found_by_guessing() {
        let (mut desk, a, b) = Desk::with_two();
        desk.checked = false;
        desk.core.hide_ids(&[7; 32]);
        let ids: Vec<_> = (0..100).map(|_| desk.create(a, Kind::Event, Body::new())).collect();
        // A client knows the ids of its own objects.
        let own = desk.create(b, Kind::Event, Body::new());
        let near = (1..1000).flat_map(|step| [own.0.wrapping_add(step), own.0.wrapping_sub(step)]);
        for guess in (1..1000).chain(near) {
            let refused = desk.refused(b, O::Claim, ObjectId(guess), Body::new());
            assert_eq!(refused, Status::NoObject);
        }
        let mut others: Vec<_> = ids.iter().map(|id| id.0 >> 48).collect();
        others.sort_unstable();
        others.dedup();
        assert!(others.len() > 50, "{ids:?}");
        desk.share(b, ids[7]);
        desk.core.check();
    }

    #[test]
    fn a_value_keeps_what_it_names_alive_and_gives_it_to_readers() {
        let (mut desk, a, b) = Desk::with_two();
        let event = desk.create(a, Kind::Event, Body::new());
        let map = desk.create(a, Kind::Map, Body::new());
        desk.share(b, map);
        let insert = |names: &[ObjectId]| Body::new().bytes("k").naming("v", names);
        // A client can name only what it has.
        assert_eq!(desk.refused(b, O::MapInsert, map, insert(&[event])), Status::NoObject);
        assert_eq!(desk.refused(a, O::MapInsert, map, insert(&[ObjectId(99)])), Status::NoObject);
        assert_eq!(desk.ask(a, O::Len, map, Body::new()).done(), 0);
        desk.send(a, O::MapInsert, map, insert(&[event, event]));
        desk.release(a, event, 1);
        assert!(desk.exists(event));
        desk.ask(b, O::MapGet, map, Body::new().bytes("k")).done();
        // Two references, as the value names it twice.
        desk.release(b, event, 1);
        desk.ask(b, O::EventSet, event, Body::new()).done();
        // The value leaves the map and comes back: at no time is the event without a reference.
        desk.release(b, event, 1);
        desk.ask(b, O::MapRemove, map, Body::new().bytes("k")).done();
        desk.send(b, O::MapInsert, map, insert(&[event]));
        desk.release(b, event, 2);
        assert!(desk.exists(event));
        desk.ask(b, O::MapInsert, map, insert(&[])).done();
        desk.release(b, event, 1);
        assert!(!desk.exists(event));
    }

    #[test]
    fn a_long_chain_is_dropped_without_a_deep_stack() {
        let (mut desk, a, _) = Desk::with_two();
        desk.checked = false;
        let mut last = desk.create(a, Kind::Cell, Body::new().value("end"));
        for _ in 0..300_000 {
            let next = desk.create(a, Kind::Cell, Body::new().naming("link", &[last]));
            desk.release(a, last, 1);
            last = next;
        }
        assert_eq!(desk.core.objects(), 300_001);
        desk.release(a, last, 1);
        assert_eq!(desk.core.objects(), 0);
        desk.core.check();
    }

    #[test]
    fn containers_that_name_each_other_stay() {
        let (mut desk, a, _) = Desk::with_two();
        let first = desk.create(a, Kind::List, number(0));
        let second = desk.create(a, Kind::List, number(0).naming("first", &[first]));
        desk.ask(a, O::ListExtend, first, Body::new().naming("second", &[second])).done();
        desk.disconnect(a);
        assert_eq!(desk.core.objects(), 2);
    }

    #[test]
    fn the_directory_is_no_object_of_anybody_and_keeps_what_is_published() {
        let (mut desk, a, b) = Desk::with_two();
        let directory = ObjectId::DIRECTORY;
        assert_eq!(desk.core.objects(), 0);
        let cell = desk.create(a, Kind::Cell, Body::new().value("v"));
        let entry = Body::new().bytes("name").naming("a cell", &[cell]);
        desk.ask(a, O::MapInsert, directory, entry);
        desk.disconnect(a);
        assert_eq!(desk.core.objects(), 1);
        // Nobody has a reference to the directory that could be given back.
        desk.release(b, directory, u64::MAX);
        let got = desk.ask(b, O::MapGet, directory, Body::new().bytes("name"));
        assert_eq!(got.texts(), ["a cell"]);
        assert_eq!(desk.ask(b, O::CellGet, cell, Body::new()).texts(), ["v"]);
        desk.ask(b, O::MapRemove, directory, Body::new().bytes("name")).done();
        desk.disconnect(b);
        assert_eq!(desk.core.objects(), 0);
    }

    #[test]
    fn no_function_of_a_client_keeps_the_directory_busy() {
        let (mut desk, a, _) = Desk::with_two();
        let update = || Body::new().bytes("name").number(1).number(1).bytes("");
        assert_eq!(desk.refused(a, O::MapUpdate, ObjectId::DIRECTORY, update()), Status::WrongKind);
        assert!(desk.jobs.is_empty());
    }

    #[test]
    fn small_objects_are_small() {
        // Beside these, an object costs an entry in the tables of its clients, of 16 bytes, and the
        // allocation of its contents.
        assert_eq!(size_of::<(ObjectId, Object)>(), 32);
        assert!(size_of::<Cell>() <= 32 && size_of::<Lock>() <= 80 && size_of::<Event>() <= 32);
        assert!(size_of::<Map>() <= 96 && size_of::<Set>() <= 96 && size_of::<List>() <= 48);
    }
}
