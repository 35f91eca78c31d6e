use executor::task;

struct Image(Vec<u8>);

#[task]
fn width(images: &[Image], map: &std::collections::HashMap<u8, Image>) -> usize {
    images.len() + map.len()
}

fn main() {}
