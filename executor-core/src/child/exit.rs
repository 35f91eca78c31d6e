//! What happens when a program ends by itself.
//!
//! ```text
//!  main returns, process::exit ─► atexit ─► finish, once:
//!     1  registered threads are waited for                       spawn_thread
//!     2  executors finish what they have accepted so far         a list of those that live
//!     3  hooks of priority 0 and above, the highest first        at_exit
//!     4  daemons are terminated, other children waited for       the table of processes
//!     5  hooks below 0
//!     6  executors are ended: they accept nothing more, and finish what came meanwhile
//!  a signal, abort, _exit ─► nothing of that; children watch their parent
//! ```
//!
//! An executor that is dropped waits for its work itself, where it may. This is for the others: those that were dropped where
//! waiting would block others (a tokio runtime, a task), and those that nobody drops (in a static, forgotten, in the frame of a
//! `main` that has called `exit`). Hooks come after step 2, since they may take away what tasks and callbacks need; until
//! step 6 executors still work, since hooks may need them. Those that are to cancel or kill what is not done
//! ([`OnDrop`](crate::OnDrop)) do so in step 2, and accept nothing more.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Condvar, Mutex, Once, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    os::{
        fork::{self, Origin, PerProcess},
        local, process,
        sync::lock,
    },
    unwind::catch,
};

type Hook = Box<dyn FnOnce() + Send>;

/// How often a thread that is waited for is looked at: it may be held by std for ever, since it has called `exit` as well.
const LOOK: Duration = Duration::from_millis(100);

/// A thread that has used no processor time for this long is taken to be held, where the system does not say where it waits.
/// Shorter: a thread that waits for a slow disk or network is left behind. Longer: a thread that is held delays the end by as much.
const HELD_GRACE: Duration = Duration::from_secs(10);

/// Finds out whether std holds a thread for ever, because it has called `exit` while the program was ending.
#[derive(Default)]
pub(crate) struct Watch {
    /// What it had computed, and since when it has computed no more.
    idle: Option<(Duration, Instant)>,
}

impl Watch {
    /// To be asked again and again, while the program ends.
    pub(crate) fn is_held(&mut self, thread: u32) -> bool {
        process::is_paused(thread).unwrap_or_else(|| {
            let (now, computed) = (Instant::now(), process::computed_by(thread).unwrap_or_default());
            let since = match self.idle {
                Some((before, since)) if before == computed => since,
                _ => self.idle.insert((computed, now)).1,
            };
            now.saturating_duration_since(since) >= HELD_GRACE
        })
    }
}

/// A forked child has its own: nothing of its parent's is done twice.
static END: PerProcess<End> = PerProcess::new(End::default);

#[derive(Default)]
struct End {
    /// Hooks by (priority, number): run from the end.
    hooks: Mutex<BTreeMap<(i32, u64), Hook>>,
    hooks_made: Mutex<u64>,
    threads: Mutex<Threads>,
    thread_ended: Condvar,
    /// Every executor that has been used and is still alive.
    executors: Mutex<Vec<Weak<dyn Accepts>>>,
    begun: AtomicBool,
    /// Step 6 has been taken.
    over: AtomicBool,
}

#[derive(Default)]
struct Threads {
    running: Vec<Registered>,
    made: u64,
}

/// A thread that is waited for.
struct Registered {
    number: u64,
    /// Once it runs: its number, and the system's.
    thread: Option<(u32, u32)>,
    watch: Watch,
}

/// Something that accepts work, and must not lose it when the program ends.
pub(crate) trait Accepts: Send + Sync {
    /// Waits until what was accepted up to now is done, callbacks included, or does with it what was asked for instead. Limits
    /// count from `since`.
    fn settle(&self, since: Instant);
    /// Accepts nothing more; does not wait.
    fn close(&self);
    /// After `close`: waits until everything is done.
    fn join(&self, since: Instant);
}

/// Has the end of the program finish what is accepted.
pub(crate) fn finish_at_the_end(executor: Weak<dyn Accepts>) {
    extern "C" fn at_late_end() {
        let _ = catch(end_executors);
    }
    let end = END.get();
    {
        let mut executors = lock(&end.executors);
        if executors.len() == executors.capacity() {
            // Before it grows.
            executors.retain(|other| other.strong_count() > 0);
        }
        executors.push(executor);
    }
    match end.over.load(Ordering::SeqCst) {
        false => watch_the_end(),
        // An exit handler of somebody else uses it. One that is registered by a handler is called, too.
        true => fork::at_end(at_late_end),
    }
}

extern "C" fn at_end() {
    let origin = Origin::here();
    // A panic must not cross the system's own code.
    let _ = catch(finish);
    // A hook has copied this process, and has returned in the copy.
    origin.end_copy(0);
}

/// What the table of processes does at the end: it is told by the table, which is above this module.
static END_CHILDREN: OnceLock<fn()> = OnceLock::new();

/// From now on this process has children, which are ended with it by this function.
pub(crate) fn end_children_by(end_children: fn()) {
    let _ = END_CHILDREN.set(end_children);
    watch_the_end();
}

/// Makes the end of the program known.
fn watch_the_end() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| fork::at_end(at_end));
}

/// All that is to happen when this process ends by itself; once.
pub(crate) fn finish() {
    if END.get().begun.swap(true, Ordering::SeqCst) {
        return;
    }
    wait_for_threads();
    let since = Instant::now();
    each_executor(|executor| executor.settle(since));
    run_hooks(0);
    if let Some(end_children) = END_CHILDREN.get() {
        end_children();
    }
    run_hooks(i32::MIN);
    end_executors();
}

/// Whether this process ends by itself.
pub(crate) fn has_begun() -> bool {
    END.get().begun.load(Ordering::SeqCst)
}

fn each_executor(mut act: impl FnMut(&dyn Accepts)) {
    // A copy of the list: callbacks may make executors. It only grows where that is so.
    let living: Vec<_> = lock(&END.get().executors).iter().filter_map(Weak::upgrade).collect();
    for executor in living {
        let _ = catch(|| act(&*executor));
    }
}

fn end_executors() {
    let end = END.get();
    // From here on, an executor that is used for the first time sees to it that this is called again.
    end.over.store(true, Ordering::SeqCst);
    // First all, so that none of them hands its work to one that goes on.
    each_executor(|executor| executor.close());
    let since = Instant::now();
    each_executor(|executor| executor.join(since));
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
/// program's [processes](crate::Process) have ended. All of them are called after executors have finished what they had
/// accepted before the end began, callbacks included; they may use executors and everything else of this library, and what they
/// submit is finished, too. Only an executor that was used before, with another [`OnDrop`](crate::OnDrop) than `Finish`, has been
/// shut down by then. Each hook is called once. A panic of one is swallowed (and logged, with `tracing`); the others are called all
/// the same. A hook that registers another one has it called as well.
///
/// ```
/// let hook = executor::at_exit(10, || { /* remove a file */ });
/// hook.call(); // now, and not again at the end
/// executor::at_exit(0, || println!("bye"));
/// ```
pub fn at_exit(priority: i32, hook: impl FnOnce() + Send + 'static) -> ExitHook {
    watch_the_end();
    let end = END.get();
    let number = {
        let mut made = lock(&end.hooks_made);
        *made += 1;
        *made
    };
    lock(&end.hooks).insert((priority, number), Box::new(hook));
    ExitHook { key: (priority, number) }
}

impl ExitHook {
    /// Calls it now, unless it was called or cancelled; whether it was called by this.
    pub fn call(&self) -> bool {
        let hook = lock(&END.get().hooks).remove(&self.key);
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
        lock(&END.get().hooks).remove(&self.key).is_some()
    }

    /// Whether it is still to be called.
    pub fn is_pending(&self) -> bool {
        lock(&END.get().hooks).contains_key(&self.key)
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
            let mut hooks = lock(&END.get().hooks);
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
/// If such a thread calls [`std::process::exit`] while the program is ending already, std holds it for ever, in `pause`. So the
/// end of the process does not wait for a thread that it finds in `pause`, whoever has called that: wait for signals with
/// `sigwait` instead. Where the system does not tell in which call a thread waits (there is no `/proc`, say), the end does not
/// wait any more for a thread that has used no processor time for ten seconds.
///
/// # Panics
/// If the system refuses a thread, as std's.
pub fn spawn_thread<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    watch_the_end();
    let end = END.get();
    let number = {
        let mut threads = lock(&end.threads);
        threads.made += 1;
        let number = threads.made;
        threads.running.push(Registered { number, thread: None, watch: Watch::default() });
        number
    };
    let leaves = Leaves { number, origin: Origin::here() };
    thread::spawn(move || {
        let _leaves = leaves;
        if let Some(own) = lock(&end.threads).running.iter_mut().find(|other| other.number == number) {
            own.thread = Some((local::this_thread(), process::this_thread()));
        }
        body()
    })
}

struct Leaves {
    number: u64,
    origin: Origin,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        if self.origin.forked() {
            // A copy that the thread has made of its process. Nothing there waits for it.
            return;
        }
        let end = END.get();
        lock(&end.threads).running.retain(|other| other.number != self.number);
        end.thread_ended.notify_all();
    }
}

fn wait_for_threads() {
    // Where such a thread itself ends the process, it cannot be waited for.
    let own = local::this_thread();
    let end = END.get();
    let mut threads = lock(&end.threads);
    while threads.running.iter().any(|one| one.thread.is_none_or(|(number, _)| number != own)) {
        let waited = end.thread_ended.wait_timeout(threads, LOOK);
        threads = waited.unwrap_or_else(PoisonError::into_inner).0;
        threads.running.retain_mut(|one| {
            let held = one.thread.is_some_and(|(number, thread)| number != own && one.watch.is_held(thread));
            if held {
                tracing::warn!(
                    "a thread waits for nothing but a signal while the program ends, and is left there"
                );
            }
            !held
        });
    }
}
