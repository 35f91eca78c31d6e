//! The user's own names do not disturb the generated code, nor the other way round.
#![allow(dead_code, unused_macros, non_camel_case_types, unreachable_pub)]

use executor::{managed, task};

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

struct Counter(u8);
struct Handle;
struct Reference;

#[managed]
impl Counter {
    pub fn new(manager: u8, this: &str) -> Self {
        Counter(manager + this.len() as u8)
    }
    pub fn task(
        &mut self,
        this: u8,
        exclusive: u8,
    ) -> ::std::result::Result<u8, ::std::fmt::Error> {
        self.0 += this + exclusive;
        ::std::result::Result::Ok(self.0)
    }
    pub fn clone(&self) -> Self2 {
        Self2(self.0)
    }
    pub fn items(&self) -> impl Iterator<Item = u8> {
        0..self.0
    }
}

#[derive(::serde::Serialize, ::serde::Deserialize)]
struct Self2(u8);

fn main() {
    // `struct add {}` is no pattern.
    let add = add(1, "2", 0, 0, 0, 0, 0);
    let closure = |add: i64| add;
    closure(add.unwrap());
    let _ = add::task(1, "2", 0, 0, 0, 0, 0);
}
