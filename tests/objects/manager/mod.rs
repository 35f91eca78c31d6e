//! Managers: objects in a server process, used by threads and futures of this process, by workers
//! and by processes with one task, some of which die.

mod containers;
mod deaths;
mod far;
mod far_handles;
mod futures;
mod handles;
mod large;
mod life;
mod own;
mod own_far;
mod own_handles;
mod pool;
mod reconnect;
mod synchronisation;
mod updates;

use std::time::Duration;

use executor::{
    Child, IntoBody, Process,
    manager::{Manager, ManagerError},
};

use crate::support::{LONG, eventually};

const SHORT: Duration = Duration::from_millis(20);

type Done = Result<(), ManagerError>;

/// Starts a process with this task.
#[track_caller]
fn start<T>(task: impl IntoBody<Output = T>) -> Child<T> {
    Process::new(task).start().expect("a process can be started")
}

/// Waits until the server has this number of objects.
#[track_caller]
fn has_objects(manager: &Manager, count: u64) {
    eventually(&format!("the server has {count} objects"), || {
        manager.objects().expect("the server runs") == count
    });
}

/// Kills this process with SIGKILL while it holds everything that it has acquired.
fn die() -> ! {
    // SAFETY: only sends a signal to this process itself.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    unreachable!("it was killed")
}

/// Sleeps until this process is killed.
fn sleep() -> ! {
    loop {
        std::thread::park();
    }
}

/// Waits for the end of a process that is to be killed.
#[track_caller]
fn ends_killed<T>(child: &Child<T>) {
    child.join_timeout(LONG).expect("it ends").map(drop).expect_err("it was killed");
}
