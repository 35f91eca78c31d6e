//! State that is kept in a worker between tasks.
//!
//! A task's statics and thread-locals are kept from task to task, as in any program. This module is
//! a typed alternative, for values that an initializer creates and tasks use. The initializer and
//! the tasks run on the same thread, so the state need not be `Send`.
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
    /// The values, one for each type.
    static STATE: RefCell<HashMap<TypeId, Box<dyn Any>>> = RefCell::default();
}

/// Stores a value for later tasks on this worker. There is one value for each type; a previous
/// value is dropped.
///
/// The state exists as long as the thread's other thread-locals. In exit hooks, and in the
/// destructors of thread-locals, it may not exist any more. A value that is stored then is dropped.
pub fn set<T: 'static>(value: T) {
    let mut value: Option<Box<dyn Any>> = Some(Box::new(value));
    let old = STATE.try_with(|state| state.borrow_mut().insert(TypeId::of::<T>(), value.take()?));
    // Dropped after the borrow has ended, because its destructor is user code and may use the
    // state.
    drop((old, value));
}

/// Removes a value and returns it. Returns `None` if there is no value of this type.
pub fn take<T: 'static>() -> Option<T> {
    let value = STATE.try_with(|state| state.borrow_mut().remove(&TypeId::of::<T>())).ok()??;
    value.downcast().ok().map(|value| *value)
}

/// Calls `f` with the value of type `T` that [`set`] has stored on this worker.
///
/// # Panics
/// If there is no value of this type. This is also so within another call of `with` for the same
/// type, because that call has taken the value out.
pub fn with<T: 'static, R>(f: impl FnOnce(&mut T) -> R) -> R {
    /// Puts the value back, even if `f` panics.
    struct Lent<T: 'static>(Option<T>);
    impl<T: 'static> Drop for Lent<T> {
        fn drop(&mut self) {
            // If a new value was set in the meantime, keep it. Then the old value is dropped with
            // `self`, after the borrow has ended, because its destructor is user code.
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
        assert!(
            std::panic::catch_unwind(|| super::with(|_: &mut u8| panic!("on purpose"))).is_err()
        );
        super::with(|byte: &mut u8| {
            *byte += 1;
            super::with(|text: &mut String| text.push('b'));
        });
        assert_eq!((super::take::<u8>(), super::take::<String>()), (Some(2), Some("ab".into())));
        assert_eq!(super::take::<u8>(), None);
    }
}
