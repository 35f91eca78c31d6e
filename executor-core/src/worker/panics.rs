//! Records the panics of tasks: for the reply, and on the board, in case there is no reply.
//!
//! ```text
//!  a panic ─► the hook records its message, location and backtrace:
//!     │         in `LAST` for the task's thread, in `OTHERS` for other threads, and
//!     │         on the board, which the pool reads if the process ends
//!     ├─ caught by the task: the record stays, and is not used
//!     └─ caught by this library: the payload has the message; a record adds location and
//!        backtrace, if it belongs to this panic
//!  a task begins ─► it discards all earlier records
//! ```
//!
//! The panic that was recorded last need not be the one that ended the task. A task may catch one
//! panic, and end by another one that another thread has thrown, or that was resumed and so did not
//! call the hook. So a record is used only if it belongs to the payload that was caught.

use std::{
    any::{Any, TypeId},
    backtrace::{Backtrace, BacktraceStatus},
    cell::{Cell, RefCell},
    panic::{PanicHookInfo, set_hook, take_hook},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering},
    },
};

use super::body::BODY;
use crate::{
    error::Failure,
    id::TaskId,
    os::{fault, local, std_or_model::lock},
    transport::board::{Board, ELSEWHERE, INITIALIZER},
};

thread_local! {
    /// The task that this thread is running, or 0 if it runs none.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
    /// The last panic of this thread while it ran the task.
    static LAST: RefCell<Option<Note>> = const { RefCell::new(None) };
}

/// The last panics of other threads since the task began.
static OTHERS: Mutex<Vec<Note>> = Mutex::new(Vec::new());
/// Maximum number of records in `OTHERS`; older ones are discarded. They are needed only if a task
/// passes on a panic of another thread.
const OTHERS_MAX: usize = 16;

/// Whether there is a record, here or on the board, that the next task has to discard.
static NOTED: AtomicBool = AtomicBool::new(false);
/// Held while a panic is written to the board. The board takes one at a time.
static WRITING: Mutex<()> = Mutex::new(());

/// The board of this process. `PROCESS` is the id of this process. A fork of it has a copy of the
/// hook, and shares the board's memory, but its panics must not be recorded here.
static BOARD: AtomicPtr<Board> = AtomicPtr::new(std::ptr::null_mut());
/// The process that has installed the hook: see `BOARD`.
static PROCESS: AtomicU32 = AtomicU32::new(0);
/// Number of hooks that were installed. In a process with one task that was forked from a worker,
/// there are two.
static INSTALLED: AtomicU32 = AtomicU32::new(0);

/// The record of one panic.
struct Note {
    payload: Identity,
    location: Option<String>,
    backtrace: Option<String>,
}

/// Identifies the payload of a panic. The text of a `String` is in memory of its own, which the
/// payload keeps from the hook to the place where the panic is caught. So its address identifies
/// it.
#[derive(PartialEq)]
enum Identity {
    Text { at: usize, text: String },
    NoText(TypeId),
}

impl Identity {
    fn of(payload: &(dyn Any + Send)) -> Self {
        match text_of(payload) {
            Some(text) => Identity::Text { at: text.as_ptr().addr(), text: text.to_owned() },
            None => Identity::NoText(payload.type_id()),
        }
    }
}

fn text_of(payload: &(dyn Any + Send)) -> Option<&str> {
    let constant = payload.downcast_ref::<&'static str>().copied();
    constant.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

/// Installs a panic hook that records panics. A panic of a thread that runs a task is not passed on
/// to the previous hook. A panic of another thread is.
///
/// With `aloud`, the panic of a process's body is passed on to the previous hook, too. The message
/// of a task's panic is reported by the task's future. The panic of a body ends the process, so its
/// message is printed, like that of any program.
pub(super) fn install(board: &'static Board, aloud: bool) {
    let number = INSTALLED.fetch_add(1, Ordering::Relaxed) + 1;
    BOARD.store(std::ptr::from_ref(board).cast_mut(), Ordering::Relaxed);
    PROCESS.store(std::process::id(), Ordering::Release);
    let previous = take_hook();
    set_hook(Box::new(move |info| {
        // In a fork, and in the hook that a later `install` has replaced, nothing is recorded.
        let ours = INSTALLED.load(Ordering::Relaxed) == number
            && PROCESS.load(Ordering::Acquire) == std::process::id();
        let task = local::get(&CURRENT);
        if ours {
            note(board, task, info);
        }
        if !ours || task == 0 || aloud && task == BODY.as_u64() {
            previous(info);
        }
    }));
}

fn note(board: &Board, task: u64, info: &PanicHookInfo<'_>) {
    NOTED.store(true, Ordering::Relaxed);
    let message = text_of(info.payload()).unwrap_or(NO_TEXT);
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let on_board = if task == 0 { ELSEWHERE } else { TaskId::from_raw(task) };
    // If a panic must not unwind, std raises a second one, which ends the process. Its message says
    // less than the first one's.
    let consequence = message.starts_with("panic in a ");
    let fatal = consequence || cfg!(panic = "abort");
    {
        let _one = lock(&WRITING);
        if consequence && board.has_panic(on_board) {
            board.note_fatal();
        } else {
            board.note_panic(on_board, &location, message, fatal);
        }
    }
    let backtrace = Backtrace::capture();
    let note = Note {
        payload: Identity::of(info.payload()),
        location: (!location.is_empty()).then_some(location),
        backtrace: (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string()),
    };
    if task == 0 {
        let mut others = lock(&OTHERS);
        if others.len() >= OTHERS_MAX {
            others.remove(0);
        }
        others.push(note);
    } else {
        // The borrow can fail only if this thread panics while it reads the record, which does not
        // happen.
        let _ = LAST.try_with(|last| {
            if let Ok(mut last) = last.try_borrow_mut() {
                *last = Some(note);
            }
        });
    }
}

const NO_TEXT: &str = "(a panic payload that is no text)";

/// Marks this thread as running a task. Dropping it removes the mark.
pub(super) struct Running;

impl Running {
    /// Marks this thread as running `task`, and discards the records of earlier panics.
    pub(super) fn task(task: TaskId) -> Running {
        if NOTED.load(Ordering::Relaxed) {
            forget();
        }
        fault::forget();
        // The initializer has number 0 on the wire, but 0 means "no task" here.
        let task = if task.as_u64() == 0 { INITIALIZER } else { task };
        local::set(&CURRENT, task.as_u64());
        Running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        local::set(&CURRENT, 0);
    }
}

#[cold]
fn forget() {
    NOTED.store(false, Ordering::Relaxed);
    let _ = LAST.try_with(RefCell::take);
    lock(&OTHERS).clear();
    // A fork that has not installed a hook has its parent's board. The records there belong to the
    // parent.
    if PROCESS.load(Ordering::Acquire) != std::process::id() {
        return;
    }
    // SAFETY: the pointer is null, or the `&'static Board` that was passed to `install`.
    let board = unsafe { BOARD.load(Ordering::Relaxed).as_ref() };
    if let Some(board) = board {
        let _one = lock(&WRITING);
        board.forget_panic();
    }
}

/// Returns whether the calling thread is running a task.
pub(crate) fn in_task() -> bool {
    local::get(&CURRENT) != 0
}

/// Describes a panic that was caught: its message, and its location and backtrace if a record
/// certainly belongs to it.
pub(super) fn caught(payload: &(dyn Any + Send)) -> Failure {
    let identity = Identity::of(payload);
    let mut failure =
        Failure { message: text_of(payload).unwrap_or(NO_TEXT).to_owned(), ..Failure::default() };
    let own = LAST.try_with(RefCell::take).ok().flatten();
    let others = std::mem::take(&mut *lock(&OTHERS));
    let mut notes = own.into_iter().chain(others).filter(|note| note.payload == identity);
    let Some(note) = notes.next() else { return failure };
    let mut rest = notes.peekable();
    // With several records of this payload, it is unknown which backtrace is the right one.
    if rest.peek().is_none() {
        failure.backtrace = note.backtrace;
    }
    // A constant text has the same address wherever it is thrown, so two threads may have thrown
    // the same one. The location is used only if all records agree on it.
    if rest.all(|other| other.location == note.location) {
        failure.location = note.location;
    }
    failure
}
