//! One call: find, decode, run, encode, and whatever goes wrong on the way.

use std::{
    cell::OnceCell,
    fmt::Display,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::{
    beside::Arrived,
    body::PANICKED,
    panics::{self, Running},
};
use crate::{
    error::Failure,
    id::{FnId, TaskId},
    os::fork::Origin,
    registry::{self, Call, CallContext, CallResult, Stage},
    segment::Store,
    wire::{
        attachment::Attachment,
        buffer::{Buffer, Contents},
        frame::Reply,
    },
};

/// Runs calls on this thread.
pub(super) struct Caller {
    /// For async tasks; made with the first of them.
    runtime: OnceCell<tokio::runtime::Runtime>,
    /// Reused from call to call.
    context: CallContext,
}

impl Drop for Caller {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waits for nothing: a blocking call that a task left behind would hold up the worker's end.
            runtime.shutdown_background();
        }
    }
}

impl Caller {
    /// Large results are to go into segments of this store.
    pub(super) fn new(results: Option<Arc<Store>>) -> Self {
        let context = CallContext::new(Buffer::with_store(results));
        Caller { runtime: OnceCell::new(), context }
    }

    /// Runs one call and hands the reply's kind and payload to `reply`.
    pub(super) fn call<R>(
        &mut self,
        task: TaskId,
        function: FnId,
        arguments: Arrived<'_>,
        reply: impl FnOnce(Reply, Contents<'_>, &[Attachment]) -> R,
    ) -> R {
        let Some(entry) = registry::lookup(function) else {
            let text = "its program has no such task, although its list of tasks was the same";
            return reply(Reply::Refused, Contents::Bytes(text.as_bytes()), &[]);
        };
        let Arrived { bytes: arguments, attachments } = arguments;
        let Caller { runtime, context } = self;
        context.begin(attachments);
        let origin = context.origin;
        let running = Running::task(task);
        let result = catch_unwind(AssertUnwindSafe(|| match entry.call {
            Call::Sync(call) => Ok(call(arguments, context)),
            Call::Async(call) => match context.during(Stage::Prepare, |_| runtime_in(runtime, origin)) {
                Ok(runtime) => Ok(runtime.block_on(call(arguments, context))),
                Err(error) => Err(no_runtime(&error)),
            },
        }));
        // A copy of this process that the task has made by `fork`, and that has come back from the task: it ends here, as a
        // program's `main` would. What it shares with this process (rings, board, segments, sockets) it has not touched.
        origin.end_copy(if result.is_ok() { 0 } else { PANICKED });
        drop(running);
        kill_point!(Encoded);
        let failed = match result {
            Ok(Ok(CallResult::Done)) => None,
            Ok(Ok(CallResult::Failed(failure))) => Some((Reply::Failed, to_bytes(&failure))),
            Ok(Ok(CallResult::Decode(error))) => Some((Reply::DecodeError, error.message.into_bytes())),
            Ok(Ok(CallResult::Encode(error))) => Some((Reply::EncodeError, error.message.into_bytes())),
            Ok(Ok(CallResult::Unsuited(error))) => Some((Reply::Unsuited, error.message.into_bytes())),
            Ok(Err(refused)) => Some((Reply::Refused, refused.into_bytes())),
            Err(payload) => {
                let failure = panics::caught(&*payload);
                // Not dropped: what was thrown may itself panic then.
                std::mem::forget(payload);
                Some(panicked(context.stage(), failure))
            }
        };
        match failed {
            None => {
                let replied = reply(Reply::Done, context.out.contents(), &context.attachments);
                context.out.leave();
                // Not kept until the next call: a peer waits for the end of a connection that was sent away.
                context.attachments = Vec::new();
                kill_point!(SegmentLeft);
                replied
            }
            Some((kind, text)) => {
                // What was encoded before it failed is nobody's.
                context.out.clear();
                reply(kind, Contents::Bytes(&text), &[])
            }
        }
    }
}

/// The worker's own runtime. Multi-threaded, so that `spawn` and `block_in_place` work as under `#[tokio::main]`,
/// and what an async task has spawned goes on after it.
fn runtime_in(
    place: &OnceCell<tokio::runtime::Runtime>,
    origin: Origin,
) -> std::io::Result<&tokio::runtime::Runtime> {
    if place.get().is_none() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("executor-tokio")
            // As behind a call: a copy that something spawned has made must not go on as this runtime.
            .on_thread_park(move || origin.end_copy(0))
            .enable_all()
            .build()?;
        let _ = place.set(runtime);
    }
    place.get().ok_or_else(|| std::io::Error::other("just set"))
}

fn no_runtime(why: &dyn Display) -> String {
    format!("no runtime for async tasks could be made: {why}")
}

/// What is told of a panic: whose it was, by what went on when it came.
fn panicked(stage: Stage, mut failure: Failure) -> (Reply, Vec<u8>) {
    let serde = |what: &str| {
        let at = failure.location.as_deref().map(|place| format!(" at {place}")).unwrap_or_default();
        format!("a {what} panicked{at}: {}", failure.message).into_bytes()
    };
    match stage {
        Stage::Decode => return (Reply::DecodeError, serde("Deserialize")),
        Stage::Encode => return (Reply::EncodeError, serde("Serialize")),
        // tokio panics where the system refuses it a thread.
        Stage::Prepare => return (Reply::Refused, no_runtime(&failure.message).into_bytes()),
        Stage::Run => {}
        Stage::Describe => failure.during = Some("while its error was put into words".into()),
        Stage::Between => failure.during = Some("while its arguments or its result were dropped".into()),
    }
    (Reply::Panicked, to_bytes(&failure))
}

fn to_bytes(failure: &Failure) -> Vec<u8> {
    postcard::to_stdvec(failure).expect("strings and bytes can be encoded")
}
