use executor::task;

#[derive(Debug)]
struct Refused;

#[task]
fn check(x: u8) -> Result<u8, Refused> {
    if x > 9 { Err(Refused) } else { Ok(x) }
}

fn main() {}
