//! Values arrive unchanged or not at all, even if the `Serialize` and `Deserialize` of their type
//! differ.

use std::{collections::BTreeMap, fmt::Debug, thread};

use executor::{
    __private::{Buffer, Codec},
    Queue, TaskError, pipe,
    prelude::*,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::support::{pool, watchdog};

// ---- through a pool, queues and pipes -----------------------------------------------------------

/// serde's `Serialize` counts all variants, and its `Deserialize` only those that are not skipped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Event {
    #[serde(skip)]
    Internal,
    Deposit(u32),
    Withdraw(u32),
    #[serde(skip_deserializing)]
    Refund(u32),
    #[serde(alias = "Shut")]
    Close,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

#[task]
fn event(event: Event) -> Event {
    event
}

#[task]
fn only_result(of: u32) -> Event {
    if of == 0 { Event::Refund(1) } else { Event::Deposit(of) }
}

#[task]
fn only_error(of: u32) -> Result<(), Event> {
    Err(Event::Withdraw(of))
}

#[test]
fn variants_after_a_skipped_variant_arrive_unchanged() {
    let _watchdog = watchdog();
    let pool = pool(1);
    for sent in [Event::Deposit(100), Event::Withdraw(1), Event::Close] {
        assert_eq!(pool.submit(event::task(sent.clone())).result().unwrap(), sent);
    }
    assert_eq!(pool.submit(only_result::task(100)).result().unwrap(), Event::Deposit(100));
    let Err(TaskError::Failed(error)) = pool.submit(only_error::task(7)).result() else { panic!() };
    assert_eq!(error.downcast::<Event>(), Some(Event::Withdraw(7)));

    let error = pool.submit(event::task(Event::Internal)).result().unwrap_err().to_string();
    assert!(error.contains("Event::Internal"), "{error}");
    for error in [
        pool.submit(event::task(Event::Refund(1))).result().unwrap_err().to_string(),
        pool.submit(only_result::task(0)).result().unwrap_err().to_string(),
    ] {
        assert!(error.contains("`Event`") && error.contains("`Refund`"), "{error}");
    }
}

#[test]
fn queues_pipes_and_processes_deliver_the_variant_that_was_sent() {
    let _watchdog = watchdog();
    let queue = Queue::unbounded().unwrap();
    let (here, there) = pipe::<Event, Event>().unwrap();
    for sent in [Event::Deposit(100), Event::Withdraw(1), Event::Close] {
        queue.put(sent.clone()).unwrap();
        assert_eq!(queue.get().unwrap(), sent);
        here.send(&sent).unwrap();
        assert_eq!(there.recv().unwrap(), sent);
        let process = executor::Process::new(event::task(sent.clone()));
        assert_eq!(process.start().unwrap().join().unwrap(), sent);
    }
    here.send(&Event::Refund(1)).unwrap();
    let error = there.recv().unwrap_err().to_string();
    assert!(error.contains("`Event`") && error.contains("`Refund`"), "{error}");
    here.send(&Event::Close).unwrap();
    assert_eq!(there.recv().unwrap(), Event::Close, "the connection goes on");
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Paint {
    #[serde(alias = "colour")]
    color: u8,
    size: u8,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Brush {
    Round {
        #[serde(alias = "radius", alias = "r")]
        size: u8,
        paint: Paint,
    },
}

#[task]
fn paint(paint: Paint, brush: Brush) -> (Paint, Brush) {
    (paint, brush)
}

#[test]
fn a_field_with_an_alias_arrives() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let red = Paint { color: 1, size: 2 };
    let round = Brush::Round { size: 3, paint: red.clone() };
    let sent = (red.clone(), round.clone());
    assert_eq!(pool.submit(paint::task(red, round)).result().unwrap(), sent);
}

#[derive(Serialize, Deserialize)]
enum Expr {
    Num(i64),
    Neg(Box<Expr>),
}

fn negated(n: usize) -> Expr {
    (0..n).fold(Expr::Num(1), |expr, _| Expr::Neg(Box::new(expr)))
}

/// Frees a nested value without recursion. Its `Drop` would overflow the stack.
fn free(mut expr: Expr) {
    while let Expr::Neg(inner) = expr {
        expr = *inner;
    }
}

#[task(codec = "messagepack")]
fn nested_in_messagepack(n: usize) -> Expr {
    negated(n)
}

#[task]
fn nested(n: usize) -> Expr {
    negated(n)
}

#[task(codec = "messagepack")]
fn negate(expr: Expr) -> Expr {
    Expr::Neg(Box::new(expr))
}

/// The worker's stack is large enough for the recursion in `Drop`.
#[test]
fn values_nested_too_deep_are_an_error_that_names_the_depth() {
    let _watchdog = watchdog();
    let pool = ProcessPoolExecutor::builder().max_workers(1).stack_size(100 << 20).build().unwrap();
    thread::Builder::new()
        .stack_size(256 << 10)
        .spawn(move || {
            for n in [3_000, 80_000] {
                for future in
                    [pool.submit(nested_in_messagepack::task(n)), pool.submit(nested::task(n))]
                {
                    let error = future.result().map(free).unwrap_err().to_string();
                    assert!(error.contains("depth"), "{error}");
                }
                // This thread encodes and drops the argument, and needs a large stack to drop it.
                let pool = pool.clone();
                let large = thread::Builder::new().stack_size(100 << 20);
                let error = large
                    .spawn(move || pool.submit(negate::task(negated(n))).result().map(free).err());
                let error = error.unwrap().join().unwrap().unwrap().to_string();
                assert!(error.contains("depth"), "{error}");
            }
            free(pool.submit(nested_in_messagepack::task(20)).result().unwrap());
            free(pool.submit(nested::task(20)).result().unwrap());
        })
        .unwrap()
        .join()
        .unwrap();
}

#[derive(Serialize, Deserialize, Default, Clone)]
struct Skipped {
    #[serde(skip)]
    _cache: [u64; 32],
}

#[test]
fn a_length_without_data_is_an_error_and_allocates_no_memory() {
    let _watchdog = watchdog();
    for length in [1, 1 << 24, u64::MAX] {
        let (here, there) = pipe::<u64, u64>().unwrap();
        here.send(&length).unwrap();
        assert!(there.with_types::<u64, Vec<Skipped>>().recv().is_err());
    }
    let (here, there) = pipe::<Vec<Skipped>, Vec<Skipped>>().unwrap();
    here.send(&vec![Skipped::default(); 1000]).unwrap();
    assert_eq!(there.recv().unwrap().len(), 1000);
}

/// Changes its value when it is deserialized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
struct Email(String);

impl From<String> for Email {
    fn from(text: String) -> Self {
        Email(text.trim().into())
    }
}

impl From<Email> for String {
    fn from(email: Email) -> String {
        email.0
    }
}

#[task]
fn greet(email: Email) -> String {
    email.0
}

#[task(codec = "messagepack")]
fn greet_in_messagepack(email: Email) -> String {
    email.0
}

#[test]
fn a_type_that_normalizes_when_it_is_read_works_from_the_first_submit() {
    let _watchdog = watchdog();
    let pool = pool(1);
    for _ in 0..2 {
        assert_eq!(pool.submit(greet::task(Email(" bob".into()))).result().unwrap(), "bob");
        assert_eq!(
            pool.submit(greet_in_messagepack::task(Email(" bob".into()))).result().unwrap(),
            "bob"
        );
    }
}

mod says_nothing {
    //! Types whose `Serialize` and `Deserialize` differ in a way that only serde's own buffered
    //! copy of the data shows. The documentation of `#[task]` describes them.

    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "t")]
    pub(super) enum Tagged {
        Renamed {
            #[serde(rename(serialize = "other"), default)]
            of: u8,
        },
        #[serde(skip_deserializing)]
        NotRead,
        #[serde(other)]
        Other,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    pub(super) enum Untagged {
        Renamed {
            #[serde(rename(serialize = "other"), default)]
            of: u8,
        },
        Option(Option<Vec<u8>>),
        Unit,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct Flat {
        #[serde(flatten)]
        pub(super) within: Within,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct Within {
        #[serde(rename(serialize = "other"), default)]
        pub(super) of: u8,
    }
}

#[test]
fn types_with_a_hidden_difference_arrive_as_in_json_or_are_rejected() {
    fn arrives_as<T: Serialize + DeserializeOwned + PartialEq + Debug>(sent: T, expected: T) {
        let json = serde_json::from_str::<T>(&serde_json::to_string(&sent).unwrap()).unwrap();
        assert_eq!(json, expected);
        let mut bytes = Buffer::new();
        Codec::MessagePack.encode(&sent, &mut bytes).unwrap();
        assert_eq!(Codec::MessagePack.decode::<T>(&bytes.into_vec()).unwrap(), expected);
        let mut bytes = Buffer::new();
        let refused = Codec::Postcard
            .encode(&sent, &mut bytes)
            .and_then(|()| Codec::Postcard.decode::<T>(&bytes.into_vec()).map(drop));
        assert!(
            refused.unwrap_err().to_string().contains("messagepack"),
            "the default codec makes no other value"
        );
    }
    use says_nothing::{Flat, Tagged, Untagged, Within};
    arrives_as(Tagged::Renamed { of: 5 }, Tagged::Renamed { of: 0 });
    arrives_as(Tagged::NotRead, Tagged::Other);
    arrives_as(Untagged::Renamed { of: 5 }, Untagged::Renamed { of: 0 });
    arrives_as(Untagged::Unit, Untagged::Option(None));
    arrives_as(Flat { within: Within { of: 5 } }, Flat { within: Within { of: 0 } });
}

// ---- every attribute of serde, with random values -----------------------------------------------

/// A small random number generator: xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.roll() >> 8) % end
    }
}

/// A type with random values.
trait Arbitrary: Sized {
    fn arbitrary(dice: &mut Dice) -> Self;
}

macro_rules! arbitrary {
    ($($type:ty => |$dice:ident| $make:expr;)*) => {$(
        impl Arbitrary for $type {
            fn arbitrary($dice: &mut Dice) -> Self {
                $make
            }
        }
    )*};
}

arbitrary! {
    bool => |dice| dice.below(2) == 0;
    u8 => |dice| dice.roll() as u8;
    i16 => |dice| dice.roll() as i16;
    u32 => |dice| (dice.roll() >> dice.below(33)) as u32;
    i64 => |dice| (dice.roll() as i64) >> dice.below(64);
    u64 => |dice| dice.roll() >> dice.below(64);
    // Values that JSON represents exactly.
    f32 => |dice| dice.below(1 << 20) as f32 / 8.0;
    f64 => |dice| dice.below(1 << 40) as f64 / 8.0;
    char => |dice| char::from_u32(dice.below(0xd000) as u32).unwrap_or('x');
    () => |_dice| ();
    String => |dice| (0..dice.below(9)).map(|_| char::arbitrary(dice)).collect();
}

impl<T: Arbitrary> Arbitrary for Option<T> {
    fn arbitrary(dice: &mut Dice) -> Self {
        (dice.below(2) == 0).then(|| T::arbitrary(dice))
    }
}

impl<T: Arbitrary> Arbitrary for Vec<T> {
    fn arbitrary(dice: &mut Dice) -> Self {
        (0..dice.below(4)).map(|_| T::arbitrary(dice)).collect()
    }
}

impl<T: Arbitrary> Arbitrary for Box<T> {
    fn arbitrary(dice: &mut Dice) -> Self {
        Box::new(T::arbitrary(dice))
    }
}

impl<T: Arbitrary> Arbitrary for BTreeMap<String, T> {
    fn arbitrary(dice: &mut Dice) -> Self {
        (0..dice.below(4)).map(|_| (String::arbitrary(dice), T::arbitrary(dice))).collect()
    }
}

impl<T: Arbitrary> Arbitrary for [T; 2] {
    fn arbitrary(dice: &mut Dice) -> Self {
        [T::arbitrary(dice), T::arbitrary(dice)]
    }
}

impl<A: Arbitrary, B: Arbitrary> Arbitrary for (A, B) {
    fn arbitrary(dice: &mut Dice) -> Self {
        (A::arbitrary(dice), B::arbitrary(dice))
    }
}

/// Functions for `serialize_with` and `deserialize_with`, some of which do not match each other.
mod with {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn as_text<S: Serializer>(value: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }

    pub(super) fn as_pair<S: Serializer>(value: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        (*value as u8, *value).serialize(serializer)
    }

    pub(super) fn from_three<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        <(u8, u8, u8)>::deserialize(deserializer).map(|(_, _, value)| value.into())
    }

    pub(super) fn as_u8<S: Serializer>(value: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        match u8::try_from(*value) {
            Ok(value) => value.serialize(serializer),
            Err(_) => value.serialize(serializer),
        }
    }

    pub(super) fn as_f64<S: Serializer>(value: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        f64::from(*value).serialize(serializer)
    }
}

/// Applies each attribute in a struct, a struct variant, a tuple struct, a tuple variant, to a
/// newtype and to a variant. The fields and variants before and after the attribute show whether
/// data shifts.
macro_rules! shapes {
    ($($module:ident: [$($field:meta)?] [$($variant:meta)?] [$($container:meta)?] $type:ty;)*) => {
        $(#[allow(unreachable_patterns)] // : two variants have the same name
        mod $module {
            use super::*;

            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            $(#[$container])?
            pub(super) struct Named {
                first: u8,
                $(#[$field])?
                middle: $type,
                last: u32,
            }

            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            pub(super) struct Tuple(u8, $(#[$field])? $type, #[serde(default)] u32);

            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            pub(super) enum Variants {
                Before(u32),
                $(#[$variant])?
                Marked(u32),
                $(#[$variant])?
                Unit,
                After(u32),
                Last,
                Tuple(u8, $(#[$field])? $type),
                Newtype($(#[$field])? $type),
                Named {
                    first: u8,
                    $(#[$field])?
                    middle: $type,
                    last: Option<u32>,
                },
            }

            arbitrary! {
                Named => |dice| Named {
                    first: Arbitrary::arbitrary(dice),
                    middle: Arbitrary::arbitrary(dice),
                    last: Arbitrary::arbitrary(dice),
                };
                Tuple => |dice| Tuple(
                    Arbitrary::arbitrary(dice),
                    Arbitrary::arbitrary(dice),
                    Arbitrary::arbitrary(dice),
                );
                Variants => |dice| match dice.below(8) {
                    0 => Variants::Before(Arbitrary::arbitrary(dice)),
                    1 => Variants::Marked(Arbitrary::arbitrary(dice)),
                    2 => Variants::Unit,
                    3 => Variants::After(Arbitrary::arbitrary(dice)),
                    4 => Variants::Last,
                    5 => Variants::Tuple(Arbitrary::arbitrary(dice), Arbitrary::arbitrary(dice)),
                    6 => Variants::Newtype(Arbitrary::arbitrary(dice)),
                    _ => Variants::Named {
                        first: Arbitrary::arbitrary(dice),
                        middle: Arbitrary::arbitrary(dice),
                        last: Arbitrary::arbitrary(dice),
                    },
                };
            }
        })*

        /// Runs one case for each attribute, shape and position.
        fn cases(dice: &mut Dice, outcomes: &mut Outcomes) {
            $(
                positions::<$module::Named>(dice, outcomes);
                positions::<$module::Tuple>(dice, outcomes);
                positions::<$module::Variants>(dice, outcomes);
            )*
        }
    };
}

shapes! {
    plain: [] [] [] u32;
    texts: [] [] [] String;
    floats: [] [] [] (f32, f64);
    units: [] [] [] Option<()>;
    options: [] [] [] Option<Option<u8>>;
    lists: [] [] [] Vec<(char, i16)>;
    numbers: [] [] [] Vec<i64>;
    denied: [] [] [serde(deny_unknown_fields)] bool;
    skipped: [serde(skip)] [serde(skip)] [] u32;
    skipped_writing: [serde(skip_serializing)] [serde(skip_serializing)] [] u32;
    skipped_writing_default: [serde(skip_serializing, default)] [serde(skip_serializing)] [] u32;
    skipped_reading: [serde(skip_deserializing)] [serde(skip_deserializing)] [] u32;
    skipped_reading_denied: [serde(skip_deserializing)] [] [serde(deny_unknown_fields)] u32;
    aliased: [serde(alias = "other", alias = "aa")] [serde(alias = "zz")] [] u32;
    renamed: [serde(rename = "other")] [serde(rename = "Other")] [serde(rename_all = "UPPERCASE")] u32;
    renamed_writing: [serde(rename(serialize = "other"))] [serde(rename(serialize = "Other"))] [] u32;
    renamed_reading: [serde(rename(deserialize = "other"), default)] [serde(rename(deserialize = "Z"))] [] u32;
    renamed_default: [serde(rename(serialize = "other"), default)] [] [serde(rename_all(serialize = "UPPERCASE"))] u32;
    defaults: [serde(default)] [] [] u32;
    left_out: [serde(skip_serializing_if = "Option::is_none", default)] [] [] Option<u32>;
    written_as_text: [serde(serialize_with = "with::as_text")] [] [] u32;
    read_as_text: [serde(deserialize_with = "with::from_text")] [] [] u32;
    both_as_text: [serde(serialize_with = "with::as_text", deserialize_with = "with::from_text")] [] [] u32;
    written_as_pair: [serde(serialize_with = "with::as_pair")] [] [] u32;
    pair_and_three: [serde(serialize_with = "with::as_pair", deserialize_with = "with::from_three")] [] [] u32;
    now_small_now_large: [serde(serialize_with = "with::as_u8")] [] [] u32;
    written_as_float: [serde(serialize_with = "with::as_f64")] [] [] u32;
}

#[derive(Default, Debug)]
struct Outcomes {
    cases: u64,
    same: u64,
    as_json: u64,
    refused: u64,
}

/// Runs a case of the type by itself, or inside of other types.
fn positions<T>(dice: &mut Dice, outcomes: &mut Outcomes)
where
    T: Arbitrary + Clone + Debug + PartialEq + Serialize + DeserializeOwned,
{
    match dice.below(8) {
        0 => case::<T>(dice, outcomes),
        1 => case::<Vec<T>>(dice, outcomes),
        2 => case::<(T, u8)>(dice, outcomes),
        3 => case::<Option<Option<Box<T>>>>(dice, outcomes),
        4 => case::<BTreeMap<String, T>>(dice, outcomes),
        5 => case::<[T; 2]>(dice, outcomes),
        6 => case::<(Vec<u8>, Vec<(T, u64)>)>(dice, outcomes),
        _ => case::<(u8, (T, Option<T>))>(dice, outcomes),
    }
}

/// Runs one case. Either the same value arrives, or the value that JSON makes of it if the type has
/// a `skip` attribute, or there is an error that is not empty.
fn case<T>(dice: &mut Dice, outcomes: &mut Outcomes)
where
    T: Arbitrary + Debug + PartialEq + Serialize + DeserializeOwned,
{
    let value = T::arbitrary(dice);
    let json = serde_json::to_string(&value).ok().map(|text| serde_json::from_str::<T>(&text).ok());
    for codec in [Codec::Postcard, Codec::MessagePack] {
        outcomes.cases += 1;
        let mut bytes = Buffer::new();
        let arrived =
            codec.encode(&value, &mut bytes).and_then(|()| codec.decode::<T>(&bytes.into_vec()));
        match arrived {
            Ok(arrived) if arrived == value => outcomes.same += 1,
            Ok(arrived) => {
                let expected = json.as_ref().and_then(Option::as_ref);
                // JSON has only one null, and uses the default for a field that is renamed on one
                // side. Neither may happen here.
                assert!(
                    expected == Some(&arrived) && std::any::type_name::<T>().contains("skipped"),
                    "{codec:?}: {value:?} arrived as {arrived:?}, by JSON as {expected:?}"
                );
                outcomes.as_json += 1;
            }
            Err(error) => {
                assert!(!error.message.is_empty());
                // A type without an attribute that could cause a rejection must arrive.
                let name = std::any::type_name::<T>();
                let plain = [
                    "plain", "texts", "floats", "units", "options", "lists", "numbers", "denied",
                    "defaults",
                ]
                .iter()
                .chain(&["aliased", "values::renamed::", "both_as_text", "now_small_now_large"])
                .any(|module| name.contains(*module));
                // Two variants of its enum have the same name, so no format can distinguish them.
                let twins = name.contains("values::renamed::") && name.contains("Variants");
                let plain = plain
                    && !twins
                    && !["skipped", "renamed_"].iter().any(|module| name.contains(module));
                assert!(!plain, "{codec:?}: {value:?}: {error}");
                outcomes.refused += 1;
            }
        }
    }
}

/// `EXECUTOR_ROUNDS=700 cargo test --release --test objects attribute -- --nocapture` runs more
/// than 100,000 cases.
#[test]
#[allow(clippy::print_stdout)]
fn with_any_attribute_the_same_value_arrives_or_an_error() {
    let number =
        |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let nanos = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64 | 1);
    let seed = number("EXECUTOR_SEED").unwrap_or(nanos);
    println!("EXECUTOR_SEED={seed}");
    let (mut dice, mut outcomes) = (Dice(seed), Outcomes::default());
    for _ in 0..number("EXECUTOR_ROUNDS").unwrap_or(300) {
        cases(&mut dice, &mut outcomes);
    }
    println!("{outcomes:?}");
    assert!(outcomes.same > outcomes.cases / 4, "{outcomes:?}");
}
