use executor::task;

fn add(a: i64, b: i64) -> i64 {
    a + b
}

#[task]
fn sub(a: i64, b: i64) -> i64 {
    a - b
}

fn submit() {
    let _ = sub::task(1, 2);
    let _ = add::task(1, 2);
}

fn main() {}
