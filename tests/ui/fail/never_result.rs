use executor::task;

#[task]
fn stop() -> ! {
    std::process::exit(0)
}

fn main() {}
