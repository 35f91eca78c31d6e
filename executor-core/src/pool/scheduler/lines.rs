//! Several [lines](Line) of chunks beside the queue: one for each worker, or for each set of
//! resources.

use std::collections::BTreeMap;

use super::{
    Scheduler,
    action::{Actions, resolve},
    line::Line,
    queue::QUEUE_SLACK,
    task::{Entry, Scheduled},
};
use crate::{error::TaskError, id::TaskId};

/// The lines, by what their chunks wait for.
pub(super) struct Lines<K> {
    /// As in the queue, the ids of cancelled chunks stay for a while.
    pub(super) by_key: BTreeMap<K, Line>,
    /// Number of queued chunks.
    queued: usize,
}

impl<K> Default for Lines<K> {
    fn default() -> Self {
        Lines { by_key: BTreeMap::new(), queued: 0 }
    }
}

impl<K: Copy + Ord> Lines<K> {
    /// Returns the number of queued chunks.
    #[inline]
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Returns a line to which a chunk is added.
    pub(super) fn added(&mut self, key: K) -> &mut Line {
        self.queued += 1;
        self.by_key.entry(key).or_default()
    }

    /// Takes the first chunk out of a line.
    pub(super) fn pop_front(&mut self, key: K) -> Option<TaskId> {
        let chunk = self.by_key.get_mut(&key)?.pop_front()?;
        self.queued -= 1;
        Some(chunk)
    }

    /// Records that a queued chunk has ended. `is_queued` says which others have not.
    pub(super) fn ended(&mut self, chunk: TaskId, is_queued: impl Fn(TaskId) -> bool) {
        self.queued -= 1;
        let ids: usize = self.by_key.values().map(Line::len).sum();
        if ids > 2 * self.queued + QUEUE_SLACK {
            for line in self.by_key.values_mut() {
                line.retain(|other| other != chunk && is_queued(other));
            }
        }
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (K, TaskId)> {
        self.by_key.iter().flat_map(|(key, line)| line.iter().map(|chunk| (*key, chunk)))
    }
}

impl<C: Scheduled> Scheduler<C> {
    /// Resolves all chunks of these lines with this error.
    pub(super) fn resolve_lines<K>(
        &mut self,
        lines: Lines<K>,
        error: &TaskError,
        out: &mut Actions<C>,
    ) {
        for chunk in lines.by_key.values().flat_map(Line::iter) {
            if self.tasks.get(chunk).is_some_and(Entry::is_queued) {
                let entry = self.tasks.remove(chunk).expect("looked at above");
                out.push(resolve(entry.into_chunk(), error.clone()));
            }
        }
    }
}
