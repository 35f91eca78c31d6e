//! A set of values, in the order of insertion. Values are equal if their bytes are.

use std::{collections::HashSet, sync::Arc};

use super::{
    actions::{Outcome, Refusal},
    ordered::{Ordered, write_page},
    turn::{Names, Turn, encoded_len},
};
use crate::manager::protocol::{Fields, Operation, Status, ValueField};

/// A set.
#[derive(Debug, Default)]
pub(super) struct Set {
    /// The bytes of the values are the keys.
    entries: Ordered<Names>,
    /// Goes up by one with each change.
    version: u64,
}

impl Set {
    pub(super) fn create(fields: Fields<'_>, turn: &mut Turn<'_>) -> Result<Self, Refusal> {
        let mut set = Set::default();
        for value in turn.values(fields)? {
            set.insert(value, turn);
        }
        Ok(set)
    }

    pub(super) fn request(
        &mut self,
        operation: Operation,
        mut fields: Fields<'_>,
        turn: &mut Turn<'_>,
    ) -> Outcome {
        match operation {
            Operation::SetInsert => {
                let value = turn.value(&mut fields)?;
                fields.end()?;
                Ok(u64::from(self.insert(value, turn)))
            }
            Operation::SetRemove => {
                let value = fields.value()?;
                fields.end()?;
                Ok(u64::from(self.remove(value.bytes, turn)))
            }
            Operation::SetContains => {
                let value = fields.value()?;
                fields.end()?;
                Ok(u64::from(self.entries.contains(value.bytes)))
            }
            Operation::SetPop => {
                fields.end()?;
                let (bytes, names) = self.entries.pop().ok_or(Status::Missing)?;
                self.version += 1;
                turn.write_to(turn.caller, &bytes, &names);
                turn.changes.lose_names(&names);
                Ok(0)
            }
            Operation::SetUnion => {
                for value in turn.values(fields)? {
                    self.insert(value, turn);
                }
                Ok(0)
            }
            Operation::SetSubtract => {
                for value in fields.values()? {
                    self.remove(value.bytes, turn);
                }
                Ok(0)
            }
            Operation::SetIntersect => {
                let values = fields.values()?;
                let stay: HashSet<&[u8]> = values.iter().map(|value| value.bytes).collect();
                let keys = self.entries.iter().map(|(bytes, _)| bytes);
                let leave: Vec<Arc<[u8]>> =
                    keys.filter(|bytes| !stay.contains(&***bytes)).cloned().collect();
                for bytes in leave {
                    self.remove(&bytes, turn);
                }
                Ok(0)
            }
            Operation::SetToggle => {
                // A value that is there twice counts once, as in the set that it stands for.
                let mut seen = HashSet::new();
                for value in turn.values(fields)? {
                    if seen.insert(value.bytes) && !self.remove(value.bytes, turn) {
                        self.insert(value, turn);
                    }
                }
                Ok(0)
            }
            Operation::SetCount => {
                let values = fields.values()?;
                turn.write_number(self.entries.len() as u64);
                let there = values.iter().filter(|value| self.entries.contains(value.bytes));
                Ok(there.count() as u64)
            }
            Operation::Len => {
                fields.end()?;
                Ok(self.entries.len() as u64)
            }
            Operation::Clear => {
                fields.end()?;
                self.each_names(|names| turn.changes.lose_names(names));
                self.entries.clear();
                self.version += 1;
                Ok(0)
            }
            Operation::Page => {
                let (cursor, bytes_max) = (fields.number()?, fields.number()?);
                fields.end()?;
                Ok(write_page(
                    self.entries.from(cursor),
                    bytes_max,
                    |(bytes, names)| encoded_len(bytes, names),
                    |(bytes, names)| turn.write_to(turn.caller, bytes, names),
                ))
            }
            Operation::Snapshot => {
                fields.end()?;
                for (bytes, names) in self.entries.iter() {
                    turn.write_to(turn.caller, bytes, names);
                }
                Ok(self.version)
            }
            _ => Err(Status::WrongKind.into()),
        }
    }

    /// Adds a value. Returns whether it was not there.
    fn insert(&mut self, value: ValueField<'_>, turn: &mut Turn<'_>) -> bool {
        if self.entries.contains(value.bytes) {
            return false;
        }
        self.version += 1;
        let names = turn.keep_names(value);
        self.entries.push(value.bytes.into(), names);
        true
    }

    /// Removes a value. Returns whether it was there.
    fn remove(&mut self, bytes: &[u8], turn: &mut Turn<'_>) -> bool {
        let Some(names) = self.entries.remove(bytes) else { return false };
        self.version += 1;
        turn.changes.lose_names(&names);
        true
    }

    pub(super) fn each_names(&self, mut each: impl FnMut(&Names)) {
        self.entries.iter().for_each(|(_, names)| each(names));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Body, Desk};
    use crate::manager::protocol::{Fields, Kind, Operation as O, Status};

    #[test]
    fn values_that_come_twice_count_once() {
        let (mut desk, a, _) = Desk::with_two();
        let values = |texts: &[&str]| texts.iter().fold(Body::new(), |body, text| body.value(text));
        let set = desk.create(a, Kind::Set, values(&["a", "b", "a"]));
        assert_eq!(desk.ask(a, O::Len, set, Body::new()).done(), 2);
        assert_eq!(desk.ask(a, O::SetInsert, set, values(&["b"])).done(), 0);
        desk.ask(a, O::SetToggle, set, values(&["a", "c", "c"])).done();
        assert_eq!(desk.ask(a, O::Snapshot, set, Body::new()).texts(), ["b", "c"]);
        let count = desk.ask(a, O::SetCount, set, values(&["a", "b"]));
        assert_eq!((count.done(), Fields::new(&count.body).number()), (1, Ok(2)));
        desk.ask(a, O::SetUnion, set, values(&["d", "b"])).done();
        desk.ask(a, O::SetIntersect, set, values(&["d", "c", "z"])).done();
        desk.ask(a, O::SetSubtract, set, values(&["c", "z"])).done();
        assert_eq!(desk.ask(a, O::SetContains, set, values(&["d"])).done(), 1);
        assert_eq!(desk.ask(a, O::SetPop, set, Body::new()).texts(), ["d"]);
        assert_eq!(desk.refused(a, O::SetPop, set, Body::new()), Status::Missing);
        assert_eq!(desk.ask(a, O::SetRemove, set, values(&["d"])).done(), 0);
    }

    #[test]
    fn the_names_of_the_value_that_was_there_first_stay() {
        let (mut desk, a, _) = Desk::with_two();
        let (first, second) =
            (desk.create(a, Kind::Event, Body::new()), desk.create(a, Kind::Event, Body::new()));
        let set = desk.create(a, Kind::Set, Body::new().naming("v", &[first]));
        desk.ask(a, O::SetInsert, set, Body::new().naming("v", &[second])).done();
        desk.release(a, first, 1);
        desk.release(a, second, 1);
        assert_eq!((desk.exists(first), desk.exists(second)), (true, false));
        desk.ask(a, O::Clear, set, Body::new()).done();
        assert!(!desk.exists(first));
    }
}
