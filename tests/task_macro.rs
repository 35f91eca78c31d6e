//! What `#[task]` makes, without any process: arguments are encoded as `submit` does, the registry's entry is called
//! as the worker does, and the reply is decoded as the future does.

use std::{
    borrow::Cow,
    collections::HashMap,
    ffi::CStr,
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
};

use executor::{
    __private::{Call, CallContext, CallResult, Stage},
    Task, TaskArgs, TaskFn, task,
};
use serde::{Deserialize, Serialize};

/// One call, there and back.
fn run<F: TaskArgs<A>, A>(task: Task<F, A>) -> Result<F::Output, CallResult> {
    call(task, true)
}

fn call<F: TaskArgs<A>, A>(task: Task<F, A>, check: bool) -> Result<F::Output, CallResult> {
    let (args, _) = task.into_parts();
    let mut bytes = Vec::new();
    F::encode_args(args, &mut bytes).unwrap_or_else(|error| panic!("{error}"));
    let mut cx = CallContext::new(b"head".to_vec(), check);
    let entry = executor::registry::lookup(F::entry().id).expect("it is registered");
    assert!(std::ptr::eq(entry, F::entry()));
    let result = match &entry.call {
        Call::Sync(call) => call(&bytes, &mut cx),
        Call::Async(call) => futures::executor::block_on(call(&bytes, &mut cx)),
    };
    match result {
        CallResult::Done => {
            assert_eq!(cx.stage, Stage::Encode);
            let reply = cx.out.strip_prefix(b"head").expect("the result is appended");
            Ok(F::decode_output(reply).unwrap_or_else(|error| panic!("{error}")))
        }
        other => {
            assert_eq!(cx.out, b"head", "nothing but a result is written");
            Err(other)
        }
    }
}

fn failure<F: TaskArgs<A>, A>(task: Task<F, A>) -> executor::Failure {
    match run(task) {
        Err(CallResult::Failed(failure)) => failure,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it succeeded"),
    }
}

/// Adds.
#[task]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

#[test]
fn the_function_stays_what_it_was() {
    assert_eq!(add(1, 2), 3);
    assert_eq!([1, 2].into_iter().map(|x| add(x, 1)).sum::<i64>(), 5);
    let pointer: fn(i64, i64) -> i64 = add;
    assert_eq!(pointer(1, 2), 3);
}

#[test]
fn a_task_goes_there_and_back() {
    assert_eq!(run(add::task(1, 2)).unwrap(), 3);
    assert_eq!(add::NAME, "task_macro::add");
    assert!(add::entry().file.ends_with("task_macro.rs"));
    assert!(add::entry().debug);
}

#[test]
fn a_local_may_have_the_name_of_a_task() {
    let add = add(1, 2);
    assert_eq!([add].map(|add| add + 1), [4]);
}

#[task]
fn nothing() {}

#[task]
#[allow(clippy::too_many_arguments)]
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
fn from_no_parameter_to_many() {
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
fn byte_strings() {
    let all = [&[1][..], &[2], &[3; 40], &[4], &[5], &[6; 3]].concat();
    assert_eq!(run(bytes::task(vec![1], Box::new([2]), [3; 40], &[4], vec![5], &[6; 3])).unwrap(), all);
    let _plain: Task<bytes, (Vec<u8>, Box<[u8]>, [u8; 40], &[u8], Vec<u8>, &[u8; 3])> =
        bytes::task(vec![], Box::new([]), [0; 40], &[], vec![], &[0; 3]);
    assert_eq!(run(try_bytes::task(vec![1, 200])).unwrap(), [1, 200]);
    let all = [&[1][..], &[2], &[3; 40], &[4], &[5]].concat();
    assert_eq!(run(packed_bytes::task(vec![1], Box::new([2]), [3; 40], &[4], &vec![5])).unwrap(), all);
}

#[task]
fn patterns((a, b): (i64, i64), mut c: i64, _: u8, _d: u8, [e, ..]: [i64; 2], Point { x, .. }: Point) -> i64 {
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
fn async_functions() {
    assert_eq!(run(later::task("ab", 2)).unwrap(), "abab");
    assert_eq!(failure(later::task("ab", 0)).message, "none");
}

mod own {
    use super::*;

    // A type called `Result` that is none.
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
fn a_result_is_known_by_its_type() {
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
fn what_is_kept_of_an_error() {
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
