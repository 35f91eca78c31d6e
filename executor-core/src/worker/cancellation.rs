//! Tells a task that it is asked to stop.
//!
//! ```text
//!  pool: cancel_running, a time limit, shutdown ─► Board::ask(sending) ── futex ─┐
//!                                                                                ▼
//!  task: is_cancelled() ◄── the word is this call's sending         listener thread, started by
//!        cancelled().await ◄──────────── WAITERS ◄── wakes all ──── the first `cancelled()`
//! ```
//!
//! A call has a number that no other call of this process has, and the sending's number by which
//! the pool names it. The pool asks only a sending that has begun. So a word that comes when the
//! task has ended already is not taken for the next task.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use crate::{
    os::{fork::Creator, signals, std_or_model::lock},
    transport::board::Board,
    unwind::catch,
};

/// The number of the present call. It is odd while a call runs, and even between two calls.
static CALL: AtomicU64 = AtomicU64::new(0);
/// The number of the present call's sending.
static SENDING: AtomicU32 = AtomicU32::new(0);
/// The board of this worker, and the process that it belongs to.
static BOARD: OnceLock<(&'static Board, Creator)> = OnceLock::new();
static WAITERS: Mutex<Waiters> = Mutex::new(Waiters { list: Vec::new(), next: 0 });
/// The number of waiters, so that a call that ends need not take the lock.
static WAITING: AtomicU32 = AtomicU32::new(0);
/// Whether the listener's thread was started.
static LISTENS: Mutex<bool> = Mutex::new(false);

/// How often a thread that waits looks whether its task has ended. Nobody wakes it for that. With
/// a lower value it wakes more often for nothing. With a higher value, threads that a task left
/// behind end later.
const LOOK: Duration = Duration::from_millis(100);

/// Stack of the listener's thread, which calls wakers.
const STACK_BYTES: usize = 256 * 1024;

struct Waiters {
    list: Vec<(u64, Waker)>,
    next: u64,
}

/// Makes this process a worker whose tasks can be asked to stop.
pub(super) fn install(board: &'static Board) {
    let _ = BOARD.set((board, Creator::here()));
}

/// Records that the calls of this sending come next.
#[inline]
pub(super) fn sending(seq: u32) {
    SENDING.store(seq, Ordering::Relaxed);
}

/// Records that a call begins.
#[inline]
pub(super) fn begin() {
    // Only the thread that runs tasks writes it. `Release`, so that another thread that sees the
    // call's number sees its sending as well.
    CALL.store(CALL.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
}

/// Records that the call has ended.
#[inline]
pub(super) fn end() {
    CALL.store(CALL.load(Ordering::Relaxed).wrapping_add(1), Ordering::SeqCst);
    if WAITING.load(Ordering::SeqCst) != 0 {
        // They may be threads that the task has left behind.
        wake_all();
    }
}

/// Wakes all waiters. Each looks for itself whether it was meant.
#[cold]
fn wake_all() {
    let mut waiters = lock(&WAITERS);
    let list = std::mem::take(&mut waiters.list);
    WAITING.store(0, Ordering::SeqCst);
    drop(waiters);
    for (_, waker) in list {
        // A waker is code of a runtime or a user. Its panic concerns nobody else.
        let _ = catch(|| waker.wake());
    }
}

/// Returns whether the task that this worker is running was asked to stop.
///
/// A task is asked by [`cancel_running`](crate::TaskFuture::cancel_running), when its [time
/// limit](crate::Task::timeout) passes, and by a [shutdown](crate::ShutdownOptions) with a
/// deadline, if the executor gives tasks time to react:
/// [`cancel_grace`](crate::ProcessPoolBuilder::cancel_grace). If the task returns within this time,
/// its worker is kept, and goes on with other tasks. Otherwise the worker is ended.
///
/// A cancelled task ends as [`Cancelled`](crate::TaskError::Cancelled), and one whose time limit
/// has passed as [`TimedOut`](crate::TaskError::TimedOut), whatever it still returns. At a
/// shutdown, the value that a task returns in time is its result.
///
/// It may be called as often as one likes: it reads one word of memory. It can be called from any
/// thread, and means the task that the worker is running at that moment. A thread that may outlive
/// its task uses [`cancellation`]. Outside a task of an executor, as in a
/// [`Process`](crate::Process), in initializers and finalizers, it returns `false`.
///
/// ```
/// use executor::prelude::*;
/// use std::time::Duration;
///
/// #[task]
/// fn sum_up(numbers: u64) -> u64 {
///     (0..numbers).take_while(|_| !executor::is_cancelled()).sum()
/// }
///
/// #[executor::main]
/// fn main() {
///     let builder = ProcessPoolExecutor::builder().max_workers(1);
///     let pool = builder.cancel_grace(Duration::from_secs(30)).build().unwrap();
///     let worker = {
///         pool.submit(sum_up::task(1)).result().unwrap();
///         pool.worker_pids()
///     };
///     let endless = pool.submit(sum_up::task(u64::MAX).timeout(Duration::from_millis(20)));
///     assert!(endless.result().unwrap_err().is_timeout());
///     assert_eq!(pool.worker_pids(), worker, "the worker was kept");
/// }
/// ```
#[inline]
pub fn is_cancelled() -> bool {
    cancellation().is_cancelled()
}

/// Waits until the task that this worker is running is asked to stop: see [`is_cancelled`]. For
/// async tasks.
///
/// Outside a task of an executor it waits for ever.
///
/// # Panics
/// If the system refuses a thread. The first call in a worker starts one, which waits for all.
///
/// # Cancel safety
/// The future may be dropped at any time.
///
/// ```
/// use executor::prelude::*;
/// use futures::future::{pending, select};
/// use std::{pin::pin, time::Duration};
///
/// #[task]
/// async fn serve_for_ever() {
///     let served = pending::<()>();
///     select(pin!(served), pin!(executor::cancelled())).await;
/// }
///
/// #[executor::main]
/// fn main() {
///     let builder = ProcessPoolExecutor::builder().max_workers(1);
///     let pool = builder.cancel_grace(Duration::from_secs(30)).build().unwrap();
///     let future = pool.submit(serve_for_ever::task());
///     assert!(future.cancel_running());
///     assert!(future.result().unwrap_err().is_cancelled());
/// }
/// ```
pub async fn cancelled() {
    cancellation().cancelled().await;
}

/// Returns a token of the task that this worker is running, for threads that the task starts.
///
/// ```
/// use executor::prelude::*;
/// use std::{thread, time::Duration};
///
/// #[task]
/// fn search(parts: u64) {
///     let token = executor::cancellation();
///     let search = |part: u64| while !token.is_cancelled() { std::hint::black_box(part); };
///     thread::scope(|scope| (0..parts).for_each(|part| drop(scope.spawn(move || search(part)))));
/// }
///
/// #[executor::main]
/// fn main() {
///     let builder = ProcessPoolExecutor::builder().max_workers(1);
///     let pool = builder.cancel_grace(Duration::from_secs(30)).build().unwrap();
///     let future = pool.submit(search::task(2));
///     assert!(future.cancel_running());
///     assert!(future.result().unwrap_err().is_cancelled());
/// }
/// ```
pub fn cancellation() -> Cancellation {
    let call = CALL.load(Ordering::Acquire);
    let sending = SENDING.load(Ordering::Relaxed);
    // In a copy of this process that a task has made, the task does not run.
    let is_here = || BOARD.get().is_some_and(|(_, creator)| !creator.is_elsewhere());
    Cancellation { call: if call % 2 == 1 && is_here() { call } else { 0 }, sending }
}

/// Tells whether a task was asked to stop: see [`cancellation`]. A token belongs to one task. It
/// stays cancelled when the task has ended, so that threads that the task has left behind stop,
/// too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancellation {
    /// The number of the call, or 0 for none.
    call: u64,
    sending: u32,
}

impl Cancellation {
    /// Returns whether the task was asked to stop, or has ended. It is `false` for a token that was
    /// made outside a task.
    #[inline]
    pub fn is_cancelled(&self) -> bool {
        if self.call == 0 {
            return false;
        }
        if CALL.load(Ordering::Acquire) != self.call {
            return true;
        }
        BOARD.get().is_some_and(|(board, _)| self.is_meant(board.asked()))
    }

    /// Returns whether this is the sending that is asked to stop. 0 means that none is, also for
    /// the sending that has this number because the numbers have wrapped.
    #[inline]
    fn is_meant(&self, asked: u32) -> bool {
        asked != 0 && asked == self.sending
    }

    /// Sleeps for this time, or until the task is asked to stop. Returns whether it was. So it is a
    /// `sleep` that ends early.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// # use std::time::Duration;
    /// #[task]
    /// fn every_hour() {
    ///     let token = executor::cancellation();
    ///     while !token.wait_timeout(Duration::from_secs(3600)) { /* look for news */ }
    /// }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let builder = ProcessPoolExecutor::builder().max_workers(1);
    ///     let pool = builder.cancel_grace(Duration::from_secs(30)).build().unwrap();
    ///     let future = pool.submit(every_hour::task());
    ///     assert!(future.cancel_running());
    ///     assert!(future.result().unwrap_err().is_cancelled());
    /// }
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let seen = BOARD.get().map(|(board, _)| (board, board.asked()));
            if self.is_cancelled() {
                return true;
            }
            let left = deadline.map_or(LOOK, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            match seen {
                Some((board, seen)) if self.call != 0 => {
                    board.wait_for_ask(seen, Some(left.min(LOOK)))
                }
                // Nobody can ask.
                _ => thread::sleep(left),
            }
        }
    }

    /// Waits until the task is asked to stop, or has ended. For a token that was made outside a
    /// task, it waits for ever.
    ///
    /// # Panics
    /// If the system refuses a thread: see [`cancelled`].
    ///
    /// # Cancel safety
    /// The future may be dropped at any time.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        Cancelled { token: *self, waits_as: None }
    }
}

/// The future of [`Cancellation::cancelled`].
struct Cancelled {
    token: Cancellation,
    /// The number among the waiters.
    waits_as: Option<u64>,
}

impl Future for Cancelled {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.token.is_cancelled() {
            return Poll::Ready(());
        }
        if self.token.call == 0 {
            return Poll::Pending;
        }
        let waker = context.waker().clone();
        let mut waiters = lock(&WAITERS);
        let old = match waiters.list.iter_mut().find(|(number, _)| Some(*number) == self.waits_as) {
            Some((_, old)) => Some(std::mem::replace(old, waker)),
            None => {
                let number = waiters.next;
                waiters.next += 1;
                waiters.list.push((number, waker));
                WAITING.store(waiters.list.len() as u32, Ordering::SeqCst);
                self.waits_as = Some(number);
                None
            }
        };
        drop(waiters);
        // A waker is dropped without the lock, because that may be code of a user.
        drop(old);
        if let Err(error) = listen() {
            panic!("`cancelled` needs a thread, which the system refused: {error}");
        }
        // It may have been asked, or have ended, before the waker was there.
        match self.token.is_cancelled() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Drop for Cancelled {
    fn drop(&mut self) {
        let Some(waits_as) = self.waits_as else { return };
        let mut waiters = lock(&WAITERS);
        let at = waiters.list.iter().position(|(number, _)| *number == waits_as);
        let waiter = at.map(|at| waiters.list.swap_remove(at));
        WAITING.store(waiters.list.len() as u32, Ordering::SeqCst);
        drop(waiters);
        drop(waiter);
    }
}

/// Starts the thread that wakes waiters, if there is none.
fn listen() -> io::Result<()> {
    let Some((board, creator)) = BOARD.get() else { return Ok(()) };
    let mut listens = lock(&LISTENS);
    // A copy of this process has no such thread, and nobody asks it to stop.
    if *listens || creator.is_elsewhere() {
        return Ok(());
    }
    // All signals are blocked in this thread, as in the watcher's: a task may wait for one.
    signals::deaf(|| {
        thread::Builder::new().name("executor-asked".into()).stack_size(STACK_BYTES).spawn(|| {
            loop {
                let seen = board.asked();
                if seen != 0 && WAITING.load(Ordering::SeqCst) != 0 {
                    wake_all();
                }
                board.wait_for_ask(seen, None);
            }
        })
    })?;
    *listens = true;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sending_is_asked_by_its_number_and_never_by_0() {
        let of = |sending| Cancellation { call: 1, sending };
        assert!(of(7).is_meant(7) && of(u32::MAX).is_meant(u32::MAX));
        assert!(!of(7).is_meant(0) && !of(7).is_meant(6));
        assert!(!of(0).is_meant(0), "the numbers have wrapped, and nobody is asked");
    }
}
