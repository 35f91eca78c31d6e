//! Who of the users of a file in shared memory is still alive, as the kernel knows it.
//!
//! ```text
//!  process A                       the file                    process B
//!  opens it anew ──► description ──► byte 7 locked
//!                                    byte 9 locked ◄── description ◄── opens it anew
//!  dies by whatever ► the kernel closes: byte 7 is free
//!                                    "is 7 locked by anyone?" ◄──────── asks
//! ```
//!
//! A user of the file takes the next number and locks the byte of that number (an open-file-description lock; no byte need
//! be there), through a description that nobody else has. The kernel takes the lock back when the process ends, in
//! whatever way, before the process can be waited for. A number is not given again before 2^30 others, so a word that still
//! names a dead user is not mistaken for one of a living.
//!
//! Process ids would say less: they are reused, and mean something else in each pid namespace. POSIX record locks go
//! when the process closes *any* descriptor of the file.

// What is counted here decides who may touch memory: no sum wraps unseen.
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
    fork::{NotInherited, Origin},
    memory::SharedLayout,
    socket::retry,
};

/// A user of a file, as words in shared memory name it; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OwnerId(u32);

impl OwnerId {
    /// 30 bits: two are left beside it in a word. After so many users of one file the numbers begin again. A word that still names
    /// one who died that long ago then names a living one, and whoever waits for it waits for that one's end. Nothing worse:
    /// a number that is taken is not given to a second living user.
    pub(crate) const MAX: u32 = (1 << 30) - 1;
    /// Is nobody's, and so never alive.
    pub(crate) const NOBODY: OwnerId = OwnerId(Self::MAX);

    /// What a word says; `None` if it cannot be a user.
    #[inline]
    pub(crate) fn from_bits(bits: u32) -> Option<Self> {
        (1..=Self::MAX).contains(&bits).then_some(OwnerId(bits))
    }

    #[inline]
    pub(crate) fn bits(self) -> u32 {
        self.0
    }
}

/// Who shares a piece of memory: what the algorithms in `sync` want to know. A model has its own.
pub(crate) trait Owners {
    /// This process.
    fn me(&self) -> OwnerId;
    /// Whether it is this process and no other; not one that this one was forked from.
    fn is_me(&self, id: OwnerId) -> bool;
    /// Whether it has not ended. A system call, except for this process itself.
    fn is_alive(&self, id: OwnerId) -> bool;
}

/// The number that was given last: lies in the file itself.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct OwnerCounter {
    given: AtomicU32,
}

// SAFETY: `repr(C)`, an atomic, no drop, zero is a value.
unsafe impl SharedLayout for OwnerCounter {}

/// This process as a user of a file.
pub(crate) struct Liveness {
    /// Of the file, for a fork to open it anew.
    file: Arc<OwnedFd>,
    counter: NonNull<OwnerCounter>,
    /// Owned. Replaced in a fork, by whichever thread comes first.
    seat: AtomicPtr<Seat>,
}

struct Seat {
    id: OwnerId,
    origin: Origin,
    description: Description,
}

// SAFETY: the counter is an atomic that lives as long as `self` (`new`), the seat is replaced by compare-and-swap.
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

/// If so many numbers in a row are taken, somebody garbles the counter.
const TRIES_MAX: u32 = 1024;

impl Seat {
    fn take(file: &OwnedFd, counter: &OwnerCounter) -> io::Result<Seat> {
        let origin = Origin::here();
        let description = Description::open(file.as_fd())?;
        for _ in 0..TRIES_MAX {
            let given = counter.given.fetch_add(1, Ordering::Relaxed);
            // Neither 0 nor nobody's.
            let id = OwnerId((given % IDS).saturating_add(1));
            if let Some(descriptor) = description.get()
                && byte::try_lock(descriptor, u64::from(id.0))?
            {
                return Ok(Seat { id, origin, description });
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the memory's count of users is garbled"))
    }
}

impl Liveness {
    /// Makes this process a user of the file.
    ///
    /// # Safety
    /// The counter stays where it is as long as the result.
    pub(crate) unsafe fn new(file: Arc<OwnedFd>, counter: NonNull<OwnerCounter>) -> io::Result<Self> {
        // SAFETY: the caller's promise.
        let seat = Seat::take(&file, unsafe { counter.as_ref() })?;
        Ok(Liveness { file, counter, seat: AtomicPtr::new(Box::into_raw(Box::new(seat))) })
    }

    #[inline]
    fn seat_as_it_is(&self) -> &Seat {
        // SAFETY: never null; what it points to is freed by `drop` only (a seat of the parent's is leaked).
        unsafe { &*self.seat.load(Ordering::Acquire) }
    }

    #[inline]
    fn seat(&self) -> &Seat {
        let seat = self.seat_as_it_is();
        if seat.origin.forked() { self.take_seat() } else { seat }
    }

    /// The first use in a fork.
    #[cold]
    fn take_seat(&self) -> &Seat {
        let old = self.seat.load(Ordering::Acquire);
        if !self.seat_as_it_is().origin.forked() {
            return self.seat_as_it_is();
        }
        // SAFETY: as promised to `new`.
        let seat = Seat::take(&self.file, unsafe { self.counter.as_ref() });
        let seat =
            seat.unwrap_or_else(|error| panic!("a fork cannot become a user of shared memory: {error}"));
        let new = Box::into_raw(Box::new(seat));
        if self.seat.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: made above, and nobody has seen it.
            drop(unsafe { Box::from_raw(new) });
        }
        self.seat_as_it_is()
    }
}

impl Liveness {
    /// This process as a user of the file, and how to tell later whether one is a copy of it: by one load instead of four.
    #[inline]
    pub(crate) fn me_and_origin(&self) -> (OwnerId, Origin) {
        let seat = self.seat();
        (seat.id, seat.origin)
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
        seat.id == id && !seat.origin.forked()
    }

    #[cold]
    fn is_alive(&self, id: OwnerId) -> bool {
        if id == OwnerId::NOBODY {
            return false;
        }
        let seat = self.seat();
        // One's own lock is in nobody's way, so the kernel would say that it is free.
        seat.id == id
            // Whom one cannot ask about may be alive.
            || seat.description.get().is_none_or(|file| byte::is_locked(file, u64::from(id.0)).unwrap_or(true))
    }
}

impl Drop for Liveness {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw`, and `&mut self`: nobody else looks.
        drop(unsafe { Box::from_raw(*self.seat.get_mut()) });
        self.seat = AtomicPtr::new(ptr::null_mut());
    }
}

/// A description of a file that nobody else has, for locks. When it is dropped, they are gone.
///
/// Closing is not enough for that: a child that another thread has just made by `posix_spawn` or `vfork` has a copy of the
/// descriptor until it runs its program, and no handler of `pthread_atfork` runs in it.
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

    /// The descriptor; `None` in a fork.
    pub(crate) fn get(&self) -> Option<BorrowedFd<'_>> {
        self.0.get()
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // Not in a fork: the description is the parent's.
        if let Some(file) = self.get() {
            let _ = byte::unlock_all(file);
        }
    }
}

/// Locks of single bytes of a file, which need not be there, by an open file description.
pub(crate) mod byte {
    use super::*;

    fn flock(kind: i32, at: u64, len: u64) -> libc::flock {
        // SAFETY: a C struct of numbers, of which zero is a value.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind as _;
        lock.l_whence = libc::SEEK_SET as _;
        lock.l_start = at as _;
        lock.l_len = len as _;
        lock
    }

    fn call(file: BorrowedFd<'_>, command: i32, lock: &mut libc::flock) -> rustix::io::Result<()> {
        // SAFETY: the descriptor is open, the struct is the one that these commands read and write.
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

    /// Locks a byte; `false` if another description has it.
    pub(crate) fn try_lock(file: BorrowedFd<'_>, at: u64) -> io::Result<bool> {
        set(file, libc::F_WRLCK, at, 1)
    }

    /// Locks a byte, which others may lock in this way, too.
    pub(crate) fn share(file: BorrowedFd<'_>, at: u64) -> io::Result<()> {
        match set(file, libc::F_RDLCK, at, 1)? {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Gives back what this description has locked there.
    pub(crate) fn unlock(file: BorrowedFd<'_>, at: u64) -> io::Result<()> {
        set(file, libc::F_UNLCK, at, 1).map(drop)
    }

    /// Gives back all that this description has locked.
    pub(super) fn unlock_all(file: BorrowedFd<'_>) -> io::Result<()> {
        // To the end, wherever that is.
        set(file, libc::F_UNLCK, 0, 0).map(drop)
    }

    /// Whether another description has locked the byte.
    pub(crate) fn is_locked(file: BorrowedFd<'_>, at: u64) -> io::Result<bool> {
        any_is_locked(file, at, 1)
    }

    /// Whether another description has locked one of so many bytes.
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
        let join = || unsafe { Liveness::new(Arc::clone(&file), NonNull::from(&*counter)).unwrap() };
        let (a, b) = (join(), join());
        let (id_a, id_b) = (a.me(), b.me());
        assert_ne!(id_a, id_b);
        assert!(a.is_alive(id_b) && b.is_alive(id_a) && a.is_alive(id_a));
        assert!(a.is_me(id_a) && !a.is_me(id_b));
        assert!(!a.is_alive(OwnerId::NOBODY) && !a.is_alive(OwnerId(77)));
        drop(b);
        assert!(!a.is_alive(id_b));
        // Another descriptor of the same file changes nothing.
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
        // As a child has it that another thread starts.
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
        let join = || unsafe { Liveness::new(Arc::clone(&file), NonNull::from(&*counter)).unwrap() };
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
