use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeOwned},
    ser,
};

use super::*;

const BOTH: [Codec; 2] = [Codec::Postcard, Codec::MessagePack];
const CURE: &str = "#[task(codec = \"messagepack\")]";

fn encoded<T: Serialize + ?Sized>(codec: Codec, value: &T) -> Result<Vec<u8>, CodecError> {
    let mut out = Buffer::new();
    out.extend_from_slice(b"head");
    codec.encode(value, &mut out)?;
    Ok(out.into_vec().strip_prefix(b"head").expect("encoding appends").to_vec())
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Everything {
    ints: (u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize),
    floats: (f32, f64),
    letter: char,
    unit: (),
    text: String,
    option: Option<Option<u8>>,
    list: Vec<Variants>,
    map: BTreeMap<String, Vec<u16>>,
    result: Result<u8, String>,
    wrapper: Wrapper,
    pair: Pair,
    array: [i16; 3],
    time: Duration,
    path: std::path::PathBuf,
    range: std::ops::Range<u8>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Wrapper(u64);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Pair(u8, String);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Variants {
    Unit,
    Newtype(Wrapper),
    Tuple(u8, String),
    Struct { a: u8, b: Option<String> },
}

fn everything() -> Everything {
    Everything {
        ints: (
            u8::MAX,
            u16::MAX,
            u32::MAX,
            u64::MAX,
            u128::MAX,
            usize::MAX,
            i8::MIN,
            i16::MIN,
            i32::MIN,
            i64::MIN,
            i128::MIN,
            isize::MIN,
        ),
        floats: (f32::MIN_POSITIVE, f64::MAX),
        letter: '🦀',
        unit: (),
        text: "ß".repeat(300),
        option: Some(Some(1)),
        list: vec![
            Variants::Unit,
            Variants::Newtype(Wrapper(1)),
            Variants::Tuple(2, "t".into()),
            Variants::Struct { a: 3, b: None },
        ],
        map: BTreeMap::from([("k".into(), vec![1, 2]), ("l".into(), vec![])]),
        result: Err("e".into()),
        wrapper: Wrapper(7),
        pair: Pair(1, "p".into()),
        array: [1, -2, 3],
        time: Duration::new(1, 2),
        path: "/a/b".into(),
        range: 1..9,
    }
}

#[test]
fn every_kind_of_value_goes_there_and_back() {
    for codec in BOTH {
        let bytes = encoded(codec, &everything()).unwrap();
        assert_eq!(codec.decode::<Everything>(&bytes).unwrap(), everything(), "{codec:?}");
    }
}

#[test]
fn numbers_of_every_length_are_written_as_postcard_has_them_and_read_back() {
    let around = |bits: u32| {
        let first = 1_u64 << bits;
        [first - 1, first, first + 0x5555_5555_5555_5555 % first]
    };
    let all: Vec<u64> = (0..64).flat_map(around).chain([u64::MAX]).collect();
    for value in &all {
        let bytes = encoded(Codec::Postcard, value).unwrap();
        assert_eq!(bytes, [&[5][..], &::postcard::to_stdvec(value).unwrap()].concat());
        assert_eq!(Codec::Postcard.decode::<u64>(&bytes).unwrap(), *value);
        for len in 0..bytes.len() {
            assert!(Codec::Postcard.decode::<u64>(&bytes[..len]).is_err(), "{value} cut at {len}");
        }
    }
    // In a list the kind is not in front of each number, and other numbers follow.
    let bytes = encoded(Codec::Postcard, &all).unwrap();
    assert_eq!(bytes[4..], ::postcard::to_stdvec(&all).unwrap()[2..], "{bytes:?}");
    assert_eq!(Codec::Postcard.decode::<Vec<u64>>(&bytes).unwrap(), all);
}

#[test]
fn kinds_and_names_stand_before_numbers_as_postcard_has_them() {
    #[derive(Serialize, Deserialize)]
    struct Point {
        x: u8,
    }
    let bytes = |value: &dyn Fn(&mut Buffer)| {
        let mut out = Buffer::new();
        value(&mut out);
        out.into_vec()
    };
    let of = |value: u64| bytes(&|out| Codec::Postcard.encode(&value, out).unwrap());
    for value in [0, 1, 127, 128, 300, u64::MAX] {
        assert_eq!(of(value), [&[5][..], &::postcard::to_stdvec(&value).unwrap()].concat());
    }
    assert_eq!(encoded(Codec::Postcard, &"ab").unwrap(), [15, 2, b'a', b'b']);
    assert_eq!(
        encoded(Codec::Postcard, &vec![1_u8, 2]).unwrap(),
        [20, 2, 2, 1, 2],
        "one kind for all"
    );
    assert_eq!(encoded(Codec::Postcard, &vec![1_f64; 100]).unwrap().len(), 803, "one kind for all");
    let two = encoded(Codec::Postcard, &vec![Point { x: 1 }, Point { x: 2 }]).unwrap();
    assert_eq!(
        two,
        [20, 2, 0, 23, 0, 1, 1, b'x', 2, 1, 23, 1, 2, 2],
        "the second one has no names"
    );
}

#[test]
fn borrowed_values_point_into_the_bytes() {
    for codec in BOTH {
        let bytes = encoded(codec, &("text", serde_bytes::Bytes::new(b"raw"))).unwrap();
        let (text, raw): (&str, &[u8]) = codec.decode(&bytes).unwrap();
        assert_eq!((text, raw), ("text", &b"raw"[..]));
        assert!(bytes.as_ptr_range().contains(&text.as_ptr()));
    }
}

struct Stubborn;

impl Serialize for Stubborn {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(ser::Error::custom("this one stays here"))
    }
}

impl<'de> Deserialize<'de> for Stubborn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u8::deserialize(deserializer)?;
        Err(de::Error::custom("not in my house"))
    }
}

#[test]
fn the_types_own_words_are_kept() {
    for codec in BOTH {
        let error = encoded(codec, &Some(vec![Stubborn])).unwrap_err();
        assert_eq!((error.message.as_str(), error.fault), ("this one stays here", Fault::Own));
        let bytes = encoded(codec, &Some(vec![1_u8])).unwrap();
        let error = codec.decode::<Option<Vec<Stubborn>>>(&bytes).err().unwrap();
        assert_eq!((error.message.as_str(), error.fault), ("not in my house", Fault::Own));
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u8),
    Text(String),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    Circle { radius: u8 },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Flat {
    a: u8,
    #[serde(flatten)]
    rest: BTreeMap<String, u8>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Skips {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    a: Option<u8>,
    b: u8,
}

/// Encodes and decodes a value. Returns the result, or the first error on the way.
fn there_and_back<T: Serialize + DeserializeOwned>(
    codec: Codec,
    value: &T,
) -> Result<T, CodecError> {
    encoded(codec, value).and_then(|bytes| codec.decode(&bytes))
}

fn only_messagepack<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T, named: &str) {
    let error = there_and_back(Codec::Postcard, &value).unwrap_err();
    assert!(error.message.contains(CURE) && error.message.contains(named), "{error}");
    assert_eq!(error.fault, Fault::Unsuited);
    assert_eq!(there_and_back(Codec::MessagePack, &value).unwrap(), value);
}

#[test]
fn what_postcard_cannot_do_names_the_cure() {
    only_messagepack(Untagged::Text("x".into()), "untagged");
    only_messagepack(Tagged::Circle { radius: 1 }, "tag");
    only_messagepack(Flat { a: 1, rest: BTreeMap::from([("b".into(), 2)]) }, "flatten");
    only_messagepack(Skips { a: None, b: 1 }, "skip_serializing_if");
    assert_eq!(there_and_back(Codec::Postcard, &Skips { a: Some(1), b: 1 }).unwrap().a, Some(1));
}

#[test]
fn a_flattened_map_has_keys_of_any_type() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Flat<K: Ord> {
        x: u8,
        #[serde(flatten)]
        rest: BTreeMap<K, u8>,
    }
    only_messagepack(Flat { x: 1, rest: BTreeMap::from([(0_u32, 2), (300, 3)]) }, "flatten");
    only_messagepack(Flat { x: 1, rest: BTreeMap::from([(-1_i64, 2), (7, 3)]) }, "flatten");
    only_messagepack(Flat { x: 1, rest: BTreeMap::from([(true, 2)]) }, "flatten");
    // The key is the number of a field, which is not the field's name.
    let bytes = encoded(Codec::MessagePack, &BTreeMap::from([(0_u32, 1_u8)])).unwrap();
    #[derive(Debug, Deserialize)]
    struct Plain {
        #[allow(dead_code)]
        x: u8,
    }
    let error = Codec::MessagePack.decode::<Plain>(&bytes).unwrap_err().message;
    assert!(error.contains("asks for a name"), "{error}");
}

#[test]
fn integers_of_128_bits_that_serde_cannot_keep_are_refused_with_type_and_cure() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    enum Tagged {
        Small { of: i128 },
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Flat {
        #[serde(flatten)]
        within: Within,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Within {
        of: u128,
    }
    for error in [
        there_and_back(Codec::MessagePack, &Tagged::Small { of: 1 }).unwrap_err(),
        there_and_back(Codec::MessagePack, &Flat { within: Within { of: 1 } }).unwrap_err(),
    ] {
        assert_eq!(error.fault, Fault::Unsuited, "{error}");
        for part in ["128 is not supported", "`with` module"] {
            assert!(error.message.contains(part), "{error}");
        }
        assert!(error.message.contains("Tagged") || error.message.contains("Flat"), "{error}");
    }
}

/// Two types with the same list of fields. The visitor of one is named like serde's own, and also
/// accepts a sequence. The visitor of the other accepts only a map.
mod of_one_list {
    use super::*;

    static FIELDS: &[&str] = &["x", "y"];

    macro_rules! reads {
        ($type:ident, $visitor:ident, { $($sequence:tt)* }) => {
            #[derive(Debug, PartialEq)]
            pub(super) struct $type(pub(super) u8, pub(super) u8);

            impl<'de> Deserialize<'de> for $type {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    deserializer.deserialize_struct("Point", FIELDS, $visitor)
                }
            }

            struct $visitor;

            impl<'de> de::Visitor<'de> for $visitor {
                type Value = $type;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("two fields by their names")
                }
                fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<$type, A::Error> {
                    let fields: [(String, u8); 2] = [map.next_entry()?.unwrap(), map.next_entry()?.unwrap()];
                    Ok($type(fields[0].1, fields[1].1))
                }
                $($sequence)*
            }
        };
    }

    reads!(ByPosition, __Visitor, {
        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<ByPosition, A::Error> {
            Ok(ByPosition(seq.next_element()?.unwrap(), seq.next_element()?.unwrap()))
        }
    });
    reads!(ByName, ByNameVisitor, {});
}

#[test]
fn a_visitor_that_takes_names_only_is_handed_names_behind_one_that_takes_both() {
    use of_one_list::{ByName, ByPosition};
    #[derive(Serialize)]
    struct Point {
        x: u8,
        y: u8,
    }
    let [a, b, c, d] = [1, 3, 5, 7].map(|x| Point { x, y: x + 1 });
    let bytes = encoded(Codec::Postcard, &(a, b, c, d)).unwrap();
    assert_eq!(
        Codec::Postcard.decode::<(ByPosition, ByPosition, ByName, ByPosition)>(&bytes).unwrap(),
        (ByPosition(1, 2), ByPosition(3, 4), ByName(5, 6), ByPosition(7, 8))
    );
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Gone;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum ListOrGone {
    List(Vec<u8>),
    Gone(Gone),
}

#[test]
fn a_unit_struct_is_no_empty_list() {
    for sent in [ListOrGone::Gone(Gone), ListOrGone::List(vec![]), ListOrGone::List(vec![1])] {
        only_messagepack(sent, "untagged");
    }
    for codec in BOTH {
        assert_eq!(there_and_back(codec, &Gone).unwrap(), Gone);
        for sent in [None, Some(None), Some(Some(Gone))] {
            assert_eq!(there_and_back(codec, &sent).unwrap(), sent, "{codec:?}");
        }
        for sent in [None, Some(Gone)] {
            assert_eq!(
                there_and_back(codec, &vec![sent.clone(); 3]).unwrap(),
                vec![sent; 3],
                "{codec:?}"
            );
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum TextOrBytes {
    Text(String),
    Raw(serde_bytes::ByteBuf),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum BytesWithin {
    Raw { raw: serde_bytes::ByteBuf, digest: serde_bytes::ByteArray<4> },
    Either { of: TextOrBytes },
    Flat(FlatBytes),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "of")]
enum BytesBeside {
    Raw(serde_bytes::ByteBuf),
    Either(TextOrBytes),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct FlatBytes {
    #[serde(flatten)]
    within: RawField,
    #[serde(flatten)]
    others: BTreeMap<String, TextOrBytes>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RawField {
    raw: serde_bytes::ByteBuf,
    name: std::ffi::CString,
}

/// A value of any kind, as crates of formats have it. It asks what comes next, and distinguishes
/// bytes from lists.
#[derive(Debug, Clone, PartialEq)]
enum AnyValue {
    Number(u64),
    Bytes(Vec<u8>),
    List(Vec<AnyValue>),
}

impl Serialize for AnyValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            AnyValue::Number(number) => number.serialize(serializer),
            AnyValue::Bytes(bytes) => serializer.serialize_bytes(bytes),
            AnyValue::List(list) => list.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for AnyValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = AnyValue;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("anything")
            }
            fn visit_u64<E>(self, number: u64) -> Result<AnyValue, E> {
                Ok(AnyValue::Number(number))
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<AnyValue, E> {
                Ok(AnyValue::Bytes(bytes.into()))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<AnyValue, A::Error> {
                let mut list = Vec::new();
                while let Some(value) = seq.next_element()? {
                    list.push(value);
                }
                Ok(AnyValue::List(list))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[test]
fn bytes_that_could_be_a_text_arrive_as_bytes_whatever_asks_what_comes_next() {
    let raw = || serde_bytes::ByteBuf::from(*b"abc");
    let either = [
        TextOrBytes::Raw(raw()),
        TextOrBytes::Text("abc".into()),
        TextOrBytes::Raw(b"\xff".to_vec().into()),
    ];
    for of in either.clone() {
        only_messagepack(of.clone(), "untagged");
        only_messagepack(BytesWithin::Either { of: of.clone() }, "tag");
        assert_eq!(
            there_and_back(Codec::MessagePack, &BytesBeside::Either(of.clone())).unwrap(),
            BytesBeside::Either(of)
        );
    }
    let flat = FlatBytes {
        within: RawField { raw: raw(), name: c"abc".into() },
        others: either.into_iter().enumerate().map(|(at, of)| (at.to_string(), of)).collect(),
    };
    only_messagepack(flat.clone(), "flatten");
    only_messagepack(BytesWithin::Flat(flat), "flatten");
    only_messagepack(
        BytesWithin::Raw { raw: raw(), digest: serde_bytes::ByteArray::new(*b"wxyz") },
        "tag",
    );
    let beside = BytesBeside::Raw(raw());
    assert_eq!(there_and_back(Codec::MessagePack, &beside).unwrap(), beside);
    let any = AnyValue::List(vec![
        AnyValue::Bytes(b"abc".into()),
        AnyValue::List(vec![AnyValue::Number(97)]),
    ]);
    assert_eq!(there_and_back(Codec::MessagePack, &any).unwrap(), any);
}

struct WrongLength;

impl Serialize for WrongLength {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use ser::SerializeSeq;
        let mut seq = serializer.serialize_seq(Some(3))?;
        seq.serialize_element(&1_u8)?;
        seq.end()
    }
}

#[test]
fn a_sequence_of_another_length_than_announced() {
    let error = encoded(Codec::Postcard, &WrongLength).unwrap_err();
    assert!(error.message.contains("number of elements"), "{error}");
}

#[test]
fn bytes_left_over_are_an_error() {
    for codec in BOTH {
        let mut bytes = encoded(codec, &(1_u8, "x")).unwrap();
        bytes.push(0);
        assert!(codec.decode::<(u8, String)>(&bytes).unwrap_err().message.contains("left over"));
        // Two units.
        let twice = [encoded(codec, &()).unwrap(), encoded(codec, &()).unwrap()].concat();
        assert!(codec.decode::<()>(&twice).unwrap_err().message.contains("left over"));
    }
}

/// Reads `bytes` with and without a reader. Where no reader is needed, both values must be the
/// same. Returns whether no reader was needed.
fn with_and_without_a_reader<T: DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let lone = super::postcard::lone::<T>(bytes);
    let mut reader = Postcard::reader(bytes);
    let read = Postcard::next::<T>(&mut reader)
        .and_then(|value| Postcard::finish(&reader).map(|()| value));
    if let Some(lone) = &lone {
        assert_eq!(read.as_ref().ok(), Some(lone), "{bytes:?}");
    }
    lone.is_some()
}

#[test]
fn a_lone_number_is_the_same_with_and_without_a_reader() {
    let mut without = 0;
    for first in 0..=u8::MAX {
        for second in [0, 1, 2, 0x7f, 0x80, 0xff] {
            for bytes in [&[first, second][..], &[first], &[], &[first, second, 0]] {
                without += [
                    with_and_without_a_reader::<()>,
                    with_and_without_a_reader::<bool>,
                    with_and_without_a_reader::<u8>,
                    with_and_without_a_reader::<u16>,
                    with_and_without_a_reader::<u32>,
                    with_and_without_a_reader::<u64>,
                    with_and_without_a_reader::<usize>,
                    with_and_without_a_reader::<u128>,
                    with_and_without_a_reader::<i8>,
                    with_and_without_a_reader::<i16>,
                    with_and_without_a_reader::<i32>,
                    with_and_without_a_reader::<i64>,
                    with_and_without_a_reader::<isize>,
                    with_and_without_a_reader::<char>,
                    with_and_without_a_reader::<Option<u64>>,
                    with_and_without_a_reader::<named_as_a_number::u64>,
                ]
                .iter()
                .filter(|both| both(bytes))
                .count();
            }
        }
    }
    // The unit takes one byte, which is tried with each of the six second bytes.
    assert_eq!(without, 6 + 2 + 9 * 4);
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Simple {
    a: u32,
    b: Option<u64>,
    c: String,
    d: (),
    #[serde(with = "serde_bytes")]
    e: Vec<u8>,
    f: f64,
    g: char,
    h: i8,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename = "Simple")]
struct SimpleInAnotherOrder {
    h: i8,
    g: char,
    f: f64,
    #[serde(default)]
    not_written: u8,
    #[serde(with = "serde_bytes")]
    e: Vec<u8>,
    d: (),
    c: String,
    b: Option<u64>,
    a: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct WithGenerics<'a, T, U> {
    text: &'a str,
    value: T,
    other: U,
}

#[test]
fn a_lone_structure_is_read_whether_its_fields_can_be_stepped_over_or_not() {
    let long = "x".repeat(200);
    for c in ["", "text", &long] {
        for b in [None, Some(u64::MAX)] {
            for e in [vec![], vec![0; 127], vec![0; 128]] {
                let sent =
                    Simple { a: 300, b, c: c.into(), d: (), e, f: 0.5, g: '\u{10ffff}', h: -1 };
                let bytes = encoded(Codec::Postcard, &sent).unwrap();
                let back: Simple = Postcard::decode(&bytes).unwrap();
                assert_eq!(back, sent);
                assert_eq!(
                    there_and_back(Codec::Postcard, &(sent.clone(), 1)).unwrap(),
                    (sent.clone(), 1)
                );
                let other: SimpleInAnotherOrder = Postcard::decode(&bytes).unwrap();
                assert_eq!(
                    (other.a, other.b, other.c, other.g, other.h),
                    (sent.a, sent.b, sent.c, sent.g, -1)
                );
                // Several values in one message: the next one begins where this one ends.
                let mut two = Buffer::new();
                Postcard::encode(&back, &mut two).unwrap();
                Postcard::encode(&7_u8, &mut two).unwrap();
                let two = two.into_vec();
                let mut reader = Postcard::reader(&two);
                assert_eq!(Postcard::next::<Simple>(&mut reader).unwrap(), back);
                assert_eq!(Postcard::next::<u8>(&mut reader).unwrap(), 7);
                Postcard::finish(&reader).unwrap();
                for end in 0..bytes.len() {
                    assert!(Postcard::decode::<Simple>(&bytes[..end]).is_err(), "{end}");
                }
            }
        }
    }
    let sent = WithGenerics { text: "a", value: 1_u8, other: 2_u16 };
    let bytes = encoded(Codec::Postcard, &sent).unwrap();
    assert_eq!(Postcard::decode::<WithGenerics<'_, u8, u16>>(&bytes).unwrap(), sent);
    assert_eq!(
        Postcard::decode::<WithGenerics<'_, u16, u64>>(&bytes).unwrap(),
        WithGenerics { text: "a", value: 1, other: 2 }
    );
    let error = Postcard::decode::<WithGenerics<'_, bool, u64>>(&bytes).unwrap_err().message;
    assert!(error.contains("field `value` of `WithGenerics`"), "{error}");
}

mod named_as_a_number {
    /// This type must not be taken for Rust's own `u64`: the reader would skip its checks.
    #[allow(non_camel_case_types)]
    #[derive(Debug, PartialEq, serde::Deserialize)]
    pub(super) struct u64(pub(super) std::primitive::u64);
}

#[test]
fn every_truncation_is_an_error() {
    for codec in BOTH {
        let bytes = encoded(codec, &everything()).unwrap();
        for end in 0..bytes.len() {
            assert!(codec.decode::<Everything>(&bytes[..end]).is_err(), "{codec:?} {end}");
        }
    }
}

#[test]
fn wild_lengths_are_errors_and_allocate_nothing() {
    // 2^60 elements for the default format, and 2^32 - 1 for MessagePack.
    let long = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    let wild = |kind: u8| [&[kind][..], &long].concat();
    let (text, bytes, seq, map) = (wild(15), wild(16), wild(20), wild(22));
    let error = Codec::Postcard.decode::<Vec<u64>>(&seq).unwrap_err();
    assert!(error.message.contains("1152921504606846976"), "{error}");
    assert!(Codec::Postcard.decode::<Vec<()>>(&seq).is_err());
    assert!(Codec::Postcard.decode::<String>(&text).is_err());
    assert!(Codec::Postcard.decode::<serde_bytes::ByteBuf>(&bytes).is_err());
    assert!(Codec::Postcard.decode::<HashMap<u64, u64>>(&map).is_err());
    for marker in [0xdd, 0xdb, 0xc6, 0xdf] {
        let bytes = [marker, 0xff, 0xff, 0xff, 0xff];
        assert!(Codec::MessagePack.decode::<Vec<u64>>(&bytes).is_err());
        assert!(Codec::MessagePack.decode::<String>(&bytes).is_err());
        assert!(Codec::MessagePack.decode::<serde_bytes::ByteBuf>(&bytes).is_err());
        assert!(Codec::MessagePack.decode::<HashMap<u64, u64>>(&bytes).is_err());
    }
    for codec in BOTH {
        assert_eq!(there_and_back(codec, &vec![(); 1000]).unwrap().len(), 1000);
    }
}

/// Takes a kilobyte of memory, but nothing on the wire except that it exists.
#[derive(Clone, Serialize, Deserialize)]
struct Hollow {
    #[serde(skip, default = "cache")]
    _cache: [u64; 128],
}

fn cache() -> [u64; 128] {
    [0; 128]
}

#[test]
fn elements_of_no_content_take_bytes_so_that_a_length_alone_claims_no_memory() {
    for codec in BOTH {
        for n in [0, 1, 100] {
            let hollow = vec![Hollow { _cache: cache() }; n];
            let bytes = encoded(codec, &hollow).unwrap();
            assert!(bytes.len() > n, "{codec:?}");
            assert_eq!(codec.decode::<Vec<Hollow>>(&bytes).unwrap().len(), n);
            assert_eq!(there_and_back(codec, &vec![((), Some(())); n]).unwrap().len(), n);
        }
    }
    // A length, followed by fewer bytes than that.
    let length = [20, 0x80, 0x80, 0x80, 0x08];
    for behind in [&[][..], &[0], &[0, 23, 0, 0], &[19; 100]] {
        let bytes = [&length[..], behind].concat();
        assert!(Codec::Postcard.decode::<Vec<Hollow>>(&bytes).is_err());
        assert!(Codec::Postcard.decode::<Vec<()>>(&bytes).is_err());
        let map = [&[22][..], &bytes[1..]].concat();
        assert!(Codec::Postcard.decode::<HashMap<(), Hollow>>(&map).is_err());
        let bytes = [&[0xdd, 0x01, 0, 0, 0][..], behind].concat();
        assert!(Codec::MessagePack.decode::<Vec<Hollow>>(&bytes).is_err());
        assert!(Codec::MessagePack.decode::<Vec<()>>(&bytes).is_err());
    }
    // As many bytes as elements, but none are left for the last elements. These must not be made
    // from nothing.
    let error = Codec::Postcard.decode::<Vec<Hollow>>(&[20, 5, 0, 23, 0, 0, 23, 1]).err().unwrap();
    assert!(error.message.contains("too early"), "{error}");
    let error = Codec::Postcard.decode::<Vec<()>>(&[20, 4, 0, 19, 19, 19]).unwrap_err();
    assert!(error.message.contains("too early"), "{error}");
    let error = Codec::MessagePack.decode::<Vec<Hollow>>(b"\x93\x81\xa1x").err().unwrap();
    assert!(error.message.contains("too early"), "{error}");
    assert_eq!(Codec::MessagePack.decode::<Vec<()>>(b"\x93\xc0\xc0\xc0").unwrap().len(), 3);
}

/// Nested lists or nested maps, which add up the elements that are announced to them.
struct Hinted<const MAPS: bool>;

impl<'de, const MAPS: bool> Deserialize<'de> for Hinted<MAPS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const MAPS: bool>;
        impl<'de, const MAPS: bool> de::Visitor<'de> for Visitor<MAPS> {
            type Value = Hinted<MAPS>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("lists in lists")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                HINTED
                    .fetch_add(seq.size_hint().expect("a length that is known"), Ordering::Relaxed);
                seq.next_element::<Self::Value>()?;
                Ok(Hinted)
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                HINTED
                    .fetch_add(map.size_hint().expect("a length that is known"), Ordering::Relaxed);
                map.next_entry::<u8, Self::Value>()?;
                Ok(Hinted)
            }
        }
        match MAPS {
            true => deserializer.deserialize_map(Visitor),
            false => deserializer.deserialize_seq(Visitor),
        }
    }
}

/// The sum of the announced elements. Only one test uses it.
static HINTED: AtomicUsize = AtomicUsize::new(0);

#[test]
fn what_is_reserved_for_all_levels_of_lists_in_lists_is_no_more_than_the_bytes() {
    // Each level announces 4096 elements that the message does not have.
    let levels = [
        (Codec::Postcard, &[20, 0x80, 0x20, 0][..]),
        (Codec::Postcard, &[22, 0x80, 0x20, 2, 7]),
        (Codec::MessagePack, &[0xdd, 0, 0, 0x10, 0]),
        (Codec::MessagePack, &[0xdf, 0, 0, 0x10, 0, 7]),
    ];
    for (codec, level) in levels {
        let bytes = [level.repeat(100), vec![0xc0; 8192]].concat();
        HINTED.store(0, Ordering::Relaxed);
        let refused = match level[0] {
            22 | 0xdf => codec.decode::<Hinted<true>>(&bytes).is_err(),
            _ => codec.decode::<Hinted<false>>(&bytes).is_err(),
        };
        assert!(refused);
        assert!(
            (4096..=bytes.len()).contains(&HINTED.load(Ordering::Relaxed)),
            "{codec:?}: {} of {}",
            HINTED.load(Ordering::Relaxed),
            bytes.len()
        );
    }
    let lists = vec![vec![1_u32; 100]; 100];
    for codec in BOTH {
        let back: Vec<Vec<u32>> = there_and_back(codec, &lists).unwrap();
        assert!(
            back.iter().all(|list| list.capacity() == 100),
            "{codec:?}: each is hinted at in full"
        );
    }
}

#[test]
fn a_field_behind_an_alias_that_is_not_read_is_refused_for_a_reason_that_fits() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Aliased {
        #[serde(alias = "other")]
        first: u8,
        #[serde(skip_deserializing)]
        cache: u8,
    }
    for codec in BOTH {
        let error = there_and_back(codec, &Aliased { first: 1, cache: 2 }).unwrap_err();
        assert!(error.message.contains("`alias` stands before it"), "{error}");
    }
}

#[derive(Serialize, Deserialize, Default)]
struct Node {
    next: Option<Box<Node>>,
}

impl Node {
    fn chain(len: usize) -> Node {
        (1..len).fold(Node::default(), |node, _| Node { next: Some(Box::new(node)) })
    }
}

/// A value that can be nested in every possible way.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Deep {
    End,
    Newtype(Box<Deep>),
    Tuple(Box<Deep>, u8),
    Struct { deep: Box<Deep> },
    Option(Option<Box<Deep>>),
    Seq(Vec<Deep>),
    Map(BTreeMap<u8, Deep>),
    Wrapped(Wrapped),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Wrapped(Box<Deep>);

impl Deep {
    fn chain(which: usize, len: usize) -> Deep {
        (0..len).fold(Deep::End, |deep, _| match which {
            0 => Deep::Newtype(Box::new(deep)),
            1 => Deep::Tuple(Box::new(deep), 1),
            2 => Deep::Struct { deep: Box::new(deep) },
            3 => Deep::Option(Some(Box::new(deep))),
            4 => Deep::Seq(vec![deep]),
            5 => Deep::Map(BTreeMap::from([(1, deep)])),
            _ => Deep::Wrapped(Wrapped(Box::new(deep))),
        })
    }

    /// Drops the value without the recursion of a `Drop`.
    fn forget(self) {
        let mut next = vec![self];
        while let Some(deep) = next.pop() {
            match deep {
                Deep::End => {}
                Deep::Newtype(deep) | Deep::Tuple(deep, _) | Deep::Struct { deep } => {
                    next.push(*deep)
                }
                Deep::Wrapped(Wrapped(deep)) => next.push(*deep),
                Deep::Option(deep) => next.extend(deep.map(|deep| *deep)),
                Deep::Seq(all) => next.extend(all),
                Deep::Map(all) => next.extend(all.into_values()),
            }
        }
    }
}

/// A type that asks what comes next, at each level.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Any {
    Number(u64),
    List(Vec<Any>),
    Map(HashMap<String, Any>),
}

fn on_a_stack_of<T: Send + 'static>(bytes: usize, run: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::Builder::new().stack_size(bytes).spawn(run).unwrap().join().expect("no panic")
}

#[test]
fn nesting_without_end_is_an_error_on_every_path_of_both_codecs_on_both_sides() {
    for codec in BOTH {
        assert!(there_and_back(codec, &Node::chain(100)).is_ok(), "{codec:?}");
        assert!(encoded(codec, &Node::chain(3000)).is_err(), "in the caller already");
        for which in 0..7 {
            for stack in [256 << 10, 2 << 20] {
                on_a_stack_of(stack, move || {
                    for len in [10, 400, 3000, 100_000] {
                        let deep = Deep::chain(which, len);
                        match (encoded(codec, &deep), len) {
                            (Ok(bytes), _) => match codec.decode::<Deep>(&bytes) {
                                Ok(back) => back.forget(),
                                Err(error) => {
                                    assert!(error.message.contains("nested too deep"), "{error}")
                                }
                            },
                            (Err(error), 11..) => {
                                assert!(error.message.contains("depth"), "{error}")
                            }
                            (Err(error), _) => panic!("{codec:?} {which}: {error}"),
                        }
                        deep.forget();
                    }
                });
            }
        }
    }
}

#[test]
fn what_encodes_decodes_at_every_depth_where_there_is_stack() {
    on_a_stack_of(256 << 20, || {
        for codec in BOTH {
            for which in 0..7 {
                let mut refused = 0;
                for len in (100..=520).filter(|len| len % 32 < 3) {
                    let deep = Deep::chain(which, len);
                    match encoded(codec, &deep) {
                        Ok(bytes) => {
                            assert_eq!(
                                codec.decode::<Deep>(&bytes).unwrap(),
                                deep,
                                "{codec:?} {which} {len}"
                            );
                            codec.decode::<de::IgnoredAny>(&bytes).unwrap();
                        }
                        Err(_) => refused += 1,
                    }
                }
                assert!((1..=40).contains(&refused), "{codec:?} {which}: there is a limit");
            }
        }
    });
}

#[test]
fn what_is_kept_and_read_again_overflows_no_stack_at_any_depth() {
    #[derive(Deserialize)]
    #[serde(tag = "t")]
    #[allow(dead_code)]
    enum Tagged {
        T { n: Option<Box<Tagged>> },
    }
    for stack in [256 << 10, 2 << 20] {
        on_a_stack_of(stack, move || {
            for depth in 1..=512 {
                let of = |level: &[u8], end: &[u8]| [level.repeat(depth), end.to_vec()].concat();
                let read = [
                    Codec::MessagePack.decode::<Any>(&of(b"\x91", b"\x01")).map(drop),
                    Codec::MessagePack.decode::<Any>(&of(b"\x81\xa1k", b"\x01")).map(drop),
                    Codec::MessagePack
                        .decode::<Tagged>(&of(b"\x82\xa1t\xa1T\xa1n", b"\xc0"))
                        .map(drop),
                ];
                for read in read {
                    match read {
                        Ok(()) => assert!(depth <= 128),
                        Err(error) => {
                            assert!(error.message.contains("nested too deep"), "{depth}: {error}");
                            assert!(
                                depth > if stack == 256 << 10 { 8 } else { 120 },
                                "{depth}: {error}"
                            );
                        }
                    }
                }
            }
        });
    }
}

#[test]
fn bytes_that_nest_without_end_overflow_no_small_stack() {
    on_a_stack_of(256 << 10, || {
        // Some, sequence, tuple, map, structures, a variant. `IgnoredAny` only skips them.
        for levels in [
            &[18][..],
            &[20, 1, 0],
            &[21, 1],
            &[22, 1],
            &[23, 0, 1, 1, b'x'],
            &[23, 0, 1, 4, b'n', b'e', b'x', b't'],
            &[25, 0, 1, 7, b'N', b'e', b'w', b't', b'y', b'p', b'e'],
        ] {
            let bytes = levels.repeat(100_000);
            let read: [Result<(), CodecError>; 5] = [
                Codec::Postcard.decode::<Node>(&bytes).map(drop),
                Codec::Postcard.decode::<Deep>(&bytes).map(Deep::forget),
                Codec::Postcard.decode::<de::IgnoredAny>(&bytes).map(drop),
                Codec::Postcard.decode::<Vec<de::IgnoredAny>>(&bytes).map(drop),
                Codec::Postcard.decode::<HashMap<String, de::IgnoredAny>>(&bytes).map(drop),
            ];
            assert!(read.iter().all(Result::is_err), "{read:?}");
        }
        for levels in
            [&b"\x81\xa4next"[..], b"\x81\xa7Newtype", b"\x91", b"\x81\x01", b"\x81\xa3Seq\x91"]
        {
            let bytes = levels.repeat(100_000);
            let read: [Result<(), CodecError>; 4] = [
                Codec::MessagePack.decode::<Node>(&bytes).map(drop),
                Codec::MessagePack.decode::<Deep>(&bytes).map(Deep::forget),
                Codec::MessagePack.decode::<de::IgnoredAny>(&bytes).map(drop),
                Codec::MessagePack.decode::<Any>(&bytes).map(drop),
            ];
            assert!(read.iter().all(Result::is_err), "{read:?}");
        }
    });
}
