//! Authentication: both sides prove that they know the same key, and neither sends it.
//!
//! ```text
//!  client                                             listener
//!  Hello ─────────────────────────────────────────►            (I have a key)
//!        ◄───────────────────────────────────────── Challenge  nonce L
//!  Answer  nonce C, HMAC(key, "client" L C) ───────►           checked: else Refused
//!        ◄───────────────────────────────────────── Welcome    HMAC(key, "listener" L C)
//!  checked
//! ```
//!
//! The MAC is HMAC-SHA-256. Four rules make the exchange safe:
//!
//! - The digests of the two sides include a different word, so no digest can be sent back to the
//!   side that made it.
//! - Each digest depends on both nonces, so it is useless in another handshake.
//! - Digests are compared in constant time.
//! - Before the check, no byte from the peer is decoded, and the peer can make us allocate at most
//!   80 bytes. Each message is accepted once and in this order. A peer that repeats a message or
//!   sends another one is cut off.
//!
//! What it does not provide: nothing is encrypted, and an attacker who can change packets on the
//! way can change them after the handshake. A man in the middle can relay the handshake between a
//! client and a listener, as with every scheme of this kind.

use std::{fmt, io};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::message::MessageKind;
use crate::os::random;

/// Length of a nonce in bytes.
const NONCE: usize = 32;
/// Length of a digest in bytes.
const DIGEST: usize = 32;

/// Maximum length of a message of the handshake.
pub(crate) const LEN_MAX: u64 = (NONCE + DIGEST) as u64;

/// The secret that both sides of a connection know.
///
/// It can be empty. Both sides then still authenticate. It cannot be printed or serialized, so a
/// program that wants to send it has to handle the bytes explicitly.
///
/// ```
/// use executor::AuthKey;
///
/// let key = AuthKey::random()?;
/// let same = AuthKey::new(key.as_bytes());
/// assert!(key == same && format!("{key:?}") == "AuthKey(…)");
/// # Ok::<_, std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct AuthKey(Box<[u8]>);

impl AuthKey {
    /// Makes a key of these bytes. 32 random bytes are as strong as a key gets.
    pub fn new(bytes: impl AsRef<[u8]>) -> Self {
        AuthKey(bytes.as_ref().into())
    }

    /// Makes a key of 32 random bytes.
    ///
    /// # Errors
    /// If the system has no random numbers yet.
    pub fn random() -> io::Result<Self> {
        Ok(AuthKey(random::bytes::<32>()?.into()))
    }

    /// Returns the bytes, to be given to the other side.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns a key that only those know who know this one, and who share `session` with this
    /// side. A digest made with it proves nothing in another session.
    pub(crate) fn bound_to(&self, session: &[u8]) -> AuthKey {
        let key = Sha256::digest(&self.0);
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("keys of HMAC have any length");
        mac.update(b"executor session");
        mac.update(session);
        AuthKey(mac.finalize().into_bytes().to_vec().into())
    }

    /// Returns the MAC of one side over both nonces.
    fn digest(&self, side: Side, listener: &[u8; NONCE], client: &[u8; NONCE]) -> Hmac<Sha256> {
        // Use the digest of the key, not the key itself: HMAC pads short keys with zeros, so it
        // would take an empty key and a key of one zero byte for the same.
        let key = Sha256::digest(&self.0);
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("keys of HMAC have any length");
        mac.update(match side {
            Side::Client => b"executor client  ",
            Side::Listener => b"executor listener",
        });
        mac.update(listener);
        mac.update(client);
        mac
    }
}

impl PartialEq for AuthKey {
    /// Compares the digests of the keys in constant time.
    fn eq(&self, other: &Self) -> bool {
        let own = self.digest(Side::Client, &[0; NONCE], &[0; NONCE]).finalize().into_bytes();
        other.digest(Side::Client, &[0; NONCE], &[0; NONCE]).verify_slice(&own).is_ok()
    }
}

impl Eq for AuthKey {}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthKey(…)")
    }
}

#[derive(Clone, Copy)]
enum Side {
    Client,
    Listener,
}

/// The reason why authentication failed.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The peer does not know the key.
    #[error("the peer's key is another one")]
    WrongKey,
    /// The peer did not accept our proof: it has a different key or none.
    #[error("the peer has refused: its key is another one")]
    Refused,
    /// One side has a key, and the other has none.
    #[error(
        "the peer does not authenticate: one side has a key and the other has none, or it speaks another protocol"
    )]
    NotAsked,
    /// The peer did not authenticate within the timeout.
    #[error("the peer did not authenticate in time")]
    TimedOut,
    /// The peer closed the connection during the handshake.
    #[error("the peer closed the connection before it was authenticated")]
    Closed,
}

crate::debug::debug_is_display!(AuthError);

/// The next action of a side.
///
/// There is no step that only waits. Each message of the peer brings the handshake nearer to its
/// end or ends it. So the handshake is over after a fixed number of messages, even if the peer
/// keeps sending.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Expect the next message.
    Listen,
    /// Send a message and expect the next one.
    Say(MessageKind, Vec<u8>),
    /// Send the last message. The peer is authenticated.
    SayAndBelieve(MessageKind, Vec<u8>),
    /// The peer is authenticated.
    Believe,
    /// Send the last message. The peer is not authenticated.
    SayAndFail(MessageKind, AuthError),
}

/// The step after a message that is not expected in the current state.
const OUT_OF_TURN: Step = Step::SayAndFail(MessageKind::Refused, AuthError::NotAsked);

/// The listener's side of a handshake, as a state machine: messages in, messages out.
///
/// Each state is entered once and in this order. A message in the wrong state ends the handshake,
/// even if it would have been right earlier.
pub(crate) enum Listening {
    /// Expects a hello.
    Challenged {
        nonce: [u8; NONCE],
    },
    /// Expects an answer.
    Greeted {
        nonce: [u8; NONCE],
    },
    Over,
}

impl Listening {
    /// Starts a handshake with a challenge.
    pub(crate) fn begin() -> io::Result<(Self, (MessageKind, Vec<u8>))> {
        let nonce = random::bytes()?;
        Ok((Listening::Challenged { nonce }, (MessageKind::Challenge, nonce.to_vec())))
    }

    pub(crate) fn hear(&mut self, key: &AuthKey, kind: MessageKind, said: &[u8]) -> Step {
        // The state is `Over` unless the message leads to the next state.
        match (std::mem::replace(self, Listening::Over), kind) {
            (Listening::Challenged { nonce }, MessageKind::Hello) if said.is_empty() => {
                *self = Listening::Greeted { nonce };
                Step::Listen
            }
            (Listening::Greeted { nonce }, MessageKind::Answer) => {
                let Some((client, digest)) = nonce_and_digest(said) else { return OUT_OF_TURN };
                match key.digest(Side::Client, &nonce, client).verify_slice(digest) {
                    Ok(()) => {
                        let welcome =
                            key.digest(Side::Listener, &nonce, client).finalize().into_bytes();
                        Step::SayAndBelieve(MessageKind::Welcome, welcome.to_vec())
                    }
                    Err(_) => Step::SayAndFail(MessageKind::Refused, AuthError::WrongKey),
                }
            }
            _ => OUT_OF_TURN,
        }
    }
}

/// The client's side of a handshake, as a state machine.
pub(crate) enum Asking {
    /// Expects a challenge.
    Begun,
    /// Expects a welcome.
    Answered {
        listener: [u8; NONCE],
        client: [u8; NONCE],
    },
    Over,
}

impl Asking {
    pub(crate) fn begin() -> (Self, (MessageKind, Vec<u8>)) {
        (Asking::Begun, (MessageKind::Hello, Vec::new()))
    }

    pub(crate) fn hear(
        &mut self,
        key: &AuthKey,
        kind: MessageKind,
        said: &[u8],
    ) -> io::Result<Step> {
        Ok(match (std::mem::replace(self, Asking::Over), kind) {
            (Asking::Begun, MessageKind::Challenge) => {
                let Ok(listener) = <[u8; NONCE]>::try_from(said) else { return Ok(OUT_OF_TURN) };
                let client = random::bytes()?;
                let digest = key.digest(Side::Client, &listener, &client).finalize().into_bytes();
                *self = Asking::Answered { listener, client };
                Step::Say(MessageKind::Answer, [&client[..], &digest[..]].concat())
            }
            (Asking::Answered { listener, client }, MessageKind::Welcome) => {
                match key.digest(Side::Listener, &listener, &client).verify_slice(said) {
                    Ok(()) => Step::Believe,
                    Err(_) => Step::SayAndFail(MessageKind::Refused, AuthError::WrongKey),
                }
            }
            (Asking::Answered { .. }, MessageKind::Refused) => {
                Step::SayAndFail(MessageKind::Refused, AuthError::Refused)
            }
            _ => OUT_OF_TURN,
        })
    }
}

/// Splits the body of an answer into the client's nonce and its digest.
fn nonce_and_digest(said: &[u8]) -> Option<(&[u8; NONCE], &[u8])> {
    let (nonce, digest) = said.split_first_chunk()?;
    (digest.len() == DIGEST).then_some((nonce, digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a handshake. Returns the result of each side.
    fn meet(
        listener: &AuthKey,
        client: &AuthKey,
    ) -> (Result<(), AuthError>, Result<(), AuthError>) {
        let (mut listening, challenge) = Listening::begin().unwrap();
        let (mut asking, hello) = Asking::begin();
        assert_eq!(listening.hear(listener, hello.0, &hello.1), Step::Listen);
        let Step::Say(kind, answer) = asking.hear(client, challenge.0, &challenge.1).unwrap()
        else {
            panic!()
        };
        match listening.hear(listener, kind, &answer) {
            Step::SayAndBelieve(kind, said) => {
                let Step::Believe = asking.hear(client, kind, &said).unwrap() else { panic!() };
                (Ok(()), Ok(()))
            }
            Step::SayAndFail(kind, error) => {
                let Step::SayAndFail(_, other) = asking.hear(client, kind, &[]).unwrap() else {
                    panic!()
                };
                (Err(error), Err(other))
            }
            _ => panic!(),
        }
    }

    #[test]
    fn the_same_key_opens_and_another_does_not() {
        let (one, other) = (AuthKey::random().unwrap(), AuthKey::random().unwrap());
        assert_eq!(meet(&one, &one.clone()), (Ok(()), Ok(())));
        assert_eq!(meet(&one, &other), (Err(AuthError::WrongKey), Err(AuthError::Refused)));
        let empty = AuthKey::new([]);
        assert_eq!(meet(&empty, &AuthKey::new("")), (Ok(()), Ok(())));
        assert_eq!(meet(&empty, &one).0, Err(AuthError::WrongKey));
    }

    #[test]
    fn a_key_that_is_bound_to_a_session_is_another_key() {
        let key = AuthKey::new("key");
        assert!(key.bound_to(b"one") == key.bound_to(b"one"));
        for other in [key.bound_to(b"two"), AuthKey::new("other").bound_to(b"one"), key.clone()] {
            assert!(key.bound_to(b"one") != other);
        }
    }

    /// Returns a listener's side that has received the hello.
    fn greeted() -> (Listening, (MessageKind, Vec<u8>)) {
        let (mut listening, challenge) = Listening::begin().unwrap();
        assert_eq!(listening.hear(&AuthKey::new(""), MessageKind::Hello, &[]), Step::Listen);
        (listening, challenge)
    }

    #[test]
    fn neither_side_believes_what_it_said_itself_or_what_was_said_before() {
        let key = AuthKey::new("key");
        let (mut listening, challenge) = greeted();
        let answered = || {
            let (mut asking, _) = Asking::begin();
            let Ok(Step::Say(_, answer)) = asking.hear(&key, challenge.0, &challenge.1) else {
                panic!()
            };
            (asking, answer)
        };
        // The client's own digest, in the place of the listener's.
        let (mut asking, answer) = answered();
        let own = asking.hear(&key, MessageKind::Welcome, &answer[NONCE..]).unwrap();
        assert_eq!(own, Step::SayAndFail(MessageKind::Refused, AuthError::WrongKey));
        // An answer to another challenge.
        let (mut later, _) = greeted();
        let step = later.hear(&key, MessageKind::Answer, &answer);
        assert_eq!(step, Step::SayAndFail(MessageKind::Refused, AuthError::WrongKey));
        // A correct answer is accepted once.
        assert!(matches!(
            listening.hear(&key, MessageKind::Answer, &answer),
            Step::SayAndBelieve(..)
        ));
        assert_eq!(listening.hear(&key, MessageKind::Answer, &answer), OUT_OF_TURN);
    }

    #[test]
    fn anything_else_is_refused() {
        let key = AuthKey::new("key");
        for (kind, said) in [
            (MessageKind::Hello, &[][..]),
            (MessageKind::Hello, &[1]),
            (MessageKind::Answer, &[0; 63]),
            (MessageKind::Answer, &[0; 65]),
            (MessageKind::Answer, &[]),
            (MessageKind::Value, &[0; 64]),
            (MessageKind::Challenge, &[0; 32]),
            (MessageKind::Refused, &[]),
        ] {
            assert_eq!(greeted().0.hear(&key, kind, said), OUT_OF_TURN, "{kind:?}");
        }
        for (kind, said) in [
            (MessageKind::Challenge, &[0; 31][..]),
            (MessageKind::Welcome, &[0; 32]),
            (MessageKind::Bytes, &[]),
        ] {
            assert_eq!(Asking::Begun.hear(&key, kind, said).unwrap(), OUT_OF_TURN, "{kind:?}");
        }
    }

    const KINDS: [MessageKind; 8] = [
        MessageKind::Value,
        MessageKind::Bytes,
        MessageKind::More,
        MessageKind::Hello,
        MessageKind::Challenge,
        MessageKind::Answer,
        MessageKind::Welcome,
        MessageKind::Refused,
    ];

    /// Returns how many more messages the state accepts before the handshake ends, whatever they
    /// are.
    fn left_of_listening(state: &Listening) -> usize {
        match state {
            Listening::Challenged { .. } => 2,
            Listening::Greeted { .. } => 1,
            Listening::Over => 0,
        }
    }

    fn left_of_asking(state: &Asking) -> usize {
        match state {
            Asking::Begun => 2,
            Asking::Answered { .. } => 1,
            Asking::Over => 0,
        }
    }

    #[test]
    fn each_message_of_a_peer_brings_the_end_of_a_handshake_nearer() {
        let key = AuthKey::new("key");
        let mut random = Sequence(17);
        let (mut believed, mut failed) = (0, 0);
        for _ in 0..20_000 {
            let (mut listening, challenge) = Listening::begin().unwrap();
            let (mut asking, hello) = Asking::begin();
            // The messages of an honest peer, so that every state is reached. Random ones are mixed
            // in.
            let mut honest = vec![hello, challenge];
            for _ in 0..4 {
                let pick = |random: &mut Sequence, honest: &[(MessageKind, Vec<u8>)]| match random
                    .below(4)
                {
                    0 => {
                        let kind = KINDS[random.below(KINDS.len())];
                        let len = [0, 1, 31, 32, 33, 63, 64, 65][random.below(8)];
                        (kind, vec![random.below(256) as u8; len])
                    }
                    _ => honest[random.below(honest.len())].clone(),
                };
                let (kind, said) = pick(&mut random, &honest);
                let before = left_of_listening(&listening);
                let step = listening.hear(&key, kind, &said);
                let after = left_of_listening(&listening);
                assert!(after < before || before == 0, "{kind:?} {step:?}");
                match step {
                    Step::Listen => assert!(after > 0),
                    Step::Say(..) | Step::Believe => {
                        panic!("a listener has one thing to say: {step:?}")
                    }
                    Step::SayAndBelieve(kind, said) => {
                        assert_eq!(after, 0);
                        believed += 1;
                        honest.push((kind, said));
                    }
                    Step::SayAndFail(..) => {
                        assert_eq!(after, 0);
                        failed += 1;
                    }
                }
                let (kind, said) = pick(&mut random, &honest);
                let before = left_of_asking(&asking);
                let step = asking.hear(&key, kind, &said).unwrap();
                let after = left_of_asking(&asking);
                assert!(after < before || before == 0, "{kind:?} {step:?}");
                match step {
                    Step::Say(kind, said) => {
                        assert!(after > 0);
                        honest.push((kind, said));
                    }
                    Step::Listen | Step::SayAndBelieve(..) => panic!("a client does not: {step:?}"),
                    Step::Believe | Step::SayAndFail(..) => assert_eq!(after, 0),
                }
            }
            assert_eq!((left_of_listening(&listening), left_of_asking(&asking)), (0, 0));
        }
        assert!(believed > 100 && failed > 100, "{believed} {failed}");
    }

    /// A pseudo-random sequence (xorshift).
    struct Sequence(u64);

    impl Sequence {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % end as u64) as usize
        }
    }
}
