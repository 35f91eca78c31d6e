//! The attributes of the `executor` crate.
//!
//! ```text
//!   attr: what stands in the parentheses ─┐
//!   check: what the function may be ──────┼──► expand: the function, untouched, and beside it
//!   types: what its types say ────────────┘            `struct add {}`, `add::task`, the registration
//! ```
//!
//! Above `impl Run for …` it is `run`, which makes such a function.
//!
//! The function's tokens pass through as they are. Everything that depends on what a type *is* (is it a `Result`, is
//! the error serde, is it a byte string) is decided by the compiler, in `executor_core::__private`; here only spelling
//! can be seen.

mod attr;
mod check;
mod entry;
mod expand;
mod run;
mod types;

use proc_macro::TokenStream;

// What users read stands where `executor` exports these two, so that the examples can use it.

#[allow(missing_docs)]
#[proc_macro_attribute]
pub fn task(attr: TokenStream, item: TokenStream) -> TokenStream {
    expand::task(attr.into(), item.into()).into()
}

#[allow(missing_docs)]
#[proc_macro_attribute]
pub fn main(attr: TokenStream, item: TokenStream) -> TokenStream {
    entry::main(attr.into(), item.into()).into()
}
