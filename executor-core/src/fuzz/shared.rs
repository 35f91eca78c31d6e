//! Targets for shared memory that an adversary writes to at the same time.

use std::{
    cell::{Cell, RefCell},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::Input;
use crate::{
    id::TaskId,
    os::memory::Shared,
    transport::{
        Link,
        board::{Board, Panic},
        ring::{self, Segment, doorbell::Doorbell},
    },
    wire::frame::{FromWorker, Header, Order, Reply, ToWorker},
};

/// The adversary's plan: what it writes after the parent has read a number of words.
struct Script {
    memory: Shared<Segment>,
    /// (reads until the write, the word's index, the value).
    turns: Vec<(u32, usize, u64)>,
}

thread_local! {
    static ARMED: Cell<bool> = const { Cell::new(false) };
    static SCRIPT: RefCell<Option<Script>> = const { RefCell::new(None) };
}

/// Gives the adversary its turn. The parent calls this when it is about to read a word of a ring.
pub(crate) fn turn() {
    if !ARMED.get() {
        return;
    }
    SCRIPT.with_borrow_mut(|script| {
        let Some(Script { memory, turns }) = script else { return };
        turns.retain_mut(|(left, at, value)| {
            *left = left.saturating_sub(1);
            if *left == 0 {
                memory.words()[*at].store(*value, Ordering::SeqCst);
            }
            *left > 0
        });
        ARMED.set(!turns.is_empty());
    });
}

/// Returns a value for a word: often a small one or one near a limit, because these mean something.
fn word(input: &mut Input<'_>) -> u64 {
    match input.u8() % 8 {
        0 => u64::MAX,
        1 => 1 << (input.u8() % 64),
        2 | 3 => input.u8().into(),
        4 => 0_u64.wrapping_sub(input.u8().into()),
        5 | 6 => input.u16().into(),
        _ => input.u64(),
    }
}

/// Returns the index of a word in the segment. In most cases, the word has a meaning.
fn place(input: &mut Input<'_>, words: usize) -> usize {
    let places = ring::places();
    match input.u8() {
        at @ 0..200 => {
            let (from, count) = places[usize::from(at) % places.len()];
            from + usize::from(input.u8()) % count
        }
        _ => usize::from(input.u16()) * 2 % words,
    }
}

const OPERATIONS_MAX: usize = 64;

/// Returns the bound on memory for the target `ring`. A drain copies at most the contents of one
/// ring, and all the contents may belong to one frame.
pub(super) fn ring_bytes_max(len: usize) -> usize {
    let drains = len.min(OPERATIONS_MAX);
    (1 << 20) + drains * (1 << 20)
}

/// Tests the parent's end of a worker's rings. The worker writes anywhere between the parent's
/// reads.
pub fn ring(data: &[u8]) {
    let mut input = Input(data);
    let (segment, fd) = ring::create().expect("memory");
    let (doorbell, _fd) = Shared::<Doorbell>::create("executor-doorbell").expect("memory");
    let mirror = Shared::<Segment>::open(&fd).expect("memory");
    let doorbell = Arc::new(doorbell);
    let link = ring::connect(segment, Arc::clone(&doorbell));
    let mut worker = ring::Forger::default();
    SCRIPT.with_borrow_mut(|script| {
        let memory = Shared::<Segment>::open(&fd).expect("memory");
        *script = Some(Script { memory, turns: Vec::new() });
    });
    let words = mirror.words();
    let (mut over, mut seq) = (false, 0);
    for _ in 0..OPERATIONS_MAX {
        if input.is_empty() {
            break;
        }
        match input.u8() % 10 {
            0 | 1 => {
                let len = usize::from(input.u8());
                worker.publish(&mirror, input.bytes(len));
            }
            2 => {
                let (kind, task) = (
                    [Reply::Done, Reply::Failed, Reply::Credit][usize::from(input.u8()) % 3],
                    input.u64(),
                );
                let length = word(&mut input);
                let header =
                    FromWorker { task: TaskId::from_raw(task), length, ..FromWorker::new(kind) };
                worker.publish(&mirror, &header.to_bytes());
            }
            3 | 4 => {
                let at = place(&mut input, words.len());
                words[at].store(word(&mut input), Ordering::SeqCst);
            }
            5 => {
                let later = (
                    u32::from(input.u8()) % 64 + 1,
                    place(&mut input, words.len()),
                    word(&mut input),
                );
                SCRIPT.with_borrow_mut(|script| {
                    script.iter_mut().for_each(|script| script.turns.push(later));
                });
                ARMED.set(true);
            }
            6 => {
                seq += 1;
                let payload = vec![7_u8; usize::from(input.u16())].into();
                link.send(ToWorker { seq, ..ToWorker::new(Order::Run) }, &payload);
                link.flush();
                link.credit(input.u64());
            }
            7 => link.hang_up(),
            _ => {
                let mut bytes = 0;
                let drained = link.drain(|frame| {
                    assert_eq!(frame.header.length, frame.payload.len() as u64);
                    bytes += frame.payload.len();
                });
                assert!(
                    !over || matches!(drained, Ok(false)) && bytes == 0,
                    "after the end nothing comes"
                );
                over |= drained.is_err();
                assert!(!over || !link.is_due(), "after the end nothing is to be done");
                doorbell.sleep(Duration::ZERO, || link.is_due());
            }
        }
    }
    ARMED.set(false);
    SCRIPT.set(None);
}

/// Tests all questions that the parent asks a board, while another thread writes to the board.
pub fn board(data: &[u8]) {
    let mut input = Input(data);
    let (board, fd) = Shared::<Board>::create("executor-board").expect("memory");
    let mirror = Shared::<Board>::open(&fd).expect("memory");
    let writes: Vec<_> = (0..32)
        .map(|_| {
            let at = match input.u8() {
                at @ 0..128 => usize::from(at) % 8,
                _ => usize::from(input.u16()),
            };
            (at % mirror.words().len(), word(&mut input))
        })
        .collect();
    let write = |words: &[AtomicU64]| {
        for (at, value) in &writes {
            words[*at].store(*value, Ordering::SeqCst);
        }
    };
    let ask = |seq: u32| {
        let _ = (board.begun(seq), board.take_rest(seq), board.take_back(seq, 0));
        for task in [0, 1, u64::MAX] {
            if let Some(Panic { location, message, .. }) = board.panic_of(TaskId::from_raw(task)) {
                // Bytes that are not UTF-8 become a replacement character of three bytes each.
                assert!(location.len() + message.len() <= 3 * size_of::<Board>());
            }
        }
    };
    board.offer(1, 0);
    write(mirror.words());
    (0..4).for_each(ask);
    // Do this only for some inputs, because a thread costs more than everything above.
    if data.len().is_multiple_of(16) {
        std::thread::scope(|scope| {
            scope.spawn(|| (0..50).for_each(|_| write(mirror.words())));
            for seq in 0..16 {
                board.offer(seq, 0);
                ask(seq);
            }
        });
    }
}
