//! Checks the whole state of a core. Counts are counted again from the beginning.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Core,
    clients::{Caller, ClientId},
    references::State,
};
use crate::manager::protocol::{CallId, ObjectId};

impl Core {
    /// Panics if the parts of the state contradict each other, or a call waits for what is there.
    #[track_caller]
    pub(super) fn check(&self) {
        self.check_references();
        self.check_holds();
        self.check_waits();
        self.methods.check();
        for (id, object) in self.objects.iter() {
            match &object.state {
                State::Map(_) | State::List(_) | State::Set(_) | State::Cell(_) => {}
                State::Condition(_) => {}
                State::Queue(queue) => queue.check(),
                State::Lock(lock) => lock.check(),
                State::Semaphore(semaphore) => semaphore.check(),
                State::Event(event) => event.check(),
                State::Barrier(barrier) => barrier.check(),
                State::Own(own) => own.check(id, &self.methods, &self.clients),
                State::Pool(pool) => pool.check(id, &self.methods),
            }
        }
    }

    #[track_caller]
    fn check_references(&self) {
        let mut counts = BTreeMap::<ObjectId, u64>::new();
        let mut add = |object, count| *counts.entry(object).or_default() += count;
        for (id, client) in self.clients.iter() {
            for (object, count) in &client.references {
                assert!(*count > 0, "{id:?} has no reference to {object:?}");
                add(*object, *count);
            }
        }
        self.leases.values().for_each(|object| add(*object, 1));
        self.clients.lent().for_each(|(object, count)| add(object, count));
        add(ObjectId::DIRECTORY, 1);
        for (_, object) in self.objects.iter() {
            object.state.each_name(|name| add(name, 1));
        }
        let known: BTreeMap<ObjectId, u64> =
            self.objects.iter().map(|(id, object)| (id, object.references)).collect();
        assert_eq!(known, counts, "counted on the left, there are on the right");
    }

    #[track_caller]
    fn check_holds(&self) {
        let holders = |(id, object): (ObjectId, &super::references::Object)| {
            object.state.holders().into_iter().map(move |client| (client, id)).collect::<Vec<_>>()
        };
        let of_objects: BTreeSet<(ClientId, ObjectId)> =
            self.objects.iter().flat_map(holders).collect();
        let of_clients: BTreeSet<(ClientId, ObjectId)> = self
            .clients
            .iter()
            .flat_map(|(id, client)| client.holds.iter().map(move |object| (id, *object)))
            .collect();
        assert_eq!(of_objects, of_clients, "who holds locks and permits");
    }

    #[track_caller]
    fn check_waits(&self) {
        let mut of_objects = Vec::<(ClientId, CallId, ObjectId)>::new();
        let mut add = |id, caller: Caller| of_objects.push((caller.client, caller.call, id));
        for (id, object) in self.objects.iter() {
            object.state.callers().into_iter().for_each(|caller| add(id, caller));
        }
        for (id, caller) in self.updates.callers().chain(self.methods.callers()) {
            // A function goes on when its client is gone.
            if self.clients.get(caller.client).is_some() {
                add(id, caller);
            }
        }
        of_objects.sort_unstable();
        let mut of_clients = Vec::new();
        for (id, client) in self.clients.iter() {
            of_clients.extend(client.waits.iter().map(|(call, wait)| (id, *call, wait.object)));
        }
        of_clients.sort_unstable();
        assert_eq!(of_objects, of_clients, "which calls wait");

        let (mut busy, mut running) = self.updates.objects();
        running.retain(|object| self.objects.contains(*object));
        busy.sort_unstable();
        running.sort_unstable();
        assert_eq!(busy, running, "objects are busy while one function of theirs runs");
    }
}
