use executor::task;

#[task(codec = "json")]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

fn main() {}
