//! Everything that this library asks of the operating system.
//!
//! ```text
//! affinity     on which CPUs a process runs, and how urgently
//! allocator    gives free memory of the C library back to the system
//! socket       a SOCK_SEQPACKET pair: sends and receives whole messages, with descriptors
//! image        what was loaded as this program: its constructors, its file
//! spawn        starts a program that inherits its standard streams only
//! process      start, watch (pidfd), signal (the whole group), reap
//! group        the processes that a child has started, found also when the child is gone
//! orphans      processes that dead children have left behind, where they become ours
//! signals      the caller's signal mask and SIGPIPE setting, for children
//! limits       resource limits of a process
//! cgroup       control groups for workers: their limits, and the end of everything in them
//! file         files for shared memory: creates, lengthens, fills and empties them
//! memory       an anonymous, sealed page that parent and child share
//! words        copies many words of shared memory at once
//! std_or_model atomics and locks: those of std, or those of a model checker
//! arena        large pieces of shared memory, in one anonymous file
//! asked        adds to an error what the system was asked for
//! available_memory
//!              whether this much memory is available
//! meter        what this process uses between two moments
//! private_memory
//!              how much memory belongs to this process alone
//! setting      settings from environment variables
//! sealed       bytes in an anonymous file of their own, sealed against writing
//! ready        sleeps until a descriptor is ready
//! eventfd      wakes a thread that polls
//! random       random numbers
//! clock        the monotonic clock as a number that means the same in every process
//! fork         notices that this process is a fork of the one that created an executor
//! local        thread-locals that can be used at any moment of a thread's life
//! liveness     which owners of shared memory are still alive
//! spare        large buffers that are kept for the next large message
//! stack        the bounds of a thread's stack
//! fault        tells a stack overflow from any other segmentation fault
//! ```
//!
//! Every descriptor is created close-on-exec, so none leaks into programs that other threads start
//! meanwhile.
//!
//! Most `unsafe` code of this library is here. The rest is where shared memory is accessed as typed
//! values (`shm`, `segment`, `sync`, the board), where arguments are borrowed from it (`worker`,
//! `task`), in `fork`, and in the entry. Each block says why it is sound.

pub(crate) mod affinity;
pub(crate) mod allocator;
pub(crate) mod arena;
pub(crate) mod asked;
pub(crate) mod available_memory;
pub(crate) mod cgroup;
pub(crate) mod clock;
pub(crate) mod cpu;
pub(crate) mod crash_report;
pub(crate) mod eventfd;
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
pub(crate) mod meter;
pub(crate) mod orphans;
pub(crate) mod private_memory;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod ready;
pub(crate) mod sealed;
pub(crate) mod setting;
pub(crate) mod signals;
pub(crate) mod socket;
pub(crate) mod spare;
mod spawn;
pub(crate) mod spin;
pub(crate) mod stack;
pub(crate) mod std_or_model;
#[cfg(not(all(test, any(executor_loom, executor_shuttle))))]
pub(crate) mod words;
