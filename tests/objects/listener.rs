//! Listeners and their clients.

use std::{
    error::Error,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use executor::{
    __private::{Buffer, Format, Postcard},
    AcceptError, Address, AuthError, AuthKey, Client, ConnectError, Connection, Listener,
    RecvError, SendError, Sender, SharedBytes,
    prelude::*,
    wait_any,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::support::{LONG, pool, watchdog, with_a_timeout_long_enough};

const SHORT: Duration = Duration::from_millis(50);

fn addresses() -> (tempfile::TempDir, Vec<Address>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    (folder, vec!["127.0.0.1:0".parse().unwrap(), path.into(), Address::any()])
}

#[test]
fn cn11_an_address_can_only_be_bound_once_at_a_time() {
    let _watchdog = watchdog();
    let (_folder, addresses) = addresses();
    for address in addresses {
        let listener = Listener::bind(&address).unwrap();
        let error = Listener::bind(listener.address()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse, "{address}: {error}");
        // The address can be bound again when the first listener is gone.
        let address = listener.address().clone();
        drop(listener);
        Listener::bind(&address).unwrap();
    }
}

#[test]
fn cn12_accept_after_close_is_an_error() {
    let _watchdog = watchdog();
    let (folder, addresses) = addresses();
    for address in addresses {
        let listener = Listener::bind(&address).unwrap();
        let client: Connection<u32, ()> = Client::connect(listener.address(), None).unwrap();
        let accepted: Connection<(), u32> = listener.accept().unwrap();
        client.send(&1729).unwrap();
        assert_eq!(accepted.recv().unwrap(), 1729);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| listener.accept::<(), ()>());
            listener.close();
            listener.close();
            assert!(matches!(waiting.join().unwrap(), Err(AcceptError::Closed)));
        });
        assert!(matches!(listener.accept::<(), ()>(), Err(AcceptError::Closed)));
        assert_eq!(listener.incoming::<(), ()>().count(), 0);
        assert!(matches!(
            Client::connect::<(), ()>(listener.address(), None),
            Err(ConnectError::Io { .. })
        ));
        // Accepted connections keep working.
        client.send(&2).unwrap();
        assert_eq!(accepted.recv().unwrap(), 2);
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 0, "the socket's file is gone");
}

#[test]
fn cn14_abstract_names_work() {
    let _watchdog = watchdog();
    let name: Address = format!("@executor-test-{}", std::process::id()).parse().unwrap();
    let listener = Listener::bind(&name).unwrap();
    assert_eq!(listener.address(), &name);
    let client: Connection<(), String> = Client::connect(&name, None).unwrap();
    let accepted: Connection<String, ()> = listener.accept().unwrap();
    accepted.send(&"hello".to_owned()).unwrap();
    assert_eq!(client.recv().unwrap(), "hello");
}

#[task]
fn call(address: String, key: Option<Vec<u8>>, text: String) -> Result<(), Box<dyn Error>> {
    let key = key.map(AuthKey::new);
    let peer: Connection<String, ()> = Client::connect(&address.parse()?, key.as_ref())?;
    Ok(peer.send(&text)?)
}

#[test]
fn cn15_a_message_of_a_client_in_a_worker_arrives_even_if_accept_comes_later() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (_folder, addresses) = addresses();
    for address in addresses {
        for key in [None, Some(AuthKey::random().unwrap()), Some(AuthKey::new(""))] {
            let mut listener = Listener::bind(&address).unwrap();
            if let Some(key) = &key {
                listener = listener.authkey(key.clone());
            }
            let key = key.as_ref().map(|key| key.as_bytes().to_vec());
            let client =
                pool.submit(call::task(listener.address().to_string(), key, "hello".to_owned()));
            // The client has connected, and may have disconnected already.
            wait_any(&[&listener], Some(LONG)).unwrap();
            let accepted: Connection<(), String> = listener.accept().unwrap();
            assert_eq!(accepted.recv().unwrap(), "hello");
            assert!(matches!(accepted.recv(), Err(RecvError::Closed)));
            client.result().unwrap();
            let is_tcp = matches!(listener.address(), Address::Tcp(..));
            assert_eq!(matches!(listener.last_accepted(), Some(Address::Tcp(..))), is_tcp);
        }
    }
}

#[test]
fn cn16_the_client_receives_what_the_accepted_end_sends() {
    let _watchdog = watchdog();
    let (_folder, addresses) = addresses();
    for address in addresses {
        let listener = Listener::bind(&address).unwrap();
        let client: Connection<(), u32> = Client::connect(listener.address(), None).unwrap();
        let accepted: Connection<u32, ()> = listener.accept().unwrap();
        accepted.send(&1).unwrap();
        assert!(client.poll(Some(LONG)).unwrap());
    }
}

#[test]
fn cn20_messages_sent_in_quick_succession_are_not_merged() {
    let _watchdog = watchdog();
    let (_folder, addresses) = addresses();
    for address in addresses {
        let listener = Listener::bind(&address).unwrap();
        let client: Connection<(), ()> = Client::connect(listener.address(), None).unwrap();
        let accepted: Connection<(), ()> = listener.accept().unwrap();
        for message in ["cat", "dog", "fish"] {
            client.send_bytes(message.as_bytes()).unwrap();
        }
        for message in ["cat", "dog", "fish"] {
            assert_eq!(accepted.recv_bytes().unwrap(), message.as_bytes());
        }
    }
}

#[test]
fn cn27_an_address_of_another_platform_is_an_error() {
    for text in [r"\\.\pipe\test", "name", "1.2.3.4", ""] {
        let error = text.parse::<Address>().unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    assert!(Listener::bind(&Address::Unix("/no/such/folder/socket".into())).is_err());
    assert!(Listener::bind(&Address::Tcp("no.such.host.invalid".into(), 1)).is_err());
    assert!(Listener::bind(&Address::Unix("x".repeat(200).into())).is_err());
}

/// Connects over TCP without the library, as a client that knows only the framing of the protocol.
fn raw(listener: &Listener) -> TcpStream {
    let Address::Tcp(host, port) = listener.address() else { panic!() };
    TcpStream::connect((host.as_str(), *port)).unwrap()
}

/// Returns the header of a message as `ipc/message.rs` defines it.
fn head(kind: u8, descriptors: u8, len: u64) -> Vec<u8> {
    [&[b'x', b'q', kind, descriptors, 0, 0, 0, 0][..], &len.to_le_bytes()].concat()
}

#[test]
fn cn29_a_wrong_key_is_an_error_on_both_sides_and_the_next_client_is_served() {
    let _watchdog = watchdog();
    let (_folder, addresses) = addresses();
    for address in addresses {
        let key = AuthKey::random().unwrap();
        let listener = Listener::bind(&address).unwrap().authkey(key.clone());
        let connect = |key: Option<&AuthKey>| {
            let (address, key) = (listener.address().clone(), key.cloned());
            thread::spawn(move || Client::connect::<u32, u32>(&address, key.as_ref()))
        };
        // Another key, then an empty one.
        for wrong in [AuthKey::random().unwrap(), AuthKey::new("")] {
            let client = connect(Some(&wrong));
            match listener.accept::<(), ()>() {
                Err(AcceptError::Refused { error, .. }) => assert_eq!(error, AuthError::WrongKey),
                other => panic!("{other:?}"),
            }
            match client.join().unwrap() {
                Err(ConnectError::Auth { error, .. }) => assert_eq!(error, AuthError::Refused),
                other => panic!("{other:?}"),
            }
        }
        // A client without a key that sends at once.
        let client = connect(None).join().unwrap().unwrap();
        client.send(&1).unwrap();
        assert!(matches!(
            listener.accept::<(), ()>(),
            Err(AcceptError::Refused { error: AuthError::NotAsked, .. })
        ));
        match client.recv() {
            Err(RecvError::Invalid(text)) => assert!(text.contains("asks for a key"), "{text}"),
            other => panic!("{other:?}"),
        }
        // A client with the right key.
        let client = connect(Some(&key));
        let accepted: Connection<u32, u32> = listener.accept().unwrap();
        client.join().unwrap().unwrap().send(&1).unwrap();
        assert_eq!(accepted.recv().unwrap(), 1);
    }
}

#[test]
fn cn29_a_client_rejects_a_listener_that_does_not_know_the_key() {
    let _watchdog = watchdog();
    let key = AuthKey::random().unwrap();
    // A listener without a key, which goes on to send.
    let listener = Listener::bind(&Address::any()).unwrap();
    let address = listener.address().clone();
    let client = thread::spawn({
        let (address, key) = (address.clone(), key.clone());
        move || Client::connect::<u32, u32>(&address, Some(&key))
    });
    let accepted: Connection<u32, u32> = listener.accept().unwrap();
    assert!(
        matches!(accepted.recv(), Err(RecvError::Invalid(text)) if text.contains("given none"))
    );
    accepted.send(&1).unwrap();
    assert!(matches!(
        client.join().unwrap(),
        Err(ConnectError::Auth { error: AuthError::NotAsked, .. })
    ));
    // A listener that invents its welcome message.
    let fake = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = Address::from(fake.local_addr().unwrap());
    let client = thread::spawn(move || Client::connect::<u32, u32>(&at, Some(&key)));
    let (mut stream, _) = fake.accept().unwrap();
    stream.write_all(&[head(5, 0, 32), vec![1; 32]].concat()).unwrap();
    stream.read_exact(&mut [0; 16 + 16 + 64]).unwrap();
    stream.write_all(&[head(7, 0, 32), vec![1; 32]].concat()).unwrap();
    assert!(matches!(
        client.join().unwrap(),
        Err(ConnectError::Auth { error: AuthError::WrongKey, .. })
    ));
    // A listener that sends nothing, with a timeout.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = Address::from(silent.local_addr().unwrap());
    let error =
        Client::connect_timeout::<u32, u32>(&at, Some(&AuthKey::new("k")), SHORT).unwrap_err();
    assert!(matches!(error, ConnectError::Auth { error: AuthError::TimedOut, .. }), "{error}");
}

#[test]
fn slow_and_invalid_clients_delay_no_other_client() {
    let _watchdog = watchdog();
    let key = AuthKey::random().unwrap();
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap())
        .unwrap()
        .authkey(key.clone())
        // Long enough for the busiest machine: in this part no client may be dropped for being
        // slow.
        .auth_timeout(LONG * 10);
    // The clients send nothing, half of a head, a huge length, another protocol, or a message that
    // is not part of a handshake.
    let mut clients: Vec<TcpStream> = (0..20).map(|_| raw(&listener)).collect();
    clients[0].write_all(&head(6, 0, 64)[..7]).unwrap();
    clients[1].write_all(&head(6, 0, u64::MAX)).unwrap();
    clients[2].write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    clients[3].write_all(&[head(1, 0, 3), vec![1, 2, 3]].concat()).unwrap();
    clients[4].write_all(&[head(6, 9, 64), vec![1; 64]].concat()).unwrap();
    clients[5].write_all(&[head(4, 0, 0), head(6, 0, 64), vec![1; 64]].concat()).unwrap();
    clients[6].write_all(&head(6, 0, 64)).unwrap();
    let address = listener.address().clone();
    let client = thread::spawn(move || Client::connect::<u32, u32>(&address, Some(&key)));
    let mut refused = Vec::new();
    let accepted: Connection<u32, u32> = loop {
        match listener.accept() {
            Ok(accepted) => break accepted,
            Err(AcceptError::Refused { error, peer, .. }) => {
                assert!(peer.is_some());
                refused.push(error);
            }
            Err(error) => panic!("{error}"),
        }
    };
    client.join().unwrap().unwrap().send(&1).unwrap();
    assert_eq!(accepted.recv().unwrap(), 1);
    // Clients that sent something wrong are refused. Clients that sent nothing are still waited
    // for.
    while refused.len() < 5 {
        match listener.accept_timeout::<(), ()>(LONG) {
            Err(AcceptError::Refused { error, .. }) => refused.push(error),
            other => panic!("{other:?}"),
        }
    }
    refused.sort_by_key(|error| format!("{error:?}"));
    use AuthError::{NotAsked, WrongKey};
    assert_eq!(refused, [NotAsked, NotAsked, NotAsked, NotAsked, WrongKey]);
    assert!(matches!(listener.accept_timeout::<(), ()>(SHORT), Err(AcceptError::TimedOut)));
    drop(clients);
    // The remaining clients have disconnected.
    for _ in 0..15 {
        assert!(matches!(
            listener.accept::<(), ()>(),
            Err(AcceptError::Refused { error: AuthError::Closed, .. })
        ));
    }
}

#[test]
fn a_client_that_sends_nothing_is_dropped_after_the_timeout() {
    let _watchdog = watchdog();
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap())
        .unwrap()
        .authkey(AuthKey::new("k"))
        .auth_timeout(SHORT);
    let mut silent = raw(&listener);
    let started = Instant::now();
    match listener.accept::<(), ()>() {
        Err(AcceptError::Refused { error, .. }) => assert_eq!(error, AuthError::TimedOut),
        other => panic!("{other:?}"),
    }
    assert!(started.elapsed() >= SHORT);
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 16 + 32, "the challenge, and the end");
    // When there are very many clients, the oldest is dropped in favor of the newest.
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap())
        .unwrap()
        .authkey(AuthKey::new("k"))
        .auth_timeout(LONG * 10);
    let _clients: Vec<TcpStream> = (0..257).map(|_| raw(&listener)).collect();
    assert!(matches!(
        listener.accept::<(), ()>(),
        Err(AcceptError::Refused { error: AuthError::TimedOut, .. })
    ));
}

#[test]
fn invalid_bytes_from_a_network_are_an_error_of_that_connection() {
    let _watchdog = watchdog();
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let meet = |bytes: &[u8]| {
        let mut client = raw(&listener);
        client.write_all(bytes).unwrap();
        drop(client);
        listener.accept::<(), String>().unwrap()
    };
    let wild = meet(&[head(1, 0, u64::MAX), vec![1; 10]].concat());
    assert!(matches!(wild.recv(), Err(RecvError::Truncated)));
    assert!(matches!(wild.recv(), Err(RecvError::Truncated)), "it stays the end");
    let half = meet(&head(1, 0, 3)[..9]);
    assert!(matches!(half.recv(), Err(RecvError::Truncated)));
    let foreign = meet(b"GET / HTTP/1.1\r\n\r\n");
    assert!(matches!(foreign.recv(), Err(RecvError::Invalid(_))));
    assert!(matches!(foreign.recv(), Err(RecvError::Invalid(_))));
    let with_descriptors = meet(&[head(1, 1, 1), vec![0]].concat());
    assert!(matches!(with_descriptors.recv(), Err(RecvError::Invalid(_))));
    let mut text = Buffer::new();
    Postcard::encode("xy", &mut text).unwrap();
    let text = text.into_vec();
    let mut wrong = text.clone();
    wrong.truncate(text.len() - 2);
    wrong.extend([0xff, 0xfe]);
    let len = text.len() as u64;
    let wrong_text = meet(&[head(1, 0, len), wrong, head(1, 0, len), text].concat());
    assert!(matches!(wrong_text.recv(), Err(RecvError::Decode(_))));
    assert_eq!(wrong_text.recv().unwrap(), "xy");
}

#[test]
fn descriptors_cannot_be_sent_over_a_network() {
    let _watchdog = watchdog();
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let client: Connection<SharedBytes, ()> = Client::connect(listener.address(), None).unwrap();
    let accepted: Connection<(), u8> = listener.accept().unwrap();
    match client.send(&SharedBytes::from(vec![1])) {
        Err(SendError::Encode(text)) => assert!(text.contains("do not cross a network"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(!accepted.poll(Some(Duration::ZERO)).unwrap());
    // A value that claims to be a descriptor is not accepted as one.
    let client = client.with_types::<u8, ()>();
    client.send(&0).unwrap();
    let accepted = accepted.with_types::<(), SharedBytes>();
    assert!(
        matches!(accepted.recv(), Err(RecvError::Decode(text)) if text.contains("did not come"))
    );
}

extern "C" fn ignore(_: libc::c_int) {}

#[test]
fn cn32_a_signal_does_not_interrupt_accept_or_recv() {
    let _watchdog = watchdog();
    // SAFETY: installs a handler that does nothing, without SA_RESTART.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
    let listener = Listener::bind(&Address::any()).unwrap();
    let address = listener.address().clone();
    let (id, told) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        // SAFETY: `pthread_self` always succeeds.
        id.send(unsafe { libc::pthread_self() }).unwrap();
        let accepted: Connection<u32, u32> = listener.accept().unwrap();
        accepted.recv().unwrap()
    });
    let thread = told.recv().unwrap();
    let interrupt = || {
        for _ in 0..20 {
            // SAFETY: the thread has not been joined.
            assert_eq!(unsafe { libc::pthread_kill(thread, libc::SIGUSR1) }, 0);
            thread::sleep(Duration::from_millis(1));
        }
    };
    interrupt();
    let client: Connection<u32, u32> = Client::connect(&address, None).unwrap();
    interrupt();
    client.send(&7).unwrap();
    assert_eq!(server.join().unwrap(), 7);
}

#[test]
fn cn33_idle_connections_and_listeners_never_time_out() {
    let _watchdog = watchdog();
    // No timeout applies to an idle connection. The timeout of the handshake is shorter here than
    // the pauses. It does apply during the handshake, and on a busy machine a handshake may take
    // longer than the shortest of these timeouts.
    with_a_timeout_long_enough("two shake hands", |limit| {
        let key = AuthKey::random().unwrap();
        let listener =
            Listener::bind(&Address::any()).unwrap().authkey(key.clone()).auth_timeout(limit);
        let address = listener.address().clone();
        // These sleeps do not enforce an order: they are time after which a timeout would have
        // passed.
        let client = thread::spawn(move || {
            let client: Connection<u32, u32> = Client::connect(&address, Some(&key)).ok()?;
            thread::sleep(limit * 2);
            client.send(&1).unwrap();
            Some(client.recv().unwrap())
        });
        thread::sleep(limit * 2);
        let Ok(accepted) = listener.accept::<u32, u32>() else {
            drop(listener);
            client.join().unwrap();
            return None;
        };
        assert_eq!(accepted.recv().unwrap(), 1);
        accepted.send(&2).unwrap();
        assert_eq!(client.join().unwrap(), Some(2));
        Some(())
    });
}

#[task]
fn serve_tcp(client: Connection<u64, u64>) {
    while let Ok(number) = client.recv() {
        client.send(&(number + 1)).unwrap();
    }
}

#[test]
fn mx13_an_accepted_client_can_be_passed_to_a_task() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let (_folder, addresses) = addresses();
    for address in addresses {
        let listener = Listener::bind(&address).unwrap();
        let client: Connection<u64, u64> = Client::connect(listener.address(), None).unwrap();
        let served = pool.submit(serve_tcp::task(listener.accept().unwrap()));
        for number in 0..10 {
            client.send(&number).unwrap();
            assert_eq!(client.recv().unwrap(), number + 1);
        }
        drop(client);
        served.result().unwrap();
    }
}

#[tokio::test]
async fn clients_are_accepted_asynchronously() {
    let _watchdog = watchdog();
    let key = AuthKey::random().unwrap();
    let listener = Listener::bind(&Address::any()).unwrap().authkey(key.clone());
    let address = listener.address().clone();
    let client = thread::spawn(move || {
        let client: Connection<u32, ()> = Client::connect(&address, Some(&key)).unwrap();
        client.send(&3).unwrap();
    });
    let accepted: Connection<(), u32> = listener.accept_async().await.unwrap();
    assert_eq!(accepted.recv_async().await.unwrap(), 3);
    client.join().unwrap();
}

#[test]
fn the_socket_file_of_a_killed_listener_is_taken_over() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    // The state that a killed listener leaves behind: the file is bound, and no process has the
    // socket.
    let dead = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    rustix::net::bind(&dead, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    drop(dead);
    assert!(path.exists());
    let address = Address::from(path.clone());
    let listener = Listener::bind(&address).unwrap();
    let client: Connection<u32, ()> = Client::connect(&address, None).unwrap();
    client.send(&1).unwrap();
    assert_eq!(listener.accept::<(), u32>().unwrap().recv().unwrap(), 1);
    // A file that is not a socket is left alone.
    drop(listener);
    std::fs::write(&path, "mine").unwrap();
    assert!(Listener::bind(&address).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

/// Messages that never complete a handshake, for sockets of both kinds. When a client is cut off,
/// it starts again with the next script.
fn hostile_scripts() -> Vec<(&'static str, Vec<u8>)> {
    let answer = [head(6, 0, 64), vec![1; 64]].concat();
    vec![
        ("hello, again and again", head(4, 0, 0)),
        ("hello and a wrong answer", [head(4, 0, 0), answer.clone()].concat()),
        ("answers", answer),
        ("a challenge of its own", [head(5, 0, 32), vec![1; 32]].concat()),
        ("values", [head(1, 0, 3), vec![1, 2, 3]].concat()),
        ("the beginning of something long", [head(2, 0, 1 << 40), vec![7; 64 * 1024]].concat()),
        ("further parts", [head(3, 0, 0), vec![7; 100]].concat()),
        ("another protocol", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("half of a head", head(4, 0, 0)[..9].to_vec()),
    ]
}

/// Connects without the library and sends the bytes for as long as the listener accepts them. A
/// slow client sends them one at a time.
fn assail(address: &Address, bytes: &[u8], slowly: bool, done: &AtomicBool) {
    let rest = || !done.load(Ordering::Relaxed);
    // This sleep does not enforce an order: it makes the client slow.
    let gap = || thread::sleep(Duration::from_millis(1));
    match address {
        Address::Tcp(host, port) => {
            let Ok(mut stream) = TcpStream::connect((host.as_str(), *port)) else { return };
            let block = if slowly { Vec::new() } else { bytes.repeat(1 + 64 * 1024 / bytes.len()) };
            let _ = stream.set_write_timeout(Some(SHORT));
            // A failed write also tells the client that it was cut off, so that it can come again.
            while rest() {
                let sent = match slowly {
                    true => bytes.chunks(1).try_for_each(|byte| {
                        gap();
                        if rest() { stream.write_all(byte) } else { Ok(()) }
                    }),
                    false => stream.write_all(&block),
                };
                if sent.is_err() {
                    return;
                }
            }
        }
        Address::Abstract(name) => {
            let flags = SocketFlags::CLOEXEC;
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                    .unwrap();
            let at = rustix::net::SocketAddrUnix::new_abstract_name(name).unwrap();
            rustix::net::sockopt::set_socket_timeout(
                &socket,
                rustix::net::sockopt::Timeout::Send,
                Some(SHORT),
            )
            .unwrap();
            if rustix::net::connect(&socket, &at).is_err() {
                return;
            }
            while rest()
                && rustix::net::send(&socket, bytes, rustix::net::SendFlags::NOSIGNAL).is_ok()
            {
                if slowly {
                    gap();
                }
            }
        }
        _ => unreachable!(),
    }
}

#[test]
fn clients_that_send_for_ever_delay_no_other_client() {
    const ROUNDS: u32 = 8;
    let _watchdog = watchdog();
    for address in ["127.0.0.1:0".parse().unwrap(), Address::any()] {
        let key = AuthKey::random().unwrap();
        let listener = Listener::bind(&address).unwrap().authkey(key.clone());
        let (done, all_met, scripts) =
            (AtomicBool::new(false), AtomicBool::new(false), hostile_scripts());
        thread::scope(|scope| {
            // Two clients send as fast as they can, and one sends slowly. Each goes on with the
            // next script when it is cut off.
            for attacker in 0..3 {
                let (listener, done, scripts) = (&listener, &done, &scripts);
                scope.spawn(move || {
                    for (_, bytes) in scripts.iter().cycle().skip(3 * attacker) {
                        assail(listener.address(), bytes, attacker == 2, done);
                        if done.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                });
            }
            let (listener, key, scripts) = (&listener, &key, scripts.len());
            let all_met = &all_met;
            let serving = scope.spawn(move || {
                let mut refused = 0;
                while !all_met.load(Ordering::Relaxed) || refused < 4 * scripts {
                    // Every call returns in time, whatever other clients send meanwhile.
                    match listener.accept_timeout::<u32, u32>(Duration::from_secs(2)) {
                        // The client may have given up meanwhile. It connects again.
                        Ok(client) => drop(client.recv().map(|met| client.send(&met))),
                        Err(AcceptError::Refused { .. }) => refused += 1,
                        Err(AcceptError::TimedOut) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            let mut met = 0;
            while met < ROUNDS && !serving.is_finished() {
                let client =
                    Client::connect_timeout::<u32, u32>(listener.address(), Some(key), LONG);
                let Ok(client) = client else { continue };
                if client.send(&met).is_ok() && client.recv_timeout(LONG).is_ok() {
                    met += 1;
                }
            }
            all_met.store(true, Ordering::Relaxed);
            serving.join().unwrap();
            // Nobody accepts any more. Closing the listener does not wait for the clients that are
            // still sending.
            listener.close();
            done.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn a_client_that_sends_nothing_is_dropped_after_the_timeout_of_an_awaited_accept() {
    let _watchdog = watchdog();
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap())
        .unwrap()
        .authkey(AuthKey::new("k"))
        .auth_timeout(SHORT);
    let _silent = raw(&listener);
    match futures::executor::block_on(listener.accept_async::<(), ()>()) {
        Err(AcceptError::Refused { error, .. }) => assert_eq!(error, AuthError::TimedOut),
        other => panic!("{other:?}"),
    }
}

/// Listens with descriptors for only a few clients. Returns how many clients it refused before it
/// accepted one.
#[task]
fn serves_with_few_descriptors(address: &Sender<String>, key: Vec<u8>) -> Result<usize, String> {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap())
        .unwrap()
        .authkey(AuthKey::new(key))
        .auth_timeout(LONG * 10);
    // Allow six descriptors more than the next free one.
    let next = rustix::io::dup(listener.as_fd()).unwrap().as_raw_fd() as u64;
    use rustix::process::{Resource, setrlimit};
    let limit = rustix::process::Rlimit {
        current: Some(next + 7),
        ..crate::support::limit_of(Resource::Nofile)
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    address.send(&listener.address().to_string()).unwrap();
    let mut refused = 0;
    loop {
        match listener.accept_timeout::<u32, u32>(LONG) {
            Ok(client) => {
                client.send(&client.recv().unwrap()).unwrap();
                return Ok(refused);
            }
            Err(AcceptError::Refused { .. }) => refused += 1,
            Err(error) => return Err(format!("{error:?}")),
        }
    }
}

#[test]
fn silent_clients_that_use_up_all_descriptors_do_not_keep_others_out() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (sender, receiver) = executor::channel().unwrap();
    let serving = pool.submit(serves_with_few_descriptors::task(&sender, b"k".to_vec()));
    drop(sender);
    let Ok(address) = receiver.recv() else { panic!("{:?}", serving.result()) };
    let address: Address = address.parse().unwrap();
    let Address::Tcp(host, port) = &address else { panic!() };
    let _silent: Vec<_> =
        (0..12).map(|_| TcpStream::connect((host.as_str(), *port)).unwrap()).collect();
    let client =
        Client::connect_timeout::<u32, u32>(&address, Some(&AuthKey::new("k")), LONG).unwrap();
    client.send(&5).unwrap();
    assert_eq!(client.recv().unwrap(), 5);
    assert!(serving.result().unwrap() > 0);
}

/// Sends packets that each begin a long message, and never sends the rest.
fn begins_without_end(socket: &OwnedFd, done: &AtomicBool) {
    let packet = [head(2, 0, 1 << 40), vec![7; 64 * 1024]].concat();
    while !done.load(Ordering::Relaxed)
        && rustix::net::send(socket, &packet, rustix::net::SendFlags::NOSIGNAL).is_ok()
    {}
}

#[test]
fn a_peer_that_sends_for_ever_does_not_delay_a_receive_beyond_its_timeout() {
    let _watchdog = watchdog();
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let end: Connection<(), u32> = ours.try_into().unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (peer, done) = (&theirs, &done);
        scope.spawn(move || begins_without_end(peer, done));
        assert!(matches!(end.recv_timeout(SHORT), Err(RecvError::Empty)));
        assert!(matches!(end.try_recv(), Err(RecvError::Empty)));
        // The future lets other futures of its thread run.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert!(tokio::time::timeout(SHORT, end.recv_async()).await.is_err());
        });
        done.store(true, Ordering::Relaxed);
        drop(end);
    });
}
