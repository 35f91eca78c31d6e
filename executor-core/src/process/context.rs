//! Contexts: a [`Context`] starts processes with its own start method.

use std::fmt;

use super::{IntoBody, Process, server::Server};
use crate::{child::start_method::StartMethod, task::IntoTask};

/// Starts processes with one start method, independently of the program's default.
///
/// ```
/// use executor::{Context, StartMethod, prelude::*};
///
/// #[task]
/// fn add(a: i64, b: i64) -> i64 { a + b }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let context = Context::new(StartMethod::ForkServer);
///     assert_eq!(context.process(add::task(1, 2)).start()?.join()?, 3);
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Context {
    method: StartMethod,
    server: Option<Server>,
}

impl Context {
    /// Creates a context with this start method.
    ///
    /// A context with [`StartMethod::ForkServer`] has a fork server of its own. The server is
    /// started with the first process. It ends when the last handle of the context, and the last
    /// [`Process`] that was made by the context and not started, has been dropped.
    pub fn new(method: StartMethod) -> Self {
        let server = (method == StartMethod::ForkServer).then(Server::new);
        Context { method, server }
    }

    /// Returns the start method of the context.
    pub fn start_method(&self) -> StartMethod {
        self.method
    }

    /// Runs a task once in the fork server, before the server makes its first child. The state that
    /// the task sets up (statics, a model in memory) exists in each child.
    ///
    /// If the task stores a reference into shared memory in a static, each child has this
    /// reference, too, and must not use it: see [`StartMethod::Fork`]. The task must not leave a
    /// thread behind, and cannot have a [timeout](crate::Task::timeout). Otherwise
    /// [`start`](Process::start) fails with an error that says so, with the task's
    /// [name](crate::Task::name). With other start methods, this method does nothing.
    pub fn preload<T: IntoTask>(self, task: T) -> Self {
        if let Some(server) = &self.server {
            server.preload(task);
        }
        self
    }

    /// Makes a process that is started with the context's method.
    pub fn process<T>(&self, body: impl IntoBody<Output = T>) -> Process<T> {
        let mut process = Process::new(body).start_method(self.method);
        process.server = self.server.clone();
        process
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("start_method", &self.method).finish()
    }
}
