use executor::task;

#[task]
fn both(items: (&String, Option<&Vec<u8>>)) -> usize {
    items.0.len()
}

fn main() {}
