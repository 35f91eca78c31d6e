//! What the manager does not do yet as it should. Each test fails, for the reason that it says.

use std::{collections::BTreeSet, thread, time::Duration};

use executor::{
    manager::{Event, Lock, Manager, ManagerError, Queue},
    prelude::*,
};
use rustix::process::Signal;

use super::{SHORT, start};
use crate::support::{LONG, rounds, signal, stop, watchdog, with_a_timeout_long_enough};

/// The handle is dropped as soon as it is encoded, before the request is sent: its release reaches
/// the server first.
#[test]
fn a_handle_given_away_to_a_new_dict_is_stored() {
    let manager = Manager::start().unwrap();
    let dict = manager.dict([(1, manager.queue::<u8>(None).unwrap())]).unwrap();
    assert!(dict.get(&1).unwrap().unwrap().is_empty().unwrap());
}

#[test]
fn a_handle_given_away_to_a_list_is_stored() {
    let manager = Manager::start().unwrap();
    let make = || manager.list([1]).unwrap();
    let list = manager.list([make()]).unwrap();
    list.extend([make()]).unwrap();
    list.splice(0..0, [make()]).unwrap();
    assert_eq!(list.len().unwrap(), 3);
}

/// One that is on its way when the timeout is over is put back behind the next call, which gets the
/// item after it.
#[test]
fn a_get_timeout_that_runs_out_keeps_the_order() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let queue = manager.queue::<u32>(None).unwrap();
    let count = rounds() as u32;
    let mut got = Vec::new();
    thread::scope(|scope| {
        let mut timeouts = 0;
        scope.spawn(|| {
            for number in 0..count {
                queue.put(&number).unwrap();
                if number % 3 == 0 {
                    thread::sleep(Duration::from_micros(u64::from(number % 7) * 50));
                }
            }
        });
        while got.len() < count as usize {
            timeouts += 1;
            got.extend(queue.get_timeout(Duration::from_micros(timeouts % 13 * 25)).unwrap());
        }
    });
    assert_eq!(got.iter().collect::<BTreeSet<_>>().len(), got.len(), "each once");
    assert!(got.is_sorted(), "{got:?}");
}

#[task]
fn connect_then_try(
    (queue, lock): (Queue<u32>, Lock),
    connected: Event,
    begin: executor::Event,
) -> Result<bool, ManagerError> {
    // Each handle makes its first call, which claims its object.
    queue.len()?;
    lock.is_locked()?;
    connected.set()?;
    begin.wait();
    Ok(queue.get_timeout(SHORT)?.is_none() && lock.acquire_timeout(SHORT)?.is_none())
}

/// Returns a manager whose server has not seen yet that the calls of a process timed out and that
/// the process has ended.
fn after_the_end_of_a_process_that_timed_out() -> (Manager, Queue<u32>, Lock) {
    let manager = Manager::start().unwrap();
    let (queue, lock) = (manager.queue::<u32>(None).unwrap(), manager.lock().unwrap());
    let (begin, connected) = (executor::Event::new().unwrap(), manager.event().unwrap());
    let both = (queue.clone(), lock.clone());
    let child = start(connect_then_try::task(both, connected.clone(), begin.clone()));
    assert!(connected.wait_timeout(LONG).unwrap());
    queue.put(&1).unwrap();
    stop(manager.pid());
    begin.set();
    assert!(child.join().unwrap(), "nothing came in time");
    signal(manager.pid(), Signal::CONT);
    (manager, queue, lock)
}

/// The server gives the item to a process that has ended. It was in the reply ring, and is not put
/// back.
#[test]
fn a_process_that_ends_after_its_get_timed_out_takes_no_item_along() {
    let _watchdog = watchdog();
    let (_manager, queue, _lock) = after_the_end_of_a_process_that_timed_out();
    let item =
        with_a_timeout_long_enough("the item", |timeout| queue.get_timeout(timeout).unwrap());
    assert_eq!(item, 1);
}

#[test]
fn a_process_that_ends_after_its_acquire_timed_out_is_no_owner_that_died() {
    let _watchdog = watchdog();
    let (_manager, _queue, lock) = after_the_end_of_a_process_that_timed_out();
    assert!(!lock.acquire().unwrap().owner_died(), "the call had been given up");
}

/// Python's server ignores SIGINT, whoever sends it.
#[test]
fn the_server_lives_on_after_sigint() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let list = manager.list([1]).unwrap();
    signal(manager.pid(), Signal::INT);
    let lives = with_a_timeout_long_enough("a second has passed", |timeout| {
        thread::sleep(timeout);
        (timeout > Duration::from_secs(1) || list.len().is_err()).then(|| list.len().is_ok())
    });
    assert!(lives);
}
