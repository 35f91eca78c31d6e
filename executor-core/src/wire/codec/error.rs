//! Errors of the codecs: what an error says, and which value it names.
//!
//! An error is made where it is found. On its way out it gets the name of the type and the field in
//! which it happened. The innermost type and the innermost field are the ones that a user has to
//! look at, so the callers further out add nothing.

use std::fmt;

use serde::{de, ser};

/// The reason why a value could not be encoded or decoded.
#[doc(hidden)]
#[derive(Clone)]
pub struct CodecError {
    /// The text for the user.
    pub message: String,
    /// The party that caused the error.
    pub fault: Fault,
}

/// An error on its way out of a codec. It is small, because every value of a sequence is returned
/// in the same `Result`.
pub struct Error(Box<Inner>);

struct Inner {
    message: String,
    fault: Fault,
    /// Whether the message contains the type of the value.
    typed: bool,
    /// Whether the message contains the field or the variant, or the structure as a whole.
    placed: bool,
}

/// The party that caused an error.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The type's own serde implementation returned the error.
    Own,
    /// The type's `Serialize` and `Deserialize` do not match each other, or they do not suit the
    /// codec.
    Unsuited,
    /// The bytes are not a value of any type, or not of a permitted one.
    Bytes,
}

impl CodecError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        CodecError { message: message.into(), fault: Fault::Bytes }
    }

    /// Adds the name of the argument to the message.
    #[cold]
    pub(crate) fn of_argument(mut self, name: &str) -> Self {
        self.message = format!("argument `{name}`: {}", self.message);
        self
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CodecError {}

crate::debug::debug_is_display!(CodecError);

impl From<Error> for CodecError {
    #[cold]
    fn from(error: Error) -> Self {
        let Inner { message, fault, .. } = *error.0;
        CodecError { message, fault }
    }
}

impl Error {
    #[cold]
    fn of(fault: Fault, message: String) -> Self {
        Error(Box::new(Inner { message, fault, typed: false, placed: false }))
    }

    #[cold]
    pub(super) fn new(message: impl Into<String>) -> Self {
        Error::of(Fault::Bytes, message.into())
    }

    #[cold]
    pub(super) fn unsuited(message: impl Into<String>) -> Self {
        Error::of(Fault::Unsuited, message.into())
    }

    #[cold]
    pub(super) fn custom(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        match message.as_str() {
            // This is serde's own text. It comes from the copy of the value that serde keeps for
            // these attributes.
            "i128 is not supported" | "u128 is not supported" => Error::unsuited(format!(
                "{message} by serde in `#[serde(untagged)]`, `#[serde(tag = …)]` and `#[serde(flatten)]`: take an integer of 64 bits, \
                 or a `with` module that writes a text"
            )),
            _ => Error::of(Fault::Own, message),
        }
    }

    /// Returns the error for something that only the other codec can do.
    #[cold]
    pub(super) fn cannot(what: &str) -> Self {
        let cure = "which the default codec (postcard) cannot do: write `#[task(codec = \"messagepack\")]` above the \
                    function";
        let mut error = Error::unsuited(format!("{what}, {cure}"));
        error.0.placed = true;
        error
    }

    /// Returns the error for a value that `Serialize` wrote, and `Deserialize` does not ask for.
    #[cold]
    pub(super) fn differs(written: &str, asked: &str) -> Self {
        Error::unsuited(format!(
            "its `Serialize` writes {written}, its `Deserialize` asks for {asked}"
        ))
    }

    fn prefix(&mut self, prefix: &str) {
        self.0.message = format!("{prefix}: {}", self.0.message);
    }

    /// Adds the type of the value to the message, unless a place is in it already.
    #[cold]
    #[inline(never)]
    pub(super) fn of_value(mut self, type_name: &str) -> Self {
        if self.0.fault == Fault::Unsuited && !self.0.typed && !self.0.placed {
            self.prefix(&format!("`{type_name}`"));
            self.0.typed = true;
        }
        self
    }

    /// Adds the name of a structure or an enum to the message, unless a place is in it already.
    #[cold]
    #[inline(never)]
    pub(super) fn of_type(mut self, name: &str) -> Self {
        if self.0.fault == Fault::Unsuited && !self.0.placed {
            self.prefix(&format!("`{name}`"));
            self.0.placed = true;
        }
        self
    }

    /// Adds the field of a structure or the variant of an enum to the message, unless a place is in
    /// it already.
    #[cold]
    #[inline(never)]
    pub(super) fn of_part(mut self, part: &str, part_name: &str, name: &str) -> Self {
        if self.0.fault == Fault::Unsuited && !self.0.placed {
            self.prefix(&format!("{part} `{part_name}` of `{name}`"));
            self.0.placed = true;
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {}

crate::debug::debug_is_display!(Error);

impl ser::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Error::custom(message)
    }
}

// `missing_field` and similar errors come from derived code that reads what other derived code did
// not write. The pair of implementations causes them, so they are not the type's own error.
// `invalid_value` is the type's own: `NonZeroU8` returns it for a zero.
impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Error::custom(message)
    }

    fn invalid_type(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Error::unsuited(format!("invalid type: {unexpected}, expected {expected}"))
    }

    fn invalid_length(len: usize, expected: &dyn de::Expected) -> Self {
        Error::unsuited(format!("invalid length {len}, expected {expected}"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Error::unsuited(format!("unknown variant `{variant}`, expected {}", Names(expected)))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Error::unsuited(format!("unknown field `{field}`, expected {}", Names(expected)))
    }

    fn missing_field(field: &'static str) -> Self {
        Error::unsuited(format!("missing field `{field}`: its `Serialize` does not write it"))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Error::unsuited(format!("duplicate field `{field}`"))
    }
}

/// A list of names, to be formatted in a message.
pub(super) struct Names<'a>(pub(super) &'a [&'a str]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("none"),
            [first, rest @ ..] => {
                write!(f, "`{first}`")?;
                rest.iter().try_for_each(|name| write!(f, ", `{name}`"))
            }
        }
    }
}

#[cold]
pub(super) fn wrong_length() -> Error {
    Error::unsuited("its `Serialize` announces another number of elements than it writes")
}

#[cold]
pub(super) fn swallowed() -> Error {
    Error::unsuited(
        "its `Serialize` or `Deserialize` goes on after an error of the codec, in the middle of a value",
    )
}

#[cold]
pub(super) fn reads_nothing() -> Error {
    Error::unsuited("its `Serialize` writes a value, its `Deserialize` reads nothing")
}

#[cold]
pub(super) fn elements_unread(n: usize) -> Error {
    Error::unsuited(format!("its `Deserialize` leaves {n} elements unread"))
}

#[cold]
pub(super) fn ends_early() -> Error {
    Error::new("the bytes end too early")
}

#[cold]
pub(super) fn left_over(n: usize) -> Error {
    Error::new(format!("{n} bytes are left over"))
}

#[cold]
pub(super) fn announced(len: u64, follow: usize) -> Error {
    Error::new(format!("a length of {len} is announced, {follow} bytes follow"))
}

#[cold]
pub(super) fn no_value(why: &str) -> Error {
    Error::new(format!("the bytes are not such a value: {why}"))
}

/// Returns the error for a variant that is not in the list of `Deserialize`. It is an error because
/// `#[serde(other)]` would change the value.
#[cold]
pub(super) fn variant_unknown(variant: &str, name: &str, known: &[&str]) -> Error {
    Error::unsuited(format!(
        "its `Serialize` writes the variant `{variant}`, its `Deserialize` knows {}: `skip_deserializing`, or a `rename` \
         of one side only, does that",
        Names(known)
    ))
    .of_type(name)
}

/// Returns the error for a field that is not in the list of `Deserialize`, which has another field
/// in its place.
#[cold]
pub(super) fn field_renamed(field: &str, name: &str, missing: &str) -> Error {
    Error::unsuited(format!(
        "its `Serialize` writes the field `{field}`, its `Deserialize` knows `{missing}` in its place: a `rename` of one side \
         only does that, and a `default` would hide it; or it is not to be read, and an `alias` stands before it: one name for \
         both sides, and `#[serde(skip)]` for a field that is not to be read"
    ))
    .of_type(name)
}

/// Returns the text of a value that is encoded by its `Display`.
pub(super) fn display<T: fmt::Display + ?Sized>(value: &T) -> Result<String, Error> {
    use fmt::Write as _;
    let mut text = String::new();
    write!(text, "{value}").map_err(|_| Error::custom("its `Display` returned an error"))?;
    Ok(text)
}
