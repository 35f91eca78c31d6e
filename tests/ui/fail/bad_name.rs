use executor::task;

#[task(name = add)]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

#[task(name = "")]
fn sub(a: i64, b: i64) -> i64 {
    a - b
}

fn main() {}
