//! What processes share and send each other: queues, connections, locks, shared memory, in one test
//! binary. A binary of its own is only for tests that others in the same process would disturb: see
//! "Test binaries" in `CONTRIBUTING.md`.

// Names of tasks, and of the tests that a filter selects, begin with these: `queue::qu01_…`.
mod connection;
mod listener;
mod manager;
mod named;
mod queue;
mod shared;
#[path = "../support/mod.rs"]
mod support;
mod sync;
mod travel;
mod values;

executor::test_support!();
