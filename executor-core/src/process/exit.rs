//! What happens when a program ends by itself.
//!
//! ```text
//!  main returns, process::exit ─► atexit ─► finish, once:
//!     1  registered threads are waited for                    spawn_thread
//!     2  hooks of priority 0 and above, the highest first     at_exit
//!     3  daemons are terminated, other children waited for    the table of processes
//!     4  hooks below 0
//!  a signal, abort, _exit ─► nothing of that; children watch their parent
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Condvar, Mutex, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, ThreadId},
};

use super::table;
use crate::{future::callback::catch, os::fork};

type Hook = Box<dyn FnOnce() + Send>;

/// Hooks by (priority, number): run from the end.
static HOOKS: Mutex<BTreeMap<(i32, u64), Hook>> = Mutex::new(BTreeMap::new());
static THREADS: Mutex<Threads> = Mutex::new(Threads { running: Vec::new(), made: 0 });
static ENDED: Condvar = Condvar::new();
/// Only where this process has not done so already: a forked child finishes for itself.
static FINISHED: AtomicBool = AtomicBool::new(false);

struct Threads {
    /// By number; the thread's id once it runs.
    running: Vec<(u64, Option<ThreadId>)>,
    made: u64,
}

extern "C" fn at_end() {
    // A panic must not cross the system's own code.
    let _ = catch(finish);
}

/// Makes the end of the program known.
pub(super) fn watch_the_end() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| fork::at_end(at_end));
}

/// All that is to happen when this process ends by itself; once.
pub(super) fn finish() {
    if FINISHED.swap(true, Ordering::SeqCst) {
        return;
    }
    wait_for_threads();
    run_hooks(0);
    table::finish();
    run_hooks(i32::MIN);
}

/// A forked child starts with nothing of its parent's.
pub(crate) fn begin_anew() {
    lock(&HOOKS).clear();
    lock(&THREADS).running.clear();
    FINISHED.store(false, Ordering::SeqCst);
}

/// A function to be called when this process ends by itself: [`at_exit`].
#[derive(Clone)]
pub struct ExitHook {
    key: (i32, u64),
}

/// Calls `hook` when this process ends by itself: when `main` returns, by [`std::process::exit`], or when the task of a
/// [`Process`](crate::Process) or the last task of a worker is done. Not after a signal or an abort.
///
/// Hooks with a higher priority are called first, of one priority those registered last. Those below 0 are called after the
/// program's [processes](crate::Process) have ended. Each is called once. A panic of one is swallowed (and logged, with
/// `tracing`); the others are called all the same. A hook that registers another one has it called as well.
///
/// ```
/// let hook = executor::at_exit(10, || { /* remove a file */ });
/// hook.call(); // now, and not again at the end
/// executor::at_exit(0, || println!("bye"));
/// ```
pub fn at_exit(priority: i32, hook: impl FnOnce() + Send + 'static) -> ExitHook {
    static MADE: Mutex<u64> = Mutex::new(0);
    watch_the_end();
    let number = {
        let mut made = lock(&MADE);
        *made += 1;
        *made
    };
    lock(&HOOKS).insert((priority, number), Box::new(hook));
    ExitHook { key: (priority, number) }
}

impl ExitHook {
    /// Calls it now, unless it was called or cancelled; whether it was called by this.
    pub fn call(&self) -> bool {
        let hook = lock(&HOOKS).remove(&self.key);
        match hook {
            Some(hook) => {
                hook();
                true
            }
            None => false,
        }
    }

    /// Forgets it; whether it was still to be called.
    pub fn cancel(&self) -> bool {
        lock(&HOOKS).remove(&self.key).is_some()
    }

    /// Whether it is still to be called.
    pub fn is_pending(&self) -> bool {
        lock(&HOOKS).contains_key(&self.key)
    }

    /// A value whose drop calls it.
    pub fn on_drop(self) -> ExitGuard {
        ExitGuard(self)
    }
}

impl fmt::Debug for ExitHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (priority, _) = self.key;
        f.debug_struct("ExitHook").field("priority", &priority).field("pending", &self.is_pending()).finish()
    }
}

/// Calls an [`ExitHook`] when it is dropped, or when the process ends, whichever comes first.
#[derive(Debug)]
#[must_use = "dropping it calls the hook"]
pub struct ExitGuard(ExitHook);

impl Drop for ExitGuard {
    fn drop(&mut self) {
        self.0.call();
    }
}

fn run_hooks(least: i32) {
    loop {
        let next = {
            let mut hooks = lock(&HOOKS);
            // Looked up each time: a hook may register another one.
            let Some(&(priority, number)) = hooks.range((least, 0)..).next_back().map(|(key, _)| key) else {
                return;
            };
            hooks.remove(&(priority, number))
        };
        if let Some(hook) = next
            && let Err(panic) = catch(hook)
        {
            tracing::error!(%panic, "an exit hook panicked");
        }
    }
}

/// As [`std::thread::spawn`], but the end of the process waits for the thread: Python's threads that are no daemons.
///
/// Threads of std end with their process, wherever they are. One that must finish what it does (write a file, say)
/// is started by this; the end of the program, of a [`Process`](crate::Process)'s body and of a worker waits for it, also
/// in [`std::process::exit`].
///
/// ```
/// let thread = executor::spawn_thread(|| 6 * 7);
/// assert_eq!(thread.join().unwrap(), 42);
/// ```
///
/// Such a thread must end by returning. If it calls [`std::process::exit`] while the program is ending already, std holds it
/// for ever, and with it the end.
///
/// # Panics
/// If the system refuses a thread, as std's.
pub fn spawn_thread<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    watch_the_end();
    let number = {
        let mut threads = lock(&THREADS);
        threads.made += 1;
        let number = threads.made;
        threads.running.push((number, None));
        number
    };
    let leaves = Leaves(number);
    thread::spawn(move || {
        let _leaves = leaves;
        if let Some(entry) = lock(&THREADS).running.iter_mut().find(|(other, _)| *other == number) {
            entry.1 = Some(thread::current().id());
        }
        body()
    })
}

struct Leaves(u64);

impl Drop for Leaves {
    fn drop(&mut self) {
        lock(&THREADS).running.retain(|(other, _)| *other != self.0);
        ENDED.notify_all();
    }
}

fn wait_for_threads() {
    // Where such a thread itself ends the process, it cannot be waited for.
    let own = Some(thread::current().id());
    let mut threads = lock(&THREADS);
    while threads.running.iter().any(|(_, id)| *id != own) {
        threads = ENDED.wait(threads).unwrap_or_else(PoisonError::into_inner);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
