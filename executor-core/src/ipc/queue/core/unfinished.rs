//! Received items that are not done: whose they are, how they are marked as done, what happens to
//! those of dead processes, and how to wait until there are none.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, Mutex},
    time::Instant,
};

use super::{
    super::ring_list::{Held, Lost, Piece, Returned, Side},
    Core, Wait,
};
use crate::{
    os::{
        clock,
        fork::PerProcess,
        liveness::{OwnerId, Owners},
        std_or_model::{
            atomic::{Ordering, fence},
            lock,
        },
    },
    sync::{
        raw::{RECHECK, nap},
        word_wait::WordWait,
    },
};

/// Items that this process has received and that are not done, the oldest first. Items in an
/// [`Unfinished`] are not included.
#[derive(Default)]
pub(super) struct Own {
    /// The process that the items belong to. After a fork, this differs from the child's identity,
    /// and the child starts with no items.
    of: Option<OwnerId>,
    items: VecDeque<Held>,
}

/// Queues with items that this process holds. They are kept alive so that other processes see this
/// process as alive as long as it holds an item, even after it has dropped the handle with which it
/// received the item.
#[derive(Default)]
struct Kept {
    queues: Mutex<HashMap<(u64, u64), Arc<Core>>>,
}

fn kept() -> &'static Kept {
    static KEPT: PerProcess<Kept> = PerProcess::new(Kept::default);
    KEPT.get()
}

impl Core {
    /// Sets what happens to items whose process dies.
    pub(in crate::ipc::queue) fn set_on_lost(&self, lost: Lost) {
        self.list().set_on_lost(lost);
    }

    /// Returns whether to look for dead processes that hold items, even though there are other
    /// items to get: those others might never run out.
    pub(super) fn looks_for_the_dead(&self) -> bool {
        let now = clock::now_nanos();
        let due =
            now.saturating_sub(self.looked.load(Ordering::Relaxed)) > RECHECK.as_nanos() as u64;
        if due {
            self.looked.store(now, Ordering::Relaxed);
        }
        due
    }

    /// Marks one received item as done: the oldest of this process, or if it has none, the oldest
    /// of all. Returns `false` if there is none.
    pub(in crate::ipc::queue) fn mark_done(&self) -> bool {
        let me = self.block.owners().me();
        while let Some(held) = self.next_of_own(me) {
            if self.is_done(held, me) {
                return true;
            }
        }
        match self.list().is_done_for_another(me) {
            Ok(Some(held)) => {
                self.after_done(held);
                true
            }
            // If the items of other processes cannot be looked at, none of them is marked as done.
            Ok(None) | Err(_) => false,
        }
    }

    /// Removes and returns the oldest item of this process's list.
    fn next_of_own(&self, me: OwnerId) -> Option<Held> {
        let mut own = lock(&self.own);
        let held = if own.of == Some(me) { own.items.pop_front() } else { None };
        // Dropped after the locks are released. It is not the last reference, since the caller has
        // one.
        let _kept = own.items.is_empty().then(|| lock(&kept().queues).remove(&self.inode));
        drop(own);
        held
    }

    /// Adds an item to this process's list, until [`mark_done`](Self::mark_done).
    fn keep(&self, held: Held) {
        let me = self.block.owners().me();
        let list = self.list();
        let mut own = lock(&self.own);
        if own.of != Some(me) {
            *own = Own { of: Some(me), items: VecDeque::new() };
        }
        // Remove items that other processes have marked as done.
        while own.items.front().is_some_and(|held| !list.is_held_by(*held, me)) {
            own.items.pop_front();
        }
        own.items.push_back(held);
        if own.items.len() > 1 {
            return;
        }
        let mut queues = lock(&kept().queues);
        // Other processes may also have marked all items of some other queues as done. Those queues
        // need not be kept alive any longer.
        let is_over = |core: &Arc<Core>| core.own.try_lock().is_ok_and(|own| core.has_none(&own));
        let over: Vec<_> = queues.extract_if(|_, core| is_over(core)).collect();
        queues.extend(self.this.upgrade().map(|this| (self.inode, this)));
        drop(queues);
        drop(own);
        drop(over);
    }

    fn has_none(&self, own: &Own) -> bool {
        let (list, me) = (self.list(), self.block.owners().me());
        own.of != Some(me) || !own.items.iter().any(|held| list.is_held_by(*held, me))
    }

    fn is_done(&self, held: Held, me: OwnerId) -> bool {
        let is_done = self.list().is_done(held, me);
        if is_done {
            self.after_done(held);
        }
        is_done
    }

    /// Notifies waiters after an item is done. It waits for nobody.
    fn after_done(&self, held: Held) {
        let list = self.list();
        if list.is_to_be_cleared()
            && let Ok(Ok(guard)) = list.try_lock(Side::Consumers, false)
        {
            // If the memory cannot be accessed here, another process clears it.
            let _ = list.clear(guard.me());
        }
        // Either the joiner sees that the item is done, or we see that it is listening.
        fence(Ordering::SeqCst);
        if self.layout().all_done.is_listened_to() && list.was_last(held) {
            self.layout().all_done.ring_unlocked().wake_all();
        }
        if list.requeues() && list.is_closed() {
            // Consumers may be waiting for items that will not come back, because they are done.
            self.ring_items();
        }
    }

    /// Returns the number of items that were put and are not done.
    pub(in crate::ipc::queue) fn unfinished(&self) -> u64 {
        self.list().unfinished()
    }

    /// Takes the oldest lost item that was kept, into `out`; the item is then done. With `look`, it
    /// checks for dead processes first. Without it, it checks before it returns that there are
    /// none.
    pub(in crate::ipc::queue) fn take_lost(
        &self,
        out: &mut Vec<u8>,
        wait: Wait,
        mut look: bool,
    ) -> io::Result<Option<Unfinished<'_>>> {
        let Some(guard) = self.lock(Side::Consumers, wait)? else { return Ok(None) };
        let (held, piece, len) = loop {
            if look {
                self.list().reap()?;
            }
            match self.take_again(guard.me(), true, out)? {
                Some(taken) => break taken,
                None if look => return Ok(None),
                None => look = true,
            }
        };
        drop(guard);
        let unfinished = Unfinished { core: self, held: Some(held) };
        self.read_held(unfinished, piece, len, out).map(|got| Some(got.unfinished))
    }

    /// Takes back an item of a dead process. See [`RingList::take_again`].
    pub(super) fn take_again(
        &self,
        me: OwnerId,
        lost: bool,
        out: &mut Vec<u8>,
    ) -> io::Result<Option<(Held, Piece, u64)>> {
        let mut take = |returned: &mut Returned| {
            self.list()
                .take_again(me, lost, returned, |piece, len| self.store.make_room(piece, len, out))
        };
        match self.returned.try_lock() {
            Ok(mut returned) => take(&mut returned[usize::from(lost)]),
            // A forked child whose parent's other thread held the lock.
            Err(_) => take(&mut Returned::default()),
        }
    }

    /// Checks whether all items are done. If not, returns the value of the `all_done` word to sleep
    /// on. The number of lost items is returned once, as an error.
    fn look_for_end(&self) -> Result<Option<u32>, LostCount> {
        let heard = self.layout().all_done.listen();
        fence(Ordering::SeqCst);
        let list = self.list();
        if list.is_finished() {
            return Ok(None);
        }
        // A dying process rings no bell. But every sleep ends soon, and then this runs again.
        if let Ok(Ok(guard)) = list.try_lock(Side::Consumers, false) {
            // If the entries cannot be accessed, the join is not over, and the next round looks
            // again.
            let requeued = list.reap().unwrap_or(0);
            let lost = list.take_lost();
            drop(guard);
            if requeued > 0 {
                self.ring_items();
            }
            if lost > 0 {
                return Err(LostCount(lost));
            }
        }
        Ok(if list.is_finished() { None } else { Some(heard) })
    }

    /// Waits until all items are done; returns `false` if the deadline has passed.
    pub(in crate::ipc::queue) fn join(&self, deadline: Option<Instant>) -> Result<bool, LostCount> {
        loop {
            let Some(heard) = self.look_for_end()? else { return Ok(true) };
            let Some(timeout) = nap(deadline) else { return Ok(false) };
            self.layout().all_done.sleep_with_all(heard, timeout);
        }
    }

    /// Waits like [`join`](Self::join), without blocking the thread.
    pub(in crate::ipc::queue) async fn join_async(&self) -> Result<(), LostCount> {
        while let Some(heard) = self.look_for_end()? {
            WordWait::new(&self.block, self.layout().all_done.word(), heard).await;
        }
        Ok(())
    }
}

/// The number of items that were held by processes that have died.
pub(in crate::ipc::queue) struct LostCount(pub(in crate::ipc::queue) u64);

/// A received item that is marked as done when this is dropped. So no item stays held without an
/// owner that will mark it, even if there is a failure or a panic between getting the item and
/// handing it to the caller. Empty if the queue does not track items.
pub(in crate::ipc::queue) struct Unfinished<'a> {
    pub(super) core: &'a Core,
    pub(super) held: Option<Held>,
}

impl Unfinished<'_> {
    /// Hands the item to this process, which has to mark it as done.
    pub(in crate::ipc::queue) fn keep(mut self) {
        if let Some(held) = self.held.take() {
            self.core.keep(held);
        }
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.core.is_done(held, self.core.block.owners().me());
        }
    }
}
