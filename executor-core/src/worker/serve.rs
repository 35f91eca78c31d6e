//! The child's loop.

use std::{io, os::fd::OwnedFd};

use super::{call::Caller, panics, watcher};
use crate::{
    os::fault,
    transport::WorkerEnd,
    wire::frame::{Header, Kind, flag},
};

/// Receives, calls, replies, until told to stop. `control` stays open until the process ends: it is how the parent sees
/// us.
pub(super) fn serve(mut end: impl WorkerEnd + 'static, control: OwnedFd) -> io::Result<()> {
    // Not closed by us: a task that closes what it does not own may have done so, and std ends a process with words of
    // its own that closes a descriptor twice.
    std::mem::forget(control);
    // The panic hook and the fault handler may need it at any time until the process ends.
    let board = end.board();
    panics::install(board);
    fault::watch_this_stack(&board.stack_overflow);
    let mut caller = Caller::default();
    loop {
        let Ok(frame) = end.recv() else { watcher::end_group() };
        let header = frame.header;
        let replied = match header.kind {
            Kind::Stop => return Ok(()),
            Kind::Run if !end.claim(&header) => Ok(()),
            Kind::Run | Kind::Init => {
                let check = header.flags & flag::CHECK != 0;
                caller.call(header.task, header.function, &frame.payload, check, |kind, payload| {
                    // An initializer's value is nobody's: that it has run is the answer.
                    let ready = header.kind == Kind::Init && kind == Kind::Done;
                    let kind = if ready { Kind::Ready } else { kind };
                    let payload = if ready { &[] } else { payload };
                    end.reply(Header { task: header.task, ..Header::new(kind) }, payload)
                })
            }
            // Only a broken parent sends anything else.
            _ => watcher::end_group(),
        };
        if replied.is_err() {
            watcher::end_group();
        }
    }
}
