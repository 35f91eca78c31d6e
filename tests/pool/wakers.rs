//! Wakers that call the library whenever they are cloned, dropped or woken. Every future of the
//! library must work with such wakers.
//!
//! A waker runs its user's code when it is cloned, dropped and woken. A task's waker may own
//! futures, also of this library, so that dropping the waker drops those futures. If the library
//! did this while holding one of its locks, or a lock in a library it uses, that would be a
//! deadlock.

#![allow(clippy::disallowed_methods)] // : a thread-local without a destructor

use std::{
    cell::Cell,
    future::Future,
    mem::ManuallyDrop,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, RawWaker, RawWakerVTable, Waker},
    time::Duration,
};

use executor::{
    Address, Array, AuthKey, Barrier, Condition, Event, JoinableQueue, Listener, Lock, Pool,
    Process, Queue, RLock, Semaphore, ShutdownOptions, TaskFuture, as_completed, prelude::*,
};
use futures::{FutureExt, SinkExt, StreamExt};

use crate::support::{eventually, pool, watchdog};

type Subject = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The state of a waker that makes a future with `make`, polls it and drops it, whenever it is
/// used.
struct Reentrant {
    make: Box<dyn Fn() -> Subject + Send + Sync>,
    entered: AtomicUsize,
    /// How often it was woken. Clones and drops do not count.
    woken: AtomicUsize,
}

thread_local! {
    /// Set while a waker runs. Wakers used by its own calls do nothing more.
    static ENTERED: Cell<bool> = const { Cell::new(false) };
}

impl Reentrant {
    fn new(make: impl Fn() -> Subject + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Reentrant {
            make: Box::new(make),
            entered: AtomicUsize::new(0),
            woken: AtomicUsize::new(0),
        })
    }

    fn wake(&self) {
        self.enter();
        self.woken.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self) {
        if ENTERED.replace(true) {
            return;
        }
        let mut other = (self.make)();
        // This leaves a waker registered, as a task does, so that dropping the future has to remove
        // it.
        let _ = other.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        drop(other);
        self.entered.fetch_add(1, Ordering::SeqCst);
        ENTERED.set(false);
    }

    fn waker(self: Arc<Self>) -> Waker {
        // SAFETY: the functions below follow the rules of `RawWaker`: each waker owns one reference
        // count, and the data is `Sync`.
        unsafe { Waker::from_raw(RawWaker::new(Arc::into_raw(self).cast(), &VTABLE)) }
    }

    /// # Safety
    /// `data` belongs to a waker that lives as long as the returned value.
    unsafe fn of(data: *const ()) -> ManuallyDrop<Arc<Self>> {
        // SAFETY: the pointer was made by `waker` or `clone`. The reference count remains the
        // waker's.
        ManuallyDrop::new(unsafe { Arc::from_raw(data.cast::<Self>()) })
    }
}

static VTABLE: RawWakerVTable = RawWakerVTable::new(
    |data| {
        // SAFETY: `data` belongs to the waker that is being cloned.
        let this = unsafe { Reentrant::of(data) };
        this.enter();
        RawWaker::new(Arc::into_raw(Arc::clone(&this)).cast(), &VTABLE)
    },
    |data| {
        // SAFETY: `data` belongs to the waker that is being consumed.
        let this = ManuallyDrop::into_inner(unsafe { Reentrant::of(data) });
        this.wake();
    },
    // SAFETY: `data` belongs to a live waker.
    |data| unsafe { Reentrant::of(data) }.wake(),
    |data| {
        // SAFETY: `data` belongs to the waker that is being dropped.
        let this = ManuallyDrop::into_inner(unsafe { Reentrant::of(data) });
        this.enter();
    },
);

fn poll(future: &mut Subject, waker: &Waker) -> Poll<()> {
    future.as_mut().poll(&mut Context::from_waker(waker))
}

/// Takes futures of one kind through everything that can happen to a waker. Each step must return.
/// `finish` makes one future ready. It is called repeatedly, because a future made by a waker may
/// have been the one that became ready.
fn lives_with_reentrant_wakers(
    what: &str,
    make: impl Fn() -> Subject + Clone + Send + Sync + 'static,
    mut finish: impl FnMut(),
) {
    let reentrant = Reentrant::new(make.clone());
    // Two different wakers are each stored, replaced by the other one, and dropped.
    let (one, other) = (Arc::clone(&reentrant).waker(), Arc::clone(&reentrant).waker());
    let apart = Reentrant::new(make.clone()).waker();
    let mut future = make();
    for waker in [&one, &apart, &other, Waker::noop(), &one, &one] {
        assert!(poll(&mut future, waker).is_pending(), "{what} is not ready");
    }
    // Drop the future while it holds a waker.
    drop(future);
    assert!(reentrant.entered.load(Ordering::SeqCst) > 0, "{what}: the waker was not kept");
    reentrant.woken.store(0, Ordering::SeqCst);
    // One future waits beside another one, and the second is dropped first.
    let (mut first, mut second) = (make(), make());
    assert!(
        poll(&mut first, &one).is_pending() && poll(&mut second, &apart).is_pending(),
        "{what}"
    );
    drop(second);
    // Wait until the waker was woken, and poll only then: if a poll already finds the future ready,
    // no wake-up is needed.
    eventually(&format!("{what} wakes"), || {
        finish();
        reentrant.woken.load(Ordering::SeqCst) > 0
    });
    eventually(what, || {
        finish();
        poll(&mut first, &one).is_ready()
    });
    drop((first, one, other, apart));
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

#[task]
fn waits(event: Event) -> u32 {
    event.wait();
    1
}

#[test]
fn futures_of_sync_primitives_work_with_wakers_that_call_the_library() {
    let _watchdog = watchdog();
    let event = leak(Event::new().unwrap());
    lives_with_reentrant_wakers("an event", || Box::pin(event.wait_async()), || event.set());

    let lock = leak(Lock::new().unwrap());
    let mut held = Some(lock.acquire().unwrap());
    let acquire = || -> Subject { Box::pin(async { drop(lock.acquire_async().await) }) };
    lives_with_reentrant_wakers("a lock", acquire, || drop(held.take()));

    let rlock = leak(RLock::new().unwrap());
    let mut held = Some(rlock.acquire().unwrap());
    let acquire = || -> Subject { Box::pin(async { drop(rlock.acquire_async().await) }) };
    lives_with_reentrant_wakers("an rlock", acquire, || drop(held.take()));

    let array = leak(Array::<u8>::zeroed(1).unwrap());
    let mut reads = Some(array.read().unwrap());
    let write = || -> Subject { Box::pin(async { drop(array.write_async().await) }) };
    lives_with_reentrant_wakers("an array's writer", write, || drop(reads.take()));

    let mut writes = Some(array.write().unwrap());
    let read = || -> Subject { Box::pin(async { drop(array.read_async().await) }) };
    lives_with_reentrant_wakers("an array's reader", read, || drop(writes.take()));

    let semaphore = leak(Semaphore::new(1).unwrap());
    let mut permit = Some(semaphore.acquire());
    let acquire = || -> Subject { Box::pin(async { drop(semaphore.acquire_async().await) }) };
    lives_with_reentrant_wakers("a semaphore", acquire, || drop(permit.take()));

    let condition = leak(Condition::new().unwrap());
    let wait = || -> Subject {
        Box::pin(async {
            let guard = condition.acquire_async().await.unwrap();
            drop(condition.wait_async(guard).await);
        })
    };
    lives_with_reentrant_wakers("a condition", wait, || {
        let _guard = condition.acquire().unwrap();
        condition.notify_all();
    });

    // One barrier for each future, because a barrier breaks when a waiting party is dropped.
    let barriers: &Mutex<Vec<&Barrier>> = leak(Mutex::default());
    let wait = || -> Subject {
        let barrier = leak(Barrier::new(2).unwrap());
        barriers.lock().unwrap().push(barrier);
        Box::pin(async {
            let _ = barrier.wait_async().await;
        })
    };
    lives_with_reentrant_wakers("a barrier", wait, || {
        let all = std::mem::take(&mut *barriers.lock().unwrap());
        all.iter().for_each(|barrier| barrier.abort());
    });
}

#[test]
fn futures_of_queues_work_with_wakers_that_call_the_library() {
    let _watchdog = watchdog();
    let queue = leak(Queue::<u32>::bounded(8).unwrap());
    // Fill and drain completely, because futures made by wakers take items as well.
    let fill = || while queue.try_put(1).is_ok() {};
    let drain = || while queue.try_get().is_ok() {};
    lives_with_reentrant_wakers(
        "get_async",
        || Box::pin(async { drop(queue.get_async().await) }),
        fill,
    );
    drain();
    lives_with_reentrant_wakers(
        "a stream of a queue",
        || Box::pin(async { drop(queue.stream().next().await) }),
        fill,
    );
    fill();
    lives_with_reentrant_wakers(
        "put_async",
        || Box::pin(async { drop(queue.put_async(2).await) }),
        drain,
    );
    fill();
    lives_with_reentrant_wakers(
        "a sink of a queue",
        || Box::pin(async { drop(queue.sink().send(2).await) }),
        drain,
    );
    let queue = leak(JoinableQueue::<u32>::unbounded().unwrap());
    queue.put(1).unwrap();
    queue.get().unwrap();
    lives_with_reentrant_wakers(
        "join_async",
        || {
            Box::pin(async {
                let _ = queue.join_async().await;
            })
        },
        || {
            let _ = queue.task_done();
        },
    );
}

#[test]
fn futures_of_connections_and_listeners_work_with_wakers_that_call_the_library() {
    let _watchdog = watchdog();
    let (ours, theirs) = executor::pipe::<Vec<u8>, u32>().unwrap();
    let ours = leak(ours);
    // Several messages, because a future made by a waker takes one as well, and each poll clones
    // the waker first.
    let send = || (0..8).for_each(|_| theirs.send(&1).unwrap());
    lives_with_reentrant_wakers(
        "recv_async",
        || Box::pin(async { drop(ours.recv_async().await) }),
        send,
    );
    while ours.try_recv().is_ok() {}
    lives_with_reentrant_wakers(
        "a stream of a connection",
        || Box::pin(async { drop(ours.stream().next().await) }),
        send,
    );
    // The connection is full, because the other end does not read.
    while ours.send_async(&vec![7; 50_000]).now_or_never().is_some() {}
    lives_with_reentrant_wakers(
        "send_async",
        || Box::pin(async { drop(ours.send_async(&vec![7; 50_000]).await) }),
        || drop(theirs.try_recv()),
    );
    let (sender, receiver) = executor::channel::<Vec<u8>>().unwrap();
    let sender = leak(sender);
    while sender.send_async(&vec![7; 50_000]).now_or_never().is_some() {}
    lives_with_reentrant_wakers(
        "a sink of a connection",
        || Box::pin(async { drop(sender.sink().send(vec![7; 50_000]).await) }),
        || drop(receiver.try_recv()),
    );
    let listener = leak(Listener::bind(&Address::any()).unwrap().authkey(AuthKey::new("k")));
    lives_with_reentrant_wakers(
        "accept_async",
        || Box::pin(async { drop(listener.accept_async::<(), ()>().await) }),
        || listener.close(),
    );
}

#[test]
fn futures_of_tasks_work_with_wakers_that_call_the_library() {
    let _watchdog = watchdog();
    let executor = leak(pool(2));
    let event = leak(Event::new().unwrap());
    let submit = || executor.submit(waits::task(event.clone()));
    let set = || {
        event.set();
        // Futures made from now on wait again.
        executor.submit(waits::task(event.clone())).result().unwrap();
        event.clear();
    };
    lives_with_reentrant_wakers("a task's future", move || Box::pin(submit().map(drop)), set);
    lives_with_reentrant_wakers(
        "as_completed",
        move || {
            let futures: Vec<TaskFuture<u32>> = vec![submit(), submit()];
            Box::pin(as_completed(futures).stream().collect::<Vec<_>>().map(drop))
        },
        set,
    );
    for timeout in [None, Some(Duration::from_secs(1000))] {
        lives_with_reentrant_wakers(
            "map",
            move || {
                let mut map =
                    executor.map(|event: Event| waits::task(event), vec![event.clone(); 3]);
                if let Some(limit) = timeout {
                    map = map.timeout(limit);
                }
                Box::pin(map.stream().collect::<Vec<_>>().map(drop))
            },
            set,
        );
    }
    let stopping = leak(pool(1));
    let task = stopping.submit(waits::task(event.clone()));
    lives_with_reentrant_wakers(
        "shutdown_with_async",
        || {
            let options = ShutdownOptions::new().timeout(Duration::from_secs(1000));
            Box::pin(stopping.shutdown_with_async(options))
        },
        || event.set(),
    );
    task.result().unwrap();
}

#[test]
fn futures_that_wait_for_room_work_with_wakers_that_call_the_library() {
    let _watchdog = watchdog();
    let full_pool = |event: &Event| {
        let builder = ProcessPoolExecutor::builder().max_workers(1).max_pending(1);
        let pool = leak(builder.build().unwrap());
        (pool, pool.submit(waits::task(event.clone())))
    };
    let event = leak(Event::new().unwrap());
    let (pool, _held) = full_pool(event);
    lives_with_reentrant_wakers(
        "submit_async",
        || Box::pin(pool.submit_async(waits::task(event.clone())).map(drop)),
        || event.set(),
    );
    // A task of that pool may not have seen the event yet, so it stays set.
    let event = leak(Event::new().unwrap());
    let (pool, _held) = full_pool(event);
    lives_with_reentrant_wakers(
        "a map without room",
        || {
            let task = |event: Event| waits::task(event);
            let stream = pool.map(task, vec![event.clone(); 2]).stream();
            Box::pin(stream.for_each(|_| async {}))
        },
        || event.set(),
    );
}

#[test]
fn futures_of_processes_and_pools_work_with_wakers_that_call_the_library() {
    let _watchdog = watchdog();
    let event = leak(Event::new().unwrap());
    let child = leak(Process::new(waits::task(event.clone())).start().unwrap());
    lives_with_reentrant_wakers(
        "a child",
        || Box::pin(async { drop(child.join_async().await) }),
        || event.set(),
    );
    event.clear();
    let pool = leak(Pool::new(2).unwrap());
    lives_with_reentrant_wakers(
        "apply_async",
        || Box::pin(pool.apply_async(waits::task(event.clone())).map(drop)),
        || event.set(),
    );
    event.clear();
    lives_with_reentrant_wakers(
        "map_async",
        || {
            Box::pin(
                pool.map_async(|event: Event| waits::task(event), vec![event.clone(); 3]).map(drop),
            )
        },
        || event.set(),
    );
}
