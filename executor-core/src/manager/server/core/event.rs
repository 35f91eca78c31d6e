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

#[cfg(test)]
mod tests {
    use super::super::testing::{Body, Desk};
    use crate::manager::protocol::{Kind, Operation as O, Status};

    #[test]
    fn all_who_wait_go_on_when_the_event_is_set() {
        let (mut desk, a, b) = Desk::with_two();
        let event = desk.create(a, Kind::Event, Body::new());
        desk.share(b, event);
        let calls = [a, b].map(|client| desk.waits(client, O::EventWait, event, Body::new()));
        let given_up = desk.waits(a, O::EventWait, event, Body::new());
        desk.give_up(given_up);
        assert_eq!(desk.outcome(given_up), Err(Status::GivenUp));
        assert_eq!(desk.ask(a, O::EventIsSet, event, Body::new()).done(), 0);
        desk.ask(a, O::EventSet, event, Body::new()).done();
        assert_eq!(calls.map(|call| desk.outcome(call)), [Ok(0), Ok(0)]);
        assert_eq!(desk.ask(a, O::EventIsSet, event, Body::new()).done(), 1);
        desk.ask(a, O::EventWait, event, Body::new()).done();
        desk.ask(a, O::EventClear, event, Body::new()).done();
        desk.waits(a, O::EventWait, event, Body::new());
        desk.disconnect(a);
        desk.ask(b, O::EventSet, event, Body::new()).done();
    }
}
