//! A table of tasks by id.
//!
//! Ids are consecutive numbers, so the number gives the place of a task: there are pages of
//! [`PAGE`] places, and a small map from a page's number to the page. A million pending tasks cost
//! no rehashing, and a lookup touches one cache line. A page is dropped with its last task.

use std::collections::HashMap;

use crate::id::{IdHasher, TaskId};

const PAGE: u64 = 256;

/// Maximum number of empty pages that are kept. With a lower value, pages are allocated and freed
/// again and again while a thousand tasks are with workers or about to be. With a higher value,
/// more memory stays after a burst.
const SPARE_MAX: usize = 4;

struct Page<V> {
    used: u32,
    places: Box<[Option<V>]>,
}

pub(super) struct TaskTable<V> {
    pages: HashMap<u64, Page<V>, IdHasher>,
    len: usize,
    /// Empty pages, kept for reuse, at most [`SPARE_MAX`]. Otherwise a pool with one task at a time
    /// would allocate a page for each task.
    spare: Vec<Box<[Option<V>]>>,
    /// How often somebody has looked for a task.
    #[cfg(test)]
    lookups: std::cell::Cell<u64>,
}

impl<V> Default for TaskTable<V> {
    fn default() -> Self {
        TaskTable {
            pages: HashMap::default(),
            len: 0,
            spare: Vec::new(),
            #[cfg(test)]
            lookups: std::cell::Cell::default(),
        }
    }
}

fn place(id: TaskId) -> (u64, usize) {
    (id.as_u64() / PAGE, (id.as_u64() % PAGE) as usize)
}

impl<V> TaskTable<V> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether the table has a task with an id below this one.
    pub(super) fn has_before(&self, id: TaskId) -> bool {
        let (number, at) = place(id);
        self.pages.iter().any(|(page, Page { used, places })| match page.cmp(&number) {
            std::cmp::Ordering::Less => *used > 0,
            std::cmp::Ordering::Equal => places[..at].iter().any(Option::is_some),
            std::cmp::Ordering::Greater => false,
        })
    }

    /// Adds a task. Returns `false`, and changes nothing, if the id is there already.
    pub(super) fn insert(&mut self, id: TaskId, value: V) -> bool {
        let (number, at) = place(id);
        let spare = &mut self.spare;
        let page = self.pages.entry(number).or_insert_with(|| Page {
            used: 0,
            places: spare.pop().unwrap_or_else(|| (0..PAGE).map(|_| None).collect()),
        });
        if page.places[at].is_some() {
            return false;
        }
        page.places[at] = Some(value);
        page.used += 1;
        self.len += 1;
        true
    }

    pub(super) fn get(&self, id: TaskId) -> Option<&V> {
        #[cfg(test)]
        self.lookups.set(self.lookups.get() + 1);
        let (number, at) = place(id);
        self.pages.get(&number)?.places[at].as_ref()
    }

    pub(super) fn get_mut(&mut self, id: TaskId) -> Option<&mut V> {
        #[cfg(test)]
        self.lookups.set(self.lookups.get() + 1);
        let (number, at) = place(id);
        self.pages.get_mut(&number)?.places[at].as_mut()
    }

    pub(super) fn remove(&mut self, id: TaskId) -> Option<V> {
        let (number, at) = place(id);
        let page = self.pages.get_mut(&number)?;
        let value = page.places[at].take()?;
        page.used -= 1;
        self.len -= 1;
        if page.used == 0 {
            let empty = self.pages.remove(&number).map(|page| page.places);
            if self.spare.len() < SPARE_MAX {
                self.spare.extend(empty);
            }
        }
        Some(value)
    }

    /// Removes all tasks, and returns them in no particular order.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = V> {
        self.len = 0;
        let pages = std::mem::take(&mut self.pages);
        pages.into_values().flat_map(|page| page.places.into_iter().flatten())
    }

    #[cfg(test)]
    pub(super) fn lookups(&self) -> u64 {
        self.lookups.get()
    }

    #[cfg(test)]
    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.pages.values().flat_map(|page| page.places.iter().flatten())
    }
}

impl<V> std::ops::Index<TaskId> for TaskTable<V> {
    type Output = V;

    fn index(&self, id: TaskId) -> &V {
        self.get(id).expect("a task of this table")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_pages_go_with_their_last_task() {
        let mut table = TaskTable::default();
        let ids = || (1..3_000).map(|n| TaskId::from_raw(n * 7));
        for id in ids() {
            assert!(table.insert(id, id.as_u64()));
            assert!(!table.insert(id, 0));
        }
        assert_eq!((table.len(), table.values().count()), (2_999, 2_999));
        assert_eq!(table.get(TaskId::from_raw(8)), None);
        assert!(!table.has_before(TaskId::from_raw(7)) && table.has_before(TaskId::from_raw(8)));
        assert!(table.has_before(TaskId::from_raw(1_000)));
        for id in ids() {
            assert_eq!(table.get_mut(id).copied(), Some(id.as_u64()));
            assert_eq!(table.remove(id), Some(id.as_u64()));
            assert_eq!(table.remove(id), None);
        }
        assert!(table.is_empty() && table.pages.is_empty() && !table.spare.is_empty());
        assert!(!table.has_before(TaskId::from_raw(u64::MAX)));
        assert!(table.insert(TaskId::from_raw(u64::MAX), 1));
        assert_eq!(table.drain().collect::<Vec<_>>(), [1]);
        assert!(table.is_empty());
    }
}
