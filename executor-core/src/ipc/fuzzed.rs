//! What peers of connections and clients of listeners can send, as functions of bytes: see `crate::fuzz`.

pub(crate) use super::queue::core::fuzzed::{BYTES_MAX as QUEUE_BYTES_MAX, queue};
use super::{
    auth::{Asking, AuthKey, LEN_MAX, Listening, Step},
    message::{Arrival, Assembler, HEAD_BYTES, Head, Kind, PART_BYTES},
};
use crate::fuzz::Input;

/// What one end may take for an input: what has arrived, twice, and a part more.
pub(crate) fn message_bytes_max(len: usize) -> usize {
    2 * PART_BYTES + 16 * len + 4096
}

/// Packets, or pieces of a stream, each behind its length in two bytes; the first byte says which of the two.
pub(crate) fn message(data: &[u8]) {
    let mut input = Input::new(data);
    let packets = input.u8().is_multiple_of(2);
    let max = [0, 64, 4096, u64::MAX][usize::from(input.u8() % 4)];
    let (mut assembler, mut arrived) = (Assembler::default(), 0);
    while !input.is_empty() {
        let len = usize::from(input.u16());
        let mut piece = input.bytes(len);
        loop {
            let taken = match packets {
                true => std::mem::take(&mut piece),
                false => {
                    // As whoever reads a stream asks for it.
                    let wanted = usize::try_from(assembler.wanted()).unwrap_or(usize::MAX);
                    let (now, later) = piece.split_at(wanted.min(piece.len()));
                    piece = later;
                    now
                }
            };
            arrived += taken.len();
            let came = match packets {
                true => assembler.packet(taken, Vec::new(), max),
                false => assembler.bytes(taken, max),
            };
            match came {
                Ok(Arrival::Complete(message)) => {
                    let len =
                        message.bytes.map_or(taken.len().saturating_sub(HEAD_BYTES), |bytes| bytes.len());
                    assert!(len <= arrived, "more came out than went in");
                    assert!(len as u64 <= max || assembler.announced().is_none());
                    assert!(!assembler.has_begun(), "nothing of it is left");
                }
                Ok(Arrival::More) => assert!(!assembler.is_complete(), "one that is whole is given out"),
                Ok(Arrival::TooLong(len)) => {
                    assert!(len > max);
                    // Whoever takes longer ones gets it when it is whole.
                    assert_eq!(assembler.announced(), Some(len));
                }
                // A stream is lost, and behind a packet the next one begins.
                Err(_) if packets => {}
                Err(_) => return,
            }
            if piece.is_empty() {
                break;
            }
        }
    }
    if let Some(head) = data.first_chunk()
        && let Ok(head) = Head::from_bytes(head)
    {
        assert_eq!(Head::from_bytes(&head.to_bytes()), Ok(head));
    }
}

/// What is said to both sides of a handshake: for each message its kind, its length, its bytes.
pub(crate) fn handshake(data: &[u8]) {
    let mut input = Input::new(data);
    let key = AuthKey::new(b"key");
    let (mut listening, _) = Listening::begin().expect("random numbers");
    let (mut asking, _) = Asking::begin();
    let (mut heard, mut asked) = (0, 0);
    let (mut over, mut done) = (false, false);
    while !(input.is_empty() || over && done) {
        let kinds = [Kind::Hello, Kind::Challenge, Kind::Answer, Kind::Welcome, Kind::Refused, Kind::Value];
        let kind = kinds[usize::from(input.u8()) % kinds.len()];
        let len = usize::from(input.u8()).min(LEN_MAX as usize + 1);
        let said = input.bytes(len);
        if !over {
            heard += 1;
            over = match listening.hear(&key, kind, said) {
                Step::Listen => false,
                Step::SayAndFail(..) => true,
                step => panic!("nobody who does not know the key is believed: {step:?}"),
            };
        }
        if !done {
            asked += 1;
            done = match asking.hear(&key, kind, said).expect("random numbers") {
                Step::Say(..) => false,
                Step::SayAndFail(..) => true,
                step => panic!("nobody who does not know the key is believed: {step:?}"),
            };
        }
        assert!(heard <= 2 && asked <= 2, "a peer that goes on talking is done with");
    }
}
