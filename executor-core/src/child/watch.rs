//! Reaps children, each once, and looks after what they leave behind.
//!
//! ```text
//!  a tenant's thread sleeps on pidfds ─► a child has ended ─► Reaper: the rest of its group is killed,
//!                                                             its status taken, what it left waited for
//!  a child that nobody wants         ─► kill, end ─────────►
//! ```
//!
//! A tenant has one reaper for all of its children: the driver of a pool, the table of processes.
//! The exit status stays with the [`Child`].

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::os::{exit_status::ExitStatus, orphans::Orphans, process::Child, sync::lock};

/// Reaps the children of one tenant.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    /// What children have left behind, where that becomes ours.
    orphans: Mutex<Orphans>,
}

impl Reaper {
    /// Reaps a child that has ended. What it had started is killed.
    pub(crate) fn reap(&self, child: &Child) -> ExitStatus {
        self.reap_and_keep(child, |_| false)
    }

    /// Reaps a child that has ended. What it had started is killed, unless the end was one after
    /// which that `may_stay`.
    pub(crate) fn reap_and_keep(
        &self,
        child: &Child,
        may_stay: impl FnOnce(ExitStatus) -> bool,
    ) -> ExitStatus {
        let status = child.reap(may_stay);
        // Of a child that others have reaped, the number of the group may be another's.
        if status != ExitStatus::Unknown {
            self.look_behind(child);
        }
        status
    }

    /// Kills a child and reaps it, if it ends within `limit`.
    pub(crate) fn kill(&self, child: &Child, limit: Duration) {
        child.kill(limit);
        self.give_up(child);
    }

    /// Waits for the end of a child that is about to end, kills it if it takes longer than `limit`,
    /// and reaps it.
    pub(crate) fn end(&self, child: &Child, limit: Duration) {
        child.end(limit);
        self.give_up(child);
    }

    /// A child that has not ended yet is reaped later, as what it leaves behind is.
    fn give_up(&self, child: &Child) {
        child.reap(|_| false);
        self.look_behind(child);
    }

    fn look_behind(&self, child: &Child) {
        lock(&self.orphans).leader_reaped(child.pid());
    }

    /// Looks after what was left behind, where it is time to; `living` are children that were not
    /// reaped.
    pub(crate) fn look(&self, living: impl Iterator<Item = u32>) {
        lock(&self.orphans).look(living);
    }

    /// When to look next, if there is something to look for; `living`: whether there are children.
    pub(crate) fn next_look(&self, living: bool) -> Option<Instant> {
        lock(&self.orphans).next_look(living)
    }

    /// Whether nothing is left behind.
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.orphans).is_empty()
    }

    /// Waits until nothing is left of what was killed, at most `limit`.
    pub(crate) fn wait(&self, limit: Duration) {
        lock(&self.orphans).wait(limit);
    }
}

/// Kills a child that hangs, and reaps it if it ends within `limit`. What it leaves behind is left.
pub(crate) fn abandon(child: &Child, limit: Duration) {
    child.kill(limit);
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
