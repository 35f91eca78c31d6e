//! Which worker is which: indices, slots, CPUs, nice values, names, and their environment.

use std::{collections::BTreeSet, fs, sync::Arc};

use executor::{
    BuildError, Isolation, Pin, Pool, Process, ProcessPoolBuilder, StartMethod, physical_cpus,
    prelude::*, slot, usable_cpus, worker_index,
};

use crate::support::{Gate, come_to, pool};

#[task]
fn index() -> Option<usize> {
    worker_index()
}

/// Waits in the gate, so that several of these are with different workers.
#[task]
fn index_in(gate: &std::path::Path) -> usize {
    come_to(gate);
    worker_index().unwrap()
}

#[task]
fn aborts() {
    std::process::abort()
}

#[task]
fn pid() -> u32 {
    std::process::id()
}

#[task]
fn index_of_a_process() -> (Option<usize>, Option<String>) {
    let child = Process::new(index::task()).start().unwrap();
    let slot = Process::new(own_slot::task()).start().unwrap().join().unwrap();
    (child.join().unwrap(), slot)
}

#[task]
fn own_slot() -> Option<String> {
    slot()
}

#[task]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[task]
fn affinity() -> Vec<usize> {
    // The mask of the thread that runs tasks, as the kernel reports it.
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    cpus_of(&status)
}

/// Returns the CPUs of each thread of the worker.
#[task]
fn affinities() -> Vec<Vec<usize>> {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let status = |thread: std::io::Result<fs::DirEntry>| {
        fs::read_to_string(thread.unwrap().path().join("status")).unwrap()
    };
    threads.map(|thread| cpus_of(&status(thread))).collect()
}

fn cpus_of(status: &str) -> Vec<usize> {
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let mut cpus = Vec::new();
    for range in line.trim().split(',') {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(from.parse::<usize>().unwrap()..=to.parse().unwrap());
    }
    cpus
}

#[task]
fn nice() -> i32 {
    // The eighteenth field behind the name, which ends with the last parenthesis.
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
    let behind = stat.rsplit_once(')').unwrap().1;
    behind.split_ascii_whitespace().nth(16).unwrap().parse().unwrap()
}

#[task]
fn names() -> (String, String) {
    let short = fs::read_to_string(format!("/proc/{}/comm", std::process::id())).unwrap();
    let line = fs::read("/proc/self/cmdline").unwrap();
    let first = line.split(|byte| *byte == 0).next().unwrap().to_vec();
    (short.trim_end().to_owned(), String::from_utf8(first).unwrap())
}

/// Returns the error of an executor that cannot be built.
fn refused(builder: ProcessPoolBuilder) -> String {
    let error = builder.build().unwrap_err();
    assert!(matches!(error, BuildError::Invalid(_)), "{error}");
    error.to_string()
}

fn builder() -> ProcessPoolBuilder {
    ProcessPoolExecutor::builder()
}

/// Returns the indices of all workers, each of which runs one task at the same time.
fn indices(pool: &ProcessPoolExecutor, gate: &Gate) -> Vec<usize> {
    let workers = pool.max_workers();
    let futures: Vec<_> = (0..workers).map(|_| pool.submit(index_in::task(gate.path()))).collect();
    gate.wait_for(workers);
    gate.open();
    let mut indices: Vec<_> = futures.into_iter().map(|one| one.result().unwrap()).collect();
    indices.sort_unstable();
    indices
}

#[test]
fn x19_workers_have_the_indices_from_0_on_and_nobody_else_has_one() {
    assert_eq!((worker_index(), slot()), (None, None));
    let pool = pool(3);
    assert_eq!(indices(&pool, &Gate::new()), [0, 1, 2]);
    let of_a_process = pool.submit(index_of_a_process::task()).result().unwrap();
    assert_eq!(of_a_process, (None, None), "a process that a task starts is no worker");
}

#[test]
fn x19_a_worker_that_replaces_another_inherits_its_index_and_its_slot() {
    let pool = builder().slots(["a", "b", "c"]).build().unwrap();
    assert_eq!(indices(&pool, &Gate::new()), [0, 1, 2]);
    let before: BTreeSet<u32> = pool.worker_pids().into_iter().collect();
    for _ in 0..3 {
        assert!(pool.submit(aborts::task()).result().unwrap_err().is_worker_lost());
        assert_eq!(indices(&pool, &Gate::new()), [0, 1, 2]);
    }
    let after: BTreeSet<u32> = pool.worker_pids().into_iter().collect();
    assert_ne!(before, after);
    let gate = Gate::new();
    let futures: Vec<_> = (0..3).map(|_| pool.submit(slot_in::task(gate.path()))).collect();
    gate.wait_for(3);
    gate.open();
    let slots: BTreeSet<_> = futures.into_iter().map(|one| one.result().unwrap()).collect();
    let expected = [(0, "a"), (1, "b"), (2, "c")].map(|(at, slot)| (at, slot.to_owned()));
    assert_eq!(slots, expected.into());
}

#[task]
fn slot_in(gate: &std::path::Path) -> (usize, String) {
    come_to(gate);
    (worker_index().unwrap(), slot().unwrap())
}

#[test]
fn an_initializer_knows_the_index() {
    let pool = builder().max_workers(1).initializer(keeps_index::task()).build().unwrap();
    assert_eq!(pool.submit(kept::task()).result().unwrap(), Some(0));
}

#[task]
fn keeps_index() {
    executor::worker_state::set(worker_index());
}

#[task]
fn kept() -> Option<usize> {
    executor::with_worker_state::<Option<usize>, _>(|index| *index)
}

#[test]
fn a_worker_recycled_after_each_task_keeps_its_index() {
    let pool = builder().max_workers(1).max_tasks_per_worker(1).build().unwrap();
    let seen: Vec<_> = (0..4)
        .map(|_| {
            let index = pool.submit(index::task()).result().unwrap();
            (index, pool.submit(pid::task()).result().unwrap())
        })
        .collect();
    assert!(seen.iter().all(|(index, _)| *index == Some(0)));
    assert_eq!(seen.iter().map(|(_, pid)| pid).collect::<BTreeSet<_>>().len(), 4);
}

#[test]
fn x36_each_slot_has_its_environment_which_takes_precedence() {
    let pool = builder()
        .slots(["cuda:7"])
        .env("EXECUTOR_TEST_DEVICE", "of all")
        .env("EXECUTOR_TEST_OTHER", "of all")
        .env_of_slot(|slot| [("EXECUTOR_TEST_DEVICE", slot.replace("cuda:", ""))])
        .build()
        .unwrap();
    assert_eq!(pool.max_workers(), 1);
    let value = |name| pool.submit(variable::task(name)).result().unwrap();
    assert_eq!(value("EXECUTOR_TEST_DEVICE").as_deref(), Some("7"));
    assert_eq!(value("EXECUTOR_TEST_OTHER").as_deref(), Some("of all"));
    assert_eq!(pool.submit(own_slot::task()).result().unwrap().as_deref(), Some("cuda:7"));
    assert_eq!(std::env::var("EXECUTOR_TEST_DEVICE").ok(), None);
}

#[test]
fn x36_slots_that_make_no_sense_are_refused() {
    assert!(refused(builder().slots([""; 0])).contains("slots is empty"));
    let error = refused(builder().slots(["a", "b"]).max_workers(3));
    assert!(error.contains("max_workers is 3") && error.contains("2 slots"), "{error}");
    assert!(refused(builder().env_of_slot(|_| [("A", "b")])).contains("without slots"));
    let error = refused(builder().slots(["a"]).env_of_slot(|_| [("A=", "b")]));
    assert!(error.contains("env_of_slot for `a`"), "{error}");
    // Fewer workers than slots are fine.
    let pool = builder().slots(["a", "b"]).max_workers(1).build().unwrap();
    assert_eq!(pool.submit(own_slot::task()).result().unwrap().as_deref(), Some("a"));
}

/// Returns the CPUs on which this process may run.
fn own_cpus() -> Vec<usize> {
    cpus_of(&fs::read_to_string("/proc/thread-self/status").unwrap())
}

#[test]
fn to24_tasks_run_on_the_given_cpus() {
    let cpus = own_cpus();
    let (first, last) = (cpus[0], *cpus.last().unwrap());
    let sets = vec![vec![last], vec![first], cpus.clone()];
    let pool = builder().max_workers(3).pin(Pin::Cpus(sets.clone())).build().unwrap();
    let gate = Gate::new();
    let futures: Vec<_> = (0..3).map(|_| pool.submit(cpus_in::task(gate.path()))).collect();
    gate.wait_for(3);
    gate.open();
    for future in futures {
        let (index, mask) = future.result().unwrap();
        assert_eq!(mask, sets[index], "worker {index}");
    }
    let one = builder().max_workers(1).pin(Pin::Cpus(vec![vec![last]])).build().unwrap();
    let threads = one.submit(affinities::task()).result().unwrap();
    assert!(!threads.is_empty() && threads.iter().all(|cpus| *cpus == [last]), "{threads:?}");
}

#[task]
fn cpus_in(gate: &std::path::Path) -> (usize, Vec<usize>) {
    come_to(gate);
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    (worker_index().unwrap(), cpus_of(&status))
}

#[test]
fn to24_each_worker_has_a_cpu_of_its_own_with_pin_cores() {
    let cpus = own_cpus();
    let pool = builder().max_workers(cpus.len().min(4)).pin(Pin::Cores).build().unwrap();
    let workers = pool.max_workers();
    let gate = Gate::new();
    let futures: Vec<_> = (0..workers).map(|_| pool.submit(cpus_in::task(gate.path()))).collect();
    gate.wait_for(workers);
    gate.open();
    let used: Vec<_> = futures.into_iter().map(|future| future.result().unwrap().1).collect();
    assert!(used.iter().all(|mask| mask.len() == 1 && cpus.contains(&mask[0])), "{used:?}");
    assert_eq!(used.iter().collect::<BTreeSet<_>>().len(), workers, "{used:?}");
}

#[test]
fn to24_cpus_that_do_not_exist_are_refused() {
    for sets in [vec![vec![4_000]], vec![vec![usize::MAX]], vec![own_cpus(), vec![999_999]]] {
        let error = refused(builder().pin(Pin::Cpus(sets)));
        assert!(error.contains("there is no CPU"), "{error}");
    }
    for sets in [vec![], vec![vec![]], vec![own_cpus(), vec![]]] {
        assert!(refused(builder().pin(Pin::Cpus(sets))).contains("pin"));
    }
}

#[test]
fn workers_without_pin_run_where_the_program_runs() {
    let pool = pool(1);
    assert_eq!(pool.submit(affinity::task()).result().unwrap(), own_cpus());
}

#[test]
fn x47_physical_cpus_are_at_most_the_usable_ones() {
    assert!((1..=usable_cpus()).contains(&physical_cpus()));
}

#[test]
fn x30_workers_have_the_given_nice_value() {
    let pool = builder().max_workers(1).nice(7).build().unwrap();
    assert_eq!(pool.submit(nice::task()).result().unwrap(), 7);
    for wrong in [-21, 20, i32::MAX] {
        assert!(refused(builder().nice(wrong)).contains("between -20 and 19"));
    }
}

#[test]
fn workers_have_a_name_that_says_whose_they_are() {
    let program = std::env::args().next().unwrap();
    let unnamed = pool(1);
    let (short, line) = unnamed.submit(names::task()).result().unwrap();
    let file = program.rsplit('/').next().unwrap();
    let begins = |short: &str| file.starts_with(short.split(':').next().unwrap());
    assert!(begins(&short) && short.ends_with(":0") && short.len() <= 15, "{short}");
    assert_eq!(line, format!("{program}: worker 0"));

    let named = builder().max_workers(1).name("tiles").build().unwrap();
    let (short, line) = named.submit(names::task()).result().unwrap();
    assert!(begins(&short) && short.ends_with(":tiles:0") && short.len() <= 15, "{short}");
    assert_eq!(line, format!("{program}: worker 0 of tiles"));

    // A copy has as much room as the line of its server.
    for copies in
        [builder().start_method(StartMethod::ForkServer), builder().isolation(Isolation::PerTask)]
    {
        for (pool, of) in [(copies.clone(), ""), (copies.name("tiles"), " of tiles")] {
            let pool = pool.max_workers(1).build().unwrap();
            let (_, line) = pool.submit(names::task()).result().unwrap();
            assert_eq!(line.trim_end(), format!("{program}: worker 0{of}"));
        }
    }

    for (name, why) in [("", "is empty"), ("a\nb", "control"), (&"x".repeat(41), "longer")] {
        let error = refused(builder().name(name));
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn a_pool_in_a_worker_names_its_workers_after_the_program() {
    let pool = pool(1);
    let program = std::env::args().next().unwrap();
    let (_, line) = pool.submit(names_of_inner::task()).result().unwrap();
    assert_eq!(line, format!("{program}: worker 0 of inner"));
}

#[task]
fn names_of_inner() -> (String, String) {
    let pool = ProcessPoolExecutor::builder().max_workers(1).name("inner").build().unwrap();
    pool.submit(names::task()).result().unwrap()
}

#[test]
fn x46_inner_threads_are_limited_by_the_environment_and_env_takes_precedence() {
    let pool =
        builder().max_workers(1).env("OMP_NUM_THREADS", "5").inner_threads(2).build().unwrap();
    let value = |name| pool.submit(variable::task(name)).result().unwrap();
    for name in ["RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"] {
        assert_eq!(value(name).as_deref(), Some("2"), "{name}");
    }
    assert_eq!(value("OMP_NUM_THREADS").as_deref(), Some("5"));
    assert!(refused(builder().inner_threads(0)).contains("inner_threads"));
}

#[test]
fn x19_indices_stay_unique_while_workers_die_under_many_submitters() {
    let pool = Arc::new(builder().slots(["a", "b", "c"]).build().unwrap());
    std::thread::scope(|scope| {
        for at in 0..4 {
            let pool = Arc::clone(&pool);
            scope.spawn(move || {
                for round in 0..6 {
                    if (at + round) % 4 == 0 {
                        assert!(pool.submit(aborts::task()).result().is_err());
                    }
                    let index = pool.submit(index::task()).result().unwrap().unwrap();
                    assert!(index < 3, "{index}");
                }
            });
        }
    });
    assert_eq!(indices(&pool, &Gate::new()), [0, 1, 2]);
}

#[task]
fn index_for(_item: u32) -> usize {
    worker_index().unwrap()
}

/// Returns the worker of each item of a map in round-robin order.
fn in_turn(pool: &ProcessPoolExecutor, items: u32, chunk: usize) -> Vec<usize> {
    let map = pool.map(index_for::task, 0..items).round_robin().chunk_size(chunk);
    map.map(Result::unwrap).collect()
}

#[test]
fn to23_chunk_i_goes_to_worker_i_mod_n_in_each_map() {
    let pool = pool(3);
    for chunk in [1, 2, 5] {
        let expected: Vec<_> = (0..48).map(|item| item / chunk % 3).collect();
        for _ in 0..2 {
            assert_eq!(in_turn(&pool, 48, chunk), expected, "chunks of {chunk}");
        }
    }
}

#[test]
fn x29_an_idle_worker_does_not_take_over_what_is_for_another() {
    let (pool, gate) = (pool(2), Gate::new());
    // The first item keeps worker 0. All others come to be in line behind it, or run at worker 1.
    let make = |item: u32| index_or_hold::task(item, gate.path());
    let map = pool.map(make, 0..20).round_robin().chunk_size(1).unordered();
    let mut results = map.with_index();
    for _ in 0..10 {
        let (item, index) = results.next().unwrap();
        assert_eq!((item % 2, index.unwrap()), (1, 1), "only those of worker 1 come");
    }
    gate.open();
    let rest: Vec<_> = results.map(|(item, index)| (item % 2, index.unwrap())).collect();
    assert_eq!(rest, [(0, 0); 10]);
}

#[task]
fn index_or_hold(item: u32, gate: &std::path::Path) -> usize {
    if item == 0 {
        come_to(gate);
    }
    worker_index().unwrap()
}

#[test]
fn x29_the_order_survives_deaths_recycling_and_other_tasks() {
    let pool = builder().max_workers(3).max_tasks_per_worker(4).build().unwrap();
    std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            (0..60).map(|_| pool.submit(index::task()).result().unwrap()).collect::<Vec<_>>()
        });
        for _ in 0..2 {
            let make = |item: u32| index_or_abort::task(item);
            let map = pool.map(make, 0..30).round_robin().chunk_size(1);
            for (item, result) in map.enumerate() {
                match result {
                    Ok(index) => assert_eq!(index, item % 3),
                    Err(error) => assert!(error.is_worker_lost() && item % 10 == 4, "{error}"),
                }
            }
        }
        assert!(others.join().unwrap().into_iter().all(|index| index.is_some()));
    });
}

#[task]
fn index_or_abort(item: u32) -> usize {
    if item % 10 == 4 {
        std::process::abort();
    }
    worker_index().unwrap()
}

#[test]
fn to23_a_map_in_round_robin_order_can_be_cancelled_and_shut_down() {
    let (pool, gate) = (pool(2), Gate::new());
    let make = |item: u32| index_or_hold::task(item, gate.path());
    let mut map = pool.map(make, 0..100).round_robin().chunk_size(1).buffer_size(100).unordered();
    assert_eq!(map.next().unwrap().unwrap(), 1);
    drop(map);
    gate.open();
    assert_eq!(in_turn(&pool, 4, 1), [0, 1, 0, 1]);
    let mut map = pool.map(index_for::task, 0..100).round_robin().chunk_size(1).buffer_size(100);
    assert_eq!(map.next().unwrap().unwrap(), 0);
    pool.shutdown(true);
    assert_eq!(map.count(), 99, "the accepted items are finished");
}

#[test]
fn to23_a_pool_in_round_robin_order_gives_each_task_to_the_next_worker() {
    let pool = builder().max_workers(3).round_robin().build().unwrap();
    for round in 0..4 {
        let futures = [(); 5].map(|()| pool.submit(index::task()));
        let indices = futures.map(|future| future.result().unwrap().unwrap());
        assert_eq!(indices, [0, 1, 2, 3, 4].map(|at| (5 * round + at) % 3));
    }
    // The chunks of a map go on where the tasks have ended, those of its own order do not.
    assert_eq!(in_turn(&pool, 6, 2), [0, 0, 1, 1, 2, 2]);
    let map = pool.map(index_for::task, 0..6_u32).chunk_size(2);
    assert_eq!(map.map(Result::unwrap).collect::<Vec<_>>(), [2, 2, 0, 0, 1, 1]);
    assert_eq!(pool.submit(index::task().on_worker(1)).result().unwrap(), Some(1));
    assert_eq!(pool.submit(index::task()).result().unwrap(), Some(2));
}

#[test]
fn to23_a_task_in_round_robin_order_waits_for_its_worker_and_survives_its_death() {
    let pool = Pool::builder().processes(2).round_robin().build().unwrap();
    let gate = Gate::new();
    let held = pool.apply_async(index_in::task(gate.path()));
    gate.wait_for(1);
    let [one, zero] = [(); 2].map(|()| pool.apply_async(index::task()));
    assert_eq!(one.get().unwrap(), Some(1));
    // Its worker is busy, and the other one does not take it over.
    assert_eq!(pool.apply(index::task()).unwrap(), Some(1));
    assert!(!zero.ready());
    gate.open();
    assert_eq!(held.get().unwrap(), 0);
    assert_eq!(zero.get().unwrap(), Some(0));
    assert!(pool.apply(aborts::task()).is_err());
    assert_eq!(pool.apply(index::task()).unwrap(), Some(1));
    assert_eq!(pool.apply(index::task()).unwrap(), Some(0), "the next one with this index");
    pool.terminate();
}

#[test]
fn x36_a_task_on_a_worker_waits_for_the_one_with_this_index() {
    let (pool, gate) = (pool(3), Gate::new());
    for at in [2, 0, 1, 2, 2, 0] {
        assert_eq!(pool.submit(index::task().on_worker(at)).result().unwrap(), Some(at));
    }
    let held = pool.submit(index_in::task(gate.path()).on_worker(1));
    gate.wait_for(1);
    let waits = pool.submit(index::task().on_worker(1).priority(5));
    for _ in 0..20 {
        assert_ne!(pool.submit(index::task()).result().unwrap(), Some(1));
    }
    assert!(!waits.done());
    gate.open();
    assert_eq!((held.result().unwrap(), waits.result().unwrap()), (1, Some(1)));
    // It is tried again on the one that replaces the worker.
    let error = pool.submit(aborts::task().on_worker(1).retries(1)).result().unwrap_err();
    assert_eq!(error.attempts(), 2);
    let map = pool.map(|at: u32| index_for::task(at).on_worker(at as usize % 2), 0..10);
    let indices: Vec<_> = map.map(Result::unwrap).collect();
    assert_eq!(indices, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]);
}

#[test]
fn x36_a_worker_that_cannot_be_is_refused() {
    let pool = pool(2);
    let invalid = |result: Result<_, TaskError>| match result {
        Err(TaskError::Invalid(why)) => why.to_string(),
        other => panic!("{other:?}"),
    };
    let on = |at: usize| pool.submit(index::task().name("mine").on_worker(at)).result();
    assert!(invalid(on(2)).contains("`mine` is on worker 2"));
    invalid(on(usize::MAX));
    pool.resize(3).unwrap();
    assert_eq!(on(2).unwrap(), Some(2));
    invalid(pool.broadcast(index::task().on_worker(0)).pop().unwrap().result());
    let process = Process::new(index::task().on_worker(0)).start();
    assert!(process.unwrap_err().to_string().contains("`on_worker`"));
    let isolated = || builder().isolation(Isolation::PerTask).max_workers(2);
    let pool = isolated().build().unwrap();
    invalid(pool.submit(index::task().on_worker(0)).result());
    assert!(matches!(isolated().round_robin().build(), Err(BuildError::Invalid(_))));
}
