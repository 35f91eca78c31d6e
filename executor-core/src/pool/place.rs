//! What belongs to one worker of a pool, by its index: its slot, its CPUs, its name.
//!
//! ```text
//!  builder ─► Places ── of(index) ────────► WorkerPlace, in the setup ─► worker::place
//!                    └─ environment(index) ─► the worker's environment
//! ```

use std::{borrow::Cow, ffi::OsString};

use crate::wire::handshake::WorkerPlace;

/// On which CPUs workers run: see [`pin`](crate::ProcessPoolBuilder::pin).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pin {
    /// One CPU for each worker, among those on which this process may run. CPUs of different cores
    /// come first. If there are more workers than CPUs, some share one.
    Cores,
    /// These sets of CPUs: the worker with index `i` gets the set `i`. If there are more workers
    /// than sets, the sets are used again from the first one on.
    Cpus(Vec<Vec<usize>>),
}

/// A change of the environment.
pub(crate) type Variable = (OsString, Option<OsString>);

/// What the workers of a pool have, each one by its index.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// The name of the pool.
    pub(crate) name: Option<String>,
    /// The slots, and the variables for each. Empty without slots.
    pub(crate) slots: Vec<(String, Vec<Variable>)>,
    /// Sets of CPUs. Empty if workers are not bound to any.
    pub(crate) cpus: Vec<Vec<usize>>,
    pub(crate) nice: Option<i32>,
}

impl Places {
    /// Returns the place of the worker with this index.
    pub(super) fn of(&self, index: u32) -> WorkerPlace {
        let at = index as usize;
        WorkerPlace {
            index,
            pool: self.name.clone(),
            slot: self.slots.get(at).map(|(slot, _)| slot.clone()),
            cpus: at.checked_rem(self.cpus.len()).map(|at| self.cpus[at].clone()),
            nice: self.nice,
        }
    }

    /// Returns the changes of the environment for the worker with this index. `all` are those of
    /// all workers.
    pub(super) fn environment<'a>(&self, all: &'a [Variable], index: u32) -> Cow<'a, [Variable]> {
        match self.slots.get(index as usize) {
            Some((_, own)) if !own.is_empty() => Cow::Owned([all, own].concat()),
            _ => Cow::Borrowed(all),
        }
    }
}
