//! A crate may forbid unsafe code, and need not import a thing.
#![forbid(unsafe_code)]
#![no_implicit_prelude]
#![allow(unreachable_pub)] // of this workspace alone

#[::executor::task]
fn add(a: i64, b: &str) -> ::std::result::Result<i64, ::std::string::String> {
    ::std::result::Result::Ok(a + b.len() as i64)
}

struct Counter(i64);

#[::executor::managed]
impl Counter {
    pub fn new() -> Self {
        Counter(0)
    }
    pub fn add(&mut self, n: i64) -> ::std::result::Result<i64, ::std::string::String> {
        self.0 += n;
        ::std::result::Result::Ok(self.0)
    }
}

fn main() {
    let _ = add::task(1, "2");
}
