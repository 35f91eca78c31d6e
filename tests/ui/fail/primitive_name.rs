use executor::task;

#[task]
fn u8(x: i64) -> i64 {
    x & 0xff
}

fn main() {}
