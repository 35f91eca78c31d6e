//! Shared memory for the model checkers.
//!
//! A checker's atomics contain numbers of the checker's own objects, so they cannot lie in zeroed
//! memory. Both sides of the shared memory are threads of one process.

use std::{
    any::Any,
    cell::RefCell,
    io,
    ops::Deref,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

/// The stand-in for the production trait of this name.
///
/// # Safety
/// As in production. Nothing here relies on it.
pub(crate) unsafe trait SharedLayout: Default + Send + Sync + 'static {}

pub(crate) struct Shared<T: SharedLayout>(Arc<T>);

thread_local! {
    /// Values that live as long as an execution. All threads of a model are one thread of the
    /// system.
    static KEPT: RefCell<Vec<Arc<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Frees what earlier executions have left. It may only be called between two executions.
pub(crate) fn forget_all() {
    KEPT.take();
}

/// Keeps a value as long as the execution.
pub(crate) fn keep<T: 'static>(value: T) -> &'static T {
    let kept = Arc::new(value);
    let at = Arc::as_ptr(&kept);
    KEPT.with_borrow_mut(|all| all.push(kept));
    // SAFETY: `KEPT` holds it until `forget_all`, when no thread of the execution is left.
    unsafe { &*at }
}

impl<T: SharedLayout> Shared<T> {
    pub(crate) fn new() -> Self {
        let shared = Arc::new(T::default());
        KEPT.with_borrow_mut(|kept| kept.push(Arc::clone(&shared) as Arc<dyn Any>));
        Shared(shared)
    }

    /// Returns the other side's view of the memory.
    pub(crate) fn mirror(&self) -> &'static T {
        // SAFETY: `KEPT` holds it until `forget_all`, when no thread of the execution is left.
        unsafe { &*Arc::as_ptr(&self.0) }
    }

    pub(crate) fn create(_name: &str) -> io::Result<(Self, OwnedFd)> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn open(_fd: impl AsFd) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl<T: SharedLayout> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
