//! Servers that listen at an address: clients that come by it, over a Unix socket and over TCP, and
//! strangers at the gate.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use executor::{
    Address, AuthKey, Fork,
    manager::{
        Any, Dict, Event, Identity, List, Lock, Manager, ManagerError, Queue, Semaphore, Trust,
        Value,
    },
    pipe,
    prelude::*,
};
use futures::executor::block_on;
use serde::{Deserialize, Serialize};

use super::{Done, die, ends_killed, has_objects, sleep, start};
use crate::support::{LONG, alone, eventually, signal, state, watchdog};

/// What a process has to know to connect.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Way {
    address: String,
    key: Vec<u8>,
    fingerprint: String,
}

impl Way {
    pub(super) fn connect(&self) -> Result<Manager, ManagerError> {
        self.connect_with(&AuthKey::new(&self.key))
    }

    fn connect_with(&self, key: &AuthKey) -> Result<Manager, ManagerError> {
        let trust = Trust::fingerprint(self.fingerprint.parse().expect("a fingerprint"));
        Manager::connector(&self.address(), key).trust(trust).timeout(LONG).connect()
    }

    fn address(&self) -> Address {
        self.address.parse().expect("an address")
    }

    /// Connects as somebody who knows nothing.
    fn stranger(&self) -> TcpStream {
        TcpStream::connect(&self.address).expect("it listens")
    }
}

/// A server that listens at a Unix socket and at a TCP port.
pub(super) struct Site {
    pub(super) manager: Manager,
    pub(super) ways: [Way; 2],
    folder: tempfile::TempDir,
}

impl Site {
    pub(super) fn new() -> Self {
        Site::of(Manager::builder())
    }

    pub(super) fn of(builder: executor::manager::ManagerBuilder) -> Self {
        let (key, identity) = (AuthKey::random().unwrap(), Identity::generate().unwrap());
        let fingerprint = identity.fingerprint().to_string();
        let manager = builder.key(key.clone()).identity(identity).start().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let local = folder.path().join("socket");
        let addresses = [local.as_path().into(), "127.0.0.1:0".parse().unwrap()];
        let ways = addresses.map(|address| Way {
            address: manager.listen(&address).unwrap().to_string(),
            key: key.as_bytes().to_vec(),
            fingerprint: fingerprint.clone(),
        });
        Site { manager, ways, folder }
    }

    pub(super) fn tcp(&self) -> &Way {
        &self.ways[1]
    }

    /// Checks that clients that come now are served.
    fn is_well(&self) {
        for way in &self.ways {
            let client = way.connect().unwrap();
            assert_eq!(client.value(7).unwrap().get().unwrap(), 7, "{way:?}");
        }
    }
}

type Mixed = (u8, String, Option<f64>, Vec<Any>);

fn mixed() -> Mixed {
    (1, "two".to_owned(), Some(3.5), vec![Any::from(4), Any::from("five")])
}

#[task]
fn put_by_name(way: Way) -> Done {
    let queue: Queue<Mixed> = way.connect()?.published("jobs")?.expect("it is published");
    queue.put(&mixed())
}

#[task]
fn get_by_name(way: Way) -> Result<Mixed, ManagerError> {
    let queue: Queue<Mixed> = way.connect()?.published("jobs")?.expect("it is published");
    queue.get()
}

#[test]
fn mg12_what_one_client_puts_into_a_queue_another_gets() {
    let _watchdog = watchdog();
    let site = Site::new();
    site.manager.publish("jobs", &site.manager.queue::<Mixed>(None).unwrap()).unwrap();
    for from in &site.ways {
        for to in &site.ways {
            let gets = start(get_by_name::task(to.clone()));
            start(put_by_name::task(from.clone())).join().unwrap();
            assert_eq!(gets.join().unwrap(), mixed(), "{from:?} {to:?}");
        }
    }
    has_objects(&site.manager, 1);
}

#[test]
fn mg24_a_wrong_key_is_an_error_of_authentication_and_others_are_served() {
    let _watchdog = watchdog();
    let site = Site::new();
    for way in &site.ways {
        let friend = way.connect().unwrap();
        let list = friend.list([1]).unwrap();
        for _ in 0..3 {
            let error = way.connect_with(&AuthKey::new("another")).unwrap_err();
            assert!(matches!(error, ManagerError::Auth { .. }), "{error:?}");
            assert!(error.to_string().contains(&way.address), "{error}");
            assert_eq!(list.len().unwrap(), 1);
        }
    }
    site.is_well();
}

#[test]
fn another_certificate_than_the_pinned_one_is_not_trusted() {
    let _watchdog = watchdog();
    let site = Site::new();
    let other = Identity::generate().unwrap().fingerprint().to_string();
    let error = Way { fingerprint: other.clone(), ..site.tcp().clone() }.connect().unwrap_err();
    assert!(matches!(error, ManagerError::Untrusted { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&other) && text.contains(&site.tcp().fingerprint), "{text}");
    site.is_well();
}

#[test]
fn what_is_published_stays_and_is_found_as_what_it_is() {
    let _watchdog = watchdog();
    let site = Site::new();
    for way in &site.ways {
        let client = way.connect().unwrap();
        client.publish("ages", &client.dict([("Ann".to_owned(), 31)]).unwrap()).unwrap();
        drop(client);
        // The client is gone. What it has published is not.
        let ages: Dict<String, i32> = site.manager.published("ages").unwrap().unwrap();
        assert_eq!(ages.get("Ann").unwrap(), Some(31));
        let other = site.manager.published::<List<i32>>("ages").unwrap_err();
        assert!(matches!(other, ManagerError::Decode(_)), "{other:?}");
        let text = other.to_string();
        assert!(text.contains("Dict<") && text.contains("List<i32>"), "{text}");
        assert!(!text.contains("Entry"), "{text}");
        // The name goes to another object. The first one lives as long as its handle.
        let (value, event) = (site.manager.value(1).unwrap(), site.manager.event().unwrap());
        block_on(site.manager.publish_async("ages", &(value, event))).unwrap();
        has_objects(&site.manager, 3);
        assert_eq!(ages.len().unwrap(), 1);
        drop(ages);
        has_objects(&site.manager, 2);
        let client = way.connect().unwrap();
        let both = client.published_async::<(Value<i32>, Event)>("ages");
        let (value, event) = block_on(both).unwrap().unwrap();
        assert!(!event.is_set().unwrap());
        assert!(client.unpublish("ages").unwrap() && !client.unpublish("ages").unwrap());
        assert!(!block_on(client.unpublish_async("ages")).unwrap());
        assert!(client.published::<Value<i32>>("ages").unwrap().is_none());
        assert_eq!(value.get().unwrap(), 1);
        drop((value, event));
        has_objects(&site.manager, 0);
    }
}

#[test]
fn an_object_of_another_manager_is_not_published() {
    let _watchdog = watchdog();
    let (site, other) = (Site::new(), Manager::start().unwrap());
    let foreign = other.list([1]).unwrap();
    for manager in [&site.manager, &site.tcp().connect().unwrap()] {
        let error = manager.publish("list", &foreign).unwrap_err();
        assert!(matches!(error, ManagerError::Encode(_)), "{error:?}");
        assert!(manager.published::<List<i32>>("list").unwrap().is_none());
    }
}

#[test]
fn values_of_all_sizes_go_both_ways_and_wait_for_each_other() {
    let _watchdog = watchdog();
    let site = Site::new();
    let near = site.manager.queue::<Vec<u8>>(Some(2)).unwrap();
    site.manager.publish("bytes", &near).unwrap();
    let sizes = [0, 1, 1000, 16_000, 17_000, 65_536, 300_000, 2_000_000];
    for way in &site.ways {
        let queue: Queue<Vec<u8>> = way.connect().unwrap().published("bytes").unwrap().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                for size in sizes {
                    queue.put(&vec![size as u8; size]).unwrap();
                }
            });
            for size in sizes {
                assert!(near.get().unwrap() == vec![size as u8; size], "{way:?} {size}");
            }
            scope.spawn(|| {
                for size in sizes {
                    near.put(&vec![1; size]).unwrap();
                }
            });
            for size in sizes {
                assert_eq!(queue.get().unwrap().len(), size, "{way:?}");
            }
        });
    }
}

#[task]
fn add(number: u64, more: u64) -> u64 {
    number + more
}

#[test]
fn near_and_far_clients_change_one_value_and_nothing_is_lost() {
    let _watchdog = watchdog();
    let site = Site::new();
    site.manager.publish("sum", &site.manager.value(0_u64).unwrap()).unwrap();
    thread::scope(|scope| {
        for _ in 0..2 {
            for way in &site.ways {
                scope.spawn(|| {
                    let client = way.connect().unwrap();
                    let sum: Value<u64> = client.published("sum").unwrap().unwrap();
                    for _ in 0..300 {
                        sum.update(add::with(1)).unwrap();
                    }
                });
            }
        }
    });
    let sum: Value<u64> = site.manager.published("sum").unwrap().unwrap();
    assert_eq!(sum.get().unwrap(), 1200);
}

#[task]
fn hold_by_name(way: Way) -> Done {
    let client = way.connect()?;
    let lock: Lock = client.published("lock")?.expect("it is published");
    let permits: Semaphore = client.published("permits")?.expect("it is published");
    let queue: Queue<u32> = client.published("queue")?.expect("it is published");
    let held: Event = client.published("held")?.expect("it is published");
    let _guard = lock.acquire()?;
    let _permit = permits.acquire()?;
    // What only this process has.
    let _own = (client.list([1])?, client.dict([(1, 2)])?);
    thread::scope(|scope| {
        scope.spawn(|| queue.get());
        held.set().expect("the server runs");
        sleep()
    })
}

#[test]
fn mg26_a_far_client_that_is_killed_leaves_nothing() {
    let _watchdog = watchdog();
    let site = Site::new();
    let manager = &site.manager;
    let (lock, permits) = (manager.lock().unwrap(), manager.semaphore(2).unwrap());
    let (queue, held) = (manager.queue::<u32>(None).unwrap(), manager.event().unwrap());
    manager.publish("lock", &lock).unwrap();
    manager.publish("permits", &permits).unwrap();
    manager.publish("queue", &queue).unwrap();
    manager.publish("held", &held).unwrap();
    for way in &site.ways {
        let child = start(hold_by_name::task(way.clone()));
        assert!(held.wait_timeout(LONG).unwrap());
        assert!(lock.try_acquire().unwrap().is_none());
        assert_eq!((permits.value().unwrap(), manager.objects().unwrap()), (1, 6));
        child.kill().unwrap();
        ends_killed(&child);
        assert!(lock.acquire_timeout(LONG).unwrap().expect("it is free").owner_died());
        eventually("the permit is back", || permits.value().unwrap() == 2);
        has_objects(manager, 4);
        // The call that waited takes no item.
        queue.put(&1).unwrap();
        assert_eq!(queue.try_get().unwrap(), Some(1), "{way:?}");
        held.clear().unwrap();
    }
}

/// Passes on what comes, between a client and a server. While it is silent, what the server sends
/// is lost, as if the client's machine was no more.
struct Network {
    address: String,
    silent: Arc<AtomicBool>,
    /// Tells when something was lost.
    lost: mpsc::Receiver<()>,
    sockets: [TcpStream; 2],
}

impl Network {
    fn to(server: &Way, connect: impl FnOnce(&Way) -> Manager) -> (Self, Manager) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let way = Way { address: address.clone(), ..server.clone() };
        let (silent, (loses, lost)) = (Arc::new(AtomicBool::new(false)), mpsc::channel());
        let (client, there) = thread::scope(|scope| {
            let accepts = scope.spawn(|| {
                let client = listener.accept().unwrap().0;
                let server = server.stranger();
                let pass = |from: &TcpStream, to: &TcpStream, silent: Option<Arc<AtomicBool>>| {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let loses = loses.clone();
                    thread::spawn(move || {
                        let mut bytes = [0; 4096];
                        while let Ok(len @ 1..) = from.read(&mut bytes) {
                            if silent.as_ref().is_some_and(|silent| silent.load(SeqCst)) {
                                let _ = loses.send(());
                            } else if to.write_all(&bytes[..len]).is_err() {
                                return;
                            }
                        }
                    });
                };
                pass(&client, &server, None);
                pass(&server, &client, Some(Arc::clone(&silent)));
                [client, server]
            });
            let manager = connect(&way);
            (accepts.join().unwrap(), manager)
        });
        (Network { address, silent, lost, sockets: client }, there)
    }
}

#[test]
fn an_item_that_was_sent_to_a_machine_that_has_vanished_is_got_by_another_client() {
    let _watchdog = watchdog();
    let site = Site::new();
    let queue = site.manager.queue::<Mixed>(None).unwrap();
    site.manager.publish("jobs", &queue).unwrap();
    let (network, client) = Network::to(site.tcp(), |way| way.connect().unwrap());
    assert_ne!(network.address, site.tcp().address);
    let there: Queue<Mixed> = client.published("jobs").unwrap().unwrap();
    // What has arrived is got once, although the client has asked for nothing since.
    queue.put(&mixed()).unwrap();
    assert_eq!(there.get().unwrap(), mixed());
    network.silent.store(true, SeqCst);
    queue.put(&mixed()).unwrap();
    let gets = thread::spawn(move || there.get());
    network.lost.recv().unwrap();
    assert_eq!(queue.len().unwrap(), 0, "it is on its way");
    for socket in &network.sockets {
        socket.shutdown(Shutdown::Both).unwrap();
    }
    assert_eq!(queue.get_timeout(LONG).unwrap(), Some(mixed()));
    assert!(matches!(gets.join().unwrap(), Err(ManagerError::Gone(_))));
    // The references of the client have ended behind that.
    drop(client);
    has_objects(&site.manager, 1);
    assert_eq!(queue.try_get().unwrap(), None);
}

#[task]
fn get_by_name_and_die(way: Way) -> Done {
    let client = way.connect()?;
    let queue: Queue<Mixed> = client.published("jobs")?.expect("it is published");
    // When it is gone, the server knows that this process is.
    let _event = client.event()?;
    queue.get()?;
    die()
}

#[test]
fn an_item_that_a_far_client_has_got_ends_with_the_client() {
    let _watchdog = watchdog();
    let site = Site::new();
    let queue = site.manager.queue::<Mixed>(None).unwrap();
    site.manager.publish("jobs", &queue).unwrap();
    for way in &site.ways {
        queue.put(&mixed()).unwrap();
        ends_killed(&start(get_by_name_and_die::task(way.clone())));
        has_objects(&site.manager, 1);
        assert_eq!(queue.try_get().unwrap(), None, "{way:?}");
    }
}

#[task]
fn die_while_sending(way: Way) -> Done {
    let client = way.connect()?;
    let list: List<Vec<u8>> = client.published("list")?.expect("it is published");
    let sends = list.clone();
    thread::spawn(move || while sends.push(&vec![7; 1 << 20]).is_ok() {});
    // The next one is on its way when two are there.
    while list.len()? < 2 {}
    die()
}

#[test]
fn half_a_message_of_a_killed_client_is_no_message() {
    let _watchdog = watchdog();
    let site = Site::new();
    let list = site.manager.list::<Vec<u8>>([]).unwrap();
    site.manager.publish("list", &list).unwrap();
    for way in &site.ways {
        ends_killed(&start(die_while_sending::task(way.clone())));
        assert!(list.snapshot().unwrap().iter().all(|bytes| *bytes == vec![7; 1 << 20]));
        list.clear().unwrap();
    }
    site.is_well();
}

#[test]
fn a_server_that_is_killed_is_gone_for_its_clients_at_once() {
    let _watchdog = watchdog();
    let site = Site::new();
    let ways = &site.ways;
    let clients = [ways[0].connect().unwrap(), ways[1].connect().unwrap()];
    thread::scope(|scope| {
        let waits = clients.each_ref().map(|client| {
            let queue = client.queue::<u32>(None).unwrap();
            scope.spawn(move || queue.get())
        });
        eventually("both are there", || site.manager.objects().unwrap() == 2);
        signal(site.manager.pid(), rustix::process::Signal::KILL);
        for call in waits {
            assert!(matches!(call.join().unwrap(), Err(ManagerError::Gone(_))));
        }
    });
    eventually("it is dead", || site.manager.exit_status().is_some());
    for (client, way) in clients.iter().zip(ways) {
        assert!(matches!(client.objects(), Err(ManagerError::Gone(_))));
        let error = way.connect().unwrap_err();
        assert!(matches!(error, ManagerError::NotConnected { .. }), "{error:?}");
    }
}

/// Leaves a child that lives on when this process is dead, and when its group is ended. Returns its
/// id.
#[task]
fn leave_a_child(_before: u32) -> u32 {
    // SAFETY: the copy makes system calls only.
    match unsafe { executor::fork() }.expect("a copy can be made") {
        Fork::Child => loop {
            // SAFETY: system calls.
            unsafe {
                libc::setsid();
                libc::pause();
            }
        },
        Fork::Parent(child) => {
            // SAFETY: asks the system.
            while unsafe { libc::getsid(child as i32) } != child as i32 {
                thread::yield_now();
            }
            child
        }
    }
}

#[test]
fn a_killed_server_is_gone_at_once_although_a_child_of_one_of_its_functions_lives_on() {
    /// Ends the child, also if the test fails.
    struct Left(u32);
    impl Drop for Left {
        fn drop(&mut self) {
            signal(self.0, rustix::process::Signal::KILL);
        }
    }
    let _watchdog = watchdog();
    let site = Site::new();
    let clients = [site.ways[0].connect().unwrap(), site.ways[1].connect().unwrap()];
    let queues =
        [&site.manager, &clients[0], &clients[1]].map(|one| one.queue::<u32>(None).unwrap());
    let left = Left(site.manager.value(0_u32).unwrap().update(leave_a_child::with()).unwrap());
    thread::scope(|scope| {
        let waits = queues.each_ref().map(|queue| scope.spawn(|| queue.get()));
        signal(site.manager.pid(), rustix::process::Signal::KILL);
        for call in waits {
            assert!(matches!(call.join().unwrap(), Err(ManagerError::Gone(_))));
        }
    });
    assert!(clients.iter().all(|client| matches!(client.objects(), Err(ManagerError::Gone(_)))));
    // Nobody knocks at a door that nobody opens.
    let refused = site.manager.listen(&site.folder.path().join("late").into());
    assert!(matches!(refused, Err(ManagerError::Gone(_))), "{refused:?}");
    assert!(site.ways.iter().all(|way| way.connect().is_err()));
    assert!(state(left.0).is_some_and(|state| state != 'Z'));
}

#[test]
fn limits_hold_for_clients_that_come_by_an_address() {
    let _watchdog = watchdog();
    let site = Site::of(Manager::builder().clients_max(3).message_bytes_max(1000));
    let clients = [site.tcp().connect().unwrap(), site.ways[0].connect().unwrap()];
    for way in &site.ways {
        let error = way.connect().unwrap_err();
        assert!(matches!(error, ManagerError::Gone(_)), "{error:?}");
        assert!(error.to_string().contains("as many clients as it allows"), "{error}");
    }
    for client in &clients {
        let error = client.value(vec![0_u8; 2000]).unwrap_err();
        assert!(matches!(error, ManagerError::Limit(_)), "{error:?}");
        assert_eq!(client.value(1).unwrap().get().unwrap(), 1);
    }
    drop(clients);
    eventually("their places are free", || site.tcp().connect().is_ok());
}

#[test]
fn a_manager_says_why_it_cannot_listen() {
    let _watchdog = watchdog();
    let site = Site::new();
    let says = |manager: &Manager, address: &str, expected: &str| {
        let error = manager.listen(&address.parse().unwrap()).unwrap_err();
        let ManagerError::NotListening { address: at, error: why, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(at.to_string(), address);
        assert!(why.to_string().contains(expected), "{address}: {why}");
    };
    let bare = Manager::start().unwrap();
    says(&bare, "/tmp/never", "ManagerBuilder::key");
    let empty = Manager::builder().key(AuthKey::new("")).start().unwrap();
    says(&empty, "/tmp/never", "an empty one");
    let keyed = Manager::builder().key(AuthKey::new("key")).start().unwrap();
    says(&keyed, "127.0.0.1:0", "ManagerBuilder::identity");
    says(&site.manager, "@name", "abstract");
    says(&site.manager, &site.ways[0].address, "in use");
    says(&site.manager, &site.ways[1].address, "in use");
    says(&site.manager, "/nowhere/at/all", "No such file");
    assert_eq!(site.manager.addresses(), [site.ways[0].address(), site.ways[1].address()]);
    assert!(bare.addresses().is_empty());
    let far = site.tcp().connect().unwrap();
    let refused = far.listen(&"127.0.0.1:0".parse().unwrap());
    assert!(matches!(refused, Err(ManagerError::Refused(_))) && far.addresses().is_empty());
    site.manager.shutdown();
    let late = site.manager.listen(&"127.0.0.1:0".parse().unwrap());
    assert!(matches!(late, Err(ManagerError::Gone(_))), "{late:?}");
}

#[test]
fn a_socket_is_for_this_user_and_stands_in_a_folder_that_others_cannot_change() {
    let _watchdog = watchdog();
    let site = Site::new();
    let file = site.folder.path().join("socket");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&file), 0o600);
    let open = site.folder.path().join("open");
    std::fs::create_dir(&open).unwrap();
    for (mode, allowed) in [(0o777, false), (0o720, false), (0o1777, true), (0o755, true)] {
        std::fs::set_permissions(&open, PermissionsExt::from_mode(mode)).unwrap();
        let listens = site.manager.listen(&open.join(format!("{mode:o}")).into());
        match listens {
            Ok(_) => assert!(allowed, "{mode:o}"),
            Err(error) => {
                assert!(!allowed, "{mode:o}: {error:?}");
                assert!(format!("{error:?}").contains("other users may change"), "{error:?}");
            }
        }
    }
}

#[test]
fn the_file_of_a_server_is_removed_or_taken_over() {
    let _watchdog = watchdog();
    let site = Site::new();
    let file = site.folder.path().join("socket");
    let taken = Manager::builder().key(AuthKey::new(&site.ways[0].key)).start().unwrap();
    assert!(taken.listen(&file.as_path().into()).is_err(), "it is in use");
    signal(site.manager.pid(), rustix::process::Signal::KILL);
    eventually("it is dead", || site.manager.exit_status().is_some());
    assert!(file.exists(), "nobody was there to remove it");
    taken.listen(&file.as_path().into()).unwrap();
    // The first owner does not remove what is no longer its own.
    site.manager.shutdown();
    assert_eq!(site.ways[0].connect().unwrap().objects().unwrap(), 0);
    taken.shutdown();
    assert!(!file.exists());
}

#[task]
fn connect_as(user: u32, way: Way) -> Result<String, String> {
    let user = rustix::process::Uid::from_raw(user);
    rustix::thread::set_thread_uid(user).map_err(|error| error.to_string())?;
    match way.connect() {
        Ok(_) => Err("it was let in".to_owned()),
        Err(error) => Ok(format!("{error:?}")),
    }
}

#[test]
fn another_user_does_not_come_in_even_with_the_key() {
    let _watchdog = watchdog();
    if !rustix::process::geteuid().is_root() {
        println!("not run: only root can act as another user");
        return;
    }
    let site = Site::new();
    let connect = || start(connect_as::task(65_533, site.ways[0].clone())).join().unwrap();
    let refused = connect();
    assert!(refused.contains("ermission denied"), "{refused}");
    // Somebody has changed the permissions: the server asks the kernel who it is.
    let everybody = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    everybody(site.folder.path(), 0o755);
    everybody(&site.folder.path().join("socket"), 0o666);
    let refused = connect();
    assert!(refused.contains("closed the connection"), "{refused}");
    site.is_well();
}

#[test]
fn serve_returns_when_the_server_has_ended() {
    let _watchdog = watchdog();
    let manager = Manager::builder().key(AuthKey::new("key")).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let address = Address::from(folder.path().join("socket"));
    thread::scope(|scope| {
        let serves = scope.spawn(|| manager.serve(&address));
        eventually("it listens", || manager.addresses() == [address.clone()]);
        assert!(Manager::connect(&address, &AuthKey::new("key")).is_ok());
        manager.shutdown();
        serves.join().unwrap().unwrap();
    });
    let manager = Manager::builder().key(AuthKey::new("key")).start().unwrap();
    thread::scope(|scope| {
        let serves = scope.spawn(|| manager.serve(&address));
        eventually("it listens", || manager.addresses() == [address.clone()]);
        signal(manager.pid(), rustix::process::Signal::KILL);
        let error = serves.join().unwrap().unwrap_err();
        assert!(matches!(error, ManagerError::Gone(_)), "{error:?}");
    });
}

/// Waits until the server has closed a connection.
fn is_cut_off(mut stranger: TcpStream) {
    stranger.set_read_timeout(Some(LONG)).unwrap();
    if let Err(error) = std::io::copy(&mut stranger, &mut std::io::sink()) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
}

#[test]
fn strangers_at_the_gate_are_turned_away_and_disturb_nobody() {
    let _watchdog = watchdog();
    let site = Site::new();
    let friend = site.tcp().connect().unwrap();
    let list = friend.list([1]).unwrap();
    for said in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 10_000], &[0x16, 3, 1, 0, 5, 9, 9, 9, 9, 9]] {
        let mut stranger = site.tcp().stranger();
        stranger.write_all(said).unwrap();
        is_cut_off(stranger);
        assert_eq!(list.len().unwrap(), 1);
    }
    // Those that say nothing, or only half of something, leave at the latest at the deadline.
    let silent = site.tcp().stranger();
    let mut half = site.tcp().stranger();
    half.write_all(&[0x16, 3, 1, 2]).unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    let mut slow = site.tcp().stranger();
    let drips = thread::spawn(move || {
        // A record of TLS, one byte after the other, for as long as the server listens.
        let record = [0x16, 3, 1, 0x20, 0].into_iter().chain(std::iter::repeat(1));
        for byte in record {
            if slow.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    is_cut_off(half);
    is_cut_off(silent);
    drips.join().unwrap();
    assert_eq!(list.len().unwrap(), 1);
    site.is_well();
}

#[test]
fn a_thousand_strangers_keep_no_client_out() {
    let _watchdog = watchdog();
    let _alone = alone();
    let site = Site::new();
    let friend = site.tcp().connect().unwrap();
    let list = friend.list([1]).unwrap();
    let mut strangers = Vec::new();
    for number in 0..1000 {
        strangers.push(site.tcp().stranger());
        if number % 100 == 99 {
            assert_eq!(list.len().unwrap(), 1);
            site.is_well();
        }
        if number % 3 == 0 {
            // Closed with something unsent: the peer gets a reset.
            let stranger = strangers.pop().unwrap();
            rustix::net::sockopt::set_socket_linger(&stranger, Some(Duration::ZERO)).unwrap();
        }
    }
    // At most 128 of them are still there. The oldest are not.
    is_cut_off(strangers.swap_remove(0));
    assert_eq!(list.len().unwrap(), 1);
}

#[task]
fn few_files(count: u64) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = Rlimit { current: Some(count), maximum: Some(count) };
    setrlimit(Resource::Nofile, limit).map_err(|error| error.to_string())
}

#[test]
fn a_server_without_descriptors_serves_on_and_lets_clients_in_later() {
    let _watchdog = watchdog();
    let _alone = alone();
    let site = Site::of(Manager::builder().initializer(few_files::task(60)));
    let friend = site.tcp().connect().unwrap();
    let list = friend.list([1]).unwrap();
    let strangers: Vec<_> = (0..200).map(|_| site.tcp().stranger()).collect();
    assert_eq!(list.len().unwrap(), 1);
    // Strangers have to leave when a client comes.
    eventually("a client comes in", || site.tcp().connect().is_ok());
    drop(strangers);
    // Clients that are in are not asked to leave.
    let clients = (0..100).map_while(|_| {
        let address = site.tcp().address();
        let trust = Trust::fingerprint(site.tcp().fingerprint.parse().unwrap());
        let connector = Manager::connector(&address, &AuthKey::new(&site.tcp().key)).trust(trust);
        connector.timeout(Duration::from_millis(500)).connect().ok()
    });
    let clients: Vec<_> = clients.collect();
    assert!((10..60).contains(&clients.len()), "{}", clients.len());
    assert_eq!(list.len().unwrap(), 1);
    assert!(clients.iter().all(|client| client.objects().is_ok()));
    drop(clients);
    eventually("a client comes in", || site.tcp().connect().is_ok());
    assert_eq!(list.len().unwrap(), 1);
}

#[task]
fn serve_until_killed(folder: PathBuf) -> Done {
    let manager = Manager::builder().key(AuthKey::new("key")).start()?;
    manager.serve(&folder.join("socket").into())
}

#[test]
fn a_server_ends_with_the_process_that_serves() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let address = Address::from(folder.path().join("socket"));
    let owner = start(serve_until_killed::task(folder.path().to_owned()));
    let key = AuthKey::new("key");
    let mut client = None;
    eventually("it listens", || {
        client = Manager::connect(&address, &key).ok();
        client.is_some()
    });
    let client = client.unwrap();
    let (server, queue) = (client.pid(), client.queue::<u32>(None).unwrap());
    thread::scope(|scope| {
        let waits = scope.spawn(|| queue.get());
        owner.kill().unwrap();
        assert!(matches!(waits.join().unwrap(), Err(ManagerError::Gone(_))));
    });
    ends_killed(&owner);
    eventually("the server is gone", || state(server).is_none());
    assert!(Manager::connect(&address, &key).is_err());
}

/// Uses a handle in a copy of this process, in both forms, and sends it there. Returns how the copy
/// has ended.
#[task]
fn use_in_a_copy(way: Way) -> Result<i32, ManagerError> {
    let manager = way.connect()?;
    let list: List<u8> = manager.published("list")?.expect("it is published");
    assert_eq!(list.len()?, 2);
    // This process keeps it for a message that nobody receives.
    let (sends, _receives) = pipe::<List<u8>, List<u8>>().expect("a pipe can be made");
    sends.send(&list).expect("the other side is there");
    // SAFETY: the copy uses only its own memory, and the other threads of this process only wait:
    // none of them holds a lock of it.
    match unsafe { executor::fork() }.expect("a copy can be made") {
        Fork::Child => {
            let first = block_on(list.len_async()).is_ok_and(|len| len == 2);
            let then = list.push(&3).is_ok() && list.len().is_ok_and(|len| len == 3);
            let code = match first && then {
                true => send_in_a_copy(&way, list).map_or(2, |right| if right { 7 } else { 3 }),
                false => 1,
            };
            // SAFETY: ends the copy, and runs nothing of its parent.
            unsafe { libc::_exit(code) }
        }
        Fork::Parent(copy) => {
            let mut status = 0;
            // SAFETY: waits for a child of this process that nobody has waited for.
            unsafe { libc::waitpid(copy as i32, &raw mut status, 0) };
            Ok(libc::WEXITSTATUS(status))
        }
    }
}

/// Sends an object that only the message keeps, and then one that the parent has sent as well.
/// Returns whether both have arrived.
fn send_in_a_copy(way: &Way, list: List<u8>) -> Result<bool, ManagerError> {
    let (sends, receives) = pipe::<List<u8>, List<u8>>().expect("a pipe can be made");
    let own = way.connect()?.list([9_u8])?;
    sends.send(&own).expect("the other side is there");
    drop(own);
    for _ in 0..2 {
        sends.send(&list).expect("the other side is there");
    }
    drop(list);
    let receive = || receives.recv().expect("it was sent").snapshot();
    Ok(receive()? == [9] && receive()? == [1, 2, 3] && receive()? == [1, 2, 3])
}

#[test]
fn a_copy_of_a_client_connects_by_itself() {
    let _watchdog = watchdog();
    let site = Site::new();
    for way in &site.ways {
        let list = site.manager.list([1_u8, 2]).unwrap();
        site.manager.publish("list", &list).unwrap();
        let child = start(use_in_a_copy::task(way.clone()));
        assert_eq!(child.join().unwrap(), 7, "{way:?}");
        assert_eq!(list.len().unwrap(), 3);
    }
}
