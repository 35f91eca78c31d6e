use executor::task;

struct Counter(u64);

impl Counter {
    #[task]
    fn next(&self) -> u64 {
        self.0 + 1
    }
}

fn main() {}
