//! `os.fork()`: both sides go on, each with its own `index`. It returns twice, and an error is an error, not a negative pid.
//! (`fork_with(closure)` runs a closure in the copy, and refuses where there are other threads.)

use executor::{Fork, getpid, getppid};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut index = 0;
    // SAFETY: this program has one thread.
    let side = unsafe { executor::fork()? };
    index += 1;
    match side {
        Fork::Child => println!("child {} of {}: index {index}", getpid(), getppid()),
        Fork::Parent(child) => {
            // A child of `fork` is the caller's to wait for.
            let mut status = 0;
            // SAFETY: waits for a child of this process.
            unsafe { libc::waitpid(child as libc::pid_t, &raw mut status, 0) };
            println!("parent {} of {child}: index {index}", getpid());
        }
    }
    Ok(())
}
