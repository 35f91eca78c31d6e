//! Processes with one task that are killed or stopped at every step from their start to their end,
//! and at random moments. The victims include the fork server that makes processes, and processes
//! in between. Everything reported about each process must be true, and nothing of it may be left.
//!
//! Each round is determined by its seed: the method by which some processes are started, what they
//! do, and which process is hit where. The victim is a child, a child's child, or the fork server.
//! It is killed, or it is stopped for up to 300 ms and then continued or killed. A second process
//! may be hit at a random moment, so a stopped process may lose its parent meanwhile. Then every
//! process is joined, and checked:
//!
//! - Its value is what it returned, unless it was hit, and its exit status is the one that it ended
//!   with.
//! - No process of the round is alive, and no program that one of them has started, unless both
//!   processes that knew of the program ended before one of them noticed the end of the other.
//! - This program has no child that has ended and was not reaped, and no more descriptors than
//!   before.
//!
//! This program has one thread, so that it can be forked (`StartMethod::Fork`). Signals from
//! outside are sent by a separate process, the stranger. It takes its orders from the record, as
//! all processes do.
//!
//! `EXECUTOR_ROUNDS=10000` runs that many seeds, and `EXECUTOR_SEED=17` runs that seed. A failure
//! prints its seed. At the end the program prints how often a process was killed and stopped at
//! each step.

#[path = "../dying.rs"]
mod dying;

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use dying::{EXTRA_ROUNDS_MAX, HANGS_AFTER, Random, number, seeds};
use executor::{Child, Context, ExitStatus, SharedBytes, StartMethod, prelude::*};
use executor_core::kill_point::{self, Step};

/// Names the file of the record.
const RECORD: &str = "EXECUTOR_TEST_RECORD";

/// Maximum time for which a process is stopped, unless it is continued at once.
const STANDS_MAX: Duration = Duration::from_millis(300);

/// Maximum number of processes that are recorded in one round.
const LIVES: usize = 64;

// ---- the record ---------------------------------------------------------------------------------

/// A record shared with processes that may die at any moment. It consists of atomics, of which zero
/// is a valid value.
#[repr(C)]
struct Record {
    /// This program, which is never hit.
    test: AtomicU32,
    /// The number of the round, and the number of the last round that the stranger has finished.
    /// The round is over when they are equal.
    round: AtomicU32,
    settled: AtomicU32,
    /// Set when the test has checked everything. The stranger then does nothing more.
    over: AtomicU32,
    /// The step plus one at which a process is hit, and how often that step must be reached before.
    step: AtomicU32,
    left: AtomicU32,
    /// The step plus one at which a process was hit, and the process.
    fallen_at: AtomicU32,
    fallen: Victim,
    /// Which process is hit at a random moment (its place in the order of appearance, plus one),
    /// and how long after it appeared.
    aim: AtomicU32,
    after_micros: AtomicU32,
    struck: Victim,
    lives: Pids,
    /// Programs that the processes have started in their process groups.
    programs: Pids,
}

/// A process that is hit, and how.
#[repr(C)]
struct Victim {
    pid: AtomicU32,
    signal: AtomicU32,
    /// For a process that is stopped: how long, and the signal that it gets after that.
    stands_micros: AtomicU32,
    then: AtomicU32,
}

#[repr(C)]
struct Pids {
    count: AtomicU32,
    pids: [AtomicU32; LIVES],
}

impl Pids {
    /// Records a pid. May be called between `fork` and `exec`.
    fn note(&self, pid: u32) {
        if let Some(place) = self.pids.get(self.count.fetch_add(1, SeqCst) as usize) {
            place.store(pid, SeqCst);
        }
    }

    fn all(&self) -> impl Iterator<Item = u32> {
        self.pids.iter().map(|pid| pid.load(SeqCst)).filter(|pid| *pid != 0)
    }
}

impl Victim {
    fn is(&self, pid: u32) -> bool {
        self.pid.load(SeqCst) == pid
    }

    fn is_killed(&self) -> bool {
        [&self.signal, &self.then]
            .map(|signal| signal.load(SeqCst))
            .contains(&(libc::SIGKILL as u32))
    }

    /// Chooses how the victim is hit.
    fn doom(&self, random: &mut Random, signal: libc::c_int) {
        self.signal.store(signal as u32, SeqCst);
        // Only a few are stopped for long, so that a round takes less than a third of a second.
        let stands = match random.below(16) {
            0 => random.below(STANDS_MAX.as_micros() as u64),
            _ => random.below(3_000),
        };
        self.stands_micros.store(stands as u32, SeqCst);
        let then = if random.below(2) == 0 { libc::SIGKILL } else { libc::SIGCONT };
        self.then.store(if signal == libc::SIGKILL { signal } else { then } as u32, SeqCst);
    }
}

static OWN: OnceLock<&'static Record> = OnceLock::new();

fn record() -> &'static Record {
    OWN.get().expect("every process of this program has it")
}

/// The process that was recorded last. In a copy of that process the pid differs, and the copy is
/// recorded as well.
static NOTED: AtomicU32 = AtomicU32::new(0);

fn on_step(step: Step) {
    let (record, pid) = (record(), std::process::id());
    if record.test.load(SeqCst) == pid {
        return;
    }
    if NOTED.swap(pid, SeqCst) != pid {
        record.lives.note(pid);
    }
    if record.step.load(SeqCst) == step as u32 + 1 && record.left.fetch_sub(1, SeqCst) == 1 {
        record.fallen_at.store(step as u32 + 1, SeqCst);
        record.fallen.pid.store(pid, SeqCst);
        // SAFETY: only sends a signal to this process itself.
        unsafe { libc::kill(libc::getpid(), record.fallen.signal.load(SeqCst) as libc::c_int) };
    }
}

// ---- what the processes do ----------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
enum Job {
    Returns,
    /// Returns more than fits into a message.
    ReturnsMuch,
    /// Returns descriptors, which are sent after the rest.
    ReturnsMemory,
    /// Returns while a program that it has started goes on.
    Leaves,
    /// Starts a program, and goes on until it is ended.
    Stays,
    /// Starts another process, so that this one is in between, and joins it.
    Joins,
    /// Starts another process, and does not join it.
    Keeps,
    Panics,
    Exits,
}

impl Job {
    const ALL: [Job; 9] = [
        Job::Returns,
        Job::ReturnsMuch,
        Job::ReturnsMemory,
        Job::Leaves,
        Job::Stays,
        Job::Joins,
        Job::Keeps,
        Job::Panics,
        Job::Exits,
    ];
    const EXIT_CODE: i32 = 5;
}

const METHODS: [StartMethod; 3] = [StartMethod::Spawn, StartMethod::ForkServer, StartMethod::Fork];

type Value = (Vec<u8>, Vec<SharedBytes>);

fn value(number: u8, job: Job) -> (Vec<u8>, usize) {
    let len = if job == Job::ReturnsMuch { 200_000 } else { 3 };
    (vec![number; len], if job == Job::ReturnsMemory { 2 } else { 0 })
}

/// Starts a program that does nothing, in the group of this process.
fn start_program() {
    let (record, round) = (record(), record().round.load(SeqCst));
    // SAFETY: the child only makes calls that are allowed in a signal handler.
    unsafe {
        if libc::fork() == 0 {
            record.programs.note(libc::getpid() as u32);
            // If the program starts after the end of its round, it must not be counted in the next
            // one.
            if record.round.load(SeqCst) != round {
                libc::_exit(0);
            }
            // If it starts that late, nobody looks for it. So it ends by itself, and keeps none of
            // the output streams open whose end a test waits for.
            for stream in 0..3 {
                libc::close(stream);
            }
            libc::signal(libc::SIGALRM, libc::SIG_DFL);
            libc::alarm(HANGS_AFTER.as_secs() as u32);
            loop {
                libc::pause();
            }
        }
    }
}

#[task]
fn work(number: u8, job: u8, method: usize) -> Value {
    let job = Job::ALL[usize::from(job)];
    match job {
        Job::Returns | Job::ReturnsMuch | Job::ReturnsMemory => {}
        Job::Leaves => {
            start_program();
        }
        Job::Stays => {
            start_program();
            loop {
                thread::park();
            }
        }
        Job::Joins | Job::Keeps => {
            start_program();
            let inner = if job == Job::Joins { Job::Leaves } else { Job::Stays };
            let child = Context::new(METHODS[method])
                .process(work::task(number, inner as u8, 0))
                .daemon(true);
            // The process that makes the child may be hit, and so may the child.
            if let Ok(child) = child.start()
                && job == Job::Joins
            {
                let _ = child.join();
            }
        }
        // This prints nothing to standard error.
        Job::Panics => std::panic::resume_unwind(Box::new("as it was told")),
        Job::Exits => std::process::exit(Job::EXIT_CODE),
    }
    let (bytes, shared) = value(number, job);
    (bytes, vec![SharedBytes::copy_from_slice(&[number; 100]); shared])
}

// ---- the stranger -------------------------------------------------------------------------------

/// What the stranger still has to do to a victim.
enum Order {
    None,
    /// Hit it at this time.
    Strike(OwnedFd, Instant),
    /// It is stopped or about to stop. This is the time at which it has been stopped for long
    /// enough.
    Resume(OwnedFd, Instant),
    Done,
}

fn open(pid: u32) -> Option<OwnedFd> {
    // SAFETY: makes a descriptor, or fails if there is no such process.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    // SAFETY: the new descriptor belongs to us.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn send(process: &OwnedFd, signal: u32) {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: passes an open descriptor and no memory. The process may have ended.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal as libc::c_int,
            none,
            0,
        )
    };
}

fn micros(number: &AtomicU32) -> Duration {
    Duration::from_micros(u64::from(number.load(SeqCst)))
}

/// Returns the state of a process and its process group, or `None` if it has ended.
fn state(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut words = stat.rsplit_once(") ")?.1.split(' ');
    let state = words.next()?.chars().next()?;
    let group = words.nth(1)?.parse().ok()?;
    (!matches!(state, 'Z' | 'X')).then_some((state, group))
}

/// Serves one round.
fn serve(record: &Record) {
    let (mut aimed, mut fallen) = (Order::None, Order::None);
    let now = Instant::now;
    while record.over.load(SeqCst) == 0 {
        // The victim of a random moment: wait until it appears, hit it after a while, then continue
        // or kill it.
        aimed = match aimed {
            Order::None => match (record.aim.load(SeqCst) as usize).checked_sub(1) {
                None => Order::Done,
                Some(at) => match record.lives.pids[at].load(SeqCst) {
                    0 => Order::None,
                    pid => open(pid).map_or(Order::Done, |process| {
                        record.struck.pid.store(pid, SeqCst);
                        Order::Strike(process, now() + micros(&record.after_micros))
                    }),
                },
            },
            Order::Strike(process, at) if at <= now() => {
                send(&process, record.struck.signal.load(SeqCst));
                Order::Resume(process, now() + micros(&record.struck.stands_micros))
            }
            other => resume(other, &record.struck),
        };
        // The victim of a step hits itself. If that stops it, continue or kill it after a while.
        fallen = match fallen {
            Order::None => match record.fallen.pid.load(SeqCst) {
                0 => Order::None,
                // Wait until it is really stopped.
                pid if record.fallen.signal.load(SeqCst) == libc::SIGSTOP as u32 => {
                    match state(pid) {
                        Some(('T', _)) => open(pid).map_or(Order::Done, |process| {
                            Order::Resume(process, now() + micros(&record.fallen.stands_micros))
                        }),
                        Some(_) => Order::None,
                        None => Order::Done,
                    }
                }
                _ => Order::Done,
            },
            other => resume(other, &record.fallen),
        };
        thread::sleep(Duration::from_micros(50));
    }
    // The stranger leaves no process stopped, however the round ended.
    for (order, victim) in [(aimed, &record.struck), (fallen, &record.fallen)] {
        if let Order::Resume(process, _) = order {
            send(&process, victim.then.load(SeqCst));
        }
    }
}

fn resume(order: Order, victim: &Victim) -> Order {
    match order {
        Order::Resume(process, at) if at <= Instant::now() => {
            send(&process, victim.then.load(SeqCst));
            Order::Done
        }
        other => other,
    }
}

/// Makes the stranger, which ends together with this program.
fn make_stranger(record: &'static Record) {
    // SAFETY: this process has one thread, and the child uses nothing of the library.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "{}", io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: only requests a signal for this process.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        loop {
            let round = record.round.load(SeqCst);
            if record.settled.load(SeqCst) == round {
                thread::sleep(Duration::from_micros(50));
                continue;
            }
            serve(record);
            record.settled.store(round, SeqCst);
        }
    }
}

// ---- a round ------------------------------------------------------------------------------------

struct Started {
    job: Job,
    number: u8,
    child: Child<Value>,
    /// The signal with which the test has ended it.
    ended: Option<libc::c_int>,
}

/// Returns whether the report was complete when the process was hit at this step.
fn has_reported(step: Step, job: Job) -> bool {
    match step {
        Step::ReportSent => job != Job::ReturnsMemory,
        Step::Reported | Step::BodyExiting | Step::SegmentLeft => true,
        _ => false,
    }
}

/// Checks a process that has ended, and what was reported about it.
fn check(started: &Started, steps: &[Step]) {
    let Started { job, number, child, ended } = started;
    let (record, pid) = (record(), child.pid());
    let joined = child.join_timeout(HANGS_AFTER / 2).expect("it ends");
    let status = child.exit_code().expect("it has ended");
    assert_eq!(child.wait_exit(), status);
    assert!(!child.is_alive());
    let fell = record.fallen.is(pid).then(|| {
        let at = record.fallen_at.load(SeqCst).checked_sub(1).expect("noted before");
        *steps.iter().find(|step| **step as u32 == at).expect("one of these")
    });
    let killed = ExitStatus::Signaled(libc::SIGKILL);
    // A process that is stopped and also hit by the stranger may be continued by that, and end
    // before it is killed.
    let is_killed = fell.is_some() && record.fallen.is_killed() && !record.struck.is(pid);
    let may_be_killed = fell.is_some() && record.fallen.is_killed()
        || record.struck.is(pid) && record.struck.is_killed();
    // The status of an end by itself, or by the test.
    let usual = match (job, ended) {
        (_, Some(signal)) => ExitStatus::Signaled(*signal),
        (Job::Panics, _) => ExitStatus::Exited(101),
        (Job::Exits, _) => ExitStatus::Exited(Job::EXIT_CODE),
        _ => ExitStatus::Exited(0),
    };
    assert!(
        status == usual && (!is_killed || ended.is_some()) || status == killed && may_be_killed,
        "{job:?} {status}, fell at {fell:?}"
    );
    // A value may come from a process that was killed, but only if its report was complete.
    match joined {
        Ok((bytes, shared)) => {
            let expected = value(*number, *job);
            assert_eq!((bytes, shared.len()), expected);
            assert!(shared.iter().all(|bytes| **bytes == [*number; 100]));
            assert!(!matches!(job, Job::Stays | Job::Panics | Job::Exits));
            if let (Some(step), true) = (fell, is_killed) {
                assert!(has_reported(step, *job), "it fell at {step:?}");
            }
        }
        Err(TaskError::Panicked(_)) => assert_eq!(*job, Job::Panics),
        Err(TaskError::WorkerLost { pid: lost, status: told, .. }) => {
            assert_eq!((lost, told), (pid, status));
            assert!(status != ExitStatus::Exited(0), "it has ended well, and its value is lost");
            // If it was lost although it was hit at a step, its report cannot have been complete.
            if let (Some(step), Job::Returns | Job::ReturnsMuch | Job::ReturnsMemory) = (fell, job)
            {
                assert!(!has_reported(step, *job), "it had reported at {step:?}");
            }
        }
        Err(other) => panic!("{job:?}: {other}"),
    }
}

/// Waits until `found` returns nothing. A signal takes effect only a moment after it was sent.
fn eventually(what: &str, mut found: impl FnMut() -> Vec<u32>) {
    let began = Instant::now();
    loop {
        let left = found();
        if left.is_empty() {
            return;
        }
        assert!(began.elapsed() < HANGS_AFTER / 2, "{what}: {left:?}");
        thread::sleep(Duration::from_micros(200));
    }
}

/// Returns a child of this program that has ended and was not reaped.
fn unreaped() -> Option<u32> {
    // SAFETY: an all-zero `siginfo_t` is valid and is filled by the call, which only asks.
    unsafe {
        let mut found: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        let asked = libc::waitid(libc::P_ALL, 0, &raw mut found, options);
        assert_eq!(asked, 0, "the stranger is a child: {}", io::Error::last_os_error());
        Some(found.si_pid() as u32).filter(|pid| *pid != 0)
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc").count()
}

/// Number of programs that no process was left to end.
static LOST: AtomicU32 = AtomicU32::new(0);

/// How long a process that knows of a program may take to end it, if such a process exists.
const MOMENT: Duration = Duration::from_millis(200);

/// Checks that nothing is left at the end of a round. `children` are the children of this program,
/// and `parent_killed` says whether one with children of its own was killed.
fn check_nothing_is_left(base: Option<usize>, children: &[u32], parent_killed: bool) {
    let record = record();
    let living = |pids: &Pids| pids.all().filter(|pid| state(*pid).is_some()).collect::<Vec<_>>();
    eventually("these processes live", || living(&record.lives));
    // A process ends the programs it has started when its own parent ends, and its parent ends them
    // when the process ends. If both ended before they noticed each other's end, no process is left
    // that knows of the program. The same holds if the process in between was killed while it was
    // ending the other one.
    let is_lost = |program: &u32| {
        let Some((_, starter)) = state(*program) else { return false };
        parent_killed && !children.contains(&starter)
    };
    let mut lost = HashSet::new();
    let began = Instant::now();
    eventually("these programs live", || {
        // Look for lost programs each time, because a program records itself only when it runs,
        // which may be after all other processes have ended. Before that, give the processes that
        // know of the program time to end it.
        if began.elapsed() < MOMENT {
            return living(&record.programs);
        }
        for program in record.programs.all().filter(is_lost) {
            // SAFETY: sends a signal to a process that was just seen to be one of these programs.
            unsafe { libc::kill(program as libc::pid_t, libc::SIGKILL) };
            lost.insert(program);
        }
        living(&record.programs)
    });
    LOST.fetch_add(lost.len() as u32, SeqCst);
    eventually("nobody has reaped this child", || unreaped().into_iter().collect());
    if let Some(base) = base {
        eventually("there are more descriptors", || {
            let now = descriptors();
            if now > base { vec![now as u32, base as u32] } else { Vec::new() }
        });
    }
}

/// Returns any method. Methods that need no start of a program are more frequent.
fn any_method(random: &mut Random) -> StartMethod {
    match random.below(8) {
        0 => StartMethod::Spawn,
        1 | 2 => StartMethod::ForkServer,
        _ => StartMethod::Fork,
    }
}

/// Returns the only start method whose processes reach this step, if there is only one.
fn method_of(step: Step) -> Option<StartMethod> {
    match step {
        Step::ServerPrepared | Step::ServerReady | Step::ServerAsked | Step::ServerCloned => {
            Some(StartMethod::ForkServer)
        }
        Step::CopyMade | Step::CopyNamed | Step::CopyLeads => Some(StartMethod::ForkServer),
        Step::ForkRead => Some(StartMethod::Fork),
        _ => None,
    }
}

/// The case that a round must reach, if it is not random.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    step: Step,
    signal: libc::c_int,
    /// Whether the fork server, which is the first process of the round, is killed as well, at a
    /// random moment.
    server: bool,
}

fn round(seed: u64, wanted: Option<Wanted>, steps: &[Step], base: Option<usize>) -> Option<Step> {
    let (mut random, record) = (Random(seed), record());
    let signals = [libc::SIGKILL, libc::SIGSTOP];
    let any_signal = signals[random.below(2) as usize];
    let any_step = steps[random.below(steps.len() as u64) as usize];
    let (step, signal) =
        wanted.map_or((any_step, any_signal), |wanted| (wanted.step, wanted.signal));
    let method = method_of(step).unwrap_or(any_method(&mut random));
    let with_server = wanted.is_some_and(|wanted| wanted.server);
    // Clear the record. Nobody else uses it now.
    let (test, before) = (record.test.load(SeqCst), record.round.load(SeqCst));
    for number in [&record.over, &record.step, &record.fallen_at, &record.aim] {
        number.store(0, SeqCst);
    }
    for victim in [&record.fallen, &record.struck] {
        victim.pid.store(0, SeqCst);
    }
    for pids in [&record.lives, &record.programs] {
        pids.count.store(0, SeqCst);
        pids.pids.iter().for_each(|pid| pid.store(0, SeqCst));
    }
    assert_eq!(test, std::process::id());
    // Without a base, the round only opens what stays open for good, and nothing is hit.
    if base.is_some() {
        record.fallen.doom(&mut random, signal);
        let signal = signals[random.below(2) as usize];
        record.struck.doom(&mut random, signal);
        if wanted.is_some() || random.below(4) != 0 {
            record.left.store(if with_server { 1 } else { 1 + random.below(3) as u32 }, SeqCst);
            record.step.store(step as u32 + 1, SeqCst);
        }
        if wanted.is_none() && random.below(3) == 0 {
            record.after_micros.store(random.below(4_000) as u32, SeqCst);
            record.aim.store(1 + random.below(4) as u32, SeqCst);
        }
        if with_server {
            record.struck.signal.store(libc::SIGKILL as u32, SeqCst);
            record.struck.then.store(libc::SIGKILL as u32, SeqCst);
            record.after_micros.store(random.below(4_000) as u32, SeqCst);
            record.aim.store(1, SeqCst);
        }
    }
    record.round.store(before + 1, SeqCst);
    let context = Context::new(method);
    let mut started = Vec::new();
    for number in 0..1 + u8::from(with_server) + random.below(3) as u8 {
        let job = Job::ALL[random.below(Job::ALL.len() as u64) as usize];
        let inner = {
            let method = any_method(&mut random);
            METHODS.iter().position(|other| *other == method).expect("one of them")
        };
        let start = || context.process(work::task(number, job as u8, inner)).daemon(true).start();
        let child = match start() {
            Ok(child) => child,
            Err(error) => {
                // Only a fork server that was hit can make a start fail.
                let pids = [&record.fallen, &record.struck].map(|victim| victim.pid.load(SeqCst));
                let is_usual = method == StartMethod::ForkServer && pids != [0; 2];
                assert!(is_usual, "it was not started, and {pids:?} fell: {error}");
                // At least one of the victims has been hit. By the second retry, no victim may be
                // left.
                match start().or_else(|_| start()) {
                    Ok(child) => child,
                    Err(error) => panic!("nor was it started the next time: {error}"),
                }
            }
        };
        started.push(Started { job, number, child, ended: None });
        if with_server {
            // The next process must be requested from another server.
            eventually("the server lives", || {
                let server = record.struck.pid.load(SeqCst);
                if server == 0 || state(server).is_some() { vec![server] } else { Vec::new() }
            });
        }
    }
    for one in &mut started {
        if one.job != Job::Stays && random.below(10) != 0 {
            continue;
        }
        // Some are ended at once, others after they have begun.
        if random.below(2) == 0 {
            thread::sleep(Duration::from_micros(random.below(4_000)));
        }
        let was_alive = one.child.is_alive();
        one.ended = Some(match random.below(3) {
            0 => one.child.terminate().map(|()| libc::SIGTERM).expect("it is ours"),
            1 => one.child.kill().map(|()| libc::SIGKILL).expect("it is ours"),
            _ => {
                one.child.kill_tree();
                libc::SIGKILL
            }
        });
        // A process that ends by itself may have ended first.
        if one.job != Job::Stays && (!was_alive || one.child.wait_exit().signal() != one.ended) {
            one.ended = None;
        }
    }
    for one in &started {
        check(one, steps);
    }
    let is_parent = |one: &&Started| matches!(one.job, Job::Joins | Job::Keeps);
    let parent_killed =
        started.iter().filter(is_parent).any(|one| one.child.wait_exit().signal().is_some());
    let children: Vec<_> = started.iter().map(|one| one.child.pid()).collect();
    drop(started);
    drop(context);
    check_nothing_is_left(base, &children, parent_killed);
    // Let the stranger finish before the record is used again.
    record.over.store(1, SeqCst);
    let began = Instant::now();
    while record.settled.load(SeqCst) != before + 1 {
        assert!(began.elapsed() < HANGS_AFTER, "the stranger does not come back");
        thread::sleep(Duration::from_micros(20));
    }
    let at = record.fallen_at.load(SeqCst).checked_sub(1)?;
    steps.iter().find(|step| **step as u32 == at).copied()
}

// ---- all of them --------------------------------------------------------------------------------

static SEED: AtomicU32 = AtomicU32::new(0);

/// Called when a round takes too long, for example because a start hangs.
extern "C" fn on_alarm(_: libc::c_int) {
    println!("EXECUTOR_SEED={} hangs", SEED.load(SeqCst));
    std::process::abort();
}

fn attempt(
    seed: u64,
    wanted: Option<Wanted>,
    steps: &[Step],
    base: Option<usize>,
) -> Option<(Step, libc::c_int)> {
    SEED.store(seed as u32, SeqCst);
    // SAFETY: only sets a timer.
    unsafe { libc::alarm(2 * HANGS_AFTER.as_secs() as u32) };
    match catch_unwind(AssertUnwindSafe(|| round(seed, wanted, steps, base))) {
        Ok(step) => step.map(|step| (step, record().fallen.signal.load(SeqCst) as libc::c_int)),
        Err(_) => {
            let wanted = wanted.map_or(String::new(), |wanted| format!(" for {wanted:?}"));
            let fell =
                steps.iter().find(|step| **step as u32 + 1 == record().fallen_at.load(SeqCst));
            let record = record();
            let victim = |victim: &Victim| {
                [&victim.pid, &victim.signal, &victim.then].map(|number| number.load(SeqCst))
            };
            println!("EXECUTOR_SEED={seed} failed{wanted}");
            println!("fell at {fell:?}: {:?} (pid, signal, then)", victim(&record.fallen));
            println!("struck: {:?}", victim(&record.struck));
            println!("processes {:?}", record.lives.all().collect::<Vec<_>>());
            println!("programs {:?}", record.programs.all().collect::<Vec<_>>());
            for program in record.programs.all() {
                // The programs would keep the output of this program open, whose end a test waits
                // for.
                // SAFETY: sends a signal to a program that has recorded itself in this round.
                unsafe { libc::kill(program as libc::pid_t, libc::SIGKILL) };
            }
            std::process::exit(1);
        }
    }
}

fn main() {
    kill_point::set_hook(on_step);
    if let Some(path) = std::env::var_os(RECORD) {
        let file =
            std::fs::OpenOptions::new().read(true).write(true).open(path).expect("the record");
        // SAFETY: `Record` consists of atomics, of which zero is a valid value.
        let _ = OWN.set(unsafe { dying::map(file.as_fd()) });
    }
    executor::init();
    // SAFETY: `Record` consists of atomics, of which zero is a valid value.
    let (record, fd) = unsafe { dying::named_record::<Record>(c"process-deaths") };
    let _ = OWN.set(record);
    record.test.store(std::process::id(), SeqCst);
    let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    // SAFETY: there is no other thread.
    unsafe { std::env::set_var(RECORD, path) };
    // SAFETY: sets a signal handler, which prints a line and aborts.
    unsafe { libc::signal(libc::SIGALRM, on_alarm as *const () as libc::sighandler_t) };
    make_stranger(record);
    let mut steps = vec![Step::Started, Step::SetupRead, Step::Decoded, Step::Ran, Step::Encoded];
    steps.extend(Step::PROCESS);
    // In these rounds nothing is hit. What is open after them is the base for the comparison.
    for seed in 0..4 {
        let _ = attempt(seed, None, &steps, None);
    }
    let base = Some(descriptors());
    let seeds = seeds();
    let signals = [libc::SIGKILL, libc::SIGSTOP];
    let both: Vec<_> =
        steps.iter().flat_map(|step| signals.map(|signal| (*step, signal))).collect();
    let mut fell = vec![0_u32; both.len()];
    let began = Instant::now();
    for seed in seeds.clone() {
        if let Some(hit) = attempt(seed, None, &steps, base) {
            fell[both.iter().position(|step| *step == hit).expect("one of these")] += 1;
        }
    }
    if number("EXECUTOR_SEED").is_none() {
        for (at, step) in both.iter().enumerate() {
            let mut tries = 0;
            while fell[at] == 0 {
                assert!(tries < EXTRA_ROUNDS_MAX, "nobody has come to {step:?}");
                tries += 1;
                let wanted = Wanted { step: step.0, signal: step.1, server: false };
                if attempt(1 << 30 | (at as u64) << 16 | tries, Some(wanted), &steps, base)
                    .is_some()
                {
                    fell[at] += 1;
                }
            }
        }
    }
    // Cases too rare for random rounds: forked copies that are stopped and then killed, while their
    // server has died and another one is asked.
    for (at, step) in [Step::CopyMade, Step::CopyNamed, Step::CopyLeads].into_iter().enumerate() {
        for seed in 0..seeds.clone().count().min(20) as u64 {
            let wanted = Wanted { step, signal: libc::SIGSTOP, server: true };
            let _ = attempt(1 << 31 | (at as u64) << 16 | seed, Some(wanted), &steps, base);
        }
    }
    let (rounds, lost) = (seeds.end - seeds.start, u64::from(LOST.load(SeqCst)));
    println!(
        "{rounds} rounds in {:.1?}, {lost} programs of which nobody was left to know",
        began.elapsed()
    );
    // A lost program requires two deaths within a moment.
    assert!(lost <= 3 + rounds / 20, "{lost} programs were left in {rounds} rounds");
    println!("  died stood");
    for (both, step) in fell.chunks(2).zip(&steps) {
        println!("{:6}{:6} {step:?}", both[0], both[1]);
    }
    drop(fd);
}
