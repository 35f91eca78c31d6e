//! The connections of this process, one for each server.
//!
//! ```text
//!  call, without a connection ─► place ─┬─ nobody connects: this thread does, or for a future, a thread
//!                                       │  that is started for it
//!                                       └─ somebody connects: wait for that, until the own deadline
//! ```
//!
//! A server that is stopped answers nobody. So nothing here is held while a connection is made, and
//! a future never waits in its thread. At most one thread for each server waits for an answer on
//! behalf of futures, however many of them are dropped.

use std::{
    collections::HashMap,
    future::poll_fn,
    io,
    pin::pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Instant,
};

use super::{
    super::error::ManagerError,
    connection::{Connection, forked},
    door::{Door, ServerId},
};
use crate::{
    os::{
        fork::{Creator, PerProcess},
        std_or_model::lock,
    },
    unwind::catch,
};

static TABLE: PerProcess<Mutex<HashMap<ServerId, Arc<Place>>>> = PerProcess::new(Mutex::default);

/// A place for the connection to one server.
#[derive(Default)]
struct Place {
    state: Mutex<State>,
    /// Notified when an attempt to connect has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    connection: Option<Arc<Connection>>,
    /// Whether a thread is connecting.
    connecting: bool,
    /// Counts the attempts on behalf of futures. Never overflows: each takes a thread.
    attempt: u64,
    /// How the last of these attempts has failed, if no thread has connected since.
    failed: Option<(u64, ManagerError)>,
    /// The futures that wait for an attempt, by their own numbers.
    waiting: HashMap<u64, Waker>,
    last_waiting: u64,
}

impl State {
    fn connection(&self) -> Option<Arc<Connection>> {
        self.connection.as_ref().filter(|connection| !connection.is_gone()).cloned()
    }
}

/// Forgets the connection to a server that was shut down. Handles may still have it.
pub(super) fn forget(server: ServerId) {
    let forgotten = lock(TABLE.get()).remove(&server);
    drop(forgotten);
}

/// Returns the door of a server to which this process has a connection.
pub(super) fn door(server: ServerId) -> Option<Arc<Door>> {
    let place = lock(TABLE.get()).get(&server).cloned()?;
    let state = lock(&place.state);
    state.connection.as_ref().map(|connection| Arc::clone(connection.door()))
}

/// Returns the place of a server.
fn place_of(door: &Door) -> Arc<Place> {
    let mut table = lock(TABLE.get());
    if !table.contains_key(&door.id) {
        // A good moment to forget the servers that have ended.
        table.retain(|_, place| {
            let state = lock(&place.state);
            state.connection.as_ref().is_none_or(|connection| !connection.has_ended())
        });
    }
    Arc::clone(table.entry(door.id).or_default())
}

/// Returns this process's connection to a server. Makes it if there is none.
///
/// A server that was reached by its address has a [route](super::Route), which has its connection.
/// Another connection stays until its server ends. What a process has of a server, such as a lock
/// whose guard it has leaked, belongs to the process and not to a handle. And a worker that gets a
/// handle with each task does not connect with each task.
pub(super) fn connection_to(
    door: &Arc<Door>,
    deadline: Option<Instant>,
) -> Result<Arc<Connection>, ManagerError> {
    if let Some(route) = door.route()
        && !(route.is_elsewhere() && door.socket().is_some())
    {
        return route.connection(Some(door.id), deadline);
    }
    let place = place_of(door);
    let mut state = lock(&place.state);
    loop {
        if let Some(connection) = state.connection() {
            return Ok(connection);
        }
        if !state.connecting {
            state.connecting = true;
            drop(state);
            return Attempt(&place).make(door, deadline, None);
        }
        // If that attempt fails, perhaps because its time is over, this thread makes the next one.
        state = wait(&place.ended, state, deadline)?;
    }
}

/// Waits until an attempt has ended, or the deadline.
fn wait<'a>(
    ended: &Condvar,
    state: MutexGuard<'a, State>,
    deadline: Option<Instant>,
) -> Result<MutexGuard<'a, State>, ManagerError> {
    let Some(deadline) = deadline else {
        return Ok(ended.wait(state).unwrap_or_else(PoisonError::into_inner));
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ManagerError::TimedOut);
    }
    Ok(ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
}

/// Returns this process's connection to a server without a route, as [`connection_to`] does,
/// without blocking the thread.
pub(super) async fn connection_to_async(door: &Arc<Door>) -> Result<Arc<Connection>, ManagerError> {
    let place = place_of(door);
    let mut waiter = pin!(Waiter { place, creator: Creator::here(), number: 0, attempt: 0 });
    poll_fn(|context| waiter.poll(door, context)).await
}

/// A future that waits for a connection.
struct Waiter {
    place: Arc<Place>,
    creator: Creator,
    /// Its number among those that wait. 0 before it waits.
    number: u64,
    /// The attempt that it waits for.
    attempt: u64,
}

impl Waiter {
    fn poll(
        &mut self,
        door: &Arc<Door>,
        context: &mut Context<'_>,
    ) -> Poll<Result<Arc<Connection>, ManagerError>> {
        if self.creator.is_elsewhere() {
            // The thread that connects is in the other process.
            return Poll::Ready(Err(forked()));
        }
        // The user's code, so no lock may be held.
        let waker = context.waker().clone();
        let mut state = lock(&self.place.state);
        if let Some(connection) = state.connection() {
            return Poll::Ready(Ok(connection));
        }
        if let Some((attempt, error)) = &state.failed
            && *attempt == self.attempt
        {
            return Poll::Ready(Err(error.clone()));
        }
        let starts = !state.connecting;
        if starts {
            state.connecting = true;
            state.attempt += 1;
        }
        self.attempt = state.attempt;
        if self.number == 0 {
            state.last_waiting += 1;
            self.number = state.last_waiting;
        }
        let before = state.waiting.insert(self.number, waker);
        drop(state);
        drop(before);
        if starts && let Err(error) = self.start(door) {
            return Poll::Ready(Err(ManagerError::os("a thread that connects to a manager")(
                error,
            )));
        }
        Poll::Pending
    }

    /// Starts the thread that connects.
    fn start(&self, door: &Arc<Door>) -> io::Result<()> {
        let (place, door, attempt) = (Arc::clone(&self.place), Arc::clone(door), self.attempt);
        let started =
            std::thread::Builder::new().name("executor-manager".to_owned()).spawn(move || {
                // It waits as long as the server lives, and then tells all that wait.
                let _ = Attempt(&place).make(&door, None, Some(attempt));
            });
        if started.is_err() {
            // Others may have more luck.
            drop(Attempt(&self.place));
        }
        started.map(drop)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.creator.is_elsewhere() {
            return;
        }
        let waker = lock(&self.place.state).waiting.remove(&self.number);
        // The user's code, so no lock may be held.
        drop(waker);
    }
}

/// An attempt to connect. When it is dropped, those that wait for it go on.
struct Attempt<'a>(&'a Place);

impl Attempt<'_> {
    /// Connects. `number` is that of an attempt on behalf of futures: they get its error.
    fn make(
        self,
        door: &Arc<Door>,
        deadline: Option<Instant>,
        number: Option<u64>,
    ) -> Result<Arc<Connection>, ManagerError> {
        let made = door.connect(deadline);
        let mut state = lock(&self.0.state);
        match &made {
            Ok(connection) => {
                state.connection = Some(Arc::clone(connection));
                state.failed = None;
            }
            Err(error) => state.failed = number.map(|number| (number, error.clone())),
        }
        drop(state);
        drop(self);
        if made.is_ok() {
            kill_point!(ClientConnected);
        }
        made
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let waiting = {
            let mut state = lock(&self.0.state);
            state.connecting = false;
            std::mem::take(&mut state.waiting)
        };
        self.0.ended.notify_all();
        for waker in waiting.into_values() {
            // A panic of the user's waker must not end the thread that has connected.
            let _ = catch(|| waker.wake());
        }
    }
}
