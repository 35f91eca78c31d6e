//! What the readers of both formats need to hand out names.

use std::ops::Range;

use serde::{
    de::{self, Visitor},
    forward_to_deserialize_any,
};

use super::error::{self, Error};

/// Compares names, by address first: nearly always it is the same constant.
#[inline]
pub(super) fn same_name(a: &str, b: &str) -> bool {
    std::ptr::eq(a, b) || a == b
}

/// Whether serde's derive made this visitor. It takes a structure as a sequence as well as by names; one that was written
/// by hand may know one of the two only. Names of types are made for people: if this one changes, structures are read by
/// names, which is slower.
pub(super) fn is_derived<V>() -> bool {
    let name = std::any::type_name::<V>();
    // The ends are compared when the program is compiled; a visitor with type parameters has them behind its name.
    name.ends_with("::__Visitor<'_>") || name.ends_with("::__Visitor") || name.contains("::__Visitor<")
}

/// Whether this visitor is one of serde's own that keep a value and try types on it later: for `untagged`, `tag` and
/// `flatten`. Any other may keep bytes and lists apart. As with [`is_derived`], the name may change with serde's version; a
/// test reads bytes through all of them.
pub(super) fn keeps_for_later<V>() -> bool {
    let name = std::any::type_name::<V>();
    // Its own path only: behind that are the names of what it is to make, which are the user's.
    let path = name.split('<').next().unwrap_or(name);
    path.starts_with("serde") && path.contains("::content::")
}

/// The names of a structure's fields, as its visitor is handed them.
///
/// A name that `Deserialize` does not have in its list is skipped, as JSON does: it is one of `skip_deserializing`, or of
/// a larger type. But if the list has one that was not written in its place, they are probably the same field, renamed on
/// one side only, and a `default` would silently make another value of it. Both halves of a derive have the fields in the
/// order in which they are declared, so the place is between the same neighbours.
pub(super) struct Fields<'de> {
    pub(super) name: &'static str,
    list: &'static [&'static str],
    /// Where the next name is expected.
    next: usize,
    unknown: Option<Box<Unknown<'de>>>,
}

/// For structures with a name that is not in the list.
#[derive(Default)]
struct Unknown<'de> {
    /// These were handed out after the first unknown one.
    seen: Vec<usize>,
    /// Names, as they lie in the message, which may have any number of them; and where each would be in the list.
    names: Vec<(&'de str, Range<usize>)>,
}

impl<'de> Fields<'de> {
    #[inline]
    pub(super) fn new(name: &'static str, list: &'static [&'static str]) -> Self {
        Fields { name, list, next: 0, unknown: None }
    }

    /// The name that is handed out next, unless something is missing or new.
    #[inline]
    pub(super) fn expected(&self) -> Option<&'static str> {
        self.list.get(self.next).copied()
    }

    #[inline]
    pub(super) fn hand(&mut self, key: &'de str) {
        match self.list.get(self.next) {
            Some(name) if self.unknown.is_none() && same_name(name, key) => self.next += 1,
            _ => self.unexpected(key),
        }
    }

    fn unexpected(&mut self, key: &'de str) {
        let at = self.list.iter().position(|name| *name == key);
        let Some(at) = at else {
            let unknown = self.unknown.get_or_insert_default();
            return unknown.names.push((key, self.next..self.list.len()));
        };
        if let Some(unknown) = &mut self.unknown {
            unknown.seen.push(at);
            for (_, place) in &mut unknown.names {
                if at >= place.start {
                    place.end = place.end.min(at);
                }
            }
        }
        self.next = at + 1;
    }

    /// After the last one.
    #[inline]
    pub(super) fn finish(&self) -> Result<(), Error> {
        match &self.unknown {
            Some(unknown) => self.renamed(unknown),
            None => Ok(()),
        }
    }

    #[cold]
    fn renamed(&self, unknown: &Unknown<'de>) -> Result<(), Error> {
        for (name, place) in &unknown.names {
            let missing = place.clone().find(|at| !unknown.seen.contains(at));
            if let Some(missing) = missing.and_then(|at| self.list.get(at)) {
                return Err(error::field_renamed(name, self.name, missing));
            }
        }
        Ok(())
    }
}

/// Refuses a variant that `Deserialize` does not have in its list. An empty list is one that nobody has filled in.
#[inline]
pub(super) fn check_variant(variant: &str, name: &str, known: &'static [&'static str]) -> Result<(), Error> {
    match known.is_empty() || known.contains(&variant) {
        true => Ok(()),
        false => Err(error::variant_unknown(variant, name, known)),
    }
}

/// The name of a variant or of a field, for the visitor of an identifier; also the number of a variant, for one that
/// asks for a number.
pub(super) struct Name<'de> {
    pub(super) name: &'de str,
    pub(super) index: Option<u32>,
}

macro_rules! index {
    ($($method:ident)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.index {
                Some(index) => visitor.visit_u32(index),
                None => Err(Error::differs("a name", "a number")),
            }
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Name<'de> {
    type Error = Error;

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_borrowed_str(self.name)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        check_variant(self.name, name, variants)?;
        visitor.visit_enum(de::value::BorrowedStrDeserializer::new(self.name))
    }

    index!(deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64);

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    mod content {
        pub(super) struct Item;
    }

    #[test]
    fn a_list_of_what_users_call_content_is_kept_by_nobody() {
        type OfSerde = de::value::SeqDeserializer<std::iter::Empty<content::Item>, de::value::Error>;
        assert!(std::any::type_name::<OfSerde>().contains("::content::"));
        assert!(!keeps_for_later::<OfSerde>());
    }
}
