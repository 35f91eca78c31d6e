//! Clients that reached a server by its address, and whose connection is lost: the server is
//! killed and started again, or the network between them fails for a moment.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use executor::{
    Address, AuthKey,
    manager::{
        Backoff, Connector, Dict, Event, Identity, Lock, Manager, ManagerError, Queue, Trust,
    },
    prelude::*,
};
use futures::executor::block_on;
use rustix::process::Signal;

use super::has_objects;
use crate::support::{eventually, signal, watchdog};

fn key() -> AuthKey {
    AuthKey::new("the key of these tests")
}

/// Starts a server that listens at this address. Also returns the address with its port.
fn server(address: &Address, identity: &Identity) -> (Manager, Address) {
    let manager = Manager::builder().key(key()).identity(identity.clone()).start().unwrap();
    let address = manager.listen(address).unwrap();
    (manager, address)
}

fn any_port() -> Address {
    "127.0.0.1:0".parse().unwrap()
}

/// A client that connects again soon.
fn connector(address: &Address, identity: &Identity) -> Connector {
    let backoff = Backoff::default().first(Duration::from_millis(5));
    Manager::connector(address, &key())
        .trust(Trust::fingerprint(identity.fingerprint()))
        .reconnect(backoff.max(Duration::from_millis(100)))
}

/// Kills a server as nothing else does.
fn kill(manager: &Manager) {
    signal(manager.pid(), Signal::KILL);
    eventually("the server has ended", || manager.exit_status().is_some());
}

#[task]
fn add(value: i64, n: i64) -> i64 {
    value + n
}

#[test]
fn a_server_that_was_killed_and_started_again_is_found_at_its_address() {
    let _watchdog = watchdog();
    let identity = Identity::generate().unwrap();
    let (first, address) = server(&any_port(), &identity);
    first.publish("counts", &first.dict([("a".to_owned(), 1_i64)]).unwrap()).unwrap();
    let client = connector(&address, &identity).connect().unwrap();
    let counts: Dict<String, i64> = client.published("counts").unwrap().unwrap();
    assert_eq!(counts.update("a", add::with(2)).unwrap(), Some(3));
    assert_eq!(client.pid(), first.pid());
    kill(&first);
    let (again, _) = server(&address, &identity);
    again.publish("counts", &again.dict([("b".to_owned(), 5_i64)]).unwrap()).unwrap();
    assert!(matches!(counts.len(), Err(ManagerError::NoObject)));
    let found: Dict<String, i64> = client.published("counts").unwrap().unwrap();
    assert_ne!(found, counts);
    assert_eq!(block_on(found.get_async("b")).unwrap(), Some(5));
    assert_eq!(client.pid(), again.pid());
}

#[test]
fn calls_wait_while_the_server_is_started_again() {
    let _watchdog = watchdog();
    let identity = Identity::generate().unwrap();
    let (first, address) = server(&any_port(), &identity);
    let client = connector(&address, &identity).connect().unwrap();
    kill(&first);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let client = &client;
                scope.spawn(move || match number % 2 {
                    0 => client.published::<Event>("event"),
                    _ => block_on(client.published_async::<Event>("event")),
                })
            })
            .collect();
        let (again, _) = server(&address, &identity);
        for thread in threads {
            assert_eq!(thread.join().unwrap().unwrap(), None);
        }
        again.publish("event", &again.event().unwrap()).unwrap();
        assert!(!client.published::<Event>("event").unwrap().unwrap().is_set().unwrap());
    });
}

#[test]
fn a_server_with_another_identity_is_not_taken_for_the_one_before() {
    let _watchdog = watchdog();
    let (identity, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let (first, address) = server(&any_port(), &identity);
    let client = connector(&address, &identity).connect().unwrap();
    kill(&first);
    let (_other, _) = server(&address, &other);
    assert!(matches!(client.objects(), Err(ManagerError::Untrusted { .. })));
}

#[test]
fn without_reconnect_the_death_of_a_server_is_an_error_for_good() {
    let _watchdog = watchdog();
    let identity = Identity::generate().unwrap();
    let (first, address) = server(&any_port(), &identity);
    first.publish("queue", &first.queue::<u8>(None).unwrap()).unwrap();
    let trust = Trust::fingerprint(identity.fingerprint());
    let client = Manager::connector(&address, &key()).trust(trust).connect().unwrap();
    let queue: Queue<u8> = client.published("queue").unwrap().unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| queue.get());
        let future = scope.spawn(|| block_on(queue.get_async()));
        kill(&first);
        assert!(matches!(waits.join().unwrap(), Err(ManagerError::Gone(_))));
        assert!(matches!(future.join().unwrap(), Err(ManagerError::Gone(_))));
    });
    let (_again, _) = server(&address, &identity);
    assert!(matches!(client.objects(), Err(ManagerError::Gone(_))));
    assert!(matches!(queue.len(), Err(ManagerError::Gone(_))));
}

/// A network that can fail: passes on bytes between clients and a server.
struct Network {
    address: Address,
    stage: Arc<Stage>,
}

#[derive(Default)]
struct Stage {
    connections: Mutex<Vec<TcpStream>>,
    over: AtomicBool,
}

impl Network {
    fn new(server: &Address) -> Self {
        let Address::Tcp(host, port) = server.clone() else { panic!("it is TCP") };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().into();
        let stage = Arc::new(Stage::default());
        let own = Arc::clone(&stage);
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if own.over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(server) = TcpStream::connect((host.as_str(), port)) else { continue };
                let mut connections = own.connections.lock().unwrap();
                connections.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                drop(connections);
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || pass(from, to));
                thread::spawn(move || pass(server, client));
            }
        });
        Network { address, stage }
    }

    /// Ends all connections.
    fn fail(&self) {
        for connection in self.stage.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(len @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..len]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stage.over.store(true, Ordering::SeqCst);
        if let Address::Tcp(host, port) = &self.address {
            let _ = TcpStream::connect((host.as_str(), *port));
        }
        self.fail();
    }
}

#[test]
fn after_a_failure_of_the_network_handles_are_as_before_and_what_was_held_is_free() {
    let _watchdog = watchdog();
    let identity = Identity::generate().unwrap();
    let (owner, address) = server(&any_port(), &identity);
    let network = Network::new(&address);
    let (lock, queue) = (owner.lock().unwrap(), owner.queue::<u64>(None).unwrap());
    owner.publish("both", &(lock.clone(), queue.clone())).unwrap();
    let client = connector(&network.address, &identity).connect().unwrap();
    let (own_lock, own_queue): (Lock, Queue<u64>) = client.published("both").unwrap().unwrap();
    for round in 0..5 {
        let guard = own_lock.acquire().unwrap();
        assert!(lock.try_acquire().unwrap().is_none());
        let own = client.list([round]).unwrap();
        network.fail();
        // The owner is told that the client is gone: the kernel says so to the server.
        assert!(lock.acquire().unwrap().owner_died());
        own_queue.put(&round).unwrap();
        assert_eq!(queue.get().unwrap(), round);
        assert!(matches!(own.len(), Err(ManagerError::NoObject)));
        // It is held anew, and the guard of the lost connection does not release it.
        let again = own_lock.acquire().unwrap();
        drop(guard);
        assert!(lock.is_locked().unwrap());
        again.release().unwrap();
        assert!(!lock.is_locked().unwrap());
    }
    drop((own_lock, own_queue, client));
    has_objects(&owner, 2);
}

#[test]
fn while_the_network_fails_again_and_again_nothing_is_done_twice() {
    let _watchdog = watchdog();
    let identity = Identity::generate().unwrap();
    let (owner, address) = server(&any_port(), &identity);
    let network = Network::new(&address);
    let counts = owner.list([0_i64; 4]).unwrap();
    owner.publish("counts", &counts).unwrap();
    let client = connector(&network.address, &identity).connect().unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (over, client) = (&over, &client);
        let threads: Vec<_> = (0..4_usize)
            .map(|at| {
                scope.spawn(move || {
                    let own: executor::manager::List<i64> =
                        client.published("counts").unwrap().unwrap();
                    // How often it was done for sure, and how often it may have been.
                    let (mut done, mut unknown) = (0, 0);
                    while !over.load(Ordering::SeqCst) || done < 10 {
                        match own.update(at, add::with(1)) {
                            Ok(_) => done += 1,
                            Err(ManagerError::Gone(why)) => {
                                assert!(why.contains("not known"), "{why}");
                                unknown += 1;
                            }
                            Err(error) => panic!("{error}"),
                        }
                        // What changes nothing is made again, and never fails.
                        assert!(own.get(at).unwrap().is_some());
                    }
                    (done, unknown)
                })
            })
            .collect();
        for _ in 0..20 {
            network.fail();
            thread::sleep(Duration::from_millis(10));
        }
        over.store(true, Ordering::SeqCst);
        for (at, thread) in threads.into_iter().enumerate() {
            let (done, unknown) = thread.join().unwrap();
            let count = counts.get(at).unwrap().unwrap();
            assert!((done..=done + unknown).contains(&count), "{done} {count} {unknown}");
        }
    });
}

#[test]
fn at_a_unix_socket_a_server_is_found_again_as_well() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let address = Address::from(folder.path().join("manager"));
    let start = || {
        let manager = Manager::builder().key(key()).start().unwrap();
        manager.listen(&address).unwrap();
        manager.publish("event", &manager.event().unwrap()).unwrap();
        manager
    };
    let first = start();
    let backoff = Backoff::default().first(Duration::from_millis(5));
    let client = Manager::connector(&address, &key()).reconnect(backoff).connect().unwrap();
    assert_eq!(client.pid(), first.pid());
    let event: Event = client.published("event").unwrap().unwrap();
    assert!(!event.is_set().unwrap());
    kill(&first);
    let again = start();
    assert!(matches!(event.is_set(), Err(ManagerError::NoObject)));
    let event: Event = client.published("event").unwrap().unwrap();
    event.set().unwrap();
    assert_eq!(client.pid(), again.pid());
    // Its handles are near ones, and travel.
    let child = super::start(is_set::task(event.clone()));
    assert!(child.join().unwrap());
}

#[task]
fn is_set(event: Event) -> Result<bool, ManagerError> {
    event.is_set()
}

#[test]
fn a_far_handle_connects_again_where_it_was_sent_to() {
    let _watchdog = watchdog();
    let identity = Identity::generate().unwrap();
    let (owner, address) = server(&any_port(), &identity);
    let network = Network::new(&address);
    let client = connector(&network.address, &identity).connect().unwrap();
    let event = client.event().unwrap();
    client.publish("event", &event).unwrap();
    let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    assert!(!pool.submit(is_set::task(event.clone())).result().unwrap());
    let queue = executor::Queue::unbounded().unwrap();
    queue.put(event.clone()).unwrap();
    for _ in 0..3 {
        network.fail();
        eventually("this process has connected again", || event.set().is_ok());
        assert!(pool.submit(is_set::task(event.clone())).result().unwrap());
    }
    // What is sent from now on is kept over the new connection.
    queue.put(event.clone()).unwrap();
    // The owner of the server can send its own handle of the same object.
    let near: Event = owner.published("event").unwrap().unwrap();
    assert_eq!(near, event);
    assert!(pool.submit(is_set::task(near.clone())).result().unwrap());
    drop((near, event, pool));
    owner.unpublish("event").unwrap();
    for _ in 0..2 {
        assert_eq!(owner.objects().unwrap(), 1);
        assert!(queue.get().unwrap().is_set().unwrap());
    }
    has_objects(&owner, 0);
}
