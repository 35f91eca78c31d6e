//! A map from keys to values, in the order of insertion, as Python's `dict`.

use super::{
    actions::{Outcome, Refusal},
    ordered::{Ordered, write_page},
    turn::{Names, Stored, Turn},
    updates::{Target, Update},
};
use crate::manager::protocol::{Fields, Operation, Status, ValueField};

/// A map. A value that is overwritten keeps its place.
#[derive(Debug, Default)]
pub(super) struct Map {
    entries: Ordered<Stored>,
    /// Goes up by one with each change.
    version: u64,
}

/// Reads a value that may be absent: a number 0, or 1 and the value.
fn optional<'a>(
    fields: &mut Fields<'a>,
    value: impl FnOnce(&mut Fields<'a>) -> Result<ValueField<'a>, Refusal>,
) -> Result<Option<ValueField<'a>>, Refusal> {
    if fields.flag()? { value(fields).map(Some) } else { Ok(None) }
}

impl Map {
    pub(super) fn create(fields: Fields<'_>) -> Result<Self, Refusal> {
        fields.end()?;
        Ok(Map::default())
    }

    pub(super) fn request(
        &mut self,
        operation: Operation,
        mut fields: Fields<'_>,
        turn: &mut Turn<'_>,
    ) -> Outcome {
        match operation {
            Operation::MapGet => {
                let key = fields.bytes()?;
                fields.end()?;
                turn.write(self.entries.get(key).ok_or(Status::Missing)?);
                Ok(0)
            }
            Operation::MapInsert => {
                let key = fields.bytes()?;
                let value = turn.value(&mut fields)?;
                fields.end()?;
                let value = turn.keep(value);
                let previous = self.insert(key, value).ok_or(Status::Missing)?;
                turn.write(&previous);
                turn.lose(&previous);
                Ok(0)
            }
            Operation::MapExtend => self.extend(fields, turn),
            Operation::MapRemove => {
                let key = fields.bytes()?;
                fields.end()?;
                let value = self.entries.remove(key).ok_or(Status::Missing)?;
                self.version += 1;
                turn.write(&value);
                turn.lose(&value);
                Ok(0)
            }
            Operation::MapContains => {
                let key = fields.bytes()?;
                fields.end()?;
                Ok(u64::from(self.entries.contains(key)))
            }
            Operation::MapGetOrInsert => {
                let key = fields.bytes()?;
                let value = turn.value(&mut fields)?;
                fields.end()?;
                if let Some(value) = self.entries.get(key) {
                    turn.write(value);
                    return Ok(0);
                }
                let value = turn.keep(value);
                turn.write(&value);
                self.insert(key, value);
                Ok(1)
            }
            Operation::MapPop => {
                fields.end()?;
                let (key, value) = self.entries.pop().ok_or(Status::Missing)?;
                self.version += 1;
                turn.write_bytes(&key);
                turn.write(&value);
                turn.lose(&value);
                Ok(0)
            }
            Operation::MapCompareExchange => self.compare_exchange(fields, turn),
            Operation::MapGetMany => {
                let mut keys = Vec::new();
                while !fields.is_empty() {
                    keys.push(fields.bytes()?);
                }
                for key in keys {
                    let value = self.entries.get(key);
                    turn.write_number(u64::from(value.is_some()));
                    value.into_iter().for_each(|value| turn.write(value));
                }
                Ok(0)
            }
            Operation::Len => {
                fields.end()?;
                Ok(self.entries.len() as u64)
            }
            Operation::Clear => {
                fields.end()?;
                self.entries.iter().for_each(|(_, value)| turn.lose(value));
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
                    |(key, value)| 4 + key.len() + value.encoded_len(),
                    |(key, value)| {
                        turn.write_bytes(key);
                        turn.write(value);
                    },
                ))
            }
            Operation::Snapshot => {
                fields.end()?;
                for (key, value) in self.entries.iter() {
                    turn.write_bytes(key);
                    turn.write(value);
                }
                Ok(self.version)
            }
            _ => Err(Status::WrongKind.into()),
        }
    }

    /// Puts a value in its place. Returns the previous one.
    fn insert(&mut self, key: &[u8], value: Stored) -> Option<Stored> {
        self.version += 1;
        if let Some(place) = self.entries.get_mut(key) {
            return Some(std::mem::replace(place, value));
        }
        self.entries.push(key.into(), value);
        None
    }

    fn extend(&mut self, mut fields: Fields<'_>, turn: &mut Turn<'_>) -> Outcome {
        let mut pairs = Vec::new();
        while !fields.is_empty() {
            pairs.push((fields.bytes()?, turn.value(&mut fields)?));
        }
        for (key, value) in pairs {
            let value = turn.keep(value);
            if let Some(previous) = self.insert(key, value) {
                turn.lose(&previous);
            }
        }
        Ok(0)
    }

    fn compare_exchange(&mut self, mut fields: Fields<'_>, turn: &mut Turn<'_>) -> Outcome {
        let key = fields.bytes()?;
        let expected = optional(&mut fields, |fields| Ok(fields.value()?))?;
        let value = optional(&mut fields, |fields| turn.value(fields))?;
        fields.end()?;
        let current = self.entries.get(key);
        if current.map(|value| &*value.bytes) != expected.map(|value| value.bytes) {
            turn.write(current.ok_or(Status::Missing)?);
            return Ok(0);
        }
        let previous = match value {
            Some(value) => {
                let value = turn.keep(value);
                self.insert(key, value)
            }
            None => self.entries.remove(key).inspect(|_| self.version += 1),
        };
        previous.iter().for_each(|value| turn.lose(value));
        Ok(1)
    }

    /// Reads a request for an update.
    pub(super) fn update<'a>(
        &self,
        mut fields: Fields<'a>,
        turn: &Turn<'_>,
    ) -> Result<Update<'a>, Refusal> {
        let (key, function) = (fields.bytes()?, fields.number()?);
        let (optional, arguments) = (fields.flag()?, turn.value(&mut fields)?);
        fields.end()?;
        let current = self.entries.get(key).cloned();
        if current.is_none() && !optional {
            return Err(Status::Missing.into());
        }
        Ok(Update { target: Target::Key(key.into()), function, optional, current, arguments })
    }

    /// Puts the value that a function has returned in its place.
    pub(super) fn updated(&mut self, key: &[u8], value: Stored, turn: &mut Turn<'_>) {
        if let Some(previous) = self.insert(key, value) {
            turn.lose(&previous);
        }
    }

    pub(super) fn each_names(&self, mut each: impl FnMut(&Names)) {
        self.entries.iter().for_each(|(_, value)| each(&value.names));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Body, Desk, number};
    use crate::manager::protocol::{Kind, Operation as O, Status};

    #[test]
    fn a_value_that_is_overwritten_keeps_its_place() {
        let (mut desk, a, _) = Desk::with_two();
        let map = desk.create(a, Kind::Map, Body::new());
        let insert = |key: &str, value: &str| Body::new().bytes(key).value(value);
        assert_eq!(desk.refused(a, O::MapInsert, map, insert("x", "1")), Status::Missing);
        assert_eq!(desk.refused(a, O::MapInsert, map, insert("y", "2")), Status::Missing);
        let previous = desk.ask(a, O::MapInsert, map, insert("x", "3"));
        assert_eq!(previous.texts(), ["1"]);
        assert_eq!(desk.ask(a, O::Snapshot, map, Body::new()).texts(), ["x", "3", "y", "2"]);
        assert_eq!(desk.ask(a, O::MapPop, map, Body::new()).texts(), ["y", "2"]);
        let key = |key: &str| Body::new().bytes(key);
        assert_eq!(desk.ask(a, O::MapContains, map, key("y")).done(), 0);
        assert_eq!(desk.refused(a, O::MapGet, map, key("y")), Status::Missing);
        assert_eq!(desk.ask(a, O::MapGet, map, key("x")).texts(), ["3"]);
        assert_eq!(desk.ask(a, O::MapRemove, map, key("x")).texts(), ["3"]);
        assert_eq!(desk.refused(a, O::MapRemove, map, key("x")), Status::Missing);
        assert_eq!(desk.refused(a, O::MapPop, map, Body::new()), Status::Missing);
        assert_eq!(desk.ask(a, O::Len, map, Body::new()).done(), 0);
    }

    #[test]
    fn values_of_several_keys_come_in_the_order_of_the_keys() {
        let (mut desk, a, _) = Desk::with_two();
        let map = desk.create(a, Kind::Map, Body::new());
        let pairs = Body::new().bytes("x").value("1").bytes("y").value("2").bytes("x").value("3");
        desk.ask(a, O::MapExtend, map, pairs).done();
        let keys = Body::new().bytes("y").bytes("z").bytes("x");
        let expected = number(1).value("2").number(0).number(1).value("3");
        assert_eq!(desk.ask(a, O::MapGetMany, map, keys).body, expected.0);
        let there = desk.ask(a, O::MapGetOrInsert, map, Body::new().bytes("x").value("4"));
        assert_eq!((there.done(), there.texts()), (0, vec!["3"]));
        let inserted = desk.ask(a, O::MapGetOrInsert, map, Body::new().bytes("z").value("4"));
        assert_eq!((inserted.done(), inserted.texts()), (1, vec!["4"]));
    }

    #[test]
    fn an_exchange_happens_only_if_the_expected_value_is_there() {
        let (mut desk, a, _) = Desk::with_two();
        let map = desk.create(a, Kind::Map, Body::new());
        let exchange = |expected: Option<&str>, value: Option<&str>| {
            [expected, value].into_iter().fold(Body::new().bytes("k"), |body, value| match value {
                None => body.number(0),
                Some(value) => body.number(1).value(value),
            })
        };
        let mut ask = |expected, value| {
            let answer = desk.ask(a, O::MapCompareExchange, map, exchange(expected, value));
            (answer.status, answer.number, answer.texts().concat())
        };
        let done = |number, there: &str| (Status::Done, number, there.to_owned());
        assert_eq!(ask(Some("1"), Some("2")), (Status::Missing, 0, String::new()));
        assert_eq!(ask(None, Some("1")), done(1, ""));
        assert_eq!(ask(None, Some("2")), done(0, "1"));
        assert_eq!(ask(Some("2"), None), done(0, "1"));
        assert_eq!(ask(Some("1"), Some("2")), done(1, ""));
        assert_eq!(ask(Some("2"), None), done(1, ""));
        assert_eq!(ask(None, None), done(1, ""));
    }

    #[test]
    fn a_request_for_another_kind_or_garbage_changes_nothing() {
        let (mut desk, a, b) = Desk::with_two();
        let map = desk.create(a, Kind::Map, Body::new());
        desk.send(a, O::MapInsert, map, Body::new().bytes("k").value("v"));
        assert_eq!(desk.refused(a, O::ListGet, map, number(0)), Status::WrongKind);
        assert_eq!(desk.refused(a, O::CellUpdate, map, Body::new()), Status::WrongKind);
        assert_eq!(desk.refused(a, O::MapInsert, map, Body::new().bytes("k")), Status::Malformed);
        let half = Body::new().bytes("k").value("w").bytes("l");
        assert_eq!(desk.refused(a, O::MapExtend, map, half), Status::Malformed);
        assert_eq!(desk.refused(b, O::MapGet, map, Body::new().bytes("k")), Status::NoObject);
        assert_eq!(desk.ask(a, O::Snapshot, map, Body::new()).texts(), ["k", "v"]);
    }

    #[test]
    fn the_version_changes_with_each_change() {
        let (mut desk, a, _) = Desk::with_two();
        let map = desk.create(a, Kind::Map, Body::new());
        let mut last = desk.ask(a, O::Snapshot, map, Body::new()).done();
        for (operation, body) in [
            (O::MapInsert, Body::new().bytes("k").value("v")),
            (O::MapInsert, Body::new().bytes("k").value("w")),
            (O::MapExtend, Body::new().bytes("l").value("w")),
            (O::MapRemove, Body::new().bytes("k")),
            (O::MapPop, Body::new()),
            (O::MapGetOrInsert, Body::new().bytes("k").value("v")),
            (O::MapCompareExchange, Body::new().bytes("k").number(1).value("v").number(0)),
            (O::Clear, Body::new()),
        ] {
            desk.ask(a, operation, map, body);
            let version = desk.ask(a, O::Snapshot, map, Body::new()).done();
            assert!(version > last, "{operation:?}");
            last = version;
        }
        desk.ask(a, O::MapContains, map, Body::new().bytes("k"));
        assert_eq!(desk.ask(a, O::Snapshot, map, Body::new()).done(), last);
    }
}
