//! Waiting for a descriptor, by blocking or by awaiting.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime,
};

use crate::{
    os::{
        fork::{Creator, PerProcess},
        socket,
    },
    shield::{shielded, yield_once},
};

/// The time at which a wait ends. `None` means never.
pub(super) type Deadline = Option<Instant>;

/// Returns the deadline of a timeout that starts now. There is none with a timeout that the clock
/// cannot represent.
pub(super) fn deadline_in(timeout: Option<Duration>) -> Deadline {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

pub(super) fn has_passed(deadline: Deadline) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

/// Returns the time left until a deadline, in the kernel's form.
pub(super) fn left(deadline: Deadline) -> Option<Timespec> {
    let left = deadline?.saturating_duration_since(Instant::now());
    Some(Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ })
}

/// Waits until at least one of several descriptors can be read without blocking, or has reached its
/// end. Returns the indices of all such descriptors, in order.
///
/// Waits at most `timeout`, or for as long as it takes if that is `None`. With a timeout of zero it
/// checks the descriptors without waiting. If the timeout passes, or if `descriptors` is empty, the
/// result is an empty list.
///
/// Anything with a descriptor can be waited for: [`Connection`](crate::Connection)s,
/// [`Receiver`](crate::Receiver)s, [`Listener`](crate::Listener)s, sockets, pipes, the pidfd of a
/// process. Unlike with `select`, there may be more than 1,024 descriptors, as long as the process
/// may open that many.
///
/// ```
/// use std::time::Duration;
///
/// let (one, _peer) = executor::pipe::<(), u32>()?;
/// let (two, other) = executor::pipe::<(), u32>()?;
/// assert!(executor::wait_any(&[&one, &two], Some(Duration::ZERO))?.is_empty());
/// other.send(&7)?;
/// assert_eq!(executor::wait_any(&[&one, &two], None)?, [1]);
/// assert_eq!(two.recv()?, 7);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The system's, if it has no memory for that many descriptors, or if there are more of them than
/// this process may open.
pub fn wait_any(descriptors: &[&dyn AsFd], timeout: Option<Duration>) -> io::Result<Vec<usize>> {
    if descriptors.is_empty() {
        return Ok(Vec::new());
    }
    let deadline = deadline_in(timeout);
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(|one| one.as_fd()).collect();
    let mut polled: Vec<PollFd<'_>> =
        borrowed.iter().map(|one| PollFd::from_borrowed_fd(*one, PollFlags::IN)).collect();
    poll_until(&mut polled, deadline)?;
    Ok(polled
        .iter()
        .enumerate()
        .filter(|(_, one)| !one.revents().is_empty())
        .map(|(at, _)| at)
        .collect())
}

/// Polls until a descriptor is ready or the deadline has passed. Returns the number of ready ones.
pub(super) fn poll_until(polled: &mut [PollFd<'_>], deadline: Deadline) -> io::Result<usize> {
    loop {
        match poll(polled, left(deadline).as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            // The kernel's clock is coarser than ours, and `poll` returned before the deadline.
            Ok(0) if deadline.is_none_or(|deadline| Instant::now() < deadline) => {}
            other => return Ok(other?),
        }
    }
}

/// Waits for one descriptor. Returns `false` if the deadline has passed.
pub(super) fn wait_for(
    descriptor: BorrowedFd<'_>,
    flags: PollFlags,
    deadline: Deadline,
) -> io::Result<bool> {
    Ok(poll_until(&mut [PollFd::from_borrowed_fd(descriptor, flags)], deadline)? > 0)
}

/// The result of one attempt to do something with a descriptor.
///
/// An attempt ends after a bounded number of steps, whatever a peer sends meanwhile. Otherwise a
/// peer that sends endlessly would hold the lock of an end, a caller past its deadline, or a
/// thread of a runtime.
pub(super) enum Attempt<T> {
    Done(T),
    /// Nothing can be done until the descriptor is ready again.
    NotYet,
    /// There is more to do at once. The caller may check its deadline first, or let other tasks
    /// run.
    Again,
}

/// Registers a descriptor with a tokio runtime, and awaits its readiness.
///
/// The descriptor is registered with the runtime of the task that awaits, so that the thread that
/// learns of a message is the one that continues with it. Without such a runtime, a runtime of our
/// own watches the descriptor, and the future can be awaited anywhere.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    registered: Mutex<Option<Registered>>,
}

/// A registration with one runtime.
#[derive(Clone, Debug)]
struct Registered {
    runtime: Option<runtime::Id>,
    /// A duplicate of the descriptor, since a runtime accepts each descriptor number only once.
    descriptor: Arc<AsyncFd<OwnedFd>>,
}

impl Readiness {
    /// Returns the registration with the current runtime. Makes a new one if the last await was on
    /// another runtime.
    fn register(&self, descriptor: &OwnedFd) -> io::Result<Arc<AsyncFd<OwnedFd>>> {
        let here = runtime::Handle::try_current().ok();
        let runtime = here.as_ref().map(runtime::Handle::id);
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = registered.as_ref().filter(|known| known.runtime == runtime) {
            return Ok(Arc::clone(&known.descriptor));
        }
        let own = descriptor.try_clone()?;
        let _context = match &here {
            Some(_) => None,
            None => Some(own_runtime()?.enter()),
        };
        let new = Registered { runtime, descriptor: Arc::new(socket::register(own)?) };
        Ok(Arc::clone(&registered.insert(new).descriptor))
    }

    /// Awaits until `step` has a result. Calls `step` each time the descriptor becomes ready.
    pub(super) async fn until<T, E: From<io::Error>>(
        &self,
        descriptor: &OwnedFd,
        interest: Interest,
        mut step: impl FnMut() -> Result<Attempt<T>, E>,
    ) -> Result<T, E> {
        // Try first: mostly the descriptor is ready, and no runtime is needed.
        loop {
            match step()? {
                Attempt::Done(done) => return Ok(done),
                Attempt::NotYet => break,
                Attempt::Again => yield_once().await,
            }
        }
        let registered = self.register(descriptor)?;
        loop {
            let tried = registered.async_io(interest, |_| match step() {
                Ok(Attempt::NotYet) => Err(io::ErrorKind::WouldBlock.into()),
                Ok(other) => Ok(Ok(other)),
                Err(error) => Ok(Err(error)),
            });
            match shielded(tried).await?? {
                Attempt::Done(done) => return Ok(done),
                // tokio still considers the descriptor ready, since only `WouldBlock` tells it
                // otherwise.
                _ => yield_once().await,
            }
        }
    }
}

/// The runtime for futures that are awaited without tokio: one thread that waits for descriptors
/// and wakes tasks.
fn own_runtime() -> io::Result<&'static runtime::Runtime> {
    // A forked child has a copy of its parent's runtime without the thread, so it makes its own.
    static OWN: PerProcess<OnceLock<runtime::Runtime>> = PerProcess::new(OnceLock::new);
    let place = OWN.get();
    if let Some(own) = place.get() {
        return Ok(own);
    }
    let creator = Creator::here();
    let new = runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("executor-io")
        .enable_io()
        // If a waker forked this process, the child must not continue this thread's loop.
        .on_thread_park(move || creator.end_copy(0))
        .build()?;
    Ok(place.get_or_init(|| new))
}
