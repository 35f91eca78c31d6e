//! The child's loop.

use std::{io, os::fd::OwnedFd};

use super::{call::Caller, panics, watcher};
use crate::{
    id::TaskId,
    os::{clock, fault},
    transport::{Closed, WorkerEnd},
    wire::frame::{Header, Items, Kind, flag, item_of},
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
    let mut stopwatch = Stopwatch::default();
    loop {
        let Ok(frame) = end.recv() else { watcher::end_group() };
        if end.has_waited() {
            stopwatch.start();
        }
        let header = frame.header;
        let run = Run { end: &mut end, caller: &mut caller, stopwatch: &mut stopwatch, header };
        let replied = match header.kind {
            Kind::Stop => return Ok(()),
            Kind::Init => run.initialize(&frame.payload),
            Kind::Run => run.run(&frame.payload),
            // Only a broken parent sends anything else.
            _ => watcher::end_group(),
        };
        if replied.is_err() {
            watcher::end_group();
        }
    }
}

/// One frame that asks for work.
struct Run<'a, E> {
    end: &'a mut E,
    caller: &'a mut Caller,
    stopwatch: &'a mut Stopwatch,
    header: Header,
}

impl<E: WorkerEnd> Run<'_, E> {
    fn initialize(self, arguments: &[u8]) -> Result<(), Closed> {
        let Run { end, caller, header, .. } = self;
        caller.call(header.task, header.function, arguments, false, |kind, payload| match kind {
            // An initializer's value is nobody's: that it has run is the answer.
            Kind::Done => end.reply(Header::new(Kind::Ready), &[]),
            kind => end.reply(Header { task: header.task, ..Header::new(kind) }, payload),
        })
    }

    /// Runs the items one after the other. Each is claimed before a byte of its arguments is looked at.
    fn run(mut self, payload: &[u8]) -> Result<(), Closed> {
        let Items { first, count } = self.header.items;
        let board = self.end.board();
        if !board.claim(self.header.seq, first, self.header.flags & flag::TIMED != 0) {
            return Ok(());
        }
        if self.header.flags & flag::RUN == 0 {
            return self.call(0, payload);
        }
        for item in first..count {
            if item > first && !board.claim_next(self.header.seq, item) {
                // What is left was taken back.
                return Ok(());
            }
            let Some(arguments) = item_of(payload, item) else { watcher::end_group() };
            self.call(item, arguments)?;
        }
        Ok(())
    }

    fn call(&mut self, item: u32, arguments: &[u8]) -> Result<(), Closed> {
        let Run { end, caller, stopwatch, header } = self;
        let task = TaskId::from_raw(header.task.as_u64() + u64::from(item));
        let check = header.flags & flag::CHECK != 0;
        caller.call(task, header.function, arguments, check, |kind, payload| {
            end.reply(Header { task, nanos: stopwatch.lap(), ..Header::new(kind) }, payload)
        })
    }
}

/// How long calls take, on average over some while they are short: to look at the clock takes as long as a short call.
#[derive(Default)]
struct Stopwatch {
    since: u64,
    calls: u64,
    every: u64,
    average: u64,
}

impl Stopwatch {
    /// Calls shorter than this are measured together,
    const SHORT_NANOS: u64 = 2_000;
    /// this many at most.
    const TOGETHER_MAX: u64 = 16;

    fn start(&mut self) {
        self.since = clock::now_nanos();
        self.calls = 0;
    }

    /// A call has ended: how long it took, as far as is known.
    fn lap(&mut self) -> u64 {
        self.calls += 1;
        if self.calls >= self.every {
            let now = clock::now_nanos();
            self.average = (now - self.since) / self.calls;
            self.since = now;
            self.calls = 0;
            let short = self.average < Self::SHORT_NANOS;
            self.every = if short { (self.every * 2).clamp(1, Self::TOGETHER_MAX) } else { 1 };
        }
        self.average
    }
}
