//! Implements `Debug` for the error types.

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
