//! Lines of calls that wait, and their end before their turn.

use std::collections::BTreeMap;

use super::{
    Core,
    actions::Actions,
    clients::{Caller, ClientId, Wait},
    condition,
    references::State,
    turn::Turn,
};
use crate::manager::protocol::{CallId, Status};

/// A place in a line. Tickets are drawn from one counter, so a later one is behind all others, in
/// each line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(pub(super) u64);

/// Calls that wait for the same thing, first come, first served. `T` is what is needed to go on
/// with one of them.
///
/// It is a tree, so that a call can leave from the middle of a long line.
#[derive(Debug)]
pub(super) struct Line<T>(BTreeMap<Ticket, (Caller, T)>);

impl<T> Default for Line<T> {
    fn default() -> Self {
        Line(BTreeMap::new())
    }
}

impl<T> Line<T> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(&mut self, ticket: Ticket, caller: Caller, entry: T) {
        self.0.insert(ticket, (caller, entry));
    }

    /// Returns the first call in line.
    pub(super) fn first(&self) -> Option<(Caller, &T)> {
        self.0.values().next().map(|(caller, entry)| (*caller, entry))
    }

    /// Takes the first call out of the line.
    pub(super) fn pop(&mut self) -> Option<(Caller, T)> {
        self.0.pop_first().map(|(_, entry)| entry)
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&T> {
        self.0.get(&ticket).map(|(_, entry)| entry)
    }

    /// Takes a call out of the line before its turn.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<(Caller, T)> {
        self.0.remove(&ticket)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Caller, &T)> {
        self.0.values().map(|(caller, entry)| (*caller, entry))
    }
}

/// Why a call leaves a line before its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// The client has given it up.
    GivenUp,
    /// The client is gone.
    ClientGone,
}

impl Core {
    /// A client gives up a call. Without effect if the call has been answered, or if its function
    /// runs.
    pub(super) fn give_up(&mut self, client: ClientId, call: CallId, out: &mut Actions) {
        let wait = self.clients.get(client).and_then(|client| client.waits.get(&call));
        let Some(wait) = wait.copied() else { return };
        self.leave(Caller { client, call }, wait, Leave::GivenUp, out);
        self.settle(out);
    }

    /// Takes a call out of the line where it waits.
    pub(super) fn leave(&mut self, caller: Caller, wait: Wait, why: Leave, out: &mut Actions) {
        let Wait { object, ticket, .. } = wait;
        let Some(entry) = self.objects.get_mut(object) else { return };
        let mut turn =
            Turn { caller, object, clients: &mut self.clients, changes: &mut self.changes, out };
        let left = match &mut entry.state {
            // Requests for these objects wait while a function runs. The call whose function runs
            // is in no line.
            State::Map(_) | State::List(_) | State::Set(_) | State::Cell(_) => {
                self.updates.leave(object, ticket)
            }
            State::Queue(queue) => queue.leave(ticket, &mut turn),
            State::Lock(lock) => lock.leave(ticket, why),
            State::Semaphore(semaphore) => semaphore.leave(ticket),
            State::Event(event) => event.leave(ticket),
            State::Barrier(barrier) => barrier.leave(ticket, &mut turn),
            State::Own(own) => own.leave(ticket, &mut self.methods, &mut turn),
            State::Pool(pool) => pool.leave(ticket, why, &mut self.methods, &mut turn),
            State::Condition(_) => {
                return condition::leave(&mut self.objects, ticket, why, &mut turn);
            }
        };
        if left && why == Leave::GivenUp {
            turn.answer(caller, Err(Status::GivenUp.into()));
        }
    }
}
