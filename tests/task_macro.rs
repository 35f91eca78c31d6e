//! The code that `#[task]` generates, tested without a process: the arguments are encoded as
//! `submit` does it, the registry's entry is called as the worker does it, and the reply is decoded
//! as the future does it.

// The functions are as unusual as those that users may write.
#![allow(
    clippy::result_large_err,
    clippy::too_many_arguments,
    clippy::ptr_arg,
    clippy::type_complexity
)]

use std::{
    borrow::Cow,
    collections::HashMap,
    ffi::CStr,
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
};

use executor::{
    __private::{Buffer, Call, CallContext, CallResult, Stage},
    Task, TaskArgs, TaskFn, task,
};
use serde::{Deserialize, Serialize};

/// Runs one call in both directions.
fn run<F: TaskArgs<A>, A>(task: Task<F, A>) -> Result<F::Output, CallResult> {
    let (args, _) = task.into_parts();
    let mut bytes = Buffer::new();
    F::encode_args(&args, &mut bytes).unwrap_or_else(|error| panic!("{error}"));
    let bytes = bytes.into_vec();
    let mut out = Buffer::new();
    out.extend_from_slice(b"head");
    let mut cx = CallContext::new(out);
    let entry = executor::registry::lookup(F::entry().id().expect("it is known"))
        .expect("it is registered");
    assert!(std::ptr::eq(entry, F::entry()));
    let result = match &entry.call {
        Call::Sync(call) => call(&bytes, &mut cx),
        Call::Async(call) => futures::executor::block_on(call(&bytes, &mut cx)),
        Call::Managed(..) => panic!("`#[managed]` makes these, and not `#[task]`"),
    };
    match result {
        CallResult::Done => {
            assert_eq!(cx.stage(), Stage::Between);
            let out = cx.out.into_vec();
            let reply = out.strip_prefix(b"head").expect("the result is appended");
            Ok(F::decode_output(reply).unwrap_or_else(|error| panic!("{error}")))
        }
        other => {
            assert_eq!(cx.out.into_vec(), b"head", "nothing but a result is written");
            Err(other)
        }
    }
}

fn failure<F: TaskArgs<A>, A>(task: Task<F, A>) -> executor::__private::Failure {
    match run(task) {
        Err(CallResult::Failed(failure)) => failure,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it succeeded"),
    }
}

/// Adds two numbers.
#[task]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

#[test]
fn the_function_itself_is_unchanged() {
    assert_eq!(add(1, 2), 3);
    assert_eq!([1, 2].into_iter().map(|x| add(x, 1)).sum::<i64>(), 5);
    let pointer: fn(i64, i64) -> i64 = add;
    assert_eq!(pointer(1, 2), 3);
}

#[test]
fn a_task_is_encoded_called_and_decoded() {
    assert_eq!(run(add::task(1, 2)).unwrap(), 3);
    assert_eq!(add::NAME, "task_macro::add");
    assert!(add::entry().place.file.ends_with("task_macro.rs"));
}

#[test]
fn a_local_variable_may_have_the_name_of_a_task() {
    let add = add(1, 2);
    assert_eq!([add].map(|add| add + 1), [4]);
}

#[task]
fn nothing() {}

#[task]
fn many(
    a: u8,
    b: u16,
    c: u32,
    d: u64,
    e: u128,
    f: i8,
    g: i16,
    h: i32,
    i: i64,
    j: i128,
    k: bool,
    l: char,
    m: f32,
    n: f64,
    o: String,
    p: (),
    q: Option<u8>,
    r: usize,
) -> String {
    format!("{a}{b}{c}{d}{e}{f}{g}{h}{i}{j}{k}{l}{m}{n}{o}{p:?}{q:?}{r}")
}

#[test]
fn f13_a_task_may_have_zero_to_many_parameters() {
    run(nothing::task()).unwrap();
    let task = many::task(
        1,
        2,
        3,
        4,
        u128::MAX,
        -1,
        -2,
        -3,
        -4,
        i128::MIN,
        true,
        'ß',
        0.5,
        1.5,
        "o".into(),
        (),
        Some(7),
        9,
    );
    let here = many(
        1,
        2,
        3,
        4,
        u128::MAX,
        -1,
        -2,
        -3,
        -4,
        i128::MIN,
        true,
        'ß',
        0.5,
        1.5,
        "o".into(),
        (),
        Some(7),
        9,
    );
    assert_eq!(run(task).unwrap(), here);
}

#[task]
fn borrowed<'a>(
    text: &str,
    bytes: &'a [u8],
    numbers: &[u32],
    path: &Path,
    map: &HashMap<String, u8>,
    maybe: Option<&'a str>,
    words: &[&str],
    os: &OsStr,
    c: &CStr,
    cow: Cow<'_, str>,
    list: &Vec<u8>,
    nested: &&str,
) -> String {
    format!(
        "{text} {bytes:?} {numbers:?} {path:?} {map:?} {maybe:?} {words:?} {os:?} {c:?} {cow} {list:?} {nested}"
    )
}

#[test]
fn arguments_may_be_borrowed() {
    let map = HashMap::from([("k".to_owned(), 1)]);
    let text = String::from("text");
    let list = vec![1];
    let args = || {
        borrowed::task(
            &text,
            b"raw",
            &[1, 2],
            Path::new("/p"),
            &map,
            Some("x"),
            &["a", "b"],
            OsStr::new("os"),
            c"c",
            Cow::Borrowed("cow"),
            &list,
            &"n",
        )
    };
    let here = borrowed(
        &text,
        b"raw",
        &[1, 2],
        Path::new("/p"),
        &map,
        Some("x"),
        &["a", "b"],
        OsStr::new("os"),
        c"c",
        Cow::Borrowed("cow"),
        &list,
        &"n",
    );
    assert_eq!(run(args()).unwrap(), here);
    assert_eq!(run(args().encode()).unwrap(), here);
}

type Bytes = Vec<u8>;

#[task]
fn bytes(a: Vec<u8>, b: Box<[u8]>, c: [u8; 40], d: &[u8], e: Bytes, f: &[u8; 3]) -> Vec<u8> {
    [&a[..], &b, &c, d, &e, f].concat()
}

#[task]
fn try_bytes(a: Vec<u8>) -> Result<Bytes, String> {
    Ok(a)
}

#[task(codec = "messagepack")]
fn packed_bytes(a: Vec<u8>, b: Box<[u8]>, c: [u8; 40], d: &[u8], e: &Vec<u8>) -> Vec<u8> {
    [&a[..], &b, &c, d, e].concat()
}

#[test]
fn byte_strings_are_accepted_in_every_form() {
    let all = [&[1][..], &[2], &[3; 40], &[4], &[5], &[6; 3]].concat();
    assert_eq!(
        run(bytes::task(vec![1], Box::new([2]), [3; 40], &[4], vec![5], &[6; 3])).unwrap(),
        all
    );
    let _plain: Task<bytes, (Vec<u8>, Box<[u8]>, [u8; 40], &[u8], Vec<u8>, &[u8; 3])> =
        bytes::task(vec![], Box::new([]), [0; 40], &[], vec![], &[0; 3]);
    assert_eq!(run(try_bytes::task(vec![1, 200])).unwrap(), [1, 200]);
    let all = [&[1][..], &[2], &[3; 40], &[4], &[5]].concat();
    assert_eq!(
        run(packed_bytes::task(vec![1], Box::new([2]), [3; 40], &[4], &vec![5])).unwrap(),
        all
    );
}

#[task]
fn patterns(
    (a, b): (i64, i64),
    mut c: i64,
    _: u8,
    _d: u8,
    [e, ..]: [i64; 2],
    Point { x, .. }: Point,
) -> i64 {
    c += 1;
    a + b + c + e + x
}

#[derive(Serialize, Deserialize, Clone, Copy)]
struct Point {
    x: i64,
    y: i64,
}

#[test]
fn parameters_may_be_patterns() {
    assert_eq!(run(patterns::task((1, 2), 3, 4, 5, [6, 7], Point { x: 8, y: 9 })).unwrap(), 21);
}

#[task]
async fn later(text: &str, times: usize) -> Result<String, String> {
    std::future::ready(()).await;
    if times == 0 { Err("none".into()) } else { Ok(text.repeat(times)) }
}

#[test]
fn async_functions_can_be_tasks() {
    assert_eq!(run(later::task("ab", 2)).unwrap(), "abab");
    assert_eq!(failure(later::task("ab", 0)).message, "none");
}

mod own {
    use super::*;

    // A type called `Result` that is not `std`'s.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    pub(crate) struct Result<T>(pub(crate) T);

    #[task]
    pub(crate) fn wrapped(x: u8) -> Result<u8> {
        Result(x)
    }
}

type Answer = std::result::Result<u8, fmt::Error>;

#[task]
fn answer(ok: bool) -> Answer {
    if ok { Ok(42) } else { Err(fmt::Error) }
}

#[task]
fn read(path: PathBuf) -> std::io::Result<u64> {
    Ok(std::fs::read(path)?.len() as u64)
}

#[test]
fn a_result_is_recognized_by_its_type_and_not_its_name() {
    assert_eq!(run(own::wrapped::task(1)).unwrap(), own::Result(1));
    let forty_two: u8 = run(answer::task(true)).unwrap();
    assert_eq!(forty_two, 42);
    assert_eq!(failure(answer::task(false)).type_name, "core::fmt::Error");
    assert!(failure(read::task("/does/not/exist".into())).message.contains("No such file"));
}

#[derive(Debug, Serialize, Deserialize)]
enum Refusal {
    TooLarge(u64),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused: {self:?}")
    }
}

#[task]
fn refuse(x: u64) -> Result<(), Refusal> {
    Err(Refusal::TooLarge(x))
}

#[derive(Debug)]
struct Outer(Inner);
#[derive(Debug)]
struct Inner;

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("outer")
    }
}
impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("inner")
    }
}
impl std::error::Error for Outer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}
impl std::error::Error for Inner {}

#[task]
fn plain_error() -> Result<(), Outer> {
    Err(Outer(Inner))
}

#[task]
fn anyhow_error() -> anyhow::Result<()> {
    Err(anyhow::Error::new(Outer(Inner)).context("while testing"))
}

#[task]
fn boxed_error() -> Result<(), Box<dyn std::error::Error>> {
    Err(Outer(Inner).into())
}

#[task]
fn boxed_sync_error() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    Err(Outer(Inner).into())
}

#[test]
fn an_error_keeps_its_message_sources_and_value() {
    let refusal = failure(refuse::task(10));
    assert_eq!(refusal.message, "refused: TooLarge(10)");
    let (codec, bytes) = refusal.value.expect("the type is serde");
    assert!(matches!(codec.decode(&bytes), Ok(Refusal::TooLarge(10))));

    for (failure, message, sources) in [
        (failure(plain_error::task()), "outer", &["inner"][..]),
        (failure(boxed_error::task()), "outer", &["inner"]),
        (failure(boxed_sync_error::task()), "outer", &["inner"]),
        (failure(anyhow_error::task()), "while testing", &["outer", "inner"]),
        (failure(refuse::task(1)), "refused: TooLarge(1)", &[]),
    ] {
        assert_eq!(failure.message, message);
        assert_eq!(failure.sources, sources);
    }
}

#[task]
fn json_default(value: serde_json::Value) -> serde_json::Value {
    value
}

#[task(codec = "messagepack")]
fn json(value: serde_json::Value) -> serde_json::Value {
    value
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Id {
    Number(u64),
    Text(String),
}

#[task]
fn untagged(before: u8, id: Id) -> String {
    format!("{before} {id:?}")
}

/// Serializes as a pair and deserializes from one number.
#[derive(Debug)]
struct Lopsided(u8);

impl Serialize for Lopsided {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.0, self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Lopsided {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u8::deserialize(deserializer).map(Lopsided)
    }
}

#[task]
fn lopsided(value: Lopsided, after: Option<u8>) -> String {
    format!("{value:?} {after:?}")
}

#[test]
fn arguments_that_do_not_suit_the_codec_are_an_error_that_names_the_argument() {
    let value = serde_json::json!({"a": [1, null, "x"]});
    assert_eq!(run(json::task(value.clone())).unwrap(), value);

    for result in
        [run(json_default::task(value)).map(drop), run(untagged::task(1, Id::Number(2))).map(drop)]
    {
        let Err(CallResult::Unsuited(error)) = result else { panic!("{result:?}") };
        assert!(error.message.contains("#[task(codec = \"messagepack\")]"), "{error}");
        assert!(
            error.message.contains("argument `value`") || error.message.contains("argument `id`"),
            "{error}"
        );
    }
    let result = run(lopsided::task(Lopsided(1), None));
    let Err(CallResult::Unsuited(error)) = result else { panic!("{result:?}") };
    assert_eq!(
        error.message,
        "argument `value`: `task_macro::Lopsided`: its `Serialize` writes a tuple, its `Deserialize` asks for a u8"
    );
}

/// Fails to encode, fails to decode, or panics while decoding.
#[derive(Debug, Default, Clone, Copy)]
struct Moody {
    encodes: bool,
    panics: bool,
}

impl Serialize for Moody {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !self.encodes {
            return Err(serde::ser::Error::custom("in no mood"));
        }
        self.panics.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Moody {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        assert!(!bool::deserialize(deserializer)?, "panicked while decoding");
        Err(serde::de::Error::custom("still in no mood"))
    }
}

#[task]
fn take_moody(before: u8, moody: Moody) {
    let _ = (before, moody);
}

#[task]
fn give_moody() -> Result<Moody, String> {
    Ok(Moody::default())
}

#[task]
fn panics() {
    panic!("as asked");
}

#[test]
fn an_error_in_each_stage_is_reported_for_that_stage() {
    let (args, _) = take_moody::task(1, Moody::default()).into_parts();
    let error = take_moody::encode_args(&args, &mut Buffer::new()).unwrap_err();
    assert_eq!(error.message, "argument `moody`: in no mood");

    let encoded = take_moody::task(1, Moody::default()).encode();
    assert!(format!("{:?}", encoded.into_parts().0).contains("in no mood"));

    // If the type's own code refuses to decode, neither the codec nor a mismatch of `Serialize` and
    // `Deserialize` is blamed.
    let result = run(take_moody::task(1, Moody { encodes: true, panics: false }));
    let Err(CallResult::Decode(error)) = result else { panic!("{result:?}") };
    assert_eq!(error.message, "argument `moody`: still in no mood");

    let result = run(give_moody::task());
    let Err(CallResult::Encode(error)) = result else { panic!("{result:?}") };
    assert_eq!(error.message, "in no mood");
}

#[test]
fn a_panic_passes_through_and_the_stage_tells_where_it_happened() {
    let stage_of = |entry: &executor::__private::TaskEntry, bytes: &[u8]| {
        let mut cx = CallContext::new(Buffer::new());
        let Call::Sync(call) = entry.call else { panic!() };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| call(bytes, &mut cx)))
            .unwrap_err();
        cx.stage()
    };
    assert_eq!(stage_of(take_moody::entry(), &[2, 1, 1, 1]), Stage::Decode);
    assert_eq!(stage_of(panics::entry(), &[]), Stage::Run);
}

#[test]
fn bytes_that_do_not_decode_are_an_error() {
    let Call::Sync(call) = add::entry().call else { panic!() };
    for bytes in [&[][..], &[1], &[1, 2, 3], &[0xff; 40]] {
        let result = call(bytes, &mut CallContext::new(Buffer::new()));
        assert!(matches!(result, CallResult::Decode(_) | CallResult::Unsuited(_)), "{result:?}");
    }
    assert!(add::decode_output(&[]).is_err());
    assert!(add::decode_output(&[1, 1]).is_err());
}

#[task(name = "any name/at all", handle = Named)]
fn named() {}

#[test]
fn a_task_has_the_given_name_and_handle_or_default_ones() {
    assert_eq!(Named::NAME, "any name/at all");
    let _: Task<Named, ()> = Named::task();
    named();

    #[task]
    fn local(x: u8) -> u8 {
        x + 1
    }
    assert_eq!(run(local::task(1)).unwrap(), 2);
    assert_eq!(local::NAME, "task_macro::local");
}

#[test]
fn the_fingerprint_covers_every_task() {
    let fingerprint = executor::registry::fingerprint();
    assert!(fingerprint.count > 20);
    assert_eq!(fingerprint, executor::registry::fingerprint());
    let signature = (borrowed::entry().signature)();
    assert!(signature.contains("HashMap") && signature.starts_with("executor "), "{signature}");
}

#[test]
fn a_task_can_be_printed_cloned_and_sent() {
    fn is_static_and_send<T: Send + 'static>(_: &T) {}
    let task = add::task(1, 2).timeout(std::time::Duration::from_secs(1)).name("sum");
    let text = format!("{task:?}");
    assert!(
        text.contains("task_macro::add") && text.contains("sum") && text.contains("1s"),
        "{text}"
    );
    let encoded = borrowed_text();
    is_static_and_send(&encoded);
    assert_eq!(run(encoded.clone()).unwrap(), "ab");
}

fn borrowed_text() -> Task<later, executor::Encoded> {
    let text = String::from("ab");
    later::task(&text, 1).encode()
}
