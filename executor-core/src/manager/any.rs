//! Values of any kind, for maps and lists whose items have different types.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fmt,
    hash::{Hash, Hasher},
};

use serde::{Deserialize, Serialize};

/// A value of any of these kinds, as the keys, values and items of Python's containers are.
///
/// ```
/// use executor::manager::{Any, Manager};
///
/// #[executor::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let manager = Manager::start()?;
///     let mixed = manager.dict::<Any, Any>([])?;
///     mixed.insert(&Any::from(1), &Any::from("one"))?;
///     mixed.insert(&Any::from("2"), &Any::from(2))?;
///     mixed.insert(&Any::from(0.25), &Any::None)?;
///     assert_eq!(mixed.get(&Any::from("2"))?, Some(Any::Int(2)));
///     Ok(())
/// }
/// ```
///
/// Values of different kinds are never equal, unlike in Python: `1` and `1.0` are two keys. Floats
/// are ordered and compared as [`f64::total_cmp`] does, except that `-0.0` is made `0.0`, and all
/// that are not a number are made one, by `From` and when they are received. So they can be keys.
#[derive(Clone, Serialize, Deserialize)]
pub enum Any {
    /// No value. Python's `None`.
    None,
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Int(i128),
    /// A float.
    Float(Float),
    /// A text.
    Text(String),
    /// Bytes.
    Bytes(#[serde(with = "serde_bytes")] Vec<u8>),
    /// A list.
    List(Vec<Any>),
    /// A map, sorted by its keys.
    Map(BTreeMap<Any, Any>),
}

/// A float that can be a key: it is equal to itself, and has one zero. See [`Any`].
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(from = "f64", into = "f64")]
pub struct Float(f64);

impl From<f64> for Float {
    fn from(float: f64) -> Self {
        Float(match float {
            _ if float.is_nan() => f64::NAN,
            _ if float == 0.0 => 0.0,
            _ => float,
        })
    }
}

impl From<Float> for f64 {
    fn from(float: Float) -> f64 {
        float.0
    }
}

impl Ord for Float {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Float {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Float {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Float {}

impl Hash for Float {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl fmt::Debug for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Any {
    /// The order of the kinds, and the comparison of two values of one kind.
    fn rank(&self) -> u8 {
        match self {
            Any::None => 0,
            Any::Bool(_) => 1,
            Any::Int(_) => 2,
            Any::Float(_) => 3,
            Any::Text(_) => 4,
            Any::Bytes(_) => 5,
            Any::List(_) => 6,
            Any::Map(_) => 7,
        }
    }
}

impl Ord for Any {
    /// Compares two values of one kind as usual, and values of different kinds by their kind.
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Any::Bool(a), Any::Bool(b)) => a.cmp(b),
            (Any::Int(a), Any::Int(b)) => a.cmp(b),
            (Any::Float(a), Any::Float(b)) => a.cmp(b),
            (Any::Text(a), Any::Text(b)) => a.cmp(b),
            (Any::Bytes(a), Any::Bytes(b)) => a.cmp(b),
            (Any::List(a), Any::List(b)) => a.cmp(b),
            (Any::Map(a), Any::Map(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Any {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Any {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Any {}

impl Hash for Any {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.rank().hash(state);
        match self {
            Any::None => {}
            Any::Bool(value) => value.hash(state),
            Any::Int(value) => value.hash(state),
            Any::Float(value) => value.hash(state),
            Any::Text(value) => value.hash(state),
            Any::Bytes(value) => value.hash(state),
            Any::List(value) => value.hash(state),
            Any::Map(value) => value.hash(state),
        }
    }
}

impl fmt::Debug for Any {
    /// Writes the value alone, without its kind, as Python does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Any::None => f.write_str("None"),
            Any::Bool(value) => fmt::Debug::fmt(value, f),
            Any::Int(value) => fmt::Debug::fmt(value, f),
            Any::Float(value) => fmt::Debug::fmt(value, f),
            Any::Text(value) => fmt::Debug::fmt(value, f),
            Any::Bytes(value) => fmt::Debug::fmt(value, f),
            Any::List(value) => fmt::Debug::fmt(value, f),
            Any::Map(value) => fmt::Debug::fmt(value, f),
        }
    }
}

macro_rules! from {
    ($($type:ty => $variant:ident),* $(,)?) => {$(
        impl From<$type> for Any {
            fn from(value: $type) -> Self {
                Any::$variant(value.into())
            }
        }
    )*};
}

from! {
    bool => Bool,
    i8 => Int, i16 => Int, i32 => Int, i64 => Int, i128 => Int,
    u8 => Int, u16 => Int, u32 => Int, u64 => Int,
    f64 => Float,
    &str => Text, String => Text,
    &[u8] => Bytes, Vec<u8> => Bytes,
    Vec<Any> => List, BTreeMap<Any, Any> => Map,
}

impl From<usize> for Any {
    fn from(value: usize) -> Self {
        Any::Int(value as i128)
    }
}

impl From<isize> for Any {
    fn from(value: isize) -> Self {
        Any::Int(value as i128)
    }
}

impl Any {
    /// Returns the integer, if it is one.
    pub fn as_int(&self) -> Option<i128> {
        if let Any::Int(value) = self { Some(*value) } else { None }
    }

    /// Returns the float, if it is one.
    pub fn as_float(&self) -> Option<f64> {
        if let Any::Float(Float(value)) = self { Some(*value) } else { None }
    }

    /// Returns the text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        if let Any::Text(value) = self { Some(value) } else { None }
    }

    /// Returns the bytes, if they are.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        if let Any::Bytes(value) = self { Some(value) } else { None }
    }

    /// Whether it is [`None`](Self::None).
    pub fn is_none(&self) -> bool {
        matches!(self, Any::None)
    }
}

impl From<f32> for Any {
    fn from(value: f32) -> Self {
        f64::from(value).into()
    }
}

impl<T: Into<Any>> From<Option<T>> for Any {
    fn from(value: Option<T>) -> Self {
        value.map_or(Any::None, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{
        buffer::Buffer,
        codec::{Format, Postcard},
    };

    fn bytes(value: &Any) -> Vec<u8> {
        let mut out = Buffer::new();
        Postcard::encode(value, &mut out).unwrap();
        out.into_vec()
    }

    #[test]
    fn values_are_equal_exactly_if_their_bytes_are() {
        let map = |pairs: &[(i32, &str)]| {
            Any::from(
                pairs
                    .iter()
                    .map(|(k, v)| (Any::from(*k), Any::from(*v)))
                    .collect::<BTreeMap<_, _>>(),
            )
        };
        let values = [
            Any::None,
            true.into(),
            0.into(),
            1.into(),
            u64::MAX.into(),
            0.0.into(),
            (-0.0).into(),
            1.0.into(),
            f64::NAN.into(),
            (-f64::NAN).into(),
            "".into(),
            "1".into(),
            Any::from(&b"1"[..]),
            Any::List(vec![1.into(), Any::None]),
            map(&[(1, "a"), (2, "b")]),
            map(&[(2, "b"), (1, "a")]),
            map(&[]),
        ];
        for a in &values {
            assert_eq!(Postcard::decode::<Any>(&bytes(a)).unwrap(), *a);
            for b in &values {
                assert_eq!(a == b, bytes(a) == bytes(b), "{a:?} and {b:?}");
            }
        }
    }
}
