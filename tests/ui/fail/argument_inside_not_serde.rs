use executor::task;

struct Image(Vec<u8>);

#[task]
fn count(images: &std::collections::HashMap<u8, Image>) -> usize {
    images.len()
}

fn main() {}
