//! The process group that a child leads: the child and the processes that it has started. The group
//! can be signalled even when the child is gone.
//!
//! A group has the number of its leader. The kernel does not reuse this number as long as the
//! leader is not reaped, or the group has a member. After that, the number may belong to anyone,
//! and a signal to "the group of that number" may reach unrelated processes. So the group is found
//! in one of these ways:
//!
//! ```text
//!  the leader's pidfd, Linux 6.9     the group itself, even if its number was reused
//!  older, the leader is not reaped   the number, which still belongs to the group
//!  older, the leader was reaped      each member, found in /proc and held by a pidfd of its own
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
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, kill_process_group, pidfd_open,
        pidfd_send_signal, waitid,
    },
};

use super::socket::retry;

/// The group of a child. See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group<'a> {
    pub(super) leader: Pid,
    /// `None` if the leader had been reaped before its pidfd could be opened.
    pub(super) pidfd: Option<BorrowedFd<'a>>,
    /// Whether the group was seen without members after its leader was reaped. It never has members
    /// again. A group that has its number later is another group, even if that group's leader is
    /// gone too.
    pub(super) is_over: &'a AtomicBool,
}

impl Group<'_> {
    /// Signals all members. Fails if there are none, or none may be signalled.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.pidfd.map(|pidfd| by_descriptor(pidfd, signal)) {
            // This kernel does not support `PIDFD_SIGNAL_PROCESS_GROUP`.
            Some(Err(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.signal_by_number(signal)
            }
            Some(answer) => answer,
            None => self.signal_members(signal),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the leader is a child of this process, and not reaped"
    )]
    fn signal_by_number(&self, signal: Signal) -> io::Result<()> {
        // `waitid` succeeds only for a child that is not reaped; with NOWAIT it leaves the child
        // unreaped.
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
        // A process with the leader's number may be the leader itself, if it is not reaped but is
        // not our child for the kernel. Then the group is not over.
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

/// What the last search found of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Left {
    Nobody,
    Members,
}

/// Kills a child that was just started and cannot be watched, and the processes that it may have
/// started. Returns whether the kernel allowed it.
#[expect(
    clippy::disallowed_methods,
    reason = "the leader is a child of this process, and not reaped"
)]
pub(super) fn kill_unwatched(leader: Pid) -> bool {
    kill_process_group(leader, Signal::KILL).is_ok()
}

/// Signals the group whose leader is, or was, the process of this pidfd.
fn by_descriptor(leader: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    /// The flag `PIDFD_SIGNAL_PROCESS_GROUP`.
    const TO_THE_GROUP: libc::c_uint = 1 << 2;
    // SAFETY: the descriptor is open, and the call takes no memory.
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

/// Signals the members of a group whose leader was reaped. If a process has the leader's number
/// now, or a group of that number is in another session, then the group that is looked for was
/// empty before.
fn signal_members(leader: Pid, signal: Signal) -> (io::Result<()>, Left) {
    /// SIGKILL is sent repeatedly until no member is left, because a member may start another one
    /// before it is killed. This is the maximum number of rounds.
    const ROUNDS_MAX: usize = 100;
    // /proc is missing, or numbers processes by another PID namespace. Then no member can be found,
    // but it is not known that the group is empty either.
    let Some(session) =
        own_processes().then(|| membership(getpid())).flatten().map(|own| own.session)
    else {
        return (Err(Errno::NOSYS.into()), Left::Members);
    };
    let sought = Some(Membership { group: leader.as_raw_nonzero().get(), session });
    let mut answer = Err(io::Error::from(Errno::SRCH));
    for _ in 0..ROUNDS_MAX {
        if membership(leader).is_some() {
            return (answer, Left::Nobody);
        }
        let (mut found, mut left) = (false, Left::Nobody);
        for member in processes() {
            if membership(member) != sought {
                continue;
            }
            left = Left::Members;
            let Ok(pidfd) = pidfd_open(member, PidfdFlags::empty()) else { continue };
            // Check again, because the number may have been reused before the pidfd was opened.
            // From here on the pidfd names one process, and a signal reaches that process or none.
            if membership(member) != sought {
                continue;
            }
            match pidfd_send_signal(&pidfd, signal) {
                Ok(()) => (found, answer) = (true, Ok(())),
                Err(Errno::SRCH) => {}
                Err(error) => answer = answer.or(Err(error.into())),
            }
        }
        // For any signal but SIGKILL one round is enough: its receivers may go on.
        if !found || signal != Signal::KILL {
            return (answer, left);
        }
    }
    (answer, Left::Members)
}

/// Whether /proc belongs to this process's PID namespace. Another namespace numbers the same
/// processes differently.
pub(super) fn own_processes() -> bool {
    std::fs::read_link("/proc/self").is_ok_and(|own| own.to_str() == Some(&getpid().to_string()))
}

/// The group and the session of a process.
///
/// Either is 0 if its leader is outside the PID namespace. For example, the session of a
/// container's first process is 0 if that process did not create a session. So these are not
/// [`Pid`]s, which are never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Membership {
    group: libc::pid_t,
    session: libc::pid_t,
}

/// Returns the group and session of a process, or `None` if it has ended.
fn membership(process: Pid) -> Option<Membership> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).ok()?;
    // The name is in parentheses and may itself contain parentheses.
    let mut words = stat.rsplit_once(") ")?.1.split(' ');
    if matches!(words.next()?, "Z" | "X") {
        return None;
    }
    let _parent = words.next()?;
    let mut number = || words.next()?.parse().ok();
    Some(Membership { group: number()?, session: number()? })
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

    /// Starts a shell that leads a group, starts two programs, and then waits or ends. Returns it
    /// and the numbers of the two programs.
    fn shell(then: &str) -> (Child, Vec<Pid>) {
        let mut shell = Command::new("sh")
            .args([
                "-c",
                &format!(
                    "sleep 1000 >/dev/null & echo $!; sleep 1000 >/dev/null & echo $!; {then}"
                ),
            ])
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let lines = BufReader::new(shell.stdout.take().unwrap()).lines();
        let pids = lines
            .take(2)
            .map(|line| Pid::from_raw(line.unwrap().parse().unwrap()).unwrap())
            .collect();
        (shell, pids)
    }

    fn wait_for_the_end_of(pids: &[Pid]) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while pids.iter().any(|pid| membership(*pid).is_some()) {
            assert!(std::time::Instant::now() < deadline, "{pids:?}");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    #[test]
    fn a_group_is_killed_after_its_leader_was_reaped() {
        // By the leader's descriptor, without a descriptor, and as on a kernel that only knows
        // groups by their number.
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
            assert!(programs.iter().all(|program| membership(*program).is_some()));
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
        let group =
            Group { leader: pid, pidfd: Some(pidfd.as_fd()), is_over: &AtomicBool::new(false) };
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
        assert!(
            group.signal(Signal::KILL).is_err(),
            "it lives, so it is not the one that was reaped"
        );
        assert!(programs.iter().chain([&pid]).all(|pid| membership(*pid).is_some()));
        // The stranger ends. Now only the programs that it has started have the number.
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        stranger.wait().unwrap();
        assert!(group.signal(Signal::KILL).is_err(), "the group was over before");
        assert!(programs.iter().all(|pid| membership(*pid).is_some()));
        Group { is_over: &AtomicBool::new(false), ..group }.signal(Signal::KILL).unwrap();
        wait_for_the_end_of(&programs);
    }

    /// Simulates a container that was not given a session of its own.
    #[test]
    #[expect(clippy::print_stdout, reason = "a test that is left out says so")]
    fn groups_are_killed_where_the_session_is_outside_the_namespace() {
        const WITHIN: [&str; 4] = ["-c", "unshare --pid --fork --mount-proc \"$@\"", "sh", "--"];
        let probe =
            Command::new("sh").args(WITHIN).args(["cat", "/proc/self/stat"]).output().unwrap();
        let stat = String::from_utf8_lossy(&probe.stdout);
        if !probe.status.success() {
            println!("left out: {}", String::from_utf8_lossy(&probe.stderr));
            return;
        }
        assert_eq!(stat.split(' ').nth(5), Some("0"), "a session outside: {stat}");
        let tests =
            ["a_group_is_killed", "who_has_the_number", "a_group_that_was", "a_leader_that_is"];
        let names = tests.map(|test| format!("os::group::tests::{test}"));
        let own = std::env::current_exe().unwrap();
        let ran = Command::new("sh").args(WITHIN).arg(own).args(names).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
        assert!(said.contains(&format!("{} passed", tests.len())), "{said}");
    }

    #[test]
    #[expect(clippy::print_stdout, reason = "a test that is left out says so")]
    fn members_are_left_alone_where_proc_is_of_another_namespace() {
        let script = "exec unshare --pid --fork \"$@\"";
        let name = "os::group::tests::nobody_is_found_in_the_processes_of_another_namespace";
        let own = std::env::current_exe().unwrap();
        let ran = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(own)
            .args([name, "--ignored"])
            .output()
            .unwrap();
        let (said, errors) =
            (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        if errors.contains("unshare") && said.is_empty() {
            println!("left out: {errors}");
            return;
        }
        assert!(said.contains("1 passed"), "{said}{errors}");
    }

    #[test]
    #[ignore = "in a PID namespace whose /proc is another's: the test above starts it"]
    fn nobody_is_found_in_the_processes_of_another_namespace() {
        let (mut leader, _programs) = shell("true");
        let (pid, is_over) = (Pid::from_child(&leader), AtomicBool::new(false));
        leader.wait().unwrap();
        let group = Group { leader: pid, pidfd: None, is_over: &is_over };
        assert_eq!(group.signal(Signal::KILL).unwrap_err().raw_os_error(), Some(libc::ENOSYS));
        assert!(!is_over.load(Ordering::Relaxed), "nobody looked");
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
