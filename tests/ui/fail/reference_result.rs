use executor::task;

#[task]
fn first(items: &[String]) -> Option<&str> {
    items.first().map(|s| s.as_str())
}

fn main() {}
