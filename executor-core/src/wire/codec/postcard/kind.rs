//! The kinds of values. A kind says what comes next.

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

/// Returns what a value of this kind is called in errors.
pub(super) fn name_of(kind: u8) -> &'static str {
    NAMES.get(usize::from(kind)).copied().unwrap_or("an unknown kind")
}
