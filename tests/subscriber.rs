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

/// What was told, with all figures: "LEVEL message, name=value, …".
static FIGURES: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[derive(Default)]
struct Message {
    text: String,
    figures: String,
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => self.text = format!("{value:?}"),
            name => self.figures += &format!(", {name}={value:?}"),
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
        let mut message = Message::default();
        event.record(&mut message);
        let Message { text, figures } = message;
        FIGURES.lock().unwrap().push(format!("{} {text}{figures}", event.metadata().level()));
        let workers = POOL.get().map_or(0, |pool| pool.stats().workers);
        TOLD.lock().unwrap().push((text, workers));
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
    for line in with("a task has ended, ", "") {
        // It has waited for the worker, and be it for some microseconds.
        assert!(line.contains("queued=") && !line.contains("queued=0ns"), "{line}");
    }
}

/// Returns what was told so far that begins and contains this.
fn with(begin: &str, part: &str) -> Vec<String> {
    let figures = FIGURES.lock().unwrap();
    let is_meant = |line: &&String| {
        let text = line.split_once(' ').map_or("", |(_, text)| text);
        text.starts_with(begin) && line.contains(part)
    };
    figures.iter().filter(is_meant).cloned().collect()
}

#[task]
fn crash() {
    std::process::exit(3);
}

#[task]
fn fail() -> Result<(), String> {
    Err("there is no server".into())
}

#[test]
fn attempts_lost_workers_and_time_limits_are_logged() {
    subscribe();
    let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    let soon = Duration::from_millis(1);
    let task = fail::task().name("fails twice").retries(2).retry_delay(soon);
    assert_eq!(pool.submit(task).result().unwrap_err().attempts(), 3);
    let again = with("a task is tried again", "fails twice");
    assert_eq!(again.len(), 2, "{again:?}");
    assert!(again[0].starts_with("DEBUG ") && again[0].contains("attempt=2"), "{again:?}");
    assert!(again[0].contains("there is no server") && again[0].contains("delay="), "{again:?}");
    assert!(again[1].contains("attempt=3"), "{again:?}");

    let task = crash::task().name("is poison").retries(9).retry_delay(soon);
    assert_eq!(pool.submit(task).result().unwrap_err().attempts(), 3);
    assert!(pool.submit(crash::task().name("ends")).result().unwrap_err().is_worker_lost());
    let soon = Duration::from_millis(20);
    let task = sleep::task(60_000).name("is too slow").timeout(soon).retries(1);
    assert!(pool.submit(task).result().unwrap_err().is_timeout());
    // Everything that is logged comes before the end of the pool.
    pool.shutdown(true);
    let lost = with("a worker was lost", "is poison");
    assert_eq!(lost.len(), 3, "{lost:?}");
    assert!(lost[0].starts_with("WARN ") && lost[0].contains("exited with code 3"), "{lost:?}");
    assert!(lost[0].contains("pid="), "{lost:?}");
    let given_up = with("a task has ended too many workers", "is poison");
    assert!(given_up.len() == 1 && given_up[0].contains("attempts=3"), "{given_up:?}");
    assert_eq!(with("a worker was lost", "task=\"ends\"").len(), 1);
    assert!(with("a task has ended too many workers", "\"ends\"").is_empty());
    let late = with("a task has run for too long", "is too slow");
    assert_eq!(late.len(), 2, "{late:?}");
    assert!(late[0].starts_with("WARN ") && late[0].contains("limit=20ms"), "{late:?}");
    assert!(late[0].contains("attempt=1") && late[1].contains("attempt=2"), "{late:?}");
}

#[task]
fn first_one_only(marks: std::path::PathBuf) {
    if std::fs::File::create_new(marks).is_err() {
        sleep(60_000);
    }
}

#[test]
fn a_worker_whose_initializer_hangs_beside_others_is_logged() {
    subscribe();
    let marks = tempfile::tempdir().unwrap();
    let initializer = first_one_only::task(marks.path().join("first"));
    let builder = ProcessPoolExecutor::builder().max_workers(2).initializer(initializer);
    let pool = builder.initializer_timeout(Duration::from_secs(1)).build().unwrap();
    pool.submit(own_pid::task()).result().unwrap();
    let busy: Vec<_> = (0..2).map(|_| pool.submit(sleep::task(1500))).collect();
    let until = Instant::now() + Duration::from_secs(60);
    while with("a worker has not become ready", "`initializer_timeout`").is_empty() {
        assert!(Instant::now() < until, "it was not told");
        thread::sleep(Duration::from_millis(10));
    }
    drop(busy);
    pool.kill_workers();
}
