//! Determines why a child process has ended.
//!
//! ```text
//!  how it ended: exit code or signal       ─┐            ┌► of_task       why it has no result
//!  its board: what it noted before that    ─┼► Ending ──►┤
//!  its parent: what was done to it, and why ┘            └► before_first_task  why no worker is there
//! ```
//!
//! Everything on a board was noted since the task began. A note that came last is not necessarily
//! the cause of the end. So a note counts only if it can have led to the exit status.

use std::sync::{Arc, atomic::Ordering};

use crate::{
    error::{
        BrokenCause, ExitStatus, Failure, LastPanic, LostDetail, MemoryLimitDetail, RemoteError,
        TaskError,
    },
    id::TaskId,
    transport::board::{Board, INITIALIZER, Panic},
    wire::handshake::Restraints,
};

/// The end of a child process that has not answered, as its parent knows it.
pub(crate) struct Ending<'a> {
    pub(crate) pid: u32,
    pub(crate) status: ExitStatus,
    /// `None` if the child was never connected.
    pub(crate) board: Option<&'a Board>,
    /// Whether the child came to the entry.
    pub(crate) reached: bool,
    /// Whether this program sent the child a signal that was to end it.
    pub(crate) killed_by_us: bool,
    /// The protocol violation for which the child was disconnected. None of its notes is trusted
    /// then.
    pub(crate) broke_protocol: Option<String>,
    /// The signal that had stopped the child, if this program killed it for that.
    pub(crate) stopped_by: Option<i32>,
    /// The limits of a pool's worker.
    pub(crate) restraints: Option<&'a Restraints>,
    /// The limit and the peak of the memory of the child's control group, in bytes, if the system
    /// has killed what was in it because of them.
    pub(crate) out_of_memory: Option<(u64, u64)>,
}

/// How far a worker had come before its first task when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Its process existed.
    Launched,
    /// It had said hello. Its initializer comes next, if it has one.
    Greeted,
    /// It could take tasks, and has answered none.
    Ready,
}

impl Ending<'_> {
    /// Returns the memory that the child may have and the memory that it had, in bytes, if it has
    /// ended because of that.
    pub(crate) fn over_memory(&self) -> Option<(u64, u64)> {
        // The system says so, and not the child.
        if let Some(found) = self.out_of_memory
            && self.status.signal() == Some(libc::SIGKILL)
        {
            return Some(found);
        }
        let board = self.board.filter(|_| self.broke_protocol.is_none())?;
        let Restraints { memory, limits, .. } = self.restraints?;
        let (limit, note) = match self.status.signal() {
            // It has killed itself.
            Some(libc::SIGKILL) => (*memory, &board.memory_peak),
            // It was refused memory.
            Some(libc::SIGABRT) => {
                (memory.iter().copied().chain(limits.of_memory()).min(), &board.memory_refused)
            }
            _ => return None,
        };
        Some((limit?, note.load(Ordering::Acquire))).filter(|(_, had)| *had > 0)
    }

    /// Returns why this task has no result: the child ended while it ran it.
    pub(crate) fn of_task(self, task: TaskId, name: &str) -> TaskError {
        self.of(Some(task), name)
    }

    /// Returns why a task has no result: the child ended before it began it. What the child did is
    /// no fault of this task.
    pub(crate) fn before_task(self, name: &str) -> TaskError {
        self.of(None, name)
    }

    fn of(self, task: Option<TaskId>, name: &str) -> TaskError {
        let over_memory = self.over_memory().filter(|_| task.is_some());
        let Ending {
            pid, status, board, reached, killed_by_us, broke_protocol, stopped_by, ..
        } = self;
        let cpu_time = self.restraints.and_then(|restraints| restraints.limits.of_cpu_time());
        let board = board.filter(|_| broke_protocol.is_none());
        let signal = status.signal();
        // If std's handler knows the stack, it ends the process by SIGABRT. Otherwise it lets the
        // fault happen.
        let faulted = matches!(signal, Some(libc::SIGSEGV | libc::SIGBUS | libc::SIGABRT));
        let stack_overflow =
            faulted && board.is_some_and(|board| board.stack_overflow.load(Ordering::Acquire) != 0);
        let noted = match signal {
            Some(libc::SIGABRT) if !stack_overflow => {
                board.zip(task).and_then(|(board, task)| board.panic_of(task))
            }
            _ => None,
        };
        let noted = noted.map(|Panic { location, message, fatal, elsewhere }| {
            let location = (!location.is_empty()).then_some(location);
            (Failure { message, location, ..Failure::default() }, fatal, elsewhere)
        });
        if let Some((failure, true, false)) = noted {
            // Built with `panic = "abort"`, or panicked where unwinding is not possible.
            return TaskError::Panicked(RemoteError::new(name, failure).ended_by(status));
        }
        if let Some((limit, peak)) = over_memory
            && !stack_overflow
        {
            let detail = MemoryLimitDetail { task: name.to_owned(), pid, ..Default::default() };
            return TaskError::MemoryLimit { limit, peak, detail: Arc::new(detail) };
        }
        let last_panic = noted.map(|(failure, _, elsewhere)| {
            let note = RemoteError::new(name, failure);
            LastPanic { panic: note, elsewhere }
        });
        let killed_by_system = signal == Some(libc::SIGKILL) && !killed_by_us;
        let detail = LostDetail {
            task: name.to_owned(),
            stack_overflow,
            killed_by_system,
            broke_protocol,
            last_panic,
            no_entry: !reached && signal.is_none(),
            stopped_by: stopped_by.filter(|_| signal == Some(libc::SIGKILL)),
            cpu_time: cpu_time.filter(|_| signal == Some(libc::SIGXCPU)),
            attempts: 0,
            is_poison: false,
        };
        TaskError::WorkerLost { pid, status, detail: Arc::new(detail) }
    }

    /// Returns why a pool has no worker: the child ended before its first task. `initializer` is
    /// the name of the initializer that runs after the hello, if the pool has one.
    pub(crate) fn before_first_task(
        self,
        progress: Progress,
        initializer: Option<&str>,
    ) -> BrokenCause {
        let status = self.status;
        // An initializer's error says so by itself.
        let in_initializer = progress == Progress::Greeted && initializer.is_some();
        if let (false, Some((limit, _))) = (in_initializer, self.out_of_memory) {
            let when = if progress == Progress::Ready { "right after" } else { "before" };
            let why = format!(
                "it needed more memory than its control group may have (`memory_max`, {limit} \
                 bytes) {when} it was ready"
            );
            return BrokenCause::Start(why.into());
        }
        match (progress, initializer) {
            (Progress::Launched, _) => BrokenCause::NoEntry { status },
            (Progress::Greeted, Some(name)) => {
                BrokenCause::Initializer(Arc::new(self.of_task(INITIALIZER, name)))
            }
            (Progress::Greeted, None) => {
                BrokenCause::Start(format!("it {status} before it was ready").into())
            }
            (Progress::Ready, _) => {
                BrokenCause::Start(format!("it {status} right after it was ready").into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::board;

    const TASK: TaskId = TaskId::from_raw(5);

    fn ending(status: ExitStatus, board: Option<&Board>) -> Ending<'_> {
        Ending {
            pid: 7,
            status,
            board,
            reached: true,
            killed_by_us: false,
            broke_protocol: None,
            stopped_by: None,
            restraints: None,
            out_of_memory: None,
        }
    }

    fn lost(error: TaskError) -> LostDetail {
        match error {
            TaskError::WorkerLost { pid: 7, detail, .. } => (*detail).clone(),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_panic_is_the_cause_only_of_an_abort_in_its_own_task() {
        let (board, _fd) = board::create().unwrap();
        board.note_panic(TASK, "src/x.rs:1:2", "boom", true);
        let abort = ExitStatus::Signaled(libc::SIGABRT);
        let error = ending(abort, Some(&board)).of_task(TASK, "work");
        assert!(
            matches!(&error, TaskError::Panicked(remote) if remote.message() == "boom"),
            "{error}"
        );
        let other = TaskId::from_raw(6);
        assert!(lost(ending(abort, Some(&board)).of_task(other, "work")).last_panic.is_none());
        for status in [ExitStatus::Exited(1), ExitStatus::Signaled(libc::SIGKILL)] {
            assert!(lost(ending(status, Some(&board)).of_task(TASK, "work")).last_panic.is_none());
        }
        // A panic that was caught, after which the process continued.
        board.note_panic(TASK, "src/x.rs:1:2", "boom", false);
        assert!(lost(ending(abort, Some(&board)).of_task(TASK, "work")).last_panic.is_some());
    }

    #[test]
    fn the_board_of_a_child_that_broke_the_protocol_is_not_believed() {
        let (board, _fd) = board::create().unwrap();
        board.note_panic(TASK, "src/x.rs:1:2", "boom", true);
        board.stack_overflow.store(1, Ordering::Release);
        let broken = Ending {
            broke_protocol: Some("garbage".into()),
            ..ending(ExitStatus::Signaled(libc::SIGABRT), Some(&board))
        };
        let detail = lost(broken.of_task(TASK, "work"));
        assert!(!detail.stack_overflow && detail.last_panic.is_none());
        assert_eq!(detail.broke_protocol.as_deref(), Some("garbage"));
    }

    #[test]
    fn a_kill_is_the_systems_where_this_program_has_not_killed() {
        let killed = ExitStatus::Signaled(libc::SIGKILL);
        assert!(lost(ending(killed, None).of_task(TASK, "work")).killed_by_system);
        let ours =
            Ending { killed_by_us: true, stopped_by: Some(libc::SIGTTIN), ..ending(killed, None) };
        let detail = lost(ours.of_task(TASK, "work"));
        assert!(!detail.killed_by_system && detail.stopped_by == Some(libc::SIGTTIN));
        // The child ended by itself before the kill came.
        let exited =
            Ending { stopped_by: Some(libc::SIGTTIN), ..ending(ExitStatus::Exited(3), None) };
        assert_eq!(lost(exited.of_task(TASK, "work")).stopped_by, None);
    }

    #[test]
    fn a_note_of_memory_is_the_cause_only_of_the_end_that_it_leads_to() {
        let (board, _fd) = board::create().unwrap();
        let restraints = Restraints { memory: Some(100), ..Restraints::default() };
        let ended = |signal| Ending {
            restraints: Some(&restraints),
            ..ending(ExitStatus::Signaled(signal), Some(&board))
        };
        let of = |signal| ended(signal).of_task(TASK, "work");
        assert!(of(libc::SIGKILL).is_worker_lost() && of(libc::SIGABRT).is_worker_lost());
        board.memory_peak.store(130, Ordering::Release);
        assert!(
            matches!(of(libc::SIGKILL), TaskError::MemoryLimit { limit: 100, peak: 130, .. }),
            "{}",
            of(libc::SIGKILL)
        );
        assert!(of(libc::SIGABRT).is_worker_lost() && of(libc::SIGSEGV).is_worker_lost());
        board.memory_refused.store(70, Ordering::Release);
        assert!(matches!(of(libc::SIGABRT), TaskError::MemoryLimit { limit: 100, peak: 70, .. }));
        for signal in [libc::SIGKILL, libc::SIGABRT] {
            assert!(ended(signal).before_task("work").is_worker_lost(), "another task has done it");
        }
        // What a worker notes that has no limit, or has broken the protocol, is not believed.
        let unlimited = Ending { restraints: None, ..ended(libc::SIGKILL) };
        assert!(unlimited.of_task(TASK, "work").is_worker_lost());
        let broken = Ending { broke_protocol: Some("garbage".into()), ..ended(libc::SIGKILL) };
        assert!(broken.of_task(TASK, "work").is_worker_lost());
        // A panic that ended the process is the cause of an abort.
        board.note_panic(TASK, "src/x.rs:1:2", "boom", true);
        assert!(of(libc::SIGABRT).is_panic());
        let cause = ended(libc::SIGKILL).before_first_task(Progress::Greeted, Some("load"));
        assert!(matches!(
            cause,
            BrokenCause::Initializer(error) if matches!(*error, TaskError::MemoryLimit { .. })
        ));
    }

    #[test]
    fn a_kill_for_the_memory_of_a_control_group_is_told_by_its_limit() {
        let ended = |signal| Ending {
            out_of_memory: Some((100, 90)),
            ..ending(ExitStatus::Signaled(signal), None)
        };
        let error = ended(libc::SIGKILL).of_task(TASK, "work");
        assert!(matches!(error, TaskError::MemoryLimit { limit: 100, peak: 90, .. }), "{error}");
        // A process that it had started was killed, and it ended in another way before that.
        assert!(ended(libc::SIGTERM).of_task(TASK, "work").is_worker_lost());
        for progress in [Progress::Launched, Progress::Greeted] {
            let cause = ended(libc::SIGKILL).before_first_task(progress, None).to_string();
            assert!(cause.contains("memory_max") && cause.contains("100"), "{cause}");
        }
        let cause = ended(libc::SIGKILL).before_first_task(Progress::Greeted, Some("load"));
        assert!(matches!(
            cause,
            BrokenCause::Initializer(error) if matches!(*error, TaskError::MemoryLimit { .. })
        ));
    }

    #[test]
    fn an_end_before_the_hello_is_that_of_a_program_without_the_entry() {
        let ended = || ending(ExitStatus::Exited(0), None);
        assert!(matches!(
            ended().before_first_task(Progress::Launched, Some("load")),
            BrokenCause::NoEntry { .. }
        ));
        assert!(matches!(
            ended().before_first_task(Progress::Greeted, Some("load")),
            BrokenCause::Initializer(_)
        ));
        assert!(matches!(
            ended().before_first_task(Progress::Greeted, None),
            BrokenCause::Start(_)
        ));
        let unreached = Ending { reached: false, ..ended() };
        assert!(lost(unreached.of_task(TASK, "work")).no_entry);
    }
}
