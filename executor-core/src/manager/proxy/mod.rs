//! The handles of managed objects: what users call.
//!
//! ```text
//!  dict.insert(&key, &value)           dict.insert_async(&key, &value).await
//!        └──── one request: operation, encoded key and value ────┘
//!                               │
//!                        Reference ─► Connection ─► Answer ─► the previous value, decoded
//! ```
//!
//! A handle is a [`Reference`](super::client::Reference) and the types of what is stored. It is
//! typed only here: the server keeps bytes. Each method exists in two forms, one that waits in the
//! calling thread and one that is awaited. The macro `calls!` makes both from one request.

pub(super) mod array;
pub(super) mod barrier;
pub(super) mod condition;
pub(super) mod dict;
pub(super) mod event;
pub(super) mod iter;
pub(super) mod list;
pub(super) mod lock;
pub(super) mod namespace;
pub(super) mod pool;
pub(super) mod queue;
pub(super) mod semaphore;
pub(super) mod set;
pub(super) mod value;

/// Defines a handle, with the traits that every handle has.
macro_rules! handle {
    ($(#[$doc:meta])* $name:ident $(<$($parameter:ident),+>)?) => {
        $(#[$doc])*
        pub struct $name $(<$($parameter),+>)? {
            reference: std::sync::Arc<$crate::manager::client::Reference>,
            $(types: std::marker::PhantomData<fn() -> ($($parameter,)+)>,)?
        }

        impl $(<$($parameter),+>)? $name $(<$($parameter),+>)? {
            fn of(reference: $crate::manager::client::Reference) -> Self {
                $name {
                    reference: std::sync::Arc::new(reference),
                    $(types: std::marker::PhantomData::<fn() -> ($($parameter,)+)>,)?
                }
            }
        }

        impl $(<$($parameter),+>)? Clone for $name $(<$($parameter),+>)? {
            /// Returns another handle of the same object.
            fn clone(&self) -> Self {
                $name {
                    reference: std::sync::Arc::clone(&self.reference),
                    $(types: std::marker::PhantomData::<fn() -> ($($parameter,)+)>,)?
                }
            }
        }

        impl $(<$($parameter),+>)? std::fmt::Debug for $name $(<$($parameter),+>)? {
            /// Writes which object it is. The contents are in the server.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.reference).finish()
            }
        }

        impl $(<$($parameter),+>)? PartialEq for $name $(<$($parameter),+>)? {
            /// Returns whether both are handles of the same object.
            fn eq(&self, other: &Self) -> bool {
                self.reference == other.reference
            }
        }

        impl $(<$($parameter),+>)? Eq for $name $(<$($parameter),+>)? {}

        impl $(<$($parameter),+>)? std::hash::Hash for $name $(<$($parameter),+>)? {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                self.reference.hash(state);
            }
        }

        impl $(<$($parameter),+>)? serde::Serialize for $name $(<$($parameter),+>)? {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.reference.serialize(serializer)
            }
        }

        impl<'de, $($($parameter),+)?> serde::Deserialize<'de> for $name $(<$($parameter),+>)? {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::manager::client::Reference::deserialize(deserializer).map(Self::of)
            }
        }
    };
}

/// Defines methods in two forms: one that waits, and one that is awaited.
///
/// ```text
/// fn name / name_async [generics](&self, arguments) -> T where [bounds] { request => |answer| T }
/// ```
macro_rules! calls {
    ($(
        $(#[$doc:meta])*
        fn $name:ident / $name_async:ident [$($generics:tt)*]
            (&$this:ident $(, $argument:ident: $type:ty)* $(,)?) -> $returns:ty
            $(where [$($bounds:tt)*])?
        { $request:expr => |$answer:ident| $read:expr }
    )*) => {$(
        $(#[$doc])*
        pub fn $name<$($generics)*>(&$this $(, $argument: $type)*)
            -> Result<$returns, $crate::manager::ManagerError>
        $(where $($bounds)*)?
        {
            let $answer = $request.call()?;
            $read
        }

        #[doc = concat!("Does what [`", stringify!($name), "`](Self::", stringify!($name), ") does, without \
            blocking the thread. If the future is dropped early, the call may or may not have been made.")]
        pub async fn $name_async<$($generics)*>(&$this $(, $argument: $type)*)
            -> Result<$returns, $crate::manager::ManagerError>
        $(where $($bounds)*)?
        {
            let $answer = $request.call_async().await?;
            $read
        }
    )*};
}

/// Defines the two methods of [`Manager`](super::Manager) that create an object.
///
/// ```text
/// fn name / name_async [generics](arguments) -> Handle where [bounds] { request }
/// ```
macro_rules! creations {
    ($(
        $(#[$doc:meta])*
        fn $name:ident / $name_async:ident [$($generics:tt)*]
            (&$this:ident $(, $argument:ident: $type:ty)* $(,)?) -> $handle:ident $(<$item:ident>)?
            $(where [$($bounds:tt)*])?
        { $request:expr }
    )*) => {
        impl $crate::manager::Manager {
            $crate::manager::proxy::calls! {$(
                $(#[$doc])*
                fn $name / $name_async [$($generics)*](&$this $(, $argument: $type)*)
                    -> $handle $(<$item>)?
                $(where [$($bounds)*])?
                {
                    $request
                        => |answer| Ok($handle::of($crate::manager::client::Reference::created(&answer)))
                }
            )*}
        }
    };
}

use calls;
use creations;
use handle;

use super::{
    client::Request,
    protocol::{Kind, Operation},
};

impl super::Manager {
    /// Begins the request that creates an object.
    pub(super) fn creation(&self, kind: Kind) -> Request<'_> {
        self.request(Operation::Create).number(kind as u64)
    }
}

/// How long the server may take to say whether a call was done whose timeout has passed. With a
/// lower value, calls on a busy machine end without knowing. With a higher one, a stopped server
/// delays them for longer.
const GRACE: std::time::Duration = std::time::Duration::from_secs(1);

/// The same for calls whose result can be given back if it comes later: an item, a lock, a permit.
/// With a lower value, an item may be given back behind the next call, which then gets the item
/// after it. With a higher one, a stopped server delays these calls for longer.
const GRACE_OF_TAKES: std::time::Duration = std::time::Duration::from_millis(100);
