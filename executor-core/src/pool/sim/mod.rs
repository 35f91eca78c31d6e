//! A seeded simulation: the real [`Scheduler`] among workers that crash, hang, are stopped or slow,
//! and lie.
//!
//! ```text
//!  World ── user: submit, cancel, cancel_running, resize, shutdown, kill ──┐
//!    │ ─── driver: hello, replies in batches, deaths drained first, ticks ─┤ event ──► Scheduler
//!    │ ─── workers: a claim word for each slot, frames in, replies out,    │             │
//!    │              a process that may be dead before its end is seen      └── perform ◄─┘ actions
//!    └─► after each event: the scheduler's promises are checked against the world's own record
//! ```
//!
//! | file | what it holds |
//! |---|---|
//! | `ticket`, `boards` | what the scheduler sees: chunks of tasks, and the claims of workers |
//! | `record` | the world's own record of each task and process |
//! | `world` | an event goes in, its actions are carried out |
//! | `judgement` | whether the scheduler was right |
//! | `user`, `driver`, `workers` | who acts |
//! | `turns`, `climate` | time and chance |
//! | `cases` | what is asserted |
//!
//! There is no process, no thread and no clock: time is a number that the world moves. The world
//! keeps its own record of what happened ([`Story`], [`Process`]), and never asks the scheduler for
//! it.
//!
//! `EXECUTOR_ROUNDS=10000` runs that many seeds. `EXECUTOR_SEED=17` runs one seed. A failure prints
//! its seed and the last events.

mod boards;
mod cases;
mod climate;
mod driver;
mod judgement;
mod record;
mod ticket;
mod turns;
mod user;
mod workers;
mod world;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    time::{Duration, Instant},
};

use boards::Boards;
use climate::{Climate, Dice};
use record::{
    Conduct, Ending, FromWorker, LastStep, Life, Process, Running, Story, ToWorker, Word, Words,
};
use ticket::{Ticket, ids, item};
use world::{Neglect, Step, World};

use super::scheduler::{
    Action, Claims, Config, End, Graces, Lifespan, Replied, ReplyToNobody, Scheduled, Scheduler,
    Shutdown, Stopped,
};
use crate::{
    error::{BrokenCause, ExitStatus, Phase, TaskError},
    id::{FnId, TaskId, WorkerId},
    task::Need,
    transport::board::Begun,
    wire::frame::Items,
};

const ROUNDS: u64 = 300;
const TRACE_LEN: usize = 40;
const A_MOMENT: Duration = Duration::from_millis(20);
/// How long an initializer takes at most, unless it hangs.
const INITIALIZER_MAX: Duration = Duration::from_millis(100);
/// Limits that the scheduler promises. They are repeated here, so that a change there is noticed.
const STOP_GRACE: Duration = Duration::from_secs(5);
const KILL_GRACE: Duration = Duration::from_secs(5);
const STOPPED_GRACE: Duration = Duration::from_secs(2);
const START_FAILURES_MAX: usize = 5;
const START_FAILURES_PERIOD: Duration = Duration::from_secs(10);
/// How soon after it was ready a worker dies young.
const YOUNG: Duration = Duration::from_secs(2);
/// The shortest time between such a death and the next start.
const BACK_OFF: Duration = Duration::from_millis(20);
const LOST_UNBEGUN_MAX: u8 = 3;
/// How many workers a task with retries may end.
const LOSSES: u32 = 3;

/// Everything that may happen. Each kind is counted, and none may be missing over the default
/// number of rounds.
const KINDS: &[&str] = &[
    "submit",
    "submit: with a timeout",
    "submit: with a limit on waiting",
    "submit: with retries",
    "submit: with a priority",
    "submit: bound to a worker",
    "submit: needs tokens",
    "sent with tokens",
    "submit: a chunk of several",
    "submit: refused",
    "broadcast",
    "broadcast: to a worker that has left",
    "broadcast: to one that is ordered",
    "broadcast: sent to one that is to leave",
    "cancel: withdrawn",
    "cancel: too late",
    "cancel: a chunk",
    "cancel_running: withdrawn",
    "cancel_running: asks",
    "cancel_running: kills",
    "cancel_running: too late",
    "shutdown",
    "shutdown: cancel pending",
    "shutdown: deadline",
    "shutdown: with a limit for the whole",
    "asked: for a task",
    "asked: the pool ends",
    "asked: stops in time",
    "terminated: for a task",
    "terminated: the task returns",
    "runs its finalizer",
    "a finalizer ends",
    "a finalizer has no result",
    "dies in the finalizer",
    "ready to leave",
    "kill: at once",
    "kill: terminate first",
    "broken from outside",
    "tick: due",
    "tick: early",
    "start: a process",
    "start: refused",
    "start: never answers",
    "start: overdue signal",
    "hello",
    "hello: nobody wants it",
    "hello: connecting fails",
    "ready",
    "initializer fails",
    "initializer is refused",
    "dies before hello",
    "dies in the initializer",
    "hangs in the initializer",
    "an initializer takes too long",
    "claims",
    "claims the next of a chunk",
    "skips what was taken back",
    "skips the rest of a chunk",
    "a chunk is split",
    "publishes a reply",
    "reply: value",
    "reply: too late",
    "reply: failed, perhaps to be tried again",
    "an attempt fails",
    "an attempt is lost",
    "an attempt times out",
    "decided: again at once",
    "decided: again later",
    "decided: not again",
    "decided too late",
    "batch of replies",
    "dies in a task",
    "dies between reply and claim",
    "dies of a frame, before the claim",
    "dies idle",
    "dies right after it was ready",
    "dies after publishing, unseen",
    "leaves by its limit",
    "leaves: idle",
    "leaves: old",
    "leaves: too many",
    "leaves: too many, after its task",
    "resize: grows",
    "resize: shrinks",
    "resize: one that was about to leave stays",
    "has grown",
    "reports an error",
    "has reported",
    "dies while it reports",
    "leaves because it has grown",
    "exits as asked",
    "ignores stop",
    "ignores SIGTERM",
    "obeys SIGTERM",
    "hangs in a task",
    "is stopped",
    "goes on",
    "lies: a task it does not have",
    "lies: answers twice",
    "lies: out of order",
    "lies: garbage",
    "violates the protocol",
    "SIGKILL takes time",
    "SIGKILL without effect",
    "exit",
    "exit: of one given up",
    "exit: after a refusal",
    "given up",
    "a worker that was given up reads on",
    "killed: for a task",
    "killed: pool ends",
    "killed: start timeout",
    "killed: initializer timeout",
    "killed: initializer refused",
    "killed: protocol violation",
    "killed: deaf",
    "killed: did not stop",
    "killed: finalizer timeout",
    "killed: stopped",
    "killed: reports for too long",
    "seen stopped",
    "seen stopped: several at once",
    "seen to go on",
    "end: value",
    "end: value, at a later attempt",
    "end: failed",
    "end: waited too long, at a later attempt",
    "end: cancelled between two attempts",
    "end: lost, begun",
    "end: lost, of a broadcast",
    "end: lost, first in line three times",
    "end: timed out",
    "end: waited too long, queued",
    "end: waited too long, sent ahead",
    "end: cancelled",
    "end: cancelled by shutdown",
    "end: cancelled while running",
    "end: shutdown",
    "end: broken",
    "closed",
];
