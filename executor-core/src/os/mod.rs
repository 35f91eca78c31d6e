//! What is asked of the operating system, in one place.
//!
//! ```text
//! socket   a SOCK_SEQPACKET pair: one message in, one message out, descriptors ride along
//! image    what was loaded as this program: its constructors, its file
//! spawn    starts a program that inherits its standard streams only
//! process  start, watch (pidfd), signal (the whole group), reap
//! group    what a child has started, found also when the child is gone
//! orphans  what children have left behind, where that becomes ours
//! signals  the caller's mask and what SIGPIPE does, for children
//! limits   what the system is to refuse a process
//! file     files for shared memory: the only place where one grows
//! memory   an anonymous, sealed page that parent and child both see
//! sync     atomics and locks, std's or a model checker's
//! arena    large pieces of shared memory, in one anonymous file
//! asked    what was asked for, in an error
//! setting  what users set by the environment
//! sealed   bytes in an anonymous file of their own, sealed against writing
//! ready    sleeping until a descriptor is ready
//! random   random numbers
//! clock    the monotonic clock as a number that means the same in every process
//! fork     notices that this process is a fork of the one that made an executor
//! local    thread-locals that can be used at any moment of a thread's life
//! liveness who of the users of shared memory is still alive
//! room     how much memory there is to be had
//! stack    the bounds of a thread's stack
//! fault    tells a stack overflow from any other segmentation fault
//! ```
//!
//! Everything is close-on-exec from birth, so nothing leaks into programs that other threads start meanwhile.
//! Most `unsafe` lives here. The rest is where shared memory is seen as something (`shm`, `segment`, `sync`, the board), where
//! arguments are borrowed from it (`worker`, `task`), in `fork` and in the entry. Each block says why it is sound.

pub(crate) mod arena;
pub(crate) mod asked;
pub(crate) mod clock;
pub(crate) mod cpu;
pub(crate) mod exit_status;
pub(crate) mod fault;
pub(crate) mod file;
pub(crate) mod fork;
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), path = "model/futex.rs")]
pub(crate) mod futex;
mod group;
pub(crate) mod image;
pub(crate) mod limits;
pub(crate) mod liveness;
pub(crate) mod local;
#[cfg_attr(all(test, any(executor_loom, executor_shuttle)), path = "model/memory.rs")]
pub(crate) mod memory;
pub(crate) mod orphans;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod ready;
pub(crate) mod room;
pub(crate) mod sealed;
pub(crate) mod setting;
pub(crate) mod signals;
pub(crate) mod socket;
mod spawn;
pub(crate) mod spin;
pub(crate) mod stack;
pub(crate) mod sync;
pub(crate) mod wake;
