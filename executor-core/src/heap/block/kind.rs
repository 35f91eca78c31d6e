//! What a block holds: the kind of object, and how its content is accessed.

/// What kind of object a block holds. It is checked so that a handle of one kind of object is not
/// accepted as a handle of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(dead_code, reason = "each is some object's")]
pub(crate) enum BlockKind {
    Lock = 1,
    RLock,
    Semaphore,
    BoundedSemaphore,
    Condition,
    Event,
    Barrier,
    Value,
    RawValue,
    Array,
    RawArray,
    Memory,
    List,
    Queue,
}

impl BlockKind {
    pub(super) const ALL: [BlockKind; 14] = [
        BlockKind::Lock,
        BlockKind::RLock,
        BlockKind::Semaphore,
        BlockKind::BoundedSemaphore,
        BlockKind::Condition,
        BlockKind::Event,
        BlockKind::Barrier,
        BlockKind::Value,
        BlockKind::RawValue,
        BlockKind::Array,
        BlockKind::RawArray,
        BlockKind::Memory,
        BlockKind::List,
        BlockKind::Queue,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            BlockKind::Lock => "a Lock",
            BlockKind::RLock => "an RLock",
            BlockKind::Semaphore => "a Semaphore",
            BlockKind::BoundedSemaphore => "a BoundedSemaphore",
            BlockKind::Condition => "a Condition",
            BlockKind::Event => "an Event",
            BlockKind::Barrier => "a Barrier",
            BlockKind::Value => "a Value",
            BlockKind::RawValue => "a RawValue",
            BlockKind::Array => "an Array",
            BlockKind::RawArray => "a RawArray",
            BlockKind::Memory => "a SharedMemory",
            BlockKind::List => "a ShareableList",
            BlockKind::Queue => "a Queue",
        }
    }
}

/// How the content of a block is accessed: the width of the words, and the size of the pieces.
///
/// All handles of a block must agree on it. Accessing the same bytes through one atomic of eight
/// bytes and through eight atomics of one byte is a data race, as if no atomics were used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access(pub(super) u32);

impl Access {
    /// Access to a block whose kind already determines it.
    pub(crate) const BY_KIND: Access = Access(0);

    /// Access to one or more values of plain data of type `T`. Types of the same size and alignment
    /// are accessed alike. So a `u32` may be received as an `f32`: any bytes are a value of either
    /// type.
    pub(crate) const fn of<T>() -> Self {
        // Alignments are powers of two up to a cache line, so these numbers differ for all sizes up
        // to 256 MiB, and are never 0.
        let size = size_of::<T>() as u64;
        Access((size << 3 | align_of::<T>().trailing_zeros() as u64) as u32 | 1 << 31)
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn types_that_are_accessed_differently_are_told_apart() {
        let different = [
            Access::BY_KIND,
            Access::of::<()>(),
            Access::of::<u8>(),
            Access::of::<u16>(),
            Access::of::<u64>(),
            Access::of::<[u8; 8]>(),
            Access::of::<[u16; 4]>(),
            Access::of::<[u32; 2]>(),
            Access::of::<[u64; 2]>(),
            Access::of::<[u8; 1 << 27]>(),
        ];
        for (at, one) in different.iter().enumerate() {
            assert!(different[at + 1..].iter().all(|other| other != one), "{one:?}");
        }
        assert_eq!(Access::of::<u32>(), Access::of::<f32>());
    }
}
