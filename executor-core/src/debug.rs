//! Implements `Debug` for the error types, and writes errors with their causes.

use std::{error::Error, fmt};

/// Implements `Debug` for error types: it writes what their `Display` writes.
macro_rules! debug_is_display {
    ($([$($generics:tt)*] $error:ty),+ $(,)?) => {$(
        impl<$($generics)*> std::fmt::Debug for $error {
            /// Writes the `Display` text, because `unwrap`, and a `main` that returns the error,
            /// print the `Debug` output.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }
    )+};
    ($($error:ty),+ $(,)?) => { $crate::debug::debug_is_display!($([] $error),+); };
}
pub(crate) use debug_is_display;

/// Implements `Debug` for error types that have a `source()`: it writes the `Display` text and the
/// causes, in one line.
macro_rules! debug_is_chain {
    ($([$($generics:tt)*] $error:ty),+ $(,)?) => {$(
        impl<$($generics)*> std::fmt::Debug for $error {
            /// Writes the `Display` text, then each cause behind a colon, because `unwrap`, and a
            /// `main` that returns the error, print the `Debug` output.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{self}")?;
                $crate::debug::write_causes(std::error::Error::source(self), f)
            }
        }
    )+};
    ($($error:ty),+ $(,)?) => { $crate::debug::debug_is_chain!($([] $error),+); };
}
pub(crate) use debug_is_chain;

/// Displays an error and its causes in one line, with colons between them.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        write_causes(self.0.source(), f)
    }
}

/// Writes a cause and the causes of that, each behind a colon.
pub(crate) fn write_causes(
    mut cause: Option<&(dyn Error + 'static)>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    while let Some(error) = cause {
        write!(f, ": {error}")?;
        cause = error.source();
    }
    Ok(())
}
