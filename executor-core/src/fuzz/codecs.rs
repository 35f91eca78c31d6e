//! The two codecs, over types of every shape.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

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

/// Lists in lists: each level may ask for memory ahead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Tree(Vec<Tree>);

/// How deep lists can be nested in so many bytes.
pub(super) fn levels(len: usize) -> usize {
    4 + len.min(512)
}

/// Decodes a value of this type; if there is one, it goes there and back. A macro, for types that borrow.
macro_rules! decode {
    ($type:ty, $codec:expr, $bytes:expr) => {{
        let mut once = Buffer::new();
        // Nested as deep as may be read, it may be too deep to be written.
        if let Ok(value) = $codec.decode::<$type>($bytes)
            && $codec.encode(&value, &mut once).is_ok()
        {
            let again = $codec.decode::<$type>(once.bytes()).expect("what was encoded decodes");
            let mut twice = Buffer::new();
            $codec.encode(&again, &mut twice).expect("it was encoded before");
            // Not compared as values: NaN is not itself.
            assert_eq!(once.bytes(), twice.bytes(), "there and back is another value");
        }
    }};
}

fn types(codec: Codec, data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 24 {
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
        _ => drop(codec.decode::<Tree>(bytes)),
    }
}

/// The first byte chooses the type.
pub fn postcard(data: &[u8]) {
    types(Codec::Postcard, data);
}

/// The first byte chooses the type.
pub fn messagepack(data: &[u8]) {
    types(Codec::MessagePack, data);
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
        3 => Shape::Fields { a: (input.u8() > 99).then(|| input.u8()), b: input.array::<5>().to_vec() },
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
        result: (input.u8() > 99).then(|| if input.u8() > 99 { Ok(input.u8()) } else { Err(text(input)) }),
    }
}

/// A value that the bytes describe, there and back, by both codecs.
pub fn round_trip(data: &[u8]) {
    let value = many(&mut Input(data), 0);
    for codec in [Codec::Postcard, Codec::MessagePack] {
        let mut bytes = Buffer::new();
        codec.encode(&value, &mut bytes).expect("it can be encoded");
        let back: Many = codec.decode(bytes.bytes()).expect("what was encoded decodes");
        assert_eq!(back, value);
    }
}
