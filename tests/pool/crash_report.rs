//! What a worker that crashes says about it.

use std::{fs, io::Read, os::fd::OwnedFd};

use executor::{ExitStatus, Isolation, ProcessPoolBuilder, StartMethod, prelude::*};

use crate::support::watchdog;

/// Crashes in one way of several.
#[task]
#[inline(never)]
fn crash(how: &str) {
    match how {
        // SAFETY: it is not: the address is not mapped, which is what the test is about.
        "SIGSEGV" => unsafe { std::ptr::write_volatile(0x10 as *mut u8, 1) },
        "SIGABRT" => std::process::abort(),
        // SAFETY: sends a signal to this process.
        "SIGBUS" => drop(unsafe { libc::raise(libc::SIGBUS) }),
        "overflow" => drop(overflow(u64::MAX)),
        // SAFETY: sends a signal to the process of the parent's choice, which is this one.
        "killed" => drop(
            std::process::Command::new("kill")
                .args(["-SEGV", &std::process::id().to_string()])
                .status(),
        ),
        other => panic!("{other} is none"),
    }
    loop {
        std::thread::park();
    }
}

#[expect(unconditional_recursion, reason = "its stack is to overflow")]
fn overflow(depth: u64) -> u64 {
    std::hint::black_box([depth; 64])[0] + overflow(depth - 1)
}

/// Overflows the stack of a thread of its own, whose alternate stack is std's.
#[task]
fn overflow_in_a_thread() {
    let _ = std::thread::Builder::new()
        .name("deep".into())
        .spawn(|| overflow(u64::MAX))
        .unwrap()
        .join();
}

/// Returns the error of a task that crashes in this way, and what its worker has written.
fn report_of(builder: ProcessPoolBuilder, how: &str) -> (TaskError, String) {
    let (mut read, write) = std::io::pipe().unwrap();
    let pool = builder.max_workers(1).stderr(OwnedFd::from(write)).build().unwrap();
    let error = pool.submit(crash::task(how)).result().unwrap_err();
    drop(pool);
    let mut report = String::new();
    read.read_to_string(&mut report).unwrap();
    (error, report)
}

fn signal_of(error: &TaskError) -> ExitStatus {
    match error {
        TaskError::WorkerLost { status, .. } => *status,
        other => panic!("{other}"),
    }
}

#[test]
fn br29_with_crash_reports_a_crash_leaves_its_stack_on_stderr_and_ends_as_without() {
    let _watchdog = watchdog();
    for base in [
        ProcessPoolExecutor::builder(),
        ProcessPoolExecutor::builder().start_method(StartMethod::ForkServer),
        ProcessPoolExecutor::builder().isolation(Isolation::PerTask),
    ] {
        for how in ["SIGSEGV", "SIGABRT", "SIGBUS"] {
            let (error, report) = report_of(base.clone().crash_report(true), how);
            let mut lines = report.lines();
            let first = lines.next().unwrap();
            assert!(first.contains(&format!("crashed with {how}")), "{report}");
            assert_eq!(first.contains("at address 0x10,"), how == "SIGSEGV", "{report}");
            let frames: Vec<_> = lines.collect();
            assert!(frames.len() > 5 && frames[0].starts_with("  0: "), "{report}");
            let program = fs::read_link("/proc/self/exe").unwrap();
            let here = format!("{} 0x", program.display());
            assert!(report.contains(&here), "{report}");
            let (silent, nothing) = report_of(base.clone(), how);
            assert_eq!(nothing, "", "crash reports are off");
            assert_eq!(signal_of(&error), signal_of(&silent), "the same end as without");
        }
    }
}

#[test]
fn br29_a_stack_overflow_is_reported_and_told_as_such() {
    let _watchdog = watchdog();
    let (error, report) = report_of(ProcessPoolExecutor::builder().crash_report(true), "overflow");
    assert!(error.to_string().contains("stack overflow"), "{error}");
    assert!(report.contains("crashed with SIGSEGV"), "{report}");
    let frames = frames_of(&report);
    assert_eq!(frames, 64, "not the whole of a stack that has overflowed: {report}");
}

fn frames_of(report: &str) -> usize {
    report.lines().filter(|line| line.starts_with("  ")).count()
}

/// In test binaries, std gives its threads no alternate stack: see `tests/whole_programs.rs` for
/// one that does.
#[test]
fn br29_a_crash_in_another_thread_has_frames_and_the_same_error_as_without() {
    let _watchdog = watchdog();
    let submit = |builder: ProcessPoolBuilder| {
        let (mut read, write) = std::io::pipe().unwrap();
        let pool = builder.max_workers(1).stderr(OwnedFd::from(write)).build().unwrap();
        let error = pool.submit(overflow_in_a_thread::task()).result().unwrap_err();
        drop(pool);
        let mut report = String::new();
        read.read_to_string(&mut report).unwrap();
        (error, report)
    };
    let (without, _) = submit(ProcessPoolExecutor::builder());
    let (with, report) = submit(ProcessPoolExecutor::builder().crash_report(true));
    assert_eq!(signal_of(&with), signal_of(&without), "{report}");
    let overflows = |error: &TaskError| error.to_string().contains("stack overflow");
    assert_eq!(overflows(&with), overflows(&without), "{with}, {without}, {report}");
}

#[test]
fn br29_a_signal_from_another_process_is_no_crash_of_this_one() {
    let _watchdog = watchdog();
    let (error, report) = report_of(ProcessPoolExecutor::builder().crash_report(true), "killed");
    assert_eq!(
        signal_of(&error).to_string(),
        signal_of(&report_of(ProcessPoolExecutor::builder(), "killed").0).to_string()
    );
    assert_eq!(report, "");
}

/// Is refused memory, and gives up as C code does.
#[task]
fn refuse_and_abort() {
    // SAFETY: the block is never used, and there is none.
    assert!(unsafe { libc::malloc(1 << 42) }.is_null());
    // SAFETY: ends this process.
    unsafe { libc::abort() }
}

#[test]
fn br29_a_report_that_nobody_reads_changes_no_error() {
    let _watchdog = watchdog();
    let errors = [false, true].map(|report| {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let builder = ProcessPoolExecutor::builder().max_workers(1).worker_memory_limit(1 << 30);
        let pool = builder.crash_report(report).stderr(OwnedFd::from(write)).build().unwrap();
        pool.submit(refuse_and_abort::task()).result().unwrap_err()
    });
    for error in errors {
        assert!(matches!(error, TaskError::MemoryLimit { .. }), "{error}");
    }
}
