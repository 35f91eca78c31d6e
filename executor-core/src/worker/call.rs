//! Runs one call: finds the function, decodes the arguments, runs it, encodes the result, and
//! handles all errors of these steps.

use std::{
    cell::OnceCell,
    fmt::Display,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::{
    ancillary::Arrived,
    body::PANICKED,
    panics::{self, Running},
};
use crate::{
    error::Failure,
    id::{FnId, TaskId},
    os::fork::Creator,
    registry::{self, Around, Call, CallContext, CallResult, Stage},
    segment::Store,
    wire::{
        attachment::Attachment,
        buffer::{Buffer, Contents},
        frame::Reply,
    },
};

/// Runs calls on this thread.
pub(super) struct Caller {
    /// The runtime for async tasks, created with the first of them.
    runtime: OnceCell<tokio::runtime::Runtime>,
    /// Reused from call to call.
    context: CallContext,
}

impl Drop for Caller {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // This does not wait. Otherwise a blocking call that a task left behind would delay the
            // end of the worker.
            runtime.shutdown_background();
        }
    }
}

impl Caller {
    /// Creates a caller. Large results go into segments of the store `results`, if there is one.
    pub(super) fn new(results: Option<Arc<Store>>) -> Self {
        let context = CallContext::new(Buffer::with_store(results));
        Caller { runtime: OnceCell::new(), context }
    }

    /// Says whether the next calls note when their arguments are decoded.
    pub(super) fn notes_decoded(&mut self, notes: bool) {
        self.context.notes_decoded = notes;
    }

    /// Runs one call, and passes the kind and the payload of the reply to `reply`. Takes the
    /// descriptors from the arguments, so that one is closed when the task drops it.
    pub(super) fn call<R>(
        &mut self,
        task: TaskId,
        function: FnId,
        arguments: &mut Arrived<'_>,
        reply: impl FnOnce(Reply, Contents<'_>, &[Attachment]) -> R,
    ) -> R {
        let Some(entry) = registry::lookup(function) else {
            let text = "its program has no such task, although its list of tasks was the same";
            return reply(Reply::Refused, Contents::Bytes(text.as_bytes()), &[]);
        };
        let Arrived { bytes, attachments } = arguments;
        let arguments = *bytes;
        let Caller { runtime, context } = self;
        context.begin(attachments);
        let creator = context.creator;
        let running = Running::task(task);
        // Not moved out of the closure as a `Result`: see `task::encode`.
        let mut failed = None;
        let result = catch_unwind(AssertUnwindSafe(|| match entry.call {
            Call::Sync(call) | Call::Managed(call, _) => match call(arguments, context) {
                CallResult::Done => {}
                called => failed = Some(failure(called)),
            },
            Call::Async(call) => {
                match context.during(Stage::Prepare, |_| runtime_in(runtime, creator)) {
                    Ok(runtime) => match runtime.block_on(call(arguments, context)) {
                        CallResult::Done => {}
                        called => failed = Some(failure(called)),
                    },
                    Err(error) => {
                        failed = Some((Reply::Refused, no_runtime(&error).into_bytes()));
                    }
                }
            }
        }));
        // If the task has forked this process, and the copy has returned from the task, the copy
        // ends here, like a program whose `main` returns. So far it has not touched anything that
        // it shares with this process (rings, board, segments, sockets).
        creator.end_copy(if result.is_ok() { 0 } else { PANICKED });
        drop(running);
        kill_point!(Encoded);
        if let Err(payload) = result {
            let failure = panics::caught(&*payload);
            // The payload is not dropped, because its destructor could panic.
            std::mem::forget(payload);
            failed = Some(panicked(context.stage(), failure));
        }
        match failed {
            None => {
                let replied = reply(Reply::Done, context.out.contents(), &context.attachments);
                context.out.leave();
                // Drop the descriptors now, not at the next call. The peer of a connection that was
                // sent away waits until all its descriptors are closed.
                context.attachments.clear();
                kill_point!(SegmentLeft);
                replied
            }
            Some((kind, text)) => {
                // Discard the part of a result that was encoded before the failure.
                context.out.clear();
                reply(kind, Contents::Bytes(&text), &[])
            }
        }
    }
}

/// Runs one call on this thread, whatever process it is. Its result is encoded within `around`.
/// Passes the kind and the bytes of the reply, and its descriptors, to `reply`.
pub(crate) fn call_here<R>(
    task: TaskId,
    function: FnId,
    arguments: &[u8],
    around: Option<Around>,
    reply: impl FnOnce(Reply, &[u8], &[Attachment]) -> R,
) -> R {
    let mut arrived = Arrived { bytes: arguments, attachments: Vec::new() };
    // A caller without a store puts no result into a segment.
    let mut caller = Caller::new(None);
    caller.context.around_result = around;
    caller.call(task, function, &mut arrived, |kind, contents, attachments| {
        let bytes = if let Contents::Bytes(bytes) = contents { bytes } else { &[] };
        reply(kind, bytes, attachments)
    })
}

/// Returns the reply for a call that has not produced a value.
#[cold]
fn failure(result: CallResult) -> (Reply, Vec<u8>) {
    match result {
        CallResult::Done => (Reply::Done, Vec::new()),
        CallResult::Failed(failure) => (Reply::Failed, to_bytes(&failure)),
        CallResult::Decode(error) => (Reply::DecodeError, error.message.into_bytes()),
        CallResult::Encode(error) => (Reply::EncodeError, error.message.into_bytes()),
        CallResult::Unsuited(error) => (Reply::Unsuited, error.message.into_bytes()),
    }
}

/// Returns the worker's runtime, and creates it if necessary. It is multi-threaded, so that `spawn`
/// and `block_in_place` work as under `#[tokio::main]`, and so that tasks that an async task has
/// spawned continue after its end.
fn runtime_in(
    place: &OnceCell<tokio::runtime::Runtime>,
    creator: Creator,
) -> std::io::Result<&tokio::runtime::Runtime> {
    if place.get().is_none() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("executor-tokio")
            // A copy that a spawned task has made by `fork` must not continue as this runtime. It
            // ends here, as after a call.
            .on_thread_park(move || creator.end_copy(0))
            .enable_all()
            .build()?;
        let _ = place.set(runtime);
    }
    place.get().ok_or_else(|| std::io::Error::other("just set"))
}

fn no_runtime(why: &dyn Display) -> String {
    format!("no runtime for async tasks could be made: {why}")
}

/// Returns the reply for a panic. It depends on the stage of the call, which tells whose code
/// panicked.
fn panicked(stage: Stage, mut failure: Failure) -> (Reply, Vec<u8>) {
    let serde = |what: &str| {
        let at =
            failure.location.as_deref().map(|place| format!(" at {place}")).unwrap_or_default();
        format!("a {what} panicked{at}: {}", failure.message).into_bytes()
    };
    match stage {
        Stage::Decode => return (Reply::DecodeError, serde("Deserialize")),
        Stage::Encode => return (Reply::EncodeError, serde("Serialize")),
        // tokio panics if the system refuses it a thread.
        Stage::Prepare => return (Reply::Refused, no_runtime(&failure.message).into_bytes()),
        Stage::Run => {}
        Stage::Describe => failure.during = Some("while its error was put into words".into()),
        Stage::Between => {
            failure.during = Some("while its arguments or its result were dropped".into())
        }
    }
    (Reply::Panicked, to_bytes(&failure))
}

fn to_bytes(failure: &Failure) -> Vec<u8> {
    postcard::to_stdvec(failure).expect("strings and bytes can be encoded")
}
