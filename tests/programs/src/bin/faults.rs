//! Causes panics and aborts of every kind, in a program built in each profile. The parent checks
//! the errors here.

use executor::{ExitStatus, Process, StartMethod, Stdio, prelude::*};

#[task]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

#[task]
fn panics() {
    panic!("it broke: {}", 7)
}

/// Panics where unwinding is impossible.
#[task]
fn panics_in_c() {
    extern "C" fn callback() {
        panic!("in a callback")
    }
    callback();
}

#[task]
fn panics_while_panicking() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in a destructor")
        }
    }
    let _bomb = Bomb;
    panic!("the first one")
}

#[task]
fn overflows(depth: u64) -> u64 {
    if depth == u64::MAX {
        return 0;
    }
    std::hint::black_box([depth; 64])[0] + overflows(std::hint::black_box(depth + 1))
}

#[task]
fn overflows_in_a_thread(bytes: usize) -> u64 {
    let thread = std::thread::Builder::new().stack_size(bytes).spawn(|| overflows(0));
    thread.expect("a thread").join().expect("it overflows")
}

/// Writes beyond the end of its memory, in a thread.
#[task]
fn faults_in_a_thread() {
    let faults = || {
        // SAFETY: none, it is meant to fault.
        unsafe { std::ptr::without_provenance_mut::<u8>(std::hint::black_box(8)).write_volatile(1) }
    };
    std::thread::spawn(faults).join().expect("it faults");
}

#[task]
fn aborts() {
    std::process::abort()
}

#[executor::main]
fn main() {
    let pool = ProcessPoolExecutor::builder().max_workers(2).build().expect("a pool");
    let panicked = |future: TaskFuture<()>, message: &str| match future.result() {
        Err(TaskError::Panicked(error)) => {
            assert_eq!(error.message(), message);
            let location = error.location().expect("a place");
            assert!(location.contains("faults.rs:"), "{location}");
        }
        other => panic!("{message}: {other:?}"),
    };
    panicked(pool.submit(panics::task()), "it broke: 7");
    panicked(pool.submit(panics_in_c::task()), "in a callback");
    // With unwinding, the second panic is reported. Without it, the first one ends the process.
    match pool.submit(panics_while_panicking::task()).result() {
        Err(TaskError::Panicked(error)) => {
            assert!(["the first one", "in a destructor"].contains(&error.message()), "{error:?}");
        }
        other => panic!("{other:?}"),
    }
    let overflow = pool.submit(overflows::task(0)).result().expect_err("an overflow");
    assert!(overflow.is_worker_lost(), "{overflow}");
    assert!(overflow.to_string().contains("stack overflow"), "{overflow}");
    for bytes in [64 << 10, 8 << 20] {
        let overflow = pool.submit(overflows_in_a_thread::task(bytes)).result();
        let overflow = overflow.expect_err("an overflow").to_string();
        assert!(overflow.contains("stack overflow"), "{overflow}");
    }
    let fault = pool.submit(faults_in_a_thread::task()).result().expect_err("a fault").to_string();
    assert!(fault.contains("SIGSEGV") && !fault.contains("stack overflow"), "{fault}");
    let abort = pool.submit(aborts::task()).result().expect_err("an abort");
    assert!(abort.is_worker_lost() && abort.to_string().contains("SIGABRT"), "{abort}");
    assert_eq!(pool.submit(add::task(1, 2)).result().expect("whole again"), 3);
    pool.shutdown(true);
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        processes(method);
    }
    println!("all faults came home");
}

/// Causes the same faults in single processes, and checks their exit codes too.
fn processes(method: StartMethod) {
    let abort = ExitStatus::Signaled(libc::SIGABRT);
    let unwound = if cfg!(panic = "unwind") { ExitStatus::Exited(101) } else { abort };
    let (one, other) = (Process::new(panics::task()), Process::new(panics_in_c::task()));
    for (process, message, status) in
        [(one, "it broke: 7", unwound), (other, "in a callback", abort)]
    {
        let child = process.stderr(Stdio::null()).start_method(method).start().expect("a start");
        match child.join() {
            Err(TaskError::Panicked(error)) => {
                assert_eq!(error.message(), message);
                assert!(error.location().expect("a place").contains("faults.rs:"), "{error:?}");
            }
            other => panic!("{method:?} {message}: {other:?}"),
        }
        assert_eq!(child.exit_code(), Some(status), "{method:?} {message}");
    }
    let child = Process::new(overflows::task(0)).stderr(Stdio::null()).start_method(method).start();
    let overflow = child.expect("a start").join().expect_err("an overflow");
    assert!(
        overflow.is_worker_lost() && overflow.to_string().contains("stack overflow"),
        "{overflow}"
    );
    let child = Process::new(aborts::task()).start_method(method).start().expect("a start");
    assert!(child.join().expect_err("an abort").is_worker_lost());
    assert_eq!(child.exit_code(), Some(abort));
    let child = Process::new(add::task(1, 2)).start_method(method).start().expect("a start");
    assert_eq!(child.join().expect("a sum"), 3);
}
