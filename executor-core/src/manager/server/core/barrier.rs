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
