use executor::task;
use std::borrow::Cow;

#[task]
fn trimmed<'a>(text: &'a str) -> Cow<'a, str> {
    text.trim().into()
}

fn main() {}
