//! What a task has cost: `measure_usage`, and the figures that the future returns.

use std::{
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use executor::{StartError, Usage, prelude::*};

use crate::support::*;

const MIB: usize = 1 << 20;

#[task]
fn fill(bytes: usize) -> usize {
    let filled = vec![1_u8; bytes];
    std::hint::black_box(&filled).iter().step_by(4096).map(|byte| usize::from(*byte)).sum()
}

#[task]
fn sleep(millis: u64) -> u32 {
    thread::sleep(Duration::from_millis(millis));
    std::process::id()
}

/// Uses this much processor time, all of it in user mode.
#[task]
fn burn(millis: u64) {
    let used = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let until = used() + Duration::from_millis(millis);
    while used() < until {
        (0..1000).for_each(|n| _ = std::hint::black_box(n));
    }
}

#[task]
fn repeat(bytes: Vec<u8>) -> Vec<u8> {
    bytes.repeat(2)
}

#[task]
fn panic_at_once() {
    panic!("as asked");
}

#[task]
fn fail_at_first(marks: &Path) -> Result<u32, String> {
    match std::fs::File::create_new(marks.join("tried")) {
        Ok(_) => Err("not yet".into()),
        Err(_) => Ok(std::process::id()),
    }
}

/// Waits for the end of a measured task.
fn usage_of<T>(future: &TaskFuture<T>) -> Usage {
    future.wait();
    future.usage().expect("it was measured")
}

#[test]
fn time_and_processor_time_of_a_task_are_told_apart() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let begin = Instant::now();
    let asleep = pool.submit(sleep::task(60).measure_usage());
    let usage = usage_of(&asleep);
    let passed = begin.elapsed();
    assert!((Duration::from_millis(60)..=passed).contains(&usage.running), "{usage:?}");
    assert!(usage.queued + usage.running <= passed, "{usage:?} {passed:?}");
    assert!(usage.cpu_user + usage.cpu_system < Duration::from_millis(60), "{usage:?}");
    assert_eq!((usage.worker, usage.attempt), (asleep.result().unwrap(), 1));
    let usage = usage_of(&pool.submit(burn::task(60).measure_usage()));
    let cpu = usage.cpu_user + usage.cpu_system;
    // The system may count the two to a tick of its clock.
    assert!(cpu >= Duration::from_millis(50), "{usage:?}");
    assert!(usage.running >= Duration::from_millis(60), "{usage:?}");
}

/// Takes this many milliseconds to be decoded.
#[derive(serde::Serialize)]
struct Slow(u64);

impl<'de> serde::Deserialize<'de> for Slow {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Slow(millis) = Slow(u64::deserialize(deserializer)?);
        // It does not enforce an order: this is the time that is measured.
        thread::sleep(Duration::from_millis(millis));
        if millis == 31 { Err(serde::de::Error::custom("not this one")) } else { Ok(Slow(millis)) }
    }
}

#[task]
fn sleep_after(slow: Slow, millis: u64) -> u64 {
    thread::sleep(Duration::from_millis(millis));
    slow.0
}

#[test]
fn the_time_for_decoding_the_arguments_is_a_part_of_the_running_time() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let millis = Duration::from_millis;
    let usage = usage_of(&pool.submit(sleep_after::task(Slow(40), 60).measure_usage()));
    assert!(usage.decoding >= millis(40), "{usage:?}");
    assert!(usage.running - usage.decoding >= millis(60), "{usage:?}");
    // If they cannot be decoded, it is all of it.
    let usage = usage_of(&pool.submit(sleep_after::task(Slow(31), 0).measure_usage()));
    assert!(usage.decoding == usage.running && usage.decoding >= millis(31), "{usage:?}");
    // What one task took is not that of the next.
    let usage = usage_of(&pool.submit(sleep::task(60).measure_usage()));
    assert!(usage.running - usage.decoding >= millis(60), "{usage:?}");
}

#[test]
fn the_time_in_the_queue_ends_when_the_task_begins() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let first = pool.submit(hold::task(gate.path()).measure_usage());
    gate.wait_for(1);
    let submitted = Instant::now();
    let second = pool.submit(pid::task().measure_usage());
    assert!(first.usage().is_none() && second.usage().is_none(), "they have not ended");
    // This sleep does not enforce an order: it is time that the usage must contain.
    thread::sleep(Duration::from_millis(30));
    let waited = submitted.elapsed();
    gate.open();
    let usage = usage_of(&second);
    assert!(usage.queued >= waited - Duration::from_millis(1), "{usage:?} {waited:?}");
    assert!(usage.queued <= submitted.elapsed(), "{usage:?}");
    assert!(usage_of(&first).running >= waited, "{:?}", first.usage());
}

#[test]
fn the_peak_of_memory_is_that_of_the_task() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let [large, small] = [64 * MIB, 4096].map(|bytes| {
        let future = pool.submit(fill::task(bytes).measure_usage());
        let usage = usage_of(&future);
        assert!(usage.private_memory.unwrap() > 0, "{usage:?}");
        (usage, future.result().unwrap())
    });
    assert_eq!((large.1, small.1), (64 * MIB / 4096, 1));
    let peak = |usage: Usage| usage.peak_memory.unwrap();
    assert!(peak(large.0) >= 64 << 20 && peak(large.0) < 200 << 20, "{large:?}");
    assert!(peak(small.0) < 64 << 20 && peak(small.0) > 0, "{small:?}");
    assert!(large.0.minor_faults > small.0.minor_faults, "{large:?} {small:?}");
}

#[test]
fn the_bytes_of_arguments_and_results_are_counted_wherever_they_are() {
    let _watchdog = watchdog();
    let pool = pool(1);
    for len in [100, 40 << 10, 3 * MIB] {
        let future = pool.submit(repeat::task(vec![7; len]).measure_usage());
        let Usage { bytes_in, bytes_out, .. } = usage_of(&future);
        // The length of a vector is encoded in front of it.
        assert!((len as u64..len as u64 + 10).contains(&bytes_in), "{len} {bytes_in}");
        assert!((2 * len as u64..2 * len as u64 + 10).contains(&bytes_out), "{len} {bytes_out}");
        assert_eq!(future.result().unwrap(), vec![7; 2 * len]);
    }
}

#[test]
fn failed_tasks_have_a_usage_and_lost_ones_have_none() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let failed = pool.submit(fail::task("no".into()).measure_usage());
    assert!(usage_of(&failed).bytes_out > 0);
    assert!(failed.result().unwrap_err().is_failed());
    let panicked = pool.submit(panic_at_once::task().measure_usage());
    assert_eq!(usage_of(&panicked).attempt, 1);
    assert!(panicked.result().unwrap_err().is_panic());
    let lost = pool.submit(exit::task(3).measure_usage());
    lost.wait();
    assert_eq!(lost.usage(), None);
    let unmeasured = pool.submit(pid::task());
    unmeasured.wait();
    assert_eq!(unmeasured.usage(), None);
    let shut_down = {
        pool.shutdown(true);
        pool.submit(pid::task().measure_usage())
    };
    assert_eq!(shut_down.usage(), None);
}

#[test]
fn the_usage_is_that_of_the_last_attempt_that_was_answered() {
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let delay = Duration::from_millis(20);
    let task = fail_at_first::task(gate.path()).retries(3).retry_delay(delay).measure_usage();
    let future = pool.submit(task);
    let usage = usage_of(&future);
    assert_eq!((usage.attempt, usage.worker), (2, future.result().unwrap()));
    // At least half of the delay is left.
    assert!(usage.queued >= delay / 2, "{usage:?}");
    let task = fail::task("never".into()).retries(2).retry_delay(Duration::ZERO).measure_usage();
    let future = pool.submit(task);
    assert_eq!(usage_of(&future).attempt, 3);
    assert_eq!(future.result().unwrap_err().attempts(), 3);
}

#[test]
fn callbacks_and_async_code_get_the_usage_by_a_handle() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (told, heard) = mpsc::channel();
    let future = pool.submit(pid::task().measure_usage());
    let usage = future.usage_handle();
    future.on_done(move |outcome| told.send((outcome, usage.get())).unwrap());
    let (outcome, usage) = heard.recv().unwrap();
    assert_eq!(usage.unwrap().worker, outcome.unwrap());
    let future = pool.submit(pid::task().measure_usage());
    let handle = future.usage_handle();
    let worker = futures::executor::block_on(future).unwrap();
    assert_eq!(handle.get().unwrap().worker, worker);
}

#[test]
fn measured_tasks_among_others_get_their_own_usage() {
    let _watchdog = watchdog();
    let pool = pool(3);
    let futures: Vec<_> = (0..2_000_usize)
        .map(|n| {
            let task = repeat::task(vec![1; n]);
            pool.submit(if n % 3 == 0 { task.measure_usage() } else { task })
        })
        .collect();
    for (n, future) in futures.into_iter().enumerate() {
        future.wait();
        match future.usage() {
            Some(usage) => {
                assert_eq!(n % 3, 0);
                assert!((n as u64..n as u64 + 10).contains(&usage.bytes_in), "{n} {usage:?}");
                assert!(pool.worker_pids().contains(&usage.worker));
            }
            None => assert_ne!(n % 3, 0),
        }
        assert_eq!(future.result().unwrap().len(), 2 * n);
    }
}

#[test]
fn what_cannot_report_a_usage_refuses_to_measure_it() {
    let error = executor::Process::new(pid::task().measure_usage()).start().unwrap_err();
    assert!(matches!(&error, StartError::Invalid(_)), "{error:?}");
    assert!(error.to_string().contains("measure_usage"), "{error}");
    let builder = ProcessPoolExecutor::builder().initializer(pid::task().measure_usage());
    let error = builder.build().unwrap_err();
    assert!(error.to_string().contains("measure_usage"), "{error}");
}
