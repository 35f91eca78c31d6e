use executor::task;

struct Image(Vec<u8>);

#[task]
fn load(name: String) -> std::io::Result<Image> {
    Ok(Image(name.into_bytes()))
}

fn main() {}
