//! `#[executor::main]` on a plain `main`.
#![deny(warnings, missing_docs, unused, clippy::all)]
#![allow(clippy::disallowed_methods)] // of this workspace alone
use std::cell::Cell;

thread_local!(static STEPS: Cell<u32> = const { Cell::new(0) });

mod stub {
    pub(crate) fn init() {
        super::STEPS.set(1);
    }
}

#[executor::main(crate = "crate::stub")]
fn main() -> Result<(), String> {
    #![allow(unused_mut)]
    assert_eq!(STEPS.get(), 1);
    let mut _x = 1;
    Ok(())
}
