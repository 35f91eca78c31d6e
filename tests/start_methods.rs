//! The three start methods, and what children inherit from their parent. These tests run programs
//! with a `main` of their own, because `fork` requires a program with one thread.

#[macro_use]
mod plays;
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::Write,
    mem::{ManuallyDrop, MaybeUninit},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    ptr,
    sync::{
        Arc, Barrier,
        atomic::{AtomicI32, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use executor::{
    Array, ArrayReadGuard, ArrayWriteGuard, Child, Context, ExitStatus, Fork, Isolation, Lock,
    Process, Queue, RLock, Semaphore, SharedBytes, StartError, StartMethod, Stdio, Value,
    ValueGuard, active_children, force_start_method, prelude::*, set_start_method, start_method,
};
use plays::{METHODS, argument, fine, method, play, with_each};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, setrlimit, waitpid};
use support::{Gate, LONG, children, come_to, echo, eventually, exit, hold, pid, signal};

list! { TESTS:
    sm01_a_child_has_the_start_method_of_its_context,
    sm02_the_programs_start_method_can_be_set_once_or_by_force,
    sm03_available_lists_the_start_methods_of_this_system,
    sm07_a_descriptor_of_the_parent_is_not_open_in_a_child,
    a_descriptor_opened_by_a_constructor_stays_open,
    sm08_a_child_and_a_grandchild_write_to_one_pipe,
    sm11_a_program_with_threads_cannot_be_forked,
    sm13_eight_threads_can_start_processes_at_once,
    pr22_a_parent_that_has_closed_its_output_can_start_children,
    pr34_both_sides_of_a_fork_go_on,
    pr35_only_the_parent_can_join_a_child,
    guards_and_unsent_bytes_of_a_process_cannot_be_used_in_its_copies,
    a_forked_copy_cannot_read_memory_that_the_parent_could_change,
    a_copy_forked_within_an_update_cannot_write,
    a_process_whose_threads_cannot_be_counted_cannot_be_forked,
    children_inherit_signals_directory_environment_and_arguments,
    a_program_can_fork_again_and_again,
    a_killed_fork_server_is_started_again,
    a_stopped_fork_server_is_replaced,
    the_fork_server_ends_with_its_parent,
    a_pool_of_copies_ends_with_its_program,
    a_fork_server_that_prepares_ends_with_its_program,
    preload_runs_once_in_the_server_and_children_have_its_effect,
    a_preload_that_fails_is_an_error_of_every_start,
    processes_work_during_a_storm_of_signals,
    threads_of_the_library_take_no_signals,
    too_few_descriptors_are_an_error_and_never_a_hang,
    a_large_result_arrives_although_no_descriptor_is_left,
    a_result_whose_descriptors_cannot_be_received_is_an_error_that_says_so,
    a_large_result_is_read_only_when_it_is_joined,
    a_child_owns_mutexes_of_the_c_library_separately,
    a_child_ends_by_a_fault_signal_that_was_sent,
    children_are_named_after_the_program_and_themselves,
    children_reaped_by_others_still_report_their_value,
}

list! { PROGRAMS:
    asks_for_methods,
    sets_methods,
    has_a_high_socket,
    has_a_constructor,
    nests_through_a_pipe,
    forks_with_threads,
    starts_from_threads,
    has_closed_its_output,
    forks,
    joins_in_a_fork,
    has_guards_when_it_forks,
    has_statics_when_it_forks,
    forks_within_an_update,
    forks_without_proc,
    has_an_odd_state,
    forks_again,
    kills_its_server,
    stops_its_server,
    has_a_fork_that_outlives,
    has_a_pool_of_copies,
    has_a_server_that_prepares,
    preloads,
    preloads_in_vain,
    is_in_a_storm,
    waits_for_a_signal,
    has_few_descriptors,
    has_no_descriptor_left,
    has_no_descriptor_for_handles,
    leaves_a_large_result,
    shares_a_mutex,
    is_sent_a_fault,
    asks_for_names,
    ignores_the_ends_of_children,
}

fn main() {
    plays::main(TESTS, PROGRAMS);
}

#[track_caller]
fn joined<T>(child: &Child<T>) -> Result<T, TaskError> {
    child.join_timeout(LONG).expect("it ends")
}

// ---- methods ------------------------------------------------------------------------------------

fn number(method: StartMethod) -> usize {
    METHODS.iter().position(|other| *other == method).unwrap()
}

#[task]
fn methods_below(levels: u32) -> Vec<usize> {
    let mut methods = vec![number(start_method())];
    if levels > 0 {
        methods.extend(
            joined(&Process::new(methods_below::task(levels - 1)).start().unwrap()).unwrap(),
        );
    }
    methods
}

fn sm01_a_child_has_the_start_method_of_its_context() {
    with_each("asks_for_methods");
}

fn asks_for_methods() {
    let context = Context::new(method());
    assert_eq!(context.start_method(), method());
    let child = context.process(methods_below::task(2)).start().unwrap();
    assert_eq!(joined(&child).unwrap(), [number(method()); 3], "a child's children, too");
    assert_eq!(start_method(), StartMethod::Spawn, "this program's is another matter");
    fine();
}

fn sm02_the_programs_start_method_can_be_set_once_or_by_force() {
    with_each("sets_methods");
}

fn sets_methods() {
    assert_eq!(start_method(), StartMethod::Spawn);
    set_start_method(method()).unwrap();
    assert_eq!(start_method(), method());
    let child = Process::new(methods_below::task(1)).start().unwrap();
    assert_eq!(joined(&child).unwrap(), [number(method()); 2]);
    let error = set_start_method(StartMethod::Spawn).unwrap_err();
    assert_eq!(error.0, method());
    assert!(error.to_string().contains("force_start_method"), "{error}");
    force_start_method(StartMethod::ForkServer);
    assert_eq!(start_method(), StartMethod::ForkServer);
    let child = Process::new(methods_below::task(0)).start().unwrap();
    assert_eq!(joined(&child).unwrap(), [number(StartMethod::ForkServer)]);
    let pool = support::pool(1);
    assert_eq!(
        pool.submit(methods_below::task(0)).result().unwrap(),
        [number(StartMethod::ForkServer)]
    );
    fine();
}

fn sm03_available_lists_the_start_methods_of_this_system() {
    let methods = StartMethod::available();
    assert_eq!(methods[0], start_method(), "the default is first");
    assert!(methods.contains(&StartMethod::Spawn));
    assert_ne!(methods[0], StartMethod::Fork);
}

// ---- descriptors --------------------------------------------------------------------------------

/// Returns the descriptors that are open beyond the standard streams, and what they refer to.
#[task]
fn open_descriptors() -> BTreeMap<i32, String> {
    let own = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let number = path.file_name()?.to_str()?.parse().ok()?;
        // The descriptor of the directory being read is closed by now, or refers to the directory
        // itself.
        let target = fs::read_link(&path).ok()?.display().to_string();
        (number > 2 && !target.contains("/fd")).then_some((number, target))
    });
    own.collect()
}

fn sm07_a_descriptor_of_the_parent_is_not_open_in_a_child() {
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        let said = play("has_a_high_socket").argument(format!("{method:?}")).play_out();
        assert_eq!(said, "fine\n", "{method:?}");
    }
}

fn has_a_high_socket() {
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    // SAFETY: duplicates to a number that nothing uses. The new descriptor is not close-on-exec.
    assert_eq!(unsafe { libc::dup2(socket.as_raw_fd(), 200) }, 200);
    let child = Process::new(open_descriptors::task()).start_method(method()).start().unwrap();
    let open = joined(&child).unwrap();
    assert!(!open.contains_key(&200), "{open:?}");
    assert!(open.values().filter(|target| target.starts_with("socket:")).count() <= 1, "{open:?}");
    fine();
}

fn sm13_eight_threads_can_start_processes_at_once() {
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        let said = play("starts_from_threads").argument(format!("{method:?}")).play_out();
        assert_eq!(said, "fine\n", "{method:?}");
    }
}

fn starts_from_threads() {
    let method = method();
    let barrier = Arc::new(Barrier::new(8));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let barrier = Arc::clone(&barrier);
            thread::spawn(move || {
                barrier.wait();
                for _ in 0..10 {
                    let process = Process::new(open_descriptors::task()).start_method(method);
                    let process = process.stdin(Stdio::piped()).stdout(Stdio::piped());
                    let child = process.start().unwrap();
                    let open = joined(&child).unwrap();
                    // Its own two pipes are its standard streams. Beyond these it has its socket
                    // and the pidfd of its parent.
                    let count =
                        |kind: &str| open.values().filter(|target| target.contains(kind)).count();
                    assert_eq!(count("pipe:"), 0, "{open:?}");
                    assert!(count("socket:") <= 1 && open.len() <= 2, "{open:?}");
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(active_children().is_empty());
    // Nothing stays open in this process either, except for the watcher's descriptors and the fork
    // server's.
    eventually("the descriptors are closed", || open_descriptors().len() <= 4);
    fine();
}

#[task]
fn say(word: &str) -> u32 {
    println!("{word}");
    std::process::id()
}

#[task]
fn say_with_a_child(word: &str) {
    joined(&Process::new(say::task(&format!("{word} below"))).start().unwrap()).unwrap();
    say(word);
}

/// Names the file that this program's constructor opens.
const LOG: &str = "EXECUTOR_TEST_LOG";
static OPENED: AtomicI32 = AtomicI32::new(-1);

/// Opens a file before `main`, and not close-on-exec, as a profiler or a preloaded tool does.
extern "C" fn open_a_log() {
    let Some(path) = std::env::var_os(LOG) else { return };
    let path = std::ffi::CString::new(path.into_encoded_bytes()).unwrap();
    let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_APPEND;
    // SAFETY: `path` is a valid C string.
    OPENED.store(unsafe { libc::open(path.as_ptr(), flags, 0o600) }, Ordering::SeqCst);
}

#[used]
#[unsafe(link_section = ".init_array")]
static OPEN_A_LOG: extern "C" fn() = open_a_log;

#[task]
fn log_beside(queue: Queue<u8>) -> isize {
    // This maps shared memory, whose descriptors take the lowest free numbers.
    queue.put(1).unwrap();
    let _bytes = SharedBytes::from(&[1, 2, 3][..]);
    // SAFETY: writes five bytes of a longer string.
    unsafe { libc::write(OPENED.load(Ordering::SeqCst), c"line\n".as_ptr().cast(), 5) }
}

fn a_descriptor_opened_by_a_constructor_stays_open() {
    with_each("has_a_constructor");
}

fn has_a_constructor() {
    // Only the children open the file, not this process.
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    if method() == StartMethod::Fork {
        // With `fork`, a copy has the descriptors of its original.
        // SAFETY: this program has one thread.
        unsafe { std::env::set_var(LOG, &log) };
        open_a_log();
    }
    let queue = Queue::unbounded().unwrap();
    // An inheritable descriptor of this process. The children must not have it, and may use its
    // number.
    let (ours, _theirs) = std::io::pipe().unwrap();
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::empty()).unwrap();
    let process =
        Process::new(log_beside::task(queue.clone())).env(LOG, &log).start_method(method());
    if method() == StartMethod::ForkServer {
        // The fork server was started without the variable.
        assert_eq!(joined(&process.start().unwrap()).unwrap(), -1);
        return fine();
    }
    assert_eq!(joined(&process.start().unwrap()).unwrap(), 5);
    assert_eq!(fs::read_to_string(&log).unwrap(), "line\n");
    if method() == StartMethod::Spawn {
        let pool = ProcessPoolExecutor::builder().max_workers(1).env(LOG, &log).build().unwrap();
        assert_eq!(pool.submit(log_beside::task(queue)).result().unwrap(), 5);
        assert_eq!(fs::read_to_string(&log).unwrap(), "line\nline\n");
    }
    fine();
}

fn sm08_a_child_and_a_grandchild_write_to_one_pipe() {
    with_each("nests_through_a_pipe");
}

fn nests_through_a_pipe() {
    let process = Process::new(say_with_a_child::task("hello")).start_method(method());
    let child = process.stdout(Stdio::piped()).start().unwrap();
    let said = std::io::read_to_string(File::from(child.take_stdout().unwrap())).unwrap();
    assert_eq!(said, "hello below\nhello\n");
    joined(&child).unwrap();
    fine();
}

fn pr22_a_parent_that_has_closed_its_output_can_start_children() {
    for closed in [vec![1], vec![2], vec![1, 2], vec![0, 1, 2]] {
        let gate = Gate::new();
        let mut play = play("has_closed_its_output").argument(gate.path());
        // SAFETY: between fork and exec, the closure only makes system calls that close standard
        // streams.
        unsafe {
            play.command.pre_exec(move || {
                for number in &closed {
                    libc::close(*number);
                }
                Ok(())
            })
        };
        play.play_out();
        assert!(gate.file("fine").exists());
    }
}

fn has_closed_its_output() {
    for number in [1, 2] {
        // std has opened /dev/null in place of the closed stream. Here it is really closed.
        if fs::read_link(format!("/proc/self/fd/{number}"))
            .is_ok_and(|path| path == Path::new("/dev/null"))
        {
            // SAFETY: nothing owns this descriptor.
            unsafe { libc::close(number) };
        }
    }
    for method in METHODS {
        let child = Process::new(say::task("to nobody")).start_method(method).start().unwrap();
        assert_eq!(joined(&child).unwrap(), child.pid());
        assert_eq!(child.exit_code(), Some(ExitStatus::Exited(0)));
    }
    File::create(Path::new(&argument()).join("fine")).unwrap();
}

// ---- fork ---------------------------------------------------------------------------------------

fn status(pid: u32) -> Option<i32> {
    let (_, status) = waitpid(Pid::from_raw(pid.cast_signed()), WaitOptions::empty()).unwrap()?;
    status.exit_status()
}

fn pr34_both_sides_of_a_fork_go_on() {
    assert_eq!(play("forks").play_out(), "child 3\nparent 2\nwith 42\nfine\n");
}

fn forks() {
    let mut variable = 1;
    // SAFETY: this program has one thread.
    match unsafe { executor::fork() }.unwrap() {
        Fork::Child => {
            variable += 2;
            println!("child {variable}");
            std::process::exit(5);
        }
        Fork::Parent(child) => {
            variable += 1;
            assert_eq!(status(child), Some(5));
            println!("parent {variable}");
        }
    }
    let answer = 42;
    // SAFETY: neither closure touches shared memory.
    let child = unsafe { executor::fork_with(|| println!("with {answer}")) }.unwrap();
    assert_eq!(status(child), Some(0));
    // SAFETY: as above.
    let child =
        unsafe { executor::fork_with(|| std::panic::resume_unwind(Box::new("quiet"))) }.unwrap();
    assert_eq!(status(child), Some(101));
    assert_eq!(children(), []);
    fine();
}

fn pr35_only_the_parent_can_join_a_child() {
    assert_eq!(play("joins_in_a_fork").play_out(), "fine\n");
}

fn guards_and_unsent_bytes_of_a_process_cannot_be_used_in_its_copies() {
    assert_eq!(play("has_guards_when_it_forks").play_out(), "fine\n");
}

static UNSENT: std::sync::Mutex<Option<SharedBytes>> = std::sync::Mutex::new(None);

/// Returns whether a copy of its parent, made by the library, can write bytes that the parent has
/// not sent anywhere.
#[task]
fn writes_what_its_parent_has() -> bool {
    UNSENT.lock().unwrap().as_mut().expect("the static was copied").get_mut().is_some()
}

static FROZEN: std::sync::OnceLock<SharedBytes> = std::sync::OnceLock::new();
static WRITES: std::sync::OnceLock<(ValueGuard<'static, u64>, ArrayWriteGuard<'static, u64>)> =
    std::sync::OnceLock::new();
static READS: std::sync::Mutex<Vec<ArrayReadGuard<'static, u64>>> =
    std::sync::Mutex::new(Vec::new());

/// Returns what it can read of its parent's objects that the parent could change meanwhile.
#[task]
fn reads_what_its_parent_has() -> Vec<String> {
    std::panic::set_hook(Box::new(|_| ()));
    let mut read = Vec::new();
    let mut tries = |what: &str, reads: &dyn Fn() -> u64| {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(reads)).is_ok() {
            read.push(String::from(what));
        }
    };
    let unsent = UNSENT.lock().unwrap();
    let unsent = unsent.as_ref().unwrap();
    tries("unsent bytes", &|| u64::from(unsent[0]));
    tries("their copy", &|| unsent.to_vec().len() as u64);
    tries("frozen bytes", &|| u64::from(FROZEN.get().unwrap()[0]));
    let (value, array) = WRITES.get().unwrap();
    tries("a value", &|| **value);
    tries("an array, to be written", &|| array[0]);
    tries("an array", &|| READS.lock().unwrap()[0][0]);
    read
}

fn a_forked_copy_cannot_read_memory_that_the_parent_could_change() {
    assert_eq!(play("has_statics_when_it_forks").play_out(), "fine\n");
}

fn has_statics_when_it_forks() {
    fn leaked<T>(value: T) -> &'static T {
        Box::leak(Box::new(value))
    }
    let array = || leaked(Array::from_slice(&[1_u64]).unwrap());
    *UNSENT.lock().unwrap() = Some(SharedBytes::copy_from_slice(b"abc"));
    assert!(FROZEN.set(SharedBytes::copy_from_slice(b"abc").freeze().unwrap()).is_ok());
    let value = leaked(Value::new(5_u64).unwrap()).lock().unwrap();
    assert!(WRITES.set((value, array().write().unwrap())).is_ok());
    READS.lock().unwrap().push(array().read().unwrap());
    let context = Context::new(StartMethod::Fork);
    let read = context.process(reads_what_its_parent_has::task()).start().unwrap().join().unwrap();
    assert_eq!(read, ["frozen bytes"]);
    // The parent can still read everything.
    assert_eq!(UNSENT.lock().unwrap().as_ref().unwrap()[0], b'a');
    assert_eq!(
        (*WRITES.get().unwrap().0, WRITES.get().unwrap().1[0], READS.lock().unwrap()[0][0]),
        (5, 1, 1)
    );
    fine();
}

fn a_copy_forked_within_an_update_cannot_write() {
    assert_eq!(play("forks_within_an_update").play_out(), "fine\n");
}

type Change<'a> = &'a mut dyn FnMut(&mut u64);

fn forks_within_an_update() {
    let (value, array) = (Value::new(1_u64).unwrap(), Array::from_slice(&[1_u64]).unwrap());
    // The second round runs after a death, when the lock is acquired with the report of that death.
    for died in [false, true] {
        if died {
            // SAFETY: the copy only uses handles, and these know whether they are in the original
            // or in the copy.
            let dies = unsafe {
                executor::fork_with(|| {
                    std::mem::forget((value.lock(), array.write()));
                    std::process::abort();
                })
            };
            assert_eq!(status(dies.unwrap()), None);
        }
        let updates: [&dyn Fn(Change<'_>); 2] =
            [&|change| value.update(change), &|change| array.update(0, change)];
        for update in updates {
            let own = std::process::id();
            let changed = || {
                update(&mut |element| {
                    // SAFETY: this program has one thread.
                    match unsafe { executor::fork() }.unwrap() {
                        Fork::Child => {
                            std::panic::set_hook(Box::new(|_| ()));
                            *element = 7;
                        }
                        Fork::Parent(copy) => assert_eq!(status(copy), Some(3), "it writes"),
                    }
                });
            };
            let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(changed));
            if std::process::id() != own {
                // SAFETY: `_exit` only ends the copy.
                unsafe { libc::_exit(if changed.is_err() { 3 } else { 0 }) };
            }
            changed.unwrap();
        }
        assert_eq!((value.get(), array.get(0)), (1, 1));
    }
    fine();
}

fn has_guards_when_it_forks() {
    let mut bytes = SharedBytes::zeroed(16);
    bytes.get_mut().unwrap()[0] = 1;
    let (lock, rlock, semaphore) =
        (Lock::new().unwrap(), RLock::new().unwrap(), Semaphore::new(2).unwrap());
    let (value, array) = (Value::new(5_u64).unwrap(), Array::from_slice(&[1_u64, 2]).unwrap());
    let read = Array::from_slice(&[3_u64]).unwrap();
    // The parent drops its guards, and the copy drops its copies of them.
    let mut guards = ManuallyDrop::new((
        lock.acquire().unwrap(),
        rlock.acquire().unwrap(),
        semaphore.acquire(),
        value.lock().unwrap(),
        array.write().unwrap(),
        read.read().unwrap(),
    ));
    let refuses = |act: &mut dyn FnMut()| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(act))
            .expect_err("it is the parent's");
    };
    // SAFETY: the copy uses no reference that was made before the fork, except through types that
    // check whether they are in the copy.
    let copy = unsafe {
        executor::fork_with(|| {
            std::panic::set_hook(Box::new(|_| ()));
            assert!(bytes.get_mut().is_none());
            refuses(&mut || assert_eq!(bytes[0], 1));
            refuses(&mut || assert_eq!(*guards.3, 5));
            refuses(&mut || *guards.3 = 6);
            refuses(&mut || assert_eq!(guards.4[0], 1));
            refuses(&mut || guards.4[0] = 6);
            refuses(&mut || assert_eq!(guards.5[0], 3));
            ManuallyDrop::drop(&mut guards);
            assert!(lock.try_acquire().is_none() && rlock.try_acquire().is_none());
            assert_eq!(semaphore.value(), 1);
            assert!(value.get_lock().try_acquire().is_none());
            assert!(array.try_read().is_none());
            assert!(read.try_write().is_none());
        })
    }
    .unwrap();
    assert_eq!(status(copy), Some(0));
    // The parent still has all of them.
    bytes.get_mut().unwrap()[0] = 2;
    (*guards.3, guards.4[0]) = (6, 6);
    assert!(lock.is_locked() && rlock.is_locked());
    assert_eq!(semaphore.value(), 1);
    drop(ManuallyDrop::into_inner(guards));
    assert!(lock.try_acquire().is_some() && rlock.try_acquire().is_some());
    assert!(array.try_write().is_some() && read.try_write().is_some());
    assert_eq!((value.get(), array.get(0), semaphore.value()), (6, 6, 2));
    // The same in a child forked by the library, for bytes in a static.
    *UNSENT.lock().unwrap() = Some(bytes);
    let context = Context::new(StartMethod::Fork);
    assert!(!context.process(writes_what_its_parent_has::task()).start().unwrap().join().unwrap());
    assert!(UNSENT.lock().unwrap().as_mut().unwrap().get_mut().is_some());
    fine();
}

fn a_process_whose_threads_cannot_be_counted_cannot_be_forked() {
    let said = play("forks_without_proc").play_out();
    match said.strip_prefix("impossible here: ") {
        Some(why) => println!("`/proc` cannot be taken away here, so this was not tried: {why}"),
        None => assert_eq!(said, "fine\n"),
    }
}

fn forks_without_proc() {
    let hidden = || {
        let root = c"/".as_ptr();
        let own = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: the pointers are strings or null, as the calls require. The mounts belong to this
        // process only.
        let refused = unsafe {
            libc::unshare(libc::CLONE_NEWNS) != 0
                || libc::mount(ptr::null(), root, ptr::null(), own, ptr::null()) != 0
                || libc::mount(
                    c"none".as_ptr(),
                    c"/proc".as_ptr(),
                    c"tmpfs".as_ptr(),
                    0,
                    ptr::null(),
                ) != 0
        };
        if refused { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    if let Err(error) = hidden() {
        println!("impossible here: {error}");
        return;
    }
    // A lock held by this thread would stay locked in the copy.
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let other = thread::spawn(move || held.recv().unwrap());
    // SAFETY: the closure does nothing.
    let error =
        unsafe { executor::fork_with(|| ()) }.expect_err("nobody knows how many threads there are");
    assert!(
        format!("{error:?}").contains("threads cannot be counted: is `/proc` mounted?"),
        "{error:?}"
    );
    let error = Process::new(pid::task()).start_method(StartMethod::Fork).start().unwrap_err();
    assert!(format!("{error:?}").contains("threads cannot be counted"), "{error:?}");
    assert_eq!(executor::thread_count(), 0);
    hold.send(()).unwrap();
    other.join().unwrap();
    fine();
}

fn joins_in_a_fork() {
    let gate = Gate::new();
    let child = Process::new(hold::task(gate.path())).start().unwrap();
    gate.wait_for(1);
    let body = || {
        let error = child.join().unwrap_err();
        assert!(matches!(error, TaskError::Invalid(_)), "{error:?}");
        assert!(error.to_string().contains("another process"), "{error}");
        assert!(child.join_timeout(Duration::ZERO).unwrap().is_err());
        assert!(futures::executor::block_on(child.join_async()).is_err());
        assert_eq!(child.wait_exit(), ExitStatus::Unknown);
        assert_eq!(child.exit_code(), None);
        child.kill().unwrap();
        child.kill_tree();
        assert!(active_children().is_empty());
        // A copy can have children of its own.
        let own = Process::new(echo::task(5)).start().unwrap();
        assert_eq!(own.join().unwrap(), 5);
    };
    // SAFETY: the closure touches no shared memory.
    let copy = unsafe { executor::fork_with(body) }.unwrap();
    assert_eq!(status(copy), Some(0));
    assert!(child.is_alive());
    gate.open();
    assert_eq!(joined(&child).unwrap(), child.pid());
    fine();
}

fn sm11_a_program_with_threads_cannot_be_forked() {
    assert_eq!(play("forks_with_threads").play_out(), "fine\n");
}

fn forks_with_threads() {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = thread::spawn(move || stopped.recv().is_err());
    let error = Process::new(pid::task()).start_method(StartMethod::Fork).start().unwrap_err();
    assert!(matches!(error, StartError::Threads { threads: 2 }), "{error:?}");
    assert!(error.to_string().contains("StartMethod::Spawn"), "{error}");
    // SAFETY: the closure does nothing.
    let error = unsafe { executor::fork_with(|| ()) }.unwrap_err();
    assert!(matches!(error, StartError::Threads { threads: 2 }), "{error:?}");
    // `executor::fork` leaves the responsibility to its caller and forks nevertheless.
    // SAFETY: the child exits at once.
    match unsafe { executor::fork() }.unwrap() {
        // SAFETY: `_exit` only ends the child.
        Fork::Child => unsafe { libc::_exit(3) },
        Fork::Parent(child) => assert_eq!(status(child), Some(3)),
    }
    drop(stop);
    thread.join().unwrap();
    // This works at once: a joined thread does not count, although the system may list it for a
    // moment.
    let child = Process::new(pid::task()).start_method(StartMethod::Fork).start().unwrap();
    assert_eq!(joined(&child).unwrap(), child.pid());
    fine();
}

fn a_program_can_fork_again_and_again() {
    assert_eq!(play("forks_again").play_out(), "fine\n");
}

fn forks_again() {
    static COUNTED: AtomicU64 = AtomicU64::new(0);
    #[task]
    fn counted() -> u64 {
        COUNTED.fetch_add(1, Ordering::Relaxed)
    }
    #[task]
    fn counted_below() -> u64 {
        joined(&Process::new(counted::task()).start().unwrap()).unwrap() + 100
    }
    let start = || Process::new(counted::task()).start_method(StartMethod::Fork).start().unwrap();
    let two = [start(), start()];
    assert_eq!(two.map(|child| joined(&child).unwrap()), [0, 0]);
    COUNTED.store(7, Ordering::Relaxed);
    for _ in 0..30 {
        assert_eq!(joined(&start()).unwrap(), 7, "it has what its parent has");
    }
    // The same while there are other children, which the same thread watches.
    let gate = Gate::new();
    let other = Process::new(hold::task(gate.path())).start().unwrap();
    let below =
        Process::new(counted_below::task()).start_method(StartMethod::Fork).start().unwrap();
    assert_eq!(joined(&below).unwrap(), 107);
    gate.open();
    joined(&other).unwrap();
    for code in 0..20 {
        let child = Process::new(exit::task(code)).start_method(StartMethod::Fork).start().unwrap();
        assert_eq!(child.wait_exit_timeout(LONG), Some(ExitStatus::Exited(code)));
    }
    // The watcher thread ends after a while without children. Until then it does not prevent a fork
    // either.
    eventually("the watcher has left", || {
        // SAFETY: the closure does nothing.
        let child = unsafe { executor::fork_with(|| ()) }.expect("no thread is in the way");
        status(child);
        executor::thread_count() == 1
    });
    fine();
}

// ---- what children inherit from their parent ----------------------------------------------------

#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Seen {
    blocked: Vec<i32>,
    ignored: Vec<i32>,
    directory: PathBuf,
    environment: BTreeSet<(String, String)>,
    arguments: Vec<String>,
}

fn see() -> Seen {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    let ignores = |signal: &i32| {
        let mut action = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: the call writes the action, which is read only if the call succeeded.
        unsafe {
            libc::sigaction(*signal, ptr::null(), action.as_mut_ptr()) == 0
                && action.assume_init().sa_sigaction == libc::SIG_IGN
        }
    };
    // SAFETY: the call writes the set.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), set.as_mut_ptr()) };
    Seen {
        // SAFETY: the set was initialized above.
        blocked: (1..=64)
            .filter(|signal| unsafe { libc::sigismember(set.as_ptr(), *signal) } == 1)
            .collect(),
        ignored: (1..=64).filter(ignores).collect(),
        directory: std::env::current_dir().unwrap(),
        environment: std::env::vars().collect(),
        arguments: executor::args().map(|argument| argument.into_string().unwrap()).collect(),
    }
}

#[task]
fn seen_below(levels: u32) -> Vec<Seen> {
    let mut seen = vec![see()];
    if levels > 0 {
        seen.extend(joined(&Process::new(seen_below::task(levels - 1)).start().unwrap()).unwrap());
    }
    seen
}

fn children_inherit_signals_directory_environment_and_arguments() {
    for method in METHODS {
        let mut play = play("has_an_odd_state").argument(format!("{method:?}"));
        play.command.args(["one", "--two", "", "drei ü"]);
        // Signals may be blocked or ignored in this process: a non-interactive shell ignores SIGINT
        // and SIGQUIT in programs that it starts with `&`, and `nohup` ignores SIGHUP.
        // SAFETY: between fork and exec, the closure only makes system calls that set dispositions
        // and a mask.
        unsafe {
            play.command.pre_exec(|| {
                for number in 1..=64 {
                    libc::signal(number, libc::SIG_DFL);
                }
                let mut none = MaybeUninit::<libc::sigset_t>::uninit();
                libc::sigemptyset(none.as_mut_ptr());
                libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
                Ok(())
            })
        };
        assert_eq!(play.play_out(), "fine\n", "{method:?}");
    }
}

fn has_an_odd_state() {
    let check = |of: &str| {
        let own = see();
        assert_eq!(own.arguments[1..], ["one", "--two", "", "drei ü"]);
        // A child also blocks the signals with which a terminal would stop it.
        let mut expected = own;
        expected.blocked.extend([libc::SIGTTIN, libc::SIGTTOU]);
        expected.blocked.sort_unstable();
        expected.blocked.dedup();
        let child = Process::new(seen_below::task(2)).start_method(method()).start().unwrap();
        for (level, seen) in joined(&child).unwrap().into_iter().enumerate() {
            assert_eq!(seen, expected, "{of}, level {level}");
        }
    };
    // After this the fork server has started, so it does not know of the changes below.
    check("at first");
    let dir = tempfile::tempdir().unwrap();
    std::env::set_current_dir(dir.path()).unwrap();
    // SAFETY: only this thread runs, besides the watcher, which does not read the environment.
    unsafe {
        std::env::set_var("NEW", "a new one");
        std::env::remove_var("PATH");
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGUSR1);
        libc::sigaddset(set.as_mut_ptr(), 40);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
        libc::signal(libc::SIGUSR2, libc::SIG_IGN);
        libc::signal(libc::SIGHUP, libc::SIG_IGN);
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    let own = see();
    assert_eq!(own.blocked, [libc::SIGUSR1, 40]);
    assert_eq!(own.ignored, [libc::SIGHUP, libc::SIGUSR2]);
    check("changed");
    // SAFETY: only sets a signal's disposition.
    unsafe { libc::signal(libc::SIGUSR2, libc::SIG_DFL) };
    check("changed back");
    fine();
}

/// Waits for a signal with `sigwait`, as programs do that block the signal everywhere.
#[task]
fn take_a_signal(gate: &Path) -> i32 {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    let mut got = 0;
    // SAFETY: initializes the set, then waits for a signal in it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGUSR1);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
        // The signal arrives while this thread is not waiting for it.
        come_to(gate);
        libc::sigwait(set.as_ptr(), &mut got);
    }
    got
}

fn threads_of_the_library_take_no_signals() {
    with_each("waits_for_a_signal");
}

fn waits_for_a_signal() {
    let gate = Gate::new();
    let child =
        Process::new(take_a_signal::task(gate.path())).start_method(method()).start().unwrap();
    gate.wait_for(1);
    signal(child.pid(), Signal::USR1);
    gate.open();
    assert_eq!(
        joined(&child).unwrap(),
        libc::SIGUSR1,
        "no thread beside has taken it, and died of it"
    );
    fine();
}

// ---- the fork server ----------------------------------------------------------------------------

/// Returns the pid of the fork server: the only child that is not a process started by the user.
fn server() -> u32 {
    let known: Vec<_> = active_children().iter().map(|child| child.pid()).collect();
    let others: Vec<_> =
        children().into_iter().map(|(pid, ..)| pid).filter(|pid| !known.contains(pid)).collect();
    assert_eq!(others.len(), 1, "{others:?}");
    others[0]
}

fn a_killed_fork_server_is_started_again() {
    assert_eq!(play("kills_its_server").play_out(), "fine\n");
}

fn kills_its_server() {
    let gate = Gate::new();
    let start = || {
        Process::new(hold::task(gate.path())).start_method(StartMethod::ForkServer).start().unwrap()
    };
    let mut started = vec![start()];
    let mut servers = BTreeSet::from([server()]);
    for _ in 0..5 {
        let last = server();
        signal(last, Signal::KILL);
        let child = start();
        assert!(child.is_alive() && servers.insert(server()), "another one");
        assert!(!Path::new(&format!("/proc/{last}")).exists(), "and the last one was reaped");
        started.push(child);
    }
    gate.wait_for(started.len());
    assert!(started.iter().all(|child| child.is_alive()), "children do not depend on it");
    gate.open();
    for child in &started {
        assert_eq!(joined(child).unwrap(), child.pid());
    }
    fine();
}

fn a_stopped_fork_server_is_replaced() {
    assert_eq!(play("stops_its_server").play_out(), "fine\n");
}

fn stops_its_server() {
    let start = || Process::new(pid::task()).start_method(StartMethod::ForkServer).start().unwrap();
    let child = start();
    assert_eq!(joined(&child).unwrap(), child.pid());
    let last = server();
    support::stop(last);
    let child = start();
    assert_eq!(joined(&child).unwrap(), child.pid());
    assert_ne!(server(), last);
    assert!(!Path::new(&format!("/proc/{last}")).exists(), "the last one was reaped");
    fine();
}

fn the_fork_server_ends_with_its_parent() {
    // The server ends even if a copy of the parent goes on, which holds the other end of the
    // server's socket.
    let gate = Gate::new();
    let (mut child, _stdout, tag) =
        play("has_a_fork_that_outlives").argument(gate.path()).until_it_speaks();
    let servers = || -> Vec<u32> {
        let marked = support::tagged(&tag)
            .into_iter()
            .filter(|(_, line)| line.contains("--executor-worker"));
        marked.map(|(pid, _)| pid).collect()
    };
    assert_eq!(servers().len(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the server is gone", || servers().is_empty());
    assert_eq!(support::tagged(&tag).len(), 1, "the copy is still here");
    gate.open();
    plays::assert_nothing_left(&tag);
}

fn has_a_fork_that_outlives() {
    let gate = PathBuf::from(argument());
    let child = Process::new(pid::task()).start_method(StartMethod::ForkServer).start().unwrap();
    joined(&child).unwrap();
    // SAFETY: the closure touches no shared memory.
    unsafe { executor::fork_with(|| come_to(&gate)) }.unwrap();
    eventually("it is there", || fs::read_dir(&gate).unwrap().count() == 2);
    plays::ready();
    loop {
        thread::park();
    }
}

fn a_pool_of_copies_ends_with_its_program() {
    let gate = Gate::new();
    let (mut child, _stdout, tag) =
        play("has_a_pool_of_copies").argument(gate.path()).until_it_speaks();
    // The program, the server, two workers that run and one that is ready.
    eventually("all are there", || support::tagged(&tag).len() == 5);
    child.kill().unwrap();
    child.wait().unwrap();
    plays::assert_nothing_left(&tag);
}

fn has_a_pool_of_copies() {
    let gate = PathBuf::from(argument());
    let builder = ProcessPoolExecutor::builder().max_workers(2);
    let pool = builder.isolation(Isolation::PerTask).ready(1).build().unwrap();
    let _held = [(); 2].map(|()| pool.submit(hold::task(&gate)));
    eventually("they run", || fs::read_dir(&gate).unwrap().count() == 3);
    plays::ready();
    loop {
        thread::park();
    }
}

fn a_fork_server_that_prepares_ends_with_its_program() {
    let gate = Gate::new();
    let (mut child, _stdout, tag) =
        play("has_a_server_that_prepares").argument(gate.path()).until_it_speaks();
    assert_eq!(support::tagged(&tag).len(), 2);
    child.kill().unwrap();
    child.wait().unwrap();
    plays::assert_nothing_left(&tag);
}

fn has_a_server_that_prepares() {
    let gate = PathBuf::from(argument());
    let builder = ProcessPoolExecutor::builder().max_workers(1);
    let builder = builder.start_method(StartMethod::ForkServer).preload(hold::task(&gate));
    let pool = builder.build().unwrap();
    let _waits = pool.submit(pid::task());
    eventually("it prepares", || fs::read_dir(&gate).unwrap().count() == 2);
    plays::ready();
    loop {
        thread::park();
    }
}

static LOADED: AtomicU64 = AtomicU64::new(0);

#[task]
fn load(file: &Path, value: u64) {
    let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
    writeln!(file, "{}", std::process::id()).unwrap();
    LOADED.fetch_add(value, Ordering::Relaxed);
    let hook = file.try_clone().unwrap();
    executor::at_exit(0, move || writeln!(&hook, "a hook of the server's").unwrap());
}

#[task]
fn loaded() -> u64 {
    LOADED.load(Ordering::Relaxed)
}

fn preload_runs_once_in_the_server_and_children_have_its_effect() {
    assert_eq!(play("preloads").play_out(), "fine\n");
}

fn preloads() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("loads");
    let context = Context::new(StartMethod::ForkServer)
        .preload(load::task(&file, 40))
        .preload(load::task(&file, 2));
    assert!(!file.exists(), "the server is started with its first child");
    for _ in 0..5 {
        assert_eq!(joined(&context.process(loaded::task()).start().unwrap()).unwrap(), 42);
    }
    let server = server();
    let lines = format!("{server}\n{server}\n");
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        lines,
        "each once, in the server, and children have not its hooks"
    );
    // Other start methods and other contexts do not have the preload's effect.
    assert_eq!(joined(&Process::new(loaded::task()).start().unwrap()).unwrap(), 0);
    let other = Context::new(StartMethod::ForkServer);
    assert_eq!(joined(&other.process(loaded::task()).start().unwrap()).unwrap(), 0);
    // A server ends with its context.
    drop((context, other));
    assert_eq!(children(), []);
    fine();
}

#[task]
fn leave_a_thread() {
    thread::spawn(|| {
        loop {
            thread::park();
        }
    });
}

#[task]
fn fail_to_load() -> Result<(), String> {
    Err("there is no such model".to_owned())
}

#[task]
fn end_while_loading() {
    std::process::exit(0)
}

fn a_preload_that_fails_is_an_error_of_every_start() {
    assert_eq!(play("preloads_in_vain").play_out(), "fine\n");
}

fn preloads_in_vain() {
    let refused = |context: Context| {
        // Each start fails, with the same reason.
        let errors = [(); 2].map(|()| context.process(pid::task()).start().unwrap_err());
        assert_eq!(errors[0].to_string(), errors[1].to_string());
        errors[0].to_string()
    };
    let context = || Context::new(StartMethod::ForkServer);
    let text = refused(context().preload(leave_a_thread::task()));
    assert!(text.contains("2 threads"), "{text}");
    let text = refused(context().preload(fail_to_load::task()));
    assert!(text.contains("there is no such model") && text.contains("fail_to_load"), "{text}");
    let text = refused(context().preload(fail_to_load::task().name("model 7")));
    assert!(text.contains("there is no such model") && text.contains("`model 7`"), "{text}");
    let limited = context().preload(fail_to_load::task().timeout(Duration::MAX).name("model 7"));
    let text = refused(limited);
    assert!(text.contains("time limit") && text.contains("`model 7`"), "{text}");
    let text = refused(context().preload(end_while_loading::task()));
    assert!(text.contains("preload"), "{text}");
    assert_eq!(children(), [], "no server stays");
    // With other methods, `preload` does nothing.
    let child = Context::new(StartMethod::Fork)
        .preload(fail_to_load::task())
        .process(pid::task())
        .start()
        .unwrap();
    joined(&child).unwrap();
    fine();
}

// ---- signals ------------------------------------------------------------------------------------

extern "C" fn ignore_loudly(_: i32) {}

fn processes_work_during_a_storm_of_signals() {
    assert_eq!(play("is_in_a_storm").play_out(), "fine\n");
}

/// Two processes: this one works, and the other one sends it signals without a pause. The handler
/// has no SA_RESTART, so the signals interrupt every call.
fn is_in_a_storm() {
    // SAFETY: installs a handler that does nothing.
    unsafe {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        action.sa_sigaction = ignore_loudly as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut());
    }
    let target = std::process::id();
    let signals = || {
        while support::runs(target) && executor::getppid() == target {
            signal(target, Signal::USR1);
        }
    };
    // SAFETY: the closure touches no shared memory.
    let storm = unsafe { executor::fork_with(signals) }.unwrap();
    for round in 0..10_i32 {
        for method in METHODS {
            let two = [0, 1].map(|more| {
                Process::new(echo::task(round as u64 + more)).start_method(method).start()
            });
            let two = two.map(|child| joined(&child.unwrap()).unwrap());
            assert_eq!(two, [round as u64, round as u64 + 1]);
            let child = Process::new(exit::task(round)).start_method(method).start().unwrap();
            assert_eq!(child.wait_exit_timeout(LONG), Some(ExitStatus::Exited(round)));
        }
    }
    signal(storm, Signal::KILL);
    status(storm);
    fine();
}

// ---- a system that refuses ----------------------------------------------------------------------

fn too_few_descriptors_are_an_error_and_never_a_hang() {
    with_each("has_few_descriptors");
}

fn has_few_descriptors() {
    // Open everything that stays open for good.
    joined(&Process::new(pid::task()).start().unwrap()).unwrap();
    let before = support::descriptors();
    let normal = support::limit_of(Resource::Nofile);
    let (mut refused, mut worked) = (0, 0);
    for room in 0..24_usize {
        let limit = 3 + room as u64;
        setrlimit(Resource::Nofile, Rlimit { current: Some(limit), ..normal }).unwrap();
        // A new context, because a fork server keeps the limit that it was started with.
        let context = Context::new(method());
        let started = context.process(echo::task(room as u64)).start();
        let ended = started.map(|child| (joined(&child), child.wait_exit()));
        setrlimit(Resource::Nofile, normal).unwrap();
        match ended {
            Ok((Ok(value), status)) => {
                assert_eq!((value, status), (room as u64, ExitStatus::Exited(0)));
                worked += 1;
            }
            // The limit applies to the child as well.
            Ok((Err(_), status)) => assert_ne!(status, ExitStatus::Exited(0)),
            Err(error) => {
                let text = format!("{error:?}");
                assert!(
                    text.contains("Too many open files") || matches!(error, StartError::NoEntry),
                    "{text}"
                );
                refused += 1;
            }
        }
    }
    assert!(refused > 2 && worked > 2, "{refused} were refused, {worked} worked");
    eventually("no descriptor stays", || support::descriptors() <= before);
    assert_eq!(children(), []);
    fine();
}

fn children_reaped_by_others_still_report_their_value() {
    with_each("ignores_the_ends_of_children");
}

fn ignores_the_ends_of_children() {
    // SAFETY: only sets a disposition. From now on the system reaps all children.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    for round in 0..20 {
        let child = Process::new(echo::task(round)).start_method(method()).start().unwrap();
        assert_eq!(joined(&child).unwrap(), round, "what it said is there");
        assert_eq!(child.exit_code(), Some(ExitStatus::Unknown));
        let child = Process::new(exit::task(3)).start_method(method()).start().unwrap();
        let error = joined(&child).unwrap_err();
        assert!(error.is_worker_lost(), "{error}");
        assert!(!child.is_alive());
    }
    fine();
}

// ---- large results, and results that are not read -----------------------------------------------

#[task]
fn large(gate: &Path, len: usize) -> Vec<u8> {
    come_to(gate);
    vec![7; len]
}

/// Opens files until the limit is reached.
fn all_descriptors() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

/// Opens the gate when no descriptor is left. Opening the gate needs a descriptor, so a few are
/// free for a moment: fewer than the number that any task here sends.
fn open_without_descriptors(gate: &Gate) -> Vec<File> {
    let mut files = all_descriptors();
    files.truncate(files.len() - 2);
    gate.open();
    files.append(&mut all_descriptors());
    files
}

fn few_descriptors() {
    let limit = support::limit_of(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(128), ..limit }).unwrap();
}

fn a_large_result_arrives_although_no_descriptor_is_left() {
    with_each("has_no_descriptor_left");
}

fn has_no_descriptor_left() {
    few_descriptors();
    for _ in 0..6 {
        let gate = Gate::new();
        let start = || {
            Process::new(large::task(gate.path(), 200_000)).start_method(method()).start().unwrap()
        };
        let started = [start(), start(), start()];
        gate.wait_for(started.len());
        let files = open_without_descriptors(&gate);
        for child in &started {
            assert_eq!(joined(child).unwrap(), vec![7; 200_000]);
            assert_eq!(child.exit_code(), Some(ExitStatus::Exited(0)));
        }
        drop(files);
    }
    fine();
}

#[task]
fn handles(gate: &Path) -> Vec<SharedBytes> {
    come_to(gate);
    (0..10).map(|number| SharedBytes::from(&[number][..])).collect()
}

fn a_result_whose_descriptors_cannot_be_received_is_an_error_that_says_so() {
    with_each("has_no_descriptor_for_handles");
}

fn has_no_descriptor_for_handles() {
    few_descriptors();
    let gate = Gate::new();
    let child = Process::new(handles::task(gate.path())).start_method(method()).start().unwrap();
    gate.wait_for(1);
    // All descriptors must be used up before the child reports, because another thread of this
    // process receives the report as soon as it arrives.
    let files = open_without_descriptors(&gate);
    let error = joined(&child).unwrap_err();
    assert!(
        !error.is_worker_lost() && error.to_string().contains("Too many open files"),
        "{error}"
    );
    drop(files);
    let child = Process::new(handles::task(gate.path())).start_method(method()).start().unwrap();
    assert_eq!(joined(&child).unwrap().len(), 10);
    fine();
}

fn a_large_result_is_read_only_when_it_is_joined() {
    with_each("leaves_a_large_result");
}

/// Returns the resident anonymous memory of this process, in kilobytes.
fn own_memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn leaves_a_large_result() {
    const LEN: usize = 100 << 20;
    let gate = Gate::new();
    gate.open();
    let before = own_memory();
    let child = Process::new(large::task(gate.path(), LEN)).start_method(method()).start().unwrap();
    let status = child.wait_exit_timeout(LONG);
    assert_eq!(
        status,
        Some(ExitStatus::Exited(0)),
        "{:?}",
        joined(&child).map(|bytes| bytes.len())
    );
    // A result must not be read in advance, because that would happen on a thread for which all
    // other processes wait.
    let grown = own_memory().saturating_sub(before);
    assert!(grown < LEN / 1024 / 4, "{grown} kB");
    assert!(joined(&child).unwrap() == vec![7; LEN]);
    fine();
}

// ---- the C library's state in a child -----------------------------------------------------------

/// Maps a mutex of the C library from a file that processes share.
fn mutex(file: &Path) -> *mut libc::pthread_mutex_t {
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let (protection, len) =
        (libc::PROT_READ | libc::PROT_WRITE, size_of::<libc::pthread_mutex_t>());
    // SAFETY: creates a mapping at an address that the kernel chooses. It is never unmapped.
    let at = unsafe {
        libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    assert_ne!(at, libc::MAP_FAILED);
    at.cast()
}

#[task]
fn locks_and_holds(gate: &Path) -> i32 {
    // SAFETY: the parent has initialized the mutex, and it stays mapped.
    let locked = unsafe { libc::pthread_mutex_trylock(mutex(&gate.join("mutex"))) };
    come_to(gate);
    locked
}

#[task]
fn locks(gate: &Path) -> i32 {
    // SAFETY: as above.
    unsafe { libc::pthread_mutex_trylock(mutex(&gate.join("mutex"))) }
}

fn a_child_owns_mutexes_of_the_c_library_separately() {
    with_each("shares_a_mutex");
}

fn shares_a_mutex() {
    let gate = Gate::new();
    fs::write(gate.file("mutex"), [0; size_of::<libc::pthread_mutex_t>()]).unwrap();
    let shared = mutex(&gate.file("mutex"));
    let mut attributes = MaybeUninit::uninit();
    // SAFETY: initializes the attributes first, then the mutex, which is mapped.
    unsafe {
        libc::pthread_mutexattr_init(attributes.as_mut_ptr());
        libc::pthread_mutexattr_setpshared(attributes.as_mut_ptr(), libc::PTHREAD_PROCESS_SHARED);
        libc::pthread_mutexattr_settype(attributes.as_mut_ptr(), libc::PTHREAD_MUTEX_RECURSIVE);
        libc::pthread_mutexattr_setrobust(attributes.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST);
        assert_eq!(libc::pthread_mutex_init(shared, attributes.as_ptr()), 0);
    }
    let holder =
        Process::new(locks_and_holds::task(gate.path())).start_method(method()).start().unwrap();
    gate.wait_for(1);
    let other =
        || joined(&Process::new(locks::task(gate.path())).start_method(method()).start().unwrap());
    assert_eq!(other().unwrap(), libc::EBUSY, "it is another one's");
    holder.kill().unwrap();
    assert!(holder.wait_exit_timeout(LONG).is_some());
    assert_eq!(other().unwrap(), libc::EOWNERDEAD, "whose death the kernel tells of");
    fine();
}

#[task]
fn raises(number: i32) {
    // SAFETY: only sends a signal to this thread.
    unsafe { libc::raise(number) };
    loop {
        thread::park();
    }
}

fn a_child_ends_by_a_fault_signal_that_was_sent() {
    with_each("is_sent_a_fault");
}

fn is_sent_a_fault() {
    for round in 0..24 {
        let number = if round % 2 == 0 { libc::SIGSEGV } else { libc::SIGBUS };
        let child = Process::new(raises::task(number)).start_method(method()).start().unwrap();
        assert_eq!(child.wait_exit_timeout(LONG), Some(ExitStatus::Signaled(number)), "{round}");
    }
    fine();
}

#[task]
fn own_name() -> String {
    fs::read_to_string(format!("/proc/{}/comm", std::process::id())).unwrap().trim().to_owned()
}

fn children_are_named_after_the_program_and_themselves() {
    with_each("asks_for_names");
}

fn asks_for_names() {
    let name = own_name();
    assert_ne!(name, "exe");
    let child = Process::new(own_name::task()).name("p-1").start_method(method()).start().unwrap();
    // The kernel allows 15 bytes.
    assert_eq!(joined(&child).unwrap(), format!("{}:p-1", &name[..name.len().min(11)]));
    if method() == StartMethod::Spawn {
        let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
        let shown = pool.submit(own_name::task()).result().unwrap();
        assert_eq!(shown, format!("{}:0", &name[..name.len().min(13)]));
    }
    fine();
}
