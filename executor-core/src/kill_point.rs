//! The places at which a test can make a worker die. `tests/deaths.rs` makes one die at each place.
//!
//! `kill_point!(Step)` stands after each step of the worker's side of the protocol. Without the
//! feature `kill-points` it expands to nothing. With the feature it calls the hook that the test's
//! program set before the library's entry point. The hook knows whether this worker is to die at
//! this step, and in which way.

/// Marks a place at which a test can make a worker die. Without tests, it expands to nothing.
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
            /// A step at whose end a test can make the process die. It is a step of a worker, of a
            /// process with one task, of a process that uses shared objects, or of a manager's
            /// server.
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
        /// The steps of a worker, roughly in the order in which it first reaches them.
        ALL {
        /// The process was started as a worker and knows it.
        Started,
        /// It has received its setup. Nothing is mapped yet.
        SetupRead,
        /// It watches its parent, and accepts connections if the parent reaches it that way. The
        /// hello is not sent yet.
        HelloNext,
        /// It has sent its hello.
        HelloSaid,
        /// It is about to look for its first frame.
        ServeBegins,
        /// It has read the head of the ring.
        HeadRead,
        /// It has copied a message out of the ring, and has not consumed it yet.
        MessageCopied,
        /// It has consumed a message, and has not looked at it yet.
        TailStored,
        /// It has split a message into frames, or has kept it as one part of a frame.
        MessageTaken,
        /// It knows that the pool waits for space in the ring, and has not notified it of any.
        RoomWishTaken,
        /// It has announced that it sleeps, and has not checked once more for a message.
        SleepAnnounced,
        /// It does not sleep any more.
        Woken,
        /// It has received the descriptors that belong to a frame.
        AttachmentsReceived,
        /// It knows where the arguments are: in the frame or in a segment.
        ArgumentsLocated,
        /// It has the initializer's frame.
        InitBegins,
        /// The initializer has run.
        InitEnds,
        /// It has a task, and has not claimed it.
        BeforeClaim,
        /// It has claimed a task: the task counts as begun.
        Claimed,
        /// Its claim failed, because the pool had taken the task back.
        ClaimRefused,
        /// It has answered an item of a chunk, and has not claimed the next one.
        BeforeClaimNext,
        /// It has claimed the next item of a chunk: the item counts as begun.
        NextClaimed,
        /// Its claim failed, because the pool had taken back the rest of the chunk.
        NextRefused,
        /// It has decoded the arguments.
        Decoded,
        /// It is in the task's own code. Only the test's tasks reach this step.
        InTask,
        /// The task has returned.
        Ran,
        /// It owns a segment for its result, and has told nobody about it.
        SegmentTaken,
        /// The result is encoded.
        Encoded,
        /// It has reported what the task has cost, and has not answered.
        UsageSent,
        /// It has sent the descriptors that belong to a result, and has not sent the result.
        AttachmentsSent,
        /// It has written the words of a message into the ring, beyond the head. They are not
        /// published.
        WordsWritten,
        /// It has published a message, and has notified nobody.
        HeadStored,
        /// It has reset the word on which the attendant sleeps, and has not woken the attendant.
        WaiterTaken,
        /// It has reset the word that says that nobody attends, and has not told the reader.
        ReaderTaken,
        /// It has told the reader, and has not woken it.
        ReaderTold,
        /// It has notified the receiver of a message.
        Rung,
        /// It has sent the reply, and the segment with the result belongs to the pool.
        SegmentLeft,
        /// It has sent a part of a result. More parts follow.
        PartSent,
        /// The ring has no space for a message.
        RingFull,
        /// It has announced that it sleeps until there is space, and has not checked once more.
        RoomSleepAnnounced,
        /// It does not sleep for space any more.
        RoomWoken,
        /// It has received the order to stop.
        StopRead,
        /// The finalizer has run, and its reply was not sent.
        Finalized,
        /// It is about to exit.
        Exiting,
        /// ipc-channel: it has received a message, and has not looked at it yet.
        IpcReceived,
        /// ipc-channel: it is about to send a message.
        IpcSendNext,
        /// ipc-channel: it has sent a message.
        IpcSent,
        }
        /// The steps of a process that uses queues.
        QUEUE {
        /// It has a ticket for descriptors, and has sent no descriptors.
        QueueTicketTaken,
        /// It has sent the descriptors of an item, and has not put the item.
        QueueDescriptorsSent,
        /// It has a piece of memory for a large item, and has written nothing to it.
        QueuePieceMade,
        /// It has noted in the claim of a large item that the item has a place in the queue.
        QueueRoomNoted,
        /// That place is counted as reserved.
        QueueRoomReserved,
        /// It has written a large item, and has not put it.
        QueuePieceWritten,
        /// It has noted that it is about to put a large item.
        QueuePendingNoted,
        /// The large item does not belong to this process any more.
        QueueClaimHandedOn,
        /// It has marked the end of a ring as padding.
        QueuePadded,
        /// It has shortened a hole. The part that it cut off is in no claim yet.
        QueueHoleSplit,
        /// It has made a ring, and nothing points to the ring.
        QueueRingMade,
        /// It has noted that a record is about to point to the new ring.
        QueueRingNoted,
        /// A record points to the new ring. Producers are still in the old one.
        QueueMovePublished,
        /// Producers are in the new ring.
        QueueProducersMoved,
        /// It has written an item that others cannot see yet.
        QueueRecordWritten,
        /// Others can see the item.
        QueueRecordPublished,
        /// It has counted an item. The tail has not moved, so the next item would overwrite this
        /// one.
        QueuePutCounted,
        /// It has put an item, and has notified nobody.
        QueueTailStored,
        /// It has found an item. A short item is copied.
        QueueItemCopied,
        /// It has looked at the descriptors of an item, without removing them from the socket.
        QueueDescriptorsSeen,
        /// It has noted which item it is about to take.
        QueueTakeNext,
        /// It has taken the item, and has not counted it.
        QueueTaken,
        /// It has counted the item as taken, and has notified nobody.
        QueueTakeCounted,
        /// It has noted in a claim that the memory of a large item is about to be its own.
        QueuePieceClaimed,
        /// It has copied a large item, and has not given its memory back.
        QueuePieceCopied,
        /// It has put the memory into stock for the next large item.
        QueuePieceKept,
        /// It has given the memory back to the system. The claim still names this process as the
        /// owner.
        QueuePieceFreed,
        /// It is merging a hole with its neighbour. The neighbour is noted nowhere.
        QueueHolesMerged,
        /// The last place of the file is in no claim, and not yet beyond the end of the used part.
        QueueEndNoted,
        /// It has left a hole for others.
        QueueHoleLeft,
        /// It has removed the descriptors of an item that it took from the socket.
        QueueDescriptorsTaken,
        /// It has noted that it will hold an unfinished item, and has not taken the item.
        QueueItemHeld,
        /// It has noted that it is about to add a table of unfinished items.
        QueueTableNoted,
        /// It has added the table, and has not removed the note.
        QueueTableAdded,
        /// It has read the bytes of an item whose memory is kept until the item is done.
        QueueHeldCopied,
        /// It has marked an item as done, and has notified nobody.
        QueueItemDone,
        /// It has noted that it is about to give back the memory of a finished item.
        QueueDonePieceNoted,
        /// The memory belongs to no item any more. The note is still there.
        QueueDoneCleared,
        /// It has counted an item of a dead process as available again. The item is not available
        /// yet.
        QueueRequeueCounted,
        /// It has taken such an item again. The item is still counted as available.
        QueueTakenAgain,
        /// It has noted that it is about to count an item of a dead process as lost.
        QueueLossNoted,
        /// The item is counted as lost. Its entry still says that the dead process holds it.
        QueueLossCounted,
        /// It has noted that it is about to leave a ring.
        QueueOldRingNoted,
        /// Consumers are in the next ring. The previous ring still exists.
        QueueConsumersMoved,
        /// It has given the memory of the previous ring back.
        QueueOldRingFreed,
        }
        /// The steps of a process that uses locks and the like.
        SYNC {
        /// It has acquired a mutex that was free.
        MutexTaken,
        /// It has acquired a mutex after a wait, or a mutex whose owner has died.
        MutexTakenSlowly,
        /// It has marked a mutex as contended, and does not sleep yet.
        MutexMarked,
        /// It does not sleep on a mutex any more.
        MutexWoken,
        /// It has released a mutex, and has woken no sleeper.
        MutexReleased,
        /// It has woken a sleeper on a mutex.
        MutexHandedOn,
        /// Inside a lock: it has computed the value to write.
        ValueComputed,
        /// Inside a lock: it has written the value.
        ValueWritten,
        /// It has incremented its owner count.
        OwnerCounted,
        /// It has decremented its owner count.
        OwnerDiscounted,
        /// It has given back one level of its owner count without the mutex, which another process
        /// has.
        OwnerGaveBack,
        /// It has released a permit, and has notified nobody.
        PermitReleased,
        /// It has removed a permit for good. The permit still counts as held.
        PermitForgotten,
        /// It has set an event, and has woken nobody.
        EventSet,
        /// It has announced that it waits for an event, and does not sleep yet.
        EventMarked,
        /// It does not sleep on an event any more.
        EventWoken,
        /// It has a lock that counts levels (an `RLock`, for example), and its owner id is written.
        LevelsWritten,
        /// It is registered as a waiter, and holds the condition's lock and its mutex.
        ConditionEntered,
        /// It has released the condition's lock.
        ConditionReleased,
        /// It does not sleep on a condition any more.
        ConditionWoken,
        /// It was notified or timed out, and has the lock again. It is still registered as a
        /// waiter.
        ConditionReacquired,
        /// It has notified a waiter, and has not woken it.
        ConditionTold,
        /// It is registered at a barrier, and holds the barrier's mutex.
        BarrierEntered,
        /// It does not sleep at a barrier any more.
        BarrierWoken,
        /// It is about to run a barrier's action.
        BarrierActing,
        /// It has begun to let the others pass.
        BarrierReleasing,
        /// It has told one of the others to pass, and has not woken it.
        BarrierTold,
        /// It has begun to break a barrier, without the mutex.
        BarrierBreaking,
        /// It has told one of the others that the barrier is broken, and has not woken it.
        BarrierBrokenOff,
        /// It has left a mutex in a state in which others may release it.
        MutexLeft,
        /// It has announced that it listens to a bell, and does not sleep yet.
        BellListened,
        /// It does not sleep on a bell any more.
        BellWoken,
        /// It has rung a bell, and has woken nobody.
        BellRung,
        }
        /// The steps of a process that uses named memory.
        NAMED {
        /// The folder that contains all names exists, and may be empty.
        NameFolderMade,
        /// It owns a file that has no name yet.
        NameOwned,
        /// It has made an empty folder for a name.
        NameFresh,
        /// The file is in that folder. The folder does not have the name yet.
        NameLinked,
        /// The name exists.
        NamePublished,
        /// It does not own a name any more, and has not removed the name.
        NameLeft,
        /// It has marked a name that nobody owns for removal.
        NameDoomed,
        /// It knows which file to remove.
        NameRemovedNext,
        /// It has removed the file, and has not removed its folder.
        NameRemoved,
        }
        /// The steps of a process with one task, and of the fork server.
        PROCESS {
        /// The fork server has run the preparation that every child shall have, and has not
        /// reported it.
        ServerPrepared,
        /// The fork server has reported that it is ready.
        ServerReady,
        /// The fork server has received a request for a child.
        ServerAsked,
        /// The fork server has made a child, and still has the child's socket.
        ServerCloned,
        /// A copy of the fork server exists, and has told nobody its process id.
        CopyMade,
        /// The copy has sent its process id, and leads no process group yet.
        CopyNamed,
        /// The copy leads a process group of its own.
        CopyLeads,
        /// A copy of the program has received its setup, and leads no process group yet.
        ForkRead,
        /// It is prepared for its task: segments are mapped, and the descriptors have arrived.
        BodyPrepared,
        /// It has sent the first message of its report.
        ReportSent,
        /// It has sent its whole report.
        Reported,
        /// It is about to exit.
        BodyExiting,
        }
        /// The steps of a process that uses the objects of a manager.
        MANAGER_CLIENT {
        /// It has memory and a socket for a connection, and has told the server nothing.
        ClientLaneMade,
        /// It has sent both to the server, and still has the server's end of the socket.
        ClientKnocked,
        /// The server has let it in. Its connection is in no table.
        ClientLetIn,
        /// Its connection is ready, and has made no call.
        ClientConnected,
        /// It has reached the address of a server, and has said nothing.
        ClientAddressReached,
        /// It has said something at the address, and the two sides do not know each other yet.
        ClientMeets,
        /// It has been given the door at a Unix socket, and has not knocked.
        ClientHasDoor,
        /// The server has let it in over TCP. It has no connection yet.
        ClientWelcomed,
        /// A call has a number, and is not sent.
        ClientCallBegun,
        /// A request is in the ring, and the server is not woken.
        ClientRequestSent,
        /// A request, or a part of it, has found no room in the ring.
        ClientRequestWaits,
        /// It has sent a part that had found no room before.
        ClientRestSent,
        /// A value is in a segment, and the request that says so is not sent.
        ClientSegmentFilled,
        /// It has the segments that it has asked for.
        ClientSegmentsGranted,
        /// It has copied a value from a segment, and the segment is not given back.
        ClientSegmentCopied,
        /// It has woken the server.
        ClientServerWoken,
        /// It has announced to the server that it sleeps, and does not sleep yet.
        ClientSleeps,
        /// It does not sleep any more.
        ClientAwake,
        /// A reply over TCP that brings an item has been received.
        ClientMarkedTaken,
        /// It has told the server so.
        ClientMarkedTold,
        /// The reply to its own call is out of the ring.
        ClientReplyTaken,
        /// It has passed on a reply to another thread or a future.
        ClientReplyPassedOn,
        /// It waited for another thread that receives, and goes on.
        ClientSeatLeft,
        /// A call that has not been answered in time is recorded as abandoned.
        ClientCallAbandoned,
        /// It has asked the server to answer a call at once.
        ClientCallGivenUp,
        /// The reply to an abandoned call has come, and what it brings is not given back.
        ClientLateReply,
        /// What such a reply has brought is given back.
        ClientGaveBack,
        /// It has claimed an object, and its handle does not know that.
        ClientClaimed,
        /// It has given up its claim of an object.
        ClientReleased,
        /// It has made a pipe for a handle that it sends on. The server does not have the pipe.
        ClientPipeMade,
        /// It has sent the pipe, and has not asked the server to watch it.
        ClientPipeSent,
        /// The server watches the pipe. The handle is not sent.
        ClientLeased,
        /// It has made a pipe for a handle of a far server, and keeps nothing for it.
        ClientFarPipeMade,
        /// It keeps the object of a far server while the pipe is open. The handle is not sent.
        ClientFarLeased,
        /// Pipes are closed everywhere, and the objects are still kept.
        ClientFarLeaseEnded,
        /// A handle is encoded for another process, and is not sent.
        ClientHandleAttached,
        /// A handle is encoded for an object of the same manager, and is not sent.
        ClientHandleNamed,
        /// It has received a handle from another process, and has not claimed the object.
        ClientHandleReceived,
        /// It holds a lock, and has changed half of what the lock protects. Only the test's clients
        /// reach this step.
        ClientInLock,
        }
        /// The steps of the server of a manager.
        MANAGER_SERVER {
        /// It has received a client's socket and memory.
        ManagerKnockRead,
        /// The client is counted, and has heard nothing.
        ManagerClientCounted,
        /// The client has been told that it may come in. The server's loop does not know it.
        ManagerWelcomeSent,
        /// The server's loop knows the client.
        ManagerClientEntered,
        /// It has a request, and has done nothing for it.
        ManagerRequestTaken,
        /// It has made segments for a client, and has not sent them.
        ManagerSegmentsMade,
        /// It has copied a value from a segment, and the segment is not given back.
        ManagerSegmentCopied,
        /// A value is in a segment, and the reply that says so is not sent.
        ManagerSegmentFilled,
        /// A request is done, and nobody is told.
        ManagerRequestDone,
        /// A reply is in the ring, and its client is not woken.
        ManagerReplySent,
        /// It has woken a client.
        ManagerClientWoken,
        /// It has announced its sleep in all lanes, and does not sleep yet.
        ManagerSleeps,
        /// It does not sleep any more, and has not looked at what has happened.
        ManagerAwake,
        /// It has the pipe of a handle that is sent on, and does not count the handle.
        ManagerPipeTaken,
        /// It counts the handle, and does not watch the pipe.
        ManagerLeaseCounted,
        /// It watches the pipe, and has not said so.
        ManagerLeaseWatched,
        /// A pipe is closed everywhere, and its handle is still counted.
        ManagerLeaseEnded,
        /// A client has sent a byte, and its lane is not looked at yet.
        ManagerByteHeard,
        /// It knows that a client is gone, and has not served the client's last requests.
        ManagerHangUpHeard,
        /// It has closed a client's connection. What the client had is still counted.
        ManagerClientCutOff,
        /// What a client had is free, and nobody who waited for it is told.
        ManagerClientForgotten,
        /// It is about to run a function.
        ManagerFunctionNext,
        /// A function has run, and its result is nowhere.
        ManagerFunctionRan,
        /// The result of a function is stored, and nobody is told.
        ManagerFunctionApplied,
        /// The result of a function that took long waits for the thread that leads now.
        ManagerFunctionLate,
        /// The end of a task in a pool was noted, and its reply is not sent.
        ManagerTaskAnswered,
        /// Another thread leads, because a function takes long.
        ManagerRelieved,
        /// It listens at a new address, and has not told its owner.
        GateListens,
        /// A peer has come to an address, and nothing is said.
        GateAccepted,
        /// It has heard something of a peer, and the two sides do not know each other yet.
        GateHeard,
        /// A peer at a Unix socket has been given the door.
        GateDoorGiven,
        /// A peer is known over TCP. The server's loop does not know it.
        GateFarMet,
        /// It has noticed that its owner wants it to end.
        ManagerOwnerGone,
        /// Its addresses are closed, and the files of its Unix sockets are still there.
        GateCloses,
        }
    }

    static HOOK: OnceLock<fn(Step)> = OnceLock::new();

    /// Sets the function that is called with each step that this process reaches. Only the first
    /// call has an effect.
    pub fn set_hook(hook: fn(Step)) {
        let _ = HOOK.set(hook);
    }

    /// Calls the hook, if there is one: this process has reached a step.
    pub fn reached(step: Step) {
        if let Some(hook) = HOOK.get() {
            hook(step);
        }
    }
}
