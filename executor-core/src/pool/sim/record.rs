//! The world's own record: what each task is to do and how it ended, and what each process is
//! doing.

use super::*;

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Conduct {
    Returns,
    /// Replies that it has failed.
    Fails,
    /// The worker replies, and dies before it claims the next frame.
    ReturnsAndDies,
    Crashes,
    Hangs,
    /// The frame kills the worker before the worker claims it.
    Poison,
    /// Returns when as many tasks of this kind run at the same time as there may be workers.
    Meets,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Ending {
    Value,
    Failed,
    Lost,
    TimedOut,
    Cancelled,
    Shutdown,
    Broken,
}

/// What the world knows about a task.
pub(super) struct Story {
    /// The chunk in which it was submitted: the first id, and the number of tasks.
    pub(super) chunk: (TaskId, u32),
    pub(super) timeout: Option<Duration>,
    pub(super) queue_timeout: Option<Duration>,
    pub(super) bound_to: Option<u32>,
    pub(super) needs: Rc<[Need]>,
    pub(super) priority: i32,
    pub(super) conduct: Conduct,
    pub(super) takes: Duration,
    /// How often it may be tried again, and how many workers it may lose.
    pub(super) retries: u32,
    pub(super) losses: u32,
    /// Number of attempts that have failed, and of workers that were lost with them.
    pub(super) failed: u32,
    pub(super) lost: u32,
    /// Whether it is between two attempts, and not in the queue.
    pub(super) held: bool,
    /// When it was submitted, or put into the queue again.
    pub(super) submitted: Instant,
    pub(super) function: FnId,
    /// The only worker that may run it, for a task of a broadcast.
    pub(super) broadcast_to: Option<WorkerId>,
    /// The estimated running time, from calls that had ended when the task was submitted.
    pub(super) estimate: Duration,
    pub(super) begun: Option<(WorkerId, Instant)>,
    pub(super) ending: Option<Ending>,
    /// How many workers died while the task was their first one and had not begun.
    pub(super) first_in_line: u8,
    pub(super) cancel_granted: bool,
    pub(super) cancel_running_asked: bool,
    pub(super) cancel_running_granted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Life {
    /// The starter has not come to this worker.
    Ordered,
    /// The process runs, and has not said hello.
    Booting,
    /// The hello is in the socket.
    Greeted,
    /// The hello was read, and the worker serves.
    Connected,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ToWorker {
    Init,
    Run {
        base: TaskId,
        seq: u32,
        items: Items,
    },
    /// Not sent: the items of a chunk that the worker still has to run.
    Rest {
        base: TaskId,
        seq: u32,
        items: Items,
    },
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum FromWorker {
    Ready,
    Finalized,
    /// Part of the reply before: the worker reports an error, and claims nothing meanwhile.
    Reports,
    Reported,
    InitFailed,
    /// The system has refused something that the initializer needs.
    InitRefused,
    Reply(TaskId),
    /// A frame that no worker may send. The reader goes on.
    Unexpected,
    /// Bytes that are no frame. The reader ends.
    Garbage,
}

#[derive(Clone, Copy)]
pub(super) enum Running {
    Initializer {
        until: Option<Instant>,
        dies: bool,
        says: FromWorker,
    },
    Finalizer {
        until: Option<Instant>,
        dies: bool,
    },
    /// The function that is told of the error of a task.
    Report {
        until: Option<Instant>,
        dies: bool,
    },
    Task {
        task: TaskId,
        until: Option<Instant>,
        rest: Option<ToWorker>,
    },
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Word {
    Offered(u32),
    Begun(u32),
    Last(u32),
    Taken,
}

#[derive(Default)]
pub(super) struct Words {
    pub(super) sent: BTreeMap<u32, (Word, TaskId, Items)>,
    pub(super) began: Option<Instant>,
    /// The tasks that the pool has with this worker, in the order sent.
    pub(super) holding: VecDeque<TaskId>,
}

pub(super) struct Process {
    pub(super) life: Life,
    pub(super) index: u32,
    pub(super) ordered: Instant,
    /// When its process was created.
    pub(super) launched: Option<Instant>,
    /// The starter hangs, so nothing will be heard of this worker.
    pub(super) never_starts: bool,
    /// Whether the worker is stopped. It takes no step until it is continued, but SIGKILL ends it.
    pub(super) stopped: bool,
    /// Since when the pool has seen the worker stopped.
    pub(super) seen_stopped: Option<Instant>,
    pub(super) greeted: Option<Instant>,
    /// How much of a large argument the worker has taken in.
    pub(super) taken_in: u64,
    /// Whether no signal has an effect, so that the worker goes on.
    pub(super) immortal: bool,
    pub(super) dies_at: Option<Instant>,
    pub(super) frames: VecDeque<ToWorker>,
    pub(super) running: Option<Running>,
    pub(super) published: VecDeque<FromWorker>,
    pub(super) answered: Option<TaskId>,
    pub(super) begun: Vec<TaskId>,
    pub(super) words: RefCell<Words>,
    // What the pool's record of the worker says.
    pub(super) linked: bool,
    /// Whether the reader has stopped reading.
    pub(super) unread: bool,
    pub(super) reaped: bool,
    pub(super) ready: bool,
    /// When the worker was ready.
    pub(super) ready_at: Option<Instant>,
    /// When the worker was ready, or its last reply was read.
    pub(super) rested: Option<Instant>,
    /// Whether the worker was there when the number of workers became too large, and not taken out
    /// of this number since.
    pub(super) surplus: bool,
    pub(super) overdue: bool,
    /// Whether the system has refused something that the initializer needs.
    pub(super) refused: bool,
    // Reasons to end the worker.
    pub(super) caught: bool,
    pub(super) lied: bool,
    /// Since when it reports an error, by what the pool has read.
    pub(super) reports: Option<Instant>,
    /// Whether its memory has grown so much that it leaves.
    pub(super) grown: bool,
    pub(super) stop_sent: Option<Instant>,
    /// What the worker does since it was asked to leave, and since when it may take its time.
    pub(super) leaves: Option<(LastStep, Instant)>,
    /// The task that was asked to stop because of itself, and when.
    pub(super) asked: Option<(TaskId, Instant)>,
    pub(super) terminated: Option<Instant>,
    /// Whether a reply was read.
    pub(super) has_replied: bool,
    /// Whether the task for which the worker has got SIGTERM has returned.
    pub(super) outlived: bool,
    pub(super) killed: Option<Instant>,
    pub(super) killed_for: Option<TaskId>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum LastStep {
    Initializing,
    Finalizing,
    Ending,
}

impl Process {
    pub(super) fn alive(&self) -> bool {
        matches!(self.life, Life::Booting | Life::Greeted | Life::Connected)
    }

    /// Returns whether the worker will never do anything again unless it is ended.
    pub(super) fn hopeless(&self) -> bool {
        let endless = match self.running {
            Some(
                Running::Initializer { until, .. }
                | Running::Task { until, .. }
                | Running::Finalizer { until, .. }
                | Running::Report { until, .. },
            ) => until.is_none(),
            None => false,
        };
        self.never_starts || self.alive() && (self.stopped || self.immortal || endless)
    }

    pub(super) fn publish(&mut self, message: FromWorker) {
        if self.unread {
            // The channel is closed, so the worker ends itself.
            self.die();
        } else {
            self.published.push_back(message);
        }
    }

    pub(super) fn die(&mut self) {
        self.life = Life::Dead;
        self.dies_at = None;
        self.running = None;
        self.frames.clear();
    }
}
