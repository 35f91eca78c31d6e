use executor::task;

struct Image(Vec<u8>);

#[task]
fn width(name: String, image: Image) -> usize {
    name.len() + image.0.len()
}

fn main() {}
