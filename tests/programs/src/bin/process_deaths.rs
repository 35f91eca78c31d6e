//! Processes with one task that die or are stopped at every step from their start to their end, and at any moment, with the fork server
//! that makes them and the processes in between; whatever happens, what is told of each of them is true, and nothing of them is left.
//!
//! Each round is made from its seed: by which method some processes are started and what they do, and which process falls where. That is
//! a child, a child's child, or the fork server; it is killed, or it stands still for up to 300 ms and is continued or killed then. A
//! second one may fall at any moment, so one that stands still may lose its parent meanwhile. Then every process is joined, and:
//!
//! - what it returned is its value, unless it fell, and its exit status is the one that it ended with;
//! - no process of the round lives, nor a program that one of them has started (unless both have ended who knew of it, before one of
//!   them saw the end of the other one);
//! - this program has no child that has ended and was not reaped, and no descriptor more than before.
//!
//! This program has one thread, so that it can be copied (`StartMethod::Fork`). What is done from outside is done by a process of its
//! own, the stranger, which is told by the record, as all are.
//!
//! `EXECUTOR_ROUNDS=10000` goes through that many seeds, `EXECUTOR_SEED=17` takes that one. What fails names its seed. At the
//! end it prints how often a process has died, and has stood still, at each step.

#[path = "../dying.rs"]
mod dying;

use std::{
    collections::HashSet,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use dying::{EXTRA_ROUNDS_MAX, HANGS_AFTER, ROUNDS, Random};
use executor::{Child, Context, ExitStatus, SharedBytes, StartMethod, prelude::*};
use executor_core::kill_point::{self, Step};

/// Where a process finds the record.
const RECORD: &str = "EXECUTOR_TEST_RECORD";

/// As long as one stands still that is not continued at once.
const STANDS_MAX: Duration = Duration::from_millis(300);

/// Processes of one round that are recorded.
const LIVES: usize = 64;

// ---- the record ------------------------------------------------------------------------------------------------------

/// All atomics, of which zero is a value: what is shared with processes that die in the middle of anything.
#[repr(C)]
struct Record {
    /// This program, which does not fall.
    test: AtomicU32,
    /// The round, and the last one that the stranger is done with. It is over when they are one.
    round: AtomicU32,
    settled: AtomicU32,
    /// The test has seen all that it wants to see: the stranger does nothing more.
    over: AtomicU32,
    /// At which step one falls, plus one, and how often that is to be reached until then.
    step: AtomicU32,
    left: AtomicU32,
    /// The step where one fell, plus one, and who.
    fallen_at: AtomicU32,
    fallen: Victim,
    /// Which process falls at any moment, by the order in which they come, plus one; and when, after it has come.
    aim: AtomicU32,
    after_micros: AtomicU32,
    struck: Victim,
    lives: Pids,
    /// What they have started in their groups.
    programs: Pids,
}

/// One that falls, and how.
#[repr(C)]
struct Victim {
    pid: AtomicU32,
    signal: AtomicU32,
    /// If it is stopped: for how long, and what it gets then.
    stands_micros: AtomicU32,
    then: AtomicU32,
}

#[repr(C)]
struct Pids {
    count: AtomicU32,
    pids: [AtomicU32; LIVES],
}

impl Pids {
    /// May be called between `fork` and `exec`.
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
        [&self.signal, &self.then].map(|signal| signal.load(SeqCst)).contains(&(libc::SIGKILL as u32))
    }

    /// As it was chosen.
    fn doom(&self, random: &mut Random, signal: libc::c_int) {
        self.signal.store(signal as u32, SeqCst);
        // Few stand still for long, so that a round takes no third of a second.
        let stands = match random.below(16) {
            0 => random.below(STANDS_MAX.as_micros() as u64),
            _ => random.below(3_000),
        };
        self.stands_micros.store(stands as u32, SeqCst);
        let then = if random.below(2) == 0 { libc::SIGKILL } else { libc::SIGCONT };
        self.then.store(if signal == libc::SIGKILL { signal } else { then } as u32, SeqCst);
    }
}

fn map(fd: i32) -> &'static Record {
    // SAFETY: a new mapping of a file of that size, never unmapped; `Record` is all atomics, so others may write to it.
    unsafe {
        let flags = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(std::ptr::null_mut(), size_of::<Record>(), flags, libc::MAP_SHARED, fd, 0);
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        &*at.cast::<Record>()
    }
}

/// The record, and what must stay open for others to find it.
fn create_record() -> (&'static Record, OwnedFd) {
    // SAFETY: makes a descriptor, which is ours then.
    let fd = unsafe {
        #[expect(clippy::disallowed_methods, reason = "no limit is set here")]
        let fd = libc::memfd_create(c"process-deaths".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    let file = std::fs::File::from(fd.try_clone().expect("a descriptor"));
    #[expect(clippy::disallowed_methods, reason = "no limit is set here")]
    file.set_len(size_of::<Record>() as u64).expect("memory");
    (map(fd.as_raw_fd()), fd)
}

static OWN: OnceLock<&'static Record> = OnceLock::new();

fn record() -> &'static Record {
    OWN.get().expect("every process of this program has it")
}

/// The process that was noted last: a copy of it is another one.
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
        // SAFETY: a signal to this process itself.
        unsafe { libc::kill(libc::getpid(), record.fallen.signal.load(SeqCst) as libc::c_int) };
    }
}

// ---- what they do ----------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
enum Job {
    Returns,
    /// More than fits into a message.
    ReturnsMuch,
    /// Returns descriptors, which are sent after the rest.
    ReturnsMemory,
    /// Returns while a program that it has started goes on.
    Leaves,
    /// Starts a program, and goes on until it is ended.
    Stays,
    /// Is between this program and another such process.
    Joins,
    /// The same, and does not join.
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

/// A program that does nothing, in the group of this process.
fn start_program() {
    let (record, round) = (record(), record().round.load(SeqCst));
    // SAFETY: the child does only what a signal handler may.
    unsafe {
        if libc::fork() == 0 {
            record.programs.note(libc::getpid() as u32);
            // If it comes so late that its round is over, it is none of the next one's.
            if record.round.load(SeqCst) != round {
                libc::_exit(0);
            }
            // If it comes so late that its round is over, nobody looks for it: it ends by itself, and keeps no output open for which
            // a test waits.
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
            let child =
                Context::new(METHODS[method]).process(work::task(number, inner as u8, 0)).daemon(true);
            // Whoever makes it may fall, and so may the child.
            if let Ok(child) = child.start()
                && job == Job::Joins
            {
                let _ = child.join();
            }
        }
        // Without a word on standard error.
        Job::Panics => std::panic::resume_unwind(Box::new("as it was told")),
        Job::Exits => std::process::exit(Job::EXIT_CODE),
    }
    let (bytes, shared) = value(number, job);
    (bytes, vec![SharedBytes::copy_from_slice(&[number; 100]); shared])
}

// ---- the stranger ----------------------------------------------------------------------------------------------------

/// What is to be done to one that falls from here on.
enum Order {
    None,
    /// Struck then.
    Strike(OwnedFd, Instant),
    /// It stands still, or is about to; this is when it has stood for long enough.
    Resume(OwnedFd, Instant),
    Done,
}

fn open(pid: u32) -> Option<OwnedFd> {
    // SAFETY: makes a descriptor, or says that there is no such process.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    // SAFETY: it is ours then.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn send(process: &OwnedFd, signal: u32) {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a descriptor that is open; no memory. It may have ended.
    unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal as libc::c_int, none, 0)
    };
}

fn micros(number: &AtomicU32) -> Duration {
    Duration::from_micros(u64::from(number.load(SeqCst)))
}

/// The state of a process as the kernel tells it, and its group: `None` if it has ended.
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
        fallen = match fallen {
            Order::None => match record.fallen.pid.load(SeqCst) {
                0 => Order::None,
                // Until it does stand still.
                pid if record.fallen.signal.load(SeqCst) == libc::SIGSTOP as u32 => match state(pid) {
                    Some(('T', _)) => open(pid).map_or(Order::Done, |process| {
                        Order::Resume(process, now() + micros(&record.fallen.stands_micros))
                    }),
                    Some(_) => Order::None,
                    None => Order::Done,
                },
                _ => Order::Done,
            },
            other => resume(other, &record.fallen),
        };
        thread::sleep(Duration::from_micros(50));
    }
    // Nobody is left standing by this one, however the round ended.
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

/// Makes the stranger. It ends with this program.
fn make_stranger(record: &'static Record) {
    // SAFETY: there is one thread; the child uses nothing of the library.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "{}", io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: sets a signal for this process.
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

// ---- a round ---------------------------------------------------------------------------------------------------------

struct Started {
    job: Job,
    number: u8,
    child: Child<Value>,
    /// What it was ended by.
    ended: Option<libc::c_int>,
}

/// Whether the report was whole when it fell there.
fn has_reported(step: Step, job: Job) -> bool {
    match step {
        Step::ReportSent => job != Job::ReturnsMemory,
        Step::Reported | Step::BodyExiting | Step::SegmentLeft => true,
        _ => false,
    }
}

/// What must be so of one that has ended, and what must have been told of it.
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
    // One that stands still and is struck, too, may be continued by that, and have ended before it is killed.
    let is_killed = fell.is_some() && record.fallen.is_killed() && !record.struck.is(pid);
    let may_be_killed =
        fell.is_some() && record.fallen.is_killed() || record.struck.is(pid) && record.struck.is_killed();
    // By itself, or as it was told to.
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
            if let (Some(step), Job::Returns | Job::ReturnsMuch | Job::ReturnsMemory) = (fell, job) {
                assert!(!has_reported(step, *job), "it had reported at {step:?}");
            }
        }
        Err(other) => panic!("{job:?}: {other}"),
    }
}

/// Waits for what is true in a moment; a signal is sent before it has its effect.
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

/// A child of this program that has ended and that nobody has reaped.
fn unreaped() -> Option<u32> {
    // SAFETY: an all-zero `siginfo_t` is a valid one, and is filled by the call, which looks only.
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

/// Programs that nobody was left to end.
static LOST: AtomicU32 = AtomicU32::new(0);

/// How long one who knows of a program may take to end it, if somebody is there.
const MOMENT: Duration = Duration::from_millis(200);

/// What is left when all of a round is over: nothing. These are the children, and whether one was killed that had children itself.
fn check_nothing_is_left(base: Option<usize>, children: &[u32], parent_killed: bool) {
    let record = record();
    let living = |pids: &Pids| pids.all().filter(|pid| state(*pid).is_some()).collect::<Vec<_>>();
    eventually("these processes live", || living(&record.lives));
    // What a process has started is ended by that process when its parent ends, and by its parent when it ends. Where both have ended
    // before they saw the end of the other one, nobody is there who knows of it.
    // Also where the one in between was killed while it ended the other one.
    let is_lost = |program: &u32| {
        let Some((_, starter)) = state(*program) else { return false };
        parent_killed && !children.contains(&starter)
    };
    let mut lost = HashSet::new();
    let began = Instant::now();
    eventually("these programs live", || {
        // Each time: one writes itself down when it runs, which may be after all others have ended. Not before it has had the time
        // to be ended by who knows of it.
        if began.elapsed() < MOMENT {
            return living(&record.programs);
        }
        for program in record.programs.all().filter(is_lost) {
            // SAFETY: a signal to what was just seen to be one of these programs.
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

/// Each of them; those more often that cost no start of a program.
fn any_method(random: &mut Random) -> StartMethod {
    match random.below(8) {
        0 => StartMethod::Spawn,
        1 | 2 => StartMethod::ForkServer,
        _ => StartMethod::Fork,
    }
}

/// Of processes by this method only.
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

/// What a round is for, where that is not left to chance.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    step: Step,
    signal: libc::c_int,
    /// The fork server is killed as well, at any moment, which is the first process of the round.
    server: bool,
}

fn round(seed: u64, wanted: Option<Wanted>, steps: &[Step], base: Option<usize>) -> Option<Step> {
    let (mut random, record) = (Random(seed), record());
    let signals = [libc::SIGKILL, libc::SIGSTOP];
    let any_signal = signals[random.below(2) as usize];
    let any_step = steps[random.below(steps.len() as u64) as usize];
    let (step, signal) = wanted.map_or((any_step, any_signal), |wanted| (wanted.step, wanted.signal));
    let method = method_of(step).unwrap_or(any_method(&mut random));
    let with_server = wanted.is_some_and(|wanted| wanted.server);
    // Cleared by the only one who is there.
    // SAFETY: its own size, and zero is a value.
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
                let pids = [&record.fallen, &record.struck].map(|victim| victim.pid.load(SeqCst));
                let is_usual = method == StartMethod::ForkServer && pids != [0; 2];
                assert!(is_usual, "it was not started, and {pids:?} fell: {error}");
                // One at least of those that fall has fallen, and at the second time nobody may be there who falls.
                match start().or_else(|_| start()) {
                    Ok(child) => child,
                    Err(error) => panic!("nor was it started the next time: {error}"),
                }
            }
        };
        started.push(Started { job, number, child, ended: None });
        if with_server {
            // The next one is asked of another server.
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
        // One that ends by itself may have been faster.
        if one.job != Job::Stays && (!was_alive || one.child.wait_exit().signal() != one.ended) {
            one.ended = None;
        }
    }
    for one in &started {
        check(one, steps);
    }
    let is_parent = |one: &&Started| matches!(one.job, Job::Joins | Job::Keeps);
    let parent_killed = started.iter().filter(is_parent).any(|one| one.child.wait_exit().signal().is_some());
    let children: Vec<_> = started.iter().map(|one| one.child.pid()).collect();
    drop(started);
    drop(context);
    check_nothing_is_left(base, &children, parent_killed);
    record.over.store(1, SeqCst);
    let began = Instant::now();
    while record.settled.load(SeqCst) != before + 1 {
        assert!(began.elapsed() < HANGS_AFTER, "the stranger does not come back");
        thread::sleep(Duration::from_micros(20));
    }
    let at = record.fallen_at.load(SeqCst).checked_sub(1)?;
    steps.iter().find(|step| **step as u32 == at).copied()
}

// ---- all of them -----------------------------------------------------------------------------------------------------

static SEED: AtomicU32 = AtomicU32::new(0);

/// A start that does not end.
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
    // SAFETY: sets a timer.
    unsafe { libc::alarm(2 * HANGS_AFTER.as_secs() as u32) };
    match catch_unwind(AssertUnwindSafe(|| round(seed, wanted, steps, base))) {
        Ok(step) => step.map(|step| (step, record().fallen.signal.load(SeqCst) as libc::c_int)),
        Err(_) => {
            let wanted = wanted.map_or(String::new(), |wanted| format!(" for {wanted:?}"));
            let fell = steps.iter().find(|step| **step as u32 + 1 == record().fallen_at.load(SeqCst));
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
                // They would keep the output of this program open, for which a test waits.
                // SAFETY: a signal to one that has written itself down in this round.
                unsafe { libc::kill(program as libc::pid_t, libc::SIGKILL) };
            }
            std::process::exit(1);
        }
    }
}

fn main() {
    kill_point::set_hook(on_step);
    if let Some(path) = std::env::var_os(RECORD) {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("the record");
        let _ = OWN.set(map(file.as_raw_fd()));
    }
    executor::init();
    let (record, fd) = create_record();
    let _ = OWN.set(record);
    record.test.store(std::process::id(), SeqCst);
    let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    // SAFETY: there is no other thread.
    unsafe { std::env::set_var(RECORD, path) };
    // SAFETY: sets what is done at a signal: a line, and the end.
    unsafe { libc::signal(libc::SIGALRM, on_alarm as *const () as libc::sighandler_t) };
    make_stranger(record);
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let mut steps = vec![Step::Started, Step::SetupRead, Step::Decoded, Step::Ran, Step::Encoded];
    steps.extend(Step::PROCESS);
    // Nobody falls: what is there after these is what was there before.
    for seed in 0..4 {
        let _ = attempt(seed, None, &steps, None);
    }
    let base = Some(descriptors());
    let seeds = match number("EXECUTOR_SEED") {
        Some(seed) => seed..seed + number("EXECUTOR_ROUNDS").unwrap_or(1),
        None => 0..number("EXECUTOR_ROUNDS").unwrap_or(ROUNDS),
    };
    let signals = [libc::SIGKILL, libc::SIGSTOP];
    let both: Vec<_> = steps.iter().flat_map(|step| signals.map(|signal| (*step, signal))).collect();
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
                if attempt(1 << 30 | (at as u64) << 16 | tries, Some(wanted), &steps, base).is_some() {
                    fell[at] += 1;
                }
            }
        }
    }
    // Too rare for chance: copies that stand still, and are killed, while their server has died and another one is asked.
    for (at, step) in [Step::CopyMade, Step::CopyNamed, Step::CopyLeads].into_iter().enumerate() {
        for seed in 0..seeds.clone().count().min(20) as u64 {
            let wanted = Wanted { step, signal: libc::SIGSTOP, server: true };
            let _ = attempt(1 << 31 | (at as u64) << 16 | seed, Some(wanted), &steps, base);
        }
    }
    let (rounds, lost) = (seeds.end - seeds.start, u64::from(LOST.load(SeqCst)));
    println!("{rounds} rounds in {:.1?}, {lost} programs of which nobody was left to know", began.elapsed());
    // It takes two deaths within one moment.
    assert!(lost <= 3 + rounds / 20, "{lost} programs were left in {rounds} rounds");
    println!("  died stood");
    for (both, step) in fell.chunks(2).zip(&steps) {
        println!("{:6}{:6} {step:?}", both[0], both[1]);
    }
    drop(fd);
}
