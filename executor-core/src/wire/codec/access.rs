//! Checks and passes on names, for the readers of both formats.

use std::ops::Range;

use serde::{
    de::{self, Visitor},
    forward_to_deserialize_any,
};

use super::error::{self, Error};

/// Compares two names. It compares the addresses first, because nearly always both are the same
/// constant.
#[inline]
pub(super) fn same_name(a: &str, b: &str) -> bool {
    std::ptr::eq(a, b) || a == b
}

/// Returns whether serde's derive generated this visitor.
///
/// A derived visitor reads a structure as a sequence as well as by names. A visitor that was
/// written by hand may know only one of the two ways. Type names are meant for people: if this one
/// changes, structures are read by names, which is slower.
pub(super) fn is_derived<V>() -> bool {
    let name = std::any::type_name::<V>();
    // The comparisons of the ends happen at compile time. A visitor with type parameters has them
    // behind its name.
    name.ends_with("::__Visitor<'_>")
        || name.ends_with("::__Visitor")
        || name.contains("::__Visitor<")
}

/// Returns whether this visitor is one of serde's own that keep a value and try types on it later.
/// They implement `untagged`, `tag` and `flatten`. Any other visitor may distinguish bytes from
/// lists.
///
/// As with [`is_derived`], the name may change with serde's version. A test reads bytes through all
/// of these visitors.
pub(super) fn keeps_for_later<V>() -> bool {
    let name = std::any::type_name::<V>();
    // Look only at the visitor's own path. Behind it are the names of its type parameters, which
    // may be the user's.
    let path = name.split('<').next().unwrap_or(name);
    path.starts_with("serde") && path.contains("::content::")
}

/// The names of a structure's fields, as they are passed to its visitor. It detects renamed fields.
///
/// A name that is not in the list of `Deserialize` is skipped, as JSON does: it belongs to
/// `skip_deserializing`, or to a larger type. But the list may contain another name at this place
/// that was not written. Then the two are probably the same field, renamed on one side only, and a
/// `default` would silently change the value. Both halves of a derive have the fields in the order
/// of declaration, so the place of a name is between the same neighbours on both sides.
pub(super) struct Fields<'de> {
    pub(super) name: &'static str,
    list: &'static [&'static str],
    /// Index at which the next name is expected.
    next: usize,
    unknown: Option<Box<Unknown<'de>>>,
}

/// Additional state for a structure with a name that is not in the list.
#[derive(Default)]
struct Unknown<'de> {
    /// Indexes of the names that were passed on after the first unknown name.
    seen: Vec<usize>,
    /// The unknown names, and for each one the range of the list in which it would have to be. The
    /// names are slices of the message, which may contain any number of them.
    names: Vec<(&'de str, Range<usize>)>,
}

impl<'de> Fields<'de> {
    #[inline]
    pub(super) fn new(name: &'static str, list: &'static [&'static str]) -> Self {
        Fields { name, list, next: 0, unknown: None }
    }

    /// Returns the name that comes next, unless a name is missing or new.
    #[inline]
    pub(super) fn expected(&self) -> Option<&'static str> {
        self.list.get(self.next).copied()
    }

    /// Notes that this name is passed to the visitor.
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
            // The fields have the same order on both sides, so the place of an unknown name is in
            // front of every known name that follows it.
            for (_, place) in &mut unknown.names {
                if at >= place.start {
                    place.end = place.end.min(at);
                }
            }
        }
        self.next = at + 1;
    }

    /// Checks the names after the last one. Returns an error if a field was renamed.
    #[inline]
    pub(super) fn finish(&self) -> Result<(), Error> {
        match &self.unknown {
            Some(unknown) => self.renamed(unknown),
            None => Ok(()),
        }
    }

    #[cold]
    fn renamed(&self, unknown: &Unknown<'de>) -> Result<(), Error> {
        // A name of the list that was not written, in the place of an unknown one: it was renamed.
        for (name, place) in &unknown.names {
            let missing = place.clone().find(|at| !unknown.seen.contains(at));
            if let Some(missing) = missing.and_then(|at| self.list.get(at)) {
                return Err(error::field_renamed(name, self.name, missing));
            }
        }
        Ok(())
    }
}

/// Refuses a variant that is not in the list of `Deserialize`. An empty list means that its author
/// left it out, so nothing can be checked.
#[inline]
pub(super) fn check_variant(
    variant: &str,
    name: &str,
    known: &'static [&'static str],
) -> Result<(), Error> {
    match known.is_empty() || known.contains(&variant) {
        true => Ok(()),
        false => Err(error::variant_unknown(variant, name, known)),
    }
}

/// The name of a variant or a field, for the visitor of an identifier. For a visitor that asks for
/// a number, it also has the number of the variant.
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
        type OfSerde =
            de::value::SeqDeserializer<std::iter::Empty<content::Item>, de::value::Error>;
        assert!(std::any::type_name::<OfSerde>().contains("::content::"));
        assert!(!keeps_for_later::<OfSerde>());
    }
}
