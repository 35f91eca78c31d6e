//! Checks with a model checker how the workers' replies are drained: the attendant, the reader, and
//! the threads that wait for results.
//!
//! The rings, the reader's code and the cells are those of production. Only the scheduler is
//! replaced: a reply completes the future of the task that it names.

use std::sync::{Arc, PoisonError};

use super::{
    reader::{Drains, Rings},
    replies::Taken,
};
use crate::{
    error::TaskError,
    future::{
        callback::CallbackQueue,
        cell::{Awaited, Cell, Completer, Control, Wakers},
    },
    id::{TaskId, WorkerId},
    os::{
        memory::Shared,
        std_or_model::{
            Mutex, MutexGuard,
            atomic::{AtomicU32, Ordering},
            thread,
        },
    },
    transport::{
        Closed, Link, WorkerEnd,
        ring::{
            RingWorkerEnd,
            doorbell::Doorbell,
            models::{check, ends, few},
        },
    },
    wire::{
        frame::{Frame, FromWorker, Reply},
        payload::Payload,
    },
};

const WORKER: WorkerId = WorkerId(7);

struct Pool {
    rings: Rings,
    doorbell: Arc<Shared<Doorbell>>,
    /// The completers of the tasks, by the task's number.
    open: Mutex<Vec<Option<Completer>>>,
    /// How often the worker's end was reported.
    ended: AtomicU32,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<Completer>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a task that is with the worker.
    fn submit(self: &Arc<Self>, helped: bool) -> Arc<Cell> {
        let mut open = self.lock();
        let id = TaskId::from_raw(open.len() as u64);
        let (cell, completer) = Cell::pending(id, Arc::new(Helper(Arc::clone(self), helped)));
        open.push(Some(completer));
        cell
    }

    /// Completes a task in another way than by a reply.
    fn fail(&self, task: usize) {
        let completer = self.lock()[task].take();
        let mut wakers = Wakers::default();
        if let Some(completer) = completer {
            completer.complete_into(Err(TaskError::Cancelled), &mut wakers);
        }
        wakers.wake();
    }

    fn ring(&self) -> Arc<crate::transport::ring::RingLink> {
        self.rings.of(WORKER).unwrap()
    }
}

impl Drains for Pool {
    fn rings(&self) -> &Rings {
        &self.rings
    }

    fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    fn on_frames(&self, _: WorkerId, frames: &mut Vec<Frame<FromWorker>>) -> Taken {
        let mut wakers = Wakers::default();
        for mut frame in frames.drain(..) {
            let mut task = frame.header.task.as_u64() as usize;
            let mut next = Some(frame.payload);
            while let Some(payload) = next {
                let completer = self.lock()[task].take();
                if let Some(completer) = completer {
                    completer.complete_into(Ok(payload), &mut wakers);
                }
                // Values without headers belong to the tasks that follow.
                next = frame.more.next().map(Payload::from);
                task += 1;
            }
        }
        self.ring().credit(0);
        wakers.post();
        Taken { wakers, in_chunks: false, batch: None }
    }

    fn has_spare_processor(&self) -> bool {
        false
    }

    fn on_drained(&self, _: WorkerId, closed: Closed) {
        assert_eq!(closed, Closed::Gone);
        assert_eq!(self.ended.fetch_add(1, Ordering::SeqCst), 0, "the end is reported once");
        // In production the scheduler decides which tasks fail. Here all unresolved ones do.
        let tasks = self.lock().len();
        for task in 0..tasks {
            self.fail(task);
        }
    }
}

/// The futures' handle of the pool, and whether a thread that waits for a future drains its worker.
struct Helper(Arc<Pool>, bool);

impl Control for Helper {
    fn cancel(&self, _: TaskId) -> bool {
        unimplemented!()
    }
    fn cancel_running(&self, _: TaskId) -> bool {
        unimplemented!()
    }
    fn is_running(&self, _: TaskId) -> bool {
        unimplemented!()
    }
    fn callbacks(&self) -> &Arc<CallbackQueue> {
        unimplemented!()
    }
    fn forked(&self) -> bool {
        false
    }
    fn cancel_chunk(&self, _: TaskId, _: u32) {
        unimplemented!()
    }
    fn attend(&self, awaited: &dyn Awaited, deadline: Option<std::time::Instant>) {
        if self.1 {
            self.0.attend_until(awaited, deadline);
        }
    }
    fn attend_briefly(&self) {
        if self.1 {
            Drains::attend_briefly(&*self.0);
        }
    }
    fn is_served(&self) {
        self.0.rings.serve();
    }
    fn unpark(&self) {
        self.0.rings.unpark(&self.0.doorbell);
    }
}

fn pool() -> (Arc<Pool>, RingWorkerEnd) {
    let (link, worker, doorbell) = ends();
    let pool = Pool {
        rings: Rings::default(),
        doorbell,
        open: Mutex::default(),
        ended: AtomicU32::new(0),
    };
    pool.rings.add(WORKER, Arc::new(link));
    (Arc::new(pool), worker)
}

/// Replies to these tasks in turn, as a worker.
fn answer(mut worker: RingWorkerEnd, tasks: std::ops::Range<u64>) -> RingWorkerEnd {
    for task in tasks {
        worker
            .reply(FromWorker { task: TaskId::from_raw(task), ..FromWorker::new(Reply::Done) }, &[])
            .unwrap();
    }
    worker
}

/// Runs `run` with a reader, and ends the reader. No thread may be left asleep.
fn with_reader(pool: &Arc<Pool>, run: impl FnOnce()) {
    let theirs = Arc::clone(pool);
    let reader = thread::spawn(move || theirs.read_rings());
    run();
    pool.close_rings();
    reader.join().unwrap();
    pool.rings.remove(WORKER);
}

#[test]
fn a_thread_that_waits_takes_its_reply_and_leaves_the_rest_to_the_reader() {
    let tasks = few(2, 6);
    check(2, move || {
        let (pool, worker) = pool();
        let mine = pool.submit(true);
        let others: Vec<_> = (1..tasks).map(|_| pool.submit(false)).collect();
        with_reader(&pool, || {
            let worker = thread::spawn(move || answer(worker, 0..tasks));
            assert!(mine.wait(None));
            for other in &others {
                assert!(other.wait(None));
            }
            worker.join().unwrap();
        });
    });
}

#[test]
fn a_reader_that_watches_a_loop_of_results_takes_over_at_its_end() {
    let mine = few(2, 5);
    check(3, move || {
        let (pool, mut worker) = pool();
        let loops: Vec<_> = (0..mine).map(|_| pool.submit(true)).collect();
        let other = pool.submit(false);
        with_reader(&pool, || {
            // The worker replies in this thread, so that the loop attends once for each result.
            for (task, cell) in (0..).zip(&loops) {
                worker = answer(worker, task..task + 1);
                assert!(cell.wait(None));
            }
            // Nobody attends for this one.
            answer(worker, mine..mine + 1);
            assert!(other.wait(None));
        });
    });
}

#[test]
fn threads_that_wait_hand_the_attendance_on() {
    let (tasks, preemptions) = (few(2, 5), few(1, 3) as usize);
    check(preemptions, move || {
        let (pool, worker) = pool();
        let cells: Vec<_> = (0..tasks).map(|_| pool.submit(true)).collect();
        let (last, others) = cells.split_last().unwrap();
        with_reader(&pool, || {
            let others: Vec<_> = others
                .iter()
                .map(|cell| {
                    let cell = Arc::clone(cell);
                    thread::spawn(move || assert!(cell.wait(None)))
                })
                .collect();
            let worker = thread::spawn(move || answer(worker, 0..tasks));
            assert!(last.wait(None));
            for other in others {
                other.join().unwrap();
            }
            worker.join().unwrap();
        });
    });
}

#[test]
fn the_end_of_a_worker_is_heard_at_any_moment_and_once() {
    let answered = few(1, 3);
    check(2, move || {
        let (pool, worker) = pool();
        let cells: Vec<_> = (0..=answered).map(|_| pool.submit(true)).collect();
        let theirs = Arc::clone(&pool);
        with_reader(&pool, || {
            let driver = thread::spawn(move || {
                // Replies that the worker published before its death are received. Later ones are
                // lost.
                answer(worker, 0..answered);
                theirs.ring().hang_up();
            });
            for cell in &cells {
                assert!(cell.wait(None));
            }
            driver.join().unwrap();
        });
        assert_eq!(pool.ended.load(Ordering::SeqCst), 1);
        for (task, cell) in cells.iter().enumerate() {
            assert_eq!(cell.error().is_none(), (task as u64) < answered, "task {task}");
        }
    });
}

#[test]
fn a_future_that_ends_elsewhere_frees_its_thread_and_nobody_is_forgotten() {
    let tasks = few(2, 4);
    check(2, move || {
        let (pool, worker) = pool();
        let mine = pool.submit(true);
        let others: Vec<_> = (1..tasks).map(|_| pool.submit(false)).collect();
        let theirs = Arc::clone(&pool);
        with_reader(&pool, || {
            // The task's reply comes while it is completed in another way.
            let worker = thread::spawn(move || answer(worker, 0..tasks));
            let canceller = thread::spawn(move || theirs.fail(0));
            assert!(mine.wait(None));
            for other in &others {
                assert!(other.wait(None));
            }
            canceller.join().unwrap();
            worker.join().unwrap();
        });
    });
}
