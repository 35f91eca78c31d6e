//! How processes are started: for the whole program, for one context, for one process.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use super::{IntoBody, Process, server::Server};
use crate::{
    program,
    task::{IntoTask, TaskFn},
};

/// How a process comes into being.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StartMethod {
    /// The program is started again, from its own executable. It has nothing of its parent but what it is given. The default.
    Spawn,
    /// A small child of this process, itself started by `Spawn`, makes a copy of itself. What its
    /// [`preload`](Context::preload) has set up is there in each copy, so the start can be much faster. What is said of
    /// references under [`Fork`](Self::Fork) holds for what `preload` leaves behind: all copies have it.
    ForkServer,
    /// This process makes a copy of itself. Refused where it has more than one thread, since what other threads had locked
    /// would stay locked for ever in the copy. Descriptors of this process are open in the copy, as everywhere.
    ///
    /// The copy runs its task and nothing else of the program, so of what this process has for itself it can reach statics
    /// only. In those, handles of this library are inert: guards give nothing back when they are dropped, and panic when they
    /// are read or written through; so do [`SharedBytes`](crate::SharedBytes) that are not frozen, and their
    /// [`get_mut`](crate::SharedBytes::get_mut) is `None`. What they cannot know of is a reference that was leaked.
    ///
    /// **A program that keeps a reference into shared memory in a static** (a `&'static mut` of a guard or of unsent
    /// `SharedBytes` that were leaked, or of another library's shared mapping) **must not use it in the task of such a process.**
    /// Both processes would have the reference that is said to be the only one, and no compiler and no check can tell.
    Fork,
}

impl StartMethod {
    /// Those of this system, the default first.
    ///
    /// ```
    /// use executor::StartMethod;
    /// assert_eq!(StartMethod::available()[0], StartMethod::Spawn);
    /// ```
    pub fn available() -> &'static [StartMethod] {
        &[StartMethod::Spawn, StartMethod::ForkServer, StartMethod::Fork]
    }

    fn number(self) -> u8 {
        match self {
            StartMethod::Spawn => 0,
            StartMethod::ForkServer => 1,
            StartMethod::Fork => 2,
        }
    }
}

static SET: Mutex<Option<StartMethod>> = Mutex::new(None);

/// The start method was set before: [`set_start_method`].
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the start method was set to {0:?} before; set it once, or use `force_start_method`")]
pub struct StartMethodSet(pub StartMethod);

crate::error::debug_is_display!(StartMethodSet);

/// How processes are started where nothing else is said: as was set, else as this process's parent does, else
/// [`StartMethod::Spawn`].
pub fn start_method() -> StartMethod {
    if let Some(set) = *SET.lock().unwrap_or_else(PoisonError::into_inner) {
        return set;
    }
    let told = program::told().and_then(|program| program.start_method);
    StartMethod::available()
        .iter()
        .copied()
        .find(|method| Some(method.number()) == told)
        .unwrap_or(StartMethod::Spawn)
}

/// Sets how processes are started where nothing else is said, in this process and those below it.
///
/// # Errors
/// If it was set before.
pub fn set_start_method(method: StartMethod) -> Result<(), StartMethodSet> {
    let mut set = SET.lock().unwrap_or_else(PoisonError::into_inner);
    match *set {
        Some(before) => Err(StartMethodSet(before)),
        None => {
            *set = Some(method);
            Ok(())
        }
    }
}

/// As [`set_start_method`], also if it was set before.
pub fn force_start_method(method: StartMethod) {
    *SET.lock().unwrap_or_else(PoisonError::into_inner) = Some(method);
}

/// What a child is told of it.
pub(crate) fn number_for_child(own: Option<StartMethod>) -> u8 {
    own.unwrap_or_else(start_method).number()
}

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
