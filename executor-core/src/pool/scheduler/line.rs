//! The line of chunks that wait for a worker: which of them is next.
//!
//! ```text
//!  plain   priority 0:        front ─► 7 8 9 10 … ◄─ back
//!  ranked  other priorities:  by rank (5: 11, 14)(2: 12)(-1: 3), and by age 3 11 12 14
//!
//!  next:  the highest priority; among equals the first in line
//!         after OVERTAKES_MAX overtakes in a row: the oldest
//! ```
//!
//! Nearly all pools have no priorities. For them this is a plain queue, and the rest costs one
//! comparison.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
};

use crate::id::TaskId;

/// How many chunks in a row may overtake an older one. After that, the oldest of all waiting chunks
/// comes next, whatever its priority. So no chunk waits for ever, and those of the lowest priority
/// get one turn in this number plus one. A higher value makes them wait longer. A lower value
/// makes urgent chunks wait more often.
pub(super) const OVERTAKES_MAX: u32 = 16;

/// The place of a chunk among those with a priority.
type Rank = (Reverse<i32>, i64);

/// See the [module](self).
#[derive(Default)]
pub(super) struct Line {
    /// Those of priority 0, in their order.
    plain: VecDeque<TaskId>,
    /// Number of chunks in a row that have overtaken an older one.
    overtakes: u32,
    /// `None` until the first chunk with a priority.
    ranked: Option<Box<Ranked>>,
}

#[derive(Default)]
struct Ranked {
    by_rank: BTreeMap<Rank, TaskId>,
    /// Ids grow in the order in which tasks are submitted.
    by_age: BTreeMap<TaskId, Rank>,
    /// The number of the last chunk that was put in front of all others of its priority.
    front: i64,
    /// The number of the last chunk that was put behind them.
    back: i64,
}

impl Ranked {
    fn insert(&mut self, rank: Rank, chunk: TaskId) {
        let new = self.by_rank.insert(rank, chunk).is_none();
        let new = self.by_age.insert(chunk, rank).is_none() && new;
        debug_assert!(new, "a chunk is in the line once");
    }

    fn remove(&mut self, rank: Rank) -> Option<TaskId> {
        let chunk = self.by_rank.remove(&rank)?;
        self.by_age.remove(&chunk);
        Some(chunk)
    }
}

/// Where the next chunk is.
enum Next {
    Plain(TaskId),
    Ranked(Rank, TaskId),
}

impl Next {
    fn chunk(&self) -> TaskId {
        match *self {
            Next::Plain(chunk) | Next::Ranked(_, chunk) => chunk,
        }
    }
}

impl Line {
    /// Puts a chunk behind all others of its priority.
    #[inline]
    pub(super) fn push_back(&mut self, chunk: TaskId, priority: i32) {
        if priority == 0 {
            return self.plain.push_back(chunk);
        }
        let ranked = self.ranked.get_or_insert_default();
        ranked.back += 1;
        ranked.insert((Reverse(priority), ranked.back), chunk);
    }

    /// Puts a chunk in front of all others of its priority.
    pub(super) fn push_front(&mut self, chunk: TaskId, priority: i32) {
        if priority == 0 {
            return self.plain.push_front(chunk);
        }
        let ranked = self.ranked.get_or_insert_default();
        ranked.front -= 1;
        ranked.insert((Reverse(priority), ranked.front), chunk);
    }

    /// Puts a chunk behind the next one, of which it was a part.
    pub(super) fn push_second(&mut self, chunk: TaskId) {
        match self.next() {
            None | Some(Next::Plain(_)) => self.plain.insert(1.min(self.plain.len()), chunk),
            Some(Next::Ranked(rank, next)) => {
                if let Some(ranked) = &mut self.ranked {
                    ranked.remove(rank);
                }
                let Reverse(priority) = rank.0;
                self.push_front(chunk, priority);
                self.push_front(next, priority);
            }
        }
    }

    /// Returns the next chunk. It stays in the line.
    #[inline]
    pub(super) fn front(&self) -> Option<TaskId> {
        match &self.ranked {
            None => self.plain.front().copied(),
            Some(_) => self.next().map(|next| next.chunk()),
        }
    }

    /// Takes the next chunk out of the line, because it goes to a worker.
    #[inline]
    pub(super) fn pop_front(&mut self) -> Option<TaskId> {
        if self.ranked.is_none() {
            return self.plain.pop_front();
        }
        let next = self.next()?;
        let overtakes = self.oldest().is_some_and(|oldest| oldest.chunk() != next.chunk());
        let chunk = self.take(&next);
        self.overtakes = if overtakes { self.overtakes + 1 } else { 0 };
        chunk
    }

    /// Takes the next chunk out of the line, because it has ended.
    pub(super) fn discard_front(&mut self) -> Option<TaskId> {
        let next = self.next()?;
        self.take(&next)
    }

    fn take(&mut self, next: &Next) -> Option<TaskId> {
        match *next {
            Next::Plain(_) => self.plain.pop_front(),
            Next::Ranked(rank, _) => self.ranked.as_mut()?.remove(rank),
        }
    }

    fn next(&self) -> Option<Next> {
        if self.overtakes >= OVERTAKES_MAX {
            return self.oldest();
        }
        let plain = self.plain.front().map(|chunk| Next::Plain(*chunk));
        let first = self.ranked.as_ref().and_then(|ranked| ranked.by_rank.first_key_value());
        match first {
            Some((rank, chunk)) if plain.is_none() || rank.0 < Reverse(0) => {
                Some(Next::Ranked(*rank, *chunk))
            }
            _ => plain,
        }
    }

    /// Returns the oldest chunk: of those of priority 0 only the first in line is considered.
    fn oldest(&self) -> Option<Next> {
        let plain = self.plain.front().map(|chunk| Next::Plain(*chunk));
        let oldest = self.ranked.as_ref().and_then(|ranked| ranked.by_age.first_key_value());
        match (plain, oldest) {
            (Some(plain), Some((chunk, _))) if plain.chunk() < *chunk => Some(plain),
            (_, Some((chunk, rank))) => Some(Next::Ranked(*rank, *chunk)),
            (plain, None) => plain,
        }
    }

    /// Returns the chunks of priority 0, in their order. Chunks of several tasks are among these,
    /// because a task with a priority is sent alone.
    pub(super) fn plain(&mut self) -> &mut VecDeque<TaskId> {
        &mut self.plain
    }

    pub(super) fn iter_plain(&self) -> impl Iterator<Item = TaskId> {
        self.plain.iter().copied()
    }

    /// Returns all chunks: first those with a priority, then the others.
    pub(super) fn iter(&self) -> impl Iterator<Item = TaskId> {
        let ranked = self.ranked.iter().flat_map(|ranked| ranked.by_rank.values().copied());
        ranked.chain(self.iter_plain())
    }

    /// Removes the chunks for which this is `false`.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(TaskId) -> bool) {
        self.plain.retain(|chunk| stays(*chunk));
        if let Some(ranked) = &mut self.ranked {
            ranked.by_rank.retain(|_, chunk| stays(*chunk));
            let Ranked { by_rank, by_age, .. } = &mut **ranked;
            by_age.retain(|_, rank| by_rank.contains_key(rank));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.plain.len() + self.ranked_len()
    }

    /// Returns the number of chunks with a priority.
    #[inline]
    pub(super) fn ranked_len(&self) -> usize {
        self.ranked.as_ref().map_or(0, |ranked| ranked.by_rank.len())
    }

    pub(super) fn clear(&mut self) {
        *self = Line::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64.
    fn roll(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn id(n: u64) -> TaskId {
        TaskId::from_raw(n)
    }

    /// What the line does, written in the simplest way.
    #[derive(Default)]
    struct Model {
        /// Each class of priority, in its order.
        classes: BTreeMap<Reverse<i32>, Vec<TaskId>>,
        overtakes: u32,
    }

    impl Model {
        fn next(&self) -> Option<(i32, TaskId)> {
            let firsts =
                |(class, chunks): (&Reverse<i32>, &Vec<TaskId>)| Some((class.0, *chunks.first()?));
            if self.overtakes < OVERTAKES_MAX {
                self.classes.iter().find_map(firsts)
            } else {
                self.oldest()
            }
        }

        fn oldest(&self) -> Option<(i32, TaskId)> {
            let all = self.classes.iter().flat_map(|(class, chunks)| {
                let some = if class.0 == 0 { chunks.len().min(1) } else { chunks.len() };
                chunks[..some].iter().map(|chunk| (class.0, *chunk))
            });
            all.min_by_key(|(_, chunk)| *chunk)
        }

        fn remove(&mut self, (class, chunk): (i32, TaskId)) {
            self.classes.get_mut(&Reverse(class)).unwrap().retain(|other| *other != chunk);
        }

        fn pop(&mut self) -> Option<TaskId> {
            let next = self.next()?;
            self.overtakes = if self.oldest() == Some(next) { 0 } else { self.overtakes + 1 };
            self.remove(next);
            Some(next.1)
        }
    }

    #[test]
    fn the_line_does_what_a_simple_one_does() {
        const PRIORITIES: [i32; 8] = [0, 0, 0, 1, 5, -1, i32::MAX, i32::MIN];
        for seed in 0..400 {
            let mut dice = seed;
            let (mut line, mut model, mut next_id) = (Line::default(), Model::default(), 1);
            let several = if seed % 4 == 0 { 1 } else { PRIORITIES.len() as u64 };
            let mut taken: Vec<(i32, TaskId)> = Vec::new();
            let pops = 2 + roll(&mut dice) % 4;
            for _ in 0..500 {
                match roll(&mut dice) % 10 {
                    at if at < pops => {
                        let next = model.next();
                        assert_eq!(line.front(), next.map(|(_, chunk)| chunk), "seed {seed}");
                        assert_eq!(line.pop_front(), model.pop(), "seed {seed}");
                        taken.extend(next);
                    }
                    6 => {
                        // It has ended meanwhile.
                        if let Some(next) = model.next() {
                            model.remove(next);
                            assert_eq!(line.discard_front(), Some(next.1));
                        }
                    }
                    7 => {
                        // It comes back from a worker.
                        if let Some((priority, chunk)) = taken.pop() {
                            line.push_front(chunk, priority);
                            model.classes.entry(Reverse(priority)).or_default().insert(0, chunk);
                        }
                    }
                    8 if roll(&mut dice).is_multiple_of(8) => {
                        let stays = |chunk: TaskId| !chunk.as_u64().is_multiple_of(3);
                        line.retain(stays);
                        model.classes.values_mut().for_each(|class| class.retain(|id| stays(*id)));
                    }
                    _ => {
                        let priority = PRIORITIES[(roll(&mut dice) % several) as usize];
                        line.push_back(id(next_id), priority);
                        model.classes.entry(Reverse(priority)).or_default().push(id(next_id));
                        next_id += 1;
                    }
                }
                let count: usize = model.classes.values().map(Vec::len).sum();
                assert_eq!(line.len(), count);
                assert_eq!(line.iter().count(), count);
            }
        }
    }

    #[test]
    fn the_part_behind_the_next_one_follows_it() {
        for priority in [0, 3] {
            let mut line = Line::default();
            line.push_back(id(1), priority);
            line.push_back(id(9), priority);
            line.push_second(id(5));
            let order = [(); 3].map(|()| line.pop_front().unwrap().as_u64());
            assert_eq!(order, [1, 5, 9]);
        }
    }

    #[test]
    fn the_lowest_priority_gets_a_turn_however_many_others_come() {
        let mut line = Line::default();
        line.push_back(id(1), i32::MIN);
        line.push_back(id(2), 0);
        let mut turns = Vec::new();
        for n in 3..100 {
            // The line is never without a chunk of the highest priority, and never has two.
            line.push_back(id(n), i32::MAX);
            let next = line.pop_front().unwrap().as_u64();
            if next <= 2 {
                turns.push((next, n));
                line.discard_front();
            }
        }
        let wait = u64::from(OVERTAKES_MAX);
        assert_eq!(turns, [(1, 3 + wait), (2, 3 + 2 * wait + 1)]);
    }

    #[test]
    fn equal_priorities_are_served_in_order_and_nothing_counts_as_overtaken() {
        for priority in [0, 7] {
            let mut line = Line::default();
            (1..=100).for_each(|n| line.push_back(id(n), priority));
            for n in 1..=100 {
                assert_eq!(line.pop_front(), Some(id(n)));
                assert_eq!(line.overtakes, 0);
            }
        }
    }
}
