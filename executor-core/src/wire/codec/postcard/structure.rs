//! Reads structures: by position, where `Deserialize` asks for the fields as they were written, and
//! by names otherwise. A map is read as a structure if one is asked for.

use serde::{
    Deserialize,
    de::{self, DeserializeSeed, Visitor},
};

use super::{
    super::{
        access::{Fields as FieldNames, Name, is_derived, same_name},
        error::{self, Error},
    },
    deserializer::{Pairs, next_element},
    kind,
    reader::Reader,
    tables::{Asking, Known, Names},
};

/// The rest of a structure that is being read.
pub(super) struct Structure {
    at: usize,
    pub(super) left: usize,
    field: usize,
    is_first: bool,
}

impl<'de> Reader<'de> {
    #[inline]
    pub(super) fn names(&mut self) -> &mut Names<'de> {
        self.names.get(self.input.len())
    }

    /// Reads the head of a structure.
    #[inline]
    pub(super) fn structure(&mut self) -> Result<Structure, Error> {
        let number = self.varint()?;
        if number == 0 {
            return self.new_structure();
        }
        let at = (number - 1) as usize;
        match self.names().structs.get(at) {
            Some(Known { count, first, complete: true, .. }) => {
                Ok(Structure { at, left: *count, field: *first, is_first: false })
            }
            _ => self.fail(error::no_value("a structure of an unknown number")),
        }
    }

    fn new_structure(&mut self) -> Result<Structure, Error> {
        let count = self.count()?;
        let names = self.names();
        // Otherwise nested structures would each reserve what only one of them can have.
        let Some(fields_left) = names.fields_left.checked_sub(count) else {
            return self.fail(error::no_value("too many fields are announced"));
        };
        names.fields_left = fields_left;
        let first = names.fields.len();
        names.fields.resize(first + count, "");
        names.structs.push(Known { count, first, ..Known::default() });
        let at = names.structs.len() - 1;
        Ok(Structure { at, left: count, field: first, is_first: true })
    }

    /// Takes a name, if it is the expected one.
    #[inline]
    fn is_name(&mut self, expected: &str) -> bool {
        let rest = after_name(self.input, expected);
        self.input = rest.unwrap_or(self.input);
        rest.is_some()
    }

    /// Reads the name of the next field, which is probably `expected`.
    #[inline]
    pub(super) fn field(
        &mut self,
        structure: &mut Structure,
        expected: Option<&'static str>,
    ) -> Result<&'de str, Error> {
        structure.left -= 1;
        let at = structure.field;
        structure.field += 1;
        if structure.is_first {
            let name = match expected {
                // This is the same name, at an address where it need not be examined again: it is
                // UTF-8, and a comparison of addresses finds it equal.
                Some(expected) if self.is_name(expected) => expected,
                _ => self.text()?,
            };
            if let Some(place) = self.names().fields.get_mut(at) {
                *place = name;
            }
            return Ok(name);
        }
        match self.names().fields.get(at) {
            Some(name) => Ok(name),
            None => self.fail(error::no_value("a field without name")),
        }
    }

    /// Ends a structure after its last field.
    #[inline]
    pub(super) fn end(&mut self, structure: &Structure) {
        if structure.is_first
            && let Some(known) = self.names().structs.get_mut(structure.at)
        {
            known.complete = true;
        }
    }

    /// Returns whether this visitor, which asks for these fields, reads the structure by position.
    #[inline]
    fn is_by_position<V>(&mut self, structure: &Structure, list: &'static [&'static str]) -> bool {
        if structure.is_first {
            return false;
        }
        let names = self.names();
        let Some(known) = names.structs.get_mut(structure.at) else { return false };
        if known.asked == Asking::of::<V>(list) {
            return known.by_position && known.count == list.len();
        }
        let (first, count) = (known.first, known.count);
        let written = names.fields.get(first..first + count).unwrap_or_default();
        // All empty lists have the same address, so they would have to share one answer.
        let by_position = count == list.len()
            && count > 0
            && written.len() == count
            && written.iter().zip(list).all(|(written, name)| same_name(written, name))
            && is_derived::<V>();
        if let Some(known) = names.structs.get_mut(structure.at) {
            (known.asked, known.by_position) = (Asking::of::<V>(list), by_position);
        }
        by_position
    }

    /// Returns whether the next structure is of the same kind as the last one, and the same visitor
    /// asks for it. If so, takes its number.
    #[inline]
    fn is_another<V>(&mut self, list: &'static [&'static str]) -> bool {
        match (&self.names.0, self.input) {
            (Some(names), [number, rest @ ..])
                if *number != 0
                    && *number == names.last_number
                    && Asking::of::<V>(list) == names.last_asked =>
            {
                self.input = rest;
                true
            }
            _ => false,
        }
    }

    /// Returns whether the next structure is the first one of its type, consists of
    /// [`only_simple_fields`], and is read by position by this visitor. If so, takes the
    /// structure's number and the number of its fields.
    ///
    /// Such a structure gets no entry in the table, which would cost more than looking at its
    /// fields twice. So this is called only for the outermost structure: simple fields contain no
    /// other structure that could refer to an entry.
    #[inline]
    fn is_lone<V>(&mut self, list: &'static [&'static str]) -> bool {
        match self.input {
            [0, rest @ ..] if !list.is_empty() && is_derived::<V>() => {
                match only_simple_fields(rest, list) {
                    Some(rest) => {
                        self.input = rest;
                        true
                    }
                    None => false,
                }
            }
            _ => false,
        }
    }

    #[inline]
    pub(super) fn fields<V: Visitor<'de>>(
        &mut self,
        name: &'static str,
        list: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let result = self.nested(|reader| {
            // Another structure of the last kind, for the same visitor, needs no table at all.
            if !reader.is_another::<V>(list) {
                if reader.depth == 1 && reader.is_lone::<V>(list) {
                    let mut parts = Lone(Positions { reader, list, at: 0, name });
                    let result = visitor.visit_seq(&mut parts);
                    return parts.0.finish(result);
                }
                let structure = reader.structure()?;
                if !reader.is_by_position::<V>(&structure, list) {
                    return reader.by_name(structure, Some(FieldNames::new(name, list)), visitor);
                }
                let names = reader.names();
                names.last_asked = Asking::of::<V>(list);
                // 0 stands for the first structure of a type, so it never matches.
                names.last_number = match structure.at + 1 {
                    number @ ..0x80 => number as u8,
                    _ => 0,
                };
            }
            let mut parts = Positions { reader, list, at: 0, name };
            let result = visitor.visit_seq(&mut parts);
            parts.finish(result)
        });
        match result {
            Ok(value) => Ok(value),
            Err(error) => Err(error.of_type(name)),
        }
    }

    pub(super) fn by_name<V: Visitor<'de>>(
        &mut self,
        structure: Structure,
        names: Option<FieldNames<'de>>,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let hint = self.hint(structure.left);
        let mut named = Named { reader: self, structure, hint, names, field: "", value_due: false };
        let result = visitor.visit_map(&mut named);
        let unread = named.structure.left + usize::from(named.value_due);
        if unread != 0 {
            return named
                .reader
                .fail(result.err().unwrap_or_else(|| error::elements_unread(unread)));
        }
        named.reader.end(&named.structure);
        match &named.names {
            Some(names) => names.finish().and(result),
            None => result,
        }
    }

    pub(super) fn entries<V: Visitor<'de>>(
        &mut self,
        names: Option<FieldNames<'de>>,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let len = self.count()?;
        self.nested(|reader| {
            let hint = reader.hint(len);
            let mut pairs = Pairs { reader, left: len, hint, value_due: false, names, field: None };
            let result = visitor.visit_map(&mut pairs);
            let unread = pairs.left + usize::from(pairs.value_due);
            if unread != 0 {
                return pairs
                    .reader
                    .fail(result.err().unwrap_or_else(|| error::elements_unread(unread)));
            }
            match &pairs.names {
                Some(names) => names.finish().and(result),
                None => result,
            }
        })
    }
}

/// Checks a structure that begins with the number of its fields. Returns the position of the first
/// name, if the names are those of `list` in this order, and each value can be skipped without a
/// table.
fn only_simple_fields<'de>(input: &'de [u8], list: &[&str]) -> Option<&'de [u8]> {
    let [count, first @ ..] = input else { return None };
    if usize::from(*count) != list.len() || list.len() >= 0x80 {
        return None;
    }
    let mut rest = first;
    for name in list {
        let (kind, value) = after_name(rest, name)?.split_first()?;
        rest = match *kind {
            kind::BOOL | kind::U8 | kind::I8 => value.get(1..)?,
            kind::U16 | kind::U32 | kind::U64 | kind::I16 | kind::I32 | kind::I64 | kind::CHAR => {
                let last = value.iter().position(|byte| *byte < 0x80)?;
                value.get(last + 1..)?
            }
            kind::F32 => value.get(4..)?,
            kind::F64 => value.get(8..)?,
            kind::STR | kind::BYTES => match value {
                [len @ ..0x80, bytes @ ..] => bytes.get(usize::from(*len)..)?,
                _ => return None,
            },
            kind::NONE | kind::UNIT => value,
            _ => return None,
        };
    }
    Some(first)
}

/// Returns what follows this name, if `input` begins with it.
#[inline]
fn after_name<'de>(input: &'de [u8], name: &str) -> Option<&'de [u8]> {
    match input {
        [len @ ..0x80, rest @ ..] if usize::from(*len) == name.len() => {
            rest.strip_prefix(name.as_bytes())
        }
        _ => None,
    }
}

/// The fields of a structure, read by position.
struct Positions<'r, 'de> {
    reader: &'r mut Reader<'de>,
    list: &'static [&'static str],
    at: usize,
    name: &'static str,
}

impl<'de> Positions<'_, 'de> {
    #[inline(always)]
    fn finish<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        match self.list.len() - self.at {
            0 => result,
            // Unread fields would be taken for the next value.
            n => self.reader.fail(result.err().unwrap_or_else(|| error::elements_unread(n))),
        }
    }
}

impl<'de> de::SeqAccess<'de> for &mut Positions<'_, 'de> {
    type Error = Error;

    next_element!();

    #[inline(always)]
    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some(field) = self.list.get(self.at) else { return Ok(None) };
        self.at += 1;
        match self.reader.part(0, seed) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(error.of_part("field", field, self.name)),
        }
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.list.len() - self.at)
    }
}

/// The fields of a structure, read by position, with a name in front of each.
/// [`only_simple_fields`] has checked that each name is the one in the list.
struct Lone<'r, 'de>(Positions<'r, 'de>);

impl<'de> de::SeqAccess<'de> for &mut Lone<'_, 'de> {
    type Error = Error;

    next_element!();

    #[inline(always)]
    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Positions { reader, list, at, .. } = &mut self.0;
        if let Some(field) = list.get(*at) {
            // Skip the name. Its length takes one byte.
            reader.input = reader.input.get(1 + field.len()..).unwrap_or_default();
        }
        (&mut self.0).next_element_seed(seed)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.0.list.len() - self.0.at)
    }
}

/// The fields of a structure, read by name.
struct Named<'r, 'de> {
    reader: &'r mut Reader<'de>,
    structure: Structure,
    hint: usize,
    names: Option<FieldNames<'de>>,
    field: &'de str,
    value_due: bool,
}

impl<'de> de::MapAccess<'de> for &mut Named<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        if self.value_due {
            return self.reader.fail(error::elements_unread(1));
        }
        if self.structure.left == 0 {
            return Ok(None);
        }
        let expected = self.names.as_ref().and_then(FieldNames::expected);
        let field = self.reader.field(&mut self.structure, expected)?;
        (self.field, self.value_due) = (field, true);
        if let Some(names) = &mut self.names {
            names.hand(field);
        }
        seed.deserialize(Name { name: field, index: None }).map(Some)
    }

    #[inline]
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        if !std::mem::take(&mut self.value_due) {
            return self.reader.fail(error::reads_nothing());
        }
        match self.reader.part(0, seed) {
            Ok(value) => Ok(value),
            Err(error) => Err(match &self.names {
                Some(names) => error.of_part("field", self.field, names.name),
                None => error,
            }),
        }
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.structure.left.min(self.hint))
    }
}
