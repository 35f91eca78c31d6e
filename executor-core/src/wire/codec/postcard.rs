//! The default format: postcard's numbers and lengths, with the kind of each value in front of it.
//!
//! ```text
//! 42_u64               U64 42                 numbers as in postcard: varints, zigzag, floats of 4
//!                                             or 8 bytes
//! "ab"                 STR 2 a b
//! vec![1_u8, 2]        SEQ 2 U8 1 2           numbers: one kind for all elements, in front of them
//! vec!["a"]            SEQ 1 0 STR 1 a        other elements: 0, and each element has its own kind
//! (1_u8, true)         TUPLE 2 U8 1 BOOL 1
//! Point { x: 1 }       STRUCT 0 1 1 x U8 1    first Point: 0, number of fields, each with its name
//! another Point        STRUCT 1 U8 2          the first structure of this message again: fields by
//!                                             position
//! Some(E::New(3_u8))   SOME NEWTYPE_VARIANT 0 2 3 N e w U8 3
//!                                             first E::New: 0, index and name; the next time: 1
//! ```
//!
//! So the reader knows what was written, and compares it with what it is asked for. Equal kinds
//! take the fast path. [`Reader::other`] handles all others: it passes on what means the same
//! value, and anything else is an error. A structure whose names are those of `Deserialize`, in the
//! same order, is read by position. Any other structure is read by names.
//!
//! The numbers count within one message (one [`Writer`], one call of [`Reader::value`]). The thread
//! keeps the tables for the next message, and a message without structures and variants takes none.
//! The writer finds a numbered structure by two addresses: the address of its name, and the address
//! of the name of the Rust type. The second is needed because two structures with one name may have
//! different fields. The name of each field is compared as it is written.

use std::{any::type_name, cell::Cell};

use serde::{
    Deserialize, Serialize,
    de::{self, DeserializeSeed, Visitor, value as plain},
    ser,
};

use super::{
    Buffer,
    access::{Fields as FieldNames, Name, check_variant, is_derived, same_name},
    enter,
    error::{self, Error},
};
use crate::os::local;

/// The kinds of values. A kind says what comes next.
mod kind {
    /// In front of the elements of a sequence: each element has its own kind.
    pub(super) const EACH: u8 = 0;
    pub(super) const BOOL: u8 = 1;
    pub(super) const U8: u8 = 2;
    pub(super) const U16: u8 = 3;
    pub(super) const U32: u8 = 4;
    pub(super) const U64: u8 = 5;
    pub(super) const U128: u8 = 6;
    pub(super) const I8: u8 = 7;
    pub(super) const I16: u8 = 8;
    pub(super) const I32: u8 = 9;
    pub(super) const I64: u8 = 10;
    pub(super) const I128: u8 = 11;
    pub(super) const F32: u8 = 12;
    pub(super) const F64: u8 = 13;
    pub(super) const CHAR: u8 = 14;
    pub(super) const STR: u8 = 15;
    pub(super) const BYTES: u8 = 16;
    pub(super) const NONE: u8 = 17;
    pub(super) const SOME: u8 = 18;
    pub(super) const UNIT: u8 = 19;
    pub(super) const SEQ: u8 = 20;
    pub(super) const TUPLE: u8 = 21;
    pub(super) const MAP: u8 = 22;
    pub(super) const STRUCT: u8 = 23;
    pub(super) const UNIT_VARIANT: u8 = 24;
    pub(super) const NEWTYPE_VARIANT: u8 = 25;
    pub(super) const TUPLE_VARIANT: u8 = 26;
    pub(super) const STRUCT_VARIANT: u8 = 27;

    pub(super) const NAMES: [&str; 28] = [
        "nothing",
        "a bool",
        "a u8",
        "a u16",
        "a u32",
        "a u64",
        "a u128",
        "an i8",
        "an i16",
        "an i32",
        "an i64",
        "an i128",
        "an f32",
        "an f64",
        "a char",
        "a str",
        "bytes",
        "a None",
        "a Some",
        "a unit",
        "a sequence",
        "a tuple",
        "a map",
        "a struct",
        "a unit variant",
        "a newtype variant",
        "a tuple variant",
        "a struct variant",
    ];

    /// Returns the kind of a number, a bool or a char. The elements of a sequence of them have no
    /// kind of their own. Returns `EACH` for all other types.
    ///
    /// Type names are meant for people. If they change, each element has its own kind again.
    #[inline(always)]
    pub(super) fn of_elements<T: ?Sized>() -> u8 {
        match std::any::type_name::<T>() {
            "bool" | "&bool" => BOOL,
            "u8" | "&u8" => U8,
            "u16" | "&u16" => U16,
            "u32" | "&u32" => U32,
            "u64" | "&u64" | "usize" | "&usize" => U64,
            "u128" | "&u128" => U128,
            "i8" | "&i8" => I8,
            "i16" | "&i16" => I16,
            "i32" | "&i32" => I32,
            "i64" | "&i64" | "isize" | "&isize" => I64,
            "i128" | "&i128" => I128,
            "f32" | "&f32" => F32,
            "f64" | "&f64" => F64,
            "char" | "&char" => CHAR,
            _ => EACH,
        }
    }

    /// Does the same as [`of_elements`], and returns the kind of `()` as well.
    ///
    /// The type is always the one of Rust or its standard library: the name of any other type
    /// begins with the path of its crate.
    #[inline(always)]
    pub(super) fn of_simple<T: ?Sized>() -> u8 {
        match std::any::type_name::<T>() {
            "()" => UNIT,
            _ => of_elements::<T>(),
        }
    }
}

fn name_of(kind: u8) -> &'static str {
    kind::NAMES.get(usize::from(kind)).copied().unwrap_or("an unknown kind")
}

#[cold]
fn unknown_length() -> Error {
    Error::cannot(
        "the type writes a sequence or map of unknown length (`#[serde(flatten)]` does that)",
    )
}

#[cold]
fn self_describing() -> Error {
    Error::cannot(
        "the type asks what comes next in the bytes (`#[serde(untagged)]`, `#[serde(tag = …)]`, `#[serde(flatten)]` \
         and types like `serde_json::Value` do that)",
    )
}

#[cold]
fn mixed() -> Error {
    Error::cannot("the type writes elements of several types into one sequence, not into a tuple")
}

#[cold]
fn other_names(name: &str, field: &str, before: &str) -> Error {
    Error::cannot(&format!(
        "`{name}` writes a field `{field}` where it wrote `{before}` before (`#[serde(tag = …)]` does that)"
    ))
}

// ---- writing --------------------------------------------------------------------------------

/// A structure that the writer has begun, identified by the addresses of its names.
#[derive(Clone, Copy, Default)]
struct Written {
    rust_type: usize,
    name: usize,
    count: usize,
    /// Index of the name of its first field.
    first: usize,
    /// Whether all of its names are known.
    complete: bool,
}

impl Written {
    /// Returns whether this is a finished structure with this type, name and number of fields.
    #[inline]
    fn is(&self, rust_type: usize, name: usize, count: usize) -> bool {
        self.rust_type == rust_type && self.name == name && self.count == count && self.complete
    }
}

/// A variant that the writer has written.
#[derive(Clone, Copy, Default, PartialEq)]
struct WrittenVariant {
    name: usize,
    variant: usize,
    index: u32,
}

impl WrittenVariant {
    /// Returns the variant's place among the guesses. It depends on the variant's index, so that
    /// the variants of one enum never share a place as long as there are enough places. If two
    /// variants shared one, each would push the other out, and would be searched for among all
    /// variants every time.
    #[inline]
    fn place(&self) -> usize {
        place(self.name).wrapping_add(self.index as usize) % GUESSES
    }
}

/// The structures and variants that have numbers in the message being written.
struct Numbered {
    structs: Vec<Written>,
    fields: Vec<&'static str>,
    variants: Vec<WrittenVariant>,
    /// Where the structures and variants were found last, by some bits of the addresses of their
    /// names. An entry is only a guess and is compared with what is wanted, so it may be left over
    /// from another message.
    struct_guesses: [u32; GUESSES],
    variant_guesses: [u32; GUESSES],
}

impl Default for Numbered {
    fn default() -> Self {
        Numbered {
            structs: Vec::new(),
            fields: Vec::new(),
            variants: Vec::new(),
            struct_guesses: [0; GUESSES],
            variant_guesses: [0; GUESSES],
        }
    }
}

const GUESSES: usize = 64;

/// Returns the place of this address among the guesses.
#[inline]
fn place(address: usize) -> usize {
    (address ^ (address >> 4)) % GUESSES
}

/// A table with more names than this is not kept for the next message.
const KEPT_NAMES_MAX: usize = 1024;

thread_local! {
    /// The last message's table, emptied. With it, most messages with structures need no allocation
    /// for their names.
    static NUMBERED: Cell<Option<Box<Numbered>>> = const { Cell::new(None) };
}

impl Numbered {
    #[inline(never)]
    fn take() -> Box<Self> {
        local::take(&NUMBERED).unwrap_or_default()
    }

    #[inline(never)]
    fn put_back(mut self: Box<Self>) {
        if self.fields.capacity() + self.structs.capacity() + self.variants.capacity()
            <= KEPT_NAMES_MAX
        {
            self.structs.clear();
            self.fields.clear();
            self.variants.clear();
            local::put(&NUMBERED, Some(self));
        }
    }
}

/// Writes one value.
pub(super) struct Writer<'a> {
    out: &'a mut Buffer,
    depth: usize,
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
pub(super) fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Buffer) -> Result<(), Error> {
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
    fn fail<T>(&mut self, error: Error) -> Result<T, Error> {
        self.failed = true;
        Err(error)
    }

    /// Counts an element that is written.
    #[inline]
    fn count(&mut self, left: &mut usize) -> Result<(), Error> {
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
    fn varint(&mut self, value: u64) {
        if value < 0x80 {
            self.out.push(value as u8);
        } else {
            self.long(value);
        }
    }

    #[inline]
    fn unsigned(&mut self, kind: u8, value: u64) -> Result<(), Error> {
        if self.is_implied(kind)? {
            self.varint(value)
        } else {
            self.tagged(kind, value)
        }
        Ok(())
    }

    #[inline]
    fn signed(&mut self, kind: u8, value: i64) -> Result<(), Error> {
        self.unsigned(kind, ((value << 1) ^ (value >> 63)) as u64)
    }

    fn huge(&mut self, kind: u8, mut value: u128) -> Result<(), Error> {
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
        let mut bytes = [0; 10];
        let len = put_long(&mut bytes, value);
        self.out.extend_from_slice(&bytes[..len]);
    }

    #[inline(never)]
    fn long_tagged(&mut self, kind: u8, value: u64) {
        let mut bytes = [0; 11];
        bytes[0] = kind;
        let len = put_long(&mut bytes[1..], value);
        self.out.extend_from_slice(&bytes[..=len]);
    }

    #[inline]
    fn fixed<const N: usize>(&mut self, kind: u8, value: [u8; N]) -> Result<(), Error> {
        if self.is_implied(kind)? {
            self.out.extend_from_slice(&value);
        } else {
            self.out.extend_after(kind, value);
        }
        Ok(())
    }

    #[inline]
    fn not_implied(&self) -> Result<(), Error> {
        if self.implied == 0 { Ok(()) } else { Err(mixed()) }
    }

    #[inline]
    fn kind(&mut self, kind: u8) -> Result<(), Error> {
        self.not_implied()?;
        self.out.push(kind);
        Ok(())
    }

    /// Does the same as [`kind`](Self::kind), and writes a number behind it.
    #[inline]
    fn head(&mut self, kind: u8, number: usize) -> Result<(), Error> {
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
    fn part<T: Serialize + ?Sized>(&mut self, implied: u8, value: &T) -> Result<(), Error> {
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
    fn nested<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        enter(&mut self.depth)?;
        let result = self.part(self.implied, value);
        self.depth -= 1;
        result
    }

    #[inline]
    fn numbered(&mut self) -> &mut Numbered {
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
    fn variant(
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
    fn first_name(&mut self, at: usize, name: &'static str) {
        if let Some(known) = self.numbered().fields.get_mut(at) {
            *known = name;
        }
        self.text(name);
    }

    /// Returns whether the name that was written for this field is the same constant.
    #[inline(always)]
    fn is_name(&self, at: usize, name: &'static str) -> bool {
        let numbered = self.numbered.as_ref();
        numbered.is_some_and(|numbered| {
            numbered.fields.get(at).is_some_and(|known| std::ptr::eq(*known, name))
        })
    }

    /// Accepts a field's name at another address if the text is the same. Otherwise returns an
    /// error.
    #[cold]
    #[inline(never)]
    fn other_name(&mut self, of: &str, at: usize, name: &'static str) -> Result<(), Error> {
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
    fn structure(
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
    fn elements(&mut self, left: usize, each: bool) -> Result<Elements<'_, 'a>, Error> {
        enter(&mut self.depth)?;
        // The elements of a tuple may have different types. A sequence takes its kind from the
        // first element.
        let kind = if each { Some(kind::EACH) } else { None };
        Ok(Elements { writer: self, left, kind })
    }
}

macro_rules! write_numbers {
    ($($method:ident($type:ty) => |$writer:ident, $value:ident| $write:expr;)*) => {$(
        #[inline]
        fn $method(self, $value: $type) -> Result<(), Error> {
            let $writer = self;
            $write
        }
    )*};
}

impl<'s, 'a> ser::Serializer for &'s mut Writer<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Elements<'s, 'a>;
    type SerializeTuple = Elements<'s, 'a>;
    type SerializeTupleStruct = Elements<'s, 'a>;
    type SerializeTupleVariant = Elements<'s, 'a>;
    type SerializeMap = Entries<'s, 'a>;
    type SerializeStruct = Fields<'s, 'a>;
    type SerializeStructVariant = Fields<'s, 'a>;

    write_numbers! {
        serialize_bool(bool) => |writer, value| writer.fixed(kind::BOOL, [value.into()]);
        serialize_u8(u8) => |writer, value| writer.fixed(kind::U8, [value]);
        serialize_i8(i8) => |writer, value| writer.fixed(kind::I8, [value as u8]);
        serialize_f32(f32) => |writer, value| writer.fixed(kind::F32, value.to_le_bytes());
        serialize_f64(f64) => |writer, value| writer.fixed(kind::F64, value.to_le_bytes());
        serialize_u16(u16) => |writer, value| writer.unsigned(kind::U16, value.into());
        serialize_u32(u32) => |writer, value| writer.unsigned(kind::U32, value.into());
        serialize_u64(u64) => |writer, value| writer.unsigned(kind::U64, value);
        serialize_u128(u128) => |writer, value| writer.huge(kind::U128, value);
        serialize_i16(i16) => |writer, value| writer.signed(kind::I16, value.into());
        serialize_i32(i32) => |writer, value| writer.signed(kind::I32, value.into());
        serialize_i64(i64) => |writer, value| writer.signed(kind::I64, value);
        serialize_i128(i128) => |writer, value| writer.huge(kind::I128, ((value << 1) ^ (value >> 127)) as u128);
        serialize_char(char) => |writer, value| writer.unsigned(kind::CHAR, u32::from(value).into());
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn serialize_str(self, value: &str) -> Result<(), Error> {
        self.head(kind::STR, value.len())?;
        self.out.extend_from_slice(value.as_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_bytes(self, value: &[u8]) -> Result<(), Error> {
        self.head(kind::BYTES, value.len())?;
        self.out.extend_from_slice(value);
        Ok(())
    }

    fn collect_str<T: std::fmt::Display + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.serialize_str(&error::display(value)?)
    }

    #[inline]
    fn serialize_none(self) -> Result<(), Error> {
        self.kind(kind::NONE)
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.kind(kind::SOME)?;
        self.nested(value)
    }

    #[inline]
    fn serialize_unit(self) -> Result<(), Error> {
        self.kind(kind::UNIT)
    }

    #[inline]
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        self.kind(kind::UNIT)
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<(), Error> {
        self.variant(kind::UNIT_VARIANT, name, index, variant)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.nested(value)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.variant(kind::NEWTYPE_VARIANT, name, index, variant)?;
        self.nested(value)
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Elements<'s, 'a>, Error> {
        let len = len.ok_or_else(unknown_length)?;
        self.head(kind::SEQ, len)?;
        self.elements(len, false)
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Entries<'s, 'a>, Error> {
        let len = len.ok_or_else(unknown_length)?;
        self.head(kind::MAP, len)?;
        enter(&mut self.depth)?;
        Ok(Entries { writer: self, left: len, value_due: false })
    }

    #[inline]
    fn serialize_tuple(self, len: usize) -> Result<Elements<'s, 'a>, Error> {
        self.head(kind::TUPLE, len)?;
        self.elements(len, true)
    }

    #[inline]
    fn serialize_tuple_struct(
        self,
        _: &'static str,
        len: usize,
    ) -> Result<Elements<'s, 'a>, Error> {
        self.serialize_tuple(len)
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Elements<'s, 'a>, Error> {
        self.variant(kind::TUPLE_VARIANT, name, index, variant)?;
        self.varint(len as u64);
        self.elements(len, true)
    }

    #[inline(always)]
    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Fields<'s, 'a>, Error> {
        self.not_implied()?;
        self.structure(Some(kind::STRUCT), name, name, len)
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Fields<'s, 'a>, Error> {
        self.variant(kind::STRUCT_VARIANT, name, index, variant)?;
        self.structure(None, name, variant, len)
    }
}

/// Writes a sequence or a tuple.
pub(super) struct Elements<'s, 'a> {
    writer: &'s mut Writer<'a>,
    left: usize,
    /// The kind that stands in front of the elements. `None` until it is written.
    kind: Option<u8>,
}

impl Elements<'_, '_> {
    #[inline]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.writer.count(&mut self.left)?;
        self.writer.part(kind::EACH, value)
    }

    /// Does the same as [`element`](Self::element), for an element of a sequence.
    #[inline]
    fn alike<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.writer.count(&mut self.left)?;
        let kind = kind::of_elements::<T>();
        match self.kind {
            Some(other) if other == kind => {}
            // Each element of this sequence has its own kind.
            Some(kind::EACH) => return self.writer.part(kind::EACH, value),
            // The kind in front of the elements does not suit this one.
            Some(_) => return self.writer.fail(mixed()),
            None => {
                self.kind = Some(kind);
                self.writer.out.push(kind);
            }
        }
        self.writer.part(kind, value)
    }

    #[inline]
    fn finish(self) -> Result<(), Error> {
        self.writer.depth -= 1;
        if self.left == 0 { Ok(()) } else { Err(error::wrong_length()) }
    }
}

macro_rules! write_elements {
    ($($trait:ident::$method:ident => $write:ident),* $(,)?) => {$(
        impl ser::$trait for Elements<'_, '_> {
            type Ok = ();
            type Error = Error;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                self.$write(value)
            }

            #[inline]
            fn end(self) -> Result<(), Error> {
                self.finish()
            }
        }
    )*};
}

write_elements!(
    SerializeSeq::serialize_element => alike,
    SerializeTuple::serialize_element => element,
    SerializeTupleStruct::serialize_field => element,
    SerializeTupleVariant::serialize_field => element,
);

/// Writes a structure.
pub(super) struct Fields<'s, 'a> {
    writer: &'s mut Writer<'a>,
    name: &'static str,
    /// Index of the next field among all fields of the message.
    field: usize,
    /// Index behind the last field.
    end: usize,
    /// Index of the structure among all structures of the message.
    of: usize,
    is_first: bool,
}

impl Fields<'_, '_> {
    #[inline(always)]
    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
        let at = self.field;
        if at == self.end {
            return self.writer.fail(error::wrong_length().of_type(self.name));
        }
        self.field = at + 1;
        if self.is_first {
            self.writer.first_name(at, name);
        } else if !self.writer.is_name(at, name) {
            self.writer.other_name(self.name, at, name)?;
        }
        self.writer.part(kind::EACH, value)
    }

    #[inline]
    fn finish(self) -> Result<(), Error> {
        self.writer.depth -= 1;
        if self.field != self.end {
            return Err(error::wrong_length().of_type(self.name));
        }
        if self.is_first
            && let Some(this) = self.writer.numbered().structs.get_mut(self.of)
        {
            // From now on, the structure can be written again by its number.
            this.complete = true;
        }
        Ok(())
    }
}

macro_rules! write_fields {
    ($($trait:ident),* $(,)?) => {$(
        impl ser::$trait for Fields<'_, '_> {
            type Ok = ();
            type Error = Error;

            #[inline(always)]
            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
                self.field(name, value)
            }

            fn skip_field(&mut self, name: &'static str) -> Result<(), Error> {
                let error = Error::cannot(&format!(
                    "the type `{}` leaves out its field `{name}` (`#[serde(skip_serializing_if = …)]`)",
                    self.name
                ));
                self.writer.fail(error)
            }

            #[inline]
            fn end(self) -> Result<(), Error> {
                self.finish()
            }
        }
    )*};
}

write_fields!(SerializeStruct, SerializeStructVariant);

/// Writes a map.
pub(super) struct Entries<'s, 'a> {
    writer: &'s mut Writer<'a>,
    left: usize,
    value_due: bool,
}

impl ser::SerializeMap for Entries<'_, '_> {
    type Ok = ();
    type Error = Error;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        if self.value_due {
            return self.writer.fail(error::wrong_length());
        }
        self.writer.count(&mut self.left)?;
        self.value_due = true;
        self.writer.part(kind::EACH, key)
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        if !self.value_due {
            return self.writer.fail(error::wrong_length());
        }
        self.value_due = false;
        self.writer.part(kind::EACH, value)
    }

    #[inline]
    fn end(self) -> Result<(), Error> {
        self.writer.depth -= 1;
        if self.left == 0 && !self.value_due { Ok(()) } else { Err(error::wrong_length()) }
    }
}

// ---- reading --------------------------------------------------------------------------------

/// A structure that the reader has begun.
#[derive(Clone, Copy, Default)]
struct Known {
    count: usize,
    /// Index of the name of its first field.
    first: usize,
    /// Whether all of its names are known.
    complete: bool,
    /// The list and visitor that read it the last time, and whether these read it by position.
    asked: Asking,
    by_position: bool,
}

/// The reader of a structure: the address of the list of fields, and the address of the visitor's
/// name.
///
/// Both are needed. A derived visitor and a visitor that was written by hand can have the same
/// list, but only one of them reads by position.
#[derive(Clone, Copy, Default, PartialEq)]
struct Asking {
    list: usize,
    visitor: usize,
}

impl Asking {
    #[inline]
    fn of<V>(list: &'static [&'static str]) -> Self {
        Asking { list: list.as_ptr() as usize, visitor: type_name::<V>().as_ptr() as usize }
    }
}

#[derive(Clone, Copy, Default)]
struct KnownVariant<'de> {
    name: &'de str,
    index: u32,
    /// The list of `Deserialize` in which the variant was found the last time.
    asked: usize,
}

/// The structures, fields and variants that have numbers in the message being read.
#[derive(Default)]
struct Names<'de> {
    structs: Vec<Known>,
    fields: Vec<&'de str>,
    variants: Vec<KnownVariant<'de>>,
    /// How many more fields may be announced. Each field takes at least two bytes.
    fields_left: usize,
    /// The number of the structure that was read by position last, if the number takes one byte,
    /// and the reader of it. The next structure is probably of the same kind.
    last_number: u8,
    last_asked: Asking,
}

thread_local! {
    /// The last message's table, emptied, as in [`NUMBERED`].
    static NAMES: Cell<Option<Names<'static>>> = const { Cell::new(None) };
}

/// The names of the message that is being read. `None` until there are some.
struct Table<'de>(Option<Names<'de>>);

impl<'de> Table<'de> {
    #[inline]
    fn get(&mut self, bytes_left: usize) -> &mut Names<'de> {
        self.0.get_or_insert_with(|| Names::take(bytes_left))
    }
}

impl Drop for Table<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(names) = self.0.take() {
            names.put_back();
        }
    }
}

impl<'de> Names<'de> {
    #[inline(never)]
    fn take(fields_left: usize) -> Self {
        Names { fields_left, ..local::take(&NAMES).unwrap_or_default() }
    }

    #[inline(never)]
    fn put_back(self) {
        let Names { mut structs, fields, variants, .. } = self;
        if fields.capacity() + structs.capacity() + variants.capacity() <= KEPT_NAMES_MAX {
            structs.clear();
            // The empty vectors may hold names with any lifetime. Collecting in this way keeps
            // their memory.
            let fields = fields.into_iter().take(0).map(|_| "").collect();
            let variants = variants.into_iter().take(0).map(|_| KnownVariant::default()).collect();
            local::put(&NAMES, Some(Names { structs, fields, variants, ..Names::default() }));
        }
    }
}

/// Reads values, one after the other.
pub struct Reader<'de> {
    input: &'de [u8],
    depth: usize,
    /// The kind of the next value, if it does not stand in front of the value, or was taken
    /// already. Otherwise 0.
    pending: u8,
    /// Whether a value was left in its middle. Then nothing that follows can be trusted.
    failed: bool,
    /// How many more elements may be announced to visitors. Visitors allocate memory for announced
    /// elements before these exist; each element takes at least one byte. The whole value has one
    /// budget. Otherwise nested lists would each reserve what only one of them can have.
    unhinted: usize,
    names: Table<'de>,
}

/// Reads `bytes` if they consist of one small number or a unit, as most results do. Making a
/// [`Reader`] would take longer than reading them. Returns `None` for anything else: then a
/// `Reader` reads the bytes, or returns the error.
#[inline(always)]
pub(super) fn lone<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Option<T> {
    let asked = kind::of_simple::<T>();
    let value: Result<T, Error> = match *bytes {
        [kind] if kind == asked && kind == kind::UNIT => {
            T::deserialize(plain::UnitDeserializer::new())
        }
        [kind, byte @ ..0x80] if kind == asked => match kind {
            kind::U8 | kind::U16 | kind::U32 | kind::U64 => {
                T::deserialize(plain::U64Deserializer::new(byte.into()))
            }
            kind::I16 | kind::I32 | kind::I64 => {
                T::deserialize(plain::I64Deserializer::new(unzigzag(byte.into())))
            }
            kind::BOOL if byte < 2 => T::deserialize(plain::BoolDeserializer::new(byte == 1)),
            _ => return None,
        },
        _ => return None,
    };
    value.ok()
}

#[inline]
fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Returns the length of a byte string, and where its contents begin in `head`.
pub(super) fn bytes_head(head: &[u8]) -> Option<(u64, usize)> {
    let mut reader = Reader::new(head.strip_prefix(&[kind::BYTES])?);
    let len = reader.varint().ok()?;
    Some((len, head.len() - reader.input.len()))
}

impl<'de> Reader<'de> {
    #[inline]
    pub(super) fn new(input: &'de [u8]) -> Self {
        Reader { input, depth: 0, pending: 0, failed: false, unhinted: 0, names: Table(None) }
    }

    #[inline]
    pub(super) fn remaining(&self) -> usize {
        self.input.len()
    }

    /// Reads one value: what one writer wrote.
    #[inline]
    pub(super) fn value<T: Deserialize<'de>>(&mut self) -> Result<T, Error> {
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

    /// Reads a part of the value. `kind` is its kind, if the kind does not stand in front of it.
    #[inline]
    fn part<T: DeserializeSeed<'de>>(&mut self, kind: u8, seed: T) -> Result<T::Value, Error> {
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
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        match self.input.split_first_chunk() {
            Some((bytes, rest)) => {
                self.input = rest;
                Ok(*bytes)
            }
            None => self.fail(error::ends_early()),
        }
    }

    #[inline]
    fn take(&mut self, len: u64) -> Result<&'de [u8], Error> {
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
    fn is_next(&mut self, kind: u8) -> bool {
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
    fn kind(&mut self) -> Result<u8, Error> {
        match std::mem::take(&mut self.pending) {
            0 => self.array().map(|[kind]| kind),
            kind => Ok(kind),
        }
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Error> {
        match self.input {
            [byte, rest @ ..] if *byte < 0x80 => {
                self.input = rest;
                Ok(u64::from(*byte))
            }
            _ => self.long(),
        }
    }

    fn long(&mut self) -> Result<u64, Error> {
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

    fn huge(&mut self) -> Result<u128, Error> {
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
    fn unsigned<T: TryFrom<u64>>(&mut self) -> Result<T, Error> {
        let value = self.varint()?;
        T::try_from(value).or_else(|_| self.fail(error::no_value("a number is too large")))
    }

    #[inline]
    fn signed<T: TryFrom<i64>>(&mut self) -> Result<T, Error> {
        let value = self.varint().map(unzigzag)?;
        T::try_from(value).or_else(|_| self.fail(error::no_value("a number is too large")))
    }

    fn unsigned_huge(&mut self) -> Result<u128, Error> {
        self.huge()
    }

    fn signed_huge(&mut self) -> Result<i128, Error> {
        let value = self.huge()?;
        Ok((value >> 1) as i128 ^ -((value & 1) as i128))
    }

    #[inline]
    fn boolean(&mut self) -> Result<bool, Error> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => self.fail(error::no_value("a bool is 0 or 1")),
        }
    }

    #[inline]
    fn letter(&mut self) -> Result<char, Error> {
        let value = self.varint()?;
        match u32::try_from(value).ok().and_then(char::from_u32) {
            Some(letter) => Ok(letter),
            None => self.fail(error::no_value("a char is none")),
        }
    }

    #[inline]
    fn bytes(&mut self) -> Result<&'de [u8], Error> {
        let len = self.varint()?;
        self.take(len)
    }

    #[inline]
    fn text(&mut self) -> Result<&'de str, Error> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).or_else(|_| self.fail(error::no_value("a text is not UTF-8")))
    }

    /// Reads the number of items, each of which takes at least one byte.
    #[inline]
    fn count(&mut self) -> Result<usize, Error> {
        let len = self.varint()?;
        let follow = self.input.len();
        match usize::try_from(len) {
            Ok(len) if len <= follow => Ok(len),
            _ => self.fail(error::announced(len, follow)),
        }
    }

    /// Reads the number of elements of a sequence, and the kind that stands in front of them.
    #[inline]
    fn sequence(&mut self) -> Result<(usize, u8), Error> {
        match self.count()? {
            0 => Ok((0, kind::EACH)),
            len => match self.array()? {
                [kind @ ..=kind::CHAR] => Ok((len, kind)),
                _ => self.fail(error::no_value("a sequence of an unknown kind")),
            },
        }
    }

    #[inline]
    fn nested<T>(&mut self, visit: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = enter(&mut self.depth) {
            return self.fail(error);
        }
        let result = visit(self);
        self.depth -= 1;
        result
    }

    /// Does the same as [`nested`](Self::nested), if this is a level.
    #[inline]
    fn nested_if<T>(
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
    fn within<T>(&mut self, visit: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        self.depth -= 1;
        let result = visit(self);
        self.depth += 1;
        result
    }

    #[inline]
    fn elements<V: Visitor<'de>>(
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
    fn tuple<V: Visitor<'de>>(
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

    #[inline]
    fn names(&mut self) -> &mut Names<'de> {
        self.names.get(self.input.len())
    }

    /// Reads the head of a structure.
    #[inline]
    fn structure(&mut self) -> Result<Structure, Error> {
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
    fn field(
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
    fn end(&mut self, structure: &Structure) {
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
    fn fields<V: Visitor<'de>>(
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

    fn by_name<V: Visitor<'de>>(
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

    fn entries<V: Visitor<'de>>(
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

    /// Reads the variant of the next value. `Deserialize` must have it in its list.
    #[inline]
    fn variant(
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

    /// Takes the next value and drops it.
    fn skip(&mut self) -> Result<(), Error> {
        let kind = self.kind()?;
        match kind {
            kind::BOOL | kind::U8 | kind::I8 => self.take(1).map(drop),
            kind::U16 | kind::U32 | kind::U64 | kind::I16 | kind::I32 | kind::I64 | kind::CHAR => {
                self.varint().map(drop)
            }
            kind::U128 | kind::I128 => self.huge().map(drop),
            kind::F32 => self.take(4).map(drop),
            kind::F64 => self.take(8).map(drop),
            kind::STR | kind::BYTES => self.bytes().map(drop),
            kind::NONE | kind::UNIT => Ok(()),
            kind::SOME => self.skip_all(1, kind::EACH),
            kind::SEQ => {
                let (len, kind) = self.sequence()?;
                self.skip_all(len, kind)
            }
            kind::TUPLE => {
                let len = self.count()?;
                self.skip_all(len, kind::EACH)
            }
            kind::MAP => {
                let len = self.count()?;
                self.skip_all(len.saturating_mul(2), kind::EACH)
            }
            kind::STRUCT => self.skip_structure(),
            kind::UNIT_VARIANT => self.variant(None).map(drop),
            kind::NEWTYPE_VARIANT => {
                self.variant(None)?;
                self.skip_all(1, kind::EACH)
            }
            kind::TUPLE_VARIANT => {
                self.variant(None)?;
                let len = self.count()?;
                self.skip_all(len, kind::EACH)
            }
            kind::STRUCT_VARIANT => {
                self.variant(None)?;
                self.skip_structure()
            }
            _ => self.unknown_kind(),
        }
    }

    fn skip_all(&mut self, len: usize, kind: u8) -> Result<(), Error> {
        self.nested(|reader| {
            for _ in 0..len {
                reader.pending = kind;
                reader.skip()?;
            }
            Ok(())
        })
    }

    fn skip_structure(&mut self) -> Result<(), Error> {
        self.nested(|reader| {
            // A skipped structure gets its number and its names all the same, because a later one
            // may refer to them.
            let mut structure = reader.structure()?;
            while structure.left > 0 {
                reader.field(&mut structure, None)?;
                reader.skip()?;
            }
            reader.end(&structure);
            Ok(())
        })
    }

    #[cold]
    fn unknown_kind<T>(&mut self) -> Result<T, Error> {
        self.fail(error::no_value("an unknown kind"))
    }

    #[cold]
    fn differs<T>(&mut self, written: u8, asked: &str) -> Result<T, Error> {
        match usize::from(written) < kind::NAMES.len() && written != kind::EACH {
            true => self.fail(Error::differs(name_of(written), asked)),
            false => self.unknown_kind(),
        }
    }

    /// Reads a value that is not of the kind that is asked for.
    ///
    /// A value that means the same is passed to the visitor as the kind it is, and the visitor
    /// decides. These are integers of another width, which visitors compare with their range;
    /// texts, characters and byte strings; a variant without contents for its name. A float of
    /// another width, or an integer for a float, would be rounded and is an error. The exception is
    /// an `f32` for an `f64`, which is exact.
    #[cold]
    #[inline(never)]
    fn other<V: Visitor<'de>>(&mut self, asked: u8, visitor: V) -> Result<V::Value, Error> {
        let written = self.kind()?;
        let is_integer = |kind: u8| (kind::U8..=kind::I128).contains(&kind);
        let is_text = matches!(asked, kind::STR | kind::CHAR | kind::BYTES);
        match written {
            written if is_integer(asked) && is_integer(written) => self.integer(written, visitor),
            kind::F32 if asked == kind::F64 => {
                let value = self.array().map(f32::from_le_bytes)?;
                visitor.visit_f32(value)
            }
            kind::CHAR if is_text => {
                let letter = self.letter()?;
                visitor.visit_char(letter)
            }
            kind::STR if is_text => {
                let text = self.text()?;
                visitor.visit_borrowed_str(text)
            }
            kind::BYTES if is_text => {
                let bytes = self.bytes()?;
                visitor.visit_borrowed_bytes(bytes)
            }
            kind::UNIT_VARIANT if asked == kind::STR => {
                let name = self.variant(None)?.name;
                visitor.visit_borrowed_str(name)
            }
            // A slice of bytes is written as a sequence, and read as a byte string.
            kind::SEQ if asked == kind::BYTES => match self.sequence()? {
                (0, _) => visitor.visit_borrowed_bytes(&[]),
                (len, kind::U8) => {
                    let bytes = self.take(len as u64)?;
                    visitor.visit_borrowed_bytes(bytes)
                }
                _ => self.differs(written, name_of(asked)),
            },
            written => self.differs(written, name_of(asked)),
        }
    }

    fn integer<V: Visitor<'de>>(&mut self, written: u8, visitor: V) -> Result<V::Value, Error> {
        match written {
            kind::U8 => visitor.visit_u8(self.array().map(|[byte]| byte)?),
            kind::U16 => visitor.visit_u16(self.unsigned()?),
            kind::U32 => visitor.visit_u32(self.unsigned()?),
            kind::U64 => visitor.visit_u64(self.unsigned()?),
            kind::U128 => visitor.visit_u128(self.unsigned_huge()?),
            kind::I8 => visitor.visit_i8(self.array().map(|[byte]| byte as i8)?),
            kind::I16 => visitor.visit_i16(self.signed()?),
            kind::I32 => visitor.visit_i32(self.signed()?),
            kind::I64 => visitor.visit_i64(self.signed()?),
            _ => visitor.visit_i128(self.signed_huge()?),
        }
    }
}

/// The rest of a structure that is being read.
struct Structure {
    at: usize,
    left: usize,
    field: usize,
    is_first: bool,
}

macro_rules! read {
    ($($method:ident: $kind:ident => $visit:ident(|$reader:ident| $read:expr);)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let $reader = self;
            match $reader.is_next(kind::$kind) {
                true => visitor.$visit($read?),
                false => $reader.other(kind::$kind, visitor),
            }
        }
    )*};
}

impl<'de> de::Deserializer<'de> for &mut Reader<'de> {
    type Error = Error;

    read! {
        deserialize_bool: BOOL => visit_bool(|reader| reader.boolean());
        deserialize_u8: U8 => visit_u8(|reader| reader.array().map(|[byte]| byte));
        deserialize_u16: U16 => visit_u16(|reader| reader.unsigned());
        deserialize_u32: U32 => visit_u32(|reader| reader.unsigned());
        deserialize_u64: U64 => visit_u64(|reader| reader.varint());
        deserialize_u128: U128 => visit_u128(|reader| reader.unsigned_huge());
        deserialize_i8: I8 => visit_i8(|reader| reader.array().map(|[byte]| byte as i8));
        deserialize_i16: I16 => visit_i16(|reader| reader.signed());
        deserialize_i32: I32 => visit_i32(|reader| reader.signed());
        deserialize_i64: I64 => visit_i64(|reader| reader.signed());
        deserialize_i128: I128 => visit_i128(|reader| reader.signed_huge());
        deserialize_f32: F32 => visit_f32(|reader| reader.array().map(f32::from_le_bytes));
        deserialize_f64: F64 => visit_f64(|reader| reader.array().map(f64::from_le_bytes));
        deserialize_char: CHAR => visit_char(|reader| reader.letter());
        deserialize_str: STR => visit_borrowed_str(|reader| reader.text());
        deserialize_string: STR => visit_borrowed_str(|reader| reader.text());
        deserialize_identifier: STR => visit_borrowed_str(|reader| reader.text());
        deserialize_bytes: BYTES => visit_borrowed_bytes(|reader| reader.bytes());
        deserialize_byte_buf: BYTES => visit_borrowed_bytes(|reader| reader.bytes());
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        self.fail(self_describing())
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.skip()?;
        visitor.visit_unit()
    }

    /// Accepts a value without `Some` as a `Some`, because `with` modules made for JSON write it
    /// so.
    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.kind()? {
            kind::NONE => visitor.visit_none(),
            kind::SOME => self.nested(|reader| visitor.visit_some(reader)),
            // A unit may be meant as `None` or as `Some(())`.
            kind::UNIT => self.differs(kind::UNIT, "an option"),
            other => {
                self.pending = other;
                self.nested(|reader| visitor.visit_some(reader))
            }
        }
    }

    #[inline]
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.kind()? {
            kind::UNIT => visitor.visit_unit(),
            other => self.differs(other, "a unit"),
        }
    }

    #[inline]
    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.nested(|reader| visitor.visit_newtype_struct(reader))
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let (len, kind) = match self.kind()? {
            kind::SEQ => self.sequence()?,
            kind::TUPLE => (self.count()?, kind::EACH),
            kind::BYTES => (self.count()?, kind::U8),
            other => return self.differs(other, "a sequence"),
        };
        self.elements(len, kind, visitor)
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        let kind = self.kind()?;
        self.tuple(kind, len, visitor)
    }

    #[inline]
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_tuple(len, visitor)
    }

    #[inline]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.kind()? {
            kind::MAP => self.entries(None, visitor),
            kind::STRUCT => self.nested(|reader| {
                let structure = reader.structure()?;
                reader.by_name(structure, None, visitor)
            }),
            other => self.differs(other, "a map"),
        }
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.kind()? {
            kind::STRUCT => self.fields(name, fields, visitor),
            kind::MAP => self
                .entries(Some(FieldNames::new(name, fields)), visitor)
                .map_err(|error| error.of_type(name)),
            other => self.differs(other, "a struct").map_err(|error| error.of_type(name)),
        }
    }

    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.kind()? {
            kind @ kind::UNIT_VARIANT..=kind::STRUCT_VARIANT => {
                // The writer counts no level for a unit variant, which has no contents.
                let visit = |reader: &mut Reader<'de>| {
                    let variant = reader.variant(Some((name, variants)))?;
                    visitor.visit_enum(Variant { reader, kind, name, variant })
                };
                self.nested_if(kind != kind::UNIT_VARIANT, visit)
                    .map_err(|error| error.of_type(name))
            }
            kind::STR => {
                let variant = Name { name: self.text()?, index: None };
                de::Deserializer::deserialize_enum(variant, name, variants, visitor)
            }
            other => self.differs(other, "an enum").map_err(|error| error.of_type(name)),
        }
    }
}

/// Implements `next_element`. Without it, the provided method is a call for each element.
macro_rules! next_element {
    () => {
        #[inline(always)]
        fn next_element<T: Deserialize<'de>>(&mut self) -> Result<Option<T>, Error> {
            self.next_element_seed(std::marker::PhantomData)
        }
    };
}

/// The elements of a sequence or a tuple.
struct Parts<'r, 'de> {
    reader: &'r mut Reader<'de>,
    left: usize,
    hint: usize,
    kind: u8,
}

impl<'de> de::SeqAccess<'de> for &mut Parts<'_, 'de> {
    type Error = Error;

    next_element!();

    #[inline(always)]
    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.reader.part(self.kind, seed).map(Some)
    }

    /// Returns a bound for visitors that allocate as many elements as it says.
    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.left.min(self.hint))
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

impl Pairs<'_, '_> {
    /// Passes the key to the names without taking it; the visitor reads it again.
    #[inline(never)]
    fn look_ahead(&mut self) -> Result<(), Error> {
        let mut ahead = Reader::new(self.reader.input);
        self.field = match ahead.kind()? {
            kind::STR => ahead.text().ok(),
            _ => None,
        };
        if let (Some(names), Some(field)) = (&mut self.names, self.field) {
            names.hand(field);
        }
        Ok(())
    }
}

impl<'de> de::MapAccess<'de> for &mut Pairs<'_, 'de> {
    type Error = Error;

    #[inline]
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
        if self.names.is_some() {
            self.look_ahead()?;
        }
        self.reader.part(0, seed).map(Some)
    }

    #[inline]
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        if !std::mem::take(&mut self.value_due) {
            return self.reader.fail(error::reads_nothing());
        }
        match self.reader.part(0, seed) {
            Ok(value) => Ok(value),
            Err(error) => Err(match (&self.names, self.field) {
                (Some(names), Some(field)) => error.of_part("field", field, names.name),
                _ => error,
            }),
        }
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.left.min(self.hint))
    }
}

/// A variant and its contents.
struct Variant<'r, 'de> {
    reader: &'r mut Reader<'de>,
    kind: u8,
    name: &'static str,
    variant: KnownVariant<'de>,
}

impl<'r, 'de> Variant<'r, 'de> {
    #[inline]
    fn of_kind(self, kind: u8) -> Result<&'r mut Reader<'de>, Error> {
        match self.kind == kind {
            true => Ok(self.reader),
            false => {
                let error = Error::differs(name_of(self.kind), name_of(kind));
                self.reader.fail(error.of_part("variant", self.variant.name, self.name))
            }
        }
    }
}

impl<'de> de::EnumAccess<'de> for Variant<'_, 'de> {
    type Error = Error;
    type Variant = Self;

    #[inline]
    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let KnownVariant { name, index, .. } = self.variant;
        match seed.deserialize(Name { name, index: Some(index) }) {
            Ok(value) => Ok((value, self)),
            // The contents of the variant stay unread.
            Err(error) => self.reader.fail(error),
        }
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'_, 'de> {
    type Error = Error;

    #[inline]
    fn unit_variant(self) -> Result<(), Error> {
        self.of_kind(kind::UNIT_VARIANT).map(drop)
    }

    #[inline]
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        let (name, variant) = (self.name, self.variant.name);
        let reader = self.of_kind(kind::NEWTYPE_VARIANT)?;
        reader.part(0, seed).map_err(|error| error.of_part("variant", variant, name))
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        let (name, variant) = (self.name, self.variant.name);
        let reader = self.of_kind(kind::TUPLE_VARIANT)?;
        reader
            .within(|reader| reader.tuple(kind::TUPLE_VARIANT, len, visitor))
            .map_err(|error| error.of_part("variant", variant, name))
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let name = self.name;
        self.of_kind(kind::STRUCT_VARIANT)?.within(|reader| reader.fields(name, fields, visitor))
    }
}
