//! Fuzz targets for what peers of connections and clients of listeners can send: see `crate::fuzz`.

pub(crate) use super::queue::core::fuzzed::{BYTES_MAX as QUEUE_BYTES_MAX, queue};
use super::{
    auth::{Asking, AuthKey, LEN_MAX, Listening, Step},
    message::{Arrival, Assembler, HEADER_BYTES, MessageHeader, MessageKind, PART_BYTES},
};
use crate::fuzz::Input;

/// Maximum number of bytes that one end may allocate for an input of this length: twice the input
/// as it arrives, and one part more.
pub(crate) fn message_bytes_max(len: usize) -> usize {
    2 * PART_BYTES + 16 * len + 4096
}

/// Feeds an assembler with packets, or with pieces of a stream.
///
/// The first byte selects packets or a stream, the second the maximum length of a message. Each
/// packet or piece follows its length in two bytes.
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
                    // A reader of a stream never reads past what the assembler wants.
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
                    let len = message
                        .bytes
                        .map_or(taken.len().saturating_sub(HEADER_BYTES), |bytes| bytes.len());
                    assert!(len <= arrived, "more came out than went in");
                    assert!(len as u64 <= max || assembler.announced().is_none());
                    assert!(!assembler.has_begun(), "nothing of it is left");
                }
                Ok(Arrival::More) => {
                    assert!(!assembler.is_complete(), "one that is whole is given out")
                }
                Ok(Arrival::TooLong(len)) => {
                    assert!(len > max);
                    // The message is kept for a reader with a higher limit.
                    assert_eq!(assembler.announced(), Some(len));
                }
                // After a bad packet, the next packet starts a new message. A stream cannot be
                // resynchronized, so the target ends there.
                Err(_) if packets => {}
                Err(_) => return,
            }
            if piece.is_empty() {
                break;
            }
        }
    }
    if let Some(header) = data.first_chunk()
        && let Ok(header) = MessageHeader::from_bytes(header)
    {
        assert_eq!(MessageHeader::from_bytes(&header.to_bytes()), Ok(header));
    }
}

/// Feeds the same messages to both sides of a handshake. Each message is its kind, its length, and
/// its bytes.
///
/// Neither side may believe a peer that does not know the key, and both must end after two
/// messages.
pub(crate) fn handshake(data: &[u8]) {
    let mut input = Input::new(data);
    let key = AuthKey::new(b"key");
    let (mut listening, _) = Listening::begin().expect("random numbers");
    let (mut asking, _) = Asking::begin();
    let (mut heard, mut asked) = (0, 0);
    let (mut over, mut done) = (false, false);
    while !(input.is_empty() || over && done) {
        let kinds = [
            MessageKind::Hello,
            MessageKind::Challenge,
            MessageKind::Answer,
            MessageKind::Welcome,
            MessageKind::Refused,
            MessageKind::Value,
        ];
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
