//! A single value.

use super::{
    actions::{Outcome, Refusal},
    turn::{Names, Stored, Turn},
    updates::{Target, Update},
};
use crate::manager::protocol::{Fields, Operation, Status};

/// A single value.
#[derive(Debug)]
pub(super) struct Cell {
    value: Stored,
}

impl Cell {
    pub(super) fn create(mut fields: Fields<'_>, turn: &mut Turn<'_>) -> Result<Self, Refusal> {
        let value = turn.value(&mut fields)?;
        fields.end()?;
        Ok(Cell { value: turn.keep(value) })
    }

    pub(super) fn request(
        &mut self,
        operation: Operation,
        mut fields: Fields<'_>,
        turn: &mut Turn<'_>,
    ) -> Outcome {
        match operation {
            Operation::CellGet => {
                fields.end()?;
                turn.write(&self.value);
                Ok(0)
            }
            Operation::CellSet | Operation::CellSwap => {
                let value = turn.value(&mut fields)?;
                fields.end()?;
                let value = turn.keep(value);
                if operation == Operation::CellSwap {
                    turn.write(&self.value);
                }
                self.updated(value, turn);
                Ok(0)
            }
            Operation::CellCompareExchange => {
                let expected = fields.value()?;
                let value = turn.value(&mut fields)?;
                fields.end()?;
                if *self.value.bytes != *expected.bytes {
                    turn.write(&self.value);
                    return Ok(0);
                }
                let value = turn.keep(value);
                self.updated(value, turn);
                Ok(1)
            }
            _ => Err(Status::WrongKind.into()),
        }
    }

    /// Reads a request for an update.
    pub(super) fn update<'a>(
        &self,
        mut fields: Fields<'a>,
        turn: &Turn<'_>,
    ) -> Result<Update<'a>, Refusal> {
        let (function, arguments) = (fields.number()?, turn.value(&mut fields)?);
        fields.end()?;
        Ok(Update {
            target: Target::Cell,
            function,
            optional: false,
            current: Some(self.value.clone()),
            arguments,
        })
    }

    /// Replaces the value.
    pub(super) fn updated(&mut self, value: Stored, turn: &mut Turn<'_>) {
        let previous = std::mem::replace(&mut self.value, value);
        turn.lose(&previous);
    }

    pub(super) fn names(&self) -> &Names {
        &self.value.names
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Body, Desk};
    use crate::manager::protocol::{Kind, Operation as O};

    #[test]
    fn a_value_is_exchanged_if_its_bytes_are_as_expected() {
        let (mut desk, a, _) = Desk::with_two();
        let cell = desk.create(a, Kind::Cell, Body::new().value("1"));
        assert!(desk.ask(a, O::CellSet, cell, Body::new().value("0")).body.is_empty());
        assert_eq!(desk.ask(a, O::CellSwap, cell, Body::new().value("1")).texts(), ["0"]);
        assert_eq!(desk.ask(a, O::CellSwap, cell, Body::new().value("2")).texts(), ["1"]);
        let exchange = Body::new().value("1").value("3");
        let there = desk.ask(a, O::CellCompareExchange, cell, exchange);
        assert_eq!((there.done(), there.texts()), (0, vec!["2"]));
        let exchange = Body::new().value("2").value("3");
        assert_eq!(desk.ask(a, O::CellCompareExchange, cell, exchange).done(), 1);
        assert_eq!(desk.ask(a, O::CellGet, cell, Body::new()).texts(), ["3"]);
    }
}
