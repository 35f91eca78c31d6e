//! The reader as serde's `Deserializer`: compares what a type asks for with what was written.

use serde::{
    Deserialize,
    de::{self, DeserializeSeed, Visitor},
};

use super::{
    super::{
        access::{Fields as FieldNames, Name},
        error::{self, Error},
    },
    kind::{self, name_of},
    reader::Reader,
    tables::KnownVariant,
};

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
pub(super) use next_element;

/// The elements of a sequence or a tuple.
pub(super) struct Parts<'r, 'de> {
    pub(super) reader: &'r mut Reader<'de>,
    pub(super) left: usize,
    pub(super) hint: usize,
    pub(super) kind: u8,
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

#[cold]
fn self_describing() -> Error {
    Error::cannot(
        "the type asks what comes next in the bytes (`#[serde(untagged)]`, `#[serde(tag = …)]`, `#[serde(flatten)]` \
         and types like `serde_json::Value` do that)",
    )
}
