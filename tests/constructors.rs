//! Constructors that run before `main` have run before any task, in a binary that uses the test
//! harness's `main`.

use executor::{Context, Process, StartMethod, prelude::*};
use executor_test_programs::constructed;

executor::test_support!();

/// A task finds the same state as the program itself, except for its own command-line arguments.
#[test]
fn constructors_of_a_library_run_before_any_task() {
    let (ready, arguments, runs) = constructed();
    assert_eq!((ready, arguments, runs), (7, std::env::args_os().count(), 1));
    // A worker has two arguments: the program's name and the marker.
    let expected = (7, 2, 1);
    let pool =
        ProcessPoolExecutor::builder().max_workers(1).initializer(prepare::task()).build().unwrap();
    assert_eq!(pool.submit(constructed::task()).result().unwrap(), expected);
    assert_eq!(Process::new(constructed::task()).start().unwrap().join().unwrap(), expected);
    let context = Context::new(StartMethod::ForkServer).preload(prepare::task());
    assert_eq!(context.process(constructed::task()).start().unwrap().join().unwrap(), expected);
}

#[task]
fn prepare() {
    assert_eq!(constructed(), (7, 2, 1));
}

/// A constructor may start threads and end them.
#[test]
fn a_thread_started_by_a_constructor_runs_in_a_worker() {
    let pool = ProcessPoolExecutor::builder().max_workers(1).env(WITH_THREAD, "").build().unwrap();
    assert!(pool.submit(a_thread_answers::task()).result().unwrap());
}

static ASK: std::sync::Mutex<Option<std::sync::mpsc::Sender<std::sync::mpsc::Sender<()>>>> =
    std::sync::Mutex::new(None);

/// Set only in this test's workers, because a fork server with threads is refused.
const WITH_THREAD: &str = "EXECUTOR_TEST_THREAD";

extern "C" fn start_a_thread() {
    if std::env::var_os(WITH_THREAD).is_none() {
        return;
    }
    let (sender, receiver) = std::sync::mpsc::channel::<std::sync::mpsc::Sender<()>>();
    std::thread::spawn(move || {
        for answer in receiver {
            answer.send(()).unwrap();
        }
    });
    *ASK.lock().unwrap() = Some(sender);
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start_a_thread;

#[task]
fn a_thread_answers() -> bool {
    let (sender, receiver) = std::sync::mpsc::channel();
    ASK.lock().unwrap().as_ref().expect("constructed").send(sender).unwrap();
    receiver.recv().is_ok()
}
