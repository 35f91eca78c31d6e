//! Shared objects passed to processes of every start method, and passed on from there.

use std::{collections::BTreeMap, fs::File, io::Read, time::Duration};

use executor::{
    Array, Connection, Context, Event, Lock, Process, Queue, Semaphore, SendError, StartMethod,
    Stdio, Value, pipe, prelude::*,
};
use serde::{Deserialize, Serialize};

const LIMIT: Duration = Duration::from_secs(60);

/// Test binaries have threads, so `Fork` is refused here. Programs with one thread are in
/// `tests/programs`.
const METHODS: [StartMethod; 2] = [StartMethod::Spawn, StartMethod::ForkServer];

#[derive(Serialize, Deserialize)]
struct Together {
    by_name: BTreeMap<String, (Value<u64>, Lock)>,
    queues: Vec<Queue<u64>>,
    maybe: Option<Event>,
}

#[task]
fn count_under_lock(together: Together, times: u64) -> Result<(), String> {
    for (value, lock) in together.by_name.values() {
        for _ in 0..times {
            let _guard = lock.acquire().map_err(|died| died.to_string())?;
            // This is not atomic: only the lock makes it correct.
            value.set(value.get() + 1);
        }
    }
    for queue in &together.queues {
        queue.put(times).map_err(|error| format!("{error:?}"))?;
    }
    if let Some(event) = &together.maybe {
        event.set();
    }
    Ok(())
}

#[test]
fn sy29_locks_can_be_passed_to_children_of_every_start_method() {
    let lock = Lock::new().unwrap();
    let value = Value::new(0).unwrap();
    let queue = Queue::unbounded().unwrap();
    let event = Event::new().unwrap();
    let together = || Together {
        by_name: [("one".to_owned(), (value.clone(), lock.clone()))].into(),
        queues: vec![queue.clone(), queue.clone()],
        maybe: Some(event.clone()),
    };
    let children: Vec<_> = METHODS
        .iter()
        .cycle()
        .take(6)
        .map(|method| {
            let task = count_under_lock::task(together(), 200);
            Context::new(*method).process(task).start().unwrap()
        })
        .collect();
    for child in children {
        child.join_timeout(LIMIT).unwrap().unwrap();
    }
    assert_eq!(value.get(), 1_200);
    assert!(event.is_set() && !lock.is_locked());
    assert_eq!(std::iter::from_fn(|| queue.try_get().ok()).collect::<Vec<_>>(), [200; 12]);
}

/// What a process puts into the queue: its word, its pid, and its parent's pid.
type Delivered = (String, u32, u32);

#[task]
fn put(queue: Queue<Delivered>, word: &str) -> Result<u32, String> {
    let (pid, parent) = (std::process::id(), std::os::unix::process::parent_id());
    queue.put((word.to_owned(), pid, parent)).map_err(|error| format!("{error:?}"))?;
    Ok(pid)
}

/// Puts into the queue, and starts a child that does so at the same time. Returns the pids of both.
#[task]
fn put_and_start_another(queue: Queue<Delivered>, method: usize) -> Result<[u32; 2], String> {
    let grandchild =
        Process::new(put::task(queue.clone(), "grandchild")).start_method(METHODS[method]).start();
    let grandchild = grandchild.map_err(|error| error.to_string())?;
    queue
        .put(("child".to_owned(), std::process::id(), std::os::unix::process::parent_id()))
        .map_err(|error| error.to_string())?;
    let pid = grandchild.join().map_err(|error| error.to_string())?;
    Ok([std::process::id(), pid])
}

#[test]
fn sm08_a_child_can_pass_its_queue_to_a_grandchild() {
    for method in METHODS {
        for (nested, below) in METHODS.iter().enumerate() {
            let queue = Queue::unbounded().unwrap();
            let child = Process::new(put_and_start_another::task(queue.clone(), nested))
                .start_method(method);
            let child = child.start().unwrap();
            let [child_pid, grandchild_pid] = child.join_timeout(LIMIT).unwrap().unwrap();
            assert_eq!(child_pid, child.pid());
            let mut got = [queue.get_timeout(LIMIT).unwrap(), queue.get_timeout(LIMIT).unwrap()];
            got.sort();
            let us = std::process::id();
            let expected = [
                ("child".to_owned(), child_pid, us),
                ("grandchild".to_owned(), grandchild_pid, child_pid),
            ];
            assert_eq!(got, expected, "{method:?}, {below:?}");
            assert!(queue.is_empty() && us != child_pid && child_pid != grandchild_pid);
        }
    }
}

#[task]
fn make(permits: u32) -> Result<(Semaphore, Array<u8>), String> {
    let semaphore = Semaphore::new(permits).map_err(|error| error.to_string())?;
    let array = Array::from_slice(&[1, 2, 3]).map_err(|error| error.to_string())?;
    Ok((semaphore, array))
}

#[test]
fn objects_made_by_a_child_outlive_it() {
    for method in METHODS {
        let child = Process::new(make::task(3)).start_method(method).start().unwrap();
        let (semaphore, array) = child.join_timeout(LIMIT).unwrap().unwrap();
        assert_eq!(semaphore.value(), 3);
        assert_eq!(array.copy_to_vec(), [1, 2, 3]);
        // When the value is decoded a second time, it is the same object.
        let (again, _) = child.join().unwrap();
        again.release();
        assert_eq!(semaphore.value(), 4);
    }
}

#[task]
fn serve(requests: Connection<Value<u64>, Value<u64>>) -> Result<u32, SendError> {
    let mut served = 0;
    while let Ok(value) = requests.recv() {
        value.fetch_add(1);
        requests.send(&value)?;
        served += 1;
    }
    Ok(served)
}

#[test]
fn pr26_a_process_serves_over_a_pipe_until_it_is_closed() {
    let (ours, theirs) = pipe().unwrap();
    let child = Process::new(serve::task(theirs)).start().unwrap();
    let value = Value::new(0_u64).unwrap();
    for round in 1..=5 {
        ours.send(&value).unwrap();
        assert_eq!(ours.recv_timeout(LIMIT).unwrap().get(), round);
    }
    assert_eq!(value.get(), 5, "the same object came back");
    drop(ours);
    assert_eq!(child.join_timeout(LIMIT).unwrap().unwrap(), 5);
}

#[task]
fn fails_in_a_grandchild() -> Result<(), String> {
    let pool =
        ProcessPoolExecutor::builder().max_workers(2).build().map_err(|error| error.to_string())?;
    let lock = Lock::new().map_err(|error| error.to_string())?;
    let outcome = pool.submit(dies_with::task(lock)).result();
    pool.shutdown(true);
    match outcome {
        Err(TaskError::WorkerLost { .. }) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

#[task]
fn dies_with(lock: Lock) {
    std::mem::forget(lock.acquire());
    std::process::exit(3);
}

#[test]
fn rt09_a_lost_worker_of_a_child_prints_nothing() {
    let child = Process::new(fails_in_a_grandchild::task()).stderr(Stdio::piped()).start().unwrap();
    let mut noise = String::new();
    File::from(child.take_stderr().unwrap()).read_to_string(&mut noise).unwrap();
    child.join_timeout(LIMIT).unwrap().unwrap();
    assert_eq!(noise, "");
}
