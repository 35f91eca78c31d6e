use executor::task;

struct Counter(u64);

impl Counter {
    #[task]
    fn zero() -> u64 {
        Counter(0).0
    }
}

fn main() {}
