//! What tests of the manager have found: handles that are given away, the order of items, SIGINT.

use std::{collections::BTreeSet, thread, time::Duration};

use executor::manager::Manager;
use rustix::process::Signal;

use crate::support::{rounds, signal, watchdog, with_a_timeout_long_enough};

/// The handle is dropped as soon as it is encoded, before the request is sent. Its release must not
/// reach the server first.
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

/// An item that is on its way when the timeout is over must not be put back behind the next call,
/// which would get the item after it.
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
