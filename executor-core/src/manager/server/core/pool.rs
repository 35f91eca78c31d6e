//! Pools of workers that all clients share. The workers are children of the server. Their executor
//! is kept beside the core, as the values of users' own types are.
//!
//! ```text
//!  Create ─► order Make ─► ran ─► the object exists      (client gone: order End)
//!  submit ─► order Submit ─► a worker runs the task ─► ran ─► the caller is answered
//!     └─ client gone ─► order Cancel: a task that has not begun never runs
//!  close, terminate ─► order: no more tasks              join ─► order Join ─► ran: it has ended
//!  no reference left ─► order End: the workers are terminated
//! ```
//!
//! A task is no function that the server runs, so no number of tasks keeps functions from being
//! run. How many calls of one client may wait limits how many tasks it may have.

use std::collections::BTreeMap;

use super::{
    Core,
    actions::{Job, JobId, PoolOrder, Progress, Refusal, Work},
    own::{Methods, Running, ValueId},
    references::State,
    turn::Turn,
    waiting::{Leave, Ticket},
};
use crate::manager::protocol::{Fields, ObjectId, Operation, POOL_WORKERS_MAX, Status};

/// How many pools a server has at the same time. Each has threads, descriptors and processes. With
/// a higher value, one client can use up more of them. With a lower value, fewer programs share one
/// server.
pub(super) const POOLS_MAX: usize = 64;

/// What a call of a pool waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    /// The end of its task.
    Task,
    /// Something that can be given up: the end of the pool.
    Other,
}

/// A pool.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) executor: ValueId,
    /// Whether it takes no more tasks.
    closed: bool,
    /// The calls that wait, and the order that answers each.
    waits: BTreeMap<Ticket, (JobId, Awaited)>,
}

impl Pool {
    pub(super) fn new(executor: ValueId) -> Self {
        Pool { executor, closed: false, waits: BTreeMap::new() }
    }

    /// Does a request for this pool.
    pub(super) fn request(
        &mut self,
        operation: Operation,
        mut fields: Fields<'_>,
        methods: &mut Methods,
        turn: &mut Turn<'_>,
    ) -> Result<Progress, Refusal> {
        match operation {
            Operation::PoolSubmit => {
                let (function, options, arguments) =
                    (fields.number()?, fields.bytes()?, fields.bytes()?);
                fields.end()?;
                let ticket = turn.wait(options.len() + arguments.len())?;
                let (options, arguments) = (options.to_vec(), arguments.to_vec());
                let order = PoolOrder::Submit { function, options, arguments };
                self.wait(ticket, Awaited::Task, order, methods, turn);
                Ok(Progress::Waits)
            }
            Operation::PoolClose | Operation::PoolTerminate => {
                fields.end()?;
                self.closed = true;
                let order = match operation {
                    Operation::PoolClose => PoolOrder::Close,
                    _ => PoolOrder::Terminate,
                };
                self.give(order, methods, turn);
                Ok(Progress::Done(0))
            }
            Operation::PoolJoin | Operation::PoolWorkers => {
                fields.end()?;
                let order = match operation {
                    Operation::PoolWorkers => PoolOrder::Workers,
                    _ if !self.closed => return Err(Status::Refused.into()),
                    _ => PoolOrder::Join,
                };
                let ticket = turn.wait(0)?;
                self.wait(ticket, Awaited::Other, order, methods, turn);
                Ok(Progress::Waits)
            }
            _ => Err(Status::WrongKind.into()),
        }
    }

    /// Gives out an order whose end the caller waits for.
    fn wait(
        &mut self,
        ticket: Ticket,
        awaited: Awaited,
        order: PoolOrder,
        methods: &mut Methods,
        turn: &mut Turn<'_>,
    ) {
        let (object, caller) = (turn.object, turn.caller);
        let id = methods.begin(Running::Pool { object, caller, ticket });
        self.waits.insert(ticket, (id, awaited));
        let work = Work::Pool { executor: self.executor, order };
        turn.out.run(Job { id, client: Some(caller.client), work });
    }

    /// Gives out an order whose end nobody waits for.
    fn give(&self, order: PoolOrder, methods: &mut Methods, turn: &mut Turn<'_>) {
        let work = Work::Pool { executor: self.executor, order };
        turn.out.run(Job { id: methods.new_id(), client: None, work });
    }

    /// A call is given up, or its client is gone. Returns whether it does not wait any more.
    ///
    /// A task goes on when its call is given up. When its client is gone, it is cancelled if it has
    /// not begun: nobody would ever see what has become of it.
    pub(super) fn leave(
        &mut self,
        ticket: Ticket,
        why: Leave,
        methods: &mut Methods,
        turn: &mut Turn<'_>,
    ) -> bool {
        match self.waits.get(&ticket).copied() {
            Some((id, Awaited::Other)) => {
                self.waits.remove(&ticket);
                methods.forget(id);
                true
            }
            Some((task, Awaited::Task)) if why == Leave::ClientGone => {
                self.give(PoolOrder::Cancel { task }, methods, turn);
                false
            }
            _ => false,
        }
    }
}

/// Begins to make a pool. The caller waits for its end.
pub(super) fn create(
    mut fields: Fields<'_>,
    methods: &mut Methods,
    turn: &mut Turn<'_>,
) -> Result<Progress, Refusal> {
    let workers = fields.number()?;
    fields.end()?;
    if workers == 0 || workers > POOL_WORKERS_MAX {
        return Err(Refusal::malformed("a pool cannot have so many workers"));
    }
    if methods.pools() >= POOLS_MAX {
        return Err(Refusal::limit("the manager has too many pools"));
    }
    turn.wait(0)?;
    let id = methods.begin_pool(turn.caller);
    let work = Work::Pool { executor: ValueId(id), order: PoolOrder::Make { workers } };
    turn.out.run(Job { id, client: Some(turn.caller.client), work });
    Ok(Progress::Waits)
}

impl Core {
    /// The order of a call has ended, which is answered.
    pub(super) fn pool_call_ended(&mut self, object: ObjectId, ticket: Ticket) {
        // The pool may be gone.
        if let Some(State::Pool(pool)) =
            self.objects.get_mut(object).map(|object| &mut object.state)
        {
            pool.waits.remove(&ticket);
        }
    }
}

#[cfg(test)]
impl Pool {
    /// Checks that each call that waits is known by its order.
    #[track_caller]
    pub(super) fn check(&self, id: ObjectId, methods: &Methods) {
        let known = methods.pool_calls().filter(|(_, object, _)| *object == id);
        let mut known: Vec<_> = known.map(|(job, _, ticket)| (ticket, job)).collect();
        known.sort_unstable();
        let own: Vec<_> = self.waits.iter().map(|(ticket, (job, _))| (*ticket, *job)).collect();
        assert_eq!(known, own, "calls of {id:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            ClientId,
            testing::{Body, Desk, number},
        },
        *,
    };
    use crate::manager::protocol::{Kind, Operation as O};

    fn submit() -> Body {
        number(7).bytes("options").bytes("arguments")
    }

    fn orders(desk: &mut Desk) -> Vec<(JobId, PoolOrder)> {
        let orders = desk.jobs.drain(..).map(|job| match job.work {
            Work::Pool { order, .. } => (job.id, order),
            work => panic!("{work:?}"),
        });
        orders.collect()
    }

    /// Takes the only order.
    #[track_caller]
    fn order(desk: &mut Desk) -> (JobId, PoolOrder) {
        let [order] = orders(desk).try_into().expect("one order");
        order
    }

    fn pool(desk: &mut Desk, client: ClientId) -> ObjectId {
        let body = number(Kind::Pool as u64).number(2);
        let call = desk.waits(client, O::Create, ObjectId::NONE, body);
        let (job, made) = order(desk);
        assert_eq!(made, PoolOrder::Make { workers: 2 });
        desk.ran(job, Ok(b""));
        ObjectId(desk.outcome(call).unwrap())
    }

    #[test]
    fn tasks_run_side_by_side_and_each_answers_its_own_call() {
        let (mut desk, a, b) = Desk::with_two();
        let pool = pool(&mut desk, a);
        desk.share(b, pool);
        let calls: Vec<_> =
            (0..100).map(|n| desk.waits([a, b][n % 2], O::PoolSubmit, pool, submit())).collect();
        let orders = orders(&mut desk);
        for (n, (job, order)) in orders.into_iter().enumerate().rev() {
            let (options, arguments) = (b"options".to_vec(), b"arguments".to_vec());
            assert_eq!(order, PoolOrder::Submit { function: 7, options, arguments });
            match n % 3 {
                0 => {
                    desk.ran(job, Err(b"failure"));
                    assert_eq!(desk.outcome(calls[n]), Err(Status::Failed));
                }
                _ => {
                    desk.ran(job, Ok(b"result"));
                    assert_eq!(desk.answer(calls[n]).unwrap().texts(), ["result"]);
                }
            }
        }
    }

    #[test]
    fn a_task_goes_on_without_its_call_and_is_cancelled_without_its_client() {
        let (mut desk, a, b) = Desk::with_two();
        let pool = pool(&mut desk, a);
        desk.share(b, pool);
        let given_up = desk.waits(a, O::PoolSubmit, pool, submit());
        let (job, _) = order(&mut desk);
        desk.give_up(given_up);
        assert_eq!(desk.answer(given_up), None);
        assert_eq!(desk.jobs, []);
        desk.ran(job, Ok(b"result"));
        assert_eq!(desk.answer(given_up).unwrap().texts(), ["result"]);

        desk.waits(b, O::PoolSubmit, pool, submit());
        let (task, _) = order(&mut desk);
        desk.disconnect(b);
        assert_eq!(order(&mut desk).1, PoolOrder::Cancel { task });
        desk.ran(task, Err(b"failure"));
        // An end that was reported already changes nothing.
        desk.ran(task, Err(b"failure"));
        assert!(desk.exists(pool));
    }

    #[test]
    fn only_the_end_of_a_pool_that_is_closed_can_be_awaited() {
        let (mut desk, a, b) = Desk::with_two();
        let pool = pool(&mut desk, a);
        desk.share(b, pool);
        assert_eq!(desk.refused(a, O::PoolJoin, pool, Body::new()), Status::Refused);
        desk.ask(a, O::PoolClose, pool, Body::new()).done();
        assert_eq!(order(&mut desk).1, PoolOrder::Close);
        let joins = [a, b].map(|client| desk.waits(client, O::PoolJoin, pool, Body::new()));
        let ordered = orders(&mut desk);
        desk.give_up(joins[0]);
        assert_eq!(desk.outcome(joins[0]), Err(Status::GivenUp));
        desk.ask(b, O::PoolTerminate, pool, Body::new()).done();
        assert_eq!(order(&mut desk).1, PoolOrder::Terminate);
        for (job, order) in ordered {
            assert_eq!(order, PoolOrder::Join);
            desk.ran(job, Ok(b""));
        }
        assert_eq!(desk.outcome(joins[1]), Ok(0));
        desk.tell(a, O::PoolSubmit, pool, submit());
        desk.tell(a, O::PoolJoin, pool, Body::new());
        assert_eq!(desk.jobs, [], "nobody would be answered");
    }

    #[test]
    fn a_pool_ends_with_its_last_reference_and_its_calls_are_answered() {
        let (mut desk, a, b) = Desk::with_two();
        let pool = pool(&mut desk, a);
        desk.share(b, pool);
        let call = desk.waits(a, O::PoolSubmit, pool, submit());
        let (task, _) = order(&mut desk);
        desk.release(a, pool, 1);
        assert_eq!(desk.jobs, []);
        desk.disconnect(b);
        let (end, last) = order(&mut desk);
        assert_eq!(last, PoolOrder::End);
        desk.ran(task, Err(b"failure"));
        assert_eq!(desk.outcome(call), Err(Status::Failed));
        desk.ran(end, Ok(b""));
        assert_eq!(desk.core.objects(), 0);
    }

    #[test]
    fn there_are_only_so_many_pools_and_one_that_nobody_gets_ends() {
        let (mut desk, a, b) = Desk::with_two();
        let body = |workers| number(Kind::Pool as u64).number(workers);
        for workers in [0, POOL_WORKERS_MAX + 1, u64::MAX] {
            let refused = desk.refused(a, O::Create, ObjectId::NONE, body(workers));
            assert_eq!(refused, Status::Malformed);
        }
        let pools: Vec<_> = (1..POOLS_MAX).map(|_| pool(&mut desk, a)).collect();
        desk.waits(b, O::Create, ObjectId::NONE, body(1));
        let (job, _) = order(&mut desk);
        assert_eq!(desk.refused(a, O::Create, ObjectId::NONE, body(1)), Status::Limit);
        desk.disconnect(b);
        desk.ran(job, Ok(b""));
        let (end, last) = order(&mut desk);
        assert_eq!(last, PoolOrder::End);
        assert_eq!(desk.refused(a, O::Create, ObjectId::NONE, body(1)), Status::Limit);
        desk.ran(end, Ok(b""));
        // One that could not be made does not count.
        let call = desk.waits(a, O::Create, ObjectId::NONE, body(1));
        let (job, _) = order(&mut desk);
        desk.ran(job, Err(b"failure"));
        assert_eq!(desk.outcome(call), Err(Status::Failed));
        desk.release(a, pools[0], 1);
        let (end, _) = order(&mut desk);
        desk.ran(end, Ok(b""));
        pool(&mut desk, a);
        pool(&mut desk, a);
        assert_eq!(desk.core.objects(), POOLS_MAX);
    }
}
