//! How a block travels: its place in a message, and its segment's descriptor beside the message.

use std::{fmt, sync::atomic::Ordering};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::{Access, Block, BlockKind};
use crate::{
    heap::segment::{OwnFile, Segment},
    wire::attachment,
};

/// A block as a message describes it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BlockPlace {
    index: u8,
    offset: u64,
    len: u64,
}

impl Block {
    /// Serializes the block, as serde's function of this name does.
    pub(crate) fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let place = self.depart::<S>()?;
        place.serialize(serializer)
    }

    /// Deserializes a block, as serde's function of this name does. See [`arrive`](Self::arrive).
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
        kinds: &[BlockKind],
        fits: impl Fn(usize) -> bool,
    ) -> Result<Self, D::Error> {
        Self::arrive(BlockPlace::deserialize(deserializer)?, kinds, None, fits, None)
    }

    /// Returns the place of the block for the message that a serializer of type `S` is writing, and
    /// attaches the segment's descriptor to that message.
    pub(crate) fn depart<S: Serializer>(&self) -> Result<BlockPlace, S::Error> {
        let inner = &*self.inner;
        if !inner.sent.load(Ordering::Relaxed) {
            inner.segment.note_sent(inner.offset);
            inner.sent.store(true, Ordering::Relaxed);
        }
        let index = attachment::attach::<S>(inner.segment.descriptor())
            .map_err(|error| ser::Error::custom(format_args!("{}: {error}", inner.kind.name())))?;
        Ok(BlockPlace { index, offset: inner.offset as u64, len: inner.len as u64 })
    }

    /// Returns the block at a place that another process sent.
    ///
    /// The block is certain to be of one of `kinds` and to lie within its memory. Its content may
    /// be anything. Its length may be anything too, so `fits` decides which lengths are accepted.
    /// `access` is how the receiver accesses the content, if it does so directly. `lock` has the
    /// same meaning as in [`allocate_for`](Self::allocate_for).
    pub(crate) fn arrive<E: de::Error>(
        place: BlockPlace,
        kinds: &[BlockKind],
        access: Option<Access>,
        fits: impl Fn(usize) -> bool,
        lock: Option<&Block>,
    ) -> Result<Self, E> {
        let failed =
            |error: &dyn fmt::Display| E::custom(format_args!("{}: {error}", kinds[0].name()));
        let descriptor = attachment::detach(place.index).map_err(|error| failed(&error))?;
        let segment = Segment::open(descriptor).map_err(|error| failed(&error))?;
        let fits = |kind, is: Access, len: usize| {
            kinds.contains(&kind) && access.is_none_or(|access| access == is) && fits(len)
        };
        Self::open(segment, place.offset, place.len, fits, lock).map_err(|error| failed(&error))
    }

    /// As [`arrive`](Self::arrive), for memory that has a name. Its file belongs to this user and
    /// is not sealed.
    pub(crate) fn arrive_named<E: de::Error>(
        place: BlockPlace,
        kinds: &[BlockKind],
        fits: impl Fn(usize) -> bool,
    ) -> Result<Self, E> {
        let failed =
            |error: &dyn fmt::Display| E::custom(format_args!("{}: {error}", kinds[0].name()));
        let descriptor = attachment::detach(place.index).map_err(|error| failed(&error))?;
        let segment = OwnFile::check(descriptor)
            .and_then(Segment::open_named)
            .map_err(|error| failed(&error))?;
        let fits = |kind, _, len: usize| kinds.contains(&kind) && fits(len);
        Self::open(segment, place.offset, place.len, fits, None).map_err(|error| failed(&error))
    }
}
