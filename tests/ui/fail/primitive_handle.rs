use executor::task;

#[task(handle = str)]
fn text(x: i64) -> String {
    x.to_string()
}

fn main() {}
