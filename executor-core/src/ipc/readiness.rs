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
        fork::{Origin, PerProcess},
        socket,
    },
    shield::{shielded, yield_once},
};

/// An end of waiting; `None` is never.
pub(super) type Deadline = Option<Instant>;

/// Further away than the clock can tell is never.
pub(super) fn deadline_in(limit: Option<Duration>) -> Deadline {
    limit.and_then(|limit| Instant::now().checked_add(limit))
}

pub(super) fn has_passed(deadline: Deadline) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

/// What is left until then, for the kernel.
pub(super) fn left(deadline: Deadline) -> Option<Timespec> {
    let left = deadline?.saturating_duration_since(Instant::now());
    Some(Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ })
}

/// Which of these descriptors can be read without waiting, or have come to their end: their places, in order.
///
/// Waits until there is one, at most `limit`; with a limit of zero it only looks, without one it waits for ever. An empty
/// list of descriptors is answered at once, with an empty list.
///
/// Whatever has a descriptor will do: [`Connection`](crate::Connection)s, [`Receiver`](crate::Receiver)s,
/// [`Listener`](crate::Listener)s, sockets, pipes, the pidfd of a process. There may be more than 1,024, which is where
/// `select` gives up, as long as the process may open as many.
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
/// The system's: it has no memory for that many, or they are more than this process may open.
pub fn wait_any(descriptors: &[&dyn AsFd], limit: Option<Duration>) -> io::Result<Vec<usize>> {
    if descriptors.is_empty() {
        return Ok(Vec::new());
    }
    let deadline = deadline_in(limit);
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(|one| one.as_fd()).collect();
    let mut polled: Vec<PollFd<'_>> =
        borrowed.iter().map(|one| PollFd::from_borrowed_fd(*one, PollFlags::IN)).collect();
    poll_until(&mut polled, deadline)?;
    Ok(polled.iter().enumerate().filter(|(_, one)| !one.revents().is_empty()).map(|(at, _)| at).collect())
}

/// How many are ready; none, if the deadline has passed.
pub(super) fn poll_until(polled: &mut [PollFd<'_>], deadline: Deadline) -> io::Result<usize> {
    loop {
        match poll(polled, left(deadline).as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            // A clock that is coarser than ours.
            Ok(0) if deadline.is_none_or(|deadline| Instant::now() < deadline) => {}
            other => return Ok(other?),
        }
    }
}

/// Waits for one descriptor; `false` if the deadline has passed.
pub(super) fn wait_for(descriptor: BorrowedFd<'_>, flags: PollFlags, deadline: Deadline) -> io::Result<bool> {
    Ok(poll_until(&mut [PollFd::from_borrowed_fd(descriptor, flags)], deadline)? > 0)
}

/// What an attempt has come to.
///
/// An attempt ends by itself, whatever a peer sends meanwhile: otherwise who sends without end would hold the lock of an end,
/// a caller past its limit, or a thread of a runtime.
pub(super) enum Attempt<T> {
    Done(T),
    /// Nothing can be done before the descriptor is ready again.
    NotYet,
    /// There is more to do at once; a caller may look at its limit first, or let others run.
    Again,
}

/// A descriptor as tokio knows it.
///
/// It is registered with the runtime of whoever awaits, so that the thread which learns of a message is the one that goes
/// on with it. Where there is none, a runtime of our own looks after it, and the future may be awaited anywhere.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    registered: Mutex<Option<Registered>>,
}

#[derive(Clone, Debug)]
struct Registered {
    runtime: Option<runtime::Id>,
    /// A descriptor of its own: a runtime takes each number once.
    descriptor: Arc<AsyncFd<OwnedFd>>,
}

impl Readiness {
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

    /// Awaits until `step` has a result, trying each time that the descriptor is ready.
    pub(super) async fn until<T, E: From<io::Error>>(
        &self,
        descriptor: &OwnedFd,
        interest: Interest,
        mut step: impl FnMut() -> Result<Attempt<T>, E>,
    ) -> Result<T, E> {
        // Mostly it is ready, and needs no runtime.
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
                // It stays ready for tokio, which is told that it is not by `WouldBlock` alone.
                _ => yield_once().await,
            }
        }
    }
}

/// For those who await without tokio: one thread that waits for descriptors and wakes.
fn own_runtime() -> io::Result<&'static runtime::Runtime> {
    // A fork has a copy of its parent's, and not the thread.
    static OWN: PerProcess<OnceLock<runtime::Runtime>> = PerProcess::new(OnceLock::new);
    let place = OWN.get();
    if let Some(own) = place.get() {
        return Ok(own);
    }
    let origin = Origin::here();
    let new = runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("executor-io")
        .enable_io()
        // A waker has copied this process, and has returned in the copy, where nobody waits.
        .on_thread_park(move || origin.end_copy(0))
        .build()?;
    Ok(place.get_or_init(|| new))
}
