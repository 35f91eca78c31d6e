//! Updates by a user's function, which runs elsewhere.
//!
//! ```text
//!  update ──► job ──► the function runs ──► ran ──► the value is replaced, the caller is answered
//!                     other requests for the object wait in line ──► are done, one by one
//! ```

use std::{collections::HashMap, sync::Arc};

use super::{
    Core,
    actions::{Actions, Job, JobId, Outcome, Refusal, Returned, Work},
    clients::Caller,
    references::State,
    turn::{Names, Stored, Turn},
    waiting::{Line, Ticket},
};
use crate::{
    id::IdHasher,
    manager::protocol::{
        self, CallId, Fields, ObjectId, Operation, RequestBody, Status, ValueField,
    },
};

/// Which value of an object is updated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// That of a key of a map.
    Key(Arc<[u8]>),
    /// An item of a list.
    Index(usize),
    /// The value of a cell.
    Cell,
}

/// A request for an update that can begin.
#[derive(Debug)]
pub(super) struct Update<'a> {
    pub(super) target: Target,
    pub(super) function: u64,
    pub(super) optional: bool,
    pub(super) current: Option<Stored>,
    pub(super) arguments: ValueField<'a>,
}

/// A function that runs.
#[derive(Debug)]
struct Running {
    object: ObjectId,
    caller: Caller,
    target: Target,
}

/// A request that waits until a function has ended.
#[derive(Debug)]
struct Queued {
    operation: Operation,
    fields: Box<[u8]>,
    tail: Option<Arc<[u8]>>,
}

/// The functions that run, and the requests that wait for their end.
#[derive(Debug, Default)]
pub(super) struct Updates {
    running: HashMap<JobId, Running, IdHasher>,
    /// The requests that wait at each busy object.
    busy: HashMap<ObjectId, Line<Queued>, IdHasher>,
    last: u64,
}

impl Updates {
    /// Returns whether a function of this object runs.
    pub(super) fn is_busy(&self, object: ObjectId) -> bool {
        // Most often none runs at all.
        !self.busy.is_empty() && self.busy.contains_key(&object)
    }

    /// Begins an update. The caller waits for its end.
    pub(super) fn begin(&mut self, update: Update<'_>, turn: &mut Turn<'_>) -> Result<(), Refusal> {
        let Update { target, function, optional, current, arguments } = update;
        turn.wait(arguments.bytes.len() + 8 * arguments.names().len())?;
        self.last += 1;
        let id = JobId::of_update(self.last);
        self.running.insert(id, Running { object: turn.object, caller: turn.caller, target });
        self.busy.insert(turn.object, Line::default());
        // The object may be gone before the function has ended, and what it names with it.
        let mut names = Vec::new();
        if let Some(current) = &current {
            turn.changes.keep(&current.names);
            names = turn.lend(current.names.clone());
        }
        let kept = turn.keep_names(arguments);
        names.append(&mut turn.lend(kept));
        let current = current.map(|current| current.bytes);
        let arguments = arguments.bytes.to_vec();
        let work = Work::Update { function, optional, current, arguments, names };
        turn.out.run(Job { id, client: Some(turn.caller.client), work });
        Ok(())
    }

    /// Puts a request in line behind the function that runs.
    pub(super) fn queue(
        &mut self,
        operation: Operation,
        body: RequestBody<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<(), Refusal> {
        let ticket = turn.wait(body.len())?;
        let line = self.busy.entry(turn.object).or_default();
        line.push(
            ticket,
            turn.caller,
            Queued { operation, fields: body.fields.into(), tail: body.tail.cloned() },
        );
        Ok(())
    }

    /// Takes a request out of the line. Returns whether it was there.
    pub(super) fn leave(&mut self, object: ObjectId, ticket: Ticket) -> bool {
        self.busy.get_mut(&object).is_some_and(|line| line.remove(ticket).is_some())
    }

    /// Forgets the line of an object that is gone. Returns who waited there. The caller whose
    /// function runs is answered when it ends.
    pub(super) fn drop_object(&mut self, object: ObjectId) -> Vec<Caller> {
        if self.busy.is_empty() {
            return Vec::new();
        }
        let line = self.busy.remove(&object).unwrap_or_default();
        line.iter().map(|(caller, _)| caller).collect()
    }

    /// Returns the calls of an object whose requests wait, and those whose function runs.
    #[cfg(test)]
    pub(super) fn callers(&self) -> impl Iterator<Item = (ObjectId, Caller)> {
        let queued = self
            .busy
            .iter()
            .flat_map(|(object, line)| line.iter().map(|(caller, _)| (*object, caller)));
        queued.chain(self.running.values().map(|running| (running.object, running.caller)))
    }

    /// Returns the objects that are busy, and those for which functions run.
    #[cfg(test)]
    pub(super) fn objects(&self) -> (Vec<ObjectId>, Vec<ObjectId>) {
        let running = self.running.values().map(|running| running.object);
        (self.busy.keys().copied().collect(), running.collect())
    }
}

impl State {
    /// Reads a request for an update, and finds the value that it concerns.
    pub(super) fn update<'a>(
        &self,
        operation: Operation,
        fields: Fields<'a>,
        turn: &Turn<'_>,
    ) -> Result<Update<'a>, Refusal> {
        match (self, operation) {
            (State::Map(map), Operation::MapUpdate) => map.update(fields, turn),
            (State::List(list), Operation::ListUpdate) => list.update(fields, turn),
            (State::Cell(cell), Operation::CellUpdate) => cell.update(fields, turn),
            _ => Err(Status::WrongKind.into()),
        }
    }

    /// Puts the new value in its place.
    fn updated(&mut self, target: Target, value: Stored, turn: &mut Turn<'_>) {
        match (self, target) {
            (State::Map(map), Target::Key(key)) => map.updated(&key, value, turn),
            (State::List(list), Target::Index(index)) => list.updated(index, value, turn),
            (State::Cell(cell), Target::Cell) => cell.updated(value, turn),
            _ => unreachable!("an object does not change its kind"),
        }
    }
}

impl Core {
    /// A user's function has ended. `result` is what it returned, or the body of a reply with
    /// [`Status::Failed`].
    ///
    /// The result of an update replaces the value even if the client is gone meanwhile, because the
    /// update had begun.
    pub(crate) fn ran(
        &mut self,
        job: JobId,
        result: Result<Returned<'_>, &[u8]>,
        out: &mut Actions,
    ) {
        if job.is_own() {
            return self.ran_own(job, result, out);
        }
        let Some(Running { object, mut caller, target }) = self.updates.running.remove(&job) else {
            return;
        };
        if !self.clients.end_wait(caller) {
            caller.call = CallId::NONE;
        }
        match result {
            Ok(returned) => {
                let outcome = self.replace(caller, object, target, returned, out);
                out.answer(caller, outcome);
            }
            Err(failure) => {
                out.body().extend_from_slice(failure);
                out.end_reply(caller, Status::Failed, 0);
            }
        }
        let line = self.updates.busy.remove(&object).unwrap_or_default();
        self.settle(out);
        self.resume(object, line, out);
    }

    /// Replaces the value that a function has updated.
    fn replace(
        &mut self,
        caller: Caller,
        object: ObjectId,
        target: Target,
        Returned { bytes, names }: Returned<'_>,
        out: &mut Actions,
    ) -> Outcome {
        if bytes.len() > protocol::FIELD_BYTES_MAX {
            return Err(Refusal::limit("the new value is too large"));
        }
        if !self.exist(names) {
            return Err(Status::NoObject.into());
        }
        let entry = self.objects.get_mut(object).ok_or(Status::NoObject)?;
        let (clients, changes) = (&mut self.clients, &mut self.changes);
        let mut turn = Turn { caller, object, clients, changes, out };
        let value = Stored { bytes: bytes.into(), names: Names::new(names.iter().copied()) };
        turn.changes.keep(&value.names);
        turn.write(&value);
        entry.state.updated(target, value, &mut turn);
        Ok(0)
    }

    /// Whether there are all these objects. A function names only those to which it has a
    /// reference, so they are there, unless the process of the server is out of order.
    pub(super) fn exist(&self, names: &[ObjectId]) -> bool {
        names.iter().all(|name| self.objects.contains(*name))
    }

    /// Does the requests that have waited for the end of a function, up to the next update.
    fn resume(&mut self, object: ObjectId, mut line: Line<Queued>, out: &mut Actions) {
        while let Some((caller, queued)) = line.pop() {
            self.clients.end_wait(caller);
            let Queued { operation, fields, tail } = &queued;
            let body = RequestBody { fields, tail: tail.as_ref() };
            self.on_object(caller, *operation, object, body, out);
            if let Some(behind) = self.updates.busy.get_mut(&object) {
                // The next function runs. Nobody else can have come in between.
                debug_assert!(behind.is_empty());
                *behind = line;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Body, Desk, number},
        *,
    };
    use crate::manager::protocol::Kind;

    fn update(key: &str, optional: u64) -> Body {
        Body::new().bytes(key).number(7).number(optional).value("arguments")
    }

    fn current_of(job: &Job) -> Option<&[u8]> {
        match &job.work {
            Work::Update { current, .. } => current.as_deref(),
            _ => panic!("{job:?}"),
        }
    }

    #[test]
    fn requests_for_a_busy_object_are_done_in_order_when_the_function_has_ended() {
        let (mut desk, a, b) = Desk::with_two();
        let map = desk.create(a, Kind::Map, Body::new());
        let other = desk.create(a, Kind::Cell, Body::new().value("free"));
        desk.share(b, map);
        desk.send(a, Operation::MapInsert, map, Body::new().bytes("k").value("1"));
        let first = desk.waits(a, Operation::MapUpdate, map, update("k", 0));
        let job = desk.jobs.pop().unwrap();
        let Work::Update { function, optional, current, arguments, .. } = &job.work else {
            panic!()
        };
        assert_eq!((*function, *optional), (7, false));
        assert_eq!((current.as_deref(), &arguments[..]), (Some(&b"1"[..]), &b"arguments"[..]));

        let get = desk.waits(b, Operation::MapGet, map, Body::new().bytes("k"));
        let second = desk.waits(b, Operation::MapUpdate, map, update("k", 1));
        let len = desk.waits(a, Operation::Len, map, Body::new());
        let given_up = desk.waits(a, Operation::Clear, map, Body::new());
        desk.give_up(given_up);
        assert_eq!(desk.outcome(given_up), Err(Status::GivenUp));
        // That function runs already.
        desk.give_up(first);
        assert_eq!(desk.answer(first), None);
        assert_eq!(desk.ask(a, Operation::CellGet, other, Body::new()).texts(), ["free"]);

        desk.ran(job.id, Ok(b"2"));
        assert_eq!(desk.answer(first).unwrap().texts(), ["2"]);
        assert_eq!(desk.answer(get).unwrap().texts(), ["2"]);
        assert_eq!(desk.answer(len), None);
        let job = desk.jobs.pop().unwrap();
        assert_eq!(current_of(&job), Some(&b"2"[..]));
        desk.ran(job.id, Err(b"failure"));
        let failed = desk.answer(second).unwrap();
        assert_eq!((failed.status, &failed.body[..]), (Status::Failed, &b"failure"[..]));
        assert_eq!(desk.outcome(len), Ok(1));
        // An end that was reported already changes nothing.
        desk.ran(job.id, Ok(b"3"));
        let get = desk.ask(a, Operation::MapGet, map, Body::new().bytes("k"));
        assert_eq!(get.texts(), ["2"]);
    }

    #[test]
    fn a_value_that_came_apart_waits_with_its_request_and_is_kept_as_it_is() {
        let (mut desk, a, _) = Desk::with_two();
        let cell = desk.create(a, Kind::Cell, Body::new().value("1"));
        let update = desk.waits(a, Operation::CellUpdate, cell, number(7).bytes(""));
        let tail: Arc<[u8]> = b"large".as_slice().into();
        for _ in 0..2 {
            let mut fields = Body::new();
            protocol::put_value_head(&mut fields.0, tail.len(), &[]);
            desk.send_with_tail(a, Operation::CellSet, cell, fields, &tail);
        }
        assert_eq!(Arc::strong_count(&tail), 3, "both wait");
        let job = desk.jobs.pop().unwrap();
        desk.ran(job.id, Ok(b"2"));
        assert_eq!(desk.outcome(update), Ok(0));
        assert_eq!(desk.ask(a, Operation::CellGet, cell, Body::new()).texts(), ["large"]);
        assert_eq!(Arc::strong_count(&tail), 2, "it is not copied");
    }

    #[test]
    fn only_a_function_of_an_option_gets_a_missing_key() {
        let (mut desk, a, _) = Desk::with_two();
        let map = desk.create(a, Kind::Map, Body::new());
        assert_eq!(desk.refused(a, Operation::MapUpdate, map, update("k", 0)), Status::Missing);
        let call = desk.waits(a, Operation::MapUpdate, map, update("k", 1));
        let job = desk.jobs.pop().unwrap();
        assert!(matches!(job.work, Work::Update { optional: true, current: None, .. }));
        desk.ran(job.id, Ok(b"1"));
        assert_eq!(desk.answer(call).unwrap().texts(), ["1"]);
    }

    #[test]
    fn an_update_that_has_begun_ends_without_its_client() {
        let (mut desk, a, b) = Desk::with_two();
        let list = desk.create(a, Kind::List, number(0).value("1"));
        desk.share(b, list);
        let update = || number(0).number(7).value("");
        let first = desk.waits(a, Operation::ListUpdate, list, update());
        let queued = desk.waits(a, Operation::ListUpdate, list, update());
        let get = desk.waits(b, Operation::ListGet, list, number(0));
        let job = desk.jobs.pop().unwrap();
        desk.disconnect(a);
        desk.ran(job.id, Ok(b"2"));
        assert_eq!((desk.answer(first), desk.answer(queued)), (None, None));
        assert_eq!(desk.answer(get).unwrap().texts(), ["2"]);
        assert_eq!(desk.jobs, []);
    }

    #[test]
    fn an_update_is_lent_what_its_value_and_its_arguments_name() {
        let (mut desk, a, _) = Desk::with_two();
        let [old, new] = [0; 2].map(|_| desk.create(a, Kind::Event, Body::new()));
        let cell = desk.create(a, Kind::Cell, Body::new().naming("1", &[old]));
        let update = || number(7).naming("arguments", &[new]);
        let call = desk.waits(a, Operation::CellUpdate, cell, update());
        let job = desk.jobs.pop().unwrap();
        assert_eq!(job.work.names(), [old, new]);
        desk.ran_naming(job.id, b"2", &[new]);
        assert_eq!(desk.answer(call).unwrap().texts(), ["2"]);
        desk.release(a, old, 1);
        desk.release(a, new, 2);
        assert!(desk.exists(old), "the function still has a handle");
        desk.let_go(old);
        desk.let_go(new);
        assert!(!desk.exists(old) && desk.exists(new));
        // The object may be gone before its function has ended.
        desk.share(a, new);
        let call = desk.waits(a, Operation::CellUpdate, cell, update());
        let job = desk.jobs.pop().unwrap();
        desk.release(a, cell, 1);
        desk.release(a, new, 1);
        assert!(desk.exists(new));
        desk.ran_naming(job.id, b"3", &[new]);
        assert_eq!(desk.outcome(call), Err(Status::NoObject));
        job.work.names().iter().for_each(|name| desk.let_go(*name));
        assert!(!desk.exists(new));
    }

    #[test]
    fn an_object_may_be_dropped_while_its_function_runs() {
        let (mut desk, a, _) = Desk::with_two();
        let cell = desk.create(a, Kind::Cell, Body::new().value("1"));
        let running = desk.waits(a, Operation::CellUpdate, cell, number(7).value(""));
        let queued = desk.waits(a, Operation::CellGet, cell, Body::new());
        desk.release(a, cell, 1);
        assert_eq!(desk.outcome(queued), Err(Status::NoObject));
        let job = desk.jobs.pop().unwrap();
        desk.ran(job.id, Ok(b"2"));
        assert_eq!(desk.outcome(running), Err(Status::NoObject));
        assert_eq!(desk.core.objects(), 0);
    }
}
