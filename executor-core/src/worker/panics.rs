//! What a task's panic said, kept for the reply, and on the board for the case that there will be no reply.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    cell::{Cell, RefCell},
    panic::{PanicHookInfo, set_hook, take_hook},
};

use crate::{
    error::Failure,
    id::TaskId,
    transport::board::{Board, INITIALIZER},
};

thread_local! {
    /// The task that this thread runs; 0 for none.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
    static LAST: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

/// From now on, panics of the thread that runs tasks are noted; those of other threads go to the hook before.
///
/// `aloud`: the hook before gets to know of all of them. What a task's panic says comes home with its future; the panic of
/// a process's body is that process's end, and its words belong where the last words of any program go.
pub(super) fn install(board: &'static Board, aloud: bool) {
    let previous = take_hook();
    set_hook(Box::new(move |info| {
        let task = CURRENT.get();
        if task != 0 {
            note(board, TaskId::from_raw(task), info);
        }
        if task == 0 || aloud {
            previous(info);
        }
    }));
}

fn note(board: &Board, task: TaskId, info: &PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("(a panic payload that is no text)");
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    // The second panic that std raises where unwinding must not go says less than the first.
    let consequence = message.starts_with("panic in a ");
    if !(consequence && board.has_panic(task)) {
        board.note_panic(task, &location, message);
    }
    let backtrace = Backtrace::capture();
    let failure = Failure {
        message: message.to_owned(),
        location: (!location.is_empty()).then_some(location),
        backtrace: (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string()),
        ..Failure::default()
    };
    // A panic while the last one is being looked at cannot be: this thread is here.
    LAST.with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = Some(failure);
        }
    });
}

/// Marks what this thread runs; cleared on drop.
pub(super) struct Running;

impl Running {
    pub(super) fn task(task: TaskId) -> Running {
        // The initializer has number 0 on the wire; here that means "none".
        let task = if task.as_u64() == 0 { INITIALIZER } else { task };
        CURRENT.set(task.as_u64());
        Running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        CURRENT.set(0);
    }
}

/// Whether the caller is a task.
pub(crate) fn in_task() -> bool {
    CURRENT.get() != 0
}

/// What the panic that was just caught had said.
pub(super) fn last() -> Failure {
    LAST.take().unwrap_or_else(|| Failure {
        // The task has replaced the hook, or resumed an old panic.
        message: "(no message: the panic did not pass executor's hook)".into(),
        ..Failure::default()
    })
}
