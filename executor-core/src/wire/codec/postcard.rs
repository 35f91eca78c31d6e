//! postcard, with messages.
//!
//! postcard's own `Serializer` and `Deserializer` drop the text of `Error::custom`, so that a user would never read
//! what his `Serialize` had to say. Here the package writes and reads the primitives, that is every byte; the walk
//! through sequences, maps, structures and enums, which in postcard writes at most a length or an index, is ours, and
//! with it the error type. The bytes are the same (tested below).
//!
//! Walking ourselves also allows to refuse what postcard would encode and then misread: a field left out by
//! `skip_serializing_if`, a sequence that announces another length than it has, nesting without end.

use serde::{
    Deserialize, Serialize, Serializer,
    de::{self, DeserializeSeed, IntoDeserializer, Visitor},
    ser,
};

use super::{Buffer, CodecError, DEPTH_MAX};

/// The sequences of one value may, all together, have this many elements more than bytes. Elements of no size
/// (`Vec<()>`) take none, so a wild length, or many lengths, would cost time without end; any other sequence runs out of
/// bytes at once.
const ZERO_SIZED_MAX: usize = 1 << 24;

fn cannot(what: &str) -> CodecError {
    CodecError::new(format!(
        "{what}, which the default codec (postcard) cannot do: write `#[task(codec = \"messagepack\")]` above the function"
    ))
}

#[cold]
fn too_deep() -> CodecError {
    CodecError::new(format!("the value is nested more than {DEPTH_MAX} deep"))
}

#[cold]
fn wrong_length() -> CodecError {
    CodecError::new("its `Serialize` announces another number of elements than it writes")
}

#[cold]
fn unknown_length() -> CodecError {
    cannot("the type writes a sequence or map of unknown length (`#[serde(flatten)]` does that)")
}

#[cold]
fn self_describing() -> CodecError {
    cannot(
        "the type asks what comes next in the bytes (`#[serde(untagged)]`, `#[serde(tag = …)]`, `#[serde(flatten)]` \
         and types like `serde_json::Value` do that)",
    )
}

#[cold]
fn of_encode(error: postcard::Error) -> CodecError {
    match error {
        postcard::Error::CollectStrError => CodecError::custom("its `Display` returned an error"),
        postcard::Error::SerializeSeqLengthUnknown => unknown_length(),
        other => CodecError::new(other.to_string()),
    }
}

#[cold]
fn of_decode(error: postcard::Error) -> CodecError {
    match error {
        postcard::Error::DeserializeUnexpectedEnd => CodecError::new("the bytes end too early"),
        postcard::Error::WontImplement => self_describing(),
        other => CodecError::new(format!("the bytes are not such a value: {other}")),
    }
}

/// postcard's output is the caller's buffer.
struct Out<'a>(&'a mut Buffer);

impl postcard::ser_flavors::Flavor for Out<'_> {
    type Output = ();

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

pub struct Writer<'a> {
    primitives: postcard::Serializer<Out<'a>>,
    depth: usize,
}

impl<'a> Writer<'a> {
    #[inline]
    pub(super) fn new(out: &'a mut Buffer) -> Self {
        Writer { primitives: postcard::Serializer { output: Out(out) }, depth: 0 }
    }

    #[inline]
    fn enter(&mut self) -> Result<(), CodecError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX { Err(too_deep()) } else { Ok(()) }
    }

    #[inline]
    fn nested<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CodecError> {
        self.enter()?;
        value.serialize(&mut *self)?;
        self.depth -= 1;
        Ok(())
    }

    #[inline]
    fn compound(&mut self, len: usize) -> Result<Compound<'_, 'a>, CodecError> {
        self.enter()?;
        Ok(Compound { writer: self, left: len })
    }

    #[inline]
    fn length(&mut self, len: Option<usize>) -> Result<usize, CodecError> {
        let len = len.ok_or_else(unknown_length)?;
        self.serialize_u64(len as u64)?;
        Ok(len)
    }
}

macro_rules! write_primitives {
    ($($method:ident($type:ty)),* $(,)?) => {$(
        #[inline]
        fn $method(self, value: $type) -> Result<(), CodecError> {
            self.primitives.$method(value).map_err(of_encode)
        }
    )*};
}

impl<'s, 'a> ser::Serializer for &'s mut Writer<'a> {
    type Ok = ();
    type Error = CodecError;
    type SerializeSeq = Compound<'s, 'a>;
    type SerializeTuple = Compound<'s, 'a>;
    type SerializeTupleStruct = Compound<'s, 'a>;
    type SerializeTupleVariant = Compound<'s, 'a>;
    type SerializeMap = Compound<'s, 'a>;
    type SerializeStruct = Compound<'s, 'a>;
    type SerializeStructVariant = Compound<'s, 'a>;

    write_primitives!(
        serialize_bool(bool),
        serialize_char(char),
        serialize_str(&str),
        serialize_bytes(&[u8]),
        serialize_i8(i8),
        serialize_i16(i16),
        serialize_i32(i32),
        serialize_i64(i64),
        serialize_i128(i128),
        serialize_u8(u8),
        serialize_u16(u16),
        serialize_u32(u32),
        serialize_u64(u64),
        serialize_u128(u128),
        serialize_f32(f32),
        serialize_f64(f64),
    );

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    fn collect_str<T: std::fmt::Display + ?Sized>(self, value: &T) -> Result<(), CodecError> {
        self.primitives.collect_str(value).map_err(of_encode)
    }

    #[inline]
    fn serialize_none(self) -> Result<(), CodecError> {
        self.serialize_u8(0)
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), CodecError> {
        self.serialize_u8(1)?;
        self.nested(value)
    }

    #[inline]
    fn serialize_unit(self) -> Result<(), CodecError> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), CodecError> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_variant(self, _: &'static str, index: u32, _: &'static str) -> Result<(), CodecError> {
        self.serialize_u32(index)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), CodecError> {
        self.nested(value)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), CodecError> {
        self.serialize_u32(index)?;
        self.nested(value)
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Compound<'s, 'a>, CodecError> {
        let len = self.length(len)?;
        self.compound(len)
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Compound<'s, 'a>, CodecError> {
        let len = self.length(len)?;
        self.compound(len)
    }

    #[inline]
    fn serialize_tuple(self, len: usize) -> Result<Compound<'s, 'a>, CodecError> {
        self.compound(len)
    }

    #[inline]
    fn serialize_tuple_struct(self, _: &'static str, len: usize) -> Result<Compound<'s, 'a>, CodecError> {
        self.compound(len)
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        len: usize,
    ) -> Result<Compound<'s, 'a>, CodecError> {
        self.serialize_u32(index)?;
        self.compound(len)
    }

    #[inline]
    fn serialize_struct(self, _: &'static str, len: usize) -> Result<Compound<'s, 'a>, CodecError> {
        self.compound(len)
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        len: usize,
    ) -> Result<Compound<'s, 'a>, CodecError> {
        self.serialize_u32(index)?;
        self.compound(len)
    }
}

/// Anything with elements: in postcard nothing stands between them.
pub struct Compound<'s, 'a> {
    writer: &'s mut Writer<'a>,
    left: usize,
}

impl Compound<'_, '_> {
    #[inline]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CodecError> {
        self.left = self.left.wrapping_sub(1);
        value.serialize(&mut *self.writer)
    }

    #[inline]
    fn finish(self) -> Result<(), CodecError> {
        self.writer.depth -= 1;
        if self.left == 0 { Ok(()) } else { Err(wrong_length()) }
    }
}

macro_rules! write_elements {
    ($($trait:ident::$method:ident),* $(,)?) => {$(
        impl ser::$trait for Compound<'_, '_> {
            type Ok = ();
            type Error = CodecError;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CodecError> {
                self.element(value)
            }

            #[inline]
            fn end(self) -> Result<(), CodecError> {
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
            type Error = CodecError;

            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Result<(), CodecError> {
                self.element(value)
            }

            fn skip_field(&mut self, name: &'static str) -> Result<(), CodecError> {
                Err(cannot(&format!("the type leaves out its field `{name}` (`#[serde(skip_serializing_if = …)]`)")))
            }

            #[inline]
            fn end(self) -> Result<(), CodecError> {
                self.finish()
            }
        }
    )*};
}

write_fields!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Compound<'_, '_> {
    type Ok = ();
    type Error = CodecError;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), CodecError> {
        key.serialize(&mut *self.writer)
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CodecError> {
        self.element(value)
    }

    #[inline]
    fn end(self) -> Result<(), CodecError> {
        self.finish()
    }
}

pub struct Reader<'de> {
    input: &'de [u8],
    depth: usize,
    /// What is left of [`ZERO_SIZED_MAX`].
    unpaid: usize,
}

impl<'de> Reader<'de> {
    #[inline]
    pub(super) fn new(input: &'de [u8]) -> Self {
        Reader { input, depth: 0, unpaid: ZERO_SIZED_MAX }
    }

    #[inline]
    pub(super) fn remaining(&self) -> usize {
        self.input.len()
    }

    #[inline]
    fn primitive<T: Deserialize<'de>>(&mut self) -> Result<T, CodecError> {
        let (value, rest) = postcard::take_from_bytes(self.input).map_err(of_decode)?;
        self.input = rest;
        Ok(value)
    }

    #[inline]
    fn length(&mut self) -> Result<usize, CodecError> {
        let len = self.primitive::<u64>()?;
        match usize::try_from(len) {
            Ok(len) if len.saturating_sub(self.unpaid) <= self.input.len() => Ok(len),
            _ => Err(CodecError::new(format!(
                "a length of {len} is announced, {} bytes follow",
                self.input.len()
            ))),
        }
    }

    /// Counts the elements that took no bytes.
    #[inline]
    fn pay(&mut self, elements: usize, before: usize) -> Result<(), CodecError> {
        let unpaid = elements.saturating_sub(before - self.input.len());
        self.unpaid = self.unpaid.checked_sub(unpaid).ok_or_else(|| {
            CodecError::new(format!("more than {ZERO_SIZED_MAX} elements of no size are announced"))
        })?;
        Ok(())
    }

    #[inline]
    fn nested<T>(&mut self, visit: impl FnOnce(&mut Self) -> Result<T, CodecError>) -> Result<T, CodecError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(too_deep());
        }
        let value = visit(self)?;
        self.depth -= 1;
        Ok(value)
    }

    #[inline]
    fn elements<V: Visitor<'de>>(&mut self, len: usize, visitor: V) -> Result<V::Value, CodecError> {
        self.nested(|reader| {
            let mut elements = Elements { reader, left: len };
            let value = visitor.visit_seq(&mut elements)?;
            elements.finish(value)
        })
    }
}

macro_rules! read_primitives {
    ($($method:ident => $visit:ident($type:ty)),* $(,)?) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
            visitor.$visit(self.primitive::<$type>()?)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for &mut Reader<'de> {
    type Error = CodecError;

    read_primitives!(
        deserialize_bool => visit_bool(bool), deserialize_char => visit_char(char),
        deserialize_i8 => visit_i8(i8), deserialize_i16 => visit_i16(i16), deserialize_i32 => visit_i32(i32),
        deserialize_i64 => visit_i64(i64), deserialize_i128 => visit_i128(i128),
        deserialize_u8 => visit_u8(u8), deserialize_u16 => visit_u16(u16), deserialize_u32 => visit_u32(u32),
        deserialize_u64 => visit_u64(u64), deserialize_u128 => visit_u128(u128),
        deserialize_f32 => visit_f32(f32), deserialize_f64 => visit_f64(f64),
        deserialize_str => visit_borrowed_str(&'de str), deserialize_string => visit_borrowed_str(&'de str),
        deserialize_bytes => visit_borrowed_bytes(&'de [u8]), deserialize_byte_buf => visit_borrowed_bytes(&'de [u8]),
    );

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, CodecError> {
        Err(self_describing())
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, CodecError> {
        Err(self_describing())
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, CodecError> {
        Err(self_describing())
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        match self.primitive::<u8>()? {
            0 => visitor.visit_none(),
            1 => self.nested(|reader| visitor.visit_some(reader)),
            _ => Err(of_decode(postcard::Error::DeserializeBadOption)),
        }
    }

    #[inline]
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        visitor.visit_unit()
    }

    #[inline]
    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        visitor.visit_unit()
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        self.nested(|reader| visitor.visit_newtype_struct(reader))
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        let len = self.length()?;
        let before = self.input.len();
        let value = self.elements(len, visitor)?;
        self.pay(len, before)?;
        Ok(value)
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, CodecError> {
        self.elements(len, visitor)
    }

    #[inline]
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        self.elements(len, visitor)
    }

    #[inline]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        let len = self.length()?;
        let before = self.input.len();
        let value = self.nested(|reader| {
            let mut elements = Elements { reader, left: len };
            let value = visitor.visit_map(&mut elements)?;
            elements.finish(value)
        })?;
        self.pay(len, before)?;
        Ok(value)
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        self.elements(fields.len(), visitor)
    }

    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        self.nested(|reader| visitor.visit_enum(reader))
    }
}

/// Hands out elements, or entries of a map.
struct Elements<'r, 'de> {
    reader: &'r mut Reader<'de>,
    left: usize,
}

impl<'de> Elements<'_, 'de> {
    /// The length hint is bounded by the bytes at hand, for visitors that allocate what it says.
    #[inline]
    fn hint(&self) -> Option<usize> {
        Some(self.left.min(self.reader.input.len()))
    }

    /// A visitor that stops early leaves bytes that the next value would be read from.
    #[inline]
    fn finish<T>(self, value: T) -> Result<T, CodecError> {
        match self.left {
            0 => Ok(value),
            n => Err(CodecError::new(format!("its `Deserialize` leaves {n} elements unread"))),
        }
    }
}

impl<'de> de::SeqAccess<'de> for &mut Elements<'_, 'de> {
    type Error = CodecError;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, CodecError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}

impl<'de> de::MapAccess<'de> for &mut Elements<'_, 'de> {
    type Error = CodecError;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, CodecError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    #[inline]
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, CodecError> {
        seed.deserialize(&mut *self.reader)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}

impl<'de> de::EnumAccess<'de> for &mut Reader<'de> {
    type Error = CodecError;
    type Variant = Self;

    #[inline]
    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), CodecError> {
        let index = self.primitive::<u32>()?;
        let value = seed.deserialize(IntoDeserializer::<CodecError>::into_deserializer(index))?;
        Ok((value, self))
    }
}

impl<'de> de::VariantAccess<'de> for &mut Reader<'de> {
    type Error = CodecError;

    #[inline]
    fn unit_variant(self) -> Result<(), CodecError> {
        Ok(())
    }

    #[inline]
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, CodecError> {
        seed.deserialize(self)
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, CodecError> {
        self.elements(len, visitor)
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        self.elements(fields.len(), visitor)
    }
}
