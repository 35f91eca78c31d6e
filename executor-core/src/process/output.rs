//! What this process has printed, and the children it is about to start.

use std::{
    io::{self, Write as _},
    sync::{Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::os::{fork::PerProcess, signals, sync::lock};

/// How long a start waits for the flush. Shorter: on a busy machine, earlier output appears after the child's. Longer: a thread
/// that holds the lock delays each start by as much.
const LIMIT: Duration = Duration::from_millis(100);

/// Writes out what this process has printed so far, an unterminated line included, so that it comes before what a child
/// prints.
///
/// Another thread may hold the lock of standard output for as long as it likes, and may even wait for the child, so this
/// thread must not wait for it. std has no way to try that lock. So a helper flushes, for which this waits a moment.
pub(super) fn flush() {
    static FLUSHES: PerProcess<Flushes> = PerProcess::new(Flushes::default);
    FLUSHES.get().ask(LIMIT, || drop(io::stdout().flush()));
}

/// Flushes by one helper at a time: a second one would only wait for the lock behind the first.
#[derive(Default)]
struct Flushes {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// How many flushes have been asked for,
    asked: u64,
    /// and how many of those were asked for before the last one that has ended had begun.
    done: u64,
    /// The helper flushes until nobody asks any more.
    helps: bool,
    helper: Option<JoinHandle<()>>,
}

impl Flushes {
    /// Waits until a flush that begins after this call has ended, at most for `limit`.
    fn ask(&'static self, limit: Duration, flush: impl Fn() + Send + 'static) {
        let mut state = lock(&self.state);
        state.asked += 1;
        let own = state.asked;
        if !state.helps {
            let helper = signals::deaf(|| {
                let builder = thread::Builder::new().name("executor-flush".into()).stack_size(64 * 1024);
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
        let waited = self.changed.wait_timeout_while(state, limit, |state| state.done < own);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let helper = if state.helps { None } else { state.helper.take() };
        drop(state);
        if let Some(helper) = helper {
            // It is at its end. So this process has no thread that it had not before.
            let _ = helper.join();
        }
    }

    fn help(&self, flush: impl Fn()) {
        let mut state = lock(&self.state);
        while state.done < state.asked {
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
        // Printed too late for the flush under way.
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
        // The next one finds the helper at work or makes another.
        flushes.ask(LONG, || ());
    }
}
