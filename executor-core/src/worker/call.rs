//! One call: find, decode, run, encode, and whatever goes wrong on the way.

use std::{
    cell::OnceCell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::{
    beside::Arrived,
    panics::{self, Running},
};
use crate::{
    id::{FnId, TaskId},
    registry::{self, Call, CallContext, CallResult, Stage},
    segment::Store,
    wire::{
        attachment::Attachment,
        buffer::{Buffer, Contents},
        frame::Kind,
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
        let context = CallContext::new(Buffer::with_store(results), false);
        Caller { runtime: OnceCell::new(), context }
    }

    /// Runs one call and hands the reply's kind and payload to `reply`.
    pub(super) fn call<R>(
        &mut self,
        task: TaskId,
        function: FnId,
        arguments: Arrived<'_>,
        check: bool,
        reply: impl FnOnce(Kind, Contents<'_>, &[Attachment]) -> R,
    ) -> R {
        let Some(entry) = registry::lookup(function) else {
            let text = "this worker's program has no such task, although its list of tasks was the same";
            return reply(Kind::DecodeError, Contents::Bytes(text.as_bytes()), &[]);
        };
        let Arrived { bytes: arguments, attachments } = arguments;
        let Caller { runtime, context } = self;
        context.begin(attachments, check);
        let running = Running::task(task);
        let result = catch_unwind(AssertUnwindSafe(|| match entry.call {
            Call::Sync(call) => Ok(call(arguments, context)),
            Call::Async(call) => match runtime_in(runtime) {
                Ok(runtime) => Ok(runtime.block_on(call(arguments, context))),
                Err(error) => Err(format!("no runtime for async tasks: {error}")),
            },
        }));
        drop(running);
        kill_point!(Encoded);
        let failed = match result {
            Ok(Ok(CallResult::Done)) => None,
            Ok(Ok(CallResult::Failed(failure))) => Some((Kind::Failed, to_bytes(&failure))),
            Ok(Ok(CallResult::Decode(error))) => Some((Kind::DecodeError, error.message.into_bytes())),
            Ok(Ok(CallResult::Encode(error))) => Some((Kind::EncodeError, error.message.into_bytes())),
            Ok(Ok(CallResult::NotRoundTrip(error))) => Some((Kind::NotRoundTrip, error.message.into_bytes())),
            Ok(Err(refused)) => Some((Kind::DecodeError, refused.into_bytes())),
            Err(payload) => {
                // Not dropped: what was thrown may itself panic then.
                std::mem::forget(payload);
                Some(panicked(context.stage))
            }
        };
        match failed {
            None => {
                let replied = reply(Kind::Done, context.out.contents(), &context.attachments);
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
fn runtime_in(place: &OnceCell<tokio::runtime::Runtime>) -> std::io::Result<&tokio::runtime::Runtime> {
    if place.get().is_none() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("executor-tokio")
            .enable_all()
            .build()?;
        let _ = place.set(runtime);
    }
    place.get().ok_or_else(|| std::io::Error::other("just set"))
}

fn panicked(stage: Stage) -> (Kind, Vec<u8>) {
    let failure = panics::last();
    let at = failure.location.as_deref().unwrap_or("an unknown place");
    match stage {
        Stage::Run => (Kind::Panicked, to_bytes(&failure)),
        Stage::Decode => {
            let text = format!("a Deserialize panicked at {at}: {}", failure.message);
            (Kind::DecodeError, text.into_bytes())
        }
        Stage::Encode => {
            let text = format!("a Serialize panicked at {at}: {}", failure.message);
            (Kind::EncodeError, text.into_bytes())
        }
    }
}

fn to_bytes(failure: &crate::error::Failure) -> Vec<u8> {
    postcard::to_stdvec(failure).expect("strings and bytes can be encoded")
}
