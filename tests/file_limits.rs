//! A limit on the size of files (`ulimit -f`: online judges, sandboxes, batch systems) makes calls
//! fail, but never ends the program.
//!
//! The system sends a signal to a process whose file grows beyond the limit, and all shared memory
//! of the library is such files. So this program runs under several limits. In itself and in
//! workers it makes each kind of object and calls every function that makes the object's memory
//! grow.

#[path = "support/harness.rs"]
mod harness;

use std::{
    fmt::Debug,
    io,
    os::unix::{fs::MetadataExt, process::ExitStatusExt},
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, Stdio},
    time::Duration,
};

use executor::{
    Array, Barrier, BoundedSemaphore, Condition, Event, JoinableQueue, Limits, Lock, OnLost, Pool,
    Process, Queue, RLock, RawArray, RawValue, Semaphore, ShareableList, SharedBytes, SharedMemory,
    SimpleQueue, StartMethod, Value, pipe, prelude::*,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Names the program that this file runs as under a limit.
const PROGRAM: &str = "EXECUTOR_TEST_PROGRAM";

const TESTS: &[(&str, fn())] = &[
    (
        "under_a_limit_on_file_sizes_every_call_succeeds_or_returns_an_error",
        every_call_is_ok_or_an_error,
    ),
    ("under_a_limit_on_file_sizes_everything_that_fits_works", what_fits_works),
    ("a_limit_on_file_sizes_lowered_in_a_task_fails_only_that_tasks_calls", lowered_in_a_task),
    ("a_queue_that_carried_many_bytes_accepts_items_under_a_limit", much_went_through_a_queue),
    ("backlogs_of_a_requeuing_queue_reuse_the_same_memory", backlogs_that_are_requeued),
    ("the_length_of_a_queues_file_follows_its_content_and_not_its_traffic", as_long_as_its_content),
    (
        "items_put_and_got_by_several_processes_do_not_lengthen_a_queues_file",
        several_processes_put_and_get,
    ),
    ("a_result_that_exceeds_the_limit_on_file_sizes_is_an_error", a_result_is_kept_inside),
    ("a_storm_of_timer_signals_does_not_stop_an_allocation", a_storm_of_timers),
];

fn main() {
    executor::init();
    match std::env::var(PROGRAM).as_deref() {
        Ok("every call") => tries_every_call(),
        Ok("timers") => allocates_in_a_storm(),
        _ => harness::run(TESTS),
    }
}

/// Runs this file under a limit of so many blocks of 1024 bytes. Returns the lines it printed. A
/// signal is a failure.
#[track_caller]
fn play(program: &str, limit: &str, transport: &str) -> Vec<(String, String)> {
    let file = std::env::current_exe().unwrap();
    let mut command = Command::new("bash");
    command.args(["-c", &format!("ulimit -f {limit}; exec \"$0\"")]).arg(file);
    command.env(PROGRAM, program).env("EXECUTOR_TRANSPORT", transport).env("RUST_BACKTRACE", "0");
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.signal(), None, "{limit}\n{stdout}\n{stderr}");
    assert!(output.status.success(), "{limit}: {}\n{stdout}\n{stderr}", output.status);
    let lines = stdout.lines().map(|line| line.split_once(" => ").expect("a name and an outcome"));
    lines.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())).collect()
}

#[track_caller]
fn assert_ok_or_told(limit: &str, lines: &[(String, String)]) {
    for (name, outcome) in lines {
        let told = outcome.contains("the limit on file sizes is") && outcome.contains("ulimit -f");
        assert!(outcome == "ok" || told, "under `ulimit -f {limit}`, {name}: {outcome}");
    }
}

fn every_call_is_ok_or_an_error() {
    for limit in ["0", "1", "64", "512", "10000", "unlimited"] {
        for transport in ["ring", "ipc"] {
            let lines = play("every call", limit, transport);
            assert_ok_or_told(limit, &lines);
            assert!(lines.len() >= 35, "all were tried: {}", lines.len());
            if limit == "unlimited" {
                assert!(lines.iter().all(|(_, outcome)| outcome == "ok"), "{lines:?}");
            }
        }
    }
}

fn what_fits_works() {
    let worked = |limit: &str, names: &[&str]| {
        let lines = play("every call", limit, "ring");
        for name in names {
            let tried = lines.iter().find(|(other, _)| other == name);
            let (_, outcome) = tried.unwrap_or_else(|| panic!("{name} was not tried: {lines:#?}"));
            assert_eq!(outcome, "ok", "under `ulimit -f {limit}`, {name}");
        }
    };
    let pool = ["a pool", "a pool: small", "a pool: large argument", "a pool: large result"];
    worked("512", &["a lock", "a small queue", "a process", "in a worker: a lock"]);
    worked("512", &pool);
    worked("10000", &pool);
    worked(
        "10000",
        &["an array", "shared bytes", "a queue: large item", "a process: large result"],
    );
}

/// Makes the call and prints its outcome.
fn attempt<T, E: Debug>(name: &str, call: impl FnOnce() -> Result<T, E>) -> Option<T> {
    let outcome = catch_unwind(AssertUnwindSafe(call));
    let (line, value) = match outcome {
        Ok(Ok(value)) => ("ok".to_owned(), Some(value)),
        Ok(Err(error)) => (format!("{error:?}").replace('\n', " "), None),
        Err(panic) => (format!("panicked: {:?}", panic.downcast_ref::<String>()), None),
    };
    println!("{name} => {line}");
    value
}

const LARGE: usize = 1_000_000;

/// Encoded in one piece. Encoding every byte separately takes a second in an unoptimized build.
#[derive(serde::Serialize, serde::Deserialize)]
struct Bytes(#[serde(with = "serde_bytes")] Vec<u8>);

fn bytes(len: usize) -> Bytes {
    Bytes(vec![7; len])
}

fn objects(place: &str) {
    let name = |object: &str| format!("{place}{object}");
    attempt(&name("a lock"), Lock::new);
    attempt(&name("an rlock"), RLock::new);
    attempt(&name("a semaphore"), || Semaphore::new(1));
    attempt(&name("a bounded semaphore"), || BoundedSemaphore::new(1));
    attempt(&name("a condition"), Condition::new);
    attempt(&name("an event"), Event::new);
    attempt(&name("a barrier"), || Barrier::new(2));
    attempt(&name("a value"), || Value::new(7_u64));
    attempt(&name("a raw value"), || RawValue::new(7_u64));
    attempt(&name("a small array"), || Array::<u8>::zeroed(10));
    attempt(&name("an array"), || Array::<u8>::zeroed(LARGE));
    attempt(&name("an array of a slice"), || Array::from_slice(&vec![7_u64; LARGE]));
    attempt(&name("a raw array"), || RawArray::<u8>::zeroed(LARGE));
    attempt(&name("memory"), || SharedMemory::create(LARGE));
    let unique = format!("limits-{}-{place}", std::process::id()).replace(' ', "-");
    attempt(&name("named memory"), || {
        let memory = SharedMemory::create_named(&unique, LARGE)?;
        SharedMemory::attach(&unique)?;
        drop(memory);
        io::Result::Ok(())
    });
    attempt(&name("a list"), || ShareableList::new(["x".repeat(LARGE)]));
    attempt(&name("a named list"), || ShareableList::create_named(&unique, ["x".repeat(LARGE)]));
    attempt(&name("shared bytes"), || SharedBytes::try_zeroed(LARGE));
    attempt(&name("a copy in shared bytes"), || SharedBytes::try_copy_from_slice(&vec![7; LARGE]));
    attempt(&name("empty shared bytes"), || SharedBytes::try_zeroed(0));
    let queue = attempt(&name("a queue"), Queue::<Bytes>::unbounded);
    if let Some(queue) = queue {
        attempt(&name("a small queue"), || {
            for _ in 0..100 {
                queue.put(bytes(100)).map_err(|error| format!("{error:?}"))?;
                queue.get().map_err(|error| format!("{error:?}"))?;
            }
            Ok::<(), String>(())
        });
        attempt(&name("a queue: large item"), || queue.put(bytes(LARGE)));
        while queue.try_get().is_ok() {}
        attempt(&name("a queue: a backlog"), || {
            (0..100).try_for_each(|_| queue.put(bytes(10_000)))
        });
    } else {
        attempt(&name("a small queue"), Queue::<u8>::unbounded);
    }
    attempt(&name("a joinable queue"), || {
        JoinableQueue::<Bytes>::unbounded()?.put(bytes(LARGE)).map_err(io::Error::other)
    });
    attempt(&name("a simple queue"), || {
        SimpleQueue::<Bytes>::new()?.put(bytes(LARGE)).map_err(io::Error::other)
    });
    attempt(&name("a pipe"), || {
        let (one, other) = pipe::<Bytes, Bytes>()?;
        let receives = std::thread::spawn(move || other.recv().map(|bytes| bytes.0.len()));
        one.send(&bytes(LARGE)).map_err(io::Error::other)?;
        receives.join().unwrap().map_err(io::Error::other)
    });
}

#[task]
fn len(bytes: Bytes) -> usize {
    bytes.0.len()
}

#[task]
fn make(len: usize) -> Bytes {
    bytes(len)
}

#[task]
fn tries_objects(place: String) {
    objects(&place);
}

/// Tries everything that the library offers, and prints one line for each call.
fn tries_every_call() {
    objects("");
    if let Some(pool) = attempt("a pool", || {
        let pool = ProcessPoolExecutor::builder()
            .max_workers(1)
            .build()
            .map_err(|error| format!("{error:?}"))?;
        pool.submit(len::task(bytes(0))).result().map_err(|error| format!("{error:?}"))?;
        Ok::<_, String>(pool)
    }) {
        attempt("a pool: small", || pool.submit(len::task(bytes(10))).result());
        attempt("a pool: large argument", || pool.submit(len::task(bytes(LARGE))).result());
        attempt("a pool: large result", || pool.submit(make::task(2 * LARGE)).result());
        attempt("a pool: map", || {
            pool.map(make::task, [100_000; 20]).collect::<Result<Vec<_>, _>>()
        });
        attempt("a pool: objects", || {
            pool.submit(tries_objects::task("in a worker: ".into())).result()
        });
    }
    attempt("Python's pool", || {
        let pool = Pool::builder().processes(1).build().map_err(|error| format!("{error:?}"))?;
        pool.apply(len::task(bytes(LARGE))).map_err(|error| format!("{error:?}"))
    });
    for (method, name) in
        [(StartMethod::Spawn, "a process"), (StartMethod::ForkServer, "of a fork server")]
    {
        let run = |what: &str, run: &dyn Fn() -> Result<(), String>| {
            attempt(&format!("{name}{what}"), run)
        };
        let context = || executor::Context::new(method);
        run("", &|| {
            let child = context()
                .process(len::task(bytes(10)))
                .start()
                .map_err(|error| format!("{error:?}"))?;
            child.join().map(drop).map_err(|error| format!("{error:?}"))
        });
        run(": large argument", &|| {
            let child = context()
                .process(len::task(bytes(LARGE)))
                .start()
                .map_err(|error| format!("{error:?}"))?;
            child.join().map(drop).map_err(|error| format!("{error:?}"))
        });
        run(": large result", &|| {
            let child = context()
                .process(make::task(LARGE))
                .start()
                .map_err(|error| format!("{error:?}"))?;
            child.join().map(drop).map_err(|error| format!("{error:?}"))
        });
        run(": objects", &|| {
            let body = tries_objects::task(format!("in {name}: "));
            let child = context().process(body).start().map_err(|error| format!("{error:?}"))?;
            child.join().map_err(|error| format!("{error:?}"))
        });
    }
}

#[task]
#[expect(clippy::disallowed_methods, reason = "nobody refuses the call here")]
fn lowers_its_limit() -> Result<String, String> {
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: Some(1000), maximum })
        .map_err(|error| format!("{error:?}"))?;
    let outcome =
        Array::<u8>::zeroed(LARGE).map(|array| array.len()).map_err(|error| format!("{error:?}"));
    setrlimit(Resource::Fsize, Rlimit { current: maximum, maximum })
        .map_err(|error| format!("{error:?}"))?;
    Ok(format!("{outcome:?}"))
}

#[task]
fn id() -> u32 {
    std::process::id()
}

fn lowered_in_a_task() {
    let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    let before = pool.submit(id::task()).result().unwrap();
    let outcome = pool.submit(lowers_its_limit::task()).result().unwrap();
    assert!(outcome.contains("the limit on file sizes is 1000 bytes"), "{outcome}");
    assert_eq!(pool.submit(id::task()).result().unwrap(), before, "the same worker goes on");
}

#[task]
fn put(queue: Queue<Bytes>) -> String {
    queue.put(bytes(300_000)).map_or_else(|error| format!("{error:?}"), |()| "put".into())
}

fn much_went_through_a_queue() {
    let queue = Queue::<Bytes>::unbounded().unwrap();
    for _ in 0..12 {
        queue.put(bytes(10 << 20)).unwrap();
        queue.get().unwrap();
    }
    let limits = Limits::default().file_size(64 << 20);
    let outcome = Process::new(put::task(queue.clone())).limits(limits).start().unwrap().join();
    assert_eq!(outcome.unwrap(), "put");
    assert_eq!(queue.get().unwrap().0.len(), 300_000);
}

/// Sends backlogs of small items that are kept until they are done. Each backlog has more items
/// than the queue has claims.
fn backlogs_that_are_requeued() {
    let queue = JoinableQueue::<Bytes>::unbounded().unwrap().on_lost(OnLost::Requeue);
    let lengths = (0..60).map(|_| {
        (0..500).for_each(|_| queue.put(bytes(100)).unwrap());
        (0..500).for_each(|_| drop(queue.get_unfinished().unwrap()));
        queue_file().0
    });
    let lengths: Vec<u64> = lengths.collect();
    assert!(lengths[59] <= 2 * lengths[0], "{lengths:?}");
}

/// Returns the length of the only queue's file and the amount of memory it uses.
fn queue_file() -> (u64, u64) {
    let mut files = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = std::fs::read_link(&path).ok()?;
        name.to_string_lossy()
            .starts_with("/memfd:executor-queue")
            .then(|| std::fs::metadata(path).unwrap())
    });
    let file = files.next().expect("a queue");
    assert!(files.next().is_none(), "only one");
    (file.len(), file.blocks() * 512)
}

/// A small seeded generator: splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit) as usize
    }
}

/// Scales the loops below: ten items for each kind of item and each round. `EXECUTOR_ROUNDS=1000`
/// sends ten thousand items.
fn rounds() -> usize {
    std::env::var("EXECUTOR_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(30)
}

fn as_long_as_its_content() {
    type Len = fn(&mut Random) -> usize;
    let kinds: [(&str, Len); 4] = [
        ("one size", |_| 700_000),
        ("large ones", |random| 270_000 + random.below(5_000_000)),
        ("small ones in bursts", |random| random.below(20_000)),
        ("all sizes", |random| {
            [100, 10_000, 300_000, 3_000_000][random.below(4)] + random.below(100)
        }),
    ];
    for (name, len) in kinds {
        let queue = Queue::<Bytes>::unbounded().unwrap();
        let mut random = Random(7);
        let (mut inside, mut most, mut longest, mut traffic) = (Vec::new(), 0, 0, 0);
        let mut sum = 0;
        for round in 0..rounds() * 10 {
            // The queue fills up and becomes empty in turn.
            let fills = round / 50 % 2 == 0;
            if inside.is_empty()
                || (random.below(10) < if fills { 8 } else { 2 } && inside.len() < 20)
            {
                let item = len(&mut random);
                queue.put(bytes(item)).unwrap();
                inside.push(item);
                sum += item;
                traffic += item;
            } else {
                let item = inside.remove(0);
                assert_eq!(queue.get().unwrap().0.len(), item);
                sum -= item;
            }
            most = most.max(sum);
            longest = longest.max(queue_file().0);
        }
        println!(
            "{name}: {traffic} bytes went through, at most {most} at a time, in a file of {longest}"
        );
        // Besides its content, the file contains gaps between items, memory kept for the next item,
        // and the rings.
        assert!(longest <= 2 * most as u64 + (12 << 20), "{name}: {longest} for {most}");
        for item in inside {
            assert_eq!(queue.get().unwrap().0.len(), item);
        }
        assert!(queue_file().1 <= 10 << 20, "{name}: {:?} are kept", queue_file());
    }
}

#[task]
fn puts(queue: Queue<Bytes>, seed: u64, count: usize) {
    let mut random = Random(seed);
    for _ in 0..count {
        queue
            .put(bytes(
                [1_000, 20_000, 400_000, 1_000_000][random.below(4)] + random.below(100_000),
            ))
            .unwrap();
    }
}

#[task]
fn gets(queue: Queue<Bytes>) -> u64 {
    std::iter::from_fn(|| queue.get().ok())
        .map(|bytes| {
            assert!(bytes.0.iter().all(|byte| *byte == 7), "another one's memory");
            1
        })
        .sum()
}

fn several_processes_put_and_get() {
    let count = rounds() * 3;
    let queue = Queue::<Bytes>::bounded(8).unwrap();
    let start = |task| Process::new(task).start().unwrap();
    let producers: Vec<_> =
        (0..3).map(|seed| start(puts::task(queue.clone(), seed, count))).collect();
    let consumers: Vec<_> =
        (0..3).map(|_| Process::new(gets::task(queue.clone())).start().unwrap()).collect();
    producers.into_iter().for_each(|producer| producer.join().unwrap());
    queue.close();
    let got: u64 = consumers.into_iter().map(|consumer| consumer.join().unwrap()).sum();
    assert_eq!(got, 3 * count as u64);
    // At most eight items are in the queue, and six are held by the producers and consumers.
    let (len, _) = queue_file();
    println!("{got} items went through a file of {len} bytes");
    assert!(len <= 2 * 14 * 1_100_000 + (12 << 20), "{len}");
}

#[task]
fn lowers_for_good(len: usize) -> Bytes {
    setrlimit(Resource::Fsize, Rlimit { current: Some(1000), maximum: Some(1000) }).unwrap();
    bytes(len)
}

fn a_result_is_kept_inside() {
    let error = Process::new(lowers_for_good::task(LARGE)).start().unwrap().join().err().unwrap();
    let text = error.to_string();
    assert!(text.contains("the limit on file sizes is 1000 bytes"), "{text}");
    let small = Process::new(lowers_for_good::task(10)).start().unwrap().join();
    assert_eq!(small.unwrap().0, [7; 10]);
}

fn a_storm_of_timers() {
    assert_eq!(play("timers", "unlimited", "ring"), [("allocated".to_owned(), "ok".to_owned())]);
}

extern "C" fn on_alarm(_: libc::c_int) {}

/// Makes an allocation that takes far longer than the timer's period. On kernels before version 6,
/// each signal undoes the part of the allocation that was done.
fn allocates_in_a_storm() {
    let period = libc::timeval { tv_sec: 0, tv_usec: 1000 };
    let timer = libc::itimerval { it_interval: period, it_value: period };
    // SAFETY: installs a handler that does nothing, and sets a timer.
    unsafe {
        libc::signal(libc::SIGALRM, on_alarm as *const () as libc::sighandler_t);
        assert_eq!(libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()), 0);
    }
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = is_done.recv_timeout(Duration::from_secs(60)).map_err(|_| std::process::abort());
    });
    attempt("allocated", || Array::<u8>::zeroed(256 << 20));
    done.send(()).unwrap();
}
