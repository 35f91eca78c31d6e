//! The signal mask of the thread that starts a child, and what its process ignores. A child does not inherit all of it: SIGPIPE
//! is at its default in what std and this library start, and std's runtime in the child ignores it again; and the fork server
//! may have been started long before its parent changed something. So both travel with the setup.

use std::{ffi::c_ulong, mem::MaybeUninit, ptr};

use serde::{Deserialize, Serialize};

/// The mask of a thread, and what its process ignores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signals {
    /// One bit for each signal, from 1.
    blocked: u64,
    /// The same for those ignored.
    ignored: u64,
}

/// As many as Linux has.
const SIGNALS: i32 = 64;

/// A set of no signals, for the C library to fill. Zeroed, since that writes the first eight of its 128 bytes only, and a set
/// that is moved or assumed to be initialised has to be so as a whole.
pub(crate) fn empty() -> MaybeUninit<libc::sigset_t> {
    MaybeUninit::zeroed()
}

impl Signals {
    /// Of the calling thread.
    pub(crate) fn of_this_thread() -> Self {
        let mut set = empty();
        // SAFETY: writes the set, changes nothing.
        let asked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), set.as_mut_ptr()) };
        let mut blocked = 0;
        if asked == 0 {
            for signal in 1..=SIGNALS {
                // SAFETY: written above; the number is a signal's, or refused.
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

    /// Makes the calling thread, and the process, so, and [blocks what the terminal sends](block_terminal). Before there are
    /// other threads.
    pub(crate) fn adopt(self) {
        let mut set = empty();
        // SAFETY: initialises the set; then adds numbers of signals to it, those it does not know being refused.
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
            // What is handled here (a stack's overflow, say) stays so.
            if ignore != is_ignored(signal) {
                // SAFETY: sets a disposition, no handler; what cannot be changed is refused.
                unsafe { libc::signal(signal, if ignore { libc::SIG_IGN } else { libc::SIG_DFL }) };
            }
        }
    }
}

/// Blocks SIGTTOU and SIGTTIN in the calling thread of a child, and in those that it starts.
///
/// A child leads a group of its own, which the terminal takes for a job in the background: after `stty tostop` it would stop the
/// child at its first word, and nobody would continue it. With the signals blocked, the child may write to the terminal and
/// change its settings, and reading from it is an error.
///
/// A program that a task starts inherits the mask, through std's `Command` too, which resets SIGPIPE only. It is in the child's
/// group unless it leaves it, so the terminal would stop it as well, with nobody to continue it. Ignoring the signals would be
/// inherited in the same way; and the handler of a signal, which would not be, cannot let the child write: it would write again and
/// be refused again for ever.
pub(crate) fn block_terminal() {
    let mut set = empty();
    // SAFETY: initialises the set and adds two signals to it, then blocks these.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTTOU);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTTIN);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
    }
}

fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: writes the action, changes nothing; refused for numbers that the C library keeps for itself.
    let asked = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: written where it did not fail.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Runs `start` with all signals blocked: a thread that it starts takes none that are the program's.
pub(crate) fn deaf<R>(start: impl FnOnce() -> R) -> R {
    let mut all = empty();
    let mut before = empty();
    // SAFETY: initialises the one set and reads it; writes the other.
    let blocked = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr())
    };
    let result = start();
    if blocked == 0 {
        // SAFETY: written above. A panic of `start` would leave signals blocked, and nothing worse.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    }
    result
}

/// How long a mask is, as the kernel takes it.
const MASK_BYTES: usize = SIGNALS as usize / 8;
const WORD_BITS: usize = c_ulong::BITS as usize;

/// The mask of a thread as the kernel has it. The functions of the C library leave out the signals that it keeps for itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask([c_ulong; MASK_BYTES / size_of::<c_ulong>()]);

impl Mask {
    /// The signals that the C library keeps for itself. By one of them `setuid` and its like make each thread of the process change
    /// its user (33 in glibc, 34 in musl): to the kernel each thread has its own.
    fn of_the_library() -> Self {
        let mut words = Mask::default().0;
        // Its own come first among the real-time signals.
        for signal in 32..libc::SIGRTMIN() {
            let bit = signal as usize - 1;
            words[bit / WORD_BITS] |= 1 << (bit % WORD_BITS);
        }
        Mask(words)
    }

    /// Changes that of the calling thread: what it was before. `None` if the kernel does not do it.
    fn change(self, how: i32) -> Option<Mask> {
        let mut before = Mask::default();
        // SAFETY: reads and writes so many bytes as both masks have. To hold back the library's signals harms it in no way: it does
        // so itself, and waits.
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

    /// As the C library has it.
    pub(super) fn to_set(self) -> MaybeUninit<libc::sigset_t> {
        const { assert!(MASK_BYTES <= size_of::<libc::sigset_t>()) };
        let mut set = empty();
        // SAFETY: both are at least so long, words in the same order.
        unsafe {
            ptr::copy_nonoverlapping(self.0.as_ptr().cast::<u8>(), set.as_mut_ptr().cast(), MASK_BYTES);
        }
        set
    }

    /// Runs `call` with this as the mask of the calling thread.
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

/// Gives the calling thread a mask back, also after a panic.
struct Back(Option<Mask>);

impl Drop for Back {
    fn drop(&mut self) {
        self.0.and_then(|before| before.change(libc::SIG_SETMASK));
    }
}

/// Runs `call`, during which the user and the group of the calling thread stay as they are. It is given the mask that the thread
/// has otherwise, which is that of a child that is started in `call`: with the other one the child would hang in its own `setuid`.
///
/// In `call`, no mask is set to what the C library says that it was: that lets the signals through again.
///
/// Another thread's `setuid` waits for the end of `call`, and may hold locks of the C library meanwhile (in glibc that of its
/// list of stacks, in musl that of its list of threads). So `call` neither starts nor joins threads, does not fork, opens no library,
/// runs no code of the program's, and waits for nothing that another thread of this process has to do.
pub(crate) fn as_one_user<R>(call: impl FnOnce(Option<Mask>) -> R) -> R {
    let held = Mask::of_the_library();
    let before = held.change(libc::SIG_BLOCK);
    let _back = Back(before);
    // Within another such call they are held back already.
    call(before.map(|before| before.without(held)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::file;

    #[test]
    fn the_librarys_signals_wait_and_the_mask_comes_back() {
        /// As the kernel tells it.
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
            // What changes the mask for a moment lets none of them through.
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
            // SAFETY: a fresh set with one signal, for this thread only.
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
            assert_eq!(Signals::of_this_thread(), Signals { blocked: told.blocked | terminal, ..told });
        })
        .join()
        .unwrap();
    }
}
