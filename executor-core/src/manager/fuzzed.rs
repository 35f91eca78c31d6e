//! The decoders of a manager's server and of its clients, as functions of bytes, for the fuzzer.

use std::sync::Arc;

use super::{
    client::door::check_knock,
    function,
    link::{
        challenge::{Answer, Challenge, whole},
        stream::{Stream, read_welcome},
    },
    protocol::{
        CallId, Fields, HEADER_BYTES, InSegment, ObjectId, Operation, Reply, Request, RequestBody,
        names_in_reply,
    },
    server::core::{Actions, Core, Limits, PoolOrder, Returned, Work},
};
use crate::{fuzz::Input, ipc::AuthKey};

/// How much the server may have allocated after requests of `len` bytes in all.
pub(crate) fn requests_bytes_max(len: usize) -> usize {
    // An item of a list needs 4 bytes in a request. An entry of a map, and a call that waits, take
    // some hundred bytes of memory, and a reply may repeat all that is stored.
    (1 << 18) + 512 * len
}

/// Gives requests of two clients to a server. Each is a client, an operation, an object, the length
/// of the body in two bytes, and the body. Jobs end at once, with the arguments as their value.
///
/// The byte of the client also says whether the last bytes of the body come apart from it, and how
/// many these are.
pub(crate) fn requests(data: &[u8]) {
    let mut input = Input::new(data);
    let limits =
        Limits { clients: 2, objects: 64, calls_per_client: 32, bytes_per_client: 1 << 16 };
    let mut core = Core::new(limits, |function| function == 7);
    let clients = [core.connect(), core.connect()].map(|client| client.expect("room for two"));
    let mut actions = Actions::default();
    let mut call = 0;
    let mut answered = 0;
    while !input.is_empty() {
        let byte = input.u8();
        let client = clients[usize::from(byte & 1)];
        let operation = usize::from(input.u8()) % Operation::ALL.len();
        let object = ObjectId(u64::from(input.u8()));
        let len = usize::from(input.u16());
        let body = input.bytes(len);
        call += 1;
        let request = Request {
            call: CallId(call),
            operation: Operation::ALL[operation],
            object,
            len: body.len() as u64,
        };
        let bytes = request.to_bytes();
        assert_eq!(Request::from_bytes(&bytes), Some(request), "a header survives");
        let tail_len = if byte & 2 != 0 { usize::from(byte >> 2).min(body.len()) } else { 0 };
        let (fields, tail) = body.split_at(body.len() - tail_len);
        let tail: Option<Arc<[u8]>> = (byte & 2 != 0).then(|| tail.into());
        let body = RequestBody { fields, tail: tail.as_ref() };
        core.request(client, request, body, &mut actions);
        while !actions.is_empty() {
            answered += actions.replies().len();
            for (_, reply, body, _) in actions.replies() {
                assert_eq!(reply.len, body.len() as u64, "a reply is as long as it says");
            }
            let jobs = actions.take_jobs();
            actions.clear();
            for job in jobs {
                let result = match &job.work {
                    Work::Update { arguments, .. }
                    | Work::Call { arguments, .. }
                    | Work::Pool { order: PoolOrder::Submit { arguments, .. }, .. } => {
                        &arguments[..]
                    }
                    Work::Construct { .. } | Work::Drop { .. } | Work::Pool { .. } => &[],
                };
                // It returns all handles that it got, and drops them.
                let names = job.work.names();
                core.ran(job.id, Ok(Returned { bytes: result, names }), &mut actions);
                names.iter().for_each(|name| core.let_go(*name, &mut actions));
            }
        }
        assert!(answered <= call as usize, "more answers than calls");
    }
    for client in clients {
        core.disconnect(client, usize::MAX, &mut actions);
        actions.clear();
    }
}

/// Decodes a reply, as a client does: its header, the objects that it names, and its failure.
pub(crate) fn replies(data: &[u8]) {
    let (header, body) = data.split_at(data.len().min(HEADER_BYTES));
    if let Some((fields, there)) = InSegment::take(body) {
        assert_eq!(fields.len() + InSegment::BYTES, body.len());
        let mut again = fields.to_vec();
        there.put(&mut [0; HEADER_BYTES], &mut again);
        assert_eq!(again, body, "where a tail is survives");
    }
    if let Some(reply) = header.first_chunk().and_then(Reply::from_bytes) {
        let again = reply.to_bytes();
        assert_eq!(Reply::from_bytes(&again), Some(reply), "a header survives");
    }
    for operation in Operation::ALL {
        let names = names_in_reply(*operation, Fields::new(body));
        assert!(names.len() * 8 <= body.len(), "more names than bytes for them");
    }
    let _ = function::failure(body).to_string();
}

/// Gives both sides of a meeting the stream of a peer that does not know the key. Then reads the
/// same stream as messages, which come in pieces.
pub(crate) fn meeting(data: &[u8]) {
    let mut input = Input::new(data);
    let piece = usize::from(input.u8()).max(1);
    let max = u64::from(input.u16());
    let stream = input.bytes(data.len());
    let key = AuthKey::new("a key that the fuzzer does not know");
    let listening = Challenge::listen(key.clone()).expect("there are random numbers");
    for mut side in [listening.0, Challenge::ask(key).0] {
        let (mut rest, mut heard) = (stream, 0);
        while let Ok(Some(len)) = whole(rest) {
            let (said, behind) = rest.split_at(len);
            rest = behind;
            match side.hear(said).expect("there are random numbers") {
                Answer::Listen | Answer::Say(_) => heard += 1,
                Answer::Believe(_) => panic!("believed without the key"),
                Answer::Fail(..) => break,
            }
            assert!(heard <= 2, "a challenge that does not end");
        }
    }
    let _ = check_knock(stream);
    let _ = read_welcome(stream);
    let mut messages = Stream::new(Vec::new(), max);
    let (mut message, mut total) = (Vec::new(), 0);
    for part in stream.chunks(piece) {
        messages.arriving().extend_from_slice(part);
        loop {
            let has = messages.has_message();
            match messages.next(&mut message) {
                Ok(next) => assert_eq!(next, has, "what is there is handed out"),
                Err(_) => return assert!(has, "an error is something to tell"),
            }
            if !has {
                break;
            }
            assert!(message.len() as u64 <= HEADER_BYTES as u64 + max, "it is too long");
            total += message.len();
        }
    }
    assert!(total <= stream.len(), "more was handed out than has arrived");
}

/// Decodes the way to a server that has come with a handle.
#[cfg(feature = "tls")]
pub(crate) fn way(data: &[u8]) {
    super::client::way::fuzzed::way(data);
}

/// Inputs for [`way`].
#[cfg(all(test, feature = "tls"))]
pub(crate) fn way_seeds() -> Vec<Vec<u8>> {
    super::client::way::fuzzed::seeds()
}

/// Inputs for [`meeting`].
#[cfg(test)]
pub(crate) fn meeting_seeds() -> Vec<Vec<u8>> {
    use super::{
        client::{ServerId, door::knock},
        link::stream::{refusal, welcome},
    };
    let input =
        |piece: u8, max: u16, stream: &[u8]| [&[piece][..], &max.to_le_bytes(), stream].concat();
    let message = |(header, body): ([u8; HEADER_BYTES], Vec<u8>)| [&header[..], &body].concat();
    let mut whole_message = message(welcome(ServerId(7), 1 << 20));
    // The number of this process would make another seed of it each time.
    whole_message[HEADER_BYTES + 16..HEADER_BYTES + 20].copy_from_slice(&[1, 0, 0, 0]);
    let hello_and_answer = [&[4, 0, 6, 64][..], &[1; 64]].concat();
    let challenge_and_welcome = [&[5, 32][..], &[2; 32], &[7, 32], &[3; 32]].concat();
    let mut long = [0; HEADER_BYTES];
    long[16..].fill(0xff);
    vec![
        vec![],
        input(1, 100, &hello_and_answer),
        input(7, 100, &challenge_and_welcome),
        input(255, 100, &knock()),
        input(5, 100, &whole_message.repeat(3)),
        input(30, 100, &message(refusal("full"))),
        input(9, u16::MAX, &long),
        input(9, 0, &[0; 100]),
    ]
}

/// Inputs for [`requests`] that use every operation with bodies that are often right.
#[cfg(test)]
pub(crate) fn request_seeds() -> Vec<Vec<u8>> {
    use super::protocol::{Kind, put_bytes, put_number, put_value};
    let request = |client: u8, operation: Operation, object: u8, body: &[u8]| {
        let head = [client, operation as u8, object];
        [&head[..], &(body.len() as u16).to_le_bytes(), body].concat()
    };
    let bodies: [fn(&mut Vec<u8>); 8] = [
        |_| {},
        |body| put_number(body, 1),
        |body| put_bytes(body, b"key"),
        |body| [b"key", b"one"].iter().for_each(|value| put_value(body, *value, &[])),
        |body| {
            put_number(body, 0);
            put_value(body, b"value", &[ObjectId(1)]);
        },
        |body| {
            put_number(body, 0);
            put_number(body, 1);
            put_value(body, b"value", &[]);
        },
        |body| {
            put_bytes(body, b"key");
            put_number(body, 7);
            put_number(body, 1);
            put_bytes(body, b"rest");
        },
        |body| {
            put_number(body, 7);
            put_number(body, 1);
            put_bytes(body, b"arguments");
        },
    ];
    let mut seeds = Vec::new();
    for kind in Kind::ALL {
        let mut create = Vec::new();
        put_number(&mut create, *kind as u64);
        match kind {
            Kind::List => put_number(&mut create, 0),
            Kind::Cell => put_value(&mut create, b"cell", &[]),
            Kind::Queue => [2, 1].iter().for_each(|number| put_number(&mut create, *number)),
            Kind::Lock => put_number(&mut create, 1),
            Kind::Semaphore => [1, 1].iter().for_each(|number| put_number(&mut create, *number)),
            Kind::Condition => put_number(&mut create, 1),
            Kind::Barrier => put_number(&mut create, 2),
            Kind::Own => {
                put_number(&mut create, 7);
                put_value(&mut create, b"arguments", &[]);
            }
            Kind::Pool => put_number(&mut create, 2),
            Kind::Map | Kind::Set | Kind::Event => {}
        }
        let mut lock = Vec::new();
        put_number(&mut lock, Kind::Lock as u64);
        put_number(&mut lock, 0);
        let mut seed = [
            request(0, Operation::Create, 0, &lock),
            request(0, Operation::Create, 0, &create),
            request(1, Operation::Claim, 1, &[]),
            request(1, Operation::Claim, 2, &[]),
        ]
        .concat();
        for operation in Operation::ALL {
            for body in bodies {
                let mut bytes = Vec::new();
                body(&mut bytes);
                seed.extend(request(*operation as u8 & 1, *operation, 2, &bytes));
            }
        }
        // The last bytes of some bodies come apart: "one", "value", and what is none.
        for (operation, body, tail) in [
            (Operation::MapInsert, bodies[3], 3),
            (Operation::CellSet, bodies[2], 3),
            (Operation::QueuePut, bodies[4], 5),
            (Operation::ListSet, bodies[4], 5),
            (Operation::SetInsert, bodies[2], 1),
            (Operation::Snapshot, bodies[0], 0),
        ] {
            let mut bytes = Vec::new();
            body(&mut bytes);
            seed.extend(request(tail << 2 | 2, operation, 2, &bytes));
        }
        seeds.push(seed);
    }
    seeds.push(vec![]);
    seeds.push(vec![0xff; 64]);
    seeds
}

/// Inputs for [`replies`].
#[cfg(test)]
pub(crate) fn reply_seeds() -> Vec<Vec<u8>> {
    use super::protocol::{Status, put_bytes, put_number, put_value};
    let reply = |status, body: &[u8]| {
        let reply = Reply { call: CallId(3), status, number: 1, len: body.len() as u64 };
        [&reply.to_bytes()[..], body].concat()
    };
    let mut values = Vec::new();
    put_value(&mut values, b"one", &[]);
    put_value(&mut values, b"two", &[ObjectId(1), ObjectId(2)]);
    let mut flags = Vec::new();
    put_number(&mut flags, 1);
    put_value(&mut flags, b"one", &[ObjectId(1)]);
    put_number(&mut flags, 0);
    let mut failure = Vec::new();
    put_number(&mut failure, 7);
    put_bytes(&mut failure, &postcard::to_stdvec(&crate::error::Failure::default()).expect("data"));
    put_bytes(&mut failure, b"name");
    vec![
        vec![],
        reply(Status::Done, &[]),
        reply(Status::Done, &values),
        reply(Status::Done, &flags),
        reply(Status::Failed, &failure),
        reply(Status::Missing, &[0xff; 40]),
    ]
}
