//! The command-line interface that `cargo test` and `cargo nextest` expect of a test binary with
//! its own `main`.

use std::{panic::catch_unwind, process::exit, time::Instant};

/// Runs the tests that the arguments select, one after the other, and ends the process.
pub(crate) fn run(tests: &[(&str, fn())]) -> ! {
    let (mut filters, mut skipped, mut exact, mut list, mut ignored) =
        (Vec::new(), Vec::new(), false, false, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--exact" => exact = true,
            "--list" => list = true,
            "--ignored" => ignored = true,
            "--skip" => skipped.extend(args.next()),
            "--format" | "--color" | "--test-threads" | "--logfile" | "-Z" => drop(args.next()),
            option if option.starts_with('-') => {}
            _ => filters.push(arg),
        }
    }
    let matches = |name: &str, filter: &String| {
        if exact { name == filter } else { name.contains(filter.as_str()) }
    };
    let chosen = tests.iter().filter(|(name, _)| {
        !ignored
            && (filters.is_empty() || filters.iter().any(|filter| matches(name, filter)))
            && !skipped.iter().any(|filter| matches(name, filter))
    });
    let mut failed = 0;
    for (name, test) in chosen {
        if list {
            println!("{name}: test");
            continue;
        }
        let start = Instant::now();
        let passed = catch_unwind(test).is_ok();
        println!(
            "test {name} ... {} ({:?})",
            if passed { "ok" } else { "FAILED" },
            start.elapsed()
        );
        failed += i32::from(!passed);
    }
    exit(if failed > 0 { 101 } else { 0 })
}
