use executor::task;

#[task]
unsafe fn poke(address: usize) {
    unsafe { *(address as *mut u8) = 0 }
}

fn main() {}
