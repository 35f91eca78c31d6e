use executor::task;
use std::borrow::Cow;

#[task]
fn both(a: Cow<str>, b: &str) -> usize {
    a.len() + b.len()
}

fn main() {}
