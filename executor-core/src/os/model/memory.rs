//! Shared memory for the model checkers: their atomics are numbers of objects of theirs, so they cannot lie in memory that
//! came zeroed; and both sides are threads of one process.

use std::{
    any::Any,
    cell::RefCell,
    io,
    ops::Deref,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

/// # Safety
/// As in production; nothing here relies on it.
pub(crate) unsafe trait SharedLayout: Default + Send + Sync + 'static {}

pub(crate) struct Shared<T: SharedLayout>(Arc<T>);

thread_local! {
    /// What lives as long as an execution. All threads of a model are one thread of the system.
    static KEPT: RefCell<Vec<Arc<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Frees what earlier executions have left; between two executions only.
pub(crate) fn forget_all() {
    KEPT.take();
}

/// Memory that lives as long as the execution.
pub(crate) fn keep<T: 'static>(value: T) -> &'static T {
    let kept = Arc::new(value);
    let at = Arc::as_ptr(&kept);
    KEPT.with_borrow_mut(|all| all.push(kept));
    // SAFETY: `KEPT` has it until `forget_all`, when no thread of the execution is left.
    unsafe { &*at }
}

impl<T: SharedLayout> Shared<T> {
    pub(crate) fn new() -> Self {
        let shared = Arc::new(T::default());
        KEPT.with_borrow_mut(|kept| kept.push(Arc::clone(&shared) as Arc<dyn Any>));
        Shared(shared)
    }

    /// The other side's view.
    pub(crate) fn mirror(&self) -> &'static T {
        // SAFETY: `KEPT` has it until `forget_all`, when no thread of the execution is left.
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
