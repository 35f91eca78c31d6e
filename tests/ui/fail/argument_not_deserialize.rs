use executor::task;
use serde::Serialize;

#[derive(Serialize)]
struct Image(Vec<u8>);

#[task]
fn width(image: Image) -> usize {
    image.0.len()
}

fn main() {}
