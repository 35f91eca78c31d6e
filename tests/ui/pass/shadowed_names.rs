//! The user's own names do not disturb the generated code, nor the other way round.
#![allow(dead_code, unused_macros, non_camel_case_types)]

use executor::task;

struct Result;
struct Option;
struct Vec;
struct String;
struct Box;
struct Probe;
struct Task;
struct TaskFn;
struct Fallback;
trait Travels {}
mod std {}
mod core {}
type u8 = ::std::primitive::u16;
enum Ok {}
enum Err {}
macro_rules! concat {
    () => {};
}

mod serde {}

#[task]
fn add(
    a: i64,
    b: &str,
    task: u8,
    out: u8,
    bytes: u8,
    cx: u8,
    decoded: u8,
) -> ::std::result::Result<i64, ::std::fmt::Error> {
    ::std::result::Result::Ok(a + b.len() as i64 + (task + out + bytes + cx + decoded) as i64)
}

fn main() {
    // `struct add {}` is no pattern.
    let add = add(1, "2", 0, 0, 0, 0, 0);
    let closure = |add: i64| add;
    closure(add.unwrap());
    let _ = add::task(1, "2", 0, 0, 0, 0, 0);
}
