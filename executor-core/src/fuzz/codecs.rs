//! Targets for the two codecs, with types of every shape.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::Input;
use crate::wire::{buffer::Buffer, codec::Codec};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Empty,
    One(u64),
    Pair(i16, String),
    Fields { a: Option<u8>, b: Vec<u8> },
    Deep(Box<Shape>),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Many {
    small: (u8, i8, bool),
    large: (u128, i128),
    letter: char,
    text: String,
    bytes: serde_bytes::ByteBuf,
    list: Vec<u32>,
    lists: Vec<Vec<u16>>,
    map: BTreeMap<String, i64>,
    option: Option<Box<Many>>,
    shapes: Vec<Shape>,
    result: Option<Result<u8, String>>,
}

/// Nested lists: each level may reserve memory for elements in advance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Tree(Vec<Tree>);

/// A type whose `Serialize` and `Deserialize` see its fields differently.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Odd {
    #[serde(alias = "colour", default)]
    color: u8,
    #[serde(skip)]
    cache: u64,
    #[serde(default)]
    kinds: Vec<Kinds>,
    #[serde(skip_deserializing)]
    length: u32,
    rest: Option<Option<()>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Kinds {
    #[serde(skip)]
    #[expect(dead_code, reason = "it makes the two halves count differently")]
    Skipped,
    #[serde(alias = "B")]
    A(u8),
    C {
        x: bool,
    },
    #[serde(other)]
    Other,
}

/// A type that contains itself and is kept before it is read: each level may copy everything in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Any {
    Number(u64),
    Text(String),
    List(Vec<Any>),
    Map(BTreeMap<String, Any>),
}

/// Returns how deep lists can be nested in this many bytes.
pub(super) fn levels(len: usize) -> usize {
    4 + len.min(512)
}

/// Decodes a value of this type. If there is one, encodes and decodes it again. It is a macro
/// because some types borrow.
macro_rules! decode {
    ($type:ty, $codec:expr, $bytes:expr) => {{
        let mut once = Buffer::new();
        // A value that is nested as deep as can be read may be too deep to be written.
        if let Ok(value) = $codec.decode::<$type>($bytes)
            && $codec.encode(&value, &mut once).is_ok()
        {
            let again = $codec.decode::<$type>(once.bytes()).expect("what was encoded decodes");
            let mut twice = Buffer::new();
            $codec.encode(&again, &mut twice).expect("it was encoded before");
            // Compare the bytes and not the values, because NaN is not equal to itself.
            assert_eq!(once.bytes(), twice.bytes(), "there and back is another value");
        }
    }};
}

fn types(codec: Codec, data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 29 {
        0 => decode!(u8, codec, bytes),
        1 => decode!((u16, i16, u32, i32), codec, bytes),
        2 => decode!((u64, i64, u128, i128), codec, bytes),
        3 => decode!((f32, f64, bool, char), codec, bytes),
        4 => decode!(String, codec, bytes),
        5 => decode!(&str, codec, bytes),
        6 => decode!(serde_bytes::ByteBuf, codec, bytes),
        7 => decode!(&serde_bytes::Bytes, codec, bytes),
        8 => decode!(Vec<u8>, codec, bytes),
        9 => decode!(Vec<Vec<u64>>, codec, bytes),
        10 => decode!(Vec<String>, codec, bytes),
        11 => decode!(Option<u32>, codec, bytes),
        12 => decode!(BTreeMap<u64, String>, codec, bytes),
        13 => drop(codec.decode::<HashMap<u8, Vec<i32>>>(bytes)),
        14 => decode!(Shape, codec, bytes),
        15 => decode!(Many, codec, bytes),
        16 => decode!(Vec<Shape>, codec, bytes),
        17 => decode!([u16; 7], codec, bytes),
        18 => decode!(Result<u8, String>, codec, bytes),
        19 => decode!((&str, Vec<&str>), codec, bytes),
        20 => decode!(std::time::Duration, codec, bytes),
        21 => decode!(std::path::PathBuf, codec, bytes),
        22 => decode!((), codec, bytes),
        23 => drop(codec.decode::<Tree>(bytes)),
        24 => drop(codec.decode::<Vec<IgnoredAny>>(bytes)),
        25 => decode!(Odd, codec, bytes),
        26 => decode!((Option<Option<()>>, Vec<Odd>), codec, bytes),
        27 => drop(codec.decode::<HashMap<String, IgnoredAny>>(bytes)),
        // Only MessagePack can read this type, so only there a value must survive.
        _ if codec == Codec::MessagePack => decode!(Any, codec, bytes),
        _ => drop(codec.decode::<Any>(bytes)),
    }
}

/// Decodes a value with the default codec. The first byte chooses the type.
pub fn postcard(data: &[u8]) {
    types(Codec::Postcard, data);
}

/// Decodes a value with MessagePack. The first byte chooses the type.
pub fn messagepack(data: &[u8]) {
    types(Codec::MessagePack, data);
}

/// Returns encoded values of every kind. Each follows the number of its type.
#[cfg(test)]
pub(super) fn seeds(codec: Codec) -> Vec<Vec<u8>> {
    fn encoded(codec: Codec, which: u8, value: &impl Serialize) -> Vec<u8> {
        let mut out = Buffer::new();
        codec.encode(value, &mut out).expect("it can be encoded");
        [&[which], out.bytes()].concat()
    }
    let bytes: Vec<u8> = (0..200_u8).map(|at| at.wrapping_mul(7)).collect();
    let value = many(&mut Input(&bytes), 0);
    let kinds = vec![Kinds::A(1), Kinds::Other, Kinds::C { x: true }, Kinds::A(2)];
    let odd = Odd { color: 1, cache: 2, kinds, length: 3, rest: Some(None) };
    let any = Any::Map(BTreeMap::from([("a".into(), Any::List(vec![]))]));
    let shapes =
        vec![Shape::Deep(Box::new(Shape::Empty)), Shape::Pair(1, "a".into()), Shape::One(2)];
    vec![
        encoded(codec, 14, &shapes[0]),
        encoded(codec, 15, &value),
        encoded(codec, 16, &shapes),
        encoded(codec, 24, &vec![value]),
        encoded(codec, 25, &odd),
        encoded(codec, 26, &(Some(None::<()>), vec![odd.clone(), odd])),
        encoded(codec, 27, &BTreeMap::from([("a", shapes)])),
        encoded(codec, 28, &[Any::List(vec![Any::Number(1), Any::Text("a".into())]), any]),
    ]
}

fn text(input: &mut Input<'_>) -> String {
    let len = usize::from(input.u8()) % 40;
    String::from_utf8_lossy(input.bytes(len)).into_owned()
}

fn shape(input: &mut Input<'_>, depth: usize) -> Shape {
    match input.u8() % 5 {
        0 => Shape::Empty,
        1 => Shape::One(input.u64()),
        2 => Shape::Pair(input.u16() as i16, text(input)),
        3 => Shape::Fields {
            a: (input.u8() > 99).then(|| input.u8()),
            b: input.array::<5>().to_vec(),
        },
        _ if depth > 20 => Shape::Empty,
        _ => Shape::Deep(Box::new(shape(input, depth + 1))),
    }
}

fn many(input: &mut Input<'_>, depth: usize) -> Many {
    let len = |input: &mut Input<'_>| usize::from(input.u8()) % 6;
    Many {
        small: (input.u8(), input.u8() as i8, input.u8() > 99),
        large: (u128::from_le_bytes(input.array()), i128::from_le_bytes(input.array())),
        letter: char::from_u32(input.u16().into()).unwrap_or('x'),
        text: text(input),
        bytes: input.array::<9>().to_vec().into(),
        list: (0..len(input)).map(|_| u32::from_le_bytes(input.array())).collect(),
        lists: (0..len(input)).map(|_| (0..len(input)).map(|_| input.u16()).collect()).collect(),
        map: (0..len(input)).map(|_| (text(input), input.u64() as i64)).collect(),
        option: (depth < 5 && input.u8() > 99).then(|| Box::new(many(input, depth + 1))),
        shapes: (0..len(input)).map(|_| shape(input, 0)).collect(),
        result: (input.u8() > 99)
            .then(|| if input.u8() > 99 { Ok(input.u8()) } else { Err(text(input)) }),
    }
}

/// Encodes and decodes a value that the bytes describe, with both codecs.
pub fn round_trip(data: &[u8]) {
    let value = many(&mut Input(data), 0);
    for codec in [Codec::Postcard, Codec::MessagePack] {
        let mut bytes = Buffer::new();
        codec.encode(&value, &mut bytes).expect("it can be encoded");
        let back: Many = codec.decode(bytes.bytes()).expect("what was encoded decodes");
        assert_eq!(back, value);
    }
}
