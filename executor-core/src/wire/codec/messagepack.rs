//! The MessagePack format, with names of fields and variants.
//!
//! It is encoded as other libraries do it. It also represents what they leave out:
//!
//! ```text
//!   None               nil
//!   Some(value)        value, unless that is nil: Some(None), Some(())
//!   Some(…Some(nil))   extension 3: the number of Somes around the nil
//!   u128, i128         a number if it fits into 64 bits, otherwise extension 1, 2: 16 bytes
//! ```
//!
//! Both directions are implemented here. So depth and lengths are bounded on every path, and what a
//! type asks for is compared with what was written.

use std::any::type_name;

use serde::{
    Deserialize, Serialize,
    de::{self, DeserializeSeed, Visitor},
    ser,
};

use super::{
    Buffer, STACK_LEFT_MIN,
    access::{Fields as FieldNames, Name, check_variant, keeps_for_later},
    enter,
    error::{self, Error},
};
use crate::os::stack;

const U128: u8 = 1;
const I128: u8 = 2;
const SOMES: u8 = 3;

/// Returns the length of a byte string, and where its contents begin in `head`.
pub(super) fn bytes_head(head: &[u8]) -> Option<(u64, usize)> {
    match head {
        [0xc4, a, ..] => Some((u64::from(*a), 2)),
        [0xc5, a, b, ..] => Some((u64::from(u16::from_be_bytes([*a, *b])), 3)),
        [0xc6, a, b, c, d, ..] => Some((u64::from(u32::from_be_bytes([*a, *b, *c, *d])), 5)),
        _ => None,
    }
}

// ---- writing --------------------------------------------------------------------------------

/// Writes one value.
pub(super) struct Writer<'a> {
    out: &'a mut Buffer,
    depth: usize,
    /// Number of `Some`s directly around the next value.
    somes: u16,
    /// Whether an error was returned. Then the encoding must fail as a whole.
    failed: bool,
}

/// Appends `value` to `out`.
pub(super) fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Buffer) -> Result<(), Error> {
    let mut writer = Writer { out, depth: 0, somes: 0, failed: false };
    value.serialize(&mut writer)?;
    if writer.failed { Err(error::swallowed()) } else { Ok(()) }
}

impl<'a> Writer<'a> {
    /// Returns an error of the codec, and makes the encoding fail even if `Serialize` ignores the
    /// error.
    #[cold]
    fn fail<T>(&mut self, error: Error) -> Result<T, Error> {
        self.failed = true;
        Err(error)
    }

    /// Writes a marker and the bytes that belong to it. Not for a nil.
    fn head(&mut self, marker: u8, bytes: &[u8]) {
        // Only a nil needs the number of `Some`s around it.
        self.somes = 0;
        self.out.push(marker);
        self.out.extend_from_slice(bytes);
    }

    fn nil(&mut self) {
        match std::mem::take(&mut self.somes) {
            0 => self.out.push(0xc0),
            somes => {
                let [high, low] = somes.to_be_bytes();
                self.out.extend_from_slice(&[0xd5, SOMES, high, low]);
            }
        }
    }

    fn unsigned(&mut self, value: u64) {
        match value {
            0..=0x7f => self.head(value as u8, &[]),
            0x80..=0xff => self.head(0xcc, &[value as u8]),
            0x100..=0xffff => self.head(0xcd, &(value as u16).to_be_bytes()),
            0x1_0000..=0xffff_ffff => self.head(0xce, &(value as u32).to_be_bytes()),
            _ => self.head(0xcf, &value.to_be_bytes()),
        }
    }

    fn signed(&mut self, value: i64) {
        match value {
            0.. => self.unsigned(value as u64),
            -0x20..0 => self.head(value as u8, &[]),
            -0x80..-0x20 => self.head(0xd0, &[value as u8]),
            -0x8000..-0x80 => self.head(0xd1, &(value as i16).to_be_bytes()),
            -0x8000_0000..-0x8000 => self.head(0xd2, &(value as i32).to_be_bytes()),
            _ => self.head(0xd3, &value.to_be_bytes()),
        }
    }

    /// Writes the head of a value with a length. `short` is the marker for short lengths and the
    /// first length that is too long for it. `long` are the markers for lengths of 8, 16 and 32
    /// bits.
    fn length(
        &mut self,
        len: usize,
        short: (u8, usize),
        long: [Option<u8>; 3],
    ) -> Result<(), Error> {
        let [of_8, of_16, of_32] = long;
        if len < short.1 {
            self.head(short.0 | len as u8, &[]);
        } else if let (Ok(len), Some(marker)) = (u8::try_from(len), of_8) {
            self.head(marker, &[len]);
        } else if let (Ok(len), Some(marker)) = (u16::try_from(len), of_16) {
            self.head(marker, &len.to_be_bytes());
        } else if let (Ok(len), Some(marker)) = (u32::try_from(len), of_32) {
            self.head(marker, &len.to_be_bytes());
        } else {
            return self.fail(Error::unsuited(format!(
                "the value has a part of a length of {len}, and MessagePack has 32 bits for it"
            )));
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        self.length(text.len(), (0xa0, 32), [Some(0xd9), Some(0xda), Some(0xdb)])?;
        self.out.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn array(&mut self, len: usize) -> Result<(), Error> {
        self.length(len, (0x90, 16), [None, Some(0xdc), Some(0xdd)])
    }

    fn map(&mut self, len: usize) -> Result<(), Error> {
        self.length(len, (0x80, 16), [None, Some(0xde), Some(0xdf)])
    }

    /// Writes the head of a variant with contents: a map with one entry.
    fn variant(&mut self, variant: &str) -> Result<(), Error> {
        self.map(1)?;
        self.text(variant)
    }

    /// Writes a part of the value.
    fn part<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        let result = value.serialize(&mut *self);
        self.somes = 0;
        self.failed |= result.is_err();
        result
    }

    fn nested<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        enter(&mut self.depth)?;
        let result = self.part(value);
        self.depth -= 1;
        result
    }

    fn compound(
        &mut self,
        len: Option<usize>,
        is_map: bool,
        name: &'static str,
    ) -> Result<Compound<'_, 'a>, Error> {
        match len {
            Some(len) if is_map => self.map(len)?,
            Some(len) => self.array(len)?,
            None => self.somes = 0,
        }
        enter(&mut self.depth)?;
        // The head needs the length. If it is not known yet, the elements go into a buffer first.
        let aside = len.is_none().then(|| (Buffer::new(), 0));
        Ok(Compound { writer: self, left: len.unwrap_or(0), aside, is_map, value_due: false, name })
    }
}

macro_rules! write {
    ($($method:ident($type:ty) => |$writer:ident, $value:ident| $write:expr;)*) => {$(
        fn $method(self, $value: $type) -> Result<(), Error> {
            let $writer = self;
            $write;
            Ok(())
        }
    )*};
}

impl<'s, 'a> ser::Serializer for &'s mut Writer<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Compound<'s, 'a>;
    type SerializeTuple = Compound<'s, 'a>;
    type SerializeTupleStruct = Compound<'s, 'a>;
    type SerializeTupleVariant = Compound<'s, 'a>;
    type SerializeMap = Compound<'s, 'a>;
    type SerializeStruct = Compound<'s, 'a>;
    type SerializeStructVariant = Compound<'s, 'a>;

    write! {
        serialize_bool(bool) => |writer, value| writer.head(if value { 0xc3 } else { 0xc2 }, &[]);
        serialize_u8(u8) => |writer, value| writer.unsigned(value.into());
        serialize_u16(u16) => |writer, value| writer.unsigned(value.into());
        serialize_u32(u32) => |writer, value| writer.unsigned(value.into());
        serialize_u64(u64) => |writer, value| writer.unsigned(value);
        serialize_i8(i8) => |writer, value| writer.signed(value.into());
        serialize_i16(i16) => |writer, value| writer.signed(value.into());
        serialize_i32(i32) => |writer, value| writer.signed(value.into());
        serialize_i64(i64) => |writer, value| writer.signed(value);
        serialize_f32(f32) => |writer, value| writer.head(0xca, &value.to_be_bytes());
        serialize_f64(f64) => |writer, value| writer.head(0xcb, &value.to_be_bytes());
        serialize_str(&str) => |writer, value| writer.text(value)?;
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn serialize_u128(self, value: u128) -> Result<(), Error> {
        match u64::try_from(value) {
            Ok(value) => self.unsigned(value),
            Err(_) => {
                self.head(0xd8, &[U128]);
                self.out.extend_from_slice(&value.to_be_bytes());
            }
        }
        Ok(())
    }

    fn serialize_i128(self, value: i128) -> Result<(), Error> {
        if let Ok(value) = u64::try_from(value) {
            self.unsigned(value);
        } else if let Ok(value) = i64::try_from(value) {
            self.signed(value);
        } else {
            self.head(0xd8, &[I128]);
            self.out.extend_from_slice(&value.to_be_bytes());
        }
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<(), Error> {
        self.text(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Error> {
        self.length(value.len(), (0, 0), [Some(0xc4), Some(0xc5), Some(0xc6)])?;
        self.out.extend_from_slice(value);
        Ok(())
    }

    fn collect_str<T: std::fmt::Display + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.text(&error::display(value)?)
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.nil();
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        // The number does not exceed the depth, which is bounded.
        self.somes += 1;
        self.nested(value)
    }

    fn serialize_unit(self) -> Result<(), Error> {
        self.nil();
        Ok(())
    }

    // JSON does it in the same way. Under `untagged`, an empty list would also match types that are
    // tried before this one.
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        self.nil();
        Ok(())
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), Error> {
        self.text(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.nested(value)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.variant(variant)?;
        self.nested(value)
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Compound<'s, 'a>, Error> {
        self.compound(len, false, "sequence")
    }

    fn serialize_tuple(self, len: usize) -> Result<Compound<'s, 'a>, Error> {
        self.compound(Some(len), false, "tuple")
    }

    fn serialize_tuple_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Compound<'s, 'a>, Error> {
        self.compound(Some(len), false, name)
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Compound<'s, 'a>, Error> {
        self.variant(variant)?;
        self.compound(Some(len), false, name)
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Compound<'s, 'a>, Error> {
        self.compound(len, true, "map")
    }

    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Compound<'s, 'a>, Error> {
        self.compound(Some(len), true, name)
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Compound<'s, 'a>, Error> {
        self.variant(variant)?;
        self.compound(Some(len), true, name)
    }
}

/// Writes a value with elements or entries.
pub(super) struct Compound<'s, 'a> {
    writer: &'s mut Writer<'a>,
    left: usize,
    /// If the length is not known in advance: the buffer for the elements, and their number.
    aside: Option<(Buffer, usize)>,
    is_map: bool,
    value_due: bool,
    name: &'static str,
}

impl Compound<'_, '_> {
    fn count(&mut self) -> Result<(), Error> {
        match &mut self.aside {
            Some((_, count)) => *count += 1,
            None => match self.left.checked_sub(1) {
                Some(left) => self.left = left,
                None => return self.writer.fail(error::wrong_length().of_type(self.name)),
            },
        }
        Ok(())
    }

    fn put<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        let Some((aside, _)) = &mut self.aside else { return self.writer.part(value) };
        let mut writer = Writer { out: aside, depth: self.writer.depth, somes: 0, failed: false };
        let result = writer.part(value);
        self.writer.failed |= writer.failed;
        result
    }

    fn finish(self) -> Result<(), Error> {
        self.writer.depth -= 1;
        if self.left != 0 || self.value_due {
            return self.writer.fail(error::wrong_length().of_type(self.name));
        }
        if let Some((aside, count)) = self.aside {
            if self.is_map {
                self.writer.map(count)?
            } else {
                self.writer.array(count)?
            }
            self.writer.out.extend_from_slice(aside.bytes());
        }
        Ok(())
    }
}

macro_rules! write_elements {
    ($($trait:ident::$method:ident),* $(,)?) => {$(
        impl ser::$trait for Compound<'_, '_> {
            type Ok = ();
            type Error = Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                self.count()?;
                self.put(value)
            }

            fn end(self) -> Result<(), Error> {
                self.finish()
            }
        }
    )*};
}

write_elements!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field,
);

macro_rules! write_fields {
    ($($trait:ident),* $(,)?) => {$(
        impl ser::$trait for Compound<'_, '_> {
            type Ok = ();
            type Error = Error;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
                self.count()?;
                self.writer.text(name)?;
                self.put(value)
            }

            fn end(self) -> Result<(), Error> {
                self.finish()
            }
        }
    )*};
}

write_fields!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Compound<'_, '_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        if std::mem::replace(&mut self.value_due, true) {
            return self.writer.fail(error::wrong_length());
        }
        self.count()?;
        self.put(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        if !std::mem::replace(&mut self.value_due, false) {
            return self.writer.fail(error::wrong_length());
        }
        self.put(value)
    }

    fn end(self) -> Result<(), Error> {
        self.finish()
    }
}

// ---- reading --------------------------------------------------------------------------------

/// The next value, complete except for bytes, elements and entries.
#[derive(Clone, Copy)]
enum ValueHead {
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
    input: &'de [u8],
    depth: usize,
    /// How many of the levels asked what comes next.
    asked: usize,
    /// The head of the next value, if it was taken already.
    pending: Option<ValueHead>,
    /// Whether a value was left in its middle. Then nothing that follows can be trusted.
    failed: bool,
    /// How many more elements may be announced to visitors. Visitors allocate memory for announced
    /// elements before these exist; each element takes at least one byte. The whole value has one
    /// budget. Otherwise nested lists would each reserve what only one of them can have.
    unhinted: usize,
    /// How many more elements may be kept, see [`KEPT_PER_BYTE`].
    keepable: usize,
    /// Whether the next value is a key of a map, and not of a structure.
    any_key: bool,
}

impl<'de> Reader<'de> {
    pub(super) fn new(input: &'de [u8]) -> Self {
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

    pub(super) fn remaining(&self) -> usize {
        self.input.len()
    }

    /// Reads one value: what one writer wrote.
    pub(super) fn value<T: Deserialize<'de>>(&mut self) -> Result<T, Error> {
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
    fn fail<T>(&mut self, error: Error) -> Result<T, Error> {
        self.failed = true;
        Err(error)
    }

    /// Reads a part of the value. `head` is its head, if that does not stand in front of it.
    fn part<T: DeserializeSeed<'de>>(
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

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        match self.input.split_first_chunk() {
            Some((bytes, rest)) => {
                self.input = rest;
                Ok(*bytes)
            }
            None => self.fail(error::ends_early()),
        }
    }

    fn head(&mut self) -> Result<ValueHead, Error> {
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

    fn take(&mut self, len: usize) -> Result<&'de [u8], Error> {
        match self.input.split_at_checked(len) {
            Some((bytes, rest)) => {
                self.input = rest;
                Ok(bytes)
            }
            None => self.fail(error::ends_early()),
        }
    }

    fn text(&mut self, len: usize) -> Result<&'de str, Error> {
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes).or_else(|_| self.fail(error::no_value("a text is not UTF-8")))
    }

    fn nested<T>(&mut self, visit: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = enter(&mut self.depth) {
            return self.fail(error);
        }
        let result = visit(self);
        self.depth -= 1;
        result
    }

    /// Enters a level that asks what comes next. It counts as [`LEVELS_ASKED`] levels. It must
    /// leave enough stack to read all levels around it again.
    fn asked<T>(&mut self, visit: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
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
    fn keep<V>(&mut self, len: usize) -> Result<(), Error> {
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
    fn differs<T>(&mut self, written: ValueHead, asked: &str) -> Result<T, Error> {
        self.fail(Error::differs(written.name(), asked))
    }

    fn elements<V: Visitor<'de>>(
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

    fn tuple<V: Visitor<'de>>(&mut self, len: usize, visitor: V) -> Result<V::Value, Error> {
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

    fn entries<V: Visitor<'de>>(
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

    fn fields<V: Visitor<'de>>(
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
    fn skip(&mut self) -> Result<(), Error> {
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
    fn within<T>(&mut self, visit: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        self.depth -= 1;
        let result = visit(self);
        self.depth += 1;
        result
    }
}

macro_rules! read_integers {
    ($($method:ident asks $asked:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.head()? {
                ValueHead::Unsigned(value) => visitor.visit_u64(value),
                ValueHead::Signed(value) => visitor.visit_i64(value),
                ValueHead::U128(value) => visitor.visit_u128(value),
                ValueHead::I128(value) => visitor.visit_i128(value),
                other => self.differs(other, $asked),
            }
        }
    )*};
}

macro_rules! read_texts {
    ($($method:ident asks $asked:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.head()? {
                ValueHead::Str(len) => {
                    let text = self.text(len)?;
                    visitor.visit_borrowed_str(text)
                }
                ValueHead::Bytes(len) => {
                    let bytes = self.take(len)?;
                    visitor.visit_borrowed_bytes(bytes)
                }
                other => self.differs(other, $asked),
            }
        }
    )*};
}

impl<'de> de::Deserializer<'de> for &mut Reader<'de> {
    type Error = Error;

    read_integers! {
        deserialize_u8 asks "a u8";
        deserialize_u16 asks "a u16";
        deserialize_u32 asks "a u32";
        deserialize_u64 asks "a u64";
        deserialize_u128 asks "a u128";
        deserialize_i8 asks "an i8";
        deserialize_i16 asks "an i16";
        deserialize_i32 asks "an i32";
        deserialize_i64 asks "an i64";
        deserialize_i128 asks "an i128";
    }

    read_texts! {
        deserialize_char asks "a char";
        deserialize_str asks "a str";
        deserialize_string asks "a str";
    }

    /// Reads the name of a field, or a key of a map.
    ///
    /// Only a structure with `flatten` asks for names in a map. It keeps the keys that it does not
    /// know, which may have any type. For the key of a structure, a number is an error:
    /// `Deserialize` would take it for the index of a field.
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.head()? {
            ValueHead::Str(len) => {
                let text = self.text(len)?;
                visitor.visit_borrowed_str(text)
            }
            ValueHead::Bytes(len) => {
                let bytes = self.take(len)?;
                visitor.visit_borrowed_bytes(bytes)
            }
            other if self.any_key => {
                self.pending = Some(other);
                self.deserialize_any(visitor)
            }
            other => self.differs(other, "a name"),
        }
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.head()? {
            ValueHead::Nil => visitor.visit_unit(),
            ValueHead::Bool(value) => visitor.visit_bool(value),
            ValueHead::Unsigned(value) => visitor.visit_u64(value),
            ValueHead::Signed(value) => visitor.visit_i64(value),
            ValueHead::U128(value) => visitor.visit_u128(value),
            ValueHead::I128(value) => visitor.visit_i128(value),
            ValueHead::F32(value) => visitor.visit_f32(value),
            ValueHead::F64(value) => visitor.visit_f64(value),
            ValueHead::Str(len) => {
                let text = self.text(len)?;
                visitor.visit_borrowed_str(text)
            }
            // Pass the bytes as a list. serde would keep a byte string, and try a `String` on it,
            // which accepts bytes that are UTF-8. Types that accept bytes also accept a list of
            // them.
            ValueHead::Bytes(len) if keeps_for_later::<V>() => {
                self.keep::<V>(len)?;
                self.asked(|reader| reader.elements(len, true, visitor))
            }
            ValueHead::Bytes(len) => {
                let bytes = self.take(len)?;
                visitor.visit_borrowed_bytes(bytes)
            }
            ValueHead::Array(len) => {
                self.keep::<V>(len)?;
                self.asked(|reader| reader.elements(len, false, visitor))
            }
            ValueHead::Map(len) => {
                self.keep::<V>(len.saturating_mul(2))?;
                self.asked(|reader| reader.entries(len, None, visitor))
            }
            head @ ValueHead::Somes(_) => {
                self.pending = Some(head);
                self.asked(|reader| de::Deserializer::deserialize_option(reader, visitor))
            }
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.skip()?;
        visitor.visit_unit()
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.head()? {
            ValueHead::Bool(value) => visitor.visit_bool(value),
            other => self.differs(other, "a bool"),
        }
    }

    // An `f64` for an `f32`, or an integer for a float, would be rounded. An `f32` for an `f64` is
    // exact.
    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.head()? {
            ValueHead::F32(value) => visitor.visit_f32(value),
            other => self.differs(other, "an f32"),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.head()? {
            ValueHead::F32(value) => visitor.visit_f32(value),
            ValueHead::F64(value) => visitor.visit_f64(value),
            other => self.differs(other, "an f64"),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.head()? {
            ValueHead::Str(len) => {
                let text = self.text(len)?;
                visitor.visit_borrowed_str(text)
            }
            ValueHead::Bytes(len) => {
                let bytes = self.take(len)?;
                visitor.visit_borrowed_bytes(bytes)
            }
            ValueHead::Array(len) => self.elements(len, false, visitor),
            other => self.differs(other, "bytes"),
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.pending = match self.head()? {
            ValueHead::Nil => return visitor.visit_none(),
            // Takes one `Some` from around the nil.
            ValueHead::Somes(1) => Some(ValueHead::Nil),
            ValueHead::Somes(n) => Some(ValueHead::Somes(n - 1)),
            other => Some(other),
        };
        self.nested(|reader| visitor.visit_some(reader))
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.head()? {
            ValueHead::Nil => visitor.visit_unit(),
            other => self.differs(other, "a unit"),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.head()? {
            ValueHead::Nil | ValueHead::Array(0) => visitor.visit_unit(),
            other => self.differs(other, "a unit struct"),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.nested(|reader| visitor.visit_newtype_struct(reader))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.head()? {
            ValueHead::Array(len) => self.elements(len, false, visitor),
            ValueHead::Bytes(len) => self.elements(len, true, visitor),
            other => self.differs(other, "a sequence"),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        self.tuple(len, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.tuple(len, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.head()? {
            ValueHead::Map(len) => self.entries(len, None, visitor),
            other => self.differs(other, "a map"),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.fields(name, fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.head()? {
            ValueHead::Str(len) => {
                let variant = Name { name: self.text(len)?, index: None };
                de::Deserializer::deserialize_enum(variant, name, variants, visitor)
                    .or_else(|error| self.fail(error.of_type(name)))
            }
            ValueHead::Map(1) => self
                .nested(|reader| {
                    let variant = match reader.head()? {
                        ValueHead::Str(len) => reader.text(len)?,
                        other => return reader.differs(other, "a variant's name"),
                    };
                    if let Err(error) = check_variant(variant, name, variants) {
                        return reader.fail(error);
                    }
                    visitor.visit_enum(Variant { reader, name, variant })
                })
                .map_err(|error| error.of_type(name)),
            other => self.differs(other, "an enum"),
        }
    }
}

/// The elements of a sequence or a tuple.
struct Parts<'r, 'de> {
    reader: &'r mut Reader<'de>,
    left: usize,
    hint: usize,
    /// Whether they are the bytes of a byte string.
    are_bytes: bool,
}

impl<'de> de::SeqAccess<'de> for &mut Parts<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let head = match self.are_bytes {
            true => self.reader.array().map(|[byte]| Some(ValueHead::Unsigned(byte.into())))?,
            false => None,
        };
        self.reader.part(head, seed).map(Some)
    }

    /// Returns a bound for visitors that allocate as many elements as it says.
    fn size_hint(&self) -> Option<usize> {
        Some(self.left.min(self.hint))
    }
}

/// The entries of a map.
struct Pairs<'r, 'de> {
    reader: &'r mut Reader<'de>,
    left: usize,
    hint: usize,
    value_due: bool,
    /// The names of the structure, if one is asked for instead of a map.
    names: Option<FieldNames<'de>>,
    field: Option<&'de str>,
}

impl<'de> de::MapAccess<'de> for &mut Pairs<'_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        if self.value_due {
            return self.reader.fail(error::elements_unread(1));
        }
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.value_due = true;
        if let Some(names) = &mut self.names {
            // Look at the key without taking it. It is read again below.
            let mut ahead = Reader::new(self.reader.input);
            self.field = match ahead.head()? {
                ValueHead::Str(len) => ahead.text(len).ok(),
                _ => None,
            };
            if let Some(field) = self.field {
                names.hand(field);
            }
        }
        self.reader.any_key = self.names.is_none();
        let key = self.reader.part(None, seed);
        self.reader.any_key = false;
        key.map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        if !std::mem::take(&mut self.value_due) {
            return self.reader.fail(error::reads_nothing());
        }
        match (self.reader.part(None, seed), &self.names, self.field) {
            (Err(error), Some(names), Some(field)) => {
                Err(error.of_part("field", field, names.name))
            }
            (result, ..) => result,
        }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left.min(self.hint))
    }
}

/// A variant with contents.
struct Variant<'r, 'de> {
    reader: &'r mut Reader<'de>,
    name: &'static str,
    variant: &'de str,
}

impl<'de> de::EnumAccess<'de> for Variant<'_, 'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        match seed.deserialize(Name { name: self.variant, index: None }) {
            Ok(value) => Ok((value, self)),
            // The contents of the variant stay unread.
            Err(error) => self.reader.fail(error),
        }
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'_, 'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        let error = Error::differs("a variant with something in it", "a unit variant");
        self.reader.fail(error.of_part("variant", self.variant, self.name))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        self.reader
            .part(None, seed)
            .map_err(|error| error.of_part("variant", self.variant, self.name))
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        let result = self.reader.within(|reader| reader.tuple(len, visitor));
        result.map_err(|error| error.of_part("variant", self.variant, self.name))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.reader.within(|reader| reader.fields(self.name, fields, visitor))
    }
}
