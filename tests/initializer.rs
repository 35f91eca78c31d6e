//! Initializers run once in each worker before any task. These tests also cover a pool whose
//! initializer fails.

mod support;

use std::{
    fs::{self, File},
    path::Path,
    sync::{Mutex, OnceLock},
};

use executor::{BrokenCause, TaskError, prelude::*};
use support::{
    Gate, come_to, echo, eventually, hold, pid, state, watchdog, with_a_timeout_long_enough,
};

executor::test_support!();

struct State(String);

/// Records that it ran in this worker, and sets the worker's state.
#[task]
fn prepare(gate: &Path, value: String) {
    note_start(gate);
    executor::worker_state::set(State(value));
}

fn note_start(gate: &Path) {
    File::create(gate.join(format!("start-{}", std::process::id()))).expect("a note");
}

/// Returns how many initializers have begun.
fn starts(gate: &Gate) -> usize {
    let names = fs::read_dir(gate.path()).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("start-")).count()
}

#[task]
fn state_at_the_gate(gate: &Path) -> (u32, String) {
    come_to(gate);
    executor::with_worker_state::<State, _>(|state| (std::process::id(), state.0.clone()))
}

#[test]
fn in01_every_worker_sees_the_state_set_by_its_initializer() {
    let _watchdog = watchdog();
    let (notes, gate) = (Gate::new(), Gate::new());
    let pool = ProcessPoolExecutor::builder()
        .max_workers(2)
        .initializer(prepare::task(notes.path(), "ready".into()))
        .build()
        .unwrap();
    let futures = [(); 2].map(|()| pool.submit(state_at_the_gate::task(gate.path())));
    gate.wait_for(2);
    gate.open();
    let [(first, one), (second, two)] = futures.map(|future| future.result().unwrap());
    assert_ne!(first, second, "two workers");
    assert_eq!((one.as_str(), two.as_str()), ("ready", "ready"));
    for _ in 0..10 {
        pool.submit(echo::task(1)).result().unwrap();
    }
    assert_eq!(starts(&notes), 2, "once in each");
}

struct Count(std::cell::Cell<u64>);

#[task]
fn count_from(start: u64) {
    executor::worker_state::set(Count(std::cell::Cell::new(start)));
}

/// Returns one more than at its last call in this worker.
#[task]
fn count_on(gate: Option<&Path>) -> (u32, u64) {
    gate.into_iter().for_each(come_to);
    let count = executor::with_worker_state::<Count, _>(|count| {
        count.0.set(count.0.get() + 1);
        count.0.get()
    });
    (std::process::id(), count)
}

#[test]
fn to25_worker_state_persists_within_a_worker_and_is_not_shared_between_workers() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = ProcessPoolExecutor::builder()
        .max_workers(2)
        .initializer(count_from::task(100))
        .build()
        .unwrap();
    let both = [(); 2].map(|()| pool.submit(count_on::task(Some(gate.path()))));
    gate.wait_for(2);
    gate.open();
    let [(one, first), (other, second)] = both.map(|future| future.result().unwrap());
    assert_ne!(one, other, "two workers");
    assert_eq!((first, second), (101, 101), "each counts for itself");
    // Each worker counts on without a gap, however the tasks are distributed.
    let futures: Vec<_> = (0..50).map(|_| pool.submit(count_on::task(None))).collect();
    let mut counts: Vec<_> = futures.into_iter().map(|future| future.result().unwrap()).collect();
    for worker in [one, other] {
        let mut own: Vec<u64> =
            counts.extract_if(.., |(pid, _)| *pid == worker).map(|(_, count)| count).collect();
        own.sort_unstable();
        assert_eq!(own, (102..102 + own.len() as u64).collect::<Vec<_>>(), "worker {worker}");
    }
    assert!(counts.is_empty(), "nobody else came: {counts:?}");
}

#[test]
fn a_replacement_worker_is_initialized_too() {
    let _watchdog = watchdog();
    let (notes, gate) = (Gate::new(), Gate::new());
    gate.open();
    let pool = ProcessPoolExecutor::builder()
        .max_workers(1)
        .initializer(prepare::task(notes.path(), "again".into()))
        .build()
        .unwrap();
    let worker = pool.submit(pid::task()).result().unwrap();
    assert!(pool.submit(support::exit::task(1)).result().unwrap_err().is_worker_lost());
    let (next, value) = pool.submit(state_at_the_gate::task(gate.path())).result().unwrap();
    assert_ne!(next, worker);
    assert_eq!(value, "again");
    assert_eq!(starts(&notes), 2);
}

/// Fails in the given way.
#[task]
fn fail(notes: &Path, how: String) -> Result<(), String> {
    note_start(notes);
    match how.as_str() {
        "error" => Err("the model is missing".to_owned()),
        "panic" => panic!("the model is missing"),
        "exit" => std::process::exit(3),
        _ => std::process::abort(),
    }
}

fn broken_pool(notes: &Gate, how: &str, workers: usize) -> ProcessPoolExecutor {
    let task = fail::task(notes.path(), how.to_owned());
    ProcessPoolExecutor::builder().max_workers(workers).initializer(task).build().unwrap()
}

/// A subscriber that keeps the text of all logged errors.
struct Log;

static LOGGED: OnceLock<Mutex<Vec<String>>> = OnceLock::new();

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{field}={value:?} ");
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        LOGGED.get_or_init(Mutex::default).lock().unwrap().push(text.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn in02_a_failing_initializer_breaks_the_pool_and_its_error_is_reported() {
    let _watchdog = watchdog();
    tracing::subscriber::set_global_default(Log).expect("the only one of this test binary");
    let notes = Gate::new();
    let pool = broken_pool(&notes, "error", 2);
    let futures = [(); 5].map(|()| pool.submit(pid::task()));
    for future in futures {
        let error = future.result().unwrap_err();
        let TaskError::Broken(BrokenCause::Initializer(cause)) = &error else {
            panic!("{error:?}")
        };
        let TaskError::Failed(remote) = &**cause else { panic!("{cause:?}") };
        assert_eq!(remote.message(), "the model is missing");
        assert!(remote.task().ends_with("fail"), "{}", remote.task());
        assert!(error.to_string().contains("the model is missing"), "{error}");
    }
    // Later tasks fail as well, and the error was logged.
    assert!(pool.submit(pid::task()).result().unwrap_err().is_broken());
    pool.shutdown(true);
    let logged = LOGGED.get().expect("something was logged").lock().unwrap();
    assert!(logged.iter().any(|text| text.contains("the model is missing")), "{logged:?}");
}

#[test]
fn in07_a_pool_whose_initializer_always_fails_stops_starting_workers() {
    let _watchdog = watchdog();
    for how in ["error", "panic", "exit", "abort"] {
        let notes = Gate::new();
        let pool = broken_pool(&notes, how, 2);
        let futures = [(); 20].map(|()| pool.submit(pid::task()));
        for future in futures {
            let error = future.result().unwrap_err();
            let TaskError::Broken(cause) = &error else { panic!("{how}: {error:?}") };
            match how {
                "panic" => {
                    let BrokenCause::Initializer(cause) = cause else { panic!("{cause:?}") };
                    assert!(cause.is_panic());
                }
                "exit" => assert!(error.to_string().contains("exited with code 3"), "{error}"),
                "abort" => assert!(error.to_string().contains("SIGABRT"), "{error}"),
                _ => {}
            }
        }
        pool.shutdown(true);
        assert!(starts(&notes) <= 2, "{how}: {} workers were started", starts(&notes));
    }
}

/// Succeeds in the first worker and exits in every other.
#[task]
fn only_once(notes: &Path) {
    let first = File::create_new(notes.join("first")).is_ok();
    note_start(notes);
    if !first {
        std::process::exit(4);
    }
}

#[test]
fn replacements_that_repeatedly_exit_at_their_start_break_the_pool() {
    let _watchdog = watchdog();
    let notes = Gate::new();
    let pool = ProcessPoolExecutor::builder()
        .max_workers(1)
        .initializer(only_once::task(notes.path()))
        .build()
        .unwrap();
    pool.submit(pid::task()).result().unwrap();
    assert!(pool.submit(support::exit::task(1)).result().unwrap_err().is_worker_lost());
    let error = pool.submit(pid::task()).result().unwrap_err();
    assert!(matches!(error, TaskError::Broken(BrokenCause::Initializer(_))), "{error:?}");
    assert!(error.to_string().contains("exited with code 4"), "{error}");
    let started = starts(&notes);
    assert!((3..20).contains(&started), "some patience, but not for ever: {started}");
    pool.shutdown(true);
}

#[test]
fn a_pool_can_be_ended_while_an_initializer_hangs() {
    let _watchdog = watchdog();
    for kill in [true, false] {
        let gate = Gate::new();
        let pool = ProcessPoolExecutor::builder()
            .max_workers(1)
            .initializer(hold::task(gate.path()))
            .build()
            .unwrap();
        let future = pool.submit(pid::task());
        let worker = gate.wait_for(1)[0];
        assert!(!future.done());
        if kill {
            pool.kill_workers()
        } else {
            pool.terminate_workers()
        }
        assert!(matches!(future.result(), Err(TaskError::Shutdown)));
        pool.shutdown(true);
        assert_eq!(state(worker), None);
    }
    // Here the only task is cancelled, so shutdown has nothing left to wait for.
    let gate = Gate::new();
    let pool = ProcessPoolExecutor::builder()
        .max_workers(1)
        .initializer(hold::task(gate.path()))
        .build()
        .unwrap();
    let future = pool.submit(pid::task());
    let worker = gate.wait_for(1)[0];
    assert!(future.cancel());
    pool.shutdown(true);
    assert_eq!(state(worker), None);
}

/// Returns the CPU time of a thread of this process, in clock ticks.
fn cpu_ticks(thread: &str) -> Option<u64> {
    let threads = fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
    let stats = threads.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter_map(|stat| {
            let (name, rest) = stat.rsplit_once(") ")?;
            let fields: Vec<&str> = rest.split(' ').collect();
            let ticks = fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?;
            name.ends_with(thread).then_some(ticks)
        })
        .max()
}

#[test]
fn a_slow_initializer_after_a_failed_start_uses_no_cpu_time() {
    /// Exits in the second worker and waits in the third.
    #[task]
    fn second_dies_third_hangs(notes: &Path) {
        if File::create_new(notes.join("first")).is_ok() {
        } else if File::create_new(notes.join("second")).is_ok() {
            std::process::exit(5);
        } else {
            come_to(notes);
        }
    }

    /// Runs in a process with only one driver. Returns the CPU time that the driver used while an
    /// initializer waited, in clock ticks.
    #[task]
    fn ticks_of_the_driver() -> u64 {
        let gate = Gate::new();
        let pool = ProcessPoolExecutor::builder()
            .max_workers(1)
            .initializer(second_dies_third_hangs::task(gate.path()))
            .build()
            .unwrap();
        pool.submit(pid::task()).result().unwrap();
        assert!(pool.submit(support::exit::task(1)).result().unwrap_err().is_worker_lost());
        let future = pool.submit(pid::task());
        let worker = gate.wait_for(1)[0];
        let before = cpu_ticks("executor-driver").expect("it has a driver");
        // This sleep does not enforce an order: during it, a driver that does not sleep would use
        // CPU time.
        std::thread::sleep(std::time::Duration::from_millis(500));
        let spent = cpu_ticks("executor-driver").expect("it has a driver") - before;
        gate.open();
        assert_eq!(future.result().unwrap(), worker);
        spent
    }

    let _watchdog = watchdog();
    let spent =
        executor::Process::new(ticks_of_the_driver::task()).start().unwrap().join().unwrap();
    assert!(spent <= 10, "the driver computed for {spent} of 50 ticks while nothing happened");
}

#[test]
fn an_initializer_that_hangs_in_one_worker_does_not_break_a_pool_with_another_working_one() {
    #[task]
    fn second_hangs(notes: &Path) {
        if File::create_new(notes.join("first")).is_err()
            && File::create_new(notes.join("second")).is_ok()
        {
            come_to(notes);
        }
    }

    let _watchdog = watchdog();
    // The timeout also applies to the initializers that do not hang, and they have to finish within
    // it.
    with_a_timeout_long_enough("the first worker and the third", |limit| {
        let (gate, held) = (Gate::new(), Gate::new());
        let pool = ProcessPoolExecutor::builder()
            .max_workers(2)
            .initializer(second_hangs::task(gate.path()))
            .initializer_timeout(limit)
            .build()
            .unwrap();
        let first = pool.submit(hold::task(held.path()));
        eventually("it works, or was too slow", || !held.arrivals().is_empty() || first.done());
        if held.arrivals().is_empty() {
            return None;
        }
        // A second worker is started for this task, and its initializer hangs. A third worker runs
        // the task.
        let second = pool.submit(pid::task());
        let worker = second.result().unwrap();
        held.open();
        assert!(first.result().is_ok());
        assert!(pool.broken().is_none());
        // Otherwise the second worker was ended before it reached the gate, so try again with a
        // longer timeout.
        let [slow] = gate.arrivals()[..] else { return None };
        assert_ne!(worker, slow);
        Some(())
    });
}

#[test]
fn the_initializer_and_tasks_run_on_one_thread() {
    #[task]
    fn set_here() {
        executor::worker_state::set(std::rc::Rc::new(std::thread::current().id()));
    }
    #[task]
    fn is_here() -> bool {
        executor::with_worker_state::<std::rc::Rc<std::thread::ThreadId>, _>(|id| {
            **id == std::thread::current().id()
        })
    }

    let _watchdog = watchdog();
    let pool = ProcessPoolExecutor::builder()
        .max_workers(1)
        .initializer(set_here::task())
        .build()
        .unwrap();
    assert!(pool.submit(is_here::task()).result().unwrap());
}

#[test]
fn no_task_starts_before_the_initializer_is_done() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = ProcessPoolExecutor::builder()
        .max_workers(1)
        .initializer(hold::task(gate.path()))
        .build()
        .unwrap();
    let future = pool.submit(echo::task(7));
    gate.wait_for(1);
    assert!(!future.running() && !future.done());
    gate.open();
    assert_eq!(future.result().unwrap(), 7);
    eventually("nothing else came", || gate.arrivals().len() == 1);
}
