use executor::managed;

struct Counter(u64);

struct Plain;

#[managed]
impl Counter {
    pub fn new() -> Self {
        Counter(0)
    }

    pub fn set(&mut self, _value: Plain) {
        self.0 += 1;
    }

    pub fn get(&self) -> Plain {
        Plain
    }
}

fn main() {}
