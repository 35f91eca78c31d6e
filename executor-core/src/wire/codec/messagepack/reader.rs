//! Reads MessagePack: heads, lengths, levels, and the contents of lists and maps.

use std::any::type_name;

use serde::{
    Deserialize,
    de::{DeserializeSeed, Visitor},
};

use super::{
    super::{
        STACK_LEFT_MIN,
        access::{Fields as FieldNames, keeps_for_later},
        enter,
        error::{self, Error},
    },
    I128, SOMES, U128,
    deserializer::{Pairs, Parts},
};
use crate::os::stack;

/// The next value, complete except for bytes, elements and entries.
#[derive(Clone, Copy)]
pub(super) enum ValueHead {
    Nil,
    /// A nil with this many `Some`s around it.
    Somes(u16),
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    U128(u128),
    I128(i128),
    F32(f32),
    F64(f64),
    Str(usize),
    Bytes(usize),
    Array(usize),
    Map(usize),
}

impl ValueHead {
    fn name(self) -> &'static str {
        match self {
            ValueHead::Nil => "a None or a unit",
            ValueHead::Somes(_) => "a Some",
            ValueHead::Bool(_) => "a bool",
            ValueHead::Unsigned(_)
            | ValueHead::Signed(_)
            | ValueHead::U128(_)
            | ValueHead::I128(_) => "an integer",
            ValueHead::F32(_) => "an f32",
            ValueHead::F64(_) => "an f64",
            ValueHead::Str(_) => "a str",
            ValueHead::Bytes(_) => "bytes",
            ValueHead::Array(_) => "a sequence or a tuple",
            ValueHead::Map(_) => "a map, a struct or a variant",
        }
    }
}

/// A level whose type asks what comes next counts as this many levels of depth.
///
/// It is mostly serde that asks. It keeps the value and reads it again (`untagged`, `tag`,
/// `flatten`). The second reading does not count its depth, and its stack frames are larger. With
/// this factor the limit is a depth of 128, as in `serde_json`.
const LEVELS_ASKED: usize = 4;

/// Bytes of stack that one such level takes when it is read again, in a debug build.
const STACK_ASKED: usize = 8 * 1024;

/// How many elements may be kept for later, for each byte of the message.
///
/// serde keeps an element or an entry in 32 or 64 bytes, however short it is in the message. A type
/// that contains itself copies it once for each level that it is in. So the count of elements is
/// multiplied by their level. A higher value would let a few kilobytes claim all memory. A lower
/// value would refuse lists of lists of numbers.
const KEPT_PER_BYTE: usize = 16;

/// How many elements may be kept for any message, however short. At 32 bytes each, this is 8 MiB.
const KEPT_MIN: usize = 1 << 18;

/// Reads values, one after the other.
pub struct Reader<'de> {
    pub(super) input: &'de [u8],
    depth: usize,
    /// How many of the levels asked what comes next.
    asked: usize,
    /// The head of the next value, if it was taken already.
    pub(super) pending: Option<ValueHead>,
    /// Whether a value was left in its middle. Then nothing that follows can be trusted.
    failed: bool,
    /// How many more elements may be announced to visitors. Visitors allocate memory for announced
    /// elements before these exist; each element takes at least one byte. The whole value has one
    /// budget. Otherwise nested lists would each reserve what only one of them can have.
    unhinted: usize,
    /// How many more elements may be kept, see [`KEPT_PER_BYTE`].
    keepable: usize,
    /// Whether the next value is a key of a map, and not of a structure.
    pub(super) any_key: bool,
}

impl<'de> Reader<'de> {
    pub(in super::super) fn new(input: &'de [u8]) -> Self {
        Reader {
            input,
            depth: 0,
            asked: 0,
            pending: None,
            failed: false,
            unhinted: 0,
            keepable: 0,
            any_key: false,
        }
    }

    pub(in super::super) fn remaining(&self) -> usize {
        self.input.len()
    }

    /// Reads one value: what one writer wrote.
    pub(in super::super) fn value<T: Deserialize<'de>>(&mut self) -> Result<T, Error> {
        self.depth = 0;
        self.asked = 0;
        self.unhinted = self.input.len();
        self.keepable = self.input.len().saturating_mul(KEPT_PER_BYTE).max(KEPT_MIN);
        let value = self.part(None, std::marker::PhantomData)?;
        if self.failed { Err(error::swallowed()) } else { Ok(value) }
    }

    /// Returns the number of elements for which a visitor may allocate memory before they are read.
    fn hint(&mut self, len: usize) -> usize {
        let hint = len.min(self.unhinted);
        self.unhinted -= hint;
        hint
    }

    /// Returns an error in the middle of a value, and marks the reader as failed.
    #[cold]
    pub(super) fn fail<T>(&mut self, error: Error) -> Result<T, Error> {
        self.failed = true;
        Err(error)
    }

    /// Reads a part of the value. `head` is its head, if that does not stand in front of it.
    pub(super) fn part<T: DeserializeSeed<'de>>(
        &mut self,
        head: Option<ValueHead>,
        seed: T,
    ) -> Result<T::Value, Error> {
        let before = self.input.len();
        let is_given = head.is_some();
        self.pending = head;
        match seed.deserialize(&mut *self) {
            // Each value takes at least one byte, or its head was given.
            Ok(value) if self.pending.is_none() && (is_given || self.input.len() != before) => {
                Ok(value)
            }
            Ok(_) => self.fail(error::reads_nothing().of_value(type_name::<T::Value>())),
            Err(error) => Err(error.of_value(type_name::<T::Value>())),
        }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        match self.input.split_first_chunk() {
            Some((bytes, rest)) => {
                self.input = rest;
                Ok(*bytes)
            }
            None => self.fail(error::ends_early()),
        }
    }

    pub(super) fn head(&mut self) -> Result<ValueHead, Error> {
        match self.pending.take() {
            Some(head) => Ok(head),
            None => self.marker(),
        }
    }

    fn marker(&mut self) -> Result<ValueHead, Error> {
        let [marker] = self.array()?;
        let head = match marker {
            0x00..=0x7f => ValueHead::Unsigned(marker.into()),
            0x80..=0x8f => return self.announced(ValueHead::Map, 2, u32::from(marker & 0x0f)),
            0x90..=0x9f => return self.announced(ValueHead::Array, 1, u32::from(marker & 0x0f)),
            0xa0..=0xbf => return self.announced(ValueHead::Str, 1, u32::from(marker & 0x1f)),
            0xc0 => ValueHead::Nil,
            0xc2 => ValueHead::Bool(false),
            0xc3 => ValueHead::Bool(true),
            0xc4 | 0xd9 => {
                let [len] = self.array()?;
                return self.announced(
                    if marker == 0xc4 { ValueHead::Bytes } else { ValueHead::Str },
                    1,
                    len.into(),
                );
            }
            0xc5 | 0xda | 0xdc | 0xde => {
                let len = self.array().map(u16::from_be_bytes)?.into();
                return match marker {
                    0xc5 => self.announced(ValueHead::Bytes, 1, len),
                    0xda => self.announced(ValueHead::Str, 1, len),
                    0xdc => self.announced(ValueHead::Array, 1, len),
                    _ => self.announced(ValueHead::Map, 2, len),
                };
            }
            0xc6 | 0xdb | 0xdd | 0xdf => {
                let len = self.array().map(u32::from_be_bytes)?;
                return match marker {
                    0xc6 => self.announced(ValueHead::Bytes, 1, len),
                    0xdb => self.announced(ValueHead::Str, 1, len),
                    0xdd => self.announced(ValueHead::Array, 1, len),
                    _ => self.announced(ValueHead::Map, 2, len),
                };
            }
            0xca => ValueHead::F32(self.array().map(f32::from_be_bytes)?),
            0xcb => ValueHead::F64(self.array().map(f64::from_be_bytes)?),
            0xcc => ValueHead::Unsigned(self.array().map(u8::from_be_bytes)?.into()),
            0xcd => ValueHead::Unsigned(self.array().map(u16::from_be_bytes)?.into()),
            0xce => ValueHead::Unsigned(self.array().map(u32::from_be_bytes)?.into()),
            0xcf => ValueHead::Unsigned(self.array().map(u64::from_be_bytes)?),
            0xd0 => ValueHead::Signed(self.array().map(i8::from_be_bytes)?.into()),
            0xd1 => ValueHead::Signed(self.array().map(i16::from_be_bytes)?.into()),
            0xd2 => ValueHead::Signed(self.array().map(i32::from_be_bytes)?.into()),
            0xd3 => ValueHead::Signed(self.array().map(i64::from_be_bytes)?),
            0xd5 => match self.array()? {
                [SOMES, high, low] if high | low != 0 => {
                    ValueHead::Somes(u16::from_be_bytes([high, low]))
                }
                _ => return self.fail(error::no_value("an unknown extension")),
            },
            0xd8 => {
                let [which] = self.array()?;
                let bytes = self.array()?;
                match which {
                    U128 => ValueHead::U128(u128::from_be_bytes(bytes)),
                    I128 => ValueHead::I128(i128::from_be_bytes(bytes)),
                    _ => return self.fail(error::no_value("an unknown extension")),
                }
            }
            0xe0..=0xff => ValueHead::Signed((marker as i8).into()),
            _ => return self.fail(error::no_value("an unknown marker")),
        };
        Ok(head)
    }

    /// Returns a head with a length, for items that take at least `each` bytes. More items than the
    /// rest of the message can contain are an error.
    fn announced(
        &mut self,
        head: fn(usize) -> ValueHead,
        each: usize,
        len: u32,
    ) -> Result<ValueHead, Error> {
        let follow = self.input.len();
        match usize::try_from(len) {
            Ok(count) if count <= follow / each => Ok(head(count)),
            _ => self.fail(error::announced(len.into(), follow)),
        }
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'de [u8], Error> {
        match self.input.split_at_checked(len) {
            Some((bytes, rest)) => {
                self.input = rest;
                Ok(bytes)
            }
            None => self.fail(error::ends_early()),
        }
    }

    pub(super) fn text(&mut self, len: usize) -> Result<&'de str, Error> {
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes).or_else(|_| self.fail(error::no_value("a text is not UTF-8")))
    }

    pub(super) fn nested<T>(
        &mut self,
        visit: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if let Err(error) = enter(&mut self.depth) {
            return self.fail(error);
        }
        let result = visit(self);
        self.depth -= 1;
        result
    }

    /// Enters a level that asks what comes next. It counts as [`LEVELS_ASKED`] levels. It must
    /// leave enough stack to read all levels around it again.
    pub(super) fn asked<T>(
        &mut self,
        visit: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.asked += 1;
        self.depth += LEVELS_ASKED - 1;
        if let Some(left) = stack::left()
            && left < STACK_LEFT_MIN + self.asked * STACK_ASKED
        {
            return self.fail(Error::new(format!(
                "the value is nested too deep for this thread's stack: {left} bytes are left of it at a depth of {}, and a type \
                 with `untagged`, `tag` or `flatten` is read twice",
                self.depth
            )));
        }
        let result = visit(self);
        self.depth -= LEVELS_ASKED - 1;
        self.asked -= 1;
        result
    }

    /// Counts elements or entries that are kept for later, at the level that [`asked`](Self::asked)
    /// enters.
    pub(super) fn keep<V>(&mut self, len: usize) -> Result<(), Error> {
        if !keeps_for_later::<V>() {
            return Ok(());
        }
        match self.keepable.checked_sub(len.saturating_mul(self.asked + 1)) {
            Some(left) => {
                self.keepable = left;
                Ok(())
            }
            None => self.fail(Error::new(format!(
                "the value would take too much memory: a type with `untagged`, `tag` or `flatten` is kept before it is read, \
                 once for each level that it is nested in, and it has too many elements at a depth of {}",
                self.asked + 1
            ))),
        }
    }

    #[cold]
    pub(super) fn differs<T>(&mut self, written: ValueHead, asked: &str) -> Result<T, Error> {
        self.fail(Error::differs(written.name(), asked))
    }

    pub(super) fn elements<V: Visitor<'de>>(
        &mut self,
        len: usize,
        are_bytes: bool,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.nested(|reader| {
            let mut parts = Parts { hint: reader.hint(len), reader, left: len, are_bytes };
            let result = visitor.visit_seq(&mut parts);
            match parts.left {
                0 => result,
                // Unread elements would be taken for the next value.
                n => parts.reader.fail(result.err().unwrap_or_else(|| error::elements_unread(n))),
            }
        })
    }

    pub(super) fn tuple<V: Visitor<'de>>(
        &mut self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let (written, are_bytes) = match self.head()? {
            ValueHead::Array(written) => (written, false),
            ValueHead::Bytes(written) => (written, true),
            other => return self.differs(other, "a tuple"),
        };
        match written == len {
            true => self.elements(len, are_bytes, visitor),
            false => self.fail(Error::differs(
                &format!("a sequence or a tuple of {written}"),
                &format!("a tuple of {len}"),
            )),
        }
    }

    pub(super) fn entries<V: Visitor<'de>>(
        &mut self,
        len: usize,
        names: Option<FieldNames<'de>>,
        visitor: V,
    ) -> Result<V::Value, Error> {
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

    pub(super) fn fields<V: Visitor<'de>>(
        &mut self,
        name: &'static str,
        list: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let result = match self.head()? {
            ValueHead::Map(len) => self.entries(len, Some(FieldNames::new(name, list)), visitor),
            other => self.differs(other, "a struct"),
        };
        result.map_err(|error| error.of_type(name))
    }

    /// Takes the next value and drops it.
    ///
    /// It does not use the depth, because a tuple variant is one level when it is written and would
    /// look like two here. It needs no recursion either: it only counts the values that are left.
    pub(super) fn skip(&mut self) -> Result<(), Error> {
        let mut left = 1_usize;
        while left > 0 {
            left -= 1;
            match self.head()? {
                ValueHead::Str(len) | ValueHead::Bytes(len) => drop(self.take(len)?),
                ValueHead::Array(len) => left = left.saturating_add(len),
                ValueHead::Map(len) => left = left.saturating_add(len.saturating_mul(2)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads the contents of a variant. They are on the variant's own level, because the writer
    /// counts one level for both.
    pub(super) fn within<T>(
        &mut self,
        visit: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.depth -= 1;
        let result = visit(self);
        self.depth += 1;
        result
    }
}
