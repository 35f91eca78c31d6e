//! The hook for errors, which workers call when a task has failed.

use std::{path::Path, time::Duration};

use executor::{
    BuildError, Isolation, Pool, ProcessPoolBuilder, SimpleQueue, TaskFailure, TaskFailureKind,
    prelude::*, with_worker_state, worker_state,
};

use crate::support::{Gate, come_to, eventually, exit, fail, hold, pid, watchdog};

/// Where the hook puts what it is told.
struct Reports(SimpleQueue<(u32, TaskFailure)>);

#[task]
fn prepare(reports: SimpleQueue<(u32, TaskFailure)>) {
    worker_state::set(Reports(reports));
}

#[task]
fn report(failure: TaskFailure) {
    with_worker_state(|reports: &mut Reports| {
        reports.0.put((std::process::id(), failure)).unwrap();
    });
}

#[task]
fn panics(message: &str) {
    panic!("{message}")
}

#[task(codec = "messagepack")]
fn report_in_another_format(failure: TaskFailure) -> Result<(), String> {
    with_worker_state(|reports: &mut Reports| {
        reports.0.put((std::process::id(), failure)).map_err(|error| error.to_string())
    })
}

/// A value that does not encode.
#[derive(serde::Deserialize)]
struct Stubborn;

impl serde::Serialize for Stubborn {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("not today"))
    }
}

#[task]
fn stubborn() -> Stubborn {
    Stubborn
}

#[task]
fn fails_for_some(item: u32) -> Result<u32, String> {
    if item.is_multiple_of(3) { Err(format!("item {item}")) } else { Ok(item) }
}

type Queue = SimpleQueue<(u32, TaskFailure)>;

fn builder(workers: usize) -> (ProcessPoolBuilder, Queue) {
    let reports = SimpleQueue::new().unwrap();
    let builder = ProcessPoolExecutor::builder().max_workers(workers);
    (builder.initializer(prepare::task(reports.clone())), reports)
}

#[task]
fn report_whether_cancelled(mut failure: TaskFailure) {
    failure.error = executor::is_cancelled().to_string();
    with_worker_state(|reports: &mut Reports| {
        reports.0.put((std::process::id(), failure)).unwrap();
    });
}

#[task]
fn fails_when_asked(gate: &Path) -> Result<(), String> {
    come_to(gate);
    let token = executor::cancellation();
    while !token.wait_timeout(Duration::from_secs(60)) {}
    Err("asked".into())
}

#[test]
fn x42_the_hook_of_a_task_that_was_asked_to_stop_is_not_asked_itself() {
    let _watchdog = watchdog();
    let (builder, reports) = builder(1);
    let builder = builder.cancel_grace(Duration::from_secs(60));
    let pool = builder.on_task_error::<report_whether_cancelled>().build().unwrap();
    let gate = Gate::new();
    let future = pool.submit(fails_when_asked::task(gate.path()));
    gate.wait_for(1);
    gate.open();
    assert!(future.cancel_running());
    assert_eq!(&*reports.get().unwrap().1.error, "false");
    assert!(future.result().unwrap_err().is_cancelled());
}

#[test]
fn x42_the_hook_is_told_of_each_kind_of_failure_in_the_worker_and_the_results_stay() {
    let _watchdog = watchdog();
    let (builder, reports) = builder(1);
    let pool = builder.on_task_error::<report>().build().unwrap();
    let worker = pool.submit(pid::task()).result().unwrap();

    let future = pool.submit(fail::task("no luck".into()).name("mine"));
    let id = future.id().as_u64();
    let error = future.result().unwrap_err();
    assert!(matches!(error, TaskError::Failed(_)), "{error:?}");
    let (by, failure) = reports.get().unwrap();
    assert_eq!((by, failure.kind, failure.attempt), (worker, TaskFailureKind::Failed, 1));
    assert_eq!(failure.id, id);
    assert!(failure.task.ends_with("fail") && failure.error.contains("no luck"), "{failure:?}");

    assert!(pool.submit(panics::task("ouch")).result().unwrap_err().is_panic());
    let (by, failure) = reports.get().unwrap();
    assert_eq!((by, failure.kind), (worker, TaskFailureKind::Panicked));
    assert!(failure.error.contains("ouch"), "{failure:?}");
    assert!(failure.location.unwrap().contains("task_error.rs"));

    assert!(matches!(pool.submit(stubborn::task()).result(), Err(TaskError::Encode(_))));
    let (by, failure) = reports.get().unwrap();
    assert_eq!((by, failure.kind), (worker, TaskFailureKind::Result));
    assert!(failure.error.contains("not today"), "{failure:?}");

    assert_eq!(pool.submit(pid::task()).result().unwrap(), worker, "it goes on");
    assert_eq!(pool.stats().workers_lost, 0);
}

#[test]
fn x42_each_attempt_is_reported_and_each_item_of_a_map() {
    let _watchdog = watchdog();
    let (builder, reports) = builder(2);
    let pool = builder.on_task_error::<report_in_another_format>().build().unwrap();
    let task = fail::task("again".into()).retries(2).retry_delay(Duration::ZERO);
    assert_eq!(pool.submit(task).result().unwrap_err().attempts(), 3);
    let mut attempts = [(); 3].map(|()| reports.get().unwrap().1.attempt);
    attempts.sort_unstable();
    assert_eq!(attempts, [1, 2, 3]);

    // They are short, and sent in chunks.
    let results: Vec<_> = pool.map(fails_for_some::task, 0..600).collect();
    for (item, result) in (0..).zip(results) {
        assert_eq!(result.ok(), (item % 3 != 0).then_some(item));
    }
    let mut told: Vec<u32> = (0..200)
        .map(|_| {
            let (_, failure) = reports.get().unwrap();
            let (_, number) = failure.error.rsplit_once("item ").unwrap();
            number.parse().unwrap()
        })
        .collect();
    told.sort_unstable();
    assert!(told.into_iter().eq((0..600).step_by(3)), "each once");
}

#[task]
fn aborts(_: TaskFailure) {
    std::process::abort()
}

#[task]
fn fails(_: TaskFailure) -> Result<(), String> {
    Err("no connection".into())
}

#[task]
fn panics_itself(_: TaskFailure) {
    panic!("in the hook")
}

#[task]
fn forever(_: TaskFailure) {
    loop {
        std::thread::park()
    }
}

fn failed(error: &TaskError) -> bool {
    matches!(error, TaskError::Failed(_)) && error.to_string().contains("its own")
}

#[test]
fn x42_a_failure_of_the_hook_itself_changes_no_result() {
    let _watchdog = watchdog();
    let builder = || ProcessPoolExecutor::builder().max_workers(1);
    for builder in [builder().on_task_error::<fails>(), builder().on_task_error::<panics_itself>()]
    {
        let pool = builder.build().unwrap();
        let worker = pool.submit(pid::task()).result().unwrap();
        assert!(failed(&pool.submit(fail::task("its own".into())).result().unwrap_err()));
        assert_eq!(pool.submit(pid::task()).result().unwrap(), worker);
    }
}

#[test]
fn x42_a_hook_that_ends_its_worker_or_never_returns_harms_no_task() {
    let _watchdog = watchdog();
    let builder = || ProcessPoolExecutor::builder().max_workers(1);
    let timeout = Duration::from_millis(50);
    for builder in [
        builder().on_task_error::<aborts>(),
        builder().on_task_error::<forever>().on_task_error_timeout(timeout),
        builder()
            .on_task_error::<forever>()
            .on_task_error_timeout(timeout)
            .isolation(Isolation::PerTask),
    ] {
        let pool = builder.build().unwrap();
        // More than three, so that a task behind them would be blamed for the deaths.
        let futures: Vec<_> = (0..5)
            .map(|_| (pool.submit(fail::task("its own".into())), pool.submit(pid::task())))
            .collect();
        for (fails, works) in futures {
            assert!(failed(&fails.result().unwrap_err()));
            works.result().unwrap();
        }
        eventually("all are replaced", || pool.stats().workers_lost == 5);
        pool.shutdown(true);
    }
}

#[task]
fn waits(_: TaskFailure) {
    come_to(Path::new(&std::env::var_os("GATE").unwrap()));
}

#[test]
fn x42_while_a_worker_reports_others_run_its_tasks_and_the_caller_does_not_wait() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let builder = ProcessPoolExecutor::builder().max_workers(2).env("GATE", gate.path());
    let no_limit = builder.on_task_error::<waits>().on_task_error_timeout(Duration::MAX);
    let pool = no_limit.build().unwrap();
    assert!(failed(&pool.submit(fail::task("its own".into())).result().unwrap_err()));
    let reporting = gate.wait_for(1)[0];
    for _ in 0..50 {
        assert_ne!(pool.submit(pid::task()).result().unwrap(), reporting);
    }
    let rows = pool.worker_stats();
    let row = rows.iter().find(|row| row.pid == Some(reporting)).unwrap();
    assert_eq!(row.status, executor::WorkerStatus::Busy);
    // A shutdown lets it end.
    pool.shutdown(false);
    assert!(!pool.join_timeout(Duration::from_millis(20)));
    gate.open();
    assert!(pool.join_timeout(Duration::MAX));
}

#[test]
fn x42_workers_of_a_pool_report_and_those_that_crash_do_not() {
    let _watchdog = watchdog();
    let reports = SimpleQueue::new().unwrap();
    let builder = Pool::builder().processes(1).initializer(prepare::task(reports.clone()));
    let pool = builder.on_task_error::<report>().build().unwrap();
    assert!(pool.apply(exit::task(7)).is_err());
    assert!(pool.apply(fail::task("told".into())).is_err());
    let (_, failure) = reports.get().unwrap();
    assert!(failure.error.contains("told"), "{failure:?}");
    pool.terminate();
}

#[test]
fn x42_options_that_make_no_sense_are_refused() {
    let builder = || ProcessPoolExecutor::builder().max_workers(1);
    for builder in [
        builder().on_task_error::<fails>().on_task_error_timeout(Duration::ZERO),
        builder().on_task_error_timeout(Duration::from_secs(1)),
    ] {
        match builder.build() {
            Err(BuildError::Invalid(text)) => assert!(text.contains("on_task_error"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn x42_errors_are_reported_in_the_order_in_which_tasks_fail() {
    let _watchdog = watchdog();
    let (builder, reports) = builder(1);
    let pool = builder.on_task_error::<report>().build().unwrap();
    let gate = Gate::new();
    let held = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    let futures: Vec<_> = (0..20).map(|at| pool.submit(fail::task(at.to_string()))).collect();
    gate.open();
    held.result().unwrap();
    for (at, future) in futures.into_iter().enumerate() {
        assert!(future.result().is_err());
        let (_, failure) = reports.get().unwrap();
        assert!(failure.error.ends_with(&at.to_string()), "{failure:?}");
    }
}
