use executor::task;

#[task]
extern "C" fn callback(x: i32) -> i32 {
    x
}

fn main() {}
