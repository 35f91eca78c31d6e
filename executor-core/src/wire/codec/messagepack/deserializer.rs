//! The reader as serde's `Deserializer`: compares what a type asks for with what was written.

use serde::de::{self, DeserializeSeed, Visitor};

use super::{
    super::{
        access::{Fields as FieldNames, Name, check_variant, keeps_for_later},
        error::{self, Error},
    },
    reader::{Reader, ValueHead},
};

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
pub(super) struct Parts<'r, 'de> {
    pub(super) reader: &'r mut Reader<'de>,
    pub(super) left: usize,
    pub(super) hint: usize,
    /// Whether they are the bytes of a byte string.
    pub(super) are_bytes: bool,
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
pub(super) struct Pairs<'r, 'de> {
    pub(super) reader: &'r mut Reader<'de>,
    pub(super) left: usize,
    pub(super) hint: usize,
    pub(super) value_due: bool,
    /// The names of the structure, if one is asked for instead of a map.
    pub(super) names: Option<FieldNames<'de>>,
    pub(super) field: Option<&'de str>,
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
