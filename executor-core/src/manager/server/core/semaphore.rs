//! A semaphore. Permits that a client has come back when it is gone.

use std::collections::HashMap;

use super::{
    actions::{Progress, Refusal},
    clients::{Caller, ClientId},
    turn::Turn,
    waiting::{Line, Ticket},
};
use crate::{
    id::IdHasher,
    manager::protocol::{Fields, Operation, Status},
};

/// A semaphore.
#[derive(Debug)]
pub(super) struct Semaphore {
    /// Permits that are left. 0 while calls wait.
    value: u64,
    /// The permits that there are never more of.
    bound: Option<u64>,
    /// How many permits each client has. None is 0.
    held: HashMap<ClientId, u64, IdHasher>,
    line: Line<()>,
}

impl Semaphore {
    pub(super) fn create(mut fields: Fields<'_>) -> Result<Self, Refusal> {
        let (value, bounded) = (fields.number()?, fields.flag()?);
        fields.end()?;
        let bound = bounded.then_some(value);
        Ok(Semaphore { value, bound, held: HashMap::default(), line: Line::default() })
    }

    pub(super) fn request(
        &mut self,
        operation: Operation,
        mut fields: Fields<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<Progress, Refusal> {
        match operation {
            Operation::SemaphoreAcquire => {
                let wait = fields.flag()?;
                fields.end()?;
                if self.value > 0 {
                    self.take(turn.caller.client, turn);
                    return Ok(Progress::Done(0));
                }
                if !wait {
                    return Err(Status::NotNow.into());
                }
                self.line.push(turn.wait(0)?, turn.caller, ());
                Ok(Progress::Waits)
            }
            Operation::SemaphoreRelease => {
                let count = fields.number()?;
                fields.end()?;
                // Without a bound, more than 64 bits can count is refused as well.
                let value = self.value.checked_add(count).ok_or(Status::Refused)?;
                if self.bound.is_some_and(|bound| value > bound) {
                    return Err(Status::Refused.into());
                }
                self.give_back(turn.caller.client, count, turn);
                self.value = value;
                self.serve(turn);
                Ok(Progress::Done(0))
            }
            Operation::SemaphoreValue => {
                fields.end()?;
                Ok(Progress::Done(self.value))
            }
            _ => Err(Status::WrongKind.into()),
        }
    }

    /// Gives a permit to a client. There is one.
    fn take(&mut self, client: ClientId, turn: &mut Turn<'_>) {
        self.value -= 1;
        *self.held.entry(client).or_default() += 1;
        turn.clients.add_hold(client, turn.object);
    }

    /// Notes that a client has fewer permits. It may release more than it has, as in Python.
    fn give_back(&mut self, client: ClientId, count: u64, turn: &mut Turn<'_>) {
        let Some(held) = self.held.get_mut(&client) else { return };
        *held = held.saturating_sub(count);
        if *held == 0 {
            self.held.remove(&client);
            turn.clients.remove_hold(client, turn.object);
        }
    }

    /// Gives permits to those who wait, as long as there are some.
    fn serve(&mut self, turn: &mut Turn<'_>) {
        while self.value > 0
            && let Some((caller, ())) = self.line.pop()
        {
            self.take(caller.client, turn);
            turn.answer(caller, Ok(0));
        }
    }

    /// The client whose turn it is is gone. Its permits come back.
    pub(super) fn holder_died(&mut self, turn: &mut Turn<'_>) {
        let held = self.held.remove(&turn.caller.client).unwrap_or_default();
        // Another client may have released them already. So there could be more than the bound, or
        // than 64 bits can count.
        let value = self.value.saturating_add(held);
        self.value = self.bound.map_or(value, |bound| value.min(bound));
        self.serve(turn);
    }

    /// Takes a call out of the line. Returns whether it was there.
    pub(super) fn leave(&mut self, ticket: Ticket) -> bool {
        self.line.remove(ticket).is_some()
    }

    /// Returns the calls that wait.
    pub(super) fn callers(&self) -> impl Iterator<Item = Caller> {
        self.line.iter().map(|(caller, ())| caller)
    }

    /// Returns the clients that have permits.
    pub(super) fn holders(&self) -> impl Iterator<Item = ClientId> {
        self.held.keys().copied()
    }

    /// Checks that nobody waits for permits that are left.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert!(self.value == 0 || self.line.is_empty(), "waits for a free permit: {self:?}");
        assert!(self.bound.is_none_or(|bound| self.value <= bound), "{self:?}");
        assert!(self.held.values().all(|held| *held > 0), "{self:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Body, Desk, number};
    use crate::manager::protocol::{Kind, Operation as O, Status};

    #[test]
    fn permits_go_to_those_who_wait_in_order() {
        let (mut desk, a, b) = Desk::with_two();
        let semaphore = desk.create(a, Kind::Semaphore, number(1).number(0));
        desk.share(b, semaphore);
        desk.ask(a, O::SemaphoreAcquire, semaphore, number(0)).done();
        assert_eq!(desk.refused(a, O::SemaphoreAcquire, semaphore, number(0)), Status::NotNow);
        let first = desk.waits(b, O::SemaphoreAcquire, semaphore, number(1));
        let given_up = desk.waits(b, O::SemaphoreAcquire, semaphore, number(1));
        let second = desk.waits(a, O::SemaphoreAcquire, semaphore, number(1));
        desk.give_up(given_up);
        assert_eq!(desk.outcome(given_up), Err(Status::GivenUp));
        desk.ask(a, O::SemaphoreRelease, semaphore, number(1)).done();
        assert_eq!(desk.outcome(first), Ok(0));
        // Without a bound, a client may release what it has not.
        desk.ask(a, O::SemaphoreRelease, semaphore, number(3)).done();
        assert_eq!(desk.outcome(second), Ok(0));
        assert_eq!(desk.ask(a, O::SemaphoreValue, semaphore, Body::new()).done(), 2);
        let too_many = desk.refused(a, O::SemaphoreRelease, semaphore, number(u64::MAX));
        assert_eq!(too_many, Status::Refused);
    }

    #[test]
    fn a_bounded_semaphore_never_has_more_than_at_first() {
        let (mut desk, a, b) = Desk::with_two();
        let semaphore = desk.create(a, Kind::Semaphore, number(2).number(1));
        desk.share(b, semaphore);
        assert_eq!(desk.refused(a, O::SemaphoreRelease, semaphore, number(1)), Status::Refused);
        desk.ask(a, O::SemaphoreAcquire, semaphore, number(0)).done();
        assert_eq!(desk.refused(a, O::SemaphoreRelease, semaphore, number(2)), Status::Refused);
        // Another client may release it. Then nothing comes back when the first one dies.
        desk.ask(b, O::SemaphoreRelease, semaphore, number(1)).done();
        desk.disconnect(a);
        assert_eq!(desk.ask(b, O::SemaphoreValue, semaphore, Body::new()).done(), 2);
    }

    #[test]
    fn the_permits_of_a_dead_client_come_back() {
        let (mut desk, a, b) = Desk::with_two();
        let semaphore = desk.create(a, Kind::Semaphore, number(3).number(0));
        desk.share(b, semaphore);
        for _ in 0..3 {
            desk.ask(b, O::SemaphoreAcquire, semaphore, number(0)).done();
        }
        desk.ask(b, O::SemaphoreRelease, semaphore, number(1)).done();
        desk.ask(a, O::SemaphoreAcquire, semaphore, number(0)).done();
        let of_the_dead = desk.waits(b, O::SemaphoreAcquire, semaphore, number(1));
        let waiting = desk.waits(a, O::SemaphoreAcquire, semaphore, number(1));
        desk.disconnect(b);
        assert_eq!(desk.answer(of_the_dead), None);
        assert_eq!(desk.outcome(waiting), Ok(0));
        assert_eq!(desk.ask(a, O::SemaphoreValue, semaphore, Body::new()).done(), 1);
    }

    #[test]
    fn a_client_forgets_the_permits_of_a_semaphore_that_is_gone() {
        let (mut desk, a, _) = Desk::with_two();
        let semaphore = desk.create(a, Kind::Semaphore, number(1).number(0));
        desk.ask(a, O::SemaphoreAcquire, semaphore, number(0)).done();
        desk.release(a, semaphore, 1);
        assert_eq!(desk.core.objects(), 0);
    }
}
