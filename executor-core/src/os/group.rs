//! The group that a child leads: the child, and what it has started, also when the child is gone.
//!
//! A group has the number of its leader. The kernel gives that to nobody else while the leader is not reaped, or the group has a
//! member. When neither is so, it is anybody's, and to signal "the group of that number" may hit strangers.
//!
//! ```text
//!  the leader's pidfd, Linux 6.9     the group itself, whatever became of its number
//!  older, the leader is not reaped   the number, which is the group's
//!  older, somebody has reaped it     each member, looked for in /proc and held by a pidfd of its own
//! ```

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getsid, kill_process_group, pidfd_open,
        pidfd_send_signal, waitid,
    },
};

use super::socket::retry;

/// See the module's opening.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group<'a> {
    pub(super) leader: Pid,
    /// `None` if the leader had been reaped before it could be opened.
    pub(super) pidfd: Option<BorrowedFd<'a>>,
    /// That it was seen without members after its leader was reaped. It never has one again: who has its number later is another
    /// group, be its leader gone as well.
    pub(super) is_over: &'a AtomicBool,
}

impl Group<'_> {
    /// Signals all its members. An error if it has none, or none may be signalled.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.pidfd.map(|pidfd| by_descriptor(pidfd, signal)) {
            // This kernel does not know the flag.
            Some(Err(error)) if error.raw_os_error() == Some(libc::EINVAL) => self.signal_by_number(signal),
            Some(answer) => answer,
            None => self.signal_members(signal),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the leader is a child of this process, and not reaped")]
    fn signal_by_number(&self, signal: Signal) -> io::Result<()> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let is_ours = |pidfd| retry(|| waitid(WaitId::PidFd(pidfd), options)).is_ok();
        match self.pidfd.is_some_and(is_ours) {
            true => Ok(kill_process_group(self.leader, signal)?),
            false => self.signal_members(signal),
        }
    }

    fn signal_members(&self, signal: Signal) -> io::Result<()> {
        if self.is_over.load(Ordering::Relaxed) {
            return Err(Errno::SRCH.into());
        }
        let (answer, left) = signal_members(self.leader, signal);
        // One that is not reaped, but is not our child for the kernel, is no stranger.
        if left == Left::Nobody && self.pidfd.is_none_or(has_ended) {
            self.is_over.store(true, Ordering::Relaxed);
        }
        answer
    }
}

fn has_ended(process: BorrowedFd<'_>) -> bool {
    matches!(
        poll(&mut [PollFd::from_borrowed_fd(process, PollFlags::IN)], Some(&Timespec::default())),
        Ok(1..)
    )
}

/// What a group had when it was looked at last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Left {
    Nobody,
    Members,
}

/// Kills a child that was just started, and what it may have started; whether it was allowed to. For one that cannot be watched.
#[expect(clippy::disallowed_methods, reason = "the leader is a child of this process, and not reaped")]
pub(super) fn kill_unwatched(leader: Pid) -> bool {
    kill_process_group(leader, Signal::KILL).is_ok()
}

/// Signals the group that the process of this pidfd leads or has led.
fn by_descriptor(leader: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    /// `PIDFD_SIGNAL_PROCESS_GROUP`.
    const TO_THE_GROUP: libc::c_uint = 1 << 2;
    // SAFETY: takes a descriptor that is open, and no memory.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            leader.as_raw_fd(),
            signal.as_raw(),
            std::ptr::null::<libc::siginfo_t>(),
            TO_THE_GROUP,
        )
    };
    if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Signals the members of a group whose leader was reaped. A process that has the leader's number now says that the group
/// was empty before, and so does a group of another session.
fn signal_members(leader: Pid, signal: Signal) -> (io::Result<()>, Left) {
    /// SIGKILL is sent until nobody is left: somebody may have started the next one before it got his.
    const ROUNDS_MAX: usize = 100;
    let session = match getsid(None) {
        Ok(session) => session,
        Err(error) => return (Err(error.into()), Left::Members),
    };
    let mut answer = Err(io::Error::from(Errno::SRCH));
    for _ in 0..ROUNDS_MAX {
        if place(leader).is_some() {
            return (answer, Left::Nobody);
        }
        let (mut found, mut left) = (false, Left::Nobody);
        for member in processes() {
            if place(member) != Some((leader, session)) {
                continue;
            }
            left = Left::Members;
            let Ok(pidfd) = pidfd_open(member, PidfdFlags::empty()) else { continue };
            // Once more, now that nobody else can get its number: from here on it is that process, or none.
            if place(member) != Some((leader, session)) {
                continue;
            }
            match pidfd_send_signal(&pidfd, signal) {
                Ok(()) => (found, answer) = (true, Ok(())),
                Err(Errno::SRCH) => {}
                Err(error) => answer = answer.or(Err(error.into())),
            }
        }
        if !found || signal != Signal::KILL {
            return (answer, left);
        }
    }
    (answer, Left::Members)
}

/// The group and the session of a process that runs.
fn place(process: Pid) -> Option<(Pid, Pid)> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).ok()?;
    // The name stands in brackets and may itself contain some.
    let mut words = stat.rsplit_once(") ")?.1.split(' ');
    if matches!(words.next()?, "Z" | "X") {
        return None;
    }
    let _parent = words.next()?;
    let mut number = || Pid::from_raw(words.next()?.parse().ok()?);
    Some((number()?, number()?))
}

fn processes() -> impl Iterator<Item = Pid> {
    let all = std::fs::read_dir("/proc").into_iter().flatten();
    all.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?))
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        os::{fd::AsFd, unix::process::CommandExt},
        process::{Child, Command, Stdio},
    };

    use super::*;

    /// A shell that leads a group, starts two programs, and waits or ends; with the numbers of the two.
    fn shell(then: &str) -> (Child, Vec<Pid>) {
        let mut shell = Command::new("sh")
            .args([
                "-c",
                &format!("sleep 1000 >/dev/null & echo $!; sleep 1000 >/dev/null & echo $!; {then}"),
            ])
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let lines = BufReader::new(shell.stdout.take().unwrap()).lines();
        let pids = lines.take(2).map(|line| Pid::from_raw(line.unwrap().parse().unwrap()).unwrap()).collect();
        (shell, pids)
    }

    fn wait_for_the_end_of(pids: &[Pid]) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while pids.iter().any(|pid| place(*pid).is_some()) {
            assert!(std::time::Instant::now() < deadline, "{pids:?}");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    #[test]
    fn a_group_is_killed_after_its_leader_was_reaped() {
        // By the leader's descriptor; without one; on a kernel that knows groups by their number only.
        let ways: [fn(Group<'_>) -> io::Result<()>; 3] = [
            |group| group.signal(Signal::KILL),
            |group| Group { pidfd: None, ..group }.signal(Signal::KILL),
            |group| group.signal_by_number(Signal::KILL),
        ];
        for kill in ways {
            let (mut leader, programs) = shell("true");
            let pid = Pid::from_child(&leader);
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
            leader.wait().unwrap();
            assert!(programs.iter().all(|program| place(*program).is_some()));
            let is_over = AtomicBool::new(false);
            let group = Group { leader: pid, pidfd: Some(pidfd.as_fd()), is_over: &is_over };
            kill(group).unwrap();
            wait_for_the_end_of(&programs);
        }
    }

    #[test]
    fn a_leader_that_is_not_reaped_is_signalled_by_its_number() {
        let (mut leader, mut members) = shell("wait");
        let pid = Pid::from_child(&leader);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        members.push(pid);
        let group = Group { leader: pid, pidfd: Some(pidfd.as_fd()), is_over: &AtomicBool::new(false) };
        group.signal_by_number(Signal::KILL).unwrap();
        wait_for_the_end_of(&members);
        leader.wait().unwrap();
    }

    #[test]
    fn who_has_the_number_of_a_leader_that_was_reaped_is_left_alone() {
        let (mut stranger, programs) = shell("wait");
        let pid = Pid::from_child(&stranger);
        let is_over = AtomicBool::new(false);
        let group = Group { leader: pid, pidfd: None, is_over: &is_over };
        assert!(group.signal(Signal::KILL).is_err(), "it lives, so it is not the one that was reaped");
        assert!(programs.iter().chain([&pid]).all(|pid| place(*pid).is_some()));
        // The stranger ends, and what it has started is now all that has the number.
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        stranger.wait().unwrap();
        assert!(group.signal(Signal::KILL).is_err(), "the group was over before");
        assert!(programs.iter().all(|pid| place(*pid).is_some()));
        Group { is_over: &AtomicBool::new(false), ..group }.signal(Signal::KILL).unwrap();
        wait_for_the_end_of(&programs);
    }

    #[test]
    fn a_group_that_was_killed_is_over() {
        let (mut leader, programs) = shell("true");
        let (pid, is_over) = (Pid::from_child(&leader), AtomicBool::new(false));
        leader.wait().unwrap();
        let group = Group { leader: pid, pidfd: None, is_over: &is_over };
        group.signal(Signal::TERM).unwrap();
        assert!(!is_over.load(Ordering::Relaxed), "who was asked may go on");
        let _ = group.signal(Signal::KILL);
        wait_for_the_end_of(&programs);
        let _ = group.signal(Signal::KILL);
        assert!(is_over.load(Ordering::Relaxed));
    }
}
