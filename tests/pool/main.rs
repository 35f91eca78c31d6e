//! What a pool does with tasks, in one test binary. A binary of its own is only for tests that
//! others in the same process would disturb: see "Test binaries" in `CONTRIBUTING.md`.

// Names of tasks, and of the tests that a filter selects, begin with these: `submit_map::ex01_…`.
mod blame;
mod broadcast;
mod broken;
mod cancelling;
mod cgroup;
mod crash_report;
mod executor_trait;
mod faults;
mod finalizer;
mod future;
mod life;
mod limits;
mod memory;
mod methods;
mod mischief;
mod options;
mod pebble;
mod place;
mod pressure;
mod priority;
#[path = "../programs/builder.rs"]
mod programs;
mod recycle;
mod resources;
mod retries;
mod reusable;
mod start;
mod start_options;
mod stats;
mod submit_map;
#[path = "../support/mod.rs"]
mod support;
mod task_error;
mod usage;
mod wait;
mod wakers;

executor::test_support!();
