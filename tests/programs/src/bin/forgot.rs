//! A program that forgot the entry point. Each start appends a line to the file named by
//! `FORGOT_LOG`, so that a test can count the starts. `FORGOT_BY` selects the API that needs the
//! entry point, and `main` returns the error. Without it, the program prints the error by
//! `Display`.

use std::io::Write;

use executor::{Context, Pool, Process, StartMethod, prelude::*};

#[task]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let log = std::env::var_os("FORGOT_LOG").expect("FORGOT_LOG names a file");
    let mut log =
        std::fs::File::options().append(true).create(true).open(log).expect("a file to append to");
    writeln!(log, "started").expect("a line");
    let started = |method| Ok(Context::new(method).process(add::task(1, 2)).start()?.join()?);
    let sum: Result<i64, Box<dyn std::error::Error>> = match std::env::var("FORGOT_BY").as_deref() {
        Ok("executor") => ProcessPoolExecutor::new()
            .map(|pool| pool.submit(add::task(1, 2)).result())?
            .map_err(Into::into),
        Ok("map") => ProcessPoolExecutor::new()?
            .map(|a| add::task(a, 2), [1])
            .next()
            .expect("an item")
            .map_err(Into::into),
        Ok("pool") => Pool::new(1)?.apply(add::task(1, 2)).map_err(Into::into),
        Ok("process") => Process::new(add::task(1, 2)).start()?.join().map_err(Into::into),
        Ok("spawn") => started(StartMethod::Spawn),
        Ok("forkserver") => started(StartMethod::ForkServer),
        Ok(other) => panic!("no such way: {other}"),
        Err(_) => {
            by_display();
            return Ok(());
        }
    };
    println!("{}", sum?);
    Ok(())
}

fn by_display() {
    match ProcessPoolExecutor::builder().max_workers(2).build() {
        Ok(pool) => match pool.submit(add::task(1, 2)).result() {
            Ok(sum) => println!("{sum}"),
            Err(error) => println!("{error}"),
        },
        Err(error) => println!("in the child: {error}"),
    }
}
