//! A subscriber of `tracing` that asks the executor whose messages it gets.

use std::{
    sync::{Mutex, Once, OnceLock},
    thread,
    time::{Duration, Instant},
};

use executor::prelude::*;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

executor::test_support!();

static POOL: OnceLock<ProcessPoolExecutor> = OnceLock::new();
/// The messages that were told, and the number of workers at that moment.
static TOLD: Mutex<Vec<(String, usize)>> = Mutex::new(Vec::new());

struct Asks;

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Asks {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        let workers = POOL.get().map_or(0, |pool| pool.stats().workers);
        TOLD.lock().unwrap().push((message.0, workers));
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// Makes it the subscriber of this process, which has several tests.
fn subscribe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Asks).unwrap());
}

#[task]
fn own_pid() -> u32 {
    std::process::id()
}

#[task]
fn sleep(millis: u64) {
    thread::sleep(Duration::from_millis(millis));
}

#[test]
fn a_subscriber_may_ask_the_executor_about_a_worker_that_is_stopped() {
    let pool = POOL.get_or_init(|| {
        ProcessPoolExecutor::builder().max_workers(1).build().expect("an executor")
    });
    let pid = pool.submit(own_pid::task()).result().unwrap();
    subscribe();
    let asleep = pool.submit(sleep::task(100));
    let signal = |signal| {
        // SAFETY: sends a signal to a worker, which is alive.
        assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
    };
    signal(libc::SIGSTOP);
    let until = Instant::now() + Duration::from_secs(30);
    let is_told = || {
        let told = TOLD.lock().unwrap();
        told.iter().any(|(message, workers)| message == "a worker is stopped" && *workers == 1)
    };
    while !is_told() {
        if Instant::now() > until {
            eprintln!("it was not told that a worker is stopped");
            // The end of the executor would wait for the thread that is blocked.
            std::process::abort();
        }
        thread::sleep(Duration::from_millis(10));
    }
    signal(libc::SIGCONT);
    asleep.result().unwrap();
}

#[task]
fn leak(bytes: usize) {
    std::mem::forget(std::hint::black_box(vec![1_u8; bytes]));
}

#[test]
fn re13_the_replacement_of_a_worker_that_has_grown_is_logged() {
    subscribe();
    let builder = ProcessPoolExecutor::builder().max_workers(1);
    let pool = builder.max_rss_growth(4 << 20).worker_memory_limit(64 << 20).build().unwrap();
    let told = |begin: &str| {
        let told = TOLD.lock().unwrap();
        told.iter().filter(|(message, _)| message.starts_with(begin)).count()
    };
    pool.submit(leak::task(1000)).result().unwrap();
    assert_eq!(told("the memory of a worker has grown"), 0);
    pool.submit(leak::task(8 << 20)).result().unwrap();
    let lost = pool.submit(leak::task(400 << 20)).result().unwrap_err();
    assert!(matches!(lost, TaskError::MemoryLimit { .. }), "{lost}");
    // The end of the pool comes after everything that is logged.
    pool.shutdown(true);
    assert_eq!(told("the memory of a worker has grown"), 1);
    assert_eq!(told("a worker had too much memory, and has ended"), 1);
}

#[test]
fn the_usage_of_each_measured_item_of_a_map_is_logged() {
    subscribe();
    let pool = ProcessPoolExecutor::builder().max_workers(2).build().unwrap();
    let told = || {
        let told = TOLD.lock().unwrap();
        told.iter().filter(|(message, _)| message == "a task has ended").count()
    };
    let bytes = |n: usize| leak::task(n);
    assert_eq!(pool.map(bytes, 0..10).filter(|outcome| outcome.is_ok()).count(), 10);
    assert_eq!(told(), 0, "they are not measured");
    let outcomes = pool.map(|n| leak::task(n).measure_usage(), 0..30);
    assert_eq!(outcomes.filter(|outcome| outcome.is_ok()).count(), 30);
    pool.shutdown(true);
    assert_eq!(told(), 30);
}
