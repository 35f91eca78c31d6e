//! Guards a program against dangerous code: shows what the caller sees when a task crashes, hangs
//! or panics, and that other tasks are not affected.
//!
//! `cargo run --release --example crash_guard`

use std::time::Duration;

use executor::prelude::*;

/// Stands for a native library with bugs.
#[task]
fn native(input: u32) -> u32 {
    match input {
        2 => {
            // SAFETY: none. This writes to address zero on purpose, and SIGSEGV ends the process.
            unsafe {
                std::ptr::without_provenance_mut::<u8>(std::hint::black_box(0)).write_volatile(1)
            }
            0
        }
        3 => loop {
            std::hint::spin_loop();
        },
        4 => panic!("an assertion failed"),
        5 => std::process::exit(7),
        6 => deeper(1),
        fine => fine * 10,
    }
}

#[expect(unconditional_recursion, reason = "it is meant to overflow the stack")]
fn deeper(level: u32) -> u32 {
    std::hint::black_box([level; 100])[0] + deeper(level + 1)
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = ProcessPoolExecutor::builder().max_workers(2).build()?;
    let tasks = (0..9).map(|input| native::task(input).timeout(Duration::from_millis(300)));
    let futures: Vec<_> = tasks.map(|task| pool.submit(task)).collect();
    for (input, future) in futures.into_iter().enumerate() {
        match future.result() {
            Ok(value) => println!("{input}: {value}"),
            Err(TaskError::WorkerLost { pid, status, .. }) if status.code() == Some(7) => {
                println!("{input}: process {pid} left, with the code it was told to");
            }
            Err(error) => println!("{input}: {error}"),
        }
    }
    println!("and the pool still works: {}", pool.submit(native::task(10)).result()?);
    Ok(())
}
