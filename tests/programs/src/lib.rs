//! A library with tasks, as programs and their tests use it. It has a constructor that runs before
//! `main`, and a task with the same name as a task of the program in this package.

use std::{
    ffi::{c_char, c_int},
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
};

use executor::task;

static READY: AtomicU32 = AtomicU32::new(0);
static ARGUMENTS: AtomicUsize = AtomicUsize::new(0);
static RUNS: AtomicU32 = AtomicU32::new(0);

/// Runs before `main`, as constructors of C++ statics and of plugin registries do.
extern "C" fn construct(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    RUNS.fetch_add(1, Ordering::SeqCst);
    ARGUMENTS.store(argc as usize, Ordering::SeqCst);
    READY.store(if argv.is_null() || envp.is_null() { 1 } else { 7 }, Ordering::SeqCst);
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCT: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = construct;

/// Returns what the constructor has written: 7, the number of arguments that it received, and how
/// often it ran.
#[task]
pub fn constructed() -> (u32, usize, u32) {
    (READY.load(Ordering::SeqCst), ARGUMENTS.load(Ordering::SeqCst), RUNS.load(Ordering::SeqCst))
}

/// The program in this package has a task with the same name.
#[task]
pub fn work(x: u32) -> u32 {
    x + 100
}
