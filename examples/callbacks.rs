//! A batch job: submits all inputs, collects the results in callbacks, and shuts down at the end.
//!
//! `cargo run --release --example callbacks`

use std::sync::{Arc, Mutex};

use executor::prelude::*;

#[derive(Default)]
struct Report {
    done: u32,
    bad: Vec<String>,
}

/// Parses one of many inputs. `Err` fails the task, as an exception does in Python.
#[task]
fn parse(line: &str) -> Result<u32, std::num::ParseIntError> {
    line.trim().parse()
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = ProcessPoolExecutor::new()?;
    let report = Arc::new(Mutex::new(Report::default()));

    for line in ["1", "22", "three", "4 ", "", "666"] {
        let report = Arc::clone(&report);
        // The callback runs in this process, on the executor's callback thread, one at a time.
        pool.submit(parse::task(line).name(format!("parse {line:?}"))).on_done(move |outcome| {
            let mut report = report.lock().unwrap();
            match outcome {
                Ok(_) => report.done += 1,
                Err(error) => report.bad.push(error.to_string()),
            }
        });
    }

    // `shutdown` returns when every task has ended and every callback has run.
    pool.shutdown(true);
    let report = report.lock().unwrap();
    println!("{} lines parsed, {} bad:", report.done, report.bad.len());
    report.bad.iter().for_each(|line| println!("  {line}"));
    Ok(())
}
