//! What a worker of a pool does for each task because of its pool's limits.

use std::sync::atomic::Ordering;

use super::gauge::Gauge;
use crate::{
    os::{
        clock,
        limits::CpuTime,
        private_memory::{self, PrivateMemory},
    },
    transport::board::Board,
    wire::handshake::Restraints,
};

/// A task that took at least this long has its memory looked at when it ends. A look costs a tenth
/// of that. A shorter task can hardly have filled more than a hundred pages.
const LONG_NANOS: u64 = 20_000;
/// After this many shorter tasks in a row, the memory is looked at, too.
const SHORT_TASKS: u32 = 1_000;

/// The limits of this worker.
#[derive(Default)]
pub(super) struct Guard {
    cpu_time: Option<CpuTime>,
    gauge: Option<&'static Gauge>,
    growth: Option<Growth>,
    /// `None` if memory is not looked at. Then no clock is read either, which would take as long as
    /// a short task.
    board: Option<&'static Board>,
    /// Whether refusals of memory are noted, by which the end of a task is judged.
    notes_refusals: bool,
    /// When the task began, in nanoseconds. The time that is reported to the pool is an average of
    /// several tasks, if they are short.
    began: u64,
}

/// Whether the worker has grown too much to go on.
struct Growth {
    memory: &'static PrivateMemory,
    max: u64,
    /// The memory that the worker had when it was ready.
    ready: Option<u64>,
    /// Number of short tasks since the last look.
    short: u32,
}

impl Guard {
    /// Applies the limits to this process. `copied` means that it is a copy of a fork server, whose
    /// memory does not count.
    pub(super) fn start(
        restraints: &Restraints,
        copied: bool,
        board: &'static Board,
    ) -> Result<Self, String> {
        let Restraints { memory, growth, limits } = restraints;
        let mut guard = Guard::default();
        let mut limited = None;
        if memory.is_some() || growth.is_some() || limits.of_memory().is_some() {
            let read = PrivateMemory::open()
                .map_err(|error| format!("to open /proc/self/statm: {error}"))?;
            let read = if copied { read.count_from_now() } else { read };
            let read: &'static PrivateMemory = Box::leak(Box::new(read));
            if let Some(limit) = memory {
                guard.gauge = Some(Gauge::start(*limit, read, board)?);
                limited = Some((*limit, read));
            }
            guard.growth = growth.map(|max| Growth { memory: read, max, ready: None, short: 0 });
            private_memory::note_refused_memory(read, &board.memory_refused);
            guard.notes_refusals = true;
        }
        if guard.gauge.is_some() || guard.growth.is_some() {
            guard.board = Some(board);
        }
        // Set last, because the steps above need a descriptor.
        guard.cpu_time = limits.adopt_in_worker()?;
        if let Some((limit, read)) = limited {
            // Once more: a limit on all memory that is higher has just replaced this one.
            read.limit_data(limit).map_err(|error| {
                format!("to limit its memory (setrlimit, RLIMIT_DATA): {error}")
            })?;
        }
        Ok(guard)
    }

    /// What the watcher has to look at.
    pub(super) fn gauge(&self) -> Option<&'static Gauge> {
        self.gauge
    }

    /// A task is about to begin. It must not be claimed before this returns.
    #[inline]
    pub(super) fn task_begins(&mut self) {
        if self.board.is_some() {
            self.began = clock::now_nanos();
        }
        if self.notes_refusals {
            private_memory::forget_refusal();
        }
        if let Some(gauge) = self.gauge {
            gauge.task_begins();
        }
        if let Some(limit) = self.cpu_time {
            limit.begin();
        }
        if let Some(growth) = &mut self.growth
            && growth.ready.is_none()
        {
            growth.ready = growth.memory.in_use();
        }
    }

    /// The initializer has ended. It must not be answered before this returns. What it has loaded
    /// is no growth.
    pub(super) fn initializer_ends(&mut self) {
        if let Some(gauge) = self.gauge {
            gauge.task_ends(true);
        }
        if let Some(growth) = &mut self.growth {
            growth.ready = growth.memory.in_use();
        }
    }

    /// The finalizer has ended. It must not be answered before this returns.
    pub(super) fn finalizer_ends(&mut self) {
        if let Some(gauge) = self.gauge {
            gauge.task_ends(true);
        }
    }

    /// A task has ended. It must not be answered before this returns. Returns whether the worker
    /// has grown so much that it should be replaced.
    #[inline]
    pub(super) fn task_ends(&mut self) -> bool {
        let Some(board) = self.board else { return false };
        let looks = clock::now_nanos().saturating_sub(self.began) >= LONG_NANOS;
        if let Some(gauge) = self.gauge {
            gauge.task_ends(looks);
        }
        let Some(growth) = &mut self.growth else { return false };
        let grown = growth.task_ends(looks);
        if let Some(grown) = grown {
            board.memory_grown.store(grown, Ordering::Release);
        }
        grown.is_some()
    }

    /// The task that was about to begin was taken back.
    pub(super) fn task_left(&mut self) {
        if let Some(gauge) = self.gauge {
            gauge.task_ends(false);
        }
    }
}

impl Growth {
    fn task_ends(&mut self, looks: bool) -> Option<u64> {
        self.short = self.short.wrapping_add(1);
        if !looks && self.short < SHORT_TASKS {
            return None;
        }
        self.short = 0;
        let grown = self.memory.in_use()?.saturating_sub(self.ready?);
        (grown > self.max).then_some(grown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::board;

    #[test]
    fn a_worker_without_limits_on_memory_reads_no_clock_for_its_tasks() {
        let (board, _memory) = board::create().unwrap();
        let board: &'static Board = Box::leak(Box::new(board));
        let mut guard = Guard::start(&Restraints::default(), false, board).unwrap();
        guard.task_begins();
        assert!(!guard.task_ends());
        assert_eq!(guard.began, 0, "the clock was read");

        let growth = Restraints { growth: Some(u64::MAX), ..Restraints::default() };
        let mut guard = Guard::start(&growth, false, board).unwrap();
        guard.task_begins();
        assert_ne!(guard.began, 0);
    }
}
