//! A program may fork by hand while executors exist. The child has copies of our locks, possibly held by threads that
//! do not exist there, and no driver. So every handle asks, before it touches a lock: am I still in my process?
//!
//! Descriptors are copied too, and with them what the kernel keeps for whoever has them: see [`NotInherited`].

// What is counted here decides who may touch memory: no sum wraps unseen.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd},
    ptr,
    sync::{
        Once,
        atomic::{AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    },
};

/// How many forks lie between this process and the first one that used this module.
static FORKS: AtomicU64 = AtomicU64::new(0);
/// Changes before and after each fork of this process and those before it. It decides who may reuse memory, so it does not come
/// round: 64 bits last for longer than machines.
static CHILDREN: AtomicU64 = AtomicU64::new(0);
static REGISTER: Once = Once::new();

extern "C" fn before() {
    // Until the child has its copy, nothing is opened or closed for a [`NotInherited`].
    FORKS_WAIT.fetch_add(1, Ordering::Relaxed);
    match (Gate::take(), HELD_BY_FORKS.load(Ordering::Relaxed)) {
        (true, _) => HELD_BY_FORKS.store(1, Ordering::Relaxed),
        // A `Gate` of this thread has it, and a signal handler forks.
        (false, 0) => {}
        // A fork of this thread has it, and a signal handler forks: only the outer one gives it back.
        (false, forks) => HELD_BY_FORKS.store(forks.saturating_add(1), Ordering::Relaxed),
    }
    FORKS_WAIT.fetch_sub(1, Ordering::Relaxed);
    count_child();
}

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    close_not_inherited();
    // Those who wait are threads of the parent.
    FORKS_WAIT.store(0, Ordering::Relaxed);
    leave_gate();
}

extern "C" fn in_parent() {
    count_child();
    leave_gate();
}

/// Before the fork and after it. What another thread drops while the child is being made has to find the count changed, or the
/// child's handle is not known of; and what it makes meanwhile has to find it changed later, for the same reason.
fn count_child() {
    // Ordered with everything: no order of accesses of that thread makes it look unchanged around the copying of its memory.
    CHILDREN.fetch_add(1, Ordering::SeqCst);
}

fn leave_gate() {
    let forks = HELD_BY_FORKS.load(Ordering::Relaxed);
    HELD_BY_FORKS.store(forks.saturating_sub(1), Ordering::Relaxed);
    if forks == 1 {
        GATE.store(0, Ordering::Release);
    }
}

/// The thread that is at work on the descriptors of [`NotInherited`], or forks; 0 if none is.
///
/// The kernel copies a process's descriptors and its memory one after the other. So no order of steps in another thread makes the
/// two agree in the child: there must be no fork meanwhile. It is held for some system calls, or for a fork.
///
/// A handler of the user's (`pthread_atfork`) that runs within that, and waits for a lock, waits for whoever holds the lock. If
/// that is a thread which waits for the gate, because it drops a pool or makes one, neither goes on. Handlers that were registered
/// before ours run their `prepare` after ours: so hold no such lock around what opens or closes pools and shared objects.
static GATE: AtomicUsize = AtomicUsize::new(0);
/// How many threads wait for it to fork. They go first: those that open and close one after the other would leave them no turn.
static FORKS_WAIT: AtomicU64 = AtomicU64::new(0);
/// By how many forks of the thread that has it: more than one if a signal handler forks during a fork. 0 if no fork has it. Only
/// that thread touches it.
static HELD_BY_FORKS: AtomicUsize = AtomicUsize::new(0);

/// Within it, no other thread forks by way of the C library.
struct Gate(bool);

impl Gate {
    fn enter() -> Self {
        register();
        while FORKS_WAIT.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        Gate(Self::take())
    }

    /// `false` if this thread has it already: a fork in a signal handler that has interrupted it, or a handler of a fork that
    /// drops something. There, nobody is to be waited for.
    fn take() -> bool {
        // SAFETY: asks which thread this is.
        let me = unsafe { libc::pthread_self() } as usize;
        loop {
            match GATE.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(other) if other == me => return false,
                Err(_) => std::thread::yield_now(),
            }
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if self.0 {
            GATE.store(0, Ordering::Release);
        }
    }
}

fn register() {
    REGISTER.call_once(|| {
        // Miri has no forks, nor what tells of them.
        if cfg!(miri) {
            return;
        }
        // SAFETY: the handlers only change atomics and close descriptors, which is allowed between fork and exec. The first one
        // waits for threads that need nothing of this one.
        let refused = unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
        if refused != 0 {
            // Out of memory for one list entry: forks go unnoticed, as without this module.
            tracing::warn!(
                errno = refused,
                "pthread_atfork refused; handles in forked children are not inert"
            );
        }
    });
}

/// The process in which something was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin(u64);

impl Origin {
    /// This process.
    pub(crate) fn here() -> Self {
        register();
        Origin(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this process is a fork of the one in which `self` was made.
    #[inline]
    pub(crate) fn forked(self) -> bool {
        self.0 != FORKS.load(Ordering::Relaxed)
    }

    /// Ends a copy of the process in which `self` was made, with this exit code. In that process itself it does nothing.
    ///
    /// For loops that run code of the user and go on: a copy that such code has made by `fork`, and which returns from it,
    /// must not go on as the loop, for it shares the original's descriptors and memory, and nobody watches it. Neither exit
    /// hooks nor destructors run in it, and nothing is flushed: all of that belongs to the original.
    #[inline]
    pub(crate) fn end_copy(self, code: i32) {
        if self.forked() {
            leave(code);
        }
    }
}

/// A global value of which a forked process has one of its own, made anew: it inherits nothing of its parent's, and no lock
/// that another thread of its parent held.
#[derive(Debug)]
pub(crate) struct PerProcess<T: 'static> {
    /// Replaced in a fork, and never freed: one small value for each fork that uses it.
    made: AtomicPtr<Made<T>>,
    make: fn() -> T,
}

#[derive(Debug)]
struct Made<T> {
    origin: Origin,
    value: T,
}

impl<T: Send + Sync> PerProcess<T> {
    pub(crate) const fn new(make: fn() -> T) -> Self {
        PerProcess { made: AtomicPtr::new(ptr::null_mut()), make }
    }

    /// This process's value.
    pub(crate) fn get(&self) -> &'static T {
        loop {
            let old = self.made.load(Ordering::Acquire);
            // SAFETY: null, or published complete by the exchange below; never freed. In a fork it is the copy of what was
            // published, which is complete as well.
            if let Some(made) = unsafe { old.as_ref() }
                && !made.origin.forked()
            {
                return &made.value;
            }
            let new = Box::into_raw(Box::new(Made { origin: Origin::here(), value: (self.make)() }));
            if self.made.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                // SAFETY: made above, and nobody else has seen it.
                drop(unsafe { Box::from_raw(new) });
            }
        }
    }
}

/// `fork`: `None` in the child.
///
/// # Safety
/// As for fork(2): in a process with several threads, the child may do nothing but what a signal handler may, until it calls
/// `exec` or ends.
pub(crate) unsafe fn fork() -> io::Result<Option<u32>> {
    // So that handles know.
    Origin::here();
    // SAFETY: the caller's promise.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid as u32)),
    }
}

/// A copy of this process that is its parent's child, not its own: `None` in the copy. Refused where there are other
/// threads.
pub(crate) fn clone_sibling() -> io::Result<Option<u32>> {
    if super::process::settled_thread_count(1)? > 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let known = KnownToTheLibrary::of_this_thread();
    // No exit signal of its own: with CLONE_PARENT it is this process's. No new stack: a copy, as with fork(2).
    match known.clone_with(libc::CLONE_PARENT)? {
        0 => {
            known.tell_the_kernel();
            in_child();
            Ok(None)
        }
        pid => {
            // No other thread, so nobody looks in between.
            in_parent();
            Ok(Some(pid as u32))
        }
    }
}

/// What the C library and the kernel have told each other of a thread, and what a copy that is made without the library's `fork` would
/// not have: the word in which glibc remembers the thread's number (owners of mutexes are told by it, also in memory that processes
/// share), and the list of its robust mutexes (which the kernel goes through at its end).
struct KnownToTheLibrary {
    /// Null if it was not found.
    number: *mut libc::c_int,
    /// Head and length; null if there is none.
    robust: (*mut libc::c_void, usize),
}

impl KnownToTheLibrary {
    fn of_this_thread() -> Self {
        const PR_GET_TID_ADDRESS: libc::c_int = 40;
        let mut number: *mut libc::c_int = ptr::null_mut();
        // SAFETY: writes where the kernel clears the number at the thread's end, which is where glibc keeps it.
        let told = unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut number) } == 0;
        // A kernel without CONFIG_CHECKPOINT_RESTORE does not say. Then copies keep the number of their original, as before.
        // SAFETY: the word that the library has told the kernel of, in the memory of this thread.
        let is_it = told
            && !number.is_null()
            && unsafe { number.read() }.cast_unsigned() == super::process::this_thread();
        let mut robust: (*mut libc::c_void, usize) = (ptr::null_mut(), 0);
        // SAFETY: writes the two, of this thread.
        let asked =
            unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut robust.0, &raw mut robust.1) };
        KnownToTheLibrary {
            number: if is_it { number } else { ptr::null_mut() },
            robust: if asked == 0 { robust } else { (ptr::null_mut(), 0) },
        }
    }

    /// Clones this process: 0 in the copy, where the library knows its number before anything else.
    fn clone_with(&self, flags: libc::c_int) -> io::Result<libc::c_long> {
        let flags = match self.number.is_null() {
            true => flags,
            false => flags | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID,
        };
        // SAFETY: like fork(2), in a process with this one thread (counted by the caller: where that cannot be, nothing is copied),
        // so nothing is locked in the copy. What glibc does beside the system call is for other threads and for handlers of
        // `pthread_atfork`, but for what `self` is; the kernel writes the copy's number to the copy's word. References into shared
        // memory that `preload` has leaked into a static are in all copies, and are the program's not to use: see
        // `StartMethod::ForkServer`.
        #[cfg(target_arch = "x86_64")]
        let cloned = unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_long, 0, 0, self.number, 0) };
        // SAFETY: as above; these have the last two the other way round.
        #[cfg(not(target_arch = "x86_64"))]
        let cloned = unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_long, 0, 0, 0, self.number) };
        if cloned < 0 { Err(io::Error::last_os_error()) } else { Ok(cloned) }
    }

    /// In the copy: the kernel has forgotten its list.
    fn tell_the_kernel(&self) {
        let (head, len) = self.robust;
        if !head.is_null() {
            // SAFETY: the list's head in the memory of this thread, as it was told for the original.
            unsafe { libc::syscall(libc::SYS_set_robust_list, head, len) };
        }
    }
}

/// Ends the process at once: nothing that the program it was forked from has registered runs.
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Calls `handler` when the program ends by itself: after `main`, or by `std::process::exit`.
pub(crate) fn at_end(handler: extern "C" fn()) {
    // SAFETY: the handler is a function of this program that does not unwind.
    if unsafe { libc::atexit(handler) } != 0 {
        tracing::warn!("the system remembers no more exit handlers; processes are not waited for at the end");
    }
}

/// Closes a descriptor that a fork has copied, and whose owner lives on in the parent only.
pub(crate) fn close(copy: std::os::fd::BorrowedFd<'_>) {
    // SAFETY: the owner's value exists in this process's memory too, but the process ends without dropping it.
    unsafe { libc::close(copy.as_raw_fd()) };
}

/// Changes whenever this process is forked: what was made before has gone to a child as well, if this has changed.
pub(crate) fn children() -> u64 {
    register();
    CHILDREN.load(Ordering::SeqCst)
}

/// A descriptor that forked children do not keep: the kernel takes what hangs on it (a file lock) back when this process
/// ends, and not when the last of its children does.
///
/// A child that is made by `clone` and without the C library does keep it. Programs that are started keep none: all descriptors
/// are close-on-exec.
#[derive(Debug)]
pub(crate) struct NotInherited {
    entry: &'static Entry,
    origin: Origin,
}

/// Entries are reused and never freed: the handler in the child walks the list without a lock.
#[derive(Debug)]
struct Entry {
    /// [`FREE`] if nobody has the entry.
    descriptor: AtomicI32,
    next: AtomicPtr<Entry>,
}

const FREE: RawFd = -1;
static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());

fn entries() -> impl Iterator<Item = &'static Entry> {
    // SAFETY: entries are published when complete, and live for ever.
    let at = |pointer: &AtomicPtr<Entry>| unsafe { pointer.load(Ordering::Acquire).as_ref() };
    std::iter::successors(at(&ENTRIES), move |entry| at(&entry.next))
}

fn close_not_inherited() {
    for entry in entries() {
        let descriptor = entry.descriptor.swap(FREE, Ordering::Relaxed);
        if descriptor != FREE {
            // SAFETY: it was the entry's, and those who know the entry see that they were forked.
            unsafe { libc::close(descriptor) };
        }
    }
}

impl NotInherited {
    /// What this opens.
    pub(crate) fn open(open: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<Self> {
        let origin = Origin::here();
        // No fork in between: its child would keep what no entry names yet.
        let _gate = Gate::enter();
        Ok(NotInherited::enlist(open()?, origin))
    }

    /// What is open already: a child that has been forked since keeps it.
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        let origin = Origin::here();
        let _gate = Gate::enter();
        NotInherited::enlist(descriptor, origin)
    }

    fn enlist(descriptor: OwnedFd, origin: Origin) -> Self {
        let descriptor = descriptor.into_raw_fd();
        let taken = entries().find(|entry| {
            let put =
                entry.descriptor.compare_exchange(FREE, descriptor, Ordering::AcqRel, Ordering::Relaxed);
            put.is_ok()
        });
        let entry = taken.unwrap_or_else(|| {
            let next = AtomicPtr::new(ENTRIES.load(Ordering::Acquire));
            let entry: &'static Entry =
                Box::leak(Box::new(Entry { descriptor: AtomicI32::new(descriptor), next }));
            let mine = ptr::from_ref(entry).cast_mut();
            while let Err(other) = ENTRIES.compare_exchange(
                entry.next.load(Ordering::Relaxed),
                mine,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                entry.next.store(other, Ordering::Relaxed);
            }
            entry
        });
        NotInherited { entry, origin }
    }

    /// The descriptor; `None` in a fork.
    pub(crate) fn get(&self) -> Option<BorrowedFd<'_>> {
        if self.origin.forked() {
            return None;
        }
        let descriptor = self.entry.descriptor.load(Ordering::Relaxed);
        // SAFETY: open until `self` is dropped, since this is the process that put it there.
        Some(unsafe { BorrowedFd::borrow_raw(descriptor) })
    }
}

impl Drop for NotInherited {
    fn drop(&mut self) {
        if let Some(descriptor) = self.get() {
            let descriptor = descriptor.as_raw_fd();
            // No fork in between: its child would keep what the entry does not name any more.
            let _gate = Gate::enter();
            self.entry.descriptor.store(FREE, Ordering::Release);
            // SAFETY: it was the entry's alone.
            unsafe { libc::close(descriptor) };
        }
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::{
        os::fd::AsFd,
        sync::{Arc, atomic::AtomicBool},
        thread,
    };

    use rustix::fs::{Mode, OFlags, fstat, open};

    use super::*;
    use crate::os::file;

    /// How many descriptors of this file the process has, looked for as a fork may: nothing but system calls.
    fn count(device: u64, inode: u64) -> i32 {
        let mut found = 0;
        for descriptor in 0..1024 {
            // SAFETY: zero is a value of it; `fstat` fills it, or says that there is no such descriptor.
            unsafe {
                let mut stat: libc::stat = std::mem::zeroed();
                let is_it =
                    libc::fstat(descriptor, &mut stat) == 0 && (stat.st_dev, stat.st_ino) == (device, inode);
                found += i32::from(is_it);
            }
        }
        found
    }

    /// Runs a test of this file in a process of its own: other tests do not expect forks of theirs.
    fn alone(name: &str) {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([&format!("os::fork::tests::{name}"), "--exact", "--ignored", "--test-threads=1"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{}\n{said}", output.status);
    }

    #[test]
    fn a_fork_in_a_signal_handler_leaves_the_gate_to_the_fork_that_it_interrupts() {
        alone("a_fork_within_a_fork");
    }

    #[test]
    #[ignore = "run by the test above"]
    fn a_fork_within_a_fork() {
        let held = || GATE.load(Ordering::Relaxed) != 0;
        // The handlers, in the order in which the C library calls them if a signal strikes after the outer one's first.
        before();
        before();
        in_parent();
        assert!(held(), "the outer fork is still under way");
        in_parent();
        assert!(!held());
        // Where the thread has the gate for itself.
        let gate = Gate::enter();
        before();
        in_parent();
        assert!(held());
        drop(gate);
        assert!(!held());
    }

    #[test]
    fn what_is_made_or_dropped_while_a_child_is_forked_counts_as_known_to_it() {
        alone("counts_around_a_fork");
    }

    #[test]
    #[ignore = "run by the test above"]
    fn counts_around_a_fork() {
        let made_before = children();
        before();
        // The kernel has not copied anything yet, or has: nobody can tell.
        let meanwhile = children();
        assert_ne!(made_before, meanwhile, "dropped meanwhile");
        in_parent();
        assert_ne!(meanwhile, children(), "made meanwhile");
    }

    #[test]
    fn a_child_forked_while_a_descriptor_is_opened_or_dropped_does_not_keep_it() {
        alone("forks_while_descriptors_are_opened_and_dropped");
    }

    #[test]
    #[ignore = "run by the test above"]
    fn forks_while_descriptors_are_opened_and_dropped() {
        let file = Arc::new(file::anonymous("not inherited").unwrap());
        let stat = fstat(&*file).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let threads = [(); 2].map(|()| {
            let (file, over) = (Arc::clone(&file), Arc::clone(&over));
            thread::spawn(move || {
                let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
                while !over.load(Ordering::Relaxed) {
                    let reopen = || Ok(open(path.as_str(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?);
                    drop(NotInherited::open(reopen).unwrap());
                }
            })
        });
        for _ in 0..200 {
            // SAFETY: the child makes system calls only, and ends.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let found = count(stat.st_dev, stat.st_ino);
                // SAFETY: ends this process.
                unsafe { libc::_exit(found) };
            }
            let mut status = 0;
            // SAFETY: waits for a child of this process.
            assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
            assert!(
                libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1,
                "the file itself: {status:#x}"
            );
        }
        over.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
