use executor::task;

struct Counter(u64);

impl Counter {
    #[task]
    fn next(of: Self) -> Option<Self> {
        Some(Counter(of.0 + 1))
    }
}

fn main() {}
