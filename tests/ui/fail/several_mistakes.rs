use executor::task;

#[task]
fn all<T>(a: &mut T, b: impl Clone) -> &T {
    a
}

fn main() {}
