//! Writes values in MessagePack.

use serde::{Serialize, ser};

use super::{
    super::{
        Buffer, enter,
        error::{self, Error},
    },
    I128, SOMES, U128,
};

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
pub(in super::super) fn encode<T: Serialize + ?Sized>(
    value: &T,
    out: &mut Buffer,
) -> Result<(), Error> {
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
