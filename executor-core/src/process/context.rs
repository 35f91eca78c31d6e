//! How processes are started: for the whole program, for one context, for one process.

use std::fmt;

use super::{IntoBody, Process, server::Server};
use crate::{
    child::start_method::StartMethod,
    task::{IntoTask, TaskFn},
};

/// Starts processes by one method, whatever the program's is.
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
    /// A context of this method. One of [`StartMethod::ForkServer`] has a fork server of its own, started with its first
    /// process, that ends with the last handle of the context and of its processes' descriptions.
    pub fn new(method: StartMethod) -> Self {
        let server = (method == StartMethod::ForkServer).then(Server::new);
        Context { method, server }
    }

    /// Its method.
    pub fn start_method(&self) -> StartMethod {
        self.method
    }

    /// Runs a task in the fork server, once, before it makes its first child; what it sets up (statics, a model in memory) is
    /// there in each of them. A reference into shared memory that it leaves in a static is there in each of them, too, and
    /// must not be used: see [`StartMethod::Fork`]. It must leave no thread behind, and cannot have a [time limit](crate::Task::timeout): a start then
    /// fails and says so. Nothing happens with other methods.
    pub fn preload<T: IntoTask>(self, task: T) -> Self {
        if let Some(server) = &self.server {
            server.preload(T::Function::entry(), task.into_task().encode());
        }
        self
    }

    /// A process that is started by its method.
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
