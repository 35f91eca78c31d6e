//! What a program started anew does not inherit from us: std starts children with no signal blocked and SIGPIPE at its
//! default, and std's runtime in the child ignores SIGPIPE again. So both travel with the setup.

use std::{mem::MaybeUninit, ptr};

use serde::{Deserialize, Serialize};

/// The mask of a thread, and what SIGPIPE does in its process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signals {
    /// One bit for each signal, from 1.
    blocked: u64,
    ignores_pipe: bool,
}

/// As many as Linux has.
const SIGNALS: i32 = 64;

impl Signals {
    /// Of the calling thread.
    pub(crate) fn of_this_thread() -> Self {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
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
        let mut action = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: writes the action, changes nothing.
        let asked = unsafe { libc::sigaction(libc::SIGPIPE, ptr::null(), action.as_mut_ptr()) };
        // SAFETY: written where it did not fail.
        let ignores_pipe = asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN;
        Signals { blocked, ignores_pipe }
    }

    /// Makes the calling thread, and the process, so. Before there are other threads.
    pub(crate) fn adopt(self) {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: initialises the set; then adds numbers of signals to it, those it does not know being refused.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in (1..=SIGNALS).filter(|signal| self.blocked & (1 << (signal - 1)) != 0) {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut());
        }
        let pipe = if self.ignores_pipe { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: sets a disposition, no handler.
        unsafe { libc::signal(libc::SIGPIPE, pipe) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_thread_has_another_can_take_over() {
        let block = |signal| {
            let mut set = MaybeUninit::<libc::sigset_t>::uninit();
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
            assert_eq!(Signals::of_this_thread(), told);
        })
        .join()
        .unwrap();
    }
}
