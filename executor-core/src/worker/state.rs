//! State that lives in a worker between tasks.
//!
//! A task's own statics and thread-locals persist from task to task as in any program; this is the typed way, for what
//! an initializer makes and tasks use. Initializer and tasks run on one and the same thread, so the state need not be
//! `Send`.
//!
//! ```
//! use executor::prelude::*;
//!
//! struct Model { factor: u64 }
//!
//! #[task]
//! fn load(factor: u64) { executor::worker_state::set(Model { factor }) }
//!
//! #[task]
//! fn predict(x: u64) -> u64 { executor::with_worker_state::<Model, _>(|model| model.factor * x) }
//!
//! #[executor::main]
//! fn main() {
//!     let pool = ProcessPoolExecutor::builder().max_workers(1).initializer(load::task(3)).build().unwrap();
//!     assert_eq!(pool.submit(predict::task(14)).result().unwrap(), 42);
//! }
//! ```

use std::{
    any::{Any, TypeId, type_name},
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
};

thread_local! {
    static STATE: RefCell<HashMap<TypeId, Box<dyn Any>>> = RefCell::default();
}

/// Stores a value for later tasks on this worker; one of each type. The old one, if any, is dropped.
///
/// State lives as long as the thread's other locals: in exit hooks, and in the destructors of thread-locals, there may be none
/// any more. A value that is stored then is dropped.
pub fn set<T: 'static>(value: T) {
    let mut value: Option<Box<dyn Any>> = Some(Box::new(value));
    let old = STATE.try_with(|state| state.borrow_mut().insert(TypeId::of::<T>(), value.take()?));
    // Outside the borrow: its drop is user code, and may use the state.
    drop((old, value));
}

/// Takes a value out.
pub fn take<T: 'static>() -> Option<T> {
    let value = STATE.try_with(|state| state.borrow_mut().remove(&TypeId::of::<T>())).ok()??;
    value.downcast().ok().map(|value| *value)
}

/// Lends a value that [`set`] has stored on this worker.
///
/// # Panics
/// If there is none of this type, also because it is lent already further up the stack.
pub fn with<T: 'static, R>(f: impl FnOnce(&mut T) -> R) -> R {
    /// Puts the value back, also when `f` panics.
    struct Lent<T: 'static>(Option<T>);
    impl<T: 'static> Drop for Lent<T> {
        fn drop(&mut self) {
            // A new one may have been set meanwhile; then the old one goes with `self`, outside the borrow: its drop is user
            // code.
            let _ = STATE.try_with(|state| {
                if let Entry::Vacant(vacant) = state.borrow_mut().entry(TypeId::of::<T>())
                    && let Some(value) = self.0.take()
                {
                    vacant.insert(Box::new(value));
                }
            });
        }
    }
    let Some(value) = take::<T>() else {
        panic!(
            "this worker has no state of type `{}`: call `executor::worker_state::set` in the executor's initializer",
            type_name::<T>()
        );
    };
    let mut lent = Lent(Some(value));
    f(lent.0.as_mut().expect("put there the line before"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn state_is_per_type_survives_panics_and_may_be_replaced_while_lent() {
        super::set(1_u8);
        super::set(String::from("a"));
        assert!(std::panic::catch_unwind(|| super::with(|_: &mut u8| panic!("on purpose"))).is_err());
        super::with(|byte: &mut u8| {
            *byte += 1;
            super::with(|text: &mut String| text.push('b'));
        });
        assert_eq!((super::take::<u8>(), super::take::<String>()), (Some(2), Some("ab".into())));
        assert_eq!(super::take::<u8>(), None);
    }
}
