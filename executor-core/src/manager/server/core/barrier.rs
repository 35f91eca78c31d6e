//! A barrier: calls that wait for each other.

use super::{
    actions::{Outcome, Progress, Refusal},
    clients::Caller,
    turn::Turn,
    waiting::{Line, Ticket},
};
use crate::manager::protocol::{Fields, Malformed, Operation, Status};

/// A barrier. When as many calls wait as there are parties, all go on, and it is as new.
#[derive(Debug)]
pub(super) struct Barrier {
    /// At least 1.
    parties: u64,
    /// Whether one of them has left before all were there, or it was aborted.
    broken: bool,
    /// Fewer calls than parties. Empty if it is broken.
    line: Line<()>,
}

impl Barrier {
    pub(super) fn create(mut fields: Fields<'_>) -> Result<Self, Refusal> {
        let parties = fields.number()?;
        fields.end()?;
        if parties == 0 {
            return Err(Malformed.into());
        }
        Ok(Barrier { parties, broken: false, line: Line::default() })
    }

    pub(super) fn request(
        &mut self,
        operation: Operation,
        fields: Fields<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<Progress, Refusal> {
        fields.end()?;
        match operation {
            Operation::BarrierWait if self.broken => Err(Status::Broken.into()),
            Operation::BarrierWait => {
                let before = self.line.len() as u64;
                if before + 1 < self.parties {
                    self.line.push(turn.wait(0)?, turn.caller, ());
                    return Ok(Progress::Waits);
                }
                let mut index = 0;
                while let Some((caller, ())) = self.line.pop() {
                    turn.answer(caller, Ok(index));
                    index += 1;
                }
                Ok(Progress::Done(before))
            }
            Operation::BarrierReset => {
                self.end_waits(Err(Status::Broken.into()), turn);
                self.broken = false;
                Ok(Progress::Done(0))
            }
            Operation::BarrierAbort => {
                self.break_down(turn);
                Ok(Progress::Done(0))
            }
            Operation::BarrierState => {
                turn.write_number(self.parties);
                turn.write_number(self.line.len() as u64);
                turn.write_number(u64::from(self.broken));
                Ok(Progress::Done(0))
            }
            _ => Err(Status::WrongKind.into()),
        }
    }

    fn end_waits(&mut self, outcome: Outcome, turn: &mut Turn<'_>) {
        while let Some((caller, ())) = self.line.pop() {
            turn.answer(caller, outcome);
        }
    }

    fn break_down(&mut self, turn: &mut Turn<'_>) {
        self.broken = true;
        self.end_waits(Err(Status::Broken.into()), turn);
    }

    /// Takes a call out of the line, which breaks the barrier. Returns whether it was there.
    pub(super) fn leave(&mut self, ticket: Ticket, turn: &mut Turn<'_>) -> bool {
        if self.line.remove(ticket).is_none() {
            return false;
        }
        self.break_down(turn);
        true
    }

    /// Returns the calls that wait.
    pub(super) fn callers(&self) -> impl Iterator<Item = Caller> {
        self.line.iter().map(|(caller, ())| caller)
    }

    /// Checks that nobody waits for those who are there.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert!((self.line.len() as u64) < self.parties, "all are there: {self:?}");
        assert!(!self.broken || self.line.is_empty(), "waits at a broken barrier: {self:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Answer, Body, Desk, number};
    use crate::manager::protocol::{Fields, Kind, ObjectId, Operation as O, Status};

    fn state(answer: &Answer) -> (u64, u64, bool) {
        let mut fields = Fields::new(&answer.body);
        (fields.number().unwrap(), fields.number().unwrap(), fields.flag().unwrap())
    }

    #[test]
    fn all_go_on_when_the_last_one_arrives() {
        let (mut desk, a, b) = Desk::with_two();
        let none =
            desk.refused(a, O::Create, ObjectId::NONE, number(Kind::Barrier as u64).number(0));
        assert_eq!(none, Status::Malformed);
        let barrier = desk.create(a, Kind::Barrier, number(3));
        desk.share(b, barrier);
        for _ in 0..2 {
            let first = desk.waits(b, O::BarrierWait, barrier, Body::new());
            let second = desk.waits(a, O::BarrierWait, barrier, Body::new());
            let there = desk.ask(a, O::BarrierState, barrier, Body::new());
            assert_eq!(state(&there), (3, 2, false));
            assert_eq!(desk.ask(a, O::BarrierWait, barrier, Body::new()).done(), 2);
            assert_eq!([first, second].map(|call| desk.outcome(call)), [Ok(0), Ok(1)]);
        }
        let alone = desk.create(a, Kind::Barrier, number(1));
        assert_eq!(desk.ask(a, O::BarrierWait, alone, Body::new()).done(), 0);
    }

    #[test]
    fn a_barrier_breaks_when_one_of_them_leaves() {
        let (mut desk, a, b) = Desk::with_two();
        let barrier = desk.create(a, Kind::Barrier, number(4));
        desk.share(b, barrier);
        let given_up = desk.waits(a, O::BarrierWait, barrier, Body::new());
        let other = desk.waits(b, O::BarrierWait, barrier, Body::new());
        desk.give_up(given_up);
        assert_eq!(desk.outcome(given_up), Err(Status::GivenUp));
        assert_eq!(desk.outcome(other), Err(Status::Broken));
        assert_eq!(desk.refused(a, O::BarrierWait, barrier, Body::new()), Status::Broken);
        desk.ask(a, O::BarrierReset, barrier, Body::new()).done();
        // Both calls of the client that dies end, and neither is answered.
        desk.waits(b, O::BarrierWait, barrier, Body::new());
        desk.waits(b, O::BarrierWait, barrier, Body::new());
        let alive = desk.waits(a, O::BarrierWait, barrier, Body::new());
        desk.disconnect(b);
        assert_eq!(desk.outcome(alive), Err(Status::Broken));
        let there = desk.ask(a, O::BarrierState, barrier, Body::new());
        assert_eq!(state(&there), (4, 0, true));
    }

    #[test]
    fn reset_and_abort_end_the_waits() {
        let (mut desk, a, _) = Desk::with_two();
        let barrier = desk.create(a, Kind::Barrier, number(2));
        for (operation, broken) in [(O::BarrierReset, false), (O::BarrierAbort, true)] {
            let waiting = desk.waits(a, O::BarrierWait, barrier, Body::new());
            desk.ask(a, operation, barrier, Body::new()).done();
            assert_eq!(desk.outcome(waiting), Err(Status::Broken));
            let there = desk.ask(a, O::BarrierState, barrier, Body::new());
            assert_eq!(state(&there), (2, 0, broken));
        }
    }
}
