use executor::task;

#[task]
fn open(path: impl AsRef<std::path::Path>) -> bool {
    path.as_ref().exists()
}

fn main() {}
