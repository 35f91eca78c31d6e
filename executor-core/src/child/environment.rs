//! Changes of the environment that a child gets.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
};

/// Changes of the environment: variables that are set, and variables that are removed. If a name
/// occurs several times, its last change applies.
pub(crate) type Changes = Vec<(OsString, Option<OsString>)>;

/// Why the system would not take a change.
pub(crate) const INVALID: &str =
    "an environment variable's name is empty or has a `=` or a zero byte, or its value has one";

/// Returns whether the system takes these changes.
pub(crate) fn is_valid(changes: &[(OsString, Option<OsString>)]) -> bool {
    changes.iter().all(|(key, value)| {
        let has = |text: &OsStr, byte: u8| text.as_bytes().contains(&byte);
        !key.is_empty()
            && !has(key, b'=')
            && !has(key, 0)
            && !value.as_ref().is_some_and(|value| has(value, 0))
    })
}
