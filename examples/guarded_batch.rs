//! A batch that nobody watches: limits on time and memory, retries, and a report of what failed and
//! why. Each document that cannot be converted costs one line of the report, and nothing else.
//!
//! `cargo run --release --example guarded_batch`

use std::{collections::BTreeMap, fs::File, path::Path, time::Duration};

use executor::prelude::*;

const LIMIT: u64 = 64 << 20;

/// Stands for a converter with bugs. Some of its input is bad, and its server is down now and then.
#[task]
fn convert(document: u32, server: &Path) -> Result<u32, String> {
    match document {
        // Whoever creates the file finds that the server does not answer.
        7 | 19 if File::create_new(server.join(document.to_string())).is_ok() => {
            return Err("the server does not answer".into());
        }
        11 => return Err("the server has no such document".into()),
        // It grows until it is ended.
        23 => loop {
            std::mem::forget(vec![1_u8; 1 << 20]);
        },
        31 => loop {
            std::thread::park();
        },
        37 => std::process::abort(),
        41 => panic!("index out of bounds: the page has 2 columns"),
        _ => {}
    }
    Ok(document % 9 + 1)
}

/// Returns the words under which an operator looks for the error.
fn kind(error: &TaskError) -> &'static str {
    match error {
        TaskError::Failed(_) => "failed",
        TaskError::Panicked(_) => "panicked",
        TaskError::TimedOut { .. } => "too slow",
        TaskError::MemoryLimit { .. } => "too large",
        TaskError::WorkerLost { .. } => "crashed",
        _ => "not run",
    }
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = tempfile::tempdir()?;
    let pool = ProcessPoolExecutor::builder()
        .max_workers(2)
        .worker_memory_limit(LIMIT)
        .default_timeout(Duration::from_secs(1))
        .poison_limit(2) // A document that has ended two workers is not tried a third time.
        .max_pending(100) // However many documents there are, so many are in memory.
        .build()?;
    let guarded = |document| {
        let task = convert::task(document, server.path()).retries(3);
        // What panics, or is too slow or too large, is so again.
        task.retry_on(|error| error.is_failed() || error.is_worker_lost())
            .retry_delay(Duration::from_millis(5))
    };
    let (mut pages, mut failed) = (0, BTreeMap::<_, Vec<_>>::new());
    for (document, result) in pool.map(guarded, 0..60).unordered().with_index() {
        match result {
            Ok(count) => pages += count,
            Err(error) => failed.entry(kind(&error)).or_default().push((document, error)),
        }
    }
    let stats = pool.stats();
    println!("{pages} pages; {} attempts more, {} workers lost", stats.retried, stats.workers_lost);
    for (kind, documents) in &failed {
        println!("{kind}:");
        documents.iter().for_each(|(document, error)| println!("  document {document}: {error}"));
    }
    assert_eq!(failed.values().flatten().count(), 5);
    Ok(())
}
