use executor::task;

#[task]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

fn submit() {
    let _ = add::task(1, "2");
    let _ = add::task(1);
}

fn main() {}
