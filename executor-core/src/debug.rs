//! `Debug` of errors.

/// `Debug` for errors: what their `Display` says.
macro_rules! debug_is_display {
    ($([$($generics:tt)*] $error:ty),+ $(,)?) => {$(
        impl<$($generics)*> std::fmt::Debug for $error {
            /// As `Display`: it is what `unwrap` and a `main` that returns it print.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }
    )+};
    ($($error:ty),+ $(,)?) => { $crate::debug::debug_is_display!($([] $error),+); };
}
pub(crate) use debug_is_display;
