//! A program may fork by hand while executors exist. The child has copies of our locks, possibly held by threads that
//! do not exist there, and no driver. So every handle asks, before it touches a lock: am I still in my process?

use std::sync::{
    Once,
    atomic::{AtomicU32, Ordering},
};

static FORKS: AtomicU32 = AtomicU32::new(0);
static REGISTER: Once = Once::new();

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// The process in which something was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin(u32);

impl Origin {
    /// This process.
    pub(crate) fn here() -> Self {
        REGISTER.call_once(|| {
            // SAFETY: the handler only adds to an atomic, which is allowed between fork and exec.
            let refused = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
            if refused != 0 {
                // Out of memory for one list entry: forks go unnoticed, as without this module.
                tracing::warn!(
                    errno = refused,
                    "pthread_atfork refused; handles in forked children are not inert"
                );
            }
        });
        Origin(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this process is a fork of the one in which `self` was made.
    pub(crate) fn forked(self) -> bool {
        self.0 != FORKS.load(Ordering::Relaxed)
    }
}
