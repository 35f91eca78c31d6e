//! Where a worker can be made to die, for the test that makes it die everywhere (`tests/deaths.rs`).
//!
//! `kill_point!(Step)` stands after each step of the worker's side of the protocol. Without the feature `kill-points` it
//! is nothing at all. With it, it calls the hook that the test's program has set before the entry; the hook knows whether
//! this is where this worker is to die, and by what.

/// Nothing, unless a test wants a worker to die here.
#[cfg(not(feature = "kill-points"))]
macro_rules! kill_point {
    ($step:ident) => {
        ()
    };
}

/// Tells the test's hook that this step was reached.
#[cfg(feature = "kill-points")]
macro_rules! kill_point {
    ($step:ident) => {
        $crate::kill_point::reached($crate::kill_point::Step::$step)
    };
}

#[cfg(feature = "kill-points")]
pub use hook::{Step, reached, set_hook};

#[cfg(feature = "kill-points")]
mod hook {
    use std::sync::OnceLock;

    macro_rules! steps {
        ($($(#[$list_comment:meta])+ $list:ident { $($(#[$comment:meta])+ $step:ident,)+ })+) => {
            /// A step of a worker's or a process's life, or of a user of shared objects, at whose end it can be made to die.
            #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
            #[repr(u32)]
            pub enum Step {
                $($($(#[$comment])+ $step,)+)+
            }

            impl Step {
                $($(#[$list_comment])+ pub const $list: &[Step] = &[$(Step::$step,)+];)+
            }
        };
    }

    steps! {
        /// Those of a worker, in the order in which it comes to them first, more or less.
        ALL {
        /// The process knows that it is a worker.
        Started,
        /// It has mapped its segment.
        SetupRead,
        /// It watches its parent, and listens where that is how it is reached.
        HelloNext,
        /// The hello is in the socket.
        HelloSaid,
        /// It is about to look for its first frame.
        ServeBegins,
        /// It has read where the ring's head is.
        HeadRead,
        /// A message is copied out, and not yet consumed.
        MessageCopied,
        /// A message is consumed, and not yet looked at.
        TailStored,
        /// A message was made into frames, or is one part of a frame.
        MessageTaken,
        /// It knows that the pool wants room, and has not told of any.
        RoomWishTaken,
        /// It has said that it sleeps, and has not looked once more.
        SleepAnnounced,
        /// It does not sleep any more.
        Woken,
        /// The descriptors that go with a frame are received.
        AttachmentsReceived,
        /// It knows where the arguments lie, in the frame or in a segment.
        ArgumentsLocated,
        /// The initializer's frame is here.
        InitBegins,
        /// The initializer has run.
        InitEnds,
        /// It has a task, unclaimed.
        BeforeClaim,
        /// The task has begun.
        Claimed,
        /// The task was taken back before.
        ClaimRefused,
        /// An item of a chunk is answered, the next not claimed.
        BeforeClaimNext,
        /// The next item of a chunk has begun.
        NextClaimed,
        /// The rest of a chunk was taken back before.
        NextRefused,
        /// The arguments are decoded.
        Decoded,
        /// In the task's own code: reached by the test's tasks.
        InTask,
        /// The task has returned.
        Ran,
        /// It owns a segment for its result, and has not told of it.
        SegmentTaken,
        /// Its result is encoded.
        Encoded,
        /// The descriptors that go with a result are sent, the result is not.
        AttachmentsSent,
        /// The words of a message lie in the ring, behind the head.
        WordsWritten,
        /// The message is published, and nobody was told.
        HeadStored,
        /// It has taken a waiting thread's word, and has not woken the thread.
        WaiterTaken,
        /// It has taken the unattended ring's word, and has not rung for the reader.
        ReaderTaken,
        /// The doorbell has counted, and has not looked whether the reader sleeps.
        DoorbellCounted,
        /// It has taken the sleeping reader's word, and has not woken it.
        DoorbellTaken,
        /// Whoever should know of a message was told.
        Rung,
        /// The reply is out, and the segment of its result is the pool's.
        SegmentLeft,
        /// A part of a result is out, more are to follow.
        PartSent,
        /// The ring has no room for a message.
        RingFull,
        /// It has said that it sleeps for room, and has not looked once more.
        RoomSleepAnnounced,
        /// It does not sleep for room any more.
        RoomWoken,
        /// It was told to leave.
        StopRead,
        /// It is about to leave.
        Exiting,
        /// ipc-channel: a message is received, and not yet looked at.
        IpcReceived,
        /// ipc-channel: a message is about to be sent.
        IpcSendNext,
        /// ipc-channel: a message is sent.
        IpcSent,
        }
        /// Those of a user of queues.
        QUEUE {
        /// It has a number for descriptors, and has sent none.
        QueueTicketTaken,
        /// The descriptors of an item are sent, the item is not put.
        QueueDescriptorsSent,
        /// It has a piece of memory for a large item, and has written nothing.
        QueuePieceMade,
        /// The claim of a large item says that it has room in the queue.
        QueueRoomNoted,
        /// That room is counted.
        QueueRoomReserved,
        /// A large item is written, and not put.
        QueuePieceWritten,
        /// It has noted that a large item is about to be put.
        QueuePendingNoted,
        /// The large item is no more its own.
        QueueClaimHandedOn,
        /// The end of a ring is marked as empty.
        QueuePadded,
        /// It has shortened a hole, and the part it cut off is in no claim yet.
        QueueHoleSplit,
        /// A ring is there, and nothing leads to it.
        QueueRingMade,
        /// It has noted that something is about to lead to the ring.
        QueueRingNoted,
        /// A record leads to the new ring, and producers are in the old one.
        QueueMovePublished,
        /// Producers are in the new ring.
        QueueProducersMoved,
        /// An item is written, and not there for others.
        QueueRecordWritten,
        /// An item is there.
        QueueRecordPublished,
        /// An item is counted, and the next one would be written over it.
        QueuePutCounted,
        /// An item is put, and nobody told.
        QueueTailStored,
        /// It has found an item, and copied it.
        QueueItemCopied,
        /// It has looked at the descriptors of an item.
        QueueDescriptorsSeen,
        /// It has noted which item it takes.
        QueueTakeNext,
        /// The item is taken, and not counted.
        QueueTaken,
        /// It is counted, and nobody told.
        QueueTakeCounted,
        /// A large item is noted as its own.
        QueuePieceClaimed,
        /// A large item is copied, and its memory not given back.
        QueuePieceCopied,
        /// Its memory is kept for the next one.
        QueuePieceKept,
        /// It is given back, and noted as its own still.
        QueuePieceFreed,
        /// A hole beside it is noted nowhere.
        QueueHolesMerged,
        /// The last place of the file is noted nowhere, and not behind the end.
        QueueEndNoted,
        /// A hole is left for others.
        QueueHoleLeft,
        /// The descriptors of an item that it has taken are out of the socket.
        QueueDescriptorsTaken,
        /// It has noted that it will hold an item which is not done, and has not taken it.
        QueueItemHeld,
        /// There is to be one more table of items that are not done, and it is noted.
        QueueTableNoted,
        /// There is one, and it is noted still.
        QueueTableAdded,
        /// The bytes of an item that is kept are read.
        QueueHeldCopied,
        /// An item is done, and nobody told.
        QueueItemDone,
        /// The piece of an item that is done is to be given back, and noted.
        QueueDonePieceNoted,
        /// It is nobody's item's, and noted still.
        QueueDoneCleared,
        /// An item of a dead process is counted as to be got again, and is not.
        QueueRequeueCounted,
        /// An item can be got again no more, and is counted still.
        QueueTakenAgain,
        /// It is noted that an item of a dead process is lost.
        QueueLossNoted,
        /// It is counted as lost, and as in somebody's hands.
        QueueLossCounted,
        /// It has noted that it leaves a ring.
        QueueOldRingNoted,
        /// Consumers are in the next ring, the one before is still there.
        QueueConsumersMoved,
        /// The ring before is given back, and noted still.
        QueueOldRingFreed,
        }
        /// Those of a user of locks and their kin.
        SYNC {
        /// It has a mutex that was free.
        MutexTaken,
        /// It has a mutex for which it has waited, or whose holder has died.
        MutexTakenSlowly,
        /// It has marked a mutex as waited for, and does not sleep yet.
        MutexMarked,
        /// It does not sleep on a mutex any more.
        MutexWoken,
        /// A mutex is free, and whoever sleeps on it not woken.
        MutexReleased,
        /// A sleeper on a mutex is woken.
        MutexHandedOn,
        /// Within a lock, it knows what to write.
        ValueComputed,
        /// Within a lock, it has written.
        ValueWritten,
        /// It counts as a holder of one more.
        HolderCounted,
        /// It counts as a holder of one less.
        HolderDiscounted,
        /// It has given back without the mutex, which another one has.
        HolderGaveBack,
        /// A permit is there, and nobody told.
        PermitReleased,
        /// A permit exists no more, and counts as held.
        PermitForgotten,
        /// It has set an event, and woken nobody.
        EventSet,
        /// It has said that it waits for an event, and does not sleep yet.
        EventMarked,
        /// It does not sleep on an event any more.
        EventWoken,
        /// It has an RLock, and has written who it is.
        LevelsWritten,
        /// It is written down as waiting, and holds the condition's lock and its mutex.
        ConditionEntered,
        /// It has released the condition's lock.
        ConditionReleased,
        /// It does not sleep on a condition any more.
        ConditionWoken,
        /// It was notified and has the lock again, and is written down still.
        ConditionReacquired,
        /// It has notified a waiter, and not woken it.
        ConditionTold,
        /// It has come to a barrier, and holds its mutex.
        BarrierEntered,
        /// It does not sleep at a barrier any more.
        BarrierWoken,
        /// It runs a barrier's action.
        BarrierActing,
        /// It has begun to let the others pass.
        BarrierReleasing,
        /// It has let one of them pass.
        BarrierTold,
        /// It has begun to break a barrier, without the mutex.
        BarrierBreaking,
        /// It has told one of them that the barrier is broken.
        BarrierBrokenOff,
        /// It has left a mutex for others to release.
        MutexLeft,
        /// It has said that it listens to a bell, and does not sleep yet.
        BellListened,
        /// It does not sleep on a bell any more.
        BellWoken,
        /// It has rung a bell, and woken nobody.
        BellRung,
        }
        /// Those of a user of named memory.
        NAMED {
        /// The folder of all names is there, and empty.
        NameFolderMade,
        /// It owns a file that has no name yet.
        NameOwned,
        /// It has made a folder for a name, which is empty.
        NameFresh,
        /// The file is in that folder, which is not the name's yet.
        NameLinked,
        /// The name is there.
        NamePublished,
        /// It does not own a name any more.
        NameLeft,
        /// It has marked a name that nobody needs.
        NameDoomed,
        /// It knows which file to remove.
        NameRemovedNext,
        /// The file is removed, and its folder is not.
        NameRemoved,
        }
        /// Those of a process with one task, and of the fork server.
        PROCESS {
        /// The fork server has run what is to be there in every child, and has not said so.
        ServerPrepared,
        /// The fork server is ready, and has said so.
        ServerReady,
        /// The fork server was asked for a child.
        ServerAsked,
        /// The fork server has made a child, and has its socket still.
        ServerCloned,
        /// A copy of the fork server: nobody knows its number.
        CopyMade,
        /// A copy of the fork server whose number is known leads no group yet.
        CopyNamed,
        /// It leads a group of its own.
        CopyLeads,
        /// A copy of the program knows what it is for, and leads no group yet.
        ForkRead,
        /// It has made ready for its task.
        BodyPrepared,
        /// The first message of its report is sent.
        ReportSent,
        /// All of its report is sent.
        Reported,
        /// It is about to leave.
        BodyExiting,
        }
    }

    static HOOK: OnceLock<fn(Step)> = OnceLock::new();

    /// From now on, each step that this process reaches is told to this function. Only the first call counts.
    pub fn set_hook(hook: fn(Step)) {
        let _ = HOOK.set(hook);
    }

    /// A step is reached.
    pub fn reached(step: Step) {
        if let Some(hook) = HOOK.get() {
            hook(step);
        }
    }
}
