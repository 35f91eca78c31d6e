//! How this process came to be: as a program, or as a child of one. Asked first of all in `main`.
//!
//! ```text
//!  no marker among its arguments     ──────────────────────────► Program
//!  the marker; descriptor 0 is…        without privileges        with privileges
//!    a socket of this user's           Child                     Neither
//!    a socket of another user's        Neither                   Program
//!    anything else                     Neither                   Program
//! ```
//!
//! Privileges are those which a program has and its starter has not (setuid, setgid, capabilities).
//! See [`init`](crate::init) for what follows from this.

use std::sync::atomic::{AtomicBool, Ordering};

use super::identity;
use crate::os::{process, socket::Credentials};

/// The only argument of a child. It is no secret, and proves nothing: see [`Birth`]. It is not in the
/// environment, which everything inherits that a task starts.
pub(crate) const MARKER: &str = "--executor-worker";

/// How deep pools and processes may be nested; loky's limit. Deeper than this is a task that submits
/// itself without end.
const DEPTH_MAX: u32 = 10;

/// The program goes on as a program: it is no child.
static PASSED: AtomicBool = AtomicBool::new(false);

/// How a process came to be.
#[derive(Debug)]
pub(crate) enum Birth {
    /// As programs do: it is not marked, or has privileges, so that nobody can have started it as a
    /// child.
    Program,
    /// As a child: descriptor 0 is its socket.
    Child,
    /// It is marked, so it must not run as a program, which might start the next such process, and
    /// that the next. But it is no child: why, and whether descriptor 0 is a socket to say it over.
    Neither { why: String, has_socket: bool },
}

/// How this process came to be.
pub(crate) fn birth() -> Birth {
    if !is_marked() {
        return Birth::Program;
    }
    let privileged = process::is_privileged();
    let own = Credentials::own();
    match Credentials::of_maker(rustix::stdio::stdin()) {
        // A stranger's.
        Ok(maker) if maker != own && privileged => Birth::Program,
        // So it seems. Should it be a parent that changes its user by means which nobody sees, this
        // is its child in all else.
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

/// What the arguments say, which anybody can write.
pub(crate) fn is_marked() -> bool {
    std::env::args_os().nth(1).is_some_and(|arg| arg == MARKER)
}

/// The entry was passed by a program that is no child.
pub(crate) fn pass_as_program() {
    PASSED.store(true, Ordering::Release);
}

/// Why this process may not have children.
pub(crate) enum Barren {
    /// It was started as a child, but its program did not ask.
    NoEntry,
    /// Processes within processes, too deep.
    TooDeep { depth: u32, max: u32 },
}

/// Whether this process may have children: else it might start processes without end.
pub(crate) fn may_have_children() -> Result<(), Barren> {
    if !PASSED.load(Ordering::Acquire) && identity::told().is_none() && !matches!(birth(), Birth::Program) {
        return Err(Barren::NoEntry);
    }
    let (depth, max) = (identity::depth() + 1, DEPTH_MAX);
    if depth > max {
        return Err(Barren::TooDeep { depth, max });
    }
    Ok(())
}
