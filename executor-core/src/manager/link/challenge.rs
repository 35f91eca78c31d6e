//! The key challenge, as messages on a link. `ipc/auth.rs` decides what is said.
//!
//! ```text
//!  │ kind │ length │ nonce, digest: at most 64 bytes │
//! ```
//!
//! Each side says at most two messages, and each is expected in one place only. So the exchange
//! ends after a fixed number of messages, whatever the peer sends.

use std::io;

use crate::ipc::{AUTH_BYTES_MAX, Asking, AuthError, AuthKey, AuthStep, Listening, MessageKind};

/// Maximum length of a message: its kind, its length, and what it says.
pub(crate) const SAID_BYTES_MAX: usize = 2 + AUTH_BYTES_MAX as usize;

enum Side {
    Asking(Asking),
    Listening(Listening),
}

/// One side of the challenge.
pub(crate) struct Challenge {
    key: AuthKey,
    side: Side,
}

/// What to do after a message of the peer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Listen on.
    Listen,
    /// Send this, and listen on.
    Say(Vec<u8>),
    /// The peer knows the key. Send this, if there is anything.
    Believe(Vec<u8>),
    /// Send this if possible, and close the connection.
    Fail(Vec<u8>, AuthError),
}

impl Challenge {
    /// Begins as the one who connects. Also returns what to say first.
    pub(crate) fn ask(key: AuthKey) -> (Self, Vec<u8>) {
        let (asking, (kind, said)) = Asking::begin();
        (Challenge { key, side: Side::Asking(asking) }, message(kind, &said))
    }

    /// Begins as the one who is connected to. Also returns what to say first.
    pub(crate) fn listen(key: AuthKey) -> io::Result<(Self, Vec<u8>)> {
        let (listening, (kind, said)) = Listening::begin()?;
        Ok((Challenge { key, side: Side::Listening(listening) }, message(kind, &said)))
    }

    /// Takes a whole message of the peer.
    pub(crate) fn hear(&mut self, heard: &[u8]) -> io::Result<Answer> {
        let strange = Answer::Fail(Vec::new(), AuthError::NotAsked);
        let Some((&[kind, len], said)) = heard.split_first_chunk() else { return Ok(strange) };
        let Some(kind) = MessageKind::from_byte(kind) else { return Ok(strange) };
        if usize::from(len) != said.len() {
            return Ok(strange);
        }
        let step = match &mut self.side {
            Side::Asking(asking) => asking.hear(&self.key, kind, said)?,
            Side::Listening(listening) => listening.hear(&self.key, kind, said),
        };
        Ok(match step {
            AuthStep::Listen => Answer::Listen,
            AuthStep::Say(kind, said) => Answer::Say(message(kind, &said)),
            AuthStep::SayAndBelieve(kind, said) => Answer::Believe(message(kind, &said)),
            AuthStep::Believe => Answer::Believe(Vec::new()),
            AuthStep::SayAndFail(kind, error) => Answer::Fail(message(kind, &[]), error),
        })
    }
}

fn message(kind: MessageKind, said: &[u8]) -> Vec<u8> {
    // What is said has at most 64 bytes.
    let mut message = vec![kind as u8, said.len() as u8];
    message.extend_from_slice(said);
    message
}

/// Returns the length of the message at the front of a stream, or `None` if it has not arrived
/// whole.
///
/// # Errors
/// If no message is that long.
#[cfg(any(feature = "tls", test, fuzzing))]
pub(crate) fn whole(stream: &[u8]) -> Result<Option<usize>, AuthError> {
    let Some(&len) = stream.get(1) else { return Ok(None) };
    let len = 2 + usize::from(len);
    match len > SAID_BYTES_MAX {
        true => Err(AuthError::NotAsked),
        false => Ok((stream.len() >= len).then_some(len)),
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    /// Runs a challenge. Returns how it ended for the listener and for the one who asks.
    fn meet(listener: &AuthKey, asking: &AuthKey) -> (Answer, Answer) {
        let (mut listening, challenge) = Challenge::listen(listener.clone()).unwrap();
        let (mut asking, hello) = Challenge::ask(asking.clone());
        assert_eq!(listening.hear(&hello).unwrap(), Answer::Listen);
        let Answer::Say(answer) = asking.hear(&challenge).unwrap() else { panic!() };
        assert!(answer.len() <= SAID_BYTES_MAX);
        let of_listener = listening.hear(&answer).unwrap();
        let (Answer::Believe(said) | Answer::Fail(said, _)) = &of_listener else { panic!() };
        let of_asking = asking.hear(said).unwrap();
        (of_listener, of_asking)
    }

    #[test]
    fn the_same_key_in_the_same_session_opens_and_nothing_else() {
        let key = AuthKey::new("key");
        let (listener, asking) = meet(&key.bound_to(b"one"), &key.bound_to(b"one"));
        assert!(matches!(listener, Answer::Believe(_)) && asking == Answer::Believe(Vec::new()));
        for other in [AuthKey::new("other").bound_to(b"one"), key.bound_to(b"two"), key.clone()] {
            let (listener, asking) = meet(&key.bound_to(b"one"), &other);
            assert!(matches!(listener, Answer::Fail(_, AuthError::WrongKey)));
            assert!(matches!(asking, Answer::Fail(_, AuthError::Refused)));
        }
    }

    #[test]
    fn anything_else_ends_it() {
        let key = AuthKey::new("key");
        for heard in [&b""[..], &[4], &[99, 0], &[4, 1], &[4, 0, 0], &[1, 0]] {
            let (mut listening, _) = Challenge::listen(key.clone()).unwrap();
            let (mut asking, _) = Challenge::ask(key.clone());
            for side in [&mut listening, &mut asking] {
                let answer = side.hear(heard).unwrap();
                assert!(
                    matches!(answer, Answer::Fail(_, AuthError::NotAsked)) || heard == [4, 0],
                    "{heard:?}"
                );
            }
        }
    }
}
