//! One process's view of a queue: its words, its file, its socket. It takes and returns bytes and
//! descriptors; encoding and decoding happen elsewhere.

use std::{
    borrow::Borrow,
    collections::{HashMap, VecDeque},
    fmt, io, mem,
    ops::Deref,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, TryLockError, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use rustix::{
    fs::fstat,
    process::{Resource, getrlimit},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::ring_list::{
    Body, Claimed, Entry, Failed, FoundBody, Held, INLINE_MAX, Layout, Lost, Memory, Piece,
    Reading, Returned, RingList, RingPlace, Side, Words, garbled,
};
use crate::{
    heap::{
        block::{Block, BlockKind, BlockPlace},
        sparse_file::{SparseFile, Window},
    },
    os::{
        asked::Asked,
        clock,
        fork::PerProcess,
        liveness::{Liveness, OwnerId, Owners},
        socket::{self, peek_short_now, remove_now, send_now},
        spin::Spin,
        std_or_model::{
            Shadow,
            atomic::{AtomicU64, fence},
            lock,
        },
    },
    sync::{
        raw::{Bell, RECHECK, RobustGuard, Woken, deadline_in, nap},
        word_wait::WordWait,
    },
    wire::attachment::{self, Attachment},
};

/// How long a call that must not wait may wait for a mutex. A holder needs it for some
/// microseconds, but may have to wait for a processor first. A higher value makes such a call take
/// that long while the holder is stopped. A lower value makes the call report `Busy` more often
/// where many processes share a processor, because it has not seen what is in the queue.
const PATIENCE: Duration = Duration::from_millis(20);

/// The share of descriptors in transit that queues may use. The system allows a user as many in
/// transit as a process may have open files. One queue may use that number divided by
/// `IN_FLIGHT_OF_ONE`, and all queues of this process together that number divided by
/// `IN_FLIGHT_OF_ALL`. With lower values, the system refuses descriptors that others send. With
/// higher values, fewer items with handles fit in a queue.
const IN_FLIGHT_OF_ONE: u64 = 8;
const IN_FLIGHT_OF_ALL: u64 = 2;

/// Maximum number of table mappings that are kept.
const TABLES_MAX: usize = 32;

/// Offset of the words in their block.
const START: usize = Block::aligned(0, align_of::<Layout>());

/// One process's view of a queue. See the module's documentation.
pub(super) struct Core {
    block: Block,
    store: Store,
    inode: (u64, u64),
    waiting: Mutex<Spin>,
    own: Mutex<Own>,
    /// Items that can be received again, and lost items that can be asked for. Used by the holder
    /// of the consumers' mutex.
    returned: Mutex<[Returned; 2]>,
    /// When this process last checked for dead processes that hold items; see
    /// [`looks_for_the_dead`](Core::looks_for_the_dead).
    looked: AtomicU64,
    this: Weak<Core>,
}

/// Items that this process has received and that are not done, the oldest first. Items in an
/// [`Unfinished`] are not included.
#[derive(Default)]
struct Own {
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

/// The memory and descriptors that the words of the block refer to.
struct Store {
    file: SparseFile,
    /// Descriptors of items are sent to this end of the socket pair.
    to: Arc<OwnedFd>,
    /// Descriptors of items wait at this end.
    from: Arc<OwnedFd>,
    /// The ring that each side used last; empty at first.
    rings: [Mutex<Mapped<Window>>; 2],
    tables: Mutex<Vec<Mapped<Arc<Window>>>>,
}

/// A mapped piece of the file.
#[derive(Default)]
pub(super) struct Mapped<W> {
    at: u64,
    ring: W,
}

impl<W: Borrow<Window>> Mapped<W> {
    fn is(&self, at: u64, bytes: u64) -> bool {
        self.at == at && self.ring.borrow().words() as u64 * 8 == bytes
    }
}

/// A mapped ring that a call works on.
pub(super) enum Ring<'a> {
    /// The mapping that is kept for this side.
    Kept(MutexGuard<'a, Mapped<Window>>),
    /// A mapping for this call only, because the kept one is in use. That happens while a call goes
    /// from one ring to the next, and in a forked child if another thread of the parent was using
    /// the ring.
    Own(Window),
}

impl Deref for Ring<'_> {
    type Target = Window;

    #[inline]
    fn deref(&self) -> &Window {
        match self {
            Ring::Kept(mapped) => &mapped.ring,
            Ring::Own(ring) => ring,
        }
    }
}

/// How long a call may wait.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    Not,
    Until(Option<Instant>),
}

impl Wait {
    pub(super) fn at_most(limit: Duration) -> Self {
        Wait::Until(deadline_in(limit))
    }

    /// Returns the deadline for acquiring a mutex.
    fn for_mutex(self) -> Option<Instant> {
        match self {
            Wait::Not => deadline_in(PATIENCE),
            // A look at the queue is allowed even if the deadline is sooner.
            Wait::Until(Some(deadline)) => deadline_in(PATIENCE).max(Some(deadline)),
            Wait::Until(None) => None,
        }
    }

    /// Returns whether the call may wait at all. A limit that has passed leaves no time to spin.
    fn may_spin(self) -> bool {
        self.nap().is_some()
    }

    /// Returns how long to sleep now; `None` if the time is up.
    fn nap(self) -> Option<Duration> {
        match self {
            Wait::Not => None,
            Wait::Until(deadline) => nap(deadline),
        }
    }
}

/// Why an item was not put.
#[derive(Debug)]
pub(super) enum Refused {
    Full,
    Busy,
    Closed,
    Io(io::Error),
}

/// Why no item was received.
#[derive(Debug)]
pub(super) enum Missing {
    Empty,
    Busy,
    Closed,
    Io(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Refused::Io(error)
    }
}

impl From<io::Error> for Missing {
    fn from(error: io::Error) -> Self {
        Missing::Io(error)
    }
}

/// Result of one attempt under a mutex.
enum Step<'a, T> {
    Done(T),
    /// Try again at once. In `put`, a large item has to be written first; room for it is reserved.
    Again,
    /// Try again after [`Core::spin`]. The attempt has not marked a listener.
    Spin,
    Wait(Pause<'a>),
}

/// What an attempt that could not be completed has to wait for.
#[derive(Clone, Copy)]
struct Pause<'a> {
    /// Rung when the attempt should be repeated.
    bell: &'a Bell,
    /// The value of the bell's word before the attempt; the waiter sleeps only while it is
    /// unchanged.
    heard: u32,
    /// What was missing.
    lacks: Lack,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// An item, or room for one.
    Item,
    /// Room for more descriptors in transit. A call does not spin for it: whether there is room in
    /// the queue says nothing about it.
    Descriptors,
    /// A claim. See `ring_list/mod.rs`.
    Claim,
}

impl<'a> Pause<'a> {
    /// Returns whether nobody has rung the bell since.
    fn was_in_vain(&self) -> bool {
        self.bell.word().load(Ordering::Relaxed) == self.heard
    }

    fn sleep(&self, limit: Duration) -> Woken<'a> {
        self.bell.sleep_with_all(self.heard, limit);
        self.woken()
    }

    /// Returns the wake-up that this waiter got.
    fn woken(&self) -> Woken<'a> {
        match self.lacks {
            Lack::Item => self.bell.woken(),
            // Everyone is woken, so no wake-up needs to be passed on.
            Lack::Descriptors | Lack::Claim => Woken::default(),
        }
    }

    /// Settles the previous wake-up after a new attempt has ended in this pause. If the attempt
    /// lacked an item or room, it has looked for what the wake-up announced and found none, so the
    /// wake-up is used up. Otherwise the waiter lacks something else, and dropping `woken` passes
    /// the wake-up on to another waiter.
    fn settle(&self, woken: Woken<'_>) {
        if self.lacks == Lack::Item {
            woken.settle();
        }
    }
}

impl Words for Window {
    fn words(&self) -> usize {
        Window::words(self)
    }

    #[cfg(not(all(test, any(executor_loom, executor_shuttle))))]
    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        Window::word(self, index)
    }

    #[cfg(all(test, any(executor_loom, executor_shuttle)))]
    fn word(&self, _: usize) -> &AtomicU64 {
        unreachable!("a model has memory of its own")
    }

    #[cfg(not(all(test, any(executor_loom, executor_shuttle))))]
    #[inline]
    fn shadow(&self, _: usize) -> &Shadow {
        Shadow::NOTHING
    }

    #[cfg(all(test, any(executor_loom, executor_shuttle)))]
    fn shadow(&self, _: usize) -> &Shadow {
        unreachable!("a model has memory of its own")
    }

    #[inline]
    fn write(&self, index: usize, bytes: &[u8]) {
        Window::write(self, index, bytes);
    }
}

impl Memory for Store {
    type Ring = Window;
    type Mapped<'a> = Ring<'a>;

    fn allocate(&self, at: u64, bytes: u64) -> io::Result<()> {
        self.file.allocate(at, bytes)
    }

    fn free(&self, at: u64, bytes: u64) -> bool {
        self.file.punch(at, bytes)
    }

    #[inline]
    fn ring(&self, side: Side, place: RingPlace) -> io::Result<Ring<'_>> {
        let Piece { at, bytes } = place.piece();
        let Some(mut kept) = self.kept(side) else {
            return Ok(Ring::Own(self.file.window(at, bytes)?));
        };
        if !kept.is(at, bytes) {
            *kept = Mapped { at, ring: self.file.window(at, bytes)? };
        }
        Ok(Ring::Kept(kept))
    }

    fn keep<'a>(&'a self, side: Side, place: RingPlace, ring: Ring<'a>) -> Ring<'a> {
        match (ring, self.kept(side)) {
            (Ring::Own(ring), Some(mut kept)) => {
                *kept = Mapped { at: place.piece().at, ring };
                Ring::Kept(kept)
            }
            (ring, _) => ring,
        }
    }

    fn table(&self, at: u64, bytes: u64) -> io::Result<Arc<Window>> {
        let mut tables = lock(&self.tables);
        if let Some(mapped) = tables.iter().find(|mapped| mapped.is(at, bytes)) {
            return Ok(Arc::clone(&mapped.ring));
        }
        let ring = Arc::new(self.file.window(at, bytes)?);
        // A queue has no more tables than this, unless a process garbles their positions.
        if tables.len() >= TABLES_MAX {
            tables.clear();
        }
        tables.push(Mapped { at, ring: Arc::clone(&ring) });
        Ok(ring)
    }

    fn discard(&self, ticket: u64) {
        while let Ok((found, ..)) = self.peek()
            && found <= ticket
        {
            self.drop_first();
        }
    }
}

impl Store {
    /// Locks the mapping kept for a side, unless it is in use. It must not wait: a call that works
    /// on both the last ring and the next one would wait for itself.
    #[inline]
    fn kept(&self, side: Side) -> Option<MutexGuard<'_, Mapped<Window>>> {
        match self.rings[side as usize].try_lock() {
            Ok(kept) => Some(kept),
            Err(TryLockError::Poisoned(kept)) => Some(kept.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Peeks at the first message in the socket. Returns its ticket, how many descriptors belong to
    /// it, and the descriptors that this process had room for.
    fn peek(&self) -> io::Result<(u64, usize, Vec<OwnedFd>)> {
        let mut message = [0; 9];
        let (len, descriptors) = peek_short_now(&self.from, &mut message)?;
        let [ticket @ .., count] = message;
        if len != message.len() {
            // No process that keeps to the protocol has sent this.
            return Ok((0, 0, descriptors));
        }
        Ok((u64::from_le_bytes(ticket), usize::from(count), descriptors))
    }

    /// Takes the first message out of the socket. Its descriptors are closed unless a process holds
    /// them.
    fn drop_first(&self) {
        let _ = remove_now(&self.from);
    }

    /// Returns the descriptors of an item. They stay in the socket.
    fn descriptors(&self, ticket: u64) -> io::Result<Vec<Attachment>> {
        loop {
            // If the message is missing, a process that does not keep to the protocol has taken it.
            // Decoding the item reports that.
            let Ok((found, count, descriptors)) = self.peek() else { return Ok(Vec::new()) };
            if found < ticket {
                self.drop_first();
                continue;
            }
            if found != ticket {
                return Ok(Vec::new());
            }
            if descriptors.len() != count {
                return Err(io::Error::other(
                    "this process may not have as many open files as the item needs",
                ));
            }
            return Ok(descriptors.into_iter().map(Arc::new).collect());
        }
    }
}

/// The queues of this process, by the device and inode of their file. So a queue that is received
/// again is the same `Core`.
#[derive(Default)]
struct Table {
    queues: Mutex<HashMap<(u64, u64), Weak<Core>>>,
}

fn table() -> &'static Table {
    static TABLE: PerProcess<Table> = PerProcess::new(Table::default);
    TABLE.get()
}

impl Drop for Core {
    fn drop(&mut self) {
        let mut queues = lock(&table().queues);
        // The queue may have been received again meanwhile, and then the entry belongs to the new
        // one.
        if queues.get(&self.inode).is_some_and(|other| other.strong_count() == 0) {
            queues.remove(&self.inode);
        }
    }
}

impl Core {
    /// Creates a queue; a `capacity` of 0 means unbounded.
    pub(super) fn create(capacity: u64) -> io::Result<Arc<Self>> {
        let block = Block::allocate(BlockKind::Queue, START + size_of::<Layout>())?;
        let file = SparseFile::create("executor-queue")?;
        let (to, from) = socket::pair().asked("a pair of sockets (socketpair)")?;
        let core = Self::over(block, file, Arc::new(to), Arc::new(from))?;
        core.list().begin(capacity)?;
        lock(&table().queues).insert(core.inode, Arc::downgrade(&core));
        Ok(core)
    }

    fn over(
        block: Block,
        file: SparseFile,
        to: Arc<OwnedFd>,
        from: Arc<OwnedFd>,
    ) -> io::Result<Arc<Self>> {
        let stat = fstat(file.descriptor()).asked("shared memory (fstat)")?;
        let store = Store { file, to, from, rings: Default::default(), tables: Mutex::default() };
        let inode = (stat.st_dev, stat.st_ino);
        Ok(Arc::new_cyclic(|this| Core {
            block,
            store,
            inode,
            waiting: Mutex::default(),
            own: Mutex::default(),
            returned: Mutex::default(),
            looked: AtomicU64::new(0),
            this: Weak::clone(this),
        }))
    }

    #[inline]
    fn layout(&self) -> &Layout {
        self.block.part(START)
    }

    #[inline]
    fn list(&self) -> RingList<'_, Store, Liveness> {
        RingList { layout: self.layout(), memory: &self.store, owners: self.block.owners() }
    }

    pub(super) fn len(&self) -> u64 {
        self.list().len()
    }

    pub(super) fn capacity(&self) -> Option<u64> {
        self.list().capacity()
    }

    pub(super) fn is_full(&self) -> bool {
        self.list().is_full()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.list().is_closed()
    }

    /// Closes the queue: nothing can be put any more.
    pub(super) fn close(&self) -> io::Result<()> {
        // Under the mutex, so that a concurrent put is either complete before this, or refused.
        let guard = self.lock(Side::Producers, Wait::Until(None));
        // Close even if locking failed because the state left by a dead process cannot be repaired:
        // nothing is being put then.
        self.list().close();
        let locked = guard.map(drop);
        self.ring_items();
        self.ring_room();
        self.layout().all_done.ring_unlocked().wake_all();
        locked
    }

    /// Wakes all consumers, so that they look again.
    pub(super) fn ring_items(&self) {
        self.layout().producers.items.ring_unlocked().wake_all();
    }

    /// Wakes all producers, so that they look again.
    pub(super) fn ring_room(&self) {
        self.layout().consumers.room.ring_unlocked().wake_all();
        if self.layout().consumers.descriptors.is_listened_to() {
            self.layout().consumers.descriptors.ring_unlocked().wake_all();
        }
    }

    /// Locks a mutex; `None` if another process keeps it for longer than `wait` allows.
    #[inline]
    fn lock(&self, side: Side, wait: Wait) -> io::Result<Option<RobustGuard<'_, Liveness>>> {
        self.lock_letting_go(side, wait, || ())
    }

    /// Locks a mutex like [`lock`](Self::lock). Before it waits for a claim, it calls `let_go`,
    /// which gives back whatever other processes may need in order to go on.
    #[inline]
    fn lock_letting_go(
        &self,
        side: Side,
        wait: Wait,
        mut let_go: impl FnMut(),
    ) -> io::Result<Option<RobustGuard<'_, Liveness>>> {
        let list = self.list();
        loop {
            let locked = match self.with_claims(|| list.lock(side, wait.for_mutex()))? {
                Ok(locked) => locked,
                Err(pause) => match wait.nap() {
                    Some(limit) => {
                        let_go();
                        drop(pause.sleep(limit));
                        continue;
                    }
                    None => return Ok(None),
                },
            };
            if locked.is_some() || !matches!(wait, Wait::Until(None)) {
                return Ok(locked);
            }
        }
    }

    /// Locks a mutex like [`lock_letting_go`](Self::lock_letting_go), without blocking the thread.
    async fn lock_async(
        &self,
        side: Side,
        mut let_go: impl FnMut(),
    ) -> io::Result<RobustGuard<'_, Liveness>> {
        let mut will_wait = false;
        loop {
            let (word, heard) = match self.with_claims(|| self.list().try_lock(side, will_wait))? {
                Ok(Ok(guard)) => return Ok(guard),
                // The first attempt does not mark the mutex, since a mark costs its holder a system
                // call.
                Ok(Err(_)) if !will_wait => {
                    will_wait = true;
                    continue;
                }
                Ok(Err(word)) => (self.list().mutex(side).word(), word),
                Err(pause) => {
                    let_go();
                    (pause.bell.word(), pause.heard)
                }
            };
            WordWait::new(&self.block, word, heard).await;
        }
    }

    /// Runs a step that needs a claim. If no claim is free, marks a listener, tries once more, and
    /// returns what to wait for.
    #[inline]
    fn with_claims<T>(
        &self,
        mut step: impl FnMut() -> Result<T, Failed>,
    ) -> io::Result<Result<T, Pause<'_>>> {
        let mut heard = None;
        loop {
            match (step(), heard) {
                (Ok(done), _) => return Ok(Ok(done)),
                (Err(Failed::Io(error)), _) => return Err(error),
                (Err(Failed::NoClaim), None) => heard = Some(self.list().listen_for_claims()),
                (Err(Failed::NoClaim), Some(heard)) => {
                    return Ok(Err(Pause { bell: self.list().freed(), heard, lacks: Lack::Claim }));
                }
            }
        }
    }

    // Putting.

    /// Puts an item, waiting for room. `gone` returns whether no consumer is left.
    pub(super) fn put(
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
                Step::Spin => {
                    self.spin(|| self.list().has_room() || self.is_closed());
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
            let Some(limit) = wait.nap() else {
                return Err(if pause.lacks == Lack::Claim { Refused::Busy } else { Refused::Full });
            };
            woken = pause.sleep(limit);
            putting.waited(&pause);
        }
    }

    /// Puts an item like [`put`](Self::put), without blocking the thread.
    pub(super) async fn put_async(
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
                // Unreachable: `may_spin` is false.
                Step::Spin => continue,
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
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        if in_flight.saturating_add(count) > limit / IN_FLIGHT_OF_ONE {
            return false;
        }
        // Dropped after the table is unlocked: one of them may be the last handle by then.
        let all: Vec<_> = lock(&table().queues).values().filter_map(Weak::upgrade).collect();
        let sum = all.iter().fold(count, |sum, core| sum.saturating_add(core.list().in_flight()));
        sum <= limit / IN_FLIGHT_OF_ALL
    }

    // Getting.

    /// Gets an item into `out`, waiting for one. With `hold`, the item belongs to this process
    /// until it is marked as done. `gone` returns whether no producer is left.
    pub(super) fn get(
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
                Step::Spin => {
                    how.may_spin = false;
                    self.spin(|| self.len() > 0 || self.is_closed());
                    continue;
                }
                Step::Again => continue,
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
            let Some(limit) = wait.nap() else {
                return Err(if pause.lacks == Lack::Item { Missing::Empty } else { Missing::Busy });
            };
            woken = pause.sleep(limit);
            how.slept = true;
        }
    }

    /// Gets an item like [`get`](Self::get), without blocking the thread.
    pub(super) async fn get_async(
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
                Step::Again | Step::Spin => continue,
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

    /// Makes one attempt to get an item, under the consumers' mutex.
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
            Ok(Err(_)) if may_spin => return Ok(Step::Spin),
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
            FoundBody::Elsewhere { piece, len } => self.make_room(*piece, *len, out)?,
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
        let read = self.read_piece(piece, len, out);
        kill_point!(QueuePieceCopied);
        self.list().give_back(claim);
        read
    }

    /// Reads an item that is held by an entry of this process. If that fails, the item is done.
    fn read_held<'a>(
        &'a self,
        unfinished: Unfinished<'a>,
        piece: Piece,
        len: u64,
        out: &mut Vec<u8>,
    ) -> io::Result<Got<'a>> {
        out.clear();
        self.read_piece(piece, len, out)?;
        kill_point!(QueueHeldCopied);
        if let Some(held) = unfinished.held {
            self.list().has_read(held, self.block.owners().me());
        }
        Ok(Got { attachments: Vec::new(), unfinished })
    }

    /// Allocates memory for an item that lies in a piece of the file, before the item is taken. So
    /// an item is not lost for want of memory. If the stated length exceeds the piece or the file,
    /// nothing is allocated: the length is garbled, reading will fail, and the item is then lost.
    fn make_room(&self, piece: Piece, len: u64, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        match usize::try_from(len) {
            Ok(size) if len <= piece.bytes && self.store.file.may_hold(len)? => {
                Ok(out.try_reserve_exact(size)?)
            }
            _ => Ok(()),
        }
    }

    fn read_piece(&self, piece: Piece, len: u64, out: &mut Vec<u8>) -> io::Result<()> {
        match len {
            0 => Ok(()),
            _ if len <= piece.bytes => self.store.file.read(piece.at, len, out),
            _ => Err(garbled()),
        }
    }

    /// Spins for a moment until `ready`, where spinning has paid off before.
    ///
    /// This comes before a listener is marked, since a marked listener costs the other side a
    /// system call, even if it never sleeps.
    fn spin(&self, ready: impl FnMut() -> bool) {
        if let Ok(mut spin) = self.waiting.try_lock() {
            spin.wait(u32::MAX, ready);
        }
    }

    // Items that are done.

    /// Sets what happens to items whose process dies.
    pub(super) fn set_on_lost(&self, lost: Lost) {
        self.list().set_on_lost(lost);
    }

    /// Returns whether to look for dead processes that hold items, even though there are other
    /// items to get: those others might never run out.
    fn looks_for_the_dead(&self) -> bool {
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
    pub(super) fn mark_done(&self) -> bool {
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
    pub(super) fn unfinished(&self) -> u64 {
        self.list().unfinished()
    }

    /// Takes the oldest lost item that was kept, into `out`; the item is then done. With `look`, it
    /// checks for dead processes first. Without it, it checks before it returns that there are
    /// none.
    pub(super) fn take_lost(
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
    fn take_again(
        &self,
        me: OwnerId,
        lost: bool,
        out: &mut Vec<u8>,
    ) -> io::Result<Option<(Held, Piece, u64)>> {
        let mut take = |returned: &mut Returned| {
            self.list().take_again(me, lost, returned, |piece, len| self.make_room(piece, len, out))
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
    pub(super) fn join(&self, deadline: Option<Instant>) -> Result<bool, LostCount> {
        loop {
            let Some(heard) = self.look_for_end()? else { return Ok(true) };
            let Some(limit) = nap(deadline) else { return Ok(false) };
            self.layout().all_done.sleep_with_all(heard, limit);
        }
    }

    /// Waits like [`join`](Self::join), without blocking the thread.
    pub(super) async fn join_async(&self) -> Result<(), LostCount> {
        while let Some(heard) = self.look_for_end()? {
            WordWait::new(&self.block, self.layout().all_done.word(), heard).await;
        }
        Ok(())
    }
}

/// The number of items that were held by processes that have died.
pub(super) struct LostCount(pub(super) u64);

/// A received item, apart from its bytes.
pub(super) struct Got<'a> {
    pub(super) attachments: Vec<Attachment>,
    pub(super) unfinished: Unfinished<'a>,
}

/// A received item that is marked as done when this is dropped. So no item stays held without an
/// owner that will mark it, even if there is a failure or a panic between getting the item and
/// handing it to the caller. Empty if the queue does not track items.
pub(super) struct Unfinished<'a> {
    core: &'a Core,
    held: Option<Held>,
}

impl Unfinished<'_> {
    /// Hands the item to this process, which has to mark it as done.
    pub(super) fn keep(mut self) {
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

/// Called by a waiter that was woken and got its item. Other waiters may still sleep without being
/// marked as listeners, so this marks them again. Returns whether there is more to do for one of
/// them.
pub(super) fn listen_for_others(bell: &Bell, more: impl Fn() -> bool) -> bool {
    bell.listen();
    // Either the ringer sees the mark, or we see what it rings for.
    fence(Ordering::SeqCst);
    more()
}

/// How an item is received.
#[derive(Clone, Copy)]
struct Getting {
    /// The item belongs to this process until it is marked as done.
    hold: bool,
    /// The call has slept, so it may have been woken in place of another one.
    slept: bool,
    /// The call may wait and has not spun yet.
    may_spin: bool,
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
    /// The call may wait and has not spun yet.
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

    /// Makes one attempt, under the producers' mutex.
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
                return Ok(Step::Spin);
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

/// The serialized form of a queue.
#[derive(Serialize, Deserialize)]
struct Travelling {
    block: BlockPlace,
    file: u8,
    to: u8,
    from: u8,
}

pub(super) fn serialize<S: Serializer>(core: &Core, serializer: S) -> Result<S::Ok, S::Error> {
    let attach = |descriptor: &Attachment| {
        attachment::attach::<S>(descriptor)
            .map_err(|error| ser::Error::custom(format_args!("a Queue: {error}")))
    };
    let travelling = Travelling {
        block: core.block.depart::<S>()?,
        file: attach(core.store.file.descriptor())?,
        to: attach(&core.store.to)?,
        from: attach(&core.store.from)?,
    };
    travelling.serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Arc<Core>, D::Error> {
    let failed = |error: &dyn fmt::Display| de::Error::custom(format_args!("a Queue: {error}"));
    let Travelling { block, file, to, from } = Travelling::deserialize(deserializer)?;
    let fits = |len| len == START + size_of::<Layout>();
    let block: Block = Block::arrive(block, &[BlockKind::Queue], None, fits, None)?;
    let detach = |index| attachment::detach(index).map_err(|error| failed(&error));
    let file = detach(file)?;
    let stat = fstat(&file).map_err(|error| failed(&error))?;
    let inode = (stat.st_dev, stat.st_ino);
    let known = || lock(&table().queues).get(&inode).and_then(Weak::upgrade);
    let core = match known() {
        Some(core) => core,
        None => {
            let file = SparseFile::open(file).map_err(|error| failed(&error))?;
            let (to, from) = (detach(to)?, detach(from)?);
            if !socket::is_one(to.as_fd()) || !socket::is_one(from.as_fd()) {
                return Err(failed(&"other descriptors were sent"));
            }
            let new = Core::over(block.clone(), file, to, from).map_err(|error| failed(&error))?;
            let mut queues = lock(&table().queues);
            // Another thread may have been quicker. The superfluous core is dropped after the table
            // is unlocked.
            match queues.get(&inode).and_then(Weak::upgrade) {
                Some(other) => {
                    drop(queues);
                    other
                }
                None => {
                    queues.insert(inode, Arc::downgrade(&new));
                    new
                }
            }
        }
    };
    match core.block == block {
        true => Ok(core),
        false => Err(failed(&"parts of two queues were sent")),
    }
}

impl PartialEq for Core {
    fn eq(&self, other: &Self) -> bool {
        self.inode == other.inode
    }
}

/// Support for fuzzing. See [`crate::fuzz`].
#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
pub(crate) mod fuzzed {
    use super::*;
    use crate::{fuzz::Input, os::memory::SharedLayout};

    /// Maximum number of bytes put and received at a time: no more than has been put and lies in
    /// the file.
    pub(crate) const BYTES_MAX: usize = 64 << 20;
    const OPERATIONS_MAX: usize = 64;

    #[repr(C)]
    pub(super) struct Word(pub(super) AtomicU64);

    // SAFETY: `repr(C)`, an atomic, no drop, zero is a value.
    unsafe impl SharedLayout for Word {}

    impl Core {
        /// Returns the words that hold everything except the contents of the file.
        pub(super) fn words(&self) -> &[Word] {
            self.block.parts(START, size_of::<Layout>() / 8)
        }
    }

    fn word(input: &mut Input<'_>) -> u64 {
        match input.u8() % 8 {
            0 => u64::MAX,
            1 => 1 << (input.u8() % 64),
            2 | 3 => input.u8().into(),
            4 => 0_u64.wrapping_sub(input.u8().into()),
            5 => u64::from(input.u8()) << 12,
            6 => input.u16().into(),
            _ => u64::from(input.u16()) << 32 | u64::from(input.u16()),
        }
    }

    /// Fuzz target: a user of a queue, and another process that writes anything to the queue's
    /// words and to its first ring.
    pub(crate) fn queue(data: &[u8]) {
        let mut input = Input::new(data);
        let kind = input.u8();
        let core = Core::create(u64::from(kind % 4)).expect("memory");
        core.set_on_lost([Lost::Counted, Lost::Kept, Lost::Requeued][usize::from(kind / 4 % 3)]);
        let hold = (kind / 16).is_multiple_of(2);
        let words = core.words();
        let ring = core.store.file.window(0, super::super::ring_list::FIRST_BYTES).expect("memory");
        // The mutexes are spared: waiting for a holder that never unlocks is no fault, and takes
        // long.
        let list = core.list();
        let at = |side| (std::ptr::from_ref(list.mutex(side)).addr() - words.as_ptr().addr()) / 8;
        let mutexes = [at(Side::Producers), at(Side::Consumers)];
        let (mut out, mut mutex_is_garbled) = (Vec::new(), false);
        for _ in 0..OPERATIONS_MAX {
            if input.is_empty() {
                break;
            }
            match input.u8() % 16 {
                0 | 1 => {
                    let len = usize::from(input.u8());
                    let _ = core.put(input.bytes(len), &[], Wait::Not, || false);
                }
                2 => drop(core.put(
                    &vec![7; INLINE_MAX + usize::from(input.u16())],
                    &[],
                    Wait::Not,
                    || false,
                )),
                3..6 => {
                    if let Ok(got) = core.get(&mut out, Wait::Not, hold, || false)
                        && input.u8().is_multiple_of(2)
                    {
                        got.unfinished.keep();
                    }
                }
                6..10 => {
                    let place = usize::from(input.u16()) % words.len();
                    if !mutexes.contains(&place) || !std::mem::replace(&mut mutex_is_garbled, true)
                    {
                        words[place].0.store(word(&mut input), Ordering::SeqCst);
                    }
                }
                10 | 11 => {
                    let place = usize::from(input.u16()) % ring.words();
                    ring.word(place).store(word(&mut input), Ordering::SeqCst);
                }
                12 => {
                    let _ = (
                        core.len(),
                        core.is_full(),
                        core.capacity(),
                        core.unfinished(),
                        core.is_closed(),
                    );
                    let _ = core.mark_done();
                }
                13 => drop(core.join(Some(Instant::now()))),
                14 => drop(core.take_lost(&mut out, Wait::Not, input.u8().is_multiple_of(2))),
                _ => list.close(),
            }
        }
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::thread;

    use super::*;
    use crate::{
        os::file,
        sync::unused_wake_ups::{ByHand, Sleeper, is_woken, until, wakes_a_sleeper},
    };

    fn resident_bytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0 kB");
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
        };
        of("RssShmem:") + of("RssAnon:")
    }

    /// Creates a queue with one item, and replaces each of its words that equals `from` (a length)
    /// by `LONG`. The file has that length.
    fn with_garbled_lengths(item: &[u8], from: u64) -> Arc<Core> {
        let core = Core::create(0).unwrap();
        core.put(item, &[], Wait::Not, || false).unwrap();
        file::set_len(&**core.store.file.descriptor(), LONG).unwrap();
        let ring = core.store.file.window(0, super::super::ring_list::FIRST_BYTES).unwrap();
        let words = core
            .words()
            .iter()
            .map(|word| &word.0)
            .chain((0..ring.words()).map(|at| ring.word(at)));
        let mut garbled = 0;
        for word in words.filter(|word| word.load(Ordering::Relaxed) == from) {
            word.store(LONG, Ordering::Relaxed);
            garbled += 1;
        }
        assert!(garbled > 0);
        core
    }

    const LONG: u64 = 300 << 20;

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
    fn a_consumer_whose_limit_passes_after_it_was_woken_wakes_another_one() {
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

    #[test]
    fn who_waits_for_a_place_to_repair_with_has_let_go_of_the_one_it_has() {
        let core = Core::create(0).unwrap();
        // Three more words do not fit into the ring, and a process that has sent descriptors has
        // died: to record that, the ring list needs a new ring.
        let words = super::super::ring_list::FIRST_BYTES / 8;
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

    #[test]
    fn a_length_that_another_process_wrote_makes_nobody_take_more_memory_than_it_names() {
        let large = vec![1; 300_000];
        for (item, from) in [
            (&b"small"[..], super::super::ring_list::FIRST_BYTES),
            (&large, large.len() as u64),
            (&large, SparseFile::whole(large.len() as u64)),
        ] {
            let take = || {
                let core = with_garbled_lengths(item, from);
                let before = resident_bytes();
                let mut out = Vec::new();
                for _ in 0..3 {
                    let got = core.get(&mut out, Wait::Not, false, || false).map(drop);
                    assert!(
                        got.is_err() || out == item || out == b"another",
                        "{from}: {} bytes",
                        out.len()
                    );
                    let put = core.put(b"another", &[], Wait::Not, || false);
                    assert!(matches!(put, Ok(()) | Err(Refused::Io(_))), "{put:?}");
                }
                resident_bytes().saturating_sub(before)
            };
            // Other tests allocate memory as well, sometimes as much.
            let more: Vec<u64> = (0..5).map(|_| take()).collect();
            assert!(more.iter().any(|more| *more < LONG / 3), "{from}: {more:?} bytes more");
        }
    }
}
