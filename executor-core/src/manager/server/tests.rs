//! The server in a thread of the test: clients that do not keep to the protocol, after each of
//! which an honest client is served as before, and many threads that share one connection.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    super::{
        client::{
            Door, GRANTED, Reference, ServerId,
            door::{REFUSED, WELCOME, knock},
        },
        protocol::{
            CallId, InSegment, Kind, ObjectId, Operation, Reply, Request, Status, put_number,
            put_value, put_value_head,
        },
    },
    core::Limits,
    crew,
    gate::GateSetup,
    serve::{Server, Setup, Turn},
};
use crate::{
    os::{arena::Arena, file, fork::NotInherited, random, socket},
    segment::{Results, Store},
    transport::ring::lane::{self, LaneReceiver, LaneSender, LaneSide},
};

const PATIENCE: Duration = Duration::from_secs(20);

struct Stage {
    door: Arc<Door>,
    owner: Option<OwnedFd>,
    server: Option<JoinHandle<std::io::Result<()>>>,
}

/// Makes a server that nobody runs, its door, and its owner's end.
fn server() -> (Server, Arc<Door>, OwnedFd) {
    let (inside, outside) = socket::pair().unwrap();
    let (owner, theirs) = socket::pair().unwrap();
    let id = ServerId(u128::from_le_bytes(random::bytes().unwrap()));
    let door = Arc::new(Door::near(id, Arc::new(outside)));
    let limits =
        Limits { clients: 8, objects: 1000, calls_per_client: 100, bytes_per_client: 1 << 20 };
    let setup = Setup {
        door: NotInherited::new(inside),
        outside: Arc::clone(&door),
        owner: NotInherited::new(theirs),
        limits,
        message_bytes_max: 1 << 20,
        unread_bytes_max: 1 << 20,
        leases_max: 20,
        ids_key: None,
        gate: GateSetup::default(),
    };
    (Server::new(setup).unwrap(), door, owner)
}

impl Stage {
    fn new() -> Self {
        let (server, door, owner) = server();
        let server = thread::spawn(move || crew::run(server));
        Stage { door, owner: Some(owner), server: Some(server) }
    }

    /// Checks that an honest client, which is new to the server, is served.
    fn is_well(&self) {
        let copy = Arc::new(self.door.socket().unwrap().try_clone().unwrap());
        let own = Arc::new(Door::near(self.door.id, copy));
        let server = Reference::to_server(own).unwrap();
        let request = server.request(Operation::Create).number(Kind::Cell as u64).value(&7);
        let cell = Reference::created(&request.call().unwrap());
        let answer = cell.request(Operation::CellGet).call().unwrap();
        assert_eq!(answer.value::<i32>().unwrap(), 7);
    }

    /// Comes in as a client does, and returns its socket and its lane.
    fn enter(&self) -> (OwnedFd, LaneSender, LaneReceiver) {
        enter(&self.door, || {})
    }
}

/// Comes in as a client does. `knocked` is called when the server is to answer.
fn enter(door: &Door, knocked: impl FnOnce()) -> (OwnedFd, LaneSender, LaneReceiver) {
    let (memory, descriptor) = lane::create().unwrap();
    let (ours, theirs) = socket::pair().unwrap();
    let fds = [theirs.as_fd(), descriptor.as_fd()];
    socket::send(&**door.socket().unwrap(), &knock(), &fds).unwrap();
    knocked();
    let (answer, _) = socket::recv(&ours).unwrap();
    assert_eq!(answer[0], WELCOME);
    let (sender, receiver) = lane::ends(&memory, LaneSide::Client, u64::MAX);
    (ours, sender, receiver)
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(self.owner.take());
        let ended = self.server.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

/// Waits until the server has closed this socket.
fn is_cut_off(socket: &OwnedFd) {
    let end = Instant::now() + PATIENCE;
    while !socket::is_hung_up(socket.as_fd()) {
        assert!(Instant::now() < end, "it is not cut off");
        let mut fds = [PollFd::new(socket, PollFlags::empty())];
        poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
    }
}

fn create(kind: Kind) -> Vec<u8> {
    let mut body = Vec::new();
    put_number(&mut body, kind as u64);
    if kind == Kind::Cell {
        put_value(&mut body, &[1; 200_000], &[]);
    }
    body
}

fn send(socket: &OwnedFd, lane: &mut LaneSender, call: u32, operation: Operation, body: &[u8]) {
    let object = if operation == Operation::Create { ObjectId::NONE } else { ObjectId(1) };
    let len = body.len() as u64;
    let request = Request { call: CallId(call), operation, object, len };
    lane.send(&request.to_bytes(), body).unwrap();
    while !lane.flush().unwrap() {
        let _ = socket::send_now(socket, b"!", &[]);
        thread::yield_now();
    }
    if lane.must_wake() {
        socket::send_now(socket, b"!", &[]).unwrap();
    }
}

#[test]
fn odd_messages_at_the_door_keep_nobody_out() {
    let stage = Stage::new();
    let (ours, theirs) = socket::pair().unwrap();
    let long = [7; 5000];
    for message in [&b""[..], b"x", &knock(), &long] {
        socket::send(&**stage.door.socket().unwrap(), message, &[]).unwrap();
        socket::send(&**stage.door.socket().unwrap(), message, &[ours.as_fd()]).unwrap();
        socket::send(&**stage.door.socket().unwrap(), message, &[ours.as_fd(), ours.as_fd()])
            .unwrap();
    }
    let file = std::fs::File::open("/proc/self/status").unwrap();
    socket::send(&**stage.door.socket().unwrap(), &knock(), &[theirs.as_fd(), file.as_fd()])
        .unwrap();
    drop(theirs);
    let (answer, _) = socket::recv(&ours).unwrap();
    assert_eq!(answer[0], REFUSED, "its memory is a file");
    stage.is_well();
}

#[test]
fn a_client_that_writes_garbage_is_cut_off() {
    let stage = Stage::new();
    for header in [[0xff; 24], {
        // A request whose body is longer than the limit.
        let len = u64::MAX;
        let operation = Operation::CellSwap;
        Request { call: CallId(1), operation, object: ObjectId(1), len }.to_bytes()
    }] {
        let (socket, mut lane, _receiver) = stage.enter();
        lane.send(&header, b"").unwrap();
        socket::send_now(&socket, b"!", &[]).unwrap();
        is_cut_off(&socket);
        stage.is_well();
    }
}

#[test]
fn a_client_that_takes_no_replies_is_cut_off() {
    let stage = Stage::new();
    let (socket, mut lane, _receiver) = stage.enter();
    send(&socket, &mut lane, 1, Operation::Create, &create(Kind::Cell));
    for call in 2..20 {
        send(&socket, &mut lane, call, Operation::CellGet, &[]);
    }
    is_cut_off(&socket);
    stage.is_well();
}

#[test]
fn what_a_client_is_cut_off_before_it_reads_goes_to_others_and_not_to_it() {
    const ITEMS: u32 = 20;
    let stage = Stage::new();
    let server = Reference::to_server(Arc::clone(&stage.door)).unwrap();
    let request = server.request(Operation::Create).number(Kind::Queue as u64);
    let queue = Reference::created(&request.number(0).flag(false).call().unwrap());
    let item = |number: u32| (number, vec![7_u8; 200_000]);
    for number in 0..ITEMS {
        let request = queue.request(Operation::QueuePut).flag(false);
        request.value(&item(number)).call().unwrap();
    }
    let (socket, mut lane, mut receiver) = stage.enter();
    assert_eq!(queue.object(), ObjectId(1), "`send` asks for this object");
    send(&socket, &mut lane, 1, Operation::Claim, &[]);
    let mut first = Vec::new();
    let mut read = 0;
    for call in 0..ITEMS {
        let mut waits = Vec::new();
        put_number(&mut waits, 0);
        send(&socket, &mut lane, 2 + call, Operation::QueueGet, &waits);
        // It reads the answer to the claim and the first item, and nothing else.
        while read < 2 && call == 0 {
            read += u32::from(receiver.receive(&mut first).unwrap());
            let _ = socket::send_now(&socket, b"!", &[]);
        }
        assert!(call > 0 || !receiver.is_revoked());
    }
    is_cut_off(&socket);
    // Parts of the others are in its ring, and it is told not to use them.
    while receiver.receive(&mut first) == Ok(true) {
        assert!(receiver.is_revoked());
    }
    assert!(receiver.is_revoked());
    for number in 1..ITEMS {
        let answer = queue.request(Operation::QueueGet).flag(true).call().unwrap();
        assert_eq!(answer.value::<(u32, Vec<u8>)>().unwrap(), item(number));
    }
    assert_eq!(queue.request(Operation::Len).call().unwrap().number(), 0);
}

#[test]
fn a_client_that_hangs_up_and_goes_on_writing_holds_up_nobody() {
    let stage = Stage::new();
    let (socket, mut lane, _receiver) = stage.enter();
    send(&socket, &mut lane, 1, Operation::Create, &create(Kind::Event));
    rustix::net::shutdown(&socket, rustix::net::Shutdown::Write).unwrap();
    let end = Instant::now() + Duration::from_millis(300);
    let mut call = 2;
    while Instant::now() < end {
        let request = Request {
            call: CallId(call),
            operation: Operation::EventIsSet,
            object: ObjectId(1),
            len: 0,
        };
        call += 1;
        // What finds no room any more is not sent.
        if lane.is_flushed() {
            lane.send(&request.to_bytes(), &[]).unwrap();
        } else {
            let _ = lane.flush();
        }
    }
    is_cut_off(&socket);
    stage.is_well();
}

#[test]
fn a_client_that_sends_bytes_without_pause_holds_up_nobody() {
    let stage = Stage::new();
    let (socket, _lane, _receiver) = stage.enter();
    let over = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = socket::send_now(&socket, b"!", &[]);
            }
        });
        for _ in 0..20 {
            stage.is_well();
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// A client that sends handles to other processes.
struct Sender {
    socket: OwnedFd,
    lane: LaneSender,
    receiver: LaneReceiver,
    /// The ends of pipes that it keeps.
    held: Vec<OwnedFd>,
    calls: u32,
}

impl Sender {
    fn new(stage: &Stage) -> Self {
        let (socket, lane, receiver) = stage.enter();
        Sender { socket, lane, receiver, held: Vec::new(), calls: 0 }
    }

    fn call(&mut self, operation: Operation, object: ObjectId, body: &[u8]) -> Reply {
        self.calls += 1;
        let request =
            Request { call: CallId(self.calls), operation, object, len: body.len() as u64 };
        self.lane.send(&request.to_bytes(), body).unwrap();
        if self.lane.must_wake() {
            let _ = socket::send_now(&self.socket, b"!", &[]);
        }
        let (mut message, end) = (Vec::new(), Instant::now() + PATIENCE);
        while !self.receiver.receive(&mut message).unwrap() {
            assert!(Instant::now() < end);
            thread::yield_now();
        }
        Reply::from_bytes(message.first_chunk().unwrap()).unwrap()
    }

    /// Sends a pipe.
    fn pipe(&mut self, object: ObjectId) {
        let (watched, held) = rustix::pipe::pipe().unwrap();
        let mut message = [b'L'; 9];
        message[1..].copy_from_slice(&object.0.to_le_bytes());
        socket::send(&self.socket, &message, &[watched.as_fd()]).unwrap();
        self.held.push(held);
    }

    /// Sends a handle of its own event, again and again. Returns how often that succeeds.
    fn send_handles(&mut self) -> usize {
        let reply = self.call(Operation::Create, ObjectId::NONE, &create(Kind::Event));
        let event = ObjectId(reply.number);
        for sent in 0..30 {
            self.pipe(event);
            match self.call(Operation::Lease, event, &[]).status {
                Status::Done => {}
                Status::Limit => return sent,
                other => panic!("{other:?}"),
            }
        }
        30
    }

    /// Returns how many pipes the server keeps open.
    fn kept(&self) -> usize {
        let is_kept = |held: &&OwnedFd| {
            let mut fds = [PollFd::new(*held, PollFlags::empty())];
            poll(&mut fds, Some(&Timespec::default())).unwrap();
            !fds[0].revents().contains(PollFlags::ERR)
        };
        self.held.iter().filter(is_kept).count()
    }
}

/// The server has room for 20 of them.
#[test]
fn handles_that_clients_have_sent_are_limited_and_each_client_leaves_some_for_others() {
    let stage = Stage::new();
    let mut clients = [(); 4].map(|()| Sender::new(&stage));
    let sent = clients.each_mut().map(Sender::send_handles);
    assert_eq!(sent, [10, 5, 3, 1]);
    stage.is_well();
    // What one of them gives back is there for the others.
    let [mut first, mut second, ..] = clients;
    first.held.clear();
    let end = Instant::now() + PATIENCE;
    let mut more = 0;
    while more < 2 {
        assert!(Instant::now() < end, "the server has not noticed that handles are gone");
        more += second.send_handles();
    }
    stage.is_well();
}

#[test]
fn pipes_that_clients_send_and_do_not_ask_for_are_limited_together() {
    let stage = Stage::new();
    let mut clients = [(); 2].map(|()| Sender::new(&stage));
    for client in &mut clients {
        for _ in 0..50 {
            client.pipe(ObjectId(1));
        }
        // The server has read what came before.
        assert_eq!(client.call(Operation::Lease, ObjectId(1000), &[]).status, Status::Limit);
    }
    assert_eq!(clients.each_ref().map(Sender::kept), [10, 5]);
    let [hostile, mut other] = clients;
    // With the client, its pipes go.
    drop(hostile.socket);
    let end = Instant::now() + PATIENCE;
    while hostile.held.iter().any(|held| {
        let mut fds = [PollFd::new(held, PollFlags::empty())];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 })).unwrap();
        !fds[0].revents().contains(PollFlags::ERR)
    }) {
        assert!(Instant::now() < end, "the server keeps the pipes of a client that is gone");
    }
    // Those that wait are replaced by younger ones, so an honest client comes to its turn.
    assert!(other.send_handles() >= 5);
    stage.is_well();
}

/// Lets a client ask for segments. Returns where they are.
fn segments(client: &mut Sender) -> Option<(OwnedFd, Arc<Store>)> {
    match client.call(Operation::Segments, ObjectId::NONE, &[]).status {
        Status::Refused => return None,
        status => assert_eq!(status, Status::Done),
    }
    let (message, mut descriptors) = socket::recv(&client.socket).unwrap();
    assert_eq!(message, [GRANTED]);
    let descriptor = descriptors.pop().unwrap();
    let results = Results::open_foreign(descriptor.try_clone().unwrap()).unwrap();
    let store = Store::beside(&results).unwrap();
    Some((descriptor, store))
}

/// Sets a cell to a value that is said to be in a segment.
fn set(client: &mut Sender, cell: ObjectId, len: u32, there: InSegment) {
    let mut body = Vec::new();
    put_value_head(&mut body, len as usize, &[]);
    let (call, operation) = (CallId(99), Operation::CellSet);
    let len = (body.len() + InSegment::BYTES) as u64;
    let mut header = Request { call, operation, object: cell, len }.to_bytes();
    there.put(&mut header, &mut body);
    client.lane.send(&header, body).unwrap();
    let _ = socket::send_now(&client.socket, b"!", &[]);
}

fn cell(client: &mut Sender) -> ObjectId {
    let mut body = Vec::new();
    put_number(&mut body, Kind::Cell as u64);
    put_value(&mut body, b"first", &[]);
    ObjectId(client.call(Operation::Create, ObjectId::NONE, &body).number)
}

#[test]
fn a_segment_that_a_client_cannot_have_filled_is_the_end_of_the_client() {
    let stage = Stage::new();
    let filled = 200_000;
    for (asks, number, len) in [
        (false, 0, 1000),
        (true, 64, 1000),
        (true, u64::MAX, 1000),
        // More than a message may have, and more than there is.
        (true, 0, 2 << 20),
        (true, 0, u64::MAX),
        (true, 0, filled + 100_000),
    ] {
        let mut client = Sender::new(&stage);
        let cell = cell(&mut client);
        let lease = asks.then(|| {
            let (_, store) = segments(&mut client).unwrap();
            let mut lease = store.take(filled as usize).unwrap();
            lease.write(0, &vec![7; filled as usize]);
            lease
        });
        set(&mut client, cell, 1000, InSegment { number, len });
        is_cut_off(&client.socket);
        drop(lease);
        stage.is_well();
    }
}

#[test]
fn a_tail_of_another_length_than_the_value_is_refused() {
    let stage = Stage::new();
    let mut client = Sender::new(&stage);
    let cell = cell(&mut client);
    let (_, store) = segments(&mut client).unwrap();
    for (said, len, status) in [(1000, 999, Status::Malformed), (1000, 1000, Status::Done)] {
        let mut lease = store.take(1000).unwrap();
        lease.write(0, &[7; 1000]);
        let number = u64::from(lease.number());
        lease.leave();
        set(&mut client, cell, said, InSegment { number, len });
        let (mut message, end) = (Vec::new(), Instant::now() + PATIENCE);
        while !client.receiver.receive(&mut message).unwrap() {
            assert!(Instant::now() < end);
            thread::yield_now();
        }
        assert_eq!(Reply::from_bytes(message.first_chunk().unwrap()).unwrap().status, status);
    }
    // Both were given back.
    assert_eq!(store.take(1000).unwrap().number(), 0);
    stage.is_well();
}

/// Whoever has the descriptor can write to it and punch holes, at any time. It cannot become
/// shorter.
#[test]
fn a_client_that_changes_its_segments_while_they_are_copied_harms_only_its_values() {
    let stage = Stage::new();
    let mut client = Sender::new(&stage);
    let cell = cell(&mut client);
    let (descriptor, store) = segments(&mut client).unwrap();
    assert!(file::set_len(&descriptor, 4096).is_err(), "it is sealed");
    assert!(file::set_len(&descriptor, 1 << 50).is_err());
    let len = 500_000;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let arena = Arena::open(descriptor.try_clone().unwrap()).unwrap();
            let mut fill = 0_u8;
            while !over.load(Ordering::Relaxed) {
                fill = fill.wrapping_add(1);
                let _ = arena.punch(0);
                // The ledger is at the beginning of the file.
                let _ = file::write_at(&descriptor, &[fill; 4096], 0);
                let _ = file::write_at(&descriptor, &vec![fill; len], 4 << 30);
            }
        });
        for _ in 0..200 {
            set(&mut client, cell, len as u32, InSegment { number: 0, len: len as u64 });
            let (mut message, end) = (Vec::new(), Instant::now() + PATIENCE);
            while !client.receiver.receive(&mut message).unwrap() {
                if socket::is_hung_up(client.socket.as_fd()) {
                    // There was nothing in the segment at that moment.
                    client = Sender::new(&stage);
                    break;
                }
                assert!(Instant::now() < end);
                thread::yield_now();
            }
            if client.calls == 0 {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    drop(store);
    stage.is_well();
}

/// The server has room for 20 descriptors that clients make it keep.
#[test]
fn segments_count_as_a_handle_that_was_sent_and_a_client_gets_them_once() {
    let stage = Stage::new();
    let mut client = Sender::new(&stage);
    assert!(segments(&mut client).is_some());
    assert!(segments(&mut client).is_none());
    // One less than without segments.
    assert_eq!(client.send_handles(), 10);
    let mut other = Sender::new(&stage);
    assert_eq!(other.send_handles(), 5);
    assert!(segments(&mut other).is_none(), "it has what is left for one client");
    // With its socket, and the ends of its pipes.
    drop(client);
    let end = Instant::now() + PATIENCE;
    while segments(&mut other).is_none() {
        assert!(Instant::now() < end, "the server has not noticed that the client is gone");
    }
    stage.is_well();
}

/// A client whose lane the server does not look at sends a byte, and is served soon, although
/// others never stop asking.
#[test]
fn a_client_that_wakes_the_server_does_not_wait_for_thousands_of_requests_of_others() {
    /// A few turns of both. It was 4096 when only turns were counted.
    const AT_MOST: usize = 700;
    let (mut server, door, _owner) = server();
    let mut turn = || assert!(matches!(server.turn().unwrap(), Turn::Served));
    let mut clients: Vec<_> = (0..3).map(|_| enter(&door, &mut turn)).collect();
    let (socket, lane, receiver) = &mut clients[0];
    let mut message = Vec::new();
    send(socket, lane, 1, Operation::Create, &create(Kind::Event));
    while !receiver.receive(&mut message).unwrap() {
        turn();
    }
    // The server would sleep, if this byte were not there, and so looks at no lane any more but at
    // that of its sender.
    for client in 0..3 {
        socket::send_now(&clients[0].0, b"!", &[]).unwrap();
        turn();
        let (socket, lane, receiver) = &mut clients[client];
        send(socket, lane, 2, Operation::Claim, &[]);
        socket::send_now(&*socket, b"!", &[]).unwrap();
        while !receiver.receive(&mut message).unwrap() {
            turn();
        }
    }
    let mut call = 10;
    let mut ask = |client: &mut (OwnedFd, LaneSender, LaneReceiver)| {
        call += 1;
        send(&client.0, &mut client.1, call, Operation::EventIsSet, &[]);
    };
    for _ in 0..20 {
        // All are quiet, and the server looks only at the lanes of the two that send a byte.
        (0..2).for_each(|eager| socket::send_now(&clients[eager].0, b"!", &[]).unwrap());
        turn();
        // They always have more to do than is done in a turn.
        (0..2).for_each(|eager| (0..64).for_each(|_| ask(&mut clients[eager])));
        turn();
        ask(&mut clients[2]);
        let mut served = 0;
        while !clients[2].2.receive(&mut message).unwrap() {
            assert!(served <= AT_MOST, "{served} requests of others were done before one");
            turn();
            for client in &mut clients[..2] {
                while client.2.receive(&mut message).unwrap() {
                    served += 1;
                    ask(client);
                }
            }
        }
        assert!(served > 0, "it had to wake the server");
        // Until all is done.
        let mut turns = 0;
        while turns < 8 {
            socket::send_now(&clients[0].0, b"!", &[]).unwrap();
            turn();
            turns += 1;
            for client in &mut clients {
                while client.2.receive(&mut message).unwrap() {
                    turns = 0;
                }
            }
        }
    }
}

/// Threads and futures that share one connection: some wait, some give up, some are dropped. No
/// item is lost or doubled, and every call ends.
#[test]
fn threads_and_futures_share_a_connection() {
    use std::{
        future::Future,
        pin::pin,
        sync::atomic::{AtomicU64, Ordering},
        task::{Context, Waker},
    };
    const ROUNDS: u64 = 600;
    let stage = Stage::new();
    let server = Reference::to_server(Arc::clone(&stage.door)).unwrap();
    let mut request = server.request(Operation::Create).number(Kind::Queue as u64);
    request = request.number(0).flag(false);
    let queue = Reference::created(&request.call().unwrap());
    let (put, got) = (AtomicU64::new(0), AtomicU64::new(0));
    let got_one = |answer: super::super::client::Answer| {
        if answer.status() == super::super::protocol::Status::Done {
            got.fetch_add(answer.value::<u64>().unwrap(), Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        for thread in 0..6_u64 {
            let (queue, put, got_one) = (&queue, &put, &got_one);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let get = |waits| queue.request(Operation::QueueGet).flag(waits);
                    match (round + thread) % 6 {
                        0 | 1 => {
                            let item = thread * ROUNDS + round + 1;
                            put.fetch_add(item, Ordering::Relaxed);
                            let request = queue.request(Operation::QueuePut).flag(false);
                            request.value(&item).call().unwrap();
                        }
                        2 => got_one(get(false).call().unwrap()),
                        3 => {
                            let deadline = Instant::now() + Duration::from_micros(round % 40);
                            if let Ok(answer) = get(true).call_until(Some(deadline)) {
                                got_one(answer);
                            }
                        }
                        4 => {
                            // Polled once, and dropped.
                            let mut future = pin!(get(true).call_async());
                            let mut context = Context::from_waker(Waker::noop());
                            if let std::task::Poll::Ready(answer) =
                                future.as_mut().poll(&mut context)
                            {
                                got_one(answer.unwrap());
                            }
                        }
                        _ => {
                            let answer = futures::executor::block_on(get(false).call_async());
                            got_one(answer.unwrap());
                        }
                    }
                }
            });
        }
    });
    // What was on its way when a call was given up comes back.
    let end = Instant::now() + PATIENCE;
    while got.load(Ordering::Relaxed) != put.load(Ordering::Relaxed) {
        assert!(Instant::now() < end, "{got:?} of {put:?}");
        got_one(queue.request(Operation::QueueGet).flag(false).call().unwrap());
    }
    let answer = queue.request(Operation::Len).call().unwrap();
    assert_eq!(answer.number(), 0);
}
