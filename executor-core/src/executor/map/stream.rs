//! A map as a stream, for async code.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use futures::Stream;

use super::Map;
use crate::{
    error::TaskError,
    future::timer::Timer,
    task::{Task, TaskArgs},
};

/// A stream of results, made by [`Map::stream`].
#[must_use = "streams do nothing unless polled"]
pub struct MapStream<F: TaskArgs<A>, A, I, M> {
    pub(super) map: Map<F, A, I, M>,
    timer: Option<Timer>,
}

impl<F: TaskArgs<A>, A, I, M> MapStream<F, A, I, M> {
    pub(super) fn new(map: Map<F, A, I, M>) -> Self {
        MapStream { map, timer: None }
    }
}

impl<F: TaskArgs<A>, A, I, M> fmt::Debug for MapStream<F, A, I, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MapStream").field(&self.map).finish()
    }
}

// No field is ever pinned.
impl<F: TaskArgs<A>, A, I, M> Unpin for MapStream<F, A, I, M> {}

impl<F, A, I, M> Stream for MapStream<F, A, I, M>
where
    F: TaskArgs<A>,
    I: Iterator,
    M: FnMut(I::Item) -> Task<F, A>,
{
    type Item = Result<F::Output, TaskError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let MapStream { map, timer } = self.get_mut();
        if map.over {
            return Poll::Ready(None);
        }
        if map.results.is_none()
            && let Err(error) = map.start()
        {
            return Poll::Ready(map.fail(error));
        }
        loop {
            if map.is_late() {
                return Poll::Ready(map.time_out());
            }
            map.fill();
            if let Some(next) = map.next_ready() {
                return Poll::Ready(Some(next));
            }
            if map.pending() == 0 {
                map.end();
                return Poll::Ready(None);
            }
            let results = map.results.clone().expect("made above");
            if results.poll(&mut map.ready, cx.waker()) {
                continue;
            }
            if let Some(deadline) = map.deadline
                && timer.get_or_insert_with(|| Timer::new(deadline)).poll(cx.waker()).is_ready()
            {
                return Poll::Ready(map.time_out());
            }
            return Poll::Pending;
        }
    }
}
