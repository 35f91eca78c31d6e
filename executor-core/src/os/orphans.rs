//! Orphans: processes that our children started and left behind, if the kernel makes them our
//! children.
//!
//! ```text
//!  worker ─► sh ─► sleep     sh ends: sleep gets the nearest process that takes orphans as parent
//!  this process is a container's first process or a subreaper:
//!                            it gets the orphans, and must wait for them, or they stay as zombies
//!  any other process:        `waitid` reports that it has no such child, and nothing is done
//! ```
//!
//! This module only waits for members of groups that our children lead, never for any child: the
//! other children belong to the program. A group's number is not given to another process while the
//! group has a member. Dead members count, and so does a leader that was not reaped.
//!
//! There is one gap. If another part of the program reaps the last member, a child of the program
//! may get the group's number before the next look. Then the status of that child is lost, as
//! always when two parts wait for one child. It is reported as "status unknown".

use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::socket::retry;

/// First pause before members of a group that was just killed are looked for. The pause doubles
/// each time, up to [`EVERY`].
const SOON: Duration = Duration::from_millis(1);
/// How often to look for orphans of living children. With a lower value, a program that takes
/// orphans and has workers hardly ever sleeps. With a higher value, more zombies exist at a time.
const EVERY: Duration = Duration::from_secs(1);

/// Groups whose members may have become our children.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    /// Groups whose leader was reaped and that have members left. Each has the time of the next
    /// look, and the pause after it.
    left: Vec<(Pid, Instant, Duration)>,
    /// When to look at groups whose leader lives.
    look_at: Option<Instant>,
    /// The result of [`takes_orphans`] at the last look, so that a driver does not ask in each
    /// turn.
    takes_orphans: bool,
}

impl Orphans {
    /// Called when a child that leads a group was reaped. From now on the rest of the group is
    /// waited for.
    pub(crate) fn leader_reaped(&mut self, leader: u32) {
        if let Some(leader) = Pid::from_raw(leader.cast_signed())
            && reap_group(leader)
        {
            self.left.push((leader, Instant::now() + SOON, SOON));
        }
    }

    /// Looks at all groups whose time has come. `living` are the leaders that were not reaped.
    pub(crate) fn look(&mut self, living: impl Iterator<Item = u32>) {
        let now = Instant::now();
        self.left.retain_mut(|(leader, at, pause)| {
            if *at > now {
                return true;
            }
            // Members that were just killed end soon; look less and less often for the others.
            *pause = (*pause * 2).min(EVERY);
            *at = now + *pause;
            reap_group(*leader)
        });
        if self.look_at.is_none_or(|at| at <= now) {
            self.look_at = Some(now + EVERY);
            self.takes_orphans = takes_orphans();
            if self.takes_orphans {
                living
                    .filter_map(|leader| Pid::from_raw(leader.cast_signed()))
                    .for_each(reap_beside);
            }
        }
    }

    /// Returns when to look next, if there is anything to look for. `living` says whether there is
    /// a child that leads a group.
    pub(crate) fn next_look(&self, living: bool) -> Option<Instant> {
        let left = self.left.iter().map(|(_, at, _)| *at).min();
        let beside = self.look_at.filter(|_| living && self.takes_orphans);
        left.into_iter().chain(beside).min()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Looks until no members are left, for at most `timeout`. It is for groups that were killed.
    pub(crate) fn wait(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        self.look(std::iter::empty());
        while let Some(at) = self.left.iter().map(|(_, at, _)| *at).min()
            && Instant::now() < deadline
        {
            std::thread::sleep(at.min(deadline).saturating_duration_since(Instant::now()));
            self.look(std::iter::empty());
        }
    }
}

/// Whether processes that lose their parent may become children of this process.
fn takes_orphans() -> bool {
    let mut subreaper: libc::c_int = 0;
    // SAFETY: writes the flag to the given address.
    let asked = unsafe { libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut subreaper) };
    std::process::id() == 1 || asked == 0 && subreaper != 0
}

/// Reaps all ended members of a group whose leader was reaped. Returns whether the group still
/// contains children of ours.
fn reap_group(leader: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    loop {
        match retry(|| waitid(WaitId::Pgid(Some(leader)), options)) {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            // ECHILD: no member is left, or none became our child.
            Err(_) => return false,
        }
    }
}

/// Reaps all ended members of a group except its leader, whose status other code takes.
fn reap_beside(leader: Pid) {
    let group = leader.as_raw_nonzero().get().cast_unsigned();
    loop {
        // SAFETY: an all-zero `siginfo_t` is a valid one.
        let mut found: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // Look without reaping (WNOWAIT), because the found process may be the leader.
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: only looks, and writes what it finds to the given address.
        let asked = unsafe { libc::waitid(libc::P_PGID, group, &raw mut found, options) };
        // SAFETY: filled by `waitid`, or zero.
        let pid = Pid::from_raw(unsafe { found.si_pid() });
        match pid {
            Some(pid) if asked == 0 && pid != leader => {
                let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
            }
            _ => return,
        }
    }
}
