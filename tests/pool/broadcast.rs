//! Tasks that run in every worker.

use std::{collections::BTreeSet, time::Duration};

use executor::{TaskError, TaskFuture, prelude::*};

use super::support::{Gate, echo, eventually, hold, note, notes, pid, pool, runs, watchdog};

const SHORT: Duration = Duration::from_millis(20);

/// Notes the worker, and returns its id.
#[task]
fn note_pid(file: std::path::PathBuf) -> u32 {
    note(file, std::process::id())
}

#[task]
fn exit_if(worker: u32) -> u32 {
    if std::process::id() == worker {
        std::process::exit(3);
    }
    std::process::id()
}

/// Lets all workers of the pool come up.
fn start_all(pool: &ProcessPoolExecutor, workers: usize) -> BTreeSet<u32> {
    let gate = Gate::new();
    let held: Vec<_> = (0..workers).map(|_| pool.submit(hold::task(gate.path()))).collect();
    let pids = gate.wait_for(workers).into_iter().collect();
    gate.open();
    for future in held {
        future.result().unwrap();
    }
    pids
}

fn results<T>(futures: Vec<TaskFuture<T>>) -> Vec<Result<T, TaskError>> {
    futures.into_iter().map(TaskFuture::result).collect()
}

#[test]
fn x68_a_broadcast_runs_once_in_each_worker() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(3), Gate::new());
    assert!(pool.broadcast(pid::task()).is_empty(), "there is no worker yet");
    let workers = start_all(&pool, 3);
    let file = gate.file("ran");
    for round in 1..5 {
        let ran = results(pool.broadcast(note_pid::task(file.clone())));
        let ran: BTreeSet<_> = ran.into_iter().map(Result::unwrap).collect();
        assert_eq!(ran, workers);
        assert_eq!(notes(&file).len(), 3 * round);
    }
    // Others go on meanwhile.
    let others: Vec<_> = (0..200).map(|x| pool.submit(echo::task(x))).collect();
    let ran = results(pool.broadcast(note_pid::task(file.clone())));
    assert_eq!(ran.into_iter().map(Result::unwrap).collect::<BTreeSet<_>>(), workers);
    assert_eq!(results(others).into_iter().map(Result::unwrap).sum::<u64>(), 19_900);
}

#[test]
fn x68_a_broadcast_waits_for_the_task_that_runs_and_can_be_cancelled() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(2), Gate::new());
    start_all(&pool, 2);
    let held: Vec<_> = (0..2).map(|_| pool.submit(hold::task(gate.path()))).collect();
    gate.wait_for(2);
    let file = gate.file("ran");
    let mut waiting = pool.broadcast(note_pid::task(file.clone()));
    let late = pool.broadcast(note_pid::task(file.clone()).queue_timeout(SHORT));
    let later = pool.broadcast(pid::task());
    assert_eq!((waiting.len(), late.len(), later.len()), (2, 2, 2));
    let cancelled = waiting.remove(0);
    assert!(cancelled.cancel());
    for result in results(late) {
        assert!(result.unwrap_err().is_timeout());
    }
    gate.open();
    let ran = waiting.remove(0).result().unwrap();
    let all: BTreeSet<_> = results(later).into_iter().map(Result::unwrap).collect();
    assert!(all.len() == 2 && all.contains(&ran));
    assert_eq!(notes(&file), [ran]);
    for future in held {
        future.result().unwrap();
    }
    assert!(cancelled.result().unwrap_err().is_cancelled());
}

#[test]
fn x68_a_worker_that_dies_is_an_error_in_its_place() {
    let _watchdog = watchdog();
    let pool = pool(3);
    let workers = start_all(&pool, 3);
    let victim = *workers.iter().next().unwrap();
    let ran = results(pool.broadcast(exit_if::task(victim)));
    assert_eq!(ran.len(), 3);
    let (ended, lost): (Vec<_>, Vec<_>) = ran.into_iter().partition(Result::is_ok);
    assert_eq!((ended.len(), lost.len()), (2, 1));
    match lost.into_iter().next().unwrap() {
        Err(TaskError::WorkerLost { pid, .. }) => assert_eq!(pid, victim),
        other => panic!("{other:?}"),
    }
    // One that dies before it comes to the task.
    let gate = Gate::new();
    let busy = pool.submit(hold::task(gate.path()));
    let worker = gate.wait_for(1)[0];
    let ran = pool.broadcast(pid::task());
    super::support::signal(worker, rustix::process::Signal::KILL);
    assert!(busy.result().unwrap_err().is_worker_lost());
    let lost = results(ran).into_iter().filter_map(Result::err).collect::<Vec<_>>();
    assert!(matches!(lost[..], [TaskError::WorkerLost { pid, .. }] if pid == worker), "{lost:?}");
    eventually("it is gone", || !runs(worker));
    assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
}

#[test]
fn x68_a_broadcast_does_not_count_as_one_of_a_workers_tasks() {
    let _watchdog = watchdog();
    let builder = ProcessPoolExecutor::builder().max_workers(1).max_tasks_per_worker(2);
    let pool = builder.build().unwrap();
    let worker = pool.submit(pid::task()).result().unwrap();
    for _ in 0..3 {
        let ran = results(pool.broadcast(pid::task()));
        assert_eq!(*ran[0].as_ref().unwrap(), worker);
    }
    assert_eq!(pool.submit(pid::task()).result().unwrap(), worker);
    assert_ne!(pool.submit(pid::task()).result().unwrap(), worker);
}

#[test]
fn x68_workers_that_come_later_run_it_before_their_first_task() {
    let _watchdog = watchdog();
    #[derive(Default)]
    struct Steps(Vec<u32>);
    #[task]
    fn step(number: u32) {
        let mut steps = executor::worker_state::take::<Steps>().unwrap_or_default();
        steps.0.push(number);
        executor::worker_state::set(steps);
    }
    #[task]
    fn steps() -> Vec<u32> {
        executor::with_worker_state(|steps: &mut Steps| steps.0.clone())
    }
    let builder = ProcessPoolExecutor::builder().max_workers(2).max_tasks_per_worker(1);
    let pool = builder.initializer(step::task(0)).build().unwrap();
    assert!(pool.broadcast_and_later(step::task(1)).is_empty());
    assert!(pool.broadcast_and_later(step::task(2)).is_empty());
    for _ in 0..6 {
        assert_eq!(pool.submit(steps::task()).result().unwrap(), [0, 1, 2]);
    }
}

#[derive(Default)]
struct Seen(u32);

#[task]
fn see(number: u32) {
    executor::worker_state::set(Seen(number));
}

#[task]
fn seen() -> u32 {
    executor::worker_state::take::<Seen>().unwrap_or_default().0
}

#[test]
fn x68_what_later_workers_run_can_be_ended_and_is_bounded() {
    let _watchdog = watchdog();
    let builder = ProcessPoolExecutor::builder().max_workers(1).max_tasks_per_worker(1);
    let pool = builder.build().unwrap();
    assert!(pool.broadcast_and_later(see::task(7)).is_empty());
    assert_eq!(pool.submit(seen::task()).result().unwrap(), 7);
    pool.end_broadcasts();
    eventually("the next worker was not ordered before", || {
        pool.submit(seen::task()).result().unwrap() == 0
    });
    // A program that forgets to end them is told.
    let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    let refused = (0..1_001).find_map(|number| pool.broadcast_and_later(see::task(number)).pop());
    let error = refused.expect("there is no worker").result().unwrap_err();
    assert!(error.to_string().contains("1000 are kept already"), "{error}");
    pool.end_broadcasts();
    assert!(pool.broadcast_and_later(see::task(1)).is_empty());
    assert_eq!(pool.submit(seen::task()).result().unwrap(), 1);
}

#[test]
fn x68_the_limit_on_waiting_holds_for_later_workers_too() {
    let _watchdog = watchdog();
    let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    // The worker is not ready so soon.
    let task = see::task(7).queue_timeout(Duration::from_nanos(1));
    assert!(pool.broadcast_and_later(task).is_empty());
    assert_eq!(pool.submit(seen::task()).result().unwrap(), 0);
    let stats = pool.stats();
    assert_eq!((stats.failed.timed_out, stats.done), (1, 1));
}

#[test]
fn x68_workers_that_are_to_leave_run_it_before_they_do() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(3), Gate::new());
    let workers = start_all(&pool, 3);
    let held: Vec<_> = (0..3).map(|_| pool.submit(hold::task(gate.path()))).collect();
    gate.wait_for(3);
    pool.resize(1).unwrap();
    let done = pool.stats().done;
    let ran = pool.broadcast(pid::task());
    let stats = pool.stats();
    assert_eq!((stats.queued, stats.running, stats.done), (3, 3, done));
    gate.open();
    let ran: BTreeSet<_> = results(ran).into_iter().map(Result::unwrap).collect();
    assert_eq!(ran, workers);
    results(held).into_iter().for_each(|held| assert!(held.is_ok()));
    eventually("two have left", || pool.worker_pids().len() == 1);
    let stats = pool.stats();
    assert_eq!((stats.queued, stats.running, stats.done), (0, 0, done + 6));
    assert_eq!((stats.failed.total(), stats.workers_lost), (0, 0));
}

#[test]
fn x68_a_broadcast_comes_between_the_chunks_that_only_one_worker_may_run() {
    let _watchdog = watchdog();
    let pool = pool(2);
    start_all(&pool, 2);
    let mut map = pool.map(echo::task, 0..400).round_robin().chunk_size(1).buffer_size(400);
    assert_eq!(map.next().unwrap().unwrap(), 0);
    let ran = results(pool.broadcast(pid::task()));
    let ran: BTreeSet<_> = ran.into_iter().map(Result::unwrap).collect();
    assert_eq!(ran, pool.worker_pids().into_iter().collect());
    assert_eq!(map.map(Result::unwrap).collect::<Vec<_>>(), (1..400).collect::<Vec<_>>());
}

#[test]
fn x68_what_a_broadcast_costs_is_measured_in_each_worker() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let workers = start_all(&pool, 2);
    let ran = pool.broadcast(pid::task().measure_usage());
    let usages: Vec<_> = ran.iter().map(TaskFuture::usage_handle).collect();
    let ran = results(ran);
    assert_eq!(ran.len(), 2);
    for (ran, usage) in ran.into_iter().zip(usages) {
        assert_eq!(usage.get().unwrap().worker, ran.unwrap());
    }
    assert_eq!(pool.worker_pids().into_iter().collect::<BTreeSet<_>>(), workers);
}

#[test]
fn x68_a_broadcast_with_an_option_that_it_cannot_honour_is_refused() {
    let _watchdog = watchdog();
    let pool = pool(1);
    start_all(&pool, 1);
    for task in [echo::task(1).retries(2), echo::task(1).priority(1)] {
        let refused = results(pool.broadcast(task));
        assert!(matches!(refused[..], [Err(TaskError::Invalid(_))]), "{refused:?}");
    }
    let gate = Gate::new();
    let limited = results(pool.broadcast(hold::task(gate.path()).timeout(SHORT)));
    assert!(limited[0].as_ref().is_err_and(|error| error.is_timeout()), "{limited:?}");
    assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
    pool.shutdown(true);
    assert!(pool.broadcast(echo::task(1)).is_empty());
}
