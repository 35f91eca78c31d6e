use executor::task;

#[task(crate = executor)]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

#[task(crate = "not a path")]
fn sub(a: i64, b: i64) -> i64 {
    a - b
}

fn main() {}
