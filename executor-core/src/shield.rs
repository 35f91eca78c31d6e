//! Futures of other crates, which clone and drop the waker they are given under locks of their own.
//!
//! A waker is its user's code in all three: a task's may own other futures of the same object, and to drop it then takes the
//! same lock again. So those futures get a waker of ours, and the user's is cloned, dropped and woken under no lock.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Wake, Waker},
};

/// Awaits a future that must not see the user's waker.
pub(crate) async fn shielded<F: Future>(future: F) -> F::Output {
    // Dropped last: by then there is no waker of the user's behind ours any more.
    let mut future = pin!(future);
    let shield = Held(Arc::default());
    let ours = Waker::from(Arc::clone(&shield.0));
    poll_fn(|context| {
        shield.0.put(context.waker());
        future.as_mut().poll(&mut Context::from_waker(&ours))
    })
    .await
}

/// Lets others run first.
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
            let old = self.replace(Some(waker.clone()));
            drop(old);
        }
    }
}

impl Wake for Shield {
    fn wake(self: Arc<Self>) {
        // Whoever polls next leaves it again.
        if let Some(waker) = self.replace(None) {
            waker.wake();
        }
    }
}

/// Gives the user's waker back when the future is over or dropped, though the other crate may keep ours.
struct Held(Arc<Shield>);

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.replace(None));
    }
}
