use executor::task;

#[task]
fn sort(items: Option<&mut Vec<u8>>) {
    items.map(|items| items.sort());
}

fn main() {}
