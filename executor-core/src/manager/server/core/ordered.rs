//! A hash table that keeps the order of insertion, as Python's `dict` does.
//!
//! ```text
//!  places   key ─► 0   key ─► 3        hash table: which slot a key has
//!                  │          │
//!  slots         [ 5 │ gone │ gone │ 9 │ … ]     in order of insertion, with sequence numbers
//! ```
//!
//! A removed entry leaves an empty slot. When more than half of the slots are empty, the others
//! move together. The sequence numbers stay, so a reader that goes on from a sequence number sees
//! each entry that is there all the time exactly once.

use std::{collections::HashMap, sync::Arc};

/// Slots that may be empty without a reason to move the others. With fewer, a small table that
/// grows and shrinks would move its entries all the time.
const EMPTY_SLOTS_MIN: usize = 16;

#[derive(Debug)]
struct Slot<V> {
    seq: u64,
    entry: Option<(Arc<[u8]>, V)>,
}

/// Entries by key, in order of insertion.
#[derive(Debug)]
pub(super) struct Ordered<V> {
    /// Keys come from clients, so the hash has a secret (the standard library's has).
    places: HashMap<Arc<[u8]>, usize>,
    slots: Vec<Slot<V>>,
    /// The sequence number of the last insertion. The first is 1, so 0 can stand for the beginning.
    last: u64,
}

impl<V> Default for Ordered<V> {
    fn default() -> Self {
        Ordered { places: HashMap::new(), slots: Vec::new(), last: 0 }
    }
}

impl<V> Ordered<V> {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        self.places.contains_key(key)
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&V> {
        let place = *self.places.get(key)?;
        self.slots[place].entry.as_ref().map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, key: &[u8]) -> Option<&mut V> {
        let place = *self.places.get(key)?;
        self.slots[place].entry.as_mut().map(|(_, value)| value)
    }

    /// Adds an entry at the end. The key is not there yet.
    pub(super) fn push(&mut self, key: Arc<[u8]>, value: V) {
        debug_assert!(!self.contains(&key));
        self.last += 1;
        self.places.insert(Arc::clone(&key), self.slots.len());
        self.slots.push(Slot { seq: self.last, entry: Some((key, value)) });
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Option<V> {
        let place = self.places.remove(key)?;
        let (_, value) = self.slots[place].entry.take()?;
        self.tidy();
        Some(value)
    }

    /// Removes the last entry.
    pub(super) fn pop(&mut self) -> Option<(Arc<[u8]>, V)> {
        let (key, value) = self.slots.last_mut()?.entry.take()?;
        self.places.remove(&key);
        self.tidy();
        Some((key, value))
    }

    pub(super) fn clear(&mut self) {
        // A new table, so that the memory is given back. Later entries have later numbers.
        *self = Ordered { last: self.last, ..Ordered::default() };
    }

    /// Returns the entries from a sequence number on, with their numbers.
    pub(super) fn from(&self, seq: u64) -> impl Iterator<Item = (u64, (&Arc<[u8]>, &V))> {
        let start = self.slots.partition_point(|slot| slot.seq < seq);
        self.slots[start..].iter().filter_map(|slot| {
            let (key, value) = slot.entry.as_ref()?;
            Some((slot.seq, (key, value)))
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<[u8]>, &V)> {
        self.from(0).map(|(_, entry)| entry)
    }

    /// Drops empty slots: those at the end, so that the last slot is the last entry, and all of
    /// them if there are too many.
    fn tidy(&mut self) {
        while self.slots.last().is_some_and(|slot| slot.entry.is_none()) {
            self.slots.pop();
        }
        let entries = self.places.len();
        if self.slots.len() - entries <= entries.max(EMPTY_SLOTS_MIN) {
            return;
        }
        self.slots.retain(|slot| slot.entry.is_some());
        for (place, slot) in self.slots.iter().enumerate() {
            if let Some((key, _)) = &slot.entry
                && let Some(known) = self.places.get_mut(key)
            {
                *known = place;
            }
        }
        self.slots.shrink_to(2 * entries);
        self.places.shrink_to(2 * entries);
    }
}

/// Writes items until a page is full, but at least one. Returns the cursor of the first item that
/// is not written, 0 if all are.
pub(super) fn write_page<T>(
    items: impl Iterator<Item = (u64, T)>,
    bytes_max: u64,
    encoded_len: impl Fn(&T) -> usize,
    mut write: impl FnMut(T),
) -> u64 {
    let mut used = 0_u64;
    for (cursor, item) in items {
        let len = encoded_len(&item) as u64;
        // The sum of what lies in memory does not overflow.
        if used > 0 && used + len > bytes_max {
            return cursor;
        }
        used += len;
        write(item);
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Arc<[u8]> {
        Arc::from(number.to_le_bytes())
    }

    #[test]
    fn empty_slots_do_not_pile_up() {
        let mut table = Ordered::default();
        table.push(key(0), 0);
        for number in 1..10_000 {
            table.push(key(number), number);
            // Not the last one, whose slot goes with it.
            table.remove(&number.saturating_sub(3).max(1).to_le_bytes());
            assert!(table.slots.len() <= 2 * EMPTY_SLOTS_MIN + 8, "{}", table.slots.len());
        }
        assert_eq!(table.iter().map(|(_, value)| *value).collect::<Vec<_>>()[0], 0);
        assert_eq!(table.get(&9_999_u64.to_le_bytes()), Some(&9_999));
    }

    #[test]
    fn sequence_numbers_are_not_used_again() {
        let mut table = Ordered::default();
        table.push(key(1), ());
        table.push(key(2), ());
        let (behind, _) = table.from(0).nth(1).unwrap();
        assert!(table.pop().is_some());
        table.push(key(3), ());
        assert!(table.from(0).nth(1).unwrap().0 > behind);
        table.clear();
        table.push(key(4), ());
        // A reader that began before goes on with what is new.
        assert_eq!(table.from(behind).count(), 1);
    }
}
