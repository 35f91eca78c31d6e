//! Users of named memory that are killed or stopped at every step of their operations, and at
//! random moments. Meanwhile the other processes must be able to make, find, own and remove names.
//! They must not wait for the victim, and in the end nothing may be left.
//!
//! Each round is determined by its seed: three children use the same few names in a random order,
//! and the seed decides which child is killed or stopped, and where. The children are forked by
//! hand, so that ten thousand rounds take less than an hour. Each child checks that the memory it
//! finds is intact and is the expected one: the first bytes of the memory say under which name it
//! was made. A stopped child stays stopped until the others have ended, and is then continued or
//! killed. So a process that waits for it hangs.
//!
//! `EXECUTOR_ROUNDS=10000` runs that many seeds, and `EXECUTOR_SEED=17` runs that seed. A failure
//! prints its seed. At the end the program prints how often a child was killed and stopped at each
//! step.

#[path = "../dying.rs"]
mod dying;

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use dying::{EXTRA_ROUNDS_MAX, HANGS_AFTER, Random, number, seeds};
use executor::{ShareableList, SharedMemory};
use executor_core::kill_point::{self, Step};

const CHILDREN: usize = 3;
const NAMES: u64 = 3;
const TIMES: u32 = 12;

// ---- where a child is killed --------------------------------------------------------------------

/// The step plus one at which this process is killed or stopped. 0 means never.
static STEP: AtomicU32 = AtomicU32::new(0);
static LEFT: AtomicU32 = AtomicU32::new(0);
static SIGNAL: AtomicU32 = AtomicU32::new(0);

/// The step that a child records before it is killed or stopped. The record is the parent's own
/// mapping, so that it does not depend on the tested code.
fn fallen() -> &'static AtomicU32 {
    static RECORD: OnceLock<&AtomicU32> = OnceLock::new();
    // SAFETY: the record is an atomic, of which zero is a valid value.
    RECORD.get_or_init(|| unsafe { dying::record() })
}

fn on_step(step: Step) {
    if STEP.load(SeqCst) == step as u32 + 1 && LEFT.fetch_sub(1, SeqCst) == 1 {
        fallen().store(step as u32 + 1, SeqCst);
        // SAFETY: only sends a signal to this process itself.
        unsafe { libc::kill(libc::getpid(), SIGNAL.load(SeqCst) as libc::c_int) };
    }
}

// ---- what the children do -----------------------------------------------------------------------

fn name(round: &str, number: u64) -> String {
    format!("deaths-{round}-{number}")
}

/// Returns the content of the memory with this name, whichever process has made it.
fn mark(number: u64) -> [u8; 16] {
    [b'a' + number as u8; 16]
}

fn make(name: &str, number: u64, size: usize) -> io::Result<SharedMemory> {
    // The name is visible while its memory is still zeroed, so others may find zeros.
    let memory = SharedMemory::create_named(name, size)?;
    memory.write(0, &mark(number));
    Ok(memory)
}

fn look(memory: &SharedMemory, number: u64, size: usize) {
    let mut found = [0; 16];
    memory.read(0, &mut found);
    let pieces =
        [&found[..8], &found[8..]].map(|piece| piece == [0; 8] || *piece == mark(number)[..8]);
    assert!(memory.len() >= size && pieces == [true; 2], "{found:?} in {number}");
}

/// Returns whether this error may occur with names that others make and remove at the same time.
fn is_usual(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists)
}

fn act(round: &str, random: &mut Random, held: &mut Vec<(u64, SharedMemory)>) {
    let number = random.below(NAMES);
    let name = name(round, number);
    let size = [100, 9_000][number as usize % 2];
    let result = match random.below(8) {
        0..3 => make(&name, number, size).map(|memory| held.push((number, memory))),
        3 => SharedMemory::attach(&name).and_then(|memory| {
            look(&memory, number, size);
            memory.own()?;
            // This process owns the name, so others find it, unless one of them removes it.
            held.push((number, memory));
            Ok(())
        }),
        4 => SharedMemory::attach(&name).map(|memory| look(&memory, number, size)),
        5 => match held.is_empty() {
            true => Ok(()),
            false => {
                let (_, memory) = held.swap_remove(random.below(held.len() as u64) as usize);
                if random.below(3) == 0 { memory.unlink() } else { Ok(()) }
            }
        },
        6 => ShareableList::create_named(&format!("{name}-list"), ["x"]).and_then(|list| {
            assert_eq!(list.get(0), Some("x".into()));
            list.unlink()
        }),
        _ => {
            if random.below(4) == 0 {
                SharedMemory::sweep();
            }
            Ok(())
        }
    };
    if let Err(error) = result {
        assert!(is_usual(&error), "{name}: {error}");
    }
    for (number, memory) in held {
        look(memory, *number, [100, 9_000][*number as usize % 2]);
    }
}

fn live(round: &str, mut random: Random) {
    let mut held = Vec::new();
    for _ in 0..TIMES {
        act(round, &mut random, &mut held);
    }
}

/// Checks what must hold when all children have ended: each name is free, and can be made and found
/// again.
fn check(round: &str) {
    for number in 0..NAMES {
        let name = name(round, number);
        let gone = SharedMemory::attach(&name).expect_err("its owners have ended");
        assert_eq!(gone.kind(), io::ErrorKind::NotFound, "{gone}");
        let memory = make(&name, number, 100).expect("it is free");
        assert_eq!(SharedMemory::attach(&name).expect("it is there"), memory);
        drop(memory);
        drop(ShareableList::create_named(&format!("{name}-list"), ["y"]).expect("it is free"));
    }
    SharedMemory::sweep();
    assert_eq!(left(round), [""; 0], "after a sweep");
}

/// Returns the files with names of this round, in the folders of any user.
fn left(round: &str) -> Vec<String> {
    let within =
        |folder: std::path::PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = within("/dev/shm".into())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("executor-shared-memory."));
    let names =
        folders.flat_map(|folder| within(folder.path())).flat_map(|bucket| within(bucket.path()));
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(&format!("=deaths-{round}-"))).collect()
}

// ---- a round ------------------------------------------------------------------------------------

/// How the first child is killed or stopped.
#[derive(Clone, Copy, Debug)]
enum Doom {
    At(Step, u32),
    After(Duration),
    Never,
}

fn wait(pid: libc::pid_t, flags: libc::c_int) -> Option<libc::c_int> {
    let mut status = 0;
    // SAFETY: only asks for the state of a child of this process.
    let ended = unsafe { libc::waitpid(pid, &mut status, flags) };
    assert!(ended >= 0, "{}", io::Error::last_os_error());
    (ended == pid).then_some(status)
}

fn kill(pid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: `pid` is a child that was not waited for.
    unsafe { libc::kill(pid, signal) };
}

/// Waits until the child has ended or is stopped. Returns whether it is stopped, and its status.
fn settled(
    pid: libc::pid_t,
    children: &[libc::pid_t],
    what: &dyn std::fmt::Debug,
) -> (bool, libc::c_int) {
    let began = Instant::now();
    loop {
        if let Some(status) = wait(pid, libc::WNOHANG | libc::WUNTRACED) {
            return (libc::WIFSTOPPED(status), status);
        }
        if began.elapsed() > HANGS_AFTER {
            children.iter().for_each(|child| kill(*child, libc::SIGKILL));
            panic!("hangs: {what:?}");
        }
        thread::sleep(Duration::from_micros(50));
    }
}

fn round(seed: u64, wanted: Option<(Step, libc::c_int)>) -> Option<(Step, libc::c_int)> {
    let mut random = Random(seed);
    let signal = match wanted {
        Some((_, signal)) => signal,
        None => [libc::SIGKILL, libc::SIGSTOP][random.below(2) as usize],
    };
    let steps = Step::NAMED;
    let doom = match wanted {
        Some((step, _)) => Doom::At(step, 1 + random.below(3) as u32),
        None => match random.below(10) {
            0 => Doom::Never,
            1..3 => Doom::After(Duration::from_micros(random.below(2_000))),
            _ => Doom::At(
                steps[random.below(steps.len() as u64) as usize],
                1 + random.below(4) as u32,
            ),
        },
    };
    fallen().store(0, SeqCst);
    let names = format!("{}-{seed:x}", std::process::id());
    let mut children = Vec::new();
    for number in 0..CHILDREN {
        let own = Random(random.next());
        // SAFETY: this process has one thread, and the child only uses the library and ends without
        // unwinding.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "{}", io::Error::last_os_error());
        if pid == 0 {
            if let (0, Doom::At(step, times)) = (number, doom) {
                SIGNAL.store(signal as u32, SeqCst);
                LEFT.store(times, SeqCst);
                STEP.store(step as u32 + 1, SeqCst);
            }
            let lived = catch_unwind(AssertUnwindSafe(|| live(&names, own))).is_ok();
            // SAFETY: ends this process.
            unsafe { libc::_exit(if lived { 0 } else { 101 }) };
        }
        children.push(pid);
    }
    if let Doom::After(moment) = doom {
        thread::sleep(moment);
        kill(children[0], signal);
    }
    let victim = children[0];
    // If the victim is stopped, the others end while it is.
    for child in &children[1..] {
        let (_, status) = settled(*child, &children, &doom);
        assert_eq!(status, 0, "a child failed: {status:#x}");
    }
    let (stands, mut status) = settled(victim, &children, &doom);
    if stands {
        // While it is stopped, other names can be made and found, whatever operation it is in.
        let other = name(&names, 77);
        let memory = make(&other, 7, 100).expect("nobody has that name");
        assert_eq!(SharedMemory::attach(&other).expect("it is there"), memory);
        drop(memory);
        kill(victim, if random.below(2) == 0 { libc::SIGKILL } else { libc::SIGCONT });
        status = settled(victim, &children, &doom).1;
    }
    let killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
    assert!(status == 0 || killed, "the first child failed: {status:#x}");
    check(&names);
    let at = (fallen().load(SeqCst) as usize).checked_sub(1)?;
    Some((*steps.iter().find(|step| **step as usize == at)?, signal))
}

/// Removes this user's empty folders with a number. The library keeps using such a folder if
/// another user had the usual name (as other tests arrange), and then no process would reach the
/// step that makes a folder.
fn forget_numbered_folders() {
    // SAFETY: only asks for this process's user id.
    let usual = format!("executor-shared-memory.{}.", unsafe { libc::geteuid() });
    for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&usual) {
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

fn attempt(seed: u64, wanted: Option<(Step, libc::c_int)>) -> Option<(Step, libc::c_int)> {
    match catch_unwind(AssertUnwindSafe(|| round(seed, wanted))) {
        Ok(step) => step,
        Err(_) => {
            let wanted = wanted.map_or(String::new(), |wanted| format!(" for {wanted:?}"));
            println!("EXECUTOR_SEED={seed} failed{wanted}");
            std::process::exit(1);
        }
    }
}

fn main() {
    kill_point::set_hook(on_step);
    let seeds = seeds();
    let signals = [libc::SIGKILL, libc::SIGSTOP];
    let steps: Vec<_> =
        Step::NAMED.iter().flat_map(|step| signals.map(|signal| (*step, signal))).collect();
    let mut fell = vec![0_u32; steps.len()];
    let mut note = |hit| {
        let at = steps.iter().position(|step| *step == hit).expect("one of these steps");
        fell[at] += 1;
    };
    let began = Instant::now();
    forget_numbered_folders();
    seeds.clone().filter_map(|seed| attempt(seed, None)).for_each(&mut note);
    if number("EXECUTOR_SEED").is_none() {
        for (at, step) in steps.iter().enumerate() {
            let mut tries = 0;
            while fell[at] == 0 {
                assert!(tries < EXTRA_ROUNDS_MAX, "nobody has come to {step:?}");
                tries += 1;
                forget_numbered_folders();
                if attempt(1 << 32 | (at as u64) << 16 | tries, Some(*step)).is_some() {
                    fell[at] += 1;
                }
            }
        }
    }
    println!("{} rounds in {:.1?}", seeds.end - seeds.start, began.elapsed());
    println!("  died stood");
    for (both, step) in fell.chunks(2).zip(Step::NAMED) {
        println!("{:6}{:6} {step:?}", both[0], both[1]);
    }
}
