//! What this process is: the program that the user started, or one of its children, and which.
//!
//! ```text
//!   user's shell ─► main program            "MainProcess", depth 0
//!                     ├─ Process            "Process-1", and below it "Process-1:1"
//!                     │                      path [1]                   path [1, 1]
//!                     └─ worker of a pool    "PoolWorker-3"
//! ```
//!
//! Told by the parent in the setup and written down once, before any code of the user runs. Only a child made by `fork`
//! writes it a second time, since it begins as a copy of its parent.

use std::{
    ffi::OsString,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

use serde::{Deserialize, Serialize};

/// Environment and ancestry of a process of ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Program {
    /// How deep in executors and processes: 0 in the program that the user started.
    pub(crate) depth: u32,
    /// Arguments of the program that the user started.
    pub(crate) args: Vec<serde_bytes::ByteBuf>,
    pub(crate) name: String,
    /// Numbers of its ancestors and itself, each counted within its parent: where default names come from.
    pub(crate) path: Vec<u32>,
    pub(crate) daemon: bool,
    /// Whether it belongs to a pool.
    pub(crate) worker: bool,
    /// Name and pid of who started it.
    pub(crate) parent: Option<(String, u32)>,
    /// What connections between processes of this program prove that they know.
    pub(crate) key: serde_bytes::ByteBuf,
    /// How processes are started where nothing else is said.
    pub(crate) start_method: Option<u8>,
    /// What `log_to_stderr` was told.
    pub(crate) log_level: Option<u8>,
}

static CHILD: RwLock<Option<Arc<Program>>> = RwLock::new(None);
static CHILDREN: AtomicU32 = AtomicU32::new(0);

/// The arguments that this process was started with.
pub(crate) fn own_args() -> Vec<serde_bytes::ByteBuf> {
    use std::os::unix::ffi::OsStringExt;
    std::env::args_os().map(|arg| serde_bytes::ByteBuf::from(arg.into_vec())).collect()
}

/// What this process was told to be; `None` in the program that the user started.
pub(crate) fn told() -> Option<Arc<Program>> {
    CHILD.read().unwrap_or_else(PoisonError::into_inner).clone()
}

impl Program {
    /// Whether it is a worker of a pool: a daemon, whose own processes need not be.
    pub(crate) fn is_worker(&self) -> bool {
        self.worker
    }
}

/// From now on, this process is that.
pub(crate) fn become_child(program: Program) {
    CHILDREN.store(0, Ordering::Relaxed);
    *CHILD.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(program));
}

/// How deep in executors and processes this process is.
pub(crate) fn depth() -> u32 {
    told().map_or(0, |program| program.depth)
}

/// This process's name.
pub(crate) fn name() -> String {
    told().map_or_else(|| "MainProcess".to_owned(), |program| program.name.clone())
}

/// What a child of this process is told, but for its own name, path and daemon flag.
pub(crate) fn for_child() -> std::io::Result<Program> {
    let told = told();
    let name = name();
    let (depth, args, path) = match &told {
        Some(told) => (told.depth, told.args.clone(), told.path.clone()),
        None => (0, own_args(), Vec::new()),
    };
    Ok(Program {
        depth: depth + 1,
        args,
        name: String::new(),
        path,
        daemon: false,
        worker: false,
        parent: Some((name, std::process::id())),
        key: key::current()?,
        start_method: None,
        log_level: crate::process::log::number_for_child(),
    })
}

/// The number of the next child: 1, 2, …
pub(crate) fn next_child() -> u32 {
    CHILDREN.fetch_add(1, Ordering::Relaxed) + 1
}

/// `1:2:3`, as default names have it.
pub(crate) fn path_text(path: &[u32]) -> String {
    path.iter().map(u32::to_string).collect::<Vec<_>>().join(":")
}

/// The arguments of the program that the user started; in a child, those of its program, however deep.
///
/// (`std::env::args()` shows a child how it was started itself.)
///
/// ```
/// assert!(executor::args().count() >= 1);
/// ```
pub fn args() -> impl Iterator<Item = OsString> {
    use std::os::unix::ffi::OsStringExt;
    let args = told().map_or_else(own_args, |program| program.args.clone());
    args.into_iter().map(|arg| OsString::from_vec(arg.into_vec()))
}

pub(crate) mod key {
    //! The secret of this program: random in the program that the user started, handed to all of its children.

    use std::{
        io,
        sync::{OnceLock, PoisonError, RwLock},
    };

    use serde_bytes::ByteBuf;

    use crate::os::random;

    static OWN: OnceLock<ByteBuf> = OnceLock::new();
    static SET: RwLock<Option<ByteBuf>> = RwLock::new(None);

    /// This program's, in this process.
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

    /// Another one, for this process and the children it starts from now on.
    pub(crate) fn set(key: ByteBuf) {
        *SET.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }
}
