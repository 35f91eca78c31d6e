//! A list of values, or an array: a list whose length is fixed.

use std::{collections::VecDeque, ops::Range};

use super::{
    actions::{Outcome, Refusal},
    ordered::write_page,
    turn::{Names, Stored, Turn},
    updates::{Target, Update},
};
use crate::manager::protocol::{Fields, Operation, Status, ValueField};

/// A list.
#[derive(Debug)]
pub(super) struct List {
    items: VecDeque<Stored>,
    /// Whether its length is fixed.
    fixed: bool,
    /// Goes up by one with each change.
    version: u64,
}

/// Converts an index that came in a message. One that no memory could hold is too large for each
/// list.
fn to_index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl List {
    pub(super) fn create(mut fields: Fields<'_>, turn: &mut Turn<'_>) -> Result<Self, Refusal> {
        let fixed = fields.flag()?;
        let values = turn.values(fields)?;
        // `collect` would keep the memory of `values`, which has grown in steps.
        let mut items = VecDeque::with_capacity(values.len());
        items.extend(values.into_iter().map(|value| turn.keep(value)));
        Ok(List { items, fixed, version: 0 })
    }

    pub(super) fn request(
        &mut self,
        operation: Operation,
        mut fields: Fields<'_>,
        turn: &mut Turn<'_>,
    ) -> Outcome {
        match operation {
            Operation::ListGet => {
                let index = to_index(fields.number()?);
                fields.end()?;
                turn.write(self.items.get(index).ok_or(Status::Missing)?);
                Ok(0)
            }
            Operation::ListSet => {
                let index = to_index(fields.number()?);
                let value = turn.value(&mut fields)?;
                fields.end()?;
                turn.write(self.items.get(index).ok_or(Status::Missing)?);
                let value = turn.keep(value);
                self.updated(index, value, turn);
                Ok(0)
            }
            Operation::ListExtend => {
                let values = turn.values(fields)?;
                self.check_growable()?;
                self.items.extend(values.into_iter().map(|value| turn.keep(value)));
                self.version += 1;
                Ok(0)
            }
            Operation::ListInsert => {
                let index = to_index(fields.number()?);
                let value = turn.value(&mut fields)?;
                fields.end()?;
                self.check_growable()?;
                if index > self.items.len() {
                    return Err(Status::Missing.into());
                }
                self.items.insert(index, turn.keep(value));
                self.version += 1;
                Ok(0)
            }
            Operation::ListRemove => {
                let index = fields.number()?;
                fields.end()?;
                self.check_growable()?;
                let last = self.items.len().checked_sub(1).ok_or(Status::Missing)?;
                let index = if index == u64::MAX { last } else { to_index(index) };
                let value = self.items.remove(index).ok_or(Status::Missing)?;
                self.version += 1;
                turn.write(&value);
                turn.lose(&value);
                Ok(0)
            }
            Operation::ListRange => {
                let (start, end) = (to_index(fields.number()?), to_index(fields.number()?));
                fields.end()?;
                let range = self.check_range(start, end)?;
                self.items.range(range).for_each(|value| turn.write(value));
                Ok(0)
            }
            Operation::ListSplice => {
                let (start, end) = (to_index(fields.number()?), to_index(fields.number()?));
                let values = turn.values(fields)?;
                self.splice(self.check_range(start, end)?, values, turn)
            }
            Operation::ListFind => {
                let value = fields.value()?;
                let (start, end) = (to_index(fields.number()?), to_index(fields.number()?));
                fields.end()?;
                let end = end.min(self.items.len());
                if start > end {
                    return Err(Status::Missing.into());
                }
                let mut items = self.items.range(start..end);
                let found = items.position(|item| *item.bytes == *value.bytes);
                Ok((start + found.ok_or(Status::Missing)?) as u64)
            }
            Operation::ListCount => {
                let value = fields.value()?;
                fields.end()?;
                let equal = self.items.iter().filter(|item| *item.bytes == *value.bytes);
                Ok(equal.count() as u64)
            }
            Operation::ListReverse => {
                fields.end()?;
                self.items.make_contiguous().reverse();
                self.version += 1;
                Ok(0)
            }
            Operation::ListReplace => {
                let version = fields.number()?;
                let values = turn.values(fields)?;
                if version != self.version {
                    return Ok(0);
                }
                self.splice(0..self.items.len(), values, turn)?;
                Ok(1)
            }
            Operation::Len => {
                fields.end()?;
                Ok(self.items.len() as u64)
            }
            Operation::Clear => {
                fields.end()?;
                self.check_growable()?;
                // A new list, so that the memory is given back.
                let items = std::mem::take(&mut self.items);
                items.iter().for_each(|value| turn.lose(value));
                self.version += 1;
                Ok(0)
            }
            Operation::Page => {
                let (cursor, bytes_max) = (to_index(fields.number()?), fields.number()?);
                fields.end()?;
                let start = cursor.min(self.items.len());
                let numbered = (start as u64..).zip(self.items.range(start..));
                let written = write_page(
                    numbered,
                    bytes_max,
                    |item| item.encoded_len(),
                    |item| turn.write(item),
                );
                Ok(written)
            }
            Operation::Snapshot => {
                fields.end()?;
                self.items.iter().for_each(|value| turn.write(value));
                Ok(self.version)
            }
            _ => Err(Status::WrongKind.into()),
        }
    }

    /// Refuses what would change the length of an array.
    fn check_growable(&self) -> Result<(), Refusal> {
        if self.fixed { Err(Status::Refused.into()) } else { Ok(()) }
    }

    /// Returns a range if it is within the list.
    fn check_range(&self, start: usize, end: usize) -> Result<Range<usize>, Refusal> {
        if start <= end && end <= self.items.len() {
            Ok(start..end)
        } else {
            Err(Status::Missing.into())
        }
    }

    fn splice(
        &mut self,
        range: Range<usize>,
        values: Vec<ValueField<'_>>,
        turn: &mut Turn<'_>,
    ) -> Outcome {
        if values.len() != range.len() {
            self.check_growable()?;
        }
        let mut behind = self.items.split_off(range.end);
        let replaced = self.items.split_off(range.start);
        self.items.extend(values.into_iter().map(|value| turn.keep(value)));
        self.items.append(&mut behind);
        replaced.iter().for_each(|value| turn.lose(value));
        self.version += 1;
        Ok(0)
    }

    /// Reads a request for an update.
    pub(super) fn update<'a>(
        &self,
        mut fields: Fields<'a>,
        turn: &Turn<'_>,
    ) -> Result<Update<'a>, Refusal> {
        let (index, function) = (to_index(fields.number()?), fields.number()?);
        let arguments = turn.value(&mut fields)?;
        fields.end()?;
        let current = Some(self.items.get(index).ok_or(Status::Missing)?.clone());
        Ok(Update { target: Target::Index(index), function, optional: false, current, arguments })
    }

    /// Replaces an item.
    pub(super) fn updated(&mut self, index: usize, value: Stored, turn: &mut Turn<'_>) {
        let previous = std::mem::replace(&mut self.items[index], value);
        turn.lose(&previous);
        self.version += 1;
    }

    pub(super) fn each_names(&self, mut each: impl FnMut(&Names)) {
        self.items.iter().for_each(|value| each(&value.names));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        State,
        testing::{Body, Desk, number},
    };
    use crate::manager::protocol::{Kind, Operation as O, Status};

    #[test]
    fn indices_behind_the_end_are_missing() {
        let (mut desk, a, _) = Desk::with_two();
        let list = desk.create(a, Kind::List, number(0).value("a").value("b"));
        let mut missing = |operation, body| {
            assert_eq!(desk.refused(a, operation, list, body), Status::Missing, "{operation:?}");
        };
        for index in [2, u64::MAX - 1] {
            missing(O::ListGet, number(index));
            missing(O::ListSet, number(index).value("x"));
            missing(O::ListInsert, number(index + 1).value("x"));
            missing(O::ListRemove, number(index));
            missing(O::ListUpdate, number(index).number(1).bytes(""));
        }
        missing(O::ListGet, number(u64::MAX));
        missing(O::ListRange, number(0).number(3));
        missing(O::ListRange, number(2).number(1));
        missing(O::ListSplice, number(3).number(3).value("x"));
        missing(O::ListFind, Body::new().value("c").number(0).number(u64::MAX));
        missing(O::ListFind, Body::new().value("a").number(5).number(u64::MAX));
        assert_eq!(desk.ask(a, O::Snapshot, list, Body::new()).texts(), ["a", "b"]);
        assert_eq!(desk.ask(a, O::ListRemove, list, number(u64::MAX)).texts(), ["b"]);
    }

    #[test]
    fn an_array_keeps_its_length() {
        let (mut desk, a, _) = Desk::with_two();
        let array = desk.create(a, Kind::List, number(1).value("a").value("b"));
        let version = desk.ask(a, O::Snapshot, array, Body::new()).done();
        for (operation, body) in [
            (O::ListExtend, Body::new().value("x")),
            (O::ListInsert, number(0).value("x")),
            (O::ListRemove, number(0)),
            (O::Clear, Body::new()),
            (O::ListSplice, number(0).number(1)),
            (O::ListReplace, number(version).value("x")),
        ] {
            assert_eq!(desk.refused(a, operation, array, body), Status::Refused, "{operation:?}");
        }
        desk.ask(a, O::ListSplice, array, number(0).number(1).value("c")).done();
        desk.ask(a, O::ListReverse, array, Body::new()).done();
        assert_eq!(desk.ask(a, O::ListSet, array, number(0).value("d")).texts(), ["b"]);
        let snapshot = desk.ask(a, O::Snapshot, array, Body::new());
        assert_eq!(snapshot.texts(), ["d", "c"]);
        let replace = number(snapshot.number).value("y").value("z");
        assert_eq!(desk.ask(a, O::ListReplace, array, replace.clone()).done(), 1);
        // The version is another one by now.
        assert_eq!(desk.ask(a, O::ListReplace, array, replace).done(), 0);
        assert_eq!(desk.ask(a, O::Snapshot, array, Body::new()).texts(), ["y", "z"]);
    }
    #[test]
    fn a_new_list_takes_no_more_memory_than_its_items_need() {
        let (mut desk, a, _) = Desk::with_two();
        for count in [0, 1, 2, 5, 9] {
            let body = (0..count).fold(number(0), |body, _| body.value("x"));
            let id = desk.create(a, Kind::List, body);
            let State::List(list) = &desk.core.objects.get(id).unwrap().state else {
                panic!("a list");
            };
            assert_eq!(list.items.capacity(), count);
        }
    }
}
