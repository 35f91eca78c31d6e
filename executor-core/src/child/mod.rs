//! What every child process has, whatever it is for: a worker of a pool, a process with one task, a fork server.
//!
//! ```text
//!  parent                                          child
//!    start_method: how it comes into being           birth: whether this process is a child at all
//!    identity ─► what it is told ─┐                  identity: who this process is, among its relatives
//!    a tenant's role, descriptors ┴► launch ──────►  log: prints what it logs as its parent does
//!    watch: reaped, once, with what it leaves ◄────  its end
//!    verdict: why it has not answered ◄────────────  its board, its exit status
//!
//!  exit, in both: what is done when a process ends by itself
//! ```
//!
//! `pool` and `process` are its tenants. They say what a child is for, sleep on its pidfd, and keep
//! what it says. How it is launched, reaped and judged is here, once.

pub(crate) mod birth;
pub(crate) mod exit;
pub(crate) mod identity;
pub(crate) mod launch;
pub(crate) mod log;
pub(crate) mod start_method;
pub(crate) mod verdict;
pub(crate) mod watch;
