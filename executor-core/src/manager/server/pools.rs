//! The executors of pools. The loop gives them tasks, and is told when these have ended. It never
//! waits for them.
//!
//! ```text
//!  loop ── Submit ──► executor ──► a worker runs the task
//!    ▲                                      │
//!    └── Late: the id of the task ◄── waker ┘  (a thread of the executor)
//! ```
//!
//! Arguments and results are passed on as bytes. They are decoded in the worker, and in the client.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Wake, Waker},
};

use super::{
    super::function::{self, TaskSettings},
    core::{JobId, PoolOrder, ValueId},
    crew::Late,
};
use crate::{
    error::TaskError,
    executor::{Executor, OnDrop, ProcessPoolExecutor, RawControl},
    future::cell::{Cell, Outcome},
    id::IdHasher,
    pool::Chunk,
    registry::Call,
    wire::{
        buffer::Buffer,
        codec::{Format, Postcard},
    },
};

/// What a task has returned, or the body of a reply that says why it has returned nothing.
pub(super) type Answer = Result<Vec<u8>, Vec<u8>>;

/// What an executor has told the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum News {
    /// A task has ended.
    Task(ValueId, JobId),
    /// All workers are gone.
    End(ValueId),
}

/// Passes news on to the loop.
struct Messenger {
    news: News,
    late: Arc<Late>,
}

impl Wake for Messenger {
    fn wake(self: Arc<Self>) {
        self.late.tell(self.news);
    }
}

type End = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A pool.
struct Workers {
    executor: ProcessPoolExecutor,
    tasks: HashMap<JobId, Task, IdHasher>,
    /// The end of the executor, once it accepts no more tasks. `None` when it has come.
    end: Option<End>,
    has_ended: bool,
    /// The orders that are answered at the end.
    joins: Vec<JobId>,
    /// Whether it is forgotten at the end, and the order that asks for it.
    forget: Option<JobId>,
}

/// A task that has not ended.
struct Task {
    cell: Arc<Cell>,
    function: u64,
}

/// All pools of a server.
pub(super) struct Pools {
    table: HashMap<ValueId, Workers, IdHasher>,
    late: Arc<Late>,
}

impl Pools {
    pub(super) fn new(late: Arc<Late>) -> Self {
        Pools { table: HashMap::default(), late }
    }

    /// Does what an order asks for. Returns what is to be answered now.
    pub(super) fn obey(
        &mut self,
        job: JobId,
        pool: ValueId,
        order: PoolOrder,
    ) -> Vec<(JobId, Answer)> {
        if let PoolOrder::Make { workers } = order {
            return vec![(job, self.make(pool, workers).map(|()| Vec::new()))];
        }
        let Some(workers) = self.table.get_mut(&pool) else { return Vec::new() };
        match order {
            PoolOrder::Submit { function, options, arguments } => {
                match submission(&workers.executor, function, &options, &arguments) {
                    Ok((chunk, cell)) => {
                        workers.tasks.insert(job, Task { cell: Arc::clone(&cell), function });
                        let waker = self.messenger(News::Task(pool, job));
                        // Before it is submitted, so that it cannot have ended.
                        cell.observe(0, &waker);
                        self.table[&pool].executor.submit_chunk(chunk);
                        Vec::new()
                    }
                    Err(refusal) => vec![(job, Err(refusal))],
                }
            }
            PoolOrder::Cancel { task } => {
                if let Some(Task { cell, .. }) = workers.tasks.get(&task) {
                    cell.cancel();
                }
                Vec::new()
            }
            PoolOrder::Close => self.end(pool, |_| {}),
            PoolOrder::Terminate => self.end(pool, ProcessPoolExecutor::terminate_workers),
            PoolOrder::Join => {
                if workers.has_ended {
                    return vec![(job, Ok(Vec::new()))];
                }
                workers.joins.push(job);
                Vec::new()
            }
            PoolOrder::Workers => {
                let mut pids = Buffer::new();
                // Numbers can be encoded.
                let _ = Postcard::encode(&workers.executor.worker_pids(), &mut pids);
                vec![(job, Ok(pids.into_vec()))]
            }
            PoolOrder::End => {
                workers.forget = Some(job);
                self.end(pool, ProcessPoolExecutor::terminate_workers)
            }
            PoolOrder::Make { .. } => unreachable!("looked at above"),
        }
    }

    fn messenger(&self, news: News) -> Waker {
        Waker::from(Arc::new(Messenger { news, late: Arc::clone(&self.late) }))
    }

    fn make(&mut self, pool: ValueId, workers: u64) -> Result<(), Vec<u8>> {
        let builder = ProcessPoolExecutor::builder().max_workers(workers as usize);
        // The loop must not wait for the end when it drops the executor.
        let executor = builder.on_drop(OnDrop::Kill).build().map_err(|error| {
            function::task_failed(&TaskError::invalid(format!(
                "the server cannot make a pool: {error:?}"
            )))
        })?;
        let workers = Workers {
            executor,
            tasks: HashMap::default(),
            end: None,
            has_ended: false,
            joins: Vec::new(),
            forget: None,
        };
        self.table.insert(pool, workers);
        Ok(())
    }

    /// Lets a pool accept no more tasks.
    fn end(
        &mut self,
        pool: ValueId,
        how: impl FnOnce(&ProcessPoolExecutor),
    ) -> Vec<(JobId, Answer)> {
        let Some(workers) = self.table.get_mut(&pool) else { return Vec::new() };
        how(&workers.executor);
        if workers.end.is_none() && !workers.has_ended {
            workers.end = Some(Box::pin(workers.executor.shutdown_async()));
        }
        self.look_at_the_end(pool)
    }

    /// Looks whether the end of a pool has come. Returns what is to be answered then.
    fn look_at_the_end(&mut self, pool: ValueId) -> Vec<(JobId, Answer)> {
        let waker = self.messenger(News::End(pool));
        let Some(workers) = self.table.get_mut(&pool) else { return Vec::new() };
        if let Some(end) = &mut workers.end {
            if end.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                return Vec::new();
            }
            workers.end = None;
            workers.has_ended = true;
        }
        if !workers.has_ended {
            return Vec::new();
        }
        // The end of each task was reported before, and may still be on its way to the loop.
        let tasks = std::mem::take(&mut workers.tasks);
        let ended = tasks.into_iter().map(|(job, task)| (job, task.answer()));
        let joins = workers.joins.drain(..).chain(workers.forget);
        let answers = ended.chain(joins.map(|job| (job, Ok(Vec::new())))).collect();
        if workers.forget.is_some() {
            // It has ended, so nobody waits for it.
            self.table.remove(&pool);
        }
        answers
    }

    /// Returns what is to be answered because of what an executor has told.
    pub(super) fn hear(&mut self, news: News) -> Vec<(JobId, Answer)> {
        match news {
            News::Task(pool, job) => {
                let task = self.table.get_mut(&pool).and_then(|workers| workers.tasks.remove(&job));
                task.map(|task| (job, task.answer())).into_iter().collect()
            }
            News::End(pool) => self.look_at_the_end(pool),
        }
    }

    /// Kills all workers: the server ends.
    pub(super) fn kill(&self) {
        self.table.values().for_each(|workers| workers.executor.kill_workers());
    }
}

impl Task {
    fn answer(self) -> Answer {
        match self.cell.take() {
            Some(outcome) => answer(self.function, outcome),
            // The executor has ended all tasks, so this does not happen.
            None => Err(function::task_failed(&TaskError::Shutdown)),
        }
    }
}

fn answer(function: u64, outcome: Outcome) -> Answer {
    let payload = outcome.map_err(|error| function::task_failed(&error))?;
    if !payload.attachments().is_empty() {
        return Err(function::refused(
            function,
            b"its result contains something that belongs to processes, such as a file or a managed object",
        ));
    }
    match payload.bytes() {
        Ok(bytes) => Ok(bytes.into_owned()),
        Err(error) => {
            let why = format!("its result cannot be read: {error}");
            Err(function::refused(function, why.as_bytes()))
        }
    }
}

/// Makes a task of what a client has sent.
fn submission(
    executor: &ProcessPoolExecutor,
    function: u64,
    options: &[u8],
    arguments: &[u8],
) -> Result<(Chunk, Arc<Cell>), Vec<u8>> {
    // The client may be another program.
    let entry = function::known(function)?;
    if let Call::Managed(..) = entry.call {
        let why = b"it is a method of a managed type, which only its proxy can call";
        return Err(function::refused(function, why));
    }
    let Some(options) = TaskSettings::decode(options) else {
        return Err(function::refused(function, b"its options cannot be read"));
    };
    let mut buffer = executor.buffer();
    buffer.extend_from_slice(arguments);
    let RawControl(control) = executor.control();
    Ok(Chunk::single(entry, buffer.take(Vec::new()), options, control))
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn orders_for_a_pool_that_is_gone_do_nothing() {
        let mut pools = Pools::new(Arc::new(Late::new().unwrap()));
        let pool = ValueId(JobId(1));
        let made = pools.obey(JobId(1), pool, PoolOrder::Make { workers: 1 });
        assert_eq!(made, [(JobId(1), Ok(Vec::new()))]);
        let mut answers = pools.obey(JobId(2), pool, PoolOrder::Join);
        answers.extend(pools.obey(JobId(3), pool, PoolOrder::End));
        while answers.is_empty() {
            // Its threads end on their own.
            answers.extend(pools.hear(News::End(pool)));
            std::thread::yield_now();
        }
        assert_eq!(answers, [(JobId(2), Ok(Vec::new())), (JobId(3), Ok(Vec::new()))]);
        assert!(pools.table.is_empty());
        for order in [PoolOrder::Close, PoolOrder::Terminate, PoolOrder::Join, PoolOrder::End] {
            assert_eq!(pools.obey(JobId(4), pool, order), []);
        }
        assert_eq!(pools.hear(News::Task(pool, JobId(4))), []);
        assert_eq!(pools.hear(News::End(pool)), []);
    }
}
