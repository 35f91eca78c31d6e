//! Options of a pool, and settings that it finds out by itself.

use std::{
    ffi::{OsStr, OsString},
    os::unix::{ffi::OsStringExt, process::CommandExt},
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::Duration,
};

use executor::prelude::*;

use crate::programs;

#[task]
fn recurse(levels: u64) -> u64 {
    // Uses about 1 KiB of stack for each level.
    let frame = std::hint::black_box([levels; 128]);
    if levels == 0 { 0 } else { recurse(levels - 1) + frame[0] / levels }
}

#[task]
fn add(a: u64, b: u64) -> u64 {
    a + b
}

#[test]
fn stack_size_sets_the_stack_of_tasks() {
    const LEVELS: u64 = 32 << 10;
    let small = ProcessPoolExecutor::builder().max_workers(1).stack_size(1 << 20).build().unwrap();
    let error = small.submit(recurse::task(LEVELS)).result().unwrap_err();
    assert!(error.to_string().contains("stack overflow"), "{error}");
    let large =
        ProcessPoolExecutor::builder().max_workers(1).stack_size(110 << 20).build().unwrap();
    assert_eq!(large.submit(recurse::task(LEVELS)).result().unwrap(), LEVELS);
}

#[test]
fn invalid_options_are_rejected_by_name() {
    let refused = |builder: executor::ProcessPoolBuilder, names: &str| {
        let error = builder.build().unwrap_err();
        assert!(
            matches!(error, executor::BuildError::Invalid(_)) && error.to_string().contains(names),
            "{error}"
        );
    };
    let builder = ProcessPoolExecutor::builder;
    refused(builder().max_workers(0), "max_workers");
    refused(builder().start_timeout(Duration::ZERO), "start_timeout");
    let at_once = || add::task(1, 2).timeout(Duration::ZERO);
    refused(builder().initializer(at_once()), "timeout of the initializer");
    refused(builder().finalizer(at_once()), "finalizer_timeout");
    refused(builder().max_pending(0), "max_pending");
    refused(builder().poison_limit(0), "poison_limit");
    refused(builder().max_pending_bytes(0), "max_pending_bytes");
    let (zero, some) = (Duration::ZERO, Duration::from_secs(1));
    refused(builder().default_timeout(zero), "default_timeout");
    refused(builder().default_queue_timeout(zero), "default_queue_timeout");
    refused(builder().initializer(add::task(1, 2)).initializer_timeout(zero), "above 0");
    refused(builder().initializer(add::task(1, 2).timeout(zero)), "above 0");
    refused(builder().initializer_timeout(some), "no initializer");
    refused(builder().finalizer_timeout(some), "no finalizer");
    refused(builder().stack_size(1), "stack_size");
    refused(builder().stack_size(usize::MAX), "stack_size");
    refused(builder().env("", "x"), "environment");
    refused(builder().env("A=B", "x"), "environment");
    refused(builder().env("A", "x\0y"), "environment");
}

#[test]
fn a_task_without_any_time_is_refused() {
    let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    let refused = |outcome: Result<u64, TaskError>, option: &str| {
        let error = outcome.unwrap_err();
        assert!(matches!(error, TaskError::Invalid(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains(add::NAME) && text.contains(option), "{text}");
    };
    let zero = Duration::ZERO;
    refused(pool.submit(add::task(1, 2).timeout(zero)).result(), "`timeout`");
    refused(pool.submit(add::task(1, 2).queue_timeout(zero)).result(), "`queue_timeout`");
    let outcomes: Vec<_> = pool.map(|n| add::task(n, 1).timeout(zero), 0..2).collect();
    assert_eq!(outcomes.len(), 2);
    outcomes.into_iter().for_each(|outcome| refused(outcome, "`timeout`"));
}

#[test]
fn many_threads_can_submit_to_one_pool() {
    let pool = Arc::new(ProcessPoolExecutor::builder().max_workers(2).build().unwrap());
    std::thread::scope(|scope| {
        for thread in 0..16_u64 {
            let pool = pool.clone();
            scope.spawn(move || {
                let futures: Vec<_> =
                    (0..100).map(|x| pool.submit(add::task(thread * 1000, x))).collect();
                for (x, future) in (0..100).zip(futures) {
                    assert_eq!(future.result().unwrap(), thread * 1000 + x);
                }
            });
        }
    });
    assert!(pool.worker_pids().len() <= 2);
}

fn asks() -> PathBuf {
    programs::build("dev", &[]).join("asks")
}

fn ask(command: &mut Command) -> String {
    let output = command.output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

#[test]
fn x47_usable_cpus_is_the_smallest_of_affinity_quota_and_override() {
    let all: usize = executor::usable_cpus();
    assert_eq!(ask(Command::new(asks()).arg("cpus")), format!("{all} {all}"));
    assert_eq!(ask(Command::new(asks()).arg("cpus").env("EXECUTOR_CPU_COUNT", "1")), "1 1");
    let mut one = Command::new(asks());
    one.arg("cpus");
    // SAFETY: between fork and exec, the closure only makes a system call on a local value.
    unsafe {
        one.pre_exec(|| {
            let mut set = rustix::thread::CpuSet::new();
            set.set((0..1024).find(|cpu| allowed().is_set(*cpu)).unwrap_or(0));
            Ok(rustix::thread::sched_setaffinity(None, &set)?)
        })
    };
    assert_eq!(ask(&mut one), "1 1");
}

/// Runs the program with this variable. Returns the lines it printed about its settings, and its
/// log.
fn settings(variable: &str, value: &OsStr) -> (Vec<String>, String) {
    let output =
        Command::new(asks()).arg("settings").env(variable, value).output().expect("starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{value:?}: {stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    (stdout.lines().map(str::to_owned).collect(), stderr)
}

/// Returns a value that is not UTF-8, which no variable of ours accepts.
fn not_utf8() -> OsString {
    OsString::from_vec(b"1\xff".to_vec())
}

#[test]
fn mx07_an_invalid_cpu_count_is_a_warning_or_an_error_where_it_is_needed() {
    let all: usize = executor::usable_cpus();
    let malformed = ["0", "-1", "1.5", "max", "1 000", "99999999999999999999"];
    for value in malformed.into_iter().map(OsString::from).chain([not_utf8()]) {
        let (lines, log) = settings("EXECUTOR_CPU_COUNT", &value);
        let problem = format!(
            "the environment variable EXECUTOR_CPU_COUNT is {value:?}; a positive number is understood"
        );
        let expected = [
            format!("usable: {all} {all}"),
            format!("executor: invalid option: {problem}"),
            format!("pool: invalid option: {problem}"),
            "told: 3 workers".to_owned(),
        ];
        assert_eq!(lines, expected);
        assert_eq!(log.matches(&problem).count(), 1, "{log}");
    }
    let (lines, log) = settings("EXECUTOR_CPU_COUNT", OsStr::new(""));
    assert_eq!(lines[..2], [format!("usable: {all} {all}"), format!("executor: {all} workers")]);
    assert!(!log.contains("EXECUTOR_CPU_COUNT"), "{log}");
}

#[test]
fn an_invalid_transport_is_an_error_that_names_the_variable() {
    for value in [OsString::from("nonsense"), "IPC".into(), "ring,ipc".into(), not_utf8()] {
        let (lines, _) = settings("EXECUTOR_TRANSPORT", &value);
        let problem = format!(
            "invalid option: the environment variable EXECUTOR_TRANSPORT is {value:?}; \
             `ring` (the default) or `ipc` is understood"
        );
        assert_eq!(
            lines[1..],
            ["executor", "pool", "told"].map(|made| format!("{made}: {problem}"))
        );
    }
    for value in ["", "ring", "ipc"] {
        let (lines, log) = settings("EXECUTOR_TRANSPORT", OsStr::new(value));
        assert_eq!(lines[3], "told: 3 workers", "{value}: {log}");
    }
}

fn allowed() -> rustix::thread::CpuSet {
    rustix::thread::sched_getaffinity(None).unwrap_or_default()
}

#[test]
fn a_worker_has_the_arguments_of_the_program_however_many_and_long() {
    let program = asks();
    let name = program.to_str().map(str::len).unwrap();
    assert_eq!(
        ask(Command::new(&program).arg("args").args(["two", ""])),
        format!("4 {}", name + 4 + 3)
    );
    // More than fits into one message of the handshake.
    let long = "x".repeat(100_000);
    let many = [long.as_str(); 4];
    assert_eq!(
        ask(Command::new(&program).arg("args").args(many)),
        format!("6 {}", name + 4 + 400_000)
    );
}
