//! The threads of a server. One of them leads: it serves all clients. It also runs the functions of
//! users, and is relieved if one of them takes long.
//!
//! ```text
//!  leader   serves ──► puts the server into the slot ──► runs the function ──► takes it back, serves
//!                                │                            │
//!  standby                       └── still there after a      └── gone: reports the result to the
//!                                    millisecond: takes it,       new leader, and stands by
//!                                    and leads from now on
//! ```
//!
//! A thread of its own for each function would cost two wake-ups for each update, which take fifty
//! times as long as the function usually does. A leader that ran functions and was never relieved
//! would let one that hangs stop all clients.
//!
//! The process's main thread only waits for the end, so a function that never ends does not keep
//! the process from ending.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

#[cfg(feature = "tls")]
use super::super::link::far::FarEnd;
use super::{
    super::{
        client::{Door, Lender},
        function::{self, Application, Site},
        managed::{self, Stored},
        protocol::ObjectId,
    },
    core::{Job, JobId, Work},
    pools::News,
    serve::{Assignment, Server, Turn},
};
use crate::os::{eventfd::EventFd, std_or_model::lock};

/// How long a function may run before the leader is relieved. With a higher value, other clients
/// wait for longer while a slow function runs. With a lower value, the thread that stands by wakes
/// up more often while there are updates.
const PATIENCE: Duration = Duration::from_millis(1);

/// What a function has given, or the body of a reply that says why there is nothing.
pub(super) type Outcome = Result<Ran, Vec<u8>>;

/// What a function has given.
pub(super) enum Ran {
    /// Its encoded result.
    Returned(function::Output),
    /// The value of a user's own type that it was to make.
    Made(Arc<Stored>),
}

/// Runs a function of a user.
fn run_function(assignment: Assignment, door: &Arc<Door>, lender: &Arc<dyn Lender>) -> Outcome {
    let Assignment { job: Job { work, .. }, value } = assignment;
    let site = |lent| Site { door, lender, lent };
    match work {
        Work::Update { function, optional, current, arguments, names } => {
            let current = current.as_deref();
            let application = Application { function, optional, current, rest: &arguments };
            application.run(site(names)).map(Ran::Returned)
        }
        Work::Construct { function, arguments, names } => {
            function::construct(function, &arguments, site(names)).map(Ran::Made)
        }
        Work::Call { function, arguments, names, .. } => {
            let value = value.expect("the core drops a value after its last call");
            function::call(value, function, &arguments, site(names)).map(Ran::Returned)
        }
        Work::Drop { .. } => {
            if let Some(value) = value {
                managed::drop_value(value);
            }
            Ok(Ran::Returned(function::Output::default()))
        }
        Work::Pool { .. } => unreachable!("the loop does it by itself"),
    }
}

/// What other threads have for the leader: the results of functions whose threads do not lead any
/// more, what the executors of pools tell, and clients that have come in through the gate.
pub(super) struct Late {
    ended: Mutex<Vec<(JobId, Outcome)>>,
    news: Mutex<Vec<News>>,
    /// Objects of handles that functions and values of users have dropped.
    let_go: Mutex<Vec<ObjectId>>,
    #[cfg(feature = "tls")]
    come: Mutex<Vec<FarEnd>>,
    /// Why the server cannot go on.
    failed: Mutex<Option<String>>,
    /// Wakes the leader.
    pub(super) signal: EventFd,
}

impl Late {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Late {
            ended: Mutex::default(),
            news: Mutex::default(),
            let_go: Mutex::default(),
            #[cfg(feature = "tls")]
            come: Mutex::default(),
            failed: Mutex::default(),
            signal: EventFd::new()?,
        })
    }

    /// Returns what has ended since the last time.
    pub(super) fn take(&self) -> Vec<(JobId, Outcome)> {
        self.signal.clear();
        std::mem::take(&mut lock(&self.ended))
    }

    fn put(&self, job: JobId, outcome: Outcome) {
        lock(&self.ended).push((job, outcome));
        self.signal.ring();
    }

    /// Tells what has happened in a pool.
    pub(super) fn tell(&self, news: News) {
        let mut all = lock(&self.news);
        all.push(news);
        let is_first = all.len() == 1;
        drop(all);
        if is_first {
            // The leader takes all news that have come by then.
            self.signal.ring();
        }
    }

    /// Returns what the executors of pools have told since the last time. Called after
    /// [`take`](Self::take), which silences the signal.
    pub(super) fn news(&self) -> Vec<News> {
        std::mem::take(&mut lock(&self.news))
    }

    /// Returns the objects whose handles were dropped since the last time.
    pub(super) fn dropped_handles(&self) -> Vec<ObjectId> {
        std::mem::take(&mut lock(&self.let_go))
    }

    /// Hands a client over that has come in.
    #[cfg(feature = "tls")]
    pub(super) fn come(&self, end: FarEnd) {
        lock(&self.come).push(end);
        self.signal.ring();
    }

    /// Returns the clients that have come in since the last time.
    #[cfg(feature = "tls")]
    pub(super) fn newcomers(&self) -> Vec<FarEnd> {
        std::mem::take(&mut lock(&self.come))
    }

    /// Ends the server with an error.
    pub(super) fn fail(&self, why: String) {
        *lock(&self.failed) = Some(why);
        self.signal.ring();
    }

    /// Returns why the server cannot go on, if it cannot.
    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.failed).take()
    }
}

impl Lender for Late {
    fn let_go(&self, object: ObjectId) {
        let mut all = lock(&self.let_go);
        all.push(object);
        let is_first = all.len() == 1;
        drop(all);
        if is_first {
            self.signal.ring();
        }
    }
}

struct Crew {
    door: Arc<Door>,
    late: Arc<Late>,
    /// The same.
    lender: Arc<dyn Lender>,
    state: Mutex<State>,
    /// Wakes the thread that stands by.
    changed: Condvar,
    /// Wakes the main thread. It has one of its own, as functions begin often.
    over: Condvar,
}

struct State {
    /// The server, while its leader runs a function.
    slot: Option<Box<Server>>,
    /// Number of functions that leaders have begun.
    begun: u64,
    /// Number of threads that stand by.
    standing_by: usize,
    /// Whether one of them looks at the slot from time to time.
    watched: bool,
    /// Whether the server has ended, and how, until the main thread has taken that.
    ended: bool,
    over: Option<io::Result<()>>,
}

/// Serves until the owner of the server is gone.
pub(super) fn run(server: Server) -> io::Result<()> {
    let (door, late) = (server.door(), server.late());
    let state =
        State { slot: None, begun: 0, standing_by: 0, watched: false, ended: false, over: None };
    let (changed, over) = (Condvar::new(), Condvar::new());
    let lender = Arc::clone(&late) as Arc<dyn Lender>;
    let crew = Arc::new(Crew { door, late, lender, state: Mutex::new(state), changed, over });
    let first = Arc::clone(&crew);
    spawn(move || {
        if first.lead(Box::new(server)) {
            first.return_to_stand_by();
        }
    })?;
    let mut state = lock(&crew.state);
    loop {
        if let Some(over) = state.over.take() {
            return over;
        }
        state = crew.over.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

fn spawn(body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("executor-serve".to_owned()).spawn(body).map(drop)
}

impl Crew {
    /// Serves, until the end or until another thread leads. Returns whether the server goes on.
    fn lead(self: &Arc<Self>, mut server: Box<Server>) -> bool {
        /// A leader that panics would leave a process that nobody serves.
        struct Guard<'a>(&'a Crew);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                if thread::panicking() {
                    self.0.end(Err(io::Error::other("its thread panicked")));
                }
            }
        }
        let _guard = Guard(self);
        loop {
            match server.turn() {
                Ok(Turn::Served) => {}
                Ok(Turn::Function(assignment)) => match self.apply(server, assignment) {
                    Some(back) => server = back,
                    None => return true,
                },
                Ok(Turn::Over) => {
                    // The end of the program would wait for their tasks.
                    server.kill_workers();
                    return self.end(Ok(()));
                }
                Err(error) => {
                    server.kill_workers();
                    return self.end(Err(error));
                }
            }
        }
    }

    fn end(&self, over: io::Result<()>) -> bool {
        let mut state = lock(&self.state);
        state.ended = true;
        state.over = Some(over);
        drop(state);
        self.changed.notify_all();
        self.over.notify_all();
        false
    }

    /// Runs a function. Returns the server, unless another thread has it by now.
    fn apply(self: &Arc<Self>, server: Box<Server>, assignment: Assignment) -> Option<Box<Server>> {
        let job = assignment.job.id;
        let mine = {
            let mut state = lock(&self.state);
            state.slot = Some(server);
            state.begun += 1;
            if state.standing_by == 0 {
                let other = Arc::clone(self);
                // Without another thread, all clients wait until the function has ended.
                match spawn(move || other.stand_by()) {
                    Ok(()) => state.standing_by = 1,
                    Err(error) => {
                        tracing::error!(%error, "no thread to relieve a manager's server")
                    }
                }
            } else if !state.watched {
                self.changed.notify_all();
            }
            state.begun
        };
        kill_point!(ManagerFunctionNext);
        let outcome = run_function(assignment, &self.door, &self.lender);
        kill_point!(ManagerFunctionRan);
        let mut state = lock(&self.state);
        let back = if state.begun == mine { state.slot.take() } else { None };
        drop(state);
        match back {
            Some(mut server) => {
                server.applied(job, outcome);
                Some(server)
            }
            None => {
                self.late.put(job, outcome);
                kill_point!(ManagerFunctionLate);
                None
            }
        }
    }

    /// Stands by, if no other thread does.
    fn return_to_stand_by(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        if state.standing_by > 0 {
            return;
        }
        state.standing_by = 1;
        drop(state);
        self.stand_by();
    }

    /// Waits until a leader has to be relieved, and leads. The caller has counted this thread.
    /// Returns when the server has ended, or when another thread stands by.
    fn stand_by(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        while !state.ended {
            let begun = state.begun;
            state = self.wait(state);
            if state.begun == begun
                && let Some(server) = state.slot.take()
            {
                state.standing_by = 0;
                state.watched = false;
                drop(state);
                kill_point!(ManagerRelieved);
                if !self.lead(server) {
                    return;
                }
                state = lock(&self.state);
                if state.standing_by > 0 {
                    return;
                }
                state.standing_by = 1;
            }
        }
    }

    /// Waits for a moment while functions are being run, and otherwise until one is.
    fn wait<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let begun = state.begun;
        if state.slot.is_none() && !state.watched {
            let mut state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            // Although the function may have ended by now. The next ones need not wake this thread,
            // which would cost them more than they take themselves.
            state.watched = state.begun != begun;
            return state;
        }
        state.watched = true;
        let waited = self.changed.wait_timeout(state, PATIENCE);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        // While there is one after the other, they need not wake this thread.
        state.watched = state.begun != begun || state.slot.is_some();
        state
    }
}
