//! Flushes standard output before a child is started.

use std::{
    io::{self, Write as _},
    sync::{Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::os::{fork::PerProcess, signals, std_or_model::lock};

/// How long a start waits for the flush. With a lower value, on a busy machine, earlier output of
/// this process may appear after the child's. With a higher value, a thread that holds the lock of
/// standard output delays each start by this much.
const TIMEOUT: Duration = Duration::from_millis(100);

/// Writes out what this process has printed so far, including an unterminated line, so that it
/// appears before the child's output.
///
/// Another thread may hold the lock of standard output for as long as it likes, and may even wait
/// for the child. So the calling thread must not block on this lock. std has no way to try to take
/// it. Therefore a helper thread does the flush, and the caller waits for it for a limited time.
pub(super) fn flush() {
    static FLUSHES: PerProcess<Flushes> = PerProcess::new(Flushes::default);
    FLUSHES.get().ask(TIMEOUT, || drop(io::stdout().flush()));
}

/// The flushes that were requested. One helper thread at a time does them. A second helper would
/// only wait for the lock behind the first.
#[derive(Default)]
struct Flushes {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Number of flushes that were requested.
    asked: u64,
    /// Number of these flushes that are complete: a flush began after the request, and has ended.
    done: u64,
    /// Whether a helper thread is flushing. It exits when there are no more requests.
    helps: bool,
    /// The helper thread that was started last, until it is joined.
    helper: Option<JoinHandle<()>>,
}

impl Flushes {
    /// Waits until a flush that begins after this call has ended, at most for `timeout`.
    fn ask(&'static self, timeout: Duration, flush: impl Fn() + Send + 'static) {
        let mut state = lock(&self.state);
        state.asked += 1;
        let own = state.asked;
        if !state.helps {
            // All signals are blocked in the helper, so that it receives none of the program's.
            let helper = signals::deaf(|| {
                let builder =
                    thread::Builder::new().name("executor-flush".into()).stack_size(64 * 1024);
                builder.spawn(move || self.help(flush))
            });
            match helper {
                Ok(helper) => (state.helps, state.helper) = (true, Some(helper)),
                Err(error) => {
                    tracing::debug!(%error, "standard output is not flushed before a start");
                    return;
                }
            }
        }
        let waited = self.changed.wait_timeout_while(state, timeout, |state| state.done < own);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let helper = if state.helps { None } else { state.helper.take() };
        drop(state);
        if let Some(helper) = helper {
            // The helper is about to exit. Join it, so that this process has no more threads after
            // the call than before it. A fork checks the number of threads.
            let _ = helper.join();
        }
    }

    /// The helper's loop. It flushes until all requests that were made in the meantime are
    /// complete.
    fn help(&self, flush: impl Fn()) {
        let mut state = lock(&self.state);
        while state.done < state.asked {
            // Only the requests made before the flush begins are complete after it.
            let asked = state.asked;
            drop(state);
            flush();
            state = lock(&self.state);
            state.done = asked;
            self.changed.notify_all();
        }
        state.helps = false;
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_start_beside_a_flush_that_has_begun_waits_for_one_that_begins_later() {
        let flushes: &'static Flushes = Box::leak(Box::default());
        let (begins, has_begun) = mpsc::channel();
        let (goes_on, may_go_on) = mpsc::channel();
        let (printed, written) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(0)));
        let (from, to) = (Arc::clone(&printed), Arc::clone(&written));
        let may_go_on = Mutex::new(may_go_on);
        let flush = move || {
            let seen = from.load(Ordering::SeqCst);
            begins.send(()).unwrap();
            may_go_on.lock().unwrap().recv().unwrap();
            to.store(seen, Ordering::SeqCst);
        };
        let first = thread::spawn(move || flushes.ask(LONG, flush));
        has_begun.recv().unwrap();
        // This is printed after the flush has begun, so that flush does not cover it.
        printed.store(2, Ordering::SeqCst);
        let seen = Arc::clone(&written);
        let second = thread::spawn(move || {
            flushes.ask(LONG, || unreachable!("there is a helper"));
            seen.load(Ordering::SeqCst)
        });
        while lock(&flushes.state).asked < 2 {
            thread::yield_now();
        }
        goes_on.send(()).unwrap();
        first.join().unwrap();
        goes_on.send(()).unwrap();
        assert_eq!(second.join().unwrap(), 2);
        let state = lock(&flushes.state);
        assert!(!state.helps && state.helper.is_none(), "no thread is left");
    }

    #[test]
    fn a_start_beside_a_flush_that_hangs_goes_on() {
        let flushes: &'static Flushes = Box::leak(Box::default());
        let (end, ended) = mpsc::channel::<()>();
        let ended = Mutex::new(ended);
        flushes.ask(Duration::from_millis(1), move || {
            let _ = ended.lock().unwrap().recv();
        });
        flushes.ask(Duration::from_millis(1), || unreachable!("there is a helper"));
        drop(end);
        // This call either finds the helper still at work, or starts another one.
        flushes.ask(LONG, || ());
    }
}
