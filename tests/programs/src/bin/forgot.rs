//! A program that forgot the entry. Each start adds a line to the file that it is given, so that a test can count.

use std::io::Write;

use executor::prelude::*;

#[task]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

fn main() {
    let log = std::env::var_os("FORGOT_LOG").expect("FORGOT_LOG names a file");
    let mut log = std::fs::File::options().append(true).create(true).open(log).expect("a file to append to");
    writeln!(log, "started").expect("a line");
    match ProcessPoolExecutor::builder().max_workers(2).build() {
        Ok(pool) => match pool.submit(add::task(1, 2)).result() {
            Ok(sum) => println!("{sum}"),
            Err(error) => println!("{error}"),
        },
        Err(error) => println!("in the child: {error}"),
    }
}
