use executor::managed;

struct Local(std::cell::Cell<u64>);

#[managed]
impl Local {
    pub fn new() -> Self {
        Local(std::cell::Cell::new(1))
    }
}

fn main() {}
