//! Methods of users' own types that are given handles, keep them, use them and return them.
#![allow(unreachable_pub, reason = "only public methods can be called")]

use std::{path::Path, pin::pin, thread};

use executor::{
    manager::{Dict, List, Manager, ManagerError},
    prelude::*,
};

use super::{
    Done, SHORT, ends_killed,
    far::Site,
    has_objects,
    own::{CounterProxy, begin},
    start,
};
use crate::support::{Gate, come_to, watchdog};

/// Keeps handles.
#[derive(Default)]
struct Shelf {
    lists: Vec<List<u32>>,
}

#[managed]
impl Shelf {
    pub fn new() -> Self {
        Shelf::default()
    }

    pub fn of(lists: Vec<List<u32>>) -> Result<Self, String> {
        if lists.is_empty() { Err("nothing".to_owned()) } else { Ok(Shelf { lists }) }
    }

    pub fn adopt(&mut self, list: List<u32>) {
        self.lists.push(list);
    }

    pub fn first(&self) -> Option<List<u32>> {
        self.lists.first().cloned()
    }

    pub fn all(&self) -> Vec<List<u32>> {
        self.lists.clone()
    }

    pub fn clear(&mut self) {
        self.lists.clear();
    }

    pub fn adopt_at(&mut self, list: List<u32>, gate: &Path) {
        come_to(gate);
        self.lists.push(list);
    }

    pub fn look_at(&self, list: List<u32>, gate: &Path) -> Result<usize, ManagerError> {
        come_to(gate);
        list.len()
    }

    pub fn refuse(&self, list: &List<u32>, panics: bool) -> Result<List<u32>, String> {
        assert!(!panics, "as asked for");
        Err(format!("{list:?}"))
    }

    pub fn push_to_all(&self, item: u32) -> Done {
        self.lists.iter().try_for_each(|list| list.push(&item))
    }

    pub fn make(&mut self, items: Vec<u32>) -> Result<List<u32>, ManagerError> {
        let list = current().list(items)?;
        self.lists.push(list.clone());
        Ok(list)
    }

    pub fn counter(&self, start: u64) -> Result<CounterProxy, ManagerError> {
        let counter = CounterProxy::new(&current(), start)?;
        counter.add(1)?;
        Ok(counter)
    }

    pub fn by_name(&self) -> Result<Dict<String, List<u32>>, ManagerError> {
        let first = self.lists.first().cloned();
        current().dict(first.map(|list| ("first".to_owned(), list)))
    }
}

fn current() -> Manager {
    Manager::current().expect("this is the server")
}

#[test]
fn mg10_a_method_keeps_and_returns_handles_and_they_live_as_long_as_the_value_keeps_them() {
    let _watchdog = watchdog();
    let site = Site::new();
    let manager = &site.manager;
    let clients = [site.ways[0].connect().unwrap(), site.ways[1].connect().unwrap()];
    for client in [manager, &clients[0], &clients[1]] {
        let shelf = ShelfProxy::new(client).unwrap();
        assert_eq!(shelf.first().unwrap(), None);
        shelf.adopt(client.list([1]).unwrap()).unwrap();
        shelf.adopt(client.list([2]).unwrap()).unwrap();
        // Nobody else has a handle of them.
        has_objects(manager, 3);
        let first = shelf.first().unwrap().expect("it was adopted");
        shelf.push_to_all(7).unwrap();
        assert_eq!(first.snapshot().unwrap(), [1, 7]);
        let all = shelf.all().unwrap();
        assert_eq!((all.len(), &all[0]), (2, &first));
        assert_eq!(all[1].snapshot().unwrap(), [2, 7]);
        drop(all);
        shelf.clear().unwrap();
        has_objects(manager, 2);
        assert_eq!(first.len().unwrap(), 2);
        shelf.adopt(first).unwrap();
        has_objects(manager, 2);
        drop(shelf);
        has_objects(manager, 0);
    }
}

#[test]
fn mg10_a_constructor_is_given_handles() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let list = manager.list([1]).unwrap();
    let shelf = ShelfProxy::of(&manager, vec![list.clone(), list.clone()]).unwrap();
    assert_eq!(shelf.all().unwrap(), [list.clone(), list]);
    assert!(ShelfProxy::of(&manager, Vec::new()).is_err());
    drop(shelf);
    has_objects(&manager, 0);
}

#[test]
fn mg10_a_method_makes_objects_of_its_own_manager_and_returns_them() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    assert!(Manager::current().is_none());
    let shelf = ShelfProxy::new(&manager).unwrap();
    let list = shelf.make(vec![1, 2]).unwrap();
    assert_eq!(list.snapshot().unwrap(), [1, 2]);
    let counter = shelf.counter(5).unwrap();
    assert_eq!(counter.add(1).unwrap(), 7);
    let by_name = shelf.by_name().unwrap();
    assert_eq!(by_name.get("first").unwrap().unwrap(), list);
    assert_eq!(manager.objects().unwrap(), 4);
    drop((list, counter));
    has_objects(&manager, 3);
    drop(shelf);
    assert_eq!(by_name.get("first").unwrap().unwrap().len().unwrap(), 2);
    drop(by_name);
    has_objects(&manager, 0);
}

#[test]
fn mg10_a_call_that_does_not_keep_its_handles_gives_them_back() {
    let _watchdog = watchdog();
    let (manager, other) = (Manager::start().unwrap(), Manager::start().unwrap());
    let shelf = ShelfProxy::new(&manager).unwrap();
    for panics in [false, true] {
        let error = shelf.refuse(&manager.list([1]).unwrap(), panics).unwrap_err();
        assert!(matches!(error, ManagerError::Failed(_)), "{error:?}");
    }
    has_objects(&manager, 1);
    let foreign = other.list([1]).unwrap();
    let error = shelf.adopt(foreign).unwrap_err();
    assert!(matches!(error, ManagerError::Encode(_)), "{error:?}");
    assert!(error.to_string().contains("an object of one manager"), "{error}");
    // Those in line when their time is over, and when their client leaves.
    let gate = Gate::new();
    thread::scope(|scope| {
        let list = manager.list([1]).unwrap();
        let stuck = scope.spawn(|| shelf.adopt_at(list, gate.path()));
        gate.wait_for(1);
        let error = shelf.with_timeout(SHORT).adopt(manager.list([2]).unwrap()).unwrap_err();
        assert!(matches!(error, ManagerError::TimedOut), "{error:?}");
        begin(pin!(shelf.adopt_async(manager.list([3]).unwrap())));
        has_objects(&manager, 2);
        gate.open();
        stuck.join().unwrap().unwrap();
    });
    assert_eq!(shelf.all().unwrap().len(), 1);
    drop(shelf);
    has_objects(&manager, 0);
}

#[task]
fn look_at(shelf: ShelfProxy, list: List<u32>, gate: &Path) -> Result<usize, ManagerError> {
    shelf.look_at(list, gate)
}

#[test]
fn mg26_a_call_has_its_handles_until_its_end_although_its_client_was_killed() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let gate = Gate::new();
    let shelf = ShelfProxy::new(&manager).unwrap();
    let child = start(look_at::task(shelf.clone(), manager.list([1]).unwrap(), gate.path()));
    gate.wait_for(1);
    child.kill().unwrap();
    ends_killed(&child);
    assert_eq!(manager.objects().unwrap(), 2);
    gate.open();
    has_objects(&manager, 1);
}

#[task]
fn adopt_many(shelf: ShelfProxy, times: u32) -> Done {
    let list = shelf.make(Vec::new())?;
    for number in 0..times {
        list.push(&number)?;
        shelf.adopt(list.clone())?;
        // Another process may have cleared it just now.
        if let Some(first) = shelf.first()? {
            first.len()?;
        }
        if number % 8 == 7 {
            shelf.clear()?;
            shelf.adopt(list.clone())?;
        }
    }
    Ok(())
}

#[test]
fn mg10_eight_processes_that_give_and_take_handles_leave_nothing() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let shelf = ShelfProxy::new(&manager).unwrap();
    let children: Vec<_> = (0..8).map(|_| start(adopt_many::task(shelf.clone(), 20))).collect();
    children.iter().for_each(|child| child.join().unwrap());
    drop(children);
    shelf.clear().unwrap();
    has_objects(&manager, 1);
    drop(shelf);
    has_objects(&manager, 0);
}
