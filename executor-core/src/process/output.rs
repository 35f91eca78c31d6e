//! What this process has printed, and the children it is about to start.

use std::{
    io::{self, Write as _},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use crate::os::signals;

/// How long a start waits for the lock of standard output, and for room where that goes. Shorter: on a busy machine, what was
/// printed before comes after what the child prints. Longer: so much later starts a child beside a thread that holds the lock.
const LIMIT: Duration = Duration::from_millis(100);

/// Writes out what this process has printed so far, an unterminated line included, so that it comes before what a child
/// prints.
///
/// Another thread may hold the lock of standard output for as long as it likes, and may even wait for the child, so this
/// thread must not wait for it. std has no way to try that lock. So a helper flushes, for which this waits a moment.
pub(super) fn flush() {
    /// A helper waits for the lock: another one would only wait behind it.
    static WAITS: AtomicBool = AtomicBool::new(false);
    if WAITS.swap(true, Ordering::SeqCst) {
        return;
    }
    let (done, is_done) = mpsc::channel::<()>();
    let helper = signals::deaf(|| {
        thread::Builder::new().name("executor-flush".into()).stack_size(64 * 1024).spawn(move || {
            let _ = io::stdout().flush();
            WAITS.store(false, Ordering::SeqCst);
            drop(done);
        })
    });
    match helper {
        Ok(helper) => {
            // Nothing is sent: it hangs up.
            if is_done.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Disconnected) {
                // Its end, so that this process has no thread that it had not before.
                let _ = helper.join();
            }
        }
        Err(error) => {
            WAITS.store(false, Ordering::SeqCst);
            tracing::debug!(%error, "standard output is not flushed before a start");
        }
    }
}
