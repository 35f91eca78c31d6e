//! What runs before `main` has run before a task does, in a binary whose `main` is not the user's.

use executor::{Context, Process, StartMethod, prelude::*};
use executor_test_programs::constructed;

executor::test_support!();

/// What a task finds is what the program finds, but for its own arguments.
#[test]
fn a_library_is_constructed_before_a_task_runs() {
    let (ready, arguments, runs) = constructed();
    assert_eq!((ready, arguments, runs), (7, std::env::args_os().count(), 1));
    // The name of the program and the marker.
    let expected = (7, 2, 1);
    let pool = ProcessPoolExecutor::builder().max_workers(1).initializer(prepare::task()).build().unwrap();
    assert_eq!(pool.submit(constructed::task()).result().unwrap(), expected);
    assert_eq!(Process::new(constructed::task()).start().unwrap().join().unwrap(), expected);
    let context = Context::new(StartMethod::ForkServer).preload(prepare::task());
    assert_eq!(context.process(constructed::task()).start().unwrap().join().unwrap(), expected);
}

#[task]
fn prepare() {
    assert_eq!(constructed(), (7, 2, 1));
}

/// A constructor may start threads, and end them.
#[test]
fn what_a_constructor_leaves_running_runs_in_a_worker() {
    let pool = ProcessPoolExecutor::builder().max_workers(1).env(WITH_THREAD, "").build().unwrap();
    assert!(pool.submit(a_thread_answers::task()).result().unwrap());
}

static ASK: std::sync::Mutex<Option<std::sync::mpsc::Sender<std::sync::mpsc::Sender<()>>>> =
    std::sync::Mutex::new(None);

/// Not everywhere: a fork server with threads is refused.
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
