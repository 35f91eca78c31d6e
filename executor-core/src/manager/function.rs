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

use std::{fmt, marker::PhantomData, sync::Arc};

use super::{
    client::{Door, taking_in_server},
    error::ManagerError,
    managed::{self, Stored},
    protocol::{FIELD_BYTES_MAX, Fields, put_bytes, put_number},
};
use crate::{
    error::{self, TaskError},
    id::TaskId,
    registry::{self, Call},
    task::TaskFn,
    wire::{
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
/// value stays as it was. It cannot send or return objects of its manager.
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
    pub(super) fn encode(&self) -> Result<(u64, Vec<u8>), ManagerError> {
        let failed = |why: String| ManagerError::Encode(format!("{}: {why}", F::NAME).into());
        F::entry().known().map_err(failed)?;
        let mut buffer = Buffer::new();
        let (encoded, attachments) =
            crate::wire::attachment::collect(|| F::encode_rest(&self.rest, &mut buffer));
        encoded.map_err(|error| failed(error.message))?;
        if !attachments.is_empty() {
            let why = "its arguments contain something that belongs to processes, such as a file or a queue";
            return Err(failed(why.to_owned()));
        }
        let meaning = registry::meaning(F::entry().number());
        let meaning = meaning.ok_or_else(|| failed("it is not in the registry".to_owned()))?;
        Ok((meaning, buffer.into_vec()))
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
    pub(super) fn run(self, door: &Arc<Door>) -> Result<Vec<u8>, Vec<u8>> {
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
        run(self.function, &arguments, door)
    }
}

/// Runs a function that makes a value of a user's own type.
pub(super) fn construct(
    function: u64,
    arguments: &[u8],
    door: &Arc<Door>,
) -> Result<Arc<Stored>, Vec<u8>> {
    let (ran, made) = managed::constructing(|| run(function, arguments, door));
    ran?;
    made.ok_or_else(|| refused(function, b"it is no constructor of a managed object"))
}

/// Runs a method of such a value.
pub(super) fn call(
    value: Arc<Stored>,
    function: u64,
    arguments: &[u8],
    door: &Arc<Door>,
) -> Result<Vec<u8>, Vec<u8>> {
    let (ran, called) = managed::calling(value, || run(function, arguments, door));
    match ran {
        Ok(_) if !called => Err(refused(function, b"it is no method of a managed object")),
        ran => ran,
    }
}

/// Runs a function, in the server. Returns its result, or the body of a reply that says why there
/// is none.
fn run(function: u64, arguments: &[u8], door: &Arc<Door>) -> Result<Vec<u8>, Vec<u8>> {
    // The client may be another program.
    let Some(id) = registry::by_meaning(function) else {
        return Err(refused(
            function,
            b"the program of the server has no such function, or one with other types or of another version of its crate",
        ));
    };
    if registry::lookup(id).is_some_and(|entry| matches!(entry.call, Call::Async(_))) {
        // The attributes generate no such call.
        return Err(refused(function, b"it is async, and the server does not await"));
    }
    let call = || {
        call_here(TASK, id, arguments, |kind, bytes, attachments| match kind {
            Reply::Done if attachments.is_empty() => Ok(bytes.to_vec()),
            Reply::Done => Err((
                Reply::Refused,
                b"its result contains something that belongs to processes, such as a file".to_vec(),
            )),
            kind => Err((kind, bytes.to_vec())),
        })
    };
    taking_in_server(door, call).map_err(|(kind, bytes)| failed(function, kind, &bytes))
}

fn refused(function: u64, why: &[u8]) -> Vec<u8> {
    failed(function, Reply::Refused, why)
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
    let name = String::from_utf8_lossy(name);
    let kind = u8::try_from(kind).ok().and_then(Reply::from_u8);
    ManagerError::Failed(match kind {
        Some(kind) => error::reply::failure(&name, kind, bytes),
        None => TaskError::Invalid(format!("`{name}` ended in an unknown way").into()),
    })
}
