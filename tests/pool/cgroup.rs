//! Workers in control groups of their own: nothing of a task outlives its worker, limits hold for
//! everything in a group, and no group is left.
//!
//! A test that needs a right or a controller that is missing here prints a line, and is left out.
//! `EXECUTOR_TEST_CGROUP` names a group below which the tests make theirs, in place of the
//! program's own: one that has the controllers in its `cgroup.subtree_control`.

use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use executor::{BuildError, CgroupLimits, Isolation, ProcessPoolBuilder, StartMethod, prelude::*};
use rustix::process::Signal;

use crate::support::*;

/// A control group for a test. It is removed at the end, when it has to be empty.
struct Place(PathBuf);

impl Place {
    /// Makes a group. Returns `None` and says why if it cannot.
    fn new() -> Option<Self> {
        Place::below(std::env::var_os("EXECUTOR_TEST_CGROUP").map(PathBuf::from).or_else(own_group))
    }

    #[expect(clippy::print_stdout, reason = "a test that is left out says so")]
    fn below(base: Option<PathBuf>) -> Option<Self> {
        static PLACES: AtomicU32 = AtomicU32::new(0);
        let number = PLACES.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-of-executor-{}-{number}", std::process::id());
        let Some(base) = base else {
            println!("left out: there are no control groups of version 2");
            return None;
        };
        let place = Place(base.join(name));
        match fs::create_dir(&place.0) {
            Ok(()) if place.0.join("cgroup.kill").exists() => Some(place),
            Ok(()) => {
                println!("left out: this system cannot kill control groups");
                None
            }
            Err(error) => {
                println!("left out: no control group below {}: {error}", base.display());
                // There is nothing to remove.
                std::mem::forget(place);
                None
            }
        }
    }

    fn limits(&self) -> CgroupLimits {
        CgroupLimits::default().under(&self.0)
    }

    fn builder(&self) -> ProcessPoolBuilder {
        ProcessPoolExecutor::builder().max_workers(1).cgroup(self.limits())
    }

    /// Returns all groups below this one.
    fn groups(&self) -> Vec<PathBuf> {
        let mut found = groups_in(&self.0);
        let mut at = 0;
        while at < found.len() {
            found.extend(groups_in(&found[at].clone()));
            at += 1;
        }
        found
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = fs::write(self.0.join("cgroup.kill"), "1");
        }
        // A process that was just killed may need a moment.
        eventually("the group of the test is empty", || {
            self.groups().iter().rev().for_each(|group| drop(fs::remove_dir(group)));
            fs::remove_dir(&self.0).is_ok() || !self.0.exists()
        });
    }
}

fn groups_in(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Returns the directory of this program's control group.
fn own_group() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    Some(Path::new(mount.split(' ').nth(4)?).join(group_name()?.trim_start_matches('/')))
}

fn group_name() -> Option<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().find_map(|line| line.strip_prefix("0::").map(str::to_owned))
}

/// Returns the control group of this worker.
#[task]
fn group_of_worker() -> String {
    group_name().expect("version 2")
}

/// Starts a program in a session of its own, whose parent has ended. Returns its process id.
#[task]
fn start_a_daemon() -> u32 {
    const SCRIPT: &str = "setsid sh -c 'sleep 1000 >/dev/null 2>&1 & echo $!'";
    let mut shell = Command::new("sh");
    shell.args(["-c", SCRIPT]).stdin(Stdio::null()).stderr(Stdio::null());
    String::from_utf8(shell.output().expect("a shell").stdout).unwrap().trim().parse().unwrap()
}

/// Starts a daemon, tells its id, and then goes on for ever.
#[task]
fn start_a_daemon_and_stay(gate: &Path) {
    let daemon = start_a_daemon();
    fs::write(gate.join("daemon"), daemon.to_string()).unwrap();
    come_to(gate);
    loop {
        std::thread::park();
    }
}

#[test]
fn x09_a_daemon_ends_with_its_worker_however_that_one_ends() {
    let _watchdog = watchdog();
    let Some(place) = Place::new() else { return };
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        let pool = place.builder().start_method(method).build().unwrap();
        let daemon = pool.submit(start_a_daemon::task()).result().unwrap();
        assert!(runs(daemon), "as long as its worker lives");
        pool.shutdown(true);
        eventually("the daemon is gone after a shutdown", || !runs(daemon));
        assert_eq!(place.groups(), Vec::<PathBuf>::new());

        let pool = place.builder().start_method(method).build().unwrap();
        let gate = Gate::new();
        let running = pool.submit(start_a_daemon_and_stay::task(gate.path()));
        signal(gate.wait_for(1)[0], Signal::KILL);
        assert!(running.result().unwrap_err().is_worker_lost());
        let daemon: u32 = fs::read_to_string(gate.file("daemon")).unwrap().parse().unwrap();
        eventually("the daemon is gone after a kill", || !runs(daemon));

        let gate = Gate::new();
        let running = pool.submit(start_a_daemon_and_stay::task(gate.path()));
        gate.wait_for(1);
        running.cancel_running();
        assert!(running.result().is_err());
        let daemon: u32 = fs::read_to_string(gate.file("daemon")).unwrap().parse().unwrap();
        eventually("the daemon is gone after a cancel", || !runs(daemon));
        pool.shutdown(true);
        assert_eq!(place.groups(), Vec::<PathBuf>::new());
    }
}

#[test]
fn x09_a_daemon_of_an_isolated_task_ends_with_the_task() {
    let _watchdog = watchdog();
    let Some(place) = Place::new() else { return };
    let pool = place.builder().isolation(Isolation::PerTask).ready(1).build().unwrap();
    for _ in 0..3 {
        let daemon = pool.submit(start_a_daemon::task()).result().unwrap();
        eventually("the daemon is gone", || !runs(daemon));
    }
    eventually("only the groups of workers that are ready are left", || place.groups().len() <= 2);
    pool.shutdown(true);
    assert_eq!(place.groups(), Vec::<PathBuf>::new());
}

#[test]
fn x15_each_worker_has_a_control_group_of_its_own() {
    let _watchdog = watchdog();
    let Some(place) = Place::new() else { return };
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        let pool = place.builder().max_workers(2).start_method(method).build().unwrap();
        let gate = Gate::new();
        let both = [(); 2].map(|()| pool.submit(hold::task(gate.path())));
        let pids = gate.wait_for(2);
        let groups = pids.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")));
        let groups: Vec<_> = groups.map(|text| text.unwrap()).collect();
        assert_ne!(groups[0], groups[1]);
        let name = place.0.file_name().unwrap().to_str().unwrap();
        for (text, pid) in groups.iter().zip(&pids) {
            let line = text.lines().find(|line| line.starts_with("0::")).unwrap();
            assert!(line.contains(&format!("/{name}/executor-{}-", std::process::id())), "{line}");
            let leaf = place.0.join(line.split_once(name).unwrap().1.trim_start_matches('/'));
            let inside = fs::read_to_string(leaf.join("cgroup.procs")).unwrap();
            assert_eq!(inside.trim(), pid.to_string(), "nobody else is in it");
        }
        gate.open();
        both.into_iter().for_each(|future| _ = future.result().unwrap());
        pool.shutdown(true);
        assert_eq!(place.groups(), Vec::<PathBuf>::new());
    }
    // An executor that never had a worker leaves nothing either.
    drop(place.builder().build().unwrap());
    assert_eq!(place.groups(), Vec::<PathBuf>::new());
}

#[test]
fn x15_a_worker_that_replaces_another_has_a_new_group_and_the_old_one_is_removed() {
    let _watchdog = watchdog();
    let Some(place) = Place::new() else { return };
    let pool = place.builder().max_tasks_per_worker(1).build().unwrap();
    let mut seen: Vec<String> =
        (0..20).map(|_| pool.submit(group_of_worker::task()).result().unwrap()).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 20);
    // The executor's, and that of a worker that is about to end or has just begun.
    eventually("the old ones are gone", || place.groups().len() <= 2);
    pool.shutdown(true);
}

/// Runs an executor with control groups in a worker that is in one. Returns the group of its
/// worker, and the daemon that it has started.
#[task]
fn nested() -> Result<(String, u32), String> {
    let builder = ProcessPoolExecutor::builder().max_workers(1).cgroup(CgroupLimits::default());
    let pool = builder.build().map_err(|error| error.to_string())?;
    let group = pool.submit(group_of_worker::task()).result().map_err(|error| error.to_string())?;
    let daemon = pool.submit(start_a_daemon::task()).result().map_err(|error| error.to_string())?;
    // It ends with this worker, which does not wait for it.
    std::mem::forget(pool);
    Ok((group, daemon))
}

#[test]
fn x15_executors_in_workers_have_groups_below_those_of_the_workers() {
    let _watchdog = watchdog();
    let Some(place) = Place::new() else { return };
    let pool = place.builder().build().unwrap();
    let own = pool.submit(group_of_worker::task()).result().unwrap();
    let (group, daemon) = pool.submit(nested::task()).result().unwrap();
    assert!(group.starts_with(&format!("{own}/executor-")), "{group} below {own}");
    pool.kill_workers();
    pool.shutdown(true);
    eventually("the daemon of the inner one is gone", || !runs(daemon));
    assert_eq!(place.groups(), Vec::<PathBuf>::new());
}

#[test]
fn x15_the_groups_of_dead_programs_are_removed_and_those_of_others_are_left_alone() {
    let _watchdog = watchdog();
    let Some(place) = Place::new() else { return };
    let make = |name: &str| {
        let group = place.0.join(name);
        let leaf = group.join("worker-1");
        fs::create_dir(&group).and_then(|()| fs::create_dir(&leaf)).unwrap();
        let sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(leaf.join("cgroup.procs"), sleeper.id().to_string()).unwrap();
        (group, sleeper)
    };
    let mark = |group: &Path| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(group, "user.executor", b"1", flags).unwrap();
    };
    let (dead, mut left) = make("executor-1-0");
    let (living, mut kept) = make("executor-2-0");
    // Somebody else may like the name.
    let (other, mut stranger) = make("executor-of-others");
    [&dead, &living].into_iter().for_each(|group| mark(group));
    let lock = fs::File::open(&living).unwrap();
    rustix::fs::flock(lock.as_fd(), rustix::fs::FlockOperation::LockExclusive).unwrap();
    let pool = place.builder().build().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&left.wait().unwrap()),
        Some(libc::SIGKILL)
    );
    // Its processes may have needed a moment, and then the next executor removes it.
    eventually("the group of the dead one is gone", || {
        drop(place.builder().build().unwrap());
        !dead.exists()
    });
    assert!(runs(kept.id()) && runs(stranger.id()) && living.exists() && other.exists());
    pool.shutdown(true);
    for child in [&mut kept, &mut stranger] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

fn refused(builder: ProcessPoolBuilder) -> String {
    match builder.build() {
        Err(BuildError::Invalid(text)) => text,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was built"),
    }
}

#[test]
fn x15_what_control_groups_cannot_do_is_refused_by_name_or_done_without() {
    let _watchdog = watchdog();
    let limits = CgroupLimits::default;
    let builder =
        |limits: CgroupLimits| ProcessPoolExecutor::builder().max_workers(1).cgroup(limits);
    for (limits, name) in [
        (limits().memory_max(0), "memory_max"),
        (limits().pids_max(3), "pids_max"),
        (limits().cpu_weight(0), "cpu_weight"),
    ] {
        // What makes no sense anywhere is an error, also if it is allowed to do without.
        assert!(refused(builder(limits.clone())).contains(name));
        assert!(refused(builder(limits.or_without())).contains(name));
    }
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = limits().under(folder.path());
    assert!(refused(builder(elsewhere.clone())).contains("is not a control group"));
    let pool = builder(elsewhere.or_without()).build().unwrap();
    assert_eq!(pool.submit(echo::task(3)).result().unwrap(), 3);

    // A group with a process has no limits below it, and it says what to do.
    let Some(place) = Place::new() else { return };
    let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(place.0.join("cgroup.procs"), sleeper.id().to_string()).unwrap();
    let text = refused(builder(place.limits().pids_max(10)));
    assert!(text.contains("pids") || text.contains("has processes itself"), "{text}");
    assert!(text.contains("Delegate=yes") && text.contains("CgroupLimits::under"), "{text}");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert_eq!(place.groups(), Vec::<PathBuf>::new());
}

/// Returns a builder with these limits. Returns `None` and says why if they cannot be set here.
#[expect(clippy::print_stdout, reason = "a test that is left out says so")]
fn limited(place: &Place, limits: CgroupLimits) -> Option<ProcessPoolExecutor> {
    let builder = ProcessPoolExecutor::builder().max_workers(1);
    match builder.cgroup(limits.under(&place.0)).build() {
        Ok(pool) => Some(pool),
        Err(error) => {
            println!("left out: {error}");
            None
        }
    }
}

#[task]
fn fill(bytes: usize) -> usize {
    std::hint::black_box(vec![1_u8; bytes]).len()
}

#[test]
fn x15_the_memory_of_a_control_group_is_limited_by_the_system() {
    let _watchdog = watchdog();
    let Some(place) = Place::new() else { return };
    const LIMIT: u64 = 64 << 20;
    let Some(pool) = limited(&place, CgroupLimits::default().memory_max(LIMIT)) else { return };
    match pool.submit(fill::task(400 << 20)).result() {
        Err(TaskError::MemoryLimit { limit, peak, .. }) => {
            assert_eq!(limit, LIMIT);
            assert!(peak <= LIMIT && peak > LIMIT / 2, "{peak}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(pool.submit(fill::task(1 << 20)).result().unwrap(), 1 << 20);
    pool.shutdown(true);
}

/// Starts a program that fills memory, and waits for it.
#[task]
fn fill_in_a_program() -> bool {
    const SCRIPT: &str = "text=$(head -c 300000000 /dev/zero | tr '\\0' x); echo ${#text}";
    let mut shell = Command::new("sh");
    shell.args(["-c", SCRIPT]).stdin(Stdio::null()).stderr(Stdio::null()).output().is_ok()
}

#[test]
fn x15_a_worker_ends_with_a_program_of_its_own_that_has_too_much_memory() {
    let _watchdog = watchdog();
    let Some(place) = Place::new() else { return };
    const LIMIT: u64 = 64 << 20;
    let Some(pool) = limited(&place, CgroupLimits::default().memory_max(LIMIT)) else { return };
    match pool.submit(fill_in_a_program::task()).result() {
        Err(TaskError::MemoryLimit { limit, .. }) => assert_eq!(limit, LIMIT),
        other => panic!("{other:?}"),
    }
    pool.shutdown(true);
    assert_eq!(place.groups(), Vec::<PathBuf>::new());
}

/// Returns the share of the processors that this worker's group has.
#[task]
fn weight_of_worker(place: &Path) -> String {
    let group = group_name().expect("version 2");
    let name = place.file_name().unwrap().to_str().unwrap();
    let below = group.split_once(name).unwrap().1.trim_start_matches('/');
    fs::read_to_string(place.join(below).join("cpu.weight")).unwrap()
}

#[test]
fn x15_the_group_of_a_worker_has_the_weight_that_was_set() {
    let _watchdog = watchdog();
    let Some(place) = Place::new() else { return };
    for weight in [7, 10_000] {
        let limits = CgroupLimits::default().cpu_weight(weight);
        let Some(pool) = limited(&place, limits) else { return };
        let seen = pool.submit(weight_of_worker::task(&place.0)).result().unwrap();
        assert_eq!(seen.trim(), weight.to_string());
        pool.shutdown(true);
    }
}

/// Starts programs until the system refuses one. Returns how many there are.
#[task]
fn start_many() -> usize {
    let sleepers = (0..100).map_while(|_| Command::new("sleep").arg("1000").spawn().ok());
    sleepers.count()
}

#[test]
fn x15_the_processes_of_a_control_group_are_limited_by_the_system() {
    let _watchdog = watchdog();
    let Some(place) = Place::new() else { return };
    let Some(pool) = limited(&place, CgroupLimits::default().pids_max(20)) else { return };
    let started = pool.submit(start_many::task()).result().unwrap();
    assert!((10..20).contains(&started), "{started}");
    pool.shutdown(true);
}

#[test]
fn x15_an_executor_without_a_place_has_its_groups_below_the_programs_own() {
    let _watchdog = watchdog();
    // Without the right to do so, there is nothing to test.
    let Some(_place) = Place::below(own_group()) else { return };
    let builder = ProcessPoolExecutor::builder().max_workers(1).cgroup(CgroupLimits::default());
    let pool = builder.build().unwrap();
    let group = pool.submit(group_of_worker::task()).result().unwrap();
    let own = group_name().unwrap();
    let own = own.trim_end_matches('/');
    assert!(group.starts_with(&format!("{own}/executor-{}-", std::process::id())), "{group}");
    let leaf = own_group().unwrap().join(group[own.len()..].trim_start_matches('/'));
    assert!(leaf.exists());
    pool.shutdown(true);
    assert!(!leaf.parent().unwrap().exists());
}

#[test]
fn x15_a_group_that_was_taken_away_is_an_error_of_the_start() {
    let _watchdog = watchdog();
    let Some(place) = Place::new() else { return };
    let pool = place.builder().build().unwrap();
    place.groups().iter().for_each(|group| fs::remove_dir(group).unwrap());
    let error = pool.submit(echo::task(1)).result().unwrap_err();
    assert!(error.to_string().contains("control group of a worker"), "{error}");
    pool.shutdown(true);
}

#[test]
fn x15_there_may_be_as_many_executors_with_groups_as_one_likes() {
    let _watchdog = watchdog();
    let Some(place) = Place::new() else { return };
    let pools: Vec<_> = (0..70).map(|_| place.builder().build().unwrap()).collect();
    assert_eq!(place.groups().len(), 70);
    drop(pools);
    assert!(place.groups().is_empty());
}
