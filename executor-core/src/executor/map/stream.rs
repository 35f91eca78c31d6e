//! A map as a stream, for async code.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use futures::Stream;

use super::{Map, MapTask};
use crate::{error::TaskError, future::timer::Timer, pool::pressure::Admission, task::TaskArgs};

/// A stream of results, made by [`Map::stream`].
#[must_use = "streams do nothing unless polled"]
pub struct MapStream<F: TaskArgs<A>, A, I, M> {
    pub(super) map: Map<F, A, I, M>,
    timer: Option<Timer>,
    /// The stream's place in the line of those who wait for room.
    admission: Option<Admission>,
}

impl<F: TaskArgs<A>, A, I, M> MapStream<F, A, I, M> {
    pub(super) fn new(map: Map<F, A, I, M>) -> Self {
        MapStream { map, timer: None, admission: None }
    }
}

impl<F: TaskArgs<A>, A, I, M> fmt::Debug for MapStream<F, A, I, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MapStream").field(&self.map).finish()
    }
}

// No field is ever pinned.
impl<F: TaskArgs<A>, A, I, M> Unpin for MapStream<F, A, I, M> {}

impl<F, A, I, M, T> Stream for MapStream<F, A, I, M>
where
    F: TaskArgs<A>,
    I: Iterator,
    M: FnMut(I::Item) -> T,
    T: MapTask<Function = F, Arguments = A>,
{
    type Item = Result<F::Output, TaskError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let MapStream { map, timer, admission } = self.get_mut();
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
                *admission = None;
                return Poll::Ready(map.time_out());
            }
            let is_ready = match admission {
                // Nothing is pending, so no result will come that makes room.
                Some(waits) => match waits.poll(cx.waker()) {
                    Poll::Ready(place) => {
                        map.places = Some(place);
                        *admission = None;
                        true
                    }
                    Poll::Pending => false,
                },
                None => {
                    map.fill();
                    if let Some(next) = map.next_ready() {
                        return Poll::Ready(Some(next));
                    }
                    if map.pending() == 0 {
                        if !map.lacks_room {
                            map.end();
                            return Poll::Ready(None);
                        }
                        *admission = map.executor.pressure().map(Admission::new);
                        true
                    } else {
                        let results = map.results.clone().expect("made above");
                        results.poll(&mut map.ready, cx.waker())
                    }
                }
            };
            if is_ready {
                continue;
            }
            if let Some(deadline) = map.deadline
                && timer.get_or_insert_with(|| Timer::new(deadline)).poll(cx.waker()).is_ready()
            {
                *admission = None;
                return Poll::Ready(map.time_out());
            }
            return Poll::Pending;
        }
    }
}
