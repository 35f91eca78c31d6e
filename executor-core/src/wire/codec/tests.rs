use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
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
fn the_bytes_are_postcards_own() {
    fn same<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) {
        let ours = encoded(Codec::Postcard, &value).unwrap();
        assert_eq!(ours, ::postcard::to_stdvec(&value).unwrap());
        assert_eq!(::postcard::from_bytes::<T>(&ours).unwrap(), value);
    }
    same(everything());
    same((1_u8, "x".to_owned(), vec![None, Some(())]));
    same(HashMap::from([(1_u64, 2_i8)]));
    same(serde_bytes::ByteBuf::from(vec![0; 300]));
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
        assert_eq!((error.message.as_str(), error.custom), ("this one stays here", true));
        let bytes = encoded(codec, &Some(vec![1_u8])).unwrap();
        let error = codec.decode::<Option<Vec<Stubborn>>>(&bytes).err().unwrap();
        assert_eq!((error.message.as_str(), error.custom), ("not in my house", true));
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

/// What the value becomes, or the first error on the way.
fn there_and_back<T: Serialize + DeserializeOwned>(codec: Codec, value: &T) -> Result<T, CodecError> {
    encoded(codec, value).and_then(|bytes| codec.decode(&bytes))
}

fn only_messagepack<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T, named: &str) {
    let error = there_and_back(Codec::Postcard, &value).unwrap_err();
    assert!(error.message.contains(CURE) && error.message.contains(named), "{error}");
    assert!(!error.custom);
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
        assert!(codec.decode::<()>(b"\xc0\xc0").is_err());
    }
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
    // 2^60 elements, for postcard; 2^32 - 1, for MessagePack.
    let postcard = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    let error = Codec::Postcard.decode::<Vec<u64>>(&postcard).unwrap_err();
    assert!(error.message.contains("1152921504606846976"), "{error}");
    assert!(Codec::Postcard.decode::<Vec<()>>(&postcard).is_err());
    assert!(Codec::Postcard.decode::<String>(&postcard).is_err());
    assert!(Codec::Postcard.decode::<serde_bytes::ByteBuf>(&postcard).is_err());
    assert!(Codec::Postcard.decode::<HashMap<u64, u64>>(&postcard).is_err());
    for marker in [0xdd, 0xdb, 0xc6, 0xdf] {
        let bytes = [marker, 0xff, 0xff, 0xff, 0xff];
        assert!(Codec::MessagePack.decode::<Vec<u64>>(&bytes).is_err());
        assert!(Codec::MessagePack.decode::<String>(&bytes).is_err());
        assert!(Codec::MessagePack.decode::<serde_bytes::ByteBuf>(&bytes).is_err());
        assert!(Codec::MessagePack.decode::<HashMap<u64, u64>>(&bytes).is_err());
    }
    assert_eq!(there_and_back(Codec::Postcard, &vec![(); 1000]).unwrap().len(), 1000);
    // A thousand times 2^23 elements of no size: hours, if each list were looked at alone.
    let lists = [&[0xe8, 7][..], &[0x80, 0x80, 0x80, 0x04].repeat(1000)].concat();
    assert!(Codec::Postcard.decode::<Vec<Vec<()>>>(&lists).is_err());
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

#[test]
fn nesting_without_end_is_an_error() {
    for codec in BOTH {
        assert!(there_and_back(codec, &Node::chain(200)).is_ok(), "{codec:?}");
        assert!(there_and_back(codec, &Node::chain(3000)).is_err(), "{codec:?}");
    }
    assert!(encoded(Codec::Postcard, &Node::chain(3000)).is_err(), "in the caller already");
    assert!(Codec::Postcard.decode::<Node>(&[1; 200_000]).err().unwrap().message.contains("deep"));
    // {"next": {"next": …
    let bytes = b"\x81\xa4next".repeat(200_000);
    assert!(Codec::MessagePack.decode::<Node>(&bytes).is_err());
}
