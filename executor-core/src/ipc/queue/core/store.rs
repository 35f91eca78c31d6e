//! Where the items of a queue lie: small ones in a ring, large ones in a piece of the file, and
//! their descriptors in a socket.

use std::{
    borrow::Borrow,
    io,
    ops::Deref,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, TryLockError},
};

use super::super::ring_list::{Memory, Piece, RingPlace, Side, Words, garbled};
use crate::{
    heap::sparse_file::{SparseFile, Window},
    os::{
        socket::{peek_short_now, remove_now},
        std_or_model::{Shadow, atomic::AtomicU64, lock},
    },
    wire::attachment::Attachment,
};

/// Maximum number of table mappings that are kept.
const TABLES_MAX: usize = 32;

/// The memory and descriptors that the words of the block refer to.
pub(super) struct Store {
    pub(super) file: SparseFile,
    /// Descriptors of items are sent to this end of the socket pair.
    pub(super) to: Arc<OwnedFd>,
    /// Descriptors of items wait at this end.
    pub(super) from: Arc<OwnedFd>,
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
    pub(super) fn new(file: SparseFile, to: Arc<OwnedFd>, from: Arc<OwnedFd>) -> Self {
        Store { file, to, from, rings: Default::default(), tables: Mutex::default() }
    }

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
    pub(super) fn descriptors(&self, ticket: u64) -> io::Result<Vec<Attachment>> {
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

    /// Allocates memory for an item that lies in a piece of the file, before the item is taken. So
    /// an item is not lost for want of memory. If the stated length exceeds the piece or the file,
    /// nothing is allocated: the length is garbled, reading will fail, and the item is then lost.
    pub(super) fn make_room(&self, piece: Piece, len: u64, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        match usize::try_from(len) {
            Ok(size) if len <= piece.bytes && self.file.may_hold(len)? => {
                Ok(out.try_reserve_exact(size)?)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn read_piece(&self, piece: Piece, len: u64, out: &mut Vec<u8>) -> io::Result<()> {
        match len {
            0 => Ok(()),
            _ if len <= piece.bytes => self.file.read(piece.at, len, out),
            _ => Err(garbled()),
        }
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::sync::atomic::Ordering;

    use super::{
        super::{super::ring_list::FIRST_BYTES, Core, Refused, Wait},
        *,
    };
    use crate::os::file;

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
        let ring = core.store.file.window(0, FIRST_BYTES).unwrap();
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

    #[test]
    fn a_length_that_another_process_wrote_makes_nobody_take_more_memory_than_it_names() {
        let large = vec![1; 300_000];
        for (item, from) in [
            (&b"small"[..], FIRST_BYTES),
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
