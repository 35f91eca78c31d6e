//! Locks, of the kind that can be taken again by their owner, and of the kind that cannot.

use super::{
    actions::{Progress, Refusal},
    clients::{Caller, ClientId},
    takes::Take,
    turn::Turn,
    waiting::{Leave, Line, Ticket},
};
use crate::manager::protocol::{Fields, Operation, Status};

/// Who holds a lock: a thread or a guard of a client. The client chose the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) client: ClientId,
    pub(super) number: u64,
}

/// A call that waits for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// The owner's number.
    pub(super) number: u64,
    /// How often it holds the lock when it gets it. It is more than 1 if it held it so often when
    /// it began to wait for a condition.
    pub(super) count: u64,
    /// Why it waits.
    pub(super) why: Why,
}

/// Why a call waits for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It wants to acquire it.
    Acquire,
    /// It was notified of a condition.
    Notified,
    /// It waited for a condition, and was given up.
    GivenUp,
}

/// A lock.
#[derive(Debug)]
pub(super) struct Lock {
    /// Whether its owner may take it again.
    reentrant: bool,
    owner: Option<Owner>,
    /// How often the owner holds it. 0 if there is no owner.
    count: u64,
    /// Whether the last owner died with the lock. The next one is told.
    owner_died: bool,
    /// Empty if there is no owner.
    line: Line<Claim>,
}

impl Lock {
    pub(super) fn create(mut fields: Fields<'_>) -> Result<Self, Refusal> {
        let reentrant = fields.flag()?;
        fields.end()?;
        let line = Line::default();
        Ok(Lock { reentrant, owner: None, count: 0, owner_died: false, line })
    }

    pub(super) fn owner(&self) -> Option<Owner> {
        self.owner
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn request(
        &mut self,
        operation: Operation,
        mut fields: Fields<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<Progress, Refusal> {
        match operation {
            Operation::LockAcquire => {
                let (number, wait) = (fields.number()?, fields.flag()?);
                fields.end()?;
                let owner = Owner { client: turn.caller.client, number };
                if self.owner.is_none() {
                    let died = self.take(turn.caller, owner, 1, turn);
                    return Ok(Progress::Done(u64::from(died)));
                }
                if self.reentrant && self.owner == Some(owner) {
                    self.count += 1;
                    let lock = turn.object;
                    turn.took(turn.caller, Take::Lock { lock, number, count: 1, died: false });
                    return Ok(Progress::Done(0));
                }
                if !wait {
                    return Err(Status::NotNow.into());
                }
                let claim = Claim { number, count: 1, why: Why::Acquire };
                self.line.push(turn.wait(0)?, turn.caller, claim);
                Ok(Progress::Waits)
            }
            Operation::LockRelease | Operation::LockReleaseOwn => {
                let number = fields.number()?;
                let own = operation == Operation::LockReleaseOwn;
                let unseen = own && !fields.is_empty() && fields.flag()?;
                fields.end()?;
                let releaser = Owner { client: turn.caller.client, number };
                let owner = self.owner.ok_or(Status::Refused)?;
                if (own || self.reentrant) && owner != releaser {
                    return Err(Status::Refused.into());
                }
                // The owner has not heard that the one before died, so the next one hears it.
                self.owner_died |= unseen;
                if self.count > 1 {
                    self.count -= 1;
                } else {
                    self.release(turn);
                }
                Ok(Progress::Done(0))
            }
            Operation::LockIsHeld => {
                fields.end()?;
                Ok(Progress::Done(u64::from(self.owner.is_some())))
            }
            _ => Err(Status::WrongKind.into()),
        }
    }

    /// Gives the free lock to an owner, whose call is answered next. Returns whether the last owner
    /// died with it.
    fn take(&mut self, to: Caller, owner: Owner, count: u64, turn: &mut Turn<'_>) -> bool {
        self.owner = Some(owner);
        self.count = count;
        turn.clients.add_hold(owner.client, turn.object);
        let died = std::mem::take(&mut self.owner_died);
        let (lock, number) = (turn.object, owner.number);
        turn.took(to, Take::Lock { lock, number, count, died });
        died
    }

    /// Frees the lock, however often its owner holds it. The first in the line gets it.
    pub(super) fn release(&mut self, turn: &mut Turn<'_>) {
        if let Some(owner) = self.owner.take() {
            turn.clients.remove_hold(owner.client, turn.object);
        }
        self.count = 0;
        self.pass_on(turn);
    }

    /// The client whose turn it is is gone.
    pub(super) fn owner_died(&mut self, turn: &mut Turn<'_>) {
        // What it had not read that it has it was passed on before.
        if self.owner.is_some_and(|owner| owner.client == turn.caller.client) {
            self.owner_died = true;
            self.release(turn);
        }
    }

    /// The client whose turn it is is gone, and has not read that it got the lock this often. So it
    /// has changed nothing under the lock. If it was to be told that the owner before had died, the
    /// next one is told.
    pub(super) fn release_unread(
        &mut self,
        number: u64,
        count: u64,
        died: bool,
        turn: &mut Turn<'_>,
    ) {
        if self.owner != Some(Owner { client: turn.caller.client, number }) {
            return;
        }
        self.owner_died |= died;
        self.count = self.count.saturating_sub(count);
        if self.count == 0 {
            self.release(turn);
        }
    }

    /// Returns how often it is held, and whether the next owner is told of a death.
    #[cfg(test)]
    pub(super) fn marks(&self) -> (u64, bool) {
        (self.count, self.owner_died)
    }

    /// Gives the lock to the first in the line, if it is free.
    fn pass_on(&mut self, turn: &mut Turn<'_>) {
        if self.owner.is_some() {
            return;
        }
        let Some((caller, claim)) = self.line.pop() else { return };
        let owner = Owner { client: caller.client, number: claim.number };
        let number = u64::from(self.take(caller, owner, claim.count, turn));
        let outcome = match claim.why {
            Why::Acquire | Why::Notified => Ok(number),
            Why::GivenUp => Err(Refusal { number, ..Status::GivenUp.into() }),
        };
        turn.answer(caller, outcome);
    }

    /// Puts a call in the line that has waited for a condition of this lock. `turn` is that of the
    /// lock.
    pub(super) fn line_up(&mut self, caller: Caller, claim: Claim, turn: &mut Turn<'_>) {
        let Some(ticket) = turn.clients.move_wait(caller, turn.object) else { return };
        self.line.push(ticket, caller, claim);
        self.pass_on(turn);
    }

    /// Takes a call out of the line. Returns whether it was there, and could leave.
    pub(super) fn leave(&mut self, ticket: Ticket, why: Leave) -> bool {
        // A wait for a condition ends with the lock, even if it is given up. One that was notified
        // stays notified, as otherwise the notification would be lost.
        let after_wait = self.line.get(ticket).is_some_and(|claim| claim.why != Why::Acquire);
        if after_wait && why == Leave::GivenUp {
            return false;
        }
        self.line.remove(ticket).is_some()
    }

    /// Returns the calls that wait.
    pub(super) fn callers(&self) -> impl Iterator<Item = Caller> {
        self.line.iter().map(|(caller, _)| caller)
    }

    /// Checks that nobody waits for a free lock.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert_eq!(self.owner.is_some(), self.count > 0, "{self:?}");
        assert!(self.reentrant || self.count <= 1, "{self:?}");
        assert!(self.owner.is_some() || self.line.is_empty(), "waits for a free lock: {self:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Body, Desk, number};
    use crate::manager::protocol::{Kind, Operation as O, Status};

    #[test]
    fn an_owner_that_gives_the_lock_back_unseen_passes_on_that_the_one_before_died() {
        let (mut desk, a, b) = Desk::with_two();
        let lock = desk.create(a, Kind::Lock, number(0));
        desk.share(b, lock);
        desk.ask(b, O::LockAcquire, lock, number(1).number(0)).done();
        desk.disconnect(b);
        let acquire = || number(1).number(0);
        assert_eq!(desk.ask(a, O::LockAcquire, lock, acquire()).done(), 1);
        desk.tell(a, O::LockReleaseOwn, lock, number(1).number(1));
        assert_eq!(desk.ask(a, O::LockAcquire, lock, acquire()).done(), 1);
        // Another owner cannot say so.
        desk.tell(a, O::LockReleaseOwn, lock, number(2).number(1));
        desk.tell(a, O::LockReleaseOwn, lock, number(1).number(0));
        assert_eq!(desk.ask(a, O::LockAcquire, lock, acquire()).done(), 0);
    }

    #[test]
    fn a_plain_lock_is_passed_on_in_order_and_released_by_anybody() {
        let (mut desk, a, b) = Desk::with_two();
        let lock = desk.create(a, Kind::Lock, number(0));
        desk.share(b, lock);
        assert_eq!(desk.refused(a, O::LockRelease, lock, number(1)), Status::Refused);
        assert_eq!(desk.ask(a, O::LockAcquire, lock, number(1).number(0)).done(), 0);
        // Even its owner cannot take it again.
        let again = desk.refused(a, O::LockAcquire, lock, number(1).number(0));
        assert_eq!(again, Status::NotNow);
        let given_up = desk.waits(b, O::LockAcquire, lock, number(1).number(1));
        let first = desk.waits(b, O::LockAcquire, lock, number(1).number(1));
        let second = desk.waits(a, O::LockAcquire, lock, number(2).number(1));
        desk.give_up(given_up);
        assert_eq!(desk.outcome(given_up), Err(Status::GivenUp));
        assert_eq!(desk.refused(b, O::LockReleaseOwn, lock, number(9)), Status::Refused);
        desk.ask(b, O::LockRelease, lock, number(9)).done();
        assert_eq!(desk.outcome(first), Ok(0));
        assert_eq!(desk.answer(second), None);
        desk.ask(b, O::LockRelease, lock, number(1)).done();
        assert_eq!(desk.outcome(second), Ok(0));
        assert_eq!(desk.ask(b, O::LockIsHeld, lock, Body::new()).done(), 1);
        desk.ask(a, O::LockRelease, lock, number(2)).done();
        assert_eq!(desk.ask(b, O::LockIsHeld, lock, Body::new()).done(), 0);
    }

    #[test]
    fn a_reentrant_lock_counts_and_belongs_to_one_thread() {
        let (mut desk, a, b) = Desk::with_two();
        let lock = desk.create(a, Kind::Lock, number(1));
        desk.share(b, lock);
        desk.ask(a, O::LockAcquire, lock, number(1).number(0)).done();
        let waiting = desk.waits(b, O::LockAcquire, lock, number(1).number(1));
        desk.ask(a, O::LockAcquire, lock, number(1).number(1)).done();
        let other = desk.refused(a, O::LockAcquire, lock, number(2).number(0));
        assert_eq!(other, Status::NotNow);
        assert_eq!(desk.refused(a, O::LockRelease, lock, number(2)), Status::Refused);
        assert_eq!(desk.refused(b, O::LockRelease, lock, number(1)), Status::Refused);
        desk.ask(a, O::LockRelease, lock, number(1)).done();
        assert_eq!(desk.answer(waiting), None);
        desk.ask(a, O::LockRelease, lock, number(1)).done();
        assert_eq!(desk.outcome(waiting), Ok(0));
        assert_eq!(desk.refused(a, O::LockRelease, lock, number(1)), Status::Refused);
    }

    #[test]
    fn the_next_owner_and_only_that_one_is_told_of_the_death_of_the_last() {
        let (mut desk, a, b) = Desk::with_two();
        let c = desk.client();
        for reentrant in [0, 1] {
            let lock = desk.create(a, Kind::Lock, number(reentrant));
            let dead = desk.client();
            [b, c, dead].into_iter().for_each(|client| desk.share(client, lock));
            desk.ask(dead, O::LockAcquire, lock, number(1).number(0)).done();
            // The calls of the client that dies end before its locks are passed on.
            desk.waits(dead, O::LockAcquire, lock, number(2).number(1));
            let first = desk.waits(a, O::LockAcquire, lock, number(1).number(1));
            let second = desk.waits(b, O::LockAcquire, lock, number(1).number(1));
            desk.disconnect(dead);
            assert_eq!(desk.outcome(first), Ok(1));
            desk.ask(a, O::LockRelease, lock, number(1)).done();
            assert_eq!(desk.outcome(second), Ok(0));
            desk.ask(b, O::LockRelease, lock, number(1)).done();

            let dead = desk.client();
            desk.share(dead, lock);
            desk.ask(dead, O::LockAcquire, lock, number(1).number(0)).done();
            desk.disconnect(dead);
            assert_eq!(desk.ask(c, O::LockIsHeld, lock, Body::new()).done(), 0);
            assert_eq!(desk.ask(c, O::LockAcquire, lock, number(1).number(0)).done(), 1);
            desk.ask(c, O::LockRelease, lock, number(1)).done();
            assert_eq!(desk.ask(c, O::LockAcquire, lock, number(1).number(0)).done(), 0);
        }
    }

    #[test]
    fn calls_that_wait_for_a_lock_that_is_dropped_are_answered() {
        let (mut desk, a, _) = Desk::with_two();
        let lock = desk.create(a, Kind::Lock, number(0));
        desk.ask(a, O::LockAcquire, lock, number(1).number(0)).done();
        let waiting = desk.waits(a, O::LockAcquire, lock, number(2).number(1));
        desk.release(a, lock, 1);
        assert_eq!(desk.outcome(waiting), Err(Status::NoObject));
        desk.disconnect(a);
    }
}
