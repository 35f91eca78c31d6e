//! What `#[managed]` cannot stand above.
use executor::managed;

struct Stack<T>(Vec<T>);

#[managed]
impl<T> Stack<T> {
    pub fn new() -> Self {
        Stack(Vec::new())
    }
}

struct View<'a>(&'a str);

#[managed]
impl View<'_> {
    pub fn new() -> Self {
        View("")
    }
}

struct Plain;

#[managed]
impl Default for Plain {
    fn default() -> Self {
        Plain
    }
}

#[managed]
impl Plain {
    pub fn get(&self) {}
}

#[managed]
fn function() {}

struct Named;

#[managed(name = "not a name")]
impl Named {
    pub fn new() -> Self {
        Named
    }
}

#[managed(proxy = "Other")]
impl Named {}

struct Twice;

#[managed]
impl Twice {
    pub fn new() -> Self {
        Twice
    }

    pub fn go(&self) {}

    pub fn go_async(&self) {}
}

fn main() {}
