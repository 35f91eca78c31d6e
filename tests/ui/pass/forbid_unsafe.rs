//! A crate may forbid unsafe code, and need not import a thing.
#![forbid(unsafe_code)]
#![no_implicit_prelude]

#[::executor::task]
fn add(a: i64, b: &str) -> ::std::result::Result<i64, ::std::string::String> {
    ::std::result::Result::Ok(a + b.len() as i64)
}

fn main() {
    let _ = add::task(1, "2");
}
