//! Getting an item: the attempts, and the reading of large items.

use std::io;

use super::{
    super::ring_list::{Claimed, FoundBody, Piece, Reading, Side},
    Core, Unfinished,
    wait::{Lack, Pause, Step, Wait, listen_for_others},
};
use crate::{
    os::liveness::{Liveness, Owners},
    sync::{
        raw::{RobustGuard, Woken},
        word_wait::WordWait,
    },
    wire::attachment::Attachment,
};

/// Why no item was received.
#[derive(Debug)]
pub(in crate::ipc::queue) enum Missing {
    Empty,
    Busy,
    Closed,
    Io(io::Error),
}

impl From<io::Error> for Missing {
    fn from(error: io::Error) -> Self {
        Missing::Io(error)
    }
}

/// A received item, apart from its bytes.
pub(in crate::ipc::queue) struct Got<'a> {
    pub(in crate::ipc::queue) attachments: Vec<Attachment>,
    pub(in crate::ipc::queue) unfinished: Unfinished<'a>,
}

/// How an item is received.
#[derive(Clone, Copy)]
struct Getting {
    /// The item belongs to this process until it is marked as done.
    hold: bool,
    /// The call has slept, so it may have been woken in place of another one.
    slept: bool,
    /// The call may block its thread and has not spun yet.
    may_spin: bool,
}

impl Core {
    /// Gets an item into `out`, waiting for one. With `hold`, the item belongs to this process
    /// until it is marked as done. `gone` returns whether no producer is left.
    pub(in crate::ipc::queue) fn get(
        &self,
        out: &mut Vec<u8>,
        wait: Wait,
        hold: bool,
        gone: impl Fn() -> bool,
    ) -> Result<Got<'_>, Missing> {
        let mut how = Getting { hold, slept: false, may_spin: wait.may_spin() };
        let mut over = false;
        let mut woken = Woken::default();
        loop {
            let Some(guard) = self.lock(Side::Consumers, wait)? else {
                let empty = self.len() == 0;
                return Err(if empty { Missing::Empty } else { Missing::Busy });
            };
            let pause = match self.try_get(guard, out, how)? {
                Step::Done(got) => {
                    woken.settle();
                    return Ok(got);
                }
                Step::Wait(pause) => pause,
                Step::Again => {
                    how.may_spin = false;
                    continue;
                }
            };
            pause.settle(woken);
            if pause.lacks == Lack::Item {
                if over {
                    return Err(Missing::Closed);
                }
                if gone() {
                    // Look once more: the last producer may have put an item before it went.
                    over = true;
                    woken = Woken::default();
                    continue;
                }
            }
            let Some(timeout) = wait.nap() else {
                return Err(if pause.lacks == Lack::Item { Missing::Empty } else { Missing::Busy });
            };
            woken = pause.sleep(timeout);
            how.slept = true;
        }
    }

    /// Gets an item like [`get`](Self::get), without blocking the thread.
    pub(in crate::ipc::queue) async fn get_async(
        &self,
        out: &mut Vec<u8>,
        hold: bool,
        gone: impl Fn() -> bool,
    ) -> Result<Got<'_>, Missing> {
        let mut how = Getting { hold, slept: false, may_spin: false };
        let mut over = false;
        let mut woken = Woken::default();
        loop {
            let guard = self.lock_async(Side::Consumers, || ()).await?;
            let pause = match self.try_get(guard, out, how)? {
                Step::Done(got) => {
                    woken.settle();
                    return Ok(got);
                }
                Step::Wait(pause) => pause,
                Step::Again => continue,
            };
            pause.settle(woken);
            if pause.lacks == Lack::Item {
                if over {
                    return Err(Missing::Closed);
                }
                if gone() {
                    over = true;
                    woken = Woken::default();
                    continue;
                }
            }
            WordWait::new(&self.block, pause.bell.word(), pause.heard).await;
            woken = pause.woken();
            how.slept = true;
        }
    }

    /// Makes one attempt to get an item, under the consumers' mutex. If there is none and the call
    /// may spin, unlocks the mutex and spins until another attempt is worthwhile.
    fn try_get(
        &self,
        guard: RobustGuard<'_, Liveness>,
        out: &mut Vec<u8>,
        how: Getting,
    ) -> Result<Step<'_, Got<'_>>, Missing> {
        let Getting { hold, slept, may_spin } = how;
        let (list, me) = (self.list(), guard.me());
        let items = &self.layout().producers.items;
        if hold {
            if list.is_to_be_cleared() {
                list.clear(me)?;
            }
            if list.requeues() && self.looks_for_the_dead() && list.reap()? > 1 {
                // One item came back for this process, and at least one more for others.
                self.ring_items();
            }
            if let Some((held, piece, len)) = self.take_again(me, false, out)? {
                let unfinished = Unfinished { core: self, held: Some(held) };
                // Taking the item back makes room, as taking it from the ring would.
                let rung = self.layout().consumers.room.ring();
                let pass_on = slept && listen_for_others(items, || list.len() > 0);
                drop(guard);
                rung.wake_one();
                if pass_on {
                    items.pass_on();
                }
                return self
                    .read_held(unfinished, piece, len, out)
                    .map(Step::Done)
                    .map_err(Missing::Io);
            }
        }
        // Listen only after spinning, because a marked listener costs producers a system call.
        let found = match self.with_claims(|| list.find_or_listen(!may_spin))? {
            Err(pause) => return Ok(Step::Wait(pause)),
            Ok(Ok(found)) => found,
            Ok(Err(_)) if may_spin => {
                drop(guard);
                self.spin(|| list.len() > 0 || list.is_closed());
                return Ok(Step::Again);
            }
            Ok(Err(_)) if hold && list.requeues() && list.reap()? > 0 => {
                // Items of dead processes came back and can be received at once, by this consumer
                // or by a quicker one.
                drop(guard);
                self.ring_items();
                return Ok(Step::Again);
            }
            Ok(Err(heard)) if hold && list.requeues() && list.others_hold(me)? => {
                // Items that other processes hold may come back, even if nothing new is put.
                return Ok(Step::Wait(Pause { bell: items, heard, lacks: Lack::Item }));
            }
            // Not closed: wait. If it is closed, look once more, because items put before the
            // closing count.
            Ok(Err(heard)) if !list.is_closed() => {
                return Ok(Step::Wait(Pause { bell: items, heard, lacks: Lack::Item }));
            }
            Ok(Err(_)) => match self.with_claims(|| list.find())? {
                Err(pause) => return Ok(Step::Wait(pause)),
                Ok(found) => found.ok_or(Missing::Closed)?,
            },
        };
        // Everything that can fail comes before anything changes.
        match &found.body {
            FoundBody::Inline { ring, word, len } => {
                out.clear();
                ring.read(*word, *len, out);
            }
            FoundBody::Elsewhere { piece, len } => self.store.make_room(*piece, *len, out)?,
        }
        kill_point!(QueueItemCopied);
        let attachments = match found.ticket {
            None => Vec::new(),
            Some(ticket) => self.store.descriptors(ticket)?,
        };
        kill_point!(QueueDescriptorsSeen);
        // Get everything that taking needs first: an entry, then a claim for the piece. The entry
        // is not marked yet, so it stays free if there is no claim.
        let free =
            match hold.then(|| self.with_claims(|| list.free_hold(me))).transpose()?.transpose() {
                Ok(free) => free,
                Err(pause) => return Ok(Step::Wait(pause)),
            };
        let reading = match self.with_claims(|| list.claim_for(&found, me, hold))? {
            Ok(reading) => reading,
            Err(pause) => return Ok(Step::Wait(pause)),
        };
        // From here on, the item belongs to this process.
        let unfinished = Unfinished { core: self, held: list.take(&found, &reading, free, me) };
        if let Some(ticket) = found.ticket {
            list.discard(ticket);
            kill_point!(QueueDescriptorsTaken);
        }
        let (piece, len) = match &found.body {
            FoundBody::Elsewhere { piece, len } => (*piece, *len),
            FoundBody::Inline { .. } => (Piece { at: 0, bytes: 0 }, 0),
        };
        // This unlocks the ring's mapping. Otherwise the next thread of this process that locks the
        // mutex would have to map the ring anew.
        drop(found);
        let (read, reading) = match reading {
            Reading::Now(claim) => (self.read_claimed(piece, len, claim, out), Reading::Nothing),
            other => (Ok(()), other),
        };
        // Ring while the mutex is held, and wake after unlocking, so that the woken process need
        // not wait for the mutex.
        let rung = self.layout().consumers.room.ring();
        let pass_on = slept && listen_for_others(items, || list.len() > 0);
        drop(guard);
        rung.wake_one();
        if pass_on {
            items.pass_on();
        }
        let got = match reading {
            Reading::Later(claim) => self.read_claimed(piece, len, claim, out).map(|()| unfinished),
            Reading::Held => {
                return self
                    .read_held(unfinished, piece, len, out)
                    .map(Step::Done)
                    .map_err(Missing::Io);
            }
            Reading::Nothing | Reading::Now(_) => read.map(|()| unfinished),
        };
        let unfinished = got.map_err(Missing::Io)?;
        if let Some(held) = unfinished.held {
            list.has_read(held, me);
        }
        Ok(Step::Done(Got { attachments, unfinished }))
    }

    fn read_claimed(
        &self,
        piece: Piece,
        len: u64,
        claim: Claimed,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let read = self.store.read_piece(piece, len, out);
        kill_point!(QueuePieceCopied);
        self.list().give_back(claim);
        read
    }

    /// Reads an item that is held by an entry of this process. If that fails, the item is done.
    pub(super) fn read_held<'a>(
        &'a self,
        unfinished: Unfinished<'a>,
        piece: Piece,
        len: u64,
        out: &mut Vec<u8>,
    ) -> io::Result<Got<'a>> {
        out.clear();
        self.store.read_piece(piece, len, out)?;
        kill_point!(QueueHeldCopied);
        if let Some(held) = unfinished.held {
            self.list().has_read(held, self.block.owners().me());
        }
        Ok(Got { attachments: Vec::new(), unfinished })
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::{thread, time::Duration};

    use super::{super::super::ring_list::Lost, *};
    use crate::{
        os::std_or_model::atomic::Ordering,
        sync::unused_wake_ups::{ByHand, Sleeper, is_woken, until, wakes_a_sleeper},
    };

    #[test]
    fn a_consumer_that_is_dropped_after_it_was_woken_wakes_another_one() {
        let core = Core::create(0).unwrap();
        let mut out = Vec::new();
        let mut gets = ByHand::new(core.get_async(&mut out, false, || false));
        assert!(gets.poll().is_pending());
        core.put(b"1", &[], Wait::Not, || false).unwrap();
        gets.until_woken();
        let guard = core.lock(Side::Consumers, Wait::Until(None)).unwrap().unwrap();
        assert!(gets.poll().is_pending());
        wakes_a_sleeper(core.layout().producers.items.word(), || drop(gets));
        drop(guard);
    }

    #[test]
    fn a_consumer_whose_timeout_passes_after_it_was_woken_wakes_another_one() {
        let play = || {
            let core = Core::create(0).unwrap();
            let (items, sleeper) = (core.layout().producers.items.word(), Sleeper::default());
            thread::scope(|scope| {
                let gets = scope.spawn(|| {
                    sleeper.is_this_thread();
                    let wait = Wait::at_most(Duration::from_secs(3));
                    core.get(&mut Vec::new(), wait, false, || false).map(drop)
                });
                until(|| items.load(Ordering::SeqCst) & 1 == 1);
                sleeper.until_it_sleeps();
                let guard = core.lock(Side::Consumers, Wait::Until(None)).unwrap().unwrap();
                core.put(b"1", &[], Wait::Not, || false).unwrap();
                let is_woken = is_woken(items, Duration::from_secs(10), || ());
                assert!(matches!(gets.join().unwrap(), Err(Missing::Busy)));
                drop(guard);
                is_woken
            })
        };
        // A sleeper looks by itself from time to time. If it does so at that moment, nobody was
        // woken, and nothing has to be passed on. So one success of several tries is enough.
        assert!((0..8).any(|_| play()), "it slept on");
    }

    #[test]
    fn one_that_takes_what_came_back_after_it_was_woken_for_another_item_wakes_another_one() {
        let core = Core::create(0).unwrap();
        core.set_on_lost(Lost::Requeued);
        core.put(b"back", &[], Wait::Not, || false).unwrap();
        // SAFETY: the child calls what a copy of a process may, and ends.
        let child = unsafe { crate::os::fork::fork() }.unwrap();
        let Some(child) = child else {
            let got = core.get(&mut Vec::new(), Wait::Not, true, || false);
            std::mem::forget(got);
            // SAFETY: nothing of the other process is torn down.
            unsafe { libc::_exit(0) }
        };
        // SAFETY: a child of this process.
        assert_eq!(unsafe { libc::waitpid(child as i32, &mut 0, 0) }, child as i32);
        core.put(b"new", &[], Wait::Not, || false).unwrap();
        let guard = core.lock(Side::Consumers, Wait::Until(None)).unwrap().unwrap();
        assert_eq!(core.list().reap().unwrap(), 1);
        let how = Getting { hold: true, slept: true, may_spin: false };
        let items = core.layout().producers.items.word();
        let mut out = Vec::new();
        wakes_a_sleeper(items, || {
            let Ok(Step::Done(_)) = core.try_get(guard, &mut out, how) else {
                panic!("there are two")
            };
        });
        assert_eq!(out, b"back");
    }
}
