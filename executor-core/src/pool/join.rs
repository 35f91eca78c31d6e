//! How a pool is ended by its owner, and how its end is awaited.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, PoisonError},
    task::{Context, Poll, Waker},
    time::Instant,
};

use super::{Pool, Shutdown, core::Core, is_own_thread, worker::Boards};
use crate::{
    child::exit,
    future::{callback, timer::Timer, wait::Signal as Flag},
    shield::shielded,
};

impl Pool {
    pub(crate) fn shutdown(&self, how: Shutdown) {
        if self.forked() {
            return;
        }
        self.event(|core, now, out| {
            let Core { scheduler, workers, .. } = core;
            scheduler.on_shutdown(now, how, &Boards(workers), out);
        });
    }

    /// Ends all workers: with SIGTERM and, after a grace time, SIGKILL, or with SIGKILL at once.
    pub(crate) fn end_workers(&self, at_once: bool) {
        if !self.forked() {
            self.event(|core, now, out| {
                let Core { scheduler, workers, .. } = core;
                scheduler.on_kill(now, at_once, &Boards(workers), out);
            });
        }
    }

    /// Waits until every task is resolved, every worker is reaped, every thread has ended, and
    /// every queued callback has run.
    ///
    /// On one of the pool's own threads it returns at once. Wakers run there, and a waker that
    /// joined the pool would wait for its own thread.
    pub(crate) fn join(&self) {
        if self.forked() || is_own_thread() {
            return;
        }
        self.join_threads();
        self.callbacks.flush();
        self.callbacks.join();
    }

    /// Waits until every worker is reaped and every thread except the callback thread has ended.
    /// Must not be called on one of those threads.
    pub(super) fn join_threads(&self) {
        // Nothing is ever sent on this channel. `recv` returns when it is closed.
        let _ = self.ended.1.recv_blocking();
        // Joined under the lock, so that a second caller also returns only after the thread has
        // ended. The driver no longer waits for anything at this point.
        let mut driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(driver) = driver.take() {
            let _ = driver.join();
        }
    }

    /// Returns whether every worker is reaped and every thread has ended. Always `false` in a fork.
    pub(crate) fn has_ended(&self) -> bool {
        !self.forked() && self.ended.1.is_closed()
    }

    /// Like [`join`](Self::join), at most until `deadline`. Returns whether everything has ended.
    pub(crate) fn join_until(&self, deadline: Instant) -> bool {
        if self.forked() || is_own_thread() {
            return true;
        }
        let flag = Arc::new(Flag::default());
        let waker = Waker::from(Arc::clone(&flag));
        let mut end = pin!(self.ended.1.recv());
        loop {
            flag.clear();
            if end.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                self.join_threads();
                let flushed = self.callbacks.flush_until(Some(deadline));
                if flushed {
                    self.callbacks.join();
                }
                return flushed;
            }
            if !flag.wait(Some(deadline)) {
                return false;
            }
        }
    }

    pub(crate) async fn join_async(&self) {
        if self.forked() {
            return;
        }
        let _ = shielded(self.ended.1.recv()).await;
        if self.callbacks.is_current_thread() {
            return;
        }
        // Callbacks run in order: when this one runs, the earlier ones have run.
        let (last, flushed) = async_channel::bounded::<()>(1);
        self.callbacks.push(Box::new(move || drop(last)));
        if !self.callbacks.is_attended() {
            // The system refused the callback thread, so nothing else would ever run the callbacks.
            self.callbacks.flush();
        }
        let mut flushed = pin!(shielded(flushed.recv()));
        loop {
            // In an exit hook, only this caller can notice that an earlier callback is blocked in
            // `exit`.
            let mut look = exit::has_begun().then(|| Timer::new(Instant::now() + callback::LOOK));
            let looks = poll_fn(|context| match (flushed.as_mut().poll(context), &mut look) {
                (Poll::Ready(_), _) => Poll::Ready(false),
                (Poll::Pending, Some(look)) => look.poll(context.waker()).map(|()| true),
                (Poll::Pending, None) => Poll::Pending,
            });
            if !looks.await {
                return;
            }
            self.callbacks.look_at_the_end();
        }
    }
}
