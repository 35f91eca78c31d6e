//! Limits on the memory and the processor time of workers, and what happens to the tasks that
//! exceed them.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use executor::{Limits, Process, SharedBytes, prelude::*};

use crate::support::{self, *};

const MIB: usize = 1 << 20;
const LIMIT: usize = 96 * MIB;

fn limited(workers: usize) -> ProcessPoolExecutor {
    let builder = ProcessPoolExecutor::builder().max_workers(workers);
    builder.worker_memory_limit(LIMIT as u64).build().unwrap()
}

/// Returns the limit and the memory that an outcome reports.
#[track_caller]
fn exceeded<T: std::fmt::Debug>(outcome: Result<T, TaskError>) -> (u64, u64) {
    match outcome.unwrap_err() {
        TaskError::MemoryLimit { limit, peak, .. } => (limit, peak),
        other => panic!("{other:?}"),
    }
}

/// Fills this much memory and frees it.
#[task]
fn fill(bytes: usize) -> usize {
    let filled = vec![1_u8; bytes];
    std::hint::black_box(&filled).iter().step_by(4096).map(|byte| usize::from(*byte)).sum()
}

/// Fills memory piece by piece, without end.
#[task]
fn grow_slowly() {
    let mut all = Vec::new();
    loop {
        all.push(vec![1_u8; MIB / 2]);
        thread::sleep(Duration::from_millis(1));
    }
}

/// Fills this much memory and keeps it.
#[task]
fn leak(bytes: usize) -> u32 {
    std::mem::forget(std::hint::black_box(vec![1_u8; bytes]));
    std::process::id()
}

/// Returns the private memory of this worker, in bytes.
#[task]
fn private_memory() -> usize {
    private_memory_of("self")
}

fn private_memory_of(process: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

#[test]
fn x15_a_task_that_fills_memory_quickly_is_told_the_limit_and_what_there_was() {
    let _watchdog = watchdog();
    let pool = limited(1);
    let before = pool.submit(pid::task()).result().unwrap();
    // Below the size that the system refuses.
    let error = pool.submit(fill::task(400 * MIB)).result().unwrap_err();
    let text = error.to_string();
    let (limit, peak) = exceeded(Err::<(), _>(error));
    assert_eq!(limit, LIMIT as u64);
    assert!(peak > limit && peak < 600 << 20, "{peak}");
    assert_eq!(
        text,
        format!(
            "task `{}` lost its worker, process {before}: memory limit exceeded, {peak} bytes \
             used, {limit} allowed",
            fill::NAME
        )
    );
    assert_ne!(pool.submit(pid::task()).result().unwrap(), before, "it was replaced");
    assert_eq!(pool.submit(fill::task(20 * MIB)).result().unwrap(), 20 * MIB / 4096);
}

#[test]
fn x15_a_task_that_fills_memory_slowly_is_stopped_near_the_limit() {
    let _watchdog = watchdog();
    let (limit, peak) = exceeded(limited(1).submit(grow_slowly::task()).result());
    assert!(peak > limit, "{peak}");
}

#[test]
fn x15_an_allocation_that_is_far_too_large_is_refused() {
    let _watchdog = watchdog();
    let pool = limited(1);
    let error = pool.submit(fill::task(64 << 30)).result().unwrap_err();
    let text = error.to_string();
    let (limit, peak) = exceeded(Err::<(), _>(error));
    assert!(limit == LIMIT as u64 && 0 < peak && peak < limit, "{peak}");
    assert!(text.ends_with("; an allocation was refused that would have needed more"), "{text}");
    // An abort for another reason is none of memory.
    assert!(pool.submit(abort::task()).result().unwrap_err().is_worker_lost());
}

#[task]
fn abort() {
    std::process::abort()
}

/// Survives that it is refused memory.
#[task]
fn try_to_reserve(bytes: usize) -> bool {
    Vec::<u8>::new().try_reserve_exact(bytes).is_ok()
}

#[test]
fn x15_a_task_that_survives_a_refusal_goes_on() {
    let _watchdog = watchdog();
    let pool = limited(1);
    let worker = pool.submit(pid::task()).result().unwrap();
    assert!(!pool.submit(try_to_reserve::task(64 << 30)).result().unwrap());
    // Memory that is reserved and not used does not count.
    assert!(pool.submit(try_to_reserve::task(2 * LIMIT)).result().unwrap());
    assert_eq!(pool.submit(pid::task()).result().unwrap(), worker);
}

/// Survives that it is refused memory, and then aborts for another reason.
#[task]
fn survive_and_abort() {
    assert!(Vec::<u8>::new().try_reserve_exact(64 << 30).is_err());
    std::process::abort()
}

#[test]
fn x15_an_abort_after_a_refusal_that_was_survived_is_none_of_memory() {
    let _watchdog = watchdog();
    let pool = limited(1);
    let error = pool.submit(survive_and_abort::task()).result().unwrap_err();
    assert!(error.is_worker_lost(), "{error}");
    assert!(error.to_string().contains("SIGABRT"), "{error}");
}

/// Aborts as C code does, which does not say why.
#[task]
fn abort_in_c() {
    // SAFETY: ends this process.
    unsafe { libc::abort() }
}

#[test]
fn x15_a_refusal_is_not_the_reason_of_a_later_task_whatever_has_limited_memory() {
    let _watchdog = watchdog();
    let builder = || ProcessPoolExecutor::builder().max_workers(1);
    let limits = Limits::default().memory(8 << 30);
    for pool in [limited(1), builder().limits(limits).build().unwrap()] {
        assert!(!pool.submit(try_to_reserve::task(64 << 30)).result().unwrap());
        let error = pool.submit(abort_in_c::task()).result().unwrap_err();
        assert!(error.is_worker_lost(), "{error}");
        assert!(error.to_string().contains("SIGABRT"), "{error}");
    }
}

/// Reads all of its shared memory, and returns other shared memory.
#[task]
fn reverse(bytes: SharedBytes) -> SharedBytes {
    let mut reversed = SharedBytes::zeroed(bytes.len());
    let target = reversed.get_mut().expect("nobody else has it");
    target.iter_mut().zip(bytes.iter().rev()).for_each(|(to, from)| *to = *from);
    reversed
}

#[test]
fn x15_shared_memory_does_not_count() {
    let _watchdog = watchdog();
    let pool = limited(1);
    let worker = pool.submit(pid::task()).result().unwrap();
    let bytes = SharedBytes::copy_from_slice(&vec![7; 2 * LIMIT]);
    let reversed = pool.submit(reverse::task(bytes)).result().unwrap();
    assert!(reversed.len() == 2 * LIMIT && reversed.to_vec().iter().all(|byte| *byte == 7));
    assert_eq!(pool.submit(pid::task()).result().unwrap(), worker);
}

/// Runs a program that needs memory.
#[task]
fn program_that_fills(bytes: usize) -> bool {
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "of=/dev/null", "count=1", &format!("bs={bytes}")]);
    dd.stderr(std::process::Stdio::null()).status().expect("dd").success()
}

#[test]
fn x15_the_memory_of_programs_that_a_task_starts_does_not_count() {
    let _watchdog = watchdog();
    assert!(limited(1).submit(program_that_fills::task(2 * LIMIT)).result().unwrap());
}

/// Fills memory in a thread that goes on after the task, once the gate is open.
#[task]
fn grow_later(gate: &Path) -> u32 {
    let open = gate.join("grow");
    thread::spawn(move || {
        while !open.exists() {
            thread::sleep(Duration::from_millis(1));
        }
        std::mem::forget(std::hint::black_box(vec![1_u8; 2 * LIMIT]));
    });
    std::process::id()
}

#[test]
fn x15_a_task_is_not_to_blame_for_memory_that_was_filled_before_it_began() {
    let _watchdog = watchdog();
    for waits in [false, true] {
        let (pool, gate) = (limited(1), Gate::new());
        let worker = pool.submit(grow_later::task(gate.path())).result().unwrap();
        if waits {
            eventually("nobody looks at an idle worker", || {
                let before = switches(worker);
                // This sleep does not enforce an order: it is time in which somebody would look.
                thread::sleep(Duration::from_millis(200));
                switches(worker) == before
            });
        }
        File::create(gate.file("grow")).unwrap();
        // If nobody looks, the memory is there. Otherwise the worker may have ended already.
        eventually("it has grown", || {
            !runs(worker) || private_memory_of(&worker.to_string()) > LIMIT + LIMIT / 2
        });
        assert_ne!(pool.submit(pid::task()).result().unwrap(), worker, "{waits}");
    }
}

#[test]
fn x15_an_idle_worker_whose_threads_fill_memory_is_ended() {
    let _watchdog = watchdog();
    let (pool, gate) = (limited(1), Gate::new());
    let worker = pool.submit(grow_later::task(gate.path())).result().unwrap();
    File::create(gate.file("grow")).unwrap();
    eventually("nobody has given it a task, and it has ended", || !runs(worker));
    assert_ne!(pool.submit(pid::task()).result().unwrap(), worker);
    assert_eq!(pool.stats().failed.total(), 0, "no task is to blame");
}

#[test]
fn x15_a_worker_without_threads_of_tasks_is_left_alone_when_it_is_idle() {
    let _watchdog = watchdog();
    let pool = limited(1);
    let worker = pool.submit(pid::task()).result().unwrap();
    let looks = || switches(worker);
    eventually("nobody looks any more", || {
        let before = looks();
        thread::sleep(Duration::from_millis(1_500));
        looks() == before
    });
}

/// Returns how often the watcher of a worker has waited.
fn switches(worker: u32) -> u64 {
    // A new thread has the name of its starter for a moment.
    eventually("the watcher has its name", || waits_of_watcher(worker).is_some());
    waits_of_watcher(worker).expect("it runs")
}

fn waits_of_watcher(worker: u32) -> Option<u64> {
    let threads = fs::read_dir(format!("/proc/{worker}/task")).ok()?.flatten();
    let mut statuses =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    // The system cuts names off.
    let watcher = statuses.find(|status| status.starts_with("Name:\texecutor-watche"))?;
    let line = watcher.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
}

#[test]
fn x15_the_memory_of_a_worker_is_read_only_while_a_task_runs() {
    let _watchdog = watchdog();
    let (pool, gate) = (limited(1), Gate::new());
    let holds = pool.submit(hold::task(gate.path()));
    let worker = gate.wait_for(1)[0];
    let first = switches(worker);
    eventually("it is looked at", || switches(worker) >= first + 3);
    gate.open();
    holds.result().unwrap();
    eventually("nobody looks at an idle worker", || {
        let before = switches(worker);
        // This sleep does not enforce an order: it is time in which somebody would look.
        thread::sleep(Duration::from_millis(300));
        switches(worker) == before
    });
    // And it is looked at again.
    let gate = Gate::new();
    let _holds = pool.submit(hold::task(gate.path()));
    gate.wait_for(1);
    let first = switches(worker);
    eventually("it is looked at again", || switches(worker) >= first + 3);
    gate.open();
}

#[test]
fn x15_other_workers_and_tasks_sent_ahead_are_untouched() {
    let _watchdog = watchdog();
    let (pool, gate) = (limited(2), Gate::new());
    let holds = pool.submit(hold::task(gate.path()));
    let holder = gate.wait_for(1)[0];
    let outcomes: Vec<_> = (0..60)
        .map(|n| match n % 20 {
            7 => pool.submit(fill::task(4 * LIMIT)),
            _ => pool.submit(fill::task(4096)),
        })
        .collect();
    for (n, outcome) in outcomes.into_iter().enumerate() {
        match n % 20 {
            7 => _ = exceeded(outcome.result()),
            _ => assert_eq!(outcome.result().unwrap(), 1, "{n}"),
        }
    }
    gate.open();
    assert_eq!(holds.result().unwrap(), holder);
}

/// Comes to the gate, and fills memory until that ends it.
#[task]
fn fill_behind(gate: &Path) {
    come_to(gate);
    loop {
        std::mem::forget(std::hint::black_box(vec![1_u8; MIB]));
    }
}

#[test]
fn x15_a_broadcast_that_has_not_begun_is_not_to_blame_for_the_task_that_runs() {
    let _watchdog = watchdog();
    let (pool, gate) = (limited(1), Gate::new());
    let fills = pool.submit(fill_behind::task(gate.path()));
    let worker = gate.wait_for(1)[0];
    let broadcasts = [pool.broadcast(pid::task()), pool.broadcast(pid::task())];
    gate.open();
    exceeded(fills.result());
    for broadcast in broadcasts.into_iter().flatten() {
        match broadcast.result().unwrap_err() {
            TaskError::WorkerLost { pid, .. } => assert_eq!(pid, worker),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn x15_an_item_of_a_map_that_exceeds_the_limit_fails_alone() {
    let _watchdog = watchdog();
    let pool = limited(2);
    let sizes = (0..64).map(|n| if n == 40 { 4 * LIMIT } else { 4096 });
    let outcomes: Vec<_> = pool.map(fill::task, sizes).chunk_size(16).collect();
    assert_eq!(outcomes.len(), 64);
    for (n, outcome) in outcomes.into_iter().enumerate() {
        match n {
            40 => _ = exceeded(outcome),
            _ => assert_eq!(outcome.unwrap(), 1, "{n}"),
        }
    }
}

/// Exceeds the limit, unless it was tried before.
#[task]
fn fill_at_first(notes: &Path) -> bool {
    if File::create_new(notes.join("tried")).is_ok() {
        std::hint::black_box(vec![1_u8; 4 * LIMIT]);
    }
    true
}

#[test]
fn x15_retries_cover_the_limit_on_memory() {
    let _watchdog = watchdog();
    let (pool, gate) = (limited(1), Gate::new());
    let task = fill_at_first::task(gate.path()).retries(1).retry_delay(Duration::ZERO);
    assert!(pool.submit(task).result().unwrap());
    let task = fill::task(4 * LIMIT).retries(1).retry_delay(Duration::ZERO);
    let error = pool.submit(task).result().unwrap_err();
    assert_eq!(error.attempts(), 2);
    assert!(error.to_string().ends_with("allowed (after 2 attempts)"), "{error}");
    exceeded(Err::<(), _>(error));
}

#[test]
fn x15_a_task_that_exceeds_the_limit_again_and_again_is_given_up_as_poison() {
    let _watchdog = watchdog();
    let task = fill::task(4 * LIMIT).retries(20).retry_delay(Duration::ZERO);
    let error = limited(1).submit(task).result().unwrap_err();
    let TaskError::MemoryLimit { detail, .. } = &error else { panic!("{error}") };
    assert!(detail.is_poison && detail.task == fill::NAME, "{error}");
    assert_eq!((error.attempts(), detail.attempts), (3, 3));
    assert!(error.to_string().contains("(after 3 attempts; not tried again"), "{error}");
    assert!(error.to_string().contains("`poison_limit`"), "{error}");
}

#[task]
fn load(bytes: usize) {
    std::mem::forget(std::hint::black_box(vec![1_u8; bytes]));
}

#[test]
fn x15_an_initializer_that_exceeds_the_limit_breaks_the_pool_with_that_reason() {
    let _watchdog = watchdog();
    for bytes in [4 * LIMIT, 64 << 30] {
        let builder = ProcessPoolExecutor::builder().max_workers(1);
        let builder = builder.worker_memory_limit(LIMIT as u64).initializer(load::task(bytes));
        let error = builder.build().unwrap().submit(pid::task()).result().unwrap_err();
        assert!(error.to_string().contains("memory limit exceeded"), "{error}");
        assert!(matches!(error, TaskError::Broken(_)), "{error}");
    }
    let builder = ProcessPoolExecutor::builder().max_workers(1);
    let pool = builder.worker_memory_limit(LIMIT as u64).initializer(load::task(LIMIT / 4));
    pool.build().unwrap().submit(pid::task()).result().unwrap();
}

#[test]
fn x15_a_limit_that_no_worker_can_keep_breaks_the_pool_with_that_reason() {
    let _watchdog = watchdog();
    let pool = ProcessPoolExecutor::builder().max_workers(1).worker_memory_limit(1).build();
    let error = pool.unwrap().submit(pid::task()).result().unwrap_err();
    assert!(error.to_string().contains("before its first task, and may have 1"), "{error}");
}

#[test]
fn x15_a_limit_beyond_all_memory_limits_nothing() {
    let _watchdog = watchdog();
    let builder = ProcessPoolExecutor::builder().max_workers(1);
    let builder = builder.worker_memory_limit(u64::MAX).max_rss_growth(u64::MAX);
    let pool = builder.build().unwrap();
    assert_eq!(pool.submit(fill::task(MIB)).result().unwrap(), MIB / 4096);
}

#[test]
fn re13_a_worker_whose_memory_has_grown_is_replaced_between_tasks() {
    let _watchdog = watchdog();
    let builder = ProcessPoolExecutor::builder().max_workers(1);
    let pool = builder.max_rss_growth(16 * MIB as u64).build().unwrap();
    let mut pids = Vec::new();
    for _ in 0..300 {
        pids.push(pool.submit(leak::task(MIB)).result().unwrap());
        let memory = pool.submit(private_memory::task()).result().unwrap();
        assert!(memory < 32 * MIB, "{memory}");
    }
    pids.dedup();
    // Each worker takes about 17 of them.
    assert!((10..=40).contains(&pids.len()), "{pids:?}");
}

#[test]
fn re13_all_tasks_of_a_burst_succeed_while_their_workers_are_replaced() {
    let _watchdog = watchdog();
    for (workers, chunk) in [(1, 1), (2, 16), (3, 200)] {
        let builder = ProcessPoolExecutor::builder().max_workers(workers);
        let pool = builder.max_rss_growth(4 * MIB as u64).build().unwrap();
        let futures: Vec<_> = (0..100).map(|_| pool.submit(leak::task(MIB / 4))).collect();
        let mut pids: Vec<_> = futures.into_iter().map(|future| future.result().unwrap()).collect();
        let sizes = (0..200).map(|_| MIB / 4);
        pids.extend(pool.map(leak::task, sizes).chunk_size(chunk).map(Result::unwrap));
        assert_eq!(pids.len(), 300);
        pids.sort_unstable();
        pids.dedup();
        assert!(pids.len() >= 10, "{workers} {chunk}: {pids:?}");
    }
}

#[test]
fn x14_what_the_initializer_has_loaded_is_no_growth() {
    let _watchdog = watchdog();
    let builder = ProcessPoolExecutor::builder().max_workers(1).max_rss_growth(8 * MIB as u64);
    let pool = builder.initializer(load::task(64 * MIB)).build().unwrap();
    let pids = [(); 5].map(|()| pool.submit(pid::task()).result().unwrap());
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    let [leaked, after] = [10 * MIB, 0].map(|bytes| pool.submit(leak::task(bytes)).result());
    assert_eq!(leaked.unwrap(), pids[0]);
    assert_ne!(after.unwrap(), pids[0]);
}

fn with_limits(limits: Limits) -> ProcessPoolExecutor {
    ProcessPoolExecutor::builder().max_workers(1).limits(limits).build().unwrap()
}

/// Uses this much processor time.
#[task]
fn burn(millis: u64) -> u32 {
    let used = || rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let as_millis =
        |time: rustix::time::Timespec| time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000;
    let begin = as_millis(used());
    while as_millis(used()) < begin + millis {
        std::hint::spin_loop();
    }
    std::process::id()
}

#[test]
fn x15_the_limit_on_processor_time_is_one_for_each_task() {
    let _watchdog = watchdog();
    let pool = with_limits(Limits::default().cpu_time(Duration::from_secs(1)));
    // Together they use more than one of them may.
    let pids = [(); 4].map(|()| pool.submit(burn::task(600)).result().unwrap());
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    let error = pool.submit(support::spin::task(Gate::new().path())).result().unwrap_err();
    assert!(error.is_worker_lost(), "{error}");
    let text = "(the task used more processor time than 1s, see `Limits::cpu_time`)";
    assert!(error.to_string().ends_with(text), "{error}");
    assert_ne!(pool.submit(pid::task()).result().unwrap(), pids[0]);
}

#[test]
fn x15_a_finalizer_may_use_as_much_processor_time_as_a_task() {
    let _watchdog = watchdog();
    let builder = ProcessPoolExecutor::builder().max_workers(1).finalizer(burn::task(1000));
    let pool = builder.limits(Limits::default().cpu_time(Duration::from_secs(1))).build().unwrap();
    // The second one leaves less of its time than the finalizer needs.
    let [first, second] = [600; 2].map(|millis| pool.submit(burn::task(millis)).result().unwrap());
    assert_eq!(first, second);
    pool.shutdown(true);
    let finalized: Vec<_> =
        pool.finalizer_results::<burn>().into_iter().map(Result::unwrap).collect();
    assert_eq!(finalized, [first]);
}

/// Opens the file this many times. Returns how many it got.
#[task]
fn open_files(count: usize) -> usize {
    let files: Vec<_> = (0..count).map_while(|_| File::open("/dev/null").ok()).collect();
    files.len()
}

#[task]
fn make(bytes: usize) -> Vec<u8> {
    vec![3; bytes]
}

/// Writes a file of this size. Returns the error.
#[task]
fn write(file: &Path, bytes: usize) -> Option<String> {
    // SAFETY: ignores the signal that would end the worker, so that the call fails.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    fs::write(file, vec![0; bytes]).err().map(|error| error.kind().to_string())
}

#[test]
fn x15_workers_have_the_limits_of_the_system_and_work_within_them() {
    let _watchdog = watchdog();
    let (limits, gate) = (Limits::default().open_files(40).file_size(64 << 10), Gate::new());
    let pool = with_limits(limits);
    let got = pool.submit(open_files::task(100)).result().unwrap();
    assert!((10..40).contains(&got), "{got}");
    let worker = pool.submit(pid::task()).result().unwrap();
    let error = pool.submit(write::task(&gate.file("large"), MIB)).result().unwrap();
    assert_eq!(error.as_deref(), Some("file too large"));
    // A result that would need a larger file comes in parts.
    for bytes in [10, 300 << 10, 9 * MIB] {
        assert_eq!(pool.submit(make::task(bytes)).result().unwrap(), vec![3; bytes]);
    }
    let bytes = vec![1; 5 * MIB];
    assert_eq!(pool.submit(count::task(&bytes)).result().unwrap(), 5 * MIB);
    assert_eq!(pool.submit(pid::task()).result().unwrap(), worker);
}

#[task]
fn count(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == 1).count()
}

#[test]
fn x15_the_systems_limit_on_memory_is_told_as_one() {
    let _watchdog = watchdog();
    let pool = with_limits(Limits::default().memory(200 << 20));
    assert_eq!(pool.submit(fill::task(20 * MIB)).result().unwrap(), 20 * MIB / 4096);
    let (limit, peak) = exceeded(pool.submit(fill::task(500 * MIB)).result());
    assert!(limit == 200 << 20 && peak < limit, "{limit} {peak}");
}

#[test]
fn x15_of_two_limits_on_memory_each_is_kept() {
    let _watchdog = watchdog();
    let high = Limits::default().memory(64 << 30);
    let builder = ProcessPoolExecutor::builder().max_workers(1).worker_memory_limit(LIMIT as u64);
    let pool = builder.limits(high).build().unwrap();
    assert!(
        !pool.submit(try_to_reserve::task(2 << 30)).result().unwrap(),
        "far above the lower one"
    );
    assert!(pool.submit(try_to_reserve::task(LIMIT / 2)).result().unwrap());
}

/// Asks for limits where the system neither tells nor sets any. Returns what is said about each.
#[task]
fn ask_for_limits_in_a_sandbox() -> Vec<(String, String)> {
    forbid_calls(&[libc::SYS_prlimit64, libc::SYS_getrlimit, libc::SYS_setrlimit]);
    let builder = || ProcessPoolExecutor::builder().max_workers(1);
    let limits = Limits::default;
    let second = Duration::from_secs(1);
    let mut said: Vec<_> = [
        ("nothing", builder()),
        ("memory", builder().worker_memory_limit(LIMIT as u64)),
        ("`memory`", builder().limits(limits().memory(LIMIT as u64))),
        ("`cpu_time`", builder().limits(limits().cpu_time(second))),
        ("`open_files`", builder().limits(limits().open_files(100))),
        ("`file_size`", builder().limits(limits().file_size(1 << 20))),
    ]
    .map(|(name, builder)| {
        let pool = builder.build().unwrap();
        let outcome = pool.submit(echo::task(1)).result();
        (name.to_owned(), outcome.map_or_else(|error| error.to_string(), |_| "works".into()))
    })
    .into();
    let process = Process::new(echo::task(1)).limits(limits().cpu_time(second)).start();
    let outcome = process.map_err(|error| error.to_string()).and_then(|process| {
        process.join().map(|_| "works".into()).map_err(|error| error.to_string())
    });
    said.push(("`cpu_time`".into(), outcome.unwrap_or_else(|error| error)));
    said
}

#[test]
fn x15_a_limit_that_the_system_does_not_set_is_an_error_and_no_panic() {
    let _watchdog = watchdog();
    let said = pool(1).submit(ask_for_limits_in_a_sandbox::task()).result().unwrap();
    assert_eq!(said[0].1, "works");
    for (name, text) in &said[1..] {
        assert!(text.contains(name) && text.contains("Operation not permitted"), "{name}: {text}");
    }
}

#[test]
fn x15_limits_that_make_no_sense_are_refused_by_name() {
    let builder = ProcessPoolExecutor::builder;
    let limits = Limits::default;
    for (builder, name) in [
        (builder().worker_memory_limit(0), "worker_memory_limit"),
        (builder().max_rss_growth(0), "max_rss_growth"),
        (builder().limits(limits().cpu_time(Duration::ZERO)), "cpu_time"),
        (builder().limits(limits().memory(0)), "`memory`"),
        (builder().limits(limits().open_files(0)), "open_files"),
    ] {
        let error = builder.build().unwrap_err();
        assert!(matches!(error, executor::BuildError::Invalid(_)), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}
