//! Putting an item: the attempts, the room for large items, and the sending of descriptors.

use std::{io, mem, os::fd::AsFd, sync::Weak};

use super::{
    super::ring_list::{Body, Claimed, Entry, INLINE_MAX, Piece, Side},
    Core, table,
    wait::{Lack, Pause, Step, Wait, listen_for_others},
};
use crate::{
    heap::sparse_file::SparseFile,
    os::{
        limits::open_files,
        liveness::{Liveness, OwnerId, Owners},
        socket::{self, send_now},
        std_or_model::{
            atomic::{Ordering, fence},
            lock,
        },
    },
    sync::{
        raw::{RobustGuard, Woken},
        word_wait::WordWait,
    },
    wire::attachment::Attachment,
};

/// The share of descriptors in transit that queues may use. The system allows a user as many in
/// transit as a process may have open files. One queue may use that number divided by
/// `IN_FLIGHT_OF_ONE`, and all queues of this process together that number divided by
/// `IN_FLIGHT_OF_ALL`. With lower values, the system refuses descriptors that others send. With
/// higher values, fewer items with handles fit in a queue.
const IN_FLIGHT_OF_ONE: u64 = 8;
const IN_FLIGHT_OF_ALL: u64 = 2;

/// Why an item was not put.
#[derive(Debug)]
pub(in crate::ipc::queue) enum Refused {
    Full,
    Busy,
    Closed,
    Io(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Refused::Io(error)
    }
}

impl Core {
    /// Puts an item, waiting for room. `gone` returns whether no consumer is left.
    pub(in crate::ipc::queue) fn put(
        &self,
        bytes: &[u8],
        attachments: &[Attachment],
        wait: Wait,
        gone: impl Fn() -> bool,
    ) -> Result<(), Refused> {
        let mut putting = Putting::new(self, bytes, attachments);
        // A call that only tries makes no second attempt, so it checks for reservations of the dead
        // now.
        putting.of_dead = matches!(wait, Wait::Not);
        putting.may_spin = wait.may_spin();
        let mut woken = Woken::default();
        loop {
            let Some(guard) = self.lock_letting_go(Side::Producers, wait, || putting.let_go())?
            else {
                if self.is_closed() {
                    return Err(Refused::Closed);
                }
                return Err(if self.is_full() { Refused::Full } else { Refused::Busy });
            };
            let pause = match putting.step(guard)? {
                Step::Done(()) => {
                    woken.settle();
                    return Ok(());
                }
                Step::Again => {
                    putting.write()?;
                    continue;
                }
                Step::Wait(pause) => pause,
            };
            // Neither room nor a claim may be held while waiting.
            putting.let_go();
            pause.settle(woken);
            if gone() {
                return Err(Refused::Closed);
            }
            // If only a claim was missing, the queue is not full.
            let Some(timeout) = wait.nap() else {
                return Err(if pause.lacks == Lack::Claim { Refused::Busy } else { Refused::Full });
            };
            woken = pause.sleep(timeout);
            putting.waited(&pause);
        }
    }

    /// Puts an item like [`put`](Self::put), without blocking the thread.
    pub(in crate::ipc::queue) async fn put_async(
        &self,
        bytes: &[u8],
        attachments: &[Attachment],
        gone: impl Fn() -> bool,
    ) -> Result<(), Refused> {
        let mut putting = Putting::new(self, bytes, attachments);
        let mut woken = Woken::default();
        loop {
            let guard = self.lock_async(Side::Producers, || putting.let_go()).await?;
            let pause = match putting.step(guard)? {
                Step::Done(()) => {
                    woken.settle();
                    return Ok(());
                }
                Step::Again => {
                    putting.write()?;
                    continue;
                }
                Step::Wait(pause) => pause,
            };
            putting.let_go();
            pause.settle(woken);
            if gone() {
                return Err(Refused::Closed);
            }
            WordWait::new(&self.block, pause.bell.word(), pause.heard).await;
            woken = pause.woken();
            putting.waited(&pause);
        }
    }

    /// Sends the descriptors of an item that is about to be put. Called under the mutex. Returns
    /// the ticket of the item, or what to wait for if too many descriptors are in transit.
    fn send(&self, attachments: &[Attachment]) -> Result<Result<u64, Pause<'_>>, Refused> {
        let list = self.list();
        // `sending` holds only one ticket, so an earlier ticket that was not used must be published
        // as void before it is replaced.
        if let Err(pause) = self.with_claims(|| list.void_what_was_sent())? {
            return Ok(Err(pause));
        }
        let count = attachments.len() as u64;
        if let Err(pause) = self.look_for_room_on_the_way(|| self.may_send(count)) {
            return Ok(Err(pause));
        }
        let ticket = list.new_ticket(count);
        let mut message = [0; 9];
        message[..8].copy_from_slice(&ticket.to_le_bytes());
        message[8] = attachments.len() as u8;
        let descriptors: Vec<_> = attachments.iter().map(|one| one.as_fd()).collect();
        let mut heard = None;
        loop {
            match send_now(&self.store.to, &message, &descriptors) {
                Ok(()) => {
                    kill_point!(QueueDescriptorsSent);
                    return Ok(Ok(ticket));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let bell = &self.layout().consumers.descriptors;
                    // Try once more after marking a listener: a consumer may just have made room.
                    if let Some(heard) = heard {
                        list.forget_ticket(count);
                        return Ok(Err(Pause { bell, heard, lacks: Lack::Descriptors }));
                    }
                    heard = Some(bell.listen());
                    fence(Ordering::SeqCst);
                }
                Err(error) => {
                    list.forget_ticket(count);
                    return Err(Refused::Io(socket::explained(error)));
                }
            }
        }
    }

    /// Returns `Ok` if `may` allows sending descriptors, otherwise what to wait for.
    fn look_for_room_on_the_way(&self, may: impl Fn() -> bool) -> Result<(), Pause<'_>> {
        if may() {
            return Ok(());
        }
        let bell = &self.layout().consumers.descriptors;
        let heard = bell.listen();
        // Either the consumer sees that we listen, or we see that it has taken some.
        fence(Ordering::SeqCst);
        if may() { Ok(()) } else { Err(Pause { bell, heard, lacks: Lack::Descriptors }) }
    }

    /// Checks whether the descriptors of a large item can be sent. It is called before the item is
    /// written, which takes long, and again if the item was written and its descriptors could not
    /// be sent. It checks not only the limits but also that the socket has room for more. Otherwise
    /// a producer could write an item again and again that cannot be sent.
    fn look_for_room_of_large(&self, attachments: &[Attachment]) -> Result<(), Pause<'_>> {
        if attachments.is_empty() {
            return Ok(());
        }
        let count = attachments.len() as u64;
        self.look_for_room_on_the_way(|| {
            self.may_send(count)
                && (self.list().in_flight() == 0 || socket::has_room(self.store.to.as_fd()))
        })
    }

    /// Returns whether `count` more descriptors may be in transit. The kernel counts the
    /// descriptors of all processes of a user and refuses everyone's above some number, so queues
    /// leave some to others. But each queue may always have one item in transit: waiting for
    /// descriptors that lie in another queue might be waiting forever.
    fn may_send(&self, count: u64) -> bool {
        let in_flight = self.list().in_flight();
        if in_flight == 0 {
            return true;
        }
        let limit = open_files();
        if in_flight.saturating_add(count) > limit / IN_FLIGHT_OF_ONE {
            return false;
        }
        // Dropped after the table is unlocked: one of them may be the last handle by then.
        let all: Vec<_> = lock(&table().queues).values().filter_map(Weak::upgrade).collect();
        let sum = all.iter().fold(count, |sum, core| sum.saturating_add(core.list().in_flight()));
        sum <= limit / IN_FLIGHT_OF_ALL
    }
}

/// An item that is being put.
struct Putting<'a> {
    core: &'a Core,
    bytes: &'a [u8],
    attachments: &'a [Attachment],
    /// The reserved room, between two steps of one attempt. It is given back before waiting for
    /// anything but the mutex.
    large: Option<Large<'a>>,
    slept: bool,
    /// Whether to check for room that dead processes have reserved. See
    /// [`RingList::look_for_room`].
    of_dead: bool,
    /// The call may block its thread and has not spun yet.
    may_spin: bool,
}

impl<'a> Putting<'a> {
    fn new(core: &'a Core, bytes: &'a [u8], attachments: &'a [Attachment]) -> Self {
        Putting {
            core,
            bytes,
            attachments,
            large: None,
            slept: false,
            of_dead: false,
            may_spin: false,
        }
    }

    /// Makes one attempt, under the producers' mutex. If there is no room and the call may spin,
    /// unlocks the mutex and spins until another attempt is worthwhile.
    #[inline]
    fn step(&mut self, guard: RobustGuard<'_, Liveness>) -> Result<Step<'a, ()>, Refused> {
        let (core, list) = (self.core, self.core.list());
        if list.is_closed() {
            return Err(Refused::Closed);
        }
        let room = &core.layout().consumers.room;
        // If a fork has copied this future, the reservation belongs to the parent. Drop it here,
        // which gives nothing back.
        drop(self.large.take_if(|large| large.me != guard.me()));
        if self.large.is_none() {
            // Spin once, before a listener is marked.
            if mem::take(&mut self.may_spin) && !list.has_room() {
                drop(guard);
                core.spin(|| list.has_room() || list.is_closed());
                return Ok(Step::Again);
            }
            if let Err(heard) = list.look_for_room(self.of_dead) {
                return Ok(Step::Wait(Pause { bell: room, heard, lacks: Lack::Item }));
            }
            if self.bytes.len() > INLINE_MAX || list.keeps_items() {
                if list.keeps_items() && !self.attachments.is_empty() {
                    return Err(Refused::Io(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        "an item with handles is lost with the process that gets it: it can be neither kept nor put again, \
                         which `on_lost` has asked for",
                    )));
                }
                // The descriptors are sent only after the item is written, so check first whether
                // they will fit.
                if let Err(pause) = core.look_for_room_of_large(self.attachments) {
                    return Ok(Step::Wait(pause));
                }
                let whole = SparseFile::whole(self.bytes.len().max(1) as u64);
                return Ok(match core.with_claims(|| list.reserve_item(whole, guard.me()))? {
                    Err(pause) => Step::Wait(pause),
                    Ok((piece, claim, is_new)) => {
                        self.large =
                            Some(Large { core, me: guard.me(), piece, claim: Some(claim), is_new });
                        Step::Again
                    }
                });
            }
        }
        let ticket = match self.attachments {
            [] => None,
            attachments => match core.send(attachments)? {
                Ok(ticket) => Some(ticket),
                Err(pause) if self.large.is_none() || pause.lacks == Lack::Claim => {
                    return Ok(Step::Wait(pause));
                }
                Err(_) => {
                    // Give the piece back before listening. Giving it back rings the same bell. A
                    // listener marked before would be woken by that at once, would write the whole
                    // item once more, and so on without end.
                    self.let_go();
                    return Ok(match core.look_for_room_of_large(attachments) {
                        Ok(()) => Step::Again,
                        Err(pause) => Step::Wait(pause),
                    });
                }
            },
        };
        let (body, claim) = match &mut self.large {
            None => (Body::Inline(self.bytes), &mut None),
            Some(large) => {
                let len = self.bytes.len() as u64;
                (Body::Elsewhere { piece: large.piece, len }, &mut large.claim)
            }
        };
        if let Err(pause) = core.with_claims(|| list.put(Entry { body, ticket }, claim))? {
            return Ok(Step::Wait(pause));
        }
        // As in `try_get`: ring while the mutex is held, wake after unlocking.
        let rung = core.layout().producers.items.ring();
        let pass_on = self.slept && listen_for_others(room, || list.has_room());
        drop(guard);
        rung.wake_one();
        if pass_on {
            room.pass_on();
        }
        Ok(Step::Done(()))
    }

    /// Writes a large item into its piece. Called without the mutex.
    fn write(&mut self) -> io::Result<()> {
        let Some(large) = &self.large else { return Ok(()) };
        self.core.store.file.write(large.piece.at, self.bytes, large.is_new)?;
        kill_point!(QueuePieceWritten);
        Ok(())
    }

    /// Gives back what other processes may need, before waiting for them.
    fn let_go(&mut self) {
        self.large = None;
    }

    fn waited(&mut self, pause: &Pause<'_>) {
        self.slept = true;
        self.of_dead |= pause.was_in_vain();
    }
}

/// Reserved room for a large item, and its piece. It is given back if the item is not put.
struct Large<'a> {
    core: &'a Core,
    /// The process that owns the claim. In a forked child, the claim still belongs to the parent,
    /// which writes to the piece, so the child does not give it back.
    me: OwnerId,
    piece: Piece,
    claim: Option<Claimed>,
    is_new: bool,
}

impl Drop for Large<'_> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take()
            && self.core.block.owners().is_me(self.me)
        {
            self.core.list().give_back(claim);
            // Others may have been waiting for this room.
            self.core.ring_room();
        }
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::time::Duration;

    use super::{super::super::ring_list::FIRST_BYTES, *};
    use crate::sync::unused_wake_ups::{ByHand, wakes_a_sleeper};

    /// Brings a put to the state that a suspended task would have: a large item is written, and the
    /// mutex has to be locked for the second time.
    fn half_put<'a>(core: &'a Core, bytes: &'a [u8]) -> Putting<'a> {
        let mut putting = Putting::new(core, bytes, &[]);
        let guard = core.lock(Side::Producers, Wait::Until(None)).unwrap().unwrap();
        assert!(matches!(putting.step(guard), Ok(Step::Again)));
        putting.write().unwrap();
        putting
    }

    #[test]
    fn a_put_that_a_fork_has_copied_gives_back_nothing_of_the_other_process() {
        let core = Core::create(0).unwrap();
        let (one, two) = (vec![1; 300_000], vec![2; 300_000]);
        let mut putting = half_put(&core, &one);
        // SAFETY: the child calls what a copy of a process may, and ends.
        let child = unsafe { crate::os::fork::fork() }.unwrap();
        let Some(child) = child else {
            drop(putting);
            // SAFETY: nothing of the other process is torn down.
            unsafe { libc::_exit(0) }
        };
        let mut status = 0;
        // SAFETY: a child of this process, and a place for its status.
        assert_eq!(unsafe { libc::waitpid(child as i32, &mut status, 0) }, child as i32);
        assert_eq!(status, 0);
        core.put(&two, &[], Wait::Not, || false).unwrap();
        let guard = core.lock(Side::Producers, Wait::Until(None)).unwrap().unwrap();
        assert!(matches!(putting.step(guard), Ok(Step::Done(()))));
        let mut out = Vec::new();
        for expected in [&two, &one] {
            drop(core.get(&mut out, Wait::Not, false, || false).map_err(|_| "nothing").unwrap());
            assert!(out == *expected, "{:?}", out.first());
        }
    }

    #[test]
    fn a_producer_that_is_dropped_after_it_was_woken_wakes_another_one() {
        let core = Core::create(1).unwrap();
        core.put(b"1", &[], Wait::Not, || false).unwrap();
        let mut puts = ByHand::new(core.put_async(b"2", &[], || false));
        assert!(puts.poll().is_pending());
        drop(core.get(&mut Vec::new(), Wait::Not, false, || false).map_err(|_| "nothing").unwrap());
        puts.until_woken();
        // The put looks for room, and has to wait for another producer.
        let guard = core.lock(Side::Producers, Wait::Until(None)).unwrap().unwrap();
        assert!(puts.poll().is_pending());
        wakes_a_sleeper(core.layout().consumers.room.word(), || drop(puts));
        drop(guard);
    }

    #[test]
    fn who_waits_for_a_place_to_repair_with_has_let_go_of_the_one_it_has() {
        let core = Core::create(0).unwrap();
        // Three more words do not fit into the ring, and a process that has sent descriptors has
        // died: to record that, the ring list needs a new ring.
        let words = FIRST_BYTES / 8;
        (0..words / 4 - 1).for_each(|_| core.put(b"", &[], Wait::Not, || false).unwrap());
        let bytes = vec![1; 300_000];
        let mut putting = half_put(&core, &bytes);
        let list = core.list();
        let guard = core.lock(Side::Producers, Wait::Until(None)).unwrap().unwrap();
        list.new_ticket(1);
        std::mem::forget(guard);
        list.mutex(Side::Producers).abandon();
        list.take_all_claims();
        assert!(
            core.lock(Side::Producers, Wait::Not).unwrap().is_none(),
            "a ring is to be had without a claim"
        );
        let wait = Wait::at_most(Duration::from_secs(30));
        let locked = core.lock_letting_go(Side::Producers, wait, || putting.let_go()).unwrap();
        assert!(locked.is_some(), "it waited for itself");
    }
}
