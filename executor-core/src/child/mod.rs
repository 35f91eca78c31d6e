//! What every child process has, whatever it is for: a worker of a pool, a process with one task, a fork server.
//!
//! ```text
//!  parent                                         child
//!                                                   birth: whether this process is a child at all
//!    identity ─► what it is told ───────────────►   identity: who this process is, among its relatives
//!    start_method: how it comes into being          log: prints what it logs as its parent does
//!    exit: what is done when a process ends by itself, in both
//!    verdict ◄─ board, exit status ◄────────────   its end
//! ```
//!
//! `pool` and `process` are its tenants: they say what a child is for.

pub(crate) mod birth;
pub(crate) mod exit;
pub(crate) mod identity;
pub(crate) mod log;
pub(crate) mod start_method;
pub(crate) mod verdict;
