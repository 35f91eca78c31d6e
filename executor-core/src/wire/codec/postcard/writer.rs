//! Writes values: kinds, numbers and texts, and structures and variants in front of their contents.

use std::any::type_name;

use serde::Serialize;

use super::{
    super::{
        Buffer, enter,
        error::{self, Error},
    },
    kind,
    serializer::{Elements, Fields},
    tables::{Numbered, Written, WrittenVariant, place},
};

/// Writes one value.
pub(super) struct Writer<'a> {
    pub(super) out: &'a mut Buffer,
    pub(super) depth: usize,
    /// The kind of the elements being written, if it stands in front of all of them. Otherwise 0.
    implied: u8,
    /// Whether an error was returned. Then the encoding must fail as a whole.
    failed: bool,
    /// The address of the name of the type that is being written.
    rust_type: usize,
    numbered: Option<Box<Numbered>>,
}

/// Appends `value` to `out`.
#[inline]
pub(in super::super) fn encode<T: Serialize + ?Sized>(
    value: &T,
    out: &mut Buffer,
) -> Result<(), Error> {
    let mut writer =
        Writer { out, depth: 0, implied: 0, failed: false, rust_type: 0, numbered: None };
    let result = writer.part(0, value);
    if let Some(numbered) = writer.numbered {
        numbered.put_back();
    }
    match result {
        // The user's `Serialize` ignored an error, so the bytes are not a complete value.
        Ok(()) if writer.failed => Err(error::swallowed()),
        result => result,
    }
}

/// Returns the varint of a value below 2^56 in the bytes of a word, and its length.
#[inline]
fn varint_word(value: u64) -> (u64, usize) {
    // Spread the bits: two halves of 28 bits, then four parts of 14, then eight of 7.
    let word = (value & 0x00ff_ffff_f000_0000) << 4 | (value & 0x0fff_ffff);
    let word = (word & 0x0fff_c000_0fff_c000) << 2 | (word & 0x0000_3fff_0000_3fff);
    let word = (word & 0x3f80_3f80_3f80_3f80) << 1 | (word & 0x007f_007f_007f_007f);
    let len = (u64::BITS - (value | 1).leading_zeros()).div_ceil(7);
    // All bytes but the last say that another one follows.
    let follow = 0x8080_8080_8080_8080 & ((1 << (8 * (len - 1))) - 1);
    (word | follow, len as usize)
}

/// Writes a varint and returns its length.
#[inline]
fn put_long(bytes: &mut [u8], mut value: u64) -> usize {
    let mut len = 0;
    while value >= 0x80 {
        bytes[len] = value as u8 | 0x80;
        value >>= 7;
        len += 1;
    }
    bytes[len] = value as u8;
    len + 1
}

impl<'a> Writer<'a> {
    /// Returns an error of the codec, and makes the encoding fail even if `Serialize` ignores the
    /// error.
    #[cold]
    pub(super) fn fail<T>(&mut self, error: Error) -> Result<T, Error> {
        self.failed = true;
        Err(error)
    }

    /// Counts an element that is written.
    #[inline]
    pub(super) fn count(&mut self, left: &mut usize) -> Result<(), Error> {
        match left.checked_sub(1) {
            Some(fewer) => {
                *left = fewer;
                Ok(())
            }
            None => self.fail(error::wrong_length()),
        }
    }

    /// Returns whether the next value needs no kind of its own.
    #[inline]
    fn is_implied(&self, kind: u8) -> Result<bool, Error> {
        match self.implied {
            0 => Ok(false),
            implied if implied == kind => Ok(true),
            _ => Err(mixed()),
        }
    }

    #[inline]
    pub(super) fn varint(&mut self, value: u64) {
        if value < 0x80 {
            self.out.push(value as u8);
        } else {
            self.long(value);
        }
    }

    #[inline]
    pub(super) fn unsigned(&mut self, kind: u8, value: u64) -> Result<(), Error> {
        if self.is_implied(kind)? {
            self.varint(value)
        } else {
            self.tagged(kind, value)
        }
        Ok(())
    }

    #[inline]
    pub(super) fn signed(&mut self, kind: u8, value: i64) -> Result<(), Error> {
        self.unsigned(kind, ((value << 1) ^ (value >> 63)) as u64)
    }

    pub(super) fn huge(&mut self, kind: u8, mut value: u128) -> Result<(), Error> {
        if !self.is_implied(kind)? {
            self.out.push(kind);
        }
        let mut bytes = [0; 19];
        let mut len = 0;
        while value >= 0x80 {
            bytes[len] = value as u8 | 0x80;
            value >>= 7;
            len += 1;
        }
        bytes[len] = value as u8;
        self.out.extend_from_slice(&bytes[..=len]);
        Ok(())
    }

    fn long(&mut self, value: u64) {
        if value < 1 << 56 {
            let (word, len) = varint_word(value);
            return self.out.extend_with_first(len, word.to_le_bytes());
        }
        let mut bytes = [0; 10];
        let len = put_long(&mut bytes, value);
        self.out.extend_from_slice(&bytes[..len]);
    }

    #[inline(never)]
    fn long_tagged(&mut self, kind: u8, value: u64) {
        if value < 1 << 49 {
            let (word, len) = varint_word(value);
            let word = word << 8 | u64::from(kind);
            return self.out.extend_with_first(len + 1, word.to_le_bytes());
        }
        let mut bytes = [0; 11];
        bytes[0] = kind;
        let len = put_long(&mut bytes[1..], value);
        self.out.extend_from_slice(&bytes[..=len]);
    }

    #[inline]
    pub(super) fn fixed<const N: usize>(&mut self, kind: u8, value: [u8; N]) -> Result<(), Error> {
        if self.is_implied(kind)? {
            self.out.extend_from_slice(&value);
        } else {
            self.out.extend_after(kind, value);
        }
        Ok(())
    }

    #[inline]
    pub(super) fn not_implied(&self) -> Result<(), Error> {
        if self.implied == 0 { Ok(()) } else { Err(mixed()) }
    }

    #[inline]
    pub(super) fn kind(&mut self, kind: u8) -> Result<(), Error> {
        self.not_implied()?;
        self.out.push(kind);
        Ok(())
    }

    /// Does the same as [`kind`](Self::kind), and writes a number behind it.
    #[inline]
    pub(super) fn head(&mut self, kind: u8, number: usize) -> Result<(), Error> {
        self.not_implied()?;
        self.tagged(kind, number as u64);
        Ok(())
    }

    #[inline]
    fn text(&mut self, text: &str) {
        self.varint(text.len() as u64);
        self.out.extend_from_slice(text.as_bytes());
    }

    /// Writes a part of the value.
    #[inline]
    pub(super) fn part<T: Serialize + ?Sized>(
        &mut self,
        implied: u8,
        value: &T,
    ) -> Result<(), Error> {
        // Only other types can be structures, which are found by this address.
        if kind::of_elements::<T>() == kind::EACH {
            self.rust_type = type_name::<T>().as_ptr() as usize;
        }
        self.implied = implied;
        let result = value.serialize(&mut *self);
        self.implied = 0;
        if result.is_err() {
            self.failed = true;
        }
        result
    }

    #[inline]
    pub(super) fn nested<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        enter(&mut self.depth)?;
        let result = self.part(self.implied, value);
        self.depth -= 1;
        result
    }

    #[inline]
    pub(super) fn numbered(&mut self) -> &mut Numbered {
        self.numbered.get_or_insert_with(Numbered::take)
    }

    /// Writes a kind and a number.
    #[inline]
    fn tagged(&mut self, kind: u8, value: u64) {
        if value < 0x80 {
            self.out.extend_after(kind, [value as u8]);
        } else {
            self.long_tagged(kind, value);
        }
    }

    /// Writes the head of a variant: its number, if it has one in this message, and otherwise its
    /// index and name.
    #[inline]
    pub(super) fn variant(
        &mut self,
        kind: u8,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<(), Error> {
        self.not_implied()?;
        let this = WrittenVariant {
            name: name.as_ptr() as usize,
            variant: variant.as_ptr() as usize,
            index,
        };
        if let Some(numbered) = &self.numbered {
            let guess = numbered.variant_guesses[this.place()];
            if numbered.variants.get(guess as usize) == Some(&this) {
                self.tagged(kind, u64::from(guess) + 1);
                return Ok(());
            }
        }
        self.look_up_variant(kind, this, variant);
        Ok(())
    }

    #[inline(never)]
    fn look_up_variant(&mut self, kind: u8, this: WrittenVariant, variant: &'static str) {
        let numbered = self.numbered();
        let known = numbered.variants.iter().position(|other| *other == this);
        let at = known.unwrap_or(numbered.variants.len());
        numbered.variant_guesses[this.place()] = at as u32;
        if known.is_some() {
            self.tagged(kind, at as u64 + 1);
        } else {
            numbered.variants.push(this);
            self.tagged(kind, 0);
            self.varint(this.index.into());
            self.text(variant);
        }
    }

    /// Writes the name of a field for the first time.
    #[inline(never)]
    pub(super) fn first_name(&mut self, at: usize, name: &'static str) {
        if let Some(known) = self.numbered().fields.get_mut(at) {
            *known = name;
        }
        self.text(name);
    }

    /// Returns whether the name that was written for this field is the same constant.
    #[inline(always)]
    pub(super) fn is_name(&self, at: usize, name: &'static str) -> bool {
        let numbered = self.numbered.as_ref();
        numbered.is_some_and(|numbered| {
            numbered.fields.get(at).is_some_and(|known| std::ptr::eq(*known, name))
        })
    }

    /// Accepts a field's name at another address if the text is the same. Otherwise returns an
    /// error.
    #[cold]
    #[inline(never)]
    pub(super) fn other_name(
        &mut self,
        of: &str,
        at: usize,
        name: &'static str,
    ) -> Result<(), Error> {
        match self.numbered().fields.get(at) {
            Some(known) if known != &name => {
                let error = other_names(of, name, known);
                self.fail(error)
            }
            _ => Ok(()),
        }
    }

    /// Begins a structure. `named` is the name that distinguishes it from others of its type: for a
    /// variant, the variant's name. `kind` is the kind that stands in front of its number, if there
    /// is one.
    #[inline(always)]
    pub(super) fn structure(
        &mut self,
        kind: Option<u8>,
        name: &'static str,
        named: &'static str,
        count: usize,
    ) -> Result<Fields<'_, 'a>, Error> {
        enter(&mut self.depth)?;
        let address = named.as_ptr() as usize;
        if let Some(numbered) = &self.numbered {
            let of = numbered.struct_guesses[place(address)] as usize;
            if let Some(known) = numbered.structs.get(of)
                && known.is(self.rust_type, address, count)
            {
                let field = known.first;
                self.number(kind, of as u64 + 1);
                return Ok(Fields {
                    writer: self,
                    name,
                    field,
                    end: field + count,
                    of,
                    is_first: false,
                });
            }
        }
        Ok(self.look_up_structure(kind, name, address, count))
    }

    #[inline(never)]
    fn look_up_structure(
        &mut self,
        kind: Option<u8>,
        name: &'static str,
        address: usize,
        count: usize,
    ) -> Fields<'_, 'a> {
        let rust_type = self.rust_type;
        let numbered = self.numbered();
        let known = numbered.structs.iter().position(|known| known.is(rust_type, address, count));
        let of = known.unwrap_or(numbered.structs.len());
        numbered.struct_guesses[place(address)] = of as u32;
        let field = match known {
            Some(at) => numbered.structs[at].first,
            None => {
                let first = numbered.fields.len();
                numbered.fields.resize(first + count, "");
                numbered.structs.push(Written {
                    rust_type,
                    name: address,
                    count,
                    first,
                    complete: false,
                });
                first
            }
        };
        let is_first = known.is_none();
        self.number(kind, if is_first { 0 } else { of as u64 + 1 });
        if is_first {
            self.varint(count as u64);
        }
        Fields { writer: self, name, field, end: field + count, of, is_first }
    }

    /// Writes a number, with a kind in front of it if there is one.
    #[inline(always)]
    fn number(&mut self, kind: Option<u8>, number: u64) {
        match kind {
            Some(kind) => self.tagged(kind, number),
            None => self.varint(number),
        }
    }

    #[inline]
    pub(super) fn elements(&mut self, left: usize, each: bool) -> Result<Elements<'_, 'a>, Error> {
        enter(&mut self.depth)?;
        // The elements of a tuple may have different types. A sequence takes its kind from the
        // first element.
        let kind = if each { Some(kind::EACH) } else { None };
        Ok(Elements { writer: self, left, kind })
    }
}

#[cold]
pub(super) fn mixed() -> Error {
    Error::cannot("the type writes elements of several types into one sequence, not into a tuple")
}

#[cold]
fn other_names(name: &str, field: &str, before: &str) -> Error {
    Error::cannot(&format!(
        "`{name}` writes a field `{field}` where it wrote `{before}` before (`#[serde(tag = …)]` does that)"
    ))
}
