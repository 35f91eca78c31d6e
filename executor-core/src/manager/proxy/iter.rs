//! Iteration over the contents of a container, in pages.

use std::{fmt, iter::FusedIterator, sync::Arc, vec};

use crate::manager::{
    ManagerError,
    client::{Answer, Reference, Request},
    protocol::Operation,
};

/// How many bytes of items an iterator asks for at a time.
const PAGE_BYTES: u64 = 64 * 1024;

/// Iterates over the contents of a [`Dict`](super::dict::Dict), a [`List`](super::list::List) or a
/// [`Set`](super::set::Set), in pages of 64 KiB. Their methods `iter` return it.
///
/// An error is the last item.
pub struct Iter<T> {
    reference: Arc<Reference>,
    /// Where the next page begins. `None` after the last one.
    cursor: Option<u64>,
    page: vec::IntoIter<T>,
    read: fn(&Answer) -> Result<Vec<T>, ManagerError>,
}

impl<T> Iter<T> {
    pub(super) fn new(
        reference: &Arc<Reference>,
        read: fn(&Answer) -> Result<Vec<T>, ManagerError>,
    ) -> Self {
        let reference = Arc::clone(reference);
        Iter { reference, cursor: Some(0), page: Vec::new().into_iter(), read }
    }

    /// Returns the next item without blocking the thread. If the future is dropped early, the
    /// iteration has ended.
    pub async fn next_async(&mut self) -> Option<Result<T, ManagerError>> {
        loop {
            if let Some(item) = self.page.next() {
                return Some(Ok(item));
            }
            // If this fails, the iterator ends.
            let cursor = self.cursor.take()?;
            let answer = next_page(&self.reference, cursor).call_async().await;
            if let Err(error) = answer.and_then(|answer| self.turn_to(&answer)) {
                return Some(Err(error));
            }
        }
    }

    fn turn_to(&mut self, answer: &Answer) -> Result<(), ManagerError> {
        self.page = (self.read)(answer)?.into_iter();
        self.cursor = Some(answer.number()).filter(|next| *next != 0);
        Ok(())
    }
}

fn next_page(reference: &Reference, cursor: u64) -> Request<'_> {
    reference.request(Operation::Page).number(cursor).number(PAGE_BYTES)
}

impl<T> Iterator for Iter<T> {
    type Item = Result<T, ManagerError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.page.next() {
                return Some(Ok(item));
            }
            // If this fails, the iterator ends.
            let cursor = self.cursor.take()?;
            let answer = next_page(&self.reference, cursor).call();
            if let Err(error) = answer.and_then(|answer| self.turn_to(&answer)) {
                return Some(Err(error));
            }
        }
    }
}

impl<T> FusedIterator for Iter<T> {}

impl<T> fmt::Debug for Iter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Iter").field(&self.reference).finish()
    }
}
