//! The work done when a program ends by itself.
//!
//! ```text
//!  main returns, process::exit ─► atexit ─► finish, once:
//!     1  waits for registered threads                            spawn_thread
//!     2  executors finish what they have accepted so far         list of living executors
//!     3  calls hooks of priority 0 and above, highest first      at_exit
//!     4  terminates daemons, waits for other children            table of processes
//!     5  calls hooks below 0
//!     6  shuts executors down: they accept nothing more, and finish what came meanwhile
//!  a signal, abort, _exit ─► none of these steps; children watch their parent
//! ```
//!
//! A dropped executor waits for its work itself, where it may. The steps here are for other
//! executors: those dropped where waiting would block others (in a tokio runtime, in a task), and
//! those that are never dropped (in a static, forgotten, or in the frame of a `main` that has
//! called `exit`). Hooks come after step 2, since they may remove what tasks and callbacks need.
//! Executors still work until step 6, since hooks may need them. Executors that are to cancel or
//! kill unfinished work ([`OnDrop`](crate::OnDrop)) do so in step 2, and accept nothing more.

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
        fork::{self, Creator, PerProcess},
        local, process,
        std_or_model::lock,
    },
    unwind::catch,
};

type Hook = Box<dyn FnOnce() + Send>;

/// How often to check a thread that is waited for. std may block it forever because it has called
/// `exit` as well.
const LOOK: Duration = Duration::from_millis(100);

/// A thread that has used no processor time for this long is assumed to be blocked by std, on
/// systems that do not tell where a thread waits. A lower value leaves behind threads that wait for
/// a slow disk or network. A higher value delays the exit by that much for each blocked thread.
const HELD_GRACE: Duration = Duration::from_secs(10);

/// Detects a thread that std blocks forever, because it has called `exit` while the program was
/// ending.
#[derive(Default)]
pub(crate) struct Watch {
    /// The processor time it had used, and since when that has not increased.
    idle: Option<(Duration, Instant)>,
}

impl Watch {
    /// Returns whether the thread is blocked. Called repeatedly while the program ends.
    pub(crate) fn is_held(&mut self, thread: u32) -> bool {
        process::is_paused(thread).unwrap_or_else(|| {
            let (now, computed) =
                (Instant::now(), process::computed_by(thread).unwrap_or_default());
            let since = match self.idle {
                Some((before, since)) if before == computed => since,
                _ => self.idle.insert((computed, now)).1,
            };
            now.saturating_duration_since(since) >= HELD_GRACE
        })
    }
}

/// A forked child has its own, so that nothing of its parent's is done twice.
static END: PerProcess<End> = PerProcess::new(End::default);

#[derive(Default)]
struct End {
    /// Hooks by (priority, number), run from the end.
    hooks: Mutex<BTreeMap<(i32, u64), Hook>>,
    hooks_made: Mutex<u64>,
    threads: Mutex<Threads>,
    thread_ended: Condvar,
    /// Every executor that has been used and is still alive.
    executors: Mutex<Vec<Weak<dyn Accepts>>>,
    begun: AtomicBool,
    /// Whether step 6 has begun.
    over: AtomicBool,
}

#[derive(Default)]
struct Threads {
    running: Vec<Registered>,
    made: u64,
}

/// A thread to wait for.
struct Registered {
    number: u64,
    /// Its thread-local number and its system thread id, once it runs.
    thread: Option<(u32, u32)>,
    watch: Watch,
}

/// An object that accepts work and must not lose it when the program ends.
pub(crate) trait Accepts: Send + Sync {
    /// Waits until the work accepted so far is done, including callbacks, or does what the user
    /// chose instead. Time limits count from `since`.
    fn settle(&self, since: Instant);
    /// Stops accepting work. Does not wait.
    fn close(&self);
    /// Waits until everything is done. Called after `close`.
    fn join(&self, since: Instant);
}

/// Registers an executor, so that the end of the program finishes its accepted work.
pub(crate) fn finish_at_the_end(executor: Weak<dyn Accepts>) {
    extern "C" fn at_late_end() {
        let _ = catch(end_executors);
    }
    let end = END.get();
    {
        let mut executors = lock(&end.executors);
        if executors.len() == executors.capacity() {
            // Remove dead entries before the list would grow.
            executors.retain(|other| other.strong_count() > 0);
        }
        executors.push(executor);
    }
    match end.over.load(Ordering::SeqCst) {
        false => watch_the_end(),
        // The executor is used by another exit handler. A handler that is registered by a handler
        // is called too.
        true => fork::at_end(at_late_end),
    }
}

extern "C" fn at_end() {
    let creator = Creator::here();
    // A panic must not unwind into the system's code.
    let _ = catch(finish);
    // A hook may have forked this process and returned in the child.
    creator.end_copy(0);
}

/// What the table of processes does at the end. The table registers it, because it is a layer above
/// this module.
static END_CHILDREN: OnceLock<fn()> = OnceLock::new();

/// Registers the function that ends this process's children at exit. From now on this process has
/// children.
pub(crate) fn end_children_by(end_children: fn()) {
    let _ = END_CHILDREN.set(end_children);
    watch_the_end();
}

/// Registers the exit handler.
fn watch_the_end() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| fork::at_end(at_end));
}

/// Does all exit work of this process, once.
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

/// Returns whether the exit work of this process has begun.
pub(crate) fn has_begun() -> bool {
    END.get().begun.load(Ordering::SeqCst)
}

fn each_executor(mut act: impl FnMut(&dyn Accepts)) {
    // Copy the list, because callbacks may create executors. It only grows if they do.
    let living: Vec<_> = lock(&END.get().executors).iter().filter_map(Weak::upgrade).collect();
    for executor in living {
        let _ = catch(|| act(&*executor));
    }
}

fn end_executors() {
    let end = END.get();
    // From here on, an executor that is used for the first time registers a further handler.
    end.over.store(true, Ordering::SeqCst);
    // Close all of them first, so that none hands work to one that is still open.
    each_executor(|executor| executor.close());
    let since = Instant::now();
    each_executor(|executor| executor.join(since));
}

/// A function to be called when this process ends by itself. See [`at_exit`].
#[derive(Clone)]
pub struct ExitHook {
    key: (i32, u64),
}

/// Calls `hook` when this process ends by itself: when `main` returns, in [`std::process::exit`],
/// or when the task of a [`Process`](crate::Process) or the last task of a worker is done. It is
/// not called after a signal or an abort.
///
/// Hooks with a higher priority are called first; among equal priorities, the hook registered last
/// is called first. Hooks with a priority below 0 are called after the program's
/// [processes](crate::Process) have ended. All hooks are called after executors have finished the
/// work that they had accepted before the end began, including callbacks. Hooks may use executors
/// and everything else of this library, and the work that they submit is finished too. The only
/// exception is an executor that was used before and whose [`OnDrop`](crate::OnDrop) is not
/// `Finish`: it has been shut down by then.
///
/// Each hook is called once. A panic of a hook is caught (and logged, with `tracing`), and the
/// other hooks are still called. A hook that a hook registers is called as well.
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
    /// Calls the hook now, unless it was called or cancelled. Returns whether this call has called
    /// it.
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

    /// Cancels the hook. Returns whether it was still pending.
    pub fn cancel(&self) -> bool {
        lock(&END.get().hooks).remove(&self.key).is_some()
    }

    /// Returns whether the hook is still to be called.
    pub fn is_pending(&self) -> bool {
        lock(&END.get().hooks).contains_key(&self.key)
    }

    /// Returns a guard that calls the hook when it is dropped.
    pub fn on_drop(self) -> ExitGuard {
        ExitGuard(self)
    }
}

impl fmt::Debug for ExitHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (priority, _) = self.key;
        f.debug_struct("ExitHook")
            .field("priority", &priority)
            .field("pending", &self.is_pending())
            .finish()
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
            // Look up the next hook each time, because a hook may register another one.
            let Some(&(priority, number)) =
                hooks.range((least, 0)..).next_back().map(|(key, _)| key)
            else {
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

/// Spawns a thread like [`std::thread::spawn`], but the end of the process waits for it, like a
/// non-daemon thread in Python.
///
/// Threads of std end with their process, wherever they are. Use this function for a thread that
/// must finish its work (writing a file, for example). The end of the program, of a
/// [`Process`](crate::Process)'s body, and of a worker waits for it, also in
/// [`std::process::exit`].
///
/// ```
/// let thread = executor::spawn_thread(|| 6 * 7);
/// assert_eq!(thread.join().unwrap(), 42);
/// ```
///
/// If such a thread calls [`std::process::exit`] while the program is already ending, std blocks it
/// forever, in `pause`. So the end of the process does not wait for a thread that it finds in
/// `pause`, even if the program has called that: use `sigwait` to wait for signals. On systems that
/// do not tell in which call a thread waits (without `/proc`, for example), the end stops waiting
/// for a thread that has used no processor time for ten seconds.
///
/// # Panics
/// If the system refuses to create a thread, like std's.
pub fn spawn_thread<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    watch_the_end();
    let end = END.get();
    // Register the thread before it starts, so that the end of the process waits for it from now
    // on.
    let number = {
        let mut threads = lock(&end.threads);
        threads.made += 1;
        let number = threads.made;
        threads.running.push(Registered { number, thread: None, watch: Watch::default() });
        number
    };
    let leaves = Leaves { number, creator: Creator::here() };
    thread::spawn(move || {
        let _leaves = leaves;
        if let Some(own) =
            lock(&end.threads).running.iter_mut().find(|other| other.number == number)
        {
            own.thread = Some((local::this_thread(), process::this_thread()));
        }
        body()
    })
}

struct Leaves {
    number: u64,
    creator: Creator,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        if self.creator.is_elsewhere() {
            // A forked child, made by this thread. Nothing waits for the thread there.
            return;
        }
        let end = END.get();
        lock(&end.threads).running.retain(|other| other.number != self.number);
        end.thread_ended.notify_all();
    }
}

fn wait_for_threads() {
    // If a registered thread itself ends the process, it cannot be waited for.
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
