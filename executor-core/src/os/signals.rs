//! The signal mask of the thread that starts a child, and the signals that its process ignores.
//!
//! A child does not inherit all of this. std and this library set SIGPIPE to its default in
//! programs that they start, and std's runtime in the child ignores it again. And the fork server
//! may have been started long before its parent changed a setting. So both are sent with the setup.

use std::{ffi::c_ulong, mem::MaybeUninit, ptr};

use serde::{Deserialize, Serialize};

/// The mask of a thread, and the signals that its process ignores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signals {
    /// One bit for each signal, starting with signal 1.
    blocked: u64,
    /// The same for ignored signals.
    ignored: u64,
}

/// Number of signals on Linux.
const SIGNALS: i32 = 64;

/// Returns memory for a set of signals, for the C library to initialise.
///
/// It is zeroed, because the C library writes only the first eight of its 128 bytes. A set that is
/// moved or assumed to be initialised must be initialised completely.
pub(crate) fn empty() -> MaybeUninit<libc::sigset_t> {
    MaybeUninit::zeroed()
}

impl Signals {
    /// Returns the settings of the calling thread.
    pub(crate) fn of_this_thread() -> Self {
        let mut set = empty();
        // SAFETY: writes the set, and changes nothing.
        let asked =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), set.as_mut_ptr()) };
        let mut blocked = 0;
        if asked == 0 {
            for signal in 1..=SIGNALS {
                // SAFETY: the set is written above. A number that is not a signal's is refused.
                if unsafe { libc::sigismember(set.as_ptr(), signal) } == 1 {
                    blocked |= 1 << (signal - 1);
                }
            }
        }
        let ignored = (1..=SIGNALS)
            .filter(|signal| is_ignored(*signal))
            .fold(0, |ignored, signal| ignored | 1 << (signal - 1));
        Signals { blocked, ignored }
    }

    /// Applies the settings to the calling thread and the process, and [blocks the terminal's
    /// signals](block_terminal). It must be called before other threads exist.
    pub(crate) fn adopt(self) {
        let mut set = empty();
        // SAFETY: initialises the set, and then adds signal numbers to it; unknown numbers are
        // refused.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in (1..=SIGNALS).filter(|signal| self.blocked & (1 << (signal - 1)) != 0) {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut());
        }
        block_terminal();
        for signal in 1..=SIGNALS {
            let ignore = self.ignored & (1 << (signal - 1)) != 0;
            // A signal that has a handler here (for a stack overflow, say) keeps it, unless it is
            // to be ignored.
            if ignore != is_ignored(signal) {
                // SAFETY: sets a disposition without a handler. A signal that cannot be changed is
                // refused.
                unsafe { libc::signal(signal, if ignore { libc::SIG_IGN } else { libc::SIG_DFL }) };
            }
        }
    }
}

/// Ignores SIGINT in this process. A program that it starts inherits that.
pub(crate) fn ignore_interrupt() {
    // SAFETY: sets the action of one signal, without a handler.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
}

/// Blocks SIGTTOU and SIGTTIN in the calling thread of a child, and in the threads that it starts.
///
/// A child leads its own group, which the terminal takes for a background job. After `stty tostop`,
/// the terminal would stop the child at its first output, and nothing would continue it. With the
/// signals blocked, the child may write to the terminal and change its settings. Reading from the
/// terminal is an error.
///
/// A program that a task starts inherits the mask, also through std's `Command`, which resets
/// SIGPIPE only. The program is in the child's group unless it leaves it, so the terminal would
/// stop it too, and nothing would continue it.
///
/// Ignoring the signals would be inherited in the same way. Handlers would not be inherited, but a
/// handler cannot let the child write: the child would retry the write, and be refused again,
/// forever.
pub(crate) fn block_terminal() {
    let mut set = empty();
    // SAFETY: initialises the set, adds two signals to it, and blocks them.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTTOU);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTTIN);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
    }
}

fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: writes the action and changes nothing. Numbers that the C library reserves are
    // refused.
    let asked = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: written if the call did not fail.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Runs `start` with all signals blocked. So a thread that it starts receives none of the program's
/// signals.
pub(crate) fn deaf<R>(start: impl FnOnce() -> R) -> R {
    let mut all = empty();
    let mut before = empty();
    // SAFETY: initialises one set and reads it, and writes the other.
    let blocked = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr())
    };
    let result = start();
    if blocked == 0 {
        // SAFETY: written above. A panic of `start` would leave the signals blocked, and cause no
        // other harm.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    }
    result
}

/// Length of a mask for the kernel, in bytes.
const MASK_BYTES: usize = SIGNALS as usize / 8;
const WORD_BITS: usize = c_ulong::BITS as usize;

/// The mask of a thread as the kernel has it. The functions of the C library leave out the signals
/// that the library reserves for itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask([c_ulong; MASK_BYTES / size_of::<c_ulong>()]);

impl Mask {
    /// Returns the signals that the C library reserves for itself. By one of them, `setuid` and
    /// similar functions make each thread of the process change its user (33 in glibc, 34 in musl),
    /// because the kernel has a user for each thread.
    fn of_the_library() -> Self {
        let mut words = Mask::default().0;
        // The reserved signals come first among the real-time signals.
        for signal in 32..libc::SIGRTMIN() {
            let bit = signal as usize - 1;
            words[bit / WORD_BITS] |= 1 << (bit % WORD_BITS);
        }
        Mask(words)
    }

    /// Changes the mask of the calling thread, and returns the previous mask. Returns `None` if the
    /// kernel refuses.
    fn change(self, how: i32) -> Option<Mask> {
        let mut before = Mask::default();
        // SAFETY: reads and writes as many bytes as both masks have. Blocking the library's signals
        // does it no harm: it does so itself, and waits.
        let changed = unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                how,
                self.0.as_ptr(),
                before.0.as_mut_ptr(),
                size_of_val(&self.0),
            )
        };
        (changed == 0).then_some(before)
    }

    fn without(mut self, other: Mask) -> Self {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word &= !other;
        }
        self
    }

    /// Converts the mask to the C library's type.
    pub(super) fn to_set(self) -> MaybeUninit<libc::sigset_t> {
        const { assert!(MASK_BYTES <= size_of::<libc::sigset_t>()) };
        let mut set = empty();
        // SAFETY: both have at least this length, with the words in the same order.
        unsafe {
            ptr::copy_nonoverlapping(
                self.0.as_ptr().cast::<u8>(),
                set.as_mut_ptr().cast(),
                MASK_BYTES,
            );
        }
        set
    }

    /// Runs `call` with this mask in the calling thread.
    pub(super) fn during<R>(self, call: impl FnOnce() -> R) -> R {
        let _back = Back(self.change(libc::SIG_SETMASK));
        call()
    }
}

impl Default for Mask {
    fn default() -> Self {
        Mask([0; MASK_BYTES / size_of::<c_ulong>()])
    }
}

/// Restores the mask of the calling thread when dropped, even after a panic.
struct Back(Option<Mask>);

impl Drop for Back {
    fn drop(&mut self) {
        self.0.and_then(|before| before.change(libc::SIG_SETMASK));
    }
}

/// Runs `call` while the user and the group of the calling thread cannot change. `call` gets the
/// mask that the thread otherwise has. A child that `call` starts needs this mask: with the other
/// one, the child would hang in its own `setuid`.
///
/// `call` must not set a mask that the C library has reported as the previous one, because that
/// would let the signals through again.
///
/// Another thread's `setuid` waits for the end of `call`, and may hold locks of the C library
/// meanwhile (in glibc the one of its list of stacks, in musl the one of its list of threads). So
/// `call` must not start or join threads, fork, open a library, or run code of the program. It must
/// not wait for anything that another thread of this process has to do.
pub(crate) fn as_one_user<R>(call: impl FnOnce(Option<Mask>) -> R) -> R {
    let held = Mask::of_the_library();
    let before = held.change(libc::SIG_BLOCK);
    let _back = Back(before);
    // Inside an outer call of this function, the signals are blocked already and in `before`, so
    // remove them from the child's mask.
    call(before.map(|before| before.without(held)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::file;

    #[test]
    fn the_librarys_signals_wait_and_the_mask_comes_back() {
        /// The blocked signals, as the kernel reports them.
        fn blocked() -> u64 {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
            u64::from_str_radix(mask.trim(), 16).unwrap()
        }
        let own: u64 = (32..libc::SIGRTMIN()).map(|signal| 1 << (signal - 1)).sum();
        assert!(own != 0);
        let before = blocked();
        assert_eq!(before & own, 0);
        as_one_user(|mask| {
            assert_eq!(blocked(), before | own);
            mask.unwrap().during(|| assert_eq!(blocked(), before));
            assert_eq!(blocked(), before | own);
            as_one_user(|mask| mask.unwrap().during(|| assert_eq!(blocked(), before)));
            // Code that changes the mask for a moment lets none of them through.
            let file = file::anonymous("a file").unwrap();
            file::set_len(&file, 1).unwrap();
            file::write_at(&file, &[1], 0).unwrap();
            assert_eq!(blocked(), before | own);
        });
        assert_eq!(blocked(), before);
        let panicked = std::panic::catch_unwind(|| as_one_user(|_| panic!("within")));
        assert!(panicked.is_err());
        assert_eq!(blocked(), before);
    }

    #[test]
    fn what_one_thread_has_another_can_take_over() {
        let block = |signal| {
            let mut set = empty();
            // SAFETY: a new set with one signal, for this thread only.
            unsafe {
                libc::sigemptyset(set.as_mut_ptr());
                libc::sigaddset(set.as_mut_ptr(), signal);
                libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
            }
        };
        let told = std::thread::spawn(move || {
            block(libc::SIGUSR1);
            Signals::of_this_thread()
        })
        .join()
        .unwrap();
        assert_ne!(told, Signals::of_this_thread());
        std::thread::spawn(move || {
            told.adopt();
            let terminal = 1 << (libc::SIGTTOU - 1) | 1 << (libc::SIGTTIN - 1);
            assert_eq!(
                Signals::of_this_thread(),
                Signals { blocked: told.blocked | terminal, ..told }
            );
        })
        .join()
        .unwrap();
    }
}
