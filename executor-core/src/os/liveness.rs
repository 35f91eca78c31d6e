//! Tells which owners of a shared-memory file are still alive, according to the kernel.
//!
//! ```text
//!  process A                       the file                    process B
//!  opens it anew ──► description ──► byte 7 locked
//!                                    byte 9 locked ◄── description ◄── opens it anew
//!  dies in any way ──► the kernel closes: byte 7 is unlocked
//!                                    "is 7 locked by anyone?" ◄──────── asks
//! ```
//!
//! An owner of the file is a process that uses it. Each owner takes the next number and locks the
//! byte of that number. The lock is an open-file-description lock, through a description that no
//! other process has; the byte itself need not exist. When the process ends in any way, the kernel
//! releases the lock before the process can be waited for. A number is not reused before 2^30
//! others were given. So a word that still names a dead owner is not mistaken for a word of a
//! living one.
//!
//! Process ids would not be enough: they are reused, and differ between PID namespaces. POSIX
//! record locks would not work either: they are released when the process closes *any* descriptor
//! of the file.

// The arithmetic in this file decides which memory is accessed, so no sum may wrap unnoticed.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    sync::{
        Arc,
        atomic::{AtomicPtr, AtomicU32, Ordering},
    },
};

use rustix::fs::{Mode, OFlags, open};

use super::{
    asked::Asked,
    fork::{Creator, NotInherited},
    memory::SharedLayout,
    socket::retry,
};

/// The number of an owner of a file, as words in shared memory contain it. It is never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OwnerId(u32);

impl OwnerId {
    /// The highest number, of 30 bits, so that a word has two bits left.
    ///
    /// After that many owners of one file, the numbers start again. A word that still names an
    /// owner that died that long ago then names a living one. A process that waits for the dead
    /// owner's end then waits for the living owner's end. Nothing worse happens, because a number
    /// is never given to two living owners.
    pub(crate) const MAX: u32 = (1 << 30) - 1;
    /// A number that no owner has. It is never alive.
    pub(crate) const NOBODY: OwnerId = OwnerId(Self::MAX);

    /// Returns the owner that a word names, or `None` if the number cannot be an owner's.
    #[inline]
    pub(crate) fn from_bits(bits: u32) -> Option<Self> {
        (1..=Self::MAX).contains(&bits).then_some(OwnerId(bits))
    }

    #[inline]
    pub(crate) fn bits(self) -> u32 {
        self.0
    }
}

/// The owners of a piece of memory, as the algorithms in `sync` need them. Models have an
/// implementation of their own.
pub(crate) trait Owners {
    /// Returns this process's number.
    fn me(&self) -> OwnerId;
    /// Whether `id` is this process. It is `false` for the process from which this one was forked.
    fn is_me(&self, id: OwnerId) -> bool;
    /// Whether the owner is still alive. This takes a system call, except for this process itself.
    fn is_alive(&self, id: OwnerId) -> bool;
}

/// The number that was given last. It lies in the file itself.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct OwnerCounter {
    given: AtomicU32,
}

// SAFETY: `repr(C)`, a single atomic, no drop, and zero is a valid value.
unsafe impl SharedLayout for OwnerCounter {}

/// This process as an owner of a file.
pub(crate) struct Liveness {
    /// A descriptor of the file, so that a fork can open the file anew.
    file: Arc<OwnedFd>,
    counter: NonNull<OwnerCounter>,
    /// Owned by `self`. In a fork, the first thread that uses it replaces it.
    seat: AtomicPtr<Seat>,
}

/// The number that this process has, and the description that holds its lock.
struct Seat {
    id: OwnerId,
    creator: Creator,
    description: Description,
}

// SAFETY: the counter is an atomic that lives as long as `self` (see `new`), and the seat is
// replaced by compare-and-swap.
unsafe impl Send for Liveness {}
// SAFETY: as above.
unsafe impl Sync for Liveness {}

impl fmt::Debug for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Liveness").field("id", &self.seat_as_it_is().id).finish_non_exhaustive()
    }
}

/// How many numbers there are for processes.
const IDS: u32 = OwnerId::MAX - 1;

/// If this many consecutive numbers are taken, a process has garbled the counter.
const TRIES_MAX: u32 = 1024;

impl Seat {
    fn take(file: &OwnedFd, counter: &OwnerCounter) -> io::Result<Seat> {
        let creator = Creator::here();
        let description = Description::open(file.as_fd())?;
        for _ in 0..TRIES_MAX {
            let given = counter.given.fetch_add(1, Ordering::Relaxed);
            // Neither 0 nor `NOBODY`.
            let id = OwnerId((given % IDS).saturating_add(1));
            // If the byte is locked, a living owner has this number, so try the next one.
            if let Some(descriptor) = description.get()
                && byte::try_lock(descriptor, u64::from(id.0))?
            {
                return Ok(Seat { id, creator, description });
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the memory's count of users is garbled"))
    }
}

impl Liveness {
    /// Makes this process an owner of the file.
    ///
    /// # Safety
    /// The counter stays at its address as long as the result exists.
    pub(crate) unsafe fn new(
        file: Arc<OwnedFd>,
        counter: NonNull<OwnerCounter>,
    ) -> io::Result<Self> {
        // SAFETY: the caller's promise.
        let seat = Seat::take(&file, unsafe { counter.as_ref() })?;
        Ok(Liveness { file, counter, seat: AtomicPtr::new(Box::into_raw(Box::new(seat))) })
    }

    #[inline]
    fn seat_as_it_is(&self) -> &Seat {
        // SAFETY: it is never null, and only `drop` frees what it points to (in a fork, the
        // parent's seat is leaked).
        unsafe { &*self.seat.load(Ordering::Acquire) }
    }

    #[inline]
    fn seat(&self) -> &Seat {
        let seat = self.seat_as_it_is();
        if seat.creator.is_elsewhere() { self.take_seat() } else { seat }
    }

    /// Takes a new seat at the first use in a fork.
    #[cold]
    fn take_seat(&self) -> &Seat {
        // Several threads may come here at the same time. The first exchange wins.
        let old = self.seat.load(Ordering::Acquire);
        if !self.seat_as_it_is().creator.is_elsewhere() {
            return self.seat_as_it_is();
        }
        // SAFETY: as promised to `new`.
        let seat = Seat::take(&self.file, unsafe { self.counter.as_ref() });
        let seat = seat.unwrap_or_else(|error| {
            panic!("a fork cannot become a user of shared memory: {error}")
        });
        let new = Box::into_raw(Box::new(seat));
        if self.seat.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: created above, and never published.
            drop(unsafe { Box::from_raw(new) });
        }
        self.seat_as_it_is()
    }
}

impl Liveness {
    /// Returns this process's number, and this process as a creator, which later tells whether a
    /// process is a copy of it. This takes one atomic load instead of four.
    #[inline]
    pub(crate) fn me_and_creator(&self) -> (OwnerId, Creator) {
        let seat = self.seat();
        (seat.id, seat.creator)
    }
}

impl Owners for Liveness {
    #[inline]
    fn me(&self) -> OwnerId {
        self.seat().id
    }

    #[inline]
    fn is_me(&self, id: OwnerId) -> bool {
        let seat = self.seat_as_it_is();
        seat.id == id && !seat.creator.is_elsewhere()
    }

    #[cold]
    fn is_alive(&self, id: OwnerId) -> bool {
        if id == OwnerId::NOBODY {
            return false;
        }
        let seat = self.seat();
        // A process's own lock does not conflict with its own query, so the kernel would report
        // that the byte is unlocked.
        seat.id == id
            // If the kernel cannot be asked, the owner may be alive.
            || seat.description.get().is_none_or(|file| byte::is_locked(file, u64::from(id.0)).unwrap_or(true))
    }
}

impl Drop for Liveness {
    fn drop(&mut self) {
        // SAFETY: it was created by `Box::into_raw`, and with `&mut self` nothing else accesses it.
        drop(unsafe { Box::from_raw(*self.seat.get_mut()) });
        self.seat = AtomicPtr::new(ptr::null_mut());
    }
}

/// A description of a file that no other process has, for locks. Dropping it releases the locks.
///
/// Closing the descriptor is not enough for that. A child that another thread has just created by
/// `posix_spawn` or `vfork` has a copy of the descriptor until it executes its program, and no
/// handler of `pthread_atfork` runs in it.
#[derive(Debug)]
pub(crate) struct Description(NotInherited);

impl Description {
    /// Opens the file anew.
    pub(crate) fn open(file: BorrowedFd<'_>) -> io::Result<Self> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        NotInherited::open(|| Ok(open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?))
            .map(Description)
            .asked("another descriptor of shared memory (/proc/self/fd)")
    }

    /// Returns the descriptor, or `None` in a fork.
    pub(crate) fn get(&self) -> Option<BorrowedFd<'_>> {
        self.0.get()
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // Do not unlock in a fork, because the description belongs to the parent.
        if let Some(file) = self.get() {
            let _ = byte::unlock_all(file);
        }
    }
}

/// Locks on single bytes of a file, by open file description. The bytes need not exist.
pub(crate) mod byte {
    use super::*;

    fn flock(kind: i32, at: u64, len: u64) -> libc::flock {
        // SAFETY: a C struct of numbers, for which zero is a valid value.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind as _;
        lock.l_whence = libc::SEEK_SET as _;
        lock.l_start = at as _;
        lock.l_len = len as _;
        lock
    }

    fn call(file: BorrowedFd<'_>, command: i32, lock: &mut libc::flock) -> rustix::io::Result<()> {
        // SAFETY: the descriptor is open, and the struct is the one that these commands read and
        // write.
        match unsafe { libc::fcntl(file.as_raw_fd(), command, ptr::from_mut(lock)) } {
            -1 => {
                let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
                Err(rustix::io::Errno::from_raw_os_error(errno))
            }
            _ => Ok(()),
        }
    }

    fn set(file: BorrowedFd<'_>, kind: i32, at: u64, len: u64) -> io::Result<bool> {
        use rustix::io::Errno;
        match retry(|| call(file, libc::F_OFD_SETLK, &mut flock(kind, at, len))) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Locks a byte. Returns `false` if another description has it locked.
    pub(crate) fn try_lock(file: BorrowedFd<'_>, at: u64) -> io::Result<bool> {
        set(file, libc::F_WRLCK, at, 1)
    }

    /// Locks a byte in shared mode: other descriptions may do the same.
    pub(crate) fn share(file: BorrowedFd<'_>, at: u64) -> io::Result<()> {
        match set(file, libc::F_RDLCK, at, 1)? {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Releases this description's lock on a byte.
    pub(crate) fn unlock(file: BorrowedFd<'_>, at: u64) -> io::Result<()> {
        set(file, libc::F_UNLCK, at, 1).map(drop)
    }

    /// Releases all locks of this description.
    pub(super) fn unlock_all(file: BorrowedFd<'_>) -> io::Result<()> {
        // A length of 0 means up to the end of the file, wherever that is.
        set(file, libc::F_UNLCK, 0, 0).map(drop)
    }

    /// Whether another description has locked the byte.
    pub(crate) fn is_locked(file: BorrowedFd<'_>, at: u64) -> io::Result<bool> {
        any_is_locked(file, at, 1)
    }

    /// Whether another description has locked any of `count` bytes.
    pub(crate) fn any_is_locked(file: BorrowedFd<'_>, at: u64, count: u64) -> io::Result<bool> {
        let mut lock = flock(libc::F_WRLCK, at, count);
        retry(|| call(file, libc::F_OFD_GETLK, &mut lock))?;
        Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;
    use crate::os::memory::Shared;

    #[test]
    fn who_has_ended_is_not_alive_and_numbers_are_not_given_twice() {
        let (counter, file) = Shared::<OwnerCounter>::create("liveness-test").unwrap();
        let file = Arc::new(file);
        // SAFETY: the counter is mapped until the end of the test.
        let join =
            || unsafe { Liveness::new(Arc::clone(&file), NonNull::from(&*counter)).unwrap() };
        let (a, b) = (join(), join());
        let (id_a, id_b) = (a.me(), b.me());
        assert_ne!(id_a, id_b);
        assert!(a.is_alive(id_b) && b.is_alive(id_a) && a.is_alive(id_a));
        assert!(a.is_me(id_a) && !a.is_me(id_b));
        assert!(!a.is_alive(OwnerId::NOBODY) && !a.is_alive(OwnerId(77)));
        drop(b);
        assert!(!a.is_alive(id_b));
        // Closing another descriptor of the same file changes nothing.
        drop(file.try_clone().unwrap());
        let c = join();
        assert!(c.is_alive(id_a) && !c.is_alive(id_b));
        assert!(c.me() != id_b);
    }

    #[test]
    fn locks_go_with_their_description_whoever_has_a_copy_of_the_descriptor() {
        let (_counter, file) = Shared::<OwnerCounter>::create("liveness-test").unwrap();
        let [mine, other] = [(); 2].map(|()| Description::open(file.as_fd()).unwrap());
        assert!(byte::try_lock(mine.get().unwrap(), 7).unwrap());
        assert!(byte::try_lock(mine.get().unwrap(), 1 << 40).unwrap());
        assert!(byte::any_is_locked(other.get().unwrap(), 0, 1 << 41).unwrap());
        // A copy like that of a child that another thread starts.
        let copy = mine.get().unwrap().try_clone_to_owned().unwrap();
        drop(mine);
        assert!(!byte::any_is_locked(other.get().unwrap(), 0, 1 << 41).unwrap());
        drop(copy);
    }

    #[test]
    fn a_garbled_count_gives_the_next_free_number() {
        let (counter, file) = Shared::<OwnerCounter>::create("liveness-test").unwrap();
        let file = Arc::new(file);
        // SAFETY: as above.
        let join =
            || unsafe { Liveness::new(Arc::clone(&file), NonNull::from(&*counter)).unwrap() };
        let a = join();
        counter.given.store(a.me().bits() - 1, Ordering::Relaxed);
        let b = join();
        assert_ne!(a.me(), b.me());
        counter.given.store(u32::MAX, Ordering::Relaxed);
        let c = join();
        assert!(OwnerId::from_bits(c.me().bits()).is_some() && c.me() != OwnerId::NOBODY);
        assert!(a.is_alive(c.me()));
    }
}
