//! Pools in the server, whose workers all processes share.

use std::{fs::File, path::Path, pin::pin, process::Command, thread, time::Duration};

use executor::{
    Phase, Process, Transfer,
    manager::{Dict, Event, Manager, ManagerError, Pool},
    prelude::*,
};
use futures::executor::block_on;
use rustix::process::{Pid, Signal};

use super::{
    Done, SHORT, ends_killed,
    far::Site,
    has_objects,
    own::{CounterProxy, begin},
    sleep, start,
};
use crate::support::{
    Gate, LONG, come_to, echo, eventually, exit, fail, hold, hold_then_mark, ignores, note, notes,
    pid, rounds, runs, signal, watchdog,
};

#[task]
fn parent_pid() -> u32 {
    rustix::process::getppid().map_or(0, |parent: Pid| parent.as_raw_nonzero().get() as u32)
}

#[task]
fn pids_of_workers(pool: Pool, times: usize) -> Result<Vec<u32>, ManagerError> {
    pool.map(|()| pid::task(), vec![(); times])
}

#[test]
fn processes_share_the_workers_of_a_managed_pool() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let pool = manager.pool(2).unwrap();
    assert!(pool.worker_pids().unwrap().is_empty(), "workers start when there is something to do");
    assert_eq!(pool.apply(parent_pid::task()).unwrap(), manager.pid());
    let children = [20, 30].map(|times| start(pids_of_workers::task(pool.clone(), times)));
    let mut seen = pool.map(|()| pid::task(), [(); 20]).unwrap();
    for (child, times) in children.iter().zip([20, 30]) {
        let pids = child.join().unwrap();
        assert_eq!(pids.len(), times);
        seen.extend(pids);
    }
    let workers = pool.worker_pids().unwrap();
    assert!(workers.len() <= 2 && seen.iter().all(|pid| workers.contains(pid)), "{workers:?}");
    // A handle is a value like others.
    let dict = manager.dict([("pool".to_owned(), pool.clone())]).unwrap();
    drop(pool);
    let pool = dict.remove("pool").unwrap().unwrap();
    assert_eq!(pool.apply(echo::task(7)).unwrap(), 7);
    drop((pool, dict));
    eventually("the workers have gone", || workers.iter().all(|pid| !runs(*pid)));
    has_objects(&manager, 0);
}

#[task]
fn panic_with(text: &str) {
    panic!("{text}");
}

#[task]
fn forever() {
    sleep()
}

#[task]
fn open(path: &Path) -> Result<Transfer<File>, std::io::Error> {
    File::open(path).map(Transfer::new)
}

#[task]
fn length_of_file(file: Transfer<File>) -> u64 {
    file.into_inner().metadata().map_or(0, |data| data.len())
}

#[task]
async fn echo_later(value: u64) -> u64 {
    value
}

#[track_caller]
fn error_of<T: std::fmt::Debug>(result: Result<T, ManagerError>) -> TaskError {
    match result {
        Err(ManagerError::Failed(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn results_and_errors_of_tasks_in_a_managed_pool_are_those_of_any_pool() {
    let _watchdog = watchdog();
    let site = Site::new();
    let clients = site.ways.each_ref().map(|way| way.connect().unwrap());
    for manager in [&site.manager, &clients[0], &clients[1]] {
        let pool = manager.pool(1).unwrap();
        assert_eq!(pool.apply(echo::task(5)).unwrap(), 5);
        assert_eq!(pool.submit(echo_later::task(6)).result().unwrap(), 6);
        assert_eq!(block_on(pool.apply_async(echo::task(7))).unwrap(), 7);
        assert_eq!(block_on(pool.submit(echo::task(8))).unwrap(), 8);

        let error = error_of(pool.apply(fail::task("no luck".into())));
        let TaskError::Failed(remote) = &error else { panic!("{error:?}") };
        assert_eq!(remote.message(), "no luck");
        assert!(error.to_string().contains("fail"), "{error}");
        let error = error_of(pool.submit(panic_with::task("oh")).result());
        let TaskError::Panicked(remote) = &error else { panic!("{error:?}") };
        assert_eq!(remote.message(), "oh");
        assert!(remote.location().unwrap().contains("pool.rs"));
        match error_of(pool.apply(exit::task(3).name("the end"))) {
            TaskError::WorkerLost { status, detail, .. } => {
                assert_eq!((status.code(), &detail.task[..]), (Some(3), "the end"));
            }
            other => panic!("{other:?}"),
        }
        match error_of(pool.apply(forever::task().timeout(SHORT))) {
            TaskError::TimedOut { limit, phase, .. } => {
                assert_eq!((limit, phase), (SHORT, Phase::Run));
            }
            other => panic!("{other:?}"),
        }
        let retried = fail::task("again".into()).retries(2).retry_delay(Duration::ZERO);
        assert_eq!(error_of(pool.apply(retried)).attempts(), 3);

        let gate = Gate::new();
        let holds = pool.submit(hold::task(gate.path()));
        gate.wait_for(1);
        match error_of(pool.apply(echo::task(1).queue_timeout(SHORT))) {
            TaskError::TimedOut { phase, .. } => assert_eq!(phase, Phase::Queue),
            other => panic!("{other:?}"),
        }
        gate.open();
        holds.result().unwrap();

        // What cannot be done is said, and not left out.
        let task = echo::task(1).retries(1).retry_on(|_| true);
        assert!(error_of(pool.apply(task)).to_string().contains("retry_on"));
        for (task, option) in [
            (echo::task(1).measure_usage(), "measure_usage"),
            (echo::task(1).needs("gpu", 1), "needs"),
            (echo::task(1).on_worker(0), "on_worker"),
        ] {
            assert!(error_of(pool.apply(task)).to_string().contains(option), "{option}");
        }
        let task = echo::task(1).retry_delay(SHORT);
        assert!(matches!(error_of(pool.apply(task)), TaskError::Invalid(_)));
        let file = Transfer::new(tempfile::tempfile().unwrap());
        let error = pool.submit(length_of_file::task(file)).result().unwrap_err();
        assert!(matches!(error, ManagerError::Encode(_)), "{error:?}");
        let named = tempfile::NamedTempFile::new().unwrap();
        let error = error_of(pool.apply(open::task(named.path())));
        assert!(
            error.is_refused() && error.to_string().contains("belongs to processes"),
            "{error}"
        );

        let (text, zeros) = ("x".repeat(3_000_000), vec![0; 2_000_000]);
        assert_eq!(pool.apply(repeat::task(&text, &zeros)).unwrap(), text);
        drop(pool);
        has_objects(&site.manager, 0);
    }
}

#[task]
fn repeat(text: &str, _more: &[u8]) -> String {
    text.to_owned()
}

#[test]
fn a_managed_pool_that_is_impossible_is_an_error() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    for workers in [0, 1025, usize::MAX] {
        let error = manager.pool(workers).unwrap_err();
        assert!(matches!(error, ManagerError::Invalid(_)), "{error:?}");
        assert!(error.to_string().contains(&workers.to_string()), "{error}");
    }
    let pools: Vec<_> = (0..64).map(|_| manager.pool(1).unwrap()).collect();
    let error = manager.pool(1).unwrap_err();
    assert!(matches!(error, ManagerError::Limit(_)), "{error:?}");
    drop(pools);
    eventually("there is room for another one", || manager.pool(1).is_ok());
    has_objects(&manager, 0);
}

#[test]
fn hundreds_of_tasks_wait_in_a_managed_pool_and_other_objects_are_served() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (pool, gate) = (manager.pool(1).unwrap(), Gate::new());
    let holds = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    let mut futures: Vec<_> = (0..1000).map(|n| pool.submit(echo::task(n))).collect();
    let counter = CounterProxy::new(&manager, 0).unwrap();
    for sum in 1..100 {
        assert_eq!(counter.add(1).unwrap(), sum);
    }
    let last = futures.pop().unwrap();
    let last = last.result_timeout(SHORT).expect_err("the worker is busy");
    thread::scope(|scope| {
        // One thread waits for each of these, and futures are awaited beside them.
        let threads: Vec<_> =
            futures.drain(..8).map(|future| scope.spawn(|| future.result().unwrap())).collect();
        let awaited = scope.spawn(|| block_on(futures::future::try_join_all(futures)).unwrap());
        gate.open();
        let first: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(first.into_iter().eq(0..8));
        assert!(awaited.join().unwrap().into_iter().eq(8..999));
    });
    assert_eq!(last.result_timeout(LONG).unwrap().unwrap(), 999);
    assert_eq!(pool.worker_pids().unwrap(), [holds.result().unwrap()]);
}

#[test]
fn a_map_of_a_managed_pool_is_in_order_and_lazy() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let pool = manager.pool(2).unwrap();
    let count = rounds() as u64 * 3;
    assert!(pool.map(echo::task, 0..count).unwrap().into_iter().eq(0..count));
    let mut taken = 0;
    let mut endless = pool.imap(echo::task, (0..).inspect(|n| taken = *n));
    assert!((&mut endless).take(10).map(Result::unwrap).eq(0..10));
    drop(endless);
    assert!((10..=300).contains(&taken), "{taken}");
    let error = error_of(pool.map(|n| div::task(12, n), [3, 0, 4]));
    assert!(error.is_panic(), "{error:?}");
    let results: Vec<_> = pool.imap(|n| div::task(12, n), [3, 0, 4]).collect();
    assert_eq!(*results[0].as_ref().unwrap(), 4);
    assert!(error_of(results[1].clone()).is_panic());
    assert_eq!(*results[2].as_ref().unwrap(), 3);
    assert!(pool.map(echo::task, []).unwrap().is_empty());
}

#[test]
fn an_unordered_map_of_a_managed_pool_waits_for_no_slow_item() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (pool, gate) = (manager.pool(2).unwrap(), Gate::new());
    let mut results = pool.imap_unordered(|n| hold_the_first::task(gate.path(), n), 0..600_u64);
    // More than are submitted at a time, and the first is held all the while.
    let mut seen: Vec<_> = results.by_ref().take(599).map(Result::unwrap).collect();
    assert!(!seen.contains(&0));
    gate.open();
    seen.extend(results.by_ref().map(Result::unwrap));
    assert!(results.next().is_none(), "it has ended for good");
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..600));
    let results: Vec<_> = pool.imap_unordered(|n| div::task(12, n), [3, 0, 4]).collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 2);
    assert!(results.into_iter().filter(Result::is_err).all(|result| error_of(result).is_panic()));
    assert!(pool.imap_unordered(echo::task, []).next().is_none());
}

#[task]
fn hold_the_first(gate: &Path, n: u64) -> u64 {
    if n == 0 {
        come_to(gate);
    }
    n
}

#[task]
fn div(a: u64, b: u64) -> u64 {
    a / b
}

#[test]
fn a_task_of_a_managed_pool_goes_on_without_its_future() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (pool, gate) = (manager.pool(1).unwrap(), Gate::new());
    let file = gate.file("notes");
    let holds = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    for line in 1..=3 {
        drop(pool.submit(note::task(file.clone(), line)));
        let mut polled = pin!(pool.apply_async(note::task(file.clone(), 10 + line)));
        begin(polled.as_mut());
    }
    drop(pool.submit(note::task(file.clone(), 4)).result_timeout(SHORT).unwrap_err());
    drop(holds);
    gate.open();
    assert_eq!(pool.apply(note::task(file.clone(), 5)).unwrap(), 5);
    assert_eq!(notes(&file), [1, 11, 2, 12, 3, 13, 4, 5]);
}

#[test]
fn a_managed_pool_is_closed_terminated_and_joined() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (pool, gate) = (manager.pool(1).unwrap(), Gate::new());
    let refused = |error: ManagerError| {
        assert!(matches!(error, ManagerError::Refused(_)), "{error:?}");
    };
    refused(pool.join().unwrap_err());
    refused(pool.join_timeout(SHORT).unwrap_err());
    let holds = pool.submit(hold::task(gate.path()));
    let waits = pool.submit(echo::task(1));
    let [worker] = gate.wait_for(1)[..] else { panic!() };
    pool.close().unwrap();
    assert!(error_of(pool.apply(echo::task(2))).is_shutdown());
    assert!(!pool.join_timeout(SHORT).unwrap());
    gate.open();
    assert_eq!((holds.result().unwrap(), waits.result().unwrap()), (worker, 1));
    thread::scope(|scope| {
        let joins = [(); 3].map(|()| scope.spawn(|| pool.join().unwrap()));
        joins.into_iter().for_each(|join| join.join().unwrap());
    });
    assert!(!runs(worker) && pool.worker_pids().unwrap().is_empty());
    assert!(pool.join_timeout(LONG).unwrap());
    drop(pool);

    let pool = manager.pool(1).unwrap();
    let gate = Gate::new();
    let (runs_now, queued) = (pool.submit(hold::task(gate.path())), pool.submit(echo::task(1)));
    let [worker] = gate.wait_for(1)[..] else { panic!() };
    pool.terminate().unwrap();
    pool.join().unwrap();
    assert!(!runs(worker));
    assert!(error_of(runs_now.result()).is_shutdown());
    assert!(error_of(queued.result()).is_shutdown());
    drop(pool);
    has_objects(&manager, 0);
}

#[test]
fn a_managed_pool_ends_with_its_last_handle_and_a_future_is_one() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (pool, gate) = (manager.pool(1).unwrap(), Gate::new());
    let holds = pool.submit(hold::task(gate.path()));
    let [worker] = gate.wait_for(1)[..] else { panic!() };
    drop(pool);
    has_objects(&manager, 1);
    assert!(runs(worker));
    gate.open();
    assert_eq!(holds.result().unwrap(), worker);
    eventually("the worker has gone", || !runs(worker));
    has_objects(&manager, 0);
    // A task that never ends goes with it.
    let (pool, gate) = (manager.pool(1).unwrap(), Gate::new());
    drop(pool.submit(hold::task(gate.path())));
    let [worker] = gate.wait_for(1)[..] else { panic!() };
    drop(pool);
    eventually("the worker has gone", || !runs(worker));
    has_objects(&manager, 0);
}

#[task]
fn submit_and_sleep(pool: Pool, gate: &Path, mark: &Path, file: &Path, done: Event) -> Done {
    let _runs = pool.submit(hold_then_mark::task(gate, mark));
    let _waits: Vec<_> =
        (0..10).map(|line| pool.submit(note::task(file.to_owned(), line))).collect();
    // Behind the others, as it goes over the same connection.
    done.set()?;
    sleep()
}

#[test]
fn what_a_killed_client_has_submitted_runs_only_if_it_has_begun() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (pool, gate, done) = (manager.pool(1).unwrap(), Gate::new(), manager.event().unwrap());
    let (mark, file) = (gate.file("mark"), gate.file("notes"));
    let task = submit_and_sleep::task(pool.clone(), gate.path(), &mark, &file, done.clone());
    let child = start(task);
    done.wait().unwrap();
    gate.wait_for(1);
    child.kill().unwrap();
    ends_killed(&child);
    // The server knows of the death.
    has_objects(&manager, 2);
    let after = pool.submit(note::task(file.clone(), 77));
    gate.open();
    assert_eq!(after.result().unwrap(), 77);
    assert!(mark.exists(), "a task that has begun goes on");
    assert_eq!(notes(&file), [77]);
}

#[test]
fn the_workers_of_a_managed_pool_end_with_the_server() {
    let _watchdog = watchdog();
    for kill in [true, false] {
        let manager = Manager::start().unwrap();
        let (pool, gate) = (manager.pool(2).unwrap(), Gate::new());
        let [first, second] = [(); 2].map(|()| pool.submit(hold::task(gate.path())));
        let workers = gate.wait_for(2);
        match kill {
            true => signal(manager.pid(), Signal::KILL),
            false => manager.shutdown(),
        }
        let error = first.result().unwrap_err();
        assert!(matches!(error, ManagerError::Gone(_)), "{error:?}");
        let error = block_on(second).unwrap_err();
        assert!(matches!(error, ManagerError::Gone(_)), "{error:?}");
        let error = pool.submit(echo::task(1)).result().unwrap_err();
        assert!(matches!(error, ManagerError::Gone(_)), "{error:?}");
        eventually("the workers have gone", || workers.iter().all(|pid| !runs(*pid)));
        if !kill {
            assert!(manager.exit_status().unwrap().success(), "tasks do not hold up its end");
        }
    }
}

#[task]
fn nested(pool: Pool, depth: u64) -> Result<u64, ManagerError> {
    let started = Process::new(deeper::task(pool, depth)).start();
    started
        .map_err(|error| ManagerError::Gone(error.to_string().into()))?
        .join()
        .map_err(|error| ManagerError::Gone(error.to_string().into()))
}

#[task]
fn deeper(pool: Pool, depth: u64) -> Result<u64, ManagerError> {
    match depth {
        0 => pool.apply(echo::task(1)),
        _ => nested(pool.clone(), depth - 1).and_then(|sum| Ok(sum + pool.apply(echo::task(1))?)),
    }
}

/// Starts a program that sends itself SIGINT. Returns what it says if that does not end it.
#[task]
fn program_that_interrupts_itself() -> String {
    let output = Command::new("sh").args(["-c", "kill -INT $$; echo alive"]).output();
    String::from_utf8_lossy(&output.expect("a shell").stdout).into_owned()
}

/// A Ctrl-C at the terminal reaches every process of the foreground group, and whoever sends SIGINT
/// by hand may hit a worker as well as the server.
#[test]
fn workers_of_a_managed_pool_and_what_their_tasks_start_live_on_after_sigint() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (pool, gate) = (manager.pool(1).unwrap(), Gate::new());
    let held = pool.submit(hold::task(gate.path()));
    let worker = gate.wait_for(1)[0];
    // The kernel drops a signal that is ignored when it is sent, so nothing comes later.
    assert!(ignores(worker, Signal::INT));
    signal(worker, Signal::INT);
    gate.open();
    assert_eq!(held.result().unwrap(), worker, "within a task");
    signal(worker, Signal::INT);
    assert_eq!(pool.apply(pid::task()).unwrap(), worker, "between two tasks");
    assert_eq!(pool.apply(program_that_interrupts_itself::task()).unwrap(), "alive\n");
}

#[test]
fn a_handle_of_a_managed_pool_travels_through_processes() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let pool = manager.pool(1).unwrap();
    assert_eq!(start(nested::task(pool.clone(), 3)).join().unwrap(), 4);
    let shared: Dict<String, Pool> = manager.dict([("a".to_owned(), pool.clone())]).unwrap();
    assert_eq!(shared.get("a").unwrap(), Some(pool));
}

#[test]
fn a_task_of_a_managed_pool_that_waits_for_the_server_holds_up_nobody() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (pool, gate) = (manager.pool(1).unwrap(), Gate::new());
    let counter = CounterProxy::new(&manager, 1).unwrap();
    thread::scope(|scope| {
        // A method occupies its object, and tasks run meanwhile.
        let looks = scope.spawn(|| counter.wait_at(gate.path()).unwrap());
        gate.wait_for(1);
        assert_eq!(pool.map(echo::task, 0..100).unwrap().len(), 100);
        assert!(!looks.is_finished());
        gate.open();
        looks.join().unwrap();
    });
}
