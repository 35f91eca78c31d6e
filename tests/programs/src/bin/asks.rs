//! Prints what the library knows about its environment, in the program and in its worker.

use executor::prelude::*;

#[task]
fn args() -> Vec<String> {
    executor::args().map(|arg| arg.to_string_lossy().into_owned()).collect()
}

#[task]
fn nested_args() -> Vec<String> {
    let pool = ProcessPoolExecutor::builder().max_workers(1).build().expect("a pool in a worker");
    pool.submit(args::task()).result().expect("a worker's worker")
}

#[executor::main]
fn main() {
    let wanted = std::env::args().nth(1).expect("one of: cpus, settings, args");
    match wanted.as_str() {
        "cpus" => {
            let pool = ProcessPoolExecutor::new().expect("a pool");
            println!("{} {}", executor::usable_cpus(), pool.max_workers());
        }
        "settings" => {
            executor::log_to_stderr(tracing::Level::WARN).expect("nobody else logs");
            println!("usable: {} {}", executor::usable_cpus(), executor::usable_cpus());
            let said = |made: Result<usize, executor::BuildError>| match made {
                Ok(workers) => format!("{workers} workers"),
                Err(error) => error.to_string(),
            };
            let executor = ProcessPoolExecutor::new();
            println!("executor: {}", said(executor.map(|executor| executor.max_workers())));
            println!(
                "pool: {}",
                said(executor::Pool::builder().build().map(|pool| pool.processes()))
            );
            let told = ProcessPoolExecutor::builder().max_workers(3).build();
            println!("told: {}", said(told.map(|executor| executor.max_workers())));
        }
        "args" => {
            let pool = ProcessPoolExecutor::builder().max_workers(1).build().expect("a pool");
            let worker = pool.submit(args::task()).result().expect("a worker");
            let nested = pool.submit(nested_args::task()).result().expect("a worker's worker");
            assert_eq!(worker, args());
            assert_eq!(nested, args());
            println!("{} {}", worker.len(), worker.iter().map(String::len).sum::<usize>());
        }
        other => panic!("unknown question {other}"),
    }
}
