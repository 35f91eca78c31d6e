//! What a public method of a managed type cannot be.
use std::sync::Arc;

use executor::managed;

struct Counter(u64);

#[managed]
impl Counter {
    pub fn new() -> Self {
        Counter(0)
    }

    pub async fn later(&self) {}

    pub unsafe fn dangerous(&self) {}

    pub fn generic<T>(&self, n: u64) -> u64 {
        n
    }

    pub fn many<const N: usize>(&self) {}

    pub fn by_value(self) -> u64 {
        self.0
    }

    pub fn shared(self: Arc<Self>) -> u64 {
        self.0
    }

    pub fn of_nobody(n: u64) -> u64 {
        n
    }

    pub fn borrowed(&self) -> &u64 {
        &self.0
    }

    pub fn borrowed_items(&self) -> impl Iterator<Item = &u64> {
        std::iter::once(&self.0)
    }

    pub fn any(&self) -> impl Clone {
        self.0
    }

    pub fn takes_any(&self, n: impl Into<u64>) -> u64 {
        n.into()
    }

    pub fn fills(&self, n: &mut u64) {
        *n = self.0;
    }

    pub fn with_timeout(&self, n: u64) -> u64 {
        n
    }

    // What is not public may be anything.
    fn private(&mut self) -> &mut u64 {
        &mut self.0
    }

    pub(crate) fn internal<T>(self, value: T) -> T {
        value
    }
}

fn main() {}
