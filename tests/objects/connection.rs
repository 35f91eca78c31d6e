//! Connections, and waiting for several of them.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    thread,
    time::{Duration, Instant},
};

use executor::{
    Client, Connection, Listener, Receiver, RecvError, SendError, Sender, SharedBytes, TaskError,
    Transfer, channel, pipe, prelude::*, wait_any,
};
use futures::{SinkExt, StreamExt};
use rustix::net::{AddressFamily, SocketType};
use serde::{Deserialize, Serialize};

use crate::support::{self, Gate, LONG, come_to, pool, watchdog};

const SHORT: Duration = Duration::from_millis(50);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Thing {
    Nothing,
    Number(f64),
    Text(String),
    Many(Vec<Thing>),
    Table(BTreeMap<String, i64>),
    Bytes(Vec<u8>),
}

fn things() -> Vec<Thing> {
    vec![
        Thing::Nothing,
        Thing::Number(-1.5),
        Thing::Text("grüße".to_owned()),
        Thing::Many(vec![Thing::Nothing; 1000]),
        Thing::Table((0..100).map(|i| (i.to_string(), i)).collect()),
        Thing::Bytes((0..16 << 20).map(|i| (i * 7) as u8).collect()),
    ]
}

/// Sends back each value it receives. After a `None` it sends back bytes until an empty message.
#[task]
fn echo(peer: Connection<Option<Thing>, Option<Thing>>) -> u32 {
    let mut count = 0;
    loop {
        match peer.recv() {
            Ok(Some(thing)) => {
                peer.send(&Some(thing)).unwrap();
                count += 1;
            }
            Ok(None) => loop {
                let bytes = peer.recv_bytes().unwrap();
                if bytes.is_empty() {
                    break;
                }
                peer.send_bytes(&bytes).unwrap();
                count += 1;
            },
            Err(RecvError::Closed) => return count,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn cn01_objects_and_bytes_and_16_mb_come_back_equal() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (ours, theirs) = pipe().unwrap();
    let echoes = pool.submit(echo::task(theirs));
    for thing in things() {
        ours.send(&Some(thing.clone())).unwrap();
        assert!(ours.recv().unwrap() == Some(thing));
    }
    ours.send(&None).unwrap();
    for len in [1, 16, 65_535, 65_536, 65_537, 16 << 20] {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 31) as u8).collect();
        ours.send_bytes(&bytes).unwrap();
        assert!(ours.recv_bytes().unwrap() == bytes, "{len}");
    }
    ours.send_bytes(b"").unwrap();
    drop(ours);
    assert_eq!(echoes.result().unwrap(), 12);
}

#[test]
fn cn03_poll_waits_for_its_whole_timeout() {
    let _watchdog = watchdog();
    let (one, other) = pipe::<u32, u32>().unwrap();
    // A negative timeout cannot be tested, since a `Duration` is never negative.
    assert!(!one.poll(Some(Duration::ZERO)).unwrap());
    let started = Instant::now();
    assert!(!one.poll(Some(SHORT)).unwrap());
    assert!(started.elapsed() >= SHORT);
    assert!(matches!(one.try_recv(), Err(RecvError::Empty)));
    let started = Instant::now();
    assert!(matches!(one.recv_timeout(SHORT), Err(RecvError::Empty)));
    assert!(started.elapsed() >= SHORT);
    other.send(&1).unwrap();
    for limit in [Some(Duration::ZERO), Some(LONG), None] {
        assert!(one.poll(limit).unwrap());
    }
    assert_eq!(one.recv_timeout(LONG).unwrap(), 1);
    drop(other);
    assert!(one.poll(None).unwrap(), "the end is something to receive");
}

#[test]
fn cn04_a_closed_peer_ends_both_values_and_bytes() {
    let _watchdog = watchdog();
    let (one, other) = pipe::<u32, u32>().unwrap();
    other.send(&1).unwrap();
    other.send_bytes(b"last").unwrap();
    drop(other);
    assert_eq!(one.recv().unwrap(), 1);
    assert_eq!(one.recv_bytes().unwrap(), b"last");
    for _ in 0..2 {
        assert!(matches!(one.recv(), Err(RecvError::Closed)));
        assert!(matches!(one.recv_bytes(), Err(RecvError::Closed)));
        assert!(matches!(one.try_recv(), Err(RecvError::Closed)));
        assert!(matches!(one.recv_timeout(LONG), Err(RecvError::Closed)));
        assert!(matches!(one.recv_bytes_into(&mut [0; 4]), Err(RecvError::Closed)));
        assert!(matches!(one.send(&1), Err(SendError::Closed)));
        assert!(matches!(one.send_bytes(b""), Err(SendError::Closed)));
    }
}

#[task]
fn say_and_die(peer: Sender<u32>, gate: &std::path::Path) {
    peer.send(&1).unwrap();
    come_to(gate);
}

#[test]
fn cn04_a_killed_peer_is_reported_as_closed_after_what_it_sent() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let (sender, receiver) = channel().unwrap();
    let pid = pool.submit(support::pid::task()).result().unwrap();
    let future = pool.submit(say_and_die::task(sender, gate.path()));
    gate.wait_for(1);
    let reader = thread::spawn(move || (receiver.recv(), receiver.recv()));
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid as i32).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let (first, second) = reader.join().unwrap();
    assert_eq!(first.unwrap(), 1);
    assert!(matches!(second, Err(RecvError::Closed)), "{second:?}");
    assert!(matches!(future.result(), Err(TaskError::WorkerLost { .. })));
}

#[task]
fn drop_and_stay(peer: Sender<u32>, gate: &std::path::Path) {
    drop(peer);
    come_to(gate);
}

#[task]
fn give_away() -> Receiver<u32> {
    let (sender, receiver) = channel().unwrap();
    sender.send(&5).unwrap();
    receiver
}

#[test]
fn a_connection_closes_when_its_task_has_ended_not_when_the_task_drops_it() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let (sender, receiver) = channel().unwrap();
    let future = pool.submit(drop_and_stay::task(sender, gate.path()));
    gate.wait_for(1);
    // The executor keeps its own copy of the end until the task is resolved, because it may have to
    // send the task to another worker.
    assert!(matches!(receiver.try_recv(), Err(RecvError::Empty)));
    gate.open();
    future.result().unwrap();
    assert!(matches!(receiver.recv(), Err(RecvError::Closed)));
    let given = pool.submit(give_away::task()).result().unwrap();
    assert_eq!(given.recv().unwrap(), 5);
    assert!(matches!(given.recv(), Err(RecvError::Closed)), "the worker kept an end");
}

#[test]
fn cn07_slices_of_a_message_arrive_unchanged() {
    let _watchdog = watchdog();
    let (one, other) = pipe::<(), ()>().unwrap();
    let message = b"latin alphabet";
    for range in [0..message.len(), 6..14, 3..7, 14..14, 0..0] {
        one.send_bytes(&message[range.clone()]).unwrap();
        assert_eq!(other.recv_bytes().unwrap(), &message[range]);
    }
    // A range beyond the message is not a slice.
    assert!(message.get(10..20).is_none());
    let mut buffer = [b'.'; 8];
    one.send_bytes(b"latin").unwrap();
    assert_eq!(other.recv_bytes_into(&mut buffer[2..]).unwrap(), 5);
    assert_eq!(&buffer, b"..latin.");
    one.send_bytes(b"latin alphabet").unwrap();
    match other.recv_bytes_into(&mut buffer) {
        Err(RecvError::TooShort(message)) => assert_eq!(message, b"latin alphabet"),
        other => panic!("{other:?}"),
    }
    // A message longer than the given maximum stays in the connection, even when it has not arrived
    // completely.
    let long = vec![7; 300_000];
    thread::scope(|scope| {
        scope.spawn(|| one.send_bytes(&long).unwrap());
        for max in [0, 100, 299_999] {
            match other.recv_bytes_max(max) {
                Err(RecvError::TooLong { len: 300_000, max: asked, .. }) => assert_eq!(asked, max),
                other => panic!("{other:?}"),
            }
        }
        assert!(other.recv_bytes_max(300_000).unwrap() == long);
    });
    one.send_bytes(b"short").unwrap();
    assert!(matches!(other.recv_bytes_max(4), Err(RecvError::TooLong { .. })));
    assert!(other.poll(None).unwrap());
    assert_eq!(other.recv_bytes_max(5).unwrap(), b"short");
}

#[test]
fn cn09_a_message_without_its_file_descriptor_is_a_decode_error() {
    let _watchdog = watchdog();
    let (one, other) = pipe::<(u8, u8), Transfer<File>>().unwrap();
    let other = other.with_types::<(), Transfer<File>>();
    let one = one.with_types::<u8, ()>();
    one.send(&0).unwrap();
    match other.recv() {
        Err(RecvError::Decode(text)) => assert!(text.contains("did not come"), "{text}"),
        other => panic!("{other:?}"),
    }
    // The connection remains usable.
    let one = one.with_types::<Transfer<File>, ()>();
    one.send(&Transfer::new(tempfile::tempfile().unwrap())).unwrap();
    assert!(other.recv().unwrap().metadata().unwrap().is_file());
}

#[test]
fn receiving_the_wrong_kind_of_message_is_a_decode_error() {
    let _watchdog = watchdog();
    let (one, other) = pipe::<u32, u32>().unwrap();
    one.send_bytes(&[1]).unwrap();
    one.send(&2).unwrap();
    one.send(&3).unwrap();
    assert!(matches!(other.recv(), Err(RecvError::Decode(_))));
    assert!(matches!(other.recv_bytes(), Err(RecvError::Decode(_))));
    assert_eq!(other.recv().unwrap(), 3);
    // A message that does not decode is consumed, and the next message is unaffected.
    let one = one.with_types::<String, ()>();
    one.send(&"text".to_owned()).unwrap();
    one.with_types::<u32, ()>().send(&0).unwrap();
    assert!(matches!(other.recv(), Err(RecvError::Decode(_))));
    assert_eq!(other.recv().unwrap(), 0);
}

#[derive(Serialize)]
struct Unwilling(#[serde(serialize_with = "refuse")] ());

fn refuse<S: serde::Serializer>(_: &(), _: S) -> Result<S::Ok, S::Error> {
    Err(serde::ser::Error::custom("it will not be sent"))
}

#[test]
fn a_value_that_cannot_be_encoded_fails_send_and_sends_nothing() {
    let _watchdog = watchdog();
    let (one, other) = pipe::<Unwilling, u32>().unwrap();
    match one.send(&Unwilling(())) {
        Err(SendError::Encode(text)) => assert!(text.contains("it will not be sent"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(!other.poll(Some(Duration::ZERO)).unwrap());
}

#[test]
fn cn17_poll_reports_an_empty_message_until_it_is_received() {
    let _watchdog = watchdog();
    let (one, other) = pipe::<(), ()>().unwrap();
    one.send_bytes(b"").unwrap();
    for _ in 0..3 {
        assert!(other.poll(None).unwrap());
    }
    assert_eq!(other.recv_bytes().unwrap(), b"");
    assert!(!other.poll(Some(Duration::ZERO)).unwrap());
}

#[task]
fn send_all(peer: Sender<()>, messages: Vec<String>) {
    for message in messages {
        peer.send_bytes(message.as_bytes()).unwrap();
        // This sleep does not enforce an order: the pauses are what is tested.
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn cn18_messages_sent_with_pauses_arrive_in_order() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let messages: Vec<String> =
        ["", "a", "", "", "bcd", "e"].iter().map(|text| (*text).to_owned()).collect();
    let (sender, receiver) = channel().unwrap();
    let sent = pool.submit(send_all::task(sender, messages.clone()));
    for message in &messages {
        assert!(receiver.poll(Some(LONG)).unwrap());
        assert_eq!(receiver.recv_bytes().unwrap(), message.as_bytes());
    }
    sent.result().unwrap();
}

#[task]
fn one_way(reader: Receiver<u32>, writer: Sender<u32>) {
    writer.send(&(reader.recv().unwrap() + 1)).unwrap();
}

#[test]
fn cn22_one_way_connections_work_in_a_worker() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let ((to, reader), (writer, from)) = (channel().unwrap(), channel().unwrap());
    let future = pool.submit(one_way::task(reader, writer));
    to.send(&41).unwrap();
    assert_eq!(from.recv().unwrap(), 42);
    future.result().unwrap();
}

#[test]
fn cn24_wait_any_reads_several_sockets_to_their_end() {
    let _watchdog = watchdog();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        for number in 0..4_u8 {
            scope.spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                for _ in 0..10 {
                    stream.write_all(&[number; 10]).unwrap();
                }
            });
        }
        let mut streams: Vec<TcpStream> = (0..4).map(|_| listener.accept().unwrap().0).collect();
        let mut read = Vec::new();
        while !streams.is_empty() {
            let descriptors: Vec<&dyn AsFd> =
                streams.iter().map(|stream| stream as &dyn AsFd).collect();
            let ready = wait_any(&descriptors, None).unwrap();
            assert!(!ready.is_empty());
            for at in ready.into_iter().rev() {
                let mut buffer = [0; 32];
                match streams[at].read(&mut buffer).unwrap() {
                    0 => drop(streams.remove(at)),
                    len => read.extend_from_slice(&buffer[..len]),
                }
            }
        }
        read.sort_unstable();
        let all: Vec<u8> = (0..4).flat_map(|number| [number; 100]).collect();
        assert!(read == all);
    });
}

#[test]
fn cn25_wait_any_returns_the_ready_descriptors_or_none_after_the_timeout() {
    let _watchdog = watchdog();
    let (one, other_of_one) = pipe::<u32, u32>().unwrap();
    let (two, other_of_two) = pipe::<u32, u32>().unwrap();
    let started = Instant::now();
    assert!(wait_any(&[&one, &two], Some(SHORT)).unwrap().is_empty());
    assert!(started.elapsed() >= SHORT);
    // With a timeout of zero it checks once and returns.
    assert!(wait_any(&[&one, &two], Some(Duration::ZERO)).unwrap().is_empty());
    other_of_two.send(&1).unwrap();
    assert_eq!(wait_any(&[&one, &two], Some(LONG)).unwrap(), [1]);
    drop(other_of_one);
    assert_eq!(wait_any(&[&one, &two], None).unwrap(), [0, 1], "an end counts");
    assert!(wait_any(&[], None).unwrap().is_empty());
}

#[test]
fn wait_any_takes_more_than_1024_descriptors() {
    let _watchdog = watchdog();
    use rustix::process::{Resource, setrlimit};
    let mut limit = support::limit_of(Resource::Nofile);
    limit.current = limit.maximum.map_or(Some(8192), |maximum| Some(maximum.min(8192)));
    setrlimit(Resource::Nofile, limit).unwrap();
    let pipes: Vec<_> = (0..1500).map(|_| channel::<u32>().unwrap()).collect();
    let mut descriptors: Vec<&dyn AsFd> =
        pipes.iter().map(|(_, receiver)| receiver as &dyn AsFd).collect();
    descriptors.push(&pipes[0].1);
    pipes[1234].0.send(&1).unwrap();
    assert_eq!(wait_any(&descriptors, None).unwrap(), [1234]);
    pipes[0].0.send(&1).unwrap();
    assert_eq!(wait_any(&descriptors, None).unwrap(), [0, 1234, 1500]);
}

#[test]
fn cn28_a_descriptor_that_is_not_a_connection_is_an_error() {
    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    let error = Connection::<(), ()>::try_from(file).unwrap_err().to_string();
    assert!(error.contains("SEQPACKET"), "{error}");
    let (stream, _other) = UnixStream::pair().unwrap();
    assert!(Receiver::<()>::try_from(OwnedFd::from(stream)).is_err());
    let datagram = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
    assert!(Sender::<()>::try_from(datagram).is_err());
    let (one, other) = pipe::<u32, u32>().unwrap();
    let same = Connection::<u32, u32>::try_from(one.as_fd().try_clone_to_owned().unwrap()).unwrap();
    same.send(&1).unwrap();
    assert_eq!(other.recv().unwrap(), 1);
}

#[derive(Serialize, Deserialize)]
struct Parcel {
    name: String,
    connection: Option<Connection<u32, u32>>,
    files: Vec<Transfer<File>>,
    bytes: SharedBytes,
}

#[task]
fn open_parcels(parcels: Connection<Parcel, Parcel>) {
    while let Ok(mut parcel) = parcels.recv() {
        let connection = parcel.connection.take().unwrap();
        connection.send(&(parcel.bytes.len() as u32)).unwrap();
        for file in &mut parcel.files {
            file.write_all(parcel.name.as_bytes()).unwrap();
        }
        parcels.send(&Parcel { connection: Some(connection), ..parcel }).unwrap();
    }
}

#[test]
fn mx13_connections_and_files_travel_through_a_connection_and_back() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (ours, theirs) = pipe().unwrap();
    let done = pool.submit(open_parcels::task(theirs));
    for round in 1..=20_usize {
        let (mine, yours) = pipe().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let same = file.try_clone().unwrap();
        let parcel = Parcel {
            name: format!("parcel {round}"),
            connection: Some(yours),
            files: vec![Transfer::new(same)],
            bytes: SharedBytes::zeroed(round * 1000),
        };
        ours.send(&parcel).unwrap();
        drop(parcel);
        assert_eq!(mine.recv().unwrap() as usize, round * 1000);
        let back = ours.recv().unwrap();
        back.connection.as_ref().unwrap().send(&9).unwrap();
        assert_eq!(mine.recv().unwrap(), 9);
        drop(back);
        assert!(matches!(mine.recv(), Err(RecvError::Closed)), "an end was left somewhere");
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("parcel {round}"));
    }
    drop(ours);
    done.result().unwrap();
}

#[task]
fn answer(mut tcp: Transfer<TcpStream>, unix: Transfer<UnixStream>) -> Transfer<UnixStream> {
    tcp.write_all(b"over tcp").unwrap();
    (&*unix).write_all(b"over unix").unwrap();
    unix
}

#[test]
fn mx13_sockets_are_passed_as_arguments_and_results() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let (mut unix, theirs) = UnixStream::pair().unwrap();
    let back = pool.submit(answer::task(accepted.into(), theirs.into())).result().unwrap();
    let mut text = String::new();
    tcp.read_to_string(&mut text).unwrap();
    assert_eq!(text, "over tcp");
    back.into_inner().write_all(b" and back").unwrap();
    text.clear();
    unix.read_to_string(&mut text).unwrap();
    assert_eq!(text, "over unix and back");
}

#[test]
fn a_foreign_serializer_is_rejected() {
    let (one, _other) = pipe::<(), ()>().unwrap();
    let error = serde_json::to_string(&one).unwrap_err().to_string();
    assert!(error.contains("a Connection:") && error.contains("serde_json"), "{error}");
    let error = serde_json::to_string(&Transfer::new(tempfile::tempfile().unwrap()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("a Transfer:"), "{error}");
}

#[test]
fn one_kind_of_connection_does_not_decode_as_another() {
    let _watchdog = watchdog();
    let (one, other) = pipe::<Sender<u32>, Receiver<u32>>().unwrap();
    let (sender, _receiver) = channel().unwrap();
    one.send(&sender).unwrap();
    let other = other.with_types::<(), Receiver<u32>>();
    assert!(matches!(other.recv(), Err(RecvError::Decode(text)) if text.contains("another kind")));
}

#[test]
fn messages_of_threads_that_share_a_connection_do_not_mix() {
    let _watchdog = watchdog();
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let client: Connection<(u8, Vec<u8>), ()> = Client::connect(listener.address(), None).unwrap();
    let over_tcp = (client, listener.accept().unwrap());
    for (one, other) in [pipe::<(u8, Vec<u8>), ()>().unwrap(), over_tcp] {
        thread::scope(|scope| {
            for number in 0..4_u8 {
                let one = &one;
                scope.spawn(move || {
                    for round in 0..50_usize {
                        one.send(&(number, vec![number; round * 5000])).unwrap();
                    }
                });
            }
            let received: Vec<_> = (0..4)
                .map(|_| {
                    let other = &other;
                    scope.spawn(move || {
                        let mut bytes = 0;
                        for _ in 0..50 {
                            let (number, message) = other.recv().unwrap();
                            assert!(message.iter().all(|byte| *byte == number));
                            bytes += message.len();
                        }
                        bytes
                    })
                })
                .collect();
            let total: usize = received.into_iter().map(|thread| thread.join().unwrap()).sum();
            assert_eq!(total, 4 * 5000 * (0..50).sum::<usize>());
        });
    }
}

#[test]
fn a_timeout_in_the_middle_of_a_long_message_does_not_lose_it() {
    let _watchdog = watchdog();
    let (one, other) = pipe::<Vec<u8>, ()>().unwrap();
    thread::scope(|scope| {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let one = &one;
        scope.spawn(move || {
            // The message does not fit into the buffer, so the sender blocks in the middle of it.
            one.send(&vec![3; 5 << 20]).unwrap();
            wait.recv().unwrap();
            one.send(&vec![4; 10]).unwrap();
        });
        let mut tries = 0;
        let message = loop {
            match other.try_recv() {
                Ok(message) => break message,
                Err(RecvError::Empty) => tries += 1,
                Err(error) => panic!("{error}"),
            }
        };
        assert!(tries > 0 && message.len() == 5 << 20);
        assert!(matches!(other.recv_timeout(Duration::ZERO), Err(RecvError::Empty)));
        go.send(()).unwrap();
        assert_eq!(other.recv().unwrap(), [4; 10]);
    });
    // When the receiver closes in the middle of a message, sending it fails.
    drop(other);
    assert!(matches!(one.send(&vec![0; 5 << 20]), Err(SendError::Closed)));
}

#[task]
fn send_half(peer: Sender<Vec<u8>>) {
    let _ = peer.send(&vec![1; 4 << 20]);
}

#[test]
fn a_sender_that_dies_within_a_message_is_reported_as_truncated() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (sender, receiver) = channel().unwrap();
    let pid = pool.submit(support::pid::task()).result().unwrap();
    let future = pool.submit(send_half::task(sender));
    receiver.poll(None).unwrap();
    // The sender is stopped in the middle of the message, which is longer than the buffer. A sender
    // that keeps up with the receiver would send all of it.
    support::stop(pid);
    assert!(matches!(receiver.try_recv(), Err(RecvError::Empty)));
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid as i32).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    assert!(matches!(receiver.recv(), Err(RecvError::Truncated)));
    assert!(future.result().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_a_receive_loses_no_message() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (ours, theirs) = pipe::<Option<Thing>, Option<Thing>>().unwrap();
    let future = pool.submit(echo::task(theirs));
    for thing in things() {
        ours.send_async(&Some(thing.clone())).await.unwrap();
        // The future is dropped again and again, also while half of a message has arrived.
        let back = loop {
            let receiving = tokio::time::timeout(Duration::from_micros(200), ours.recv_async());
            if let Ok(back) = receiving.await {
                break back.unwrap();
            }
        };
        assert!(back == Some(thing));
    }
    drop(ours);
    assert_eq!(future.await.unwrap(), 6);
}

#[tokio::test]
async fn a_sink_and_a_stream_carry_all_items_in_order() {
    let _watchdog = watchdog();
    let (sender, receiver) = channel::<Vec<u8>>().unwrap();
    let sending = async move {
        let mut sink = sender.sink();
        let items = (0..100).map(|i: usize| Ok(vec![i as u8; i * 1000]));
        sink.send_all(&mut futures::stream::iter(items)).await.unwrap();
    };
    let receiving = async {
        let stream = receiver.stream().map(Result::unwrap).enumerate();
        stream
            .fold(0, |sum, (i, item)| async move {
                assert!(item == vec![i as u8; i * 1000]);
                sum + item.len()
            })
            .await
    };
    let ((), sum) = tokio::join!(sending, receiving);
    assert_eq!(sum, 1000 * (0..100).sum::<usize>());
}

#[test]
fn connections_are_awaited_without_tokio_and_on_several_runtimes_in_turn() {
    let _watchdog = watchdog();
    let (one, other) = pipe::<u32, u32>().unwrap();
    let talk = |number: u32| {
        let (one, other) = (&one, &other);
        async move {
            let receiving = async {
                let received = other.recv_async().await.unwrap();
                other.send_async(&(received + 1)).await.unwrap();
            };
            let sending = async {
                one.send_async(&number).await.unwrap();
                one.recv_async().await.unwrap()
            };
            let ((), answer) = futures::join!(receiving, sending);
            assert_eq!(answer, number + 1);
        }
    };
    futures::executor::block_on(talk(1));
    for number in 2..5 {
        tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap()
            .block_on(talk(number));
    }
    futures::executor::block_on(talk(5));
}

#[test]
#[ignore = "takes 6 GiB of memory: `cargo test --release --test objects connection:: -- --ignored`"]
fn a_message_of_more_than_two_gigabytes_arrives_complete() {
    let _watchdog = support::watchdog_of(Duration::from_secs(900));
    let len = (2_usize << 30) + 12_345;
    let (one, other) = pipe::<(), ()>().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = vec![0; len];
            bytes[len - 1] = 9;
            one.send_bytes(&bytes).unwrap();
            one.send_bytes(b"after").unwrap();
        });
        let bytes = other.recv_bytes().unwrap();
        assert!(bytes.len() == len && bytes[len - 1] == 9);
        assert_eq!(other.recv_bytes().unwrap(), b"after");
    });
    assert!(!other.poll(Some(Duration::ZERO)).unwrap());
}
