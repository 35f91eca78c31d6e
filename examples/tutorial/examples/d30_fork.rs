//! `os.fork()`: both processes go on, each with its own `index`. `fork` returns twice, and a
//! failure is an `Err` instead of a negative pid. (`fork_with(closure)` runs a closure in the
//! child, and fails if the process has other threads.)

use executor::{Fork, getpid, getppid};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut index = 0;
    // SAFETY: this program has only one thread.
    let side = unsafe { executor::fork()? };
    index += 1;
    match side {
        Fork::Child => println!("child {} of {}: index {index}", getpid(), getppid()),
        Fork::Parent(child) => {
            // The caller of `fork` must wait for the child itself.
            let mut status = 0;
            // SAFETY: `child` is a child of this process, and `status` is valid for writing.
            unsafe { libc::waitpid(child as libc::pid_t, &raw mut status, 0) };
            println!("parent {} of {child}: index {index}", getpid());
        }
    }
    Ok(())
}
