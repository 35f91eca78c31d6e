//! `#[executor::main]` above a runtime's attribute: `init` runs before the runtime exists.
#![allow(unreachable_pub, clippy::disallowed_methods)] // of this workspace alone

use std::cell::Cell;

thread_local!(static STEPS: Cell<u32> = const { Cell::new(0) });

mod stub {
    pub fn init() {
        super::STEPS.set(super::STEPS.get() * 10 + 1);
    }
}

/// Stands for `#[tokio::main]`.
use executor_test_runtime::main as runtime;
mod executor_test_runtime {
    pub use tokio::main;
}

/// Documented.
#[executor::main(crate = "crate::stub")]
#[runtime(flavor = "current_thread")]
#[allow(clippy::unused_async)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    assert_eq!(STEPS.get(), 1);
    std::future::ready(()).await;
    Ok(())
}
