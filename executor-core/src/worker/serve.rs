//! The worker's loop: receive a frame, call, reply.

use std::{io, os::fd::OwnedFd, sync::Arc};

use super::{
    beside::{self, Arguments, Arrived, Control},
    call::Caller,
    panics, watcher,
};
use crate::{
    id::TaskId,
    os::{clock, fault, room},
    segment::Store,
    transport::{Closed, WorkerEnd},
    wire::{
        attachment::Attachment,
        buffer::Contents,
        frame::{FromWorker, Items, Order, Reply, ToWorker, flag, item_of},
        payload::Reference,
    },
};

/// Where large bytes are: the pool's arguments and this worker's results. `None` if the parent could make none.
pub(super) type Arenas = Option<(Arguments, Arc<Store>)>;

/// Receives, calls, replies, until told to stop. The control socket stays open until the process ends: it is how the
/// parent sees us.
pub(super) fn serve(
    mut end: impl WorkerEnd + 'static,
    control: &'static OwnedFd,
    arenas: Arenas,
) -> io::Result<()> {
    let control = Control::new(control);
    let (mut arguments, results) = arenas.unzip();
    // The panic hook and the fault handler may need it at any time until the process ends.
    let board = end.board();
    panics::install(board, false);
    fault::watch_this_stack(&board.stack_overflow);
    let mut caller = Caller::new(results);
    let mut stopwatch = Stopwatch::default();
    kill_point!(ServeBegins);
    loop {
        let Ok(frame) = end.recv() else { watcher::end_group() };
        if end.has_waited() {
            stopwatch.start();
        }
        let header = frame.header;
        // Also of a task that was taken back: each frame has its own message. Without them nothing can be begun here, so
        // what was sent runs elsewhere.
        let attachments = match control.receive(&header) {
            Ok(attachments) => attachments,
            Err(error) if header.order == Order::Init => {
                let text = format!("the descriptors of its arguments cannot be received: {error}");
                if end.reply(FromWorker::new(Reply::Refused), text.as_bytes()).is_err() {
                    watcher::end_group();
                }
                // Nothing but the end comes for a worker that was refused something.
                continue;
            }
            Err(_) => watcher::end_group(),
        };
        let located = beside::locate(&mut arguments, &header, &frame.payload);
        kill_point!(ArgumentsLocated);
        let job = Job {
            end: &mut end,
            caller: &mut caller,
            stopwatch: &mut stopwatch,
            control: &control,
            header,
            arguments: located.map(|bytes| Arrived { bytes, attachments }),
        };
        let replied = match header.order {
            Order::Stop => {
                kill_point!(StopRead);
                return Ok(());
            }
            Order::Init => job.initialize(),
            Order::Run => job.run(),
        };
        if replied.is_err() {
            watcher::end_group();
        }
    }
}

/// One frame that asks for work.
struct Job<'a, E> {
    end: &'a mut E,
    caller: &'a mut Caller,
    stopwatch: &'a mut Stopwatch,
    control: &'a Control,
    header: ToWorker,
    /// Not looked at before they are claimed.
    arguments: io::Result<Arrived<'a>>,
}

impl<E: WorkerEnd> Job<'_, E> {
    fn initialize(mut self) -> Result<(), Closed> {
        let arguments = std::mem::replace(&mut self.arguments, Err(io::ErrorKind::Other.into()));
        let Job { end, caller, control, header, .. } = self;
        kill_point!(InitBegins);
        let arguments = match arguments {
            Ok(arguments) => arguments,
            Err(error) => return end.reply(FromWorker::new(Reply::Refused), unmapped(&error).as_bytes()),
        };
        caller.call(header.task, header.function, arguments, |kind, contents, attachments| match kind {
            // An initializer's value is nobody's: that it has run is the answer.
            Reply::Done => {
                kill_point!(InitEnds);
                end.reply(FromWorker::new(Reply::Ready), &[])
            }
            kind => reply(
                end,
                control,
                FromWorker { task: header.task, ..FromWorker::new(kind) },
                contents,
                attachments,
            ),
        })
    }

    /// Runs the items one after the other. Each is claimed before a byte of its arguments is looked at.
    fn run(mut self) -> Result<(), Closed> {
        let Items { first, count } = self.header.items;
        let board = self.end.board();
        kill_point!(BeforeClaim);
        if !board.claim(self.header.seq, first, self.header.flags & flag::TIMED != 0) {
            kill_point!(ClaimRefused);
            return Ok(());
        }
        kill_point!(Claimed);
        let arguments = std::mem::replace(&mut self.arguments, Err(io::ErrorKind::Other.into()));
        if self.header.flags & flag::CHUNK == 0 {
            // Given away: a descriptor that the task drops is to be closed then.
            return match arguments {
                Ok(arguments) => self.call(0, Ok(arguments)),
                Err(error) => self.call(0, Err(&error)),
            };
        }
        for item in first..count {
            if item > first {
                kill_point!(BeforeClaimNext);
                if !board.claim_next(self.header.seq, item) {
                    // What is left was taken back.
                    kill_point!(NextRefused);
                    return Ok(());
                }
                kill_point!(NextClaimed);
            }
            let one = match &arguments {
                Ok(all) => {
                    let Some(bytes) = item_of(all.bytes, item) else { watcher::end_group() };
                    Ok(Arrived { bytes, ..all.clone() })
                }
                Err(error) => Err(error),
            };
            self.call(item, one)?;
        }
        Ok(())
    }

    fn call(&mut self, item: u32, arguments: Result<Arrived<'_>, &io::Error>) -> Result<(), Closed> {
        let Job { end, caller, stopwatch, control, header, .. } = self;
        let task = TaskId::from_raw(header.task.as_u64() + u64::from(item));
        let arguments = match arguments {
            Ok(arguments) => arguments,
            Err(error) => {
                let header = FromWorker { task, ..FromWorker::new(Reply::Refused) };
                return end.reply(header, unmapped(error).as_bytes());
            }
        };
        caller.call(task, header.function, arguments, |kind, contents, attachments| {
            let header = FromWorker { task, nanos: stopwatch.lap(), ..FromWorker::new(kind) };
            reply(*end, control, header, contents, attachments)
        })
    }
}

fn unmapped(error: &io::Error) -> String {
    format!("the memory of its arguments cannot be read: {error}")
}

/// Of a result that goes in parts; what it is asked for, see `os/room.rs`. The one who collects them would be cut off later, and
/// this worker with it.
const ASKED_FROM: usize = 64 << 20;

/// Replies with what was encoded, wherever that is.
fn reply<E: WorkerEnd>(
    end: &mut E,
    control: &Control,
    mut header: FromWorker,
    contents: Contents<'_>,
    attachments: &[Attachment],
) -> Result<(), Closed> {
    if !attachments.is_empty() {
        // First, so that the pool finds them when it sees the frame.
        if let Err(error) = control.send(header.task, attachments) {
            let text = format!("the descriptors of its result cannot be sent: {error}");
            return end.reply(FromWorker { reply: Reply::Refused, ..header }, text.as_bytes());
        }
        header.flags |= flag::ATTACHED;
        kill_point!(AttachmentsSent);
    }
    match contents {
        Contents::Bytes(bytes) if bytes.len() >= ASKED_FROM && !room::has_room_for(bytes.len() as u64) => {
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
