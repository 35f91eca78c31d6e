//! A copy of this process that is its sibling: a child of its parent.

use std::{io, ptr};

use super::{in_child, in_parent};
use crate::os::process;

/// Copies this process. The copy is a child of this process's parent, not of this process.
///
/// Returns `None` in the copy. Fails if this process has other threads.
pub(crate) fn clone_sibling() -> io::Result<Option<u32>> {
    if process::settled_thread_count(1)? > 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let known = KnownToTheLibrary::of_this_thread();
    // No exit signal is given, because with CLONE_PARENT the copy has this process's. No new stack
    // is given either, so the copy uses a copy of the stack, as with fork(2).
    match known.clone_with(libc::CLONE_PARENT)? {
        0 => {
            known.tell_the_kernel();
            in_child();
            Ok(None)
        }
        pid => {
            // There is no other thread that could read the count in between, so counting once is
            // enough.
            in_parent();
            Ok(Some(pid as u32))
        }
    }
}

/// What the C library and the kernel have told each other about a thread.
///
/// A copy made without the library's `fork` would lack it. It consists of two parts. One is the
/// word in which glibc stores the thread's number, by which it recognises owners of mutexes, even
/// in shared memory. The other is the list of the thread's robust mutexes, which the kernel walks
/// when the thread ends.
struct KnownToTheLibrary {
    /// Null if it was not found.
    number: *mut libc::c_int,
    /// Head and length of the list. The head is null if there is none.
    robust: (*mut libc::c_void, usize),
}

impl KnownToTheLibrary {
    fn of_this_thread() -> Self {
        const PR_GET_TID_ADDRESS: libc::c_int = 40;
        let mut number: *mut libc::c_int = ptr::null_mut();
        // SAFETY: writes the address of the word that the kernel clears at the thread's end, which
        // is the word where glibc stores the number.
        let told = unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut number) } == 0;
        // A kernel without CONFIG_CHECKPOINT_RESTORE does not return the address. Then copies keep
        // the number of their original.
        //
        // SAFETY: the library gave this address to the kernel, and the word is in this thread's
        // memory.
        let is_it = told
            && !number.is_null()
            && unsafe { number.read() }.cast_unsigned() == process::this_thread();
        let mut robust: (*mut libc::c_void, usize) = (ptr::null_mut(), 0);
        // SAFETY: writes head and length of this thread's list.
        let asked = unsafe {
            libc::syscall(libc::SYS_get_robust_list, 0, &raw mut robust.0, &raw mut robust.1)
        };
        KnownToTheLibrary {
            number: if is_it { number } else { ptr::null_mut() },
            robust: if asked == 0 { robust } else { (ptr::null_mut(), 0) },
        }
    }

    /// Clones this process, and returns 0 in the copy. In the copy, the library's word has the new
    /// number before any code runs.
    fn clone_with(&self, flags: libc::c_int) -> io::Result<libc::c_long> {
        let flags = match self.number.is_null() {
            true => flags,
            false => flags | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID,
        };
        // SAFETY: like fork(2), in a process whose only thread is this one. The caller counts the
        // threads; if it cannot, nothing is copied. So no lock is held in the copy. What glibc does
        // around the system call is for other threads and for handlers of `pthread_atfork`, except
        // for what `self` contains. The kernel writes the copy's number to the copy's word.
        // References into shared memory that `preload` has leaked into a static exist in all
        // copies, and the program must not use them: see `StartMethod::ForkServer`.
        #[cfg(target_arch = "x86_64")]
        let cloned =
            unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_long, 0, 0, self.number, 0) };
        // SAFETY: as above. These architectures take the last two arguments in the other order.
        #[cfg(not(target_arch = "x86_64"))]
        let cloned =
            unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_long, 0, 0, 0, self.number) };
        if cloned < 0 { Err(io::Error::last_os_error()) } else { Ok(cloned) }
    }

    /// In the copy, tells the kernel where the list is, because the kernel has forgotten it.
    fn tell_the_kernel(&self) {
        let (head, len) = self.robust;
        if !head.is_null() {
            // SAFETY: the list's head is in this thread's memory, at the address that was
            // registered in the original.
            unsafe { libc::syscall(libc::SYS_set_robust_list, head, len) };
        }
    }
}
