//! Reads values: kinds, numbers and texts, lengths, levels, lists and variants.

use std::any::type_name;

use serde::{
    Deserialize,
    de::{DeserializeSeed, Visitor},
};

use super::{
    super::{
        access::check_variant,
        enter,
        error::{self, Error},
    },
    deserializer::Parts,
    kind,
    tables::{KnownVariant, Table},
    unzigzag,
};

/// Reads values, one after the other.
pub struct Reader<'de> {
    pub(super) input: &'de [u8],
    pub(super) depth: usize,
    /// The kind of the next value, if it does not stand in front of the value, or was taken
    /// already. Otherwise 0.
    pub(super) pending: u8,
    /// Whether a value was left in its middle. Then nothing that follows can be trusted.
    failed: bool,
    /// How many more elements may be announced to visitors. Visitors allocate memory for announced
    /// elements before these exist; each element takes at least one byte. The whole value has one
    /// budget. Otherwise nested lists would each reserve what only one of them can have.
    unhinted: usize,
    pub(super) names: Table<'de>,
}

impl<'de> Reader<'de> {
    #[inline]
    pub(in super::super) fn new(input: &'de [u8]) -> Self {
        Reader { input, depth: 0, pending: 0, failed: false, unhinted: 0, names: Table(None) }
    }

    #[inline]
    pub(in super::super) fn remaining(&self) -> usize {
        self.input.len()
    }

    /// Reads one value: what one writer wrote.
    #[inline]
    pub(in super::super) fn value<T: Deserialize<'de>>(&mut self) -> Result<T, Error> {
        if kind::of_simple::<T>() != kind::EACH {
            // The visitor of such a type is Rust's own. It reads one kind or returns an error. So
            // it needs no table, no depth and no hints, and what it did need not be checked.
            debug_assert_eq!(self.pending, kind::EACH, "the value before was read");
            return T::deserialize(&mut *self).map_err(|error| error.of_value(type_name::<T>()));
        }
        // The numbers of the previous value mean nothing in this one.
        if self.names.0.is_some() {
            self.names = Table(None);
        }
        self.depth = 0;
        self.unhinted = self.input.len();
        let value = self.part(0, std::marker::PhantomData)?;
        if self.failed { Err(error::swallowed()) } else { Ok(value) }
    }

    /// Returns the number of elements for which a visitor may allocate memory before they are read.
    #[inline]
    pub(super) fn hint(&mut self, len: usize) -> usize {
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

    /// Reads a part of the value. `kind` is its kind, if the kind does not stand in front of it.
    #[inline]
    pub(super) fn part<T: DeserializeSeed<'de>>(
        &mut self,
        kind: u8,
        seed: T,
    ) -> Result<T::Value, Error> {
        let before = self.input.len();
        self.pending = kind;
        match seed.deserialize(&mut *self) {
            // Each value takes at least one byte.
            Ok(value) if self.pending == 0 && self.input.len() != before => Ok(value),
            Ok(_) => self.fail(error::reads_nothing().of_value(type_name::<T::Value>())),
            Err(error) => Err(error.of_value(type_name::<T::Value>())),
        }
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        match self.input.split_first_chunk() {
            Some((bytes, rest)) => {
                self.input = rest;
                Ok(*bytes)
            }
            None => self.fail(error::ends_early()),
        }
    }

    #[inline]
    pub(super) fn take(&mut self, len: u64) -> Result<&'de [u8], Error> {
        match usize::try_from(len).ok().and_then(|len| self.input.split_at_checked(len)) {
            Some((bytes, rest)) => {
                self.input = rest;
                Ok(bytes)
            }
            None => {
                let follow = self.input.len();
                self.fail(error::announced(len, follow))
            }
        }
    }

    /// Returns whether the next value is of this kind. If it is, takes the kind.
    #[inline]
    pub(super) fn is_next(&mut self, kind: u8) -> bool {
        match self.input {
            _ if self.pending == kind => {
                self.pending = 0;
                true
            }
            [first, rest @ ..] if self.pending == 0 && *first == kind => {
                self.input = rest;
                true
            }
            _ => false,
        }
    }

    /// Takes the kind of the next value.
    #[inline]
    pub(super) fn kind(&mut self) -> Result<u8, Error> {
        match std::mem::take(&mut self.pending) {
            0 => self.array().map(|[kind]| kind),
            kind => Ok(kind),
        }
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, Error> {
        match self.input {
            [byte, rest @ ..] if *byte < 0x80 => {
                self.input = rest;
                Ok(u64::from(*byte))
            }
            _ => self.long(),
        }
    }

    fn long(&mut self) -> Result<u64, Error> {
        // Up to eight bytes, if there are eight to load: the first byte without the highest bit is
        // the last one.
        if let Some(bytes) = self.input.first_chunk() {
            let word = u64::from_le_bytes(*bytes);
            let last = !word & 0x8080_8080_8080_8080;
            if last != 0 {
                let len = last.trailing_zeros() / 8 + 1;
                let word = word & (u64::MAX >> (u64::BITS - 8 * len)) & 0x7f7f_7f7f_7f7f_7f7f;
                // Bring the bits together: four parts of 14 bits, then two of 28, then one.
                let word = (word & 0x7f00_7f00_7f00_7f00) >> 1 | (word & 0x007f_007f_007f_007f);
                let word = (word & 0x3fff_0000_3fff_0000) >> 2 | (word & 0x0000_3fff_0000_3fff);
                let word = (word & 0x0fff_ffff_0000_0000) >> 4 | (word & 0x0fff_ffff);
                self.input = &self.input[len as usize..];
                return Ok(word);
            }
        }
        let mut value = 0;
        for (at, byte) in self.input.iter().enumerate().take(10) {
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has only one bit left of the 64.
            if at == 9 && bits > 1 {
                break;
            }
            value |= bits << (7 * at);
            if *byte < 0x80 {
                self.input = &self.input[at + 1..];
                return Ok(value);
            }
        }
        match self.input.len() < 10 {
            true => self.fail(error::ends_early()),
            false => self.fail(error::no_value("a number is too large")),
        }
    }

    pub(super) fn huge(&mut self) -> Result<u128, Error> {
        let mut value = 0_u128;
        for at in 0..19 {
            let [byte] = self.array()?;
            let bits = u128::from(byte & 0x7f);
            let shifted = bits << (7 * at);
            // The number has more than 128 bits.
            if shifted >> (7 * at) != bits {
                break;
            }
            value |= shifted;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        self.fail(error::no_value("a number is too large"))
    }

    #[inline]
    pub(super) fn unsigned<T: TryFrom<u64>>(&mut self) -> Result<T, Error> {
        let value = self.varint()?;
        T::try_from(value).or_else(|_| self.fail(error::no_value("a number is too large")))
    }

    #[inline]
    pub(super) fn signed<T: TryFrom<i64>>(&mut self) -> Result<T, Error> {
        let value = self.varint().map(unzigzag)?;
        T::try_from(value).or_else(|_| self.fail(error::no_value("a number is too large")))
    }

    pub(super) fn unsigned_huge(&mut self) -> Result<u128, Error> {
        self.huge()
    }

    pub(super) fn signed_huge(&mut self) -> Result<i128, Error> {
        let value = self.huge()?;
        Ok((value >> 1) as i128 ^ -((value & 1) as i128))
    }

    #[inline]
    pub(super) fn boolean(&mut self) -> Result<bool, Error> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => self.fail(error::no_value("a bool is 0 or 1")),
        }
    }

    #[inline]
    pub(super) fn letter(&mut self) -> Result<char, Error> {
        let value = self.varint()?;
        match u32::try_from(value).ok().and_then(char::from_u32) {
            Some(letter) => Ok(letter),
            None => self.fail(error::no_value("a char is none")),
        }
    }

    #[inline]
    pub(super) fn bytes(&mut self) -> Result<&'de [u8], Error> {
        let len = self.varint()?;
        self.take(len)
    }

    #[inline]
    pub(super) fn text(&mut self) -> Result<&'de str, Error> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).or_else(|_| self.fail(error::no_value("a text is not UTF-8")))
    }

    /// Reads the number of items, each of which takes at least one byte.
    #[inline]
    pub(super) fn count(&mut self) -> Result<usize, Error> {
        let len = self.varint()?;
        let follow = self.input.len();
        match usize::try_from(len) {
            Ok(len) if len <= follow => Ok(len),
            _ => self.fail(error::announced(len, follow)),
        }
    }

    /// Reads the number of elements of a sequence, and the kind that stands in front of them.
    #[inline]
    pub(super) fn sequence(&mut self) -> Result<(usize, u8), Error> {
        match self.count()? {
            0 => Ok((0, kind::EACH)),
            len => match self.array()? {
                [kind @ ..=kind::CHAR] => Ok((len, kind)),
                _ => self.fail(error::no_value("a sequence of an unknown kind")),
            },
        }
    }

    #[inline]
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

    /// Does the same as [`nested`](Self::nested), if this is a level.
    #[inline]
    pub(super) fn nested_if<T>(
        &mut self,
        is_level: bool,
        visit: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if is_level && let Err(error) = enter(&mut self.depth) {
            return self.fail(error);
        }
        let result = visit(self);
        self.depth -= usize::from(is_level);
        result
    }

    /// Reads the contents of a variant. They are on the variant's own level, because the writer
    /// counts one level for both.
    #[inline]
    pub(super) fn within<T>(
        &mut self,
        visit: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.depth -= 1;
        let result = visit(self);
        self.depth += 1;
        result
    }

    #[inline]
    pub(super) fn elements<V: Visitor<'de>>(
        &mut self,
        len: usize,
        kind: u8,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.nested(|reader| {
            let mut parts = Parts { hint: reader.hint(len), reader, left: len, kind };
            let result = visitor.visit_seq(&mut parts);
            match parts.left {
                0 => result,
                // Unread elements would be taken for the next value.
                n => parts.reader.fail(result.err().unwrap_or_else(|| error::elements_unread(n))),
            }
        })
    }

    /// Reads the elements of a tuple of this length.
    pub(super) fn tuple<V: Visitor<'de>>(
        &mut self,
        kind: u8,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let (written, of_elements) = match kind {
            kind::TUPLE | kind::TUPLE_VARIANT => (self.count()?, kind::EACH),
            kind::SEQ => self.sequence()?,
            kind::BYTES => (self.count()?, kind::U8),
            other => return self.differs(other, "a tuple"),
        };
        if written == len {
            return self.elements(len, of_elements, visitor);
        }
        // A tuple of another length is never read in part, since the rest would have to be dropped.
        let what = if kind == kind::SEQ { "a sequence" } else { "a tuple" };
        self.fail(Error::differs(&format!("{what} of {written}"), &format!("a tuple of {len}")))
    }

    /// Reads the variant of the next value. `Deserialize` must have it in its list.
    #[inline]
    pub(super) fn variant(
        &mut self,
        asked: Option<(&'static str, &'static [&'static str])>,
    ) -> Result<KnownVariant<'de>, Error> {
        let number = self.varint()?;
        let at = match number {
            0 => {
                let index = self.unsigned()?;
                let name = self.text()?;
                let names = self.names();
                names.variants.push(KnownVariant { name, index, asked: 0 });
                names.variants.len() - 1
            }
            number => (number - 1) as usize,
        };
        let Some(known) = self.names().variants.get_mut(at) else {
            return self.fail(error::no_value("a variant of an unknown number"));
        };
        if let Some((name, list)) = asked
            && known.asked != list.as_ptr() as usize
        {
            if let Err(error) = check_variant(known.name, name, list) {
                return self.fail(error);
            }
            known.asked = list.as_ptr() as usize;
        }
        Ok(*known)
    }
}
