//! An event: a flag, and calls that wait until it is set.

use super::{
    actions::{Progress, Refusal},
    clients::Caller,
    turn::Turn,
    waiting::{Line, Ticket},
};
use crate::manager::protocol::{Fields, Operation, Status};

/// An event.
#[derive(Debug, Default)]
pub(super) struct Event {
    set: bool,
    /// Empty if it is set.
    line: Line<()>,
}

impl Event {
    pub(super) fn create(fields: Fields<'_>) -> Result<Self, Refusal> {
        fields.end()?;
        Ok(Event::default())
    }

    pub(super) fn request(
        &mut self,
        operation: Operation,
        fields: Fields<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<Progress, Refusal> {
        fields.end()?;
        match operation {
            Operation::EventSet => {
                self.set = true;
                while let Some((caller, ())) = self.line.pop() {
                    turn.answer(caller, Ok(0));
                }
                Ok(Progress::Done(0))
            }
            Operation::EventClear => {
                self.set = false;
                Ok(Progress::Done(0))
            }
            Operation::EventIsSet => Ok(Progress::Done(u64::from(self.set))),
            Operation::EventWait if self.set => Ok(Progress::Done(0)),
            Operation::EventWait => {
                self.line.push(turn.wait(0)?, turn.caller, ());
                Ok(Progress::Waits)
            }
            _ => Err(Status::WrongKind.into()),
        }
    }

    /// Takes a call out of the line. Returns whether it was there.
    pub(super) fn leave(&mut self, ticket: Ticket) -> bool {
        self.line.remove(ticket).is_some()
    }

    /// Returns the calls that wait.
    pub(super) fn callers(&self) -> impl Iterator<Item = Caller> {
        self.line.iter().map(|(caller, ())| caller)
    }

    /// Checks that nobody waits for an event that is set.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert!(!self.set || self.line.is_empty(), "waits for what has happened: {self:?}");
    }
}
