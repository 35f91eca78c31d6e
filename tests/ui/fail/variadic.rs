use executor::task;

#[task]
unsafe extern "C" fn printf(format: u8, ...) {}

fn main() {}
