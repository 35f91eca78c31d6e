//! What workers do last: the finalizer, and what it returns.

use std::{collections::BTreeSet, path::Path, time::Duration};

use executor::{BuildError, ShutdownOptions, TaskError, prelude::*};

use super::support::{Gate, come_to, echo, eventually, hold, note, notes, pid, runs, watchdog};

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Seen(Vec<u64>);

#[task]
fn prepare(file: std::path::PathBuf) {
    note(file, std::process::id());
    executor::worker_state::set(Seen::default());
}

#[task]
fn see(x: u64) -> u64 {
    executor::with_worker_state(|seen: &mut Seen| seen.0.push(x));
    x
}

/// Returns the worker's id, what it has seen, and so many bytes.
#[task]
fn report(bytes: usize) -> (u32, Vec<u64>, Vec<u8>) {
    let seen = executor::with_worker_state(|seen: &mut Seen| std::mem::take(&mut seen.0));
    (std::process::id(), seen, vec![7; bytes])
}

#[test]
fn in05_initializer_and_finalizer_run_once_in_each_worker_and_the_values_are_collected() {
    let _watchdog = watchdog();
    for bytes in [0, 1 << 20] {
        let gate = Gate::new();
        let file = gate.file("initialized");
        let pool = ProcessPoolExecutor::builder()
            .max_workers(2)
            .max_tasks_per_worker(5)
            .initializer(prepare::task(file.clone()))
            .finalizer(report::task(bytes))
            .build()
            .unwrap();
        let seen: Result<Vec<u64>, _> = pool.map(see::task, 0..23).collect();
        assert_eq!(seen.unwrap(), (0..23).collect::<Vec<_>>());
        pool.shutdown(true);
        let reports = pool.finalizer_results::<report>();
        let reports: Vec<_> = reports.into_iter().map(Result::unwrap).collect();
        let finalized: Vec<_> = reports.iter().map(|(worker, ..)| *worker).collect();
        let once: BTreeSet<_> = finalized.iter().copied().collect();
        assert_eq!(once.len(), finalized.len(), "once in each worker");
        assert_eq!(once, notes(&file).into_iter().collect(), "in each that was initialized");
        assert!(once.len() >= 5, "23 tasks, five for each");
        let mut all: Vec<_> = reports.iter().flat_map(|(_, seen, _)| seen.clone()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..23).collect::<Vec<_>>(), "after the last task of each worker");
        assert!(reports.iter().all(|(.., big)| big.len() == bytes && big.iter().all(|b| *b == 7)));
        assert!(pool.finalizer_results::<report>().is_empty(), "each is returned once");
    }
}

#[task]
fn ends_badly(how: u32) -> Result<u32, String> {
    match how {
        0 => Err("no".into()),
        1 => panic!("on purpose"),
        2 => std::process::exit(3),
        3 => std::process::abort(),
        _ => loop {
            std::thread::park();
        },
    }
}

#[test]
fn x17_a_finalizer_that_fails_dies_or_hangs_harms_nothing() {
    let _watchdog = watchdog();
    for how in 0..5 {
        let pool = ProcessPoolExecutor::builder()
            .max_workers(1)
            .max_tasks_per_worker(2)
            .finalizer(ends_badly::task(how).name("clean up"))
            .finalizer_timeout(if how == 4 { SHORT } else { LONG })
            .build()
            .unwrap();
        for x in 0..5 {
            assert_eq!(pool.submit(echo::task(x)).result().unwrap(), x);
        }
        pool.shutdown(true);
        assert!(pool.broken().is_none());
        let results = pool.finalizer_results::<ends_badly>();
        assert_eq!(results.len(), 3, "three workers have left");
        for result in results {
            let error = result.unwrap_err();
            let fits = match how {
                0 => matches!(error, TaskError::Failed(_)),
                1 => error.is_panic(),
                2 | 3 => error.is_worker_lost() || error.is_panic(),
                _ => error.is_timeout(),
            };
            assert!(fits && error.to_string().contains("clean up"), "{how}: {error}");
        }
    }
}

#[test]
fn x17_a_worker_that_is_killed_runs_no_finalizer() {
    let _watchdog = watchdog();
    #[task]
    fn mark(file: std::path::PathBuf) -> u32 {
        note(file, 1)
    }
    let gate = Gate::new();
    let file = gate.file("finalized");
    let builder = || ProcessPoolExecutor::builder().max_workers(1);
    let pool = builder().finalizer(mark::task(file.clone())).build().unwrap();
    let limited = pool.submit(hold::task(gate.path()).timeout(SHORT));
    assert!(limited.result().unwrap_err().is_timeout());
    pool.submit(echo::task(1)).result().unwrap();
    pool.kill_workers();
    pool.shutdown(true);
    assert!(pool.finalizer_results::<mark>().is_empty());
    assert!(!file.exists());
    // Nor one whose initializer has failed.
    let pool = builder()
        .initializer(ends_badly::task(0))
        .finalizer(mark::task(file.clone()))
        .build()
        .unwrap();
    assert!(pool.submit(echo::task(1)).result().unwrap_err().is_broken());
    pool.shutdown(true);
    assert!(!file.exists());
}

#[test]
fn x17_a_worker_that_is_still_initialized_at_a_shutdown_leaves_in_order() {
    let _watchdog = watchdog();
    #[task]
    fn initialize(gate: &Path, first: &Path) {
        // The first one is ready at once, and the second one comes to the gate.
        if std::fs::OpenOptions::new().write(true).create_new(true).open(first).is_err() {
            come_to(gate);
        }
    }
    let (gate, begin) = (Gate::new(), Gate::new());
    let pool = ProcessPoolExecutor::builder()
        .max_workers(2)
        .initializer(initialize::task(gate.path(), &gate.file("first")))
        .finalizer(pid::task())
        .build()
        .unwrap();
    let one = pool.submit(hold::task(begin.path()));
    begin.wait_for(1);
    let two = pool.submit(echo::task(1));
    let late = gate.wait_for(1)[0];
    assert!(two.cancel());
    begin.open();
    one.result().unwrap();
    pool.shutdown(false);
    gate.open();
    pool.shutdown(true);
    let mut workers = pool.finalizer_results::<pid>().into_iter().map(Result::unwrap);
    assert!(workers.any(|worker| worker == late));
}

#[test]
fn x17_a_shutdown_with_a_limit_ends_a_finalizer_that_hangs() {
    let _watchdog = watchdog();
    let pool = ProcessPoolExecutor::builder()
        .max_workers(1)
        .finalizer(ends_badly::task(4))
        .finalizer_timeout(Duration::MAX)
        .build()
        .unwrap();
    let worker = pool.submit(pid::task()).result().unwrap();
    pool.shutdown(false);
    assert!(!pool.join_timeout(SHORT));
    pool.shutdown_with(ShutdownOptions::new().timeout(SHORT));
    eventually("the worker is gone", || !runs(worker));
    assert!(pool.join_timeout(LONG));
    let results = pool.finalizer_results::<ends_badly>();
    assert!(matches!(results[..], [Err(TaskError::Shutdown)]), "{results:?}");
}

#[test]
fn x17_options_of_a_finalizer_that_make_no_sense_are_refused() {
    let _watchdog = watchdog();
    let builder = || ProcessPoolExecutor::builder().max_workers(1);
    let refused = [
        builder().finalizer(echo::task(1).retries(2)),
        builder().finalizer(echo::task(1).queue_timeout(SHORT)),
        builder().finalizer(echo::task(1)).finalizer_timeout(Duration::ZERO),
        builder().finalizer(echo::task(1).timeout(Duration::ZERO)),
        builder().finalizer_timeout(SHORT),
    ];
    for builder in refused {
        let error = builder.build().unwrap_err();
        let says = matches!(&error, BuildError::Invalid(text) if text.contains("finalizer"));
        assert!(says, "{error}");
    }
    let pool = builder().finalizer(echo::task(1)).build().unwrap();
    let other = pool.finalizer_results::<pid>();
    assert!(matches!(other[..], [Err(TaskError::Invalid(_))]), "{other:?}");
    // The task's own time limit is the one of the finalizer.
    let pool = builder().finalizer(ends_badly::task(4).timeout(SHORT)).build().unwrap();
    pool.submit(echo::task(1)).result().unwrap();
    pool.shutdown(true);
    assert!(pool.finalizer_results::<ends_badly>()[0].as_ref().unwrap_err().is_timeout());
}

/// Leaves the worker with so many more bytes of memory.
#[task]
fn leak(bytes: usize) -> u32 {
    std::mem::forget(std::hint::black_box(vec![1_u8; bytes]));
    std::process::id()
}

#[test]
fn in05_workers_that_are_idle_old_grown_or_too_many_run_their_finalizer() {
    let _watchdog = watchdog();
    let builder = || ProcessPoolExecutor::builder().max_workers(2).finalizer(pid::task());
    let finalized = |pool: &ProcessPoolExecutor, count: usize| {
        let mut all = BTreeSet::new();
        eventually("they have left", || {
            all.extend(pool.finalizer_results::<pid>().into_iter().map(Result::unwrap));
            all.len() >= count
        });
        all
    };
    let idle = builder().idle_timeout(SHORT).build().unwrap();
    let worker = idle.submit(pid::task()).result().unwrap();
    assert_eq!(finalized(&idle, 1), [worker].into());

    let old = builder().max_lifetime(Duration::from_nanos(1)).build().unwrap();
    let worker = old.submit(pid::task()).result().unwrap();
    assert_eq!(finalized(&old, 1), [worker].into());

    let grown = builder().max_rss_growth(8 << 20).build().unwrap();
    let worker = grown.submit(leak::task(32 << 20)).result().unwrap();
    assert_eq!(finalized(&grown, 1), [worker].into());

    let (many, gate) = (builder().build().unwrap(), Gate::new());
    let held: Vec<_> = (0..2).map(|_| many.submit(hold::task(gate.path()))).collect();
    let workers: BTreeSet<_> = gate.wait_for(2).into_iter().collect();
    gate.open();
    held.into_iter().for_each(|held| assert!(workers.contains(&held.result().unwrap())));
    many.resize(1).unwrap();
    let first = finalized(&many, 1);
    assert!(first.len() == 1 && first.is_subset(&workers));
    many.shutdown(true);
    assert_eq!(&finalized(&many, 1) | &first, workers, "each has run it once");

    for pool in [idle, old, grown, many] {
        assert_eq!(pool.stats().workers_lost, 0);
        assert_eq!(pool.stats().failed.total(), 0);
    }
}
