//! The stream of bytes inside a TLS session, as messages. No I/O.
//!
//! ```text
//!  server: │ welcome or refusal │ reply │ reply │ …
//!  client: │ knock │ request │ request │ …        each: header (24 bytes) │ body
//! ```

use crate::{
    manager::client::{
        ServerId,
        door::{REFUSED, WELCOME},
    },
    transport::ring::lane::{LANE_HEADER_BYTES, LaneError, grow},
};

/// How much of a buffer that has become large is kept for the next bytes.
const KEPT_BYTES_MAX: usize = 128 * 1024;

/// Bytes that have arrived, and that are handed out as whole messages.
pub(crate) struct Stream {
    /// What has arrived and, from `at` on, was not handed out.
    arrived: Vec<u8>,
    at: usize,
    /// The part of a message that has arrived, and how many bytes are missing.
    begun: Vec<u8>,
    missing: Option<u64>,
    /// Whether there is no memory for that message, so that what comes of it is dropped.
    skips: bool,
    message_bytes_max: u64,
}

/// Returns how long a message says that its body is.
fn body_len(header: &[u8; LANE_HEADER_BYTES]) -> u64 {
    let (words, _) = header.as_chunks::<8>();
    u64::from_le_bytes(words[2])
}

impl Stream {
    pub(crate) fn new(arrived: Vec<u8>, message_bytes_max: u64) -> Self {
        Stream { arrived, at: 0, begun: Vec::new(), missing: None, skips: false, message_bytes_max }
    }

    /// Returns where further bytes are appended. Call [`next`](Self::next) until there is no whole
    /// message before, so that not more than one read is there.
    pub(crate) fn arriving(&mut self) -> &mut Vec<u8> {
        &mut self.arrived
    }

    /// Puts the next whole message into `message`. Returns `false` if there is none yet.
    ///
    /// # Errors
    /// As of [`LaneReceiver::receive`](crate::transport::ring::lane::LaneReceiver::receive).
    pub(crate) fn next(&mut self, message: &mut Vec<u8>) -> Result<bool, LaneError> {
        let rest = &self.arrived[self.at..];
        if let Some(missing) = self.missing {
            let len = missing.min(rest.len() as u64) as usize;
            if !self.skips && grow(&mut self.begun, len, missing).is_err() {
                self.skips = true;
                self.begun.truncate(LANE_HEADER_BYTES);
                self.begun.shrink_to_fit();
            }
            if !self.skips {
                self.begun.extend_from_slice(&rest[..len]);
            }
            self.at += len;
            let missing = missing - len as u64;
            self.missing = (missing > 0).then_some(missing);
            if missing == 0 {
                std::mem::swap(message, &mut self.begun);
                // A large buffer is not kept for the next message.
                self.begun = Vec::new();
                return match std::mem::take(&mut self.skips) {
                    false => Ok(true),
                    true => Err(LaneError::NoMemory),
                };
            }
        } else if let Some(header) = rest.first_chunk() {
            let len = body_len(header);
            if len > self.message_bytes_max {
                return Err(LaneError::TooLong(len));
            }
            // A length that does not fit into 64 bits with its header never arrives whole.
            let len = len.saturating_add(LANE_HEADER_BYTES as u64);
            if let Some(whole) = usize::try_from(len).ok().and_then(|len| rest.get(..len)) {
                message.clear();
                message.extend_from_slice(whole);
                self.at += whole.len();
                return Ok(true);
            }
            self.begun = rest.to_vec();
            self.missing = Some(len - rest.len() as u64);
            self.at = self.arrived.len();
        }
        // At most a part of a header is left.
        self.arrived.drain(..self.at);
        self.arrived.shrink_to(KEPT_BYTES_MAX);
        self.at = 0;
        Ok(false)
    }

    /// Whether [`next`](Self::next) has something to say: a whole message, or an error.
    pub(crate) fn has_message(&self) -> bool {
        let rest = &self.arrived[self.at..];
        match self.missing {
            Some(missing) => rest.len() as u64 >= missing,
            None => rest.first_chunk().is_some_and(|header| {
                let len = body_len(header);
                len > self.message_bytes_max || (rest.len() - LANE_HEADER_BYTES) as u64 >= len
            }),
        }
    }

    /// Returns how many bytes are reserved.
    #[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
    pub(crate) fn memory(&self) -> usize {
        self.arrived.capacity() + self.begun.capacity()
    }
}

/// Returns what the server says first to a client that it lets in: its id, the number of its
/// process, and how long a message may be.
pub(crate) fn welcome(id: ServerId, message_bytes_max: u64) -> ([u8; LANE_HEADER_BYTES], Vec<u8>) {
    let mut body = id.0.to_le_bytes().to_vec();
    body.extend_from_slice(&std::process::id().to_le_bytes());
    body.extend_from_slice(&message_bytes_max.to_le_bytes());
    (first(WELCOME, body.len()), body)
}

/// Returns what the server says to a client that it does not let in.
pub(crate) fn refusal(why: &str) -> ([u8; LANE_HEADER_BYTES], Vec<u8>) {
    let body = why.as_bytes()[..why.len().min(REFUSAL_BYTES_MAX)].to_vec();
    (first(REFUSED, body.len()), body)
}

/// Maximum length of the text of a refusal.
const REFUSAL_BYTES_MAX: usize = 1024;

fn first(kind: u8, len: usize) -> [u8; LANE_HEADER_BYTES] {
    let mut header = [0; LANE_HEADER_BYTES];
    header[0] = kind;
    header[16..].copy_from_slice(&(len as u64).to_le_bytes());
    header
}

/// What a server has said first: its id, the number of its process, and the maximum length of a
/// message. Or the text of its refusal.
pub(crate) type Welcome = Result<(ServerId, u32, u64), String>;

/// Reads what a server has said first.
pub(crate) fn read_welcome(message: &[u8]) -> Option<Welcome> {
    let (header, body) = message.split_at_checked(LANE_HEADER_BYTES)?;
    match *header.first()? {
        WELCOME => {
            let (id, rest) = body.split_first_chunk()?;
            let (pid, max) = rest.split_first_chunk()?;
            let max = u64::from_le_bytes(<[u8; 8]>::try_from(max).ok()?);
            Some(Ok((ServerId(u128::from_le_bytes(*id)), u32::from_le_bytes(*pid), max)))
        }
        REFUSED => Some(Err(String::from_utf8_lossy(body).into_owned())),
        _ => None,
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    fn message(body: &[u8]) -> Vec<u8> {
        let mut message = vec![9; LANE_HEADER_BYTES];
        message[16..].copy_from_slice(&(body.len() as u64).to_le_bytes());
        message.extend_from_slice(body);
        message
    }

    #[test]
    fn messages_come_whole_wherever_the_stream_is_cut() {
        let messages = [message(b""), message(b"one"), message(&[7; 60]), message(b"")];
        let bytes = messages.concat();
        for piece in 1..=bytes.len() {
            let mut stream = Stream::new(Vec::new(), 60);
            let (mut received, mut next) = (Vec::new(), Vec::new());
            for part in bytes.chunks(piece) {
                stream.arriving().extend_from_slice(part);
                loop {
                    let has = stream.has_message();
                    assert_eq!(stream.next(&mut next), Ok(has));
                    if !has {
                        break;
                    }
                    received.push(next.clone());
                }
            }
            assert_eq!(received, messages, "{piece}");
        }
    }

    #[test]
    fn a_length_that_is_too_long_is_an_error_that_stays() {
        let mut stream = Stream::new(message(&[1; 61]), 60);
        for _ in 0..2 {
            assert!(stream.has_message());
            assert_eq!(stream.next(&mut Vec::new()), Err(LaneError::TooLong(61)));
        }
    }
}
