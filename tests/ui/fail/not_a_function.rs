use executor::task;

#[task]
struct Add {
    a: i64,
}

fn main() {}
