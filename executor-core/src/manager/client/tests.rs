//! Clients over TCP, and a server that is lost, comes back, or is another one. The server is played
//! by threads of the test: the real core behind real links.

use std::{
    collections::HashMap,
    net::TcpListener,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    super::{
        BoundedSemaphore, Dict, Event, Fingerprint, Identity, List, Lock, Manager, ManagerError,
        Queue, Trust,
        link::{
            LinkSender,
            far::{FarEnd, Meeting},
            stream::{refusal, welcome},
            tls::{TlsClient, TlsServer},
        },
        protocol::{HEADER_BYTES, Kind, Operation, Request},
        server::core::{Actions, ClientId, Core, Limits},
    },
    Backoff, Reference,
    door::{ServerId, check_knock},
    route::RouteOptions,
    way,
};
use crate::{
    ipc::{Address, AuthKey},
    os::{fork::NotInherited, random, std_or_model::lock},
};

/// A server that is played by threads.
struct Played {
    address: Address,
    fingerprint: Fingerprint,
    stage: Arc<Stage>,
    acceptor: Option<JoinHandle<()>>,
}

struct Stage {
    state: Mutex<State>,
    tls: TlsServer,
    key: Mutex<&'static str>,
    /// Whether clients are sent away.
    away: AtomicBool,
    /// Whether it takes long until a client is in.
    slow: AtomicBool,
    over: AtomicBool,
    /// How many have connected so far, whether they were let in or not.
    came: AtomicUsize,
}

struct State {
    id: ServerId,
    core: Core,
    actions: Actions,
    clients: HashMap<ClientId, (LinkSender, Arc<NotInherited>)>,
    /// How often each operation was asked for.
    asked: HashMap<Operation, usize>,
}

impl State {
    fn new() -> Self {
        let limits =
            Limits { clients: 50, objects: 1000, calls_per_client: 100, bytes_per_client: 1 << 30 };
        State {
            id: ServerId(u128::from_le_bytes(random::bytes().unwrap())),
            core: Core::new(limits, |_| false),
            actions: Actions::default(),
            clients: HashMap::new(),
            asked: HashMap::new(),
        }
    }

    fn perform(&mut self) {
        for (client, reply, body, _) in self.actions.replies() {
            if let Some((sender, _)) = self.clients.get_mut(&client) {
                let _ = sender.send(&reply.to_bytes(), body.to_bytes());
                let _ = sender.must_wake();
            }
        }
        self.actions.clear();
    }

    fn forget(&mut self, client: ClientId) {
        if self.clients.remove(&client).is_some() {
            self.core.disconnect(client, 0, &mut self.actions);
            self.perform();
        }
    }
}

const KEY: &str = "key";

impl Played {
    fn new() -> Self {
        let identity = Identity::generate().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().into();
        let stage = Arc::new(Stage {
            state: Mutex::new(State::new()),
            tls: TlsServer::new(&identity).unwrap(),
            key: Mutex::new(KEY),
            away: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            over: AtomicBool::new(false),
            came: AtomicUsize::new(0),
        });
        let own = Arc::clone(&stage);
        let acceptor = thread::spawn(move || {
            let mut threads = Vec::new();
            while let Ok((socket, _)) = listener.accept() {
                if own.over.load(Ordering::SeqCst) {
                    break;
                }
                own.came.fetch_add(1, Ordering::SeqCst);
                if own.away.load(Ordering::SeqCst) {
                    continue;
                }
                let stage = Arc::clone(&own);
                threads.push(thread::spawn(move || stage.meet(NotInherited::new(socket.into()))));
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        Played { address, fingerprint: identity.fingerprint(), stage, acceptor: Some(acceptor) }
    }

    fn connector(&self) -> super::super::Connector {
        Manager::connector(&self.address, &AuthKey::new(KEY))
            .trust(Trust::fingerprint(self.fingerprint))
    }

    fn connect(&self) -> Manager {
        self.connector().connect().unwrap()
    }

    /// Connects as one that connects again.
    fn connect_for_good(&self) -> Manager {
        let backoff = Backoff::default().first(Duration::from_millis(1));
        self.connector().reconnect(backoff.max(Duration::from_millis(20))).connect().unwrap()
    }

    fn clients(&self) -> usize {
        lock(&self.stage.state).clients.len()
    }

    /// Loses all connections but those of the first `keep` clients.
    fn lose_all_but(&self, keep: usize) {
        let mut state = lock(&self.stage.state);
        let mut clients: Vec<ClientId> = state.clients.keys().copied().collect();
        clients.sort();
        for client in clients.into_iter().skip(keep) {
            if let Some((_, socket)) = state.clients.get(&client) {
                let socket = socket.get().unwrap();
                let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
            }
            state.forget(client);
        }
    }

    /// Loses all connections and all objects, as a server does that is started again.
    fn restart(&self) {
        self.lose_all_but(0);
        *lock(&self.stage.state) = State::new();
    }

    fn is_away(&self, away: bool) {
        self.stage.away.store(away, Ordering::SeqCst);
    }

    /// Waits until an operation was asked for so many times.
    fn was_asked(&self, operation: Operation, times: usize) {
        self.until(|state| state.asked.get(&operation).is_some_and(|asked| *asked >= times));
    }

    /// Waits until something holds that another thread brings about.
    fn until(&self, holds: impl Fn(&State) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !holds(&lock(&self.stage.state)) {
            assert!(Instant::now() < end, "it does not happen");
            thread::yield_now();
        }
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        self.lose_all_but(0);
        self.stage.over.store(true, Ordering::SeqCst);
        if let Address::Tcp(host, port) = &self.address {
            let _ = std::net::TcpStream::connect((host.as_str(), *port));
        }
        let ended = self.acceptor.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}

impl Stage {
    fn meet(&self, socket: NotInherited) {
        if self.slow.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(200));
        }
        let meeting = Meeting::accept(socket, &self.tls, AuthKey::new(*lock(&self.key))).unwrap();
        let end = Instant::now().checked_add(Duration::from_secs(60));
        if let Ok(end) = meeting.wait(end) {
            assert_eq!(check_knock(end.knock()), Ok(()));
            self.serve(end);
        }
    }

    fn serve(&self, end: FarEnd) {
        let socket = Arc::clone(end.socket());
        let (mut sender, mut receiver) = end.into_ends(1 << 30);
        let client = {
            let mut state = lock(&self.state);
            let Ok(client) = state.core.connect() else {
                let (header, body) = refusal("too many");
                sender.send(&header, &body).unwrap();
                let _ = sender.must_wake();
                return;
            };
            let (header, body) = welcome(state.id, 1 << 30);
            sender.send(&header, &body).unwrap();
            let _ = sender.must_wake();
            state.clients.insert(client, (sender, Arc::clone(&socket)));
            client
        };
        let mut message = Vec::new();
        loop {
            receiver.awake();
            loop {
                match receiver.receive(&mut message) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(_) => return lock(&self.state).forget(client),
                }
                let (header, body) = message.split_at(HEADER_BYTES);
                let request = Request::from_bytes(header.first_chunk().unwrap()).unwrap();
                let mut state = lock(&self.state);
                let State { core, actions, clients, asked, .. } = &mut *state;
                *asked.entry(request.operation).or_default() += 1;
                if clients.contains_key(&client) {
                    core.request(client, request, body.into(), actions);
                    state.perform();
                }
            }
            let mut flags = PollFlags::IN;
            if let Some((sender, _)) = lock(&self.state).clients.get_mut(&client) {
                let _ = sender.flush();
                if sender.wants_write() {
                    flags |= PollFlags::OUT;
                }
            }
            // Another thread may leave something unsent meanwhile.
            let moment = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
            let mut fds = [PollFd::from_borrowed_fd(socket.get().unwrap(), flags)];
            let _ = poll(&mut fds, Some(&moment));
        }
    }
}

fn is_gone<T>(result: &Result<T, ManagerError>) -> bool {
    matches!(result, Err(ManagerError::Gone(_)))
}

#[test]
fn objects_are_used_over_tcp() {
    let played = Played::new();
    let manager = played.connect();
    let dict = manager.dict([("a".to_owned(), 1), ("b".to_owned(), 2)]).unwrap();
    assert_eq!(dict.get("a").unwrap(), Some(1));
    assert_eq!(dict.insert("a", &5).unwrap(), Some(1));
    let nested: List<Dict<String, i32>> = manager.list([dict.clone()]).unwrap();
    assert_eq!(nested.get(0).unwrap().unwrap().get("a").unwrap(), Some(5));
    assert_eq!(manager.objects().unwrap(), 2);
    drop((dict, nested));
    assert_eq!(manager.objects().unwrap(), 0);
    assert_eq!(manager.pid(), std::process::id());
    assert_eq!(manager.exit_status(), None);
}

#[test]
fn large_values_go_both_ways_while_other_threads_call() {
    let played = Played::new();
    let manager = played.connect();
    let large = vec![7_u8; 3_000_000];
    thread::scope(|scope| {
        for number in 0..4 {
            let value = manager.value(large.clone()).unwrap();
            let count = manager.list([0]).unwrap();
            scope.spawn(move || {
                for round in 0..3 {
                    count.push(&round).unwrap();
                    if number % 2 == 0 {
                        assert_eq!(value.get().unwrap().len(), 3_000_000);
                        value.set(&vec![number; 2_000_000 + round]).unwrap();
                        assert_eq!(value.get().unwrap().len(), 2_000_000 + round);
                        value.set(&vec![number; 3_000_000]).unwrap();
                    }
                }
                assert_eq!(count.len().unwrap(), 4);
            });
        }
    });
}

#[test]
fn futures_get_their_replies_over_tcp() {
    let played = Played::new();
    let manager = played.connect();
    let queue: Queue<i32> = manager.queue(None).unwrap();
    let list = manager.list([1, 2, 3]).unwrap();
    let got = futures::executor::block_on(async {
        let (got, put) = futures::join!(queue.get_async(), queue.put_async(&4));
        put.unwrap();
        (got.unwrap(), list.len_async().await.unwrap())
    });
    assert_eq!(got, (4, 3));
}

#[test]
fn without_being_asked_to_nothing_is_connected_again() {
    let played = Played::new();
    let manager = played.connect();
    let queue: Queue<i32> = manager.queue(None).unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| queue.get());
        let future = scope.spawn(|| futures::executor::block_on(queue.get_async()));
        played.was_asked(Operation::QueueGet, 2);
        played.lose_all_but(0);
        assert!(is_gone(&waits.join().unwrap()));
        assert!(is_gone(&future.join().unwrap()));
    });
    assert!(is_gone(&queue.len()));
    assert!(is_gone(&manager.list([1])));
    assert!(is_gone(&manager.objects()));
    assert_eq!(played.stage.came.load(Ordering::SeqCst), 1);
}

#[test]
fn calls_that_change_nothing_are_made_again_and_objects_that_others_keep_are_still_there() {
    let played = Played::new();
    // The first client stays, and keeps the objects.
    let first = played.connect();
    let (event, dict) = (first.event().unwrap(), first.dict([(1, 10)]).unwrap());
    let manager = played.connect_for_good();
    let (own_event, own_dict) = share(&manager, &event, &dict);
    thread::scope(|scope| {
        let waits = scope.spawn(|| own_event.wait());
        let future = scope.spawn(|| futures::executor::block_on(own_event.wait_async()));
        for _ in 0..3 {
            assert_eq!(own_dict.get(&1).unwrap(), Some(10));
            played.lose_all_but(1);
            assert_eq!(own_dict.get(&1).unwrap(), Some(10));
            assert_eq!(own_dict.len().unwrap(), 1);
            assert_eq!(futures::executor::block_on(own_dict.len_async()).unwrap(), 1);
        }
        event.set().unwrap();
        waits.join().unwrap().unwrap();
        future.join().unwrap().unwrap();
    });
    assert_eq!(own_dict.insert(&1, &11).unwrap(), Some(10));
    assert_eq!(dict.get(&1).unwrap(), Some(11));
    // Its own objects are gone with the connection.
    let own = manager.list([1]).unwrap();
    played.lose_all_but(1);
    assert!(matches!(own.len(), Err(ManagerError::NoObject)), "{:?}", own.len());
    assert_eq!(manager.list([1, 2]).unwrap().len().unwrap(), 2);
}

/// Makes handles of the objects of one connection for another one.
fn share(manager: &Manager, event: &Event, dict: &Dict<i32, i32>) -> (Event, Dict<i32, i32>) {
    let both = manager.value((event.clone(), dict.clone())).unwrap();
    both.get().unwrap()
}

#[test]
fn a_call_in_flight_that_changes_something_fails_and_says_that_it_may_have_been_done() {
    let played = Played::new();
    let first = played.connect();
    let queue: Queue<i32> = first.queue(None).unwrap();
    let manager = played.connect_for_good();
    let own: Queue<i32> = manager.value(queue.clone()).unwrap().get().unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| own.get());
        let future = scope.spawn(|| futures::executor::block_on(own.get_async()));
        played.was_asked(Operation::QueueGet, 2);
        played.lose_all_but(1);
        for error in [waits.join().unwrap().unwrap_err(), future.join().unwrap().unwrap_err()] {
            let text = error.to_string();
            assert!(matches!(error, ManagerError::Gone(_)), "{text}");
            assert!(text.contains("not known"), "{text}");
        }
    });
    queue.put(&1).unwrap();
    assert_eq!(own.get().unwrap(), 1);
}

#[test]
fn a_server_that_was_started_again_has_other_objects() {
    let played = Played::new();
    let manager = played.connect_for_good();
    let list = manager.list([1]).unwrap();
    for round in 0..3 {
        played.restart();
        assert!(matches!(list.len(), Err(ManagerError::NoObject)), "{:?}", list.len());
        assert!(matches!(list.push(&1), Err(ManagerError::NoObject)));
        let other = manager.list([1, 2]).unwrap();
        assert_eq!(other.len().unwrap(), 2);
        assert_ne!(list, other);
        // A value that names an old object is not for the new server.
        assert!(manager.list([list.clone()]).is_err());
        let nested = manager.list([other.clone()]).unwrap();
        assert_eq!(nested.get(0).unwrap().unwrap(), other);
        assert!(played.stage.came.load(Ordering::SeqCst) <= 2 + round, "one attempt each");
    }
    assert_eq!(played.clients(), 1);
}

#[test]
fn guards_of_a_lost_connection_release_nothing() {
    let played = Played::new();
    let first = played.connect();
    let lock = first.lock().unwrap();
    let manager = played.connect_for_good();
    let own: Lock = manager.value(lock.clone()).unwrap().get().unwrap();
    let guard = own.acquire().unwrap();
    let other = own.acquire_timeout(Duration::from_millis(1)).unwrap();
    assert!(other.is_none());
    played.lose_all_but(1);
    // The server has released it, and says so to the next one.
    let again = own.acquire().unwrap();
    assert!(again.owner_died());
    drop(guard);
    assert!(own.is_locked().unwrap(), "the old guard has not released the new one's lock");
    played.lose_all_but(1);
    let error = again.release().unwrap_err();
    assert!(matches!(error, ManagerError::Gone(_)), "{error}");
    assert!(!lock.is_locked().unwrap());

    let semaphore = first.bounded_semaphore(1).unwrap();
    let own: BoundedSemaphore = manager.value(semaphore.clone()).unwrap().get().unwrap();
    let permit = own.acquire().unwrap();
    played.lose_all_but(1);
    let again = own.acquire().unwrap();
    drop(permit);
    assert_eq!(own.value().unwrap(), 0);
    drop(again);
    assert_eq!(own.value().unwrap(), 1);
}

#[test]
fn while_the_server_is_away_calls_wait_as_long_as_asked_and_not_longer() {
    let played = Played::new();
    let short = Backoff::default().first(Duration::from_millis(1)).total(Duration::from_millis(50));
    let hasty = played.connector().reconnect(short).connect().unwrap();
    let patient = played.connect_for_good();
    let (event, list) = (patient.event().unwrap(), hasty.list([1]).unwrap());
    played.is_away(true);
    played.lose_all_but(0);
    let error = list.len().unwrap_err();
    assert!(error.to_string().contains("could not be reached again"), "{error}");
    let error = futures::executor::block_on(list.len_async()).unwrap_err();
    assert!(error.to_string().contains("could not be reached again"), "{error}");
    // A deadline of the call is kept as well.
    assert!(!event.wait_timeout(Duration::from_millis(20)).unwrap());
    thread::scope(|scope| {
        let before = played.stage.came.load(Ordering::SeqCst);
        let threads: Vec<_> = (0..10).map(|_| scope.spawn(|| patient.objects())).collect();
        // They attempt together, and not each for itself.
        while played.stage.came.load(Ordering::SeqCst) < before + 3 {
            thread::yield_now();
        }
        played.is_away(false);
        threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap().unwrap(), 0));
    });
    assert!(matches!(event.is_set(), Err(ManagerError::NoObject)));
    assert_eq!(hasty.objects().unwrap(), 0);
}

#[test]
fn calls_that_have_less_time_than_connecting_takes_get_a_connection_all_the_same() {
    let played = Played::new();
    let first = played.connect();
    let (event, dict) = (first.event().unwrap(), first.dict([]).unwrap());
    event.set().unwrap();
    let manager = played.connect_for_good();
    let (own, _) = share(&manager, &event, &dict);
    assert!(own.wait_timeout(Duration::from_secs(60)).unwrap());
    played.stage.slow.store(true, Ordering::SeqCst);
    let before = played.stage.came.load(Ordering::SeqCst);
    played.lose_all_but(1);
    let end = Instant::now() + Duration::from_secs(30);
    while !own.wait_timeout(Duration::from_millis(20)).unwrap() {
        assert!(Instant::now() < end, "no attempt was long enough");
    }
    assert_eq!(played.stage.came.load(Ordering::SeqCst), before + 1, "one attempt");
}

#[test]
fn a_future_that_comes_late_waits_as_long_as_one_that_came_early() {
    let played = Played::new();
    let total = Duration::from_millis(400);
    let backoff = Backoff::default().first(Duration::from_millis(1)).max(total / 40).total(total);
    let manager = played.connector().reconnect(backoff).connect().unwrap();
    let lists = [manager.list([1]).unwrap(), manager.list([2]).unwrap()];
    played.is_away(true);
    played.lose_all_but(0);
    futures::executor::block_on(async {
        let [mut early, late] = lists.each_ref().map(|list| Box::pin(list.len_async()));
        assert!(futures::poll!(&mut early).is_pending());
        let (ended, begun) = futures::join!(early, async {
            thread::sleep(total / 2);
            let begun = Instant::now();
            assert!(is_gone(&late.await));
            begun
        });
        assert!(is_gone(&ended));
        assert!(begun.elapsed() >= total);
    });
}

#[test]
fn futures_that_wait_for_a_server_share_one_thread_and_can_be_dropped() {
    let played = Played::new();
    let manager = played.connect_for_good();
    let lists: Vec<_> = (0..60).map(|number| manager.list([number]).unwrap()).collect();
    played.is_away(true);
    played.lose_all_but(0);
    let threads = || {
        let threads = std::fs::read_dir("/proc/self/task").unwrap();
        threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok())
    };
    futures::executor::block_on(async {
        let mut calls: Vec<_> = lists.iter().map(|list| Box::pin(list.len_async())).collect();
        for call in &mut calls {
            assert!(futures::poll!(call).is_pending());
        }
        // There may be some of other tests.
        assert!(threads().filter(|name| name.trim() == "executor-manage").count() < 40);
        calls.truncate(10);
        played.is_away(false);
        for call in calls {
            assert!(matches!(call.await, Err(ManagerError::NoObject)));
        }
    });
    assert_eq!(manager.objects().unwrap(), 0);
}

#[test]
fn what_is_told_at_a_drop_makes_no_connection() {
    let played = Played::new();
    let manager = played.connect_for_good();
    let lock = manager.lock().unwrap();
    let guard = lock.acquire().unwrap();
    played.is_away(true);
    played.lose_all_but(0);
    let before = played.stage.came.load(Ordering::SeqCst);
    drop(guard);
    drop(lock);
    drop(manager);
    assert_eq!(played.stage.came.load(Ordering::SeqCst), before);
}

#[test]
fn mg24_another_key_another_server_and_nobody_at_all_are_errors_of_their_own() {
    let played = Played::new();
    let wrong = Manager::connector(&played.address, &AuthKey::new("other"))
        .trust(Trust::fingerprint(played.fingerprint));
    assert!(matches!(wrong.connect(), Err(ManagerError::Auth { .. })));
    let other = Identity::generate().unwrap().fingerprint();
    let wrong = played.connector().trust(Trust::fingerprint(other));
    assert!(matches!(wrong.connect(), Err(ManagerError::Untrusted { .. })));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = nobody.local_addr().unwrap().into();
    let connector = || {
        Manager::connector(&address, &AuthKey::new(KEY))
            .trust(Trust::fingerprint(other))
            .timeout(Duration::from_millis(20))
    };
    let silent = connector().connect().unwrap_err();
    assert!(matches!(silent, ManagerError::NotConnected { .. }), "{silent:?}");
    drop(nobody);
    let refused = connector().connect().unwrap_err();
    assert!(matches!(refused, ManagerError::NotConnected { .. }), "{refused:?}");
    for address in ["@name", "127.0.0.1:1"] {
        let error = Manager::connect(&address.parse().unwrap(), &AuthKey::new(KEY)).unwrap_err();
        assert!(matches!(error, ManagerError::Invalid(_)), "{error}");
        assert!(error.to_string().starts_with(&format!("the address `{address}`")), "{error}");
    }
    let error = Manager::connect(&"/no/such/socket".parse().unwrap(), &AuthKey::new(KEY));
    assert!(matches!(error, Err(ManagerError::NotConnected { .. })));
    // The server serves others.
    assert_eq!(played.connect().objects().unwrap(), 0);
}

#[test]
fn a_key_that_was_changed_meanwhile_ends_the_attempts_at_once() {
    let played = Played::new();
    // It would wait for an hour.
    let backoff = Backoff::default().total(Duration::from_secs(3600));
    let manager = played.connector().reconnect(backoff).connect().unwrap();
    *lock(&played.stage.key) = "another key";
    played.lose_all_but(0);
    assert!(matches!(manager.objects(), Err(ManagerError::Auth { .. })));
    *lock(&played.stage.key) = KEY;
    assert_eq!(manager.objects().unwrap(), 0, "the next call attempts again");
}

#[test]
fn all_calls_that_wait_are_told_that_the_key_is_another_one() {
    const CALLS: usize = 60;
    let played = Played::new();
    // So many attempts, one after the other, would take longer than one of the calls waits.
    let manager = played.connector().reconnect(Backoff::default()).connect().unwrap();
    let list = manager.list([1]).unwrap();
    let all_are_here = Barrier::new(CALLS + 1);
    thread::scope(|scope| {
        // The server looks at the key when somebody comes.
        let mut key = lock(&played.stage.key);
        *key = "another key";
        played.lose_all_but(0);
        let call = || {
            all_are_here.wait();
            list.len()
        };
        let calls: Vec<_> = (0..CALLS).map(|_| scope.spawn(call)).collect();
        all_are_here.wait();
        drop(key);
        for call in calls {
            let result = call.join().unwrap();
            assert!(matches!(result, Err(ManagerError::Auth { .. })), "{result:?}");
        }
    });
    assert!(played.stage.came.load(Ordering::SeqCst) < CALLS);
}

#[test]
fn a_handle_lets_go_of_a_connection_that_was_lost() {
    let played = Played::new();
    // The first client stays, and keeps the object.
    let first = played.connect();
    let request = first.server.request(Operation::Create).number(Kind::Event as u64);
    let event = Reference::created(&request.call().unwrap());
    let kept = first.dict([(1, event)]).unwrap();
    let manager = played.connect_for_good();
    let own = manager.value(kept.clone()).unwrap().get().unwrap().get(&1).unwrap().unwrap();
    let is_set = || own.request(Operation::EventIsSet).call().unwrap();
    let session = is_set().session();
    assert!(!session.is_forgotten());
    played.lose_all_but(1);
    is_set();
    assert_eq!(manager.objects().unwrap(), 2);
    assert!(session.is_forgotten(), "its memory and its lane are still there");
    is_set();
}

#[test]
fn the_key_of_a_far_handle_is_in_a_file_and_not_among_its_bytes() {
    use crate::wire::{
        attachment::{collect, is_secret, offer},
        buffer::Buffer,
        codec::{Format, Postcard},
    };
    let played = Played::new();
    let manager = played.connect();
    let list = manager.list([1]).unwrap();
    let mut buffer = Buffer::new();
    let (encoded, attached) =
        collect(|| Postcard::encode(&[list.clone(), list.clone()], &mut buffer));
    encoded.unwrap();
    let bytes = buffer.into_vec();
    let contains = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(!contains(KEY.as_bytes()) && !contains(b"127.0.0.1"));
    // The way, and one pipe for the object.
    assert_eq!(attached.iter().map(is_secret).collect::<Vec<_>>(), [true, false]);
    let same: [crate::manager::List<i32>; 2] =
        offer(&attached, || Postcard::decode(&bytes)).unwrap();
    assert_eq!(same, [list.clone(), list]);
    assert_eq!(same[1].len().unwrap(), 1);
    // Without them, it is nothing.
    let lost = Postcard::decode::<[crate::manager::List<i32>; 2]>(&bytes).unwrap_err();
    assert!(lost.message.contains("did not come"), "{}", lost.message);
    // A pipe is no way, and neither is another file.
    let swapped = [Arc::clone(&attached[1]), Arc::clone(&attached[0])];
    let other = crate::os::sealed::sealed_file(b"xsecret\x01 and garbage").unwrap();
    for wrong in [swapped, [Arc::new(other), Arc::clone(&attached[1])]] {
        let decoded = offer(&wrong, || Postcard::decode::<[crate::manager::List<i32>; 2]>(&bytes));
        let text = decoded.unwrap_err().message;
        assert!(text.contains("way to"), "{text}");
    }
}

#[test]
fn a_connected_manager_that_is_shut_down_ends_its_connection_and_nothing_else() {
    let played = Played::new();
    let (one, other) = (played.connect_for_good(), played.connect());
    let list = one.list([1]).unwrap();
    one.shutdown();
    assert!(is_gone(&list.len()) && is_gone(&one.objects()) && is_gone(&one.list([2])));
    played.until(|state| state.clients.len() == 1);
    assert_eq!(other.objects().unwrap(), 0);
}

#[test]
fn handles_keep_the_connection_that_their_manager_has_made() {
    let played = Played::new();
    let manager = played.connect_for_good();
    let list = manager.list([1]).unwrap();
    drop(manager);
    assert_eq!(list.len().unwrap(), 1);
    drop(list);
    played.until(|state| state.clients.is_empty());
}

#[test]
fn objects_of_two_connections_to_one_server_are_stored_in_each_other() {
    let played = Played::new();
    let (one, other) = (played.connect(), played.connect());
    let inner = one.list([1]).unwrap();
    let outer = other.dict([("inner".to_owned(), inner.clone())]).unwrap();
    drop(inner);
    drop(one);
    assert_eq!(outer.get("inner").unwrap().unwrap().get(0).unwrap(), Some(1));
    assert_eq!(other.objects().unwrap(), 2);
}

#[test]
fn a_way_whose_server_has_ended_keeps_no_connection() {
    let played = Played::new();
    let trust = Trust::fingerprint(played.fingerprint);
    let options = RouteOptions {
        address: played.address.clone(),
        key: AuthKey::new(KEY),
        tls: Some(TlsClient::new(&trust).unwrap()),
        trust: Some(trust),
        timeout: Duration::from_secs(30),
        backoff: None,
    };
    let way = || way::in_fork(&options).unwrap().unwrap();
    let connection = way().connection(None, None).unwrap();
    let weak = Arc::downgrade(&connection);
    assert!(Arc::ptr_eq(&way().current().unwrap(), &connection), "it stays while nobody has it");
    played.lose_all_but(0);
    while !connection.has_quietly_ended() {
        thread::yield_now();
    }
    drop(connection);
    assert!(way().current().is_none(), "a new one takes its place");
    assert_eq!(weak.strong_count(), 0, "its memory and its descriptor are still there");
}
