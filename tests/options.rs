//! What a pool is told, and what it finds out by itself.

use std::{os::unix::process::CommandExt, path::PathBuf, process::Command, sync::Arc};

use executor::prelude::*;

#[path = "programs/builder.rs"]
mod programs;

executor::test_support!();

#[task]
fn recurse(levels: u64) -> u64 {
    // About 1 KiB a level.
    let frame = std::hint::black_box([levels; 128]);
    if levels == 0 { 0 } else { recurse(levels - 1) + frame[0] / levels }
}

#[task]
fn add(a: u64, b: u64) -> u64 {
    a + b
}

#[test]
fn stack_size_is_what_tasks_have() {
    const LEVELS: u64 = 32 << 10;
    let small = ProcessPoolExecutor::builder().max_workers(1).stack_size(1 << 20).build().unwrap();
    let error = small.submit(recurse::task(LEVELS)).result().unwrap_err();
    assert!(error.to_string().contains("stack overflow"), "{error}");
    let large = ProcessPoolExecutor::builder().max_workers(1).stack_size(110 << 20).build().unwrap();
    assert_eq!(large.submit(recurse::task(LEVELS)).result().unwrap(), LEVELS);
}

#[test]
fn options_that_make_no_sense_are_refused_by_name() {
    let refused = |builder: executor::ProcessPoolBuilder, names: &str| {
        let error = builder.build().unwrap_err();
        assert!(
            matches!(error, executor::BuildError::Invalid(_)) && error.to_string().contains(names),
            "{error}"
        );
    };
    let builder = ProcessPoolExecutor::builder;
    refused(builder().max_workers(0), "max_workers");
    refused(builder().start_timeout(std::time::Duration::ZERO), "start_timeout");
    refused(builder().stack_size(1), "stack_size");
    refused(builder().stack_size(usize::MAX), "stack_size");
    refused(builder().env("", "x"), "environment");
    refused(builder().env("A=B", "x"), "environment");
    refused(builder().env("A", "x\0y"), "environment");
}

#[test]
fn many_threads_submit_to_one_pool() {
    let pool = Arc::new(ProcessPoolExecutor::builder().max_workers(2).build().unwrap());
    std::thread::scope(|scope| {
        for thread in 0..16_u64 {
            let pool = pool.clone();
            scope.spawn(move || {
                let futures: Vec<_> = (0..100).map(|x| pool.submit(add::task(thread * 1000, x))).collect();
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
fn usable_cpus_is_the_smallest_of_affinity_quota_and_override() {
    let all: usize = executor::usable_cpus();
    assert_eq!(ask(Command::new(asks()).arg("cpus")), format!("{all} {all}"));
    assert_eq!(ask(Command::new(asks()).arg("cpus").env("EXECUTOR_CPU_COUNT", "1")), "1 1");
    assert_eq!(
        ask(Command::new(asks()).arg("cpus").env("EXECUTOR_CPU_COUNT", "nonsense")),
        format!("{all} {all}")
    );
    let mut one = Command::new(asks());
    one.arg("cpus");
    // SAFETY: only a system call on a local value between fork and exec.
    unsafe {
        one.pre_exec(|| {
            let mut set = rustix::thread::CpuSet::new();
            set.set((0..1024).find(|cpu| allowed().is_set(*cpu)).unwrap_or(0));
            Ok(rustix::thread::sched_setaffinity(None, &set)?)
        })
    };
    assert_eq!(ask(&mut one), "1 1");
}

#[test]
fn mx07_a_malformed_limit_is_ignored() {
    let all: usize = executor::usable_cpus();
    for malformed in ["", "0", "-1", "1.5", "max", "1 000", "99999999999999999999"] {
        let asked = ask(Command::new(asks()).arg("cpus").env("EXECUTOR_CPU_COUNT", malformed));
        assert_eq!(asked, format!("{all} {all}"), "{malformed:?}");
    }
}

fn allowed() -> rustix::thread::CpuSet {
    rustix::thread::sched_getaffinity(None).unwrap_or_default()
}

#[test]
fn a_worker_knows_the_arguments_of_the_program_however_many_and_however_deep() {
    let program = asks();
    let name = program.to_str().map(str::len).unwrap();
    assert_eq!(ask(Command::new(&program).arg("args").args(["two", ""])), format!("4 {}", name + 4 + 3));
    // More than fits into one message of the handshake.
    let long = "x".repeat(100_000);
    let many = [long.as_str(); 4];
    assert_eq!(ask(Command::new(&program).arg("args").args(many)), format!("6 {}", name + 4 + 400_000));
}
