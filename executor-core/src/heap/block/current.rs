//! The segment from which this process takes small blocks.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
};

use crate::{
    heap::{
        segment::{LINE, Segment},
        words,
    },
    os::fork::PerProcess,
};

/// Size of a segment for small blocks. With a higher value, a process that has a single lock uses
/// that much memory. With a lower value, many objects need more descriptors (at present two for a
/// thousand locks).
const SEGMENT_BYTES: usize = 64 * 1024;
/// Maximum length of a small block. A longer block has a segment of its own. Up to this much memory
/// may be lost at the end of each segment.
pub(super) const SMALL_MAX: usize = 8 * 1024;

/// The memory from which this process takes small blocks.
#[derive(Default)]
pub(super) struct Heap {
    pub(super) current: Mutex<Current>,
}

/// The current segment of a process.
#[derive(Default)]
pub(super) struct Current {
    pub(super) segment: Option<Arc<Segment>>,
    /// Offset of the unused end of the segment.
    next: usize,
    /// Offsets of blocks in the segment that can be reused, by their length.
    pub(super) free: HashMap<usize, Vec<usize>>,
}

/// Returns the memory of this process.
pub(super) fn heap() -> &'static Heap {
    static HEAP: PerProcess<Heap> = PerProcess::new(Heap::default);
    HEAP.get()
}

impl Current {
    /// Takes a zeroed block of `whole` bytes, of which `len` are used.
    pub(super) fn take(
        &mut self,
        whole: usize,
        len: usize,
        tag: u128,
    ) -> io::Result<(Arc<Segment>, usize)> {
        if let Some(segment) = &self.segment {
            let clear = |offset| {
                // SAFETY: the bytes are within the mapping and a whole number of aligned words, and
                // they stay mapped as long as `segment` exists. This process has no block there:
                // either no handle existed yet, or the last handle is gone and none was ever sent.
                // No received handle is accepted while the segment's table is locked. Accesses by
                // other processes are atomic as well.
                unsafe { words::zero(segment.at().add(offset), whole) }
            };
            while let Some(offset) = self.free.get_mut(&whole).and_then(Vec::pop) {
                if segment.note_new(offset, len, tag, || clear(offset)) {
                    return Ok((Arc::clone(segment), offset));
                }
            }
            while let Some(end) = self.next.checked_add(whole).filter(|end| *end <= segment.len()) {
                let offset = std::mem::replace(&mut self.next, end);
                // Skip places that overlap a received handle. This process has not given out that
                // place yet, so the handle was made up. A peer that has another object of the
                // segment may also have written here, which is why `clear` runs.
                if segment.note_new(offset, len, tag, || clear(offset)) {
                    return Ok((Arc::clone(segment), offset));
                }
            }
        }
        let segment = Segment::create("executor-objects", SEGMENT_BYTES - LINE)?;
        segment.note_new(LINE, len, tag, || {});
        self.next = LINE.saturating_add(whole);
        self.free.clear();
        self.segment = Some(Arc::clone(&segment));
        Ok((segment, LINE))
    }
}
