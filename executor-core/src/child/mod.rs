//! Everything that all child processes have in common, whatever their purpose: a worker of a pool,
//! a process with one task, a fork server.
//!
//! ```text
//!  parent                                          child
//!    start_method: how it is created                 birth: whether this process is a child at all
//!    server: a process that makes copies of itself
//!    environment: which variables may be set
//!    stdio: where its standard streams lead
//!    identity ─► what it is told ─┐                  identity: which process of the program it is
//!    a tenant's role, descriptors ┴► launch ──────►  log: logs as its parent does
//!                                                    title: its name for `ps` and `top`
//!    watch: reaps it once, and its leftovers ◄─────  its end
//!    verdict: why it has not answered ◄────────────  its board, its exit status
//!
//!  exit, in both: the work done when a process ends by itself
//! ```
//!
//! `pool` and `process` are the tenants of this module. They say what a child is for, sleep on its
//! pidfd, and keep what it sends. Launching, reaping and judging a child is implemented here, once.

pub(crate) mod birth;
pub(crate) mod environment;
pub(crate) mod exit;
pub(crate) mod identity;
pub(crate) mod launch;
pub(crate) mod log;
pub(crate) mod server;
pub(crate) mod start_method;
pub(crate) mod stdio;
pub(crate) mod title;
pub(crate) mod verdict;
pub(crate) mod watch;
