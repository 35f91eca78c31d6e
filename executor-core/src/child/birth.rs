//! Determines whether this process is a program of its own or a child of this library. Checked
//! first of all in `main`.
//!
//! ```text
//!  no marker among its arguments     ──────────────────────────► Program
//!  the marker; descriptor 0 is…        without privileges        with privileges
//!    a socket of this user's           Child                     Neither
//!    a socket of another user's        Neither                   Program
//!    anything else                     Neither                   Program
//! ```
//!
//! "Privileges" are those that a program has and the process that started it has not (setuid,
//! setgid, capabilities). See [`init`](crate::init) for the consequences.

use std::sync::atomic::{AtomicBool, Ordering};

use super::identity;
use crate::os::{process, socket::Credentials};

/// The only argument of a child. It is no secret, and proves nothing: see [`Birth`]. It is not in
/// the environment, because every program that a task starts would inherit it.
pub(crate) const MARKER: &str = "--executor-worker";

/// Maximum nesting depth of pools and processes, the same as loky's. Deeper nesting means that a
/// task submits itself without end.
const DEPTH_MAX: u32 = 10;

/// Whether the entry has found that this process is a program and no child.
static PASSED: AtomicBool = AtomicBool::new(false);

/// How this process was started.
#[derive(Debug)]
pub(crate) enum Birth {
    /// As a program: it is not marked, or it has privileges with which nobody can have started it
    /// as a child.
    Program,
    /// As a child: descriptor 0 is its socket.
    Child,
    /// It is marked but is no child. It must not run as a program, because it might start another
    /// such process, and that one the next. `why` is the reason; `has_socket` is whether descriptor
    /// 0 is a socket over which to report it.
    Neither { why: String, has_socket: bool },
}

/// Determines how this process was started.
pub(crate) fn birth() -> Birth {
    if !is_marked() {
        return Birth::Program;
    }
    let privileged = process::is_privileged();
    let own = Credentials::own();
    match Credentials::of_maker(rustix::stdio::stdin()) {
        // The socket was made by another user.
        Ok(maker) if maker != own && privileged => Birth::Program,
        // It looks like another user's socket. If a parent has changed its user in a way that is
        // not visible here, this process is otherwise that parent's child, so report the reason
        // over the socket.
        Ok(maker) if maker != own => Birth::Neither {
            why: format!("{maker} made the socket that is its standard input, and it acts as {own}"),
            has_socket: true,
        },
        Ok(_) if privileged => Birth::Neither {
            why: "this program has privileges that its starter has not (setuid, setgid, or capabilities of its file): it is \
                  nobody's worker"
                .to_owned(),
            has_socket: true,
        },
        Ok(_) => Birth::Child,
        Err(_) if privileged => Birth::Program,
        Err(error) => Birth::Neither {
            why: format!("standard input is not the socket by which an executor starts its workers: {error}"),
            has_socket: false,
        },
    }
}

/// Returns whether the arguments contain the marker, which anybody can pass.
pub(crate) fn is_marked() -> bool {
    std::env::args_os().nth(1).is_some_and(|arg| arg == MARKER)
}

/// Records that the entry was passed by a program that is no child.
pub(crate) fn pass_as_program() {
    PASSED.store(true, Ordering::Release);
}

/// Why this process must not have children.
pub(crate) enum Barren {
    /// It was started as a child, but its program has not called the entry.
    NoEntry,
    /// Processes are nested too deeply.
    TooDeep { depth: u32, max: u32 },
}

/// Checks whether this process may have children. Without this check, it might start processes
/// without end.
pub(crate) fn may_have_children() -> Result<(), Barren> {
    if !PASSED.load(Ordering::Acquire)
        && identity::told().is_none()
        && !matches!(birth(), Birth::Program)
    {
        return Err(Barren::NoEntry);
    }
    let (depth, max) = (identity::depth() + 1, DEPTH_MAX);
    if depth > max {
        return Err(Barren::TooDeep { depth, max });
    }
    Ok(())
}
