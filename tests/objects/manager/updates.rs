//! Functions that change values in the server.

use std::{path::Path, thread, time::Duration};

use executor::{
    manager::{Dict, List, Manager, ManagerError, Value},
    prelude::*,
};

use super::{Done, has_objects, start};
use crate::support::{Gate, come_to, eventually, rounds, watchdog};

#[task]
fn add(value: u64, n: u64) -> u64 {
    value + n
}

#[task]
fn add_or_begin(value: Option<u64>, n: u64) -> u64 {
    value.unwrap_or(100) + n
}

#[task]
fn fail_with(value: u64, message: &str) -> Result<u64, String> {
    Err(format!("{message}: {value}"))
}

#[task]
fn panic_with(value: u64, message: &str) -> u64 {
    panic!("{message}: {value}")
}

#[task]
fn add_at_the_gate(value: u64, gate: &Path) -> u64 {
    come_to(gate);
    value + 1
}

#[task]
fn never(value: u64, gate: &Path) -> u64 {
    std::fs::File::create(gate.join("arrival-1-never")).expect("a note at the gate");
    loop {
        thread::sleep(Duration::from_secs(value));
    }
}

#[task]
fn add_many(counts: Dict<String, u64>, value: Value<u64>, list: List<u64>, times: u64) -> Done {
    for _ in 0..times {
        counts.update_or_insert("count", add_or_begin::with(1))?;
        value.update(add::with(1))?;
        list.update(0, add::with(1))?.expect("there is an item");
    }
    Ok(())
}

#[test]
fn updates_of_eight_processes_lose_nothing() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (counts, value) = (manager.dict([]).unwrap(), manager.value(0).unwrap());
    let list = manager.list([0]).unwrap();
    let times = rounds() as u64 / 8;
    let children: Vec<_> = (0..8)
        .map(|_| start(add_many::task(counts.clone(), value.clone(), list.clone(), times)))
        .collect();
    children.iter().for_each(|child| child.join().unwrap());
    assert_eq!(counts.get("count").unwrap(), Some(100 + 8 * times));
    assert_eq!(value.get().unwrap(), 8 * times);
    assert_eq!(list.get(0).unwrap(), Some(8 * times));
}

#[task]
fn add_by_compare(
    counts: Dict<String, u64>,
    value: Value<u64>,
    times: u64,
) -> Result<u64, ManagerError> {
    let mut failures = 0;
    for _ in 0..times {
        let mut current = counts.get("count")?;
        while let Err(other) =
            counts.compare_exchange("count", current.as_ref(), Some(&(current.unwrap_or(0) + 1)))?
        {
            failures += 1;
            current = other;
        }
        let mut current = value.get()?;
        while let Err(other) = value.compare_exchange(&current, &(current + 1))? {
            failures += 1;
            current = other;
        }
    }
    Ok(failures)
}

#[test]
fn compare_exchanges_of_several_processes_lose_nothing() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (counts, value) = (manager.dict([]).unwrap(), manager.value(0).unwrap());
    let times = rounds() as u64 / 4;
    let children =
        [0; 4].map(|_| start(add_by_compare::task(counts.clone(), value.clone(), times)));
    let failures: u64 = children.iter().map(|child| child.join().unwrap()).sum();
    println!("{failures} had to be repeated");
    assert_eq!(counts.get("count").unwrap(), Some(4 * times));
    assert_eq!(value.get().unwrap(), 4 * times);
}

#[test]
fn an_update_that_fails_or_panics_leaves_the_value_as_it_was() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let value = manager.value(5).unwrap();
    let dict = manager.dict([("a".to_owned(), 6)]).unwrap();
    let list = manager.list([7]).unwrap();
    for _ in 0..3 {
        let error = value.update(fail_with::with("no")).unwrap_err();
        let ManagerError::Failed(TaskError::Failed(remote)) = &error else { panic!("{error:?}") };
        assert_eq!(remote.message(), "no: 5");
        assert!(error.to_string().contains("fail_with") && error.remote().is_some(), "{error}");
        let error = dict.update("a", panic_with::with("oh")).unwrap_err();
        let ManagerError::Failed(TaskError::Panicked(remote)) = &error else { panic!("{error:?}") };
        assert_eq!(remote.message(), "oh: 6");
        assert!(error.to_string().contains("panic_with"), "{error}");
        let error = list.update(0, fail_with::with("no")).unwrap_err();
        assert!(matches!(error, ManagerError::Failed(_)), "{error:?}");
    }
    assert_eq!((value.get().unwrap(), list.get(0).unwrap()), (5, Some(7)));
    assert_eq!((dict.get("a").unwrap(), dict.len().unwrap()), (Some(6), 1));
    // What is not there is not made by a function that needs a value.
    assert_eq!(dict.update("b", add::with(1)).unwrap(), None);
    assert_eq!(list.update(1, add::with(1)).unwrap(), None);
    assert_eq!((dict.len().unwrap(), list.len().unwrap()), (1, 1));
    assert_eq!(dict.entry("b".to_owned()).update(add_or_begin::with(1)).unwrap(), 101);
    assert_eq!(value.update(add::with(1)).unwrap(), 6);
}

#[test]
fn calls_of_an_object_that_is_updated_wait_and_those_of_others_do_not() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let gate = Gate::new();
    let (value, other) = (manager.value(1).unwrap(), manager.value(1).unwrap());
    thread::scope(|scope| {
        let update = scope.spawn(|| value.update(add_at_the_gate::with(gate.path())).unwrap());
        gate.wait_for(1);
        let waits = scope.spawn(|| value.get().unwrap());
        let second = scope.spawn(|| value.update(add::with(10)).unwrap());
        for number in 2..100 {
            assert_eq!(other.update(add::with(1)).unwrap(), number);
        }
        assert_eq!(manager.objects().unwrap(), 2);
        assert!(!waits.is_finished() && !second.is_finished() && !update.is_finished());
        gate.open();
        assert_eq!(update.join().unwrap(), 2);
        assert!([2, 12].contains(&waits.join().unwrap()));
        assert_eq!(second.join().unwrap(), 12);
    });
    assert_eq!(value.get().unwrap(), 12);
}

#[task]
fn update_at(value: Value<u64>, gate: &Path) -> Result<u64, ManagerError> {
    value.update(add_at_the_gate::with(gate))
}

#[test]
fn an_update_is_done_although_its_caller_was_killed() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let gate = Gate::new();
    let value = manager.value(1).unwrap();
    let child = start(update_at::task(value.clone(), gate.path()));
    gate.wait_for(1);
    child.kill().unwrap();
    super::ends_killed(&child);
    gate.open();
    // Whether the caller's death or the end of the function was first: the object is free again.
    assert!([1, 2].contains(&value.get().unwrap()));
    drop(value);
    has_objects(&manager, 0);
}

#[test]
fn an_update_that_never_ends_holds_up_only_its_object() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let gate = Gate::new();
    let (stuck, list) = (manager.value(1_000).unwrap(), manager.list([1]).unwrap());
    thread::scope(|scope| {
        let update = scope.spawn(|| stuck.update(never::with(gate.path())).unwrap_err());
        gate.wait_for(1);
        let waits = scope.spawn(|| stuck.get().unwrap_err());
        for _ in 0..100 {
            list.push(&1).unwrap();
        }
        assert_eq!(list.len().unwrap(), 101);
        assert!(!waits.is_finished() && !update.is_finished());
        // The server ends although a function runs in it.
        manager.shutdown();
        for error in [update.join().unwrap(), waits.join().unwrap()] {
            assert!(matches!(error, ManagerError::Gone(_)), "{error:?}");
        }
    });
    eventually("it has ended", || manager.exit_status().is_some());
}

#[task]
fn push_into(list: List<u32>, item: u32) -> Result<List<u32>, ManagerError> {
    list.push(&item)?;
    Ok(list)
}

#[task]
fn count_in(value: (u64, List<u32>)) -> Result<(u64, List<u32>), ManagerError> {
    Ok((value.1.len()? as u64, value.1))
}

#[task]
fn exchange_for(old: List<u32>, new: List<u32>) -> List<u32> {
    assert_ne!(old, new);
    new
}

#[test]
fn a_function_in_the_server_gets_uses_and_returns_handles() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let list = manager.list([1]).unwrap();
    let value = manager.value(list.clone()).unwrap();
    assert_eq!(value.update(push_into::with(2)).unwrap(), list);
    let both = manager.value((0, list.clone())).unwrap();
    assert_eq!(both.update(count_in::with()).unwrap(), (2, list.clone()));
    assert_eq!(value.get().unwrap(), list);
    // The value keeps the new one, and nobody the old one.
    both.set(&(7, manager.list([5]).unwrap())).unwrap();
    drop(list);
    has_objects(&manager, 4);
    let other = value.update(exchange_for::with(manager.list([9]).unwrap())).unwrap();
    assert_eq!(other.snapshot().unwrap(), [9]);
    drop(other);
    has_objects(&manager, 4);
    assert_eq!(value.get().unwrap().snapshot().unwrap(), [9]);
    // One that fails changes nothing, and keeps nothing of what it was given.
    let same = value.get().unwrap();
    let error = value.update(exchange_for::with(same.clone())).unwrap_err();
    assert!(matches!(error, ManagerError::Failed(TaskError::Panicked(_))), "{error:?}");
    assert_eq!(value.get().unwrap(), same);
    drop((value, both, same));
    has_objects(&manager, 0);
}

#[test]
fn an_update_is_given_what_its_value_names_although_the_object_is_gone_meanwhile() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let gate = Gate::new();
    let value = manager.value(manager.list([1_u32]).unwrap()).unwrap();
    {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut update = std::pin::pin!(value.update_async(count_at_the_gate::with(gate.path())));
        assert!(std::future::Future::poll(update.as_mut(), &mut context).is_pending());
        gate.wait_for(1);
    }
    drop(value);
    has_objects(&manager, 1);
    gate.open();
    eventually("it has counted", || gate.path().join("counted-1").exists());
    has_objects(&manager, 0);
}

#[task]
fn count_at_the_gate(list: List<u32>, gate: &Path) -> Result<List<u32>, ManagerError> {
    come_to(gate);
    let name = format!("counted-{}", list.len()?);
    std::fs::File::create(gate.join(name)).expect("a note");
    Ok(list)
}

#[test]
fn a_dropped_update_is_done_or_not_and_frees_its_object() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let gate = Gate::new();
    let value = manager.value(1).unwrap();
    {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut update = std::pin::pin!(value.update_async(add_at_the_gate::with(gate.path())));
        assert!(std::future::Future::poll(update.as_mut(), &mut context).is_pending());
        gate.wait_for(1);
    }
    let read = thread::spawn({
        let value = value.clone();
        move || value.get().unwrap()
    });
    gate.open();
    assert!([1, 2].contains(&read.join().unwrap()));
}
