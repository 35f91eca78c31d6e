//! Descriptors that a forked child does not keep.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicI32, AtomicPtr, Ordering},
};

use super::{Creator, Gate};

/// A descriptor that forked children do not keep. So the kernel releases what depends on it (a file
/// lock) when this process ends, not when the last of its children ends.
///
/// A child that was created by `clone` without the C library does keep it. Programs that this
/// process executes keep none, because all descriptors are close-on-exec.
#[derive(Debug)]
pub(crate) struct NotInherited {
    entry: &'static Entry,
    creator: Creator,
}

/// An entry of the list of such descriptors. Entries are reused and never freed, because the
/// handler in the child walks the list without a lock.
#[derive(Debug)]
struct Entry {
    /// [`FREE`] if the entry is not in use.
    descriptor: AtomicI32,
    next: AtomicPtr<Entry>,
}

const FREE: RawFd = -1;
static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());

fn entries() -> impl Iterator<Item = &'static Entry> {
    // SAFETY: entries are complete when they are published, and live forever.
    let at = |pointer: &AtomicPtr<Entry>| unsafe { pointer.load(Ordering::Acquire).as_ref() };
    std::iter::successors(at(&ENTRIES), move |entry| at(&entry.next))
}

/// Closes all of these descriptors, in a child that was just forked.
pub(super) fn close_all() {
    for entry in entries() {
        let descriptor = entry.descriptor.swap(FREE, Ordering::Relaxed);
        if descriptor != FREE {
            // SAFETY: the entry owned it, and any value that refers to the entry notices that it
            // was forked.
            unsafe { libc::close(descriptor) };
        }
    }
}

impl NotInherited {
    /// Opens a descriptor with `open`.
    pub(crate) fn open(open: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<Self> {
        let creator = Creator::here();
        // No fork may happen in between: its child would keep a descriptor that no entry names yet.
        let _gate = Gate::enter();
        Ok(NotInherited::enlist(open()?, creator))
    }

    /// Takes a descriptor that is open already. A child that was forked since it was opened keeps
    /// it.
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        let creator = Creator::here();
        let _gate = Gate::enter();
        NotInherited::enlist(descriptor, creator)
    }

    fn enlist(descriptor: OwnedFd, creator: Creator) -> Self {
        let descriptor = descriptor.into_raw_fd();
        // Reuse a free entry, or else add a new one to the front of the list.
        let taken = entries().find(|entry| {
            let put = entry.descriptor.compare_exchange(
                FREE,
                descriptor,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
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
        NotInherited { entry, creator }
    }

    /// Returns the descriptor, or `None` in a fork.
    pub(crate) fn get(&self) -> Option<BorrowedFd<'_>> {
        if self.creator.is_elsewhere() {
            return None;
        }
        let descriptor = self.entry.descriptor.load(Ordering::Relaxed);
        // SAFETY: it is open until `self` is dropped, because this process put it into the entry.
        Some(unsafe { BorrowedFd::borrow_raw(descriptor) })
    }
}

impl Drop for NotInherited {
    fn drop(&mut self) {
        if let Some(descriptor) = self.get() {
            let descriptor = descriptor.as_raw_fd();
            // No fork may happen in between: its child would keep a descriptor that the entry no
            // longer names.
            let _gate = Gate::enter();
            self.entry.descriptor.store(FREE, Ordering::Release);
            // SAFETY: only the entry owned it.
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
    use crate::os::{file, fork::tests::alone};

    /// Returns how many descriptors of this file the process has. A fork may only make system
    /// calls, so this does nothing else.
    fn count(device: u64, inode: u64) -> i32 {
        let mut found = 0;
        for descriptor in 0..1024 {
            // SAFETY: zero is a valid `stat`. `fstat` fills it, or reports that there is no such
            // descriptor.
            unsafe {
                let mut stat: libc::stat = std::mem::zeroed();
                let is_it = libc::fstat(descriptor, &mut stat) == 0
                    && (stat.st_dev, stat.st_ino) == (device, inode);
                found += i32::from(is_it);
            }
        }
        found
    }

    #[test]
    fn a_child_forked_while_a_descriptor_is_opened_or_dropped_does_not_keep_it() {
        alone("os::fork::not_inherited::tests::forks_while_descriptors_are_opened_and_dropped");
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
                    let reopen =
                        || Ok(open(path.as_str(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?);
                    drop(NotInherited::open(reopen).unwrap());
                }
            })
        });
        for _ in 0..200 {
            // SAFETY: the child only makes system calls, and ends.
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
