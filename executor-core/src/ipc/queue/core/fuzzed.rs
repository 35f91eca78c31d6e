//! Support for fuzzing. See [`crate::fuzz`].

use std::time::Instant;

use super::{
    super::ring_list::{FIRST_BYTES, INLINE_MAX, Layout, Lost, Side},
    Core, START, Wait,
};
use crate::{
    fuzz::Input,
    os::{
        memory::SharedLayout,
        std_or_model::atomic::{AtomicU64, Ordering},
    },
};

/// Maximum number of bytes put and received at a time: no more than has been put and lies in
/// the file.
pub(crate) const BYTES_MAX: usize = 64 << 20;
const OPERATIONS_MAX: usize = 64;

#[repr(C)]
pub(super) struct Word(pub(super) AtomicU64);

// SAFETY: `repr(C)`, an atomic, no drop, zero is a value.
unsafe impl SharedLayout for Word {}

impl Core {
    /// Returns the words that hold everything except the contents of the file.
    pub(super) fn words(&self) -> &[Word] {
        self.block.parts(START, size_of::<Layout>() / 8)
    }
}

fn word(input: &mut Input<'_>) -> u64 {
    match input.u8() % 8 {
        0 => u64::MAX,
        1 => 1 << (input.u8() % 64),
        2 | 3 => input.u8().into(),
        4 => 0_u64.wrapping_sub(input.u8().into()),
        5 => u64::from(input.u8()) << 12,
        6 => input.u16().into(),
        _ => u64::from(input.u16()) << 32 | u64::from(input.u16()),
    }
}

/// Fuzz target: a user of a queue, and another process that writes anything to the queue's
/// words and to its first ring.
pub(crate) fn queue(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.u8();
    let core = Core::create(u64::from(kind % 4)).expect("memory");
    core.set_on_lost([Lost::Counted, Lost::Kept, Lost::Requeued][usize::from(kind / 4 % 3)]);
    let hold = (kind / 16).is_multiple_of(2);
    let words = core.words();
    let ring = core.store.file.window(0, FIRST_BYTES).expect("memory");
    // The mutexes are spared: waiting for a holder that never unlocks is no fault, and takes
    // long.
    let list = core.list();
    let at = |side| (std::ptr::from_ref(list.mutex(side)).addr() - words.as_ptr().addr()) / 8;
    let mutexes = [at(Side::Producers), at(Side::Consumers)];
    let (mut out, mut mutex_is_garbled) = (Vec::new(), false);
    for _ in 0..OPERATIONS_MAX {
        if input.is_empty() {
            break;
        }
        match input.u8() % 16 {
            0 | 1 => {
                let len = usize::from(input.u8());
                let _ = core.put(input.bytes(len), &[], Wait::Not, || false);
            }
            2 => drop(core.put(
                &vec![7; INLINE_MAX + usize::from(input.u16())],
                &[],
                Wait::Not,
                || false,
            )),
            3..6 => {
                if let Ok(got) = core.get(&mut out, Wait::Not, hold, || false)
                    && input.u8().is_multiple_of(2)
                {
                    got.unfinished.keep();
                }
            }
            6..10 => {
                let place = usize::from(input.u16()) % words.len();
                if !mutexes.contains(&place) || !std::mem::replace(&mut mutex_is_garbled, true) {
                    words[place].0.store(word(&mut input), Ordering::SeqCst);
                }
            }
            10 | 11 => {
                let place = usize::from(input.u16()) % ring.words();
                ring.word(place).store(word(&mut input), Ordering::SeqCst);
            }
            12 => {
                let _ = (
                    core.len(),
                    core.is_full(),
                    core.capacity(),
                    core.unfinished(),
                    core.is_closed(),
                );
                let _ = core.mark_done();
            }
            13 => drop(core.join(Some(Instant::now()))),
            14 => drop(core.take_lost(&mut out, Wait::Not, input.u8().is_multiple_of(2))),
            _ => list.close(),
        }
    }
}
