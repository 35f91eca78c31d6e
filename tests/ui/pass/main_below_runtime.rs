//! The other way round: the runtime's attribute leaves a plain function.
#![allow(unreachable_pub, clippy::disallowed_methods)] // of this workspace alone

use std::cell::Cell;

thread_local!(static STEPS: Cell<u32> = const { Cell::new(0) });

mod stub {
    pub fn init() {
        assert!(tokio::runtime::Handle::try_current().is_err());
        super::STEPS.set(1);
    }
}

#[tokio::main(flavor = "current_thread")]
#[executor::main(crate = "crate::stub")]
async fn main() {
    assert_eq!(STEPS.get(), 1);
}
