//! The task functions of this program, and the numbers that name them across processes.
//!
//! ```text
//!  #[task] fn add ─► static TaskEntry ─┬─ in a link section ───► TASKS: entries of the image that
//!                                      │                         contains this crate
//!                                      └─ `note`, before main ─► NOTED: entries of other images
//!                                                                (a program whose `dylib` contains
//!                                                                this crate)
//!                                     both, on first use ──────► INDEX: a number for each entry
//!
//!         parent: entry.id() ── FnId on the wire ──► worker: lookup(id) ──► entry.call
//! ```
//!
//! The linker and the loader make the lists, so no call is needed to register a function. The order
//! of the lists means nothing.
//!
//! A function's number is what crosses the wire. It is a hash of the function's name. Two functions
//! can have the same name: a library and a program of one package, or a macro that is used twice.
//! Then the hash covers the place in the source as well. So names are for people only, and no
//! choice of name can break a program. The [`fingerprint`] is a hash over all functions, sorted.
//!
//! The registry covers the functions that are present when the program starts. A function in a
//! library that is opened later (`dlopen`) does not exist in the workers. Submitting it is an error
//! whose message says so.

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
    os::{clock, fork::Creator},
    wire::{attachment::Attachment, buffer::Buffer, codec::CodecError},
};

/// Every task function of the image that this crate is linked into: the program, or a `dylib` that
/// the program uses.
#[linkme::distributed_slice]
pub static TASKS: [TaskEntry];

/// The task functions of other images, as a list that is linked through [`Registered::next`].
static NOTED: AtomicPtr<TaskEntry> = AtomicPtr::new(ptr::null_mut());

/// Whether the numbers are assigned. An entry that arrives after that belongs to a library that was
/// opened later, and that may be closed again, so it must not get into the list.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Everything that the program knows about one task function.
#[doc(hidden)]
#[derive(Debug)]
pub struct TaskEntry {
    /// The function's path, or the name that `#[task(name = "…")]` sets. It need not be unique.
    pub name: &'static str,
    /// The place of the function in the source.
    pub place: SourcePlace,
    /// Returns the types of the parameters and the result, and the crate's name and version. The
    /// [`fingerprint`] covers this text.
    pub signature: fn() -> String,
    /// Decodes the arguments, runs the function, and encodes the result.
    pub call: Call,
    /// The entry's state at run time. Only this module writes it.
    pub registered: Registered,
}

/// The place of a function in the source.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourcePlace {
    /// Source file.
    pub file: &'static str,
    /// Line, counted from 1.
    pub line: u32,
    /// Column, counted from 1.
    pub column: u32,
    /// Module. It is needed because a macro can write one line into several modules.
    pub module: &'static str,
}

/// The state of an entry that changes at run time.
#[doc(hidden)]
#[derive(Debug)]
pub struct Registered {
    /// The function's number. It is 0 until the numbers are assigned. It stays 0 for an entry that
    /// arrived later.
    number: AtomicU64,
    /// The next entry in the list of entries from other images.
    next: AtomicPtr<TaskEntry>,
}

impl Registered {
    /// Returns the state of an entry that has no number and is in no list.
    #[allow(clippy::new_without_default, reason = "in constants")]
    pub const fn new() -> Self {
        Registered { number: AtomicU64::new(0), next: AtomicPtr::new(ptr::null_mut()) }
    }
}

/// The number that belongs to no function.
const UNKNOWN: u64 = 0;

impl TaskEntry {
    /// Returns the number that names the function across processes. Returns `None` if the function
    /// does not exist in this program's workers.
    #[inline]
    pub fn id(&self) -> Option<FnId> {
        match self.registered.number.load(Ordering::Relaxed) {
            UNKNOWN => self.ask_for_id(),
            number => Some(FnId(number)),
        }
    }

    #[cold]
    fn ask_for_id(&self) -> Option<FnId> {
        // Assigns the numbers, if that has not happened yet.
        LazyLock::force(&INDEX);
        match self.registered.number.load(Ordering::Relaxed) {
            UNKNOWN => None,
            number => Some(FnId(number)),
        }
    }

    /// Returns the id of an entry that [`known`](Self::known) has accepted. For any other entry,
    /// returns the number of no function, which a worker refuses.
    #[inline]
    pub(crate) fn number(&self) -> FnId {
        self.id().unwrap_or(FnId(UNKNOWN))
    }

    /// Returns an error with the reason if workers do not know the function. The code that encodes
    /// arguments calls it, so the check comes before anything is sent to another process.
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

/// The way to run a task function on encoded arguments. A panic of the function, or of a
/// `Deserialize` or `Serialize` of its types, unwinds through the call.
#[doc(hidden)]
#[derive(Debug)]
pub enum Call {
    /// A plain function.
    Sync(fn(&[u8], &mut CallContext) -> CallResult),
    /// An `async fn`. Its future need not be `Send`.
    Async(AsyncCall),
    /// A method of a managed type, which `#[managed]` generates. It runs in a manager's server, for
    /// an object there.
    Managed(fn(&[u8], &mut CallContext) -> CallResult, Role),
}

/// What a method of a managed type does with the object.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It makes the object, or fails to.
    Constructor,
    /// It takes `&mut self`: it has the object for itself.
    Exclusive,
    /// It takes `&self`: it runs beside others.
    Shared,
}

/// The function pointer in [`Call::Async`].
#[doc(hidden)]
pub type AsyncCall =
    for<'a> fn(&'a [u8], &'a mut CallContext) -> Pin<Box<dyn Future<Output = CallResult> + 'a>>;

/// Runs a step of a call, with something in place that the step needs.
pub(crate) type Around = fn(&mut dyn FnMut());

/// The inputs and outputs of one call, besides the encoded arguments.
#[doc(hidden)]
#[derive(Debug)]
#[non_exhaustive]
pub struct CallContext {
    /// The buffer to which the encoded result is appended. If there is no result, nothing is
    /// appended.
    pub out: Buffer,
    /// Before the call, the descriptors that came with the arguments. After it, the descriptors
    /// that go with the result.
    pub(crate) attachments: Vec<Attachment>,
    stage: Stage,
    /// Whether the moment is noted at which the arguments are decoded: see [`decoded_nanos`].
    pub(crate) notes_decoded: bool,
    /// What the encoding of a result runs within. `None` in a worker.
    pub(crate) around_result: Option<Around>,
    /// The process that runs the calls. It tells this process from a copy that a task made by
    /// `fork`.
    pub(crate) creator: Creator,
}

impl CallContext {
    /// Returns the context for a first call, with `out` as the buffer for its result.
    pub fn new(out: Buffer) -> Self {
        CallContext {
            out,
            attachments: Vec::new(),
            stage: Stage::default(),
            notes_decoded: false,
            around_result: None,
            creator: Creator::here(),
        }
    }

    /// Prepares the context for the next call. The caller has taken what the last call wrote. Takes
    /// the descriptors that came with the arguments.
    #[inline]
    pub(crate) fn begin(&mut self, attachments: &mut Vec<Attachment>) {
        self.attachments.clear();
        // There are hardly ever any, and to move an empty vector costs as well.
        if !attachments.is_empty() {
            self.attachments = std::mem::take(attachments);
        }
        self.stage = Stage::default();
    }

    /// Returns the current stage of the call. Code that catches a panic uses it to say whose panic
    /// it was.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Runs one stage of the call, and marks its beginning and its end.
    #[inline(always)]
    pub(crate) fn during<R>(&mut self, stage: Stage, run: impl FnOnce(&mut Self) -> R) -> R {
        self.stage = stage;
        let result = run(self);
        self.stage = Stage::Between;
        result
    }

    /// Marks that the function is called next.
    #[inline(always)]
    pub fn run_begins(&mut self) {
        self.stage = Stage::Run;
        if self.notes_decoded {
            note_decoded();
        }
    }

    /// Marks that the function has returned.
    #[inline(always)]
    pub fn run_ends(&mut self) {
        self.stage = Stage::Between;
    }

    pub(crate) fn stage_mut(&mut self) -> &mut Stage {
        &mut self.stage
    }
}

/// When the arguments of the last call were decoded for which that was noted, or 0.
static DECODED: AtomicU64 = AtomicU64::new(0);

#[cold]
#[doc(hidden)]
pub fn note_decoded() {
    DECODED.store(clock::now_nanos(), Ordering::Relaxed);
}

/// Returns when the arguments of the last call were decoded for which that was noted (nanoseconds
/// of the clock), and forgets it. Returns `None` if they could not be decoded.
pub(crate) fn decoded_nanos() -> Option<u64> {
    Some(DECODED.swap(0, Ordering::Relaxed)).filter(|nanos| *nanos != 0)
}

/// A stage of a call.
///
/// Each stage ends where its own work ends, and not where the next stage begins. Values are dropped
/// between two stages, and a panic there must not be blamed on either of them.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// None of the other stages: arguments, result or error are being dropped.
    #[default]
    Between,
    /// The runtime of async tasks is being made.
    Prepare,
    /// The arguments are being decoded.
    Decode,
    /// The function is running.
    Run,
    /// Its result or its error is being encoded.
    Encode,
    /// Its error is being formatted.
    Describe,
}

impl Stage {
    /// Does the same as [`CallContext::during`].
    #[inline(always)]
    pub(crate) fn during<R>(&mut self, stage: Stage, run: impl FnOnce() -> R) -> R {
        *self = stage;
        let result = run();
        *self = Stage::Between;
        result
    }
}

/// The outcome of a call.
#[doc(hidden)]
#[derive(Debug)]
pub enum CallResult {
    /// The result is in [`CallContext::out`].
    Done,
    /// The function returned `Err`.
    Failed(Failure),
    /// The arguments could not be decoded.
    Decode(CodecError),
    /// The result could not be encoded.
    Encode(CodecError),
    /// The arguments could not be decoded because their `Serialize` and `Deserialize` do not match
    /// each other, or do not suit the codec.
    Unsuited(CodecError),
}

/// Adds a task function to the registry. It is called before `main` for each task function of every
/// image.
///
/// Functions of this crate's own image are in [`TASKS`] already, and are not added again.
#[doc(hidden)]
pub fn note(entry: &'static TaskEntry) {
    if CLOSED.load(Ordering::Acquire)
        || TASKS.static_slice().as_ptr_range().contains(&ptr::from_ref(entry))
    {
        return;
    }
    // Entries are constants, except for the words in `registered`. The `Release` below publishes
    // `next`, so a thread that walks the list finds complete entries.
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

/// Assigns the numbers now, if that has not happened yet. It is called when the program begins:
/// workers do not have libraries that the program opens later.
pub(crate) fn close() {
    LazyLock::force(&INDEX);
}

/// All entries that existed when the numbers were assigned. `init` assigns them when it returns to
/// the program. Where `main` is not the user's (in test binaries), the constructors of other images
/// may run after ours, so our constructor does not assign the numbers. There the first use does it:
/// the first executor, process or task.
static INDEX: LazyLock<Index<'static>> = LazyLock::new(|| {
    // Before the walk below: no entry may be added to the list from here on.
    CLOSED.store(true, Ordering::Release);
    let own = TASKS.static_slice().iter();
    // SAFETY: the list consists of entries that `note` received from images that the loader has
    // mapped. Images that are present when the program begins stay mapped for ever, also after a
    // fork. After `init`, the list is closed. In a program without `init`, a library that the
    // program opened itself before the first use of the list must not have been closed again.
    // Closing it (`dlclose`) is as unsafe there as closing any library whose functions are known to
    // others. The list is walked only this once.
    let at = |pointer: &AtomicPtr<TaskEntry>| unsafe { pointer.load(Ordering::Acquire).as_ref() };
    let noted = iter::successors(at(&NOTED), move |entry: &&TaskEntry| at(&entry.registered.next));
    let entries: Vec<&'static TaskEntry> = own.chain(noted).collect();
    number(&entries)
});

/// The map from a number to its task function. A worker looks into it before each call. The keys
/// are hashes already, so the hasher has little to do.
type Index<'a> = HashMap<FnId, &'a TaskEntry, IdHasher>;

/// Assigns a number to each function. A function has the same number in every process of the
/// program, and, as far as possible, in another build of it.
fn number<'a>(entries: &[&'a TaskEntry]) -> Index<'a> {
    let mut by_name: HashMap<FnId, Vec<&'a TaskEntry>> = HashMap::with_capacity(entries.len());
    for entry in entries {
        by_name.entry(FnId::of(entry.name)).or_default().push(entry);
    }
    // Numbers in use. It starts with the hashes of all names, so that no hash of a longer text
    // below gets one of them by chance.
    let mut taken: HashSet<FnId> = by_name.keys().copied().chain([FnId(UNKNOWN)]).collect();
    let mut index = Index::with_capacity_and_hasher(entries.len(), IdHasher);
    let mut several = Vec::new();
    for (id, entries) in by_name {
        // A name that only one function has gives the number by itself. Functions that share a name
        // (or a hash) are numbered below.
        match entries[..] {
            [only] if id != FnId(UNKNOWN) => drop(index.insert(id, only)),
            _ => several.extend(entries),
        }
    }
    // Functions that differ in nothing keep the order of the linker and the loader. That order is
    // the same in every process of one executable.
    let position = |entry: &TaskEntry| entries.iter().position(|other| ptr::eq(*other, entry));
    several.sort_by_cached_key(|entry| {
        (entry.name, entry.place, (entry.signature)(), position(entry))
    });
    for entry in several {
        let SourcePlace { file, line, column, module } = entry.place;
        // The ordinal separates functions that differ in nothing, and texts whose hash is taken.
        let text =
            format!("{}\n{file}:{line}:{column}\n{module}\n{}", entry.name, (entry.signature)());
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

/// Returns the task function with this id.
pub fn lookup(id: FnId) -> Option<&'static TaskEntry> {
    INDEX.get(&id).copied()
}

/// Returns the fingerprint of this program's task functions.
pub fn fingerprint() -> Fingerprint {
    static FINGERPRINT: OnceLock<Fingerprint> = OnceLock::new();
    *FINGERPRINT.get_or_init(|| {
        fingerprint_of(INDEX.iter().map(|(id, entry)| (entry.name, *id, (entry.signature)())))
    })
}

/// The names of functions that mean the same in every program that has such a function.
struct Meanings {
    by_id: HashMap<FnId, u64, IdHasher>,
    by_meaning: HashMap<FnId, FnId, IdHasher>,
}

static MEANINGS: LazyLock<Meanings> = LazyLock::new(|| {
    let mut meanings = Meanings { by_id: HashMap::default(), by_meaning: HashMap::default() };
    for (id, entry) in INDEX.iter() {
        let meaning = meaning_of(entry.name, *id, &(entry.signature)());
        meanings.by_id.insert(*id, meaning);
        meanings.by_meaning.insert(FnId(meaning), *id);
    }
    meanings
});

fn meaning_of(name: &str, id: FnId, signature: &str) -> u64 {
    FnId::of(&format!("{name}\n{}\n{signature}", id.0)).0
}

/// Returns a number for a function and its types. Another program that has the same function, in
/// the same version of its crate, has the same number for it. It is for messages between programs:
/// a number that is not known there belongs to no function, instead of to another one.
pub(crate) fn meaning(id: FnId) -> Option<u64> {
    MEANINGS.by_id.get(&id).copied()
}

/// Returns the function of this program that another program has named by its
/// [`meaning`].
pub(crate) fn by_meaning(meaning: u64) -> Option<FnId> {
    MEANINGS.by_meaning.get(&FnId(meaning)).copied()
}

fn fingerprint_of(entries: impl Iterator<Item = (&'static str, FnId, String)>) -> Fingerprint {
    let mut entries: Vec<_> = entries.collect();
    entries.sort_unstable();
    let mut text = String::new();
    for (name, id, signature) in &entries {
        // No part contains a line break, so two different lists never give the same text.
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
            place: SourcePlace { file: "src/tasks.rs", line, column: 5, module },
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
    fn a_function_with_other_types_or_in_another_version_means_something_else() {
        let id = FnId::of("add");
        let meaning = meaning_of("add", id, "fn(i64) -> i64, crate 1.0.0");
        assert_eq!(meaning, meaning_of("add", id, "fn(i64) -> i64, crate 1.0.0"));
        for other in ["fn(i32) -> i64, crate 1.0.0", "fn(i64) -> i64, crate 1.0.1"] {
            assert_ne!(meaning, meaning_of("add", id, other));
        }
        assert_ne!(meaning, meaning_of("sub", FnId::of("sub"), "fn(i64) -> i64, crate 1.0.0"));
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
