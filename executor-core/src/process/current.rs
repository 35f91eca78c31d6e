//! Who this process is, and its relatives.

use std::{
    fmt,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags, getppid, pidfd_open},
};

use super::{ChildHandle, table};
use crate::{
    child::identity,
    ipc::AuthKey,
    os::{process, ready},
};

/// This process: [`current_process`].
#[derive(Clone)]
pub struct CurrentProcess {
    name: String,
    daemon: bool,
}

/// This process: its name, its pid, whether it is a daemon.
///
/// In the program that the user started it is `MainProcess`; in a worker of a pool `PoolWorker-N`.
///
/// ```
/// let own = executor::current_process();
/// assert_eq!(own.pid(), std::process::id());
/// assert!(own.is_alive() && !own.daemon() && own.exit_code().is_none());
/// ```
pub fn current_process() -> CurrentProcess {
    CurrentProcess { name: identity::name(), daemon: identity::told().is_some_and(|told| told.daemon) }
}

impl CurrentProcess {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// Whether it is terminated when its parent ends.
    pub fn daemon(&self) -> bool {
        self.daemon
    }

    /// The secret that all processes of this program share: random in the program that the user started, and handed to its
    /// children. For [`Listener`](crate::Listener) and [`Client`](crate::Client).
    ///
    /// # Panics
    /// In the program that the user started, if the system refuses random numbers.
    pub fn authkey(&self) -> AuthKey {
        AuthKey::new(identity::key::current().unwrap_or_else(|error| panic!("{error}")))
    }

    /// Sets another one, for this process and the children that it starts from now on.
    pub fn set_authkey(&self, key: &AuthKey) {
        identity::key::set(key.as_bytes().to_vec().into());
    }

    /// True: it is asking.
    pub fn is_alive(&self) -> bool {
        true
    }

    /// None: it is asking.
    pub fn exit_code(&self) -> Option<crate::error::ExitStatus> {
        None
    }
}

impl fmt::Debug for CurrentProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CurrentProcess")
            .field("name", &self.name)
            .field("pid", &self.pid())
            .field("daemon", &self.daemon)
            .finish()
    }
}

/// The process that started this one: [`parent_process`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentProcess {
    name: String,
    pid: u32,
}

/// The process of this program that started this one; `None` in the program that the user started.
pub fn parent_process() -> Option<ParentProcess> {
    let told = identity::told()?;
    let (name, pid) = told.parent.clone()?;
    Some(ParentProcess { name, pid })
}

impl ParentProcess {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        // When it ends, the kernel gives us another parent.
        getppid().is_some_and(|parent| parent.as_raw_nonzero().get().cast_unsigned() == self.pid)
    }

    /// Waits for its end, at most so long; whether it has ended. For processes that [outlive](crate::Process::outlive_parent) it.
    pub fn join(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let pidfd =
            Pid::from_raw(self.pid.cast_signed()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // Opened first, compared then: the number may be another process's by now.
        while self.is_alive() {
            let Some(pidfd) = &pidfd else { return !self.is_alive() };
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return false;
            }
            let limit = left.map(|left| Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            ready::doze(&mut [PollFd::new(pidfd, PollFlags::IN)], limit.as_ref());
        }
        true
    }
}

/// The processes that this one has started and that run, in that order. Those that have ended are reaped by asking.
///
/// Workers of pools are not among them.
///
/// ```
/// use executor::{Process, prelude::*};
///
/// #[task]
/// fn wait_long() { std::thread::sleep(std::time::Duration::from_secs(60)) }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let child = Process::new(wait_long::task()).start()?;
///     assert_eq!(executor::active_children()[0].pid(), child.pid());
///     child.kill()?;
///     child.wait_exit();
///     assert!(executor::active_children().is_empty());
///     Ok(())
/// }
/// ```
pub fn active_children() -> Vec<ChildHandle> {
    table::running().into_iter().map(|record| ChildHandle { record }).collect()
}

/// How many processors the machine has, whether this process may use them or not: `os.cpu_count`. See
/// [`usable_cpus`](crate::usable_cpus) for the number of workers.
///
/// ```
/// assert!(executor::cpu_count() >= executor::usable_cpus());
/// ```
pub fn cpu_count() -> usize {
    crate::os::cpu::configured().max(crate::os::cpu::usable_cpus())
}

/// How many threads this process has; `threading.active_count`. A fresh [`Process`](crate::Process) has two: the one that runs its
/// body, and the one that watches its parent. 0 if the system does not say: where `/proc` is not mounted.
pub fn thread_count() -> usize {
    process::thread_count().unwrap_or(0)
}
