//! The structures and variants that have numbers in one message: the writer's table and the
//! reader's.

use std::{any::type_name, cell::Cell};

use crate::os::local;

/// A structure that the writer has begun, identified by the addresses of its names.
#[derive(Clone, Copy, Default)]
pub(super) struct Written {
    pub(super) rust_type: usize,
    pub(super) name: usize,
    pub(super) count: usize,
    /// Index of the name of its first field.
    pub(super) first: usize,
    /// Whether all of its names are known.
    pub(super) complete: bool,
}

impl Written {
    /// Returns whether this is a finished structure with this type, name and number of fields.
    #[inline]
    pub(super) fn is(&self, rust_type: usize, name: usize, count: usize) -> bool {
        self.rust_type == rust_type && self.name == name && self.count == count && self.complete
    }
}

/// A variant that the writer has written.
#[derive(Clone, Copy, Default, PartialEq)]
pub(super) struct WrittenVariant {
    pub(super) name: usize,
    pub(super) variant: usize,
    pub(super) index: u32,
}

impl WrittenVariant {
    /// Returns the variant's place among the guesses. It depends on the variant's index, so that
    /// the variants of one enum never share a place as long as there are enough places. If two
    /// variants shared one, each would push the other out, and would be searched for among all
    /// variants every time.
    #[inline]
    pub(super) fn place(&self) -> usize {
        place(self.name).wrapping_add(self.index as usize) % GUESSES
    }
}

/// The structures and variants that have numbers in the message being written.
pub(super) struct Numbered {
    pub(super) structs: Vec<Written>,
    pub(super) fields: Vec<&'static str>,
    pub(super) variants: Vec<WrittenVariant>,
    /// Where the structures and variants were found last, by some bits of the addresses of their
    /// names. An entry is only a guess and is compared with what is wanted, so it may be left over
    /// from another message.
    pub(super) struct_guesses: [u32; GUESSES],
    pub(super) variant_guesses: [u32; GUESSES],
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
pub(super) fn place(address: usize) -> usize {
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
    pub(super) fn take() -> Box<Self> {
        local::take(&NUMBERED).unwrap_or_default()
    }

    #[inline(never)]
    pub(super) fn put_back(mut self: Box<Self>) {
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

/// A structure that the reader has begun.
#[derive(Clone, Copy, Default)]
pub(super) struct Known {
    pub(super) count: usize,
    /// Index of the name of its first field.
    pub(super) first: usize,
    /// Whether all of its names are known.
    pub(super) complete: bool,
    /// The list and visitor that read it the last time, and whether these read it by position.
    pub(super) asked: Asking,
    pub(super) by_position: bool,
}

/// The reader of a structure: the address of the list of fields, and the address of the visitor's
/// name.
///
/// Both are needed. A derived visitor and a visitor that was written by hand can have the same
/// list, but only one of them reads by position.
#[derive(Clone, Copy, Default, PartialEq)]
pub(super) struct Asking {
    list: usize,
    visitor: usize,
}

impl Asking {
    #[inline]
    pub(super) fn of<V>(list: &'static [&'static str]) -> Self {
        Asking { list: list.as_ptr() as usize, visitor: type_name::<V>().as_ptr() as usize }
    }
}

#[derive(Clone, Copy, Default)]
pub(super) struct KnownVariant<'de> {
    pub(super) name: &'de str,
    pub(super) index: u32,
    /// The list of `Deserialize` in which the variant was found the last time.
    pub(super) asked: usize,
}

/// The structures, fields and variants that have numbers in the message being read.
#[derive(Default)]
pub(super) struct Names<'de> {
    pub(super) structs: Vec<Known>,
    pub(super) fields: Vec<&'de str>,
    pub(super) variants: Vec<KnownVariant<'de>>,
    /// How many more fields may be announced. Each field takes at least two bytes.
    pub(super) fields_left: usize,
    /// The number of the structure that was read by position last, if the number takes one byte,
    /// and the reader of it. The next structure is probably of the same kind.
    pub(super) last_number: u8,
    pub(super) last_asked: Asking,
}

thread_local! {
    /// The last message's table, emptied, as in [`NUMBERED`].
    static NAMES: Cell<Option<Names<'static>>> = const { Cell::new(None) };
}

/// The names of the message that is being read. `None` until there are some.
pub(super) struct Table<'de>(pub(super) Option<Names<'de>>);

impl<'de> Table<'de> {
    #[inline]
    pub(super) fn get(&mut self, bytes_left: usize) -> &mut Names<'de> {
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
