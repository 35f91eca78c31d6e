use executor::task;

struct Image(Vec<u8>);

#[task]
fn count(images: &[Image]) -> usize {
    images.len()
}

fn main() {}
