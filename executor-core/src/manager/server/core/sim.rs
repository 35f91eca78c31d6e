//! A seeded simulation: clients that ask for anything, give up calls, send garbage, and die.
//!
//! ```text
//!  World ── clients: requests of all kinds, garbage, give-ups, disconnects ─┐
//!    │ ─── the server's loop: leases end, functions end ────────────────────┤ event ──► Core
//!    └─► after each event: Core::check, and the world's own record ◄── replies, jobs ◄───┘
//! ```
//!
//! The world keeps its own record of the calls that are not answered, and of the references that
//! each client got.
//!
//! `EXECUTOR_ROUNDS=10000` runs that many seeds. `EXECUTOR_SEED=17` runs one seed. A failure prints
//! its seed and the last events.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::{
    Actions, ClientId, Core, Job, JobId, LeaseId, Limits, PoolOrder, Returned, State, ValueId,
    Work,
    own::SHARED_MAX,
    testing::{Body, Dice, EXCLUSIVE, LARGE, number_in},
};
use crate::manager::protocol::{CallId, Fields, Kind, ObjectId, Operation, Reply, Request, Status};

const ROUNDS: u64 = 300;
const STEPS: u64 = 400;
const TRACE_LEN: usize = 30;

/// A value of a user's own type, as the world knows it.
#[derive(Default)]
struct Value {
    shared: usize,
    exclusive: usize,
    /// The number of the last call that has begun. Calls begin in the order in which they came.
    last: u64,
}

/// The executor of a pool, as the world knows it.
#[derive(Default)]
struct Executor {
    /// The tasks that have not ended.
    tasks: BTreeSet<JobId>,
    closed: bool,
    /// Whether it is to end.
    ended: bool,
}

/// What a reply has given to a client.
struct Given {
    operation: Operation,
    object: ObjectId,
    number: u64,
    /// For whom it has acquired a lock.
    owner: Option<u64>,
    body: Vec<u8>,
}

struct World {
    dice: Dice,
    core: Core,
    out: Actions,
    clients: Vec<ClientId>,
    /// All objects that there ever were.
    known: Vec<(ObjectId, Kind)>,
    /// Calls that are not answered.
    calls: BTreeMap<(ClientId, CallId), (Operation, ObjectId, Option<Kind>)>,
    references: BTreeMap<(ClientId, ObjectId), u64>,
    /// Clients on other machines.
    far: BTreeSet<ClientId>,
    /// The replies that gave a client something, and that it may not have read.
    unread: BTreeMap<ClientId, VecDeque<Given>>,
    /// For whom a call acquires a lock.
    owners: BTreeMap<(ClientId, CallId), u64>,
    leases: Vec<LeaseId>,
    jobs: Vec<(Job, ObjectId)>,
    /// The handles that functions were lent and have not dropped.
    lent: Vec<ObjectId>,
    /// The values of users' own types that are made, and not to be dropped.
    values: BTreeMap<ValueId, Value>,
    /// The executors of pools that are made, and have not ended.
    pools: BTreeMap<ValueId, Executor>,
    last_call: u32,
    trace: VecDeque<String>,
    counts: BTreeMap<String, u64>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let limits = if dice.percent(20) {
            Limits { clients: 4, objects: 12, calls_per_client: 3, bytes_per_client: 30 }
        } else {
            LARGE
        };
        World {
            dice,
            core: Core::new(limits, |function| function == EXCLUSIVE),
            out: Actions::default(),
            clients: Vec::new(),
            known: Vec::new(),
            calls: BTreeMap::new(),
            references: BTreeMap::new(),
            far: BTreeSet::new(),
            unread: BTreeMap::new(),
            owners: BTreeMap::new(),
            leases: Vec::new(),
            jobs: Vec::new(),
            lent: Vec::new(),
            values: BTreeMap::new(),
            pools: BTreeMap::new(),
            last_call: 0,
            trace: VecDeque::new(),
            counts: BTreeMap::new(),
        }
    }

    fn note(&mut self, what: String) {
        if self.trace.len() == TRACE_LEN {
            self.trace.pop_front();
        }
        self.trace.push_back(what);
    }

    fn count(&mut self, what: &str) {
        *self.counts.entry(what.to_owned()).or_default() += 1;
    }

    // ---- what came out --------------------------------------------------------------------------

    /// Takes over the replies and jobs, and checks everything.
    fn collect(&mut self, busy: ObjectId) {
        let out = std::mem::take(&mut self.out);
        for (client, reply, body, takes) in out.replies() {
            self.replied(client, reply, &body.to_bytes(), takes);
        }
        self.out = out;
        for job in self.out.take_jobs() {
            self.note(format!("  {job:?}"));
            self.begun(&job);
            self.lent.extend(job.work.names());
            self.jobs.push((job, busy));
        }
        self.out.clear();
        self.core.check();
        let mut lent = BTreeMap::new();
        self.lent.iter().for_each(|name| *lent.entry(*name).or_default() += 1);
        assert_eq!(self.core.clients.lent().collect::<BTreeMap<_, u64>>(), lent);
        let waits = self.core.clients.iter().flat_map(|(id, client)| {
            client.waits.keys().map(move |call| (id, *call)).collect::<Vec<_>>()
        });
        let mut waits: Vec<_> = waits.collect();
        waits.sort_unstable();
        let calls: Vec<_> = self.calls.keys().copied().collect();
        assert_eq!(waits, calls, "each call waits, or is answered");
        let mut held = BTreeMap::new();
        for (id, client) in self.core.clients.iter() {
            held.extend(client.references.iter().map(|(object, count)| ((id, *object), *count)));
        }
        assert_eq!(held, self.references, "the references of clients");
    }

    /// Checks what runs beside a job that begins.
    fn begun(&mut self, job: &Job) {
        match &job.work {
            Work::Update { .. } | Work::Construct { .. } => {}
            Work::Call { value, function, arguments, .. } => {
                let value = self.values.get_mut(value).expect("a call of a value that is there");
                let number = u64::from_le_bytes(arguments[..].try_into().unwrap());
                assert!(number > value.last, "a call overtakes another one");
                value.last = number;
                match *function {
                    EXCLUSIVE => value.exclusive += 1,
                    _ => value.shared += 1,
                }
                let Value { shared, exclusive, .. } = *value;
                assert!(exclusive == 0 || (exclusive, shared) == (1, 0), "{exclusive}, {shared}");
                assert!(shared <= SHARED_MAX);
                if shared > 1 {
                    self.count("calls run side by side");
                }
            }
            Work::Drop { value } => {
                let value = self.values.remove(value).expect("a value is dropped once");
                assert_eq!(value.shared + value.exclusive, 0, "its calls have ended");
                self.count("a value is dropped");
            }
            Work::Pool { executor, order } => self.ordered(job.id, *executor, order),
        }
    }

    /// Checks an order to a pool.
    fn ordered(&mut self, job: JobId, executor: ValueId, order: &PoolOrder) {
        if let PoolOrder::Make { .. } = order {
            assert_eq!(executor, ValueId(job));
            return;
        }
        let pool = self.pools.get_mut(&executor).expect("a pool that was made, and has not ended");
        match order {
            PoolOrder::Submit { .. } => drop(pool.tasks.insert(job)),
            PoolOrder::Cancel { task } => {
                assert!(pool.tasks.contains(task), "a task is cancelled that has not ended");
                self.count("a task of a client that is gone");
            }
            PoolOrder::Close | PoolOrder::Terminate => pool.closed = true,
            PoolOrder::Join => assert!(pool.closed, "its end can come"),
            PoolOrder::End => {
                assert!(!std::mem::replace(&mut pool.ended, true), "a pool ends once");
                self.count("a pool ends");
            }
            PoolOrder::Make { .. } | PoolOrder::Workers => {}
        }
    }

    fn replied(&mut self, client: ClientId, reply: Reply, body: &[u8], takes: bool) {
        let asked = self.calls.remove(&(client, reply.call));
        let (operation, object, kind) = asked.expect("a reply to a call that waits");
        self.note(format!("  {client:?} {:?} {operation:?}: {:?}", reply.call, reply.status));
        self.count(&format!("{:?}", reply.status));
        if reply.status == Status::GivenUp {
            self.count(&format!("{operation:?}: given up"));
        }
        if let (Operation::LockAcquire | Operation::ConditionWait, 1) = (operation, reply.number) {
            self.count(&format!("{operation:?}: the last owner died"));
        }
        assert_eq!(reply.len, body.len() as u64);
        let gives = match operation {
            Operation::QueueGet => reply.status == Status::Done,
            // What it has is not put off until it has heard of it.
            _ if self.far.contains(&client) => false,
            Operation::LockAcquire => reply.status == Status::Done,
            // It may also have waited for an object of another kind that was busy.
            Operation::ConditionWait => {
                let ended = matches!(reply.status, Status::Done | Status::GivenUp);
                ended && self.known.contains(&(object, Kind::Condition))
            }
            _ => false,
        };
        assert_eq!(takes, gives, "{operation:?} {:?}", reply.status);
        if takes {
            let number = reply.number;
            let owner = self.owners.get(&(client, reply.call)).copied();
            let given = Given { operation, object, number, owner, body: body.to_vec() };
            self.unread.entry(client).or_default().push_back(given);
        }
        if let Status::Malformed | Status::Limit = reply.status {
            let mut fields = Fields::new(body);
            assert!(!fields.bytes().unwrap().is_empty());
            return fields.end().unwrap();
        }
        if reply.status == Status::Failed {
            return assert_eq!(body, b"failure");
        }
        if reply.status != Status::Done {
            return assert_eq!(body, b"");
        }
        self.count(&format!("{operation:?}"));
        let mut fields = Fields::new(body);
        match operation {
            Operation::Create => {
                let id = ObjectId(reply.number);
                *self.references.entry((client, id)).or_default() += 1;
                self.known.push((id, kind.unwrap()));
            }
            Operation::Claim => *self.references.entry((client, object)).or_default() += 1,
            Operation::BarrierState | Operation::SetCount => {}
            Operation::MapGetMany => {
                while !fields.is_empty() {
                    if fields.flag().unwrap() {
                        self.received(client, fields.value().unwrap().names());
                    }
                }
            }
            _ => {
                for value in fields.values().unwrap() {
                    self.received(client, value.names());
                }
            }
        }
    }

    fn received(&mut self, client: ClientId, names: impl Iterator<Item = ObjectId>) {
        for name in names {
            *self.references.entry((client, name)).or_default() += 1;
            self.count("a reply names an object");
        }
    }

    // ---- what goes in ---------------------------------------------------------------------------

    fn step(&mut self) {
        let dice = self.dice.below(100);
        match dice {
            0..4 => self.connect(),
            4 => {
                if self.holds_up().is_some() || self.dice.percent(50) {
                    self.disconnect();
                }
            }
            5..10 => self.give_up(),
            10..12 => self.release(),
            12 => self.lease(),
            13 => {
                self.lease_ended();
                if self.dice.percent(30) {
                    self.read();
                }
            }
            14..21 => self.ran(),
            21..26 => self.create(),
            26 => self.publish(),
            27..37 => self.claim(),
            _ => self.ask(),
        }
    }

    fn connect(&mut self) {
        if self.clients.len() >= 6 {
            return;
        }
        let far = self.dice.percent(30);
        let connected = if far { self.core.connect_far() } else { self.core.connect() };
        if let Ok(client) = connected {
            self.note(format!("{client:?} connects{}", if far { " from afar" } else { "" }));
            self.clients.push(client);
            if far {
                self.far.insert(client);
            }
        }
    }

    fn client(&mut self) -> Option<ClientId> {
        (!self.clients.is_empty()).then(|| self.dice.pick(&self.clients))
    }

    /// Returns an object, most often one that was created lately.
    fn object(&mut self) -> Option<(ObjectId, Kind)> {
        let lately = self.known.len().saturating_sub(12);
        let from = if self.dice.percent(90) { &self.known[lately..] } else { &self.known[..] };
        (!from.is_empty()).then(|| self.dice.pick(from))
    }

    /// The loop notices how many of its replies a client has read.
    fn read(&mut self) {
        let Some(client) = self.client() else { return };
        let Some(unread) = self.unread.get_mut(&client) else { return };
        let count = self.dice.below(unread.len() as u64 + 1) as usize;
        unread.drain(..count);
        self.core.takes_read(client, count);
        self.collect(ObjectId::NONE);
    }

    /// Returns what all queues contain.
    fn queues(&self) -> BTreeMap<ObjectId, VecDeque<Vec<u8>>> {
        let queues = self.core.objects.iter().filter_map(|(id, object)| match &object.state {
            State::Queue(queue) => Some((id, queue)),
            _ => None,
        });
        queues.map(|(id, queue)| (id, queue.items().map(encoded).collect())).collect()
    }

    /// Returns what all locks that a client holds are to say of it, if it had not read the last
    /// replies: the lock, and whether its next owner is told of a death.
    fn marks(&self, client: ClientId, unread: &VecDeque<Given>) -> Vec<(ObjectId, bool)> {
        let locks = self.core.objects.iter().filter_map(|(id, object)| match &object.state {
            State::Lock(lock) if object.state.holders() == [client] => Some((id, &**lock)),
            _ => None,
        });
        let mark = |(id, lock): (ObjectId, &super::lock::Lock)| {
            let mut count = lock.marks().0;
            let owner = lock.owner().map(|owner| owner.number);
            let mut told = false;
            for given in unread.iter().rev() {
                let of = match &self.core.objects.get(given.object)?.state {
                    State::Condition(condition) => condition.lock,
                    _ => given.object,
                };
                // How often a wait takes the lock is not known here.
                if of == id && given.operation == Operation::ConditionWait {
                    return None;
                }
                if of == id && count > 0 && given.owner == owner {
                    count = count.saturating_sub(1);
                    told |= given.number == 1;
                }
            }
            Some((id, told || count > 0))
        };
        locks.filter_map(mark).collect()
    }

    /// Checks what has become of the items and locks that a dead client had not read that it had.
    fn check_undone(
        &mut self,
        mut expected: BTreeMap<ObjectId, VecDeque<Vec<u8>>>,
        marks: &[(ObjectId, bool)],
    ) {
        let out = std::mem::take(&mut self.out);
        let mut told = BTreeMap::new();
        for (client, reply, body, _) in out.replies() {
            let (operation, object, _) = self.calls[&(client, reply.call)];
            if operation == Operation::QueueGet && reply.status == Status::Done {
                let item = expected.get_mut(&object).and_then(VecDeque::pop_front);
                assert_eq!(item.as_deref(), Some(&*body.to_bytes()), "items are given in order");
                self.count("an unread item goes to another client");
            }
            if operation == Operation::LockAcquire && reply.status == Status::Done {
                told.insert(object, reply.number == 1);
            }
        }
        self.out = out;
        for (queue, items) in self.queues() {
            assert_eq!(items, expected[&queue], "the items of {queue:?}");
        }
        for (lock, mark) in marks {
            let Some(object) = self.core.objects.get(*lock) else { continue };
            let State::Lock(state) = &object.state else { unreachable!("it was a lock") };
            match state.owner() {
                None => assert_eq!(state.marks(), (0, *mark), "{lock:?}"),
                Some(_) if told.contains_key(lock) => assert_eq!(told[lock], *mark, "{lock:?}"),
                // It was passed on to a call that has waited for a condition.
                Some(_) => {}
            }
            self.count(if *mark { "a lock of the dead" } else { "a lock that was not seen" });
        }
    }

    /// Returns a client that may not have read an item of a queue at which another client waits.
    fn holds_up(&mut self) -> Option<ClientId> {
        let waits = |queue: ObjectId, but: ClientId| {
            self.calls.iter().any(|((client, _), (operation, object, _))| {
                (*operation, *object) == (Operation::QueueGet, queue) && *client != but
            })
        };
        let mut found = self.unread.iter().filter(|(client, unread)| {
            let mut items = unread.iter().filter(|given| given.operation == Operation::QueueGet);
            items.any(|given| waits(given.object, **client))
        });
        found.next().map(|(client, _)| *client)
    }

    fn disconnect(&mut self) {
        let client = if self.dice.percent(80) { self.holds_up() } else { None };
        let Some(client) = client.or_else(|| self.client()) else { return };
        self.note(format!("{client:?} disconnects"));
        self.count("disconnect");
        let mut unread = self.unread.remove(&client).unwrap_or_default();
        let count = self.dice.below(unread.len() as u64 + 1) as usize;
        unread.drain(..unread.len() - count);
        let mut expected = self.queues();
        for given in unread.iter().rev().filter(|given| given.operation == Operation::QueueGet) {
            let mut names = Fields::new(&given.body).value().unwrap().names();
            // A client that has given back what an item names has spoilt it.
            if names.all(|name| self.references.contains_key(&(client, name)))
                && let Some(items) = expected.get_mut(&given.object)
            {
                items.push_front(given.body.clone());
                self.count("an unread item is put back");
            }
        }
        let marks = self.marks(client, &unread);
        if self.calls.keys().any(|(of, _)| *of == client) {
            self.count("disconnect: while calls wait");
        }
        self.clients.retain(|other| *other != client);
        self.calls.retain(|(of, _), _| *of != client);
        self.references.retain(|(of, _), _| *of != client);
        self.core.disconnect(client, count, &mut self.out);
        self.check_undone(expected, &marks);
        self.collect(ObjectId::NONE);
        let holds = self.core.objects.iter().flat_map(|(_, object)| object.state.holders());
        assert!(holds.into_iter().all(|holder| holder != client), "a dead client holds a lock");
    }

    fn give_up(&mut self) {
        let calls: Vec<_> = self.calls.keys().copied().collect();
        let (client, call) = if !calls.is_empty() && self.dice.percent(95) {
            self.dice.pick(&calls)
        } else {
            let Some(client) = self.client() else { return };
            (client, CallId(self.last_call))
        };
        self.note(format!("{client:?} gives up {call:?}"));
        self.count("give up");
        let body = Body::new().number(u64::from(call.0));
        self.tell(client, Operation::GiveUp, ObjectId::NONE, &body.0);
    }

    fn release(&mut self) {
        let (Some(client), Some((object, _))) = (self.client(), self.object()) else { return };
        let count = self.dice.pick(&[1, 1, 1, 2, u64::MAX]);
        self.note(format!("{client:?} releases {count} of {object:?}"));
        if let Some(held) = self.references.get_mut(&(client, object)) {
            *held = held.saturating_sub(count);
            if *held == 0 {
                self.references.remove(&(client, object));
            }
        }
        self.tell(client, Operation::Release, object, &Body::new().number(count).0);
    }

    fn lease(&mut self) {
        let (Some(client), Some((object, _))) = (self.client(), self.object()) else { return };
        let lease = self.core.lease(client, object);
        self.note(format!("{client:?} leases {object:?}: {lease:?}"));
        assert_eq!(lease.is_some(), self.references.contains_key(&(client, object)));
        if let Some(lease) = lease {
            self.count("lease");
            self.leases.push(lease);
        }
        self.collect(ObjectId::NONE);
    }

    fn lease_ended(&mut self) {
        if self.leases.is_empty() {
            return;
        }
        let at = self.dice.below(self.leases.len() as u64) as usize;
        let lease = self.leases.swap_remove(at);
        self.note(format!("{lease:?} ends"));
        self.core.lease_ended(lease, &mut self.out);
        self.collect(ObjectId::NONE);
    }

    fn ran(&mut self) {
        if self.jobs.is_empty() {
            return;
        }
        let at = self.dice.below(self.jobs.len() as u64) as usize;
        let (job, object) = self.jobs.swap_remove(at);
        self.note(format!("{:?} of {object:?} has ended", job.id));
        match &job.work {
            Work::Update { optional, current, .. } => assert!(*optional || current.is_some()),
            Work::Call { value, function, .. } => {
                let value = self.values.get_mut(value).expect("its call has run until now");
                match *function {
                    EXCLUSIVE => value.exclusive -= 1,
                    _ => value.shared -= 1,
                }
            }
            Work::Construct { .. } | Work::Drop { .. } => {}
            Work::Pool { executor, order } => {
                // In a pool that has ended, all tasks have.
                if let PoolOrder::End = order {
                    let pool = self.pools.remove(executor).expect("it ends once");
                    assert!(pool.ended);
                } else if let Some(pool) = self.pools.get_mut(executor) {
                    pool.tasks.remove(&job.id);
                }
            }
        }
        let cannot_fail =
            |order: &PoolOrder| !matches!(order, PoolOrder::Make { .. } | PoolOrder::Submit { .. });
        let fails = match &job.work {
            Work::Drop { .. } => false,
            Work::Pool { order, .. } if cannot_fail(order) => false,
            _ => self.dice.percent(20),
        };
        if let Work::Pool { executor, order: PoolOrder::Make { .. } } = job.work
            && !fails
        {
            self.pools.insert(executor, Executor::default());
        }
        if let Work::Construct { .. } = job.work
            && !fails
        {
            self.values.insert(ValueId(job.id), Value::default());
        }
        if fails {
            self.core.ran(job.id, Err(b"failure"), &mut self.out);
        } else {
            // It returns what it was lent now, or what a value has kept. The object whose value it
            // becomes is older, so that no object keeps itself.
            let mut names = Vec::new();
            if let Work::Update { .. } | Work::Call { .. } = job.work {
                let older: Vec<_> = match job.work {
                    Work::Call { .. } => self.lent.clone(),
                    _ => self.lent.iter().copied().filter(|name| *name < object).collect(),
                };
                for _ in 0..self.dice.below(3) {
                    if !older.is_empty() {
                        names.push(self.dice.pick(&older));
                        self.count("a function returns a handle");
                    }
                }
            }
            self.core.ran(job.id, Ok(Returned { bytes: b"new", names: &names }), &mut self.out);
        }
        self.collect(object);
        if self.dice.percent(50) {
            self.let_go();
        }
    }

    /// A handle is dropped that a function was lent.
    fn let_go(&mut self) {
        if self.lent.is_empty() {
            return;
        }
        let at = self.dice.below(self.lent.len() as u64) as usize;
        let object = self.lent.swap_remove(at);
        self.note(format!("a handle of {object:?} is dropped"));
        self.count("a handle in the server is dropped");
        self.core.let_go(object, &mut self.out);
        self.collect(ObjectId::NONE);
    }

    fn tell(&mut self, client: ClientId, operation: Operation, object: ObjectId, body: &[u8]) {
        let request = Request { call: CallId::NONE, operation, object, len: body.len() as u64 };
        self.core.request(client, request, body.into(), &mut self.out);
        self.collect(object);
    }

    fn call(
        &mut self,
        client: ClientId,
        operation: Operation,
        object: ObjectId,
        kind: Option<Kind>,
        body: &[u8],
    ) {
        self.last_call += 1;
        let call = CallId(self.last_call);
        self.note(format!("{client:?} {call:?} {operation:?} {object:?}"));
        self.calls.insert((client, call), (operation, object, kind));
        if operation == Operation::LockAcquire
            && let Ok(owner) = Fields::new(body).number()
        {
            self.owners.insert((client, call), owner);
        }
        let request = Request { call, operation, object, len: body.len() as u64 };
        self.core.request(client, request, body.into(), &mut self.out);
        self.collect(object);
    }

    /// Puts something into the directory, or does anything else there.
    fn publish(&mut self) {
        let Some(client) = self.client() else { return };
        let directory = ObjectId::DIRECTORY;
        let operation = match self.dice.percent(50) {
            true => Operation::MapInsert,
            false => self.dice.pick(operations(Kind::Map)),
        };
        let body = self.body(client, operation, directory);
        self.count("directory");
        self.call(client, operation, directory, None, &body.0);
    }

    fn claim(&mut self) {
        let (Some(client), Some((object, _))) = (self.client(), self.object()) else { return };
        self.call(client, Operation::Claim, object, None, &[]);
    }

    fn create(&mut self) {
        let Some(client) = self.client() else { return };
        let kind = self.dice.pick(Kind::ALL);
        let newest = ObjectId(u64::MAX);
        let body = Body::new().number(kind as u64);
        let body = match kind {
            Kind::Map | Kind::Event => body,
            Kind::List => {
                let body = body.number(self.dice.below(2));
                self.values(body, client, newest)
            }
            Kind::Set => self.values(body, client, newest),
            Kind::Cell => self.value(body, client, newest),
            Kind::Queue => body.number(self.dice.below(3)).number(self.dice.below(2)),
            Kind::Lock => body.number(self.dice.below(2)),
            Kind::Semaphore => body.number(self.dice.below(3)).number(self.dice.below(2)),
            Kind::Condition => {
                let locks = self.known.iter().filter(|(_, kind)| *kind == Kind::Lock);
                let locks: Vec<_> = locks.map(|(id, _)| *id).rev().take(4).collect();
                let lock = if locks.is_empty() { ObjectId(1) } else { self.dice.pick(&locks) };
                body.number(lock.0)
            }
            Kind::Barrier => body.number(self.dice.below(4)),
            Kind::Own => self.value(body.number(7), client, newest),
            Kind::Pool => body.number(1 + self.dice.below(3)),
        };
        self.call(client, Operation::Create, ObjectId::NONE, Some(kind), &body.0);
    }

    /// Appends a value. It names only objects that are older than the one that keeps it.
    fn value(&mut self, body: Body, client: ClientId, keeper: ObjectId) -> Body {
        let bytes = self.dice.pick(&["a", "b", "c", "d", "a longer value"]);
        let names = self.names(client, keeper);
        body.naming(bytes, &names)
    }

    /// Returns names for a value: objects that are older than the one that keeps it.
    fn names(&mut self, client: ClientId, keeper: ObjectId) -> Vec<ObjectId> {
        let mut names = Vec::new();
        if self.dice.percent(40) {
            let held = self.references.keys().filter(|(of, id)| *of == client && *id < keeper);
            let held: Vec<_> = held.map(|(_, id)| *id).collect();
            for _ in 0..self.dice.below(3) {
                if !held.is_empty() {
                    names.push(self.dice.pick(&held));
                }
            }
            if self.dice.percent(5)
                && let Some((any, _)) = self.object()
                && any < keeper
            {
                names.push(any);
            }
        }
        names
    }

    fn values(&mut self, mut body: Body, client: ClientId, keeper: ObjectId) -> Body {
        for _ in 0..self.dice.below(5) {
            body = self.value(body, client, keeper);
        }
        body
    }

    /// Sends a request for an object.
    fn ask(&mut self) {
        let Some(mut client) = self.client() else { return };
        let held = self
            .known
            .iter()
            .rev()
            .filter(|(object, _)| self.references.contains_key(&(client, *object)));
        let held: Vec<_> = held.take(6).copied().collect();
        let (object, kind) = if !held.is_empty() && self.dice.percent(95) {
            self.dice.pick(&held)
        } else {
            let Some(any) = self.object() else { return };
            any
        };
        let kind = if self.dice.percent(3) { self.dice.pick(Kind::ALL) } else { kind };
        let operation = self.dice.pick(operations(kind));
        // Others are refused.
        if let Operation::ConditionWait | Operation::ConditionNotify = operation
            && let Some(owner) = self.lock_owner(object)
            && self.references.contains_key(&(owner.client, object))
        {
            client = owner.client;
        }
        let mut body = self.body(client, operation, object).0;
        if self.dice.percent(2) {
            let len = self.dice.below(body.len() as u64 + 1) as usize;
            body.truncate(len);
            self.count("garbage");
        }
        if operation == Operation::QueuePutBack || self.dice.percent(2) {
            self.note(format!("{client:?} {operation:?} {object:?} without a reply"));
            self.tell(client, operation, object, &body);
        } else {
            self.call(client, operation, object, None, &body);
        }
    }

    fn body(&mut self, client: ClientId, operation: Operation, object: ObjectId) -> Body {
        use Operation as O;
        let body = Body::new();
        let key = self.dice.pick(&["k", "l", "m"]);
        let (index, flag) = (self.dice.below(4), self.dice.below(2));
        match operation {
            O::Page => body.number(index).number(self.dice.below(40)),
            O::MapGet | O::MapRemove | O::MapContains => body.bytes(key),
            O::MapInsert | O::MapGetOrInsert => self.value(body.bytes(key), client, object),
            O::MapExtend => {
                let body = self.value(body.bytes(key), client, object);
                self.value(body.bytes("n"), client, object)
            }
            O::MapCompareExchange => {
                let body = body.bytes(key);
                let body = if flag == 0 { body.number(0) } else { body.number(1).value("a") };
                if self.dice.percent(30) {
                    body.number(0)
                } else {
                    self.value(body.number(1), client, object)
                }
            }
            O::MapUpdate => self.value(body.bytes(key).number(7).number(flag), client, object),
            O::MapGetMany => body.bytes(key).bytes("n").bytes(key),
            O::ListGet => body.number(index),
            O::ListRemove => body.number(self.dice.pick(&[index, u64::MAX])),
            O::ListSet | O::ListInsert => self.value(body.number(index), client, object),
            O::ListExtend | O::SetUnion | O::SetToggle => self.values(body, client, object),
            O::ListRange => body.number(index).number(index + flag),
            O::ListSplice => self.values(body.number(index).number(index + flag), client, object),
            O::ListFind => body.value("a").number(index).number(10),
            O::ListCount => body.value("a"),
            O::ListReplace => self.values(body.number(index), client, object),
            O::ListUpdate => self.value(body.number(index).number(7), client, object),
            O::SetInsert => self.value(body, client, object),
            O::SetRemove | O::SetContains => body.value("a"),
            O::SetSubtract | O::SetIntersect | O::SetCount => body.value("a").value("b"),
            O::CellSet | O::CellSwap => self.value(body, client, object),
            O::CellCompareExchange => self.value(body.value("a"), client, object),
            O::CellUpdate => self.value(body.number(7), client, object),
            O::OwnCall => {
                let exclusive = self.dice.percent(30);
                let function = if exclusive { EXCLUSIVE } else { 0 };
                // The number of the next call: a later one has a higher number.
                let number = u64::from(self.last_call) + 1;
                let names = self.names(client, object);
                body.number(function).naming(number.to_le_bytes(), &names)
            }
            O::QueuePut => self.value(body.number(flag), client, object),
            O::QueueGet | O::SemaphoreAcquire => body.number(flag),
            O::QueuePutBack => self.value(body, client, object),
            O::PoolSubmit => body.number(7).bytes("options").bytes("arguments"),
            O::LockAcquire => body.number(index / 3).number(flag),
            O::LockRelease | O::LockReleaseOwn => body.number(index / 3),
            O::SemaphoreRelease => body.number(index),
            O::ConditionWait | O::ConditionNotify => {
                let number = self.lock_owner(object).map_or(index / 3, |owner| owner.number);
                let body = body.number(number);
                if operation == O::ConditionWait { body } else { body.number(index) }
            }
            _ => body,
        }
    }

    /// Returns who holds the lock of a condition.
    fn lock_owner(&self, condition: ObjectId) -> Option<super::lock::Owner> {
        let State::Condition(condition) = &self.core.objects.get(condition)?.state else {
            return None;
        };
        let State::Lock(lock) = &self.core.objects.get(condition.lock)?.state else { return None };
        lock.owner()
    }

    /// Everything ends: nothing is left.
    fn end(&mut self) {
        while self.clients.is_empty() {
            self.connect();
        }
        let client = self.clients[0];
        self.call(client, Operation::Clear, ObjectId::DIRECTORY, None, &[]);
        let todo = |world: &Self| {
            world.clients.len() + world.jobs.len() + world.leases.len() + world.lent.len()
        };
        while todo(self) > 0 {
            match self.dice.below(4) {
                0 => self.disconnect(),
                1 => self.ran(),
                2 => self.let_go(),
                _ => self.lease_ended(),
            }
        }
        assert_eq!(self.core.objects(), 0, "{:?}", self.core.objects);
        assert!(self.values.is_empty(), "all values are dropped");
        assert!(self.pools.is_empty(), "all pools have ended");
        assert!(self.calls.is_empty() && self.references.is_empty());
    }
}

/// Returns an item as it stands in a reply.
fn encoded(item: &super::turn::Stored) -> Vec<u8> {
    Body::new().naming(&item.bytes, item.names.as_slice()).0
}

/// Returns the requests for objects of a kind.
fn operations(kind: Kind) -> &'static [Operation] {
    use Operation as O;
    match kind {
        Kind::Map => &[
            O::Len,
            O::Clear,
            O::Page,
            O::Snapshot,
            O::MapGet,
            O::MapInsert,
            O::MapExtend,
            O::MapRemove,
            O::MapContains,
            O::MapGetOrInsert,
            O::MapPop,
            O::MapCompareExchange,
            O::MapUpdate,
            O::MapGetMany,
        ],
        Kind::List => &[
            O::Len,
            O::Clear,
            O::Page,
            O::Snapshot,
            O::ListGet,
            O::ListSet,
            O::ListExtend,
            O::ListInsert,
            O::ListRemove,
            O::ListRange,
            O::ListSplice,
            O::ListFind,
            O::ListCount,
            O::ListReverse,
            O::ListReplace,
            O::ListUpdate,
        ],
        Kind::Set => &[
            O::Len,
            O::Clear,
            O::Page,
            O::Snapshot,
            O::SetInsert,
            O::SetRemove,
            O::SetContains,
            O::SetPop,
            O::SetUnion,
            O::SetSubtract,
            O::SetIntersect,
            O::SetToggle,
            O::SetCount,
        ],
        Kind::Cell => &[O::CellGet, O::CellSet, O::CellSwap, O::CellCompareExchange, O::CellUpdate],
        Kind::Queue => &[
            O::Len,
            O::QueueIsFull,
            O::QueuePut,
            O::QueueGet,
            O::QueuePutBack,
            O::QueueTaskDone,
            O::QueueJoin,
        ],
        // Conditions need held locks.
        Kind::Lock => {
            &[O::LockAcquire, O::LockAcquire, O::LockRelease, O::LockReleaseOwn, O::LockIsHeld]
        }
        Kind::Semaphore => &[O::SemaphoreAcquire, O::SemaphoreRelease, O::SemaphoreValue],
        Kind::Event => &[O::EventSet, O::EventClear, O::EventIsSet, O::EventWait],
        Kind::Condition => &[O::ConditionWait, O::ConditionWait, O::ConditionNotify],
        Kind::Barrier => &[
            O::BarrierWait,
            O::BarrierWait,
            O::BarrierWait,
            O::BarrierReset,
            O::BarrierAbort,
            O::BarrierState,
        ],
        Kind::Own => &[O::OwnCall],
        Kind::Pool => &[
            O::PoolSubmit,
            O::PoolSubmit,
            O::PoolSubmit,
            O::PoolClose,
            O::PoolTerminate,
            O::PoolJoin,
            O::PoolWorkers,
        ],
    }
}

fn run_seed(seed: u64) -> World {
    let mut world = World::new(seed);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        world.connect();
        for _ in 0..STEPS {
            world.step();
        }
        world.end();
    }));
    if let Err(panic) = ran {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        let trace: Vec<_> = world.trace.into_iter().collect();
        panic!("EXECUTOR_SEED={seed}: {message}\nwhat happened last:\n{}", trace.join("\n"));
    }
    world
}

#[test]
#[expect(clippy::print_stdout, reason = "the table is what `--nocapture` asks for")]
fn promises_hold_whatever_clients_do() {
    if let Some(seed) = number_in("EXECUTOR_SEED") {
        run_seed(seed);
        return;
    }
    let rounds = number_in("EXECUTOR_ROUNDS").unwrap_or(ROUNDS);
    let mut counts = BTreeMap::<String, u64>::new();
    for seed in 0..rounds {
        for (what, count) in run_seed(seed).counts {
            *counts.entry(what).or_default() += count;
        }
    }
    counts.iter().for_each(|(what, count)| println!("{count:>12}  {what}"));
    if rounds >= ROUNDS {
        let operations = Kind::ALL.iter().flat_map(|kind| operations(*kind));
        let operations = operations
            .filter(|operation| **operation != Operation::QueuePutBack)
            .map(|operation| format!("{operation:?}"));
        let statuses = Status::ALL.iter().map(|status| format!("{status:?}"));
        let others = [
            "calls run side by side",
            "a value is dropped",
            "a pool ends",
            "a task of a client that is gone",
            "an unread item is put back",
            "a lock of the dead",
            "a function returns a handle",
            "a handle in the server is dropped",
            "a lock that was not seen",
        ]
        .map(str::to_owned);
        let missing: Vec<_> = operations
            .chain(statuses)
            .chain(others)
            .filter(|what| !counts.contains_key(what))
            .collect();
        assert!(missing.is_empty(), "never happened: {missing:?}");
    }
}
