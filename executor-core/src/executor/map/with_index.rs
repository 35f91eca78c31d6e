//! A map that yields each result with the index of its item, as an iterator and as a stream.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use futures::Stream;

use super::{Map, MapStream, MapTask};
use crate::{error::TaskError, task::TaskArgs};

/// An iterator over indexes and results, made by [`Map::with_index`].
#[must_use = "a map does nothing until it is iterated"]
pub struct MapWithIndex<F: TaskArgs<A>, A, I, M> {
    map: Map<F, A, I, M>,
}

impl<F: TaskArgs<A>, A, I, M> fmt::Debug for MapWithIndex<F, A, I, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MapWithIndex").field(&self.map).finish()
    }
}

impl<F: TaskArgs<A>, A, I, M> MapWithIndex<F, A, I, M> {
    pub(super) fn new(map: Map<F, A, I, M>) -> Self {
        MapWithIndex { map }
    }

    /// Turns the iterator into a [`Stream`], for async code.
    pub fn stream(self) -> MapStreamWithIndex<F, A, I, M> {
        MapStreamWithIndex { stream: self.map.stream() }
    }
}

impl<F, A, I, M, T> Iterator for MapWithIndex<F, A, I, M>
where
    F: TaskArgs<A>,
    I: Iterator,
    M: FnMut(I::Item) -> T,
    T: MapTask<Function = F, Arguments = A>,
{
    type Item = (usize, Result<F::Output, TaskError>);

    fn next(&mut self) -> Option<Self::Item> {
        let result = self.map.next()?;
        Some((self.map.number as usize, result))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.map.size_hint()
    }
}

/// A stream of indexes and results, made by [`MapWithIndex::stream`].
#[must_use = "streams do nothing unless polled"]
pub struct MapStreamWithIndex<F: TaskArgs<A>, A, I, M> {
    stream: MapStream<F, A, I, M>,
}

impl<F: TaskArgs<A>, A, I, M> fmt::Debug for MapStreamWithIndex<F, A, I, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MapStreamWithIndex").field(&self.stream.map).finish()
    }
}

impl<F, A, I, M, T> Stream for MapStreamWithIndex<F, A, I, M>
where
    F: TaskArgs<A>,
    I: Iterator,
    M: FnMut(I::Item) -> T,
    T: MapTask<Function = F, Arguments = A>,
{
    type Item = (usize, Result<F::Output, TaskError>);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut self.stream).poll_next(cx);
        next.map(|next| next.map(|result| (self.stream.map.number as usize, result)))
    }
}
