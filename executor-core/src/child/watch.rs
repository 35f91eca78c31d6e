//! Reaps children, each once, and handles the processes that they leave behind.
//!
//! ```text
//!  a tenant's thread sleeps on pidfds ─► a child has ended ─► Reaper: kills the group's rest,
//!                                                             takes its status, awaits leftovers
//!  a child that is not wanted         ─► kill, end ─────────►
//! ```
//!
//! A tenant has one reaper for all of its children; the tenants are the driver of a pool and the
//! table of processes. The exit status is stored in the [`Child`].

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::os::{exit_status::ExitStatus, orphans::Orphans, process::Child, std_or_model::lock};

/// Reaps the children of one tenant.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    /// Processes that children have left behind, where they become this process's children.
    orphans: Mutex<Orphans>,
}

impl Reaper {
    /// Reaps a child that has ended, and kills the processes that it had started.
    pub(crate) fn reap(&self, child: &Child) -> ExitStatus {
        self.reap_and_keep(child, |_| false)
    }

    /// Reaps a child that has ended, and kills the processes that it had started, unless `may_stay`
    /// returns `true` for the exit status.
    pub(crate) fn reap_and_keep(
        &self,
        child: &Child,
        may_stay: impl FnOnce(ExitStatus) -> bool,
    ) -> ExitStatus {
        let status = child.reap(may_stay);
        // If other code has reaped the child, its group's number may belong to another group by
        // now.
        if status != ExitStatus::Unknown {
            self.look_behind(child);
        }
        status
    }

    /// Kills a child, and reaps it if it ends within `timeout`.
    pub(crate) fn kill(&self, child: &Child, timeout: Duration) {
        child.kill(timeout);
        self.give_up(child);
    }

    /// Waits for the end of a child that is about to end, kills it if that takes longer than
    /// `timeout`, and reaps it.
    pub(crate) fn end(&self, child: &Child, timeout: Duration) {
        child.end(timeout);
        self.give_up(child);
    }

    /// Reaps a child if it has ended. Otherwise it is reaped later, together with what it leaves
    /// behind.
    fn give_up(&self, child: &Child) {
        child.reap(|_| false);
        self.look_behind(child);
    }

    fn look_behind(&self, child: &Child) {
        lock(&self.orphans).leader_reaped(child.pid());
    }

    /// Handles processes left behind, if it is time to. `living` are the children that were not
    /// reaped.
    pub(crate) fn look(&self, living: impl Iterator<Item = u32>) {
        lock(&self.orphans).look(living);
    }

    /// Returns when to call [`look`](Self::look) next, if there is something to look for. `living`
    /// is whether there are children.
    pub(crate) fn next_look(&self, living: bool) -> Option<Instant> {
        lock(&self.orphans).next_look(living)
    }

    /// Returns whether no processes are left behind.
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.orphans).is_empty()
    }

    /// Waits at most `timeout` until the killed processes are gone.
    pub(crate) fn wait(&self, timeout: Duration) {
        lock(&self.orphans).wait(timeout);
    }
}

/// Kills a child that hangs, and reaps it if it ends within `timeout`. Processes that it leaves
/// behind are not handled.
pub(crate) fn abandon(child: &Child, timeout: Duration) {
    child.kill(timeout);
    child.reap(|_| false);
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::{os::unix::process::CommandExt, process::Command};

    use rustix::process::Signal;

    use super::*;

    #[allow(clippy::zombie_processes, reason = "it is reaped as any child of ours")]
    fn sleeper() -> Child {
        let child = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        Child::adopt(child.id()).unwrap()
    }

    #[test]
    fn a_child_is_reaped_once_and_keeps_its_status() {
        let (reaper, child) = (Reaper::default(), sleeper());
        assert_eq!(child.status(), None);
        reaper.kill(&child, Duration::from_secs(60));
        let killed = ExitStatus::Signaled(libc::SIGKILL);
        assert_eq!(child.status(), Some(killed));
        assert_eq!(reaper.reap(&child), killed);
        child.signal_group(Signal::KILL).unwrap();
        assert!(reaper.is_idle());
    }

    #[test]
    fn a_child_that_runs_is_not_taken_for_one_that_was_reaped() {
        let child = sleeper();
        child.reap(|_| true);
        assert_eq!(child.status(), None);
        Reaper::default().kill(&child, Duration::from_secs(60));
        assert_eq!(child.status(), Some(ExitStatus::Signaled(libc::SIGKILL)));
    }
}
