//! Values that are not of the kind that is asked for: what is skipped, what is passed on because it
//! means the same, and what is an error.

use serde::de::Visitor;

use super::{
    super::error::{self, Error},
    kind::{self, name_of},
    reader::Reader,
};

impl<'de> Reader<'de> {
    /// Takes the next value and drops it.
    pub(super) fn skip(&mut self) -> Result<(), Error> {
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
    pub(super) fn differs<T>(&mut self, written: u8, asked: &str) -> Result<T, Error> {
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
    pub(super) fn other<V: Visitor<'de>>(
        &mut self,
        asked: u8,
        visitor: V,
    ) -> Result<V::Value, Error> {
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
