//! One call: find, decode, run, encode, and whatever goes wrong on the way.

use std::{
    cell::OnceCell,
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::panics::{self, Running};
use crate::{
    id::{FnId, TaskId},
    registry::{self, Call, CallContext, CallResult, Stage},
    wire::frame::Kind,
};

/// Runs calls on this thread.
#[derive(Default)]
pub(super) struct Caller {
    /// For async tasks; made with the first of them.
    runtime: OnceCell<tokio::runtime::Runtime>,
    /// Reused from call to call.
    out: Vec<u8>,
}

impl Drop for Caller {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waits for nothing: a blocking call that a task left behind would hold up the worker's end.
            runtime.shutdown_background();
        }
    }
}

/// A buffer that grew beyond this is not kept.
const BUFFER_BYTES_MAX: usize = 1 << 20;

impl Caller {
    /// Runs one call and hands the reply's kind and payload to `reply`.
    pub(super) fn call<R>(
        &mut self,
        task: TaskId,
        function: FnId,
        arguments: &[u8],
        check: bool,
        reply: impl FnOnce(Kind, &[u8]) -> R,
    ) -> R {
        let Some(entry) = registry::lookup(function) else {
            let text = "this worker's program has no such task, although its list of tasks was the same";
            return reply(Kind::DecodeError, text.as_bytes());
        };
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        let mut context = CallContext::new(out, check);
        let running = Running::task(task);
        let result = catch_unwind(AssertUnwindSafe(|| match entry.call {
            Call::Sync(call) => Ok(call(arguments, &mut context)),
            Call::Async(call) => match self.runtime() {
                Ok(runtime) => Ok(runtime.block_on(call(arguments, &mut context))),
                Err(error) => Err(format!("no runtime for async tasks: {error}")),
            },
        }));
        drop(running);
        let replied = match result {
            Ok(Ok(CallResult::Done)) => reply(Kind::Done, &context.out),
            Ok(Ok(CallResult::Failed(failure))) => reply(Kind::Failed, &to_bytes(&failure)),
            Ok(Ok(CallResult::Decode(error))) => reply(Kind::DecodeError, error.message.as_bytes()),
            Ok(Ok(CallResult::Encode(error))) => reply(Kind::EncodeError, error.message.as_bytes()),
            Ok(Ok(CallResult::NotRoundTrip(error))) => reply(Kind::NotRoundTrip, error.message.as_bytes()),
            Ok(Err(text)) => reply(Kind::DecodeError, text.as_bytes()),
            Err(payload) => {
                // Not dropped: what was thrown may itself panic then.
                std::mem::forget(payload);
                let failure = panics::last();
                let at = failure.location.as_deref().unwrap_or("an unknown place");
                match context.stage {
                    Stage::Run => reply(Kind::Panicked, &to_bytes(&failure)),
                    Stage::Decode => {
                        let text = format!("a Deserialize panicked at {at}: {}", failure.message);
                        reply(Kind::DecodeError, text.as_bytes())
                    }
                    Stage::Encode => {
                        let text = format!("a Serialize panicked at {at}: {}", failure.message);
                        reply(Kind::EncodeError, text.as_bytes())
                    }
                }
            }
        };
        if context.out.capacity() <= BUFFER_BYTES_MAX {
            self.out = context.out;
        }
        replied
    }

    /// The worker's own runtime. Multi-threaded, so that `spawn` and `block_in_place` work as under `#[tokio::main]`,
    /// and what an async task has spawned goes on after it.
    fn runtime(&self) -> std::io::Result<&tokio::runtime::Runtime> {
        if self.runtime.get().is_none() {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name("executor-tokio")
                .enable_all()
                .build()?;
            let _ = self.runtime.set(runtime);
        }
        self.runtime.get().ok_or_else(|| std::io::Error::other("just set"))
    }
}

fn to_bytes(failure: &crate::error::Failure) -> Vec<u8> {
    postcard::to_stdvec(failure).expect("strings and bytes can be encoded")
}
