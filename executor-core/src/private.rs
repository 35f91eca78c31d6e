//! The items that generated code uses. They are not part of the public interface, and change
//! without notice.
//!
//! The attribute `#[task]` sees only how a type is spelled; the items here see the type itself.
//! `Probe::<T>::X` is an associated constant. If `Probe<T>` has an inherent implementation with `X`
//! for this `T`, the constant comes from there, because inherent items win. Otherwise it comes from
//! [`Fallback`]. In this way `type Answer = Result<…>` is recognised as a `Result`, and the library
//! finds out whether an error type implements serde's traits. This works on concrete types only,
//! which is one reason why task functions are not generic.

// A `CallResult` is large because of the failure in it, but it is returned only once per call.
#![allow(clippy::result_large_err)]

use std::{
    convert::Infallible,
    error::Error,
    ffi::{CStr, CString, OsStr, OsString},
    fmt::Display,
    marker::PhantomData,
    path::Path,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::{ByteArray, ByteBuf, Bytes};

pub use crate::worker::entry::init_before_main;
pub use crate::{
    error::Failure,
    id::FnId,
    manager::{Step, StepFn},
    os::image::Constructor,
    registry::{
        Call, CallContext, CallResult, Registered, Role, SourcePlace, Stage, TASKS, TaskEntry, note,
    },
    task::{Task, TaskArgs, TaskFn},
    wire::{
        buffer::Buffer,
        codec::{Codec, CodecError, Fault, Format, MessagePack, Postcard},
    },
};
pub use linkme;

pub mod managed {
    //! What `#[managed]` uses.
    pub use serde;

    pub use crate::manager::managed::{Handle, construct, with_mut, with_ref};
}

use crate::{
    os::arena,
    unwind::catch,
    wire::attachment::{self, Attachment},
};

/// Answers questions about `T` at compile time.
#[derive(Debug)]
pub struct Probe<T: ?Sized>(PhantomData<T>);

/// The answers for a type for which [`Probe`] has no better one.
pub trait Fallback {
    type Type: ?Sized;
    const IS_RESULT: bool = false;
    const VIA: AsSerde = AsSerde;
    const VALUE: NoValue = NoValue;
    const AS_ERROR: Option<Upcast<Self::Type>> = None;
    const TO_ERROR: Option<Upcast<Self::Type>> = None;
    const TO_SEND_ERROR: Option<Upcast<Self::Type>> = None;
    const TO_SYNC_ERROR: Option<Upcast<Self::Type>> = None;
}

impl<T: ?Sized> Fallback for Probe<T> {
    type Type = T;
}

impl<T, E> Probe<Result<T, E>> {
    pub const IS_RESULT: bool = true;
}

/// The meaning of a function's return type: only a `Result` can fail. For any other type, the value
/// is the output and the error is impossible.
pub trait Outcome<const IS_RESULT: bool> {
    type Output;
    type Error;
    fn into_result(self) -> Result<Self::Output, Self::Error>;
}

impl<T> Outcome<false> for T {
    type Output = T;
    type Error = Infallible;
    #[inline]
    fn into_result(self) -> Result<T, Infallible> {
        Ok(self)
    }
}

impl<T, E> Outcome<true> for Result<T, E> {
    type Output = T;
    type Error = E;
    #[inline]
    fn into_result(self) -> Self {
        self
    }
}

// The ways to send a value. Byte strings go through serde_bytes. Encoded element by element, they
// would be 30 to 65 times slower.

/// A type that can be sent to another process in the way `V`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot travel to another process",
    label = "needs serde's `Serialize` and `Deserialize`",
    note = "for a type of your own, `#[derive(serde::Serialize, serde::Deserialize)]`; for another crate's, look for \
            its `serde` feature",
    note = "what processes are to share, as threads share an `Arc<Mutex<…>>`, is an `executor::Value`, `Array` or `Lock`: what \
            travels by serde is a copy, an `Arc` or `Mutex` with serde's feature `rc` too"
)]
pub trait Travels<'de, V> {
    /// The decoded type. The call borrows its argument from it.
    type Decoded;
    fn encode<F: Format>(value: &Self, out: &mut Buffer) -> Result<(), CodecError>;
    fn decode<F: Format>(reader: &mut F::Reader<'de>) -> Result<Self::Decoded, CodecError>;
    /// Decodes a value that fills `bytes` exactly, if it is of a type that needs no reader. Returns
    /// `None` for all other types.
    #[inline(always)]
    fn lone<F: Format>(_bytes: &'de [u8]) -> Option<Self::Decoded> {
        None
    }
}

/// The way of a type that is encoded by its serde implementation.
#[derive(Debug, Clone, Copy)]
pub struct AsSerde;

/// The way of a type that is encoded as a byte string.
#[derive(Debug, Clone, Copy)]
pub struct AsBytes;

impl Probe<Vec<u8>> {
    pub const VIA: AsBytes = AsBytes;
}

impl Probe<Box<[u8]>> {
    pub const VIA: AsBytes = AsBytes;
}

impl Probe<[u8]> {
    pub const VIA: AsBytes = AsBytes;
}

impl<const N: usize> Probe<[u8; N]> {
    pub const VIA: AsBytes = AsBytes;
}

impl<'de, T: Serialize + Deserialize<'de>> Travels<'de, AsSerde> for T {
    type Decoded = T;
    #[inline]
    fn encode<F: Format>(value: &T, out: &mut Buffer) -> Result<(), CodecError> {
        F::encode(value, out)
    }
    #[inline]
    fn decode<F: Format>(reader: &mut F::Reader<'de>) -> Result<T, CodecError> {
        F::next(reader)
    }
    #[inline(always)]
    fn lone<F: Format>(bytes: &'de [u8]) -> Option<T> {
        F::lone(bytes)
    }
}

/// Implements [`Travels`] for `$type`: it is encoded as something that serde writes, and decoded to
/// something that derefs to it.
macro_rules! travels {
    ($([$($generics:tt)*] $way:ident: $type:ty => $decoded:ty, |$value:ident| $encode:expr, $wire:ty => $decode:expr;)*) => {$(
        #[diagnostic::do_not_recommend]
        impl<'de, $($generics)*> Travels<'de, $way> for $type {
            type Decoded = $decoded;
            #[inline]
            fn encode<F: Format>($value: &$type, out: &mut Buffer) -> Result<(), CodecError> {
                F::encode($encode, out)
            }
            #[inline]
            fn decode<F: Format>(reader: &mut F::Reader<'de>) -> Result<$decoded, CodecError> {
                F::next::<$wire>(reader).map($decode)
            }
        }
    )*};
}

travels! {
    [] AsBytes: Vec<u8> => Vec<u8>, |value| Bytes::new(value), &'de Bytes => |bytes: &'de Bytes| arena::copy(bytes);
    [] AsBytes: Box<[u8]> => Box<[u8]>, |value| Bytes::new(value), &'de Bytes => |bytes: &'de Bytes| arena::copy(bytes).into();
    [] AsBytes: [u8] => &'de [u8], |value| Bytes::new(value), &'de Bytes => |bytes: &'de Bytes| -> &'de [u8] { bytes };
    [const N: usize] AsBytes: [u8; N] => [u8; N], |value| Bytes::new(value), ByteArray<N> => ByteArray::into_array;
    [] AsSerde: str => &'de str, |value| value, &'de str => |text| text;
    [] AsSerde: Path => &'de Path, |value| value, &'de Path => |path| path;
    [] AsSerde: OsStr => OsString, |value| value, OsString => |text| text;
    [] AsSerde: CStr => CString, |value| value, CString => |text| text;
    [T: Serialize + Deserialize<'de>] AsSerde: [T] => Vec<T>, |value| value, Vec<T> => |items| items;
}

/// A way to send a `T`, together with the proof that `T` has what the way requires.
///
/// Both sides of a task get their `Way` from a call of [`way`] that consists of the same tokens. So
/// the compiler reports a type that cannot be sent only once, in serde's own words, and not at each
/// use.
pub struct Way<'de, F: Format, T: ?Sized, D> {
    encode: fn(&T, &mut Buffer) -> Result<(), CodecError>,
    decode: fn(&mut F::Reader<'de>) -> Result<D, CodecError>,
    lone: fn(&'de [u8]) -> Option<D>,
}

// The bound says `Decoded = D` instead of naming `T::Decoded` in the return type. Otherwise the
// compiler would report a second error, at a worse place.
#[inline(always)]
pub fn way<'de, F: Format, T: Travels<'de, V, Decoded = D> + ?Sized, V, D>(
    _: V,
) -> Way<'de, F, T, D> {
    Way { encode: T::encode::<F>, decode: T::decode::<F>, lone: T::lone::<F> }
}

/// Returns the way of a `[T]`. It takes the item type, so that the compiler points at the item type
/// if that does not implement serde's traits.
#[inline(always)]
pub fn slice_way<'de, F: Format, T: Serialize + Deserialize<'de>>() -> Way<'de, F, [T], Vec<T>> {
    way::<F, [T], AsSerde, _>(AsSerde)
}

/// Encodes one argument.
#[inline(always)]
pub fn encode<F: Format, T: ?Sized, D>(
    way: Way<'_, F, T, D>,
    name: &'static str,
    value: &T,
    out: &mut Buffer,
) -> Result<(), CodecError> {
    (way.encode)(value, out).map_err(|error| error.of_argument(name))
}

/// Reads the arguments of a call one after the other.
pub struct Arguments<'de, 'cx, F: Format> {
    reader: F::Reader<'de>,
    stage: &'cx mut Stage,
    attachments: Vec<Attachment>,
}

impl<'de, 'cx, F: Format> Arguments<'de, 'cx, F> {
    #[inline]
    pub fn new(bytes: &'de [u8], cx: &'cx mut CallContext) -> Self {
        let attachments = match cx.attachments.is_empty() {
            true => Vec::new(),
            false => std::mem::take(&mut cx.attachments),
        };
        Arguments { reader: F::reader(bytes), attachments, stage: cx.stage_mut() }
    }

    #[inline(always)]
    pub fn next<T: ?Sized, D>(
        &mut self,
        way: Way<'de, F, T, D>,
        name: &'static str,
    ) -> Result<D, CallResult> {
        let Arguments { reader, stage, attachments, .. } = self;
        let decode = || attachment::offer(attachments, || (way.decode)(reader));
        stage.during(Stage::Decode, decode).map_err(|error| undecodable(error, name))
    }

    /// Checks that all bytes of the arguments were read.
    #[inline]
    pub fn finish(&self) -> Result<(), CallResult> {
        if let Err(error) = F::finish(&self.reader) {
            return Err(CallResult::Decode(error));
        }
        kill_point!(Decoded);
        Ok(())
    }
}

/// Converts an error of decoding an argument into the result of the call.
///
/// Arguments whose `Serialize` and `Deserialize` do not match each other, or do not suit the codec,
/// should not have been sent. That is an error of encoding, although only the reader can find it.
#[cold]
fn undecodable(error: CodecError, name: &str) -> CallResult {
    let error = error.of_argument(name);
    match error.fault {
        Fault::Unsuited => CallResult::Unsuited(error),
        Fault::Own | Fault::Bytes => CallResult::Decode(error),
    }
}

/// Encodes a result and appends it to `cx.out`.
#[inline(always)]
pub fn reply<F: Format, T>(way: Way<'_, F, T, T>, value: &T, cx: &mut CallContext) -> CallResult {
    kill_point!(Ran);
    // A copy of this process that the task made by `fork` ends here, before it writes to memory
    // that the parent shares with the original.
    cx.creator.end_copy(0);
    let start = cx.out.len();
    // Not moved out of the closure as a `Result`: see `task::encode`.
    let mut failed = None;
    cx.attachments.clear();
    cx.during(Stage::Encode, |CallContext { out, attachments, around_result, .. }| {
        let mut encode = || {
            attachment::collect_into(attachments, || {
                if let Err(error) = (way.encode)(value, out) {
                    failed = Some(error);
                }
            });
        };
        match around_result {
            None => encode(),
            Some(around) => around(&mut encode),
        }
    });
    match failed {
        None => CallResult::Done,
        Some(error) => {
            // Remove what was encoded before the error.
            cx.attachments.clear();
            cx.out.truncate(start);
            CallResult::Encode(error)
        }
    }
}

/// Decodes a result.
#[inline(always)]
pub fn decode_output<'de, F: Format, T>(
    way: Way<'de, F, T, T>,
    bytes: &'de [u8],
) -> Result<T, CodecError> {
    if let Some(value) = (way.lone)(bytes) {
        return Ok(value);
    }
    let mut reader = F::reader(bytes);
    let value = (way.decode)(&mut reader)?;
    match F::finish(&reader) {
        Ok(()) => Ok(value),
        Err(error) => {
            // If the drop panics as well, the error to report is still the first one.
            let _ = catch(|| drop(value));
            Err(error)
        }
    }
}

// What is kept of an error.

/// Returns an error as a `dyn Error`, whose sources can be read.
pub type Upcast<E> = fn(&E) -> &(dyn Error + 'static);

impl<E: Error + 'static> Probe<E> {
    pub const AS_ERROR: Option<Upcast<E>> = Some(|error| error);
}

impl<E: AsRef<dyn Error>> Probe<E> {
    pub const TO_ERROR: Option<Upcast<E>> = Some(|error| error.as_ref());
}

impl<E: AsRef<dyn Error + Send>> Probe<E> {
    pub const TO_SEND_ERROR: Option<Upcast<E>> = Some(|error| error.as_ref());
}

impl<E: AsRef<dyn Error + Send + Sync>> Probe<E> {
    pub const TO_SYNC_ERROR: Option<Upcast<E>> = Some(|error| error.as_ref());
}

/// Keeps the encoded error itself, for `RemoteError::downcast`.
pub trait Value<E> {
    fn value<F: Format>(error: &E) -> Option<(Codec, ByteBuf)>;
}

/// The error type implements serde's traits.
#[derive(Debug, Clone, Copy)]
pub struct ItsValue;

/// The error type does not implement serde's traits.
#[derive(Debug, Clone, Copy)]
pub struct NoValue;

impl<E: Serialize + DeserializeOwned> Probe<E> {
    pub const VALUE: ItsValue = ItsValue;
}

impl<E: Serialize> Value<E> for ItsValue {
    fn value<F: Format>(error: &E) -> Option<(Codec, ByteBuf)> {
        let mut bytes = Buffer::new();
        // An error that cannot be encoded still has a message. Only `downcast` finds nothing.
        F::encode(error, &mut bytes).ok()?;
        Some((F::CODEC, ByteBuf::from(bytes.into_vec())))
    }
}

impl<E> Value<E> for NoValue {
    fn value<F: Format>(_: &E) -> Option<(Codec, ByteBuf)> {
        None
    }
}

/// Describes a task's own error for the parent: message, type name, sources and encoded value.
pub fn failed<F: Format, E: Display, V: Value<E>>(
    error: &E,
    _: V,
    upcasts: [Option<Upcast<E>>; 4],
    cx: &mut CallContext,
) -> CallResult {
    let (message, sources) = cx.during(Stage::Describe, |_| {
        let outer = upcasts.into_iter().flatten().next().map(|upcast| upcast(error));
        let sources = std::iter::successors(
            outer.and_then(Error::source),
            |error: &&(dyn Error + 'static)| -> Option<&(dyn Error + 'static)> {
                (*error).source()
            },
        );
        (error.to_string(), sources.map(ToString::to_string).collect())
    });
    CallResult::Failed(Failure {
        message,
        type_name: std::any::type_name::<E>().to_owned(),
        sources,
        // If `Serialize` panics, the error still has a message, as above.
        value: catch(|| V::value::<F>(error)).unwrap_or_default(),
        ..Failure::default()
    })
}

/// Returns the signature of a task function for the fingerprint. Two builds with the same
/// signatures can read each other's bytes.
pub fn signature(
    parameters: &[&str],
    output: &str,
    package: Option<&str>,
    version: Option<&str>,
) -> String {
    format!(
        "{} {} ({}) -> {output}",
        package.unwrap_or_default(),
        version.unwrap_or_default(),
        parameters.join(", ")
    )
}
