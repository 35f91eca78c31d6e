use executor::task;
use std::marker::PhantomData;

#[task]
fn load(name: String) -> (String, PhantomData<*const u8>) {
    (name, PhantomData)
}

fn main() {}
