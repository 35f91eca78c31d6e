//! The worker's loop: receive a frame, run the call, reply.

use std::{io, os::fd::OwnedFd, sync::Arc};

use super::{
    ancillary::{self, Arguments, Arrived, Control},
    call::Caller,
    cancellation, error_hook,
    guard::Guard,
    panics, watcher,
};
use crate::{
    error::TaskFailure,
    id::TaskId,
    os::{available_memory::has_memory_for, clock, crash_report, fault, meter::Meter},
    registry,
    segment::Store,
    transport::{Closed, WorkerEnd},
    wire::{
        attachment::Attachment,
        buffer::Contents,
        frame::{FromWorker, Items, Order, Reply, ToWorker, flag, item_of},
        handshake::ErrorHook,
        measured::Measured,
        payload::Reference,
    },
};

/// The memory for large values: the pool's arguments, and the store for this worker's results.
/// `None` if the parent could not create it.
pub(super) type Arenas = Option<(Arguments, Arc<Store>)>;

/// Receives frames, runs calls and replies, until it receives the order to stop. The control socket
/// stays open until the process ends, because the parent notices the end of this process by it.
pub(super) fn serve(
    mut end: impl WorkerEnd + 'static,
    control: &'static OwnedFd,
    arenas: Arenas,
    mut guard: Guard,
    (reports_crash, hook): (bool, Option<ErrorHook>),
) -> io::Result<()> {
    let control = Control::new(control);
    let (mut arguments, results) = arenas.unzip();
    // The panic hook and the fault handler may use the board at any time until the process ends.
    let board = end.board();
    panics::install(board, false);
    cancellation::install(board);
    fault::watch_this_stack(&board.stack_overflow);
    if reports_crash {
        crash_report::enable();
    }
    let mut caller = Caller::new(results);
    let mut stopwatch = Stopwatch::default();
    // Whether the initializer has failed. A finalizer relies on what it has set up.
    let mut is_unfit = false;
    kill_point!(ServeBegins);
    loop {
        // The connection is closed: the parent is gone, or has given up this worker.
        let Ok(frame) = end.recv() else { watcher::end_group() };
        // The time that was spent waiting for this frame is not part of a call.
        if end.has_waited() {
            stopwatch.start();
        }
        let header = frame.header;
        // Receive the descriptors even if the task was taken back, because each frame with
        // descriptors has its own message on the control socket. If they cannot be received, this
        // worker cannot begin any task. It ends, and the tasks that were sent to it run elsewhere.
        let attachments = match control.receive(&header) {
            Ok(attachments) => attachments,
            Err(error) if header.order != Order::Run => {
                let text = format!("the descriptors of its arguments cannot be received: {error}");
                if end.reply(FromWorker::new(Reply::Refused), text.as_bytes()).is_err() {
                    watcher::end_group();
                }
                if header.order == Order::Stop {
                    return Ok(());
                }
                // When an initializer was refused, the pool sends only the order to stop.
                is_unfit = true;
                continue;
            }
            Err(_) => watcher::end_group(),
        };
        let located = ancillary::locate(&mut arguments, &header, &frame.payload);
        kill_point!(ArgumentsLocated);
        let job = Job {
            end: &mut end,
            caller: &mut caller,
            stopwatch: &mut stopwatch,
            guard: &mut guard,
            control: &control,
            hook,
            header,
            arguments: located.map(|bytes| Arrived { bytes, attachments }),
        };
        let replied: Result<(), Ended> = match header.order {
            Order::Stop => {
                kill_point!(StopRead);
                if header.flags & flag::FINALIZES != 0 && !is_unfit && job.finalize().is_err() {
                    watcher::end_group();
                }
                return Ok(());
            }
            Order::Init => job.initialize().map(|is_fit| is_unfit = !is_fit),
            Order::Run => job.run(),
        };
        if replied.is_err() {
            watcher::end_group();
        }
    }
}

/// The connection is closed. The reason does not matter here, so that this is cheaper to return for
/// each call than [`Closed`].
struct Ended;

impl From<Closed> for Ended {
    fn from(_: Closed) -> Self {
        Ended
    }
}

/// A frame that asks for work, and what is needed to do it.
struct Job<'a, E> {
    end: &'a mut E,
    caller: &'a mut Caller,
    stopwatch: &'a mut Stopwatch,
    guard: &'a mut Guard,
    control: &'a Control,
    /// What is called when a task has failed.
    hook: Option<ErrorHook>,
    header: ToWorker,
    /// The arguments. They must not be read before they are claimed.
    arguments: io::Result<Arrived<'a>>,
}

impl<E: WorkerEnd> Job<'_, E> {
    /// Runs the initializer, and reports whether it has succeeded. Returns the same.
    fn initialize(mut self) -> Result<bool, Ended> {
        let arguments = std::mem::replace(&mut self.arguments, Err(io::ErrorKind::Other.into()));
        let Job { end, caller, guard, control, header, .. } = self;
        kill_point!(InitBegins);
        let mut arguments = match arguments {
            Ok(arguments) => arguments,
            Err(error) => {
                end.reply(FromWorker::new(Reply::Refused), unmapped(&error).as_bytes())?;
                return Ok(false);
            }
        };
        guard.task_begins();
        caller.call(header.task, header.function, &mut arguments, |kind, contents, attachments| {
            guard.initializer_ends();
            match kind {
                // The value of the initializer is not sent. `Ready` says that it has run.
                Reply::Done => {
                    kill_point!(InitEnds);
                    end.reply(FromWorker::new(Reply::Ready), &[])?;
                    Ok(true)
                }
                kind => reply(
                    end,
                    control,
                    FromWorker { task: header.task, ..FromWorker::new(kind) },
                    contents,
                    attachments,
                )
                .map(|()| false),
            }
        })
    }

    /// Runs the finalizer, and reports how it has ended.
    fn finalize(mut self) -> Result<(), Ended> {
        let arguments = std::mem::replace(&mut self.arguments, Err(io::ErrorKind::Other.into()));
        let Job { end, caller, guard, control, header, .. } = self;
        let mut arguments = match arguments {
            Ok(arguments) => arguments,
            Err(error) => {
                let header = FromWorker::new(Reply::Refused);
                return Ok(end.reply(header, unmapped(&error).as_bytes())?);
            }
        };
        // The limits of tasks are for it, too.
        guard.task_begins();
        caller.call(header.task, header.function, &mut arguments, |kind, contents, attachments| {
            guard.finalizer_ends();
            let header = FromWorker { task: header.task, ..FromWorker::new(kind) };
            kill_point!(Finalized);
            reply(end, control, header, contents, attachments)
        })
    }

    /// Runs the items of the frame one after the other. Each item is claimed before its arguments
    /// are read.
    fn run(mut self) -> Result<(), Ended> {
        let Items { first, count } = self.header.items;
        let board = self.end.board();
        board.forget_ask();
        kill_point!(BeforeClaim);
        self.guard.task_begins();
        if !board.claim(self.header.seq, first, self.header.flags & flag::TIMED != 0) {
            kill_point!(ClaimRefused);
            self.guard.task_left();
            return Ok(());
        }
        kill_point!(Claimed);
        cancellation::sending(self.header.seq);
        let mut arguments =
            std::mem::replace(&mut self.arguments, Err(io::ErrorKind::Other.into()));
        if self.header.flags & flag::CHUNK == 0 {
            return match &mut arguments {
                Ok(arguments) => self.call(0, arguments),
                Err(error) => self.refuse(0, error),
            };
        }
        // A task with descriptors is never in a chunk with others.
        let mut one = Arrived { bytes: &[], attachments: Vec::new() };
        for item in first..count {
            if item > first {
                kill_point!(BeforeClaimNext);
                self.guard.task_begins();
                if !board.claim_next(self.header.seq, item) {
                    // The pool has taken back the remaining items.
                    kill_point!(NextRefused);
                    self.guard.task_left();
                    return Ok(());
                }
                kill_point!(NextClaimed);
            }
            match &arguments {
                Ok(all) => {
                    let Some(bytes) = item_of(all.bytes, item) else { watcher::end_group() };
                    one.bytes = bytes;
                    self.call(item, &mut one)?;
                }
                Err(error) => self.refuse(item, error)?,
            }
        }
        Ok(())
    }

    /// Returns the id of an item.
    fn task(&self, item: u32) -> TaskId {
        TaskId::from_raw(self.header.task.as_u64() + u64::from(item))
    }

    /// Replies that the memory of the arguments cannot be mapped.
    #[cold]
    fn refuse(&mut self, item: u32, error: &io::Error) -> Result<(), Ended> {
        let header = FromWorker { task: self.task(item), ..FromWorker::new(Reply::Refused) };
        self.guard.task_left();
        Ok(self.end.reply(header, unmapped(error).as_bytes())?)
    }

    /// Runs one item and replies.
    fn call(&mut self, item: u32, arguments: &mut Arrived<'_>) -> Result<(), Ended> {
        let task = self.task(item);
        let Job { end, caller, stopwatch, guard, control, header, hook, .. } = self;
        let mut failed = None;
        cancellation::begin();
        let meter = (header.flags & flag::MEASURED != 0).then(|| {
            caller.notes_decoded(true);
            Meter::begin()
        });
        let is_measured = meter.is_some();
        let replied =
            caller.call(task, header.function, arguments, |kind, contents, attachments| {
                if let Some(meter) = meter {
                    let header = FromWorker { task, ..FromWorker::new(Reply::Usage) };
                    end.reply(header, &measured(&meter).to_bytes())?;
                    kill_point!(UsageSent);
                }
                let mut flags = if guard.task_ends() { flag::GROWN } else { 0 };
                if hook.is_some() && kind != Reply::Done {
                    let (function, attempts) = (header.function, header.failed);
                    failed = error_hook::failure(task, function, attempts, kind, &contents);
                    flags |= if failed.is_some() { flag::REPORTS } else { 0 };
                }
                let header =
                    FromWorker { task, nanos: stopwatch.lap(), flags, ..FromWorker::new(kind) };
                reply(*end, control, header, contents, attachments)
            });
        cancellation::end();
        if is_measured {
            caller.notes_decoded(false);
        }
        match failed {
            Some(failure) => replied.and_then(|()| self.report(task, &failure)),
            None => replied,
        }
    }

    /// Runs the function that is told of errors.
    #[cold]
    fn report(&mut self, task: TaskId, failure: &TaskFailure) -> Result<(), Ended> {
        let Job { end, caller, stopwatch, guard, hook, header, .. } = self;
        if let Some(hook) = hook {
            // The limits of tasks are for it, too.
            guard.task_begins();
            // Not the hook was asked to stop, but the task, which has ended.
            cancellation::sending(0);
            cancellation::begin();
            error_hook::run(*hook, caller, task, failure);
            cancellation::end();
            cancellation::sending(header.seq);
            guard.task_ends();
        }
        // Its time is not that of the next task.
        stopwatch.start();
        Ok(end.reply(FromWorker::new(Reply::Reported), &[])?)
    }
}

/// Returns what this worker has used.
fn measured(meter: &Meter) -> Measured {
    let used = meter.end();
    Measured {
        began_nanos: used.began_nanos,
        // If they could not be decoded, the attempt took all the time.
        decoded_nanos: registry::decoded_nanos().unwrap_or(used.ended_nanos),
        ended_nanos: used.ended_nanos,
        user_micros: used.user_micros,
        system_micros: used.system_micros,
        peak_memory: used.peak_memory,
        minor_faults: used.minor_faults,
        major_faults: used.major_faults,
        private_memory: used.private_memory,
    }
}

/// Returns the error for arguments in a segment that cannot be mapped.
fn unmapped(error: &io::Error) -> String {
    format!("the memory of its arguments cannot be read: {error}")
}

/// A result of this length or more that is sent in parts is sent only if there is enough memory
/// available: see `os/available_memory.rs`. Otherwise the pool could run out of memory while it
/// collects the parts, and would end this worker then.
const ASKED_FROM: usize = 64 << 20;

/// Replies with the encoded result, from the frame buffer or from a segment.
fn reply<E: WorkerEnd>(
    end: &mut E,
    control: &Control,
    mut header: FromWorker,
    contents: Contents<'_>,
    attachments: &[Attachment],
) -> Result<(), Ended> {
    if !attachments.is_empty() {
        // Send the descriptors first, so that the pool finds them when it receives the frame.
        if let Err(error) = control.send(header.task, attachments) {
            let text = format!("the descriptors of its result cannot be sent: {error}");
            end.reply(FromWorker { reply: Reply::Refused, ..header }, text.as_bytes())?;
            return Ok(());
        }
        header.flags |= flag::ATTACHED;
        kill_point!(AttachmentsSent);
    }
    let replied = match contents {
        Contents::Bytes(bytes)
            if bytes.len() >= ASKED_FROM && !has_memory_for(bytes.len() as u64) =>
        {
            let text = format!(
                "there is no memory to bring its {} bytes to the program that waits for them",
                bytes.len()
            );
            end.reply(FromWorker { reply: Reply::Refused, ..header }, text.as_bytes())
        }
        Contents::Bytes(bytes) => end.reply(header, bytes),
        Contents::Segment(number, len) => {
            header.flags |= flag::SEGMENT;
            end.reply(header, &Reference { number: u64::from(number), len: len as u64 }.to_bytes())
        }
    };
    Ok(replied?)
}

/// Measures how long calls take. Reading the clock takes as long as a short call, so short calls
/// are measured together, and their average is used.
#[derive(Default)]
struct Stopwatch {
    /// The time at which the current measurement began.
    since: u64,
    /// Number of calls since then.
    calls: u64,
    /// Number of calls that are measured together.
    every: u64,
    /// The average duration of a call in nanoseconds, as last reported.
    reported: u64,
}

impl Stopwatch {
    /// If calls take less than this on average, they are measured together.
    const SHORT_NANOS: u64 = 2_000;
    /// Maximum number of calls that are measured together.
    const TOGETHER_MAX: u64 = 16;
    /// An average that is higher than the one before by this factor counts only if the next call
    /// took as long. Otherwise the pool would take each call after it for a long one, wake another
    /// worker for it, and that worker could take the processor from this one again.
    const JUMP: u64 = 8;
    /// A new average is reported if it differs by more than this part from the one reported last.
    /// A lower value makes the replies of short calls need headers of their own (see
    /// [`FromWorker::precedes`]). A higher value makes the pool's estimates less exact.
    const DIFFERENCE: u64 = 4;

    /// Begins a measurement.
    fn start(&mut self) {
        self.since = clock::now_nanos();
        self.calls = 0;
    }

    /// Called when a call has ended. Returns its duration, as far as it is known. For short calls
    /// this is an average, and the same as before if it has hardly changed.
    fn lap(&mut self) -> u64 {
        self.calls += 1;
        if self.calls >= self.every {
            let now = clock::now_nanos();
            let average = (now - self.since) / self.calls;
            self.since = now;
            self.calls = 0;
            let short = average < Self::SHORT_NANOS;
            // Another process may have had the processor meanwhile.
            if self.every > 1 && average > self.reported.saturating_mul(Self::JUMP) {
                self.every = 1;
                return self.reported;
            }
            self.every = if short { (self.every * 2).clamp(1, Self::TOGETHER_MAX) } else { 1 };
            if !short || average.abs_diff(self.reported) > self.reported / Self::DIFFERENCE {
                self.reported = average;
            }
        }
        self.reported
    }
}
