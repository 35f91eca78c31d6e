//! Identity types: newtypes, so that one kind of identity is never mistaken for another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Identity of a submitted task, unique within the process that submitted it.
///
/// ```
/// use executor::prelude::*;
/// use std::collections::HashMap;
///
/// #[task]
/// fn square(x: u64) -> u64 { x * x }
///
/// #[executor::main]
/// fn main() {
///     let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
///     let futures: Vec<_> = (0..3).map(|x| pool.submit(square::task(x))).collect();
///     let inputs: HashMap<executor::TaskId, u64> = futures.iter().map(TaskFuture::id).zip(0..).collect();
///     for future in as_completed(futures) {
///         let x = inputs[&future.id()];
///         assert_eq!(future.result().unwrap(), x * x);
///     }
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(u64);

impl TaskId {
    /// Makes an id from its number, for tests and for the wire. Users get ids from
    /// [`TaskFuture::id`](crate::TaskFuture::id).
    #[doc(hidden)]
    pub const fn from_raw(raw: u64) -> Self {
        TaskId(raw)
    }

    /// Returns the number itself. Each process counts from 1.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({})", self.0)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Identity of one worker process of one pool. The worker that replaces a lost one gets a new id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WorkerId(pub(crate) u32);

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkerId({})", self.0)
    }
}

/// Identity of a task function: a hash of its name, or of its name and its place in the source if
/// another function has the same name.
///
/// It is a hash and not an index because it crosses the wire. The order of the linked list of tasks
/// may differ between two builds, but a name does not. The [`registry`](crate::registry) assigns
/// the ids. It gives different ids to two functions whose names have the same hash.
#[doc(hidden)]
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct FnId(pub u64);

impl FnId {
    /// Returns the hash of a text: FNV-1a with 64 bits. It is simple enough for a `const fn`, and
    /// the same in every build.
    pub const fn of(name: &str) -> Self {
        let bytes = name.as_bytes();
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut i = 0;
        while i < bytes.len() {
            hash ^= bytes[i] as u64;
            hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
            i += 1;
        }
        FnId(hash)
    }
}

impl fmt::Debug for FnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FnId({:016x})", self.0)
    }
}

/// Hashes ids. Sequential numbers and hashes of names need mixing, but no protection from an
/// attacker.
#[derive(Clone, Copy, Default)]
pub(crate) struct IdHasher;

impl std::hash::BuildHasher for IdHasher {
    type Hasher = Mix;

    fn build_hasher(&self) -> Mix {
        Mix(0)
    }
}

/// The state of the hash: one multiplication (Fibonacci hashing) for each word.
pub(crate) struct Mix(u64);

impl std::hash::Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        // Multiplication mixes the high bits best, but hash tables look at the low ones. So swap
        // them.
        self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

/// A summary of the task functions of a program. Two processes compare it before the first task: if
/// it is equal, they have the same functions with the same types.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Hash over the sorted names, numbers and signatures.
    pub hash: u64,
    /// Number of functions.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fn_id_is_the_published_fnv1a() {
        // Test vectors of the FNV authors: the empty string and "foobar".
        assert_eq!(FnId::of(""), FnId(0xcbf2_9ce4_8422_2325));
        assert_eq!(FnId::of("foobar"), FnId(0x85944171f73967e8));
    }
}
