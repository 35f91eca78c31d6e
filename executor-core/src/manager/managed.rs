//! Objects of users' own types: the value in the server, and the handle that calls its methods.
//!
//! ```text
//!  CounterProxy::add ──► Handle::call: the number of a task function, its encoded arguments
//!                              │
//!  server: a thread ── `calling(value)` ──► the task function ── with_mut::<Counter> ──► add
//!                      `constructing()` ──► the task function ── construct(Counter::new(…))
//! ```
//!
//! `#[managed]` generates a task function for each method. It has the method's parameters but
//! `self`, so arguments and results travel as those of tasks do. `self` is in a thread-local
//! variable while the function runs.

use std::{
    any::{Any, type_name},
    cell::RefCell,
    fmt,
    mem::ManuallyDrop,
    sync::{Arc, PoisonError, RwLock, TryLockError},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    Manager,
    client::{Answer, Reference, Request},
    error::ManagerError,
    protocol::{FIELD_BYTES_MAX, Kind, Operation},
};
use crate::{
    os::local,
    registry,
    task::{Task, TaskArgs, TaskFn, encode},
    wire::buffer::Buffer,
};

/// A value in the server. The lock is never waited for: the server only lets calls run together
/// that can. It is there because a client that breaks the protocol could call a method that changes
/// the value as one that does not.
pub(super) type Stored = RwLock<Box<dyn Any + Send + Sync>>;

/// What the function that runs on this thread is about.
enum Place {
    /// It makes a value, and has or has not done so.
    Construct(Option<Box<dyn Any + Send + Sync>>),
    /// It calls a method of this value, unless it has done so.
    Call(Option<Arc<Stored>>),
}

thread_local! {
    static PLACE: RefCell<ManuallyDrop<Option<Place>>> = const { RefCell::new(ManuallyDrop::new(None)) };
}

fn replace(place: Option<Place>) -> Option<Place> {
    local::with(&PLACE, |cell| std::mem::replace(&mut **cell.borrow_mut(), place))
}

/// Runs a function with a place for a value. Returns what the function has left there.
fn placed<R>(place: Place, run: impl FnOnce() -> R) -> (R, Option<Place>) {
    struct Restore(Option<Place>);
    impl Drop for Restore {
        fn drop(&mut self) {
            drop(replace(self.0.take()));
        }
    }
    let _restore = Restore(replace(Some(place)));
    let result = run();
    (result, replace(None))
}

/// Runs a function that makes a value. The value is `None` if the function has made none.
pub(super) fn constructing<R>(run: impl FnOnce() -> R) -> (R, Option<Arc<Stored>>) {
    let (result, place) = placed(Place::Construct(None), run);
    let made = match place {
        Some(Place::Construct(made)) => made,
        _ => None,
    };
    (result, made.map(|made| Arc::new(RwLock::new(made))))
}

/// Runs a function that calls a method of a value. Also returns whether it has done so.
pub(super) fn calling<R>(value: Arc<Stored>, run: impl FnOnce() -> R) -> (R, bool) {
    let (result, place) = placed(Place::Call(Some(value)), run);
    (result, matches!(place, Some(Place::Call(None))))
}

/// Takes over the value that a constructor has made.
///
/// # Panics
/// If this thread does not run a constructor for a manager.
pub fn construct<T: Send + Sync + 'static>(value: T) {
    let value: Box<dyn Any + Send + Sync> = Box::new(value);
    let refused = local::with(&PLACE, |place| match &mut **place.borrow_mut() {
        Some(Place::Construct(made)) if made.is_none() => {
            *made = Some(value);
            None
        }
        // Dropped where the place is not borrowed: its `Drop` is code of the user.
        _ => Some(value),
    });
    assert!(
        refused.is_none(),
        "a constructor of a `{}` can only be called through its proxy",
        type_name::<T>()
    );
}

/// Returns the object whose method runs.
#[track_caller]
fn object<T>() -> Arc<Stored> {
    let taken = local::with(&PLACE, |place| match &mut **place.borrow_mut() {
        Some(Place::Call(value)) => value.take(),
        _ => None,
    });
    taken.unwrap_or_else(|| {
        panic!("a method of a `{}` can only be called through its proxy", type_name::<T>())
    })
}

const KIND: &str = "the managed object is of another type than its proxy";
const SHARED: &str = "the call of a managed object says that it changes nothing, and it may";

/// Calls a method that takes `&self`.
///
/// # Panics
/// If this thread does not run a method for a manager, or the object is of another type.
pub fn with_ref<T: 'static, R>(call: impl FnOnce(&T) -> R) -> R {
    let value = object::<T>();
    let guard = match value.try_read() {
        Ok(guard) => guard,
        // The value is as the method that panicked has left it.
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => panic!("{SHARED}"),
    };
    call(guard.downcast_ref().expect(KIND))
}

/// Calls a method that takes `&mut self`.
///
/// # Panics
/// As [`with_ref`], and if another method of the object runs.
pub fn with_mut<T: 'static, R>(call: impl FnOnce(&mut T) -> R) -> R {
    let value = object::<T>();
    let mut guard = match value.try_write() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => panic!("{SHARED}"),
    };
    call(guard.downcast_mut().expect(KIND))
}

/// Drops a value, which nobody uses any more. Its `Drop` is code of the user.
pub(super) fn drop_value(value: Arc<Stored>) {
    let dropped = crate::unwind::catch(|| {
        if let Some(value) = Arc::into_inner(value) {
            drop(value.into_inner().unwrap_or_else(PoisonError::into_inner));
        }
    });
    if let Err(panic) = dropped {
        tracing::warn!(%panic, "the value of a managed object panicked when it was dropped");
    }
}

/// What every proxy has: a reference to an object of a user's own type.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Handle(Arc<Reference>);

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Handle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Handle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Reference::deserialize(deserializer).map(|reference| Handle(Arc::new(reference)))
    }
}

/// Returns what the function of a call means, and its encoded arguments. It consumes the task, so
/// no future keeps what it has borrowed.
fn arguments<F: TaskArgs<A>, A>(task: Task<F, A>) -> Result<(u64, Vec<u8>), ManagerError> {
    let failed =
        |why: &dyn fmt::Display| ManagerError::Encode(format!("{}: {why}", F::NAME).into());
    let (args, options) = task.into_parts();
    let (mut bytes, mut attached) = (Buffer::new(), Vec::new());
    encode::encode::<F, A>(args, &options, &mut bytes, &mut attached)
        .map_err(|error| failed(&error))?;
    if !attached.is_empty() {
        return Err(failed(
            &"its arguments contain something that belongs to processes, such as a file, a queue or a managed object",
        ));
    }
    let bytes = bytes.into_vec();
    if bytes.len() > FIELD_BYTES_MAX {
        return Err(failed(&format!("its arguments have {} bytes", bytes.len())));
    }
    let meaning = registry::meaning(F::entry().number());
    let meaning = meaning.ok_or_else(|| failed(&"it is not in the registry"))?;
    Ok((meaning, bytes))
}

impl Handle {
    /// Makes an object with a constructor.
    pub fn create<F: TaskArgs<A>, A>(
        manager: &Manager,
        task: Task<F, A>,
    ) -> Result<Self, ManagerError> {
        let answer = creation(manager, arguments(task)?).call()?;
        Ok(Handle(Arc::new(Reference::created(&answer))))
    }

    /// Does what [`create`](Self::create) does, without blocking the thread.
    pub async fn create_async<F: TaskArgs<A>, A>(
        manager: &Manager,
        task: Task<F, A>,
    ) -> Result<Self, ManagerError> {
        let answer = creation(manager, arguments(task)?).call_async().await?;
        Ok(Handle(Arc::new(Reference::created(&answer))))
    }

    fn request(&self, exclusive: bool, (function, arguments): (u64, Vec<u8>)) -> Request<'_> {
        let request = self.0.request(Operation::OwnCall).number(function);
        request.flag(exclusive).bytes(&arguments)
    }

    /// Calls a method.
    pub fn call<F: TaskArgs<A>, A>(
        &self,
        exclusive: bool,
        task: Task<F, A>,
    ) -> Result<F::Output, ManagerError> {
        result::<F>(&self.request(exclusive, arguments(task)?).call()?)
    }

    /// Does what [`call`](Self::call) does, without blocking the thread.
    pub async fn call_async<F: TaskArgs<A>, A>(
        &self,
        exclusive: bool,
        task: Task<F, A>,
    ) -> Result<F::Output, ManagerError> {
        result::<F>(&self.request(exclusive, arguments(task)?).call_async().await?)
    }
}

fn creation(manager: &Manager, (function, arguments): (u64, Vec<u8>)) -> Request<'_> {
    manager.creation(Kind::Own).number(function).bytes(&arguments)
}

fn result<F: TaskFn>(answer: &Answer) -> Result<F::Output, ManagerError> {
    answer.value_with(F::NAME, |bytes| F::decode_output(bytes))
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    fn panics<R>(run: impl FnOnce() -> R) -> String {
        crate::unwind::catch(run).map(drop).expect_err("it panics")
    }

    fn stored(value: u32) -> Arc<Stored> {
        Arc::new(RwLock::new(Box::new(value)))
    }

    #[test]
    fn a_value_is_made_once_and_only_where_one_is_wanted() {
        let ((), made) = constructing(|| construct(5_u32));
        assert_eq!(made.unwrap().read().unwrap().downcast_ref(), Some(&5_u32));
        let ((), made) = constructing(|| ());
        assert!(made.is_none());
        assert!(panics(|| construct(5_u32)).contains("through its proxy"));
        constructing(|| {
            construct(5_u32);
            assert!(panics(|| construct(6_u32)).contains("through its proxy"));
        });
        calling(stored(1), || assert!(panics(|| construct(2_u32)).contains("through its proxy")));
    }

    #[test]
    fn a_method_gets_its_object_once_and_with_its_type() {
        let value = stored(1);
        let (sum, called) = calling(Arc::clone(&value), || {
            let sum = with_mut(|value: &mut u32| {
                *value += 1;
                // A method that calls another one by its task does not get the object again.
                assert!(panics(|| with_ref(|value: &u32| *value)).contains("through its proxy"));
                *value
            });
            assert!(panics(|| with_ref(|value: &u32| *value)).contains("through its proxy"));
            sum
        });
        assert_eq!(sum, 2);
        assert!(called);
        assert!(calling(Arc::clone(&value), || with_ref(|value: &u32| *value)).1);
        assert!(!calling(Arc::clone(&value), || ()).1);
        let other = || calling(Arc::clone(&value), || with_ref(|value: &u64| *value));
        assert!(panics(other).contains("another type"));
        assert!(panics(|| with_ref(|value: &u32| *value)).contains("through its proxy"));
    }

    #[test]
    fn a_call_that_says_that_it_changes_nothing_cannot_change_what_others_read() {
        let value = stored(1);
        let reader = value.read().unwrap();
        let write = || calling(Arc::clone(&value), || with_mut(|value: &mut u32| *value += 1));
        assert!(panics(write).contains("changes nothing"));
        drop(reader);
        write();
        let writer = value.write().unwrap();
        let read = || calling(Arc::clone(&value), || with_ref(|value: &u32| *value));
        assert!(panics(read).contains("changes nothing"));
        drop(writer);
        assert_eq!(read().0, 2);
    }

    #[test]
    fn a_value_stays_as_a_method_that_panicked_has_left_it() {
        let value = stored(1);
        let write = || {
            calling(Arc::clone(&value), || {
                with_mut(|value: &mut u32| {
                    *value = 7;
                    panic!("in between");
                })
            })
        };
        assert_eq!(panics(write), "in between");
        assert_eq!(panics(write), "in between");
        assert_eq!(calling(Arc::clone(&value), || with_ref(|value: &u32| *value)).0, 7);
    }
}
