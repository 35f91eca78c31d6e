use executor::task;

#[task]
fn sum<const N: usize>(items: [u8; N]) -> u64 {
    items.iter().map(|&x| u64::from(x)).sum()
}

fn main() {}
