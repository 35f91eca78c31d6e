//! What a task's panic said, kept for the reply, and on the board for the case that there will be no reply.
//!
//! ```text
//!  a panic ─► the hook: its words, place and backtrace are noted     in `LAST`, of the task's thread; in `OTHERS`, of others;
//!     │                                                              on the board, for the pool, should the process end
//!     ├─ caught by the task: the note stays, and means nothing
//!     └─ caught by us: its payload says what it was; a note adds place and backtrace, if it is this panic's
//!  a task begins ─► nothing that was noted before is its
//! ```
//!
//! The last panic that was noted need not be the one that ended the task: a task may catch one and end by another, which
//! was thrown by another thread, or resumed, and passed no hook here. So a note is believed only where it is of the very
//! payload that was caught.

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

use crate::{
    error::Failure,
    id::TaskId,
    os::{fault, local, sync::lock},
    transport::board::{Board, ELSEWHERE, INITIALIZER},
};

thread_local! {
    /// The task that this thread runs; 0 for none.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
    /// The last panic of this thread while it ran the task.
    static LAST: RefCell<Option<Note>> = const { RefCell::new(None) };
}

/// The last panics of other threads since the task has begun.
static OTHERS: Mutex<Vec<Note>> = Mutex::new(Vec::new());
/// More than this are forgotten: they are there for the one that a task passes on.
const OTHERS_MAX: usize = 16;

/// Something is noted, here or on the board: a task that begins has to clear it away.
static NOTED: AtomicBool = AtomicBool::new(false);
/// One panic is written to the board at a time.
static WRITING: Mutex<()> = Mutex::new(());

/// The board of this process, and which process that is: a fork of it has a copy of the hook, and of the board the very
/// memory, and its panics are nobody's here.
static BOARD: AtomicPtr<Board> = AtomicPtr::new(std::ptr::null_mut());
static PROCESS: AtomicU32 = AtomicU32::new(0);
/// Counts the hooks that were installed: in the body of a process that was forked from a worker there are two.
static INSTALLED: AtomicU32 = AtomicU32::new(0);

/// What is known of one panic.
struct Note {
    payload: Identity,
    location: Option<String>,
    backtrace: Option<String>,
}

/// Which payload. The text of one that is not constant lies in memory of its own, which it keeps from the hook to whoever
/// catches it.
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

/// From now on, panics are noted, and those of the thread that runs tasks go no further; those of other threads go to the
/// hook before.
///
/// `aloud`: the hook before gets to know of all of them. What a task's panic says comes home with its future; the panic of
/// a process's body is that process's end, and its words belong where the last words of any program go.
pub(super) fn install(board: &'static Board, aloud: bool) {
    let number = INSTALLED.fetch_add(1, Ordering::Relaxed) + 1;
    BOARD.store(std::ptr::from_ref(board).cast_mut(), Ordering::Relaxed);
    PROCESS.store(std::process::id(), Ordering::Release);
    let previous = take_hook();
    set_hook(Box::new(move |info| {
        let ours = INSTALLED.load(Ordering::Relaxed) == number
            && PROCESS.load(Ordering::Acquire) == std::process::id();
        let task = local::get(&CURRENT);
        if ours {
            note(board, task, info);
        }
        if !ours || task == 0 || aloud {
            previous(info);
        }
    }));
}

fn note(board: &Board, task: u64, info: &PanicHookInfo<'_>) {
    NOTED.store(true, Ordering::Relaxed);
    let message = text_of(info.payload()).unwrap_or(NO_TEXT);
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let on_board = if task == 0 { ELSEWHERE } else { TaskId::from_raw(task) };
    // The second panic that std raises where unwinding must not go says less than the first, and is the process's end.
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
        // A panic while the last one is being looked at cannot be: this thread is here.
        let _ = LAST.try_with(|last| {
            if let Ok(mut last) = last.try_borrow_mut() {
                *last = Some(note);
            }
        });
    }
}

const NO_TEXT: &str = "(a panic payload that is no text)";

/// Marks what this thread runs; cleared on drop.
pub(super) struct Running;

impl Running {
    /// What was noted before belongs to others: from here on, what is noted is this task's.
    pub(super) fn task(task: TaskId) -> Running {
        if NOTED.load(Ordering::Relaxed) {
            forget();
        }
        fault::forget();
        // The initializer has number 0 on the wire; here that means "none".
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
    // A fork that has installed nothing of its own has its parent's board, whose notes are its parent's.
    if PROCESS.load(Ordering::Acquire) != std::process::id() {
        return;
    }
    // SAFETY: null, or the `&'static Board` of `install`.
    let board = unsafe { BOARD.load(Ordering::Relaxed).as_ref() };
    if let Some(board) = board {
        let _one = lock(&WRITING);
        board.forget_panic();
    }
}

/// Whether the caller is a task.
pub(crate) fn in_task() -> bool {
    local::get(&CURRENT) != 0
}

/// What is to be told of a panic that was caught: its own words, and place and backtrace where they are known to be its.
pub(super) fn caught(payload: &(dyn Any + Send)) -> Failure {
    let identity = Identity::of(payload);
    let mut failure =
        Failure { message: text_of(payload).unwrap_or(NO_TEXT).to_owned(), ..Failure::default() };
    let own = LAST.try_with(RefCell::take).ok().flatten();
    let others = std::mem::take(&mut *lock(&OTHERS));
    let mut notes = own.into_iter().chain(others).filter(|note| note.payload == identity);
    let Some(note) = notes.next() else { return failure };
    let mut rest = notes.peekable();
    if rest.peek().is_none() {
        failure.backtrace = note.backtrace;
    }
    // Constant texts lie in one place, wherever they are thrown: where two threads threw the same, nobody knows which.
    if rest.all(|other| other.location == note.location) {
        failure.location = note.location;
    }
    failure
}
