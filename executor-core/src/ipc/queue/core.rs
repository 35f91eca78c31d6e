//! A queue as this process has it: its words, its file, its socket. Bytes and descriptors in, bytes and descriptors out.

use std::{
    collections::HashMap,
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use rustix::{
    fs::fstat,
    net::{RecvFlags, recv},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::chain::{
    Body, Chain, Claimed, Entry, Found, FoundBody, INLINE_MAX, Layout, Memory, Piece, Side, Words,
};
use crate::{
    os::{
        fork::PerProcess,
        liveness::{Liveness, Owners},
        socket::{self, peek_short_now, retry, send_now},
        spin::Spin,
        sync::{
            Shadow,
            atomic::{AtomicU64, fence},
        },
    },
    shm::{
        extents::{Extents, Window},
        heap::{Block, Kind, Place},
    },
    sync::{
        changed::changed,
        raw::{Bell, deadline_in, nap},
    },
    wire::attachment::{self, Attachment},
};

/// For those who do not want to wait: how long a mutex may be held by somebody else. Its holder does some microseconds' work.
const PATIENCE: Duration = Duration::from_millis(100);

/// Where the words begin in their block.
const START: usize = Block::aligned(0, align_of::<Layout>());

/// See the module's opening.
pub(super) struct Core {
    block: Block,
    store: Store,
    inode: (u64, u64),
    waiting: Mutex<Spin>,
}

/// What the words of the block speak of.
struct Store {
    extents: Extents,
    /// Descriptors of items are sent here,
    to: Arc<OwnedFd>,
    /// and wait here.
    from: Arc<OwnedFd>,
    rings: [Mutex<Option<Mapped>>; 2],
}

struct Mapped {
    at: u64,
    ring: Arc<Window>,
}

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    Not,
    Until(Option<Instant>),
}

impl Wait {
    pub(super) fn at_most(limit: Duration) -> Self {
        Wait::Until(deadline_in(limit))
    }

    /// Until when a mutex is waited for.
    fn for_mutex(self) -> Option<Instant> {
        match self {
            Wait::Not => deadline_in(PATIENCE),
            // A look at what is there is allowed in any case.
            Wait::Until(Some(deadline)) => deadline_in(PATIENCE).max(Some(deadline)),
            Wait::Until(None) => None,
        }
    }

    /// How long to sleep now; `None` if that is over.
    fn nap(self) -> Option<Duration> {
        match self {
            Wait::Not => None,
            Wait::Until(deadline) => nap(deadline),
        }
    }
}

/// Why nothing was put.
#[derive(Debug)]
pub(super) enum Refused {
    Full,
    Closed,
    Io(io::Error),
}

/// Why nothing was got.
#[derive(Debug)]
pub(super) enum Missing {
    Empty,
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn allocate(&self, at: u64, bytes: u64) -> io::Result<()> {
        self.extents.allocate(at, bytes)
    }

    fn free(&self, at: u64, bytes: u64) -> bool {
        self.extents.punch(at, bytes)
    }

    #[inline]
    fn ring(&self, side: Side, at: u64, bytes: u64) -> io::Result<Arc<Window>> {
        let mut mapped = lock(&self.rings[side as usize]);
        if let Some(mapped) = &*mapped
            && mapped.at == at
            && mapped.ring.words() as u64 * 8 == bytes
        {
            return Ok(Arc::clone(&mapped.ring));
        }
        let ring = Arc::new(self.extents.window(at, bytes)?);
        *mapped = Some(Mapped { at, ring: Arc::clone(&ring) });
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
    /// The first ticket in the socket, how many descriptors belong to it, and those that this process had room for.
    fn peek(&self) -> io::Result<(u64, usize, Vec<OwnedFd>)> {
        let mut message = [0; 9];
        let (len, descriptors) = peek_short_now(&self.from, &mut message)?;
        let [ticket @ .., count] = message;
        if len != message.len() {
            // Nobody who keeps to the protocol has sent it.
            return Ok((0, 0, descriptors));
        }
        Ok((u64::from_le_bytes(ticket), usize::from(count), descriptors))
    }

    /// Takes the first message out of the socket. Its descriptors are closed, if nobody has them.
    fn drop_first(&self) {
        let _ = retry(|| recv(&self.from, &mut [0_u8; 16], RecvFlags::DONTWAIT));
    }

    /// The descriptors of an item. They stay in the socket.
    fn descriptors(&self, ticket: u64) -> io::Result<Vec<Attachment>> {
        loop {
            // What is missing was taken by somebody who does not keep to the protocol; to decode the item will say so.
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

/// The queues of this process, by the number of their file: one that is received again is the same one.
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
        // It may have been received again meanwhile.
        if queues.get(&self.inode).is_some_and(|other| other.strong_count() == 0) {
            queues.remove(&self.inode);
        }
    }
}

impl Core {
    /// A new queue; `capacity` 0 is none.
    pub(super) fn create(capacity: u64) -> io::Result<Arc<Self>> {
        let block = Block::allocate(Kind::Queue, START + size_of::<Layout>())?;
        let extents = Extents::create("executor-queue")?;
        let (to, from) = socket::pair()?;
        let core = Self::over(block, extents, Arc::new(to), Arc::new(from))?;
        core.chain().begin(capacity)?;
        lock(&table().queues).insert(core.inode, Arc::downgrade(&core));
        Ok(core)
    }

    fn over(block: Block, extents: Extents, to: Arc<OwnedFd>, from: Arc<OwnedFd>) -> io::Result<Arc<Self>> {
        let stat = fstat(extents.descriptor())?;
        let store = Store { extents, to, from, rings: Default::default() };
        Ok(Arc::new(Core { block, store, inode: (stat.st_dev, stat.st_ino), waiting: Mutex::default() }))
    }

    #[inline]
    fn layout(&self) -> &Layout {
        self.block.part(START)
    }

    #[inline]
    fn chain(&self) -> Chain<'_, Store, Liveness> {
        Chain { layout: self.layout(), memory: &self.store, owners: self.block.owners() }
    }

    pub(super) fn len(&self) -> u64 {
        self.chain().len()
    }

    pub(super) fn capacity(&self) -> Option<u64> {
        self.chain().capacity()
    }

    pub(super) fn is_full(&self) -> bool {
        self.chain().is_full()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.chain().is_closed()
    }

    /// Nothing is put from now on.
    pub(super) fn close(&self) -> io::Result<()> {
        let chain = self.chain();
        let layout = self.layout();
        loop {
            let Some(guard) = chain.lock_producers(None)? else { continue };
            chain.close();
            let rung = layout.producers.items.ring_for_all();
            drop(guard);
            rung.wake_all();
            break;
        }
        self.ring_room()?;
        self.ring_all_done();
        Ok(())
    }

    /// Has consumers look again.
    pub(super) fn ring_items(&self) {
        // Whoever holds the mutex for long, or cannot be repaired: they look by themselves soon.
        if let Ok(Some(guard)) = self.chain().lock_producers(deadline_in(PATIENCE)) {
            let rung = self.layout().producers.items.ring_for_all();
            drop(guard);
            rung.wake_all();
        }
    }

    /// Has producers look again.
    pub(super) fn ring_room(&self) -> io::Result<()> {
        if let Some(guard) = self.chain().lock_consumers(deadline_in(PATIENCE))? {
            let rung = self.layout().consumers.room.ring_for_all();
            drop(guard);
            rung.wake_all();
        }
        Ok(())
    }

    // Putting.

    /// Puts an item, waiting for room. `gone` says whether there is nobody left to get it.
    pub(super) fn put(
        &self,
        bytes: &[u8],
        attachments: &[Attachment],
        wait: Wait,
        gone: impl Fn() -> bool,
    ) -> Result<(), Refused> {
        let mut large = None;
        let mut slept = false;
        loop {
            let heard = match self.try_put(bytes, attachments, wait, &mut large, slept)? {
                Ok(()) => return Ok(()),
                Err(heard) => heard,
            };
            if gone() {
                return Err(Refused::Closed);
            }
            let limit = wait.nap().ok_or(Refused::Full)?;
            let may_have_room = || !self.is_full();
            if !self.spin(may_have_room) {
                self.layout().consumers.room.sleep(heard, limit);
            }
            slept = true;
        }
    }

    /// As [`put`](Self::put), awaited.
    pub(super) async fn put_async(
        &self,
        bytes: &[u8],
        attachments: &[Attachment],
        gone: impl Fn() -> bool,
    ) -> Result<(), Refused> {
        let mut large = None;
        let mut slept = false;
        loop {
            let heard = match self.try_put(bytes, attachments, Wait::Not, &mut large, slept)? {
                Ok(()) => return Ok(()),
                Err(heard) => heard,
            };
            if gone() {
                return Err(Refused::Closed);
            }
            changed(&self.block, self.layout().consumers.room.word(), heard).await;
            slept = true;
        }
    }

    /// One attempt; the number to sleep with, if there is no room.
    fn try_put<'a>(
        &'a self,
        bytes: &[u8],
        attachments: &[Attachment],
        wait: Wait,
        large: &mut Option<Large<'a>>,
        slept: bool,
    ) -> Result<Result<(), u32>, Refused> {
        let chain = self.chain();
        if bytes.len() > INLINE_MAX && large.is_none() {
            if chain.is_closed() {
                return Err(Refused::Closed);
            }
            if matches!(wait, Wait::Not) && chain.is_full() {
                // Not written in vain; listened to under the mutex below, all the same.
                let Some(_guard) = chain.lock_producers(wait.for_mutex())? else { return Err(Refused::Full) };
                if let Err(heard) = chain.look_for_room() {
                    return Ok(Err(heard));
                }
            }
            *large = Some(Large::write(self, bytes)?);
        }
        let Some(guard) = chain.lock_producers(wait.for_mutex())? else { return Err(Refused::Full) };
        if chain.is_closed() {
            return Err(Refused::Closed);
        }
        if let Err(heard) = chain.look_for_room() {
            return Ok(Err(heard));
        }
        let ticket = match attachments {
            [] => None,
            attachments => match self.send(attachments)? {
                Ok(ticket) => Some(ticket),
                Err(heard) => return Ok(Err(heard)),
            },
        };
        match large {
            None => chain.put(Entry { body: Body::Inline(bytes), ticket }, &mut None)?,
            Some(large) => {
                let body = Body::Elsewhere { piece: large.piece, len: bytes.len() as u64 };
                chain.put(Entry { body, ticket }, &mut large.claim)?;
            }
        }
        let rung = self.layout().producers.items.ring();
        let room = &self.layout().consumers.room;
        let pass_on = slept && listen_for_others(room, || !chain.is_full());
        drop(guard);
        rung.wake_one();
        if pass_on {
            room.pass_on();
        }
        Ok(Ok(()))
    }

    /// Sends the descriptors of an item that is about to be put. Under the mutex. If there are too many on their way, the
    /// number to sleep with until some are taken.
    fn send(&self, attachments: &[Attachment]) -> Result<Result<u64, u32>, Refused> {
        let chain = self.chain();
        chain.void_what_was_sent()?;
        let ticket = chain.new_ticket();
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
                    // Once more after that: a consumer may just have made room.
                    if let Some(heard) = heard {
                        chain.forget_ticket();
                        return Ok(Err(heard));
                    }
                    heard = Some(self.layout().consumers.room.listen());
                    fence(Ordering::SeqCst);
                }
                Err(error) => {
                    chain.forget_ticket();
                    return Err(Refused::Io(error));
                }
            }
        }
    }

    // Getting.

    /// Gets an item into `out`, waiting for one. `hold`: until it is said to be done, it is this process's. `gone` says whether
    /// there is nobody left to put any.
    pub(super) fn get(
        &self,
        out: &mut Vec<u8>,
        wait: Wait,
        hold: bool,
        gone: impl Fn() -> bool,
    ) -> Result<Vec<Attachment>, Missing> {
        let mut slept = false;
        loop {
            let heard = match self.try_get(out, wait, hold, slept)? {
                Ok(attachments) => return Ok(attachments),
                Err(heard) => heard,
            };
            if gone() {
                // What the last one put before it went.
                return self.try_get(out, Wait::Not, hold, slept)?.map_err(|_| Missing::Closed);
            }
            let limit = wait.nap().ok_or(Missing::Empty)?;
            let may_have_item = || self.len() > 0;
            if !self.spin(may_have_item) {
                self.layout().producers.items.sleep(heard, limit);
            }
            slept = true;
        }
    }

    /// As [`get`](Self::get), awaited.
    pub(super) async fn get_async(
        &self,
        out: &mut Vec<u8>,
        hold: bool,
        gone: impl Fn() -> bool,
    ) -> Result<Vec<Attachment>, Missing> {
        let mut slept = false;
        loop {
            let heard = match self.try_get(out, Wait::Not, hold, slept)? {
                Ok(attachments) => return Ok(attachments),
                Err(heard) => heard,
            };
            if gone() {
                return self.try_get(out, Wait::Not, hold, slept)?.map_err(|_| Missing::Closed);
            }
            changed(&self.block, self.layout().producers.items.word(), heard).await;
            slept = true;
        }
    }

    /// One attempt; the number to sleep with, if there is nothing.
    fn try_get(
        &self,
        out: &mut Vec<u8>,
        wait: Wait,
        hold: bool,
        slept: bool,
    ) -> Result<Result<Vec<Attachment>, u32>, Missing> {
        let chain = self.chain();
        let Some(guard) = chain.lock_consumers(wait.for_mutex())? else { return Err(Missing::Empty) };
        let found = match chain.find_or_listen()? {
            Ok(found) => found,
            Err(heard) => {
                // Closed, and then looked once more: what is put before that is got.
                if !chain.is_closed() {
                    return Ok(Err(heard));
                }
                chain.find()?.ok_or(Missing::Closed)?
            }
        };
        out.clear();
        if let FoundBody::Inline { ring, word, len } = &found.body {
            ring.read(*word, *len, out);
        }
        kill_point!(QueueItemCopied);
        let attachments = match found.ticket {
            None => Vec::new(),
            Some(ticket) => self.store.descriptors(ticket)?,
        };
        kill_point!(QueueDescriptorsSeen);
        if hold {
            chain.hold(guard.me());
        }
        let claim = chain.take(&found, guard.me())?;
        if let Some(ticket) = found.ticket {
            self.store.discard(ticket);
            kill_point!(QueueDescriptorsTaken);
        }
        let rung = self.layout().consumers.room.ring();
        let items = &self.layout().producers.items;
        let pass_on = slept && listen_for_others(items, || chain.len() > 0);
        drop(guard);
        rung.wake_one();
        if pass_on {
            items.pass_on();
        }
        if let Some(claim) = claim {
            self.read_large(&found, claim, out)?;
        }
        Ok(Ok(attachments))
    }

    fn read_large(&self, found: &Found<Window>, claim: Claimed, out: &mut Vec<u8>) -> io::Result<()> {
        let FoundBody::Elsewhere { piece, len } = found.body else { return Ok(()) };
        let read = match len <= piece.bytes {
            true => self.store.extents.read(piece.at, len, out),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "the queue's memory is garbled")),
        };
        kill_point!(QueuePieceCopied);
        self.chain().give_back(claim);
        read
    }

    /// Looks again for a moment before going to sleep, where that pays.
    fn spin(&self, ready: impl FnMut() -> bool) -> bool {
        match self.waiting.try_lock() {
            Ok(mut spin) => spin.wait(u32::MAX, ready),
            Err(_) => false,
        }
    }

    // Items that are done.

    /// `false` if all were done already.
    pub(super) fn mark_done(&self) -> io::Result<bool> {
        let chain = self.chain();
        let marked = loop {
            let Some(guard) = chain.lock_consumers(None)? else { continue };
            break chain.mark_done(guard.me());
        };
        fence(Ordering::SeqCst);
        if chain.unfinished() == 0 {
            self.ring_all_done();
        }
        Ok(marked)
    }

    fn ring_all_done(&self) {
        let layout = self.layout();
        // A death in there leaves nothing to be repaired.
        if let Some(guard) = layout.done_mutex.lock_until(self.block.owners(), deadline_in(PATIENCE)) {
            let rung = layout.all_done.ring();
            drop(guard);
            rung.wake_all();
        }
    }

    /// Items that were put and are not done.
    pub(super) fn unfinished(&self) -> u64 {
        self.chain().unfinished()
    }

    /// Whether all items are done; if not, the number to sleep with. How many were lost is an error, once.
    fn look_for_end(&self) -> Result<Option<u32>, Lost> {
        let heard = self.layout().all_done.listen();
        fence(Ordering::SeqCst);
        let chain = self.chain();
        if chain.unfinished() == 0 {
            return Ok(None);
        }
        // Somebody who dies rings nothing; all sleeps end soon, and then we are here again.
        let lost = match chain.lock_consumers(deadline_in(PATIENCE)) {
            Ok(Some(_guard)) => chain.lost(),
            _ => 0,
        };
        if lost > 0 { Err(Lost(lost)) } else { Ok(Some(heard)) }
    }

    /// Waits until all items are done; `false` if the deadline has passed.
    pub(super) fn join(&self, deadline: Option<Instant>) -> Result<bool, Lost> {
        loop {
            let Some(heard) = self.look_for_end()? else { return Ok(true) };
            let Some(limit) = nap(deadline) else { return Ok(false) };
            self.layout().all_done.sleep(heard, limit);
        }
    }

    /// As [`join`](Self::join), awaited.
    pub(super) async fn join_async(&self) -> Result<(), Lost> {
        while let Some(heard) = self.look_for_end()? {
            changed(&self.block, self.layout().all_done.word(), heard).await;
        }
        Ok(())
    }
}

/// So many items were held by processes that have died.
pub(super) struct Lost(pub(super) u64);

/// Of one that was woken and has taken what it was woken for: others may be asleep still, for whom nobody is marked as
/// listening. Whether there is something for one of them as well.
pub(super) fn listen_for_others(bell: &Bell, more: impl Fn() -> bool) -> bool {
    bell.listen();
    // Either whoever rings sees the mark, or we see what it rings for.
    fence(Ordering::SeqCst);
    more()
}

/// A large item that is written and not put. Given back, if it is not.
struct Large<'a> {
    core: &'a Core,
    piece: Piece,
    claim: Option<Claimed>,
}

impl<'a> Large<'a> {
    fn write(core: &'a Core, bytes: &[u8]) -> io::Result<Self> {
        let whole = Extents::whole(bytes.len() as u64);
        let (piece, claim, is_new) = core.chain().new_piece(whole, core.block.owners().me())?;
        let large = Large { core, piece, claim: Some(claim) };
        core.store.extents.write(piece.at, bytes, is_new)?;
        kill_point!(QueuePieceWritten);
        Ok(large)
    }
}

impl Drop for Large<'_> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            self.core.chain().give_back(claim);
        }
    }
}

/// What travels.
#[derive(Serialize, Deserialize)]
struct Travelling {
    block: Place,
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
        file: attach(core.store.extents.descriptor())?,
        to: attach(&core.store.to)?,
        from: attach(&core.store.from)?,
    };
    travelling.serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Core>, D::Error> {
    let failed = |error: &dyn fmt::Display| de::Error::custom(format_args!("a Queue: {error}"));
    let Travelling { block, file, to, from } = Travelling::deserialize(deserializer)?;
    let fits = |len| len == START + size_of::<Layout>();
    let block: Block = Block::arrive(block, &[Kind::Queue], None, fits, None)?;
    let detach = |index| attachment::detach(index).map_err(|error| failed(&error));
    let file = detach(file)?;
    let stat = fstat(&file).map_err(|error| failed(&error))?;
    let inode = (stat.st_dev, stat.st_ino);
    let known = || lock(&table().queues).get(&inode).and_then(Weak::upgrade);
    let core = match known() {
        Some(core) => core,
        None => {
            let extents = Extents::open(file).map_err(|error| failed(&error))?;
            let (to, from) = (detach(to)?, detach(from)?);
            if !socket::is_one(to.as_fd()) || !socket::is_one(from.as_fd()) {
                return Err(failed(&"other descriptors were sent"));
            }
            let new = Core::over(block.clone(), extents, to, from).map_err(|error| failed(&error))?;
            let mut queues = lock(&table().queues);
            // Another thread may have been quicker. The one that is too much is dropped after the table is free.
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
