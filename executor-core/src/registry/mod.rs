//! The task functions of this program, and the numbers by which they are called across processes.
//!
//! ```text
//!   #[task] fn add  ──►  static TaskEntry ─┬─ in a link section ──►  TASKS: those of the image that this crate is in
//!                                          └─ `note`, before main ─►  NOTED: those of other images (a program whose `dylib`
//!                                                                     has this crate)
//!                                        both, once somebody asks ──►  INDEX: a number for each
//!
//!          parent: entry.id() ── FnId on the wire ──►  worker: lookup(id) ──► entry.call
//! ```
//!
//! The lists are made by linker and loader, so nothing has to be called to register a function, and their order means nothing.
//! What crosses the wire is a hash of the name; where two functions have one name (a library and a program of one package, a macro
//! that is used twice), of the place, too. So a name is for people: nobody can break a program by choosing one. The [`fingerprint`]
//! is taken over all of them, sorted.
//!
//! Covered is what the program begins with. A function in a library that is opened later (`dlopen`) is not in its workers; to submit
//! it is an error that says so.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    iter,
    pin::Pin,
    ptr,
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering},
    },
};

use crate::{
    error::Failure,
    id::Fingerprint,
    id::{FnId, IdHasher},
    os::fork::Origin,
    wire::{attachment::Attachment, buffer::Buffer, codec::CodecError},
};

/// Every task function of the image that this crate is linked into: the program, or a `dylib` that it uses.
#[linkme::distributed_slice]
pub static TASKS: [TaskEntry];

/// The task functions of other images; a list through [`Registered::next`].
static NOTED: AtomicPtr<TaskEntry> = AtomicPtr::new(ptr::null_mut());

/// The numbers are given: what comes now is of a library that was opened later, which may be closed again.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// What the program knows of one task function.
#[doc(hidden)]
#[derive(Debug)]
pub struct TaskEntry {
    /// Its path, or what `#[task(name = "…")]` says. Others may have the same.
    pub name: &'static str,
    /// Where it is written.
    pub place: Place,
    /// Types of parameters and result, name and version of the crate: for the [`fingerprint`].
    pub signature: fn() -> String,
    /// Decodes, runs, encodes.
    pub call: Call,
    /// Written by this module.
    pub registered: Registered,
}

/// Where a function is written.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Source file.
    pub file: &'static str,
    /// From 1.
    pub line: u32,
    /// From 1.
    pub column: u32,
    /// A macro can write one line into several modules.
    pub module: &'static str,
}

/// What becomes of an entry at run time.
#[doc(hidden)]
#[derive(Debug)]
pub struct Registered {
    /// Its number; 0 before the numbers are given, and for ever where it came after that.
    number: AtomicU64,
    /// In the list of those that other images have brought.
    next: AtomicPtr<TaskEntry>,
}

impl Registered {
    /// Not yet.
    #[allow(clippy::new_without_default, reason = "in constants")]
    pub const fn new() -> Self {
        Registered { number: AtomicU64::new(0), next: AtomicPtr::new(ptr::null_mut()) }
    }
}

/// The number of no function.
const UNKNOWN: u64 = 0;

impl TaskEntry {
    /// By what the function is called across processes. `None` if it is not in this program's workers.
    #[inline]
    pub fn id(&self) -> Option<FnId> {
        match self.registered.number.load(Ordering::Relaxed) {
            UNKNOWN => self.ask_for_id(),
            number => Some(FnId(number)),
        }
    }

    #[cold]
    fn ask_for_id(&self) -> Option<FnId> {
        // Gives the numbers, if nobody has.
        LazyLock::force(&INDEX);
        match self.registered.number.load(Ordering::Relaxed) {
            UNKNOWN => None,
            number => Some(FnId(number)),
        }
    }

    /// Its id, of one that [`known`](Self::known) has let pass. Else the number of no function, which a worker refuses.
    #[inline]
    pub(crate) fn number(&self) -> FnId {
        self.id().unwrap_or(FnId(UNKNOWN))
    }

    /// Whether workers know it; if not, why not. Asked by whoever encodes arguments, so before any process hears of it.
    #[inline]
    pub(crate) fn known(&self) -> Result<(), String> {
        self.id().map(drop).ok_or_else(|| self.unknown())
    }

    #[cold]
    fn unknown(&self) -> String {
        format!(
            "the task function `{}` ({}:{}) is in a library that was opened after this program had begun (`dlopen`); workers begin \
             without it, so it can run in this process only",
            self.name, self.place.file, self.place.line
        )
    }
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
    /// The process that runs calls.
    pub(crate) origin: Origin,
}

impl CallContext {
    /// Before the call.
    pub fn new(out: Buffer) -> Self {
        CallContext { out, attachments: Vec::new(), stage: Stage::default(), origin: Origin::here() }
    }

    /// Before the next call; what the last one wrote has been taken.
    pub(crate) fn begin(&mut self, attachments: Vec<Attachment>) {
        self.attachments = attachments;
        self.stage = Stage::default();
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
    /// The arguments do not decode because their `Serialize` and `Deserialize` do not suit each other, or the codec.
    Unsuited(CodecError),
}

/// Called before `main` for each task function, whichever image it is in.
///
/// Those of this crate's own image are in [`TASKS`], without doing anything.
#[doc(hidden)]
pub fn note(entry: &'static TaskEntry) {
    if CLOSED.load(Ordering::Acquire) || TASKS.static_slice().as_ptr_range().contains(&ptr::from_ref(entry)) {
        return;
    }
    // Whoever walks the list finds entries that are complete, since they are constants but for these words.
    let mine = ptr::from_ref(entry).cast_mut();
    let mut first = NOTED.load(Ordering::Relaxed);
    loop {
        entry.registered.next.store(first, Ordering::Relaxed);
        match NOTED.compare_exchange(first, mine, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(other) => first = other,
        }
    }
}

/// Gives the numbers now, if nobody has: the program begins, and whatever it opens from here on its workers do not have.
pub(crate) fn close() {
    LazyLock::force(&INDEX);
}

/// All that were there when `init` passed the program on. Where `main` is not the user's (test binaries), constructors of other
/// images may follow ours, so it is whoever asks first: the first executor, process or task.
static INDEX: LazyLock<Index<'static>> = LazyLock::new(|| {
    CLOSED.store(true, Ordering::Release);
    let own = TASKS.static_slice().iter();
    // SAFETY: the list consists of entries that `note` was given by images that the loader has mapped. Those of the program's
    // begin stay for ever, also over a fork, and after `init` the list is closed. In a program without `init`, a library that was
    // opened by hand before anybody asked must not have been closed again: closing a library whose functions are known to
    // others is as unsafe there (`dlclose`). The list is walked this once only.
    let at = |pointer: &AtomicPtr<TaskEntry>| unsafe { pointer.load(Ordering::Acquire).as_ref() };
    let noted = iter::successors(at(&NOTED), move |entry: &&TaskEntry| at(&entry.registered.next));
    let entries: Vec<&'static TaskEntry> = own.chain(noted).collect();
    number(&entries)
});

/// A worker looks here before each call. The numbers are hashes already.
type Index<'a> = HashMap<FnId, &'a TaskEntry, IdHasher>;

/// Gives each its number: the same in every process of the program, and in another build of it as far as can be.
fn number<'a>(entries: &[&'a TaskEntry]) -> Index<'a> {
    let mut by_name: HashMap<FnId, Vec<&'a TaskEntry>> = HashMap::with_capacity(entries.len());
    for entry in entries {
        by_name.entry(FnId::of(entry.name)).or_default().push(entry);
    }
    // Not to be given by chance to one of those below.
    let mut taken: HashSet<FnId> = by_name.keys().copied().chain([FnId(UNKNOWN)]).collect();
    let mut index = Index::with_capacity_and_hasher(entries.len(), IdHasher);
    let mut several = Vec::new();
    for (id, entries) in by_name {
        match entries[..] {
            [only] if id != FnId(UNKNOWN) => drop(index.insert(id, only)),
            _ => several.extend(entries),
        }
    }
    // Those that differ in nothing stay in the order of linker and loader, which is one for one executable.
    let position = |entry: &TaskEntry| entries.iter().position(|other| ptr::eq(*other, entry));
    several.sort_by_cached_key(|entry| (entry.name, entry.place, (entry.signature)(), position(entry)));
    for entry in several {
        let Place { file, line, column, module } = entry.place;
        let text = format!("{}\n{file}:{line}:{column}\n{module}\n{}", entry.name, (entry.signature)());
        let ids = (0_u32..).map(|ordinal| match ordinal {
            0 => FnId::of(&text),
            _ => FnId::of(&format!("{text}\n{ordinal}")),
        });
        for id in ids {
            if taken.insert(id) {
                index.insert(id, entry);
                break;
            }
        }
    }
    for (id, entry) in &index {
        entry.registered.number.store(id.0, Ordering::Relaxed);
    }
    index
}

/// The task function of this id.
pub fn lookup(id: FnId) -> Option<&'static TaskEntry> {
    INDEX.get(&id).copied()
}

/// The fingerprint of this program.
pub fn fingerprint() -> Fingerprint {
    static FINGERPRINT: OnceLock<Fingerprint> = OnceLock::new();
    *FINGERPRINT.get_or_init(|| {
        fingerprint_of(INDEX.iter().map(|(id, entry)| (entry.name, *id, (entry.signature)())))
    })
}

fn fingerprint_of(entries: impl Iterator<Item = (&'static str, FnId, String)>) -> Fingerprint {
    let mut entries: Vec<_> = entries.collect();
    entries.sort_unstable();
    let mut text = String::new();
    for (name, id, signature) in &entries {
        // None contains a line break, so no two lists have one text.
        text.extend([name, "\n", &id.0.to_string(), "\n", signature, "\n"]);
    }
    Fingerprint { hash: FnId::of(&text).0, count: entries.len() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &'static str, line: u32, module: &'static str) -> TaskEntry {
        TaskEntry {
            name,
            place: Place { file: "src/tasks.rs", line, column: 5, module },
            signature: String::new,
            call: Call::Sync(|_, _| CallResult::Done),
            registered: Registered::new(),
        }
    }

    fn ids(entries: &[&TaskEntry]) -> Vec<u64> {
        let index = number(entries);
        assert_eq!(index.len(), entries.len(), "each has a number of its own");
        let id = |entry: &&TaskEntry| entry.registered.number.load(Ordering::Relaxed);
        for entry in entries {
            assert!(ptr::eq(index[&FnId(id(entry))], *entry));
        }
        entries.iter().map(id).collect()
    }

    #[test]
    fn functions_of_one_name_have_numbers_of_their_own_in_any_order() {
        let (a, b) = (entry("a", 1, "x"), entry("b", 2, "x"));
        let (other_line, other_module) = (entry("a", 9, "x"), entry("a", 1, "y"));
        assert_eq!(ids(&[&a, &b]), ["a", "b"].map(|name| FnId::of(name).0));
        let all = ids(&[&a, &b, &other_line, &other_module]);
        let turned = ids(&[&other_module, &other_line, &b, &a]);
        assert_eq!(all, turned.into_iter().rev().collect::<Vec<_>>());
        assert_eq!(all[1], FnId::of("b").0, "a name that is one's own is enough");
    }

    #[test]
    fn functions_that_differ_in_nothing_are_told_apart() {
        let twins: Vec<_> = (0..5).map(|_| entry("twin", 1, "x")).collect();
        let twins: Vec<_> = twins.iter().collect();
        let first = ids(&twins);
        assert_eq!(first.iter().collect::<HashSet<_>>().len(), 5);
        assert_eq!(ids(&twins), first, "the same in the next process");
    }

    #[test]
    fn the_fingerprint_knows_names_and_types_but_not_the_order() {
        let of = |list: &[(&'static str, u64, &str)]| {
            fingerprint_of(list.iter().map(|&(name, id, types)| (name, FnId(id), types.into())))
        };
        let base = of(&[("a", 1, "(u8)"), ("b", 2, "(u16)")]);
        assert_eq!(base, of(&[("b", 2, "(u16)"), ("a", 1, "(u8)")]));
        assert_eq!(base.count, 2);
        for other in [
            &[("a", 1, "(u8)")][..],
            &[("a", 1, "(u8)"), ("b", 2, "(u8)")],
            &[("a", 1, "(u8)"), ("c", 2, "(u16)")],
            &[("a", 1, "(u8)"), ("b", 3, "(u16)")],
        ] {
            assert_ne!(base, of(other));
        }
    }
}
