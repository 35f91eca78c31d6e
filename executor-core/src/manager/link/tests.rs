//! Meetings and messages over TCP: who is let in, and what a peer can do that keeps to nothing.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use super::{
    LinkError, LinkReceiver, LinkSender, MeetError, Progress, Waits,
    far::{FarEnd, Meeting},
    stream::{read_welcome, refusal, welcome},
    tls::{Identity, TlsClient, TlsServer, Trust, pem},
    wait_for,
};
use crate::{
    ipc::{AuthError, AuthKey},
    manager::client::ServerId,
    os::fork::NotInherited,
    transport::ring::lane::{LANE_HEADER_BYTES, LaneError},
};

const KNOCK: [u8; 8] = *b"knock me";

/// Long enough for every meeting on a busy machine.
fn late() -> Option<Instant> {
    Instant::now().checked_add(Duration::from_secs(60))
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn not_inherited(socket: TcpStream) -> NotInherited {
    NotInherited::new(OwnedFd::from(socket))
}

type Met = Result<FarEnd, MeetError>;

/// What the sides of a meeting bring along.
struct Sides {
    server: TlsServer,
    client: TlsClient,
    keys: (&'static str, &'static str),
}

impl Sides {
    fn new(identity: &Identity, trust: &Trust) -> Self {
        Sides {
            server: TlsServer::new(identity).unwrap(),
            client: TlsClient::new(trust).unwrap(),
            keys: ("key", "key"),
        }
    }

    fn pinned() -> Self {
        let identity = Identity::generate().unwrap();
        Sides::new(&identity, &Trust::fingerprint(identity.fingerprint()))
    }

    fn server(&self, socket: TcpStream) -> Meeting {
        Meeting::accept(not_inherited(socket), &self.server, AuthKey::new(self.keys.0)).unwrap()
    }

    fn client(&self, socket: TcpStream) -> Meeting {
        let key = AuthKey::new(self.keys.1);
        Meeting::connect(not_inherited(socket), &self.client, key, KNOCK).unwrap()
    }

    /// Lets both sides meet over these sockets. Returns what the client and the server have of it.
    fn meet_over(&self, (client, server): (TcpStream, TcpStream)) -> (Met, Met) {
        let (client, server) = (self.client(client), self.server(server));
        thread::scope(|scope| {
            let server = scope.spawn(|| server.wait(late()));
            (client.wait(late()), server.join().unwrap())
        })
    }

    fn meet(&self) -> (Met, Met) {
        self.meet_over(sockets())
    }

    /// Returns the ends of both sides of a meeting that succeeds.
    fn met(&self, max: u64) -> ((LinkSender, LinkReceiver), (LinkSender, LinkReceiver)) {
        let (client, server) = self.meet();
        let (client, server) = (client.unwrap(), server.unwrap());
        assert_eq!(server.knock(), &KNOCK);
        (client.into_ends(u64::MAX), server.into_ends(max))
    }
}

fn header(len: u64) -> [u8; LANE_HEADER_BYTES] {
    let mut header = [7; LANE_HEADER_BYTES];
    header[16..].copy_from_slice(&len.to_le_bytes());
    header
}

fn socket_of(receiver: &LinkReceiver) -> std::os::fd::BorrowedFd<'_> {
    let LinkReceiver::Far(far) = receiver else { panic!("it is far") };
    far.socket().get().unwrap()
}

/// Receives the next message, while the sender sends the rest.
fn next(
    sender: Option<&mut LinkSender>,
    receiver: &mut LinkReceiver,
) -> Result<Vec<u8>, LinkError> {
    let (mut message, mut sender) = (Vec::new(), sender);
    loop {
        receiver.awake();
        if receiver.receive(&mut message)? {
            return Ok(message);
        }
        match &mut sender {
            Some(sender) if !sender.is_flushed() => drop(sender.flush()?),
            _ => {
                let came = wait_for(socket_of(receiver), rustix::event::PollFlags::IN, late());
                assert!(came.unwrap(), "nothing came");
            }
        }
    }
}

#[test]
fn messages_of_all_lengths_arrive_in_both_directions() {
    let ((mut to_server, mut from_server), (mut to_client, mut from_client)) =
        Sides::pinned().met(1 << 30);
    for len in [0, 1, 7, 8, 100, 16_300, 16_384, 40_000, 65_536, 65_537, 3_000_000] {
        let body: Vec<u8> = (0..len).map(|at| ((at * 31) >> 3) as u8).collect();
        for (sender, receiver) in
            [(&mut to_server, &mut from_client), (&mut to_client, &mut from_server)]
        {
            assert!(receiver.is_empty() && receiver.announce_sleep());
            sender.send(&header(len as u64), &body[..]).unwrap();
            sender.send(&header(3), &b"end"[..]).unwrap();
            assert!(!sender.must_wake(), "its messages wake the other side");
            let first = next(Some(sender), receiver).unwrap();
            assert!(first == [&header(len as u64)[..], &body].concat(), "{len}");
            let second = next(Some(sender), receiver).unwrap();
            assert_eq!(second, [&header(3)[..], b"end"].concat());
            assert!(sender.flush().unwrap() && sender.is_flushed());
            assert_eq!(sender.waiting_bytes(), 0);
        }
    }
}

#[test]
fn many_small_messages_take_one_write_and_come_one_after_the_other() {
    let ((mut to_server, _from_server), (_to_client, mut from_client)) = Sides::pinned().met(100);
    for number in 0..100_u8 {
        to_server.send(&header(1), vec![number]).unwrap();
    }
    assert!(!to_server.is_flushed(), "nothing was written so far");
    assert!(!to_server.must_wake() && to_server.is_flushed());
    for number in 0..100 {
        assert_eq!(next(None, &mut from_client).unwrap()[LANE_HEADER_BYTES..], [number]);
    }
}

#[test]
fn who_waits_in_the_socket_gets_what_comes_and_does_not_wait_for_long() {
    let ((_to_server, mut from_server), (mut to_client, _from_client)) = Sides::pinned().met(100);
    let mut message = Vec::new();
    assert!(!from_server.receive(&mut message).unwrap());
    from_server.prepare_to_wait().unwrap();
    assert!(!from_server.wait(), "nothing comes");
    let waits = thread::spawn(move || {
        while !from_server.wait() {}
        assert!(from_server.receive(&mut message).unwrap());
        // It has taken everything, so another look costs no system call.
        assert!(!from_server.receive(&mut Vec::new()).unwrap());
        (message, from_server)
    });
    to_client.send(&header(1), vec![5]).unwrap();
    let _ = to_client.must_wake();
    let (message, mut from_server) = waits.join().unwrap();
    assert_eq!(message[LANE_HEADER_BYTES..], [5]);
    // The end is something that comes as well.
    let LinkSender::Far(far) = &to_client else { panic!("it is far") };
    rustix::net::shutdown(far.socket().get().unwrap(), rustix::net::Shutdown::Both).unwrap();
    while !from_server.wait() {}
    assert_eq!(from_server.receive(&mut Vec::new()), Err(LinkError::Closed));
}

#[test]
fn what_a_peer_does_not_read_waits_and_blocks_nobody() {
    let ((mut to_server, _from_server), (_to_client, mut from_client)) =
        Sides::pinned().met(1 << 30);
    let body = vec![5; 1 << 20];
    let mut sent = 0;
    while to_server.waiting_bytes() < 4 << 20 {
        to_server.send(&header(1 << 20), &body[..]).unwrap();
        let _ = to_server.must_wake();
        sent += 1;
    }
    assert!(to_server.wants_write() && !to_server.is_flushed());
    // Small ones do not overtake.
    to_server.send(&header(0), &[][..]).unwrap();
    for _ in 0..sent {
        assert!(next(Some(&mut to_server), &mut from_client).unwrap()[LANE_HEADER_BYTES..] == body);
    }
    assert_eq!(next(Some(&mut to_server), &mut from_client).unwrap(), header(0));
    assert!(!to_server.wants_write());
}

#[test]
fn one_long_message_does_not_take_all_turns() {
    const LEN: usize = 64 << 20;
    let ((mut to_server, _from_server), (_to_client, mut from_client)) =
        Sides::pinned().met(LEN as u64);
    // The kernel takes what fits, and the rest as fast as it is read.
    let sends = thread::spawn(move || {
        let mut turns = 1;
        to_server.send(&header(LEN as u64), vec![5; LEN]).unwrap();
        while !to_server.flush().unwrap() {
            turns += 1;
            let LinkSender::Far(far) = &to_server else { panic!() };
            let socket = far.socket().get().unwrap();
            assert!(wait_for(socket, rustix::event::PollFlags::OUT, late()).unwrap());
        }
        (to_server, turns)
    });
    let (mut message, mut turns) = (Vec::new(), 1);
    let at_least = LEN / (2 << 20);
    loop {
        from_client.awake();
        if from_client.receive(&mut message).unwrap() {
            break;
        }
        turns += 1;
        let came = wait_for(socket_of(&from_client), rustix::event::PollFlags::IN, late());
        assert!(came.unwrap());
    }
    assert!(message[LANE_HEADER_BYTES..] == vec![5; LEN]);
    assert!(turns >= at_least, "{turns} turns to receive it");
    let (_to_server, turns) = sends.join().unwrap();
    assert!(turns >= at_least, "{turns} turns to send it");
}

#[test]
fn a_length_that_is_too_long_or_never_comes_costs_no_memory() {
    let sides = Sides::pinned();
    let ((mut to_server, _from_server), (_to_client, mut from_client)) = sides.met(100);
    to_server.send(&header(101), vec![0; 101]).unwrap();
    let _ = to_server.must_wake();
    assert_eq!(next(None, &mut from_client), Err(LinkError::Lane(LaneError::TooLong(101))));

    let ((mut to_server, _from_server), (_to_client, mut from_client)) = sides.met(u64::MAX);
    to_server.send(&header(u64::MAX), &b"an absurd length"[..]).unwrap();
    let _ = to_server.must_wake();
    assert!(wait_for(socket_of(&from_client), rustix::event::PollFlags::IN, late()).unwrap());
    from_client.awake();
    assert_eq!(from_client.receive(&mut Vec::new()), Ok(false));
    let LinkReceiver::Far(far) = &from_client else { panic!() };
    assert!(far.memory() < 128 * 1024, "nothing was reserved for it");
}

#[test]
fn the_end_comes_behind_what_was_sent_before_it() {
    let ((mut to_server, from_server), (to_client, mut from_client)) = Sides::pinned().met(100);
    to_server.send(&header(4), &b"last"[..]).unwrap();
    let _ = to_server.must_wake();
    drop((to_server, from_server));
    assert_eq!(&next(None, &mut from_client).unwrap()[LANE_HEADER_BYTES..], b"last");
    assert_eq!(next(None, &mut from_client), Err(LinkError::Closed));
    assert!(!from_client.announce_sleep(), "the end is told again, and not slept through");
    assert_eq!(next(None, &mut from_client), Err(LinkError::Closed));
    drop(to_client);
}

#[test]
fn a_server_with_another_fingerprint_is_not_trusted() {
    let (identity, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let (client, server) = Sides::new(&identity, &Trust::fingerprint(other.fingerprint())).meet();
    let MeetError::Untrusted(text) = client.unwrap_err() else { panic!() };
    assert!(text.contains(&identity.fingerprint().to_string()), "{text}");
    assert!(text.contains(&other.fingerprint().to_string()), "{text}");
    assert!(matches!(server.unwrap_err(), MeetError::Tls(_)));
}

#[test]
fn certificates_are_trusted_for_their_name_and_their_issuer() {
    let (identity, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let trust = |of: &Identity, name| Trust::certificates(of.to_pem().0.as_bytes(), name).unwrap();
    let (client, server) = Sides::new(&identity, &trust(&identity, "executor-manager")).meet();
    assert!(client.is_ok() && server.is_ok());
    for (of, name) in [(&identity, "example.org"), (&other, "executor-manager")] {
        let (client, server) = Sides::new(&identity, &trust(of, name)).meet();
        assert!(matches!(client.unwrap_err(), MeetError::Untrusted(_)), "{name}");
        assert!(server.is_err());
    }
}

#[test]
fn a_certificate_that_issues_others_is_trusted_by_its_fingerprint_and_not_as_a_certificate() {
    let mut parameters = rcgen::CertificateParams::new(["server.example".to_owned()]).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = pem("CERTIFICATE", parameters.self_signed(&key).unwrap().der());
    let key = pem("PRIVATE KEY", &key.serialize_der());
    let identity = Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
    let (client, _) = Sides::new(&identity, &Trust::fingerprint(identity.fingerprint())).meet();
    assert!(client.is_ok());
    let trust = Trust::certificates(certificate.as_bytes(), "server.example").unwrap();
    let MeetError::Untrusted(text) = Sides::new(&identity, &trust).meet().0.unwrap_err() else {
        panic!()
    };
    assert!(text.contains("Ca"), "{text}");
}

#[test]
fn mg24_another_key_is_refused_and_both_sides_say_so() {
    let sides = Sides { keys: ("key", "other"), ..Sides::pinned() };
    let (client, server) = sides.meet();
    assert_eq!(server.unwrap_err(), MeetError::Auth(AuthError::WrongKey));
    assert_eq!(client.unwrap_err(), MeetError::Auth(AuthError::Refused));
}

#[test]
fn a_server_that_does_not_know_the_key_is_refused_although_it_has_the_certificate() {
    // It cannot refuse the client, since it plays the server: it says that everything is well.
    let sides = Sides::pinned();
    let (client, server) = sockets();
    let client = sides.client(client);
    let config = std::sync::Arc::clone(&sides.server.0);
    let played = thread::spawn(move || {
        let tls = rustls::ServerConnection::new(config).unwrap();
        let mut tls = rustls::StreamOwned::new(tls, server);
        // A challenge, and behind the hello and the answer any digest.
        tls.write_all(&[&[5, 32][..], &[1; 32]].concat()).unwrap();
        let mut heard = [0; 2 + 2 + 64];
        tls.read_exact(&mut heard).unwrap();
        tls.write_all(&[&[7, 32][..], &[2; 32]].concat()).unwrap();
        tls.flush().unwrap();
        let mut rest = Vec::new();
        let _ = tls.read_to_end(&mut rest);
        rest
    });
    assert_eq!(client.wait(late()).unwrap_err(), MeetError::Auth(AuthError::WrongKey));
    let rest = played.join().unwrap();
    assert!(rest.len() <= 2, "the client has said nothing but that: {rest:?}");
}

#[test]
fn a_challenge_cannot_be_passed_on_between_two_sessions() {
    // Somebody between both sides whom the client trusts by mistake. He does not know the key.
    let (identity, his) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let server_sides = Sides::new(&identity, &Trust::fingerprint(identity.fingerprint()));
    let client_sides = Sides::new(&his, &Trust::fingerprint(his.fingerprint()));
    let ((client, from_client), (to_server, server)) = (sockets(), sockets());
    let (client, server) = (client_sides.client(client), server_sides.server(server));
    let (his_config, to_real) = (client_sides.server.0, server_sides.client);
    thread::scope(|scope| {
        let client = scope.spawn(|| client.wait(late()));
        let server = scope.spawn(|| server.wait(late()));
        let one = rustls::ServerConnection::new(his_config).unwrap();
        let mut one = rustls::StreamOwned::new(one, from_client);
        let config = to_real.for_one_meeting().0;
        let other = rustls::ClientConnection::new(config, to_real.name.clone()).unwrap();
        let mut other = rustls::StreamOwned::new(other, to_server);
        let (mut hello, mut challenge, mut answer) = ([0; 2], [0; 34], [0; 66]);
        one.read_exact(&mut hello).unwrap();
        other.write_all(&hello).unwrap();
        other.read_exact(&mut challenge).unwrap();
        one.write_all(&challenge).unwrap();
        one.read_exact(&mut answer).unwrap();
        other.write_all(&answer).unwrap();
        assert_eq!(server.join().unwrap().unwrap_err(), MeetError::Auth(AuthError::WrongKey));
        drop((one, other));
        assert!(client.join().unwrap().is_err());
    });
}

#[test]
fn a_client_of_tls_1_2_is_refused() {
    let sides = Sides::pinned();
    let (mut client, server) = sockets();
    let mut hello = vec![3, 3];
    hello.extend([9; 32]);
    // No session, one cipher, no compression, and its curves and algorithms of signatures.
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 24]);
    hello.extend([0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3, 0, 11, 0, 2, 1, 0, 0, 23]);
    hello.extend([0, 0]);
    let at = hello.len() - 26 - 2;
    hello[at..at + 2].copy_from_slice(&26_u16.to_be_bytes());
    let mut record = vec![22, 3, 1, 0, hello.len() as u8 + 4, 1, 0, 0, hello.len() as u8];
    record.extend(hello);
    client.write_all(&record).unwrap();
    let error = sides.server(server).wait(late()).unwrap_err();
    assert!(error.to_string().contains("SupportedVersions"), "{error}");
    let mut alert = Vec::new();
    let _ = client.read_to_end(&mut alert);
    assert_eq!(alert.get(5..), Some(&[2, 70][..]), "fatal: the version of the protocol");
}

#[test]
fn a_peer_without_tls_is_refused_at_once() {
    let sides = Sides::pinned();
    for said in [&b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"[..], &[0; 100], b"xq\x04\x00"] {
        let (mut client, server) = sockets();
        client.write_all(said).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let error = sides.server(server).wait(late()).unwrap_err();
        assert!(matches!(error, MeetError::Tls(_) | MeetError::Closed), "{error}");

        let (client, mut server) = sockets();
        server.write_all(said).unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        let error = sides.client(client).wait(late()).unwrap_err();
        assert!(matches!(error, MeetError::Tls(_) | MeetError::Closed), "{error}");
    }
}

#[test]
fn a_peer_that_says_nothing_is_waited_for_until_the_deadline_only() {
    let sides = Sides::pinned();
    let soon = || Instant::now().checked_add(Duration::from_millis(10));
    let (client, server) = sockets();
    let mut meeting = sides.server(server);
    let begun = meeting.advance().unwrap();
    assert!(matches!(begun, Progress::Waits(Waits::ToRead)));
    assert_eq!(meeting.wait(soon()).unwrap_err(), MeetError::TimedOut);
    drop(client);
    let (client, _server) = sockets();
    assert_eq!(sides.client(client).wait(soon()).unwrap_err(), MeetError::TimedOut);
}

#[test]
fn who_sends_without_end_before_it_is_known_is_cut_off() {
    let sides = Sides::pinned();
    let (client, server) = sockets();
    let mut meeting = sides.server(server);
    let config = std::sync::Arc::clone(&sides.client.for_one_meeting().0);
    let name = sides.client.name.clone();
    let flood = thread::spawn(move || {
        let tls = rustls::ClientConnection::new(config, name).unwrap();
        let mut tls = rustls::StreamOwned::new(tls, client);
        // The first bytes look like the beginning of a message.
        while tls.write_all(&[3; 10_000]).is_ok() {}
    });
    let error = loop {
        match meeting.advance() {
            Ok(Progress::Waits(_)) => {
                let socket = meeting.socket().get().unwrap();
                assert!(wait_for(socket, rustix::event::PollFlags::IN, late()).unwrap());
            }
            Ok(Progress::Met(_)) => panic!("it did not meet anybody"),
            Err(error) => break error,
        }
    };
    assert_eq!(error, MeetError::Auth(AuthError::NotAsked));
    drop(meeting);
    flood.join().unwrap();
}

/// Passes on bytes in both directions: `piece` at a time, and changed by `change`, which gets the
/// position. After `max` bytes of both directions together, both connections are closed.
fn relay(
    piece: usize,
    max: usize,
    change: fn(usize, u8) -> u8,
) -> ((TcpStream, TcpStream), [thread::JoinHandle<usize>; 2]) {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };
    let ((client, one), (other, server)) = (sockets(), sockets());
    let passed = Arc::new(AtomicUsize::new(0));
    let pass = |mut from: TcpStream, mut to: TcpStream| {
        let passed = Arc::clone(&passed);
        to.set_nodelay(true).unwrap();
        thread::spawn(move || {
            let (mut bytes, mut own) = (vec![0; piece], 0);
            while let Ok(len @ 1..) = from.read(&mut bytes) {
                let before = passed.fetch_add(len, Ordering::Relaxed);
                let len = len.min(max.saturating_sub(before));
                bytes[..len].iter_mut().for_each(|byte| {
                    *byte = change(own, *byte);
                    own += 1;
                });
                if to.write_all(&bytes[..len]).is_err() || before + len >= max {
                    break;
                }
            }
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            own
        })
    };
    let threads = [pass(one.try_clone().unwrap(), other.try_clone().unwrap()), pass(other, one)];
    ((client, server), threads)
}

#[test]
fn bytes_that_come_one_by_one_are_as_good_as_others() {
    let sides = Sides::pinned();
    let (sockets, threads) = relay(1, usize::MAX, |_, byte| byte);
    let (client, server) = sides.meet_over(sockets);
    let (client, server) = (client.unwrap(), server.unwrap());
    let ((mut to_server, from_server), (to_client, mut from_client)) =
        (client.into_ends(u64::MAX), server.into_ends(u64::MAX));
    to_server.send(&header(300), vec![8; 300]).unwrap();
    let _ = to_server.must_wake();
    let message = next(Some(&mut to_server), &mut from_client).unwrap();
    assert_eq!(message[LANE_HEADER_BYTES..], [8; 300]);
    drop((to_server, from_server, to_client, from_client));
    assert!(threads.into_iter().all(|thread| thread.join().is_ok()));
}

#[test]
fn a_connection_that_ends_at_any_byte_of_a_meeting_is_an_error_on_both_sides() {
    let sides = Sides::pinned();
    let (sockets, threads) = relay(4096, usize::MAX, |_, byte| byte);
    let (client, server) = sides.meet_over(sockets);
    drop((client.unwrap(), server.unwrap()));
    let total: usize = threads.map(|thread| thread.join().unwrap()).into_iter().sum();
    assert!(total > 1000, "{total}");
    // The last bytes are the knock. A client that has sent it knows the server already.
    for max in (0..total - 60).step_by(7) {
        let (sockets, threads) = relay(4096, max, |_, byte| byte);
        let (client, server) = sides.meet_over(sockets);
        assert!(server.is_err(), "{max} of {total}");
        drop((client, server));
        assert!(threads.into_iter().all(|thread| thread.join().is_ok()));
    }
}

#[test]
fn a_byte_that_was_changed_on_the_way_is_noticed() {
    let sides = Sides::pinned();
    let mut failed = 0;
    for change in [
        (|at, byte| if at == 50 { byte ^ 1 } else { byte }) as fn(usize, u8) -> u8,
        |at, byte| if at == 300 { byte ^ 0x80 } else { byte },
        |at, byte| if at == 450 { byte ^ 0x10 } else { byte },
    ] {
        let (sockets, threads) = relay(4096, usize::MAX, change);
        let (client, server) = sides.meet_over(sockets);
        failed += usize::from(client.is_err() || server.is_err());
        drop((client, server));
        assert!(threads.into_iter().all(|thread| thread.join().is_ok()));
    }
    assert_eq!(failed, 3);
    // Behind the meeting: a message whose bytes nobody has encrypted.
    let (client, server) = sockets();
    let raw = client.try_clone().unwrap();
    let (client, server) = sides.meet_over((client, server));
    let (_client, (_to_client, mut from_client)) = (client.unwrap(), server.unwrap().into_ends(9));
    (&raw).write_all(&[23, 3, 3, 0, 30]).unwrap();
    (&raw).write_all(&[4; 30]).unwrap();
    assert!(matches!(next(None, &mut from_client), Err(LinkError::Forged(_))));
    assert!(matches!(next(None, &mut from_client), Err(LinkError::Forged(_))), "for good");
}

#[test]
fn a_reader_that_sleeps_does_not_hold_up_a_sender() {
    let ((mut to_server, from_server), (mut to_client, mut from_client)) = Sides::pinned().met(100);
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut from_server = from_server;
            (0..100).map(|_| next(None, &mut from_server).unwrap().len()).sum::<usize>()
        });
        for number in 0..100_u8 {
            to_server.send(&header(1), vec![number]).unwrap();
            let _ = to_server.must_wake();
            let message = next(Some(&mut to_server), &mut from_client).unwrap();
            to_client.send(&header(1), &message[LANE_HEADER_BYTES..]).unwrap();
            let _ = to_client.must_wake();
        }
        assert_eq!(reader.join().unwrap(), 100 * (LANE_HEADER_BYTES + 1));
    });
}

#[test]
fn what_a_server_says_first_is_read() {
    let message =
        |(header, body): ([u8; LANE_HEADER_BYTES], Vec<u8>)| [&header[..], &body].concat();
    let let_in = message(welcome(ServerId(9), 77));
    assert_eq!(read_welcome(&let_in), Some(Ok((ServerId(9), std::process::id(), 77))));
    assert_eq!(read_welcome(&message(refusal("full"))), Some(Err("full".to_owned())));
    for len in 0..let_in.len() {
        assert_eq!(read_welcome(&let_in[..len]), None, "{len}");
    }
    assert_eq!(read_welcome(&[&let_in[..], &[0]].concat()), None);
    assert!(message(refusal(&"x".repeat(5000))).len() < 2000);
}

#[test]
fn a_machine_that_has_vanished_is_noticed_by_the_options_of_the_socket() {
    use rustix::net::sockopt;
    let (client, _server) = sockets();
    super::far::prepare(client.as_fd()).unwrap();
    assert!(sockopt::socket_keepalive(&client).unwrap() && sockopt::tcp_nodelay(&client).unwrap());
    assert_eq!(sockopt::tcp_keepidle(&client).unwrap(), Duration::from_secs(5));
    assert_eq!(sockopt::tcp_user_timeout(&client).unwrap(), 10_000);
}
