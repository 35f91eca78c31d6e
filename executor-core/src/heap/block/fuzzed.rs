//! Fuzzing of what peers can say about blocks, driven by a string of bytes: see `crate::fuzz`.

use rustix::fs::{SealFlags, fcntl_add_seals};

use super::*;
use crate::{fuzz::Input, os::file};

const BYTES: u64 = 16 * 1024;

fn number(input: &mut Input<'_>) -> u64 {
    match input.u8() % 6 {
        0 => u64::MAX - u64::from(input.u8()),
        1 => 1 << (input.u8() % 64),
        2 => BYTES - u64::from(input.u8()),
        3 => u64::from(input.u8()) * LINE as u64,
        _ => input.u16().into(),
    }
}

/// Simulates a file that a peer has sent, with arbitrary headers, and opens arbitrary places in
/// it.
pub(crate) fn place(data: &[u8]) {
    let mut input = Input::new(data);
    let Ok(file) = file::anonymous("fuzz") else { return };
    let made = file::set_len(&file, BYTES).and_then(|()| {
        let header = Segment::create("fuzz", LINE)?;
        // SAFETY: the first line of a mapping that nothing else uses.
        let header = unsafe { std::slice::from_raw_parts(header.at().as_ptr(), LINE) }.to_vec();
        file::write_at(&file, &header, 0)?;
        Ok(fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?)
    });
    let Ok(segment) = made.and_then(|()| Segment::open(Arc::new(file))) else { return };
    let mut blocks: Vec<Block> = Vec::new();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let (at, len) = (number(&mut input), number(&mut input));
        match input.u8() % 4 {
            // The peer writes a header at this place.
            0 | 1 => {
                let kind = u32::from(input.u8() % 20);
                let line = usize::try_from(at).unwrap_or(usize::MAX) / LINE * LINE;
                if line >= LINE && with_header(line) <= segment.len() {
                    // SAFETY: within the mapping, aligned, and atomics.
                    let header = unsafe { segment.at().add(line).cast::<BlockHeader>().as_ref() };
                    header.kind.store(kind, Ordering::Relaxed);
                    header.access.store(u32::from(input.u8() % 3), Ordering::Relaxed);
                    header.len.store(len, Ordering::Relaxed);
                }
            }
            2 => drop(blocks.pop()),
            _ => {
                blocks.extend(Block::open(Arc::clone(&segment), at, len, |_, _, _| true, None));
            }
        }
        for (index, one) in blocks.iter().enumerate() {
            let (start, end) =
                (one.inner.offset, one.inner.offset.saturating_add(with_header(one.len())));
            assert!(start >= LINE && end <= segment.len(), "within the memory");
            let apart = |other: &Block| {
                let from = other.inner.offset;
                let same = from == start && other.len() == one.len() && other.kind() == one.kind();
                same || from >= end || from.saturating_add(with_header(other.len())) <= start
            };
            assert!(blocks[..index].iter().all(apart), "no two lie across each other");
        }
    }
}
