//! A map from keys to values, in the order of insertion, as Python's `dict`.

use std::sync::Arc;

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
    pub(super) fn update<'a>(&self, mut fields: Fields<'a>) -> Result<Update<'a>, Refusal> {
        let (key, function) = (fields.bytes()?, fields.number()?);
        let (optional, arguments) = (fields.flag()?, fields.bytes()?);
        fields.end()?;
        let current = self.entries.get(key).map(|value| Arc::clone(&value.bytes));
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
