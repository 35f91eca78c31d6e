//! Generated code brings no warning into a crate that denies all of them.
#![deny(
    warnings,
    missing_docs,
    unused,
    nonstandard_style,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::pedantic
)]
#![deny(
    single_use_lifetimes,
    unused_qualifications,
    unused_lifetimes,
    elided_lifetimes_in_paths,
    missing_debug_implementations
)]
#![deny(
    missing_copy_implementations,
    explicit_outlives_requirements,
    let_underscore_drop,
    trivial_casts,
    variant_size_differences
)]
#![allow(
    clippy::missing_errors_doc,
    clippy::must_use_candidate,
    clippy::needless_pass_by_value,
    clippy::unused_async
)]

use std::borrow::Cow;

use executor::task;

/// Adds.
#[must_use]
#[task]
pub fn add(a: i64, b: i64) -> i64 {
    a + b
}

/// Of a private function nobody makes a task.
mod inner {
    use std::borrow::Cow;

    use executor::task;

    /// Never used.
    #[task]
    pub(crate) fn quiet(text: &str, bytes: &[u8]) -> usize {
        text.len() + bytes.len()
    }

    #[task]
    #[inline]
    pub(super) fn private<'a>(text: Cow<'a, str>, other: &'a str) -> usize {
        text.len() + other.len()
    }
}

/// Borrows.
#[task]
pub async fn later(text: &str, cow: Cow<'_, str>, numbers: &[u64]) -> std::io::Result<String> {
    let sum: u64 = numbers.iter().sum();
    Ok(format!("{text} {cow} {sum}"))
}

/// Old.
#[deprecated = "use `add`"]
#[task]
pub fn old(x: u8) -> u8 {
    x
}

/// Unit in, unit out.
#[task]
pub const fn nothing((): ()) {}

/// Two lifetimes.
#[task]
pub fn two<'a, 'b: 'a>(a: &'a str, b: &'b str, c: &'b str) -> usize {
    c.len() + a.len().max(b.len())
}

#[cfg(any())]
#[task]
fn absent(x: Missing) -> Missing {
    x
}

#[task]
#[cfg(any())]
fn absent_too(x: Missing) -> Missing {
    x
}

fn main() {
    drop(add::task(1, 2));
    inner::quiet(" ", b"");
    drop(inner::private::task("a".into(), "b"));
    drop(two::task("a", "b", "c"));
}
