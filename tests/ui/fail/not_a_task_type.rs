use executor::task;

struct Add;

#[task]
fn sub(a: i64, b: i64) -> i64 {
    a - b
}

fn name_of<F: executor::TaskFn>() -> &'static str {
    F::NAME
}

fn names() {
    name_of::<sub>();
    name_of::<Add>();
}

fn main() {}
