//! Tasks that need tokens: of each resource the pool has a fixed number, which tasks share.
//!
//! ```text
//!  needs gpu       ─► its line ─┐
//!  needs gpu, disk ─► its line ─┼─ the first one whose tokens are free ──► an idle worker
//!  needs disk      ─► its line ─┘   └─ what those before it lack is kept for them
//!                                      ▲
//!            answered, taken back, lost ── its tokens are free again
//! ```
//!
//! All tasks that need the same resources wait in one line, and only the first of a line is looked
//! at. The first ones of all lines are ordered by priority and age. One that lacks tokens keeps
//! those of its resources that are free, so that no later one takes them away for ever. Others go
//! on meanwhile, and so do tasks that need nothing.
//!
//! A task gets all its tokens at once, and has them as long as it is with a worker. It is sent only
//! to an idle worker: behind another task it would have tokens and not use them. When its turn has
//! come and no worker is idle, nothing that comes after it is sent ahead, so that one becomes idle.

use std::cmp::Reverse;

use super::{Scheduler, line::OVERTAKES_MAX, lines::Lines, task::Scheduled};
use crate::{id::TaskId, task::Need};

/// A set of resources, a bit for each.
pub(super) type Resources = u64;

/// The tokens of a pool, and the chunks that wait for some.
pub(super) struct Tokens {
    /// How many tokens there are of each resource.
    all: Box<[u32]>,
    /// The chunks that wait, by what they need.
    pub(super) lines: Lines<Resources>,
    /// The chunks that were given tokens. They have them as long as a worker has them: it is looked
    /// up when tokens are wanted, and not recorded wherever a chunk may leave its worker.
    holders: Vec<TaskId>,
    /// Number of chunks in a row that have overtaken an older one, which was the first of another
    /// line.
    overtakes: u32,
    /// Number of times in a row that the younger one went first, of a chunk with tokens and the
    /// next one in the queue.
    passes: u32,
}

/// The next chunk that has all its tokens.
#[derive(Clone, Copy)]
pub(super) struct Next {
    chunk: TaskId,
    resources: Resources,
    priority: i32,
    /// Whether it overtakes an older one.
    overtakes: bool,
}

impl Next {
    pub(super) fn chunk(&self) -> TaskId {
        self.chunk
    }
}

/// Returns the resources that a chunk needs. The set is empty for nearly all chunks.
#[inline]
pub(super) fn resources_of(needs: &[Need]) -> Resources {
    needs.iter().fold(0, |set, need| set | 1 << need.resource)
}

impl Tokens {
    pub(super) fn new(all: Box<[u32]>) -> Self {
        debug_assert!(all.len() <= Resources::BITS as usize);
        Tokens { all, lines: Lines::default(), holders: Vec::new(), overtakes: 0, passes: 0 }
    }

    /// Forgets all chunks.
    pub(super) fn clear(&mut self) {
        *self = Tokens::new(std::mem::take(&mut self.all));
    }
}

impl<C: Scheduled> Scheduler<C> {
    /// Returns how many tokens of each resource no chunk has.
    fn free_tokens(&mut self) -> Vec<u32> {
        let Scheduler { tokens, tasks, .. } = self;
        let mut free = tokens.all.to_vec();
        tokens.holders.retain(|chunk| {
            let entry = tasks.get(*chunk).filter(|entry| entry.worker().is_some());
            for need in entry.iter().flat_map(|entry| entry.chunk().needs()) {
                take(&mut free, *need);
            }
            entry.is_some()
        });
        free
    }

    /// Returns the first queued chunk of each line, in the order of their turns, and whether it
    /// overtakes an older one. They stay in their lines.
    fn firsts(&mut self) -> Vec<Next> {
        let Scheduler { tokens, tasks, .. } = self;
        let mut firsts: Vec<Next> = Vec::new();
        tokens.lines.by_key.retain(|resources, line| {
            while let Some(chunk) = line.front() {
                if let Some(entry) = tasks.get(chunk).filter(|entry| entry.is_queued()) {
                    let priority = entry.chunk().priority();
                    firsts.push(Next { chunk, resources: *resources, priority, overtakes: false });
                    return true;
                }
                line.discard_front();
            }
            false
        });
        firsts.sort_unstable_by_key(|next| (Reverse(next.priority), next.chunk));
        let oldest = firsts.iter().map(Next::chunk).min();
        for next in &mut firsts {
            next.overtakes = Some(next.chunk) != oldest;
        }
        if tokens.overtakes >= OVERTAKES_MAX
            && let Some(at) = firsts.iter().position(|next| !next.overtakes)
        {
            firsts[..=at].rotate_right(1);
        }
        firsts
    }

    /// Returns the next chunk that can have all its tokens now, if there is one. It stays in its
    /// line.
    #[inline]
    pub(super) fn next_with_tokens(&mut self) -> Option<Next> {
        if self.tokens.lines.queued() == 0 { None } else { self.search_with_tokens() }
    }

    #[cold]
    fn search_with_tokens(&mut self) -> Option<Next> {
        let mut free = self.free_tokens();
        self.firsts().into_iter().find(|next| {
            let needs = self.tasks[next.chunk].chunk().needs();
            let has_all = needs.iter().all(|need| need.tokens <= free[usize::from(need.resource)]);
            if !has_all {
                // What it lacks is kept for it.
                needs.iter().for_each(|need| take(&mut free, *need));
            }
            has_all
        })
    }

    /// Returns how many queued chunks could have their tokens at the same time, up to `most`.
    ///
    /// It is at least 1 if there is a [next one](Self::next_with_tokens). It may be too low,
    /// because the lines are looked at in another order here. Then a worker is started later than
    /// it could be.
    pub(super) fn count_with_tokens(&mut self, most: usize) -> usize {
        if self.next_with_tokens().is_none() {
            return 0;
        }
        let mut free = self.free_tokens();
        let mut count = 0;
        for line in self.tokens.lines.by_key.values() {
            for entry in line.iter().filter_map(|chunk| self.tasks.get(chunk)) {
                let needs = entry.chunk().needs();
                let has_all =
                    needs.iter().all(|need| need.tokens <= free[usize::from(need.resource)]);
                if !entry.is_queued() {
                    continue;
                }
                if !has_all || count == most {
                    break;
                }
                needs.iter().for_each(|need| take(&mut free, *need));
                count += 1;
            }
        }
        count.clamp(1, most.max(1))
    }

    /// Returns whether this chunk goes before the next one in the queue, if there is one. That is
    /// the one with the higher priority, or the older one.
    pub(super) fn goes_first(&self, next: &Next, queued: Option<TaskId>) -> bool {
        let Some(queued) = queued else { return true };
        let priority = self.tasks[queued].chunk().priority();
        if next.priority == priority || self.tokens.passes >= OVERTAKES_MAX {
            next.chunk < queued
        } else {
            next.priority > priority
        }
    }

    /// Records that the first of two chunks went first, and the other one waits on.
    pub(super) fn has_passed(&mut self, first: TaskId, waits: TaskId) {
        self.tokens.passes = if waits < first { self.tokens.passes.saturating_add(1) } else { 0 };
    }

    /// Takes the chunk out of its line, because it goes to a worker. It has its tokens from now on.
    pub(super) fn give_tokens(&mut self, next: &Next) {
        let popped = self.tokens.lines.pop_front(next.resources);
        debug_assert_eq!(popped, Some(next.chunk), "nothing has changed since it was looked up");
        self.tokens.overtakes =
            if next.overtakes { self.tokens.overtakes.saturating_add(1) } else { 0 };
        if !self.tokens.holders.contains(&next.chunk) {
            self.tokens.holders.push(next.chunk);
        }
    }
}

/// Takes tokens away, as far as there are any.
fn take(free: &mut [u32], need: Need) {
    let free = &mut free[usize::from(need.resource)];
    *free = free.saturating_sub(need.tokens);
}
