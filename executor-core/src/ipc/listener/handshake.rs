//! The two sides of a handshake on a socket. `auth.rs` decides what they say.

use std::time::{Duration, Instant};

use super::super::{
    address::Address,
    auth::{Asking, AuthError, AuthKey, LEN_MAX, Listening, Step},
    endpoint::{Endpoint, Outgoings, Received},
    error::{RecvError, SendError},
    message::MessageKind,
    readiness::{Deadline, deadline_in},
};

/// Default timeout for a handshake. A client applies it from the listener's first message on.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A client in its handshake, on the listener's side.
pub(super) struct Handshake {
    pub(super) end: Endpoint,
    pub(super) peer: Option<Address>,
    pub(super) state: Listening,
    pub(super) deadline: Instant,
}

impl Handshake {
    /// Advances the handshake as far as the client's messages allow. Returns its result if it has
    /// ended.
    pub(super) fn advance(&mut self, key: &AuthKey) -> Option<Result<(), AuthError>> {
        // This loop ends even if the peer never stops sending: the handshake enters no state twice.
        loop {
            let heard = match self.end.receive(LEN_MAX, None, false) {
                Ok(heard) => heard,
                Err(RecvError::Empty) => return None,
                Err(error) => return Some(Err(not_heard(&error))),
            };
            match self.state.hear(key, heard.kind, heard.bytes()) {
                Step::Listen => {}
                Step::Say(kind, said) => {
                    if say(&self.end, kind, &said).is_err() {
                        return Some(Err(AuthError::Closed));
                    }
                }
                Step::SayAndBelieve(kind, said) => {
                    return Some(say(&self.end, kind, &said).map_err(|_| AuthError::Closed));
                }
                Step::Believe => return Some(Ok(())),
                Step::SayAndFail(kind, error) => {
                    let _ = say(&self.end, kind, &[]);
                    return Some(Err(error));
                }
            }
        }
    }
}

/// Runs the client's side of a handshake.
pub(super) fn ask(end: &Endpoint, key: &AuthKey, mut deadline: Deadline) -> Result<(), AuthError> {
    let (mut state, (kind, said)) = Asking::begin();
    say(end, kind, &said).map_err(|_| AuthError::Closed)?;
    loop {
        let heard: Received =
            end.receive(LEN_MAX, deadline, true).map_err(|error| not_heard(&error))?;
        // The listener is now calling `accept`, and a listener that accepts answers at once. So a
        // timeout applies from here on, even if the caller gave none.
        deadline = deadline.into_iter().chain(deadline_in(Some(HANDSHAKE_TIMEOUT))).min();
        match state.hear(key, heard.kind, heard.bytes()).map_err(|_| AuthError::Closed)? {
            Step::Say(kind, said) => say(end, kind, &said).map_err(|_| AuthError::Closed)?,
            Step::Believe => return Ok(()),
            Step::SayAndFail(kind, error) => {
                let _ = say(end, kind, &[]);
                return Err(error);
            }
            Step::SayAndBelieve(..) | Step::Listen => {}
        }
    }
}

/// Sends a message of the handshake without waiting. There are so few of them that a socket without
/// space for one belongs to a peer that does not read.
pub(super) fn say(end: &Endpoint, kind: MessageKind, said: &[u8]) -> Result<(), SendError> {
    end.send(kind, Outgoings::Borrowed(said), &[], Some(Instant::now()))
}

fn not_heard(error: &RecvError) -> AuthError {
    match error {
        RecvError::Empty => AuthError::TimedOut,
        RecvError::Closed | RecvError::Truncated | RecvError::Io(_) => AuthError::Closed,
        _ => AuthError::NotAsked,
    }
}
