//! Large values: through a lane in parts, from buffers that are kept for the next ones.

use std::{fs, thread};

use executor::{
    manager::{Event, Manager, Value},
    prelude::*,
};
use serde_bytes::ByteBuf;

use super::{Done, ends_killed, start};
use crate::support::{LONG, eventually, stop, watchdog};

/// Bytes of a value that fills the rings many times. glibc gives a block above 32 MiB back to the
/// system at once, so the server's memory tells what it keeps.
const LARGE: usize = 40 << 20;

/// Returns the resident memory of a process, in bytes.
fn resident(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

fn bytes(len: usize, seed: u8) -> ByteBuf {
    (0..len)
        .map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed)
        .collect::<Vec<_>>()
        .into()
}

#[test]
fn values_around_every_limit_come_back_equal_whoever_sets_them() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let value = manager.value(ByteBuf::new()).unwrap();
    // A tail, a part, a buffer that is kept, the ring.
    let limits = [16 << 10, 32 << 10, 48 << 10, 64 << 10, 128 << 10, 2 << 20];
    let mut before = ByteBuf::new();
    for limit in limits {
        // Headers and lengths have some ten bytes.
        for len in (limit - 40..=limit + 8).step_by(8).chain([limit - 3, limit - 27, limit + 1]) {
            let set = bytes(len, len as u8);
            // In turn by a request with a reply that has the previous value, and by one without.
            match len % 2 {
                0 => value.set(&set).unwrap(),
                _ => assert!(value.swap(&set).unwrap() == before, "{len}"),
            }
            assert!(value.get().unwrap() == set, "{len}");
            before = set;
        }
    }
}

#[test]
fn a_large_value_may_be_anywhere_in_an_answer() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let items: Vec<ByteBuf> =
        [3, 300_000, 0, 20_000, 20_000, 7, 100_000].map(|len| bytes(len, 1)).into();
    let list = manager.list(items.clone()).unwrap();
    assert!(list.snapshot().unwrap() == items);
    assert!(list.range(1..4).unwrap().unwrap() == items[1..4]);
    let dict = manager.dict(items.iter().cloned().enumerate()).unwrap();
    assert!(
        dict.get_many([&6, &9, &1, &0]).unwrap()
            == [Some(items[6].clone()), None, Some(items[1].clone()), Some(items[0].clone())]
    );
    let (_, last) = dict.pop().unwrap().unwrap();
    assert!(last == items[6]);
    let namespace = manager.namespace().unwrap();
    namespace.set("large", &items[1]).unwrap();
    namespace.set("large", &items[6]).unwrap();
    assert!(namespace.get::<ByteBuf>("large").unwrap().unwrap() == items[6]);
}

#[test]
fn threads_of_a_process_that_share_a_connection_get_their_own_large_values() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    thread::scope(|scope| {
        for seed in 0..4 {
            let value = manager.value(ByteBuf::new()).unwrap();
            scope.spawn(move || {
                for round in 0..20 {
                    let set = bytes(40_000 << (round % 5), seed ^ round);
                    value.set(&set).unwrap();
                    assert!(value.get().unwrap() == set, "{seed}, {round}");
                }
            });
        }
    });
}

#[task]
fn set_and_get_for_ever(value: Value<ByteBuf>, begun: Event) -> Done {
    let mine = bytes(LARGE, 7);
    value.set(&mine)?;
    begun.set()?;
    loop {
        value.set(&mine)?;
        assert!(value.get()? == mine);
    }
}

#[test]
fn memory_of_clients_that_are_killed_or_stopped_within_large_calls_comes_back() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let value = manager.value(ByteBuf::new()).unwrap();
    let (before, whole) = (resident(manager.pid()), bytes(LARGE, 7));
    for round in 0..12 {
        let begun = manager.event().unwrap();
        let child = start(set_and_get_for_ever::task(value.clone(), begun.clone()));
        assert!(begun.wait_timeout(LONG).unwrap());
        if round % 3 == 0 {
            // The server serves others meanwhile.
            stop(child.pid());
            assert_eq!(value.get().unwrap().len(), LARGE);
        }
        child.kill().unwrap();
        ends_killed(&child);
        assert!(value.get().unwrap() == whole, "a whole one");
    }
    value.set(&ByteBuf::new()).unwrap();
    // Not that of twelve clients. The allocator may keep some of what it got in smaller blocks.
    eventually("the server has given back its memory", || {
        resident(manager.pid()) < before + 3 * LARGE
    });
}

#[test]
fn a_server_with_nothing_to_do_keeps_no_memory_of_large_values() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let value = manager.value(ByteBuf::new()).unwrap();
    let before = resident(manager.pid());
    value.set(&bytes(LARGE, 1)).unwrap();
    value.get().unwrap();
    assert!(resident(manager.pid()) >= before + LARGE, "it has the value");
    value.set(&ByteBuf::new()).unwrap();
    eventually("the server has given back its memory", || {
        resident(manager.pid()) < before + (LARGE / 4)
    });
}
