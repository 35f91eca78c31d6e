//! How managers begin and end, and their limits.

use std::{fs, thread, time::Duration};

use executor::{
    ExitStatus,
    manager::{List, Manager, ManagerError, Queue},
    prelude::*,
};

use rustix::process::Signal;

use super::{Done, SHORT, has_objects, sleep, start};
use crate::support::{
    LONG, descriptors, eventually, fail, ignores, note, notes, runs, signal, state, watchdog,
};

#[test]
fn mg11_the_servers_exit_code_is_0_after_a_scope_or_a_shutdown() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    assert_eq!(manager.exit_status(), None);
    let list = manager.list([1]).unwrap();
    manager.shutdown();
    assert_eq!(manager.exit_status(), Some(ExitStatus::Exited(0)));
    manager.shutdown();
    assert!(matches!(list.len(), Err(ManagerError::Gone(_))));
    // At the end of a scope, the process is gone and reaped.
    let pid = {
        let manager = Manager::builder().name("scoped").start().unwrap();
        manager.pid()
    };
    assert_eq!(state(pid), None);
}

/// Returns the numbers of descriptors after each of several rounds. All errors are kept.
#[task]
fn make_errors(rounds: usize) -> Result<Vec<usize>, ManagerError> {
    let mut errors = Vec::new();
    let each = (0..rounds).map(|_| {
        let manager = Manager::start()?;
        let list = manager.list([1])?;
        errors.push(manager.lock()?.release().expect_err("it is not held"));
        manager.shutdown();
        errors.push(list.len().expect_err("it has ended"));
        drop((manager, list));
        Ok(descriptors())
    });
    each.collect()
}

#[test]
fn mg15_an_error_keeps_no_object_and_no_connection_alive() {
    let _watchdog = watchdog();
    // The connection to a server that has ended stays until the process makes another one.
    let numbers = start(make_errors::task(5)).join().unwrap();
    assert!(numbers[4] <= numbers[1], "{numbers:?}");
    // An object goes although an error of a call of it is kept.
    let manager = Manager::start().unwrap();
    let lock = manager.lock().unwrap();
    let error = lock.release().unwrap_err();
    drop(lock);
    has_objects(&manager, 0);
    drop(error);
}

#[task]
fn make_managers(count: usize) -> Result<(usize, usize, usize), ManagerError> {
    drop(Manager::start()?.list([1])?);
    let (before, mut most) = (descriptors(), 0);
    for number in 0..count {
        let manager = Manager::start()?;
        let list = manager.list([number])?;
        let sent = executor::Queue::unbounded().expect("a queue");
        sent.put(list).expect("it is open");
        assert_eq!(sent.get().expect("it was put").get(0)?, Some(number));
        most = most.max(descriptors());
    }
    eventually("no descriptor is left", || descriptors() <= before);
    Ok((before, most, descriptors()))
}

#[test]
fn many_managers_one_after_the_other_leave_no_descriptor() {
    let _watchdog = watchdog();
    let (before, most, after) = start(make_managers::task(10)).join().unwrap();
    assert_eq!(after, before, "at most {most}");
}

#[test]
fn mg16_an_initializer_runs_once_and_its_failure_is_the_error_of_the_start() {
    let _watchdog = watchdog();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes");
    let manager = Manager::builder().initializer(note::task(file.clone(), 7)).start().unwrap();
    manager.list([1]).unwrap().push(&2).unwrap();
    assert_eq!(notes(&file), [7]);
    drop(manager);
    assert_eq!(notes(&file), [7]);
    let failing = Manager::builder().initializer(fail::task("not today".to_owned())).start();
    let error = failing.unwrap_err();
    let ManagerError::NotStarted(text) = &error else { panic!("{error:?}") };
    assert!(text.contains("initializer") && text.contains("not today"), "{text}");
    let exits = Manager::builder().initializer(crate::support::exit::task(3)).start();
    let error = exits.unwrap_err();
    assert!(matches!(error, ManagerError::NotStarted(_)), "{error:?}");
    assert!(error.to_string().contains('3'), "{error}");
    let panics = Manager::builder().initializer(panics::task()).start().unwrap_err();
    assert!(panics.to_string().contains("on purpose"), "{panics}");
}

#[test]
fn options_that_nobody_heeds_are_refused_in_an_initializer() {
    let second = Duration::from_secs(1);
    for (task, option) in [
        (panics::task().timeout(second), "`timeout`"),
        (panics::task().queue_timeout(second), "`queue_timeout`"),
        (panics::task().retries(1), "`retries`"),
    ] {
        let error = Manager::builder().initializer(task).start().unwrap_err();
        assert!(matches!(error, ManagerError::NotStarted(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(option) && text.contains("panics"), "{text}");
    }
}

#[task]
fn panics() {
    panic!("on purpose")
}

/// A terminal sends Ctrl-C to its foreground process group.
#[test]
fn the_server_is_not_in_the_process_group_of_its_manager() {
    let manager = Manager::start().unwrap();
    let group = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // State, parent, group. The name before them may contain parentheses.
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(2).unwrap().to_owned()
    };
    assert_ne!(group(manager.pid()), group(std::process::id()));
}

#[test]
fn a_call_with_more_bytes_than_allowed_is_an_error_and_nothing_is_sent() {
    let _watchdog = watchdog();
    let manager = Manager::builder().message_bytes_max(1_000).start().unwrap();
    let list = manager.list::<Vec<u8>>([]).unwrap();
    list.push(&vec![0; 900]).unwrap();
    let error = list.push(&vec![0; 1_000]).unwrap_err();
    let ManagerError::Limit(text) = &error else { panic!("{error:?}") };
    assert!(text.contains("`message_bytes_max` is 1000"), "{text}");
    assert_eq!(list.len().unwrap(), 1);
    let error = futures::executor::block_on(list.push_async(&vec![0; 1_000])).unwrap_err();
    assert!(matches!(error, ManagerError::Limit(_)), "{error:?}");
}

#[test]
fn an_answer_larger_than_message_bytes_max_is_read_or_is_an_error_of_its_call() {
    let manager = Manager::builder().message_bytes_max(1_000).start().unwrap();
    let list = manager.list::<Vec<u8>>([]).unwrap();
    list.push(&vec![0; 900]).unwrap();
    list.push(&vec![1; 900]).unwrap();
    let all = list.snapshot();
    assert!(!matches!(all, Err(ManagerError::Gone(_))), "{all:?}");
    assert_eq!(list.len().unwrap(), 2);
}

#[test]
fn more_objects_than_allowed_are_an_error() {
    let _watchdog = watchdog();
    let manager = Manager::builder().objects_max(2).start().unwrap();
    let (list, lock) = (manager.list([1]).unwrap(), manager.lock().unwrap());
    let error = manager.event().unwrap_err();
    let ManagerError::Limit(text) = &error else { panic!("{error:?}") };
    assert!(text.contains("objects"), "{text}");
    drop(lock);
    drop(manager.event().unwrap());
    assert_eq!(list.len().unwrap(), 1);
}

#[task]
fn use_and_stay(list: List<u32>, used: executor::Event) -> Done {
    list.push(&1)?;
    used.set();
    sleep()
}

#[task]
fn error_of_use(list: List<u32>) -> String {
    list.len().map_or_else(|error| error.to_string(), |len| format!("it has {len} items"))
}

#[test]
fn more_clients_than_allowed_are_turned_away() {
    let _watchdog = watchdog();
    let manager = Manager::builder().clients_max(2).start().unwrap();
    let list = manager.list([]).unwrap();
    let used = executor::Event::new().unwrap();
    let child = start(use_and_stay::task(list.clone(), used.clone()));
    assert!(used.wait_timeout(LONG));
    let text = start(error_of_use::task(list.clone())).join().unwrap();
    assert!(text.contains("as many clients as it allows"), "{text}");
    child.kill().unwrap();
    super::ends_killed(&child);
    eventually("there is room again", || {
        start(error_of_use::task(list.clone())).join().unwrap() == "it has 1 items"
    });
}

#[test]
fn more_waiting_calls_than_allowed_are_an_error() {
    let _watchdog = watchdog();
    let manager = Manager::builder().client_calls_max(2).client_bytes_max(100).start().unwrap();
    let queue = manager.queue::<Vec<u8>>(Some(1)).unwrap();
    let empty: Queue<u8> = manager.queue(None).unwrap();
    queue.put(&vec![0]).unwrap();
    let error = queue.put(&vec![0; 200]).unwrap_err();
    let ManagerError::Limit(text) = &error else { panic!("{error:?}") };
    assert!(text.contains("bytes"), "{text}");
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut waiting = [0; 2].map(|_| Box::pin(empty.get_async()));
    for call in &mut waiting {
        assert!(std::future::Future::poll(call.as_mut(), &mut context).is_pending());
    }
    let error = empty.get().unwrap_err();
    let ManagerError::Limit(text) = &error else { panic!("{error:?}") };
    assert!(text.contains("too many calls"), "{text}");
    drop(waiting);
    assert_eq!(empty.get_timeout(SHORT).unwrap(), None);
}

#[test]
fn a_server_that_is_asked_to_end_and_does_not_is_killed() {
    let _watchdog = watchdog();
    let manager = Manager::builder().shutdown_timeout(Duration::from_millis(10)).start().unwrap();
    crate::support::stop(manager.pid());
    let pid = manager.pid();
    drop(manager);
    assert!(!runs(pid));
}

#[test]
fn an_idle_manager_uses_no_processor_time() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let list = manager.list([1]).unwrap();
    for _ in 0..1_000 {
        list.len().unwrap();
    }
    eventually("the server sleeps", || state(manager.pid()) == Some('S'));
    let switches = || {
        let status = fs::read_to_string(format!("/proc/{}/status", manager.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt")).unwrap();
        line.rsplit('\t').next().unwrap().parse::<u64>().unwrap()
    };
    let before = switches();
    // This sleep does not enforce an order: it is time in which the server would wake up.
    thread::sleep(20 * SHORT);
    assert_eq!(switches(), before, "it has not woken up");
}

/// Prints what users read, with `--nocapture`, and checks that each error says what it is about.
#[test]
fn errors_and_debug_texts_name_what_they_are_about() {
    let _watchdog = watchdog();
    let manager = Manager::builder().message_bytes_max(10_000).start().unwrap();
    println!("{manager:?}\n{:?}", Manager::builder());
    let (list, lock) = (manager.list([1]).unwrap(), manager.lock().unwrap());
    let (queue, semaphore) =
        (manager.joinable_queue::<u8>(Some(1)).unwrap(), manager.bounded_semaphore(1).unwrap());
    let space = manager.namespace().unwrap();
    space.set("x", "y").unwrap();
    let (condition, dict) = (manager.condition().unwrap(), manager.dict::<u8, u8>([]).unwrap());
    let shown: [&dyn std::fmt::Debug; 8] = [
        &list,
        &list.iter(),
        &lock,
        &lock.acquire().unwrap(),
        &semaphore.acquire().unwrap(),
        &condition,
        &dict.iter(),
        &dict.entry(1),
    ];
    for shown in shown {
        println!("{shown:?}");
    }
    // The guard and the permit, which live as long as the list of what is shown.
    lock.release().unwrap();
    semaphore.release().unwrap();
    let errors = [
        (lock.release().unwrap_err(), "lock"),
        (semaphore.release().unwrap_err(), "semaphore"),
        (queue.task_done().unwrap_err(), "task_done"),
        (manager.queue::<u8>(Some(0)).unwrap_err(), "queue"),
        (manager.barrier(0).unwrap_err(), "barrier"),
        (space.get::<u64>("x").unwrap_err(), "u64"),
        (space.set("x", &vec![0; 20_000]).unwrap_err(), "message_bytes_max"),
        (Manager::builder().initializer(panics::task()).start().unwrap_err(), "initializer"),
        (Manager::builder().initializer(fail::task(String::new())).start().unwrap_err(), "fail"),
    ];
    for (error, word) in errors {
        println!("{error}\n    {error:?}");
        assert!(error.to_string().contains(word), "{error}");
    }
    manager.shutdown();
    println!("{}\n{manager:?}", list.len().unwrap_err());
    println!("{}", manager.list([1]).unwrap_err());
}

/// Python's server ignores SIGINT, whoever sends it.
#[test]
fn the_server_lives_on_after_sigint() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let list = manager.list([1]).unwrap();
    // The kernel drops a signal that is ignored when it is sent, so nothing comes later.
    assert!(ignores(manager.pid(), Signal::INT));
    signal(manager.pid(), Signal::INT);
    assert_eq!(list.len().unwrap(), 1);
}
