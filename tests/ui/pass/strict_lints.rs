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

use executor::{managed, task};
use serde::{Deserialize, Serialize};

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

/// Scales.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Scale(u64);

#[task]
impl Scale {
    /// Applies it.
    #[must_use]
    pub const fn apply(self, x: u64) -> u64 {
        self.0 * x
    }

    /// Borrows.
    pub async fn borrows<'a>(
        &'a self,
        text: &'a str,
        cow: Cow<'_, str>,
        (a, b): (u8, u8),
    ) -> usize {
        text.len() + cow.len() + usize::from(a + b)
    }

    /// Old.
    #[deprecated = "use `apply`"]
    pub fn old(&self) {}

    fn private() -> Self {
        Scale(1)
    }
}

/// Counts.
#[derive(Debug)]
pub struct Counter(u64, Vec<u64>);

#[managed]
impl Counter {
    /// Starts with a number.
    #[must_use]
    pub fn new(start: u64) -> Self {
        Counter(start, Vec::new())
    }

    /// Starts with a text.
    pub fn parsed(text: &str) -> Result<Self, std::num::ParseIntError> {
        text.parse().map(Counter::new)
    }

    /// Adds.
    pub fn add(&mut self, n: u64) -> u64 {
        self.0 += n;
        self.1.push(n);
        self.0
    }

    /// Borrows.
    #[must_use]
    pub fn find<'a>(&'a self, text: &'a str, cow: Cow<'_, str>, (a, b): (u8, u8)) -> Option<usize> {
        cow.find(text).map(|at| at + usize::from(a + b))
    }

    /// Old.
    #[deprecated = "use `add`"]
    pub fn old(&self) {}

    /// Many.
    pub fn many(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.0).filter(|n| n * n > self.0)
    }

    #[cfg(any())]
    pub fn absent(&self, x: Missing) -> Missing {
        x
    }
}

#[cfg(any())]
#[managed]
impl Missing {
    pub fn new() -> Self {
        Missing
    }
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
