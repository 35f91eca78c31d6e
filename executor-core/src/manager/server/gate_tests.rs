//! The gate of a server in a thread of the test: strangers who stop at every stage of a meeting,
//! and clients that break the protocol once they are in. After each, a client is served as before.

use std::{
    io::Write,
    net::TcpStream,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::PollFlags,
    net::{SocketFlags, SocketType, connect, socket_with, sockopt::set_socket_linger},
};

use super::{
    super::{
        Manager, Trust,
        client::{Door, ServerId, door::knock},
        link::{
            LinkError, LinkReceiver, LinkSender, Progress, Waits,
            far::Meeting,
            tls::{Identity, TlsClient, TlsServer},
            wait_for,
        },
        protocol::{
            CallId, HEADER_BYTES, Kind, ObjectId, Operation, Reply, Request, Status, put_number,
            put_value,
        },
    },
    core::Limits,
    crew,
    gate::{Gate, GateSetup, ListenOrder},
    serve::{Server, Setup},
};
use crate::{
    ipc::{Address, AuthKey, bind_private, connect_to},
    os::{fork::NotInherited, random, socket},
};

const PATIENCE: Duration = Duration::from_secs(20);
const KEY: &str = "key";

struct Stage {
    trust: Trust,
    tcp: Address,
    local: Address,
    folder: tempfile::TempDir,
    gate: Arc<Gate>,
    owner: Option<OwnedFd>,
    server: Option<JoinHandle<std::io::Result<()>>>,
}

impl Stage {
    fn new(meeting_timeout: Duration) -> Self {
        let (inside, outside) = socket::pair().unwrap();
        let (owner, theirs) = socket::pair().unwrap();
        let id = ServerId(u128::from_le_bytes(random::bytes().unwrap()));
        let identity = Identity::generate().unwrap();
        let limits =
            Limits { clients: 8, objects: 1000, calls_per_client: 100, bytes_per_client: 1 << 20 };
        let tls = Some(TlsServer::new(&identity).unwrap());
        let setup = Setup {
            door: NotInherited::new(inside),
            outside: Arc::new(Door::near(id, Arc::new(outside))),
            owner: NotInherited::new(theirs),
            limits,
            message_bytes_max: 1 << 20,
            unread_bytes_max: 1 << 20,
            leases_max: 20,
            ids_key: None,
            gate: GateSetup { key: Some(AuthKey::new(KEY)), tls, meeting_timeout },
        };
        let server = Server::new(setup).unwrap();
        let gate = server.gate();
        let folder = tempfile::tempdir().unwrap();
        let listen = |address: Address| {
            let (socket, address, file) = bind_private(&address).unwrap();
            gate.listen(socket, file).unwrap();
            address
        };
        let tcp = listen("127.0.0.1:0".parse().unwrap());
        let local = listen(folder.path().join("socket").into());
        let trust = Trust::fingerprint(identity.fingerprint());
        let server = Some(thread::spawn(move || crew::run(server)));
        Stage { trust, tcp, local, folder, gate, owner: Some(owner), server }
    }

    /// One whose meetings take as long as they like.
    fn patient() -> Self {
        Stage::new(Duration::from_secs(100))
    }

    /// Checks that clients that come now are served.
    fn is_well(&self) {
        for address in [&self.tcp, &self.local] {
            let connector = Manager::connector(address, &AuthKey::new(KEY));
            let manager = connector.trust(self.trust.clone()).connect().unwrap();
            assert_eq!(manager.value(7).unwrap().get().unwrap(), 7);
        }
    }

    fn stranger(&self) -> TcpStream {
        let Address::Tcp(host, port) = &self.tcp else { unreachable!() };
        TcpStream::connect((host.as_str(), *port)).unwrap()
    }

    fn meeting(&self, knock: [u8; 8]) -> Meeting {
        let tls = TlsClient::new(&self.trust).unwrap();
        let socket = NotInherited::new(OwnedFd::from(self.stranger()));
        Meeting::connect(socket, &tls, AuthKey::new(KEY), knock).unwrap()
    }

    /// Comes in as a client does.
    fn enter(&self) -> Guest {
        let end = self.meeting(knock()).wait(Instant::now().checked_add(PATIENCE)).unwrap();
        let socket = Arc::clone(end.socket());
        let (sender, mut receiver) = end.into_ends(u64::MAX);
        let deadline = Instant::now().checked_add(PATIENCE);
        receiver.wait_for_welcome(&socket, deadline).unwrap().unwrap();
        Guest { socket, sender, receiver, marked: 0 }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(self.owner.take());
        let ended = self.server.take().unwrap().join();
        self.gate.close();
        if !thread::panicking() {
            ended.unwrap().unwrap();
            assert!(!self.folder.path().join("socket").exists(), "its file is removed");
        }
    }
}

/// A client that says whatever the test wants.
struct Guest {
    socket: Arc<NotInherited>,
    sender: LinkSender,
    receiver: LinkReceiver,
    /// Number of replies that were marked.
    marked: u64,
}

impl Guest {
    fn say(&mut self, header: &[u8; HEADER_BYTES], body: &[u8]) {
        // The server may have closed the connection.
        let _ = self.sender.send(header, body);
        let _ = self.sender.must_wake();
    }

    fn ask(&mut self, call: u32, operation: Operation, body: &[u8]) {
        let object = if operation == Operation::Create { ObjectId::NONE } else { ObjectId(1) };
        let len = body.len() as u64;
        let request = Request { call: CallId(call), operation, object, len };
        self.say(&request.to_bytes(), body);
    }

    /// Gets items of the queue, which is the first object. Returns how many of the replies came.
    fn get_items(&mut self, count: u32) -> u32 {
        self.ask(1, Operation::Claim, b"");
        let mut wait = Vec::new();
        put_number(&mut wait, 0);
        (0..count).for_each(|call| self.ask(2 + call, Operation::QueueGet, &wait));
        let done = |reply: Reply| assert_eq!(reply.status, Status::Done);
        (0..=count).map_while(|_| self.hear().map(done)).count() as u32 - 1
    }

    /// Says how many of the marked replies it has received.
    fn has_received(&mut self, count: u64) {
        let len = 8;
        let (call, operation, object) = (CallId::NONE, Operation::Received, ObjectId::NONE);
        let request = Request { call, operation, object, len };
        self.say(&request.to_bytes(), &count.to_le_bytes());
    }

    /// Returns the next reply, or `None` when the server has closed the connection.
    fn hear(&mut self) -> Option<Reply> {
        let mut message = Vec::new();
        loop {
            self.receiver.awake();
            match self.receiver.receive(&mut message) {
                Ok(true) => {
                    self.marked += u64::from(Reply::is_marked(&message));
                    return Reply::from_bytes(message.first_chunk().unwrap());
                }
                Ok(false) => {}
                Err(LinkError::Closed | LinkError::Lost(_)) => return None,
                Err(error) => panic!("{error}"),
            }
            let deadline = Instant::now().checked_add(PATIENCE);
            let came = wait_for(self.socket.get().unwrap(), PollFlags::IN, deadline);
            assert!(came.unwrap(), "the server says nothing");
        }
    }
}

/// Waits until the server has closed a connection.
fn is_cut_off(mut stranger: TcpStream) {
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    if let Err(error) = std::io::copy(&mut stranger, &mut std::io::sink()) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
}

/// Waits until the server has closed the connection of a Unix socket.
fn hangs_up(local: &OwnedFd) {
    let deadline = Instant::now().checked_add(PATIENCE);
    while !socket::is_hung_up(local.as_fd()) {
        assert!(wait_for(local.as_fd(), PollFlags::IN, deadline).unwrap(), "it is not cut off");
        let _ = socket::recv_short_now(local, &mut [0; 64]);
    }
}

#[test]
fn a_client_that_goes_away_at_any_stage_of_a_meeting_disturbs_nobody() {
    let stage = Stage::patient();
    for reset in [false, true] {
        // So many steps has a meeting, and some more.
        for steps in 0..12 {
            let mut meeting = stage.meeting(knock());
            let socket = Arc::clone(meeting.socket());
            let socket = socket.get().unwrap();
            for _ in 0..steps {
                match meeting.advance().unwrap() {
                    Progress::Waits(Waits::ToRead) => {
                        let deadline = Instant::now().checked_add(PATIENCE);
                        assert!(wait_for(socket, PollFlags::IN, deadline).unwrap());
                    }
                    Progress::Waits(Waits::ToWrite) => {}
                    Progress::Met(_) => break,
                }
            }
            if reset {
                set_socket_linger(socket, Some(Duration::ZERO)).unwrap();
            }
            drop(meeting);
        }
        stage.is_well();
    }
}

#[test]
fn a_client_of_another_protocol_is_told_so_although_it_knows_the_key() {
    let stage = Stage::patient();
    for (knock, why) in [(*b"xqmgr\0\0\xff", "another version"), (*b"whatever", "another protocol")]
    {
        let end = stage.meeting(knock).wait(Instant::now().checked_add(PATIENCE)).unwrap();
        let socket = Arc::clone(end.socket());
        let (_sender, mut receiver) = end.into_ends(u64::MAX);
        let deadline = Instant::now().checked_add(PATIENCE);
        let refused = receiver.wait_for_welcome(&socket, deadline).unwrap().unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    stage.is_well();
}

#[test]
fn strangers_leave_at_the_deadline_whatever_they_say_until_then() {
    let stage = Stage::new(Duration::from_millis(300));
    let silent = stage.stranger();
    let mut slow = stage.stranger();
    let drips = thread::spawn(move || {
        let record = [0x16, 3, 1, 0x20, 0].into_iter().chain(std::iter::repeat(1));
        for byte in record {
            if slow.write_all(&[byte]).is_err() {
                return;
            }
            // Slowly, as the test is about.
            thread::sleep(Duration::from_millis(5));
        }
    });
    let local = connect_to(&stage.local, None).unwrap();
    is_cut_off(silent);
    drips.join().unwrap();
    hangs_up(&local);
    // A client on a busy machine may need longer than that.
    Stage::patient().is_well();
}

#[test]
fn strangers_who_take_all_places_lose_them_to_those_who_come_later() {
    let stage = Stage::patient();
    let strangers: Vec<_> = (0..300).map(|_| stage.stranger()).collect();
    // When these have had to leave, nobody else comes before the next client.
    strangers.into_iter().take(300 - 128).for_each(is_cut_off);
    stage.is_well();
    let local: Vec<_> = (0..150).map(|_| connect_to(&stage.local, None).unwrap()).collect();
    local[..150 - 128].iter().for_each(hangs_up);
    stage.is_well();
}

#[test]
fn garbage_instead_of_a_meeting_is_cut_off() {
    let stage = Stage::patient();
    let odd = [0x16, 3, 1, 0, 4, 9, 0, 0, 0];
    for said in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100_000], &odd, &[0x17; 9]] {
        let mut stranger = stage.stranger();
        let _ = stranger.write_all(said);
        is_cut_off(stranger);
    }
    let other = socket_with(
        rustix::net::AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    );
    let other = other.unwrap();
    let path = stage.folder.path().join("socket");
    connect(&other, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    socket::send(&other, &[7; 5000], &[other.as_fd()]).unwrap();
    let mut said = [0; 64];
    while socket::recv_short(&other, &mut said).unwrap().0 > 0 {}
    stage.is_well();
}

#[test]
fn a_client_that_breaks_the_protocol_is_cut_off() {
    let stage = Stage::patient();
    let mut unknown = [0; HEADER_BYTES];
    unknown[4] = 255;
    let mut long = Request {
        call: CallId(1),
        operation: Operation::Create,
        object: ObjectId::NONE,
        len: (1 << 20) + 1,
    };
    for header in [unknown, long.to_bytes()] {
        let mut guest = stage.enter();
        guest.say(&header, b"");
        assert_eq!(guest.hear(), None);
    }
    // A request that never comes as a whole, and its client's end.
    long.len = 1 << 19;
    let mut guest = stage.enter();
    guest.say(&long.to_bytes(), &[0; 100]);
    drop(guest);
    // What is no TLS any more.
    let guest = stage.enter();
    let garbage = [0x17, 3, 3, 0, 20];
    rustix::io::write(guest.socket.get().unwrap(), &[&garbage[..], &[9; 20]].concat()).unwrap();
    let mut guest = guest;
    assert_eq!(guest.hear(), None);
    stage.is_well();
}

#[test]
fn a_client_that_takes_no_replies_is_cut_off_and_others_are_served_meanwhile() {
    let stage = Stage::patient();
    let mut guest = stage.enter();
    let mut body = Vec::new();
    put_number(&mut body, Kind::Cell as u64);
    put_value(&mut body, &[1; 200_000], &[]);
    guest.ask(1, Operation::Create, &body);
    assert_eq!(guest.hear().map(|reply| reply.status), Some(Status::Done));
    // The buffers of the system take some of the replies, `unread_bytes_max` the next ones.
    let calls = 200;
    for call in 0..calls {
        guest.ask(2 + call, Operation::CellGet, b"");
    }
    stage.is_well();
    let mut heard = 0;
    while guest.hear().is_some() {
        heard += 1;
    }
    assert!(heard < calls, "it is cut off before it has all of them");
    stage.is_well();
}

#[test]
fn items_that_a_far_client_has_not_received_come_first_again() {
    let stage = Stage::patient();
    let connector = Manager::connector(&stage.local, &AuthKey::new(KEY));
    let manager = connector.connect().unwrap();
    let queue = manager.queue::<u32>(None).unwrap();
    for received in [0, 1, 3] {
        for item in 0..4 {
            queue.put(&item).unwrap();
        }
        let mut guest = stage.enter();
        assert_eq!((guest.get_items(3), guest.marked), (3, 3), "{received}");
        if received > 0 {
            guest.has_received(received);
        }
        // The server knows of the end when the object of this client is gone.
        let mut kind = Vec::new();
        put_number(&mut kind, Kind::Event as u64);
        guest.ask(9, Operation::Create, &kind);
        assert_eq!(guest.hear().map(|reply| reply.status), Some(Status::Done));
        assert_eq!((queue.len().unwrap(), guest.marked), (1, 3));
        drop(guest);
        let end = Instant::now() + PATIENCE;
        while manager.objects().unwrap() > 1 {
            assert!(Instant::now() < end, "the client is there for ever");
        }
        let left: Vec<u32> = std::iter::from_fn(|| queue.try_get().unwrap()).collect();
        assert_eq!(left, (received as u32..4).collect::<Vec<_>>());
    }
}

#[test]
fn a_far_client_that_says_that_it_has_received_what_cannot_be_is_cut_off() {
    let stage = Stage::patient();
    let connector = Manager::connector(&stage.local, &AuthKey::new(KEY));
    let queue = connector.connect().unwrap().queue::<u32>(None).unwrap();
    for counts in [&[1][..], &[u64::MAX], &[1, 3], &[2, 1]] {
        let mut guest = stage.enter();
        if counts.len() > 1 {
            (0..2).for_each(|item| queue.put(&item).unwrap());
            assert_eq!(guest.get_items(2), 2);
        }
        counts.iter().for_each(|count| guest.has_received(*count));
        assert_eq!(guest.hear(), None, "{counts:?}");
    }
    stage.is_well();
}

#[test]
fn a_far_client_that_never_says_that_it_has_received_anything_is_cut_off() {
    const ITEMS: u32 = 40;
    let stage = Stage::patient();
    let connector = Manager::connector(&stage.local, &AuthKey::new(KEY));
    let queue = connector.connect().unwrap().queue::<(u32, Vec<u8>)>(None).unwrap();
    for number in 0..ITEMS {
        queue.put(&(number, vec![7; 100_000])).unwrap();
    }
    // `unread_bytes_max` of them are kept for it. Some of these are not even sent when it is cut
    // off.
    let got = stage.enter().get_items(ITEMS);
    assert!(got < ITEMS / 2, "{got}");
    for number in 0..ITEMS {
        assert_eq!(queue.get_timeout(PATIENCE).unwrap().unwrap().0, number);
    }
    stage.is_well();
}

#[test]
fn no_pipe_keeps_an_object_alive_for_a_far_client() {
    let stage = Stage::patient();
    let mut guest = stage.enter();
    let mut body = Vec::new();
    put_number(&mut body, Kind::Event as u64);
    guest.ask(1, Operation::Create, &body);
    assert_eq!(guest.hear().map(|reply| reply.status), Some(Status::Done));
    guest.ask(2, Operation::Lease, &[]);
    assert_eq!(guest.hear().map(|reply| reply.status), Some(Status::Refused));
    stage.is_well();
}

#[test]
fn an_order_of_the_owner_is_answered_and_anything_else_ends_the_server() {
    for file in [None, Some((1, 2, "/a/path".into()))] {
        let order = ListenOrder { number: 7, file };
        assert_eq!(ListenOrder::from_bytes(&order.to_bytes()).unwrap(), order);
        let other = ListenOrder { number: 8, file: None };
        let failed = Err(std::io::Error::other("no"));
        assert_eq!(order.read_answer(&order.answer(&Ok(()))), Some(Ok(())));
        assert_eq!(order.read_answer(&order.answer(&failed)), Some(Err("no".to_owned())));
        assert_eq!(other.read_answer(&order.answer(&Ok(()))), None);
    }
    assert_eq!(ListenOrder::from_bytes(b"!"), None);
    assert_eq!(ListenOrder::from_bytes(b"L123"), None);
    assert_eq!(ListenOrder::from_bytes(b"L1234567"), None);
    let stage = Stage::patient();
    let owner = stage.owner.as_ref().unwrap();
    let order = ListenOrder { number: 1, file: None };
    // Without a socket, as if its descriptor was lost on the way.
    socket::send(owner, &order.to_bytes(), &[]).unwrap();
    let mut answer = [0; 256];
    let (len, _) = socket::recv_short(owner, &mut answer).unwrap();
    let refused = order.read_answer(&answer[..len]).unwrap().unwrap_err();
    assert!(refused.contains("open files"), "{refused}");
    stage.is_well();
}
