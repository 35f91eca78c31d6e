//! The current process and its relatives.

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

/// The current process, as [`current_process`] returns it.
#[derive(Clone)]
pub struct CurrentProcess {
    name: String,
    daemon: bool,
}

/// Returns the current process: its name, its pid, and whether it is a daemon.
///
/// The name is `MainProcess` in the program that the user started, and `PoolWorker-N` in a worker
/// of a pool.
///
/// ```
/// let own = executor::current_process();
/// assert_eq!(own.pid(), std::process::id());
/// assert!(own.is_alive() && !own.daemon() && own.exit_code().is_none());
/// ```
pub fn current_process() -> CurrentProcess {
    CurrentProcess {
        name: identity::name(),
        daemon: identity::told().is_some_and(|told| told.daemon),
    }
}

impl CurrentProcess {
    /// Returns the name of the process.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// Returns whether the process is terminated when its parent ends.
    pub fn daemon(&self) -> bool {
        self.daemon
    }

    /// Returns the secret that all processes of this program share, for
    /// [`Listener`](crate::Listener) and [`Client`](crate::Client). The program that the user
    /// started generates it at random, and passes it to its children.
    ///
    /// # Panics
    /// In the program that the user started, if the system cannot supply random numbers.
    pub fn authkey(&self) -> AuthKey {
        AuthKey::new(identity::key::current().unwrap_or_else(|error| panic!("{error}")))
    }

    /// Sets another secret, for this process and for the children that it starts from now on.
    pub fn set_authkey(&self, key: &AuthKey) {
        identity::key::set(key.as_bytes().to_vec().into());
    }

    /// Returns `true`: the calling process is alive.
    pub fn is_alive(&self) -> bool {
        true
    }

    /// Returns `None`: the calling process has not ended.
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

/// The process that started this one, as [`parent_process`] returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentProcess {
    name: String,
    pid: u32,
}

/// Returns the process of this program that started this one, or `None` in the program that the
/// user started.
pub fn parent_process() -> Option<ParentProcess> {
    let told = identity::told()?;
    let (name, pid) = told.parent.clone()?;
    Some(ParentProcess { name, pid })
}

impl ParentProcess {
    /// Returns the name of the process.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns whether the process is still running.
    pub fn is_alive(&self) -> bool {
        // When the parent ends, the kernel assigns another parent to this process.
        getppid().is_some_and(|parent| parent.as_raw_nonzero().get().cast_unsigned() == self.pid)
    }

    /// Waits for the end of the process, at most `timeout`. Returns whether it has ended. It is
    /// meant for processes that [outlive](crate::Process::outlive_parent) their parent.
    pub fn join(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let pidfd = Pid::from_raw(self.pid.cast_signed())
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // The pidfd was opened first, and `is_alive` is checked after that. If the parent is still
        // alive then, the pidfd is the parent's. Otherwise the pid may have been reused, and the
        // pidfd may belong to another process.
        while self.is_alive() {
            let Some(pidfd) = &pidfd else { return !self.is_alive() };
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return false;
            }
            let timeout = left.map(|left| Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            ready::doze(&mut [PollFd::new(pidfd, PollFlags::IN)], timeout.as_ref());
        }
        true
    }
}

/// Returns the running processes that this process has started, in the order of their start.
/// Processes that have ended are reaped by this call.
///
/// Workers of pools are not included.
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

/// Returns the number of processors of the machine, whether or not this process may use them. It
/// corresponds to `os.cpu_count`. For the number of workers, use
/// [`usable_cpus`](crate::usable_cpus).
///
/// ```
/// assert!(executor::cpu_count() >= executor::usable_cpus());
/// ```
pub fn cpu_count() -> usize {
    crate::os::cpu::configured().max(crate::os::cpu::usable_cpus())
}

/// Returns the number of threads of this process. It corresponds to `threading.active_count`. A new
/// [`Process`](crate::Process) has two threads: one runs its body, and one watches its parent. The
/// result is 0 if the system does not provide the number, because `/proc` is not mounted.
pub fn thread_count() -> usize {
    process::thread_count().unwrap_or(0)
}
