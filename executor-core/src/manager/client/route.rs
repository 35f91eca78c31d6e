//! The way to a server that this process did not start: its address, how it is recognized, and the
//! connection that there is.
//!
//! ```text
//!  Manager ──┐
//!  Dict ─────┤ hold ─► Connection ─► Door ─► Route: address, key, trust
//!  Dict ─────┘                                 │ lost: one call attempts, the others wait
//!                                              ▼
//!                         Connection to the same server: handles claim their objects anew
//!                         to another one, started at this address: old handles have no object
//! ```
//!
//! [`Attempts`] decides who connects when. This module does it, and no lock is held meanwhile.
//!
//! A call without a deadline connects in its own thread. For calls with a deadline and for futures,
//! one thread connects. So a call that has little time does not cut short an attempt that others
//! need, and calls that all have little time get a connection as well.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, mpsc},
    thread,
    time::{Duration, Instant},
};

use futures::channel::oneshot;

#[cfg(feature = "tls")]
use super::{
    super::link::tls::{TlsClient, Trust},
    door, way,
};
use super::{
    super::{
        error::ManagerError,
        link::{MeetError, local},
    },
    backoff::{Attempts, Backoff, Next},
    connection::Connection,
    door::{Door, ServerId},
};
#[cfg(feature = "tls")]
use std::sync::OnceLock;

#[cfg(feature = "tls")]
use crate::wire::attachment::Attachment;
use crate::{
    ipc::{Address, AuthError, AuthKey},
    os::{fork::Creator, random, std_or_model::lock},
    shield::shielded,
    unwind::catch,
};

/// The way to a server.
pub(crate) struct Route {
    options: RouteOptions,
    /// A fork of this process has copies of locks that nobody may ever release there.
    creator: Creator,
    state: Mutex<State>,
    changed: Condvar,
    /// The file that travels with handles, once one was sent.
    #[cfg(feature = "tls")]
    way: OnceLock<Attachment>,
}

/// Where a server is, and how this process gets there.
pub(crate) struct RouteOptions {
    pub(crate) address: Address,
    pub(crate) key: AuthKey,
    /// For TCP.
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<TlsClient>,
    /// What that was made of, to be sent to other processes.
    #[cfg(feature = "tls")]
    pub(crate) trust: Option<Trust>,
    /// How long one attempt may take.
    pub(crate) timeout: Duration,
    pub(crate) backoff: Option<Backoff>,
}

struct State {
    current: Weak<Connection>,
    /// The same connection, as long as there is a `Manager` for it.
    kept: Option<Arc<Connection>>,
    has_manager: bool,
    attempts: Attempts,
    /// Why the last attempt has failed.
    failed: Option<ManagerError>,
    /// Number of attempts that have failed.
    failures: u64,
    /// Those that wait for the thread that connects, by their own numbers.
    waiting: HashMap<u64, Waiting>,
    last_waiting: u64,
    /// Whether there is that thread.
    has_thread: bool,
    /// Whether this process wants nothing of the server any more.
    closed: bool,
}

type Connected = Result<Arc<Connection>, ManagerError>;

/// Somebody for whom a thread connects.
struct Waiting {
    /// Until when the thread tries.
    end: Option<Instant>,
    tell: Box<dyn FnOnce(Connected) + Send>,
}

/// Somebody's place among those that wait.
struct Place {
    route: Arc<Route>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.route.is_elsewhere() {
            let waiting = lock(&self.route.state).waiting.remove(&self.number);
            drop(waiting);
        }
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouteOptions { address, backoff, .. } = &self.options;
        f.debug_struct("Route")
            .field("address", &format_args!("{address}"))
            .field("backoff", backoff)
            .finish_non_exhaustive()
    }
}

impl Route {
    /// Connects for the first time.
    pub(crate) fn open(
        options: RouteOptions,
    ) -> Result<(Arc<Self>, Arc<Connection>), ManagerError> {
        let route = Route::later(options);
        let connection = route.attempt(None)?;
        lock(&route.state).is_now(&connection);
        #[cfg(feature = "tls")]
        way::opened(&route);
        Ok((route, connection))
    }

    /// Returns a route that is not connected yet.
    pub(super) fn later(options: RouteOptions) -> Arc<Self> {
        let attempts = Attempts::new(options.backoff.unwrap_or_default());
        let state = State {
            current: Weak::new(),
            kept: None,
            has_manager: true,
            attempts,
            failed: None,
            failures: 0,
            waiting: HashMap::new(),
            last_waiting: 0,
            has_thread: false,
            closed: false,
        };
        Arc::new(Route {
            options,
            creator: Creator::here(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            #[cfg(feature = "tls")]
            way: OnceLock::new(),
        })
    }

    #[cfg(feature = "tls")]
    pub(super) fn options(&self) -> &RouteOptions {
        &self.options
    }

    /// Returns the file that travels with handles. `None` if this route is not over TCP.
    #[cfg(feature = "tls")]
    pub(super) fn way(&self) -> Option<Result<Attachment, ManagerError>> {
        if let Some(way) = self.way.get() {
            return Some(Ok(Arc::clone(way)));
        }
        let made = way::file(&self.options)?;
        Some(made.map(|file| Arc::clone(self.way.get_or_init(|| Arc::new(file)))))
    }

    /// Whether handles that are received from now on can use this route.
    #[cfg(feature = "tls")]
    pub(super) fn is_of_use(&self) -> bool {
        if self.creator.is_elsewhere() || lock(&self.state).closed {
            return false;
        }
        self.reconnects() || self.current().is_none_or(|connection| !connection.has_ended())
    }

    /// Returns the route of this process: a fork of the one that has connected makes its own.
    fn here(self: &Arc<Self>) -> Result<Arc<Self>, ManagerError> {
        if !self.creator.is_elsewhere() {
            return Ok(Arc::clone(self));
        }
        #[cfg(feature = "tls")]
        if let Some(route) = way::in_fork(&self.options) {
            return route.map_err(|why| ManagerError::Gone(why.into()));
        }
        let text = "this process is a fork of the one that has connected: connect here as well";
        Err(ManagerError::Gone(text.into()))
    }

    /// Whether this process is a fork of the one that has connected.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.creator.is_elsewhere()
    }

    /// Whether a connection that was lost is made again.
    pub(super) fn reconnects(&self) -> bool {
        self.options.backoff.is_some()
    }

    /// Returns until when a call that has lost its connection at this moment tries again.
    pub(super) fn end_of_attempts(&self) -> Option<Instant> {
        Instant::now().checked_add(self.options.backoff?.total)
    }

    /// Returns the connection if there is one, or the one that was lost.
    pub(crate) fn current(&self) -> Option<Arc<Connection>> {
        match self.creator.is_elsewhere() {
            true => None,
            false => lock(&self.state).current.upgrade(),
        }
    }

    /// Returns the connection. Connects again if it was lost and may be made again.
    ///
    /// # Errors
    /// [`ManagerError::NoObject`] if there is another server than the `wanted` one at the address.
    pub(super) fn connection(
        self: &Arc<Self>,
        wanted: Option<ServerId>,
        deadline: Option<Instant>,
    ) -> Result<Arc<Connection>, ManagerError> {
        let route = self.here()?;
        if let Some(deadline) = deadline {
            if let Some(connection) = route.live() {
                return checked(connection, wanted);
            }
            let (tell, told) = mpsc::sync_channel(1);
            // Without a thread, this one connects, as far as its time goes.
            if let Ok(_place) = route.let_thread_connect(move |connected| {
                let _ = tell.send(connected);
            }) {
                let left = deadline.saturating_duration_since(Instant::now());
                return match told.recv_timeout(left) {
                    Ok(connection) => checked(connection?, wanted),
                    Err(mpsc::RecvTimeoutError::Timeout) => Err(ManagerError::TimedOut),
                    Err(mpsc::RecvTimeoutError::Disconnected) => Err(no_thread()),
                };
            }
        }
        let end = route.end_of_attempts().into_iter().chain(deadline).min();
        match route.connect(wanted, end) {
            Err(ManagerError::Gone(_)) if deadline.is_some_and(|end| end <= Instant::now()) => {
                Err(ManagerError::TimedOut)
            }
            connected => connected,
        }
    }

    /// Returns the connection if there is one that was not lost.
    fn live(&self) -> Option<Arc<Connection>> {
        self.current().filter(|connection| !connection.is_gone())
    }

    /// Does what [`connection`](Self::connection) does, in this thread, until `end`.
    fn connect(self: &Arc<Self>, wanted: Option<ServerId>, end: Option<Instant>) -> Connected {
        let mut state = lock(&self.state);
        let failures = state.failures;
        loop {
            if state.closed {
                return Err(closed());
            }
            // An attempt of another call has found it out meanwhile. If each call made an attempt
            // of its own, the last of many would wait for all the delays in between.
            if state.failures != failures
                && let Some(error) = state.failed.as_ref().filter(|error| is_lasting(error))
            {
                return Err(error.clone());
            }
            if let Some(connection) = state.current.upgrade() {
                if !connection.is_gone() {
                    return checked(connection, wanted);
                }
                if !self.reconnects() {
                    return Err(connection.gone_error());
                }
            }
            match state.attempts.next(Instant::now(), end) {
                Next::Attempt => {
                    drop(state);
                    match self.attempt_and_tell(end) {
                        Ok(connection) => return checked(connection, wanted),
                        // Waiting does not change whom this process trusts, or its key.
                        Err(error) if !self.reconnects() || is_lasting(&error) => {
                            return Err(error);
                        }
                        Err(_) => state = lock(&self.state),
                    }
                }
                Next::WaitForOther => state = self.wait(state, end),
                Next::WaitUntil(next) => state = self.wait(state, Some(next)),
                Next::GiveUp => {
                    let why = match &state.failed {
                        Some(error) => {
                            format!("it was lost, and could not be reached again: {error:?}")
                        }
                        None => "it was lost, and could not be reached again in time".to_owned(),
                    };
                    return Err(ManagerError::Gone(why.into()));
                }
            }
        }
    }

    /// Does what [`connection`](Self::connection) does. If it has to wait, a thread does so for all
    /// futures.
    pub(super) async fn connection_async(
        self: &Arc<Self>,
        wanted: Option<ServerId>,
    ) -> Result<Arc<Connection>, ManagerError> {
        let route = self.here()?;
        if let Some(connection) = route.live() {
            return checked(connection, wanted);
        }
        let (tell, told) = oneshot::channel();
        let _place = route.let_thread_connect(move |connected| {
            let _ = tell.send(connected);
        })?;
        match shielded(told).await {
            Ok(connection) => checked(connection?, wanted),
            Err(oneshot::Canceled) => Err(no_thread()),
        }
    }

    /// Lets a thread connect, which calls `tell`. Whoever has dropped the place is not told.
    fn let_thread_connect(
        self: &Arc<Self>,
        tell: impl FnOnce(Connected) + Send + 'static,
    ) -> Result<Place, ManagerError> {
        let mut state = lock(&self.state);
        state.last_waiting += 1;
        let number = state.last_waiting;
        let waiting = Waiting { end: self.end_of_attempts(), tell: Box::new(tell) };
        state.waiting.insert(number, waiting);
        if !state.has_thread {
            let route = Arc::clone(self);
            let thread = thread::Builder::new().name("executor-manager".to_owned());
            if let Err(error) = thread.spawn(move || route.connect_for_others()) {
                let waiting = state.waiting.remove(&number);
                drop(state);
                drop(waiting);
                return Err(ManagerError::os("a thread that connects to a manager")(error));
            }
            state.has_thread = true;
        }
        drop(state);
        Ok(Place { route: Arc::clone(self), number })
    }

    /// Connects for those that wait. It ends when there is a connection, or when the time of all of
    /// them is over.
    fn connect_for_others(self: Arc<Self>) {
        loop {
            let end = lock(&self.state).waiting.values().filter_map(|one| one.end).min();
            let connected = catch(|| self.connect(None, end));
            // Those that came later have their own time.
            let goes_on = self.reconnects() && matches!(connected, Ok(Err(ManagerError::Gone(_))));
            let (told, left) = {
                let mut state = lock(&self.state);
                let now = Instant::now();
                let goes_on = goes_on && !state.closed;
                let stays = |one: &Waiting| goes_on && one.end.is_none_or(|end| end > now);
                let waiting = std::mem::take(&mut state.waiting);
                let (stay, told): (HashMap<_, _>, HashMap<_, _>) =
                    waiting.into_iter().partition(|(_, one)| stays(one));
                state.waiting = stay;
                state.has_thread = !state.waiting.is_empty();
                (told, state.has_thread)
            };
            // If it has panicked, those who wait see that their channel is closed.
            if let Ok(connected) = connected {
                for one in told.into_values() {
                    // The waker of a future is the user's code. A panic of it must not keep the
                    // others from being told.
                    let _ = catch(|| (one.tell)(connected.clone()));
                }
            }
            if !left {
                return;
            }
        }
    }

    /// Makes an attempt, and tells those who wait for it. The lock is not held.
    fn attempt_and_tell(
        self: &Arc<Self>,
        end: Option<Instant>,
    ) -> Result<Arc<Connection>, ManagerError> {
        // Others wait for the end of it, so a panic must not be one that nobody is told.
        let attempted = catch(|| self.attempt(end)).unwrap_or_else(|panic| {
            Err(ManagerError::Gone(format!("connecting to it has panicked: {panic}").into()))
        });
        // Without random numbers, clients come at the same time.
        let random = random::bytes().map_or(u32::MAX, u32::from_le_bytes);
        let mut state = lock(&self.state);
        let result = match attempted {
            Ok(_) if state.closed => {
                state.attempts.succeeded(Instant::now(), random);
                Err(closed())
            }
            Ok(connection) => {
                state.attempts.succeeded(Instant::now(), random);
                state.is_now(&connection);
                Ok(connection)
            }
            Err(error) => {
                state.attempts.failed(Instant::now(), random);
                state.failed = Some(error.clone());
                state.failures += 1;
                Err(error)
            }
        };
        drop(state);
        #[cfg(feature = "tls")]
        if result.is_ok() {
            way::connected(self);
        }
        self.changed.notify_all();
        result
    }

    /// Connects once.
    fn attempt(self: &Arc<Self>, end: Option<Instant>) -> Result<Arc<Connection>, ManagerError> {
        let RouteOptions { address, key, timeout, .. } = &self.options;
        let end = Instant::now().checked_add(*timeout).into_iter().chain(end).min();
        match address {
            Address::Unix(path) => {
                let (id, pid, door) =
                    local::connect(path, key, end).map_err(|error| failed(address, error))?;
                kill_point!(ClientHasDoor);
                let door = Door::at((id, pid), Some(Arc::new(door)), Arc::clone(self));
                Arc::new(door).connect(end).map_err(|error| match error {
                    // It has handed out its door, and is stopped or busy.
                    ManagerError::TimedOut => failed(address, MeetError::TimedOut),
                    error => error,
                })
            }
            #[cfg(feature = "tls")]
            Address::Tcp(..) => self.attempt_far(end),
            _ => Err(ManagerError::NotConnected {
                address: address.clone(),
                error: Arc::new(std::io::ErrorKind::Unsupported.into()),
            }),
        }
    }

    #[cfg(feature = "tls")]
    fn attempt_far(
        self: &Arc<Self>,
        end: Option<Instant>,
    ) -> Result<Arc<Connection>, ManagerError> {
        use super::super::link::far::Meeting;
        use crate::{ipc::connect_to, os::fork::NotInherited};
        let RouteOptions { address, key, tls, .. } = &self.options;
        let failed = |error| failed(address, error);
        let Some(tls) = tls else { return Err(failed(MeetError::Protocol)) };
        let socket = connect_to(address, end).map_err(|error| unreachable(address, error))?;
        let socket = NotInherited::new(socket);
        kill_point!(ClientAddressReached);
        let meeting = Meeting::connect(socket, tls, key.clone(), door::knock()).map_err(failed)?;
        let end_of_link = meeting.wait(end).map_err(failed)?;
        let socket = Arc::clone(end_of_link.socket());
        // The server decides how long an answer is. Memory grows with what arrives.
        let (sender, mut receiver) = end_of_link.into_ends(u64::MAX);
        let welcome = receiver.wait_for_welcome(&socket, end).map_err(failed)?;
        let (id, pid, max) = welcome.map_err(|why| {
            ManagerError::Gone(format!("it does not let this process in: {why}").into())
        })?;
        kill_point!(ClientWelcomed);
        let door = Arc::new(Door::at((id, pid), None, Arc::clone(self)));
        Connection::new(door, socket, (sender, receiver), max)
    }

    /// Closes the connection. No call succeeds from now on.
    pub(crate) fn close(&self) {
        if self.creator.is_elsewhere() {
            return;
        }
        let current = {
            let mut state = lock(&self.state);
            state.closed = true;
            state.kept = None;
            state.current.upgrade()
        };
        self.changed.notify_all();
        if let Some(connection) = current {
            connection.close();
        }
    }

    /// There is no `Manager` any more. From now on the handles keep the connection.
    pub(crate) fn leave(&self) {
        if !self.creator.is_elsewhere() {
            let mut state = lock(&self.state);
            state.has_manager = false;
            let kept = state.kept.take();
            drop(state);
            drop(kept);
        }
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        until: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        match until {
            // An attempt ends after its timeout, and tells.
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                let waited = self.changed.wait_timeout(state, left);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}

impl State {
    fn is_now(&mut self, connection: &Arc<Connection>) {
        self.current = Arc::downgrade(connection);
        self.kept = self.has_manager.then(|| Arc::clone(connection));
        self.failed = None;
    }
}

fn checked(
    connection: Arc<Connection>,
    wanted: Option<ServerId>,
) -> Result<Arc<Connection>, ManagerError> {
    match wanted.is_none_or(|wanted| wanted == connection.door().id) {
        true => Ok(connection),
        false => Err(ManagerError::NoObject),
    }
}

fn no_thread() -> ManagerError {
    ManagerError::Gone("the thread that connects to it has ended".into())
}

fn closed() -> ManagerError {
    ManagerError::Gone("this process has closed the connection".into())
}

/// Whether an attempt fails as long as nobody changes anything on one of the sides.
fn is_lasting(error: &ManagerError) -> bool {
    matches!(
        error,
        ManagerError::Auth { .. } | ManagerError::Untrusted { .. } | ManagerError::Protocol(_)
    )
}

#[cfg(feature = "tls")]
fn unreachable(address: &Address, error: std::io::Error) -> ManagerError {
    ManagerError::NotConnected { address: address.clone(), error: Arc::new(error) }
}

/// Returns the error of an attempt.
fn failed(address: &Address, error: MeetError) -> ManagerError {
    use std::io::{Error, ErrorKind};
    let address = address.clone();
    let system = |error: Error| ManagerError::NotConnected {
        address: address.clone(),
        error: Arc::new(error),
    };
    match error {
        MeetError::Io(refusal) => system(refusal.into()),
        MeetError::TimedOut => system(ErrorKind::TimedOut.into()),
        // It may have been told to end just now.
        MeetError::Closed | MeetError::Auth(AuthError::Closed | AuthError::TimedOut) => {
            system(Error::new(ErrorKind::ConnectionReset, error.to_string()))
        }
        MeetError::Auth(error) => ManagerError::Auth { address, error },
        MeetError::Untrusted(why) => ManagerError::Untrusted { address, why: why.into() },
        error @ MeetError::User(_) => {
            ManagerError::Untrusted { address, why: error.to_string().into() }
        }
        error @ (MeetError::Tls(_) | MeetError::Protocol) => {
            ManagerError::Protocol(format!("at `{address}`: {error}").into())
        }
    }
}
