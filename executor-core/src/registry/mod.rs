//! Task functions by name.
//!
//! ```text
//!   #[task] fn add  ──►  static TaskEntry in a link section  ──►  TASKS: every entry of the program, in link order
//!                                                                    │
//!          parent: TaskFn::entry().id ── FnId on the wire ──►  worker: lookup(id) ──► entry.call
//! ```
//!
//! The list is the linker's, so nothing has to be called to register a function, and its order means nothing: what
//! crosses the wire is a hash of the name, and the [`fingerprint`] is taken over sorted names. Covered is the program
//! itself; functions in libraries opened by `dlopen` are not in its list.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{LazyLock, OnceLock, atomic::AtomicBool},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::Failure,
    id::FnId,
    os::fork::Origin,
    wire::{attachment::Attachment, buffer::Buffer, codec::CodecError},
};

/// Every task function of the program.
#[linkme::distributed_slice]
pub static TASKS: [TaskEntry];

/// What the program knows of one task function.
#[doc(hidden)]
#[derive(Debug)]
pub struct TaskEntry {
    /// Its path, or what `#[task(name = "…")]` says.
    pub name: &'static str,
    /// The name's hash.
    pub id: FnId,
    /// Where it is written.
    pub file: &'static str,
    /// Where it is written.
    pub line: u32,
    /// Types of parameters and result, name and version of the crate: for the [`fingerprint`].
    pub signature: fn() -> String,
    /// Decodes, runs, encodes.
    pub call: Call,
    /// Its crate is built with debug assertions: the first submit asks for the round-trip check.
    pub debug: bool,
    /// The submitter has asked for the check.
    pub checked: AtomicBool,
}

/// How to run a task function on encoded arguments. A panic of the function, or of a `Deserialize` or `Serialize` of
/// its types, passes through.
#[doc(hidden)]
#[derive(Debug)]
pub enum Call {
    /// A plain function.
    Sync(fn(&[u8], &mut CallContext) -> CallResult),
    /// An `async fn`. Its future need not be `Send`.
    Async(AsyncCall),
}

/// The function pointer in [`Call::Async`].
#[doc(hidden)]
pub type AsyncCall =
    for<'a> fn(&'a [u8], &'a mut CallContext) -> Pin<Box<dyn Future<Output = CallResult> + 'a>>;

/// What goes with one call, in and out.
#[doc(hidden)]
#[derive(Debug)]
#[non_exhaustive]
pub struct CallContext {
    /// The encoded result is appended here; nothing is when there is none.
    pub out: Buffer,
    /// Descriptors that came with the arguments; afterwards, those that go with the result.
    pub(crate) attachments: Vec<Attachment>,
    stage: Stage,
    /// Whether to check that the arguments survive encoding and decoding.
    pub check: bool,
    /// The process that runs calls.
    pub(crate) origin: Origin,
}

impl CallContext {
    /// Before the call.
    pub fn new(out: Buffer, check: bool) -> Self {
        CallContext { out, attachments: Vec::new(), stage: Stage::default(), check, origin: Origin::here() }
    }

    /// Before the next call; what the last one wrote has been taken.
    pub(crate) fn begin(&mut self, attachments: Vec<Attachment>, check: bool) {
        self.attachments = attachments;
        self.stage = Stage::default();
        self.check = check;
    }

    /// What is going on, for whoever catches a panic.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// One stage, from its begin to its end.
    #[inline(always)]
    pub(crate) fn during<R>(&mut self, stage: Stage, run: impl FnOnce(&mut Self) -> R) -> R {
        self.stage = stage;
        let result = run(self);
        self.stage = Stage::Between;
        result
    }

    /// The function is called next.
    #[inline(always)]
    pub fn run_begins(&mut self) {
        self.stage = Stage::Run;
    }

    /// It has returned.
    #[inline(always)]
    pub fn run_ends(&mut self) {
        self.stage = Stage::Between;
    }

    pub(crate) fn stage_mut(&mut self) -> &mut Stage {
        &mut self.stage
    }
}

/// What of a call is going on. Each stage ends where it ends, and not where the next one begins: between them values are
/// dropped, and what goes wrong there is nobody else's.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// None of these: arguments, result or error are dropped.
    #[default]
    Between,
    /// The runtime of async tasks is made.
    Prepare,
    /// The arguments are decoded.
    Decode,
    /// The decoded arguments are encoded again, for the check.
    Check,
    /// The function runs.
    Run,
    /// Its result, or its error, is encoded.
    Encode,
    /// Its error is put into words.
    Describe,
}

impl Stage {
    /// As [`CallContext::during`].
    #[inline(always)]
    pub(crate) fn during<R>(&mut self, stage: Stage, run: impl FnOnce() -> R) -> R {
        *self = stage;
        let result = run();
        *self = Stage::Between;
        result
    }
}

/// How a call ended.
#[doc(hidden)]
#[derive(Debug)]
pub enum CallResult {
    /// The result is in [`CallContext::out`].
    Done,
    /// The function returned `Err`.
    Failed(Failure),
    /// The arguments do not decode.
    Decode(CodecError),
    /// The result does not encode.
    Encode(CodecError),
    /// The arguments decode to another value than was encoded, or not at all: the types and the codec do not suit
    /// each other. Found by the check.
    NotRoundTrip(CodecError),
}

static INDEX: LazyLock<HashMap<FnId, &'static TaskEntry>> =
    LazyLock::new(|| TASKS.iter().map(|entry| (entry.id, entry)).collect());

/// The task function of this id.
pub fn lookup(id: FnId) -> Option<&'static TaskEntry> {
    INDEX.get(&id).copied()
}

/// Whether each name stands for one function. If not, the text says which two and what to do.
pub fn check() -> Result<(), String> {
    static CHECKED: OnceLock<Result<(), String>> = OnceLock::new();
    CHECKED.get_or_init(|| find_duplicate(&TASKS)).clone()
}

fn find_duplicate(entries: &[TaskEntry]) -> Result<(), String> {
    let mut by_id: HashMap<FnId, &TaskEntry> = HashMap::with_capacity(entries.len());
    for entry in entries {
        let Some(other) = by_id.insert(entry.id, entry) else { continue };
        // The order is the linker's; a message should be the same in every build.
        let mut places = [other, entry].map(|e| (e.file, e.line, e.name));
        places.sort_unstable();
        let [(file_a, line_a, name_a), (file_b, line_b, name_b)] = places;
        let what = if name_a == name_b {
            format!("two task functions have the name `{name_a}`")
        } else {
            format!("the task functions `{name_a}` and `{name_b}` have names with one and the same hash")
        };
        return Err(format!(
            "{what}: {file_a}:{line_a} and {file_b}:{line_b}; give one of them a name of its own with \
             `#[task(name = \"…\")]`"
        ));
    }
    Ok(())
}

/// What two processes compare before the first task: the same functions with the same types.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Over the sorted names and signatures.
    pub hash: u64,
    /// How many functions.
    pub count: u64,
}

/// The fingerprint of this program.
pub fn fingerprint() -> Fingerprint {
    static FINGERPRINT: OnceLock<Fingerprint> = OnceLock::new();
    *FINGERPRINT.get_or_init(|| fingerprint_of(TASKS.iter().map(|entry| (entry.name, (entry.signature)()))))
}

fn fingerprint_of(entries: impl Iterator<Item = (&'static str, String)>) -> Fingerprint {
    let mut entries: Vec<_> = entries.collect();
    entries.sort_unstable();
    let mut text = String::new();
    for (name, signature) in &entries {
        // Neither contains a line break, so no two lists have one text.
        text.extend([name, "\n", signature, "\n"]);
    }
    Fingerprint { hash: FnId::of(&text).0, count: entries.len() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &'static str, line: u32) -> TaskEntry {
        TaskEntry {
            name,
            id: FnId::of(name),
            file: "src/tasks.rs",
            line,
            signature: String::new,
            call: Call::Sync(|_, _| CallResult::Done),
            debug: false,
            checked: AtomicBool::new(false),
        }
    }

    #[test]
    fn two_tasks_of_one_name_are_told_with_place_and_cure() {
        assert_eq!(find_duplicate(&[entry("a", 1), entry("b", 2)]), Ok(()));
        let text = find_duplicate(&[entry("a", 9), entry("b", 2), entry("a", 3)]).unwrap_err();
        assert_eq!(
            text,
            "two task functions have the name `a`: src/tasks.rs:3 and src/tasks.rs:9; give one of them a name of its \
             own with `#[task(name = \"…\")]`"
        );
    }

    #[test]
    fn two_names_of_one_hash_are_told_too() {
        let collision = TaskEntry { id: FnId::of("a"), ..entry("b", 2) };
        let text = find_duplicate(&[entry("a", 1), collision]).unwrap_err();
        assert!(
            text.starts_with("the task functions `a` and `b` have names with one and the same hash"),
            "{text}"
        );
    }

    #[test]
    fn the_fingerprint_knows_names_and_types_but_not_the_order() {
        let of = |list: &[(&'static str, &str)]| {
            fingerprint_of(list.iter().map(|&(name, types)| (name, types.into())))
        };
        let base = of(&[("a", "(u8)"), ("b", "(u16)")]);
        assert_eq!(base, of(&[("b", "(u16)"), ("a", "(u8)")]));
        assert_eq!(base.count, 2);
        for other in [&[("a", "(u8)")][..], &[("a", "(u8)"), ("b", "(u8)")], &[("a", "(u8)"), ("c", "(u16)")]]
        {
            assert_ne!(base, of(other));
        }
    }
}
