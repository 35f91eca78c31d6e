//! The signal mask of the thread that starts a child, and what its process ignores. A child does not inherit all of it: SIGPIPE
//! is at its default in what std and this library start, and std's runtime in the child ignores it again; and the fork server
//! may have been started long before its parent changed something. So both travel with the setup.

use std::{mem::MaybeUninit, ptr};

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

#[cfg(test)]
mod tests {
    use super::*;

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
