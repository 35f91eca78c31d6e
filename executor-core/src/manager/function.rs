//! Functions that a server applies to what it has stored, so that nothing is lost between reading a
//! value and writing it.
//!
//! ```text
//!  #[task] fn add(value: i64, n: i64) -> i64
//!  add::with(5) ──► Step: the function, and all arguments but the first, encoded
//!                     │
//!  server: a thread ──┴─ the stored value's bytes, then the other arguments ─► TaskEntry::call
//!                                             the result's bytes are the new value ◄──┘
//! ```

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    client::{Door, Lender, Named, naming, naming_result, serving, take_result},
    error::ManagerError,
    managed::{self, Stored},
    protocol::{FIELD_BYTES_MAX, Fields, NAMED_MAX, ObjectId, put_bytes, put_number},
};
use crate::{
    error::{self, TaskError},
    id::TaskId,
    registry::{self, Call, Role, TaskEntry},
    task::{Retry, SetOptions, Task, TaskArgs, TaskFn, TaskOptions, encode},
    wire::{
        attachment::Attachment,
        buffer::Buffer,
        codec::{CodecError, Format, Postcard},
        frame::Reply,
    },
    worker::call_here,
};

/// A task function and all its arguments but the first: how a managed value is to be changed.
///
/// `#[task] fn add(value: i64, n: i64) -> i64` makes `add::with(5)`. The function runs in the
/// server. Its first argument is the value that is stored, and its result is stored in place of it.
///
/// ```
/// use executor::{manager::Manager, prelude::*};
///
/// #[task]
/// fn add(value: i64, n: i64) -> i64 { value + n }
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let manager = Manager::start()?;
///     let count = manager.value(1)?;
///     assert_eq!(count.update(add::with(5))?, 6);
///     Ok(())
/// }
/// ```
///
/// While the function runs, all other calls of the same object wait. Calls of other objects are
/// served, after a millisecond or two at most. A server runs at most 256 functions at a time: if so
/// many never end, no other update begins. If the function returns an error or panics, the
/// value stays as it was. Handles of objects of the same manager can be among its arguments, and in
/// what is stored; see `#[managed]` for what a function can do with them.
pub struct Step<F, A> {
    rest: A,
    marker: PhantomData<fn() -> F>,
}

impl<F, A: fmt::Debug> fmt::Debug for Step<F, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Step").field(&self.rest).finish()
    }
}

impl<F: StepFn<A>, A> Step<F, A> {
    #[doc(hidden)]
    pub fn new(rest: A) -> Self {
        Step { rest, marker: PhantomData }
    }

    /// Returns the number under which the server knows the function, if its program has one of the
    /// same types, and the encoded arguments.
    pub(super) fn encode(&self, server: &Arc<Door>) -> Result<EncodedCall, ManagerError> {
        let failed = |why: String| ManagerError::Encode(format!("{}: {why}", F::NAME).into());
        F::entry().known().map_err(failed)?;
        let mut buffer = Buffer::new();
        let ((encoded, attachments), mut named) = naming(server, || {
            crate::wire::attachment::collect(|| F::encode_rest(&self.rest, &mut buffer))
        });
        encoded.map_err(|error| named.failed().unwrap_or_else(|| failed(error.message)))?;
        if !attachments.is_empty() {
            return Err(failed(BELONGS_TO_PROCESSES.to_owned()));
        }
        let arguments = buffer.into_vec();
        check_size(&arguments, &named).map_err(failed)?;
        let meaning = registry::meaning(F::entry().number());
        let function = meaning.ok_or_else(|| failed("it is not in the registry".to_owned()))?;
        Ok(EncodedCall { function, options: Vec::new(), arguments, named })
    }
}

const BELONGS_TO_PROCESSES: &str =
    "its arguments contain something that belongs to processes, such as a file or a queue";

/// Checks that arguments fit into one field of a message.
fn check_size(arguments: &[u8], named: &Named) -> Result<(), String> {
    let (bytes, names) = (arguments.len(), named.ids.len());
    match bytes <= FIELD_BYTES_MAX && names <= NAMED_MAX {
        true => Ok(()),
        false => Err(format!(
            "its arguments have {bytes} bytes and name {names} objects; at most {FIELD_BYTES_MAX} and \
             {NAMED_MAX} are possible"
        )),
    }
}

/// A task function that can change a managed value: its first parameter is the value.
///
/// `#[task]` implements it for every function that is not async and has a parameter; no other code
/// does.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot change a managed value",
    note = "it has to be a task function that is not async, whose first parameter is the value"
)]
pub trait StepFn<A>: TaskFn {
    /// The type of the first parameter, without a reference.
    type Current: ?Sized;

    #[doc(hidden)]
    fn encode_rest(rest: &A, out: &mut Buffer) -> Result<(), CodecError>;
}

/// The id under which panics of such functions are recorded.
const TASK: TaskId = TaskId::from_raw(2);

/// What the server needs to run the function of an update.
#[derive(Debug)]
pub(super) struct Application<'a> {
    pub(super) function: u64,
    /// Whether the first parameter is an `Option`, so that the value may be missing.
    pub(super) optional: bool,
    pub(super) current: Option<&'a [u8]>,
    pub(super) rest: &'a [u8],
}

impl Application<'_> {
    /// Runs the function, in the server. Returns the new value, or the body of a reply that says
    /// why there is none.
    pub(super) fn run(self, site: Site<'_>) -> Result<Output, Vec<u8>> {
        let mut arguments = Vec::new();
        if self.optional {
            let mut none = Buffer::new();
            let _ = Postcard::encode(&self.current.map(|_| ()), &mut none);
            // `Some(())` is the mark of an option, then a unit. The value stands in its place.
            arguments = none.into_vec();
            arguments.truncate(1);
        }
        arguments.extend_from_slice(self.current.unwrap_or_default());
        arguments.extend_from_slice(self.rest);
        run(Wanted::Function, self.function, &arguments, site)
    }
}

/// Where a function runs: in this server, which lends it references.
pub(super) struct Site<'a> {
    pub(super) door: &'a Arc<Door>,
    pub(super) lender: &'a Arc<dyn Lender>,
    /// What its value and its arguments name.
    pub(super) lent: Vec<ObjectId>,
}

/// What a function has returned, encoded, and the objects that it names.
#[derive(Default)]
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    pub(super) named: Named,
}

/// Runs a function that makes a value of a user's own type.
pub(super) fn construct(
    function: u64,
    arguments: &[u8],
    site: Site<'_>,
) -> Result<Arc<Stored>, Vec<u8>> {
    let (ran, made) = managed::constructing(|| run(Wanted::Constructor, function, arguments, site));
    ran?;
    made.ok_or_else(|| refused(function, b"it has made no object"))
}

/// Runs a method of such a value.
pub(super) fn call(
    value: Arc<Stored>,
    function: u64,
    arguments: &[u8],
    site: Site<'_>,
) -> Result<Output, Vec<u8>> {
    managed::calling(value, || run(Wanted::Method, function, arguments, site))
}

/// What kind of function a request is about. A client that breaks the protocol can name any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// One that updates a value.
    Function,
    Constructor,
    Method,
}

impl Wanted {
    /// Returns what is wrong with a function of another kind.
    fn other(self) -> &'static str {
        match self {
            Wanted::Function => "it is a method of a managed type, which only its proxy can call",
            Wanted::Constructor => "it is no constructor of a managed type",
            Wanted::Method => "it is no method of a managed type",
        }
    }
}

/// Returns the function that a client means, or the body of a reply that says that there is none:
/// the client may be another program.
pub(super) fn known(function: u64) -> Result<&'static TaskEntry, Vec<u8>> {
    registry::by_meaning(function).and_then(registry::lookup).ok_or_else(|| {
        refused(
            function,
            b"the program of the server has no such function, or one with other types or of another version of its crate",
        )
    })
}

/// Whether a function is a method that has the object for itself. The server asks this, and not the
/// client, which could say anything.
pub(super) fn is_exclusive(function: u64) -> bool {
    let entry = registry::by_meaning(function).and_then(registry::lookup);
    entry.is_some_and(|entry| matches!(entry.call, Call::Managed(_, Role::Exclusive)))
}

/// Runs a function, in the server. Returns its result, or the body of a reply that says why there
/// is none.
fn run(
    wanted: Wanted,
    function: u64,
    arguments: &[u8],
    Site { door, lender, lent }: Site<'_>,
) -> Result<Output, Vec<u8>> {
    // References that no handle takes go back, also if there is no such function.
    serving(door, lender, lent, || run_here(wanted, function, arguments))
}

fn run_here(wanted: Wanted, function: u64, arguments: &[u8]) -> Result<Output, Vec<u8>> {
    let entry = known(function)?;
    let is_right = match (&entry.call, wanted) {
        // The attributes generate no such call.
        (Call::Async(_), _) => {
            return Err(refused(function, b"it is async, and the server does not await"));
        }
        (Call::Managed(_, Role::Constructor), Wanted::Constructor) => true,
        (Call::Managed(_, Role::Exclusive | Role::Shared), Wanted::Method) => true,
        (Call::Sync(_), Wanted::Function) => true,
        _ => false,
    };
    if !is_right {
        return Err(refused(function, wanted.other().as_bytes()));
    }
    let id = entry.number();
    let reply = |kind: Reply, bytes: &[u8], attachments: &[Attachment]| {
        let named = take_result();
        match kind {
            Reply::Done if !attachments.is_empty() => Err((
                Reply::Refused,
                b"its result contains something that belongs to processes, such as a file".to_vec(),
            )),
            Reply::Done if named.ids.len() > NAMED_MAX => {
                Err((Reply::Refused, b"its result names too many objects".to_vec()))
            }
            Reply::Done => Ok(Output { bytes: bytes.to_vec(), named }),
            kind => Err((kind, bytes.to_vec())),
        }
    };
    call_here(TASK, id, arguments, Some(naming_result), reply)
        .map_err(|(kind, bytes)| failed(function, kind, &bytes))
}

/// Returns the body of a reply that says why a function was not run.
pub(super) fn refused(function: u64, why: &[u8]) -> Vec<u8> {
    failed(function, Reply::Refused, why)
}

/// The kind of a failure that is a whole [`TaskError`]. The other kinds are those of replies of
/// workers, which are bytes.
const TASK_ERROR: u64 = 1 << 8;

/// Returns the body of a reply that says how a task in a pool has failed.
pub(super) fn task_failed(error: &TaskError) -> Vec<u8> {
    let mut bytes = error::encoded::encode(error);
    if bytes.len() > FIELD_BYTES_MAX {
        bytes = error::encoded::encode(&TaskError::invalid("its error is too large to be sent"));
    }
    let mut body = Vec::new();
    put_number(&mut body, TASK_ERROR);
    put_bytes(&mut body, &bytes);
    // The error has the name.
    put_bytes(&mut body, b"");
    body
}

/// The options of a task, as a client sends them.
#[derive(Serialize, Deserialize)]
pub(super) struct TaskSettings {
    timeout: Option<Duration>,
    queue_timeout: Option<Duration>,
    priority: Option<i32>,
    name: Option<String>,
    /// How often the task is tried again, and the first delay.
    retries: Option<(u16, Duration)>,
}

impl TaskSettings {
    /// Encodes the options of a task. Most have none, and nothing is to be sent for them.
    fn encode(options: &TaskOptions) -> Result<Vec<u8>, TaskError> {
        let Some(set) = options.get() else { return Ok(Vec::new()) };
        // Without `..`, so that no option is forgotten. The pool in the server sets the last three.
        let SetOptions {
            timeout,
            queue_timeout,
            priority,
            needs,
            on_worker,
            name,
            retry,
            measures,
            needed: _,
            poison_limit: _,
            usage: _,
        } = set;
        if retry.as_ref().is_some_and(|retry| retry.on.is_some()) {
            return Err(TaskError::invalid(
                "a task of a manager's pool has `retry_on`, which is code that would have to be \
                 called in the server",
            ));
        }
        let unsuited = [
            ("measure_usage", *measures),
            ("needs", !needs.is_empty()),
            ("on_worker", on_worker.is_some()),
        ];
        if let Some((option, _)) = unsuited.iter().find(|(_, is_set)| *is_set) {
            return Err(TaskError::invalid(format!(
                "a task of a manager's pool has `{option}`, which is for executors only"
            )));
        }
        let settings = TaskSettings {
            timeout: *timeout,
            queue_timeout: *queue_timeout,
            priority: *priority,
            name: name.as_deref().map(str::to_owned),
            retries: retry.as_ref().and_then(|retry| Some((retry.retries?, retry.delay))),
        };
        Ok(postcard::to_stdvec(&settings).expect("numbers and a text can be encoded"))
    }

    /// Decodes what [`encode`](Self::encode) has encoded.
    pub(super) fn decode(bytes: &[u8]) -> Option<TaskOptions> {
        let mut options = TaskOptions::default();
        if bytes.is_empty() {
            return Some(options);
        }
        let settings: TaskSettings = postcard::from_bytes(bytes).ok()?;
        let set = options.set();
        set.timeout = settings.timeout;
        set.queue_timeout = settings.queue_timeout;
        set.priority = settings.priority;
        set.name = settings.name.map(String::into_boxed_str);
        set.retry = settings.retries.map(|(retries, delay)| Retry {
            retries: Some(retries),
            delay,
            on: None,
        });
        Some(options)
    }
}

/// A call of a function, as it stands in a request.
pub(super) struct EncodedCall {
    /// What the function means.
    pub(super) function: u64,
    /// The options of the task. Empty without any.
    pub(super) options: Vec<u8>,
    pub(super) arguments: Vec<u8>,
    /// The objects that the arguments name.
    pub(super) named: Named,
}

/// Encodes a call. It consumes the task, so no future keeps what it has borrowed. With a server,
/// the arguments can name its objects.
pub(super) fn encode_call<F: TaskArgs<A>, A>(
    task: Task<F, A>,
    server: Option<&Arc<Door>>,
) -> Result<EncodedCall, ManagerError> {
    let (args, options) = task.into_parts();
    let name = options.called(F::NAME).to_owned();
    let failed = |why: &dyn fmt::Display| ManagerError::Encode(format!("{name}: {why}").into());
    let (mut bytes, mut attached) = (Buffer::new(), Vec::new());
    let encode = || encode::encode::<F, A>(args, &options, &mut bytes, &mut attached);
    let (encoded, mut named) = match server {
        Some(server) => naming(server, encode),
        None => (encode(), Named::default()),
    };
    match encoded {
        Ok(()) => {}
        Err(error) if matches!(*error, TaskError::Invalid(_)) => {
            return Err(ManagerError::Failed(*error));
        }
        Err(error) => return Err(named.failed().unwrap_or_else(|| failed(&error))),
    }
    if !attached.is_empty() {
        return Err(match server {
            Some(_) => failed(&BELONGS_TO_PROCESSES),
            None => failed(
                &"its arguments contain something that belongs to processes, such as a file, a queue or a managed object",
            ),
        });
    }
    let arguments = bytes.into_vec();
    check_size(&arguments, &named).map_err(|why| failed(&why))?;
    let function = registry::meaning(F::entry().number());
    let function = function.ok_or_else(|| failed(&"it is not in the registry"))?;
    let options = TaskSettings::encode(&options).map_err(ManagerError::Failed)?;
    Ok(EncodedCall { function, options, arguments, named })
}

/// Returns the body of a reply that says why a function gave no value.
fn failed(function: u64, kind: Reply, bytes: &[u8]) -> Vec<u8> {
    if bytes.len() > FIELD_BYTES_MAX {
        return refused(function, b"its error is too large to be sent");
    }
    let mut body = Vec::new();
    put_number(&mut body, kind as u64);
    put_bytes(&mut body, bytes);
    let entry = registry::by_meaning(function).and_then(registry::lookup);
    let name = entry.map_or("a function", |entry| entry.name);
    put_bytes(&mut body, name.as_bytes());
    body
}

/// Decodes the body of a reply that says why the function of an update gave no value.
pub(super) fn failure(body: &[u8]) -> ManagerError {
    let mut fields = Fields::new(body);
    let (Ok(kind), Ok(bytes), Ok(name)) = (fields.number(), fields.bytes(), fields.bytes()) else {
        return ManagerError::Protocol("a failure that nobody understands".into());
    };
    if kind == TASK_ERROR {
        let unknown = || ManagerError::Protocol("a failure that nobody understands".into());
        return error::encoded::decode(bytes).map_or_else(unknown, ManagerError::Failed);
    }
    let name = String::from_utf8_lossy(name);
    let kind = u8::try_from(kind).ok().and_then(Reply::from_u8);
    ManagerError::Failed(match kind {
        Some(kind) => error::reply::failure(&name, kind, bytes),
        None => TaskError::Invalid(format!("`{name}` ended in an unknown way").into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_of_a_task_reach_the_server_or_are_refused() {
        let mut options = TaskOptions::default();
        assert!(TaskSettings::encode(&options).unwrap().is_empty());
        let set = options.set();
        set.timeout = Some(Duration::from_millis(3));
        set.queue_timeout = Some(Duration::MAX);
        set.priority = Some(-7);
        set.name = Some("a name".into());
        let retries = Retry { retries: Some(9), delay: Duration::from_secs(1), on: None };
        set.retry = Some(retries.clone());
        let decode = |bytes: &[u8]| TaskSettings::decode(bytes).expect("options");
        let there = decode(&TaskSettings::encode(&options).unwrap());
        assert_eq!(format!("{:?}", there.get()), format!("{:?}", options.get()));

        options.set().measures = true;
        let error = TaskSettings::encode(&options).unwrap_err().to_string();
        assert!(error.contains("`measure_usage`") && !error.contains("  "), "{error}");
        options.set().measures = false;
        options.set().retry = Some(Retry { on: Some(Arc::new(|_| true)), ..retries });
        let error = TaskSettings::encode(&options).unwrap_err().to_string();
        assert!(error.contains("`retry_on`") && !error.contains("  "), "{error}");
    }
}
