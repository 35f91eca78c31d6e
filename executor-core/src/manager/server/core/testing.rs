//! What the tests of this folder share: a core with clients, whose replies are kept by call.

use std::{collections::HashMap, sync::Arc};

use super::{Actions, ClientId, Core, Job, JobId, LeaseId, Limits, Returned};
use crate::manager::protocol::{
    self, CallId, Fields, Kind, ObjectId, Operation, Request, RequestBody, Status, put_bytes,
    put_number, put_value,
};

/// Limits that no test reaches by accident.
pub(super) const LARGE: Limits =
    Limits { clients: 100, objects: 2_000_000, calls_per_client: 1_000, bytes_per_client: 1 << 30 };

/// The method that has its object for itself.
pub(super) const EXCLUSIVE: u64 = 8;

/// The fields of a message.
#[derive(Clone, Debug, Default)]
pub(super) struct Body(pub(super) Vec<u8>);

impl Body {
    pub(super) fn new() -> Self {
        Body::default()
    }

    pub(super) fn number(mut self, number: u64) -> Self {
        put_number(&mut self.0, number);
        self
    }

    pub(super) fn bytes(mut self, bytes: impl AsRef<[u8]>) -> Self {
        put_bytes(&mut self.0, bytes.as_ref());
        self
    }

    /// A value that names no object.
    pub(super) fn value(self, bytes: impl AsRef<[u8]>) -> Self {
        self.naming(bytes, &[])
    }

    pub(super) fn naming(mut self, bytes: impl AsRef<[u8]>, names: &[ObjectId]) -> Self {
        put_value(&mut self.0, bytes.as_ref(), names);
        self
    }
}

/// Returns a body of one number.
pub(super) fn number(number: u64) -> Body {
    Body::new().number(number)
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: Status,
    pub(super) number: u64,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// Returns the number of a reply that says that the request was done.
    #[track_caller]
    pub(super) fn done(&self) -> u64 {
        assert_eq!(self.status, Status::Done, "{self:?}");
        self.number
    }

    /// Returns the bytes of all values in the body, as texts.
    #[track_caller]
    pub(super) fn texts(&self) -> Vec<&str> {
        let values = Fields::new(&self.body).values().unwrap();
        values.iter().map(|value| std::str::from_utf8(value.bytes).unwrap()).collect()
    }
}

/// A call of a client.
pub(super) type Call = (ClientId, CallId);

/// A core with clients. After each event it is checked.
pub(super) struct Desk {
    pub(super) core: Core,
    out: Actions,
    last_call: u32,
    answers: HashMap<Call, Answer>,
    pub(super) jobs: Vec<Job>,
    /// Whether the core is checked after each event. A test with many objects does without.
    pub(super) checked: bool,
}

impl Desk {
    pub(super) fn new() -> Self {
        Desk::with(LARGE)
    }

    pub(super) fn with(limits: Limits) -> Self {
        Desk {
            core: Core::new(limits, |function| function == EXCLUSIVE),
            out: Actions::default(),
            last_call: 0,
            answers: HashMap::new(),
            jobs: Vec::new(),
            checked: true,
        }
    }

    /// Returns a desk with two clients.
    pub(super) fn with_two() -> (Self, ClientId, ClientId) {
        let mut desk = Desk::new();
        let (a, b) = (desk.client(), desk.client());
        (desk, a, b)
    }

    pub(super) fn client(&mut self) -> ClientId {
        self.core.connect().unwrap()
    }

    /// Takes over the replies and jobs.
    #[track_caller]
    fn collect(&mut self) {
        for (client, reply, body, _) in self.out.replies() {
            let answer =
                Answer { status: reply.status, number: reply.number, body: body.to_bytes().into() };
            assert_eq!(reply.len, body.len() as u64);
            let previous = self.answers.insert((client, reply.call), answer);
            assert_eq!(previous, None, "call {:?} is answered twice", reply.call);
        }
        self.jobs.append(&mut self.out.take_jobs());
        self.out.clear();
        if self.checked {
            self.core.check();
        }
    }

    #[track_caller]
    fn request(
        &mut self,
        client: ClientId,
        call: CallId,
        operation: Operation,
        object: ObjectId,
        body: &Body,
    ) {
        let request = Request { call, operation, object, len: body.0.len() as u64 };
        self.core.request(client, request, body.0[..].into(), &mut self.out);
        self.collect();
    }

    /// Sends a request that is answered now or later.
    #[track_caller]
    pub(super) fn send(
        &mut self,
        client: ClientId,
        operation: Operation,
        object: ObjectId,
        body: Body,
    ) -> Call {
        self.last_call += 1;
        let call = CallId(self.last_call);
        self.request(client, call, operation, object, &body);
        (client, call)
    }

    /// Sends a request whose last bytes came apart from its fields.
    #[track_caller]
    pub(super) fn send_with_tail(
        &mut self,
        client: ClientId,
        operation: Operation,
        object: ObjectId,
        fields: Body,
        tail: &Arc<[u8]>,
    ) -> Call {
        self.last_call += 1;
        let call = CallId(self.last_call);
        let request = Request { call, operation, object, len: fields.0.len() as u64 };
        let body = RequestBody { fields: &fields.0, tail: Some(tail) };
        self.core.request(client, request, body, &mut self.out);
        self.collect();
        (client, call)
    }

    /// Sends a request that is answered at once.
    #[track_caller]
    pub(super) fn ask(
        &mut self,
        client: ClientId,
        operation: Operation,
        object: ObjectId,
        body: Body,
    ) -> Answer {
        let call = self.send(client, operation, object, body);
        self.answer(call).unwrap_or_else(|| panic!("{operation:?} waits"))
    }

    /// Sends a request that is refused at once. Returns why.
    #[track_caller]
    pub(super) fn refused(
        &mut self,
        client: ClientId,
        operation: Operation,
        object: ObjectId,
        body: Body,
    ) -> Status {
        let answer = self.ask(client, operation, object, body);
        assert_ne!(answer.status, Status::Done);
        answer.status
    }

    /// Sends a request that has to wait.
    #[track_caller]
    pub(super) fn waits(
        &mut self,
        client: ClientId,
        operation: Operation,
        object: ObjectId,
        body: Body,
    ) -> Call {
        let call = self.send(client, operation, object, body);
        assert_eq!(self.answers.get(&call), None, "{operation:?} does not wait");
        call
    }

    /// Sends a request without a reply.
    #[track_caller]
    pub(super) fn tell(
        &mut self,
        client: ClientId,
        operation: Operation,
        object: ObjectId,
        body: Body,
    ) {
        self.request(client, CallId::NONE, operation, object, &body);
    }

    /// Takes the answer to a call, if it has come.
    pub(super) fn answer(&mut self, call: Call) -> Option<Answer> {
        self.answers.remove(&call)
    }

    /// Takes the number of a call that is done, and the status of one that is not.
    #[track_caller]
    pub(super) fn outcome(&mut self, call: Call) -> Result<u64, Status> {
        let answer = self.answer(call).expect("the call waits");
        if answer.status == Status::Done { Ok(answer.number) } else { Err(answer.status) }
    }

    #[track_caller]
    pub(super) fn create(&mut self, client: ClientId, kind: Kind, fields: Body) -> ObjectId {
        let mut body = number(kind as u64);
        body.0.extend(fields.0);
        ObjectId(self.ask(client, Operation::Create, ObjectId::NONE, body).done())
    }

    /// Gives a client a reference to an object of another one.
    #[track_caller]
    pub(super) fn share(&mut self, client: ClientId, object: ObjectId) {
        self.ask(client, Operation::Claim, object, Body::new()).done();
    }

    #[track_caller]
    pub(super) fn release(&mut self, client: ClientId, object: ObjectId, count: u64) {
        self.tell(client, Operation::Release, object, number(count));
    }

    #[track_caller]
    pub(super) fn give_up(&mut self, (client, call): Call) {
        self.tell(client, Operation::GiveUp, ObjectId::NONE, number(u64::from(call.0)));
    }

    #[track_caller]
    pub(super) fn disconnect(&mut self, client: ClientId) {
        self.disconnect_unread(client, 0);
    }

    /// Takes all answers of a client.
    pub(super) fn answers_of(&mut self, client: ClientId) {
        self.answers.retain(|(to, _), _| *to != client);
    }

    /// Ends a client that has not read its last replies that gave it something.
    #[track_caller]
    pub(super) fn disconnect_unread(&mut self, client: ClientId, unread: usize) {
        self.core.disconnect(client, unread, &mut self.out);
        self.collect();
        assert!(self.answers.keys().all(|(to, _)| *to != client), "a dead client is answered");
    }

    #[track_caller]
    pub(super) fn lease_ended(&mut self, lease: LeaseId) {
        self.core.lease_ended(lease, &mut self.out);
        self.collect();
    }

    #[track_caller]
    pub(super) fn ran(&mut self, job: JobId, result: Result<&[u8], &[u8]>) {
        self.core.ran(job, result.map(Returned::plain), &mut self.out);
        self.collect();
    }

    /// A function has ended with a result that names objects.
    #[track_caller]
    pub(super) fn ran_naming(&mut self, job: JobId, bytes: &[u8], names: &[ObjectId]) {
        self.core.ran(job, Ok(Returned { bytes, names }), &mut self.out);
        self.collect();
    }

    /// A handle that a function was lent is dropped.
    #[track_caller]
    pub(super) fn let_go(&mut self, object: ObjectId) {
        self.core.let_go(object, &mut self.out);
        self.collect();
    }

    /// Returns whether an object exists.
    pub(super) fn exists(&self, object: ObjectId) -> bool {
        self.core.objects.contains(object)
    }
}

/// Returns the text of a reply that has one.
pub(super) fn text(answer: &Answer) -> &str {
    std::str::from_utf8(protocol::Fields::new(&answer.body).bytes().unwrap()).unwrap()
}

/// The SplitMix64 generator: small, and the same on every platform.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    pub(super) fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Returns the number in an environment variable.
pub(super) fn number_in(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}
