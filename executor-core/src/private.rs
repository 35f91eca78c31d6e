//! What generated code may name. Not part of the public interface: it changes without notice.
//!
//! The attribute sees spelling, these items see types. `Probe::<T>::X` is an associated constant of an inherent
//! implementation where there is one for `T`, and of [`Fallback`] where there is none: inherent items win. That is
//! how `type Answer = Result<…>` is recognised as a `Result`, and how an error type is asked whether it is serde.
//! It works on concrete types only, which is one reason why task functions are not generic.

// A `CallResult` is large for the failure in it, and it is returned once a call.
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
    os::image::Constructor,
    registry::{Call, CallContext, CallResult, Place, Registered, Stage, TASKS, TaskEntry, note},
    task::{Task, TaskArgs, TaskFn},
    wire::{
        buffer::Buffer,
        codec::{Codec, CodecError, Fault, Format, MessagePack, Postcard},
    },
};
pub use linkme;

use crate::{
    os::arena,
    unwind::catch,
    wire::attachment::{self, Attachment},
};

/// Asks questions about `T`.
#[derive(Debug)]
pub struct Probe<T: ?Sized>(PhantomData<T>);

/// The answers for a type that has no better one.
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

/// What a function's return type means: only a `Result` can fail.
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

// How a value travels. Byte strings go through serde_bytes: element by element they would be 30 to 65 times slower.

/// A type that can be sent in the way `V`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot travel to another process",
    label = "needs serde's `Serialize` and `Deserialize`",
    note = "for a type of your own, `#[derive(serde::Serialize, serde::Deserialize)]`; for another crate's, look for \
            its `serde` feature",
    note = "what processes are to share, as threads share an `Arc<Mutex<…>>`, is an `executor::Value`, `Array` or `Lock`: what \
            travels by serde is a copy, an `Arc` or `Mutex` with serde's feature `rc` too"
)]
pub trait Travels<'de, V> {
    /// What is decoded, for a call to borrow from.
    type Decoded;
    fn encode<F: Format>(value: &Self, out: &mut Buffer) -> Result<(), CodecError>;
    fn decode<F: Format>(reader: &mut F::Reader<'de>) -> Result<Self::Decoded, CodecError>;
    /// Decodes a value that fills `bytes` exactly, if it is one that needs no reader.
    #[inline(always)]
    fn lone<F: Format>(_bytes: &'de [u8]) -> Option<Self::Decoded> {
        None
    }
}

/// As the type's serde implementation says.
#[derive(Debug, Clone, Copy)]
pub struct AsSerde;

/// As a byte string.
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

/// `$type` is encoded `as` something serde writes, and decoded to something that derefs to it.
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

/// A way for `T`, with what it takes already proven.
///
/// Both sides of a task get theirs by calling [`way`] with the same words, so that a type that cannot travel is told
/// once, in serde's own words, and not once for each use.
pub struct Way<'de, F: Format, T: ?Sized, D> {
    encode: fn(&T, &mut Buffer) -> Result<(), CodecError>,
    decode: fn(&mut F::Reader<'de>) -> Result<D, CodecError>,
    lone: fn(&'de [u8]) -> Option<D>,
}

// `Decoded = D` and not `T::Decoded`: the latter would be told as a second error, on a worse place.
#[inline(always)]
pub fn way<'de, F: Format, T: Travels<'de, V, Decoded = D> + ?Sized, V, D>(_: V) -> Way<'de, F, T, D> {
    Way { encode: T::encode::<F>, decode: T::decode::<F>, lone: T::lone::<F> }
}

/// The way of a `[T]`, asked for by its items, so that an item type that is not serde is what the compiler points at.
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
        let attachments = std::mem::take(&mut cx.attachments);
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

    /// All of it was read.
    #[inline]
    pub fn finish(self) -> Result<(), CallResult> {
        F::finish(&self.reader).map_err(CallResult::Decode)?;
        kill_point!(Decoded);
        Ok(())
    }
}

/// Arguments whose `Serialize` and `Deserialize` do not suit each other, or the codec, should not have been sent: that is
/// an error of encoding, although only the reader can find it.
#[cold]
fn undecodable(error: CodecError, name: &str) -> CallResult {
    let error = error.of_argument(name);
    match error.fault {
        Fault::Unsuited => CallResult::Unsuited(error),
        Fault::Own | Fault::Bytes => CallResult::Decode(error),
    }
}

/// Encodes a result behind what is in `cx.out`.
#[inline(always)]
pub fn reply<F: Format, T>(way: Way<'_, F, T, T>, value: &T, cx: &mut CallContext) -> CallResult {
    kill_point!(Ran);
    // Before anything is written to memory that the parent shares with the original.
    cx.origin.end_copy(0);
    let start = cx.out.len();
    let (encoded, attachments) =
        cx.during(Stage::Encode, |cx| attachment::collect(|| (way.encode)(value, &mut cx.out)));
    match encoded {
        Ok(()) => {
            cx.attachments = attachments;
            CallResult::Done
        }
        Err(error) => {
            cx.out.truncate(start);
            CallResult::Encode(error)
        }
    }
}

/// Decodes a result.
#[inline(always)]
pub fn decode_output<'de, F: Format, T>(way: Way<'de, F, T, T>, bytes: &'de [u8]) -> Result<T, CodecError> {
    if let Some(value) = (way.lone)(bytes) {
        return Ok(value);
    }
    let mut reader = F::reader(bytes);
    let value = (way.decode)(&mut reader)?;
    match F::finish(&reader) {
        Ok(()) => Ok(value),
        Err(error) => {
            // That it panics as well is not what went wrong.
            let _ = catch(|| drop(value));
            Err(error)
        }
    }
}

// What is kept of an error.

/// Where an error's sources are found.
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

/// Keeps the error itself, encoded, for `RemoteError::downcast`.
pub trait Value<E> {
    fn value<F: Format>(error: &E) -> Option<(Codec, ByteBuf)>;
}

/// It is serde.
#[derive(Debug, Clone, Copy)]
pub struct ItsValue;

/// It is not.
#[derive(Debug, Clone, Copy)]
pub struct NoValue;

impl<E: Serialize + DeserializeOwned> Probe<E> {
    pub const VALUE: ItsValue = ItsValue;
}

impl<E: Serialize> Value<E> for ItsValue {
    fn value<F: Format>(error: &E) -> Option<(Codec, ByteBuf)> {
        let mut bytes = Buffer::new();
        // An error that cannot be encoded is still an error with a message; only `downcast` finds nothing.
        F::encode(error, &mut bytes).ok()?;
        Some((F::CODEC, ByteBuf::from(bytes.into_vec())))
    }
}

impl<E> Value<E> for NoValue {
    fn value<F: Format>(_: &E) -> Option<(Codec, ByteBuf)> {
        None
    }
}

/// What is told of a task's own error.
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
            |error: &&(dyn Error + 'static)| -> Option<&(dyn Error + 'static)> { (*error).source() },
        );
        (error.to_string(), sources.map(ToString::to_string).collect())
    });
    CallResult::Failed(Failure {
        message,
        type_name: std::any::type_name::<E>().to_owned(),
        sources,
        // As where it cannot be encoded: only `downcast` finds nothing.
        value: catch(|| V::value::<F>(error)).unwrap_or_default(),
        ..Failure::default()
    })
}

/// For the fingerprint: two builds that agree on it read each other's bytes.
pub fn signature(parameters: &[&str], output: &str, package: Option<&str>, version: Option<&str>) -> String {
    format!(
        "{} {} ({}) -> {output}",
        package.unwrap_or_default(),
        version.unwrap_or_default(),
        parameters.join(", ")
    )
}
