//! Objects of users' own types. The value is kept beside the core, which decides when it is made,
//! which of its methods run, and when it is dropped. All three are code of a user, which runs as a
//! job.
//!
//! ```text
//!  Create ─► job Construct ─► ran ─► the object exists   (client gone: job Drop)
//!  call ─► exclusive: nothing else runs   ┐
//!          shared: no exclusive one runs  ├─► job Call ─► ran ─► the caller is answered,
//!          otherwise: the line            ┘                      and the line moves up
//!  no reference left, no call runs ─► job Drop
//! ```
//!
//! The line is first come, first served: a shared call does not overtake an exclusive one that
//! waits, so a stream of shared calls cannot hold it up for ever.

use std::collections::HashMap;

use super::{
    Core,
    actions::{Actions, Job, JobId, Outcome, PoolOrder, Progress, Refusal, Returned, Work},
    clients::Caller,
    pool::Pool,
    references::State,
    turn::{Names, Turn},
    waiting::{Line, Ticket},
};
use crate::{
    id::IdHasher,
    manager::protocol::{self, CallId, Fields, ObjectId, Operation, Status},
};

/// How many shared calls of one object run at the same time. The others wait in line. With a higher
/// value, one object whose methods hang uses up all functions that a server runs at a time. With a
/// lower value, fewer methods that wait for something can do so together.
pub(super) const SHARED_MAX: usize = 32;

/// Identifies a value of a user's type: the job that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ValueId(pub(crate) JobId);

/// A call that waits in line.
#[derive(Debug)]
struct Queued {
    function: u64,
    exclusive: bool,
    arguments: Box<[u8]>,
    /// The objects that the arguments name. The line keeps them.
    names: Names,
}

/// An object of a user's own type.
#[derive(Debug)]
pub(super) struct Own {
    value: ValueId,
    /// How many of its calls run.
    running: usize,
    /// Whether the one that runs has the object for itself.
    exclusive: bool,
    line: Line<Queued>,
}

impl Own {
    /// Does a request for this object: a call of a method.
    pub(super) fn request(
        &mut self,
        operation: Operation,
        mut fields: Fields<'_>,
        methods: &mut Methods,
        turn: &mut Turn<'_>,
    ) -> Result<Progress, Refusal> {
        if operation != Operation::OwnCall {
            return Err(Status::WrongKind.into());
        }
        let (function, arguments) = (fields.number()?, turn.value(&mut fields)?);
        fields.end()?;
        let exclusive = (methods.is_exclusive)(function);
        let ticket = turn.wait(arguments.bytes.len() + 8 * arguments.names().len())?;
        let names = turn.keep_names(arguments);
        let queued = Queued { function, exclusive, arguments: arguments.bytes.into(), names };
        self.line.push(ticket, turn.caller, queued);
        self.move_up(methods, turn);
        Ok(Progress::Waits)
    }

    /// Begins the calls in line that can run now.
    fn move_up(&mut self, methods: &mut Methods, turn: &mut Turn<'_>) {
        loop {
            let Some((caller, next)) = self.line.first() else { return };
            // A client that is gone: its other calls are about to leave the line as well.
            let is_gone = turn.clients.get(caller.client).is_none();
            let room = match next.exclusive {
                true => self.running == 0,
                false => !self.exclusive && self.running < SHARED_MAX,
            };
            if !is_gone && !room {
                return;
            }
            let Some((caller, Queued { function, exclusive, arguments, names })) = self.line.pop()
            else {
                return;
            };
            if is_gone {
                turn.changes.lose_names(&names);
                continue;
            }
            self.running += 1;
            self.exclusive = exclusive;
            let value = self.value;
            let id = methods.begin(Running::Call { object: turn.object, caller, value });
            let (arguments, names) = (arguments.into_vec(), turn.lend(names));
            let work = Work::Call { value, function, arguments, names };
            turn.out.run(Job { id, client: Some(caller.client), work });
        }
    }

    /// Takes a call out of the line. Returns whether it was there.
    pub(super) fn leave(
        &mut self,
        ticket: Ticket,
        methods: &mut Methods,
        turn: &mut Turn<'_>,
    ) -> bool {
        let left = match self.line.remove(ticket) {
            None => false,
            Some((_, queued)) => {
                turn.changes.lose_names(&queued.names);
                true
            }
        };
        // It may have been what held up the others.
        self.move_up(methods, turn);
        left
    }

    /// Calls a function with the names in the calls that wait in line.
    pub(super) fn each_names(&self, mut each: impl FnMut(&Names)) {
        self.line.iter().for_each(|(_, queued)| each(&queued.names));
    }

    /// Returns the calls that wait in line.
    pub(super) fn callers(&self) -> impl Iterator<Item = Caller> {
        self.line.iter().map(|(caller, _)| caller)
    }
}

/// A function of a user's own type that runs, or an order to a pool.
#[derive(Debug)]
pub(super) enum Running {
    Construct {
        caller: Caller,
    },
    Call {
        object: ObjectId,
        caller: Caller,
        value: ValueId,
    },
    Drop,
    /// A pool is made.
    MakePool {
        caller: Caller,
    },
    /// What the call of a pool waits for.
    Pool {
        object: ObjectId,
        caller: Caller,
        ticket: Ticket,
    },
    EndPool,
}

/// The functions of users' own types that run, and the orders to pools that are not done.
#[derive(Debug)]
pub(super) struct Methods {
    /// Says whether a method has its object for itself. A client is not asked.
    is_exclusive: fn(u64) -> bool,
    running: HashMap<JobId, Running, IdHasher>,
    /// How many constructors run. Each may need room for an object.
    constructing: usize,
    /// Values whose object is gone, and how many of their calls run.
    orphans: HashMap<ValueId, usize, IdHasher>,
    /// How many pools there are, with those that are being made or ended.
    pools: usize,
    last: u64,
}

impl Methods {
    pub(super) fn new(is_exclusive: fn(u64) -> bool) -> Self {
        Methods {
            is_exclusive,
            running: HashMap::default(),
            constructing: 0,
            orphans: HashMap::default(),
            pools: 0,
            last: 0,
        }
    }

    pub(super) fn constructing(&self) -> usize {
        self.constructing
    }

    /// Returns an id that no job has.
    pub(super) fn new_id(&mut self) -> JobId {
        self.last += 1;
        JobId::of_own(self.last)
    }

    pub(super) fn begin(&mut self, running: Running) -> JobId {
        let id = self.new_id();
        self.running.insert(id, running);
        id
    }

    /// Begins to make a pool.
    pub(super) fn begin_pool(&mut self, caller: Caller) -> JobId {
        self.constructing += 1;
        self.pools += 1;
        self.begin(Running::MakePool { caller })
    }

    /// The pool is not needed any more.
    pub(super) fn end_pool(&mut self, executor: ValueId, out: &mut Actions) {
        let id = self.begin(Running::EndPool);
        let work = Work::Pool { executor, order: PoolOrder::End };
        out.run(Job { id, client: None, work });
    }

    /// Returns how many pools there are.
    pub(super) fn pools(&self) -> usize {
        self.pools
    }

    /// Nobody waits for the end of this job any more.
    pub(super) fn forget(&mut self, job: JobId) {
        self.running.remove(&job);
    }

    /// Begins to construct an object. The caller waits for its end.
    pub(super) fn construct(
        &mut self,
        mut fields: Fields<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<Progress, Refusal> {
        let (function, arguments) = (fields.number()?, turn.value(&mut fields)?);
        fields.end()?;
        turn.wait(arguments.bytes.len() + 8 * arguments.names().len())?;
        let id = self.begin(Running::Construct { caller: turn.caller });
        self.constructing += 1;
        let names = turn.keep_names(arguments);
        let (arguments, names) = (arguments.bytes.to_vec(), turn.lend(names));
        let work = Work::Construct { function, arguments, names };
        turn.out.run(Job { id, client: Some(turn.caller.client), work });
        Ok(Progress::Waits)
    }

    fn drop_value(&mut self, value: ValueId, out: &mut Actions) {
        let id = self.begin(Running::Drop);
        out.run(Job { id, client: None, work: Work::Drop { value } });
    }

    /// The object is gone. Its value is dropped when none of its calls runs any more.
    pub(super) fn object_dropped(&mut self, own: &Own, out: &mut Actions) {
        match own.running {
            0 => self.drop_value(own.value, out),
            running => drop(self.orphans.insert(own.value, running)),
        }
    }

    /// Returns the calls whose function runs, with the object that they wait at.
    #[cfg(test)]
    pub(super) fn callers(&self) -> impl Iterator<Item = (ObjectId, Caller)> {
        self.running.values().filter_map(|running| match running {
            Running::Construct { caller } => Some((ObjectId::NONE, *caller)),
            Running::MakePool { caller } => Some((ObjectId::NONE, *caller)),
            Running::Call { object, caller, .. } | Running::Pool { object, caller, .. } => {
                Some((*object, *caller))
            }
            Running::Drop | Running::EndPool => None,
        })
    }

    /// Returns the orders for which calls of pools wait.
    #[cfg(test)]
    pub(super) fn pool_calls(&self) -> impl Iterator<Item = (JobId, ObjectId, Ticket)> {
        self.running.iter().filter_map(|(job, running)| match running {
            Running::Pool { object, ticket, .. } => Some((*job, *object, *ticket)),
            _ => None,
        })
    }
}

impl Core {
    /// A function of a user's own type has ended, as [`ran`](Core::ran) describes.
    pub(super) fn ran_own(
        &mut self,
        job: JobId,
        result: Result<Returned<'_>, &[u8]>,
        out: &mut Actions,
    ) {
        let Some(running) = self.methods.running.remove(&job) else { return };
        match running {
            Running::Construct { caller } => {
                self.methods.constructing -= 1;
                let lives = self.clients.end_wait(caller);
                match result {
                    Ok(_) if lives => {
                        let own = Own {
                            value: ValueId(job),
                            running: 0,
                            exclusive: false,
                            line: Line::default(),
                        };
                        let id = self.objects.insert(State::Own(own.into()));
                        self.clients.add_reference(caller.client, id);
                        out.answer(caller, Ok(id.0));
                    }
                    // Nobody would learn the object's id.
                    Ok(_) => self.methods.drop_value(ValueId(job), out),
                    Err(failure) => answer_failure(caller, lives, failure, out),
                }
            }
            Running::Call { object, caller, value } => {
                self.answer_call(caller, object, result, out);
                self.call_ended(object, value, out);
            }
            Running::Drop => {}
            Running::MakePool { caller } => {
                self.methods.constructing -= 1;
                let lives = self.clients.end_wait(caller);
                match result {
                    Ok(_) if lives => {
                        let id = self.objects.insert(State::Pool(Pool::new(ValueId(job)).into()));
                        self.clients.add_reference(caller.client, id);
                        out.answer(caller, Ok(id.0));
                    }
                    // Nobody would learn the object's id.
                    Ok(_) => self.methods.end_pool(ValueId(job), out),
                    Err(failure) => {
                        self.methods.pools -= 1;
                        answer_failure(caller, lives, failure, out);
                    }
                }
            }
            Running::Pool { object, caller, ticket } => {
                self.pool_call_ended(object, ticket);
                self.answer_call(caller, object, result, out);
            }
            Running::EndPool => self.methods.pools -= 1,
        }
        self.settle(out);
    }

    /// Answers the call of a method, or of a task.
    fn answer_call(
        &mut self,
        caller: Caller,
        object: ObjectId,
        result: Result<Returned<'_>, &[u8]>,
        out: &mut Actions,
    ) {
        let lives = self.clients.end_wait(caller);
        match result {
            Ok(returned) => {
                let to = reachable(caller, lives);
                let outcome = self.returned(to, object, returned, out);
                out.answer(to, outcome);
            }
            Err(failure) => answer_failure(caller, lives, failure, out),
        }
    }

    /// Appends the result of a method to its reply.
    fn returned(
        &mut self,
        to: Caller,
        object: ObjectId,
        Returned { bytes, names }: Returned<'_>,
        out: &mut Actions,
    ) -> Outcome {
        if bytes.len() > protocol::FIELD_BYTES_MAX {
            return Err(Refusal::limit("the result is too large"));
        }
        if !self.exist(names) {
            return Err(Status::NoObject.into());
        }
        let (clients, changes) = (&mut self.clients, &mut self.changes);
        let mut turn = Turn { caller: to, object, clients, changes, out };
        turn.write_result_to(to, bytes, &Names::new(names.iter().copied()));
        Ok(0)
    }

    /// A call has ended: others may run, or the value of an object that is gone is dropped.
    fn call_ended(&mut self, object: ObjectId, value: ValueId, out: &mut Actions) {
        if let Some(running) = self.methods.orphans.get_mut(&value) {
            *running -= 1;
            if *running == 0 {
                self.methods.orphans.remove(&value);
                self.methods.drop_value(value, out);
            }
            return;
        }
        let Some(entry) = self.objects.get_mut(object) else { return };
        let State::Own(own) = &mut entry.state else {
            unreachable!("an object does not change its kind")
        };
        own.running -= 1;
        own.exclusive = false;
        let caller = Caller { client: super::ClientId(0), call: CallId::NONE };
        let (clients, changes) = (&mut self.clients, &mut self.changes);
        own.move_up(&mut self.methods, &mut Turn { caller, object, clients, changes, out });
    }
}

/// Returns the caller, or one that gets no reply if its client is gone.
fn reachable(mut caller: Caller, lives: bool) -> Caller {
    if !lives {
        caller.call = CallId::NONE;
    }
    caller
}

fn answer_failure(caller: Caller, lives: bool, failure: &[u8], out: &mut Actions) {
    out.body().extend_from_slice(failure);
    out.end_reply(reachable(caller, lives), Status::Failed, 0);
}

#[cfg(test)]
impl Own {
    /// Checks what can be seen of one object.
    #[track_caller]
    pub(super) fn check(&self, id: ObjectId, methods: &Methods, clients: &super::Clients) {
        let running = methods
            .running
            .values()
            .filter(|running| matches!(running, Running::Call { object, .. } if *object == id));
        assert_eq!(running.count(), self.running, "calls of {id:?}");
        assert!(!self.exclusive || self.running == 1, "{id:?} is not used exclusively");
        assert!(self.running <= SHARED_MAX);
        if let Some((caller, next)) = self.line.first() {
            assert!(clients.get(caller.client).is_some(), "a dead client waits in line");
            let reason = match next.exclusive {
                true => self.running > 0,
                false => self.exclusive || self.running == SHARED_MAX,
            };
            assert!(reason, "a call of {id:?} waits for nothing");
        }
        assert!(!methods.orphans.contains_key(&self.value));
    }
}

#[cfg(test)]
impl Methods {
    #[track_caller]
    pub(super) fn check(&self) {
        for (value, count) in &self.orphans {
            let running = self.running.values().filter(
                |running| matches!(running, Running::Call { value: of, .. } if of == value),
            );
            assert_eq!(running.count(), *count, "calls of a value whose object is gone");
            assert!(*count > 0);
        }
        let constructing = |running: &&Running| {
            matches!(running, Running::Construct { .. } | Running::MakePool { .. })
        };
        assert_eq!(self.running.values().filter(constructing).count(), self.constructing);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Limits,
            testing::{Body, Call, Desk, EXCLUSIVE, LARGE, number},
        },
        *,
    };
    use crate::manager::protocol::{Kind, Operation as O};

    fn construct(desk: &mut Desk, client: super::super::ClientId) -> (Call, JobId) {
        let body = number(Kind::Own as u64).number(5).value("arguments");
        let call = desk.waits(client, O::Create, ObjectId::NONE, body);
        let job = desk.jobs.pop().unwrap();
        let (arguments, names) = (b"arguments".to_vec(), Vec::new());
        let work = Work::Construct { function: 5, arguments, names };
        assert_eq!(job.work, work);
        (call, job.id)
    }

    fn object(desk: &mut Desk, client: super::super::ClientId) -> (ObjectId, ValueId) {
        let (call, job) = construct(desk, client);
        desk.ran(job, Ok(b""));
        (ObjectId(desk.outcome(call).unwrap()), ValueId(job))
    }

    fn shared() -> Body {
        number(7).value("shared")
    }

    fn exclusive() -> Body {
        number(EXCLUSIVE).value("exclusive")
    }

    /// Takes the jobs, and returns their ids and the numbers of their functions.
    fn begun(desk: &mut Desk) -> Vec<(JobId, u64)> {
        let jobs = desk.jobs.drain(..).map(|job| match job.work {
            Work::Call { function, .. } => (job.id, function),
            work => panic!("{work:?}"),
        });
        jobs.collect()
    }

    #[test]
    fn calls_run_side_by_side_or_alone_in_the_order_in_which_they_came() {
        let (mut desk, a, b) = Desk::with_two();
        let (own, value) = object(&mut desk, a);
        desk.share(b, own);
        let first = desk.waits(a, O::OwnCall, own, shared());
        let second = desk.waits(b, O::OwnCall, own, shared());
        let alone = desk.waits(a, O::OwnCall, own, exclusive());
        let behind = desk.waits(b, O::OwnCall, own, shared());
        let last = desk.waits(b, O::OwnCall, own, exclusive());
        let jobs = begun(&mut desk);
        assert_eq!(jobs.iter().map(|(_, function)| *function).collect::<Vec<_>>(), [7, 7]);
        desk.ran(jobs[1].0, Ok(b"2"));
        assert_eq!(desk.answer(second).unwrap().texts(), ["2"]);
        assert_eq!(desk.jobs, []);
        desk.ran(jobs[0].0, Err(b"failure"));
        assert_eq!(desk.outcome(first), Err(Status::Failed));
        let [(job, EXCLUSIVE)] = begun(&mut desk)[..] else { panic!() };
        desk.ran(job, Ok(b""));
        desk.outcome(alone).unwrap();
        let [(job, 7)] = begun(&mut desk)[..] else { panic!() };
        // An end that was reported already changes nothing.
        desk.ran(JobId(job.0 - 2), Ok(b""));
        desk.ran(job, Ok(b""));
        desk.outcome(behind).unwrap();
        let [(job, EXCLUSIVE)] = begun(&mut desk)[..] else { panic!() };
        desk.release(a, own, 1);
        desk.disconnect(b);
        assert_eq!(desk.core.objects(), 0);
        assert_eq!(desk.jobs, [], "a call of it runs");
        desk.ran(job, Ok(b""));
        assert_eq!(desk.answer(last), None);
        let drop = desk.jobs.pop().unwrap();
        assert_eq!(drop.work, Work::Drop { value });
        desk.ran(drop.id, Ok(b""));
        assert_eq!(desk.jobs, []);
    }

    #[test]
    fn a_call_that_leaves_the_line_lets_those_behind_it_begin() {
        let (mut desk, a, b) = Desk::with_two();
        let (own, _) = object(&mut desk, a);
        desk.share(b, own);
        desk.waits(a, O::OwnCall, own, shared());
        let given_up = desk.waits(a, O::OwnCall, own, exclusive());
        desk.waits(a, O::OwnCall, own, shared());
        assert_eq!(begun(&mut desk).len(), 1);
        desk.give_up(given_up);
        assert_eq!(desk.outcome(given_up), Err(Status::GivenUp));
        assert_eq!(begun(&mut desk).len(), 1);
        // The calls of a client that is gone do not begin, those of others do.
        desk.waits(b, O::OwnCall, own, exclusive());
        desk.waits(b, O::OwnCall, own, shared());
        desk.waits(a, O::OwnCall, own, shared());
        assert_eq!(desk.jobs, []);
        desk.disconnect(b);
        assert_eq!(begun(&mut desk).len(), 1);
    }

    #[test]
    fn what_the_arguments_of_a_call_name_lives_until_the_function_lets_it_go() {
        let (mut desk, a, b) = Desk::with_two();
        let (own, _) = object(&mut desk, a);
        let event = desk.create(a, Kind::Event, Body::new());
        let call = |names: &[ObjectId]| number(EXCLUSIVE).naming("call", names);
        // A client can name only what it has.
        desk.share(b, own);
        assert_eq!(desk.refused(b, O::OwnCall, own, call(&[event])), Status::NoObject);
        let first = desk.waits(a, O::OwnCall, own, call(&[event, event]));
        let queued = desk.waits(a, O::OwnCall, own, call(&[event]));
        let job = desk.jobs.pop().unwrap();
        assert_eq!(job.work.names(), [event, event]);
        desk.release(a, event, 1);
        desk.give_up(queued);
        desk.outcome(queued).unwrap_err();
        // It keeps one of the handles, drops the other one, and returns the object to its caller.
        desk.let_go(event);
        desk.ran_naming(job.id, b"result", &[event]);
        assert_eq!(desk.answer(first).unwrap().texts(), ["result"]);
        desk.ask(a, O::EventSet, event, Body::new()).done();
        desk.release(a, event, 1);
        assert!(desk.exists(event));
        desk.let_go(event);
        assert!(!desk.exists(event));
        // More than was lent is not given back.
        desk.let_go(event);
        // What does not exist cannot be returned.
        let last = desk.waits(a, O::OwnCall, own, call(&[]));
        let job = desk.jobs.pop().unwrap();
        desk.ran_naming(job.id, b"result", &[event]);
        assert_eq!(desk.outcome(last), Err(Status::NoObject));
    }

    #[test]
    fn what_calls_in_line_name_goes_with_their_client_and_with_their_object() {
        let (mut desk, a, b) = Desk::with_two();
        let (own, _) = object(&mut desk, a);
        desk.share(b, own);
        desk.waits(a, O::OwnCall, own, exclusive());
        let job = desk.jobs.pop().unwrap().id;
        let events = [a, b].map(|client| desk.create(client, Kind::Event, Body::new()));
        desk.waits(b, O::OwnCall, own, number(7).naming("shared", &[events[1]]));
        desk.disconnect(b);
        assert!(!desk.exists(events[1]));
        let left = desk.waits(a, O::OwnCall, own, number(7).naming("shared", &[events[0]]));
        desk.release(a, events[0], 1);
        assert!(desk.exists(events[0]));
        desk.release(a, own, 1);
        assert_eq!(desk.outcome(left), Err(Status::NoObject));
        assert!(!desk.exists(events[0]));
        desk.ran(job, Ok(b""));
    }

    #[test]
    fn one_object_does_not_take_all_functions() {
        let (mut desk, a, _) = Desk::with_two();
        let (own, _) = object(&mut desk, a);
        for _ in 0..SHARED_MAX + 2 {
            desk.waits(a, O::OwnCall, own, shared());
        }
        let jobs = begun(&mut desk);
        assert_eq!(jobs.len(), SHARED_MAX);
        desk.ran(jobs[7].0, Ok(b""));
        assert_eq!(begun(&mut desk).len(), 1);
    }

    #[test]
    fn a_value_whose_client_died_while_it_was_made_is_dropped() {
        let (mut desk, a, b) = Desk::with_two();
        let (_, job) = construct(&mut desk, a);
        desk.disconnect(a);
        desk.ran(job, Ok(b""));
        assert_eq!(desk.jobs.pop().unwrap().work, Work::Drop { value: ValueId(job) });
        assert_eq!(desk.core.objects(), 0);
        // One that was not made is not dropped.
        let (call, job) = construct(&mut desk, b);
        desk.ran(job, Err(b"failure"));
        assert_eq!(desk.outcome(call), Err(Status::Failed));
        assert_eq!(desk.jobs, []);
    }

    #[test]
    fn constructors_that_run_count_as_objects() {
        let mut desk = Desk::with(Limits { objects: 2, ..LARGE });
        let a = desk.client();
        let calls = [construct(&mut desk, a), construct(&mut desk, a)];
        let body = number(Kind::Event as u64);
        assert_eq!(desk.refused(a, O::Create, ObjectId::NONE, body), Status::Limit);
        for (call, job) in calls {
            desk.ran(job, Ok(b""));
            desk.outcome(call).unwrap();
        }
        assert_eq!(desk.core.objects(), 2);
    }

    #[test]
    fn calls_without_a_reply_and_of_other_kinds_are_refused() {
        let (mut desk, a, _) = Desk::with_two();
        let (own, _) = object(&mut desk, a);
        desk.tell(a, O::OwnCall, own, shared());
        assert_eq!(desk.jobs, []);
        assert_eq!(desk.refused(a, O::Len, own, Body::new()), Status::WrongKind);
        assert_eq!(desk.refused(a, O::CellUpdate, own, Body::new()), Status::WrongKind);
        let garbage = number(7).value("").number(2);
        assert_eq!(desk.refused(a, O::OwnCall, own, garbage), Status::Malformed);
        let cell = desk.create(a, Kind::Cell, Body::new().value("v"));
        assert_eq!(desk.refused(a, O::OwnCall, cell, shared()), Status::WrongKind);
    }
}
