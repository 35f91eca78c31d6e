//! The writer as serde's `Serializer`.

use serde::{Serialize, ser};

use super::{
    super::{
        enter,
        error::{self, Error},
    },
    kind,
    writer::{Writer, mixed},
};

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
    pub(super) writer: &'s mut Writer<'a>,
    pub(super) left: usize,
    /// The kind that stands in front of the elements. `None` until it is written.
    pub(super) kind: Option<u8>,
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
    pub(super) writer: &'s mut Writer<'a>,
    pub(super) name: &'static str,
    /// Index of the next field among all fields of the message.
    pub(super) field: usize,
    /// Index behind the last field.
    pub(super) end: usize,
    /// Index of the structure among all structures of the message.
    pub(super) of: usize,
    pub(super) is_first: bool,
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

#[cold]
fn unknown_length() -> Error {
    Error::cannot(
        "the type writes a sequence or map of unknown length (`#[serde(flatten)]` does that)",
    )
}
