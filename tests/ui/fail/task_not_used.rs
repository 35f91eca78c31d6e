use executor::task;

#[task]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

#[deny(unused_must_use)]
fn forgets() {
    add::task(1, 2);
}

fn main() {}
