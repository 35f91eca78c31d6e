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
    future::{Future, poll_fn},
    hash::{Hash, Hasher},
    mem::ManuallyDrop,
    pin::pin,
    sync::{Arc, PoisonError, RwLock, TryLockError},
    task::Poll,
    time::{Duration, Instant},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    Manager,
    client::{Answer, Reference, Request},
    error::ManagerError,
    function::encode_call,
    protocol::{Kind, Operation},
};
use crate::{
    future::timer::Timer,
    os::local,
    task::{Task, TaskArgs, TaskFn},
};

/// A value in the server. The lock is never waited for: the server only lets calls run together
/// that can, and knows of each method what it does with the object.
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

/// Runs a function that calls a method of a value.
pub(super) fn calling<R>(value: Arc<Stored>, run: impl FnOnce() -> R) -> R {
    placed(Place::Call(Some(value)), run).0
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
const SHARED: &str = "two methods of a managed object run together that cannot";

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
#[derive(Clone)]
pub struct Handle {
    reference: Arc<Reference>,
    /// How long a call of a method may take. It belongs to this handle, and does not travel.
    timeout: Option<Duration>,
}

impl PartialEq for Handle {
    fn eq(&self, other: &Self) -> bool {
        self.reference == other.reference
    }
}

impl Eq for Handle {}

impl Hash for Handle {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.reference.hash(state);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reference.fmt(f)
    }
}

impl Serialize for Handle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.reference.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Handle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Reference::deserialize(deserializer).map(Handle::of)
    }
}

impl Handle {
    /// Returns another handle of the same object, whose calls take at most this long.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Handle { reference: Arc::clone(&self.reference), timeout: Some(timeout) }
    }

    /// Makes an object with a constructor.
    pub fn create<F: TaskArgs<A>, A>(
        manager: &Manager,
        task: Task<F, A>,
    ) -> Result<Self, ManagerError> {
        let answer = creation(manager, task)?.call()?;
        Ok(Handle::of(Reference::created(&answer)))
    }

    /// Does what [`create`](Self::create) does, without blocking the thread.
    pub async fn create_async<F: TaskArgs<A>, A>(
        manager: &Manager,
        task: Task<F, A>,
    ) -> Result<Self, ManagerError> {
        let answer = creation(manager, task)?.call_async().await?;
        Ok(Handle::of(Reference::created(&answer)))
    }

    fn of(reference: Reference) -> Self {
        Handle { reference: Arc::new(reference), timeout: None }
    }

    fn request<F: TaskArgs<A>, A>(&self, task: Task<F, A>) -> Result<Request<'_>, ManagerError> {
        let call = encode_call(task, Some(self.reference.door()))?;
        Ok(self.reference.request(Operation::OwnCall).call_of(call))
    }

    /// Returns when a call ends at the latest that begins now.
    fn deadline(&self) -> Option<Instant> {
        // A time that no clock reaches is none.
        Instant::now().checked_add(self.timeout?)
    }

    /// Calls a method.
    pub fn call<F: TaskArgs<A>, A>(&self, task: Task<F, A>) -> Result<F::Output, ManagerError> {
        result::<F>(&self.request(task)?.call_until(self.deadline())?)
    }

    /// Does what [`call`](Self::call) does, without blocking the thread.
    pub async fn call_async<F: TaskArgs<A>, A>(
        &self,
        task: Task<F, A>,
    ) -> Result<F::Output, ManagerError> {
        let request = self.request(task)?;
        let Some(deadline) = self.deadline() else {
            return result::<F>(&request.call_async().await?);
        };
        let (mut call, mut timer) = (pin!(request.call_async()), Timer::new(deadline));
        let answer = poll_fn(|context| match call.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(answer),
            // The call is given up when it is dropped.
            Poll::Pending => timer.poll(context.waker()).map(|()| Err(ManagerError::TimedOut)),
        });
        result::<F>(&answer.await?)
    }
}

fn creation<F: TaskArgs<A>, A>(
    manager: &Manager,
    task: Task<F, A>,
) -> Result<Request<'_>, ManagerError> {
    let request = manager.creation(Kind::Own);
    let call = encode_call(task, Some(request.door()))?;
    Ok(request.call_of(call))
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
        let sum = calling(Arc::clone(&value), || {
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
        assert_eq!(calling(Arc::clone(&value), || with_ref(|value: &u32| *value)), 2);
        let other = || calling(Arc::clone(&value), || with_ref(|value: &u64| *value));
        assert!(panics(other).contains("another type"));
        assert!(panics(|| with_ref(|value: &u32| *value)).contains("through its proxy"));
    }

    #[test]
    fn a_method_that_changes_a_value_does_not_run_beside_others() {
        let value = stored(1);
        let reader = value.read().unwrap();
        let write = || calling(Arc::clone(&value), || with_mut(|value: &mut u32| *value += 1));
        assert!(panics(write).contains("run together"));
        drop(reader);
        write();
        let writer = value.write().unwrap();
        let read = || calling(Arc::clone(&value), || with_ref(|value: &u32| *value));
        assert!(panics(read).contains("run together"));
        drop(writer);
        assert_eq!(read(), 2);
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
        assert_eq!(calling(Arc::clone(&value), || with_ref(|value: &u32| *value)), 7);
    }
}
