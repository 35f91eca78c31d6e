//! The identity of this process: the program that the user started, or which of its children.
//!
//! ```text
//!   user's shell ─► main program            "MainProcess", depth 0
//!                     ├─ Process            "Process-1", and below it "Process-1:1"
//!                     │                      path [1]                   path [1, 1]
//!                     └─ worker of a pool    "PoolWorker-3"
//! ```
//!
//! The parent sends it in the setup. It is stored once, before any user code runs. Only a child
//! made by `fork` stores it a second time, since it begins as a copy of its parent.

use std::{
    ffi::OsString,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::wire::handshake::Identity;

static CHILD: RwLock<Option<Arc<Identity>>> = RwLock::new(None);
static CHILDREN: AtomicU32 = AtomicU32::new(0);

/// Returns the arguments that this process was started with.
pub(crate) fn own_args() -> Vec<serde_bytes::ByteBuf> {
    use std::os::unix::ffi::OsStringExt;
    std::env::args_os().map(|arg| serde_bytes::ByteBuf::from(arg.into_vec())).collect()
}

/// Returns the identity that the parent sent; `None` in the program that the user started.
pub(crate) fn told() -> Option<Arc<Identity>> {
    CHILD.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Sets the identity of this process.
pub(crate) fn become_child(identity: Identity) {
    CHILDREN.store(0, Ordering::Relaxed);
    *CHILD.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(identity));
}

/// Returns how deeply this process is nested in executors and processes.
pub(crate) fn depth() -> u32 {
    told().map_or(0, |told| told.depth)
}

/// Returns this process's name.
pub(crate) fn name() -> String {
    told().map_or_else(|| "MainProcess".to_owned(), |told| told.name.clone())
}

/// Returns the identity for a child of this process, except for the child's name, path and daemon
/// flag.
pub(crate) fn for_child() -> std::io::Result<Identity> {
    let told = told();
    let name = name();
    let (depth, args, path) = match &told {
        Some(told) => (told.depth, told.args.clone(), told.path.clone()),
        None => (0, own_args(), Vec::new()),
    };
    Ok(Identity {
        depth: depth + 1,
        args,
        name: String::new(),
        path,
        daemon: false,
        worker: false,
        parent: Some((name, std::process::id())),
        key: key::current()?,
        start_method: None,
        log_level: super::log::number_for_child(),
    })
}

/// Returns the number of the next child: 1, 2, …
pub(crate) fn next_child() -> u32 {
    CHILDREN.fetch_add(1, Ordering::Relaxed) + 1
}

/// Formats a path as in default names: `1:2:3`.
pub(crate) fn path_text(path: &[u32]) -> String {
    path.iter().map(u32::to_string).collect::<Vec<_>>().join(":")
}

/// Returns the arguments of the program that the user started. In a child, at any depth, these are
/// still the arguments of that program.
///
/// (In a child, `std::env::args()` returns the arguments with which the child itself was started.)
///
/// ```
/// assert!(executor::args().count() >= 1);
/// ```
pub fn args() -> impl Iterator<Item = OsString> {
    use std::os::unix::ffi::OsStringExt;
    let args = told().map_or_else(own_args, |told| told.args.clone());
    args.into_iter().map(|arg| OsString::from_vec(arg.into_vec()))
}

pub(crate) mod key {
    //! The secret of this program: random in the program that the user started, and sent to all of
    //! its children.

    use std::{
        io,
        sync::{OnceLock, PoisonError, RwLock},
    };

    use serde_bytes::ByteBuf;

    use crate::os::random;

    static OWN: OnceLock<ByteBuf> = OnceLock::new();
    static SET: RwLock<Option<ByteBuf>> = RwLock::new(None);

    /// Returns the current secret of this process.
    pub(crate) fn current() -> io::Result<ByteBuf> {
        if let Some(set) = &*SET.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(set.clone());
        }
        if let Some(told) = super::told() {
            return Ok(told.key.clone());
        }
        if let Some(own) = OWN.get() {
            return Ok(own.clone());
        }
        let random = random::bytes::<32>().map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("no random numbers for the program's key (getrandom): {error}"),
            )
        })?;
        Ok(OWN.get_or_init(|| ByteBuf::from(random.to_vec())).clone())
    }

    /// Replaces the secret for this process and the children it starts from now on.
    pub(crate) fn set(key: ByteBuf) {
        *SET.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }
}
