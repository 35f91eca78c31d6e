//! Which of its pool's workers this process is.

use std::sync::OnceLock;

use crate::{
    child::identity,
    os::affinity,
    wire::handshake::{Refusal, WorkerPlace},
};

static PLACE: OnceLock<WorkerPlace> = OnceLock::new();

/// Records the place, and lets this thread and those that it starts run where it says.
pub(super) fn adopt(place: WorkerPlace) -> Result<(), Refusal> {
    if let Some(nice) = place.nice {
        let refused =
            |error| Refusal::of(&format!("to have the nice value {nice} (`nice`)"), &error);
        affinity::set_nice(nice).map_err(refused)?;
    }
    if let Some(cpus) = &place.cpus {
        let refused = |error| Refusal::of(&format!("to run on the CPUs {cpus:?} (`pin`)"), &error);
        affinity::bind(cpus).map_err(refused)?;
    }
    let _ = PLACE.set(place);
    Ok(())
}

/// Returns the place, if this process is a worker. A process that a task has forked is none.
fn place() -> Option<&'static WorkerPlace> {
    let place = PLACE.get()?;
    identity::told().is_some_and(|told| told.is_worker()).then_some(place)
}

/// Returns which of its executor's workers this process is: a number from 0 on, below
/// [`max_workers`](crate::ProcessPoolExecutor::max_workers). Outside of a worker it is `None`.
///
/// No two workers of an executor have the same index at the same time. A worker that is started
/// gets the lowest index that is free, so one that replaces another inherits its index. Use it for
/// what each worker needs one of: a scratch directory, a port, a database. For devices see
/// [`slots`](crate::ProcessPoolBuilder::slots).
///
/// With [`Isolation::PerTask`](crate::Isolation::PerTask) there are more workers than tasks that
/// run, so the number may be higher.
///
/// One case is different: a worker that does not end although it was killed (it hangs in the
/// kernel) is given up after five seconds, and its index is free then.
///
/// ```
/// use executor::prelude::*;
///
/// #[task]
/// fn scratch() -> String { format!("scratch-{}", executor::worker_index().unwrap()) }
///
/// #[executor::main]
/// fn main() {
///     assert_eq!(executor::worker_index(), None);
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
///     assert_eq!(pool.submit(scratch::task()).result().unwrap(), "scratch-0");
/// }
/// ```
#[must_use]
pub fn worker_index() -> Option<usize> {
    place().map(|place| place.index as usize)
}

/// Returns the slot of this worker: see [`slots`](crate::ProcessPoolBuilder::slots). It is `None`
/// outside of a worker, and if the executor has no slots.
///
/// ```
/// use executor::prelude::*;
///
/// #[task]
/// fn device() -> Option<String> { executor::slot() }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().slots(["cuda:0"]).build().unwrap();
///     assert_eq!(pool.submit(device::task()).result().unwrap().as_deref(), Some("cuda:0"));
/// }
/// ```
#[must_use]
pub fn slot() -> Option<String> {
    place()?.slot.clone()
}
