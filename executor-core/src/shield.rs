//! Protects the wakers of users from futures of other crates.
//!
//! Such a future clones, drops and wakes the waker that it is given, and it may do so while it
//! holds a lock of its own. All three operations run the user's code. For example, the waker of a
//! task may own other futures of the same object. To drop that waker takes the same lock again,
//! which deadlocks. So these futures get a waker of ours instead. The user's waker is cloned,
//! dropped and woken while no lock is held.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Wake, Waker},
};

/// Awaits a future without showing it the user's waker.
pub(crate) async fn shielded<F: Future>(future: F) -> F::Output {
    // Locals are dropped in reverse order, so the future is dropped last. By then `shield` has been
    // dropped, and our waker holds no waker of the user.
    let mut future = pin!(future);
    let shield = Held(Arc::default());
    let ours = Waker::from(Arc::clone(&shield.0));
    poll_fn(|context| {
        shield.0.put(context.waker());
        future.as_mut().poll(&mut Context::from_waker(&ours))
    })
    .await
}

/// Yields once, so that other tasks run first.
pub(crate) async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await
}

/// The user's waker behind ours. It is `None` while nobody waits, and after [`Held`] was dropped.
#[derive(Default)]
struct Shield(Mutex<Option<Waker>>);

impl Shield {
    fn replace(&self, new: Option<Waker>) -> Option<Waker> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), new)
    }

    fn put(&self, waker: &Waker) {
        let known = {
            let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            held.as_ref().is_some_and(|held| held.will_wake(waker))
        };
        if !known {
            // The clone and the drop are the user's code, so both run while the lock is free.
            let old = self.replace(Some(waker.clone()));
            drop(old);
        }
    }
}

impl Wake for Shield {
    fn wake(self: Arc<Self>) {
        // The next poll stores a waker again, so this one can be taken out.
        if let Some(waker) = self.replace(None) {
            waker.wake();
        }
    }
}

/// Drops the user's waker when the future is over or dropped. The other crate may keep our waker
/// for longer.
struct Held(Arc<Shield>);

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.replace(None));
    }
}
