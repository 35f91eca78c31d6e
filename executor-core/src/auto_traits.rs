//! Checks at compile time that every public type is `Send` and `Sync`, and implements `Debug`.
//!
//! A field that is none of these removes the trait from a public type, and no other test would
//! notice that. So each new public type gets a line here, and a test compares the list with what
//! `lib.rs` exports. The parameters stand for types that are `Send`, `Sync` and `Debug` themselves.

use std::fmt::Debug;

use crate::*;

const fn is_send_and_debug<T: Send + Debug>() {}
const fn is_sync<T: Sync>() {}

/// Checks that the types are `Send`, `Sync` and `Debug`.
macro_rules! send_and_sync {
    ($($type:ty),+ $(,)?) => {$(
        is_send_and_debug::<$type>();
        is_sync::<$type>();
    )+};
}

/// A task function, for the types that have one as a parameter.
type Function = tests::Nothing;

const _: () = {
    // Executors and tasks.
    send_and_sync!(
        Cancellation,
        Encoded,
        Full<Task<Function, (u8,)>>,
        OnDrop,
        Pin,
        Pool,
        PoolBuilder,
        PoolError,
        ProcessPoolBuilder,
        ProcessPoolExecutor,
        ShutdownOptions,
        Stats,
        Failures,
        RunningTask,
        TaskFailure,
        TaskFailureKind,
        WorkerStats,
        WorkerStatus,
        SubmitAsync<Task<Function, (u8,)>>,
        Task<Function, (u8,)>,
        TaskId,
        Chunked<'static>,
    );
    // Results.
    send_and_sync!(
        AsCompleted<u8>,
        AsCompletedStream<u8>,
        AsCompletedTimeout<u8>,
        AsyncResult<u8>,
        CancelHandle,
        UsageHandle,
        Usage,
        IMap<Function, Encoded, std::vec::IntoIter<u8>, fn(u8) -> Task<Function, Encoded>>,
        Map<Function, Encoded, std::vec::IntoIter<u8>, fn(u8) -> Task<Function, Encoded>>,
        MapStream<Function, Encoded, std::vec::IntoIter<u8>, fn(u8) -> Task<Function, Encoded>>,
        MapStreamWithIndex<Function, Encoded, std::vec::IntoIter<u8>, fn(u8) -> Task<Function, Encoded>>,
        MapWithIndex<Function, Encoded, std::vec::IntoIter<u8>, fn(u8) -> Task<Function, Encoded>>,
        ReturnWhen,
        TaskFuture<u8>,
        Unfinished,
    );
    // Errors of tasks and executors.
    send_and_sync!(
        BrokenCause,
        BuildError,
        CodecFailure,
        ExitStatus,
        LastPanic,
        LostDetail,
        Phase,
        RemoteError,
        Side,
        TaskError,
        MemoryLimitDetail,
        TimedOutDetail,
    );
    // Processes.
    send_and_sync!(
        Child<u8>,
        ChildHandle,
        Context,
        CurrentProcess,
        ExitGuard,
        ExitHook,
        Fork,
        Isolation,
        CgroupLimits,
        Limits,
        LoggerAlreadySet,
        ParentProcess,
        Process<u8>,
        StartError,
        StartMethod,
        StartMethodAlreadySet,
        Stdio,
    );
    // Queues and connections.
    send_and_sync!(
        AcceptError,
        Address,
        AddressError,
        AuthError,
        AuthKey,
        Client,
        ConnectError,
        Connection<u8, u8>,
        Consumer<u8>,
        GetError,
        JoinableQueue<u8>,
        Listener,
        LostItems,
        OnLost,
        Producer<u8>,
        PutError<u8>,
        Queue<u8>,
        Receiver<u8>,
        RecvError,
        SendError,
        Sender<u8>,
        SimpleQueue<u8>,
        TaskDoneError,
        Transfer<u8>,
        UnfinishedItem<'static, u8>,
    );
    // Shared memory.
    send_and_sync!(
        Array<u8>,
        ArrayReadGuard<'static, u8>,
        ArrayWriteGuard<'static, u8>,
        ListItem,
        RawArray<u8>,
        RawValue<u8>,
        ShareableList,
        SharedBytes,
        SharedMemory,
        SharedMemoryScope,
        TooLarge,
        Value<u8>,
        ValueGuard<'static, u8>,
    );
    // Locks.
    send_and_sync!(
        Barrier,
        BarrierError,
        BoundedSemaphore,
        Condition,
        Event,
        Lock,
        LockGuard<'static>,
        LockResult<LockGuard<'static>>,
        OwnerDied<u8>,
        Permit<'static>,
        RLock,
        RLockGuard<'static>,
        ReleaseError,
        Semaphore,
    );
    // Managed objects.
    send_and_sync!(
        manager::Any,
        manager::Array<u8>,
        manager::Barrier,
        manager::BoundedSemaphore,
        manager::Condition,
        manager::Condition<manager::RLock>,
        manager::Dict<u8, u8>,
        manager::Entry<'static, u8, u8>,
        manager::Event,
        manager::Iter<u8>,
        manager::JoinableQueue<u8>,
        manager::List<u8>,
        manager::Lock,
        manager::LockGuard<'static>,
        manager::Manager,
        manager::ManagerBuilder,
        manager::ManagerError,
        manager::Namespace,
        manager::OwnedLockGuard,
        manager::OwnedPermit,
        manager::OwnedRLockGuard,
        manager::Permit<'static>,
        manager::Pool,
        manager::PoolFuture<u8>,
        manager::Queue<u8>,
        manager::RLock,
        manager::RLockGuard<'static>,
        manager::Semaphore,
        manager::Set<u8>,
        manager::Value<u8>,
    );
};

mod tests {
    use super::*;
    use crate::{
        registry::TaskEntry,
        wire::codec::{Codec, CodecError},
    };

    /// A task function that is never called.
    #[derive(Debug)]
    pub(super) struct Nothing;

    impl TaskFn for Nothing {
        type Output = u8;
        const NAME: &'static str = "nothing";
        const CODEC: Codec = Codec::Postcard;

        fn entry() -> &'static TaskEntry {
            unreachable!("it is never submitted")
        }

        fn decode_output(_: &[u8]) -> Result<u8, CodecError> {
            unreachable!("it is never submitted")
        }
    }

    impl TaskArgs<(u8,)> for Nothing {
        fn encode_args(_: &(u8,), _: &mut crate::wire::buffer::Buffer) -> Result<(), CodecError> {
            unreachable!("it is never submitted")
        }
    }

    /// Returns the words of a text that begin with an uppercase letter.
    fn types(text: &str) -> Vec<&str> {
        let words = text.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        words.filter(|word| word.starts_with(|letter: char| letter.is_uppercase())).collect()
    }

    #[test]
    fn every_public_type_is_in_the_list() {
        // Traits. Nobody has a value of them.
        let traits = [
            "Executor",
            "ExecutorExt",
            "Integer",
            "IntoBody",
            "IntoTask",
            "MakeTask",
            "MapTask",
            "Run",
            "TaskArgs",
            "TaskFn",
        ];
        let (list, _) = include_str!("auto_traits.rs").split_once("\nmod tests").expect("tests");
        let listed = types(list);
        let exports = include_str!("lib.rs").split("\npub use ").skip(1);
        let exports = exports.flat_map(|text| types(text.split(';').next().unwrap_or_default()));
        let forgotten: Vec<_> =
            exports.filter(|name| !listed.contains(name) && !traits.contains(name)).collect();
        assert!(forgotten.is_empty(), "add {forgotten:?} to the list");
    }
}
