//! What the other options of an executor mean where its workers are copies of a fork server, and
//! where each task has a worker of its own.

use std::{collections::BTreeSet, fs, io::Read, os::fd::OwnedFd, path::Path, time::Duration};

use executor::{
    BuildError, Isolation, Limits, Pin, ProcessPoolBuilder, StartMethod, prelude::*, slot,
    usable_cpus, worker_index,
};

use crate::support::{Gate, come_to, eventually, hold, memory_to_spare, pid, pool, watchdog};

const MIB: u64 = 1 << 20;

fn copies(workers: usize) -> ProcessPoolBuilder {
    ProcessPoolExecutor::builder().max_workers(workers).start_method(StartMethod::ForkServer)
}

fn isolated(workers: usize) -> ProcessPoolBuilder {
    ProcessPoolExecutor::builder().max_workers(workers).isolation(Isolation::PerTask)
}

/// Index, slot, number of CPUs, nice value, and short name of a worker.
type Place = (usize, Option<String>, usize, i32, String);

#[task]
fn place(gate: &Path) -> Place {
    come_to(gate);
    let name = fs::read_to_string(format!("/proc/{}/comm", std::process::id())).unwrap();
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
    let behind = stat.rsplit_once(')').unwrap().1;
    let nice = behind.split_ascii_whitespace().nth(16).unwrap().parse().unwrap();
    (worker_index().unwrap(), slot(), usable_cpus(), nice, name.trim_end().to_owned())
}

#[test]
fn a_copy_has_the_index_slot_cpus_nice_value_and_name_of_its_place() {
    let _watchdog = watchdog();
    let builder = copies(2).slots(["a", "b"]).pin(Pin::Cores).nice(19).name("tiles");
    let (pool, gate) = (builder.build().unwrap(), Gate::new());
    let held = [(); 2].map(|()| pool.submit(place::task(gate.path())));
    gate.wait_for(2);
    gate.open();
    let mut places = held.map(|future| future.result().unwrap());
    places.sort();
    for (at, (index, slot, cpus, nice, name)) in places.into_iter().enumerate() {
        assert_eq!((index, slot.as_deref()), (at, Some(["a", "b"][at])));
        assert_eq!((cpus, nice), (1, 19));
        assert!(name.ends_with(&format!(":tiles:{at}")), "{name}");
    }
}

#[task]
fn open_files() -> Option<u64> {
    crate::support::limit_of(rustix::process::Resource::Nofile).current
}

#[task]
fn burn() {
    loop {
        std::hint::spin_loop();
    }
}

#[test]
fn the_limits_of_workers_are_in_force_in_copies() {
    let _watchdog = watchdog();
    for builder in [copies(1), isolated(1)] {
        let limits = Limits::default().cpu_time(Duration::from_secs(1)).open_files(200);
        let pool = builder.limits(limits).build().unwrap();
        assert_eq!(pool.submit(open_files::task()).result().unwrap(), Some(200));
        let error = pool.submit(burn::task()).result().unwrap_err();
        assert!(error.is_worker_lost() && error.to_string().contains("processor time"), "{error}");
        assert_eq!(pool.submit(open_files::task()).result().unwrap(), Some(200));
    }
}

/// Loads memory that each copy of the server shares.
#[task]
fn load(bytes: u64) {
    std::mem::forget(std::hint::black_box(vec![1_u8; bytes as usize]));
}

#[task]
fn leak(bytes: u64) -> u32 {
    std::mem::forget(std::hint::black_box(vec![1_u8; bytes as usize]));
    std::process::id()
}

#[test]
fn a_limit_on_the_memory_of_copies_does_not_count_what_they_share() {
    let _watchdog = watchdog();
    let Some(_spare) = memory_to_spare(1) else { return };
    for builder in [copies(1), isolated(1)] {
        let builder = builder.preload(load::task(192 * MIB)).worker_memory_limit(96 * MIB);
        let pool = builder.build().unwrap();
        pool.submit(leak::task(16 * MIB)).result().unwrap();
        match pool.submit(leak::task(128 * MIB)).result() {
            Err(TaskError::MemoryLimit { limit, peak, .. }) => {
                assert_eq!(limit, 96 * MIB);
                assert!(peak > limit && peak < 192 * MIB, "{peak} has what was loaded");
            }
            other => panic!("{other:?}"),
        }
        pool.submit(leak::task(16 * MIB)).result().unwrap();
    }
}

#[test]
fn x14_copies_grow_from_what_they_had_at_first() {
    let _watchdog = watchdog();
    let Some(_spare) = memory_to_spare(1) else { return };
    let builder = copies(1).preload(load::task(192 * MIB)).max_rss_growth(64 * MIB);
    let pool = builder.build().unwrap();
    let [first, second, third] =
        [0, 96 * MIB, 0].map(|bytes| pool.submit(leak::task(bytes)).result().unwrap());
    assert!(first == second && second != third, "{first} {second} {third}");
}

#[track_caller]
fn refused(builder: ProcessPoolBuilder, option: &str) {
    match builder.build() {
        Err(BuildError::Invalid(why)) => assert!(why.contains(option), "{why}"),
        other => panic!("{option}: {other:?}"),
    }
}

#[test]
fn options_that_mean_nothing_with_copies_or_with_isolation_are_refused() {
    let env = || {
        ProcessPoolExecutor::builder().slots(["a"]).env_of_slot(|slot| [("SLOT", slot.to_owned())])
    };
    assert!(env().build().is_ok());
    refused(env().start_method(StartMethod::ForkServer), "env_of_slot");
    refused(isolated(2).max_tasks_per_worker(1), "max_tasks_per_worker");
    refused(isolated(2).min_workers(1), "min_workers");
    refused(isolated(2).idle_timeout(Duration::from_secs(1)), "idle_timeout");
    refused(isolated(2).max_lifetime(Duration::from_secs(1)), "max_lifetime");
    refused(isolated(2).max_rss_growth(MIB), "max_rss_growth");
    refused(isolated(2).slots(["a", "b"]), "slots");
    refused(isolated(2).pin(Pin::Cores), "pin");
}

#[task]
fn index(_item: u32) -> usize {
    worker_index().unwrap()
}

#[test]
fn a_map_in_round_robin_order_is_refused_with_isolation() {
    let _watchdog = watchdog();
    let pool = isolated(2).ready(0).build().unwrap();
    let mut map = pool.map(index::task, 0..4).round_robin();
    let error = map.next().unwrap().unwrap_err();
    assert!(matches!(error, TaskError::Invalid { .. }), "{error}");
    assert!(error.to_string().contains("round_robin"), "{error}");
    assert!(map.next().is_none());
    assert_eq!(pool.map(index::task, 0..4).count(), 4);
}

#[test]
fn with_isolation_no_two_workers_have_one_index_and_resize_changes_how_many_run() {
    let _watchdog = watchdog();
    let pool = isolated(1).ready(1).build().unwrap();
    let gate = Gate::new();
    let held: Vec<_> = (0..4).map(|_| pool.submit(place::task(gate.path()))).collect();
    gate.wait_for(1);
    assert_eq!((pool.stats().running, pool.stats().queued), (1, 3));
    pool.resize(4).unwrap();
    gate.wait_for(4);
    // Those that run end their tasks, and no other begins before.
    pool.resize(1).unwrap();
    let later = Gate::new();
    let waiting = [(); 2].map(|()| pool.submit(hold::task(later.path())));
    assert_eq!((pool.stats().running, pool.stats().queued), (4, 2));
    gate.open();
    let indices: BTreeSet<_> = held.into_iter().map(|one| one.result().unwrap().0).collect();
    assert_eq!(indices.len(), 4, "{indices:?}");
    later.wait_for(1);
    assert_eq!((pool.stats().running, pool.stats().queued), (1, 1));
    later.open();
    for future in waiting {
        future.result().unwrap();
    }
    // One stays ready, and the others leave.
    eventually("one worker is left", || pool.stats().workers == 1);
}

#[task]
fn reuses_isolated() {
    let builder = || isolated(1).ready(1);
    let first = builder().reusable().unwrap();
    let pids = [(); 2].map(|()| first.submit(pid::task()).result().unwrap());
    assert_ne!(pids[0], pids[1]);
    let second = builder().reusable().unwrap();
    assert_eq!(second.stats().done, 2, "it is the same one");
    let other = builder().isolation(Isolation::PerWorker);
    assert!(other.clone().reusable().is_err(), "`ready` needs isolation");
    second.shutdown(true);
}

#[test]
fn an_isolated_executor_can_be_reused() {
    let _watchdog = watchdog();
    pool(1).submit(reuses_isolated::task()).result().unwrap();
}

#[task]
fn speak() {
    println!("a word");
}

#[test]
fn clones_of_a_builder_share_its_streams() {
    let _watchdog = watchdog();
    let (mut read, write) = std::io::pipe().unwrap();
    let builder = copies(1).stdout(OwnedFd::from(write));
    for builder in [builder.clone(), builder] {
        builder.build().unwrap().submit(speak::task()).result().unwrap();
    }
    let mut said = String::new();
    read.read_to_string(&mut said).unwrap();
    assert_eq!(said, "a word\na word\n");
}
