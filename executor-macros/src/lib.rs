//! The attribute macros of the `executor` crate.
//!
//! ```text
//!   attr: the options in parentheses ──┐
//!   check: what a function must be ────┼──► expand: the function, unchanged, and beside it
//!   types: rules about its types ──────┘            `struct add {}`, `add::task`, the registration
//! ```
//!
//! `#[task]` on an `impl Run for …` block goes to the module `run`, which generates such a
//! function. On an `impl` block of a type it goes to the module `methods`, and `#[managed]` goes to
//! the module `managed`: both generate one for each method.
//!
//! The tokens of the function are passed through unchanged. A macro sees only how a type is
//! spelled. Everything that depends on what a type *is* (whether it is a `Result`, whether an error
//! implements serde's traits, whether it is a byte string) is therefore decided by the compiler, in
//! `executor_core::__private`.

mod attr;
mod check;
mod entry;
mod expand;
mod managed;
mod methods;
mod run;
mod types;

use proc_macro::TokenStream;

// The documentation for users is in the `executor` crate, where these are exported, because its
// examples need that crate.

#[allow(missing_docs)]
#[proc_macro_attribute]
pub fn task(attr: TokenStream, item: TokenStream) -> TokenStream {
    expand::task(attr.into(), item.into()).into()
}

#[allow(missing_docs)]
#[proc_macro_attribute]
pub fn managed(attr: TokenStream, item: TokenStream) -> TokenStream {
    managed::managed(attr.into(), item.into()).into()
}

#[allow(missing_docs)]
#[proc_macro_attribute]
pub fn main(attr: TokenStream, item: TokenStream) -> TokenStream {
    entry::main(attr.into(), item.into()).into()
}
