//! Processes that our children started and left behind, where the kernel makes them our children.
//!
//! ```text
//!  worker ─► sh ─► sleep        sh ends: sleep goes to the nearest process that takes orphans
//!  the first process of a container, a subreaper: that is this one, and it has to wait for them, or they stay as zombies
//!  anybody else: `waitid` says that it has no such child, and nothing is done
//! ```
//!
//! Only members of the groups that our children lead are waited for, never just any child: those are the program's own. The
//! number of a group is not given to another process while it has a member, dead ones included; a leader that was not reaped
//! is one. When its last member was reaped by somebody else, its number may be given away until the next look, to a child of
//! the program: then the status of that child is lost, as wherever two wait for one child, which is told as "status unknown".

use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::socket::retry;

/// How soon members of a group are looked for that was just killed; doubled each time, up to [`EVERY`].
const SOON: Duration = Duration::from_millis(1);
/// How often it is looked for what living children have left behind. More often: a program that takes orphans and has workers
/// never sleeps. Less often: more zombies.
const EVERY: Duration = Duration::from_secs(1);

/// Groups whose members may have become ours.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    /// Those whose leader was reaped and that have members left: when to look next, and how long to wait after that.
    left: Vec<(Pid, Instant, Duration)>,
    /// When to look at those whose leader lives.
    look_at: Option<Instant>,
    /// What [`takes_orphans`] said then: not asked in each turn of a driver.
    takes_orphans: bool,
}

impl Orphans {
    /// A child that leads a group was reaped. What is left of the group is waited for from now on.
    pub(crate) fn leader_reaped(&mut self, leader: u32) {
        if let Some(leader) = Pid::from_raw(leader.cast_signed())
            && reap_group(leader)
        {
            self.left.push((leader, Instant::now() + SOON, SOON));
        }
    }

    /// Looks where it is time to; `living` are leaders that were not reaped.
    pub(crate) fn look(&mut self, living: impl Iterator<Item = u32>) {
        let now = Instant::now();
        self.left.retain_mut(|(leader, at, pause)| {
            if *at > now {
                return true;
            }
            *pause = (*pause * 2).min(EVERY);
            *at = now + *pause;
            reap_group(*leader)
        });
        if self.look_at.is_none_or(|at| at <= now) {
            self.look_at = Some(now + EVERY);
            self.takes_orphans = takes_orphans();
            if self.takes_orphans {
                living.filter_map(|leader| Pid::from_raw(leader.cast_signed())).for_each(reap_beside);
            }
        }
    }

    /// When to look next, if there is something to look for; `living`: whether a child is there that leads a group.
    pub(crate) fn next_look(&self, living: bool) -> Option<Instant> {
        let left = self.left.iter().map(|(_, at, _)| *at).min();
        let beside = self.look_at.filter(|_| living && self.takes_orphans);
        left.into_iter().chain(beside).min()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Looks until nothing is left, at most so long: for groups that were killed.
    pub(crate) fn wait(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        self.look(std::iter::empty());
        while let Some(at) = self.left.iter().map(|(_, at, _)| *at).min()
            && Instant::now() < deadline
        {
            std::thread::sleep(at.min(deadline).saturating_duration_since(Instant::now()));
            self.look(std::iter::empty());
        }
    }
}

/// Whether processes that lose their parent may become this one's children.
fn takes_orphans() -> bool {
    let mut subreaper: libc::c_int = 0;
    // SAFETY: writes the flag to where the pointer points.
    let asked = unsafe { libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut subreaper) };
    std::process::id() == 1 || asked == 0 && subreaper != 0
}

/// Reaps all that have ended of a group whose leader was reaped; whether children of ours are left in it.
fn reap_group(leader: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    loop {
        match retry(|| waitid(WaitId::Pgid(Some(leader)), options)) {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            // ECHILD: nobody is left, or nobody became ours.
            Err(_) => return false,
        }
    }
}

/// Reaps all that have ended of a group but its leader, whose status is another's to take.
fn reap_beside(leader: Pid) {
    let group = leader.as_raw_nonzero().get().cast_unsigned();
    loop {
        // SAFETY: an all-zero `siginfo_t` is a valid one.
        let mut found: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: looks only, and writes what it finds to where the pointer points.
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
