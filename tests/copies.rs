//! Copies of a process that tasks, callbacks and hooks make by `fork`, and that return from them;
//! copies that use the locks and the other objects of the original.

mod support;

use std::{
    fs::{self, File},
    future::Future as _,
    io::{Read as _, Write as _},
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use executor::{
    Context, Event, Fork, Lock, Process, StartMethod, Value,
    manager::{Dict, List, Manager, ManagerError},
    prelude::*,
};
use support::{Gate, alone, echo, eventually, hold, pid, pool, runs, watchdog};

executor::test_support!();

/// What the copy does before it returns.
const RETURNS: u8 = 0;
const PANICS: u8 = 1;
const USES_THE_LIBRARY: u8 = 2;

/// Forks. Both processes return from this function: the original with its own pid and that of the
/// copy, the copy with zeros.
fn copy(by_library: bool, way: u8) -> (u32, u32) {
    // The copy writes to the pipe once it has done all it was to do. An assertion that fails in the
    // copy is not reported, and would end the copy as `PANICS` does. The missing message shows the
    // difference.
    let (mut hears, mut says) = std::io::pipe().unwrap();
    let copy = if by_library {
        // SAFETY: the copy uses only its own memory and threads, and glibc's allocator survives a
        // fork.
        match unsafe { executor::fork() }.unwrap() {
            Fork::Parent(copy) => copy,
            Fork::Child => 0,
        }
    } else {
        // SAFETY: as above.
        u32::try_from(unsafe { libc::fork() }).expect("a copy can be made")
    };
    if copy == 0 {
        if way == USES_THE_LIBRARY {
            let own = support::pool(1);
            assert_eq!(own.submit(echo::task(5)).result().unwrap(), 5);
            let child = Process::new(echo::task(6)).start().unwrap();
            assert_eq!(child.join().unwrap(), 6);
            let mut says = says.try_clone().unwrap();
            executor::at_exit(0, move || says.write_all(b"a copy has no exit hooks").unwrap());
        }
        says.write_all(&[way]).unwrap();
        if way == PANICS {
            std::panic::resume_unwind(Box::new("in a copy"));
        }
        return (0, 0);
    }
    drop(says);
    let mut said = vec![u8::MAX];
    if way == USES_THE_LIBRARY {
        // Read to the end, which comes after the exit hooks would have run.
        said.clear();
        hears.read_to_end(&mut said).unwrap();
    } else {
        // Wait no longer than this, so that the copy and this process return at the same time.
        hears.read_exact(&mut said).expect("the copy has done what it was to do");
    }
    assert_eq!(said, [way], "{}", said.escape_ascii());
    (std::process::id(), copy)
}

#[task]
fn forks(by_library: bool, way: u8) -> (u32, u32) {
    copy(by_library, way)
}

/// Returns a result that is sent through shared memory. The copy must not take or release any of
/// that memory.
#[task]
fn forks_and_returns_much(len: usize) -> Vec<u8> {
    let (own, _) = copy(false, RETURNS);
    vec![u8::from(own != 0); len]
}

#[task]
fn forks_and_fails() -> Result<(), String> {
    match copy(false, RETURNS).0 {
        0 => Err("the copy fails".to_owned()),
        _ => Ok(()),
    }
}

#[task]
async fn forks_in_async(by_library: bool) -> (u32, u32) {
    copy(by_library, RETURNS)
}

/// Forks in a thread of the worker's runtime. The runtime goes on after this task.
#[task]
async fn forks_in_a_spawned_future() -> (u32, u32) {
    tokio::spawn(async { copy(false, RETURNS) }).await.unwrap()
}

#[task]
fn forks_now_and_then(number: u32) -> u32 {
    if number % 500 == 7 {
        copy(false, RETURNS);
    }
    number
}

/// Forks while there is a reusable executor. Returns the pids of its worker before and after, and
/// of the worker that the copy gets when it asks for a reusable executor.
#[task]
fn forks_with_a_reusable_executor() -> [u32; 3] {
    let kept = executor::reusable().unwrap();
    let before = kept.submit(pid::task()).result().unwrap();
    let (mut hears, mut says) = std::io::pipe().unwrap();
    // SAFETY: the copy uses only its own memory and threads, and glibc's allocator survives a fork.
    if unsafe { libc::fork() } == 0 {
        let own = executor::reusable().unwrap();
        says.write_all(&own.submit(pid::task()).result().unwrap().to_ne_bytes()).unwrap();
        // SAFETY: it only ends the copy.
        unsafe { libc::_exit(0) };
    }
    drop(says);
    let mut of_copy = [0; 4];
    hears.read_exact(&mut of_copy).expect("the copy has an executor of its own");
    let after = executor::reusable().unwrap().submit(pid::task()).result().unwrap();
    [before, after, u32::from_ne_bytes(of_copy)]
}

#[test]
fn x10_a_copy_of_a_process_has_a_reusable_executor_of_its_own() {
    let (_watchdog, _alone) = (watchdog(), alone());
    let pids = pool(1).submit(forks_with_a_reusable_executor::task()).result().unwrap();
    assert_eq!(pids[0], pids[1], "the original's worker works on");
    assert_ne!(pids[0], pids[2]);
    pids.into_iter().for_each(assert_copy_ends);
}

fn assert_copy_ends(pid: u32) {
    eventually("the copy ends", || !runs(pid));
}

#[test]
fn a_copy_that_returns_from_a_task_ends_and_the_worker_goes_on() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let worker = pool.submit(pid::task()).result().unwrap();
    for by_library in [false, true] {
        for way in [RETURNS, PANICS, USES_THE_LIBRARY] {
            let (own, copy) = pool.submit(forks::task(by_library, way)).result().unwrap();
            assert_eq!(own, worker, "the answer is the worker's");
            assert_copy_ends(copy);
        }
        let (own, copy) = pool.submit(forks_in_async::task(by_library)).result().unwrap();
        assert_eq!(own, worker);
        assert_copy_ends(copy);
    }
    let (own, copy) = pool.submit(forks_in_a_spawned_future::task()).result().unwrap();
    assert_eq!(own, worker);
    assert_copy_ends(copy);
    for _ in 0..100 {
        pool.submit(forks_and_fails::task()).result().unwrap();
        // Together the results exceed what the worker may hold in shared memory at a time.
        assert_eq!(
            pool.submit(forks_and_returns_much::task(100_000)).result().unwrap(),
            [1; 100_000]
        );
    }
    assert_eq!(pool.submit(pid::task()).result().unwrap(), worker);
}

#[test]
fn no_task_is_lost_behind_a_task_that_forks() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let results = pool.map(forks_now_and_then::task, 0..20_000).map(Result::unwrap);
    assert!(results.eq(0..20_000));
    let futures: Vec<_> =
        (0..2_000).map(|number| pool.submit(forks_now_and_then::task(number))).collect();
    assert!(futures.into_iter().map(|future| future.result().unwrap()).eq(0..2_000));
}

#[task]
fn forks_and_aborts() {
    let mut status = 0;
    // SAFETY: the copy only panics and ends, and glibc's allocator survives a fork.
    match unsafe { libc::fork() } {
        0 => panic!("the copy's words"),
        // SAFETY: `copy` is our child, and the out-pointer is valid.
        copy => assert_eq!(unsafe { libc::waitpid(copy, &mut status, 0) }, copy),
    }
    assert_eq!(libc::WEXITSTATUS(status), 101, "as a program that has panicked");
    std::process::abort();
}

#[test]
fn a_panic_in_a_copy_is_not_blamed_on_the_worker() {
    let _watchdog = watchdog();
    let error = pool(1).submit(forks_and_aborts::task()).result().unwrap_err();
    assert!(error.is_worker_lost() && !error.to_string().contains("the copy's words"), "{error}");
}

/// Records the copy's pid in a file, for places whose result nobody receives.
#[task]
fn forks_and_notes(notes: &Path) {
    if let (1.., copy) = copy(false, RETURNS) {
        File::create_new(notes.join(copy.to_string())).expect("a note");
    }
}

fn assert_one_copy_was_noted_and_ends(notes: &Path) {
    let names = fs::read_dir(notes).unwrap().map(|entry| entry.unwrap().file_name());
    let copies: Vec<u32> = names.map(|name| name.to_str().unwrap().parse().unwrap()).collect();
    let [copy] = copies[..] else { panic!("one is made where this runs once: {copies:?}") };
    assert_copy_ends(copy);
}

#[test]
fn a_copy_that_returns_from_an_initializer_a_process_or_a_preload_ends() {
    let _watchdog = watchdog();
    let notes = tempfile::tempdir().unwrap();
    let initializer = forks_and_notes::task(notes.path());
    let pool =
        ProcessPoolExecutor::builder().max_workers(1).initializer(initializer).build().unwrap();
    assert_eq!(pool.submit(echo::task(1)).result().unwrap(), 1);
    assert_one_copy_was_noted_and_ends(notes.path());
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        let child = Process::new(forks::task(false, RETURNS)).start_method(method).start().unwrap();
        let pid = child.pid();
        let (own, copy) = child.join().unwrap();
        assert_eq!(own, pid, "{method:?}");
        assert_copy_ends(copy);
    }
    let notes = tempfile::tempdir().unwrap();
    let context =
        Context::new(StartMethod::ForkServer).preload(forks_and_notes::task(notes.path()));
    for _ in 0..3 {
        assert_eq!(context.process(echo::task(2)).start().unwrap().join().unwrap(), 2);
    }
    assert_one_copy_was_noted_and_ends(notes.path());
}

#[test]
fn a_copy_that_returns_from_a_callback_or_a_waker_ends() {
    let _alone = alone();
    let _watchdog = watchdog();
    let pool = pool(1);
    let (sender, receiver) = mpsc::channel();
    let other = sender.clone();
    pool.submit(echo::task(1)).on_done(move |_| sender.send(copy(false, RETURNS)).unwrap());
    let (own, first) = receiver.recv().unwrap();
    assert_eq!(own, std::process::id());
    // A copy that did not end would call this callback as well.
    pool.submit(echo::task(2)).on_done(move |_| other.send((0, std::process::id())).unwrap());
    assert_eq!(receiver.recv().unwrap(), (0, own));

    struct Forks(mpsc::Sender<(u32, u32)>);
    impl std::task::Wake for Forks {
        fn wake(self: std::sync::Arc<Self>) {
            let _ = self.0.send(copy(false, RETURNS));
        }
    }
    let (sender, receiver) = mpsc::channel();
    let waker = std::task::Waker::from(std::sync::Arc::new(Forks(sender)));
    let gate = Gate::new();
    let mut future = pool.submit(hold::task(gate.path()));
    let polled = std::pin::Pin::new(&mut future).poll(&mut std::task::Context::from_waker(&waker));
    assert!(polled.is_pending());
    gate.open();
    let (own, second) = receiver.recv().unwrap();
    assert_eq!(own, std::process::id());
    for copy in [first, second] {
        assert_copy_ends(copy);
        let copy = rustix::process::Pid::from_raw(copy as i32).unwrap();
        rustix::process::waitpid(Some(copy), rustix::process::WaitOptions::empty()).unwrap();
    }
    for number in 0..1000 {
        assert_eq!(pool.submit(echo::task(number)).result().unwrap(), number);
    }
}

#[test]
fn a_copy_that_returns_from_a_callback_runs_no_later_callback() {
    let _alone = alone();
    let _watchdog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    // All callbacks belong to one future, so that the callback thread runs them in one batch.
    let future = pool.submit(hold::task(gate.path()));
    let (sender, copies) = mpsc::channel();
    for panics in [false, true] {
        let sender = sender.clone();
        future.add_done_callback(move |_| sender.send(copy(false, u8::from(panics)).1).unwrap());
    }
    // A file, because the copies would have channels of their own.
    let called = gate.file("called");
    let note = called.clone();
    future.add_done_callback(move |_| {
        let mut notes = File::options().create(true).append(true).open(&note).unwrap();
        notes.write_all(format!("{}\n", std::process::id()).as_bytes()).unwrap();
    });
    let (last, is_last) = mpsc::channel::<()>();
    future.add_done_callback(move |_| drop(last.clone()));
    gate.open();
    assert!(is_last.recv().is_err());
    for copy in copies.iter().take(2) {
        assert_copy_ends(copy);
        let copy = rustix::process::Pid::from_raw(copy as i32).unwrap();
        rustix::process::waitpid(Some(copy), rustix::process::WaitOptions::empty()).unwrap();
    }
    assert_eq!(fs::read_to_string(called).unwrap(), format!("{}\n", std::process::id()));
}

#[test]
fn a_map_continued_in_a_copy_reports_an_error_with_an_index_of_no_item() {
    let _alone = alone();
    let _watchdog = watchdog();
    let (pool, gate) = (pool(2), Gate::new());
    // The first item finishes last, so everything yielded before it has another index.
    let path = gate.path().to_owned();
    let mut map = pool
        .map(|item: u64| hold_first::task(item, &path), 0..4)
        .chunk_size(1)
        .unordered()
        .with_index();
    let mut yielded: Vec<_> = (0..3).map(|_| map.next().unwrap().0).collect();
    yielded.sort_unstable();
    assert_eq!(yielded, [1, 2, 3]);
    // SAFETY: the copy takes one step of the map, which touches nothing that other threads use, and
    // exits.
    match unsafe { libc::fork() } {
        0 => {
            let told = matches!(map.next(), Some((4, Err(error))) if error.is_broken());
            // SAFETY: `_exit` only ends the copy.
            unsafe { libc::_exit(i32::from(!told)) }
        }
        copy => {
            let copy = rustix::process::Pid::from_raw(copy).unwrap();
            let ended = rustix::process::waitpid(Some(copy), rustix::process::WaitOptions::empty());
            assert_eq!(ended.unwrap().unwrap().1.exit_status(), Some(0));
        }
    }
    gate.open();
    assert_eq!(map.next().unwrap().0, 0);
}

#[test]
fn a_copy_does_not_wait_for_room_in_the_pool_of_the_original() {
    let _alone = alone();
    let _watchdog = watchdog();
    let gate = Gate::new();
    let builder = ProcessPoolExecutor::builder().max_workers(1);
    let pool = builder.max_pending(1).max_pending_bytes(1 << 20).build().unwrap();
    let held = pool.submit(hold::task(gate.path()));
    let mut awaits = pool.submit_async(echo::task(1));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(std::pin::Pin::new(&mut awaits).poll(&mut context).is_pending());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Another thread uses the limits, so that the copy may find their lock taken for ever.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                pool.try_submit(echo::task(2)).expect_err("it is full");
            }
        });
        for _ in 0..20 {
            // SAFETY: the copy uses only this library, and exits.
            let copy = unsafe { libc::fork() };
            if copy == 0 {
                let told =
                    pool.submit(echo::task(3)).result().is_err_and(|error| error.is_broken());
                let tried = pool.try_submit(echo::task(4)).is_ok();
                drop(pool.submit_async(echo::task(5)));
                // SAFETY: `_exit` only ends the copy.
                unsafe { libc::_exit(i32::from(!(told && tried))) }
            }
            assert_eq!(wait_for_child(copy), 0);
        }
        // SAFETY: as above.
        let copy = unsafe { libc::fork() };
        if copy == 0 {
            let std::task::Poll::Ready(future) = std::pin::Pin::new(&mut awaits).poll(&mut context)
            else {
                // SAFETY: as above.
                unsafe { libc::_exit(2) }
            };
            let told = future.result().is_err_and(|error| error.is_broken());
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(!told)) }
        }
        assert_eq!(wait_for_child(copy), 0);
        over.store(true, Ordering::Relaxed);
    });
    gate.open();
    held.result().unwrap();
}

#[task]
fn hold_first(item: u64, gate: &Path) {
    if item == 0 {
        support::come_to(gate);
    }
}

/// A waker that forks, and returns in the copy, too.
struct Forks(std::sync::atomic::AtomicI32);

impl std::task::Wake for Forks {
    fn wake(self: std::sync::Arc<Self>) {
        // SAFETY: the copy returns to the call that it was made in, and exits.
        let copy = unsafe { libc::fork() };
        if copy != 0 {
            self.0.store(copy, std::sync::atomic::Ordering::SeqCst);
        }
    }
}

/// A thread that waits takes the replies of other tasks and calls their wakers. If one of them
/// forks, the copy is told that no result will come.
#[test]
fn a_wait_returns_in_a_copy_that_a_waker_has_made() {
    let _alone = alone();
    let _watchdog = watchdog();
    for awaits in [false, true] {
        let (pool, first, second) = (pool(2), support::Gate::new(), support::Gate::new());
        let forks = std::sync::Arc::new(Forks(0.into()));
        let waker = std::task::Waker::from(std::sync::Arc::clone(&forks));
        let mut context = std::task::Context::from_waker(&waker);
        let mut forking = pool.submit(support::hold::task(first.path()));
        let mut awaited = pool.submit(support::hold::task(second.path()));
        first.wait_for(1);
        second.wait_for(1);
        assert!(std::pin::Pin::new(&mut forking).poll(&mut context).is_pending());
        let own = std::process::id();
        first.open();
        let told = if awaits {
            // Polls until the waker was called, by this thread or by the pool's.
            let mut idle = std::task::Context::from_waker(std::task::Waker::noop());
            loop {
                match std::pin::Pin::new(&mut awaited).poll(&mut idle) {
                    std::task::Poll::Ready(outcome) => break outcome,
                    std::task::Poll::Pending => {
                        if forks.0.load(std::sync::atomic::Ordering::SeqCst) != 0 {
                            second.open();
                        }
                    }
                }
            }
        } else {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    support::eventually("the waker forks", || {
                        forks.0.load(std::sync::atomic::Ordering::SeqCst) != 0
                    });
                    second.open();
                });
                let told = awaited.result();
                if std::process::id() != own {
                    let told = told.is_err_and(|error| error.is_broken());
                    // SAFETY: `_exit` only ends the copy.
                    unsafe { libc::_exit(i32::from(!told)) }
                }
                told
            })
        };
        if std::process::id() != own {
            let told = told.is_err_and(|error| error.is_broken());
            // SAFETY: `_exit` only ends the copy.
            unsafe { libc::_exit(i32::from(!told)) }
        }
        told.unwrap();
        assert_eq!(wait_for_child(forks.0.load(std::sync::atomic::Ordering::SeqCst)), 0);
        forking.result().unwrap();
    }
}

// ---- shared objects in a copy ------------------------------------------------------------------

#[test]
fn sy30_a_fork_can_use_the_primitives_without_a_deadlock() {
    let _alone = alone();
    let _watchdog = watchdog();
    let (lock, event, stop) = (Lock::new().unwrap(), Event::new().unwrap(), AtomicBool::new(false));
    let count = Value::new(0_u32).unwrap();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                // Any lock of the library is likely to be held at the moment of the fork.
                while !stop.load(Ordering::Relaxed) {
                    drop((
                        Lock::new().unwrap(),
                        Value::new([0_u8; 100]).unwrap(),
                        Event::new().unwrap(),
                    ));
                    drop(lock.acquire().unwrap_or_else(|died| died.into_guard()));
                }
            });
        }
        for _ in 0..30 {
            // SAFETY: the child only uses this library, and ends without unwinding past this point.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let fine = std::panic::catch_unwind(|| {
                    let own = Lock::new().unwrap();
                    drop(own.acquire().unwrap());
                    drop(lock.acquire().unwrap_or_else(|died| died.into_guard()));
                    count.fetch_add(1);
                    event.set();
                    // The same one level deeper.
                    // SAFETY: as above.
                    let grandchild = unsafe { libc::fork() };
                    if grandchild == 0 {
                        let held = lock.acquire().unwrap_or_else(|died| died.into_guard());
                        std::mem::forget(held);
                        // SAFETY: ends this process while it holds the lock.
                        unsafe { libc::_exit(0) };
                    }
                    wait_for_child(grandchild) == 0
                });
                // SAFETY: ends this process.
                unsafe { libc::_exit(if matches!(fine, Ok(true)) { 0 } else { 1 }) };
            }
            assert_eq!(wait_for_child(child), 0);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(event.is_set());
    assert_eq!(count.get(), 30);
}

fn wait_for_child(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: `pid` is a child of this process, and the out-pointer is valid.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    status
}

#[test]
fn a_guard_inherited_by_a_fork_does_nothing_and_the_parents_death_is_reported() {
    let _alone = alone();
    let _watchdog = watchdog();
    let (lock, go) = (Lock::new().unwrap(), Event::new().unwrap());
    let guard = lock.acquire().unwrap();
    // SAFETY: the child only uses this library, and ends without unwinding.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(guard);
        // SAFETY: ends this process.
        unsafe { libc::_exit(i32::from(!lock.is_locked() || lock.try_acquire().is_some())) };
    }
    assert_eq!(wait_for_child(child), 0);
    assert!(lock.is_locked());
    drop(guard);
    // A parent that holds the lock and ends, while its child goes on.
    // SAFETY: as above.
    let parent = unsafe { libc::fork() };
    if parent == 0 {
        std::mem::forget(lock.acquire().unwrap());
        // SAFETY: as above.
        if unsafe { libc::fork() } == 0 {
            go.wait();
        }
        // SAFETY: ends this process.
        unsafe { libc::_exit(0) };
    }
    wait_for_child(parent);
    let died = lock.acquire().unwrap_err();
    drop(died.into_guard());
    go.set();
}

/// Forks. The copy uses the same handles, which make a connection of their own, and ends.
#[task]
fn uses_handles_in_a_copy(
    dict: Dict<String, u32>,
    lists: List<List<u32>>,
) -> Result<u32, ManagerError> {
    dict.insert("before", &1)?;
    let own = lists.get(0)?.expect("one is there");
    // SAFETY: the copy uses only its own memory, and this process has no other thread that could
    // hold a lock of it.
    match unsafe { executor::fork() }.expect("a copy can be made") {
        Fork::Child => {
            let used = (|| {
                dict.insert("copy", &dict.get("before")?.expect("it was inserted"))?;
                lists.get(0)?.expect("one is there").push(&1)?;
                own.push(&2)?;
                // What is dropped here does not end the handles of the original.
                drop((dict, own, lists));
                Ok::<_, ManagerError>(())
            })();
            // SAFETY: ends the copy, without the exit hooks of the original.
            unsafe { libc::_exit(if used.is_ok() { 7 } else { 8 }) }
        }
        Fork::Parent(copy) => {
            let mut status = 0;
            // SAFETY: waits for the copy, which is a child of this process.
            unsafe { libc::waitpid(copy as i32, &raw mut status, 0) };
            assert_eq!(libc::WEXITSTATUS(status), 7, "the calls of the copy succeed");
            own.push(&3)?;
            dict.insert("after", &2)?;
            Ok(copy)
        }
    }
}

#[test]
fn a_copy_uses_the_managed_objects_of_the_original() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let dict = manager.dict([]).unwrap();
    let inner = manager.list([0]).unwrap();
    let lists = manager.list([inner.clone()]).unwrap();
    let pool = pool(1);
    let task = uses_handles_in_a_copy::task(dict.clone(), lists.clone());
    let copy = pool.submit(task).result().unwrap();
    assert_copy_ends(copy);
    let all = [("before", 1), ("copy", 1), ("after", 2)].map(|(key, n)| (key.to_owned(), n));
    assert_eq!(dict.snapshot().unwrap(), all);
    assert_eq!(inner.snapshot().unwrap(), [0, 1, 2, 3]);
    drop((dict, inner, lists));
    eventually("no object is left", || manager.objects().unwrap() == 0);
}
