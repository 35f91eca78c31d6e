use executor::task;

#[task]
fn sort(items: &mut Vec<u8>) {
    items.sort()
}

fn main() {}
